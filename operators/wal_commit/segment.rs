//! Segment files: their names, their header, and what a directory of them looks like.
//!
//! ```text
//! DIR/
//!   lock                                  locked by the process that writes
//!   segment-00000000000000000042.wal      frames that are, or were, needed
//!   free-00000000000000000039.wal         to be reused; its frames mean nothing any more
//!   keys-00000000000000000039.keys        dedup keys of a segment's records
//!   synced                                how far the last segment was synced (see `mark`)
//!   new-00000000000000000043.tmp          half made; removed at the next start
//!   corrupt/                              damaged files, kept for a person to look at
//!
//! a segment's life:   new ---> segment (active) ---> segment (sealed) ---> free ---> segment with another number
//!                                                       \--- damaged ---> corrupt/
//! ```
//!
//! A segment's first block is its header. It is synced before the file gets its name, so a segment without a whole header is
//! a damaged one; its frames can be read all the same.

use std::collections::BTreeMap;

use super::Error;
use super::codec::{u32_at, u64_at};
use super::disk::{BLOCK_BYTES, CORRUPT, Disk};

/// Version of segments. 1: no frames of batches with a dataset schema; 2: none of batches with tenants; 3: none of messages as they came. A change needs a reader for the old one.
pub const VERSION: u32 = 4;
/// Where the frames begin: the header has a block of its own, so that appending never rewrites it.
pub const FRAMES_START: u64 = BLOCK_BYTES;
/// The least size of a segment: one block for the header and three for frames. Sensible sizes are 64 to 512 MiB.
pub const BYTES_MIN: u64 = 4 * BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"OWWALSEG";
const HEADER_BYTES: usize = 64;

/// What a segment's first block says. The first 16 bytes mean the same in every version, so that a newer one is told from damage.
///
/// ```text
///  0  magic "OWWALSEG"           24  u64  number of the segment before it; 0: none
///  8  u32  crc32c of 12..64      32  u64  where that one's frames end
/// 12  u32  version               40  u64  epoch at which the writing run started
/// 16  u64  number                48  zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The segment's number, never used twice.
    pub number: u64,
    /// The segment before it: a live one that is missing is a loss.
    pub previous: u64,
    /// Where the frames of `previous` end: what lies behind is a torn tail, what is missing before is damage.
    pub previous_end: u64,
    /// The run that wrote it.
    pub run_epoch: u64,
}

impl Header {
    /// The segment's first block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES as usize] {
        let mut block = [0; BLOCK_BYTES as usize];
        block[0..8].copy_from_slice(&MAGIC);
        block[12..16].copy_from_slice(&VERSION.to_le_bytes());
        for (at, value) in [(16, self.number), (24, self.previous), (32, self.previous_end), (40, self.run_epoch)] {
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&block[12..HEADER_BYTES]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads the header of segment `number`: `Ok(None)` if it is damaged, `Err` with the version if it is a newer one.
    pub fn decode(block: &[u8], number: u64) -> Result<Option<Header>, u32> {
        let whole = block.len() >= HEADER_BYTES && block[0..8] == MAGIC;
        if !whole || u32_at(block, 8) != crc32c::crc32c(&block[12..HEADER_BYTES]) {
            return Ok(None);
        }
        let version = u32_at(block, 12);
        if version == 0 || version > VERSION {
            return Err(version);
        }
        let field = |at| u64_at(block, at);
        let header = Header { number: field(16), previous: field(24), previous_end: field(32), run_epoch: field(40) };
        Ok((header.number == number).then_some(header))
    }
}

/// Name of a live segment.
pub fn segment_name(number: u64) -> String {
    format!("segment-{number:020}.wal")
}

/// Name of a segment that can be reused and last bore `number`.
pub fn free_name(number: u64) -> String {
    format!("free-{number:020}.wal")
}

/// Name of the dedup keys of a segment.
pub fn keys_name(number: u64) -> String {
    format!("keys-{number:020}.keys")
}

/// Name of a file that is being made.
pub fn temporary_name(number: u64, extension: &str) -> String {
    format!("new-{number:020}.{extension}.tmp")
}

/// Name of a damaged file that was set aside.
pub fn corrupt_name(name: &str) -> String {
    format!("{CORRUPT}/{name}")
}

/// The files of a log's directory, by number. Files with other names are left alone.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Segments, with their length.
    pub segments: BTreeMap<u64, u64>,
    /// Free segments, with their length.
    pub free: BTreeMap<u64, u64>,
    /// Key files, with their length.
    pub keys: BTreeMap<u64, u64>,
    /// Half-made files.
    pub temporary: Vec<String>,
    /// Damaged files that were set aside, in order of their numbers.
    pub corrupt: Vec<String>,
    /// The highest number any file bears.
    pub number_max: u64,
}

impl Layout {
    /// Lists the directory.
    pub fn read(disk: &dyn Disk) -> Result<Layout, Error> {
        let mut layout = Layout::default();
        for entry in disk.list().map_err(|error| ("list", disk.path(""), error))? {
            let (folder, name) = entry.name.rsplit_once('/').unwrap_or(("", &entry.name));
            if folder.is_empty() && name.ends_with(".tmp") {
                layout.temporary.push(entry.name);
                continue;
            }
            let Some((kind, number)) = parse_name(name) else { continue };
            layout.number_max = layout.number_max.max(number);
            if !folder.is_empty() {
                layout.corrupt.push(entry.name);
                continue;
            }
            match kind {
                "segment" => layout.segments.insert(number, entry.bytes),
                "free" => layout.free.insert(number, entry.bytes),
                _ => layout.keys.insert(number, entry.bytes),
            };
        }
        Ok(layout)
    }
}

/// Kind and number of a name that one of the functions above made.
pub(super) fn parse_name(name: &str) -> Option<(&str, u64)> {
    let (stem, extension) = name.rsplit_once('.')?;
    let (kind, digits) = stem.rsplit_once('-')?;
    let known = matches!((kind, extension), ("segment" | "free", "wal") | ("keys", "keys"));
    // One more is always needed: a file that bears the last number cannot be ours.
    let number = digits.parse().ok().filter(|&number| number < u64::MAX)?;
    (known && digits.len() == 20).then_some((kind, number))
}
