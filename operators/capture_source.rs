//! `capture_source`: reads a capture as a source in the place of Kafka, or of whatever stands before the edge it was taken from.
//!
//! # In
//! Nothing.
//!
//! # Out
//! The batches of the capture, cut as they were, in the epochs in which they passed.
//!
//! # Holds
//! A capability at the epoch it stands at. On its thread, up to `QUEUE_BYTES` of batches that their workers have not taken.
//!
//! # Closes when
//! The capture is exhausted, or the process is told to stop; then at the end of the epoch that is open.
//!
//! # Fails when
//! The capture cannot be read, or is of another edge. What of it is damaged is no failure: it is counted, reported and left out.
//!
//! # Invariants
//! - In a cluster each partition is emitted by one process, whoever has a copy of the capture: all of them.
//! - Batches have the epochs they were recorded with, whatever the number of workers and the speed. Those of a partition all go to the worker
//!   that normalizes it, in their order.
//! - An epoch is begun only while the memory budget has room and its time has come, and then emitted whole: what is in memory is let go
//!   when its epoch is closed. So the budget is exceeded by an epoch at most.
//! - A worker never waits for the disk: files are read by a thread of their own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use crate::budget::Budget;
use crate::capture::{Batches, Captured, Error, Files, Recorded, Selection};
use crate::clock::Clock;
use crate::epoch::Epoch;
use crate::fault::{Health, chain, panic_text};
use crate::normalize::partition_hash;
use crate::place::Place;

#[cfg(test)]
mod tests;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "capture_source";

/// Bytes read ahead, unless one batch has more: enough to bridge a block that is decompressed.
const QUEUE_BYTES: usize = 8 << 20;
/// Bytes emitted per scheduling, so that the worker's other operators have their turn.
const BYTES_PER_SCHEDULING: usize = 1 << 20;
/// How long the operator waits where there is no batch yet, no memory, or its time has not come: none of these can wake it.
const WAIT: Duration = Duration::from_millis(5);

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Bytes of all files.
    pub total_bytes: AtomicU64,
    /// Bytes of them that were read or passed over.
    pub read_bytes: AtomicU64,
    /// Batches read.
    pub batches: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Damaged places, files cut short included.
    pub damaged: AtomicU64,
}

/// How fast a capture is emitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as what follows takes it.
    Full,
    /// With the recorded time between two epochs, divided by this factor, which is positive: 2 is twice as fast. Where nothing
    /// passed for hours, hours are waited.
    Recorded(f64),
}

/// What is read, and how fast.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory, or a single file.
    pub path: PathBuf,
    /// Which of its batches.
    pub selection: Selection,
    /// How fast.
    pub speed: Speed,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports<B> {
    /// The batches, shared by the workers.
    pub feed: Arc<Feed<B>>,
}

/// What a feed needs from outside.
#[derive(Clone)]
pub struct FeedPorts {
    /// Where the process is: its first worker. In a cluster every process reads the same capture, and emits its share of the partitions.
    pub place: Place,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Where a stop is announced and a failure raised.
    pub health: Health,
    /// The time, for [`Speed::Recorded`].
    pub clock: Arc<dyn Clock>,
}

/// The batches on their way to the workers. When it is dropped its thread ends.
pub struct Feed<B> {
    shared: Arc<Shared<B>>,
}

struct Shared<B> {
    queues: Mutex<Queues<B>>,
    /// A batch was taken, or nobody will take one any more.
    room: Condvar,
    is_abandoned: AtomicBool,
    speed: Speed,
    ports: FeedPorts,
}

struct Queues<B> {
    of_worker: Vec<VecDeque<(Epoch, B)>>,
    bytes: usize,
    /// No batch of an earlier epoch will be queued.
    next: Epoch,
    /// Batches of it and of earlier epochs may be emitted.
    open: Option<Epoch>,
    /// When the first epoch was begun, and which it was.
    began: Option<(u64, Epoch)>,
    ended: bool,
}

enum Next<B> {
    Batch(Epoch, Box<B>),
    /// None yet; it will not be of an earlier epoch than this.
    Nothing(Epoch),
    End,
}

impl<B: Captured> Feed<B> {
    /// Starts the thread that reads a capture. A speed that is no positive number is refused.
    pub fn start(config: Config, ports: FeedPorts, stats: Arc<Stats>) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let Config { path, selection, speed } = config;
        let place = ports.place;
        let read = move |put: &mut dyn FnMut(Recorded<B>) -> bool| read(&path, selection, place, &stats, put);
        Self::read_by(NAME, speed, ports, move |put| read(put).map_err(|error| chain(&error)))
    }

    /// Starts a thread named after the operator `name`, which runs `read`: it gives batches, in the order of their epochs, to what it is
    /// handed until that says by `false` that no more are wanted.
    pub fn read_by(
        name: &'static str,
        speed: Speed,
        ports: FeedPorts,
        read: impl FnOnce(&mut dyn FnMut(Recorded<B>) -> bool) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        if let Speed::Recorded(factor) = speed
            && !(factor.is_finite() && factor > 0.0)
        {
            let problem = format!("nothing can be replayed at {factor} times its speed: the factor must be a positive number");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem));
        }
        let (of_worker, next) = (std::iter::repeat_with(VecDeque::new).take(ports.place.workers).collect(), Epoch(0));
        let queues = Mutex::new(Queues { of_worker, bytes: 0, next, open: None, began: None, ended: false });
        let (room, is_abandoned) = (Condvar::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { queues, room, is_abandoned, speed, ports });
        let reader = shared.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let mut put = |recorded| reader.put(recorded);
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read(&mut put)));
            match run {
                Ok(Ok(())) => reader.lock().ended = true,
                // The queues must not look exhausted: their end would let the frontier pass what was not read.
                Ok(Err(message)) => reader.ports.health.fail(name, message),
                Err(panic) => reader.ports.health.fail(name, format!("the reader panicked: {}", panic_text(panic.as_ref()))),
            }
        })?;
        Ok((Arc::new(Feed { shared }), thread))
    }
}

/// Reads a capture's batches.
fn read<B: Captured>(
    path: &Path,
    selection: Selection,
    place: Place,
    stats: &Stats,
    put: &mut dyn FnMut(Recorded<B>) -> bool,
) -> Result<(), Error> {
    let files = Files::open(path)?;
    stats.total_bytes.store(files.bytes(), Ordering::Relaxed);
    let mut batches: Batches<B> = files.batches(selection);
    while let Some(read) = batches.next() {
        stats.read_bytes.store(batches.read_bytes(), Ordering::Relaxed);
        match read {
            Ok(recorded) => {
                if place.has_share(partition_hash(recorded.batch.partition())) {
                    stats.batches.fetch_add(1, Ordering::Relaxed);
                    stats.records.fetch_add(recorded.batch.load().messages as u64, Ordering::Relaxed);
                }
                if !put(recorded) {
                    return Ok(());
                }
            }
            Err(error) if error.is_damage() => {
                tracing::warn!(error = chain(&error), "part of a capture is missing, the rest is replayed");
                stats.damaged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => return Err(error),
        }
    }
    stats.read_bytes.store(batches.read_bytes(), Ordering::Relaxed);
    Ok(())
}

impl<B> Drop for Feed<B> {
    fn drop(&mut self) {
        self.shared.is_abandoned.store(true, Ordering::Release);
        self.shared.room.notify_all();
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, Queues<B>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_abandoned.load(Ordering::Acquire) || self.ports.health.failed()
    }
}

impl<B: Captured> Shared<B> {
    /// Queues a batch when there is room. False if no more are wanted.
    fn put(&self, Recorded { epoch, batch }: Recorded<B>) -> bool {
        let bytes = batch.load().bytes;
        let mut queues = self.lock();
        // A capture that a process with a slower clock went on with goes back in time; a frontier cannot.
        let epoch = epoch.max(queues.next);
        queues.next = epoch;
        if !self.ports.place.has_share(partition_hash(batch.partition())) {
            // Another process of the cluster has it.
            return !self.is_over();
        }
        loop {
            let is_unbegun = queues.open.is_none_or(|open| epoch > open);
            if self.is_over() || (self.ports.health.stopping() && is_unbegun) {
                return false;
            }
            if queues.bytes == 0 || queues.bytes + bytes <= QUEUE_BYTES {
                break;
            }
            // A failure or a stop wakes the workers only.
            queues = self.room.wait_timeout(queues, WAIT * 10).unwrap_or_else(PoisonError::into_inner).0;
        }
        let worker = partition_hash(batch.partition()) % queues.of_worker.len() as u64;
        queues.bytes += bytes;
        queues.of_worker[worker as usize].push_back((epoch, batch));
        true
    }

    /// The next batch of a worker.
    fn next(&self, worker: usize) -> Next<B> {
        let mut queues = self.lock();
        let Some(&(epoch, _)) = queues.of_worker[worker].front() else {
            return if queues.ended { Next::End } else { Next::Nothing(queues.next) };
        };
        if queues.open.is_none_or(|open| epoch > open) {
            if self.ports.health.stopping() {
                // Begun by nobody, now or later: so it is left out whole.
                return Next::End;
            }
            // Epochs are begun in their order, and no later one while the least has to wait.
            let is_least = queues.of_worker.iter().filter_map(VecDeque::front).all(|(other, _)| epoch <= *other);
            if !is_least || !self.may_begin(epoch, &mut queues) {
                return Next::Nothing(epoch);
            }
            queues.open = Some(epoch);
        }
        let (epoch, batch) = queues.of_worker[worker].pop_front().expect("it was looked at above");
        let load = batch.load();
        queues.bytes -= load.bytes;
        drop(queues);
        self.room.notify_one();
        self.ports.budget.collect(load);
        Next::Batch(epoch, Box::new(batch.charged(self.ports.budget.seal(load))))
    }

    /// True if there is memory for the epoch, and its time has come.
    fn may_begin(&self, epoch: Epoch, queues: &mut Queues<B>) -> bool {
        let Speed::Recorded(factor) = self.speed else { return !self.ports.budget.is_full() };
        let now_ms = self.ports.clock.now_ms();
        let (began_ms, first) = *queues.began.get_or_insert((now_ms, epoch));
        let due_ms = began_ms as f64 + (epoch.0 - first.0) as f64 / factor;
        now_ms as f64 >= due_ms && !self.ports.budget.is_full()
    }
}

/// Emits the batches of a feed.
pub fn capture_source<'s, B: Captured>(
    scope: Scope<'s, Epoch>,
    name: &str,
    ports: Ports<B>,
    place: Place,
) -> Stream<'s, Epoch, Vec<B>> {
    let mut builder = OperatorBuilder::new(name.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let (output, batches) = builder.new_output::<Vec<B>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<B>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        let feed = ports.feed;
        move |_frontiers| {
            let mut output = output.activate();
            let mut bytes = 0;
            // 1. Emit what there is of epochs that may be begun.
            while let Some(open) = &mut capability
                && bytes < BYTES_PER_SCHEDULING
            {
                match feed.shared.next(place.worker) {
                    Next::Batch(epoch, batch) => {
                        open.downgrade(&epoch);
                        bytes += batch.load().bytes.max(1);
                        let mut session = output.session(open);
                        session.give(*batch);
                        session.flush();
                    }
                    Next::Nothing(epoch) => {
                        // Else an epoch of which other workers have the last batches would stay open here.
                        open.downgrade(&epoch);
                        break;
                    }
                    // A capture that cannot be read looks exhausted once its thread has ended: the frontier must not pass the rest.
                    Next::End if feed.shared.ports.health.failed() => break,
                    Next::End => capability = None,
                }
            }
            // 2. Come back for more, at once or when there may be some.
            if capability.is_some() && bytes >= BYTES_PER_SCHEDULING {
                activator.activate();
            } else if capability.is_some() {
                activator.activate_after(WAIT);
            }
        }
    });
    batches
}
