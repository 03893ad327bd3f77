//! Files of captures.
//!
//! Checksums keep nearly every mutation out, so an input may ask for them to be made good: what is behind them must hold by itself.
//!
//! ```text
//! file      read to its end, as every kind of batch: batches, or errors; never more of either than bytes; a summary of it can be made
//! batch     what was read can be captured anew, and reads the same
//! unended   the writer makes a file of it that is whole, and holds what could be read before
//! ```

use std::fmt::Debug;
use std::io::Read;
use std::sync::Arc;

use openwit_operators::batch::{NormalizedBatch, RawBatch, UniqueBatch};
use openwit_operators::capture::format::{Block, MARK_BYTES};
use openwit_operators::capture::recorder::Recorder;
use openwit_operators::capture::{Captured, Config, Files, Recorded, Selection};
use openwit_operators::wal_commit::disk::{Access, Disk};
use openwit_operators::wal_commit::memory::Memory;

use super::{Body, Meter, Stage};

// A block is read into room for the usual one, and looked for in a window. A record in memory is ten times what it takes up in a file.
static READ: Stage = Stage { name: "read a capture", bytes: 3 << 20, bytes_per_byte: 64 };

/// Files that become larger are not tried: decompressing is what takes the time, and none of it is ours.
const EXPANDED_BYTES_MAX: usize = 8 << 20;
const NAME: &str = "capture-00000000000000001000-00000000.owcap";

/// A body for files that were ended and files that were not, chosen by an input's first byte.
pub fn body() -> Box<dyn Body> {
    Box::new(Captures)
}

/// The golden files, as they are and to be repaired, ended or not.
pub fn normal() -> Vec<Vec<u8>> {
    let files = [
        &include_bytes!("../../operators/capture/golden/raw-v1.owcap")[..],
        include_bytes!("../../operators/capture/golden/normalized-v1.owcap"),
    ];
    let kinds = [0, 1, 0x80, 0x81];
    files.iter().flat_map(|file| kinds.map(|kind| [&[kind][..], file].concat())).collect()
}

struct Captures;

impl Body for Captures {
    fn run(&mut self, input: &[u8], meter: &mut Meter) {
        let Some((&kind, bytes)) = input.split_first() else { return };
        let mut file = bytes.to_vec();
        if kind & 0x80 != 0 {
            repair(&mut file);
        }
        let expanded = file.len() + expanded_bytes(&file);
        if expanded > EXPANDED_BYTES_MAX {
            return;
        }
        check::<RawBatch>(&file, expanded, meter);
        check::<NormalizedBatch>(&file, expanded, meter);
        check::<UniqueBatch>(&file, expanded, meter);
        if kind & 0x7f == 1 {
            check_unended(&file);
        }
    }
}

/// Makes good the place and the checksums of all that begins like a mark, and of what is compressed behind it.
fn repair(file: &mut [u8]) {
    let skip = [0x50, 0x2a, 0x4d, 0x18, MARK_BYTES as u8 - 8, 0, 0, 0];
    let mut at = 0;
    while at + MARK_BYTES <= file.len() {
        if file[at..at + 8] != skip {
            at += 1;
            continue;
        }
        let mut end = at + MARK_BYTES;
        if at > 0 {
            file[at + 24..at + 32].copy_from_slice(&(at as u64).to_le_bytes());
        }
        if [*b"OWCPBLCK", *b"OWCPINDX"].iter().any(|tag| file[at + 8..at + 16] == *tag) {
            let stored_bytes = file[at + 32..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            if let Some(stored) = file.get(end..end.saturating_add(stored_bytes as usize)) {
                let crc = crc32c::crc32c(stored);
                end += stored.len();
                file[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let crc = crc32c::crc32c(&file[at + 20..at + MARK_BYTES]);
        file[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

/// What all blocks that begin anywhere become when they are decompressed.
fn expanded_bytes(file: &[u8]) -> usize {
    let mut total = 0;
    for at in 0..file.len().saturating_sub(MARK_BYTES) {
        let Some(block) = Block::decode(&file[at..], at as u64) else { continue };
        let stored = at + MARK_BYTES..(at + MARK_BYTES).saturating_add(block.stored_bytes as usize);
        let decoder = file.get(stored).and_then(|stored| zstd::stream::read::Decoder::with_buffer(stored).ok());
        let Some(decoder) = decoder else { continue };
        // What is damaged counts as far as it goes.
        let mut decoder = decoder.take(block.contents.bytes.min(EXPANDED_BYTES_MAX as u64) + 1);
        while let Ok(bytes) = decoder.read(&mut [0; 4096]) {
            if bytes == 0 {
                break;
            }
            total += bytes;
        }
    }
    total
}

fn disk_with(name: &str, file: &[u8]) -> Memory {
    let disk = Memory::default();
    disk.create(name, 0, Access::Bytes).expect("the disk has no faults");
    disk.edit(name, |bytes| *bytes = file.to_vec());
    disk
}

fn files(disk: &Memory) -> Files {
    Files::on(Arc::new(disk.clone())).expect("the disk has no faults")
}

/// All that can be read, and how many errors beside it.
fn read<B: Captured>(disk: &Memory) -> (Vec<Recorded<B>>, usize) {
    let (mut batches, mut errors) = (Vec::new(), 0);
    for read in files(disk).batches::<B>(Selection::default()) {
        match read {
            Ok(recorded) => batches.push(recorded),
            Err(_) => errors += 1,
        }
    }
    (batches, errors)
}

/// What was read, as text: the batches have no order of their own.
fn text<B: Captured + Debug>(batches: &[Recorded<B>]) -> String {
    format!("{batches:?}")
}

fn check<B: Captured + Debug>(file: &[u8], expanded: usize, meter: &mut Meter) {
    let disk = disk_with(NAME, file);
    let (count, errors) = meter.measure(&READ, expanded, || {
        // One after the other, as the source takes them.
        let (mut count, mut errors) = (0, 0);
        for read in files(&disk).batches::<B>(Selection::default()) {
            match read {
                Ok(_) => count += 1,
                Err(_) => errors += 1,
            }
        }
        (count, errors)
    });
    assert!(count <= expanded && errors <= file.len() + 1, "{count} batches and {errors} errors of {} bytes", file.len());
    if let Ok(summaries) = files(&disk).summaries() {
        assert_eq!(summaries.len(), 1, "one file has one summary");
    }
    let (mut batches, _) = read::<B>(&disk);
    // A file that was forged may go back in time.
    batches.sort_by_key(|recorded| recorded.epoch);
    let anew = Memory::default();
    let mut recorder = recorder::<B>(&anew).expect("an empty disk is a capture");
    for Recorded { epoch, batch } in &batches {
        recorder.push(*epoch, batch).expect("a batch that was read can be captured");
    }
    recorder.finish().expect("the disk has no faults");
    let (back, errors) = read::<B>(&anew);
    assert!(errors == 0 && text(&back) == text(&batches), "batches come back as they were");
}

fn recorder<B: Captured>(disk: &Memory) -> Result<Recorder<B>, openwit_operators::capture::Error> {
    Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, Config::new("memory"))
}

fn check_unended(file: &[u8]) {
    let name = format!("{NAME}.part");
    let disk = disk_with(&name, file);
    let (before, _) = read::<RawBatch>(&disk);
    if recorder::<RawBatch>(&disk).is_err() {
        // Of a newer version.
        return;
    }
    assert!(disk.contents(&name).is_none(), "a file is ended or removed");
    let (after, _) = read::<RawBatch>(&disk);
    // A forged index may have led past blocks that a new one lists.
    let kept = &after[after.len().saturating_sub(before.len())..];
    assert!(text(kept) == text(&before), "what could be read before the file was ended can be read behind it");
}
