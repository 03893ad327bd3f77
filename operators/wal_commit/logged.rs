//! What a log holds: messages that were normalized, or, where the log stands before `normalize`, messages as they came.

use crate::batch::{NormalizedBatch, RawBatch, RecalledBatch, Sourced};
use crate::budget::Charge;
use crate::coverage::PartitionKey;

/// A batch in the log, or on its way there.
#[derive(Clone, Debug)]
pub enum Logged {
    /// Messages as OTLP protobuf.
    Normalized(NormalizedBatch),
    /// Messages as they were read.
    Raw(RawBatch),
    /// Messages as they were read once more, for their keys.
    Recalled(RecalledBatch),
}

impl Logged {
    /// The batch, to be looked at.
    pub fn by_ref(&self) -> LoggedRef<'_> {
        match self {
            Logged::Normalized(batch) => LoggedRef::Normalized(batch),
            Logged::Raw(batch) => LoggedRef::Raw(batch),
            Logged::Recalled(RecalledBatch(batch)) => LoggedRef::Recalled(batch),
        }
    }

    /// Its share of the memory budget.
    pub fn charge(&self) -> &Charge {
        match self {
            Logged::Normalized(batch) => &batch.charge,
            Logged::Raw(batch) | Logged::Recalled(RecalledBatch(batch)) => &batch.charge,
        }
    }
}

impl From<NormalizedBatch> for Logged {
    fn from(batch: NormalizedBatch) -> Self {
        Logged::Normalized(batch)
    }
}

impl From<Sourced> for Logged {
    fn from(batch: Sourced) -> Self {
        match batch {
            Sourced::Read(batch) => Logged::Raw(batch),
            Sourced::Recalled(batch) => Logged::Recalled(batch),
        }
    }
}

/// A batch that is looked at.
#[derive(Clone, Copy, Debug)]
pub enum LoggedRef<'a> {
    /// Messages as OTLP protobuf.
    Normalized(&'a NormalizedBatch),
    /// Messages as they were read.
    Raw(&'a RawBatch),
    /// Messages as they were read once more, for their keys.
    Recalled(&'a RawBatch),
}

impl<'a> LoggedRef<'a> {
    /// The partition it is of.
    pub fn partition(self) -> &'a PartitionKey {
        match self {
            LoggedRef::Normalized(batch) => &batch.coverage.partition,
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => &batch.partition,
        }
    }

    /// Its offsets. Those of messages that were read for their keys it does not account for.
    pub fn range(self) -> std::ops::Range<i64> {
        match self {
            LoggedRef::Normalized(batch) => batch.coverage.range(),
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => batch.start..batch.end,
        }
    }

    /// Its records.
    pub fn records(self) -> usize {
        match self {
            LoggedRef::Normalized(batch) => batch.records.len(),
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => batch.records.len(),
        }
    }

    /// Bytes of payloads; of messages as they came, keys and headers as well.
    pub fn payload_bytes(self) -> u64 {
        match self {
            LoggedRef::Normalized(batch) => batch.payload_bytes() as u64,
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => super::raw::piece_bytes(batch),
        }
    }
}

impl<'a> From<&'a NormalizedBatch> for LoggedRef<'a> {
    fn from(batch: &'a NormalizedBatch) -> Self {
        LoggedRef::Normalized(batch)
    }
}

impl<'a> From<&'a Logged> for LoggedRef<'a> {
    fn from(batch: &'a Logged) -> Self {
        batch.by_ref()
    }
}
