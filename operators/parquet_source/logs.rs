//! Log records, of rows.

use arrow::array::{Array, FixedSizeBinaryArray, PrimitiveArray, StringArray};
use arrow::datatypes::{Int8Type, TimestampNanosecondType, UInt32Type};

use super::Problem;
use super::attributes::Attributes;
use super::columns::{Table, id, number};
use super::rows::{Shape, event_time, put_count, put_enumeration, put_flags, put_id, put_text, put_time};
use crate::otlp::write::{close, open, put_bytes};

/// The columns of log records.
pub struct Records {
    time: PrimitiveArray<TimestampNanosecondType>,
    observed_time: PrimitiveArray<TimestampNanosecondType>,
    severity_number: PrimitiveArray<Int8Type>,
    severity_text: StringArray,
    body: StringArray,
    event_name: StringArray,
    trace_id: FixedSizeBinaryArray,
    span_id: FixedSizeBinaryArray,
    flags: PrimitiveArray<UInt32Type>,
    dropped_attributes_count: PrimitiveArray<UInt32Type>,
    attributes: Attributes,
}

impl Records {
    /// Those of `table`.
    pub fn of(table: &Table<'_>, shape: &Shape) -> Result<Self, Problem> {
        Ok(Records {
            time: table.numbers("time")?,
            observed_time: table.numbers("observed_time")?,
            severity_number: table.numbers("severity_number")?,
            severity_text: table.texts("severity_text")?,
            body: table.texts("body")?,
            event_name: table.texts("event_name")?,
            trace_id: table.ids("trace_id")?,
            span_id: table.ids("span_id")?,
            flags: table.numbers("flags")?,
            dropped_attributes_count: table.numbers("dropped_attributes_count")?,
            attributes: Attributes::of_rows(table, shape.signal, shape.stamp.as_deref())?,
        })
    }

    /// Appends the fields of a log record whose message came to Kafka at `arrival_ns`.
    pub fn put(&self, row: usize, arrival_ns: i64, out: &mut Vec<u8>) -> Result<(), Problem> {
        let observed = number(&self.observed_time, row);
        put_time(out, 1, event_time(self.time.value(row), observed.unwrap_or(arrival_ns))?, "time")?;
        put_enumeration(out, 2, self.severity_number.value(row));
        put_text(out, 3, self.severity_text.value(row));
        if self.body.is_valid(row) {
            // What it was before it became text cannot be known.
            let body = open(out, 5);
            put_bytes(out, 1, self.body.value(row).as_bytes());
            close(out, body);
        }
        self.attributes.put(row, 6, out)?;
        put_count(out, 7, self.dropped_attributes_count.value(row));
        put_flags(out, 8, self.flags.value(row));
        put_id(out, 9, id(&self.trace_id, row));
        put_id(out, 10, id(&self.span_id, row));
        put_time(out, 11, observed, "observed_time")?;
        put_text(out, 12, self.event_name.value(row));
        Ok(())
    }
}
