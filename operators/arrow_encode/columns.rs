//! Growing buffers in Arrow's layout, which become Arrow arrays without a copy.
//!
//! ```text
//! Texts, OptionalTexts              Utf8: offsets and one buffer of bytes
//! Numbers, OptionalNumbers          any fixed-width number or timestamp
//! Ids, OptionalIds                  FixedSizeBinary
//! OptionalFlags                     Boolean
//! Maps                              Map<Utf8, Utf8>, one row open at a time
//! Lists                             List of numbers or of a struct
//! ```
//! An optional column may lag behind the rows of its batch: what is missing at the end is null. So a column that few rows use costs
//! nothing for the others, and one that no row uses shares its zeros with all others of its kind.
//!
//! Texts are taken from the wire unchecked and checked in one pass before rows leave the encoder (`Column::check`); an unchecked text
//! never reaches an Arrow array.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, FixedSizeBinaryArray, ListArray, MapArray, PrimitiveArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, DataType, FieldRef, Fields};
use arrow::error::ArrowError;

use super::buffers::{Bits, Lending, Offsets, Zeros};
use super::promoted::fingerprint;
use super::schema;
pub use super::texts::{OptionalTexts, Texts};

/// What a record batch takes as an Arrow IPC message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Bytes of the body: every buffer padded to 64, the alignment the IPC writer uses.
    pub body_bytes: usize,
    /// Buffers in the body.
    pub buffers: usize,
    /// Arrays, nested ones included.
    pub nodes: usize,
}

impl Size {
    pub(super) fn node(&mut self) {
        self.nodes += 1;
    }

    pub(super) fn buffer(&mut self, bytes: usize) {
        self.body_bytes += bytes.next_multiple_of(64);
        self.buffers += 1;
    }

    /// The bits of an optional column, counted whether or not a null makes them needed: a batch must not grow by all of them at once.
    pub(super) fn validity(&mut self, rows: usize) {
        self.body_bytes += rows.div_ceil(8).next_multiple_of(64);
    }

    /// Bytes of the message: its body, 16 bytes of description for each buffer and node, and the frame around them.
    pub fn message_bytes(&self) -> usize {
        const FRAME_BYTES: usize = 256;
        self.body_bytes + 16 * (self.buffers + self.nodes) + FRAME_BYTES
    }
}

/// A column under construction. `rows` is the number of rows of the batch; only optional columns may have fewer.
pub trait Column {
    /// Drops all rows from `rows` on.
    fn truncate(&mut self, rows: usize);
    /// Adds what the column takes with `rows` rows.
    fn size(&self, rows: usize, size: &mut Size);
    /// Checks the texts that came since the last check. The error is the first row with a text that is not UTF-8.
    fn check(&mut self) -> Result<(), usize>;
    /// Hands out `rows` rows as an array and begins anew.
    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError>;
}

/// Numbers or timestamps.
pub struct Numbers<P: ArrowPrimitiveType> {
    values: Lending<P::Native>,
    data_type: DataType,
}

impl<P: ArrowPrimitiveType> Default for Numbers<P> {
    fn default() -> Self {
        Numbers { values: Lending::default(), data_type: schema::column_type::<P>() }
    }
}

impl<P: ArrowPrimitiveType> Numbers<P> {
    /// Appends a number.
    #[inline(always)]
    pub fn push(&mut self, value: P::Native) {
        self.values.push(value);
    }

    /// Appends a number `count` times.
    pub fn push_repeated(&mut self, value: P::Native, count: usize) {
        let length = self.values.len() + count;
        self.values.resize(length, value);
    }

    /// Appends numbers.
    pub fn extend(&mut self, values: impl Iterator<Item = P::Native>) {
        self.values.extend(values);
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// The number of `row`.
    pub fn get(&self, row: usize) -> Option<P::Native> {
        self.values.get(row).copied()
    }

    fn take_with(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
        let length = self.values.len();
        let values = ScalarBuffer::new(self.values.hand_out(), 0, length);
        self.array(values, nulls)
    }

    fn array(&self, values: ScalarBuffer<P::Native>, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(PrimitiveArray::<P>::try_new(values, nulls)?.with_data_type(self.data_type.clone())))
    }
}

impl<P: ArrowPrimitiveType> Column for Numbers<P> {
    fn truncate(&mut self, rows: usize) {
        self.values.truncate(rows);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        size.buffer(rows * size_of::<P::Native>());
    }

    fn check(&mut self) -> Result<(), usize> {
        Ok(())
    }

    fn take(&mut self, rows: usize, _zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        debug_assert_eq!(self.len(), rows);
        self.take_with(None)
    }
}

/// Numbers of which some are null.
pub struct OptionalNumbers<P: ArrowPrimitiveType> {
    numbers: Numbers<P>,
    valid: Bits,
}

impl<P: ArrowPrimitiveType> Default for OptionalNumbers<P> {
    fn default() -> Self {
        OptionalNumbers { numbers: Numbers::default(), valid: Bits::default() }
    }
}

impl<P: ArrowPrimitiveType> OptionalNumbers<P> {
    /// Appends a number or a null.
    pub fn push(&mut self, value: Option<P::Native>) {
        self.numbers.push(value.unwrap_or_default());
        self.valid.push(value.is_some());
    }

    /// Sets the number of `row` if there is one, after nulls for the rows before it that have none.
    #[inline]
    pub fn set(&mut self, row: usize, value: Option<P::Native>) {
        if let Some(value) = value {
            self.pad(row);
            self.numbers.push(value);
            self.valid.push_set();
        }
    }

    /// Sets the number of `count` rows from `row` on.
    pub fn set_repeated(&mut self, row: usize, value: Option<P::Native>, count: usize) {
        for row in row..row + count {
            self.set(row, value);
        }
    }

    fn pad(&mut self, rows: usize) {
        if rows > self.numbers.len() {
            self.numbers.values.resize(rows, P::Native::default());
            self.valid.pad(rows);
        }
    }
}

impl<P: ArrowPrimitiveType> Column for OptionalNumbers<P> {
    fn truncate(&mut self, rows: usize) {
        self.numbers.truncate(rows);
        self.valid.truncate(rows);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        self.numbers.size(rows, size);
        size.validity(rows);
    }

    fn check(&mut self) -> Result<(), usize> {
        Ok(())
    }

    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        if self.numbers.len() == 0 && rows > 0 {
            let values = ScalarBuffer::new(zeros.bytes(rows * size_of::<P::Native>()), 0, rows);
            return self.numbers.array(values, Some(zeros.nulls(rows)));
        }
        self.pad(rows);
        let nulls = self.valid.nulls();
        self.numbers.take_with(nulls)
    }
}

/// Identifiers of `N` bytes.
#[derive(Default)]
pub struct Ids<const N: usize> {
    bytes: Lending<u8>,
}

impl<const N: usize> Ids<N> {
    /// Appends an identifier.
    #[inline(always)]
    pub fn push(&mut self, id: &[u8; N]) {
        self.bytes.extend_from_slice(id);
    }

    fn len(&self) -> usize {
        self.bytes.len() / N
    }

    fn take_with(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(FixedSizeBinaryArray::try_new(N as i32, self.bytes.hand_out(), nulls)?))
    }
}

impl<const N: usize> Column for Ids<N> {
    fn truncate(&mut self, rows: usize) {
        self.bytes.truncate(rows * N);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        size.buffer(rows * N);
    }

    fn check(&mut self) -> Result<(), usize> {
        Ok(())
    }

    fn take(&mut self, rows: usize, _zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        debug_assert_eq!(self.len(), rows);
        self.take_with(None)
    }
}

/// Identifiers of `N` bytes of which some are null.
#[derive(Default)]
pub struct OptionalIds<const N: usize> {
    ids: Ids<N>,
    valid: Bits,
}

impl<const N: usize> OptionalIds<N> {
    /// Appends an identifier or a null.
    pub fn push(&mut self, id: Option<&[u8; N]>) {
        self.ids.push(id.unwrap_or(&[0; N]));
        self.valid.push(id.is_some());
    }

    /// Sets the identifier of `row` if there is one, after nulls for the rows before it that have none.
    #[inline]
    pub fn set(&mut self, row: usize, id: Option<&[u8; N]>) {
        if let Some(id) = id {
            self.pad(row);
            self.ids.push(id);
            self.valid.push_set();
        }
    }

    fn pad(&mut self, rows: usize) {
        if rows > self.ids.len() {
            self.ids.bytes.resize(rows * N, 0);
            self.valid.pad(rows);
        }
    }
}

impl<const N: usize> Column for OptionalIds<N> {
    fn truncate(&mut self, rows: usize) {
        self.ids.truncate(rows);
        self.valid.truncate(rows);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        self.ids.size(rows, size);
        size.validity(rows);
    }

    fn check(&mut self) -> Result<(), usize> {
        Ok(())
    }

    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        if self.ids.len() == 0 && rows > 0 {
            let array = FixedSizeBinaryArray::try_new(N as i32, zeros.bytes(rows * N), Some(zeros.nulls(rows)))?;
            return Ok(Arc::new(array));
        }
        self.pad(rows);
        let nulls = self.valid.nulls();
        self.ids.take_with(nulls)
    }
}

/// Booleans of which some are null.
#[derive(Default)]
pub struct OptionalFlags {
    values: Bits,
    valid: Bits,
}

impl OptionalFlags {
    /// Sets the flag of `count` rows from `row` on, if there is one.
    pub fn set_repeated(&mut self, row: usize, flag: Option<bool>, count: usize) {
        let Some(flag) = flag else { return };
        self.pad(row);
        self.valid.push_all_set(count);
        (0..count).for_each(|_| self.values.push(flag));
    }

    fn pad(&mut self, rows: usize) {
        self.values.pad(rows);
        self.valid.pad(rows);
    }
}

impl Column for OptionalFlags {
    fn truncate(&mut self, rows: usize) {
        self.values.truncate(rows);
        self.valid.truncate(rows);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(rows.div_ceil(8));
        size.buffer(rows.div_ceil(8));
    }

    fn check(&mut self) -> Result<(), usize> {
        Ok(())
    }

    fn take(&mut self, rows: usize, _zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        self.pad(rows);
        let values = self.values.hand_out();
        Ok(Arc::new(BooleanArray::new(values, self.valid.nulls())))
    }
}

/// How many keys of one row are compared one by one; a row with more is sorted when it closes.
const LINEAR_KEYS_MAX: usize = 32;

/// Maps from text to text. Keys of one map are unique: of equal keys the first stays.
#[derive(Default)]
pub struct Maps {
    offsets: Offsets,
    keys: Texts,
    values: OptionalTexts,
    /// One bit for each fingerprint class that the open row has a key of. Most keys need no comparison.
    classes: u64,
}

impl Maps {
    /// Appends `key` to the open row, to be followed by its value. False, and nothing done, if the row has that key already.
    #[inline]
    pub fn push_key(&mut self, key: &[u8]) -> bool {
        let class = 1u64 << (fingerprint(key).wrapping_mul(0x9e37_79b1) >> 26);
        if self.classes & class != 0 && self.open_row_has(key) {
            return false;
        }
        self.classes |= class;
        self.keys.push(key);
        true
    }

    /// Where the value of the key just pushed is to be written.
    #[inline(always)]
    pub fn values(&mut self) -> &mut OptionalTexts {
        &mut self.values
    }

    /// Ends the open row.
    #[inline]
    pub fn close(&mut self) {
        self.classes = 0;
        if self.keys.len() - self.offsets.last() > LINEAR_KEYS_MAX {
            self.drop_repeated_keys();
        }
        self.offsets.push(self.keys.len());
    }

    /// Appends `count` copies of the only row of `one`, which is checked.
    pub fn append_repeated(&mut self, one: &Maps, count: usize) {
        let entries = one.keys.len();
        self.offsets.reserve(count);
        for copy in 1..=count {
            self.offsets.push(self.keys.len() + copy * entries);
        }
        self.keys.append_repeated(&one.keys, count);
        self.values.append_repeated(&one.values, count);
    }

    /// Number of maps.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Bytes of all keys and values, for estimates.
    pub fn content_bytes(&self) -> usize {
        // Two offsets and a bit for each entry.
        9 * self.keys.len() + self.keys.data_bytes() + self.values.data_bytes()
    }

    fn open_row_has(&self, key: &[u8]) -> bool {
        let open = self.offsets.last()..self.keys.len();
        // A row with very many keys is not compared one by one, which would be quadratic: `close` sorts it.
        open.len() <= LINEAR_KEYS_MAX && open.into_iter().any(|index| self.keys.get(index) == key)
    }

    #[cold]
    fn drop_repeated_keys(&mut self) {
        let start = self.offsets.last();
        let mut order: Vec<usize> = (start..self.keys.len()).collect();
        order.sort_unstable_by_key(|&index| (self.keys.get(index), index));
        let mut repeated: Vec<usize> = Vec::new();
        for pair in order.windows(2) {
            if self.keys.get(pair[0]) == self.keys.get(pair[1]) {
                repeated.push(pair[1]);
            }
        }
        if repeated.is_empty() {
            return;
        }
        repeated.sort_unstable();
        let kept: Vec<usize> = (start..self.keys.len()).filter(|index| repeated.binary_search(index).is_err()).collect();
        let copy = |index: &usize| (self.keys.get(*index).to_vec(), self.values.get(*index).map(<[u8]>::to_vec));
        let entries: Vec<_> = kept.iter().map(copy).collect();
        self.keys.truncate(start);
        self.values.truncate(start);
        for (key, value) in entries {
            self.keys.push(&key);
            match &value {
                Some(value) => self.values.push(value),
                None => self.values.push_null(),
            }
        }
    }
}

impl Column for Maps {
    fn truncate(&mut self, rows: usize) {
        self.classes = 0;
        if rows < self.len() {
            self.offsets.truncate(rows);
        }
        let entries = self.offsets.last();
        self.keys.truncate(entries);
        self.values.truncate(entries);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        size.buffer(Offsets::bytes(rows));
        size.node();
        size.buffer(0);
        self.keys.size(self.keys.len(), size);
        self.values.size(self.keys.len(), size);
    }

    fn check(&mut self) -> Result<(), usize> {
        self.keys.check().and(self.values.check()).map_err(|entry| self.offsets.holder(entry))
    }

    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        debug_assert_eq!(self.len(), rows);
        let entries = self.keys.len();
        let arrays = vec![self.keys.take(entries, zeros)?, self.values.take(entries, zeros)?];
        let entries = StructArray::try_new(schema::map_entries().clone(), arrays, None)?;
        Ok(Arc::new(MapArray::try_new(
            schema::map_entry().clone(),
            OffsetBuffer::new(self.offsets.hand_out()),
            entries,
            None,
            false,
        )?))
    }
}

/// Lists, whose elements are one after the other in a column of their own.
pub struct Lists<C> {
    offsets: Offsets,
    /// The elements of all lists. After appending to it, `close` ends the list.
    pub items: C,
    element: FieldRef,
}

impl<C: Column> Lists<C> {
    /// No lists of elements in `items`, which are of type `element`.
    pub fn new(items: C, element: FieldRef) -> Self {
        Lists { offsets: Offsets::default(), items, element }
    }

    /// Ends the open list after `elements` elements in total.
    #[inline]
    pub fn close(&mut self, elements: usize) {
        self.offsets.push(elements);
    }
}

impl<C: Column> Column for Lists<C> {
    fn truncate(&mut self, rows: usize) {
        if rows < self.offsets.len() {
            self.offsets.truncate(rows);
        }
        self.items.truncate(self.offsets.last());
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        size.buffer(Offsets::bytes(rows));
        self.items.size(self.offsets.last(), size);
    }

    fn check(&mut self) -> Result<(), usize> {
        self.items.check().map_err(|item| self.offsets.holder(item))
    }

    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        debug_assert_eq!(self.offsets.len(), rows);
        let items = self.items.take(self.offsets.last(), zeros)?;
        Ok(Arc::new(ListArray::try_new(self.element.clone(), OffsetBuffer::new(self.offsets.hand_out()), items, None)?))
    }
}

/// The columns of a table or of a struct, in the order of its fields.
pub trait Columns {
    /// Calls `visit` with each column in order.
    fn each(&self, visit: &mut dyn FnMut(&dyn Column));
    /// Calls `visit` with each column in order.
    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column));
}

impl<C: Column> Columns for C {
    fn each(&self, visit: &mut dyn FnMut(&dyn Column)) {
        visit(self);
    }
    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn Column)) {
        visit(self);
    }
}

/// Implements `Columns` from the fields named, which are columns or `Columns` themselves, in this order.
macro_rules! columns_in_order {
    ($type:ty: $($field:ident),+ $(,)?) => {
        impl $crate::arrow_encode::columns::Columns for $type {
            fn each(&self, visit: &mut dyn FnMut(&dyn $crate::arrow_encode::columns::Column)) {
                $( $crate::arrow_encode::columns::Columns::each(&self.$field, visit); )+
            }
            fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn $crate::arrow_encode::columns::Column)) {
                $( $crate::arrow_encode::columns::Columns::each_mut(&mut self.$field, visit); )+
            }
        }
    };
}

pub(super) use columns_in_order;

/// Structs, as the elements of lists.
pub struct Structs<S> {
    /// The struct's columns.
    pub columns: S,
    fields: Fields,
}

impl<S> Structs<S> {
    /// No structs of `fields`, whose columns are `columns`.
    pub fn new(columns: S, fields: Fields) -> Self {
        Structs { columns, fields }
    }
}

impl<S: Columns> Column for Structs<S> {
    fn truncate(&mut self, rows: usize) {
        self.columns.each_mut(&mut |column| column.truncate(rows));
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        self.columns.each(&mut |column| column.size(rows, size));
    }

    fn check(&mut self) -> Result<(), usize> {
        let mut result = Ok(());
        self.columns.each_mut(&mut |column| result = result.and(column.check()));
        result
    }

    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        let mut arrays = Vec::with_capacity(self.fields.len());
        self.columns.each_mut(&mut |column| arrays.push(column.take(rows, zeros)));
        let arrays = arrays.into_iter().collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
        Ok(Arc::new(StructArray::try_new(self.fields.clone(), arrays, None)?))
    }
}
