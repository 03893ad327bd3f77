//! The writer thread: one for all workers of a process, so that what they append while one sync runs shares the next.
//!
//! ```text
//! take the queued jobs -> append -> write -> sync -> acks of all of them, one wake-up per worker -> again
//! ```
//!
//! A worker never waits for the disk. The queue has no bound of its own: what is in it is counted in the source's budget of bytes
//! in flight, which ends when the ack comes back. A bounded queue would block workers while the disk is full, and with them the
//! sinks whose progress releases space.
//!
//! A second thread, the keeper, saves the dedup keys of sealed segments, and a third, the copier, copies them to the long-term log:
//! both off the path of the acks.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryIter, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::disk::{self, Disk, Lock};
use super::log::{Log, Stats};
use super::long_term::cleanup::Horizon;
use super::long_term::copier::Copier;
use super::long_term::shelf::{Shelf, Store};
use super::read::{Position, Reader};
use super::{Error, NAME, Sync, keys, long_term};
use crate::batch::NormalizedBatch;
use crate::epoch::Epoch;
use crate::fault::Health;

/// A group is synced when it has this much, however much more is queued: the first ack shall not wait for the last byte.
/// Syncs of 4 to 16 MiB reach the disk's full rate.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// First and longest wait before a full disk is tried again. A release ends the wait at once.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What a worker wants to be made durable, and acknowledged as one.
#[derive(Debug)]
pub struct Job {
    /// Comes back in the ack; any number.
    pub ticket: u64,
    /// The batches, each with its epoch. May be empty.
    pub batches: Vec<(Epoch, NormalizedBatch)>,
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
    pub batch: NormalizedBatch,
}

/// Handle of the writer thread. When the last clone is dropped the thread is stopped as by `shutdown`.
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
    inbox: Mutex<Inbox>,
    changed: Condvar,
    workers: Mutex<Vec<Worker>>,
    stats: Mutex<Stats>,
    /// As of the last group.
    horizon: Mutex<Horizon>,
}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<(usize, Job)>,
    queued_bytes: u64,
    /// Taken by the writer as they come.
    events: Vec<Event>,
    stopping: bool,
    /// The writer is gone: jobs are dropped, never acknowledged.
    closed: bool,
}

struct Worker {
    acks: Sender<Ack>,
    wake: Box<dyn Fn() + Send>,
}

enum Event {
    Released(Epoch),
    KeysSaved(keys::File),
    /// The keeper needs space.
    KeysFull,
    KeysFailed(Error),
    Copied(u64),
}

/// A lock here is only poisoned if a thread panicked while moving values in or out: what it guards is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let (done, last_sync) = (vec![], Instant::now());
        let engine = Engine { log, shared: shared.clone(), health: health.clone(), to_keeper, to_copier, done, last_sync };
        joins.push(spawn("wal-writer", Box::new(move || engine.run()))?);
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
        self.shared.changed.notify_all();
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
            self.shared.changed.notify_all();
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

fn payload_bytes(job: &Job) -> u64 {
    job.batches.iter().map(|(_, batch)| batch.payload_bytes() as u64).sum()
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
        self.changed.notify_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        lock(&self.inbox).stopping
    }

    /// Waits for `limit`, or until the threads are told to stop; true if they are.
    pub(super) fn wait_to_stop(&self, limit: Duration) -> bool {
        self.wait(Some(limit), |inbox| inbox.stopping).stopping
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
    fn close(&self) {
        let mut inbox = lock(&self.inbox);
        (inbox.stopping, inbox.closed, inbox.queued_bytes) = (true, true, 0);
        inbox.jobs.clear();
        drop(inbox);
        lock(&self.workers).clear();
        self.changed.notify_all();
    }

    /// Waits until `ready` holds, or for `limit`.
    fn wait(&self, limit: Option<Duration>, ready: impl Fn(&Inbox) -> bool) -> MutexGuard<'_, Inbox> {
        let inbox = lock(&self.inbox);
        match limit {
            None => self.changed.wait_while(inbox, |inbox| !ready(inbox)).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(inbox, limit, |inbox| !ready(inbox));
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

/// The writer thread.
struct Engine {
    log: Log,
    shared: Arc<Shared>,
    health: Health,
    to_keeper: Sender<keys::File>,
    to_copier: Option<Sender<long_term::Job>>,
    /// Appended, not yet acknowledged.
    done: Vec<(usize, Ack)>,
    last_sync: Instant,
}

impl Engine {
    fn run(mut self) {
        let ended = self.serve();
        self.shared.close();
        if let Err(error) = ended {
            self.health.fail(NAME, error);
        }
        self.publish_stats();
    }

    fn serve(&mut self) -> Result<(), String> {
        self.hand_over();
        loop {
            let (jobs, stopping) = self.take();
            let epochs = epochs(&jobs);
            if jobs.is_empty() && stopping {
                return self.finish();
            }
            // Gives up the rest of the queue only when asked to stop while there is no room.
            let go_on = self.group(jobs).map_err(|error| match epochs {
                Some((first, last)) => format!("epochs {first} to {last}: {}", with_causes(&error)),
                None => with_causes(&error),
            })?;
            self.publish_stats();
            if !go_on {
                return self.finish();
            }
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        match self.log.sync() {
            // What could not be written was never acknowledged.
            Err(error) if error.is_full() => Ok(()),
            synced => synced.map_err(|error| with_causes(&error)),
        }
    }

    /// Waits for work, handles what is not a job, and takes as many jobs as make a group.
    fn take(&mut self) -> (Vec<(usize, Job)>, bool) {
        let shared = self.shared.clone();
        let limit = self.until_next_sync();
        let mut inbox = shared.wait(limit, |inbox| !inbox.jobs.is_empty() || !inbox.events.is_empty() || inbox.stopping);
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        while bytes < GROUP_BYTES_MAX
            && let Some(job) = inbox.jobs.pop_front()
        {
            bytes += payload_bytes(&job.1);
            jobs.push(job);
        }
        inbox.queued_bytes -= bytes;
        (jobs, inbox.stopping)
    }

    fn until_next_sync(&self) -> Option<Duration> {
        match self.log.config().sync {
            Sync::Every(interval) if self.log.is_dirty() => Some(interval.saturating_sub(self.last_sync.elapsed())),
            _ => None,
        }
    }

    /// Appends the jobs, makes them durable and acknowledges them. False if it was told to stop while there was no room.
    fn group(&mut self, jobs: Vec<(usize, Job)>) -> Result<bool, Error> {
        self.handle_events()?;
        for (worker, Job { ticket, batches }) in jobs {
            let mut appended = Vec::with_capacity(batches.len());
            for (epoch, batch) in batches {
                let Some(position) = self.with_room(|log| log.append(epoch, &batch))? else { return Ok(false) };
                appended.push(Appended { epoch, position, batch });
            }
            self.done.push((worker, Ack { ticket, appended }));
        }
        if self.with_room(Log::write)?.is_none() {
            return Ok(false);
        }
        let due = match self.log.config().sync {
            Sync::OnWrite => true,
            Sync::Every(interval) => self.last_sync.elapsed() >= interval,
        };
        if due {
            self.log.sync()?;
            self.last_sync = Instant::now();
        }
        self.acknowledge();
        self.hand_over();
        Ok(true)
    }

    /// Repeats `attempt` until there is room for it. `None` if the thread was told to stop meanwhile.
    fn with_room<T>(&mut self, mut attempt: impl FnMut(&mut Log) -> Result<T, Error>) -> Result<Option<T>, Error> {
        let mut retry = RETRY_MIN;
        let mut stalled = false;
        loop {
            match attempt(&mut self.log) {
                Err(error) if error.is_full() => {
                    if !stalled {
                        stalled = true;
                        tracing::warn!(error = crate::fault::chain(&error), "write-ahead log waits for space");
                        lock(&self.shared.stats).stalls += 1;
                    }
                }
                Err(error) => return Err(error),
                Ok(value) => {
                    if stalled {
                        tracing::info!("write-ahead log has space again");
                        lock(&self.shared.stats).stalled = false;
                    }
                    return Ok(Some(value));
                }
            }
            self.wait_for_room(retry)?;
            if lock(&self.shared.inbox).stopping {
                return Ok(None);
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    fn wait_for_room(&mut self, limit: Duration) -> Result<(), Error> {
        // What is complete must not wait with what is not: its publication may be what makes room.
        match self.log.sync() {
            Ok(()) => self.acknowledge(),
            Err(error) if error.is_full() => {}
            Err(error) => return Err(error),
        }
        self.hand_over();
        self.publish_stats();
        lock(&self.shared.stats).stalled = true;
        drop(self.shared.wait(Some(limit), |inbox| !inbox.events.is_empty() || inbox.stopping));
        self.handle_events()
    }

    fn handle_events(&mut self) -> Result<(), Error> {
        let events = std::mem::take(&mut lock(&self.shared.inbox).events);
        for event in events {
            match event {
                Event::Released(epoch) => retry_later(self.log.release(epoch))?,
                Event::KeysSaved(file) => retry_later(self.log.keys_saved(&file))?,
                Event::Copied(segment) => retry_later(self.log.copied(segment))?,
                Event::KeysFull => retry_later(self.log.drop_free_segment().map(drop))?,
                Event::KeysFailed(error) => {
                    self.log.poison();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let workers = lock(&self.shared.workers);
        let mut woken = BTreeSet::new();
        for (number, ack) in self.done.drain(..) {
            // A worker that is gone needs no ack.
            if workers.get(number).is_some_and(|worker| worker.acks.send(ack).is_ok()) {
                woken.insert(number);
            }
        }
        for (_, worker) in workers.iter().enumerate().filter(|(number, _)| woken.contains(number)) {
            (worker.wake)();
        }
    }

    fn hand_over(&mut self) {
        while let Some(file) = self.log.take_unsaved_keys() {
            // Should the keeper be gone, its panic has been raised, and the next start writes the keys.
            let _ = self.to_keeper.send(file);
        }
        while let Some(job) = self.log.take_uncopied() {
            // The same holds for the copier, and the next start copies the segment.
            let _ = self.to_copier.as_ref().map(|copier| copier.send(job));
        }
    }

    fn publish_stats(&self) {
        *lock(&self.shared.horizon) = self.log.horizon();
        let mut stats = lock(&self.shared.stats);
        let Stats { stalled, stalls, long_term, .. } = *stats;
        *stats = Stats { stalled, stalls, long_term, ..self.log.stats() };
    }
}

/// A rename that found no space is no reason to stop: the segment stays as it is, and the next release tries again.
fn retry_later(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_full() => Ok(()),
        result => result,
    }
}

fn epochs(jobs: &[(usize, Job)]) -> Option<(Epoch, Epoch)> {
    let epochs = || jobs.iter().flat_map(|(_, job)| job.batches.iter().map(|(epoch, _)| *epoch));
    epochs().min().zip(epochs().max())
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
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
            if self.shared.wait(Some(retry), |inbox| inbox.stopping).stopping {
                return Ok(false);
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }
}
