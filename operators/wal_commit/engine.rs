//! What the writer's two threads do in turn: [`super::writer`] draws it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use std::vec;

use parking_lot::{Mutex, MutexGuard};

use super::flush::Flush;
use super::log::{Log, Stats};
use super::logged::Logged;
use super::writer::{Ack, Appended, Event, Job, RETRY_MAX, RETRY_MIN, Shared, lock, payload_bytes};
use super::{Error, NAME, Sync, keys, long_term};
use crate::epoch::Epoch;
use crate::fault::Health;

/// What is queued already is encoded before a flush begins, up to here: it takes a fraction of the time of a sync.
const FLUSH_BYTES_MIN: u64 = 256 << 10;
/// No job is begun when this much waits for the disk: the first ack shall not wait for the last byte, and two buffers of it are
/// memory beside the budget. Syncs of 4 MiB reach the disk's full rate.
const FLUSH_BYTES_MAX: u64 = 4 << 20;

/// The log and what is on its way into it. Each thread holds the lock but while it is at the disk, or waits.
pub(super) struct Engine {
    log: Log,
    shared: Arc<Shared>,
    health: Health,
    to_keeper: Sender<keys::File>,
    to_copier: Option<Sender<long_term::Job>>,
    /// The job that could not be appended whole yet.
    open: Option<Open>,
    /// Jobs whose last bytes are in the log's buffer.
    gathered: Vec<(usize, Ack)>,
    /// The next frame does not fit in the segment, which must be synced to its end to be closed.
    is_closing: bool,
    stall: Option<Stall>,
    last_sync: Instant,
}

/// A job being appended.
struct Open {
    worker: usize,
    ticket: u64,
    appended: Vec<Appended>,
    next: Option<(Epoch, Logged)>,
    rest: vec::IntoIter<(Epoch, Logged)>,
}

/// There is no room; it is tried again.
struct Stall {
    /// True if it was a flush that found none, else an append.
    in_flush: bool,
    retry: Duration,
    until: Instant,
}

/// A flush, and the jobs to be acknowledged when it is done.
struct Flight {
    flush: Flush,
    acks: Vec<(usize, Ack)>,
}

/// What a thread waits for that found nothing to do.
enum Wait {
    /// For nothing: it did something.
    No,
    /// For a job or an event, or until the log is due to be synced.
    Work(Option<Duration>),
    /// For the other thread, to come back from the disk or to go there.
    Turn,
    /// For an event, or for the time of the next attempt.
    Room(Duration),
}

type Locked<'a> = MutexGuard<'a, Engine>;

impl Engine {
    pub(super) fn new(
        log: Log,
        shared: Arc<Shared>,
        health: Health,
        to_keeper: Sender<keys::File>,
        to_copier: Option<Sender<long_term::Job>>,
    ) -> Arc<Mutex<Engine>> {
        let mut engine = Engine {
            log,
            shared,
            health,
            to_keeper,
            to_copier,
            open: None,
            gathered: Vec::new(),
            is_closing: false,
            stall: None,
            last_sync: Instant::now(),
        };
        engine.hand_over();
        Arc::new(Mutex::new(engine))
    }

    /// The body of a thread.
    pub(super) fn run(engine: &Mutex<Engine>) {
        let mut engine = engine.lock();
        let ended = Engine::serve(&mut engine);
        if !engine.is_closed() {
            engine.shared.close();
            if let Err(error) = ended {
                engine.health.fail(NAME, error);
            }
            engine.publish_stats();
        }
    }

    /// Ends when the other thread has, or asked to stop when all is done, or with an error.
    fn serve(engine: &mut Locked<'_>) -> Result<(), String> {
        while !engine.is_closed() {
            engine.handle_events().map_err(|error| with_causes(&error))?;
            if let Some(mut flight) = engine.begin() {
                MutexGuard::unlocked(engine, || flight.flush.run());
                engine.land(flight)?;
                continue;
            }
            let wait = engine.fill()?;
            if engine.is_done() {
                break;
            }
            match wait {
                // The other thread may be back from the disk.
                Wait::No => MutexGuard::bump(engine),
                wait => Engine::wait(engine, &wait),
            }
        }
        Ok(())
    }

    fn wait(engine: &mut Locked<'_>, wait: &Wait) {
        let shared = engine.shared.clone();
        let turns = lock(&shared.inbox).turns;
        MutexGuard::unlocked(engine, || match wait {
            Wait::No => {}
            Wait::Work(limit) => drop(
                shared.wait(&shared.work, *limit, |inbox| !inbox.jobs.is_empty() || !inbox.events.is_empty() || inbox.stopping),
            ),
            Wait::Turn => drop(shared.wait(&shared.turn, None, |inbox| inbox.turns != turns || inbox.closed)),
            Wait::Room(limit) => {
                drop(shared.wait(&shared.work, Some(*limit), |inbox| !inbox.events.is_empty() || inbox.stopping));
            }
        });
    }

    fn is_closed(&self) -> bool {
        lock(&self.shared.inbox).closed
    }

    /// True if it was asked to stop, and all is done or there is no room for more: what could not be written was never acknowledged.
    fn is_done(&self) -> bool {
        let inbox = lock(&self.shared.inbox);
        if !inbox.stopping || self.log.is_flushing() {
            return false;
        }
        let is_written = !self.log.is_dirty();
        let is_empty = inbox.jobs.is_empty() && self.open.is_none() && is_written;
        is_empty || self.stall.as_ref().is_some_and(|stall| stall.in_flush || is_written)
    }

    /// A flush that is to be run now, if there is one.
    fn begin(&mut self) -> Option<Flight> {
        if self.stall.as_ref().is_some_and(|stall| stall.in_flush && Instant::now() < stall.until) {
            return None;
        }
        let inbox = lock(&self.shared.inbox);
        let (is_queued, is_stopping) = (!inbox.jobs.is_empty(), inbox.stopping);
        drop(inbox);
        let gathered_bytes = self.log.gathered_bytes();
        if is_queued && gathered_bytes < FLUSH_BYTES_MIN && self.open.is_none() && self.stall.is_none() {
            return None;
        }
        let is_due = match self.log.config().sync {
            Sync::OnWrite => false,
            Sync::Every(interval) => self.last_sync.elapsed() >= interval,
        };
        let sync = self.log.config().sync == Sync::OnWrite || self.is_closing || is_stopping;
        // A sync by interval is a flush of its own: what is written is acknowledged, and the other thread writes on beside it.
        let flush = is_due.then(|| self.log.begin_sync()).flatten().or_else(|| self.log.begin(sync))?;
        let acks = if flush.write.is_some() { std::mem::take(&mut self.gathered) } else { Vec::new() };
        self.turn();
        Some(Flight { flush, acks })
    }

    /// Acknowledges what a flush made durable.
    fn land(&mut self, flight: Flight) -> Result<(), String> {
        if self.is_closed() {
            // The other thread failed. Nothing is acknowledged any more.
            return Ok(());
        }
        let Flight { flush, mut acks } = flight;
        let is_sync = flush.sync;
        match self.log.finish(flush) {
            Ok(()) => {
                self.unstall(true);
                if is_sync {
                    self.last_sync = Instant::now();
                }
                self.acknowledge(acks);
                self.acknowledge_empty();
            }
            Err(error) if error.is_full() => {
                acks.append(&mut self.gathered);
                self.gathered = acks;
                self.stall(true, &error);
            }
            Err(error) => {
                let epochs = acks.iter().flat_map(|(_, ack)| &ack.appended).map(|appended| appended.epoch);
                return Err(in_epochs(epochs, &error));
            }
        }
        self.hand_over();
        self.publish_stats();
        self.turn();
        Ok(())
    }

    /// Appends one job, if there is one and as far as there is room.
    fn fill(&mut self) -> Result<Wait, String> {
        if let Some(stall) = self.stall.as_ref() {
            let left = stall.until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Ok(Wait::Room(left));
            }
        }
        if self.log.gathered_bytes() >= FLUSH_BYTES_MAX {
            return Ok(Wait::Turn);
        }
        let Some(mut open) = self.open.take().or_else(|| self.take_job()) else {
            return Ok(if self.log.is_flushing() && self.shared.is_stopping() {
                Wait::Turn
            } else {
                Wait::Work(self.until_next_sync())
            });
        };
        while let Some((epoch, batch)) = open.next.take().or_else(|| open.rest.next()) {
            let appended = self.log.try_append(epoch, &batch);
            self.is_closing = matches!(appended, Ok(None));
            match appended {
                Ok(Some(position)) => open.appended.push(Appended { epoch, position, batch }),
                Err(error) if !error.is_full() => return Err(in_epochs([epoch].into_iter(), &error)),
                refused => {
                    open.next = Some((epoch, batch));
                    self.open = Some(open);
                    let Err(error) = refused else {
                        return Ok(if self.log.is_flushing() { Wait::Turn } else { Wait::No });
                    };
                    self.stall(false, &error);
                    return Ok(Wait::No);
                }
            }
        }
        self.unstall(false);
        self.gathered.push((open.worker, Ack { ticket: open.ticket, appended: open.appended }));
        self.acknowledge_empty();
        Ok(Wait::No)
    }

    fn take_job(&self) -> Option<Open> {
        let mut inbox = lock(&self.shared.inbox);
        let (worker, job) = inbox.jobs.pop_front()?;
        inbox.queued_bytes -= payload_bytes(&job);
        drop(inbox);
        let Job { ticket, batches } = job;
        let appended = Vec::with_capacity(batches.len());
        Some(Open { worker, ticket, appended, next: None, rest: batches.into_iter() })
    }

    fn until_next_sync(&self) -> Option<Duration> {
        match self.log.config().sync {
            // While the other thread is at the disk, it is the one that sees to the next sync.
            Sync::Every(interval) if self.log.is_dirty() && !self.log.is_flushing() => {
                Some(interval.saturating_sub(self.last_sync.elapsed()))
            }
            _ => None,
        }
    }

    fn stall(&mut self, in_flush: bool, error: &Error) {
        let retry = match self.stall.take() {
            Some(stall) => (stall.retry * 2).min(RETRY_MAX),
            None => {
                tracing::warn!(error = crate::fault::chain(error), "write-ahead log waits for space");
                let mut stats = lock(&self.shared.stats);
                (stats.stalls, stats.stalled) = (stats.stalls + 1, true);
                RETRY_MIN
            }
        };
        self.stall = Some(Stall { in_flush, retry, until: Instant::now() + retry });
        // A segment may have been closed before the next found no room: its keys and its copy are what its release waits for.
        self.hand_over();
        self.publish_stats();
    }

    /// Ends the stall if it was one of this kind.
    fn unstall(&mut self, in_flush: bool) {
        if self.stall.take_if(|stall| stall.in_flush == in_flush).is_some() {
            tracing::info!("write-ahead log has space again");
            lock(&self.shared.stats).stalled = false;
        }
    }

    fn handle_events(&mut self) -> Result<(), Error> {
        let events = std::mem::take(&mut lock(&self.shared.inbox).events);
        if events.is_empty() {
            return Ok(());
        }
        if let Some(stall) = &mut self.stall {
            stall.until = Instant::now();
        }
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
        self.publish_stats();
        Ok(())
    }

    /// A job without batches, or whose bytes were on their way before its end was seen, has no flush to wait for.
    fn acknowledge_empty(&mut self) {
        if !self.log.is_flushing() && self.log.gathered_bytes() == 0 {
            let acks = std::mem::take(&mut self.gathered);
            self.acknowledge(acks);
        }
    }

    fn acknowledge(&self, acks: Vec<(usize, Ack)>) {
        if acks.is_empty() {
            return;
        }
        let workers = lock(&self.shared.workers);
        let mut woken = BTreeSet::new();
        for (number, ack) in acks {
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

    /// Tells the other thread, should it wait for it, that a flush began or ended.
    fn turn(&self) {
        lock(&self.shared.inbox).turns += 1;
        self.shared.turn.notify_one();
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

/// The error, and the epochs that it keeps from being acknowledged.
fn in_epochs(epochs: impl Iterator<Item = Epoch> + Clone, error: &Error) -> String {
    match epochs.clone().min().zip(epochs.max()) {
        Some((first, last)) => format!("epochs {first} to {last}: {}", with_causes(error)),
        None => with_causes(error),
    }
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
