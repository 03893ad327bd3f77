//! Rows of a file, and the parts of OTLP messages that they were.
//!
//! The inverse of `arrow_encode`: what it makes of a message that is made here is the same rows. What was lost on the way to rows stays lost,
//! and is not needed for that: which type an attribute in a map had, entity references, unknown fields.

use std::sync::Arc;

use arrow::array::{Array, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType, UInt32Type};

use super::Problem;
use super::attributes::{Attributes, put_map};
use super::columns::{Maps, Table, number};
use super::logs::Records;
use super::message::Pieces;
use super::metrics::Points;
use super::traces::Spans;
use crate::arrow_encode::metrics::Kind;
use crate::batch::Signal;
use crate::dataset::Stamp;
use crate::otlp::write::{close, open, put_bytes, put_fixed32, put_fixed64, put_number};

/// What the columns of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The signal.
    pub signal: Signal,
    /// The dataset's schema, with its columns.
    pub stamp: Option<Arc<Stamp>>,
}

/// Some rows.
pub struct Rows {
    len: usize,
    /// Which message each is of.
    pub origin: Origin,
    resource: Resource,
    scope: Scope,
    rows: OfSignal,
}

enum OfSignal {
    Traces(Box<Spans>),
    Logs(Box<Records>),
    Metrics(Box<Points>),
}

/// Which message rows are of.
pub struct Origin {
    topic: StringArray,
    partition: PrimitiveArray<Int32Type>,
    offset: PrimitiveArray<Int64Type>,
    ordinal: PrimitiveArray<Int32Type>,
    kafka_timestamp: PrimitiveArray<TimestampMillisecondType>,
    /// Files of the first version of the schema have none.
    tenant: Option<StringArray>,
}

struct Resource {
    attributes: Attributes,
    dropped_attributes_count: PrimitiveArray<UInt32Type>,
    schema_url: StringArray,
}

struct Scope {
    name: StringArray,
    version: StringArray,
    attributes: Maps,
    schema_url: StringArray,
}

impl Rows {
    /// The rows of `batch`.
    pub fn of(batch: &RecordBatch, shape: &Shape) -> Result<Self, Problem> {
        let table = Table::of(batch);
        let origin = Origin::of(&table)?;
        let resource = Resource {
            attributes: Attributes::of_resources(&table, shape.signal, shape.stamp.as_deref())?,
            dropped_attributes_count: table.numbers("resource_dropped_attributes_count")?,
            schema_url: table.texts("resource_schema_url")?,
        };
        let scope = Scope {
            name: table.texts("scope_name")?,
            version: table.texts("scope_version")?,
            attributes: table.maps("scope_attributes")?,
            schema_url: table.texts("scope_schema_url")?,
        };
        let rows = match shape.signal {
            Signal::Traces => OfSignal::Traces(Box::new(Spans::of(&table, shape)?)),
            Signal::Logs => OfSignal::Logs(Box::new(Records::of(&table, shape)?)),
            Signal::Metrics => OfSignal::Metrics(Box::new(Points::of(&table, shape)?)),
        };
        Ok(Rows { len: batch.num_rows(), origin, resource, scope, rows })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds a row to the pieces of its message.
    pub fn put(&self, row: usize, pieces: &mut Pieces) -> Result<(), Problem> {
        let arrival_ns = self.origin.arrival_ns(row);
        pieces.resource(|out| self.resource.put(row, out))?;
        pieces.scope(|out| {
            self.scope.put(row, out);
            Ok(())
        })?;
        match &self.rows {
            OfSignal::Traces(spans) => pieces.row(self.origin.ordinal.value(row), |out| spans.put(row, arrival_ns, out)),
            OfSignal::Logs(records) => pieces.row(self.origin.ordinal.value(row), |out| records.put(row, arrival_ns, out)),
            OfSignal::Metrics(points) => {
                let kind: Kind = points.kind(row)?;
                pieces.metric(kind, |out| points.put_metric(row, out), |out| points.put_data(row, out));
                pieces.row(self.origin.ordinal.value(row), |out| points.put(row, kind, arrival_ns, out))
            }
        }
    }
}

impl Origin {
    fn of(table: &Table<'_>) -> Result<Self, Problem> {
        let tenant = table.find("_tenant").map(|_| table.texts("_tenant")).transpose()?;
        Ok(Origin {
            topic: table.texts("_topic")?,
            partition: table.numbers("_partition")?,
            offset: table.numbers("_offset")?,
            ordinal: table.numbers("_ordinal")?,
            kafka_timestamp: table.numbers("_kafka_timestamp")?,
            tenant,
        })
    }

    /// Topic, partition and offset.
    pub fn place(&self, row: usize) -> (&str, i32, i64) {
        (self.topic.value(row), self.partition.value(row), self.offset.value(row))
    }

    /// The message's Kafka timestamp in Unix milliseconds; -1 where there is none.
    pub fn timestamp_ms(&self, row: usize) -> i64 {
        number(&self.kafka_timestamp, row).unwrap_or(-1)
    }

    /// Whose the message is.
    pub fn tenant(&self, row: usize) -> Option<&str> {
        self.tenant.as_ref().filter(|tenant| tenant.is_valid(row)).map(|tenant| tenant.value(row))
    }

    /// The event time of rows that have none, as `arrow_encode` has it.
    fn arrival_ns(&self, row: usize) -> i64 {
        self.timestamp_ms(row).max(0).checked_mul(1_000_000).unwrap_or(0)
    }
}

impl Resource {
    /// Appends what a group of a resource has before its scopes.
    fn put(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
        let resource = open(out, 1);
        self.attributes.put(row, 1, out)?;
        put_count(out, 2, self.dropped_attributes_count.value(row));
        close(out, resource);
        put_text(out, 3, self.schema_url.value(row));
        Ok(())
    }
}

impl Scope {
    /// Appends what a group of a scope has before its rows.
    fn put(&self, row: usize, out: &mut Vec<u8>) {
        let scope = open(out, 1);
        put_text(out, 1, self.name.value(row));
        put_text(out, 2, self.version.value(row));
        put_map(&self.attributes, row, 3, out);
        close(out, scope);
        put_text(out, 3, self.schema_url.value(row));
    }
}

/// The event time to be written. Where the column is 0, none was known, and `fallback` was 0, too.
pub fn event_time(time: i64, fallback: i64) -> Result<Option<i64>, Problem> {
    match time {
        0 if fallback == 0 => Ok(None),
        0 => Err(Problem::of("time", "it is 0 where another time is known")),
        time => Ok(Some(time)),
    }
}

/// A text, unless it is empty.
#[inline]
pub fn put_text(out: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(out, field, text.as_bytes());
    }
}

/// A count or flags as a varint, unless 0.
#[inline]
pub fn put_count(out: &mut Vec<u8>, field: u32, count: u32) {
    if count != 0 {
        put_number(out, field, u64::from(count));
    }
}

/// Flags as a `fixed32`, unless 0.
#[inline]
pub fn put_flags(out: &mut Vec<u8>, field: u32, flags: u32) {
    if flags != 0 {
        put_fixed32(out, field, flags);
    }
}

/// A number of an enumeration, unless 0.
#[inline]
pub fn put_enumeration(out: &mut Vec<u8>, field: u32, value: i8) {
    if value != 0 {
        put_number(out, field, i64::from(value) as u64);
    }
}

/// An identifier, where there is one.
#[inline]
pub fn put_id(out: &mut Vec<u8>, field: u32, id: Option<&[u8]>) {
    if let Some(id) = id {
        put_bytes(out, field, id);
    }
}

/// A time, where one is known.
#[inline]
pub fn put_time(out: &mut Vec<u8>, field: u32, time: Option<i64>, column: &str) -> Result<(), Problem> {
    match time {
        None => {}
        Some(time) if time > 0 => put_fixed64(out, field, time as u64),
        Some(time) => return Err(Problem::of(column, format!("{time} ns is no time after 1970"))),
    }
    Ok(())
}
