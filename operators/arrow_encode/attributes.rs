//! Attribute lists: promoted attributes go to their columns, the rest to a map.
//!
//! OpenTelemetry says that keys are unique within one list. Where they are not, the first attribute of a key stays, wherever it went,
//! and later ones are dropped: readers refuse maps with duplicate keys.

use arrow::datatypes::Int32Type;

use super::columns::{Column, Columns, Maps, OptionalNumbers, OptionalTexts};
use super::datasets::DatasetColumns;
use super::encoder::Problem;
use super::promoted::{Kind, ROW, find_row, fingerprint};
use super::values::push_text;
use crate::batch::Signal;
use crate::dataset::Stamp;
use crate::otlp::value::{Any, any, key_value, plain_text};

/// Appends the `KeyValue` in `message` to the open row of `map`.
#[inline]
pub fn push_attribute(message: &[u8], map: &mut Maps) -> Result<(), Problem> {
    if let Some((key, text)) = plain_text(message) {
        if map.push_key(key) {
            map.values().push(text);
        }
        return Ok(());
    }
    let attribute = key_value(message)?;
    push_entry(attribute.key, &any(&attribute.value)?, map)
}

/// Appends an attribute to the open row of `map`, unless the row has its key.
#[inline]
pub fn push_entry(key: &[u8], value: &Any<'_>, map: &mut Maps) -> Result<(), Problem> {
    if map.push_key(key) { push_text(value, map.values()) } else { Ok(()) }
}

/// A promoted column.
enum Slot {
    Text(OptionalTexts),
    Int(OptionalNumbers<Int32Type>),
}

/// The attributes of spans and log records: the promoted columns, those of the dataset, and the map.
pub struct RowAttributes {
    slots: Vec<Slot>,
    rest: PointAttributes,
    /// One bit for each promoted attribute that the open row had, whether it fitted its column or went to the map.
    seen: u32,
}

const _: () = assert!(ROW.len() <= u32::BITS as usize, "`seen` has a bit for each promoted attribute");

impl RowAttributes {
    /// No rows; of `signal`, with the columns that `stamp` adds.
    pub fn new(signal: Signal, stamp: Option<&Stamp>) -> Self {
        let slot = |kind| match kind {
            Kind::Text => Slot::Text(OptionalTexts::default()),
            Kind::Int => Slot::Int(OptionalNumbers::default()),
        };
        let slots = ROW.iter().map(|promoted| slot(promoted.kind)).collect();
        RowAttributes { slots, rest: PointAttributes::new(signal, stamp), seen: 0 }
    }

    /// Takes the `KeyValue` in `message` into the open row, which is `row`.
    #[inline]
    pub fn push(&mut self, message: &[u8], row: usize) -> Result<(), Problem> {
        match plain_text(message) {
            Some((key, text)) => self.push_entry(key, &Any::Text(text), row),
            None => self.push_any(message, row),
        }
    }

    fn push_any(&mut self, message: &[u8], row: usize) -> Result<(), Problem> {
        let attribute = key_value(message)?;
        self.push_entry(attribute.key, &any(&attribute.value)?, row)
    }

    #[inline(always)]
    fn push_entry(&mut self, key: &[u8], value: &Any<'_>, row: usize) -> Result<(), Problem> {
        match find_row(key, fingerprint(key)) {
            None => self.rest.push_entry(key, value, row),
            Some(index) => self.push_promoted(index, value, row),
        }
    }

    #[inline(always)]
    fn push_promoted(&mut self, index: usize, value: &Any<'_>, row: usize) -> Result<(), Problem> {
        if self.seen & (1 << index) != 0 {
            return Ok(());
        }
        self.seen |= 1 << index;
        match (&mut self.slots[index], value) {
            (Slot::Text(column), Any::Text(text)) => column.set(row, text),
            (Slot::Int(column), Any::Int(number)) if i32::try_from(*number).is_ok() => column.set(row, Some(*number as i32)),
            _ => push_entry(ROW[index].key.as_bytes(), value, &mut self.rest.map)?,
        }
        Ok(())
    }

    /// Ends the open row.
    #[inline]
    pub fn close(&mut self) {
        self.seen = 0;
        self.rest.close();
    }
}

impl Columns for RowAttributes {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        for slot in &self.slots {
            match slot {
                Slot::Text(column) => visit(column),
                Slot::Int(column) => visit(column),
            }
        }
        self.rest.each(visit);
    }

    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        self.seen = 0;
        for slot in &mut self.slots {
            match slot {
                Slot::Text(column) => visit(column),
                Slot::Int(column) => visit(column),
            }
        }
        self.rest.each_mut(visit);
    }
}

/// The attributes of data points, and those of other rows that no column of every schema takes: the dataset's columns and the map.
pub struct PointAttributes {
    dataset: Option<Box<DatasetColumns>>,
    map: Maps,
}

impl PointAttributes {
    /// No rows; of `signal`, with the columns that `stamp` adds.
    pub fn new(signal: Signal, stamp: Option<&Stamp>) -> Self {
        let dataset = stamp.and_then(|stamp| DatasetColumns::new(signal, stamp));
        PointAttributes { dataset: dataset.map(Box::new), map: Maps::default() }
    }

    /// Takes the `KeyValue` in `message` into the open row, which is `row`.
    #[inline]
    pub fn push(&mut self, message: &[u8], row: usize) -> Result<(), Problem> {
        if self.dataset.is_none() {
            return push_attribute(message, &mut self.map);
        }
        let attribute = key_value(message)?;
        self.push_entry(attribute.key, &any(&attribute.value)?, row)
    }

    #[inline(always)]
    fn push_entry(&mut self, key: &[u8], value: &Any<'_>, row: usize) -> Result<(), Problem> {
        let is_taken = self.dataset.as_mut().is_some_and(|dataset| dataset.takes(key, value, row));
        if is_taken { Ok(()) } else { push_entry(key, value, &mut self.map) }
    }

    /// Ends the open row.
    #[inline]
    pub fn close(&mut self) {
        if let Some(dataset) = &mut self.dataset {
            dataset.close();
        }
        self.map.close();
    }
}

impl Columns for PointAttributes {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        if let Some(dataset) = &self.dataset {
            dataset.each(visit);
        }
        visit(&self.map);
    }

    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        if let Some(dataset) = &mut self.dataset {
            dataset.each_mut(visit);
        }
        visit(&mut self.map);
    }
}
