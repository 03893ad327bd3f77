//! What rows a message must become: decoded by prost and serde_json, without any code of the pipeline, by the rules of
//! `docs/schemas.md` and `docs/formats.md`.
//!
//! Only what the load holds is decoded. Anything else is an error: a check that skips what it does not know proves nothing.

use anyhow::{Context as _, bail};
use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Exemplar, Metric, MetricsData, exemplar, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};
use prost::Message as _;

use crate::digest::{Digest, PROMOTED, RESOURCE};

/// Where a row of a message stands: its ordinal, and the message's time in Kafka.
#[derive(Clone, Copy)]
struct Origin {
    ordinal: i64,
    kafka_ms: i64,
}

/// The digests of the rows of an OTLP message of spans.
pub fn traces(payload: &[u8], kafka_ms: i64) -> anyhow::Result<Vec<u64>> {
    let data = TracesData::decode(payload).context("decoding spans")?;
    let mut rows = Vec::new();
    for resource in &data.resource_spans {
        let resource_digest = resource_columns(resource.resource.as_ref(), &resource.schema_url)?;
        for scope in &resource.scope_spans {
            let above = [resource_digest, scope_columns(scope.scope.as_ref(), &scope.schema_url)?];
            for span in &scope.spans {
                rows.push(span_row(Origin { ordinal: rows.len() as i64, kafka_ms }, above, span)?);
            }
        }
    }
    Ok(rows)
}

/// The digests of the rows of an OTLP message of data points.
pub fn metrics(payload: &[u8], kafka_ms: i64) -> anyhow::Result<Vec<u64>> {
    let data = MetricsData::decode(payload).context("decoding data points")?;
    let mut rows = Vec::new();
    for resource in &data.resource_metrics {
        let resource_digest = resource_columns(resource.resource.as_ref(), &resource.schema_url)?;
        for scope in &resource.scope_metrics {
            let above = [resource_digest, scope_columns(scope.scope.as_ref(), &scope.schema_url)?];
            for metric in &scope.metrics {
                for point in points(metric)? {
                    rows.push(point_row(Origin { ordinal: rows.len() as i64, kafka_ms }, above, metric, &point)?);
                }
            }
        }
    }
    Ok(rows)
}

/// The digest of the row of a JSON object that is a log record.
pub fn json_log(payload: &[u8], kafka_ms: i64) -> anyhow::Result<Vec<u64>> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(payload).context("decoding a JSON log")?;
    let text = |key: &str| object.get(key).and_then(|value| value.as_str()).with_context(|| format!("no text `{key}`"));
    let level = text("level")?;
    let severity = match level {
        "DEBUG" => 5,
        "INFO" => 9,
        "WARN" => 13,
        "ERROR" => 17,
        other => bail!("the load has no level {other}"),
    };
    let attributes = object.get("attributes").and_then(|value| value.as_object()).context("no attributes")?;
    let attributes = attributes.iter().map(|(key, value)| json_attribute(key, value)).collect::<anyhow::Result<Vec<_>>>()?;
    let service = Value::StringValue(text("service")?.to_owned());
    let service = KeyValue { key: "service.name".into(), value: Some(AnyValue { value: Some(service) }), ..KeyValue::default() };
    let resource = Resource { attributes: vec![service], ..Resource::default() };

    let mut row = Digest::default();
    let above = [resource_columns(Some(&resource), "")?, scope_columns(None, "")?];
    begin(&mut row, Origin { ordinal: 0, kafka_ms }, above);
    row.number(Some(string_to_timestamp_nanos(text("timestamp")?)?));
    row.number(Some(kafka_ms * 1_000_000));
    row.number(Some(severity));
    row.text(Some(level));
    row.text(Some(text("message")?));
    row.text(Some(""));
    row.bytes(Some(&bytes_of_hex(text("trace_id")?)?));
    row.bytes(Some(&bytes_of_hex(text("span_id")?)?));
    row.number(Some(0));
    row.number(Some(0));
    promoted(&mut row, &attributes)?;
    Ok(vec![row.finish()])
}

fn json_attribute(key: &str, value: &serde_json::Value) -> anyhow::Result<KeyValue> {
    let value = match value {
        serde_json::Value::String(text) => Value::StringValue(text.clone()),
        serde_json::Value::Bool(truth) => Value::BoolValue(*truth),
        serde_json::Value::Number(number) => Value::IntValue(number.as_i64().with_context(|| format!("{number} is no integer"))?),
        other => bail!("the load has no attribute like {other}"),
    };
    Ok(KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() })
}

fn bytes_of_hex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digit = |position: usize| u8::from_str_radix(text.get(position..position + 2).unwrap_or("?"), 16);
    (0..text.len()).step_by(2).map(|position| digit(position).with_context(|| format!("{text} is not hex"))).collect()
}

fn begin(row: &mut Digest, origin: Origin, above: [u64; 2]) {
    row.number(Some(origin.ordinal));
    row.number(Some(origin.kafka_ms));
    // The soak has no tenants.
    row.text(None);
    row.number(Some(above[0] as i64));
    row.number(Some(above[1] as i64));
}

/// The text of an attribute's value, by the rule for attribute maps.
fn text_of(value: &Value) -> anyhow::Result<String> {
    match value {
        Value::StringValue(text) => Ok(text.clone()),
        Value::BoolValue(truth) => Ok(truth.to_string()),
        Value::IntValue(number) => Ok(number.to_string()),
        other => bail!("the load has no attribute like {other:?}"),
    }
}

fn value_of(attribute: &KeyValue) -> anyhow::Result<&Value> {
    let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
    value.with_context(|| format!("attribute {} has no value", attribute.key))
}

fn map(digest: &mut Digest, attributes: &[&KeyValue]) -> anyhow::Result<()> {
    let texts = attributes.iter().map(|attribute| text_of(value_of(attribute)?)).collect::<anyhow::Result<Vec<_>>>()?;
    digest.map(attributes.iter().zip(&texts).map(|(attribute, text)| (attribute.key.as_str(), Some(text.as_str()))));
    Ok(())
}

fn whole_map(digest: &mut Digest, attributes: &[KeyValue]) -> anyhow::Result<()> {
    map(digest, &attributes.iter().collect::<Vec<_>>())
}

fn resource_columns(resource: Option<&Resource>, schema_url: &str) -> anyhow::Result<u64> {
    let mut digest = Digest::default();
    let attributes = resource.map_or(&[][..], |resource| &resource.attributes);
    for (key, _) in RESOURCE {
        let found = attributes.iter().find(|attribute| attribute.key == key);
        match found.map(value_of).transpose()? {
            Some(Value::StringValue(text)) => digest.text(Some(text)),
            None => digest.text(None),
            Some(other) => bail!("the load has no resource with {key} = {other:?}"),
        }
    }
    let others: Vec<&KeyValue> =
        attributes.iter().filter(|attribute| !RESOURCE.iter().any(|(key, _)| attribute.key == *key)).collect();
    map(&mut digest, &others)?;
    digest.number(Some(resource.map_or(0, |resource| resource.dropped_attributes_count).into()));
    digest.text(Some(schema_url));
    Ok(digest.finish())
}

fn scope_columns(scope: Option<&InstrumentationScope>, schema_url: &str) -> anyhow::Result<u64> {
    let mut digest = Digest::default();
    digest.text(Some(scope.map_or("", |scope| &scope.name)));
    digest.text(Some(scope.map_or("", |scope| &scope.version)));
    whole_map(&mut digest, scope.map_or(&[][..], |scope| &scope.attributes))?;
    digest.text(Some(schema_url));
    Ok(digest.finish())
}

/// The promoted attributes and the map of all others.
fn promoted(row: &mut Digest, attributes: &[KeyValue]) -> anyhow::Result<()> {
    let mut rest: Vec<&KeyValue> = attributes.iter().collect();
    for (key, _, is_number) in PROMOTED {
        let found = rest.iter().position(|attribute| attribute.key == key);
        let value = found.map(|position| value_of(rest[position])).transpose()?;
        match value {
            Some(Value::IntValue(number)) if is_number => row.number(Some(*number)),
            Some(Value::StringValue(text)) if !is_number => row.text(Some(text)),
            Some(other) => bail!("the load has no {key} = {other:?}"),
            None => row.text(None),
        }
        if let Some(position) = found {
            rest.swap_remove(position);
        }
    }
    map(row, &rest)
}

/// An identifier that may be absent.
fn identifier(bytes: &[u8]) -> Option<&[u8]> {
    (!bytes.is_empty()).then_some(bytes)
}

/// A time of OTLP, whose 0 means unknown.
fn time(unix_ns: u64) -> Option<i64> {
    (unix_ns != 0).then_some(unix_ns as i64)
}

fn span_row(origin: Origin, above: [u64; 2], span: &Span) -> anyhow::Result<u64> {
    let mut row = Digest::default();
    begin(&mut row, origin, above);
    row.bytes(Some(&span.trace_id));
    row.bytes(Some(&span.span_id));
    row.bytes(identifier(&span.parent_span_id));
    row.text(Some(&span.trace_state));
    row.number(Some(span.flags.into()));
    row.text(Some(&span.name));
    row.number(Some(span.kind.into()));
    let (start, end) = (time(span.start_time_unix_nano), time(span.end_time_unix_nano));
    row.number(start);
    row.number(end);
    row.number(start.zip(end).map(|(start, end)| end - start));
    row.number(Some(span.status.as_ref().map_or(0, |status| status.code).into()));
    row.text(Some(span.status.as_ref().map_or("", |status| &status.message)));
    row.number(Some(span.dropped_attributes_count.into()));
    row.number(Some(span.dropped_events_count.into()));
    row.number(Some(span.dropped_links_count.into()));
    row.length(span.events.len());
    for event in &span.events {
        row.number(time(event.time_unix_nano));
        row.text(Some(&event.name));
        whole_map(&mut row, &event.attributes)?;
        row.number(Some(event.dropped_attributes_count.into()));
    }
    row.length(span.links.len());
    for link in &span.links {
        row.bytes(Some(&link.trace_id));
        row.bytes(Some(&link.span_id));
        row.text(Some(&link.trace_state));
        whole_map(&mut row, &link.attributes)?;
        row.number(Some(link.dropped_attributes_count.into()));
        row.number(Some(link.flags.into()));
    }
    promoted(&mut row, &span.attributes)?;
    Ok(row.finish())
}

/// A data point of any kind, as the columns have it.
#[derive(Default)]
struct Point<'a> {
    start: u64,
    time: u64,
    value_double: Option<f64>,
    value_int: Option<i64>,
    count: Option<u64>,
    sum: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    bucket_counts: &'a [u64],
    explicit_bounds: &'a [f64],
    scale: Option<i32>,
    zero_count: Option<u64>,
    zero_threshold: Option<f64>,
    positive: Option<&'a Buckets>,
    negative: Option<&'a Buckets>,
    quantiles: Vec<(f64, f64)>,
    exemplars: &'a [Exemplar],
    flags: u32,
    attributes: &'a [KeyValue],
}

/// The data points of a metric, in their order.
fn points(metric: &Metric) -> anyhow::Result<Vec<Point<'_>>> {
    let data = metric.data.as_ref().with_context(|| format!("the load has no metric {} without data", metric.name))?;
    Ok(match data {
        Data::Gauge(gauge) => gauge.data_points.iter().map(number_point).collect(),
        Data::Sum(sum) => sum.data_points.iter().map(number_point).collect(),
        Data::Histogram(histogram) => histogram.data_points.iter().map(histogram_point).collect(),
        Data::ExponentialHistogram(histogram) => histogram.data_points.iter().map(exponential_point).collect(),
        Data::Summary(summary) => summary.data_points.iter().map(summary_point).collect(),
    })
}

fn number_point(point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint) -> Point<'_> {
    let (value_double, value_int) = match point.value {
        Some(number_data_point::Value::AsDouble(number)) => (Some(number), None),
        Some(number_data_point::Value::AsInt(number)) => (None, Some(number)),
        None => (None, None),
    };
    Point {
        start: point.start_time_unix_nano,
        time: point.time_unix_nano,
        value_double,
        value_int,
        exemplars: &point.exemplars,
        flags: point.flags,
        attributes: &point.attributes,
        ..Point::default()
    }
}

fn histogram_point(point: &opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint) -> Point<'_> {
    Point {
        start: point.start_time_unix_nano,
        time: point.time_unix_nano,
        count: Some(point.count),
        sum: point.sum,
        min: point.min,
        max: point.max,
        bucket_counts: &point.bucket_counts,
        explicit_bounds: &point.explicit_bounds,
        exemplars: &point.exemplars,
        flags: point.flags,
        attributes: &point.attributes,
        ..Point::default()
    }
}

fn exponential_point(point: &opentelemetry_proto::tonic::metrics::v1::ExponentialHistogramDataPoint) -> Point<'_> {
    Point {
        start: point.start_time_unix_nano,
        time: point.time_unix_nano,
        count: Some(point.count),
        sum: point.sum,
        min: point.min,
        max: point.max,
        scale: Some(point.scale),
        zero_count: Some(point.zero_count),
        zero_threshold: Some(point.zero_threshold),
        positive: point.positive.as_ref(),
        negative: point.negative.as_ref(),
        exemplars: &point.exemplars,
        flags: point.flags,
        attributes: &point.attributes,
        ..Point::default()
    }
}

fn summary_point(point: &opentelemetry_proto::tonic::metrics::v1::SummaryDataPoint) -> Point<'_> {
    Point {
        start: point.start_time_unix_nano,
        time: point.time_unix_nano,
        count: Some(point.count),
        sum: Some(point.sum),
        quantiles: point.quantile_values.iter().map(|at| (at.quantile, at.value)).collect(),
        flags: point.flags,
        attributes: &point.attributes,
        ..Point::default()
    }
}

fn point_row(origin: Origin, above: [u64; 2], metric: &Metric, point: &Point<'_>) -> anyhow::Result<u64> {
    let (kind, temporality, is_monotonic) = match &metric.data {
        Some(Data::Sum(sum)) => ("sum", Some(sum.aggregation_temporality), Some(sum.is_monotonic)),
        Some(Data::Histogram(histogram)) => ("histogram", Some(histogram.aggregation_temporality), None),
        Some(Data::ExponentialHistogram(histogram)) => ("exponential_histogram", Some(histogram.aggregation_temporality), None),
        Some(Data::Summary(_)) => ("summary", None, None),
        Some(Data::Gauge(_)) | None => ("gauge", None, None),
    };
    let mut row = Digest::default();
    begin(&mut row, origin, above);
    row.text(Some(&metric.name));
    row.text(Some(&metric.description));
    row.text(Some(&metric.unit));
    row.text(Some(kind));
    row.number(temporality.map(i64::from));
    row.number(is_monotonic.map(i64::from));
    whole_map(&mut row, &metric.metadata)?;
    row.number(time(point.start));
    row.number(Some(time(point.time).unwrap_or(origin.kafka_ms * 1_000_000)));
    row.double(point.value_double);
    row.number(point.value_int);
    row.number(point.count.map(|count| count as i64));
    row.double(point.sum);
    row.double(point.min);
    row.double(point.max);
    numbers(&mut row, point.bucket_counts);
    row.length(point.explicit_bounds.len());
    point.explicit_bounds.iter().for_each(|bound| row.double(Some(*bound)));
    row.number(point.scale.map(i64::from));
    row.number(point.zero_count.map(|count| count as i64));
    row.double(point.zero_threshold);
    for buckets in [point.positive, point.negative] {
        row.number(buckets.map(|buckets| buckets.offset.into()));
        numbers(&mut row, buckets.map_or(&[][..], |buckets| &buckets.bucket_counts));
    }
    row.length(point.quantiles.len());
    for (quantile, value) in &point.quantiles {
        row.double(Some(*quantile));
        row.double(Some(*value));
    }
    row.length(point.exemplars.len());
    point.exemplars.iter().try_for_each(|exemplar| exemplar_columns(&mut row, exemplar))?;
    row.number(Some(point.flags.into()));
    whole_map(&mut row, point.attributes)?;
    Ok(row.finish())
}

fn numbers(row: &mut Digest, numbers: &[u64]) {
    row.length(numbers.len());
    numbers.iter().for_each(|number| row.number(Some(*number as i64)));
}

fn exemplar_columns(row: &mut Digest, exemplar: &Exemplar) -> anyhow::Result<()> {
    row.number(time(exemplar.time_unix_nano));
    let (double, int) = match exemplar.value {
        Some(exemplar::Value::AsDouble(number)) => (Some(number), None),
        Some(exemplar::Value::AsInt(number)) => (None, Some(number)),
        None => (None, None),
    };
    row.double(double);
    row.number(int);
    row.bytes(identifier(&exemplar.trace_id));
    row.bytes(identifier(&exemplar.span_id));
    whole_map(row, &exemplar.filtered_attributes)
}
