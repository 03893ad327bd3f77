//! Columns of a record batch, and members of a struct in it, each as what its values are.

use std::ops::Range;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, MapArray, PrimitiveArray,
    RecordBatch, StringArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::Fields;

use super::Problem;

/// Columns by their names.
pub struct Table<'a> {
    fields: &'a Fields,
    columns: &'a [ArrayRef],
}

impl<'a> Table<'a> {
    /// The columns of `batch`.
    pub fn of(batch: &'a RecordBatch) -> Self {
        Table { fields: batch.schema_ref().fields(), columns: batch.columns() }
    }

    /// The column, if there is one of this name.
    pub fn find(&self, name: &str) -> Option<&'a ArrayRef> {
        let (position, _) = self.fields.find(name)?;
        self.columns.get(position)
    }

    fn typed<T>(&self, name: &str, kind: &str, typed: impl FnOnce(&'a ArrayRef) -> Option<T>) -> Result<T, Problem> {
        let column = self.find(name).ok_or_else(|| Problem::of(name, "it is not there"))?;
        typed(column).ok_or_else(|| Problem::of(name, format!("it is of type {}, not {kind}", column.data_type())))
    }

    /// Texts.
    pub fn texts(&self, name: &str) -> Result<StringArray, Problem> {
        self.typed(name, "Utf8", |column| column.as_string_opt::<i32>().cloned())
    }

    /// Numbers and times.
    pub fn numbers<T: ArrowPrimitiveType>(&self, name: &str) -> Result<PrimitiveArray<T>, Problem> {
        self.typed(name, &T::DATA_TYPE.to_string(), |column| column.as_primitive_opt::<T>().cloned())
    }

    /// Flags.
    pub fn flags(&self, name: &str) -> Result<BooleanArray, Problem> {
        self.typed(name, "Boolean", |column| column.as_boolean_opt().cloned())
    }

    /// Bytes.
    pub fn binaries(&self, name: &str) -> Result<BinaryArray, Problem> {
        self.typed(name, "Binary", |column| column.as_binary_opt::<i32>().cloned())
    }

    /// Identifiers.
    pub fn ids(&self, name: &str) -> Result<FixedSizeBinaryArray, Problem> {
        self.typed(name, "FixedSizeBinary", |column| column.as_fixed_size_binary_opt().cloned())
    }

    /// Maps of texts to texts.
    pub fn maps(&self, name: &str) -> Result<Maps, Problem> {
        self.typed(name, "Map<Utf8, Utf8>", |column| Maps::of(column.as_map_opt()?))
    }

    /// Lists of numbers.
    pub fn lists<T: ArrowPrimitiveType>(&self, name: &str) -> Result<Lists<PrimitiveArray<T>>, Problem> {
        self.typed(name, "List", |column| {
            let list = column.as_list_opt::<i32>()?;
            Some(Lists { offsets: list.offsets().clone(), items: list.values().as_primitive_opt::<T>()?.clone() })
        })
    }

    /// Lists of structs, whose members `items` takes.
    pub fn structs<T>(&self, name: &str, items: impl FnOnce(&Table<'_>) -> Result<T, Problem>) -> Result<Lists<T>, Problem> {
        let (offsets, values) = self.typed(name, "List<Struct>", |column| {
            let list = column.as_list_opt::<i32>()?;
            Some((list.offsets().clone(), list.values().as_struct_opt()?))
        })?;
        let items = items(&Table { fields: values.fields(), columns: values.columns() });
        items
            .map(|items| Lists { offsets, items })
            .map_err(|problem| Problem::of(format!("{name}.{}", problem.column), problem.detail))
    }
}

/// Lists, whose elements lie side by side.
pub struct Lists<T> {
    offsets: OffsetBuffer<i32>,
    /// The elements of all lists.
    pub items: T,
}

impl<T> Lists<T> {
    /// Where the elements of a row's list lie.
    pub fn range(&self, row: usize) -> Range<usize> {
        self.offsets[row] as usize..self.offsets[row + 1] as usize
    }
}

/// Maps of texts to texts, of which values may be null.
pub struct Maps {
    offsets: OffsetBuffer<i32>,
    keys: StringArray,
    values: StringArray,
}

impl Maps {
    fn of(maps: &MapArray) -> Option<Self> {
        let (keys, values) = (maps.keys().as_string_opt::<i32>()?, maps.values().as_string_opt::<i32>()?);
        Some(Maps { offsets: maps.offsets().clone(), keys: keys.clone(), values: values.clone() })
    }

    /// The entries of a row's map.
    pub fn entries(&self, row: usize) -> impl Iterator<Item = (&str, Option<&str>)> {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        range.map(|entry| (self.keys.value(entry), self.values.is_valid(entry).then(|| self.values.value(entry))))
    }
}

/// The number of a row, unless it is null.
#[inline]
pub fn number<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    column.is_valid(row).then(|| column.value(row))
}

/// The identifier of a row, unless it is null.
#[inline]
pub fn id(column: &FixedSizeBinaryArray, row: usize) -> Option<&[u8]> {
    column.is_valid(row).then(|| column.value(row))
}
