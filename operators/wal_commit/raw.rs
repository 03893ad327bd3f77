//! The bytes of a batch of messages as they came: in frames of a log that stands before `normalize`, and in captures.
//!
//! ```text
//! table:   partition, start, length of its range, time of the poll, number of records;
//!          per record: offset, timestamp, lengths of key and payload, each one more than it is and 0 for none, length of the headers
//! pieces:  key, payload and headers of each record, back to back
//! ```
//!
//! Offsets count from the one before, timestamps from the one before.

use std::ops::Range;

use bytes::Bytes;

use super::codec::{Cursor, put_partition, put_signed, put_varint};
use super::frame::{put_step, take_step};
use crate::batch::{RawBatch, RawRecord, Span};
use crate::budget::Charge;
use crate::coverage::PartitionKey;

/// The least a record takes up: offset, timestamp and three lengths.
const RECORD_BYTES_MIN: usize = 5;

/// What the pieces belong to.
pub(crate) struct Table {
    pub(crate) partition: PartitionKey,
    pub(crate) range: Range<i64>,
    pub(crate) records: Vec<RawRecord>,
    /// Bytes of all pieces.
    pub(crate) piece_bytes: u32,
    polled_ms: u64,
}

impl Table {
    /// The batch with these pieces, all of which are there.
    pub(crate) fn with(self, arena: Bytes) -> RawBatch {
        let Table { partition, range, records, polled_ms, .. } = self;
        let charge = Charge::default();
        RawBatch { partition, start: range.start, end: range.end, arena, records, polled_ms, charge }
    }
}

/// Appends the table of `batch`. Refuses what `take_table` could not read back, and says why.
pub(crate) fn put_table(batch: &RawBatch, out: &mut Vec<u8>) -> Result<(), &'static str> {
    put_partition(out, &batch.partition);
    put_signed(out, batch.start);
    let length = batch.end.checked_sub(batch.start).filter(|&length| length >= 0);
    put_varint(out, length.ok_or("it ends before it starts")? as u64);
    put_varint(out, batch.polled_ms);
    put_varint(out, batch.records.len() as u64);
    let (mut next, mut previous_ms) = (batch.start, 0i64);
    for record in &batch.records {
        put_step(out, &mut next, record.offset, batch.end)?;
        put_signed(out, record.timestamp_ms.wrapping_sub(previous_ms));
        previous_ms = record.timestamp_ms;
        for piece in [record.key, record.payload] {
            put_varint(out, piece.map_or(0, |piece| u64::from(piece.len) + 1));
        }
        put_varint(out, u64::from(record.headers.len));
    }
    Ok(())
}

/// Reads what `put_table` wrote.
pub(crate) fn take_table(cursor: &mut Cursor<'_>) -> Option<Table> {
    let partition = cursor.partition()?;
    let start = cursor.signed()?;
    let end = start.checked_add(i64::try_from(cursor.varint()?).ok()?)?;
    let polled_ms = cursor.varint()?;
    let count = cursor.count(RECORD_BYTES_MIN)?;
    let mut records = Vec::with_capacity(count);
    let (mut next, mut timestamp_ms, mut place) = (start, 0i64, 0u32);
    let take_piece = |len: u64, place: &mut u32| {
        let piece = Span { start: *place, len: u32::try_from(len).ok()? };
        *place = place.checked_add(piece.len)?;
        Some(piece)
    };
    for _ in 0..count {
        let offset = take_step(cursor, &mut next, end)?;
        timestamp_ms = timestamp_ms.wrapping_add(cursor.signed()?);
        let mut pieces = [None; 2];
        for piece in &mut pieces {
            if let Some(len) = cursor.varint()?.checked_sub(1) {
                *piece = Some(take_piece(len, &mut place)?);
            }
        }
        let headers = take_piece(cursor.varint()?, &mut place)?;
        let [key, payload] = pieces;
        records.push(RawRecord { offset, timestamp_ms, key, payload, headers });
    }
    Some(Table { partition, range: start..end, records, piece_bytes: place, polled_ms })
}

/// Bytes of all pieces of `batch`.
pub(crate) fn piece_bytes(batch: &RawBatch) -> u64 {
    batch.records.iter().flat_map(pieces).map(|piece| u64::from(piece.len)).sum()
}

/// Gives the pieces of `batch` to `out`, in the records' order; those that lie side by side, as the source lays them, at once.
pub(crate) fn put_pieces(batch: &RawBatch, mut out: impl FnMut(&[u8])) -> Result<(), &'static str> {
    const OUTSIDE: &str = "a record lies outside of its arena";
    let piece = |range: Range<usize>| batch.arena.get(range).ok_or(OUTSIDE);
    let mut run = 0..0;
    for span in batch.records.iter().flat_map(pieces) {
        let start = span.start as usize;
        if span.len > 0 && start != run.end {
            out(piece(run)?);
            run = start..start;
        }
        run.end += span.len as usize;
    }
    out(piece(run)?);
    if u32::try_from(piece_bytes(batch)).is_err() { Err("its records have more than 4 GiB") } else { Ok(()) }
}

fn pieces(record: &RawRecord) -> impl Iterator<Item = Span> {
    [record.key, record.payload, Some(record.headers)].into_iter().flatten()
}
