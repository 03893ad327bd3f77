//! The Arrow schema of each signal: names, types, and which columns may be null. `docs/schemas.md` says what they mean.
//!
//! A schema is fixed: its hash is in its metadata, in every file written from it, and changes with any name, type or nullability.

use std::sync::{Arc, OnceLock};

use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use twox_hash::XxHash3_64;

use super::promoted;
use crate::batch::Signal;
use crate::dataset::{Carrier, Column, Stamp};

/// Rises by one when a schema changes.
pub const SCHEMA_VERSION: u32 = 2;

/// The key under which a schema's metadata has its signal.
pub const SIGNAL_KEY: &str = "openwit.signal";
/// The key under which a schema's metadata has its version.
pub const VERSION_KEY: &str = "openwit.schema_version";
/// The key under which a schema's metadata has its hash, 16 hexadecimal digits.
pub const HASH_KEY: &str = "openwit.schema_hash";

/// The key under which the metadata of a schema with a dataset's columns has the dataset's name.
pub const DATASET_KEY: &str = "openwit.dataset";
/// The key under which it has the version of the dataset's schema.
pub const DATASET_VERSION_KEY: &str = "openwit.dataset_version";
/// The key under which it has the hash of the dataset's schema, 16 hexadecimal digits.
pub const DATASET_HASH_KEY: &str = "openwit.dataset_hash";

/// The schema of rows of a signal, with the columns of their dataset where that has a schema. What tells the dataset's schema is in the
/// metadata, so rows of two versions are of two Arrow schemas even where their columns are the same.
pub fn schema_with(signal: Signal, stamp: Option<&Stamp>) -> SchemaRef {
    let fixed = schema_for(signal);
    let Some(stamp) = stamp else { return fixed };
    let mut fields: Vec<FieldRef> = fixed.fields().to_vec();
    // Before the maps whose attributes they are.
    for (carrier, map) in [(Carrier::Row, "attributes"), (Carrier::Resource, "resource_attributes")] {
        let at = fields.iter().position(|field| field.name() == map).unwrap_or(fields.len());
        let own =
            dataset_columns(signal, stamp, carrier).filter_map(|column| Some(maybe(&column.name, column.kind.column_type()?)));
        fields.splice(at..at, own.map(Arc::new));
    }
    let mut metadata = fixed.metadata().clone();
    metadata.insert(DATASET_KEY.to_owned(), stamp.name.to_string());
    metadata.insert(DATASET_VERSION_KEY.to_owned(), stamp.version.to_string());
    metadata.insert(DATASET_HASH_KEY.to_owned(), stamp.hash_text());
    let fields = Fields::from(fields);
    let columns = XxHash3_64::oneshot(canonical_text(signal, &fields).as_bytes());
    metadata.insert(HASH_KEY.to_owned(), format!("{columns:016x}"));
    Arc::new(Schema::new(fields).with_metadata(metadata))
}

/// The columns that a dataset's schema adds for attributes of `carrier`. One that every schema has by now, which it had not when the schema was made (the stamp may
/// come from an old log), is left out: its attribute goes where it would without the schema.
pub(crate) fn dataset_columns(signal: Signal, stamp: &Stamp, carrier: Carrier) -> impl Iterator<Item = &Column> {
    let fixed = schema_for(signal);
    stamp.columns.iter().filter(move |column| column.carrier == carrier && fixed.field_with_name(&column.name).is_err())
}

/// The column that an attribute of rows has in every schema of `signal`.
pub fn fixed_row_column(signal: Signal, key: &str) -> Option<(&'static str, DataType)> {
    let promoted = promoted::ROW.iter().find(|promoted| promoted.key == key).filter(|_| signal != Signal::Metrics);
    promoted.map(|promoted| (promoted.column, promoted.kind.data_type()))
}

/// The column that an attribute of resources has in every schema.
pub fn fixed_resource_column(key: &str) -> Option<(&'static str, DataType)> {
    let promoted = promoted::RESOURCE.iter().find(|promoted| promoted.key == key);
    promoted.map(|promoted| (promoted.column, promoted.kind.data_type()))
}

/// The schema of a signal.
pub fn schema_for(signal: Signal) -> SchemaRef {
    static SCHEMAS: OnceLock<[SchemaRef; 3]> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| [Signal::Traces, Signal::Logs, Signal::Metrics].map(|signal| Arc::new(build(signal))));
    match signal {
        Signal::Traces => schemas[0].clone(),
        Signal::Logs => schemas[1].clone(),
        Signal::Metrics => schemas[2].clone(),
    }
}

/// The column that holds when a row happened, by which storage partitions and sorts. It is never null.
pub fn event_time_column(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "start_time",
        Signal::Logs | Signal::Metrics => "time",
    }
}

/// The hash of a signal's schema: xxh3 over `canonical_text`.
pub fn schema_hash(signal: Signal) -> u64 {
    XxHash3_64::oneshot(canonical_text(signal, &fields_of(signal)).as_bytes())
}

/// A column's type as the documentation and the hash write it.
pub fn type_text(data_type: &DataType) -> String {
    match data_type {
        DataType::Timestamp(unit, Some(zone)) => format!("Timestamp({}, {zone})", unit_text(*unit)),
        DataType::FixedSizeBinary(width) => format!("FixedSizeBinary({width})"),
        DataType::List(element) => format!("List<{}>", type_text(element.data_type())),
        DataType::Struct(fields) => {
            let members = fields.iter().map(|field| field_text(field)).collect::<Vec<_>>();
            format!("Struct<{}>", members.join(", "))
        }
        DataType::Map(entry, _) => match entry.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                format!("Map<{}, {}>", type_text(fields[0].data_type()), type_text(fields[1].data_type()))
            }
            other => format!("Map<{}>", type_text(other)),
        },
        plain => format!("{plain:?}"),
    }
}

fn field_text(field: &Field) -> String {
    let null = if field.is_nullable() { "?" } else { "" };
    format!("{}: {}{null}", field.name(), type_text(field.data_type()))
}

fn unit_text(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

fn canonical_text(signal: Signal, fields: &Fields) -> String {
    let columns = fields.iter().map(|field| field_text(field)).collect::<Vec<_>>();
    format!("{signal} {SCHEMA_VERSION}\n{}\n", columns.join("\n"))
}

fn build(signal: Signal) -> Schema {
    let metadata = [
        (SIGNAL_KEY.to_owned(), signal.name().to_owned()),
        (VERSION_KEY.to_owned(), SCHEMA_VERSION.to_string()),
        (HASH_KEY.to_owned(), format!("{:016x}", schema_hash(signal))),
    ];
    Schema::new(fields_of(signal)).with_metadata(metadata)
}

fn fields_of(signal: Signal) -> Fields {
    let mut fields = common();
    match signal {
        Signal::Traces => {
            fields.extend(traces());
            fields.extend(row_attributes());
        }
        Signal::Logs => {
            fields.extend(logs());
            fields.extend(row_attributes());
        }
        Signal::Metrics => fields.extend(metrics()),
    }
    fields.into()
}

fn common() -> Vec<Field> {
    let mut fields = vec![
        always("_topic", DataType::Utf8),
        always("_partition", DataType::Int32),
        always("_offset", DataType::Int64),
        always("_ordinal", DataType::Int32),
        maybe("_kafka_timestamp", timestamp(TimeUnit::Millisecond)),
        maybe("_tenant", DataType::Utf8),
    ];
    fields.extend(promoted::RESOURCE.iter().map(|promoted| maybe(promoted.column, promoted.kind.data_type())));
    fields.extend([
        always("resource_attributes", map()),
        always("resource_dropped_attributes_count", DataType::UInt32),
        always("resource_schema_url", DataType::Utf8),
        always("scope_name", DataType::Utf8),
        always("scope_version", DataType::Utf8),
        always("scope_attributes", map()),
        always("scope_schema_url", DataType::Utf8),
    ]);
    fields
}

fn row_attributes() -> Vec<Field> {
    let mut fields: Vec<Field> = promoted::ROW.iter().map(|promoted| maybe(promoted.column, promoted.kind.data_type())).collect();
    fields.push(always("attributes", map()));
    fields
}

fn traces() -> Vec<Field> {
    vec![
        always("trace_id", DataType::FixedSizeBinary(16)),
        always("span_id", DataType::FixedSizeBinary(8)),
        maybe("parent_span_id", DataType::FixedSizeBinary(8)),
        always("trace_state", DataType::Utf8),
        always("flags", DataType::UInt32),
        always("name", DataType::Utf8),
        always("kind", DataType::Int8),
        always("start_time", timestamp(TimeUnit::Nanosecond)),
        maybe("end_time", timestamp(TimeUnit::Nanosecond)),
        maybe("duration_ns", DataType::Int64),
        always("status_code", DataType::Int8),
        always("status_message", DataType::Utf8),
        always("dropped_attributes_count", DataType::UInt32),
        always("dropped_events_count", DataType::UInt32),
        always("dropped_links_count", DataType::UInt32),
        always("events", DataType::List(event_element())),
        always("links", DataType::List(link_element())),
    ]
}

fn logs() -> Vec<Field> {
    vec![
        always("time", timestamp(TimeUnit::Nanosecond)),
        maybe("observed_time", timestamp(TimeUnit::Nanosecond)),
        always("severity_number", DataType::Int8),
        always("severity_text", DataType::Utf8),
        maybe("body", DataType::Utf8),
        always("event_name", DataType::Utf8),
        maybe("trace_id", DataType::FixedSizeBinary(16)),
        maybe("span_id", DataType::FixedSizeBinary(8)),
        always("flags", DataType::UInt32),
        always("dropped_attributes_count", DataType::UInt32),
    ]
}

fn metrics() -> Vec<Field> {
    let counts = || DataType::List(element(DataType::UInt64));
    vec![
        always("metric_name", DataType::Utf8),
        always("description", DataType::Utf8),
        always("unit", DataType::Utf8),
        always("metric_type", DataType::Utf8),
        maybe("temporality", DataType::Int8),
        maybe("is_monotonic", DataType::Boolean),
        always("metric_metadata", map()),
        maybe("start_time", timestamp(TimeUnit::Nanosecond)),
        always("time", timestamp(TimeUnit::Nanosecond)),
        maybe("value_double", DataType::Float64),
        maybe("value_int", DataType::Int64),
        maybe("count", DataType::UInt64),
        maybe("sum", DataType::Float64),
        maybe("min", DataType::Float64),
        maybe("max", DataType::Float64),
        always("bucket_counts", counts()),
        always("explicit_bounds", DataType::List(element(DataType::Float64))),
        maybe("scale", DataType::Int32),
        maybe("zero_count", DataType::UInt64),
        maybe("zero_threshold", DataType::Float64),
        maybe("positive_offset", DataType::Int32),
        always("positive_bucket_counts", counts()),
        maybe("negative_offset", DataType::Int32),
        always("negative_bucket_counts", counts()),
        always("quantiles", DataType::List(quantile_element())),
        always("exemplars", DataType::List(exemplar_element())),
        always("flags", DataType::UInt32),
        always("attributes", map()),
    ]
}

/// The element of `events`.
pub(super) fn event_element() -> FieldRef {
    element(DataType::Struct(Fields::from(vec![
        maybe("time", timestamp(TimeUnit::Nanosecond)),
        always("name", DataType::Utf8),
        always("attributes", map()),
        always("dropped_attributes_count", DataType::UInt32),
    ])))
}

/// The element of `links`.
pub(super) fn link_element() -> FieldRef {
    element(DataType::Struct(Fields::from(vec![
        always("trace_id", DataType::FixedSizeBinary(16)),
        always("span_id", DataType::FixedSizeBinary(8)),
        always("trace_state", DataType::Utf8),
        always("attributes", map()),
        always("dropped_attributes_count", DataType::UInt32),
        always("flags", DataType::UInt32),
    ])))
}

/// The element of `quantiles`.
pub(super) fn quantile_element() -> FieldRef {
    element(DataType::Struct(Fields::from(vec![always("quantile", DataType::Float64), always("value", DataType::Float64)])))
}

/// The element of `exemplars`.
pub(super) fn exemplar_element() -> FieldRef {
    element(DataType::Struct(Fields::from(vec![
        maybe("time", timestamp(TimeUnit::Nanosecond)),
        maybe("value_double", DataType::Float64),
        maybe("value_int", DataType::Int64),
        maybe("trace_id", DataType::FixedSizeBinary(16)),
        maybe("span_id", DataType::FixedSizeBinary(8)),
        always("filtered_attributes", map()),
    ])))
}

/// A list's element of the given type; never null.
pub(super) fn element(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("item", data_type, false))
}

/// The fields of the struct that `element` is of.
pub(super) fn struct_fields(element: &FieldRef) -> Fields {
    match element.data_type() {
        DataType::Struct(fields) => fields.clone(),
        _ => Fields::empty(),
    }
}

/// The field of a map's entries.
pub(super) fn map_entry() -> &'static FieldRef {
    static ENTRY: OnceLock<FieldRef> = OnceLock::new();
    ENTRY.get_or_init(|| Arc::new(Field::new("entries", DataType::Struct(map_entries().clone()), false)))
}

/// Key and value of a map's entries.
pub(super) fn map_entries() -> &'static Fields {
    static ENTRIES: OnceLock<Fields> = OnceLock::new();
    ENTRIES.get_or_init(|| Fields::from(vec![always("key", DataType::Utf8), maybe("value", DataType::Utf8)]))
}

/// The type of a column of `P`: all timestamps are in UTC.
pub(super) fn column_type<P: ArrowPrimitiveType>() -> DataType {
    match P::DATA_TYPE {
        DataType::Timestamp(unit, _) => timestamp(unit),
        other => other,
    }
}

fn map() -> DataType {
    DataType::Map(map_entry().clone(), false)
}

fn timestamp(unit: TimeUnit) -> DataType {
    DataType::Timestamp(unit, Some("UTC".into()))
}

fn always(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn maybe(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}
