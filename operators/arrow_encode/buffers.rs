//! What columns are made of: vectors that come back, bits, and ends.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::ArrowNativeType;

/// What columns that hold nothing but nulls share.
#[derive(Default)]
pub struct Zeros {
    zeros: Option<Buffer>,
    /// The last column of texts. The columns of one record batch have the same length.
    texts: Option<ArrayRef>,
}

impl Zeros {
    /// `length` zeros.
    pub fn bytes(&mut self, length: usize) -> Buffer {
        match &self.zeros {
            Some(zeros) if zeros.len() >= length => zeros.slice_with_length(0, length),
            _ => {
                let zeros = Buffer::from_vec(vec![0u64; length.div_ceil(8)]);
                self.zeros.insert(zeros).slice_with_length(0, length)
            }
        }
    }

    /// `rows` nulls.
    pub fn nulls(&mut self, rows: usize) -> NullBuffer {
        NullBuffer::new(BooleanBuffer::new(self.bytes(rows.div_ceil(8)), 0, rows))
    }

    /// A column of `rows` texts that are all null.
    pub fn texts(&mut self, rows: usize) -> ArrayRef {
        match &self.texts {
            Some(texts) if texts.len() == rows => texts.clone(),
            _ => self.texts.insert(Arc::new(StringArray::new_null(rows))).clone(),
        }
    }
}

/// How many handed-out buffers a column remembers, to write into them again once nobody else holds them. More would keep memory that
/// a slow sink holds on to anyway.
const LENT_MAX: usize = 2;

/// A buffer with room for so many values is kept however few are needed.
const KEPT_VALUES_MIN: usize = 4_096;

/// A vector that is handed out as an Arrow buffer and comes back when its readers are done: a fresh page costs more than writing it.
pub struct Lending<T> {
    values: Vec<T>,
    lent: VecDeque<Buffer>,
}

impl<T> Default for Lending<T> {
    fn default() -> Self {
        Lending { values: Vec::new(), lent: VecDeque::new() }
    }
}

impl<T> Deref for Lending<T> {
    type Target = Vec<T>;
    #[inline(always)]
    fn deref(&self) -> &Vec<T> {
        &self.values
    }
}

impl<T> DerefMut for Lending<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.values
    }
}

impl<T: ArrowNativeType> Lending<T> {
    /// Hands out all values and begins anew.
    pub fn hand_out(&mut self) -> Buffer {
        if self.values.is_empty() {
            return Buffer::from_vec(Vec::<T>::new());
        }
        // One that an unusually large row made much larger than what is needed now is given back to the allocator.
        let kept_max = 4 * self.values.len() + KEPT_VALUES_MIN;
        let reclaimed = self.reclaim().filter(|values| values.capacity() <= kept_max);
        let next = reclaimed.unwrap_or_else(|| Vec::with_capacity(self.values.len()));
        let buffer = Buffer::from_vec(std::mem::replace(&mut self.values, next));
        self.lent.push_back(buffer.clone());
        buffer
    }

    /// The oldest buffer, if its readers are done. One that is still read is forgotten when too many are.
    fn reclaim(&mut self) -> Option<Vec<T>> {
        match self.lent.pop_front()?.into_vec::<T>() {
            Ok(mut values) => {
                values.clear();
                Some(values)
            }
            Err(buffer) => {
                if self.lent.len() + 1 < LENT_MAX {
                    self.lent.push_front(buffer);
                }
                None
            }
        }
    }
}

/// Which values are there, or are true. As long as all are, it is only a number.
#[derive(Default)]
pub struct Bits {
    length: usize,
    /// Empty while all `length` bits are set.
    bytes: Lending<u8>,
}

impl Bits {
    /// Appends a set bit.
    #[inline(always)]
    pub fn push_set(&mut self) {
        if self.bytes.is_empty() {
            self.length += 1;
        } else {
            self.push_mixed(true);
        }
    }

    /// Appends `count` set bits.
    pub fn push_all_set(&mut self, count: usize) {
        if self.bytes.is_empty() {
            self.length += count;
        } else {
            (0..count).for_each(|_| self.push_mixed(true));
        }
    }

    /// Appends a bit.
    #[inline]
    pub fn push(&mut self, set: bool) {
        if set { self.push_set() } else { self.push_mixed(false) }
    }

    /// Appends all bits of `other`.
    pub fn append(&mut self, other: &Bits) {
        if other.bytes.is_empty() {
            self.push_all_set(other.length);
        } else {
            (0..other.length).for_each(|index| self.push(other.get(index)));
        }
    }

    /// Appends unset bits up to `length`.
    pub fn pad(&mut self, length: usize) {
        if length > self.length {
            self.materialize();
            self.bytes.resize(length.div_ceil(8), 0);
            self.length = length;
        }
    }

    /// Drops all bits from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.bytes.truncate(self.length.div_ceil(8));
        self.mask_tail();
    }

    /// The bit at `index`.
    pub fn get(&self, index: usize) -> bool {
        self.bytes.is_empty() || self.bytes[index / 8] & (1 << (index % 8)) != 0
    }

    /// Hands out all bits and begins anew.
    pub fn hand_out(&mut self) -> BooleanBuffer {
        self.materialize();
        let length = std::mem::take(&mut self.length);
        BooleanBuffer::new(self.bytes.hand_out(), 0, length)
    }

    /// Hands out all bits as validity; nothing if all are set.
    pub fn nulls(&mut self) -> Option<NullBuffer> {
        if self.bytes.is_empty() {
            self.length = 0;
            return None;
        }
        Some(NullBuffer::new(self.hand_out())).filter(|nulls| nulls.null_count() > 0)
    }

    fn push_mixed(&mut self, set: bool) {
        self.materialize();
        let (byte, bit) = (self.length / 8, self.length % 8);
        if bit == 0 {
            self.bytes.push(0);
        }
        self.bytes[byte] |= u8::from(set) << bit;
        self.length += 1;
    }

    fn materialize(&mut self) {
        if self.bytes.is_empty() && self.length > 0 {
            self.bytes.resize(self.length.div_ceil(8), u8::MAX);
            self.mask_tail();
        }
    }

    /// Bits past the length are unset: `push_mixed` relies on it.
    fn mask_tail(&mut self) {
        let tail = self.length % 8;
        if tail != 0
            && let Some(last) = self.bytes.last_mut()
        {
            *last &= (1 << tail) - 1;
        }
    }
}

/// Where each value of a column ends, after a leading 0.
///
/// Invariant: ascending, from 0 to at most `i32::MAX`. Every function keeps it whatever it is given, or panics: unsafe code in
/// `texts` relies on it. The encoder sees to it that no panic is reached: it bounds a batch to 1 GiB and one row to less than another
/// (`encoder::ROW_WIRE_BYTES_MAX`).
pub struct Offsets(Lending<i32>);

impl Default for Offsets {
    fn default() -> Self {
        let mut offsets = Offsets(Lending::default());
        offsets.0.push(0);
        offsets
    }
}

impl Offsets {
    /// How many values there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Where the value before `index` ends.
    #[inline]
    pub fn at(&self, index: usize) -> usize {
        self.0[index] as usize
    }

    /// Where the last value ends.
    #[inline]
    pub fn last(&self) -> usize {
        self.at(self.len())
    }

    /// All ends from the value at `index` on.
    pub fn from(&self, index: usize) -> &[i32] {
        &self.0[index..]
    }

    /// Appends a value that ends at `end`, which is at or after the end of the last one.
    #[inline(always)]
    pub fn push(&mut self, end: usize) {
        debug_assert!(end >= self.last(), "values end in order");
        assert!(end <= i32::MAX as usize, "a column is longer than 2 GiB");
        self.0.push(end as i32);
    }

    /// Appends empty values up to `length`.
    pub fn pad(&mut self, length: usize) {
        let last = self.0[self.len()];
        let length = length.max(self.len());
        self.0.resize(length + 1, last);
    }

    /// Appends values with the lengths of those of `other`.
    pub fn append(&mut self, other: &Offsets) {
        let base = self.0[self.len()];
        assert!(base.checked_add(other.0[other.len()]).is_some(), "a column is longer than 2 GiB");
        self.0.extend(other.0[1..].iter().map(|end| base + end));
    }

    /// Makes room for `count` more values.
    pub fn reserve(&mut self, count: usize) {
        self.0.reserve(count);
    }

    /// Drops all values from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length + 1);
    }

    /// The value in which the element at `position` lies.
    pub fn holder(&self, position: usize) -> usize {
        self.0.partition_point(|&end| end as usize <= position) - 1
    }

    /// Bytes of the ends of `rows` values.
    pub fn bytes(rows: usize) -> usize {
        4 * (rows + 1)
    }

    /// Hands out all ends and begins anew.
    pub fn hand_out(&mut self) -> ScalarBuffer<i32> {
        let length = self.0.len();
        let buffer = self.0.hand_out();
        self.0.push(0);
        ScalarBuffer::new(buffer, 0, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_are_those_of_a_vector_of_booleans(steps in prop::collection::vec((0u8..5, 0usize..20), 0..40)) {
            let (mut bits, mut model) = (Bits::default(), Vec::new());
            for (step, argument) in steps {
                match step {
                    0 => bits.push_all_set(argument),
                    1 => bits.pad(model.len() + argument),
                    2 => bits.truncate(argument),
                    _ => bits.push(step == 3),
                }
                match step {
                    0 => model.resize(model.len() + argument, true),
                    1 => model.resize(model.len() + argument, false),
                    2 => model.truncate(argument),
                    _ => model.push(step == 3),
                }
                prop_assert!((0..model.len()).all(|index| bits.get(index) == model[index]));
            }
            prop_assert_eq!(bits.hand_out().iter().collect::<Vec<_>>(), model);
        }
    }

    #[test]
    fn a_buffer_comes_back_once_its_readers_are_done_and_never_before() {
        let mut lending = Lending::<i32>::default();
        lending.extend(0..1_000);
        let first = lending.hand_out();
        lending.extend(1_000..2_000);
        let second = lending.hand_out();
        assert_ne!(lending.as_ptr().cast(), first.as_ptr(), "the first is still read");
        let memory = first.as_ptr();
        drop(first);
        lending.push(7);
        drop(lending.hand_out());
        assert_eq!(lending.as_ptr().cast(), memory);
        assert_eq!(second.typed_data::<i32>(), (1_000..2_000).collect::<Vec<_>>());
    }
}
