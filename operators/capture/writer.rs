//! The writer: one thread that records what all workers of a process pass at one edge.
//!
//! ```text
//! worker 0 --batches, frontier--> +--------------------------+  an epoch that all workers   +----------+
//! worker 1 --batches, frontier--> | epochs, each its batches | ---- have passed, sorted --> | recorder | --> files
//!     ^                           +--------------------------+                              +----------+
//!     +--------------------------- written: epochs before this are in the files -----------------+
//! ```
//!
//! A worker never waits for the disk. What was handed over and is not written yet is counted in `queued_bytes`; at its bound the operators
//! hold batches back. It frees itself with the workers' input frontiers alone, so an epoch larger than the bound is no deadlock.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::content::Captured;
use super::recorder::Recorder;
use super::{Config, Error, NAME, Stats};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::epoch::Epoch;
use crate::fault::{Health, chain, panic_text};
use crate::wal_commit::disk::{Directory, Disk};

/// First and longest wait before a failed operation is tried again.
const RETRY_MIN_MS: u64 = 20;
const RETRY_MAX_MS: u64 = 2_000;
/// How often an operation is tried that fails for another reason than want of space: about fifteen seconds long.
const ATTEMPTS_MAX: u32 = 14;
/// How often a lasting failure is told.
const TOLD_EVERY_MS: u64 = 5_000;

/// Stands for "no more": the frontier of a worker whose input is closed.
const CLOSED: Epoch = Epoch(u64::MAX);

/// Handle of the writer. When the last clone is dropped it is stopped as by `shutdown`.
pub struct Writer<B: Captured> {
    thread: Arc<Thread<B>>,
}

impl<B: Captured> Clone for Writer<B> {
    fn clone(&self) -> Self {
        Writer { thread: self.thread.clone() }
    }
}

struct Thread<B: Captured> {
    shared: Arc<Shared<B>>,
    join: Mutex<Option<JoinHandle<()>>>,
}

/// One worker's way to the writer and back.
pub struct Port<B: Captured> {
    shared: Arc<Shared<B>>,
    worker: usize,
    frontier: Epoch,
}

struct Shared<B> {
    inbox: Mutex<Inbox<B>>,
    /// An epoch is complete, or the writer is to stop.
    work: Condvar,
    /// Every epoch before this is in the files, as far as workers handed anything over.
    written: AtomicU64,
    /// Of batches that were handed over and are not written.
    queued_bytes: AtomicUsize,
    queue_bytes_max: usize,
    stats: Arc<Stats>,
}

struct Inbox<B> {
    epochs: BTreeMap<Epoch, Vec<B>>,
    /// The input frontier of each worker.
    frontiers: Vec<Epoch>,
    wakers: Vec<Box<dyn Fn() + Send>>,
    stopping: bool,
    /// The writer is gone: batches are dropped, never acknowledged.
    closed: bool,
}

impl<B> Inbox<B> {
    /// Every epoch before this is complete.
    fn complete(&self) -> Epoch {
        self.frontiers.iter().min().copied().unwrap_or_default()
    }

    fn is_first_complete(&self) -> bool {
        self.epochs.first_key_value().is_some_and(|(&first, _)| first < self.complete())
    }
}

/// A lock here is only poisoned if a thread panicked while moving values in or out: what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Captured> Writer<B> {
    /// Opens the directory, makes whole what a killed process left there, and starts the thread. A failure of it is raised in `health`.
    pub fn spawn(config: Config, health: Health, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let disk = Directory::create(&config.directory, false);
        let disk = disk.map_err(|error| Error::Directory { path: config.directory.clone(), source: Box::new(error) })?;
        Writer::spawn_on(Arc::new(disk), config, health, clock)
    }

    /// The same on any disk.
    pub fn spawn_on(disk: Arc<dyn Disk>, config: Config, health: Health, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let (path, stats) = (disk.path(""), Arc::new(Stats::default()));
        let recorder = Recorder::open(disk, config.clone())?;
        let inbox = Inbox { epochs: BTreeMap::new(), frontiers: Vec::new(), wakers: Vec::new(), stopping: false, closed: false };
        let shared = Arc::new(Shared {
            inbox: Mutex::new(inbox),
            work: Condvar::new(),
            written: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            queue_bytes_max: config.queue_bytes_max,
            stats,
        });
        shared.stats.note(recorder.progress());
        let (flush_ms, opened_ms, told_ms) = (config.flush_ms, None, None);
        let mut engine = Engine { shared: shared.clone(), recorder, flush_ms, clock, opened_ms, told_ms };
        let run = move || {
            match catch_unwind(AssertUnwindSafe(|| engine.run())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.is_retriable() && engine.shared.is_stopping() => {
                    let error = chain(&error);
                    tracing::warn!(error, "the last file of a capture could not be ended; the next start makes it whole");
                }
                Ok(Err(error)) => health.fail(NAME, chain(&error)),
                Err(panic) => health.fail(NAME, format!("the writer panicked: {}", panic_text(panic.as_ref()))),
            }
            engine.shared.close();
        };
        let spawned = std::thread::Builder::new().name("capture-writer".into()).spawn(run);
        let join = spawned.map_err(|error| Error::io("start a thread for", path, error))?;
        Ok(Writer { thread: Arc::new(Thread { shared, join: Mutex::new(Some(join)) }) })
    }

    /// The port of one of `workers` workers. `wake` is called, on the writer's thread, after epochs were written.
    ///
    /// # Panics
    /// If the workers are not of one graph.
    pub fn port(&self, worker: usize, workers: usize, wake: impl Fn() + Send + 'static) -> Port<B> {
        let shared = self.thread.shared.clone();
        let mut inbox = lock(&shared.inbox);
        // Until the last of them is there no epoch is complete: its frontier is the least one.
        let known = inbox.frontiers.len();
        inbox.frontiers.resize(workers.max(known), Epoch(0));
        assert!(worker < workers && workers == inbox.frontiers.len(), "a capture is of one edge of one graph");
        inbox.wakers.push(Box::new(wake));
        drop(inbox);
        Port { shared, worker, frontier: Epoch(0) }
    }

    /// What the writer did.
    pub fn stats(&self) -> Arc<Stats> {
        self.thread.shared.stats.clone()
    }

    /// Writes the epochs that are complete, ends the file and the thread. What cannot be written now is given up: it was never
    /// acknowledged.
    pub fn shutdown(&self) {
        self.thread.stop();
    }
}

impl<B: Captured> Thread<B> {
    fn stop(&self) {
        lock(&self.shared.inbox).stopping = true;
        self.shared.work.notify_all();
        if let Some(join) = lock(&self.join).take() {
            // Its panic, if any, is in the health already.
            let _ = join.join();
        }
    }
}

impl<B: Captured> Drop for Thread<B> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<B: Captured> Port<B> {
    /// Hands batches over. Never waits.
    pub fn append(&self, epoch: Epoch, batches: &[B]) {
        let bytes: usize = batches.iter().map(|batch| batch.load().bytes).sum();
        let mut inbox = lock(&self.shared.inbox);
        assert!(self.frontier <= epoch, "a batch of epoch {epoch} behind the frontier {}", self.frontier);
        if !inbox.closed {
            self.shared.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
            inbox.epochs.entry(epoch).or_default().extend_from_slice(batches);
        }
    }

    /// States that this worker hands over nothing more of an epoch before `frontier`; none stands for no more at all.
    pub fn advance(&mut self, frontier: Option<Epoch>) {
        let frontier = frontier.unwrap_or(CLOSED);
        if frontier == self.frontier {
            return;
        }
        assert!(self.frontier < frontier, "the frontier goes back from {} to {frontier}", self.frontier);
        self.frontier = frontier;
        let mut inbox = lock(&self.shared.inbox);
        inbox.frontiers[self.worker] = frontier;
        let has_work = inbox.is_first_complete() || inbox.complete() == CLOSED;
        drop(inbox);
        if has_work {
            self.shared.work.notify_one();
        }
    }

    /// Every epoch before this is in the files, as far as anything of it was handed over.
    pub fn written(&self) -> Epoch {
        Epoch(self.shared.written.load(Ordering::Acquire))
    }

    /// True if the writer is not behind.
    pub fn has_room(&self) -> bool {
        self.shared.queued_bytes.load(Ordering::Acquire) <= self.shared.queue_bytes_max
    }
}

impl<B> Shared<B> {
    /// Nothing is acknowledged from here on.
    fn close(&self) {
        let mut inbox = lock(&self.inbox);
        inbox.closed = true;
        inbox.epochs.clear();
        inbox.wakers.clear();
    }

    fn is_stopping(&self) -> bool {
        lock(&self.inbox).stopping
    }

    /// Waits for `limit`, or until the writer is told to stop; true if it is.
    fn wait_to_stop(&self, limit: Duration) -> bool {
        let inbox = lock(&self.inbox);
        let waited = self.work.wait_timeout_while(inbox, limit, |inbox| !inbox.stopping);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }
}

/// What there is to do.
struct Work<B> {
    epochs: Vec<(Epoch, Vec<B>)>,
    /// Every epoch before this has been taken.
    complete: Epoch,
    stopping: bool,
}

/// The thread's part.
struct Engine<B: Captured> {
    shared: Arc<Shared<B>>,
    recorder: Recorder<B>,
    flush_ms: u64,
    clock: Arc<dyn Clock>,
    /// Since when something waits for its block to fill.
    opened_ms: Option<u64>,
    /// When a failure was last told.
    told_ms: Option<u64>,
}

impl<B: Captured> Engine<B> {
    fn run(&mut self) -> Result<(), Error> {
        loop {
            let Work { epochs, complete, stopping } = self.next_work();
            let is_idle = epochs.is_empty();
            for (epoch, batches) in epochs {
                self.record(epoch, batches)?;
            }
            if is_idle || stopping || complete == CLOSED || self.waits_long() {
                self.persist(Recorder::flush)?;
                self.opened_ms = None;
            }
            self.acknowledge(complete);
            if stopping {
                // A file that cannot be ended is made whole by the next start.
                return self.persist(Recorder::finish);
            }
        }
    }

    /// True if a block has waited for more since `flush_ms`.
    fn waits_long(&mut self) -> bool {
        if self.recorder.unwritten().is_none() {
            self.opened_ms = None;
            return false;
        }
        let now_ms = self.clock.now_ms();
        now_ms >= *self.opened_ms.get_or_insert(now_ms) + self.flush_ms
    }

    /// Waits for epochs that are complete; for `flush_ms` at most, if a block waits for more.
    fn next_work(&self) -> Work<B> {
        let is_ready = |inbox: &Inbox<B>| inbox.stopping || inbox.is_first_complete();
        let inbox = lock(&self.shared.inbox);
        let mut inbox = if self.recorder.unwritten().is_none() {
            self.shared.work.wait_while(inbox, |inbox| !is_ready(inbox)).unwrap_or_else(PoisonError::into_inner)
        } else {
            let limit = Duration::from_millis(self.flush_ms);
            let is_waiting = |inbox: &mut Inbox<B>| !is_ready(inbox) && inbox.complete() != CLOSED;
            self.shared.work.wait_timeout_while(inbox, limit, is_waiting).unwrap_or_else(PoisonError::into_inner).0
        };
        let complete = inbox.complete();
        let rest = inbox.epochs.split_off(&complete);
        let epochs = std::mem::replace(&mut inbox.epochs, rest).into_iter().collect();
        Work { epochs, complete, stopping: inbox.stopping }
    }

    /// Pushes the batches of an epoch, in an order that does not depend on who handed them over.
    fn record(&mut self, epoch: Epoch, mut batches: Vec<B>) -> Result<(), Error> {
        batches.sort_by(|one, other| (one.partition(), one.offsets()).cmp(&(other.partition(), other.offsets())));
        for batch in batches {
            self.persist(|recorder| recorder.push(epoch, &batch))?;
            let load = batch.load();
            self.shared.stats.note_batch(load.messages);
            self.shared.queued_bytes.fetch_sub(load.bytes, Ordering::AcqRel);
        }
        Ok(())
    }

    fn acknowledge(&self, complete: Epoch) {
        let written = self.recorder.unwritten().unwrap_or(complete);
        self.shared.stats.note(self.recorder.progress());
        self.shared.written.fetch_max(written.0, Ordering::AcqRel);
        for wake in &lock(&self.shared.inbox).wakers {
            wake();
        }
    }

    /// Tries until it is done, it is hopeless, or the writer is told to stop.
    fn persist(&mut self, attempt: impl Fn(&mut Recorder<B>) -> Result<(), Error>) -> Result<(), Error> {
        let mut backoff = Backoff::new(RETRY_MIN_MS, RETRY_MAX_MS, 1);
        let mut failed = 0;
        loop {
            let Err(error) = attempt(&mut self.recorder) else { return Ok(()) };
            failed += u32::from(!error.is_full());
            if !error.is_retriable() || failed >= ATTEMPTS_MAX {
                return Err(error);
            }
            self.shared.stats.retries.fetch_add(1, Ordering::Relaxed);
            self.tell(&error);
            if self.shared.wait_to_stop(backoff.next_wait()) {
                // Once more, and no longer.
                return attempt(&mut self.recorder);
            }
        }
    }

    fn tell(&mut self, error: &Error) {
        let now_ms = self.clock.now_ms();
        if self.told_ms.is_none_or(|told_ms| now_ms >= told_ms + TOLD_EVERY_MS) {
            self.told_ms = Some(now_ms);
            let retries = self.shared.stats.retries.load(Ordering::Relaxed);
            tracing::warn!(error = chain(error), retries, "a capture cannot be written; what passes there waits");
        }
    }
}
