//! The rows that a message stands for, written from `docs/schemas.md` on prost's structs, with no thought of speed.
//!
//! A row is a JSON object of its columns; null columns are left out. Identifiers are written in hexadecimal, doubles as Rust's debug
//! form (JSON has no NaN), maps as arrays of pairs.

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int8Array, Int32Array, Int64Array, TimestampMillisecondArray,
    TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::record_batch::RecordBatch;
use base64::Engine as _;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData};
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, Metric, MetricsData, NumberDataPoint, exemplar, exponential_histogram_data_point::Buckets, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};
use prost::Message;
use serde_json::{Map, Value, json};

use crate::arrow_encode::promoted::{Kind, Promoted, RESOURCE, ROW};
use crate::batch::Signal;

pub type Object = Map<String, Value>;

/// Where a message came from.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub tenant: Option<&'a str>,
}

impl Origin<'_> {
    fn arrival_ns(&self) -> i64 {
        self.timestamp_ms.max(0).checked_mul(1_000_000).unwrap_or(0)
    }
}

/// The rows of one message.
pub fn rows(signal: Signal, payload: &[u8], origin: Origin<'_>) -> Vec<Object> {
    let mut rows = match signal {
        Signal::Traces => spans(TracesData::decode(payload).expect("valid traces"), origin),
        Signal::Logs => log_records(LogsData::decode(payload).expect("valid logs"), origin),
        Signal::Metrics => points(MetricsData::decode(payload).expect("valid metrics"), origin),
    };
    for (ordinal, row) in rows.iter_mut().enumerate() {
        row.insert("_topic".into(), origin.topic.into());
        row.insert("_partition".into(), origin.partition.into());
        row.insert("_offset".into(), origin.offset.into());
        row.insert("_ordinal".into(), ordinal.into());
        set(row, "_kafka_timestamp", Some(origin.timestamp_ms).filter(|&ms| ms >= 0));
        set(row, "_tenant", origin.tenant);
    }
    rows
}

fn spans(data: TracesData, origin: Origin<'_>) -> Vec<Object> {
    let mut rows = Vec::new();
    for resource in &data.resource_spans {
        for scope in &resource.scope_spans {
            for record in &scope.spans {
                let mut row = resource_columns(resource.resource.as_ref(), &resource.schema_url);
                scope_columns(&mut row, scope.scope.as_ref(), &scope.schema_url);
                span(&mut row, record, origin);
                rows.push(row);
            }
        }
    }
    rows
}

fn log_records(data: LogsData, origin: Origin<'_>) -> Vec<Object> {
    let mut rows = Vec::new();
    for resource in &data.resource_logs {
        for scope in &resource.scope_logs {
            for record in &scope.log_records {
                let mut row = resource_columns(resource.resource.as_ref(), &resource.schema_url);
                scope_columns(&mut row, scope.scope.as_ref(), &scope.schema_url);
                log_record(&mut row, record, origin);
                rows.push(row);
            }
        }
    }
    rows
}

fn points(data: MetricsData, origin: Origin<'_>) -> Vec<Object> {
    let mut rows = Vec::new();
    for resource in &data.resource_metrics {
        for scope in &resource.scope_metrics {
            for record in &scope.metrics {
                let mut row = resource_columns(resource.resource.as_ref(), &resource.schema_url);
                scope_columns(&mut row, scope.scope.as_ref(), &scope.schema_url);
                rows.extend(metric_rows(&row, record, origin));
            }
        }
    }
    rows
}

fn set(row: &mut Object, column: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        row.insert(column.to_owned(), value.into());
    }
}

fn double(value: f64) -> Value {
    Value::String(format!("{value:?}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn required_id(bytes: &[u8], length: usize) -> String {
    if bytes.is_empty() { "00".repeat(length) } else { hex(bytes) }
}

fn optional_id(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| hex(bytes))
}

fn time(nanos: u64) -> Option<i64> {
    (nanos != 0).then_some(nanos as i64)
}

fn small(number: i32) -> i8 {
    if (-128..128).contains(&number) { number as i8 } else { 0 }
}

fn variant(value: &Option<AnyValue>) -> Option<&any_value::Value> {
    match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValueStrindex(_)) => None,
        other => other,
    }
}

/// The text of a value: its JSON form, or the content of that form where it is a JSON string.
fn text_of(value: Option<&any_value::Value>) -> Option<String> {
    let form = json_form(value?);
    Some(if form.starts_with('"') { serde_json::from_str(&form).expect("a JSON string") } else { form })
}

fn json_form(value: &any_value::Value) -> String {
    use any_value::Value::*;
    let quoted = |text: &str| serde_json::to_string(text).expect("a string has a JSON form");
    let member = |value: Option<&any_value::Value>| value.map_or("null".to_owned(), json_form);
    match value {
        StringValue(text) => quoted(text),
        BoolValue(flag) => flag.to_string(),
        IntValue(number) => number.to_string(),
        DoubleValue(number) if number.is_nan() => quoted("NaN"),
        DoubleValue(number) if number.is_infinite() => quoted(if *number > 0.0 { "Infinity" } else { "-Infinity" }),
        DoubleValue(number) => {
            let text = ryu::Buffer::new().format(*number).to_owned();
            assert_eq!(text.parse::<f64>().map(f64::to_bits), Ok(number.to_bits()));
            text
        }
        BytesValue(bytes) => quoted(&base64::engine::general_purpose::STANDARD.encode(bytes)),
        ArrayValue(array) => {
            let members: Vec<String> = array.values.iter().map(|value| member(variant(&Some(value.clone())))).collect();
            format!("[{}]", members.join(","))
        }
        KvlistValue(list) => {
            let entry = |entry: &KeyValue| format!("{}:{}", quoted(&entry.key), member(variant(&entry.value)));
            format!("{{{}}}", list.values.iter().map(entry).collect::<Vec<_>>().join(","))
        }
        StringValueStrindex(_) => "null".to_owned(),
    }
}

/// The attributes as a map, without those that `promoted` moves to columns of `row`. Of equal keys the first stays.
fn attributes(row: &mut Object, list: &[KeyValue], promoted: &[Promoted]) -> Value {
    let mut entries: Vec<Value> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for attribute in list {
        if seen.contains(&attribute.key.as_str()) {
            continue;
        }
        seen.push(&attribute.key);
        let column = promoted.iter().find(|promoted| promoted.key == attribute.key);
        match (column.map(|column| (column.kind, column.column)), variant(&attribute.value)) {
            (Some((Kind::Text, column)), Some(any_value::Value::StringValue(text))) => set(row, column, Some(text.as_str())),
            (Some((Kind::Int, column)), Some(any_value::Value::IntValue(number))) if i32::try_from(*number).is_ok() => {
                set(row, column, Some(*number));
            }
            (_, value) => entries.push(json!([attribute.key, text_of(value)])),
        }
    }
    Value::Array(entries)
}

fn map(list: &[KeyValue]) -> Value {
    attributes(&mut Object::new(), list, &[])
}

fn resource_columns(resource: Option<&Resource>, schema_url: &str) -> Object {
    let resource = resource.cloned().unwrap_or_default();
    let mut row = Object::new();
    let rest = attributes(&mut row, &resource.attributes, &RESOURCE);
    row.insert("resource_attributes".into(), rest);
    row.insert("resource_dropped_attributes_count".into(), resource.dropped_attributes_count.into());
    row.insert("resource_schema_url".into(), schema_url.into());
    row
}

fn scope_columns(row: &mut Object, scope: Option<&InstrumentationScope>, schema_url: &str) {
    let scope = scope.cloned().unwrap_or_default();
    row.insert("scope_name".into(), scope.name.into());
    row.insert("scope_version".into(), scope.version.into());
    row.insert("scope_attributes".into(), map(&scope.attributes));
    row.insert("scope_schema_url".into(), schema_url.into());
}

fn span(row: &mut Object, span: &Span, origin: Origin<'_>) {
    let (start, end) = (time(span.start_time_unix_nano), time(span.end_time_unix_nano));
    let status = span.status.clone().unwrap_or_default();
    row.insert("trace_id".into(), required_id(&span.trace_id, 16).into());
    row.insert("span_id".into(), required_id(&span.span_id, 8).into());
    set(row, "parent_span_id", optional_id(&span.parent_span_id));
    row.insert("trace_state".into(), span.trace_state.as_str().into());
    row.insert("flags".into(), span.flags.into());
    row.insert("name".into(), span.name.as_str().into());
    row.insert("kind".into(), small(span.kind).into());
    row.insert("start_time".into(), start.unwrap_or(origin.arrival_ns()).into());
    set(row, "end_time", end);
    set(row, "duration_ns", start.and_then(|start| Some(end? - start)));
    row.insert("status_code".into(), small(status.code).into());
    row.insert("status_message".into(), status.message.into());
    row.insert("dropped_attributes_count".into(), span.dropped_attributes_count.into());
    row.insert("dropped_events_count".into(), span.dropped_events_count.into());
    row.insert("dropped_links_count".into(), span.dropped_links_count.into());
    let event = |event: &opentelemetry_proto::tonic::trace::v1::span::Event| {
        let mut item = Object::new();
        set(&mut item, "time", time(event.time_unix_nano));
        item.insert("name".into(), event.name.as_str().into());
        item.insert("attributes".into(), map(&event.attributes));
        item.insert("dropped_attributes_count".into(), event.dropped_attributes_count.into());
        Value::Object(item)
    };
    row.insert("events".into(), span.events.iter().map(event).collect());
    let link = |link: &opentelemetry_proto::tonic::trace::v1::span::Link| {
        json!({
            "trace_id": required_id(&link.trace_id, 16), "span_id": required_id(&link.span_id, 8), "trace_state": link.trace_state,
            "attributes": map(&link.attributes), "dropped_attributes_count": link.dropped_attributes_count, "flags": link.flags,
        })
    };
    row.insert("links".into(), span.links.iter().map(link).collect());
    let rest = attributes(row, &span.attributes, &ROW);
    row.insert("attributes".into(), rest);
}

fn log_record(row: &mut Object, record: &LogRecord, origin: Origin<'_>) {
    let (own, observed) = (time(record.time_unix_nano), time(record.observed_time_unix_nano));
    row.insert("time".into(), own.or(observed).unwrap_or(origin.arrival_ns()).into());
    set(row, "observed_time", observed);
    row.insert("severity_number".into(), small(record.severity_number).into());
    row.insert("severity_text".into(), record.severity_text.as_str().into());
    set(row, "body", text_of(variant(&record.body)));
    row.insert("event_name".into(), record.event_name.as_str().into());
    set(row, "trace_id", optional_id(&record.trace_id));
    set(row, "span_id", optional_id(&record.span_id));
    row.insert("flags".into(), record.flags.into());
    row.insert("dropped_attributes_count".into(), record.dropped_attributes_count.into());
    let rest = attributes(row, &record.attributes, &ROW);
    row.insert("attributes".into(), rest);
}

fn metric_rows(common: &Object, record: &Metric, origin: Origin<'_>) -> Vec<Object> {
    use metric::Data;
    let mut base = common.clone();
    base.insert("metric_name".into(), record.name.as_str().into());
    base.insert("description".into(), record.description.as_str().into());
    base.insert("unit".into(), record.unit.as_str().into());
    base.insert("metric_metadata".into(), map(&record.metadata));
    for list in ["bucket_counts", "explicit_bounds", "positive_bucket_counts", "negative_bucket_counts", "quantiles", "exemplars"]
    {
        base.insert(list.into(), json!([]));
    }
    let kind = |name: &str, temporality: Option<i32>| {
        let mut base = base.clone();
        base.insert("metric_type".into(), name.into());
        set(&mut base, "temporality", temporality.map(small));
        base
    };
    match record.data.as_ref() {
        None => vec![],
        Some(Data::Gauge(gauge)) => gauge.data_points.iter().map(|point| number(kind("gauge", None), point, origin)).collect(),
        Some(Data::Sum(sum)) => {
            let mut base = kind("sum", Some(sum.aggregation_temporality));
            base.insert("is_monotonic".into(), sum.is_monotonic.into());
            sum.data_points.iter().map(|point| number(base.clone(), point, origin)).collect()
        }
        Some(Data::Histogram(data)) => {
            let base = kind("histogram", Some(data.aggregation_temporality));
            let row = |point: &opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint| {
                let mut row = base.clone();
                times(&mut row, point.start_time_unix_nano, point.time_unix_nano, origin);
                statistics(&mut row, point.count, point.sum, point.min, point.max);
                row.insert("bucket_counts".into(), json!(point.bucket_counts));
                row.insert("explicit_bounds".into(), point.explicit_bounds.iter().map(|&bound| double(bound)).collect());
                rest(row, &point.exemplars, point.flags, &point.attributes)
            };
            data.data_points.iter().map(row).collect()
        }
        Some(Data::ExponentialHistogram(data)) => {
            let base = kind("exponential_histogram", Some(data.aggregation_temporality));
            let row = |point: &opentelemetry_proto::tonic::metrics::v1::ExponentialHistogramDataPoint| {
                let mut row = base.clone();
                times(&mut row, point.start_time_unix_nano, point.time_unix_nano, origin);
                statistics(&mut row, point.count, point.sum, point.min, point.max);
                row.insert("scale".into(), point.scale.into());
                row.insert("zero_count".into(), point.zero_count.into());
                row.insert("zero_threshold".into(), double(point.zero_threshold));
                buckets(&mut row, "positive", point.positive.as_ref());
                buckets(&mut row, "negative", point.negative.as_ref());
                rest(row, &point.exemplars, point.flags, &point.attributes)
            };
            data.data_points.iter().map(row).collect()
        }
        Some(Data::Summary(data)) => {
            let base = kind("summary", None);
            let row = |point: &opentelemetry_proto::tonic::metrics::v1::SummaryDataPoint| {
                let mut row = base.clone();
                times(&mut row, point.start_time_unix_nano, point.time_unix_nano, origin);
                statistics(&mut row, point.count, Some(point.sum), None, None);
                let quantiles = point.quantile_values.iter();
                let quantiles = quantiles.map(|q| json!({"quantile": double(q.quantile), "value": double(q.value)})).collect();
                row.insert("quantiles".into(), quantiles);
                rest(row, &[], point.flags, &point.attributes)
            };
            data.data_points.iter().map(row).collect()
        }
    }
}

fn number(mut row: Object, point: &NumberDataPoint, origin: Origin<'_>) -> Object {
    times(&mut row, point.start_time_unix_nano, point.time_unix_nano, origin);
    match point.value {
        Some(number_data_point::Value::AsDouble(value)) => set(&mut row, "value_double", Some(double(value))),
        Some(number_data_point::Value::AsInt(value)) => set(&mut row, "value_int", Some(value)),
        None => {}
    }
    rest(row, &point.exemplars, point.flags, &point.attributes)
}

fn times(row: &mut Object, start: u64, own: u64, origin: Origin<'_>) {
    set(row, "start_time", time(start));
    row.insert("time".into(), time(own).unwrap_or(origin.arrival_ns()).into());
}

fn statistics(row: &mut Object, count: u64, sum: Option<f64>, min: Option<f64>, max: Option<f64>) {
    row.insert("count".into(), count.into());
    set(row, "sum", sum.map(double));
    set(row, "min", min.map(double));
    set(row, "max", max.map(double));
}

fn buckets(row: &mut Object, side: &str, buckets: Option<&Buckets>) {
    set(row, &format!("{side}_offset"), buckets.map(|buckets| buckets.offset));
    set(row, &format!("{side}_bucket_counts"), buckets.map(|buckets| json!(buckets.bucket_counts)));
}

fn rest(mut row: Object, exemplars: &[Exemplar], flags: u32, attributes: &[KeyValue]) -> Object {
    let item = |exemplar: &Exemplar| {
        let mut item = Object::new();
        set(&mut item, "time", time(exemplar.time_unix_nano));
        match exemplar.value {
            Some(exemplar::Value::AsDouble(value)) => set(&mut item, "value_double", Some(double(value))),
            Some(exemplar::Value::AsInt(value)) => set(&mut item, "value_int", Some(value)),
            None => {}
        }
        set(&mut item, "trace_id", optional_id(&exemplar.trace_id));
        set(&mut item, "span_id", optional_id(&exemplar.span_id));
        item.insert("filtered_attributes".into(), map(&exemplar.filtered_attributes));
        Value::Object(item)
    };
    row.insert("exemplars".into(), exemplars.iter().map(item).collect());
    row.insert("flags".into(), flags.into());
    row.insert("attributes".into(), map(attributes));
    row
}

/// The rows of a record batch in the same form.
pub fn objects(batch: &RecordBatch) -> Vec<Object> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let columns: Vec<_> = columns.map(|(field, column)| (field.name().clone(), column.clone())).collect();
    (0..batch.num_rows()).map(|row| object(&columns, row)).collect()
}

fn object(columns: &[(String, ArrayRef)], row: usize) -> Object {
    let cells = columns.iter().filter_map(|(name, column)| Some((name.clone(), cell(column, row)?)));
    cells.collect()
}

fn cell(array: &ArrayRef, row: usize) -> Option<Value> {
    if array.is_null(row) {
        return None;
    }
    let any = array.as_any();
    macro_rules! plain {
        ($array:ty) => {
            json!(any.downcast_ref::<$array>()?.value(row))
        };
    }
    Some(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Int8 => plain!(Int8Array),
        DataType::Int32 => plain!(Int32Array),
        DataType::Int64 => plain!(Int64Array),
        DataType::UInt32 => plain!(UInt32Array),
        DataType::UInt64 => plain!(UInt64Array),
        DataType::Timestamp(TimeUnit::Millisecond, Some(_)) => plain!(TimestampMillisecondArray),
        DataType::Timestamp(TimeUnit::Nanosecond, Some(_)) => plain!(TimestampNanosecondArray),
        DataType::Float64 => double(any.downcast_ref::<Float64Array>()?.value(row)),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Binary => hex(array.as_binary::<i32>().value(row)).into(),
        DataType::FixedSizeBinary(_) => hex(array.as_fixed_size_binary().value(row)).into(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|item| cell(&items, item).unwrap_or(Value::Null)).collect()
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let columns: Vec<_> = columns.map(|(field, column)| (field.name().clone(), column.clone())).collect();
            Value::Object(object(&columns, row))
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            (0..entries.len()).map(|entry| json!([cell(keys, entry), cell(values, entry)])).collect()
        }
        other => panic!("no column is of type {other}"),
    })
}
