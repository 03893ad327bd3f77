//! What can be captured, and its bytes.
//!
//! ```text
//! RawBatch                     a table of its records, then their keys, payloads and headers: `wal_commit/raw.rs`
//! NormalizedBatch, UniqueBatch a frame of the log, of segment 0, at position 0
//! ```

use bytes::Bytes;

use super::format::Times;
use crate::batch::{NormalizedBatch, RawBatch, UniqueBatch};
use crate::budget::{Charge, Load};
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::wal_commit;
use crate::wal_commit::codec::Cursor;
use crate::wal_commit::frame;
use crate::wal_commit::raw;

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
        raw::put_table(self, out)?;
        raw::put_pieces(self, |piece| out.extend_from_slice(piece))
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let table = raw::take_table(&mut cursor)?;
        let arena = bytes.slice(cursor.position_in(bytes)..);
        (arena.len() == table.piece_bytes as usize).then(|| table.with(arena))
    }

    fn charged(self, charge: Charge) -> Self {
        RawBatch { charge, ..self }
    }
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
