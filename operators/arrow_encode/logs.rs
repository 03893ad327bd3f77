//! One row per log record.

use std::borrow::Cow;

use arrow::datatypes::{Int8Type, TimestampNanosecondType, UInt32Type};

use super::attributes::RowAttributes;
use super::columns::{Numbers, OptionalIds, OptionalNumbers, OptionalTexts, Texts, columns_in_order};
use super::encoder::{Problem, Row, enumeration, optional_id, optional_time};
use super::values::push_text;
use crate::batch::Signal;
use crate::dataset::Stamp;
use crate::otlp::value::{Any, any, merge};
use crate::otlp::wire::{Value, fields};

/// The columns of log records.
pub struct Records {
    time: Numbers<TimestampNanosecondType>,
    observed_time: OptionalNumbers<TimestampNanosecondType>,
    severity_number: Numbers<Int8Type>,
    severity_text: Texts,
    body: OptionalTexts,
    event_name: Texts,
    trace_id: OptionalIds<16>,
    span_id: OptionalIds<8>,
    flags: Numbers<UInt32Type>,
    dropped_attributes_count: Numbers<UInt32Type>,
    attributes: RowAttributes,
}

columns_in_order!(Records: time, observed_time, severity_number, severity_text, body, event_name, trace_id, span_id, flags,
    dropped_attributes_count, attributes);

impl Records {
    /// No rows, with the columns that `stamp` adds.
    pub fn new(stamp: Option<&Stamp>) -> Self {
        Records {
            time: Numbers::default(),
            observed_time: OptionalNumbers::default(),
            severity_number: Numbers::default(),
            severity_text: Texts::default(),
            body: OptionalTexts::default(),
            event_name: Texts::default(),
            trace_id: OptionalIds::default(),
            span_id: OptionalIds::default(),
            flags: Numbers::default(),
            dropped_attributes_count: Numbers::default(),
            attributes: RowAttributes::new(Signal::Logs, stamp),
        }
    }

    /// Appends the log record in `message` as `row`.
    pub fn push(&mut self, message: &[u8], row: Row) -> Result<(), Problem> {
        let (mut time, mut observed, mut severity) = (0, 0, 0);
        let (mut severity_text, mut event_name): (&[u8], &[u8]) = (b"", b"");
        let (mut trace_id, mut span_id): (&[u8], &[u8]) = (b"", b"");
        let (mut flags, mut dropped) = (0, 0);
        let mut body: Cow<'_, [u8]> = Cow::Borrowed(b"");
        for field in fields(message) {
            match field? {
                (1, Value::Fixed64(value)) => time = value,
                (2, Value::Varint(value)) => severity = value,
                (3, Value::Bytes(text)) => severity_text = text,
                (5, Value::Bytes(value)) => merge(&mut body, value),
                (6, Value::Bytes(attribute)) => self.attributes.push(attribute, row.index)?,
                (7, Value::Varint(count)) => dropped = count as u32,
                (8, Value::Fixed32(value)) => flags = value,
                (9, Value::Bytes(id)) => trace_id = id,
                (10, Value::Bytes(id)) => span_id = id,
                (11, Value::Fixed64(value)) => observed = value,
                (12, Value::Bytes(text)) => event_name = text,
                _ => {}
            }
        }
        let (time, observed) = (optional_time(time, "time")?, optional_time(observed, "observed_time")?);
        self.time.push(time.or(observed).unwrap_or(row.arrival_ns));
        self.observed_time.set(row.index, observed);
        self.severity_number.push(enumeration(severity));
        self.severity_text.push(severity_text);
        self.push_body(&any(&body)?, row)?;
        self.event_name.push(event_name);
        self.trace_id.set(row.index, optional_id(trace_id, "trace_id")?);
        self.span_id.set(row.index, optional_id(span_id, "span_id")?);
        self.flags.push(flags);
        self.dropped_attributes_count.push(dropped);
        self.attributes.close();
        Ok(())
    }

    fn push_body(&mut self, body: &Any<'_>, row: Row) -> Result<(), Problem> {
        if matches!(body, Any::Empty) {
            return Ok(());
        }
        self.body.pad_to(row.index);
        push_text(body, &mut self.body)
    }
}
