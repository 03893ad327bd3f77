//! Reads Kafka topics into batches and commits offsets as the frontier allows.
//!
//! # In
//! A data-free feedback edge: the *commit* frontier (durable, or published with `after_publish`).
//!
//! # Out
//! `RawBatch`, one partition each, in offset order. `RecalledBatch`: before the first batch of a partition that somebody else read
//! before, what its last owner handled inside the dedup window.
//!
//! # Holds
//! One capability per worker with a consumer, downgraded every tick, busy or idle; the ledger of epochs in flight.
//!
//! # Closes when
//! Asked to stop, or at the end offsets with `until_end`: it drops its capability at once, stays in the group until the commit
//! frontier is empty, commits, and leaves.
//!
//! # Fails when
//! The client reports a fatal error. A broker that is away is waited for.
//!
//! # Invariants
//! - An offset is handed to Kafka only after the commit frontier has passed the epoch in which its batch was emitted (I-1).
//! - Batches of a partition are emitted in offset order and account for every offset from one's end to the next one's end (I-2).
//! - Bytes in flight never exceed the budget by more than the open batches (I-5); see `budget`.

pub mod collector;
pub mod consumer;
mod context;
pub mod flows;
pub mod gate;
pub(crate) mod headers;
mod history;
pub mod latency;
pub mod ledger;
pub mod pool;
pub mod resume;
pub mod topics;
pub mod warm_up;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::scheduling::SyncActivator;

use self::consumer::{Command, Event, Handle, Ports};
use self::history::History;
use self::ledger::Ledger;
use crate::batch::{RawBatch, RecalledBatch};
use crate::clock::Clock;
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::place::Place;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "kafka_source";

/// A source that has emitted nothing for so long is idle,
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// and its tick takes as long, unless an epoch does: each wakes all workers. What comes closes the open epoch at once.
const IDLE_TICK: Duration = Duration::from_millis(200);

/// Batches taken over per scheduling, so that one source does not starve its worker's other operators.
const BATCHES_PER_SCHEDULING: usize = 64;

/// The operator's settings.
#[derive(Clone)]
pub struct Config {
    /// The consumer's settings.
    pub consumer: consumer::Config,
    /// Consumers in this process; worker `i` of the process has one if `i` is below this.
    pub consumers: usize,
    /// Length of an epoch in milliseconds.
    pub epoch_interval_ms: u64,
    /// Where progress is shown.
    pub status: Arc<Status>,
}

/// How far each partition is, for reports.
#[derive(Debug, Default)]
pub struct Status {
    partitions: Mutex<BTreeMap<PartitionKey, (Position, History)>>,
}

/// Positions of one partition, each one past the last offset. committable <= emitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Emitted into the graph.
    pub emitted: i64,
    /// Passed by the commit frontier.
    pub committable: Option<i64>,
}

/// What of a partition lies before a frontier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// One past the last offset that is known to; `None` where nothing is known to.
    pub offset: Option<i64>,
    /// The epoch in which that one was emitted.
    pub epoch: Option<Epoch>,
    /// Offsets that were emitted since this start and are not known to; `None` where that cannot be said.
    pub behind: Option<u64>,
}

impl Status {
    /// The positions of all partitions this process has read.
    pub fn positions(&self) -> BTreeMap<PartitionKey, Position> {
        self.lock().iter().map(|(partition, (position, _))| (partition.clone(), *position)).collect()
    }

    /// What of each partition was emitted before epoch `frontier`; `None`: at all.
    pub fn passed(&self, frontier: Option<Epoch>) -> BTreeMap<PartitionKey, Passed> {
        self.lock().iter().map(|(partition, (_, history))| (partition.clone(), history.before(frontier))).collect()
    }

    /// A new start: frontiers say nothing of what was emitted before it.
    pub fn begin(&self) {
        self.lock().values_mut().for_each(|(_, history)| *history = History::default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionKey, (Position, History)>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_emitted(&self, epoch: Epoch, emitted: BTreeMap<PartitionKey, Range<i64>>) {
        if emitted.is_empty() {
            return;
        }
        let mut partitions = self.lock();
        for (partition, offsets) in emitted {
            let (position, history) = partitions.entry(partition).or_default();
            position.emitted = offsets.end;
            history.note(epoch, offsets);
        }
    }

    fn note_committable(&self, moved: &BTreeMap<PartitionKey, i64>) {
        if moved.is_empty() {
            return;
        }
        let mut partitions = self.lock();
        for (partition, end) in moved {
            partitions.entry(partition.clone()).or_default().0.committable = Some(*end);
        }
    }
}

/// Schedules an operator from any thread, at most once per scheduling.
struct Waker {
    activator: SyncActivator,
    pending: AtomicBool,
}

impl Waker {
    fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // Fails only when the worker is gone, and the operator with it.
            let _ = self.activator.activate();
        }
    }
}

/// The operator's output streams.
pub struct Outputs<'s> {
    /// Messages to be stored.
    pub raw: Stream<'s, Epoch, Vec<RawBatch>>,
    /// Messages whose keys the dedup window is to know, in the same epoch as the messages behind them or an earlier one.
    pub recalled: Stream<'s, Epoch, Vec<RecalledBatch>>,
}

/// Reads Kafka on the first `consumers` workers of the process. Offsets of epochs that the frontier of `commit` has passed are committed.
pub fn kafka_source<'s>(
    scope: Scope<'s, Epoch>,
    config: Config,
    ports: Ports,
    commit: Stream<'s, Epoch, Vec<()>>,
    place: Place,
) -> Outputs<'s> {
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.activator_for(address.clone());
    let sync = scope.worker().sync_activator_for(address.to_vec());
    let waker = Arc::new(Waker { activator: sync, pending: AtomicBool::new(false) });
    // The outputs come first: the feedback input has no path to them, so the loop carries frontiers only.
    let (output, raw) = builder.new_output::<Vec<RawBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<RawBatch>>>::from(output);
    let (recalled_output, recalled) = builder.new_output::<Vec<RecalledBatch>>();
    let mut recalled_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<RecalledBatch>>>::from(recalled_output);
    let mut commit_input = builder.new_input_connection(commit, Pipeline, []);
    let has_consumer = place.worker < config.consumers;

    builder.build_reschedule(move |mut capabilities| {
        // One for each output.
        let capability = capabilities.pop().zip(capabilities.pop()).map(|(recalled, raw)| Capabilities { raw, recalled });
        let mut source = has_consumer.then(|| Source::start(config, ports, place, waker.clone(), capability)).flatten();
        let mut next_tick = Instant::now();
        move |frontiers| {
            commit_input.for_each(|_, data| data.clear());
            let Some(running) = &mut source else { return false };
            waker.pending.store(false, Ordering::Release);

            // 1. Retire what the frontier has passed.
            let commit = frontiers[0].frontier().first().copied();
            running.retire(commit);

            // 2. Take over events of the consumer, and emit its batches in the open epoch.
            let more = running.take_events(&mut Sessions { raw: output.activate(), recalled: recalled_output.activate() });
            running.note_emitted();

            // 3. Close the epoch when the clock has moved on.
            running.tick();
            if running.is_closed(commit) {
                source = None;
                return false;
            }
            if more {
                activator.activate();
            }
            // One timer at a time, as activate_after never deduplicates; but the long one of an idle source does not count.
            let (now, tick) = (Instant::now(), running.tick_length());
            if next_tick <= now || next_tick > now + tick {
                next_tick = now + tick;
                activator.activate_after(tick);
            }
            true
        }
    });
    Outputs { raw, recalled }
}

type Session<'a, B> = timely::dataflow::operators::generic::OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<B>>>;

/// The outputs, as one scheduling sees them.
struct Sessions<'a> {
    raw: Session<'a, RawBatch>,
    recalled: Session<'a, RecalledBatch>,
}

/// The capability of the open epoch, once per output.
struct Capabilities {
    raw: Capability<Epoch>,
    recalled: Capability<Epoch>,
}

impl Capabilities {
    fn epoch(&self) -> Epoch {
        *self.raw.time()
    }

    fn downgrade(&mut self, epoch: Epoch) {
        self.raw.downgrade(&epoch);
        self.recalled.downgrade(&epoch);
    }
}

/// A revoke that waits for the commit frontier to pass the epoch that was open when it came.
struct Draining {
    id: u64,
    partitions: Vec<PartitionKey>,
    until: Epoch,
}

/// The operator's state on a worker that has a consumer.
struct Source {
    config: Config,
    ports: Ports,
    handle: Option<Handle>,
    /// `None` once the source has stopped reading.
    capability: Option<Capabilities>,
    ledger: Ledger,
    draining: Option<Draining>,
    /// By this scheduling, all in one epoch.
    emitted: BTreeMap<PartitionKey, Range<i64>>,
    emitted_in: Epoch,
    /// Of epochs that are not committable: when messages were polled, and how many.
    polled: BTreeMap<Epoch, Vec<(u64, u64)>>,
    /// No other consumer's epochs wait for this one's.
    is_sole: bool,
    last_event: Instant,
    is_closing: bool,
    is_closed: bool,
}

impl Source {
    fn start(config: Config, ports: Ports, place: Place, waker: Arc<Waker>, capability: Option<Capabilities>) -> Option<Source> {
        let on_wake = waker.clone();
        ports.health.on_wake(move || on_wake.wake());
        let mut settings = config.consumer.clone();
        // Static membership wants a name for each member.
        let mut distinguish = |number: usize| {
            settings.client.entry("group.instance.id".into()).and_modify(|id| id.push_str(&format!("-{number}")));
        };
        if place.is_in_cluster() {
            distinguish(place.process);
        }
        if config.consumers > 1 {
            distinguish(place.worker);
        }
        let is_sole = config.consumers == 1 && !place.is_in_cluster();
        let handle = match consumer::spawn(settings, ports.clone(), move || waker.wake()) {
            Ok(handle) => handle,
            Err(error) => {
                ports.health.fail(NAME, format!("starting the consumer thread: {error}"));
                return None;
            }
        };
        let mut source = Source {
            config,
            ports,
            handle: Some(handle),
            capability,
            ledger: Ledger::default(),
            draining: None,
            emitted: BTreeMap::new(),
            emitted_in: Epoch(0),
            polled: BTreeMap::new(),
            is_sole,
            last_event: Instant::now(),
            is_closing: false,
            is_closed: false,
        };
        // The first capability is at epoch 0: nothing may be emitted there.
        source.tick();
        Some(source)
    }

    fn tick_length(&self) -> Duration {
        let tick = Duration::from_millis(self.config.epoch_interval_ms.max(1));
        let is_waited_for = self.draining.is_some() || !self.ledger.is_settled() || self.capability.is_none();
        let is_idle = self.is_sole && !is_waited_for && self.last_event.elapsed() > IDLE_AFTER;
        if is_idle { tick.max(IDLE_TICK) } else { tick }
    }

    fn command(&self, command: Command) {
        if let Some(handle) = &self.handle {
            // The thread is gone only after a fault or after `Close`.
            let _ = handle.commands.send(command);
        }
    }

    fn retire(&mut self, commit: Option<Epoch>) {
        let moved = self.ledger.retire_committable(commit);
        self.config.status.note_committable(&moved);
        self.note_latencies(commit);
        if !moved.is_empty() {
            self.command(Command::Store(moved.into_iter().collect()));
        }
        let is_drained = |draining: &Draining| commit.is_none_or(|commit| draining.until < commit);
        if let Some(drained) = self.draining.take_if(|draining| is_drained(draining)) {
            self.command(Command::Drained(drained.id, self.ledger.committable(&drained.partitions)));
            drained.partitions.iter().for_each(|partition| self.ledger.forget(partition));
        }
        if self.ports.health.stopping() {
            self.stop_reading();
        }
    }

    fn note_latencies(&mut self, commit: Option<Epoch>) {
        let now_ms = self.ports.clock.now_ms();
        while let Some(entry) = self.polled.first_entry().filter(|entry| commit.is_none_or(|commit| *entry.key() < commit)) {
            for (polled_ms, messages) in entry.remove() {
                self.ports.stats.committable.note(now_ms.saturating_sub(polled_ms), messages);
            }
        }
    }

    fn stop_reading(&mut self) {
        if self.capability.take().is_some() {
            self.command(Command::Stop);
        }
    }

    /// Returns true if events may be left.
    fn take_events(&mut self, output: &mut Sessions<'_>) -> bool {
        for _ in 0..BATCHES_PER_SCHEDULING {
            let Some(event) = self.handle.as_ref().and_then(|handle| handle.events.try_recv().ok()) else { return false };
            self.last_event = Instant::now();
            match event {
                Event::Batch(batch) => self.emit(batch, &mut output.raw),
                Event::Recalled(batch) => self.recall(batch, &mut output.recalled),
                Event::Revoked(id, partitions) => {
                    let until = self.capability.as_ref().map_or(Epoch(0), Capabilities::epoch);
                    self.draining = Some(Draining { id, partitions, until });
                }
                Event::Lost(partitions) => {
                    self.draining = None;
                    partitions.iter().for_each(|partition| self.ledger.forget(partition));
                }
                Event::Ended => self.stop_reading(),
                Event::Closed(committed) => {
                    self.is_closed = true;
                    if let Err(message) = committed {
                        self.ports.health.fail(NAME, message);
                    }
                }
            }
        }
        true
    }

    /// Before the epoch closes: whoever sees the frontier pass it finds its offsets.
    fn note_emitted(&mut self) {
        self.config.status.note_emitted(self.emitted_in, std::mem::take(&mut self.emitted));
    }

    fn emit(&mut self, batch: RawBatch, output: &mut Session<'_, RawBatch>) {
        // Read before the stop was seen: not emitted, so not committed, and read again next time.
        let Some(capability) = &self.capability else { return };
        self.ledger.emit(capability.epoch(), &batch.partition, batch.end);
        self.ports.stats.messages.fetch_add(batch.records.len(), Ordering::Relaxed);
        self.ports.stats.bytes.fetch_add(batch.arena.len(), Ordering::Relaxed);
        self.polled.entry(capability.epoch()).or_default().push((batch.polled_ms, batch.records.len() as u64));
        let emitted = self.emitted.entry(batch.partition.clone()).or_insert(batch.start..batch.end);
        emitted.end = batch.end;
        self.emitted_in = capability.epoch();
        let mut session = output.session(&capability.raw);
        session.give(batch);
        session.flush();
    }

    /// Not in the ledger: whoever read these messages first accounts for them.
    fn recall(&mut self, batch: RecalledBatch, output: &mut Session<'_, RecalledBatch>) {
        let Some(capability) = &self.capability else { return };
        self.ports.stats.recalled.fetch_add(batch.0.records.len(), Ordering::Relaxed);
        let mut session = output.session(&capability.recalled);
        session.give(batch);
        session.flush();
    }

    fn tick(&mut self) {
        if let Some(capability) = &mut self.capability
            && let Some(next) = epoch_after(capability.epoch(), &*self.ports.clock, self.config.epoch_interval_ms)
        {
            capability.downgrade(next);
        }
    }

    /// Drives the way from the last commit to leaving the group; true when the consumer is gone.
    fn is_closed(&mut self, commit: Option<Epoch>) -> bool {
        let is_drained = self.capability.is_none() && commit.is_none() && self.ledger.is_settled();
        if is_drained && !self.is_closing {
            self.is_closing = true;
            self.command(Command::Close(self.ledger.all_committable()));
        }
        if self.is_closed
            && let Some(handle) = self.handle.take()
        {
            handle.join();
        }
        self.is_closed
    }
}

/// The epoch that the clock says, if it lies behind the open one: a clock that was set back opens none until it has caught up.
fn epoch_after(open: Epoch, clock: &dyn Clock, interval_ms: u64) -> Option<Epoch> {
    Some(Epoch::of(clock.now_ms(), interval_ms)).filter(|now| *now > open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_clock_that_jumps_back_takes_no_epoch_back() {
        let clock = ManualClock::default();
        let mut open = Epoch(0);
        let mut opened = Vec::new();
        for now_ms in [10_000, 10_019, 10_020, 3_000, 3_020, 10_039, 10_041, 9_000, 10_060] {
            clock.set_ms(now_ms);
            if let Some(next) = epoch_after(open, &clock, 20) {
                open = next;
                opened.push(next.0);
            }
        }
        assert_eq!(opened, [10_000, 10_020, 10_040, 10_060]);
    }
}
