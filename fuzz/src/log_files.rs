//! Files of the write-ahead log: segments as recovery finds them, key files, and copies in the long-term log.
//!
//! Checksums keep nearly every mutation out, so an input may ask for them to be made good: what is behind them must hold by itself.
//!
//! ```text
//! segment    recovery ends; what it counts it can read, all of it covered; a second recovery finds the same; logged anew, it comes back
//! key file   refused or read, and never more keys than bytes
//! copy       read to its end: frames, or errors; never more of either than bytes
//! ```

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use openwit_operators::batch::{NormalizedBatch, Sourced};
use openwit_operators::epoch::Epoch;
use openwit_operators::wal_commit::disk::{Access, BLOCK_BYTES, Disk};
use openwit_operators::wal_commit::long_term::cleanup::Found;
use openwit_operators::wal_commit::long_term::format::{Block, MARK_BYTES};
use openwit_operators::wal_commit::long_term::read::{Frames, Selection};
use openwit_operators::wal_commit::long_term::shelf::{Draft, Shelf};
use openwit_operators::wal_commit::long_term::{Name, read};
use openwit_operators::wal_commit::memory::Memory;
use openwit_operators::wal_commit::recovery::Recovery;
use openwit_operators::wal_commit::{Config, Error, Log, frame, keys, segment};

use super::{Body, Meter, Stage};

/// The number of the segment in the golden files.
const SEGMENT: u64 = 1;
/// A forged meta is small and can name as many offsets as it has bytes.
static RECOVER: Stage = Stage { name: "recover a segment", bytes: 24 << 20, bytes_per_byte: 64 };
static KEYS: Stage = Stage { name: "read a key file", bytes: 16 << 10, bytes_per_byte: 64 };
// A block is read into room for the usual one.
static COPY: Stage = Stage { name: "read a long-term copy", bytes: 2 << 20, bytes_per_byte: 64 };

/// Copies that become larger are not tried: decompressing is what takes the time, and none of it is ours.
const EXPANDED_BYTES_MAX: usize = 32 << 20;

/// A body for all three, chosen by an input's first byte.
pub fn body() -> Box<dyn Body> {
    Box::new(LogFiles)
}

struct LogFiles;

impl Body for LogFiles {
    fn run(&mut self, input: &[u8], meter: &mut Meter) {
        let Some((&kind, bytes)) = input.split_first() else { return };
        let is_repaired = kind & 0x80 != 0;
        match kind & 0x7f {
            0 => check_segment(segment_file(bytes, is_repaired), meter),
            1 => check_keys(bytes.to_vec(), is_repaired, meter),
            2 => check_copy(bytes.to_vec(), is_repaired, meter),
            _ => {}
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The file of which `bytes` are the first 64, and then all from the first frame on.
fn segment_file(bytes: &[u8], is_repaired: bool) -> Vec<u8> {
    let block = BLOCK_BYTES as usize;
    let (header, frames) = bytes.split_at(bytes.len().min(64));
    let mut file = header.to_vec();
    file.resize(block, 0);
    file.extend_from_slice(frames);
    file.resize(file.len().next_multiple_of(block).max(segment::BYTES_MIN as usize), 0);
    if is_repaired {
        put(&mut file, 16, &SEGMENT.to_le_bytes());
        let crc = crc32c::crc32c(&file[12..64]);
        put(&mut file, 8, &crc.to_le_bytes());
        repair_frames(&mut file[..block + frames.len()], block);
    }
    file
}

/// Makes good the place and the checksums of all that begins like a frame.
fn repair_frames(file: &mut [u8], start: usize) {
    let mut at = start;
    while at + frame::HEADER_BYTES <= file.len() {
        let end = |file: &[u8]| {
            at as u64 + (64 + u64::from(u32_at(file, at + 40)) + u64::from(u32_at(file, at + 44))).next_multiple_of(8)
        };
        if u32_at(file, at) != frame::MAGIC {
            at += frame::ALIGNMENT as usize;
            continue;
        }
        put(file, at + 8, &SEGMENT.to_le_bytes());
        put(file, at + 16, &(at as u64).to_le_bytes());
        let end = end(file);
        if end <= file.len() as u64 {
            let payload = at + 64 + u32_at(file, at + 40) as usize;
            let (meta, rest) = (crc32c::crc32c(&file[at + 64..payload]), crc32c::crc32c(&file[payload..end as usize]));
            put(file, at + 48, &meta.to_le_bytes());
            put(file, at + 52, &rest.to_le_bytes());
        }
        let crc = crc32c::crc32c(&file[at + 8..at + 64]);
        put(file, at + 4, &crc.to_le_bytes());
        at = if end <= file.len() as u64 { end as usize } else { at + frame::ALIGNMENT as usize };
    }
}

fn config() -> Config {
    Config { segment_bytes: segment::BYTES_MIN, bytes_max: 64 * segment::BYTES_MIN, ..Config::new("memory") }
}

fn open(disk: &Memory, epoch: u64) -> Result<(Log, Recovery), Error> {
    Log::open_on(Arc::new(disk.clone()), config(), Epoch(epoch))
}

fn check_segment(file: Vec<u8>, meter: &mut Meter) {
    let disk = Memory::default();
    disk.create(&segment::segment_name(SEGMENT), 0, Access::Bytes).expect("the disk has no faults");
    let size = file.len();
    disk.edit(&segment::segment_name(SEGMENT), |bytes| *bytes = file);
    let opened = meter.measure(&RECOVER, size, || {
        let (log, recovery) = open(&disk, 1_790_000_001_000)?;
        let frames = recovery.frames().count() + recovery.raw_frames(Epoch(u64::MAX)).count();
        Ok::<_, Error>((log, recovery, frames))
    });
    let (log, recovery, count) = match opened {
        Ok(opened) => opened,
        Err(Error::Version { .. }) => return,
        Err(error) => panic!("a segment keeps a log from opening: {error}"),
    };
    assert_eq!(count as u64, recovery.report.frames, "frames that were counted can be read");
    let frames: Vec<_> = recovery.frames().map(|frame| frame.expect("a frame that was counted is whole")).collect();
    for frame in &frames {
        let range = frame.batch.coverage.range();
        let covered = recovery.coverage.get(&frame.batch.coverage.partition);
        let is_covered = range.is_empty() || covered.is_some_and(|covered| covered.missing_in(range).is_empty());
        assert!(is_covered, "{:?} is not in what recovery covers", frame.batch.coverage);
    }
    for frame in recovery.raw_frames(Epoch(u64::MAX)) {
        let sourced = frame.expect("a frame that was counted is whole").batch;
        let batch = sourced.batch();
        let kind = if matches!(sourced, Sourced::Read(_)) { &recovery.raw } else { &recovery.recalled };
        let covered = kind.get(&batch.partition);
        let is_covered = batch.start == batch.end || covered.is_some_and(|covered| covered.overlaps(&(batch.start..batch.end)));
        assert!(is_covered, "{} to {} of {} are not in what recovery covers", batch.start, batch.end, batch.partition);
    }
    let records: usize = frames.iter().map(|frame| frame.batch.records.len()).sum();
    let keys = recovery.keys().filter(Result::is_ok).count();
    assert!(keys <= records, "{keys} keys of {records} records");
    drop(log);
    let (_log, again) = open(&disk, 1_790_000_002_000).unwrap_or_else(|error| panic!("the log does not open again: {error}"));
    assert_eq!(
        (&again.coverage, again.report.frames),
        (&recovery.coverage, recovery.report.frames),
        "a second recovery finds the same"
    );
    check_logged_anew(frames.iter().map(|frame| (frame.epoch, &frame.batch)).collect());
}

/// What can be read can be written, and then reads the same.
fn check_logged_anew(batches: Vec<(Epoch, &NormalizedBatch)>) {
    let disk = Memory::default();
    let (mut log, _) = open(&disk, 1).expect("an empty disk is a log");
    let mut written = Vec::new();
    for (epoch, batch) in batches {
        // Epochs and what is covered twice are the order of a log's own life, which a forged one need not have had.
        match log.append(Epoch(1_790_000_000_000), batch) {
            Ok(_) => written.push((epoch, batch)),
            Err(Error::FrameTooLarge { .. } | Error::Full { .. }) => {}
            Err(error) => panic!("a frame that was read cannot be written: {error}"),
        }
    }
    log.sync().expect("the disk has no faults");
    drop(log);
    let (_log, recovery) = open(&disk, 1_790_000_001_000).expect("the log opens again");
    let read: Vec<_> = recovery.frames().map(|frame| frame.expect("what was synced is whole").batch).collect();
    assert_eq!(read.len(), written.len(), "frames that were synced");
    for (read, (_, written)) in read.iter().zip(written) {
        assert_eq!(content(read), content(written), "a batch reads as it was written");
    }
}

fn content(batch: &NormalizedBatch) -> (String, String, Vec<(i64, i64, u128, &[u8])>) {
    let record = |record: &_| {
        let openwit_operators::batch::Record { offset, timestamp_ms, key, .. } = *record;
        (offset, timestamp_ms, key, batch.payload(record))
    };
    let about = format!("{:?} {:?}", batch.coverage, batch.schema);
    (batch.group.to_string(), about, batch.records.iter().map(record).collect())
}

fn check_keys(mut bytes: Vec<u8>, is_repaired: bool, meter: &mut Meter) {
    if is_repaired && bytes.len() >= 48 {
        put(&mut bytes, 16, &SEGMENT.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[12..]);
        put(&mut bytes, 8, &crc.to_le_bytes());
    }
    let size = bytes.len();
    let count = meter.measure(&KEYS, size, || match keys::File::parse(bytes, SEGMENT) {
        Ok(Some(file)) => file.keys().take(size + 1).count(),
        Ok(None) | Err(_) => 0,
    });
    assert!(count <= size, "more keys than bytes");
}

/// Makes good the place and the checksums of all that begins like a mark, and of what is compressed behind it.
fn repair_copy(copy: &mut [u8]) {
    let skip = [0x50, 0x2a, 0x4d, 0x18, MARK_BYTES as u8 - 8, 0, 0, 0];
    let mut at = 0;
    while at + MARK_BYTES <= copy.len() {
        if copy[at..at + 8] != skip {
            at += 1;
            continue;
        }
        put(copy, at + 24, &SEGMENT.to_le_bytes());
        if at > 0 {
            put(copy, at + 32, &(at as u64).to_le_bytes());
        }
        let mut end = at + MARK_BYTES;
        if copy[at + 8..at + 16] == *b"OWLTBLCK" {
            let stored = end..end.saturating_add(u32_at(copy, at + 40) as usize);
            if let Some(stored) = copy.get(stored.clone()) {
                let crc = crc32c::crc32c(stored);
                end += stored.len();
                put(copy, at + 20, &crc.to_le_bytes());
            }
        }
        let crc = crc32c::crc32c(&copy[at + 20..at + MARK_BYTES]);
        put(copy, at + 16, &crc.to_le_bytes());
        at = end;
    }
}

/// What all blocks that begin anywhere become when they are decompressed.
fn expanded_bytes(copy: &[u8]) -> usize {
    let mut total = 0;
    for at in 0..copy.len().saturating_sub(MARK_BYTES) {
        let Some(block) = Block::decode(&copy[at..], SEGMENT, at as u64) else { continue };
        let stored = at + MARK_BYTES..(at + MARK_BYTES).saturating_add(block.stored_bytes as usize);
        let Some(decoder) = copy.get(stored).and_then(|stored| zstd::stream::read::Decoder::with_buffer(stored).ok()) else {
            continue;
        };
        let limit = u64::from(block.frame_bytes).min(EXPANDED_BYTES_MAX as u64) + 1;
        // What is damaged counts as far as it goes.
        let mut decoder = decoder.take(limit);
        while let Ok(bytes) = decoder.read(&mut [0; 4096]) {
            if bytes == 0 {
                break;
            }
            total += bytes;
        }
    }
    total
}

fn check_copy(mut bytes: Vec<u8>, is_repaired: bool, meter: &mut Meter) {
    if is_repaired {
        repair_copy(&mut bytes);
    }
    let size = bytes.len();
    // What is really compressed is memory well spent; more of it than a segment holds is for another machine.
    let expanded = size + expanded_bytes(&bytes);
    if expanded > EXPANDED_BYTES_MAX {
        return;
    }
    let name = Name { first: Epoch(0), node: "n".into(), segment: SEGMENT, last: Epoch(u64::MAX) };
    let found = Found { name, path: "copy".into(), bytes: size as u64 };
    let shelf: Arc<dyn Shelf> = Arc::new(OneCopy(bytes.into()));
    let read = meter.measure(&COPY, expanded, || {
        let _ = read::frame_bytes(shelf.as_ref(), &found);
        Frames::new(shelf.clone(), vec![found.clone()], Selection::default()).take(size + 2).filter(Result::is_ok).count()
    });
    assert!(read <= size, "more frames than bytes");
}

/// A shelf with one copy.
struct OneCopy(Bytes);

impl Shelf for OneCopy {
    fn place(&self, path: &str) -> String {
        path.to_owned()
    }
    fn list(&self) -> io::Result<Vec<Found>> {
        Ok(Vec::new())
    }
    fn bytes(&self, _path: &str) -> io::Result<Option<u64>> {
        Ok(Some(self.0.len() as u64))
    }
    fn create(&self, _path: &str) -> io::Result<Box<dyn Draft + '_>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read(&self, _path: &str, range: Range<u64>) -> io::Result<Bytes> {
        let end = range.end.min(self.0.len() as u64);
        Ok(self.0.slice(range.start.min(end) as usize..end as usize))
    }
    fn remove(&self, _path: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn cancel(&self) {}
}
