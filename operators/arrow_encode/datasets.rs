//! The columns that a dataset's schema adds: attributes of rows one by one, those of a resource prepared once and repeated.

use arrow::datatypes::{Float64Type, Int64Type, TimestampNanosecondType};

use super::binaries::OptionalBinaries;
use super::columns::{Column, Columns, OptionalFlags, OptionalNumbers, OptionalTexts};
use super::encoder::Problem;
use super::schema::dataset_columns;
use crate::batch::Signal;
use crate::dataset::keys::Keys;
use crate::dataset::{Carrier, FIELDS_MAX, Kind, Stamp};
use crate::otlp::value::Any;

const _: () = assert!(FIELDS_MAX <= u128::BITS as usize, "`seen` has a bit for each column of a carrier");

/// A column of any of the types that a field can have.
enum Slot {
    Text(OptionalTexts),
    Int(OptionalNumbers<Int64Type>),
    Double(OptionalNumbers<Float64Type>),
    Flag(OptionalFlags),
    Time(OptionalNumbers<TimestampNanosecondType>),
    Bytes(OptionalBinaries),
}

impl Slot {
    fn new(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::String => Slot::Text(OptionalTexts::default()),
            Kind::Int => Slot::Int(OptionalNumbers::default()),
            Kind::Double => Slot::Double(OptionalNumbers::default()),
            Kind::Bool => Slot::Flag(OptionalFlags::default()),
            Kind::Timestamp => Slot::Time(OptionalNumbers::default()),
            Kind::Bytes => Slot::Bytes(OptionalBinaries::default()),
            Kind::List | Kind::Map => return None,
        })
    }

    fn column(&self) -> &dyn Column {
        match self {
            Slot::Text(column) => column,
            Slot::Int(column) => column,
            Slot::Double(column) => column,
            Slot::Flag(column) => column,
            Slot::Time(column) => column,
            Slot::Bytes(column) => column,
        }
    }

    fn column_mut(&mut self) -> &mut dyn Column {
        match self {
            Slot::Text(column) => column,
            Slot::Int(column) => column,
            Slot::Double(column) => column,
            Slot::Flag(column) => column,
            Slot::Time(column) => column,
            Slot::Bytes(column) => column,
        }
    }
}

/// Positions of attributes in the columns, and the columns.
fn slots_of(signal: Signal, stamp: &Stamp, carrier: Carrier) -> (Keys<u8>, Vec<Slot>, Vec<String>) {
    let (mut keys, mut slots, mut names) = (Vec::new(), Vec::new(), Vec::new());
    // No schema has more; the bound holds for whatever a log may say.
    for column in dataset_columns(signal, stamp, carrier).take(FIELDS_MAX) {
        if let Some(slot) = Slot::new(column.kind) {
            keys.push((column.key.as_str(), slots.len() as u8));
            slots.push(slot);
            names.push(column.name.clone());
        }
    }
    (Keys::new(keys), slots, names)
}

/// The columns for attributes of rows.
pub struct DatasetColumns {
    keys: Keys<u8>,
    slots: Vec<Slot>,
    /// One bit for each of them that the open row had, whether it fitted its column or went to the map.
    seen: u128,
}

impl DatasetColumns {
    /// No rows; of `signal`, with the columns of `stamp`. `None` where it has none for rows.
    pub fn new(signal: Signal, stamp: &Stamp) -> Option<Self> {
        let (keys, slots, _) = slots_of(signal, stamp, Carrier::Row);
        (!slots.is_empty()).then_some(DatasetColumns { keys, slots, seen: 0 })
    }

    /// True if `key` has a column that took its value, or had one before: the first of a key stays.
    #[inline]
    pub fn takes(&mut self, key: &[u8], value: &Any<'_>, row: usize) -> bool {
        let Some(index) = self.keys.find(key) else { return false };
        if self.seen & (1 << index) != 0 {
            return true;
        }
        self.seen |= 1 << index;
        match (&mut self.slots[usize::from(index)], value) {
            (Slot::Text(column), Any::Text(text)) => column.set(row, text),
            (Slot::Int(column), Any::Int(number)) => column.set(row, Some(*number)),
            (Slot::Double(column), Any::Double(number)) => column.set(row, Some(*number)),
            (Slot::Flag(column), Any::Bool(flag)) => column.set_repeated(row, Some(*flag), 1),
            (Slot::Time(column), Any::Int(nanos)) => column.set(row, Some(*nanos)),
            (Slot::Bytes(column), Any::Bytes(bytes)) => column.set(row, bytes),
            // `normalize` lets no other type pass, but for an empty value: that is a null, here as in a map.
            (_, Any::Empty) => {}
            _ => return false,
        }
        true
    }

    /// Ends the open row.
    pub fn close(&mut self) {
        self.seen = 0;
    }
}

impl Columns for DatasetColumns {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        self.slots.iter().for_each(|slot| visit(slot.column()));
    }
    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        self.seen = 0;
        self.slots.iter_mut().for_each(|slot| visit(slot.column_mut()));
    }
}

/// The columns for attributes of resources.
pub struct ResourceColumns {
    keys: Keys<u8>,
    slots: Vec<Slot>,
    names: Vec<String>,
    /// What the rows from the last `begin` on have.
    current: Vec<Option<Prepared>>,
    seen: u128,
}

/// A value that is repeated on each row of its resource.
enum Prepared {
    Text(String),
    Int(i64),
    Double(f64),
    Flag(bool),
    Bytes(Vec<u8>),
}

impl ResourceColumns {
    /// No rows; of `signal`, with the columns of `stamp`.
    pub fn new(signal: Signal, stamp: Option<&Stamp>) -> Self {
        let (keys, slots, names) =
            stamp.map_or((Keys::new([]), Vec::new(), Vec::new()), |stamp| slots_of(signal, stamp, Carrier::Resource));
        let current = slots.iter().map(|_| None).collect();
        ResourceColumns { keys, slots, names, current, seen: 0 }
    }

    /// A new resource begins; the rows before it are flushed.
    pub fn begin(&mut self) {
        self.current.iter_mut().for_each(|value| *value = None);
        self.seen = 0;
    }

    /// True if `key` has a column that takes its value, or had one before in this resource: the first of a key stays.
    pub fn takes(&mut self, key: &[u8], value: &Any<'_>) -> Result<bool, Problem> {
        let Some(index) = self.keys.find(key) else { return Ok(false) };
        if self.seen & (1 << index) != 0 {
            return Ok(true);
        }
        self.seen |= 1 << index;
        let index = usize::from(index);
        self.current[index] = Some(match (&self.slots[index], value) {
            (Slot::Text(_), Any::Text(text)) => {
                let text = simdutf8::basic::from_utf8(text);
                Prepared::Text(text.map_err(|_| Problem::NotUtf8 { column: self.names[index].clone() })?.to_owned())
            }
            (Slot::Int(_) | Slot::Time(_), Any::Int(number)) => Prepared::Int(*number),
            (Slot::Double(_), Any::Double(number)) => Prepared::Double(*number),
            (Slot::Flag(_), Any::Bool(flag)) => Prepared::Flag(*flag),
            (Slot::Bytes(_), Any::Bytes(bytes)) => Prepared::Bytes(bytes.to_vec()),
            (_, Any::Empty) => return Ok(true),
            _ => return Ok(false),
        });
        Ok(true)
    }

    /// Repeats the values on `count` rows from `row` on.
    pub fn flush(&mut self, row: usize, count: usize) {
        for (slot, value) in self.slots.iter_mut().zip(&self.current) {
            match (slot, value) {
                (Slot::Text(column), Some(Prepared::Text(text))) => column.set_repeated(row, text, count),
                (Slot::Int(column), Some(Prepared::Int(number))) => column.set_repeated(row, Some(*number), count),
                (Slot::Time(column), Some(Prepared::Int(nanos))) => column.set_repeated(row, Some(*nanos), count),
                (Slot::Double(column), Some(Prepared::Double(number))) => column.set_repeated(row, Some(*number), count),
                (Slot::Flag(column), Some(Prepared::Flag(flag))) => column.set_repeated(row, Some(*flag), count),
                (Slot::Bytes(column), Some(Prepared::Bytes(bytes))) => (row..row + count).for_each(|row| column.set(row, bytes)),
                // Nothing was prepared: null.
                _ => {}
            }
        }
    }

    /// At most how many bytes one more row takes in these columns beyond its fixed widths.
    pub fn row_bytes(&self) -> usize {
        let bytes = |value: &Prepared| match value {
            Prepared::Text(text) => text.len(),
            Prepared::Bytes(bytes) => bytes.len(),
            Prepared::Int(_) | Prepared::Double(_) | Prepared::Flag(_) => 0,
        };
        self.current.iter().flatten().map(bytes).sum()
    }
}

impl Columns for ResourceColumns {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        self.slots.iter().for_each(|slot| visit(slot.column()));
    }
    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        self.slots.iter_mut().for_each(|slot| visit(slot.column_mut()));
    }
}
