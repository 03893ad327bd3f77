//! The bytes of a capture file. It is a legal zstd file, so that `zstd -dc` gives its entries; what is ours stands in zstd's skippable
//! frames, which its readers pass over.
//!
//! ```text
//! | head | block: mark, zstd frame | block: mark, zstd frame | ... | index: mark, zstd frame | tail |      head, marks, tail: 96 bytes
//!
//!  0  u32  0x184D2A50, zstd's "skip this"      16  u32  crc32c of 20..96
//!  4  u32  88, the bytes to skip               20  ..   as below
//!  8  8 bytes  what it is
//!
//!     head "OWCPHEAD"      block "OWCPBLCK"             index "OWCPINDX"           tail "OWCPTAIL"
//! 20  u32  version         u32  crc32c of zstd frame    u32  crc32c of zstd frame  u32  blocks
//! 24  u64  kind            u64  position of this mark   u64  position of this mark u64  position of this tail
//! 32  u64  file's number   u32  bytes of zstd frame,    u32  bytes of zstd frame,  u64  position of the index
//!                          u32  bytes in it             u32  bytes in it
//! 40  u64  first epoch     u32  batches, u32  records   u64  zero                  u64  batches
//! 48  u64  zero            u64  kind                    u64  zero                  u64  records
//! 56  u64  zero            u64  first epoch             u64  zero                  u64  first epoch
//! 64  u64  zero            u64  last epoch              u64  zero                  u64  last epoch
//! 72  u64  zero            i64  first timestamp         u64  zero                  i64  first timestamp
//! 80  u64  zero            i64  last timestamp          u64  zero                  i64  last timestamp
//! 88  u64  zero            u64  zero                    u64  zero                  u64  bytes in all blocks
//! ```
//!
//! In a block, about 1 MiB, lie entries back to back: varint epoch less that of the entry before (of the block, for the first), varint
//! length, and the batch as `content.rs` writes it. The index is the marks of all blocks. Without a timestamp the first one is the
//! greatest number and the last one the least.

use std::io::{self, Read};

use bytes::Bytes;

use super::content::Kind;
use crate::epoch::Epoch;
use crate::wal_commit::codec::{u32_at, u64_at};

/// Version of capture files. A change needs a reader for the old one.
pub const VERSION: u32 = 1;
/// Bytes of a head, a mark, a tail.
pub const MARK_BYTES: usize = 96;
/// Bytes of entries in a block, unless a single entry has more. Smaller ones compress worse, larger ones lose more when they are damaged.
pub const BLOCK_BYTES: usize = 1 << 20;

const SKIPPABLE: u32 = 0x184D_2A50;
const HEAD: &[u8; 8] = b"OWCPHEAD";
const BLOCK: &[u8; 8] = b"OWCPBLCK";
const INDEX: &[u8; 8] = b"OWCPINDX";
const TAIL: &[u8; 8] = b"OWCPTAIL";
/// Where what a mark is stands in it.
const TAG_AT: usize = 8;

/// A mark's bytes.
pub type Mark = [u8; MARK_BYTES];

fn mark(tag: &[u8; 8], word: u32, longs: [u64; 9]) -> Mark {
    let mut bytes = [0; MARK_BYTES];
    bytes[0..4].copy_from_slice(&SKIPPABLE.to_le_bytes());
    bytes[4..8].copy_from_slice(&(MARK_BYTES as u32 - 8).to_le_bytes());
    bytes[8..16].copy_from_slice(tag);
    bytes[20..24].copy_from_slice(&word.to_le_bytes());
    for (at, value) in (24..).step_by(8).zip(longs) {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[20..]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What `mark` was given.
fn parse(bytes: &[u8], tag: &[u8; 8]) -> Option<(u32, [u64; 9])> {
    let is_mark = bytes.len() >= MARK_BYTES
        && (u32_at(bytes, 0), u32_at(bytes, 4)) == (SKIPPABLE, MARK_BYTES as u32 - 8)
        && bytes[8..16] == *tag
        && u32_at(bytes, 16) == crc32c::crc32c(&bytes[20..MARK_BYTES]);
    is_mark.then(|| (u32_at(bytes, 20), std::array::from_fn(|long| u64_at(bytes, 24 + 8 * long))))
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn halves(pair: u64) -> [u32; 2] {
    [pair as u32, (pair >> 32) as u32]
}

/// The least and the greatest Kafka timestamp of some records; none where no record has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    first_ms: i64,
    last_ms: i64,
}

impl Default for Times {
    fn default() -> Self {
        Times { first_ms: i64::MAX, last_ms: i64::MIN }
    }
}

impl Times {
    /// Adds the timestamp of a record: -1 says that it has none.
    pub fn add(&mut self, timestamp_ms: i64) {
        if timestamp_ms != -1 {
            self.join(Times { first_ms: timestamp_ms, last_ms: timestamp_ms });
        }
    }

    /// Adds those of other records.
    pub fn join(&mut self, other: Times) {
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
    }

    /// Both, the latter included.
    pub fn range(self) -> Option<(i64, i64)> {
        (self.first_ms <= self.last_ms).then_some((self.first_ms, self.last_ms))
    }
}

/// What lies in a part of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The first epoch; the greatest of all where there is no batch.
    pub first: Epoch,
    /// The last epoch; the least of all where there is no batch.
    pub last: Epoch,
    /// Batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of all entries, not compressed.
    pub bytes: u64,
    /// Kafka timestamps of the records.
    pub times: Times,
}

impl Default for Contents {
    fn default() -> Self {
        Contents { first: Epoch(u64::MAX), last: Epoch(0), batches: 0, records: 0, bytes: 0, times: Times::default() }
    }
}

impl Contents {
    /// Adds what lies in another part.
    pub fn join(&mut self, other: &Contents) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.batches += other.batches;
        self.records += other.records;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.times.join(other.times);
    }
}

/// The beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What kind of batches the file holds.
    pub kind: Kind,
    /// Its number.
    pub number: u64,
    /// The epoch of its first batch.
    pub first: Epoch,
}

impl Head {
    /// Its bytes.
    pub fn encode(&self) -> Mark {
        mark(HEAD, VERSION, [self.kind.code(), self.number, self.first.0, 0, 0, 0, 0, 0, 0])
    }

    /// Reads it: `Ok(None)` if it is damaged, `Err` with the version if it is a newer one.
    pub fn decode(bytes: &[u8]) -> Result<Option<Head>, u32> {
        match parse(bytes, HEAD) {
            Some((version, _)) if version > VERSION => Err(version),
            Some((_, [kind, number, first, ..])) => {
                Ok(Kind::of_code(kind).map(|kind| Head { kind, number, first: Epoch(first) }))
            }
            None => Ok(None),
        }
    }
}

/// What stands before the compressed bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where this mark lies in the file.
    pub at: u64,
    /// Bytes of the zstd frame behind it.
    pub stored_bytes: u32,
    /// What kind of batches it holds.
    pub kind: Kind,
    /// What it holds: batches, records and bytes are below 2^32.
    pub contents: Contents,
    /// Checksum of the zstd frame.
    crc: u32,
}

impl Block {
    /// The block at `at` that holds `contents`, compressed as `stored`.
    pub fn new(at: u64, kind: Kind, contents: Contents, stored: &[u8]) -> Self {
        Block { at, stored_bytes: stored.len() as u32, kind, contents, crc: crc32c::crc32c(stored) }
    }

    /// The bytes of its mark.
    pub fn encode(&self) -> Mark {
        let Contents { first, last, batches, records, bytes, times } = self.contents;
        let (sizes, counts) = (pair(self.stored_bytes, bytes as u32), pair(batches as u32, records as u32));
        let (first_ms, last_ms) = (times.first_ms as u64, times.last_ms as u64);
        mark(BLOCK, self.crc, [self.at, sizes, counts, self.kind.code(), first.0, last.0, first_ms, last_ms, 0])
    }

    /// Reads the mark that lies at `at` of its file.
    pub fn decode(bytes: &[u8], at: u64) -> Option<Block> {
        Block::parse(bytes).filter(|block| block.at == at)
    }

    fn parse(bytes: &[u8]) -> Option<Block> {
        let (crc, [at, sizes, counts, kind, first, last, first_ms, last_ms, _]) = parse(bytes, BLOCK)?;
        let ([stored_bytes, bytes], [batches, records]) = (halves(sizes), halves(counts));
        let times = Times { first_ms: first_ms as i64, last_ms: last_ms as i64 };
        let (batches, records, bytes) = (batches.into(), records.into(), bytes.into());
        let contents = Contents { first: Epoch(first), last: Epoch(last), batches, records, bytes, times };
        let is_sound = first <= last && batches > 0 && (batches == 1 || bytes <= BLOCK_BYTES as u64);
        is_sound.then_some(Block { at, stored_bytes, kind: Kind::of_code(kind)?, contents, crc })
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.at.saturating_add(MARK_BYTES as u64 + u64::from(self.stored_bytes))
    }

    /// True if `stored` is the zstd frame behind the mark, undamaged.
    pub fn is_sound(&self, stored: &[u8]) -> bool {
        crc32c::crc32c(stored) == self.crc
    }

    /// The entries in `stored`, which is sound; `None` if no writer wrote it.
    pub fn decompress(&self, stored: &[u8]) -> Option<Bytes> {
        decompress(stored, self.contents.bytes)
    }
}

/// Unpacks `stored`, which must become exactly this many bytes.
fn decompress(stored: &[u8], bytes: u64) -> Option<Bytes> {
    // Memory is taken for what comes out, not for what a forged mark says would.
    let mut unpacked = Vec::with_capacity((bytes as usize).min(BLOCK_BYTES));
    let decoder = zstd::stream::read::Decoder::with_buffer(stored).ok()?;
    decoder.take(bytes + 1).read_to_end(&mut unpacked).ok()?;
    (unpacked.len() as u64 == bytes).then(|| unpacked.into())
}

/// What stands before the compressed index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Where this mark lies in the file.
    pub at: u64,
    /// Bytes of the zstd frame behind it.
    pub stored_bytes: u32,
    /// Bytes in that.
    bytes: u32,
    crc: u32,
}

impl Index {
    /// Reads the mark that lies at `at` of its file.
    pub fn decode(bytes: &[u8], at: u64) -> Option<Index> {
        let (crc, [place, sizes, ..]) = parse(bytes, INDEX)?;
        let [stored_bytes, bytes] = halves(sizes);
        (place == at).then_some(Index { at, stored_bytes, bytes, crc })
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.at.saturating_add(MARK_BYTES as u64 + u64::from(self.stored_bytes))
    }

    /// The blocks it lists, in order; `None` if it is damaged.
    pub fn blocks(&self, stored: &[u8]) -> Option<Vec<Block>> {
        // Every block has at least its mark in the file, before the index.
        if u64::from(self.bytes) > self.at {
            return None;
        }
        if crc32c::crc32c(stored) != self.crc {
            return None;
        }
        let marks = decompress(stored, self.bytes.into())?;
        let blocks: Option<Vec<Block>> = marks.chunks(MARK_BYTES).map(Block::parse).collect();
        blocks.filter(|blocks| blocks.is_sorted_by(|one, next| one.end() <= next.at))
    }
}

/// The end of a file: without it the file is cut short, or still being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where it lies in the file.
    pub at: u64,
    /// Where the index lies.
    pub index_at: u64,
    /// Blocks before that.
    pub blocks: u32,
    /// What they hold.
    pub contents: Contents,
}

impl Tail {
    /// Its bytes.
    pub fn encode(&self) -> Mark {
        let Contents { first, last, batches, records, bytes, times } = self.contents;
        let (first_ms, last_ms) = (times.first_ms as u64, times.last_ms as u64);
        mark(TAIL, self.blocks, [self.at, self.index_at, batches, records, first.0, last.0, first_ms, last_ms, bytes])
    }

    /// Reads the tail that lies at `at` of its file.
    pub fn decode(bytes: &[u8], at: u64) -> Option<Tail> {
        let (blocks, [place, index_at, batches, records, first, last, first_ms, last_ms, bytes]) = parse(bytes, TAIL)?;
        let times = Times { first_ms: first_ms as i64, last_ms: last_ms as i64 };
        let contents = Contents { first: Epoch(first), last: Epoch(last), batches, records, bytes, times };
        (place == at && index_at < at).then_some(Tail { at, index_at, blocks, contents })
    }
}

/// The end of a file with these blocks, from `at` on: index and tail.
pub fn end_of_file(blocks: &[Block], at: u64) -> io::Result<Vec<u8>> {
    let marks: Vec<u8> = blocks.iter().flat_map(Block::encode).collect();
    let stored = zstd::bulk::compress(&marks, zstd::DEFAULT_COMPRESSION_LEVEL)?;
    let sizes = pair(stored.len() as u32, marks.len() as u32);
    let mut bytes = mark(INDEX, crc32c::crc32c(&stored), [at, sizes, 0, 0, 0, 0, 0, 0, 0]).to_vec();
    bytes.extend_from_slice(&stored);
    let mut contents = Contents::default();
    blocks.iter().for_each(|block| contents.join(&block.contents));
    let tail = Tail { at: at + bytes.len() as u64, index_at: at, blocks: blocks.len() as u32, contents };
    bytes.extend_from_slice(&tail.encode());
    Ok(bytes)
}

/// Where in `window`, the bytes of a file from `at` on, the first mark begins that may stand behind a damaged place.
pub fn find_mark(window: &[u8], at: u64) -> Option<u64> {
    let tags = window.windows(BLOCK.len()).enumerate().skip(TAG_AT);
    let mut places = tags.filter(|(_, tag)| *tag == BLOCK || *tag == INDEX || *tag == TAIL).map(|(tag, _)| tag - TAG_AT);
    places.find_map(|place| {
        let (bytes, at) = (&window[place..], at + place as u64);
        // A mark that reaches beyond the window is looked at with the next one.
        let is_mark =
            Block::decode(bytes, at).is_some() || Index::decode(bytes, at).is_some() || Tail::decode(bytes, at).is_some();
        is_mark.then_some(at)
    })
}
