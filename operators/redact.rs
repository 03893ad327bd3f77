//! `redact`: masks or removes attributes whose names say that they hold what must not be stored.
//!
//! # In, Out
//! `NormalizedBatch`: attributes of resources, scopes, spans, events, links, log records, data points and exemplars, and the keys of maps
//! inside of them and of log bodies.
//!
//! # Holds
//! The names. No batch, no capability.
//!
//! # Closes when
//! Its input closes.
//!
//! # Fails when
//! Its options name nothing, or more than can be matched.
//!
//! # Invariants
//! - A payload without such an attribute passes untouched, in the arena in which it came.
//! - Dedup keys stay those of the message as it was sent: redaction makes no duplicates.
//! - What was sent still lies in Kafka, and in the dead letter where a message was rejected: this operator is behind both.

use bytes::Bytes;

use crate::batch::{Arena, NormalizedBatch, Signal, Span};
use crate::options::{Declared, Kind, Options};
use crate::otlp::wire::{Value, fields};
use crate::otlp::write::{close, open, put_bytes, put_value};
use crate::transform::Transform;

/// The operator's core.
#[derive(Debug)]
pub struct Redact {
    /// Names in lower case; those that began or ended with `*` without it.
    names: Vec<Name>,
    /// What stands in the place of a value; empty: the attribute is removed.
    replacement: String,
}

#[derive(Debug)]
enum Name {
    Whole(String),
    Beginning(String),
    End(String),
    Part(String),
}

impl Name {
    fn of(text: &str) -> Result<Name, String> {
        let text = text.to_lowercase();
        let (begins, ends) = (text.starts_with('*'), text.len() > 1 && text.ends_with('*'));
        let inside = &text[usize::from(begins)..text.len() - usize::from(ends)];
        if inside.is_empty() || inside.contains('*') {
            return Err(format!("attributes: {text}: must be a name, with * at its beginning, its end or both for any text"));
        }
        let inside = inside.to_owned();
        Ok(match (begins, ends) {
            (false, false) => Name::Whole(inside),
            (false, true) => Name::Beginning(inside),
            (true, false) => Name::End(inside),
            (true, true) => Name::Part(inside),
        })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Name::Whole(text) => name == text,
            Name::Beginning(text) => name.starts_with(text),
            Name::End(text) => name.ends_with(text),
            Name::Part(text) => name.contains(text),
        }
    }
}

/// More names than anybody lists, few enough to try all of them on every attribute.
const NAMES_MAX: usize = 256;

/// A longer one would make rows larger than they were judged to be.
const REPLACEMENT_BYTES_MAX: usize = 32;

impl Transform for Redact {
    type Batch = NormalizedBatch;

    const NAME: &'static str = "redact";
    const MEANING: &'static str = "Masks or removes attributes by their names, in what is stored.";
    const OPTIONS: &'static [Declared] = &[
        Declared {
            name: "attributes",
            kind: Kind::List,
            default: None,
            meaning: "Names of attributes, in any case; * at the beginning, the end or both stands for any text.",
        },
        Declared {
            name: "replacement",
            kind: Kind::Text,
            default: Some("[redacted]"),
            meaning: "What stands in the place of their values, up to 32 bytes.",
        },
        Declared { name: "remove", kind: Kind::Bool, default: Some("false"), meaning: "Leave the attributes out altogether." },
    ];

    fn new(options: &Options) -> Result<Self, String> {
        let names = options.list("attributes");
        if names.is_empty() || names.len() > NAMES_MAX {
            return Err(format!("attributes: must be 1 to {NAMES_MAX} names"));
        }
        let replacement = options.text("replacement");
        if replacement.len() > REPLACEMENT_BYTES_MAX {
            return Err(format!("replacement: must be up to {REPLACEMENT_BYTES_MAX} bytes"));
        }
        let names: Result<Vec<Name>, String> = names.iter().map(|name| Name::of(name)).collect();
        Ok(Redact { names: names?, replacement: if options.flag("remove") { String::new() } else { replacement } })
    }

    fn apply(&mut self, mut batch: NormalizedBatch) -> NormalizedBatch {
        let root = Level::of(batch.group.signal);
        let touched: Vec<usize> =
            (0..batch.records.len()).filter(|index| self.touches(root, batch.payload(&batch.records[*index]))).collect();
        if touched.is_empty() {
            return batch;
        }
        // What was written before stays where it is.
        let mut written = batch.written.to_vec();
        for index in touched {
            let start = written.len();
            self.rewrite(root, batch.payload(&batch.records[index]), &mut written);
            let record = &mut batch.records[index];
            record.arena = Arena::Written;
            record.payload = Span { start: start as u32, len: (written.len() - start) as u32 };
        }
        batch.written = Bytes::from(written);
        batch
    }
}

/// A kind of message of OTLP in which attributes may lie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Traces,
    Logs,
    Metrics,
    ResourceSpans,
    ResourceLogs,
    ResourceMetrics,
    ScopeSpans,
    ScopeLogs,
    ScopeMetrics,
    Resource,
    Scope,
    Span,
    Event,
    Link,
    LogRecord,
    Metric,
    NumberPoints,
    Histogram,
    ExponentialHistogram,
    Summary,
    NumberPoint,
    HistogramPoint,
    ExponentialPoint,
    SummaryPoint,
    Exemplar,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

impl Level {
    fn of(signal: Signal) -> Level {
        match signal {
            Signal::Traces => Level::Traces,
            Signal::Logs => Level::Logs,
            Signal::Metrics => Level::Metrics,
        }
    }

    /// What lies in a field, by the field numbers of opentelemetry-proto 1.x.
    fn field(self, number: u32) -> Option<Level> {
        use Level::*;
        Some(match (self, number) {
            (Traces, 1) => ResourceSpans,
            (Logs, 1) => ResourceLogs,
            (Metrics, 1) => ResourceMetrics,
            (ResourceSpans | ResourceLogs | ResourceMetrics, 1) => Resource,
            (ResourceSpans, 2) => ScopeSpans,
            (ResourceLogs, 2) => ScopeLogs,
            (ResourceMetrics, 2) => ScopeMetrics,
            (ScopeSpans | ScopeLogs | ScopeMetrics, 1) => Scope,
            (ScopeSpans, 2) => Span,
            (ScopeLogs, 2) => LogRecord,
            (ScopeMetrics, 2) => Metric,
            (Span, 11) => Event,
            (Span, 13) => Link,
            (LogRecord, 5) => AnyValue,
            (Metric, 5 | 7) => NumberPoints,
            (Metric, 9) => Histogram,
            (Metric, 10) => ExponentialHistogram,
            (Metric, 11) => Summary,
            (NumberPoints, 1) => NumberPoint,
            (Histogram, 1) => HistogramPoint,
            (ExponentialHistogram, 1) => ExponentialPoint,
            (Summary, 1) => SummaryPoint,
            (NumberPoint, 5) | (HistogramPoint, 8) | (ExponentialPoint, 11) => Exemplar,
            (Resource | ExponentialPoint | KeyValueList, 1)
            | (Scope | Event, 3)
            | (Link, 4)
            | (LogRecord, 6)
            | (Span | HistogramPoint, 9)
            | (NumberPoint | SummaryPoint | Exemplar, 7)
            | (Metric, 12) => KeyValue,
            (KeyValue, 2) | (ArrayValue, 1) => AnyValue,
            (AnyValue, 5) => ArrayValue,
            (AnyValue, 6) => KeyValueList,
            _ => return None,
        })
    }
}

/// Recursion goes as deep as `normalize` lets values nest (`limits.depth_max`).
impl Redact {
    fn is_named(&self, key_value: &[u8]) -> bool {
        let key = fields(key_value).filter_map(Result::ok).filter(|(number, _)| *number == 1).last();
        let Some((_, Value::Bytes(key))) = key else { return false };
        let Ok(key) = std::str::from_utf8(key) else { return false };
        let key = key.to_lowercase();
        self.names.iter().any(|name| name.matches(&key))
    }

    fn touches(&self, level: Level, message: &[u8]) -> bool {
        fields(message).filter_map(Result::ok).any(|(number, value)| match (level.field(number), value) {
            (Some(Level::KeyValue), Value::Bytes(inside)) if self.is_named(inside) => true,
            (Some(inner), Value::Bytes(inside)) => self.touches(inner, inside),
            _ => false,
        })
    }

    fn rewrite(&self, level: Level, message: &[u8], out: &mut Vec<u8>) {
        for (number, value) in fields(message).filter_map(Result::ok) {
            match (level.field(number), value) {
                (Some(Level::KeyValue), Value::Bytes(inside)) if self.is_named(inside) => self.replace(number, inside, out),
                (Some(inner), Value::Bytes(inside)) if self.touches(inner, inside) => {
                    let nested = open(out, number);
                    self.rewrite(inner, inside, out);
                    close(out, nested);
                }
                _ => put_value(out, number, value),
            }
        }
    }

    /// Writes an attribute with the replacement as its value, or nothing.
    fn replace(&self, number: u32, key_value: &[u8], out: &mut Vec<u8>) {
        if self.replacement.is_empty() {
            return;
        }
        let attribute = open(out, number);
        let other = |(number, _): &(u32, Value<'_>)| *number != 2;
        fields(key_value).filter_map(Result::ok).filter(other).for_each(|(number, value)| put_value(out, number, value));
        let value = open(out, 2);
        put_bytes(out, 1, self.replacement.as_bytes());
        close(out, value);
        close(out, attribute);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
    use opentelemetry_proto::tonic::metrics::v1::{
        Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, MetricsData,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, metric,
    };
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, TracesData};
    use prost::Message;

    use super::*;
    use crate::batch::{Group, Record};
    use crate::budget::Charge;
    use crate::coverage::{Coverage, PartitionKey, TopicKey};

    fn redact(names: &[&str], remove: bool) -> Result<Redact, String> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let options = [
            ("attributes".to_owned(), crate::options::Value::List(names)),
            ("replacement".to_owned(), crate::options::Value::Text("[redacted]".into())),
            ("remove".to_owned(), crate::options::Value::Bool(remove)),
        ];
        Redact::new(&options.into_iter().collect())
    }

    fn text(value: &str) -> Option<AnyValue> {
        Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) })
    }

    fn attribute(key: &str, value: Option<AnyValue>) -> KeyValue {
        KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
    }

    /// A secret, something else, and a secret inside of a list of maps.
    fn attributes() -> Vec<KeyValue> {
        let inside = KeyValueList { values: vec![attribute("User.Password", text("hunter2")), attribute("kept", text("yes"))] };
        let map = AnyValue { value: Some(Any::KvlistValue(inside)) };
        let list = AnyValue { value: Some(Any::ArrayValue(ArrayValue { values: vec![map] })) };
        vec![attribute("PASSWORD", text("hunter2")), attribute("http.method", text("GET")), attribute("body", Some(list))]
    }

    fn batch(signal: Signal, payload: Vec<u8>) -> NormalizedBatch {
        let topic = TopicKey { cluster: "cluster".into(), name: "topic".into(), id: "".into() };
        let partition = PartitionKey { topic: topic.into(), partition: 0 };
        let record = Record {
            offset: 0,
            timestamp_ms: 1,
            key: 7,
            arena: Arena::Raw,
            payload: Span { start: 0, len: payload.len() as u32 },
            tenant: 0,
        };
        NormalizedBatch {
            group: Group { index: Arc::from("index"), signal },
            coverage: Coverage::stored(partition, 0..1),
            raw: payload.into(),
            written: Bytes::new(),
            records: vec![record],
            schema: None,
            tenants: Vec::new(),
            charge: Charge::default(),
        }
    }

    fn scope() -> Option<InstrumentationScope> {
        Some(InstrumentationScope { attributes: attributes(), ..Default::default() })
    }

    fn resource() -> Option<Resource> {
        Some(Resource { attributes: attributes(), ..Default::default() })
    }

    /// One payload per signal with `attributes` in every place that OTLP has for them, and how many places these are.
    fn everywhere() -> [(Signal, Vec<u8>, usize); 3] {
        let span = OtlpSpan {
            attributes: attributes(),
            events: vec![Event { attributes: attributes(), ..Default::default() }],
            links: vec![Link { attributes: attributes(), ..Default::default() }],
            ..Default::default()
        };
        let spans = ScopeSpans { scope: scope(), spans: vec![span], ..Default::default() };
        let traces = TracesData {
            resource_spans: vec![ResourceSpans { resource: resource(), scope_spans: vec![spans], ..Default::default() }],
        };
        let body = AnyValue { value: Some(Any::KvlistValue(KeyValueList { values: attributes() })) };
        let record = LogRecord { attributes: attributes(), body: Some(body), ..Default::default() };
        let records = ScopeLogs { scope: scope(), log_records: vec![record], ..Default::default() };
        let logs = LogsData {
            resource_logs: vec![ResourceLogs { resource: resource(), scope_logs: vec![records], ..Default::default() }],
        };
        let exemplars = || vec![Exemplar { filtered_attributes: attributes(), ..Default::default() }];
        let number = || vec![NumberDataPoint { attributes: attributes(), exemplars: exemplars(), ..Default::default() }];
        let histogram = HistogramDataPoint { attributes: attributes(), exemplars: exemplars(), ..Default::default() };
        let exponential =
            ExponentialHistogramDataPoint { attributes: attributes(), exemplars: exemplars(), ..Default::default() };
        let summary = SummaryDataPoint { attributes: attributes(), ..Default::default() };
        let data = [
            metric::Data::Gauge(Gauge { data_points: number() }),
            metric::Data::Sum(Sum { data_points: number(), ..Default::default() }),
            metric::Data::Histogram(Histogram { data_points: vec![histogram], ..Default::default() }),
            metric::Data::ExponentialHistogram(ExponentialHistogram { data_points: vec![exponential], ..Default::default() }),
            metric::Data::Summary(Summary { data_points: vec![summary] }),
        ];
        let metrics = data.map(|data| Metric { metadata: attributes(), data: Some(data), ..Default::default() });
        let metrics = ScopeMetrics { scope: scope(), metrics: metrics.into(), ..Default::default() };
        let metrics = MetricsData {
            resource_metrics: vec![ResourceMetrics { resource: resource(), scope_metrics: vec![metrics], ..Default::default() }],
        };
        [
            (Signal::Traces, traces.encode_to_vec(), 5),
            (Signal::Logs, logs.encode_to_vec(), 4),
            (Signal::Metrics, metrics.encode_to_vec(), 2 + 5 + 5 + 4),
        ]
    }

    fn decoded(signal: Signal, payload: &[u8]) -> String {
        match signal {
            Signal::Traces => format!("{:?}", TracesData::decode(payload).unwrap()),
            Signal::Logs => format!("{:?}", LogsData::decode(payload).unwrap()),
            Signal::Metrics => format!("{:?}", MetricsData::decode(payload).unwrap()),
        }
    }

    #[test]
    fn a_named_attribute_is_masked_wherever_otlp_has_attributes_and_nothing_else_changes() {
        for (signal, payload, places) in everywhere() {
            let before = decoded(signal, &payload);
            assert_eq!(before.matches("hunter2").count(), 2 * places, "{signal}: the sample has them all");
            let after = redact(&["*password"], false).unwrap().apply(batch(signal, payload));
            let after = decoded(signal, after.payload(&after.records[0]));
            assert_eq!(after, before.replace("hunter2", "[redacted]"), "{signal}");
        }
    }

    #[test]
    fn a_named_attribute_is_removed_and_its_neighbours_stay() {
        for (signal, payload, places) in everywhere() {
            let after = redact(&["password", "user.*"], true).unwrap().apply(batch(signal, payload));
            let after = decoded(signal, after.payload(&after.records[0])).to_lowercase();
            assert!(!after.contains("password"), "{signal}: {after}");
            assert_eq!((after.matches("http.method").count(), after.matches("\"kept\"").count()), (places, places), "{signal}");
        }
    }

    #[test]
    fn a_payload_without_such_an_attribute_passes_untouched() {
        for (signal, payload, _) in everywhere() {
            let after = redact(&["absent", "*.token"], false).unwrap().apply(batch(signal, payload.clone()));
            assert_eq!((after.records[0].arena, after.payload(&after.records[0])), (Arena::Raw, payload.as_slice()));
        }
    }

    #[test]
    fn names_that_cannot_match_are_refused() {
        for (names, says) in
            [(&[][..], "1 to 256 names"), (&["*"], "must be a name"), (&["a*b"], "must be a name"), (&["**"], "must be a name")]
        {
            assert!(redact(names, false).unwrap_err().contains(says), "{names:?}");
        }
    }
}
