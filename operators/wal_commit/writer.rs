//! The writer: two threads that take turns, for all workers of a process. While one is at the disk the other encodes what the workers
//! append meanwhile, which shares the next sync.
//!
//! ```text
//! thread A:  encode 1 | write, sync 1 | acks 1 | write, sync 2    | acks 2 | ..
//! thread B:           | encode 2 ..   | encode | encode 3 ..               | ..
//! ```
//!
//! The thread that comes back from the disk goes there again with what the other has encoded: on the way from append to ack nothing is
//! handed from thread to thread but the job and the ack.
//!
//! A worker never waits for the disk. The queue has no bound of its own: what is in it is counted in the source's budget of bytes
//! in flight, which ends when the ack comes back. A bounded queue would block workers while the disk is full, and with them the
//! sinks whose progress releases space.
//!
//! A third thread, the keeper, saves the dedup keys of sealed segments, and a fourth, the copier, copies them to the long-term log:
//! both off the path of the acks.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryIter, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::disk::{self, Disk, Lock};
use super::engine::Engine;
use super::log::{Log, Stats};
use super::logged::Logged;
use super::long_term::cleanup::Horizon;
use super::long_term::copier::Copier;
use super::long_term::shelf::{Shelf, Store};
use super::read::{Position, Reader};
use super::{Error, NAME, keys, long_term};
use crate::epoch::Epoch;
use crate::fault::Health;

/// First and longest wait before a full disk is tried again. A release ends the wait at once.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(50);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(1);

/// What a worker wants to be made durable, and acknowledged as one.
#[derive(Debug)]
pub struct Job {
    /// Comes back in the ack; any number.
    pub ticket: u64,
    /// The batches, each with its epoch. May be empty.
    pub batches: Vec<(Epoch, Logged)>,
}

/// A job's batches are durable.
#[derive(Debug)]
pub struct Ack {
    /// The job's ticket.
    pub ticket: u64,
    /// The job's batches, in the job's order.
    pub appended: Vec<Appended>,
}

/// A durable batch, given back.
#[derive(Debug)]
pub struct Appended {
    /// Its epoch.
    pub epoch: Epoch,
    /// Where it lies, for reading it back.
    pub position: Position,
    /// The batch.
    pub batch: Logged,
}

/// Handle of the writer's threads. When the last clone is dropped they are stopped as by `shutdown`.
#[derive(Clone)]
pub struct Writer {
    threads: Arc<Threads>,
}

/// One worker's way to the writer and back.
pub struct Port {
    shared: Arc<Shared>,
    worker: usize,
    acks: Receiver<Ack>,
}

struct Threads {
    shared: Arc<Shared>,
    reader: Reader,
    shelf: Option<Arc<dyn Shelf>>,
    joins: Mutex<Vec<JoinHandle<()>>>,
}

/// What the workers and the log's threads share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) inbox: Mutex<Inbox>,
    /// A job or an event has come.
    pub(super) work: Condvar,
    /// A flush began or ended.
    pub(super) turn: Condvar,
    stopped: Condvar,
    pub(super) workers: Mutex<Vec<Worker>>,
    pub(super) stats: Mutex<Stats>,
    /// As of the last group.
    pub(super) horizon: Mutex<Horizon>,
}

#[derive(Default)]
pub(super) struct Inbox {
    pub(super) jobs: VecDeque<(usize, Job)>,
    pub(super) queued_bytes: u64,
    /// Taken by the writer as they come.
    pub(super) events: Vec<Event>,
    /// Flushes begun and ended.
    pub(super) turns: u64,
    pub(super) stopping: bool,
    /// The writer is gone: jobs are dropped, never acknowledged.
    pub(super) closed: bool,
}

pub(super) struct Worker {
    pub(super) acks: Sender<Ack>,
    pub(super) wake: Box<dyn Fn() + Send>,
}

pub(super) enum Event {
    Released(Epoch),
    KeysSaved(keys::File),
    /// The keeper needs space.
    KeysFull,
    KeysFailed(Error),
    Copied(u64),
}

/// A lock here is only poisoned if a thread panicked while moving values in or out: what it guards is still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Starts the threads. A failure of theirs is raised in `health`.
    pub fn spawn(log: Log, health: Health) -> Result<Writer, Error> {
        let store = log.config().long_term.as_ref().map(|long_term| Store::open(&long_term.store)).transpose()?;
        Writer::spawn_on(store.map(|store| Arc::new(store) as Arc<dyn Shelf>), log, health)
    }

    /// Starts the threads, with the long-term log on `shelf`.
    pub fn spawn_on(shelf: Option<Arc<dyn Shelf>>, log: Log, health: Health) -> Result<Writer, Error> {
        let shared = Arc::new(Shared::default());
        let reader = log.reader();
        let (to_keeper, unsaved) = channel();
        let disk = log.disk();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let guard = Guard { shared: shared.clone(), health: health.clone() };
            let spawned = thread::Builder::new().name(name.into()).spawn(move || guard.run(run));
            spawned.map_err(|error| ("start a thread for", disk.path(""), error))
        };
        let keeper = Keeper { shared: shared.clone(), disk: log.disk(), _lock: log.lock() };
        // Should a later thread not start, the earlier ones end because their senders are gone.
        let mut joins = vec![spawn("wal-keeper", Box::new(move || keeper.run(&unsaved)))?];
        let mut to_copier = None;
        if let (Some(shelf), Some(config)) = (shelf.clone(), log.config().long_term.clone()) {
            let (sender, jobs) = channel();
            to_copier = Some(sender);
            let copier = Copier { shared: shared.clone(), disk: log.disk(), shelf, config, _lock: log.lock() };
            joins.push(spawn("wal-copier", Box::new(move || copier.run(&jobs)))?);
        }
        *lock(&shared.stats) = log.stats();
        let engine = Engine::new(log, shared.clone(), health.clone(), to_keeper, to_copier);
        for name in ["wal-writer-0", "wal-writer-1"] {
            let engine = engine.clone();
            joins.push(spawn(name, Box::new(move || Engine::run(&engine)))?);
        }
        drop(engine);
        Ok(Writer { threads: Arc::new(Threads { shared, reader, shelf, joins: Mutex::new(joins) }) })
    }

    /// A worker's port. `wake` is called, on the writer's thread, after acks were sent.
    pub fn port(&self, wake: impl Fn() + Send + 'static) -> Port {
        let shared = self.threads.shared.clone();
        let (sender, acks) = channel();
        let mut workers = lock(&shared.workers);
        let worker = workers.len();
        workers.push(Worker { acks: sender, wake: Box::new(wake) });
        drop(workers);
        Port { shared, worker, acks }
    }

    /// States that every frame of an epoch before `epoch` is published, on all workers.
    pub fn release(&self, epoch: Epoch) {
        self.threads.shared.send(Event::Released(epoch));
    }

    /// What the log did and holds, as of the last group.
    pub fn stats(&self) -> Stats {
        let inbox = lock(&self.threads.shared.inbox);
        let (queued_jobs, queued_bytes) = (inbox.jobs.len() as u64, inbox.queued_bytes);
        drop(inbox);
        Stats { queued_jobs, queued_bytes, ..*lock(&self.threads.shared.stats) }
    }

    /// Reads frames back.
    pub fn reader(&self) -> Reader {
        self.threads.reader.clone()
    }

    /// Writes and acknowledges what is queued, syncs, and ends the threads. If the disk is full the queue is given up: it was
    /// never acknowledged.
    pub fn shutdown(&self) {
        self.threads.stop();
    }
}

impl Threads {
    fn stop(&self) {
        lock(&self.shared.inbox).stopping = true;
        self.shared.notify_all();
        if let Some(shelf) = &self.shelf {
            // A copy that is not done is made by the next start; a store that hangs must not hold this one.
            shelf.cancel();
        }
        for join in lock(&self.joins).drain(..) {
            // Its panic, if any, is in the health already.
            let _ = join.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Port {
    /// Queues a job. Never waits.
    pub fn append(&self, job: Job) {
        let bytes = payload_bytes(&job);
        let mut inbox = lock(&self.shared.inbox);
        if !inbox.closed {
            inbox.queued_bytes += bytes;
            inbox.jobs.push_back((self.worker, job));
            drop(inbox);
            self.shared.work.notify_one();
        }
    }

    /// The acks that have come in, in the order of this port's jobs.
    pub fn acks(&self) -> TryIter<'_, Ack> {
        self.acks.try_iter()
    }

    /// The channel the acks come by, for callers that can wait.
    pub fn receiver(&self) -> &Receiver<Ack> {
        &self.acks
    }
}

pub(super) fn payload_bytes(job: &Job) -> u64 {
    job.batches.iter().map(|(_, batch)| batch.by_ref().payload_bytes()).sum()
}

impl Shared {
    fn send(&self, event: Event) {
        let mut inbox = lock(&self.inbox);
        match (inbox.events.last_mut(), &event) {
            // Only the latest release matters, and a stalled writer may get thousands.
            (Some(Event::Released(before)), Event::Released(epoch)) => *before = (*before).max(*epoch),
            _ => inbox.events.push(event),
        }
        drop(inbox);
        self.work.notify_one();
    }

    fn notify_all(&self) {
        [&self.work, &self.turn, &self.stopped].iter().for_each(|condition| condition.notify_all());
    }

    pub(super) fn is_stopping(&self) -> bool {
        lock(&self.inbox).stopping
    }

    /// Waits for `limit`, or until the threads are told to stop; true if they are.
    pub(super) fn wait_to_stop(&self, limit: Duration) -> bool {
        self.wait(&self.stopped, Some(limit), |inbox| inbox.stopping).stopping
    }

    /// States that the copy of this segment is durable.
    pub(super) fn copied(&self, segment: u64) {
        self.send(Event::Copied(segment));
    }

    /// Counts what the copier did.
    pub(super) fn long_term<T>(&self, count: impl FnOnce(&mut long_term::Stats) -> T) -> T {
        count(&mut lock(&self.stats).long_term)
    }

    /// How far the log is.
    pub(super) fn horizon(&self) -> Horizon {
        *lock(&self.horizon)
    }

    /// Nothing is acknowledged from here on: jobs are dropped, and the ports see their channels closed.
    pub(super) fn close(&self) {
        let mut inbox = lock(&self.inbox);
        (inbox.stopping, inbox.closed, inbox.queued_bytes) = (true, true, 0);
        inbox.jobs.clear();
        drop(inbox);
        lock(&self.workers).clear();
        self.notify_all();
    }

    /// Waits until `ready` holds, looking whenever `condition` is notified, or for `limit`.
    pub(super) fn wait<'a>(
        &'a self,
        condition: &Condvar,
        limit: Option<Duration>,
        ready: impl Fn(&Inbox) -> bool,
    ) -> MutexGuard<'a, Inbox> {
        let inbox = lock(&self.inbox);
        match limit {
            None => condition.wait_while(inbox, |inbox| !ready(inbox)).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = condition.wait_timeout_while(inbox, limit, |inbox| !ready(inbox));
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// Runs a thread's body: whatever ends it, the queue is closed, and a panic becomes a fault (design D-7).
struct Guard {
    shared: Arc<Shared>,
    health: Health,
}

impl Guard {
    fn run(self, body: Box<dyn FnOnce() + Send>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            self.health.fail(NAME, format_args!("a thread of the write-ahead log panicked: {}", text.unwrap_or("no message")));
            self.shared.close();
        }
    }
}

/// The keeper thread.
struct Keeper {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    _lock: Arc<dyn Lock>,
}

impl Keeper {
    /// Ends when the writer has.
    fn run(self, unsaved: &Receiver<keys::File>) {
        while let Ok(file) = unsaved.recv() {
            match self.save(&file) {
                Ok(true) => self.shared.send(Event::KeysSaved(file)),
                // Stopped while the disk was full. The next start writes them.
                Ok(false) => return,
                Err(error) => return self.shared.send(Event::KeysFailed(error)),
            }
        }
    }

    fn save(&self, file: &keys::File) -> Result<bool, Error> {
        let mut retry = RETRY_MIN;
        loop {
            match file.save(&*self.disk) {
                Ok(()) => return Ok(true),
                Err(error) if disk::is_full(&error) => self.shared.send(Event::KeysFull),
                Err(source) => {
                    let path = self.disk.path(&super::segment::keys_name(file.segment));
                    return Err(Error::Io { action: "write", path, source });
                }
            }
            if self.shared.wait_to_stop(retry) {
                return Ok(false);
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }
}
