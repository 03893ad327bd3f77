//! One row per span.

use arrow::datatypes::{Int8Type, Int64Type, TimestampNanosecondType, UInt32Type};

use super::attributes::{RowAttributes, push_attribute};
use super::columns::{Ids, Lists, Maps, Numbers, OptionalIds, OptionalNumbers, Structs, Texts, columns_in_order};
use super::encoder::{Problem, Row, enumeration, id, optional_id, optional_time};
use super::schema;
use crate::batch::Signal;
use crate::dataset::Stamp;
use crate::otlp::wire::{Value, fields};

/// The columns of spans.
pub struct Spans {
    trace_id: Ids<16>,
    span_id: Ids<8>,
    parent_span_id: OptionalIds<8>,
    trace_state: Texts,
    flags: Numbers<UInt32Type>,
    name: Texts,
    kind: Numbers<Int8Type>,
    start_time: Numbers<TimestampNanosecondType>,
    end_time: OptionalNumbers<TimestampNanosecondType>,
    duration_ns: OptionalNumbers<Int64Type>,
    status_code: Numbers<Int8Type>,
    status_message: Texts,
    dropped_attributes_count: Numbers<UInt32Type>,
    dropped_events_count: Numbers<UInt32Type>,
    dropped_links_count: Numbers<UInt32Type>,
    events: Lists<Structs<Events>>,
    links: Lists<Structs<Links>>,
    attributes: RowAttributes,
}

columns_in_order!(Spans: trace_id, span_id, parent_span_id, trace_state, flags, name, kind, start_time, end_time, duration_ns,
    status_code, status_message, dropped_attributes_count, dropped_events_count, dropped_links_count, events, links, attributes);

#[derive(Default)]
struct Events {
    time: OptionalNumbers<TimestampNanosecondType>,
    name: Texts,
    attributes: Maps,
    dropped_attributes_count: Numbers<UInt32Type>,
}

columns_in_order!(Events: time, name, attributes, dropped_attributes_count);

#[derive(Default)]
struct Links {
    trace_id: Ids<16>,
    span_id: Ids<8>,
    trace_state: Texts,
    attributes: Maps,
    dropped_attributes_count: Numbers<UInt32Type>,
    flags: Numbers<UInt32Type>,
}

columns_in_order!(Links: trace_id, span_id, trace_state, attributes, dropped_attributes_count, flags);

impl Spans {
    /// No rows, with the columns that `stamp` adds.
    pub fn new(stamp: Option<&Stamp>) -> Self {
        let (event, link) = (schema::event_element(), schema::link_element());
        Spans {
            trace_id: Ids::default(),
            span_id: Ids::default(),
            parent_span_id: OptionalIds::default(),
            trace_state: Texts::default(),
            flags: Numbers::default(),
            name: Texts::default(),
            kind: Numbers::default(),
            start_time: Numbers::default(),
            end_time: OptionalNumbers::default(),
            duration_ns: OptionalNumbers::default(),
            status_code: Numbers::default(),
            status_message: Texts::default(),
            dropped_attributes_count: Numbers::default(),
            dropped_events_count: Numbers::default(),
            dropped_links_count: Numbers::default(),
            events: Lists::new(Structs::new(Events::default(), schema::struct_fields(&event)), event),
            links: Lists::new(Structs::new(Links::default(), schema::struct_fields(&link)), link),
            attributes: RowAttributes::new(Signal::Traces, stamp),
        }
    }
}

/// The singular fields of a span, as the last of each on the wire.
#[derive(Default)]
struct Head<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: &'a [u8],
    name: &'a [u8],
    flags: u32,
    kind: u64,
    start_time: u64,
    end_time: u64,
    status_code: u64,
    status_message: &'a [u8],
    dropped_attributes_count: u32,
    dropped_events_count: u32,
    dropped_links_count: u32,
}

impl Spans {
    /// Appends the span in `message` as `row`.
    pub fn push(&mut self, message: &[u8], row: Row) -> Result<(), Problem> {
        let mut head = Head::default();
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(id)) => head.trace_id = id,
                (2, Value::Bytes(id)) => head.span_id = id,
                (3, Value::Bytes(text)) => head.trace_state = text,
                (4, Value::Bytes(id)) => head.parent_span_id = id,
                (5, Value::Bytes(text)) => head.name = text,
                (6, Value::Varint(kind)) => head.kind = kind,
                (7, Value::Fixed64(time)) => head.start_time = time,
                (8, Value::Fixed64(time)) => head.end_time = time,
                (9, Value::Bytes(attribute)) => self.attributes.push(attribute, row.index)?,
                (10, Value::Varint(count)) => head.dropped_attributes_count = count as u32,
                (11, Value::Bytes(event)) => self.push_event(event)?,
                (12, Value::Varint(count)) => head.dropped_events_count = count as u32,
                (13, Value::Bytes(link)) => self.push_link(link)?,
                (14, Value::Varint(count)) => head.dropped_links_count = count as u32,
                (15, Value::Bytes(status)) => head.merge_status(status)?,
                (16, Value::Fixed32(flags)) => head.flags = flags,
                _ => {}
            }
        }
        self.close(&head, row)
    }

    fn close(&mut self, head: &Head<'_>, row: Row) -> Result<(), Problem> {
        self.trace_id.push(id(head.trace_id, "trace_id")?);
        self.span_id.push(id(head.span_id, "span_id")?);
        self.parent_span_id.set(row.index, optional_id(head.parent_span_id, "parent_span_id")?);
        self.trace_state.push(head.trace_state);
        self.flags.push(head.flags);
        self.name.push(head.name);
        self.kind.push(enumeration(head.kind));
        let (start, end) = (optional_time(head.start_time, "start_time")?, optional_time(head.end_time, "end_time")?);
        self.start_time.push(start.unwrap_or(row.arrival_ns));
        self.end_time.set(row.index, end);
        // Both are in 0..=i64::MAX, so their difference fits.
        self.duration_ns.set(row.index, start.zip(end).map(|(start, end)| end - start));
        self.status_code.push(enumeration(head.status_code));
        self.status_message.push(head.status_message);
        self.dropped_attributes_count.push(head.dropped_attributes_count);
        self.dropped_events_count.push(head.dropped_events_count);
        self.dropped_links_count.push(head.dropped_links_count);
        self.events.close(self.events.items.columns.name.len());
        self.links.close(self.links.items.columns.flags.len());
        self.attributes.close();
        Ok(())
    }

    fn push_event(&mut self, message: &[u8]) -> Result<(), Problem> {
        let events = &mut self.events.items.columns;
        let (mut nanos, mut name, mut dropped): (u64, &[u8], u32) = (0, b"", 0);
        for field in fields(message) {
            match field? {
                (1, Value::Fixed64(time)) => nanos = time,
                (2, Value::Bytes(text)) => name = text,
                (3, Value::Bytes(attribute)) => push_attribute(attribute, &mut events.attributes)?,
                (4, Value::Varint(count)) => dropped = count as u32,
                _ => {}
            }
        }
        events.time.push(optional_time(nanos, "events.time")?);
        events.name.push(name);
        events.attributes.close();
        events.dropped_attributes_count.push(dropped);
        Ok(())
    }

    fn push_link(&mut self, message: &[u8]) -> Result<(), Problem> {
        let links = &mut self.links.items.columns;
        let mut head = Head::default();
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(id)) => head.trace_id = id,
                (2, Value::Bytes(id)) => head.span_id = id,
                (3, Value::Bytes(text)) => head.trace_state = text,
                (4, Value::Bytes(attribute)) => push_attribute(attribute, &mut links.attributes)?,
                (5, Value::Varint(count)) => head.dropped_attributes_count = count as u32,
                (6, Value::Fixed32(flags)) => head.flags = flags,
                _ => {}
            }
        }
        links.trace_id.push(id(head.trace_id, "links.trace_id")?);
        links.span_id.push(id(head.span_id, "links.span_id")?);
        links.trace_state.push(head.trace_state);
        links.attributes.close();
        links.dropped_attributes_count.push(head.dropped_attributes_count);
        links.flags.push(head.flags);
        Ok(())
    }
}

impl<'a> Head<'a> {
    fn merge_status(&mut self, message: &'a [u8]) -> Result<(), Problem> {
        for field in fields(message) {
            match field? {
                (2, Value::Bytes(text)) => self.status_message = text,
                (3, Value::Varint(code)) => self.status_code = code,
                _ => {}
            }
        }
        Ok(())
    }
}
