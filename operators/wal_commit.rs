//! `wal_commit`: makes every batch durable in the short-term write-ahead log before its offsets may be committed.
//!
//! # In
//! `UniqueBatch`, on the worker that decoded it; or, where the log stands before `normalize` (ADR 0026), `Sourced`, on the worker that
//! read it: messages, and those that were read once more for their keys, so that the log holds all that the dedup window goes by. Nothing is
//! exchanged.
//!
//! # Out
//! `DurableBatch`, or `Sourced`: the same batches, once their frames are synced (or written, with [`Sync::Every`]). Where storage lags and half of the
//! memory budget is taken by what is behind the log, the payloads are let go and `SpilledBatches` says where the frames lie: the disk is
//! the buffer (design D-9), up to `bytes_max`, and acknowledging goes on.
//!
//! # Holds
//! The capability of an epoch while one of its frames is not yet acknowledged. The log itself holds each batch until it is
//! written, the keys of the segment being written, and the list of segments; see [`log`].
//!
//! # Closes when
//! The input frontier is empty and every ticket came back.
//!
//! # Fails when
//! A write or a sync fails: the log is poisoned, no ticket comes back any more, and a fault is raised. A full disk, or a log at
//! `bytes_max`, is no failure: the writer waits until segments are released.
//!
//! # Invariants
//! ```text
//! W-1  A ticket comes back only after a sync that covers all its frames (`Sync::OnWrite`).
//! W-2  end >= written >= synced in the active segment; a sealed segment is synced to its end before its successor exists.
//! W-3  What recovery yields is one unbroken run of the frames appended, short of reported damage: never a frame behind an
//!      unsynced hole, never a frame of a segment's former life.
//! W-4  A segment is reused only when all its frames are released, its dedup keys are synced in a file of their own and, with a
//!      long-term log, its copy is durable there.
//! W-5  After a failed sync nothing is written and nothing acknowledged.
//! W-6  Messages as they came enter the graph, again and again, in the epoch in which they were logged.
//! ```
//!
//! One log and one writer thread serve all timely workers of a process:
//!
//! ```text
//! worker 0 --job--> +-------+   one write per MiB,    +--------+  sealed keys  +--------+
//! worker 1 --job--> | queue | ----------------------> | writer | ------------> | keeper |
//!    ...            +-------+   one sync per group    +--------+ <--- saved -- +--------+
//!     ^                                                   |
//!     +----------------- acks, per worker ----------------+ ------ sealed segments ------> copier ---> long-term log
//! ```
//!
//! The bytes on disk are described in `docs/wal-format.md` and held by the golden files beside this module.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::{DurableBatch, Sourced, SpilledBatches, UniqueBatch};
use crate::budget::{Budget, Charge};
use crate::epoch::Epoch;

mod buffer;
pub(crate) mod codec;
pub mod disk;
mod engine;
mod flush;
pub mod frame;
pub mod inspect;
pub mod keys;
pub mod locate;
pub mod log;
pub mod logged;
pub mod long_term;
pub mod mark;
pub mod memory;
pub mod ordered;
pub(crate) mod raw;
pub mod read;
pub mod recovery;
pub mod replay;
pub mod reread;
pub mod segment;
mod spilled;
pub mod writer;

#[cfg(test)]
mod tests;

pub use log::Log;
pub use logged::Logged;
pub use writer::{Ack, Appended, Job, Port, Writer};

/// The stage's name in config, metrics and faults.
pub const NAME: &str = "wal_commit";

/// When appended frames are synced, and with that when their tickets come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before every acknowledgement (`sync_on_write: true`). Nothing acknowledged is ever lost.
    OnWrite,
    /// At least this often. Acknowledged after the write: a machine that dies loses up to this long, a process that dies nothing.
    Every(Duration),
}

/// What the log needs to know. [`Config::check`] says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the segments lie; created if missing. One process at a time.
    pub directory: PathBuf,
    /// Size of a segment file. Too small: a sync and a rename more often; too large: space is released in large steps.
    pub segment_bytes: u64,
    /// Bound of all segment files together, free ones included; at least two segments. When reached the writer waits.
    /// It must exceed what is in flight between source and publication, or an epoch could wait for its own release.
    pub bytes_max: u64,
    /// When frames are synced.
    pub sync: Sync,
    /// How long dedup keys outlive their segment, by epoch and by record time; 0 keeps none. A segment with messages as they came is kept
    /// itself for so long, unless room is needed: their keys are found in it.
    pub keys_retention_ms: u64,
    /// Bound of all key files together. When reached the oldest are dropped, counted in `Stats::keys_dropped`: a duplicate that
    /// old may pass after a restart.
    pub keys_bytes_max: u64,
    /// How long a published segment is kept, measured in epochs; 0 makes it free at once. A segment that is needed, because of
    /// `bytes_max` or of a full disk, is made free earlier.
    pub retention_ms: u64,
    /// The long-term log, if there is one: then a segment is reused only when its copy is there.
    pub long_term: Option<long_term::Config>,
    /// Bypass the page cache where the file system can: several times the throughput on a busy machine. False only where it is
    /// known to misbehave.
    pub direct_io: bool,
}

impl Config {
    /// The defaults of `processing.wal` for a log in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Config {
            directory: directory.into(),
            segment_bytes: 128 << 20,
            bytes_max: 10 << 30,
            sync: Sync::OnWrite,
            keys_retention_ms: 3_600_000,
            keys_bytes_max: 1 << 30,
            retention_ms: 0,
            long_term: None,
            direct_io: true,
        }
    }

    /// The first relation between the values that cannot work.
    pub fn check(&self) -> Result<(), Error> {
        let problem = if self.segment_bytes < segment::BYTES_MIN || !self.segment_bytes.is_multiple_of(disk::BLOCK_BYTES) {
            format!("segment_bytes is {}: it must be a multiple of 4096, at least {}", self.segment_bytes, segment::BYTES_MIN)
        } else if self.bytes_max / 2 < self.segment_bytes {
            format!("bytes_max is {}: it must hold at least two segments of {} bytes", self.bytes_max, self.segment_bytes)
        } else {
            return Ok(());
        };
        Err(Error::Config { problem })
    }
}

/// Why the log could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("write-ahead log configuration: {problem}")]
    Config {
        /// What and why.
        problem: String,
    },
    /// Another process has the directory.
    #[error("write-ahead log {} is in use by another process; give each process its own directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The file was written by a program newer than this one. It is left as it is.
    #[error("{} has format version {found}, this program reads up to {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// No room: the disk is full or the log has reached `bytes_max`. Nothing changed; the same call succeeds once there is room.
    #[error("no room in the write-ahead log: {cause}")]
    Full {
        /// What ran out.
        cause: String,
    },
    /// The frame would not fit into an otherwise empty log.
    #[error("a frame of {bytes} bytes cannot be stored: bytes_max is {bytes_max}")]
    FrameTooLarge {
        /// The frame's length.
        bytes: u64,
        /// The configured bound.
        bytes_max: u64,
    },
    /// The batch breaks the rules of `NormalizedBatch` and could not be read back.
    #[error("batch cannot be logged: {problem}")]
    Batch {
        /// The broken rule.
        problem: &'static str,
    },
    /// A frame that should be whole is not.
    #[error("{}, byte {at}: {source}", path.display())]
    Frame {
        /// The segment.
        path: PathBuf,
        /// The frame's first byte.
        at: u64,
        /// What is wrong with it.
        source: frame::Error,
    },
    /// Part of a copy in the long-term log is damaged, or its end is missing.
    #[error("{}, bytes {} to {}: damaged or cut short; {}", path.display(), bytes.start, bytes.end, held(*frames))]
    Copy {
        /// The copy.
        path: PathBuf,
        /// Its damaged bytes; empty where the end is missing.
        bytes: std::ops::Range<u64>,
        /// Frames they held, where that can still be read.
        frames: Option<u32>,
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
    /// An earlier write or sync failed.
    #[error("the write-ahead log is closed after a failed write or sync")]
    Poisoned,
}

impl Error {
    /// True if the same call can succeed later, once space was released.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::Full { .. })
    }
}

fn held(frames: Option<u32>) -> String {
    frames.map_or("what it held is unknown".into(), |frames| format!("it held {frames} frames"))
}

impl From<(&'static str, PathBuf, std::io::Error)> for Error {
    fn from((action, path, source): (&'static str, PathBuf, std::io::Error)) -> Self {
        Error::Io { action, path, source }
    }
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The writer of this process's log.
    pub writer: Writer,
    /// The memory budget, which decides what stays in memory.
    pub budget: Arc<Budget>,
    /// Counters of the backlog.
    pub backlog: Arc<replay::Stats>,
}

/// Streams without data, whose frontiers the operator watches.
pub struct Frontiers<'s> {
    /// Passes an epoch when all its rejects are in the dead letter. An epoch is written only then: what is durable here is skipped
    /// after a restart, and must not take an unwritten reject with it.
    pub dead_letter: Stream<'s, Epoch, Vec<()>>,
    /// Passes what is published: its segments may be reused.
    pub published: Stream<'s, Epoch, Vec<()>>,
}

/// What the log takes, and what becomes of it.
pub trait Loggable: Into<Logged> + Clone + 'static {
    /// The batch, once it is durable.
    type Durable: Clone + 'static;
    /// A batch that the log has given back, with its share of the memory behind the log.
    fn durable(batch: Logged, position: read::Position, charge: Charge) -> Self::Durable;
}

/// The log gives back what it was given.
const GIVEN_BACK: &str = "a job comes back with the batches it had";

impl From<UniqueBatch> for Logged {
    fn from(UniqueBatch(batch): UniqueBatch) -> Self {
        Logged::Normalized(batch)
    }
}

impl Loggable for UniqueBatch {
    type Durable = DurableBatch;
    fn durable(batch: Logged, position: read::Position, charge: Charge) -> DurableBatch {
        let Logged::Normalized(batch) = batch else { panic!("{GIVEN_BACK}") };
        DurableBatch { batch, position: Some(position), charge }
    }
}

impl Loggable for Sourced {
    type Durable = Sourced;
    fn durable(batch: Logged, _position: read::Position, charge: Charge) -> Sourced {
        let charge = batch.charge().clone().with(charge);
        let batch = match batch {
            Logged::Raw(batch) => Sourced::Read(batch),
            Logged::Recalled(batch) => Sourced::Recalled(batch),
            Logged::Normalized(_) => panic!("{GIVEN_BACK}"),
        };
        batch.charged(charge)
    }
}

/// The operator's output streams. Both frontiers pass an epoch when all of it is durable.
pub struct Outputs<'s, D: Clone + 'static> {
    /// Batches that stay in memory.
    pub durable: Stream<'s, Epoch, Vec<D>>,
    /// Batches that do not.
    pub spilled: Stream<'s, Epoch, Vec<SpilledBatches>>,
}

/// Makes batches durable, by one group commit for all epochs that are closed.
pub fn wal_commit<'s, B: Loggable>(
    stream: Stream<'s, Epoch, Vec<B>>,
    frontiers: Frontiers<'s>,
    ports: Ports,
) -> Outputs<'s, B::Durable> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.worker().sync_activator_for(address.to_vec());
    let mut input = builder.new_input(stream, Pipeline);
    let (output, durable) = builder.new_output::<Vec<B::Durable>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<B::Durable>>>::from(output);
    let (spilled_output, spilled) = builder.new_output::<Vec<SpilledBatches>>();
    let mut spilled_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<SpilledBatches>>>::from(spilled_output);
    // Neither has a path to an output: their frontiers are news, no data comes.
    let mut dead_letter_input = builder.new_input_connection(frontiers.dead_letter, Pipeline, []);
    let mut published_input = builder.new_input_connection(frontiers.published, Pipeline, []);
    builder.build(move |_capabilities| {
        // The activation fails only when the worker is gone.
        let port = ports.writer.port(move || {
            let _ = activator.activate();
        });
        let mut open: BTreeMap<Epoch, Open> = BTreeMap::new();
        let mut jobs = Jobs::default();
        let mut released = Epoch(0);
        move |frontiers| {
            dead_letter_input.for_each(|_, data| data.clear());
            published_input.for_each(|_, data| data.clear());
            // 1. Keep batches until their epoch is complete.
            input.for_each(|capability, batches| {
                let retain = |output| capability.retain_least(output).expect("every batch is sent under a capability");
                let held = Held { durable: retain(0), spilled: retain(1) };
                let open = open.entry(*held.durable.time()).or_insert_with(|| Open { held, batches: Vec::new() });
                open.batches.extend(batches.drain(..).map(Into::into));
            });
            // 2. Hand closed epochs to the writer.
            let closed = split_closed(&mut open, |epoch| !frontiers[0].less_equal(epoch) && !frontiers[1].less_equal(epoch));
            if !closed.is_empty() {
                port.append(jobs.start(closed));
            }
            // 3. Send on what is durable: the batches there is memory for, and of the others where they lie.
            let (mut output, mut spilled_output) = (output.activate(), spilled_output.activate());
            for ack in port.acks() {
                let held = jobs.finish(ack.ticket);
                let (staying, spilled) = sort_out::<B>(ack.appended, &ports.budget);
                for (epoch, batch) in staying {
                    let mut session = output.session(&held[&epoch].durable);
                    session.give(batch);
                    session.flush();
                }
                for (epoch, spilled) in spilled {
                    ports.backlog.note_spilled(spilled.batches);
                    let mut session = spilled_output.session(&held[&epoch].spilled);
                    session.give(spilled);
                    session.flush();
                }
            }
            // 4. Release what is published.
            let published = frontiers[2].frontier().first().copied().unwrap_or(Epoch(u64::MAX));
            if published > released {
                released = published;
                ports.writer.release(published);
            }
        }
    });
    Outputs { durable, spilled }
}

/// The capabilities of an epoch, one for each output.
struct Held {
    durable: Capability<Epoch>,
    spilled: Capability<Epoch>,
}

/// An epoch that is not complete yet.
struct Open {
    held: Held,
    batches: Vec<Logged>,
}

type AtEpochs<T> = Vec<(Epoch, T)>;

/// Parts durable batches into those that stay in memory and those whose payloads are let go, their frames joined into runs. A run is
/// under the epoch of its first batch, which is the least: epochs ascend within a job.
fn sort_out<B: Loggable>(appended: Vec<Appended>, budget: &Arc<Budget>) -> (AtEpochs<B::Durable>, AtEpochs<SpilledBatches>) {
    let (mut staying, mut spilled) = (Vec::new(), AtEpochs::<SpilledBatches>::new());
    for Appended { epoch, position, batch } in appended {
        if let Some(charge) = budget.stay(batch.charge()) {
            staying.push((epoch, B::durable(batch, position, charge)));
            continue;
        }
        match spilled.last_mut().filter(|(_, last)| position.follows(&last.run)) {
            Some((_, last)) => {
                last.run.bytes.end += u64::from(position.bytes);
                last.batches += 1;
            }
            None => spilled.push((epoch, SpilledBatches { run: position.run(), batches: 1 })),
        }
    }
    (staying, spilled)
}

/// Takes the epochs for which `is_closed` holds off the front, in order.
fn split_closed<T>(open: &mut BTreeMap<Epoch, T>, is_closed: impl Fn(&Epoch) -> bool) -> Vec<(Epoch, T)> {
    let mut closed = Vec::new();
    while let Some(entry) = open.first_entry() {
        if !is_closed(entry.key()) {
            break;
        }
        closed.push(entry.remove_entry());
    }
    closed
}

/// The capabilities of jobs at the writer. Jobs come back in order.
#[derive(Default)]
struct Jobs {
    next_ticket: u64,
    waiting: VecDeque<(u64, BTreeMap<Epoch, Held>)>,
}

impl Jobs {
    fn start(&mut self, closed: Vec<(Epoch, Open)>) -> Job {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (mut capabilities, mut job) = (BTreeMap::new(), Job { ticket, batches: Vec::new() });
        for (epoch, Open { held, mut batches }) in closed {
            // In the order of offsets: recovery then finds runs without holes.
            let place = |batch: &Logged| (batch.by_ref().partition().clone(), batch.by_ref().range().start);
            batches.sort_by_cached_key(place);
            job.batches.extend(batches.into_iter().map(|batch| (epoch, batch)));
            capabilities.insert(epoch, held);
        }
        self.waiting.push_back((ticket, capabilities));
        job
    }

    fn finish(&mut self, ticket: u64) -> BTreeMap<Epoch, Held> {
        let (expected, capabilities) = self.waiting.pop_front().expect("an ack answers a job");
        assert_eq!(ticket, expected, "acks come in the order of their jobs");
        capabilities
    }
}
