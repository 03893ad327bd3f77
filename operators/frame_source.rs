//! `frame_source`: reads the frames of a log, short-term or long-term, as a source in the place of Kafka.
//!
//! # In
//! Nothing.
//!
//! # Out
//! `UniqueBatch`: the batches as they were logged, so normalized and without duplicates, but for those whose offsets the catalog covers. Or
//! `RawBatch`, of a log that stood before `normalize`: all of them.
//!
//! # Holds
//! A capability at the epoch it stands at; each epoch holds a few MiB. On its thread, `QUEUE_FRAMES` frames that no worker has taken.
//!
//! # Closes when
//! The frames are exhausted, or the process is told to stop.
//!
//! # Fails when
//! The log cannot be read. What of it is damaged is no failure: it is counted, reported and left out, and whoever ordered the replay is told.
//!
//! # Invariants
//! - A worker never waits for the log: frames are read by a thread of their own.
//! - What is emitted and not yet received by storage is within the memory budget, short of one batch a worker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use crate::batch::{NormalizedBatch, RawBatch, UniqueBatch};
use crate::budget::{Budget, Charge, Load};
use crate::coverage::{OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::wal_commit::inspect::Source;
use crate::wal_commit::long_term::read::Selection;
use crate::wal_commit::{Error, Logged, frame};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "frame_source";
/// Its name where it gives messages as they came.
pub const RAW_NAME: &str = "frame_source_raw";

/// Frames read ahead: enough to bridge a request to an object store, and few MiB.
const QUEUE_FRAMES: usize = 32;
/// Payload bytes of one epoch.
const EPOCH_BYTES: usize = 4 << 20;
/// Bytes emitted per scheduling, so that the worker's other operators have their turn.
const BYTES_PER_SCHEDULING: usize = 1 << 20;
/// How long the operator waits where there is no frame yet, or no memory: neither can wake it.
const WAIT: Duration = Duration::from_millis(5);

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Bytes of all frames that may have to be read.
    pub total_bytes: AtomicU64,
    /// Bytes of frames read.
    pub read_bytes: AtomicU64,
    /// Frames sent on.
    pub frames: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Frames not sent on because the catalog covers all of their offsets.
    pub covered: AtomicU64,
    /// Frames outside of what was asked for.
    pub unselected: AtomicU64,
    /// Damaged places of the log.
    pub damaged: AtomicU64,
}

/// What is read, and what is left out of it.
#[derive(Clone)]
pub struct Config {
    /// The log.
    pub source: Source,
    /// Which of its frames.
    pub selection: Selection,
    /// It holds messages as they came. What is of the other kind is refused.
    pub is_raw: bool,
}

/// What frames can be given as.
pub trait Given: Clone + Sized + 'static {
    /// What is in a frame of the kind that was asked for, with its share of the memory budget.
    fn of(batch: Logged, charge: Charge) -> Option<Self>;
}

impl Given for UniqueBatch {
    fn of(batch: Logged, charge: Charge) -> Option<Self> {
        let Logged::Normalized(batch) = batch else { return None };
        Some(UniqueBatch(NormalizedBatch { charge, ..batch }))
    }
}

impl Given for RawBatch {
    fn of(batch: Logged, charge: Charge) -> Option<Self> {
        let Logged::Raw(batch) = batch else { return None };
        Some(RawBatch { charge, ..batch })
    }
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The frames, shared by the workers: each takes the next one when it has room.
    pub feed: Arc<Feed>,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Where a stop is announced.
    pub health: Health,
}

/// The frames on their way to the workers.
pub struct Feed {
    queue: Mutex<Queue>,
}

struct Queue {
    frames: Receiver<Logged>,
    epoch: Epoch,
    epoch_bytes: usize,
}

enum Next {
    Batch(Epoch, Box<Logged>),
    /// None yet; it will not be of an earlier epoch than this.
    Nothing(Epoch),
    End,
}

impl Feed {
    /// Starts the thread that reads. Batches begin at `epoch`; those that `committed` covers are left out.
    pub fn start(
        config: Config,
        epoch: Epoch,
        committed: Arc<BTreeMap<PartitionKey, OffsetSet>>,
        health: Health,
        stats: Arc<Stats>,
    ) -> std::io::Result<(Arc<Feed>, JoinHandle<()>)> {
        let (sender, frames) = sync_channel(QUEUE_FRAMES);
        let reader = FrameReader { config, committed, stats, health: health.clone() };
        let thread = std::thread::Builder::new().name("frame-reader".into()).spawn(move || {
            if let Err(error) = reader.run(&sender) {
                health.fail(NAME, chain(&error));
                // The queue must not look exhausted: its end would let the frontier pass what was not read.
                while !health.failed() {
                    std::thread::park_timeout(WAIT);
                }
            }
        })?;
        Ok((Arc::new(Feed { queue: Mutex::new(Queue { frames, epoch, epoch_bytes: 0 }) }), thread))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an epoch, if the one that is open has anything, and returns it.
    fn end_epoch(&self) -> Epoch {
        let mut queue = self.lock();
        queue.end_epoch();
        queue.epoch
    }

    fn next(&self) -> Next {
        let mut queue = self.lock();
        match queue.frames.try_recv() {
            Ok(batch) => {
                if queue.epoch_bytes >= EPOCH_BYTES {
                    queue.end_epoch();
                }
                queue.epoch_bytes += batch.by_ref().payload_bytes() as usize;
                Next::Batch(queue.epoch, Box::new(batch))
            }
            Err(TryRecvError::Empty) => Next::Nothing(queue.epoch),
            Err(TryRecvError::Disconnected) => Next::End,
        }
    }
}

impl Queue {
    fn end_epoch(&mut self) {
        self.epoch.0 += u64::from(self.epoch_bytes > 0);
        self.epoch_bytes = 0;
    }
}

/// The thread's part.
struct FrameReader {
    config: Config,
    committed: Arc<BTreeMap<PartitionKey, OffsetSet>>,
    stats: Arc<Stats>,
    health: Health,
}

impl FrameReader {
    fn run(&self, sender: &SyncSender<Logged>) -> Result<(), Error> {
        let Config { source, selection, is_raw } = &self.config;
        let (total_bytes, frames) = source.frames_of(selection)?;
        let count = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        self.stats.total_bytes.store(total_bytes, Ordering::Relaxed);
        // A restart of the graphs begins anew.
        self.stats.read_bytes.store(0, Ordering::Relaxed);
        for frame in frames {
            if self.health.failed() || self.health.stopping() {
                return Ok(());
            }
            let frame = match frame {
                Ok(frame) => frame,
                Err(error @ (Error::Frame { .. } | Error::Copy { .. })) => {
                    tracing::warn!(error = chain(&error), "part of the log is damaged, the rest is replayed");
                    count(&self.stats.damaged, 1);
                    continue;
                }
                Err(error) => return Err(error),
            };
            count(&self.stats.read_bytes, frame.position.bytes.into());
            if !selection.has_frame(&frame) {
                count(&self.stats.unselected, 1);
            } else if matches!(frame.batch, Logged::Recalled(_)) {
                // Whoever handled these messages has them in a log of his own.
                count(&self.stats.unselected, 1);
            } else if *is_raw != matches!(frame.batch, Logged::Raw(_)) {
                let (path, at) = (format!("segment {}", frame.position.segment).into(), frame.position.at);
                return Err(Error::Frame { path, at, source: frame::Error::OtherKind { is_raw: !is_raw } });
            } else if self.is_committed(&frame.batch) {
                count(&self.stats.covered, 1);
            } else {
                count(&self.stats.frames, 1);
                count(&self.stats.records, frame.batch.by_ref().records() as u64);
                if sender.send(frame.batch).is_err() {
                    // The graphs are gone.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Of messages as they came none is left out: those that are stored already tell which others are their duplicates.
    fn is_committed(&self, batch: &Logged) -> bool {
        let Logged::Normalized(batch) = batch else { return false };
        let committed = self.committed.get(&batch.coverage.partition);
        committed.is_some_and(|committed| committed.missing_in(batch.coverage.range()).is_empty())
    }
}

/// Emits the frames of a log.
pub fn frame_source<'s, B: Given>(scope: Scope<'s, Epoch>, ports: Ports) -> Stream<'s, Epoch, Vec<B>> {
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let (output, frames) = builder.new_output::<Vec<B>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<B>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        move |_frontiers| {
            let mut output = output.activate();
            let mut bytes = 0;
            // 1. Emit what there is, as far as there is memory for it.
            while let Some(open) = &mut capability
                && bytes < BYTES_PER_SCHEDULING
                && !ports.budget.is_full()
            {
                match ports.feed.next() {
                    Next::Batch(epoch, batch) => {
                        open.downgrade(&epoch);
                        let looked_at = batch.by_ref();
                        let load = Load { bytes: looked_at.payload_bytes() as usize, messages: looked_at.records() };
                        ports.budget.collect(load);
                        bytes += load.bytes;
                        let mut session = output.session(open);
                        session.give_iterator(B::of(*batch, ports.budget.seal(load)).into_iter());
                        session.flush();
                    }
                    Next::Nothing(epoch) => {
                        // Else an epoch of which another worker took the last frame would stay open here.
                        open.downgrade(&epoch);
                        break;
                    }
                    // A log that cannot be read looks exhausted once its thread has ended: the frontier must not pass the rest.
                    Next::End if ports.health.failed() => break,
                    Next::End => capability = None,
                }
            }
            if let Some(open) = &mut capability
                && ports.budget.is_full()
            {
                // What is in memory is let go only once its epoch is closed and logged.
                open.downgrade(&ports.feed.end_epoch());
            }
            // 2. Come back for more, at once or when there may be some.
            if capability.is_some() && bytes >= BYTES_PER_SCHEDULING {
                activator.activate();
            } else if capability.is_some() {
                activator.activate_after(WAIT);
            }
        }
    });
    frames
}
