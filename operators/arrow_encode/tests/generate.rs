//! Random OTLP messages with all fields, and random other ways to write them on the wire.

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::summary_data_point::ValueAtQuantile;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, MetricsData,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};
use prost::Message;

use crate::arrow_encode::promoted::{RESOURCE, ROW};
use crate::batch::Signal;
use crate::otlp::wire::{Value, fields, varints};

/// A small generator of pseudo-random numbers (splitmix64), so that a case is its seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn list<T>(&mut self, bound: usize, mut make: impl FnMut(&mut Dice) -> T) -> Vec<T> {
        (0..self.below(bound)).map(|_| make(self)).collect()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Dice) -> T) -> Option<T> {
        if self.one_in(3) { None } else { Some(make(self)) }
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 9] = [
            "",
            "a",
            "GET",
            "/cart/{id}",
            "käse",
            "quote\" \\ \u{1}\n\t",
            "日本語",
            "a longer text of some words, ASCII only",
            "\u{1F980}",
        ];
        (0..self.below(3)).map(|_| *self.pick(&TEXTS)).collect()
    }

    fn bytes(&mut self) -> Vec<u8> {
        self.list(7, |dice| dice.roll() as u8)
    }

    fn id(&mut self, length: usize) -> Vec<u8> {
        if self.one_in(4) { Vec::new() } else { (0..length).map(|_| self.roll() as u8).collect() }
    }

    fn double(&mut self) -> f64 {
        const DOUBLES: [f64; 9] = [0.0, -0.0, 1.0, 0.1, -2.5e-300, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        *self.pick(&DOUBLES)
    }

    fn int(&mut self) -> i64 {
        *self.pick(&[0, 1, -1, 200, 8080, i64::from(i32::MAX) + 1, i64::MAX, i64::MIN])
    }

    fn time(&mut self) -> u64 {
        if self.one_in(4) { 0 } else { self.roll() >> 1 }
    }

    fn u32(&mut self) -> u32 {
        if self.one_in(3) { 0 } else { self.roll() as u32 }
    }

    fn count(&mut self) -> u64 {
        if self.one_in(3) { 0 } else { self.roll() >> self.below(64) }
    }

    fn value(&mut self, depth: usize) -> Option<any_value::Value> {
        use any_value::Value::*;
        Some(match self.below(if depth < 4 { 10 } else { 7 }) {
            0 => return None,
            1 => BoolValue(self.one_in(2)),
            2 => IntValue(self.int()),
            3 => DoubleValue(self.double()),
            4 => BytesValue(self.bytes()),
            7 => ArrayValue(self::ArrayValue { values: self.list(4, |dice| dice.any_value(depth + 1)) }),
            8 => KvlistValue(KeyValueList { values: self.list(4, |dice| dice.attribute(depth + 1)) }),
            9 => StringValueStrindex(self.below(3) as i32),
            _ => StringValue(self.text()),
        })
    }

    fn any_value(&mut self, depth: usize) -> AnyValue {
        AnyValue { value: self.value(depth) }
    }

    fn attribute(&mut self, depth: usize) -> KeyValue {
        let key = match self.below(5) {
            // Few keys, so that they repeat within a list with values that fit their column and values that do not.
            4 => (*self.pick(&["server.port", "http.route", "service.name"])).to_owned(),
            0 => RESOURCE[self.below(RESOURCE.len())].key.to_owned(),
            1 => ROW[self.below(ROW.len())].key.to_owned(),
            2 => format!("key.{}", self.below(60)),
            _ => self.text(),
        };
        KeyValue { key, value: self.maybe(|dice| dice.any_value(depth)), ..KeyValue::default() }
    }

    fn attributes(&mut self) -> Vec<KeyValue> {
        // Now and then more than are compared one by one.
        let bound = if self.one_in(12) { 150 } else { 9 };
        self.list(bound, |dice| dice.attribute(0))
    }

    fn resource(&mut self) -> Resource {
        Resource { attributes: self.attributes(), dropped_attributes_count: self.u32(), ..Resource::default() }
    }

    fn scope(&mut self) -> InstrumentationScope {
        let (name, version) = (self.text(), self.text());
        InstrumentationScope { name, version, attributes: self.attributes(), dropped_attributes_count: self.u32() }
    }

    fn span(&mut self) -> Span {
        Span {
            trace_id: self.id(16),
            span_id: self.id(8),
            trace_state: self.text(),
            parent_span_id: self.id(8),
            flags: self.u32(),
            name: self.text(),
            kind: self.below(7) as i32 - 1,
            start_time_unix_nano: self.time(),
            end_time_unix_nano: self.time(),
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
            events: self.list(4, Dice::event),
            dropped_events_count: self.u32(),
            links: self.list(4, Dice::link),
            dropped_links_count: self.u32(),
            status: self.maybe(|dice| Status { message: dice.text(), code: dice.below(300) as i32 }),
        }
    }

    fn event(&mut self) -> Event {
        let (time_unix_nano, name) = (self.time(), self.text());
        Event { time_unix_nano, name, attributes: self.attributes(), dropped_attributes_count: self.u32() }
    }

    fn link(&mut self) -> Link {
        Link {
            trace_id: self.id(16),
            span_id: self.id(8),
            trace_state: self.text(),
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
            flags: self.u32(),
        }
    }

    fn log_record(&mut self) -> LogRecord {
        LogRecord {
            time_unix_nano: self.time(),
            observed_time_unix_nano: self.time(),
            severity_number: self.below(25) as i32,
            severity_text: self.text(),
            body: self.maybe(|dice| dice.any_value(0)),
            attributes: self.attributes(),
            dropped_attributes_count: self.u32(),
            flags: self.u32(),
            trace_id: self.id(16),
            span_id: self.id(8),
            event_name: self.text(),
        }
    }

    fn metric(&mut self) -> Metric {
        use metric::Data;
        let temporality = self.below(3) as i32;
        let data = match self.below(6) {
            0 => None,
            1 => Some(Data::Gauge(Gauge { data_points: self.list(5, Dice::number) })),
            2 => {
                let (data_points, is_monotonic) = (self.list(5, Dice::number), self.one_in(2));
                Some(Data::Sum(Sum { data_points, aggregation_temporality: temporality, is_monotonic }))
            }
            3 => Some(Data::Histogram(Histogram {
                data_points: self.list(5, Dice::histogram),
                aggregation_temporality: temporality,
            })),
            4 => Some(Data::ExponentialHistogram(ExponentialHistogram {
                data_points: self.list(5, Dice::exponential),
                aggregation_temporality: temporality,
            })),
            _ => Some(Data::Summary(Summary { data_points: self.list(5, Dice::summary) })),
        };
        let (name, description, unit) = (self.text(), self.text(), self.text());
        Metric { name, description, unit, metadata: self.attributes(), data }
    }

    fn number(&mut self) -> NumberDataPoint {
        use number_data_point::Value;
        NumberDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            exemplars: self.list(3, Dice::exemplar),
            flags: self.u32(),
            value: self.maybe(|dice| if dice.one_in(2) { Value::AsDouble(dice.double()) } else { Value::AsInt(dice.int()) }),
        }
    }

    fn histogram(&mut self) -> HistogramDataPoint {
        HistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            count: self.count(),
            sum: self.maybe(Dice::double),
            bucket_counts: self.list(5, Dice::count),
            explicit_bounds: self.list(5, Dice::double),
            exemplars: self.list(3, Dice::exemplar),
            flags: self.u32(),
            min: self.maybe(Dice::double),
            max: self.maybe(Dice::double),
        }
    }

    fn exponential(&mut self) -> ExponentialHistogramDataPoint {
        ExponentialHistogramDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            count: self.count(),
            sum: self.maybe(Dice::double),
            scale: self.roll() as i32,
            zero_count: self.count(),
            positive: self.maybe(Dice::buckets),
            negative: self.maybe(Dice::buckets),
            flags: self.u32(),
            exemplars: self.list(3, Dice::exemplar),
            min: self.maybe(Dice::double),
            max: self.maybe(Dice::double),
            zero_threshold: self.double(),
        }
    }

    fn buckets(&mut self) -> Buckets {
        Buckets { offset: self.roll() as i32, bucket_counts: self.list(5, Dice::count) }
    }

    fn summary(&mut self) -> SummaryDataPoint {
        SummaryDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            count: self.count(),
            sum: self.double(),
            quantile_values: self.list(4, |dice| ValueAtQuantile { quantile: dice.double(), value: dice.double() }),
            flags: self.u32(),
        }
    }

    fn exemplar(&mut self) -> Exemplar {
        use exemplar::Value;
        Exemplar {
            filtered_attributes: self.attributes(),
            time_unix_nano: self.time(),
            span_id: self.id(8),
            trace_id: self.id(16),
            value: self.maybe(|dice| if dice.one_in(2) { Value::AsDouble(dice.double()) } else { Value::AsInt(dice.int()) }),
        }
    }

    /// A message of `signal`, as prost writes it.
    pub fn message(&mut self, signal: Signal) -> Vec<u8> {
        match signal {
            Signal::Traces => TracesData {
                resource_spans: self.list(3, |dice| ResourceSpans {
                    resource: dice.maybe(Dice::resource),
                    scope_spans: dice.list(3, |dice| ScopeSpans {
                        scope: dice.maybe(Dice::scope),
                        spans: dice.list(6, Dice::span),
                        schema_url: dice.text(),
                    }),
                    schema_url: dice.text(),
                }),
            }
            .encode_to_vec(),
            Signal::Logs => LogsData {
                resource_logs: self.list(3, |dice| ResourceLogs {
                    resource: dice.maybe(Dice::resource),
                    scope_logs: dice.list(3, |dice| ScopeLogs {
                        scope: dice.maybe(Dice::scope),
                        log_records: dice.list(6, Dice::log_record),
                        schema_url: dice.text(),
                    }),
                    schema_url: dice.text(),
                }),
            }
            .encode_to_vec(),
            Signal::Metrics => MetricsData {
                resource_metrics: self.list(3, |dice| ResourceMetrics {
                    resource: dice.maybe(Dice::resource),
                    scope_metrics: dice.list(3, |dice| ScopeMetrics {
                        scope: dice.maybe(Dice::scope),
                        metrics: dice.list(5, Dice::metric),
                        schema_url: dice.text(),
                    }),
                    schema_url: dice.text(),
                }),
            }
            .encode_to_vec(),
        }
    }

    /// Another way to write the message `bytes` of type `of`, which every protobuf parser must read as the same: fields in another
    /// order, singular messages in two pieces, packed fields unpacked, overwritten variants and unknown fields mixed in.
    pub fn scramble(&mut self, bytes: &[u8], of: Type) -> Vec<u8> {
        let mut written: Vec<(u32, Vec<u8>)> = Vec::new();
        for field in fields(bytes) {
            let (number, value) = field.expect("prost writes valid fields");
            match (value, of.embedded(number)) {
                (Value::Bytes(message), Some((embedded, is_singular))) => {
                    let message = self.scramble(message, embedded);
                    let pieces = if is_singular && self.one_in(3) { self.split(&message) } else { vec![message] };
                    written.extend(pieces.into_iter().map(|piece| (number, field_bytes(number, &piece))));
                }
                (Value::Bytes(packed), None) if of.is_packed(number) && self.one_in(2) => {
                    written.extend(unpack(of, number, packed).into_iter().map(|element| (number, element)));
                }
                (value, _) => written.push((number, raw_field(number, value))),
            }
        }
        self.shuffle(&mut written);
        let mut out = Vec::new();
        if let Some(overwritten) = of.overwritten().filter(|_| self.one_in(4) && !written.is_empty() && of.has_variant(&written))
        {
            out.extend_from_slice(overwritten);
        }
        for (_, field) in written {
            if self.one_in(8) {
                out.extend_from_slice(UNKNOWN[self.below(UNKNOWN.len())]);
            }
            out.extend_from_slice(&field);
        }
        out
    }

    /// Splits a message between two of its fields.
    fn split(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
        let mut ends = vec![0];
        for field in fields(message) {
            let (number, value) = field.expect("scrambled messages are valid");
            ends.push(ends[ends.len() - 1] + raw_field(number, value).len());
        }
        let at = *self.pick(&ends);
        vec![message[..at].to_vec(), message[at..].to_vec()]
    }

    /// Shuffles, keeping the order of fields of one number: that is part of their meaning.
    fn shuffle(&mut self, written: &mut [(u32, Vec<u8>)]) {
        for _ in 0..written.len() * 2 {
            let at = self.below(written.len());
            if at > 0 && written[at].0 != written[at - 1].0 {
                written.swap(at, at - 1);
            }
        }
    }
}

/// Fields 1000 to 1003, one of each wire type.
const UNKNOWN: [&[u8]; 4] = [
    &[0xc0, 0x3e, 0x96, 0x01],
    &[0xc9, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8],
    &[0xd2, 0x3e, 3, b'x', 0xff, b'z'],
    &[0xdd, 0x3e, 1, 2, 3, 4],
];

/// The message types of OTLP, as far as `scramble` must know them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Type {
    Data(Signal),
    ResourceGroup(Signal),
    ScopeGroup(Signal),
    Resource,
    Scope,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
    Span,
    Event,
    Link,
    LogRecord,
    Metric,
    /// Gauge and summary data differ in their points only.
    Points(u32),
    Number,
    Histogram,
    Exponential,
    SummaryPoint,
    Buckets,
    Exemplar,
    Leaf,
}

impl Type {
    /// The type of the messages in field `number`, and whether the field is singular.
    fn embedded(self, number: u32) -> Option<(Type, bool)> {
        Some(match (self, number) {
            (Type::Data(signal), 1) => (Type::ResourceGroup(signal), false),
            (Type::ResourceGroup(_), 1) => (Type::Resource, true),
            (Type::ResourceGroup(signal), 2) => (Type::ScopeGroup(signal), false),
            (Type::ScopeGroup(_), 1) => (Type::Scope, true),
            (Type::ScopeGroup(Signal::Traces), 2) => (Type::Span, false),
            (Type::ScopeGroup(Signal::Logs), 2) => (Type::LogRecord, false),
            (Type::ScopeGroup(Signal::Metrics), 2) => (Type::Metric, false),
            (Type::Resource | Type::KeyValueList | Type::Exponential, 1) => (Type::KeyValue, false),
            (Type::Scope | Type::Event, 3) | (Type::Link, 4) | (Type::Span | Type::Histogram, 9) => (Type::KeyValue, false),
            (Type::LogRecord, 6) | (Type::Number | Type::SummaryPoint | Type::Exemplar, 7) => (Type::KeyValue, false),
            (Type::Metric, 12) => (Type::KeyValue, false),
            (Type::KeyValue, 2) | (Type::LogRecord, 5) => (Type::AnyValue, true),
            (Type::ArrayValue, 1) => (Type::AnyValue, false),
            (Type::AnyValue, 5) => (Type::ArrayValue, true),
            (Type::AnyValue, 6) => (Type::KeyValueList, true),
            (Type::Span, 11) => (Type::Event, false),
            (Type::Span, 13) => (Type::Link, false),
            (Type::Span, 15) => (Type::Leaf, true),
            (Type::Metric, 5 | 7 | 9 | 10 | 11) => (Type::Points(number), true),
            (Type::Points(5 | 7), 1) => (Type::Number, false),
            (Type::Points(9), 1) => (Type::Histogram, false),
            (Type::Points(10), 1) => (Type::Exponential, false),
            (Type::Points(11), 1) => (Type::SummaryPoint, false),
            (Type::Number, 5) | (Type::Histogram, 8) | (Type::Exponential, 11) => (Type::Exemplar, false),
            (Type::Exponential, 8 | 9) => (Type::Buckets, true),
            (Type::SummaryPoint, 6) => (Type::Leaf, false),
            _ => return None,
        })
    }

    fn is_packed(self, number: u32) -> bool {
        matches!((self, number), (Type::Histogram, 6 | 7) | (Type::Buckets, 2))
    }

    /// A field of a oneof, to be overwritten by another that follows.
    fn overwritten(self) -> Option<&'static [u8]> {
        match self {
            Type::AnyValue => Some(&[0x2a, 0x02, 0x0a, 0x00]),
            Type::Metric => Some(&[0x2a, 0x02, 0x0a, 0x00]),
            Type::Number => Some(&[0x31, 9, 0, 0, 0, 0, 0, 0, 0]),
            _ => None,
        }
    }

    fn has_variant(self, written: &[(u32, Vec<u8>)]) -> bool {
        written.iter().any(|(number, _)| match self {
            Type::AnyValue => true,
            Type::Metric => matches!(number, 5 | 7 | 9 | 10 | 11),
            _ => matches!(number, 4 | 6),
        })
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of wire type 2.
pub fn field_bytes(number: u32, bytes: &[u8]) -> Vec<u8> {
    raw_field(number, Value::Bytes(bytes))
}

fn raw_field(number: u32, value: Value<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let tag = u64::from(number) << 3;
    match value {
        Value::Varint(value) => {
            varint(tag, &mut out);
            varint(value, &mut out);
        }
        Value::Fixed64(bits) => {
            varint(tag | 1, &mut out);
            out.extend_from_slice(&bits.to_le_bytes());
        }
        Value::Bytes(bytes) => {
            varint(tag | 2, &mut out);
            varint(bytes.len() as u64, &mut out);
            out.extend_from_slice(bytes);
        }
        Value::Fixed32(bits) => {
            varint(tag | 5, &mut out);
            out.extend_from_slice(&bits.to_le_bytes());
        }
    }
    out
}

fn unpack(of: Type, number: u32, packed: &[u8]) -> Vec<Vec<u8>> {
    if of == Type::Histogram {
        let bits = packed.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")));
        return bits.map(|bits| raw_field(number, Value::Fixed64(bits))).collect();
    }
    varints(packed).map(|count| raw_field(number, Value::Varint(count.expect("prost writes valid varints")))).collect()
}
