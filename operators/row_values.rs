//! Rows as plain values: what a person says of a row can be held against them. Columns and their types are those of docs/schemas.md.
//!
//! Slow and roomy, as every value is one of its own: for test cases, not for data.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;

use crate::arrow_encode::{self, Encoder};
use crate::batch::{Group, NormalizedBatch};

/// A value of any column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// None.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number of any width.
    Int(i128),
    /// A double.
    Double(f64),
    /// Text.
    Text(String),
    /// A time in Unix nanoseconds.
    Time(i128),
    /// Bytes, as identifiers are.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A map, or a struct: names and values, in their order.
    Map(Vec<(String, Value)>),
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its index and signal.
    pub group: Group,
    /// Its columns, in their order.
    pub columns: Vec<(String, Value)>,
}

impl Row {
    /// The value of a column, where the row has such a column.
    pub fn column(&self, name: &str) -> Option<&Value> {
        self.columns.iter().find(|(column, _)| column == name).map(|(_, value)| value)
    }
}

/// The rows that `batch` becomes, in order.
pub fn rows(batch: &NormalizedBatch) -> Result<Vec<Row>, arrow_encode::Error> {
    let config = arrow_encode::Config { schema: batch.schema.clone(), ..arrow_encode::Config::new(batch.group.clone()) };
    let mut encoder = Encoder::new(config);
    encoder.append(batch)?;
    let encoded = encoder.finish().map(|encoded| encoded.batches).unwrap_or_default();
    Ok(encoded.iter().flat_map(|rows| (0..rows.num_rows()).map(|row| self::row(&batch.group, rows, row))).collect())
}

fn row(group: &Group, rows: &RecordBatch, row: usize) -> Row {
    let fields = rows.schema_ref().fields().iter().map(|field| field.name().clone());
    let columns = fields.zip(rows.columns()).map(|(name, column)| (name, value(column, row)));
    Row { group: group.clone(), columns: columns.collect() }
}

fn value(array: &ArrayRef, row: usize) -> Value {
    macro_rules! whole {
        ($type:ty) => {
            Value::Int(array.as_primitive::<$type>().value(row).into())
        };
    }
    macro_rules! time {
        ($type:ty, $nanos:literal) => {
            Value::Time(i128::from(array.as_primitive::<$type>().value(row)) * $nanos)
        };
    }
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int8 => whole!(Int8Type),
        DataType::Int16 => whole!(Int16Type),
        DataType::Int32 => whole!(Int32Type),
        DataType::Int64 => whole!(Int64Type),
        DataType::UInt8 => whole!(UInt8Type),
        DataType::UInt16 => whole!(UInt16Type),
        DataType::UInt32 => whole!(UInt32Type),
        DataType::UInt64 => whole!(UInt64Type),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Timestamp(TimeUnit::Second, _) => time!(TimestampSecondType, 1_000_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => time!(TimestampMillisecondType, 1_000_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => time!(TimestampMicrosecondType, 1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => time!(TimestampNanosecondType, 1),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::FixedSizeBinary(_) => Value::Bytes(array.as_fixed_size_binary().value(row).to_vec()),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Value::List((0..items.len()).map(|item| value(&items, item)).collect())
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let offsets = map.value_offsets();
            let items = offsets[row] as usize..offsets[row + 1] as usize;
            let name = |item: usize| match value(map.keys(), item) {
                Value::Text(name) => name,
                other => format!("{other:?}"),
            };
            Value::Map(items.map(|item| (name(item), value(map.values(), item))).collect())
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            Value::Map(columns.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
        }
        // No schema of ours has others.
        _ => Value::Text(array_value_to_string(array, row).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Signal;
    use crate::testing::{self, Dice};

    #[test]
    fn every_row_has_every_column_of_its_signal_with_its_place() {
        let mut dice = Dice::new(42);
        for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
            let group = Group { index: "shop".into(), signal };
            let payloads = [testing::payload(signal, 2, &mut dice), testing::payload(signal, 1, &mut dice)];
            let batch = testing::batch(&group, testing::partition("t", 3), 7, &payloads);
            let rows = rows(&batch).unwrap();
            let place =
                |row: &Row| ["_topic", "_partition", "_offset", "_ordinal"].map(|name| row.column(name).cloned().unwrap());
            let places: Vec<_> = rows.iter().map(place).collect();
            let expected = [(7, 0), (7, 1), (8, 0)];
            let expected = expected
                .map(|(offset, ordinal)| [Value::Text("t".into()), Value::Int(3), Value::Int(offset), Value::Int(ordinal)]);
            assert_eq!(places, expected);
            let names = arrow_encode::Encoder::new(arrow_encode::Config::new(group.clone())).schema();
            let names: Vec<&String> = names.fields().iter().map(|field| field.name()).collect();
            assert!(rows.iter().all(|row| row.columns.iter().map(|(name, _)| name).eq(names.iter().copied())));
        }
    }
}
