//! Texts, taken from the wire unchecked and checked in one pass before they leave.
//!
//! This module has the operator's only unsafe code: Arrow would look at every text again when an array is made of them.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::error::ArrowError;

use super::buffers::{Bits, Lending, Offsets, Zeros};
use super::columns::{Column, Size};

/// Texts.
///
/// Invariants, which `array` relies on and which only this module can break:
/// - the last end is the length of `data`, so every end lies in it;
/// - each of the first `checked` texts is UTF-8 by itself.
#[derive(Default)]
pub struct Texts {
    offsets: Offsets,
    data: Lending<u8>,
    checked: usize,
}

impl Texts {
    /// Appends a text that `check` will look at.
    #[inline(always)]
    pub fn push(&mut self, text: &[u8]) {
        self.data.extend_from_slice(text);
        self.offsets.push(self.data.len());
    }

    /// Appends `text` `count` times. It needs no check, unless there are unchecked texts before it.
    pub fn push_repeated(&mut self, text: &str, count: usize) {
        let all_checked = self.checked == self.len();
        self.data.reserve(text.len() * count);
        self.offsets.reserve(count);
        for _ in 0..count {
            self.push(text.as_bytes());
        }
        if all_checked {
            self.checked = self.len();
        }
    }

    /// Appends all texts of `other` `count` times. They need no check if all of both are checked.
    pub fn append_repeated(&mut self, other: &Texts, count: usize) {
        let all_checked = self.checked == self.len() && other.checked == other.len();
        self.data.reserve(other.data.len() * count);
        self.offsets.reserve(other.len() * count);
        for _ in 0..count {
            self.data.extend_from_slice(&other.data);
            self.offsets.append(&other.offsets);
        }
        if all_checked {
            self.checked = self.len();
        }
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Bytes of all texts.
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// The text at `index`.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.data[self.offsets.at(index)..self.offsets.at(index + 1)]
    }

    /// Appends empty texts up to `rows`.
    fn pad(&mut self, rows: usize) {
        let all_checked = self.checked == self.len();
        self.offsets.pad(rows);
        if all_checked {
            self.checked = self.len();
        }
    }

    fn unchecked_is_text(&self) -> bool {
        let start = self.offsets.at(self.checked);
        let bytes = &self.data[start..];
        // Most columns are ASCII, where every end is a boundary.
        if bytes.is_ascii() {
            return true;
        }
        let Ok(text) = simdutf8::basic::from_utf8(bytes) else { return false };
        self.offsets.from(self.checked).iter().all(|&end| text.is_char_boundary(end as usize - start))
    }

    /// A text is bad, or ends inside a character: finds it. Looking at the joined bytes is not enough, as two bad texts can make a
    /// good one.
    #[cold]
    fn check_each(&self) -> Result<(), usize> {
        for index in self.checked..self.len() {
            if simdutf8::basic::from_utf8(self.get(index)).is_err() {
                return Err(index);
            }
        }
        Ok(())
    }

    fn array(&mut self, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
        let is_null_for_each = nulls.as_ref().is_none_or(|nulls| nulls.len() == self.len());
        if self.checked != self.len() || !is_null_for_each {
            return Err(ArrowError::InvalidArgumentError("texts were not checked before they were taken".to_owned()));
        }
        self.checked = 0;
        let (offsets, data) = (self.offsets.hand_out(), self.data.hand_out());
        // SAFETY: `Offsets` are ascending from 0, so they are a valid `OffsetBuffer`. All texts are checked, each is UTF-8 by itself,
        // the last ends where `data` does, and there are as many validity bits as texts: just what `StringArray::try_new` checks.
        let array = unsafe { StringArray::new_unchecked(OffsetBuffer::new_unchecked(offsets), data, nulls) };
        Ok(Arc::new(array))
    }
}

impl Column for Texts {
    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows);
        self.checked = self.checked.min(self.len());
        self.data.truncate(self.offsets.last());
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        size.buffer(Offsets::bytes(rows));
        size.buffer(self.data.len());
    }

    fn check(&mut self) -> Result<(), usize> {
        if !self.unchecked_is_text() {
            self.check_each()?;
        }
        self.checked = self.len();
        Ok(())
    }

    fn take(&mut self, rows: usize, _zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        debug_assert_eq!(self.len(), rows);
        self.array(None)
    }
}

/// Texts of which some are null.
#[derive(Default)]
pub struct OptionalTexts {
    texts: Texts,
    valid: Bits,
}

impl OptionalTexts {
    /// Appends a text.
    #[inline(always)]
    pub fn push(&mut self, text: &[u8]) {
        self.texts.push(text);
        self.valid.push_set();
    }

    /// Appends a null.
    pub fn push_null(&mut self) {
        self.texts.push(b"");
        self.valid.push(false);
    }

    /// Sets the text of `row`, after nulls for the rows before it that have none.
    #[inline]
    pub fn set(&mut self, row: usize, text: &[u8]) {
        self.pad_to(row);
        self.push(text);
    }

    /// Sets the text of `count` rows from `row` on. The same rule as for `Texts::push_repeated`.
    pub fn set_repeated(&mut self, row: usize, text: &str, count: usize) {
        self.pad_to(row);
        self.texts.push_repeated(text, count);
        self.valid.push_all_set(count);
    }

    /// Appends all texts and nulls of `other` `count` times. The same rule as for `Texts::append_repeated`.
    pub fn append_repeated(&mut self, other: &OptionalTexts, count: usize) {
        self.texts.append_repeated(&other.texts, count);
        (0..count).for_each(|_| self.valid.append(&other.valid));
    }

    /// Appends nulls for all rows before `row` that have no text.
    #[inline]
    pub fn pad_to(&mut self, row: usize) {
        if row > self.len() {
            self.texts.pad(row);
            self.valid.pad(row);
        }
    }

    /// Bytes of all texts.
    pub fn data_bytes(&self) -> usize {
        self.texts.data_bytes()
    }

    /// The text at `index`, if it is not null.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.valid.get(index).then(|| self.texts.get(index))
    }

    fn len(&self) -> usize {
        self.texts.len()
    }
}

impl Column for OptionalTexts {
    fn truncate(&mut self, rows: usize) {
        self.texts.truncate(rows);
        self.valid.truncate(rows);
    }

    fn size(&self, rows: usize, size: &mut Size) {
        self.texts.size(rows, size);
        size.validity(rows);
    }

    fn check(&mut self) -> Result<(), usize> {
        self.texts.check()
    }

    fn take(&mut self, rows: usize, zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        if self.len() == 0 && rows > 0 {
            return Ok(zeros.texts(rows));
        }
        self.pad_to(rows);
        let nulls = self.valid.nulls();
        self.texts.array(nulls)
    }
}
