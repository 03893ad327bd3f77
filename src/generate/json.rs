//! OTLP JSON, as OpenTelemetry's protocol defines it: camelCase keys, identifiers in hex, 64-bit integers as strings, enums as numbers,
//! fields at their default left out. Source: <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>.

use std::io::Write;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, Metric, MetricsData, NumberDataPoint, SummaryDataPoint,
    exemplar, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};

/// Appends `bytes` in lower-case hex.
pub fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (position, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[copied..position]);
        copied = position + 1;
        if byte < 0x20 {
            out.extend_from_slice(b"\\u00");
            push_hex(out, &[byte]);
        } else {
            out.extend_from_slice(&[b'\\', byte]);
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
}

/// Appends a number as Rust prints it. Writing to a vector cannot fail.
pub fn push_display(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    let written = write!(out, "{number}");
    debug_assert!(written.is_ok(), "a vector takes all that is written to it");
}

/// One JSON object being written: knows where commas belong.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

/// Appends one object, whose members `members` writes.
pub fn push_object(out: &mut Vec<u8>, members: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    members(&mut Object { out, empty: true });
    out.push(b'}');
}

impl Object<'_> {
    /// Bytes written to the vector so far.
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// Writes the key of the next member; the caller writes its value.
    pub fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.out.extend_from_slice(if self.empty { b"\"" } else { b",\"" });
        self.empty = false;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// A string, left out when empty.
    pub fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            push_string(self.key(key), text);
        }
    }

    /// An identifier in hex, left out when empty.
    pub fn id(&mut self, key: &str, id: &[u8]) {
        if !id.is_empty() {
            let out = self.key(key);
            out.push(b'"');
            push_hex(out, id);
            out.push(b'"');
        }
    }

    /// A number that fits into 53 bits, left out when it is the default.
    pub fn number<T: Default + PartialEq + std::fmt::Display>(&mut self, key: &str, number: T) {
        if number != T::default() {
            push_display(self.key(key), number);
        }
    }

    /// A 64-bit integer, as a string; left out when zero.
    pub fn wide(&mut self, key: &str, number: u64) {
        if number != 0 {
            push_wide(self.key(key), number);
        }
    }

    /// A number that says whether it is there.
    fn optional(&mut self, key: &str, number: Option<f64>) {
        if let Some(number) = number {
            push_display(self.key(key), number);
        }
    }

    /// An object.
    pub fn object(&mut self, key: &str, members: impl FnOnce(&mut Object<'_>)) {
        push_object(self.key(key), members);
    }

    /// An array of objects, left out when empty.
    fn objects<T>(&mut self, key: &str, items: &[T], mut members: impl FnMut(&mut Object<'_>, &T)) {
        self.array(key, items, |out, item| push_object(out, |object| members(object, item)));
    }

    /// An array, left out when empty.
    fn array<T>(&mut self, key: &str, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
        if items.is_empty() {
            return;
        }
        let out = self.key(key);
        for (position, value) in items.iter().enumerate() {
            out.push(if position == 0 { b'[' } else { b',' });
            item(out, value);
        }
        out.push(b']');
    }

    fn attributes(&mut self, attributes: &[KeyValue]) {
        self.objects("attributes", attributes, |object, attribute| {
            object.text("key", &attribute.key);
            if let Some(value) = &attribute.value {
                object.object("value", |object| any_value(object, value));
            }
        });
    }

    fn resource(&mut self, resource: Option<&Resource>) {
        if let Some(resource) = resource {
            self.object("resource", |object| object.attributes(&resource.attributes));
        }
    }

    fn scope(&mut self, scope: Option<&InstrumentationScope>) {
        let Some(scope) = scope else { return };
        self.object("scope", |object| {
            object.text("name", &scope.name);
            object.text("version", &scope.version);
            object.attributes(&scope.attributes);
        });
    }
}

fn push_wide(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    out.push(b'"');
    push_display(out, number);
    out.push(b'"');
}

/// The generator's attributes are strings and integers; other kinds of values do not occur in its templates.
fn any_value(object: &mut Object<'_>, value: &AnyValue) {
    match &value.value {
        Some(Value::StringValue(text)) => push_string(object.key("stringValue"), text),
        Some(Value::IntValue(number)) => push_wide(object.key("intValue"), number),
        other => debug_assert!(other.is_none(), "the templates hold strings and integers only"),
    }
}

/// Appends `data` as OTLP JSON.
pub fn push_traces(out: &mut Vec<u8>, data: &TracesData) {
    push_object(out, |object| {
        object.objects("resourceSpans", &data.resource_spans, |object, resource| {
            object.resource(resource.resource.as_ref());
            object.objects("scopeSpans", &resource.scope_spans, |object, scope| {
                object.scope(scope.scope.as_ref());
                object.objects("spans", &scope.spans, span);
            });
        });
    });
}

fn span(object: &mut Object<'_>, span: &Span) {
    object.id("traceId", &span.trace_id);
    object.id("spanId", &span.span_id);
    object.text("traceState", &span.trace_state);
    object.id("parentSpanId", &span.parent_span_id);
    object.number("flags", span.flags);
    object.text("name", &span.name);
    object.number("kind", span.kind);
    object.wide("startTimeUnixNano", span.start_time_unix_nano);
    object.wide("endTimeUnixNano", span.end_time_unix_nano);
    object.attributes(&span.attributes);
    object.objects("events", &span.events, event);
    object.objects("links", &span.links, link);
    if let Some(status) = &span.status {
        object.object("status", |object| {
            object.text("message", &status.message);
            object.number("code", status.code);
        });
    }
}

fn event(object: &mut Object<'_>, event: &Event) {
    object.wide("timeUnixNano", event.time_unix_nano);
    object.text("name", &event.name);
    object.attributes(&event.attributes);
}

fn link(object: &mut Object<'_>, link: &Link) {
    object.id("traceId", &link.trace_id);
    object.id("spanId", &link.span_id);
    object.attributes(&link.attributes);
}

/// Appends `data` as OTLP JSON.
pub fn push_logs(out: &mut Vec<u8>, data: &LogsData) {
    push_object(out, |object| {
        object.objects("resourceLogs", &data.resource_logs, |object, resource| {
            object.resource(resource.resource.as_ref());
            object.objects("scopeLogs", &resource.scope_logs, |object, scope| {
                object.scope(scope.scope.as_ref());
                object.objects("logRecords", &scope.log_records, log_record);
            });
        });
    });
}

fn log_record(object: &mut Object<'_>, record: &LogRecord) {
    object.wide("timeUnixNano", record.time_unix_nano);
    object.wide("observedTimeUnixNano", record.observed_time_unix_nano);
    object.number("severityNumber", record.severity_number);
    object.text("severityText", &record.severity_text);
    if let Some(body) = &record.body {
        object.object("body", |object| any_value(object, body));
    }
    object.attributes(&record.attributes);
    object.number("flags", record.flags);
    object.id("traceId", &record.trace_id);
    object.id("spanId", &record.span_id);
    object.text("eventName", &record.event_name);
}

/// Appends `data` as OTLP JSON.
pub fn push_metrics(out: &mut Vec<u8>, data: &MetricsData) {
    push_object(out, |object| {
        object.objects("resourceMetrics", &data.resource_metrics, |object, resource| {
            object.resource(resource.resource.as_ref());
            object.objects("scopeMetrics", &resource.scope_metrics, |object, scope| {
                object.scope(scope.scope.as_ref());
                object.objects("metrics", &scope.metrics, metric);
            });
        });
    });
}

fn metric(object: &mut Object<'_>, metric: &Metric) {
    object.text("name", &metric.name);
    object.text("description", &metric.description);
    object.text("unit", &metric.unit);
    match &metric.data {
        Some(Data::Gauge(gauge)) => {
            object.object("gauge", |object| object.objects("dataPoints", &gauge.data_points, number_point))
        }
        Some(Data::Sum(sum)) => object.object("sum", |object| {
            object.objects("dataPoints", &sum.data_points, number_point);
            object.number("aggregationTemporality", sum.aggregation_temporality);
            object.number("isMonotonic", sum.is_monotonic);
        }),
        Some(Data::Histogram(histogram)) => object.object("histogram", |object| {
            object.objects("dataPoints", &histogram.data_points, histogram_point);
            object.number("aggregationTemporality", histogram.aggregation_temporality);
        }),
        Some(Data::ExponentialHistogram(histogram)) => object.object("exponentialHistogram", |object| {
            object.objects("dataPoints", &histogram.data_points, exponential_histogram_point);
            object.number("aggregationTemporality", histogram.aggregation_temporality);
        }),
        Some(Data::Summary(summary)) => {
            object.object("summary", |object| object.objects("dataPoints", &summary.data_points, summary_point))
        }
        None => {}
    }
}

fn number_point(object: &mut Object<'_>, point: &NumberDataPoint) {
    object.attributes(&point.attributes);
    object.wide("startTimeUnixNano", point.start_time_unix_nano);
    object.wide("timeUnixNano", point.time_unix_nano);
    match point.value {
        Some(number_data_point::Value::AsDouble(number)) => push_display(object.key("asDouble"), number),
        Some(number_data_point::Value::AsInt(number)) => push_wide(object.key("asInt"), number),
        None => {}
    }
    object.objects("exemplars", &point.exemplars, exemplar);
}

fn histogram_point(object: &mut Object<'_>, point: &HistogramDataPoint) {
    object.attributes(&point.attributes);
    object.wide("startTimeUnixNano", point.start_time_unix_nano);
    object.wide("timeUnixNano", point.time_unix_nano);
    object.wide("count", point.count);
    object.optional("sum", point.sum);
    object.array("bucketCounts", &point.bucket_counts, |out, count| push_wide(out, count));
    object.array("explicitBounds", &point.explicit_bounds, |out, bound| push_display(out, bound));
    object.objects("exemplars", &point.exemplars, exemplar);
    object.optional("min", point.min);
    object.optional("max", point.max);
}

fn exponential_histogram_point(object: &mut Object<'_>, point: &ExponentialHistogramDataPoint) {
    object.attributes(&point.attributes);
    object.wide("startTimeUnixNano", point.start_time_unix_nano);
    object.wide("timeUnixNano", point.time_unix_nano);
    object.wide("count", point.count);
    object.optional("sum", point.sum);
    object.number("scale", point.scale);
    object.wide("zeroCount", point.zero_count);
    for (key, buckets) in [("positive", &point.positive), ("negative", &point.negative)] {
        if let Some(buckets) = buckets {
            object.object(key, |object| exponential_buckets(object, buckets));
        }
    }
    object.objects("exemplars", &point.exemplars, exemplar);
}

fn exponential_buckets(object: &mut Object<'_>, buckets: &Buckets) {
    object.number("offset", buckets.offset);
    object.array("bucketCounts", &buckets.bucket_counts, |out, count| push_wide(out, count));
}

fn summary_point(object: &mut Object<'_>, point: &SummaryDataPoint) {
    object.attributes(&point.attributes);
    object.wide("startTimeUnixNano", point.start_time_unix_nano);
    object.wide("timeUnixNano", point.time_unix_nano);
    object.wide("count", point.count);
    object.number("sum", point.sum);
    object.objects("quantileValues", &point.quantile_values, |object, value| {
        object.number("quantile", value.quantile);
        object.number("value", value.value);
    });
}

fn exemplar(object: &mut Object<'_>, exemplar: &Exemplar) {
    object.wide("timeUnixNano", exemplar.time_unix_nano);
    object.id("spanId", &exemplar.span_id);
    object.id("traceId", &exemplar.trace_id);
    match exemplar.value {
        Some(exemplar::Value::AsDouble(number)) => push_display(object.key("asDouble"), number),
        Some(exemplar::Value::AsInt(number)) => push_wide(object.key("asInt"), number),
        None => {}
    }
}
