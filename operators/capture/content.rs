//! What can be captured, and its bytes.
//!
//! ```text
//! RawBatch                     partition, start, length of its range, time of the poll, number of records;
//!                              per record: offset, timestamp, lengths of key and payload, each one more than it is and 0 for none,
//!                              length of the headers; then key, payload and headers of each record, back to back
//! NormalizedBatch, UniqueBatch a frame of the log, of segment 0, at position 0
//! ```
//!
//! Numbers are varints as the log has them; offsets count from the one before, timestamps from the one before.

use bytes::Bytes;

use super::format::Times;
use crate::batch::{NormalizedBatch, RawBatch, RawRecord, Span, UniqueBatch};
use crate::budget::{Charge, Load};
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::wal_commit;
use crate::wal_commit::codec::{Cursor, put_partition, put_signed, put_varint};
use crate::wal_commit::frame::{self, put_step, take_step};

/// The least a record of a `RawBatch` takes up: offset, timestamp and three lengths.
const RECORD_BYTES_MIN: usize = 5;

/// Which edge a capture is of, by what passes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `RawBatch`.
    Raw,
    /// `NormalizedBatch`.
    Normalized,
    /// `UniqueBatch`.
    Unique,
}

impl Kind {
    /// Its number in files.
    pub fn code(self) -> u64 {
        match self {
            Kind::Raw => 1,
            Kind::Normalized => 2,
            Kind::Unique => 3,
        }
    }

    /// The kind with this number.
    pub fn of_code(code: u64) -> Option<Kind> {
        [Kind::Raw, Kind::Normalized, Kind::Unique].into_iter().find(|kind| kind.code() == code)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Raw => "raw",
            Kind::Normalized => "normalized",
            Kind::Unique => "unique",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A batch that can be captured. Clones are cheap: they share their arena.
pub trait Captured: Clone + Send + Sized + 'static {
    /// What captures of it say they hold.
    const KIND: Kind;

    /// The partition it is of.
    fn partition(&self) -> &PartitionKey;
    /// First and end of the offsets it accounts for.
    fn offsets(&self) -> (i64, i64);
    /// The memory it takes up.
    fn load(&self) -> Load;
    /// The Kafka timestamps of its records.
    fn times(&self) -> Times;
    /// Appends its bytes. Refuses what `decode` could not read back, and says why.
    fn encode(&self, epoch: Epoch, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), &'static str>;
    /// Reads what `encode` wrote: all of `bytes`. The arena stays in them.
    fn decode(bytes: &Bytes) -> Option<Self>;
    /// The batch with this share of a memory budget.
    fn charged(self, charge: Charge) -> Self;
}

/// Buffers kept between batches.
#[derive(Default)]
pub struct Scratch {
    frame: frame::Scratch,
}

impl Captured for RawBatch {
    const KIND: Kind = Kind::Raw;

    fn partition(&self) -> &PartitionKey {
        &self.partition
    }

    fn offsets(&self) -> (i64, i64) {
        (self.start, self.end)
    }

    fn load(&self) -> Load {
        Load { bytes: self.arena.len(), messages: self.records.len() }
    }

    fn times(&self) -> Times {
        let mut times = Times::default();
        self.records.iter().for_each(|record| times.add(record.timestamp_ms));
        times
    }

    fn encode(&self, _epoch: Epoch, _scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), &'static str> {
        put_partition(out, &self.partition);
        put_signed(out, self.start);
        let length = self.end.checked_sub(self.start).filter(|&length| length >= 0);
        put_varint(out, length.ok_or("it ends before it starts")? as u64);
        put_varint(out, self.polled_ms);
        put_varint(out, self.records.len() as u64);
        let (mut next, mut previous_ms) = (self.start, 0i64);
        for record in &self.records {
            put_step(out, &mut next, record.offset, self.end)?;
            put_signed(out, record.timestamp_ms.wrapping_sub(previous_ms));
            previous_ms = record.timestamp_ms;
            for piece in [record.key, record.payload] {
                put_varint(out, piece.map_or(0, |piece| u64::from(piece.len) + 1));
            }
            put_varint(out, u64::from(record.headers.len));
        }
        put_pieces(self, out)
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
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
            let offset = take_step(&mut cursor, &mut next, end)?;
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
        let arena = bytes.slice(cursor.position_in(bytes)..);
        let charge = Charge::default();
        (arena.len() == place as usize).then_some(RawBatch { partition, start, end, arena, records, polled_ms, charge })
    }

    fn charged(self, charge: Charge) -> Self {
        RawBatch { charge, ..self }
    }
}

/// Appends keys, payloads and headers in the records' order; those that lie side by side, as the source lays them, at once.
fn put_pieces(batch: &RawBatch, out: &mut Vec<u8>) -> Result<(), &'static str> {
    const OUTSIDE: &str = "a record lies outside of its arena";
    let piece = |range: std::ops::Range<usize>| batch.arena.get(range).ok_or(OUTSIDE);
    let (mut run, mut total) = (0..0, 0u64);
    for record in &batch.records {
        for span in [record.key, record.payload, Some(record.headers)].into_iter().flatten() {
            total += u64::from(span.len);
            let start = span.start as usize;
            if span.len > 0 && start != run.end {
                out.extend_from_slice(piece(run)?);
                run = start..start;
            }
            run.end += span.len as usize;
        }
    }
    out.extend_from_slice(piece(run)?);
    if u32::try_from(total).is_err() { Err("its records have more than 4 GiB") } else { Ok(()) }
}

impl Captured for NormalizedBatch {
    const KIND: Kind = Kind::Normalized;

    fn partition(&self) -> &PartitionKey {
        &self.coverage.partition
    }

    fn offsets(&self) -> (i64, i64) {
        (self.coverage.start, self.coverage.end)
    }

    fn load(&self) -> Load {
        Load { bytes: self.payload_bytes(), messages: self.records.len() }
    }

    fn times(&self) -> Times {
        let mut times = Times::default();
        self.records.iter().for_each(|record| times.add(record.timestamp_ms));
        times
    }

    fn encode(&self, epoch: Epoch, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), &'static str> {
        frame::encode(epoch, self, &mut scratch.frame, out).map_err(|error| match error {
            wal_commit::Error::Batch { problem } => problem,
            _ => "it cannot be framed",
        })
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        frame::decode(bytes, 0, 0).ok().map(|(_, batch)| batch)
    }

    fn charged(self, charge: Charge) -> Self {
        NormalizedBatch { charge, ..self }
    }
}

impl Captured for UniqueBatch {
    const KIND: Kind = Kind::Unique;

    fn partition(&self) -> &PartitionKey {
        self.0.partition()
    }

    fn offsets(&self) -> (i64, i64) {
        self.0.offsets()
    }

    fn load(&self) -> Load {
        self.0.load()
    }

    fn times(&self) -> Times {
        self.0.times()
    }

    fn encode(&self, epoch: Epoch, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), &'static str> {
        self.0.encode(epoch, scratch, out)
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        NormalizedBatch::decode(bytes).map(UniqueBatch)
    }

    fn charged(self, charge: Charge) -> Self {
        UniqueBatch(self.0.charged(charge))
    }
}
