//! `capture`: a tee at any edge that keeps what passes there in files, to be replayed.
//!
//! # In
//! Batches of a type that is [`Captured`]: `RawBatch`, `NormalizedBatch` or `UniqueBatch`. Nothing is exchanged.
//!
//! # Out
//! The same batches, unchanged, in their epochs.
//!
//! # Holds
//! The capability of an epoch until its batches are in a file. Batches themselves are passed on at once, so that the operators behind work
//! on them meanwhile; only while the writer is more than `queue_bytes_max` behind they are held back. A batch at the writer keeps its share
//! of the memory budget: a slow disk slows the source down.
//!
//! # Closes when
//! The input frontier is empty and all is written.
//!
//! # Fails when
//! A sync fails, or a write does so again and again: a fault is raised, capabilities are kept. A full disk is no failure: it is tried
//! again until there is room, told every 5 s and counted.
//!
//! # Invariants
//! - The frontier passes an epoch only when all batches that all workers handed over in it are in a file: what is durable behind an edge
//!   outlives the death of this process in its capture too. (The death of the machine may take the last 8 MiB.)
//! - A file's batches are in the order of epoch, partition, offset: the number of workers changes nothing of what is captured.
//! - Epochs and the cuts between batches are kept as they were.
//!
//! The bytes on disk are described in `docs/capture-format.md` and held by the golden files beside this module.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::place::Place;

mod content;
pub mod format;
pub mod read;
pub mod recorder;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use content::{Captured, Kind, Scratch};
pub use read::{Batches, Files, Packed, Packs, Recorded, Selection, Summary};
pub use writer::{Port, Writer};

/// The stage's name in config, metrics and faults.
pub const NAME: &str = "capture";

/// How a capture is written. [`Config::check`] says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the files lie; created if missing. One process at a time, and one edge.
    pub directory: PathBuf,
    /// A file of this size is ended. Default 256 MiB. Too small: many files; too large: the oldest is removed in large steps.
    pub file_bytes_max: u64,
    /// All files together; the oldest are removed, and counted. Default 16 GiB.
    pub total_bytes_max: u64,
    /// Bytes handed to the writer and not yet written, from which on batches are held back. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// How long an epoch may wait for its block to fill, and with it what waits for its frontier. Default 100. Too small: little is
    /// compressed together.
    pub flush_ms: u64,
    /// Level of zstd. Default 1, which costs least of those that compress well.
    pub compression_level: i32,
}

impl Config {
    /// The defaults, for a capture in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Config {
            directory: directory.into(),
            file_bytes_max: 256 << 20,
            total_bytes_max: 16 << 30,
            queue_bytes_max: 64 << 20,
            flush_ms: 100,
            compression_level: 1,
        }
    }

    /// The first value that cannot work.
    pub fn check(&self) -> Result<(), Error> {
        let levels = zstd::compression_level_range();
        let problem = if self.file_bytes_max == 0 || self.total_bytes_max / 2 < self.file_bytes_max {
            let Config { file_bytes_max, total_bytes_max, .. } = self;
            format!(
                "total_bytes_max is {total_bytes_max}: it must hold at least two files of file_bytes_max, {file_bytes_max} bytes"
            )
        } else if !levels.contains(&self.compression_level) {
            format!("compression_level is {}: it must be within {} and {}", self.compression_level, levels.start(), levels.end())
        } else {
            return Ok(());
        };
        Err(Error::Config { problem })
    }
}

/// Counters, written by the writer and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches captured.
    pub batches: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Blocks written.
    pub blocks: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Files ended.
    pub files: AtomicU64,
    /// Files removed because of `total_bytes_max`.
    pub removed: AtomicU64,
    /// Bytes of the files there are.
    pub total_bytes: AtomicU64,
    /// Operations tried again after they had failed.
    pub retries: AtomicU64,
}

impl Stats {
    fn note(&self, progress: recorder::Progress) {
        let recorder::Progress { blocks, written_bytes, files, removed, total_bytes } = progress;
        let values = [blocks, written_bytes, files, removed, total_bytes];
        let counters = [&self.blocks, &self.written_bytes, &self.files, &self.removed, &self.total_bytes];
        counters.iter().zip(values).for_each(|(counter, value)| counter.store(value, Ordering::Relaxed));
    }

    fn note_batch(&self, records: usize) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
    }
}

/// What a damaged part held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost(pub format::Contents);

fn lost(lost: &Option<Lost>) -> String {
    lost.map_or("what it held is unknown".into(), |Lost(format::Contents { first, last, batches, records, .. })| {
        format!("it held {batches} batches with {records} records of the epochs {first} to {last}")
    })
}

/// Why a capture could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("capture configuration: {problem}")]
    Config {
        /// What and why.
        problem: String,
    },
    /// The directory cannot be created.
    #[error("failed to open the capture directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Box<crate::wal_commit::Error>,
    },
    /// Another process has the directory.
    #[error("capture directory {} is in use by another process or edge; give each its own", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file was written by a program newer than this one. It is left as it is.
    #[error("capture {} has format version {found}, this program reads up to {known}; read it with the program that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// There is no capture in the directory.
    #[error("there is no capture in {}: its files are called {}*{}", path.display(), recorder::PREFIX, recorder::SUFFIX)]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// The capture is of another edge than it is wanted for.
    #[error("capture {} holds {found} batches, and {wanted} batches are wanted: replay it at the edge it was taken from", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: Kind,
        /// What was asked for.
        wanted: Kind,
    },
    /// The batch breaks the rules of its type and could not be read back.
    #[error("a batch of {partition}, offsets {start} to {end}, cannot be captured: {problem}")]
    Batch {
        /// Its partition.
        partition: PartitionKey,
        /// First offset it accounts for.
        start: i64,
        /// One past the last one.
        end: i64,
        /// The broken rule.
        problem: &'static str,
    },
    /// Part of a file is damaged; what follows is read.
    #[error("capture {}, bytes {} to {}: damaged; {}", path.display(), bytes.start, bytes.end, lost(lost_contents))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damaged bytes.
        bytes: Range<u64>,
        /// What they held, where that can still be read.
        lost_contents: Option<Lost>,
    },
    /// The end of a file is missing: its process died, or is still writing.
    #[error("capture {} has no end: from byte {at} on nothing whole follows, {bytes} bytes are left out", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// Where its last whole block ends.
        at: u64,
        /// Bytes behind that.
        bytes: u64,
    },
    /// A block whose checksum is right holds what no writer wrote.
    #[error("capture {}, block at byte {at}: malformed; the last {batches} of its batches are left out", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the block begins.
        at: u64,
        /// Batches that cannot be read.
        batches: u64,
    },
    /// A file operation failed.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A sync failed: what is on the disk is unknown.
    #[error("failed to sync {}: what is on the disk is unknown", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl Error {
    fn io(action: &'static str, path: PathBuf, source: std::io::Error) -> Self {
        Error::Io { action, path, source }
    }

    /// True if part of a capture is missing and what follows it is read all the same.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Torn { .. } | Error::Malformed { .. })
    }

    /// True if it failed for want of space only.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::Io { source, .. } if crate::wal_commit::disk::is_full(source))
    }

    /// True if the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Error::Io { .. })
    }
}

/// What the operator needs from outside.
pub struct Ports<B: Captured> {
    /// The writer of this process for this edge.
    pub writer: Writer<B>,
}

impl<B: Captured> Clone for Ports<B> {
    fn clone(&self) -> Self {
        Ports { writer: self.writer.clone() }
    }
}

/// Passes batches on, and writes them to files.
pub fn capture<'s, B: Captured>(stream: Stream<'s, Epoch, Vec<B>>, ports: Ports<B>, place: Place) -> Stream<'s, Epoch, Vec<B>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.worker().sync_activator_for(address.to_vec());
    let mut input = builder.new_input(stream, Pipeline);
    let (output, passed) = builder.new_output::<Vec<B>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<B>>>::from(output);
    builder.build(move |_capabilities| {
        // The activation fails only when the worker is gone.
        let mut port = ports.writer.port(place.worker, place.workers, move || {
            let _ = activator.activate();
        });
        let mut unwritten: BTreeMap<Epoch, Capability<Epoch>> = BTreeMap::new();
        let mut held_back: VecDeque<(Epoch, Vec<B>)> = VecDeque::new();
        move |frontiers| {
            // 1. Hand batches to the writer.
            input.for_each(|capability, batches| {
                let held = capability.retain_least(0).expect("every batch is sent under a capability");
                let epoch = *held.time();
                unwritten.entry(epoch).or_insert(held);
                port.append(epoch, batches);
                held_back.push_back((epoch, std::mem::take(batches)));
            });
            // 2. Tell it which epochs are complete here.
            port.advance(frontiers[0].frontier().first().copied());
            // 3. Pass them on, unless the writer is too far behind.
            let written = port.written();
            let mut output = output.activate();
            while let Some((epoch, batches)) = held_back.pop_front() {
                if epoch >= written && !port.has_room() {
                    held_back.push_front((epoch, batches));
                    break;
                }
                let mut session = output.session(&unwritten[&epoch]);
                session.give_iterator(batches.into_iter());
                session.flush();
            }
            // 4. Let go of the epochs that are in the files.
            let least_held_back = held_back.iter().map(|(epoch, _)| *epoch).min();
            let done = least_held_back.map_or(written, |least| least.min(written));
            unwritten = unwritten.split_off(&done);
        }
    });
    passed
}
