//! Bytes of which some are null, as an Arrow `Binary` column.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray};
use arrow::buffer::OffsetBuffer;
use arrow::error::ArrowError;

use super::buffers::{Bits, Lending, Offsets, Zeros};
use super::columns::{Column, Size};

/// Bytes of which some are null.
#[derive(Default)]
pub struct OptionalBinaries {
    offsets: Offsets,
    data: Lending<u8>,
    valid: Bits,
}

impl OptionalBinaries {
    /// Sets the bytes of `row`, after nulls for the rows before it that have none.
    pub fn set(&mut self, row: usize, bytes: &[u8]) {
        self.pad(row);
        self.data.extend_from_slice(bytes);
        self.offsets.push(self.data.len());
        self.valid.push_set();
    }

    fn pad(&mut self, rows: usize) {
        if rows > self.offsets.len() {
            self.offsets.pad(rows);
            self.valid.pad(rows);
        }
    }
}

impl Column for OptionalBinaries {
    fn truncate(&mut self, rows: usize) {
        if rows < self.offsets.len() {
            self.offsets.truncate(rows);
            self.valid.truncate(rows);
            self.data.truncate(self.offsets.last());
        }
    }

    fn size(&self, rows: usize, size: &mut Size) {
        size.node();
        size.buffer(0);
        size.buffer(Offsets::bytes(rows));
        size.buffer(self.data.len());
        size.validity(rows);
    }

    fn check(&mut self) -> Result<(), usize> {
        Ok(())
    }

    fn take(&mut self, rows: usize, _zeros: &mut Zeros) -> Result<ArrayRef, ArrowError> {
        self.pad(rows);
        let nulls = self.valid.nulls();
        let offsets = OffsetBuffer::new(self.offsets.hand_out());
        Ok(Arc::new(BinaryArray::try_new(offsets, self.data.hand_out(), nulls)?))
    }
}
