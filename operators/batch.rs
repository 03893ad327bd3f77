//! What travels on the edges of the graphs, each named after the stage that made it.
//!
//! ```text
//! RawBatch         kafka_source   messages of one poll of one partition, in one arena
//! RecalledBatch    kafka_source   messages of a former owner of a partition, for their dedup keys only
//! NormalizedBatch  normalize      the same messages as OTLP protobuf of one signal, with their dedup keys
//! Reject           normalize      one message that failed, with its reason
//! UniqueBatch      dedup_window   a NormalizedBatch without its duplicates
//! DurableBatch     wal_commit     a UniqueBatch whose frame is synced, and where it lies
//! SpilledBatches   wal_commit     where frames lie whose payloads were let go
//! EncodedBatch     arrow_encode   rows of one group (index, signal) as record batches, with their coverage
//! Delivery         arrow_encode   an EncodedBatch on its way to storage, with the frames it can be made of again
//! ```

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::budget::Charge;
use crate::coverage::{Coverage, PartitionKey};
use crate::dataset::Stamp;
use crate::tenant::Tenant;
use crate::wal_commit::read::{Position, Run};

/// The kind of telemetry a topic carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// Spans.
    Traces,
    /// Log records.
    Logs,
    /// Metric data points.
    Metrics,
}

impl Signal {
    /// The name used in config, paths and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Traces => "traces",
            Signal::Logs => "logs",
            Signal::Metrics => "metrics",
        }
    }
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Rows that share files and commits: one index and one signal (design D-5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// The index (dataset) the rows belong to.
    pub index: Arc<str>,
    /// Their signal.
    pub signal: Signal,
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.signal)
    }
}

/// A piece of an arena, as byte positions. An arena is below 4 GiB by the source's batch limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Span {
    /// The bytes of this piece in `arena`.
    #[inline]
    pub fn of(self, arena: &[u8]) -> &[u8] {
        &arena[self.start as usize..self.start as usize + self.len as usize]
    }
}

/// One Kafka message, its bytes lying in its batch's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRecord {
    /// The message's offset.
    pub offset: i64,
    /// The message's Kafka timestamp in Unix milliseconds; -1 where the broker gave none.
    pub timestamp_ms: i64,
    /// The key, if there is one.
    pub key: Option<Span>,
    /// The payload; `None` is a tombstone.
    pub payload: Option<Span>,
    /// The headers, in the form that `headers` reads.
    pub headers: Span,
}

/// Messages of one partition, in offset order, in one arena: no allocation per message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RawBatch {
    /// The partition all messages are from.
    pub partition: PartitionKey,
    /// First offset this batch accounts for: the end of the partition's previous batch.
    pub start: i64,
    /// One past the last offset this batch accounts for.
    pub end: i64,
    /// Keys, payloads and headers of all messages.
    pub arena: Bytes,
    /// The messages.
    pub records: Vec<RawRecord>,
    /// When the first of them was polled, in Unix milliseconds.
    pub polled_ms: u64,
    /// Their share of the memory budget. It stays in its process.
    #[serde(skip)]
    pub charge: Charge,
}

/// Messages that a former owner of their partition has handled: the dedup window is to know their keys, nothing else comes of them.
///
/// A type of its own, so that none of them can get where it would be stored again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecalledBatch(pub RawBatch);

/// What a source gives, on its way through a log that stands before `normalize`.
#[derive(Clone, Debug)]
pub enum Sourced {
    /// Messages to be stored.
    Read(RawBatch),
    /// Messages for their keys only.
    Recalled(RecalledBatch),
}

impl Sourced {
    /// The messages, whatever they are for.
    pub fn batch(&self) -> &RawBatch {
        match self {
            Sourced::Read(batch) | Sourced::Recalled(RecalledBatch(batch)) => batch,
        }
    }

    /// The same with this share of a memory budget.
    pub fn charged(self, charge: Charge) -> Self {
        match self {
            Sourced::Read(batch) => Sourced::Read(RawBatch { charge, ..batch }),
            Sourced::Recalled(RecalledBatch(batch)) => Sourced::Recalled(RecalledBatch(RawBatch { charge, ..batch })),
        }
    }
}

/// Appends one header to an arena: name length u32, name, value length i32 (-1: null), value; little endian.
pub fn push_header(arena: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
    arena.extend_from_slice(&(name.len() as u32).to_le_bytes());
    arena.extend_from_slice(name);
    arena.extend_from_slice(&value.map_or(-1, |value| value.len() as i32).to_le_bytes());
    arena.extend_from_slice(value.unwrap_or_default());
}

/// The headers that `push_header` wrote, in order.
pub fn headers(bytes: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let name_len = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let name = rest.get(4..4 + name_len)?;
        rest = &rest[4 + name_len..];
        let value_len = i32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
        rest = &rest[4..];
        let value = usize::try_from(value_len).ok().and_then(|len| rest.get(..len));
        rest = &rest[value.map_or(0, <[u8]>::len)..];
        Some((name, value))
    })
}

/// Why a message was rejected. The code is stable: it is a header of the dead letter and a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The payload has no bytes.
    Empty,
    /// No configured decoder accepts the payload.
    Undecodable,
    /// The payload is not well-formed in its format: truncated, trailing bytes, wrong wire types.
    Malformed,
    /// A string is not UTF-8.
    InvalidUtf8,
    /// Nested deeper than the limit.
    TooDeep,
    /// A single row would not fit into a Flight message, or the payload is over its limit.
    TooLarge,
    /// The payload is of another signal than its topic's.
    WrongSignal,
    /// The topic's name gives no index, and `auto_generate` is off.
    NoIndex,
    /// A field's value breaks the signal's rules: an id of the wrong length, a time out of range.
    InvalidField,
    /// A row lacks a field that its dataset schema requires.
    MissingField,
    /// A field's value is not of the type that the dataset schema says, and cannot be brought into it.
    WrongType,
    /// A field's value is none of those that the dataset schema allows.
    NotAllowed,
    /// A field's value is larger than the dataset schema allows.
    FieldTooLarge,
    /// The dataset schema does not know the field, and refuses those it does not know.
    UnknownField,
    /// The producer's token is missing, unknown, or not good at this time.
    Unauthenticated,
    /// The producer's token is good, but not for this topic, signal or tenant.
    Unauthorized,
    /// Nothing says whose the message is, or what says it is no tenant's name.
    NoTenant,
    /// Its tenant or topic has sent more than its quota allows.
    OverQuota,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 18] = [
        Reason::Empty,
        Reason::Undecodable,
        Reason::Malformed,
        Reason::InvalidUtf8,
        Reason::TooDeep,
        Reason::TooLarge,
        Reason::WrongSignal,
        Reason::NoIndex,
        Reason::InvalidField,
        Reason::MissingField,
        Reason::WrongType,
        Reason::NotAllowed,
        Reason::FieldTooLarge,
        Reason::UnknownField,
        Reason::Unauthenticated,
        Reason::Unauthorized,
        Reason::NoTenant,
        Reason::OverQuota,
    ];

    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::Undecodable => "undecodable",
            Reason::Malformed => "malformed",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::TooDeep => "too_deep",
            Reason::TooLarge => "too_large",
            Reason::WrongSignal => "wrong_signal",
            Reason::NoIndex => "no_index",
            Reason::InvalidField => "invalid_field",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::NotAllowed => "not_allowed",
            Reason::FieldTooLarge => "field_too_large",
            Reason::UnknownField => "unknown_field",
            Reason::Unauthenticated => "unauthenticated",
            Reason::Unauthorized => "unauthorized",
            Reason::NoTenant => "no_tenant",
            Reason::OverQuota => "over_quota",
        }
    }
}

/// One message that failed, whole, with its reason. It flows to `dead_letter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The message's partition.
    pub partition: PartitionKey,
    /// The message as it came, its bytes in `arena`.
    pub record: RawRecord,
    /// The arena of the message's batch.
    pub arena: Bytes,
    /// Why.
    pub reason: Reason,
    /// The detail a person needs to mend the producer: field, position, expected and found; shortened.
    pub detail: String,
    /// The header that holds a secret, in any case, where producers are asked for one: its value goes into no dead letter.
    pub secret_header: Option<Arc<str>>,
}

/// Which arena of a `NormalizedBatch` a payload lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arena {
    /// The source's: the payload passed untouched.
    Raw,
    /// The one `normalize` wrote.
    Written,
}

/// One accepted message as OTLP protobuf of its batch's signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The message's offset.
    pub offset: i64,
    /// The message's Kafka timestamp in Unix milliseconds; -1 where the broker gave none.
    pub timestamp_ms: i64,
    /// The dedup key: a 128-bit hash of the message id, or of the payload as it came, seeded with the group.
    pub key: u128,
    /// Which arena the payload lies in.
    pub arena: Arena,
    /// The OTLP protobuf payload.
    pub payload: Span,
    /// Whose it is: a place in the `tenants` of its batch. 0 where that has none.
    pub tenant: u32,
}

/// The accepted messages of one `RawBatch`, in offset order. May be empty: its coverage still counts.
#[derive(Clone, Debug)]
pub struct NormalizedBatch {
    /// The index and signal of all messages.
    pub group: Group,
    /// What the batch accounts for.
    pub coverage: Coverage,
    /// The source's arena.
    pub raw: Bytes,
    /// The arena of transcoded payloads.
    pub written: Bytes,
    /// The messages.
    pub records: Vec<Record>,
    /// The dataset schema they obey, if their index has one.
    pub schema: Option<Arc<Stamp>>,
    /// Whose they are, each tenant once, mostly one: then every message is of one of them. None where messages have no tenants.
    pub tenants: Vec<Tenant>,
    /// Their share of the memory budget.
    pub charge: Charge,
}

impl NormalizedBatch {
    /// The payload of `record`.
    #[inline]
    pub fn payload(&self, record: &Record) -> &[u8] {
        match record.arena {
            Arena::Raw => record.payload.of(&self.raw),
            Arena::Written => record.payload.of(&self.written),
        }
    }

    /// Whose `record` is.
    #[inline]
    pub fn tenant(&self, record: &Record) -> Option<&Tenant> {
        self.tenants.get(record.tenant as usize)
    }

    /// All payloads, in the records' order; those that lie side by side as one.
    pub fn payload_runs(&self) -> impl Iterator<Item = &[u8]> {
        let end = |record: &Record| record.payload.start.wrapping_add(record.payload.len);
        let runs = self.records.chunk_by(move |one, next| one.arena == next.arena && end(one) == next.payload.start);
        runs.filter_map(move |run| {
            let (first, last) = run.first().zip(run.last())?;
            let whole = Span { start: first.payload.start, len: end(last) - first.payload.start };
            Some(self.payload(&Record { payload: whole, ..*first }))
        })
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> usize {
        self.records.iter().map(|record| record.payload.len as usize).sum()
    }
}

/// A `NormalizedBatch` without the records that `dedup_window` dropped; their offsets are in the coverage.
#[derive(Clone, Debug)]
pub struct UniqueBatch(pub NormalizedBatch);

/// A `UniqueBatch` that is durable in the write-ahead log, itself or as the messages it was made of.
#[derive(Clone, Debug)]
pub struct DurableBatch {
    /// The batch.
    pub batch: NormalizedBatch,
    /// Where its frame lies: good until its epoch is published. None where the log holds messages as they came.
    pub position: Option<Position>,
    /// Its share of the memory behind the log.
    pub charge: Charge,
}

/// Durable batches whose payloads were let go, because storage lags: `wal_replay` reads them back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpilledBatches {
    /// Where their frames lie, back to back.
    pub run: Run,
    /// How many.
    pub batches: u64,
}

/// Rows of one group as record batches of one schema, each below the gRPC message limit.
///
/// Unit of delivery: storage accepts all of it or nothing, so the rows of one message never straddle a commit.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    /// The rows' group.
    pub group: Group,
    /// The rows. May be empty when all messages were duplicates or rejected.
    pub batches: Vec<RecordBatch>,
    /// What the rows account for; several partitions, ascending, where messages were coalesced.
    pub coverage: Vec<Coverage>,
}

impl EncodedBatch {
    /// Rows in all record batches.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// An `EncodedBatch` on its way to storage.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The rows. Let go once storage has received them.
    pub batch: EncodedBatch,
    /// The frames the rows were made of, in this order: from them they can be made again until they are published. None where the log
    /// holds messages as they came: then only the graph can make rows of them again.
    pub frames: Vec<Position>,
    /// Which endpoint the rows belong to, by its position in the configuration; another one stands in while it is away.
    pub endpoint: usize,
    /// Shares of the memory budget, given back when storage has received the rows.
    pub charges: Vec<Charge>,
}

/// What a batch of any stage amounts to.
pub trait Measured {
    /// Messages; where they have become rows, rows.
    fn records(&self) -> usize;
    /// Bytes of keys, payloads and headers; of rows, those in memory.
    fn bytes(&self) -> usize;
}

impl Measured for RawBatch {
    fn records(&self) -> usize {
        self.records.len()
    }
    fn bytes(&self) -> usize {
        self.arena.len()
    }
}

impl Measured for NormalizedBatch {
    fn records(&self) -> usize {
        self.records.len()
    }
    fn bytes(&self) -> usize {
        self.payload_bytes()
    }
}

impl Measured for UniqueBatch {
    fn records(&self) -> usize {
        self.0.records()
    }
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl Measured for DurableBatch {
    fn records(&self) -> usize {
        self.batch.records()
    }
    fn bytes(&self) -> usize {
        self.batch.bytes()
    }
}

impl Measured for Reject {
    fn records(&self) -> usize {
        1
    }
    fn bytes(&self) -> usize {
        let RawRecord { key, payload, headers, .. } = &self.record;
        [*key, *payload, Some(*headers)].into_iter().flatten().map(|piece| piece.len as usize).sum()
    }
}

impl Measured for EncodedBatch {
    fn records(&self) -> usize {
        self.rows()
    }
    fn bytes(&self) -> usize {
        self.batches.iter().map(RecordBatch::get_array_memory_size).sum()
    }
}

impl Measured for Delivery {
    fn records(&self) -> usize {
        self.batch.records()
    }
    fn bytes(&self) -> usize {
        self.batch.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_pushed() {
        let mut arena = Vec::new();
        push_header(&mut arena, b"id", Some(b"7"));
        push_header(&mut arena, b"null", None);
        push_header(&mut arena, b"", Some(b""));
        let read: Vec<_> = headers(&arena).collect();
        let expected: Vec<(&[u8], Option<&[u8]>)> = vec![(b"id", Some(b"7")), (b"null", None), (b"", Some(b""))];
        assert_eq!(read, expected);
    }
}
