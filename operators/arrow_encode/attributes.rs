//! Attribute lists: promoted attributes go to their columns, the rest to a map.
//!
//! OpenTelemetry says that keys are unique within one list. Where they are not, the first attribute of a key stays, wherever it went,
//! and later ones are dropped: readers refuse maps with duplicate keys.

use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType};

use super::binaries::OptionalBinaries;
use super::columns::{Column, Columns, Maps, OptionalFlags, OptionalNumbers, OptionalTexts};
use super::encoder::Problem;
use super::promoted::{Kind, ROW, find_row, fingerprint};
use super::schema::dataset_columns;
use super::values::push_text;
use crate::batch::Signal;
use crate::dataset::keys::Keys;
use crate::dataset::{self, Stamp};
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
            dataset.seen = 0;
        }
        self.map.close();
    }
}

impl Columns for PointAttributes {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        for slot in self.dataset.iter().flat_map(|dataset| &dataset.slots) {
            visit(slot.column());
        }
        visit(&self.map);
    }

    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        if let Some(dataset) = &mut self.dataset {
            dataset.seen = 0;
            dataset.slots.iter_mut().for_each(|slot| visit(slot.column_mut()));
        }
        visit(&mut self.map);
    }
}

/// The columns that a dataset's schema adds.
struct DatasetColumns {
    keys: Keys<u8>,
    slots: Vec<DatasetSlot>,
    /// One bit for each of them that the open row had, whether it fitted its column or went to the map.
    seen: u128,
}

const _: () = assert!(dataset::FIELDS_MAX <= u128::BITS as usize, "`seen` has a bit for each column of a dataset");

enum DatasetSlot {
    Text(OptionalTexts),
    Int(OptionalNumbers<Int64Type>),
    Double(OptionalNumbers<Float64Type>),
    Flag(OptionalFlags),
    Time(OptionalNumbers<TimestampNanosecondType>),
    Bytes(OptionalBinaries),
}

impl DatasetColumns {
    fn new(signal: Signal, stamp: &Stamp) -> Option<Self> {
        let slot = |kind| {
            Some(match kind {
                dataset::Kind::String => DatasetSlot::Text(OptionalTexts::default()),
                dataset::Kind::Int => DatasetSlot::Int(OptionalNumbers::default()),
                dataset::Kind::Double => DatasetSlot::Double(OptionalNumbers::default()),
                dataset::Kind::Bool => DatasetSlot::Flag(OptionalFlags::default()),
                dataset::Kind::Timestamp => DatasetSlot::Time(OptionalNumbers::default()),
                dataset::Kind::Bytes => DatasetSlot::Bytes(OptionalBinaries::default()),
                dataset::Kind::List | dataset::Kind::Map => return None,
            })
        };
        let (mut keys, mut slots) = (Vec::new(), Vec::new());
        for column in dataset_columns(signal, stamp) {
            if let Some(slot) = slot(column.kind) {
                keys.push((column.key.as_str(), slots.len() as u8));
                slots.push(slot);
            }
        }
        (!slots.is_empty()).then(|| DatasetColumns { keys: Keys::new(keys), slots, seen: 0 })
    }

    /// True if `key` has a column that took its value, or had one before: the first of a key stays.
    #[inline]
    fn takes(&mut self, key: &[u8], value: &Any<'_>, row: usize) -> bool {
        let Some(index) = self.keys.find(key) else { return false };
        if self.seen & (1 << index) != 0 {
            return true;
        }
        self.seen |= 1 << index;
        match (&mut self.slots[usize::from(index)], value) {
            (DatasetSlot::Text(column), Any::Text(text)) => column.set(row, text),
            (DatasetSlot::Int(column), Any::Int(number)) => column.set(row, Some(*number)),
            (DatasetSlot::Double(column), Any::Double(number)) => column.set(row, Some(*number)),
            (DatasetSlot::Flag(column), Any::Bool(flag)) => column.set_repeated(row, Some(*flag), 1),
            (DatasetSlot::Time(column), Any::Int(nanos)) => column.set(row, Some(*nanos)),
            (DatasetSlot::Bytes(column), Any::Bytes(bytes)) => column.set(row, bytes),
            // `normalize` lets no other type pass, but for an empty value: that is a null, here as in a map.
            (_, Any::Empty) => {}
            _ => return false,
        }
        true
    }
}

impl DatasetSlot {
    fn column(&self) -> &dyn Column {
        match self {
            DatasetSlot::Text(column) => column,
            DatasetSlot::Int(column) => column,
            DatasetSlot::Double(column) => column,
            DatasetSlot::Flag(column) => column,
            DatasetSlot::Time(column) => column,
            DatasetSlot::Bytes(column) => column,
        }
    }

    fn column_mut(&mut self) -> &mut dyn Column {
        match self {
            DatasetSlot::Text(column) => column,
            DatasetSlot::Int(column) => column,
            DatasetSlot::Double(column) => column,
            DatasetSlot::Flag(column) => column,
            DatasetSlot::Time(column) => column,
            DatasetSlot::Bytes(column) => column,
        }
    }
}
