//! The bytes of a copy. It is a legal zstd file, so that `zstd -dc` gives the frames back to back; what is ours stands in zstd's
//! skippable frames, which its readers pass over.
//!
//! ```text
//! | head | block: mark, zstd frame | block: mark, zstd frame | ... | tail |      head, mark and tail have 64 bytes each
//!
//!  0  u32  0x184D2A50, zstd's "skip this"      16  u32  crc32c of 20..64
//!  4  u32  56, the bytes to skip               20  ..   as below
//!  8  8 bytes  what it is
//!
//!     head "OWLTHEAD"             mark "OWLTBLCK"                       tail "OWLTTAIL"
//! 20  u32  version                u32  crc32c of the zstd frame         u32  blocks
//! 24  u64  segment number         u64  segment number                   u64  segment number
//! 32  u64  where its frames end   u64  position of this mark            u64  position of this tail
//! 40  u64  first epoch            u32  bytes of the zstd frame          u64  frames
//! 48  u64  last epoch             u32  bytes in it                      u64  records
//! 56  u64  zero                   u32  frames in it, u32 zero           u64  bytes of all frames
//! ```
//!
//! A block holds whole frames, as they lie in the segment, up to about 1 MiB. Each is compressed by itself and found by its own
//! mark, so what one damaged block hides is its own frames. The frames' own checksums say the rest.

use std::io::{self, Read};

use super::Job;
use crate::epoch::Epoch;
use crate::wal_commit::codec::{u32_at, u64_at};
use crate::wal_commit::frame;

/// Version of copies, that of the segments in them. A change needs a reader for the old one.
pub const VERSION: u32 = 4;
/// Bytes of a head, a mark, a tail.
pub const MARK_BYTES: usize = 64;
/// Bytes of frames in a block, unless a single frame has more. Smaller ones compress worse, larger ones lose more when they are
/// damaged.
pub const BLOCK_BYTES: usize = 1 << 20;

const SKIPPABLE: u32 = 0x184D_2A50;
const HEAD: &[u8; 8] = b"OWLTHEAD";
pub(super) const BLOCK: &[u8; 8] = b"OWLTBLCK";
pub(super) const TAIL: &[u8; 8] = b"OWLTTAIL";
/// Where what a mark is stands in it.
pub(super) const TAG_AT: usize = 8;

type Mark = [u8; MARK_BYTES];

fn mark(tag: &[u8; 8], first: u32, longs: [u64; 3], rest: [u64; 2]) -> Mark {
    let mut bytes = [0; MARK_BYTES];
    bytes[0..4].copy_from_slice(&SKIPPABLE.to_le_bytes());
    bytes[4..8].copy_from_slice(&(MARK_BYTES as u32 - 8).to_le_bytes());
    bytes[8..16].copy_from_slice(tag);
    bytes[20..24].copy_from_slice(&first.to_le_bytes());
    for (at, value) in (24..).step_by(8).zip(longs.into_iter().chain(rest)) {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[20..]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn is_mark(bytes: &[u8], tag: &[u8; 8]) -> bool {
    bytes.len() >= MARK_BYTES
        && (u32_at(bytes, 0), u32_at(bytes, 4)) == (SKIPPABLE, MARK_BYTES as u32 - 8)
        && bytes[8..16] == *tag
        && u32_at(bytes, 16) == crc32c::crc32c(&bytes[20..MARK_BYTES])
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The beginning of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What was copied.
    pub job: Job,
}

impl Head {
    /// Its bytes.
    pub fn encode(&self) -> Mark {
        let Job { segment, end, first, last } = self.job;
        mark(HEAD, VERSION, [segment, end, first.0], [last.0, 0])
    }

    /// Reads it: `Ok(None)` if it is damaged, `Err` with the version if it is a newer one.
    pub fn decode(bytes: &[u8]) -> Result<Option<Head>, u32> {
        if !is_mark(bytes, HEAD) {
            return Ok(None);
        }
        match u32_at(bytes, 20) {
            1..=VERSION => {
                let (first, last) = (Epoch(u64_at(bytes, 40)), Epoch(u64_at(bytes, 48)));
                Ok(Some(Head { job: Job { segment: u64_at(bytes, 24), end: u64_at(bytes, 32), first, last } }))
            }
            newer => Err(newer),
        }
    }
}

/// What stands before the compressed bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of the segment.
    pub segment: u64,
    /// Where this mark lies in the copy.
    pub at: u64,
    /// Bytes of the zstd frame behind it.
    pub stored_bytes: u32,
    /// Bytes that it decompresses to.
    pub frame_bytes: u32,
    /// Frames in it.
    pub frames: u32,
    /// Checksum of the zstd frame.
    pub(super) crc: u32,
}

impl Block {
    /// Its bytes.
    pub fn encode(&self) -> Mark {
        let sizes = pair(self.stored_bytes, self.frame_bytes);
        mark(BLOCK, self.crc, [self.segment, self.at, sizes], [u64::from(self.frames), 0])
    }

    /// Reads the mark that lies at `at` of the copy of `segment`.
    pub fn decode(bytes: &[u8], segment: u64, at: u64) -> Option<Block> {
        let is_here = is_mark(bytes, BLOCK) && u64_at(bytes, 24) == segment && u64_at(bytes, 32) == at;
        let [stored_bytes, frame_bytes, frames] = if is_here { [40, 44, 48].map(|at| u32_at(bytes, at)) } else { return None };
        Some(Block { segment, at, stored_bytes, frame_bytes, frames, crc: u32_at(bytes, 20) })
    }

    /// The frames in `stored`, the zstd frame behind the mark; `None` if it is damaged.
    pub fn decompress(&self, stored: &[u8]) -> Option<Vec<u8>> {
        if stored.len() != self.stored_bytes as usize || crc32c::crc32c(stored) != self.crc {
            return None;
        }
        let frame_bytes = self.frame_bytes as usize;
        if self.frames > 1 && frame_bytes > BLOCK_BYTES {
            return None;
        }
        // Memory is taken for what comes out, not for what a forged mark says would.
        let mut frames = Vec::with_capacity(frame_bytes.min(BLOCK_BYTES));
        let decoder = zstd::stream::read::Decoder::with_buffer(stored).ok()?;
        decoder.take(u64::from(self.frame_bytes) + 1).read_to_end(&mut frames).ok()?;
        (frames.len() == frame_bytes).then_some(frames)
    }
}

/// The end of a copy: without it the copy is cut short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Number of the segment.
    pub segment: u64,
    /// Where it lies in the copy.
    pub at: u64,
    /// Blocks before it.
    pub blocks: u32,
    /// Frames in them.
    pub frames: u64,
    /// Records in those.
    pub records: u64,
    /// Bytes of the frames.
    pub frame_bytes: u64,
}

impl Tail {
    /// Its bytes.
    pub fn encode(&self) -> Mark {
        mark(TAIL, self.blocks, [self.segment, self.at, self.frames], [self.records, self.frame_bytes])
    }

    /// Reads the tail that lies at `at` of the copy of `segment`.
    pub fn decode(bytes: &[u8], segment: u64, at: u64) -> Option<Tail> {
        let is_here = is_mark(bytes, TAIL) && u64_at(bytes, 24) == segment && u64_at(bytes, 32) == at;
        let [frames, records, frame_bytes] = if is_here { [40, 48, 56].map(|at| u64_at(bytes, at)) } else { return None };
        Some(Tail { segment, at, blocks: u32_at(bytes, 20), frames, records, frame_bytes })
    }
}

/// Makes the bytes of one copy, block by block.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    /// Bytes made and not taken yet.
    out: Vec<u8>,
    /// The frames of the open block.
    block: Vec<u8>,
    block_frames: u32,
    tail: Tail,
}

impl Encoder {
    /// Begins a copy of `job`.
    pub fn new(job: Job, compression_level: i32) -> io::Result<Self> {
        let compressor = zstd::bulk::Compressor::new(compression_level)?;
        let out = Head { job }.encode().to_vec();
        let tail = Tail { segment: job.segment, at: MARK_BYTES as u64, ..Tail::default() };
        Ok(Encoder { compressor, out, block: Vec::with_capacity(BLOCK_BYTES), block_frames: 0, tail })
    }

    /// Adds one frame, whose checksums were verified.
    pub fn push(&mut self, header: &frame::Header, bytes: &[u8]) -> io::Result<()> {
        if self.block.len() + bytes.len() > BLOCK_BYTES {
            self.end_block()?;
        }
        self.block.extend_from_slice(bytes);
        self.block_frames += 1;
        self.tail.frames += 1;
        self.tail.records += u64::from(header.records);
        self.tail.frame_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The bytes that are ready.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Bytes that are ready.
    pub fn ready(&self) -> usize {
        self.out.len()
    }

    /// Ends the copy: the last bytes, and what it holds. The copy's length is where the tail lies and the tail's own.
    pub fn finish(mut self) -> io::Result<(Vec<u8>, Tail)> {
        self.end_block()?;
        self.out.extend_from_slice(&self.tail.encode());
        Ok((self.out, self.tail))
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let stored = self.compressor.compress(&self.block)?;
        let Tail { segment, at, .. } = self.tail;
        // A frame is below 4 GiB, and zstd adds less than half a percent to what it cannot compress.
        let stored_bytes = u32::try_from(stored.len()).map_err(io::Error::other)?;
        let crc = crc32c::crc32c(&stored);
        let block = Block { segment, at, stored_bytes, frame_bytes: self.block.len() as u32, frames: self.block_frames, crc };
        self.out.extend_from_slice(&block.encode());
        self.out.extend_from_slice(&stored);
        self.tail.at += MARK_BYTES as u64 + stored.len() as u64;
        self.tail.blocks += 1;
        self.block.clear();
        self.block_frames = 0;
        Ok(())
    }
}
