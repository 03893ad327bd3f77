//! Values of any column: as bytes, equal for equal values alone; as text, for people.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, FieldRef, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;
use twox_hash::{XxHash3_64, XxHash3_128};

/// The rows of a record batch, to be digested. Neither the order of columns nor a column without values matters.
pub(super) struct Encoded<'a> {
    /// By name, each with the hash of its name.
    columns: Vec<(u64, &'a ArrayRef)>,
    buffer: Vec<u8>,
}

impl<'a> Encoded<'a> {
    pub fn new(batch: &'a RecordBatch) -> Self {
        let schema = batch.schema_ref();
        let mut columns: Vec<(&str, &ArrayRef)> =
            schema.fields().iter().map(|field| field.name().as_str()).zip(batch.columns()).collect();
        columns.sort_by_key(|(name, _)| *name);
        let columns = columns.into_iter().map(|(name, array)| (XxHash3_64::oneshot(name.as_bytes()), array)).collect();
        Encoded { columns, buffer: Vec::new() }
    }

    pub fn digest(&mut self, row: usize, seed: u64) -> u128 {
        let Encoded { columns, buffer } = self;
        buffer.clear();
        for (name, array) in columns.iter().filter(|(_, array)| array.is_valid(row)) {
            buffer.extend_from_slice(&name.to_le_bytes());
            put(array, row, buffer);
        }
        XxHash3_128::oneshot_with_seed(seed, buffer)
    }
}

/// The value of `array` at `row` as bytes; `None` if it is null.
pub(super) fn bytes(array: &ArrayRef, row: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    array.is_valid(row).then(|| put(array, row, &mut out))?;
    Some(out)
}

/// The value of `array` at `row` as text, shortened to `chars_max` characters.
pub(super) fn text(array: &ArrayRef, row: usize, chars_max: usize) -> String {
    if array.is_null(row) {
        return "null".into();
    }
    let shown = cast(&array.slice(row, 1), &shown_type(array.data_type()));
    let text = shown.and_then(|array| array_value_to_string(&array, 0)).unwrap_or_else(|error| format!("({error})"));
    let mut short: String = text.chars().take(chars_max).collect();
    let left = text.chars().count() - short.chars().count();
    if left > 0 {
        short.push_str(&format!("... and {left} characters more"));
    }
    short
}

/// The type without time zones, which nothing here can show. All times are UTC.
fn shown_type(data_type: &DataType) -> DataType {
    let shown = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(shown_type(field.data_type())));
    match data_type {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, None),
        DataType::List(item) => DataType::List(shown(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(shown).collect()),
        other => other.clone(),
    }
}

/// Writes a value that is not null: its type, and for what has no fixed length also that.
fn put(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    macro_rules! number {
        ($code:literal, $type:ty) => {{
            out.push($code);
            out.extend_from_slice(&array.as_primitive::<$type>().value(row).to_le_bytes());
        }};
    }
    match array.data_type() {
        DataType::Boolean => out.extend_from_slice(&[1, u8::from(array.as_boolean().value(row))]),
        DataType::Int8 => number!(2, Int8Type),
        DataType::Int16 => number!(3, Int16Type),
        DataType::Int32 => number!(4, Int32Type),
        DataType::Int64 => number!(5, Int64Type),
        DataType::UInt8 => number!(6, UInt8Type),
        DataType::UInt16 => number!(7, UInt16Type),
        DataType::UInt32 => number!(8, UInt32Type),
        DataType::UInt64 => number!(9, UInt64Type),
        // By their bits: a NaN equals itself.
        DataType::Float32 => number!(10, Float32Type),
        DataType::Float64 => number!(11, Float64Type),
        DataType::Timestamp(TimeUnit::Second, _) => number!(12, TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => number!(13, TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => number!(14, TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => number!(15, TimestampNanosecondType),
        DataType::Utf8 => put_bytes(16, array.as_string::<i32>().value(row).as_bytes(), out),
        DataType::Binary => put_bytes(17, array.as_binary::<i32>().value(row), out),
        DataType::FixedSizeBinary(_) => put_bytes(18, array.as_fixed_size_binary().value(row), out),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            put_items(19, list.value_offsets(), row, out, |item, out| put_nullable(list.values(), item, out));
        }
        DataType::Map(..) => {
            let map = array.as_map();
            put_items(20, map.value_offsets(), row, out, |item, out| {
                put_nullable(map.keys(), item, out);
                put_nullable(map.values(), item, out);
            });
        }
        DataType::Struct(_) => {
            out.push(21);
            array.as_struct().columns().iter().for_each(|column| put_nullable(column, row, out));
        }
        // No schema of ours has others; a reader may.
        _ => put_bytes(22, array_value_to_string(array, row).unwrap_or_default().as_bytes(), out),
    }
}

fn put_nullable(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    if array.is_valid(row) { put(array, row, out) } else { out.push(0) }
}

fn put_bytes(code: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(code);
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_items(code: u8, offsets: &[i32], row: usize, out: &mut Vec<u8>, put_item: impl Fn(usize, &mut Vec<u8>)) {
    let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
    out.push(code);
    out.extend_from_slice(&((end - start) as u64).to_le_bytes());
    (start..end).for_each(|item| put_item(item, out));
}

#[cfg(test)]
mod tests {
    use arrow::array::{ListArray, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::{Int32Type, Int64Type};

    use super::*;

    #[test]
    fn values_are_shown_as_people_write_them_and_cut() {
        let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![Some(1_700_000_000_123), None]).with_timezone("UTC"));
        assert_eq!((text(&times, 0, 50), text(&times, 1, 50)), ("2023-11-14T22:13:20.123".into(), "null".into()));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), None])]));
        assert_eq!(text(&lists, 0, 50), "[1, ]");
        let long: ArrayRef = Arc::new(StringArray::from(vec!["\u{e9}".repeat(12)]));
        assert_eq!(text(&long, 0, 10), format!("{}... and 2 characters more", "\u{e9}".repeat(10)));
    }

    #[test]
    fn values_that_differ_have_other_bytes() {
        let list =
            |items: Vec<Option<i32>>| -> ArrayRef { Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(items)])) };
        let long =
            |items: Vec<Option<i64>>| -> ArrayRef { Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(items)])) };
        let values = [
            list(vec![]),
            list(vec![None]),
            list(vec![Some(0)]),
            list(vec![Some(0), None]),
            long(vec![Some(0)]),
            Arc::new(StringArray::from(vec![""])),
            Arc::new(StringArray::from(vec!["0"])),
        ];
        for (one, a) in values.iter().enumerate() {
            for (other, b) in values.iter().enumerate() {
                assert_eq!(bytes(a, 0) == bytes(b, 0), one == other, "{one} {other}");
            }
        }
    }
}
