//! A frame: one batch in the log.
//!
//! ```text
//!  0  u32  magic "OWF1"           32  u64  epoch
//!  4  u32  crc32c of 8..64        40  u32  bytes of meta
//!  8  u64  segment number         44  u32  bytes of payload
//! 16  u64  position in the file   48  u32  crc32c of meta
//! 24  u64  synced: all before it  52  u32  crc32c of payload and padding
//!          was durable when       56  u32  records
//!          this was written       60  u8   kind: 1, more by 1 with a schema, by 2 with tenants; 5, 6: messages as they came   61..64 zero
//! 64  meta: stamp of the dataset schema, if there is one; tenants, if there are any; group, coverage; per record offset, timestamp,
//!           key, length; per record its tenant, if there are several; of messages as they came the table of `raw`
//!     payload: the records' payloads, back to back; of messages as they came the pieces of `raw`
//!     padding: zeros to a multiple of 8
//! ```
//!
//! Segment number and position tell a frame from one that lies there from the file's former life, and from bytes inside a
//! payload that look like a frame. `synced` lets recovery tell a torn tail (nothing behind the hole proves that the hole was
//! ever durable) from damage. Header, meta and payload have checksums of their own: with a whole header the frame's length is
//! known, with a whole meta it is known exactly which offsets a damaged payload held.

use std::sync::Arc;

use bytes::Bytes;

use super::Error as WalError;
use super::buffer::AlignedBuffer;
use super::codec::{Cursor, put_partition, put_signed, put_string, put_varint, u32_at, u64_at};
use super::logged::{Logged, LoggedRef};
use super::{keys, raw};
use crate::batch::{Arena, Group, NormalizedBatch, RecalledBatch, Record, Signal, Sourced, Span};
use crate::budget::Charge;
use crate::coverage::Coverage;
use crate::dataset::{Carrier, Column, FIELDS_MAX, Kind, Stamp};
use crate::epoch::Epoch;
use crate::tenant::Tenant;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;
/// Frames start at multiples of this, so that a search for the next one looks at every eighth byte only.
pub const ALIGNMENT: u64 = 8;
/// The first bytes of every frame, last digit the version.
pub const MAGIC: u32 = u32::from_le_bytes(*b"OWF1");

/// The kind of a batch without what follows.
const KIND_BATCH: u8 = 1;
/// A batch that obeys a dataset schema: what its rows are encoded by is in the frame, so they come out alike whatever the configuration
/// has become (ADR 0015).
const HAS_SCHEMA: u8 = 1;
/// A batch whose messages have tenants. Meta lists each once, so that one of a single tenant, the usual case, is larger by a name.
const HAS_TENANTS: u8 = 2;
/// The kind of a batch of messages as they came.
const KIND_RAW: u8 = 5;
/// The same of messages that somebody else has handled, for their keys only.
const KIND_RECALLED: u8 = 6;
/// What `Scratch` keeps: more than nearly all frames.
const SCRATCH_BYTES_MAX: usize = 8 << 20;
/// The least a record takes up in meta: offset, timestamp, key, length.
const RECORD_META_BYTES_MIN: usize = 19;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No header of this segment and position is here.
    #[error("no frame starts here")]
    NoFrame,
    /// The header is whole, but the frame reaches beyond the end.
    #[error("the frame is cut short")]
    Cut,
    /// The group, coverage and record table are damaged.
    #[error("the checksum of the frame's meta does not match")]
    MetaChecksum,
    /// The payloads are damaged.
    #[error("the checksum of the frame's payload does not match")]
    PayloadChecksum,
    /// The checksums match, yet no version of this program writes such a frame.
    #[error("the frame's meta is malformed")]
    Malformed,
    /// The frame is whole, and holds what was not asked for.
    #[error("the frame holds {}", if *is_raw { "messages as they came, of a log before normalize" } else { "normalized messages" })]
    OtherKind {
        /// It holds messages as they came.
        is_raw: bool,
    },
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the segment.
    pub segment: u64,
    /// The frame's first byte in the segment's file.
    pub position: u64,
    /// Everything before this position was durable when the frame was written.
    pub synced: u64,
    /// The epoch in which the batch was logged.
    pub epoch: Epoch,
    /// Bytes of meta.
    pub meta_bytes: u32,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// Records.
    pub records: u32,
    kind: u8,
    meta_crc: u32,
    payload_crc: u32,
}

impl Header {
    /// Reads the header of the frame that starts at `position` of segment `segment`.
    pub fn parse(bytes: &[u8], segment: u64, position: u64) -> Result<Header, Error> {
        if bytes.len() < HEADER_BYTES || u32_at(bytes, 0) != MAGIC {
            return Err(Error::NoFrame);
        }
        let expected_place = u64_at(bytes, 8) == segment && u64_at(bytes, 16) == position;
        if !expected_place || u32_at(bytes, 4) != crc32c::crc32c(&bytes[8..HEADER_BYTES]) {
            return Err(Error::NoFrame);
        }
        if !(KIND_BATCH..=KIND_RECALLED).contains(&bytes[60]) || bytes[61..HEADER_BYTES] != [0; 3] {
            return Err(Error::Malformed);
        }
        Ok(Header {
            segment,
            position,
            synced: u64_at(bytes, 24),
            epoch: Epoch(u64_at(bytes, 32)),
            meta_bytes: u32_at(bytes, 40),
            payload_bytes: u32_at(bytes, 44),
            meta_crc: u32_at(bytes, 48),
            payload_crc: u32_at(bytes, 52),
            records: u32_at(bytes, 56),
            kind: bytes[60],
        })
    }

    fn write(&self, out: &mut [u8]) {
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..24].copy_from_slice(&self.position.to_le_bytes());
        out[24..32].copy_from_slice(&self.synced.to_le_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.meta_bytes.to_le_bytes());
        out[44..48].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[48..52].copy_from_slice(&self.meta_crc.to_le_bytes());
        out[52..56].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[56..60].copy_from_slice(&self.records.to_le_bytes());
        out[60..64].copy_from_slice(&[self.kind, 0, 0, 0]);
        let crc = crc32c::crc32c(&out[8..HEADER_BYTES]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Bytes of the whole frame, padding included.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.meta_bytes, self.payload_bytes)
    }

    /// True if the frame holds messages as they came.
    pub fn is_raw(&self) -> bool {
        self.kind >= KIND_RAW
    }

    /// True if the frame holds messages for their keys only, and accounts for none.
    pub fn is_recalled(&self) -> bool {
        self.kind == KIND_RECALLED
    }

    /// Checks and reads the meta that follows the header, of a batch of normalized messages.
    pub fn meta(&self, bytes: &[u8]) -> Result<Meta, Error> {
        self.check_meta(bytes)?;
        if self.is_raw() {
            return Err(Error::OtherKind { is_raw: true });
        }
        Meta::decode(bytes, self).ok_or(Error::Malformed)
    }

    /// Checks and reads the meta that follows the header, of a batch of messages as they came.
    fn table(&self, bytes: &[u8]) -> Result<raw::Table, Error> {
        self.check_meta(bytes)?;
        if !self.is_raw() {
            return Err(Error::OtherKind { is_raw: false });
        }
        let mut cursor = Cursor::new(bytes);
        let table = raw::take_table(&mut cursor).filter(|_| cursor.is_empty());
        let is_whole =
            |table: &raw::Table| table.piece_bytes == self.payload_bytes && table.records.len() == self.records as usize;
        table.filter(is_whole).ok_or(Error::Malformed)
    }

    /// Checks the meta that follows the header, and says what the frame accounts for.
    pub fn account(&self, bytes: &[u8]) -> Result<Account, Error> {
        if !self.is_raw() {
            return Ok(Account { coverage: self.meta(bytes)?.coverage, age: None });
        }
        let table = self.table(bytes)?;
        let ages = table.records.iter().map(|record| keys::Age::of(self.epoch, record.timestamp_ms));
        let age = ages.fold(keys::Age { epoch: self.epoch, record_ms: i64::MIN }, keys::Age::max);
        Ok(Account { coverage: Coverage::stored(table.partition, table.range), age: Some(age) })
    }

    fn check_meta(&self, bytes: &[u8]) -> Result<(), Error> {
        if crc32c::crc32c(bytes) == self.meta_crc { Ok(()) } else { Err(Error::MetaChecksum) }
    }

    /// Checks the checksum of payload and padding.
    pub fn check_payload(&self, crc: u32) -> Result<(), Error> {
        if crc == self.payload_crc { Ok(()) } else { Err(Error::PayloadChecksum) }
    }
}

fn frame_bytes(meta_bytes: u32, payload_bytes: u32) -> u64 {
    (HEADER_BYTES as u64 + u64::from(meta_bytes) + u64::from(payload_bytes)).next_multiple_of(ALIGNMENT)
}

/// What a frame accounts for.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// The offsets. Of messages as they came all count as stored: what becomes of them is found out behind the log.
    pub coverage: Coverage,
    /// How old its messages are, where they are as they came: then the frame itself is what their dedup keys are found in.
    pub age: Option<keys::Age>,
}

/// A batch that is ready to be written: its meta is encoded and its length known.
pub struct Prepared<'a> {
    batch: LoggedRef<'a>,
    meta: &'a [u8],
    payload_bytes: u32,
}

/// Where a frame is about to be written.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Number of the segment.
    pub segment: u64,
    /// The frame's first byte in the segment's file.
    pub position: u64,
    /// The batch's epoch.
    pub epoch: Epoch,
}

/// A frame in a buffer whose header is still missing: what was durable is only known when the buffer is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unsealed {
    /// Where the frame starts in the buffer.
    pub(super) at: usize,
    header: Header,
}

impl Unsealed {
    /// Writes the header. Everything before `synced` is durable.
    pub(super) fn seal(self, synced: u64, buffer: &mut AlignedBuffer) {
        let header = Header { synced, ..self.header };
        header.write(&mut buffer.bytes_mut()[self.at..self.at + HEADER_BYTES]);
    }
}

impl<'a> Prepared<'a> {
    /// Encodes the batch's meta into `meta`. Refuses what `Meta::decode` could not read back: better no acknowledgement now than
    /// a lost batch at recovery.
    pub fn new(batch: impl Into<LoggedRef<'a>>, meta: &'a mut Vec<u8>) -> Result<Self, WalError> {
        let batch = batch.into();
        meta.clear();
        let encoded = match batch {
            LoggedRef::Normalized(batch) => encode_meta(batch, meta),
            // The pieces are looked at once before they are written: then none can be found to be missing.
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => {
                raw::put_table(batch, meta).and_then(|()| raw::put_pieces(batch, |_| {}))
            }
        };
        encoded.map_err(|problem| WalError::Batch { problem })?;
        let payload_bytes = batch.payload_bytes();
        let whole = (HEADER_BYTES + meta.len() + ALIGNMENT as usize) as u64 + payload_bytes;
        if u32::try_from(whole).is_err() {
            return Err(WalError::Batch { problem: "it is larger than 4 GiB" });
        }
        Ok(Prepared { batch, payload_bytes: payload_bytes as u32, meta })
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.meta.len() as u32, self.payload_bytes)
    }

    /// Appends the frame to `out`, without its header.
    pub(super) fn write(&self, place: Place, out: &mut AlignedBuffer) -> Unsealed {
        let start = out.len();
        out.reserve(self.frame_bytes() as usize);
        out.extend_zeros(HEADER_BYTES);
        out.extend(self.meta);
        let payload = out.len();
        match self.batch {
            LoggedRef::Normalized(batch) => batch.payload_runs().for_each(|run| out.extend(run)),
            LoggedRef::Raw(batch) | LoggedRef::Recalled(batch) => {
                raw::put_pieces(batch, |piece| out.extend(piece)).expect("looked at when it was prepared");
            }
        }
        out.extend_zeros(self.frame_bytes() as usize - (out.len() - start));
        let header = Header {
            segment: place.segment,
            position: place.position,
            synced: 0,
            epoch: place.epoch,
            meta_bytes: self.meta.len() as u32,
            payload_bytes: self.payload_bytes,
            meta_crc: crc32c::crc32c(self.meta),
            payload_crc: crc32c::crc32c(&out.bytes()[payload..]),
            records: self.batch.records() as u32,
            kind: kind_of(self.batch),
        };
        Unsealed { at: start, header }
    }
}

fn kind_of(batch: LoggedRef<'_>) -> u8 {
    let batch = match batch {
        LoggedRef::Normalized(batch) => batch,
        LoggedRef::Raw(_) => return KIND_RAW,
        LoggedRef::Recalled(_) => return KIND_RECALLED,
    };
    let schema = if batch.schema.is_some() { HAS_SCHEMA } else { 0 };
    let tenants = if batch.tenants.is_empty() { 0 } else { HAS_TENANTS };
    KIND_BATCH + schema + tenants
}

/// Room to encode frames in, outside of a log.
#[derive(Default)]
pub struct Scratch {
    meta: Vec<u8>,
    frame: AlignedBuffer,
}

/// Appends the whole frame of `batch` to `out`, as one that lies in no segment: number and position are 0, and `decode` is to be told so.
pub fn encode(epoch: Epoch, batch: &NormalizedBatch, scratch: &mut Scratch, out: &mut Vec<u8>) -> Result<(), WalError> {
    let Scratch { meta, frame } = scratch;
    frame.clear();
    let place = Place { segment: 0, position: 0, epoch };
    Prepared::new(batch, meta)?.write(place, frame).seal(0, frame);
    out.extend_from_slice(frame.bytes());
    frame.shrink_to(SCRATCH_BYTES_MAX);
    Ok(())
}

/// The whole frame in `bytes`, which must be found at `position` of segment `segment`. The payloads stay in `bytes`.
pub fn decode<B: Framed>(bytes: &Bytes, segment: u64, position: u64) -> Result<(Epoch, B), Error> {
    let header = Header::parse(bytes, segment, position)?;
    if bytes.len() as u64 != header.frame_bytes() {
        return Err(Error::Cut);
    }
    let payload = HEADER_BYTES + header.meta_bytes as usize;
    let raw = bytes.slice(payload..payload + header.payload_bytes as usize);
    let batch = B::read(&header, &bytes[HEADER_BYTES..payload], raw)?;
    header.check_payload(crc32c::crc32c(&bytes[payload..]))?;
    Ok((header.epoch, batch))
}

/// What a frame can be read as.
pub trait Framed: Sized {
    /// Checks and reads the frame's meta; its payload lies in `payload`, and is checked by the caller.
    fn read(header: &Header, meta: &[u8], payload: Bytes) -> Result<Self, Error>;
}

impl Framed for NormalizedBatch {
    fn read(header: &Header, meta: &[u8], raw: Bytes) -> Result<Self, Error> {
        let Meta { group, schema, tenants, coverage, records } = header.meta(meta)?;
        let (written, charge) = (Bytes::new(), Charge::default());
        Ok(NormalizedBatch { group, coverage, raw, written, records, schema, tenants, charge })
    }
}

impl Framed for Sourced {
    fn read(header: &Header, meta: &[u8], payload: Bytes) -> Result<Self, Error> {
        let batch = header.table(meta)?.with(payload);
        Ok(if header.is_recalled() { Sourced::Recalled(RecalledBatch(batch)) } else { Sourced::Read(batch) })
    }
}

impl Framed for Logged {
    fn read(header: &Header, meta: &[u8], payload: Bytes) -> Result<Self, Error> {
        match header.is_raw() {
            true => Sourced::read(header, meta, payload).map(Logged::from),
            false => NormalizedBatch::read(header, meta, payload).map(Logged::Normalized),
        }
    }
}

/// What a frame tells about its batch besides the payloads.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// The batch's group.
    pub group: Group,
    /// The dataset schema it obeys, if its index has one.
    pub schema: Option<Arc<Stamp>>,
    /// Whose the records are.
    pub tenants: Vec<Tenant>,
    /// The batch's coverage.
    pub coverage: Coverage,
    /// The records, their payloads being pieces of the frame's payload.
    pub records: Vec<Record>,
}

fn encode_meta(batch: &NormalizedBatch, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let coverage = &batch.coverage;
    if let Some(stamp) = &batch.schema {
        put_stamp(out, stamp);
    }
    if !batch.tenants.is_empty() {
        put_varint(out, batch.tenants.len() as u64);
        batch.tenants.iter().for_each(|tenant| put_string(out, tenant.name()));
    }
    out.push(signal_code(batch.group.signal));
    put_string(out, &batch.group.index);
    put_partition(out, &coverage.partition);
    put_signed(out, coverage.start);
    let length = coverage.end.checked_sub(coverage.start).filter(|&length| length >= 0);
    put_varint(out, length.ok_or("its coverage ends before it starts")? as u64);
    for offsets in [&coverage.duplicates, &coverage.rejected, &coverage.skipped] {
        put_varint(out, offsets.len() as u64);
        let mut next = coverage.start;
        for &offset in offsets {
            put_step(out, &mut next, offset, coverage.end)?;
        }
    }
    put_varint(out, coverage.absent.len() as u64);
    let mut next = coverage.start;
    for absent in &coverage.absent {
        put_step(out, &mut next, absent.start, coverage.end)?;
        let last = absent.end.checked_sub(1).filter(|&last| last >= absent.start);
        next = absent.start;
        put_step(out, &mut next, last.ok_or("an absent range is empty")?, coverage.end)?;
    }
    let (mut next, mut previous_ms) = (coverage.start, 0i64);
    for record in &batch.records {
        put_step(out, &mut next, record.offset, coverage.end)?;
        put_signed(out, record.timestamp_ms.wrapping_sub(previous_ms));
        previous_ms = record.timestamp_ms;
        out.extend_from_slice(&record.key.to_le_bytes());
        put_varint(out, u64::from(record.payload.len));
    }
    put_owners(out, batch)?;
    if u32::try_from(batch.records.len()).is_err() { Err("it has more than 2^32 records") } else { Ok(()) }
}

/// Whose each record is, where it can be of more than one.
fn put_owners(out: &mut Vec<u8>, batch: &NormalizedBatch) -> Result<(), &'static str> {
    let count = batch.tenants.len();
    if count > 0 && batch.records.iter().any(|record| record.tenant as usize >= count) {
        return Err("a record is of a tenant that is not listed");
    }
    if count > 1 {
        batch.records.iter().for_each(|record| put_varint(out, u64::from(record.tenant)));
    }
    Ok(())
}

fn put_stamp(out: &mut Vec<u8>, stamp: &Stamp) {
    put_string(out, &stamp.name);
    put_varint(out, u64::from(stamp.version));
    out.extend_from_slice(&stamp.hash.to_le_bytes());
    put_varint(out, stamp.columns.len() as u64);
    for column in &stamp.columns {
        put_string(out, &column.key);
        put_string(out, &column.name);
        out.push(column.kind.code());
        out.push(match column.carrier {
            Carrier::Row => 0,
            Carrier::Resource => 1,
        });
    }
}

fn take_tenants(cursor: &mut Cursor<'_>) -> Option<Vec<Tenant>> {
    let count = cursor.count(2)?;
    let mut tenants = Vec::with_capacity(count);
    for _ in 0..count {
        tenants.push(Tenant::new(cursor.string()?).ok()?);
    }
    (count > 0).then_some(tenants)
}

fn take_owners(cursor: &mut Cursor<'_>, tenants: &[Tenant], records: &mut [Record]) -> Option<()> {
    if tenants.len() < 2 {
        return Some(());
    }
    for record in records {
        record.tenant = u32::try_from(cursor.varint()?).ok().filter(|&place| (place as usize) < tenants.len())?;
    }
    Some(())
}

fn take_stamp(cursor: &mut Cursor<'_>) -> Option<Stamp> {
    let name = cursor.string()?.into();
    let version = u32::try_from(cursor.varint()?).ok()?;
    let hash = u64::from_le_bytes(cursor.take(8)?.try_into().ok()?);
    let count = cursor.count(4)?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let (key, name) = (cursor.string()?.to_owned(), cursor.string()?.to_owned());
        let kind = Kind::of_code(cursor.byte()?)?;
        let carrier = match cursor.byte()? {
            0 => Carrier::Row,
            1 => Carrier::Resource,
            _ => return None,
        };
        columns.push(Column { carrier, key, name, kind });
    }
    (count <= 2 * FIELDS_MAX).then_some(Stamp { name, version, hash, columns })
}

/// Writes how far `offset` lies beyond `next`, the least it may be, and makes the offset after it the next.
pub(crate) fn put_step(out: &mut Vec<u8>, next: &mut i64, offset: i64, end: i64) -> Result<(), &'static str> {
    if offset < *next || offset >= end {
        return Err("its offsets are not ascending inside its coverage");
    }
    put_varint(out, (offset - *next) as u64);
    *next = offset + 1;
    Ok(())
}

fn signal_code(signal: Signal) -> u8 {
    match signal {
        Signal::Traces => 0,
        Signal::Logs => 1,
        Signal::Metrics => 2,
    }
}

impl Meta {
    fn decode(bytes: &[u8], header: &Header) -> Option<Meta> {
        let mut cursor = Cursor::new(bytes);
        let has = |part: u8| (header.kind - KIND_BATCH) & part != 0;
        let schema = if has(HAS_SCHEMA) { Some(Arc::new(take_stamp(&mut cursor)?)) } else { None };
        let tenants = if has(HAS_TENANTS) { take_tenants(&mut cursor)? } else { Vec::new() };
        let signal = match cursor.byte()? {
            0 => Signal::Traces,
            1 => Signal::Logs,
            2 => Signal::Metrics,
            _ => return None,
        };
        let group = Group { index: cursor.string()?.into(), signal };
        let coverage = decode_coverage(&mut cursor)?;
        let mut records = decode_records(&mut cursor, header, &coverage, bytes)?;
        take_owners(&mut cursor, &tenants, &mut records)?;
        cursor.is_empty().then_some(Meta { group, schema, tenants, coverage, records })
    }
}

fn decode_coverage(cursor: &mut Cursor<'_>) -> Option<Coverage> {
    let partition = cursor.partition()?;
    let start = cursor.signed()?;
    let end = start.checked_add(i64::try_from(cursor.varint()?).ok()?)?;
    let mut coverage = Coverage::stored(partition, start..end);
    for offsets in [&mut coverage.duplicates, &mut coverage.rejected, &mut coverage.skipped] {
        let count = cursor.count(1)?;
        offsets.reserve_exact(count);
        let mut next = start;
        for _ in 0..count {
            offsets.push(take_step(cursor, &mut next, end)?);
        }
    }
    let mut next = start;
    for _ in 0..cursor.count(2)? {
        let first = take_step(cursor, &mut next, end)?;
        next = first;
        let last = take_step(cursor, &mut next, end)?;
        coverage.absent.push(first..last + 1);
    }
    Some(coverage)
}

pub(crate) fn take_step(cursor: &mut Cursor<'_>, next: &mut i64, end: i64) -> Option<i64> {
    let offset = next.checked_add(i64::try_from(cursor.varint()?).ok()?).filter(|&offset| offset < end)?;
    *next = offset + 1;
    Some(offset)
}

fn decode_records(cursor: &mut Cursor<'_>, header: &Header, coverage: &Coverage, meta: &[u8]) -> Option<Vec<Record>> {
    let count = header.records as usize;
    // Refused before the table is allocated.
    if count > (meta.len() - cursor.position_in(meta)) / RECORD_META_BYTES_MIN {
        return None;
    }
    let mut records = Vec::with_capacity(count);
    let (mut next, mut timestamp_ms, mut start) = (coverage.start, 0i64, 0u32);
    for _ in 0..count {
        let offset = take_step(cursor, &mut next, coverage.end)?;
        timestamp_ms = timestamp_ms.wrapping_add(cursor.signed()?);
        let key = cursor.key()?;
        let len = u32::try_from(cursor.varint()?).ok()?;
        records.push(Record { offset, timestamp_ms, key, arena: Arena::Raw, payload: Span { start, len }, tenant: 0 });
        start = start.checked_add(len)?;
    }
    (start == header.payload_bytes).then_some(records)
}
