//! Attributes, out of the columns they were moved to and the map that has the rest.

use std::collections::BTreeMap;

use arrow::array::{Array, BinaryArray, BooleanArray, PrimitiveArray, StringArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType};

use super::Problem;
use super::columns::{Maps, Table};
use super::values::put_other;
use crate::arrow_encode::promoted::{self, Kind, Promoted, RESOURCE, ROW, fingerprint};
use crate::arrow_encode::schema::dataset_columns;
use crate::batch::Signal;
use crate::dataset::{self, Carrier, Stamp};
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_number};

/// Attributes of rows or of resources.
pub struct Attributes {
    /// In the order of the table.
    promoted: Vec<Slot>,
    keys: &'static [Promoted],
    find: fn(&[u8]) -> Option<usize>,
    dataset: Vec<(String, Slot)>,
    /// Positions in `dataset` by their attributes.
    of_dataset: BTreeMap<String, usize>,
    map: &'static str,
    rest: Maps,
}

/// A column that attributes of one type were moved to.
enum Slot {
    Text(StringArray),
    Int32(PrimitiveArray<Int32Type>),
    Int(PrimitiveArray<Int64Type>),
    Time(PrimitiveArray<TimestampNanosecondType>),
    Double(PrimitiveArray<Float64Type>),
    Flag(BooleanArray),
    Bytes(BinaryArray),
}

impl Slot {
    fn of_dataset(table: &Table<'_>, column: &dataset::Column) -> Result<Self, Problem> {
        use dataset::Kind;
        let name = &column.name;
        Ok(match column.kind {
            Kind::String => Slot::Text(table.texts(name)?),
            Kind::Int => Slot::Int(table.numbers(name)?),
            Kind::Timestamp => Slot::Time(table.numbers(name)?),
            Kind::Double => Slot::Double(table.numbers(name)?),
            Kind::Bool => Slot::Flag(table.flags(name)?),
            Kind::Bytes => Slot::Bytes(table.binaries(name)?),
            Kind::List | Kind::Map => return Err(Problem::of(name, "lists and maps have no columns")),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Slot::Text(column) => column.is_null(row),
            Slot::Int32(column) => column.is_null(row),
            Slot::Int(column) => column.is_null(row),
            Slot::Time(column) => column.is_null(row),
            Slot::Double(column) => column.is_null(row),
            Slot::Flag(column) => column.is_null(row),
            Slot::Bytes(column) => column.is_null(row),
        }
    }

    /// Appends the content of an `AnyValue`.
    fn put(&self, row: usize, out: &mut Vec<u8>) {
        match self {
            Slot::Text(column) => put_bytes(out, 1, column.value(row).as_bytes()),
            Slot::Int32(column) => put_number(out, 3, i64::from(column.value(row)) as u64),
            Slot::Int(column) => put_number(out, 3, column.value(row) as u64),
            Slot::Time(column) => put_number(out, 3, column.value(row) as u64),
            Slot::Double(column) => put_fixed64(out, 4, column.value(row).to_bits()),
            Slot::Flag(column) => put_number(out, 2, u64::from(column.value(row))),
            Slot::Bytes(column) => put_bytes(out, 7, column.value(row)),
        }
    }
}

impl Attributes {
    /// Those of spans, log records and data points.
    pub fn of_rows(table: &Table<'_>, signal: Signal, stamp: Option<&Stamp>) -> Result<Self, Problem> {
        let find = |key: &[u8]| promoted::find_row(key, fingerprint(key));
        match signal {
            Signal::Traces | Signal::Logs => Self::new(table, &ROW, find, (signal, stamp, Carrier::Row), "attributes"),
            Signal::Metrics => Self::new(table, &[], |_| None, (signal, stamp, Carrier::Row), "attributes"),
        }
    }

    /// Those of resources.
    pub fn of_resources(table: &Table<'_>, signal: Signal, stamp: Option<&Stamp>) -> Result<Self, Problem> {
        let find = |key: &[u8]| promoted::find_resource(key, fingerprint(key));
        Self::new(table, &RESOURCE, find, (signal, stamp, Carrier::Resource), "resource_attributes")
    }

    fn new(
        table: &Table<'_>,
        keys: &'static [Promoted],
        find: fn(&[u8]) -> Option<usize>,
        (signal, stamp, carrier): (Signal, Option<&Stamp>, Carrier),
        map: &'static str,
    ) -> Result<Self, Problem> {
        let slot = |promoted: &Promoted| match promoted.kind {
            Kind::Text => table.texts(promoted.column).map(Slot::Text),
            Kind::Int => table.numbers(promoted.column).map(Slot::Int32),
        };
        let promoted = keys.iter().map(slot).collect::<Result<_, _>>()?;
        let (mut dataset, mut of_dataset) = (Vec::new(), BTreeMap::new());
        for column in stamp.into_iter().flat_map(|stamp| dataset_columns(signal, stamp, carrier)) {
            of_dataset.insert(column.key.clone(), dataset.len());
            dataset.push((column.key.clone(), Slot::of_dataset(table, column)?));
        }
        Ok(Attributes { promoted, keys, find, dataset, of_dataset, map, rest: table.maps(map)? })
    }

    /// Appends the attributes of a row, each as `field`.
    pub fn put(&self, row: usize, field: u32, out: &mut Vec<u8>) -> Result<(), Problem> {
        let promoted = self.keys.iter().map(|promoted| promoted.key).zip(&self.promoted);
        let dataset = self.dataset.iter().map(|(key, slot)| (key.as_str(), slot));
        for (key, slot) in promoted.chain(dataset).filter(|(_, slot)| !slot.is_null(row)) {
            put_entry(key, field, out, |out| slot.put(row, out));
        }
        for (key, text) in self.rest.entries(row) {
            match self.slot_of(key) {
                None => put_text(key, text, field, out),
                Some((slot, is_fixed)) => self.put_beside(slot, is_fixed, (key, text, row), field, out)?,
            }
        }
        Ok(())
    }

    /// The column of a key, and whether every schema has it.
    fn slot_of(&self, key: &str) -> Option<(&Slot, bool)> {
        if let Some(index) = (self.find)(key.as_bytes()) {
            return Some((&self.promoted[index], true));
        }
        // Most files are of no dataset.
        let index = if self.of_dataset.is_empty() { None } else { self.of_dataset.get(key) };
        index.map(|index| (&self.dataset[*index].1, false))
    }

    /// An attribute whose key has a column, and which is in the map: its value was not of the column's type.
    fn put_beside(
        &self,
        slot: &Slot,
        is_fixed: bool,
        (key, text, row): (&str, Option<&str>, usize),
        field: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Problem> {
        let wrong = |detail: &str| Problem::of(self.map, format!("{key:?} has a column of its own, {detail}"));
        if !slot.is_null(row) {
            return Err(wrong("where this row has a value, too"));
        }
        match (slot, text) {
            (_, None) if is_fixed => put_text(key, None, field, out),
            (_, None) => return Err(wrong("to which a null belongs")),
            (Slot::Text(_), Some(text)) => {
                let mut is_put = false;
                put_entry(key, field, out, |out| is_put = put_other(text, out));
                if !is_put {
                    return Err(wrong("to which this text belongs"));
                }
            }
            (_, Some(text)) => put_text(key, Some(text), field, out),
        }
        Ok(())
    }
}

fn put_entry(key: &str, field: u32, out: &mut Vec<u8>, value: impl FnOnce(&mut Vec<u8>)) {
    let entry = open(out, field);
    put_bytes(out, 1, key.as_bytes());
    let any = open(out, 2);
    value(out);
    close(out, any);
    close(out, entry);
}

fn put_text(key: &str, text: Option<&str>, field: u32, out: &mut Vec<u8>) {
    let entry = open(out, field);
    put_bytes(out, 1, key.as_bytes());
    if let Some(text) = text {
        let any = open(out, 2);
        put_bytes(out, 1, text.as_bytes());
        close(out, any);
    }
    close(out, entry);
}

/// Appends the entries of a map that has all attributes, each as `field`.
pub fn put_map(map: &Maps, row: usize, field: u32, out: &mut Vec<u8>) {
    map.entries(row).for_each(|(key, text)| put_text(key, text, field, out));
}
