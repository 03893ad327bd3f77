//! Messages built by hand, the same as `tests/data/otlp/*.json`, and random ones.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList};
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

use crate::batch::Signal;

pub const TRACES_JSON: &str = include_str!("../../../tests/data/otlp/traces.json");
pub const LOGS_JSON: &str = include_str!("../../../tests/data/otlp/logs.json");
pub const METRICS_JSON: &str = include_str!("../../../tests/data/otlp/metrics.json");

pub const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

pub const TRACE_ID: [u8; 16] = [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];
pub const SPAN_ID: [u8; 8] = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];

pub fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

pub fn text(text: &str) -> AnyValue {
    any(Value::StringValue(text.to_owned()))
}

pub fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), key_strindex: 0 }
}

pub fn text_attribute(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// The sample of `signal`, as JSON and as protobuf built by hand.
pub fn sample(signal: Signal) -> (&'static str, Vec<u8>) {
    match signal {
        Signal::Traces => (TRACES_JSON, traces().encode_to_vec()),
        Signal::Logs => (LOGS_JSON, logs().encode_to_vec()),
        Signal::Metrics => (METRICS_JSON, metrics().encode_to_vec()),
    }
}

/// True if prost can decode `payload` as `signal`.
pub fn prost_decodes(payload: &[u8], signal: Signal) -> bool {
    match signal {
        Signal::Traces => TracesData::decode(payload).is_ok(),
        Signal::Logs => LogsData::decode(payload).is_ok(),
        Signal::Metrics => MetricsData::decode(payload).is_ok(),
    }
}

pub fn traces() -> TracesData {
    let entity = EntityRef {
        schema_url: "https://example.org/entity/1".into(),
        r#type: "service".into(),
        id_keys: vec!["service.name".into()],
        description_keys: vec!["host.cores".into(), "zone".into()],
    };
    let resource = Resource {
        attributes: vec![text_attribute("service.name", "basket"), attribute("host.cores", Value::IntValue(16))],
        dropped_attributes_count: 1,
        entity_refs: vec![entity],
    };
    let scope = InstrumentationScope {
        name: "basket.http".into(),
        version: "2.4.1".into(),
        attributes: vec![attribute("generated", Value::BoolValue(false))],
        dropped_attributes_count: 2,
    };
    let scope_spans = ScopeSpans { scope: Some(scope), spans: vec![span()], schema_url: "https://example.org/scope/1".into() };
    let schema_url = "https://example.org/resource/1".into();
    TracesData { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans: vec![scope_spans], schema_url }] }
}

fn span() -> Span {
    Span {
        trace_id: TRACE_ID.into(),
        span_id: SPAN_ID.into(),
        trace_state: "vendor=opaque".into(),
        parent_span_id: vec![0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7],
        flags: 257,
        name: "POST /basket/{id}/items".into(),
        kind: 2,
        start_time_unix_nano: 1_795_435_262_000_000_001,
        end_time_unix_nano: 1_795_435_262_250_000_002,
        attributes: span_attributes(),
        dropped_attributes_count: 3,
        events: vec![Event {
            time_unix_nano: 1_795_435_262_100_000_000,
            name: "cache miss".into(),
            attributes: vec![text_attribute("cache", "l2")],
            dropped_attributes_count: 4,
        }],
        dropped_events_count: 5,
        links: vec![Link {
            trace_id: vec![0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36],
            span_id: vec![0x53, 0x99, 0x5c, 0x3f, 0x42, 0xcd, 0x8a, 0xd8],
            trace_state: "a=b".into(),
            attributes: vec![text_attribute("reason", "retry of")],
            dropped_attributes_count: 6,
            flags: 1,
        }],
        dropped_links_count: 7,
        status: Some(Status { message: "stock is gone".into(), code: 2 }),
    }
}

fn span_attributes() -> Vec<KeyValue> {
    let inner = attribute("inner", Value::ArrayValue(ArrayValue { values: vec![] }));
    let mixed = ArrayValue {
        values: vec![
            any(Value::BoolValue(true)),
            any(Value::KvlistValue(KeyValueList { values: vec![inner] })),
            text("gr\u{fc}\u{df}e \u{1f600}"),
        ],
    };
    vec![
        text_attribute("http.route", "/basket/{id}/items"),
        attribute("http.request.body.size", Value::IntValue(i64::MIN)),
        attribute("ratio", Value::DoubleValue(0.125)),
        attribute("not.finite", Value::DoubleValue(f64::NEG_INFINITY)),
        attribute("digest", Value::BytesValue(vec![0x00, 0xff, 0xaa, 0xf0])),
        KeyValue { key: "empty".into(), value: Some(AnyValue { value: None }), key_strindex: 0 },
        attribute("mixed", Value::ArrayValue(mixed)),
    ]
}

pub fn logs() -> LogsData {
    let who = KeyValue { key: "who".into(), value: None, key_strindex: 0 };
    let body = KeyValueList { values: vec![attribute("left", Value::IntValue(3)), who] };
    let record = LogRecord {
        time_unix_nano: 1_795_435_262_000_000_001,
        observed_time_unix_nano: 1_795_435_262_000_000_009,
        severity_number: 14,
        severity_text: "Warning".into(),
        body: Some(any(Value::KvlistValue(body))),
        attributes: vec![attribute("code.line", Value::IntValue(42))],
        dropped_attributes_count: 1,
        flags: 1,
        trace_id: TRACE_ID.into(),
        span_id: SPAN_ID.into(),
        event_name: "stock.low".into(),
    };
    let empty = LogRecord { body: Some(text("")), ..LogRecord::default() };
    let scope = InstrumentationScope { name: "basket.audit".into(), ..InstrumentationScope::default() };
    let schema_url = "https://example.org/scope/1".into();
    let scope_logs = ScopeLogs { scope: Some(scope), log_records: vec![record, empty], schema_url };
    let resource = Resource { attributes: vec![text_attribute("service.name", "basket")], ..Resource::default() };
    let schema_url = "https://example.org/resource/1".into();
    let first = ResourceLogs { resource: Some(resource), scope_logs: vec![scope_logs], schema_url };
    LogsData { resource_logs: vec![first, ResourceLogs::default()] }
}

const START: u64 = 1_795_435_200_000_000_000;
const TIME: u64 = 1_795_435_260_000_000_000;

pub fn metrics() -> MetricsData {
    let metric = |name: &str, data| Metric { name: name.into(), data: Some(data), ..Metric::default() };
    let depth = Metric {
        name: "queue.depth".into(),
        description: "Messages waiting".into(),
        unit: "{message}".into(),
        metadata: vec![text_attribute("owner", "platform")],
        data: Some(metric::Data::Gauge(Gauge { data_points: gauge_points() })),
    };
    let point = NumberDataPoint {
        time_unix_nano: TIME,
        value: Some(number_data_point::Value::AsDouble(1_000.0)),
        ..NumberDataPoint::default()
    };
    let requests = Sum { data_points: vec![point], aggregation_temporality: 2, is_monotonic: true };
    let latency = Histogram { data_points: vec![histogram_point()], aggregation_temporality: 1 };
    let fine = ExponentialHistogram { data_points: vec![exponential_point()], aggregation_temporality: 1 };
    let summary = Summary { data_points: vec![summary_point()] };
    let metrics = vec![
        depth,
        metric("requests", metric::Data::Sum(requests)),
        Metric { unit: "ms".into(), ..metric("latency", metric::Data::Histogram(latency)) },
        metric("latency.fine", metric::Data::ExponentialHistogram(fine)),
        metric("latency.summary", metric::Data::Summary(summary)),
    ];
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    let resource = Some(Resource::default());
    MetricsData { resource_metrics: vec![ResourceMetrics { resource, scope_metrics, schema_url: String::new() }] }
}

fn gauge_points() -> Vec<NumberDataPoint> {
    let exemplar = Exemplar {
        filtered_attributes: vec![text_attribute("user", "u1")],
        time_unix_nano: 1_795_435_259_000_000_000,
        span_id: SPAN_ID.into(),
        trace_id: TRACE_ID.into(),
        value: Some(exemplar::Value::AsDouble(0.0)),
    };
    let zero =
        Exemplar { time_unix_nano: 1_795_435_259_000_000_001, value: Some(exemplar::Value::AsInt(0)), ..Exemplar::default() };
    let first = NumberDataPoint {
        attributes: vec![text_attribute("queue", "orders")],
        start_time_unix_nano: START,
        time_unix_nano: TIME,
        exemplars: vec![exemplar, zero],
        flags: 1,
        value: Some(number_data_point::Value::AsInt(-7)),
    };
    let second = NumberDataPoint {
        time_unix_nano: TIME,
        value: Some(number_data_point::Value::AsDouble(f64::NAN)),
        ..NumberDataPoint::default()
    };
    vec![first, second]
}

fn histogram_point() -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: vec![text_attribute("route", "/")],
        start_time_unix_nano: START,
        time_unix_nano: TIME,
        count: u64::MAX,
        sum: Some(0.0),
        bucket_counts: vec![1, 2, 300],
        explicit_bounds: vec![0.5, 10.0],
        exemplars: vec![],
        flags: 0,
        min: Some(-1.5),
        max: Some(99.0),
    }
}

fn exponential_point() -> ExponentialHistogramDataPoint {
    ExponentialHistogramDataPoint {
        attributes: vec![text_attribute("route", "/")],
        start_time_unix_nano: START,
        time_unix_nano: TIME,
        count: 5,
        sum: Some(12.5),
        scale: -3,
        zero_count: 1,
        positive: Some(Buckets { offset: i32::MIN, bucket_counts: vec![0, 300, u64::MAX] }),
        negative: Some(Buckets { offset: 2, bucket_counts: vec![] }),
        flags: u32::MAX,
        exemplars: vec![],
        min: Some(0.0),
        max: Some(5.0),
        zero_threshold: 0.001,
    }
}

fn summary_point() -> SummaryDataPoint {
    SummaryDataPoint {
        attributes: vec![],
        start_time_unix_nano: START,
        time_unix_nano: TIME,
        count: 9,
        sum: 81.0,
        quantile_values: vec![ValueAtQuantile { quantile: 0.5, value: 8.0 }, ValueAtQuantile { quantile: 0.99, value: 12.75 }],
        flags: 0,
    }
}

/// Choices drawn from random bytes, so that proptest shrinks messages by shrinking bytes. All zeros once the bytes are used up.
pub struct Draw<'a>(pub &'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }
    fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }
    fn number(&mut self) -> u64 {
        let shift = self.below(64);
        u64::from_le_bytes(std::array::from_fn(|_| self.byte())) >> shift
    }
    fn time(&mut self) -> u64 {
        self.number() >> 1
    }
    fn text(&mut self) -> String {
        (0..self.below(12)).map(|_| char::from_u32(self.number() as u32 % 0x11_0000).unwrap_or('x')).collect()
    }
    fn id(&mut self, len: usize) -> Vec<u8> {
        let mut id: Vec<u8> = (0..len).map(|_| self.byte()).collect();
        id[0] |= 1;
        id
    }
    fn maybe_id(&mut self, len: usize) -> Vec<u8> {
        if self.below(2) == 0 { vec![] } else { self.id(len) }
    }
    fn list<T>(&mut self, end: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(end)).map(|_| one(self)).collect()
    }
    fn double(&mut self) -> f64 {
        f64::from_bits(self.number())
    }

    fn any(&mut self, depth: u8) -> AnyValue {
        let kinds = if depth == 0 { 6 } else { 8 };
        AnyValue {
            value: Some(match self.below(kinds) {
                0 => return AnyValue { value: None },
                1 => Value::StringValue(self.text()),
                2 => Value::BoolValue(self.below(2) == 1),
                3 => Value::IntValue(self.number() as i64),
                4 => Value::DoubleValue(self.double()),
                5 => Value::BytesValue(self.id(3)),
                6 => Value::ArrayValue(ArrayValue { values: self.list(4, |draw| draw.any(depth - 1)) }),
                _ => Value::KvlistValue(KeyValueList { values: self.list(4, |draw| draw.key_value(depth - 1)) }),
            }),
        }
    }
    fn key_value(&mut self, depth: u8) -> KeyValue {
        KeyValue { key: self.text(), value: Some(self.any(depth)), key_strindex: 0 }
    }
    fn attributes(&mut self) -> Vec<KeyValue> {
        self.list(4, |draw| draw.key_value(4))
    }
    fn resource(&mut self) -> Resource {
        Resource { attributes: self.attributes(), dropped_attributes_count: self.number() as u32, entity_refs: vec![] }
    }
    fn scope(&mut self) -> InstrumentationScope {
        let dropped_attributes_count = self.number() as u32;
        InstrumentationScope { name: self.text(), version: self.text(), attributes: self.attributes(), dropped_attributes_count }
    }

    fn span(&mut self) -> Span {
        Span {
            trace_id: self.id(16),
            span_id: self.id(8),
            trace_state: self.text(),
            parent_span_id: self.maybe_id(8),
            flags: self.number() as u32,
            name: self.text(),
            kind: self.number() as i32,
            start_time_unix_nano: self.time(),
            end_time_unix_nano: self.time(),
            attributes: self.attributes(),
            events: self.list(3, |draw| Event {
                time_unix_nano: draw.time(),
                name: draw.text(),
                attributes: draw.attributes(),
                dropped_attributes_count: draw.number() as u32,
            }),
            links: self.list(3, |draw| Link {
                trace_id: draw.maybe_id(16),
                span_id: draw.maybe_id(8),
                attributes: draw.attributes(),
                ..Link::default()
            }),
            status: Some(Status { message: self.text(), code: self.number() as i32 }),
            ..Span::default()
        }
    }

    fn log_record(&mut self) -> LogRecord {
        LogRecord {
            time_unix_nano: self.time(),
            observed_time_unix_nano: self.time(),
            severity_number: self.number() as i32,
            severity_text: self.text(),
            body: Some(self.any(4)),
            attributes: self.attributes(),
            dropped_attributes_count: self.number() as u32,
            flags: self.number() as u32,
            trace_id: self.maybe_id(16),
            span_id: self.maybe_id(8),
            event_name: self.text(),
        }
    }

    fn number_point(&mut self) -> NumberDataPoint {
        let exemplar = |draw: &mut Self| Exemplar {
            filtered_attributes: draw.attributes(),
            time_unix_nano: draw.time(),
            span_id: draw.maybe_id(8),
            trace_id: draw.maybe_id(16),
            value: Some(exemplar::Value::AsInt(draw.number() as i64)),
        };
        NumberDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: self.time(),
            time_unix_nano: self.time(),
            exemplars: self.list(3, exemplar),
            flags: self.number() as u32,
            value: Some(number_data_point::Value::AsDouble(self.double())),
        }
    }

    fn metric(&mut self) -> Metric {
        let time = self.time();
        let data = match self.below(5) {
            0 => metric::Data::Gauge(Gauge { data_points: self.list(4, Self::number_point) }),
            1 => metric::Data::Sum(Sum {
                data_points: self.list(4, Self::number_point),
                aggregation_temporality: self.number() as i32,
                is_monotonic: self.below(2) == 1,
            }),
            2 => {
                let point = |draw: &mut Self| HistogramDataPoint {
                    bucket_counts: draw.list(5, Self::number),
                    explicit_bounds: draw.list(5, Self::double),
                    attributes: draw.attributes(),
                    ..histogram_point()
                };
                metric::Data::Histogram(Histogram { data_points: self.list(4, point), aggregation_temporality: 2 })
            }
            3 => {
                let point = |draw: &mut Self| ExponentialHistogramDataPoint {
                    positive: Some(Buckets { offset: draw.number() as i32, bucket_counts: draw.list(5, Self::number) }),
                    time_unix_nano: time,
                    ..exponential_point()
                };
                metric::Data::ExponentialHistogram(ExponentialHistogram {
                    data_points: self.list(4, point),
                    aggregation_temporality: 1,
                })
            }
            _ => metric::Data::Summary(Summary {
                data_points: self.list(4, |draw| SummaryDataPoint { count: draw.number(), ..summary_point() }),
            }),
        };
        Metric { name: format!("m{}", self.text()), description: self.text(), data: Some(data), ..Metric::default() }
    }

    /// A random conforming message of `signal`, and its rows.
    pub fn data(&mut self, signal: Signal) -> (Vec<u8>, u64) {
        let resources = 1 + self.below(3);
        let mut rows = 0;
        let schema_url = self.text();
        let payload = match signal {
            Signal::Traces => {
                let resource = |draw: &mut Self| {
                    let scope = |draw: &mut Self| ScopeSpans {
                        scope: Some(draw.scope()),
                        spans: draw.list(4, Self::span),
                        schema_url: draw.text(),
                    };
                    ResourceSpans {
                        resource: Some(draw.resource()),
                        scope_spans: draw.list(3, scope),
                        schema_url: schema_url.clone(),
                    }
                };
                let data = TracesData { resource_spans: (0..resources).map(|_| resource(self)).collect() };
                rows += data.resource_spans.iter().flat_map(|it| &it.scope_spans).map(|it| it.spans.len()).sum::<usize>();
                data.encode_to_vec()
            }
            Signal::Logs => {
                let resource = |draw: &mut Self| {
                    let scope = |draw: &mut Self| ScopeLogs {
                        scope: None,
                        log_records: draw.list(4, Self::log_record),
                        schema_url: draw.text(),
                    };
                    ResourceLogs {
                        resource: Some(draw.resource()),
                        scope_logs: draw.list(3, scope),
                        schema_url: schema_url.clone(),
                    }
                };
                let data = LogsData { resource_logs: (0..resources).map(|_| resource(self)).collect() };
                rows += data.resource_logs.iter().flat_map(|it| &it.scope_logs).map(|it| it.log_records.len()).sum::<usize>();
                data.encode_to_vec()
            }
            Signal::Metrics => {
                let resource = |draw: &mut Self| {
                    let scope = |draw: &mut Self| ScopeMetrics {
                        scope: Some(draw.scope()),
                        metrics: draw.list(4, Self::metric),
                        schema_url: String::new(),
                    };
                    ResourceMetrics { resource: None, scope_metrics: draw.list(3, scope), schema_url: schema_url.clone() }
                };
                let data = MetricsData { resource_metrics: (0..resources).map(|_| resource(self)).collect() };
                let metrics = data.resource_metrics.iter().flat_map(|it| &it.scope_metrics).flat_map(|it| &it.metrics);
                rows += metrics.map(points).sum::<usize>();
                data.encode_to_vec()
            }
        };
        (payload, rows as u64)
    }
}

fn points(metric: &Metric) -> usize {
    match &metric.data {
        None => 0,
        Some(metric::Data::Gauge(data)) => data.data_points.len(),
        Some(metric::Data::Sum(data)) => data.data_points.len(),
        Some(metric::Data::Histogram(data)) => data.data_points.len(),
        Some(metric::Data::ExponentialHistogram(data)) => data.data_points.len(),
        Some(metric::Data::Summary(data)) => data.data_points.len(),
    }
}
