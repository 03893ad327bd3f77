//! Spans, of rows.

use arrow::array::{FixedSizeBinaryArray, PrimitiveArray, StringArray};
use arrow::datatypes::{Int8Type, Int64Type, TimestampNanosecondType, UInt32Type};

use super::Problem;
use super::attributes::{Attributes, put_map};
use super::columns::{Lists, Maps, Table, id, number};
use super::rows::{Shape, put_count, put_enumeration, put_flags, put_id, put_text, put_time};
use crate::otlp::write::{close, open};

/// The columns of spans.
pub struct Spans {
    trace_id: FixedSizeBinaryArray,
    span_id: FixedSizeBinaryArray,
    parent_span_id: FixedSizeBinaryArray,
    trace_state: StringArray,
    flags: PrimitiveArray<UInt32Type>,
    name: StringArray,
    kind: PrimitiveArray<Int8Type>,
    start_time: PrimitiveArray<TimestampNanosecondType>,
    end_time: PrimitiveArray<TimestampNanosecondType>,
    duration_ns: PrimitiveArray<Int64Type>,
    status_code: PrimitiveArray<Int8Type>,
    status_message: StringArray,
    dropped_attributes_count: PrimitiveArray<UInt32Type>,
    dropped_events_count: PrimitiveArray<UInt32Type>,
    dropped_links_count: PrimitiveArray<UInt32Type>,
    events: Lists<Events>,
    links: Lists<Links>,
    attributes: Attributes,
}

struct Events {
    time: PrimitiveArray<TimestampNanosecondType>,
    name: StringArray,
    attributes: Maps,
    dropped_attributes_count: PrimitiveArray<UInt32Type>,
}

struct Links {
    trace_id: FixedSizeBinaryArray,
    span_id: FixedSizeBinaryArray,
    trace_state: StringArray,
    attributes: Maps,
    dropped_attributes_count: PrimitiveArray<UInt32Type>,
    flags: PrimitiveArray<UInt32Type>,
}

impl Spans {
    /// Those of `table`.
    pub fn of(table: &Table<'_>, shape: &Shape) -> Result<Self, Problem> {
        Ok(Spans {
            trace_id: table.ids("trace_id")?,
            span_id: table.ids("span_id")?,
            parent_span_id: table.ids("parent_span_id")?,
            trace_state: table.texts("trace_state")?,
            flags: table.numbers("flags")?,
            name: table.texts("name")?,
            kind: table.numbers("kind")?,
            start_time: table.numbers("start_time")?,
            end_time: table.numbers("end_time")?,
            duration_ns: table.numbers("duration_ns")?,
            status_code: table.numbers("status_code")?,
            status_message: table.texts("status_message")?,
            dropped_attributes_count: table.numbers("dropped_attributes_count")?,
            dropped_events_count: table.numbers("dropped_events_count")?,
            dropped_links_count: table.numbers("dropped_links_count")?,
            events: table.structs("events", Events::of)?,
            links: table.structs("links", Links::of)?,
            attributes: Attributes::of_rows(table, shape.signal, shape.stamp.as_deref())?,
        })
    }

    /// Appends the fields of a span whose message came to Kafka at `arrival_ns`.
    pub fn put(&self, row: usize, arrival_ns: i64, out: &mut Vec<u8>) -> Result<(), Problem> {
        put_id(out, 1, id(&self.trace_id, row).filter(|id| id.iter().any(|byte| *byte != 0)));
        put_id(out, 2, id(&self.span_id, row).filter(|id| id.iter().any(|byte| *byte != 0)));
        put_text(out, 3, self.trace_state.value(row));
        put_id(out, 4, id(&self.parent_span_id, row));
        put_text(out, 5, self.name.value(row));
        put_enumeration(out, 6, self.kind.value(row));
        put_time(out, 7, self.start(row, arrival_ns)?, "start_time")?;
        put_time(out, 8, number(&self.end_time, row), "end_time")?;
        self.attributes.put(row, 9, out)?;
        put_count(out, 10, self.dropped_attributes_count.value(row));
        for event in self.events.range(row) {
            self.events.items.put(event, out)?;
        }
        put_count(out, 12, self.dropped_events_count.value(row));
        for link in self.links.range(row) {
            self.links.items.put(link, out);
        }
        put_count(out, 14, self.dropped_links_count.value(row));
        let status = open(out, 15);
        put_text(out, 2, self.status_message.value(row));
        put_enumeration(out, 3, self.status_code.value(row));
        close(out, status);
        put_flags(out, 16, self.flags.value(row));
        Ok(())
    }

    /// The start. It was unknown where there is an end and no duration: then the column has the time at which the message came to Kafka.
    fn start(&self, row: usize, arrival_ns: i64) -> Result<Option<i64>, Problem> {
        let start = self.start_time.value(row);
        let (end, duration) = (number(&self.end_time, row), number(&self.duration_ns, row));
        let of_known = end.filter(|_| start != 0).map(|end| end.wrapping_sub(start));
        match duration {
            None if end.is_some() && start == arrival_ns => Ok(None),
            duration if duration == of_known && (start != 0 || arrival_ns == 0) => Ok(Some(start).filter(|start| *start != 0)),
            _ => Err(Problem::of("duration_ns", "it is not what start_time, end_time and _kafka_timestamp give")),
        }
    }
}

impl Events {
    fn of(table: &Table<'_>) -> Result<Self, Problem> {
        Ok(Events {
            time: table.numbers("time")?,
            name: table.texts("name")?,
            attributes: table.maps("attributes")?,
            dropped_attributes_count: table.numbers("dropped_attributes_count")?,
        })
    }

    fn put(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
        let event = open(out, 11);
        put_time(out, 1, number(&self.time, row), "events.time")?;
        put_text(out, 2, self.name.value(row));
        put_map(&self.attributes, row, 3, out);
        put_count(out, 4, self.dropped_attributes_count.value(row));
        close(out, event);
        Ok(())
    }
}

impl Links {
    fn of(table: &Table<'_>) -> Result<Self, Problem> {
        Ok(Links {
            trace_id: table.ids("trace_id")?,
            span_id: table.ids("span_id")?,
            trace_state: table.texts("trace_state")?,
            attributes: table.maps("attributes")?,
            dropped_attributes_count: table.numbers("dropped_attributes_count")?,
            flags: table.numbers("flags")?,
        })
    }

    fn put(&self, row: usize, out: &mut Vec<u8>) {
        let link = open(out, 13);
        put_id(out, 1, id(&self.trace_id, row));
        put_id(out, 2, id(&self.span_id, row));
        put_text(out, 3, self.trace_state.value(row));
        put_map(&self.attributes, row, 4, out);
        put_count(out, 5, self.dropped_attributes_count.value(row));
        put_flags(out, 6, self.flags.value(row));
        close(out, link);
    }
}
