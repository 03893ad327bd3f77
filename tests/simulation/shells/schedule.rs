//! The scheduler: draws which worker runs next, what the outside answers and what fails, and looks whether it is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Arguments;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openwit_operators::batch::{RawBatch, RawRecord, Reject, Span};
use openwit_operators::budget::{Budget, Load};
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::dead_letter;
use openwit_operators::dedup_window::{self, remember};
use openwit_operators::desk::{Desk, Envelope};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::kafka_source::resume::{self, Known, Reset};
use openwit_operators::wal_commit::memory::{Fault, Memory};
use openwit_operators::wal_commit::recovery::{Recovery, merge};
use openwit_operators::wal_commit::replay::{self, Replay};
use openwit_operators::wal_commit::{self, Job, Log, Port, Writer};

use super::cluster::Cluster;
use super::disk::{Gate, Gated};
use super::graph::{self, Exchange, Feed, Shared};
use super::lake::{Emitted, Lake, winners};
use crate::model::{Kafka, Message, PARTITIONS, index_of, partition};
use crate::support::random::Random;

/// Histories of a default run of each kind; a second or two.
const RUNS: u64 = 2;
/// Steps of a history before all comes to rest.
const STEPS: u64 = 300;
/// Rounds in which all must come to rest.
const ROUNDS: usize = 400;
/// Time between epochs.
const EPOCH_MS: u64 = 20;
/// Record times and the first epoch.
const START_MS: u64 = 1_767_225_600_000;
/// How long the log's threads may take to come to rest: they have a few bytes to write into memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may come next, and how often: a message, a batch, an epoch, a worker, the disk, a dead letter, a delivery, a fault, a crash, a kill.
const WEIGHTS: [u64; 10] = [40, 30, 12, 100, 25, 10, 20, 2, 1, 1];
/// The last of those that harm nobody.
const HARMLESS: usize = 7;

type Letters = Arc<Mutex<Vec<Envelope<Vec<Reject>, ()>>>>;

/// One life of the process.
struct Process {
    cluster: Cluster,
    shared: Shared,
    health: Health,
    is_after_wal: bool,
    budget: Arc<Budget>,
    gate: Gate,
    letters: Letters,
    desk: Desk<Vec<Reject>, ()>,
    /// A way to the log's threads, last of all ports: when its wake is called, all others were.
    port: Port,
    wakes: Receiver<()>,
    tickets: u64,
    writer: Writer,
    /// Partitions of which something was emitted.
    read: BTreeSet<usize>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // The log's threads end only when the disk lets them.
        self.gate.close(false);
    }
}

impl Process {
    /// Waits until the log's threads have nothing to do, or, unless all is to be acknowledged, only the gate keeps them from it.
    fn settle(&mut self, all: bool) {
        // Twice: the first job may pass a thread that has not looked for other news yet.
        for _ in 0..2 {
            self.tickets += 1;
            self.port.append(Job { ticket: self.tickets, batches: Vec::new() });
            let since = Instant::now();
            loop {
                assert!(since.elapsed() < PATIENCE, "the log's threads do not come to rest: {:?}", self.writer.stats());
                let woken = self.wakes.recv_timeout(Duration::from_micros(200));
                if woken == Err(RecvTimeoutError::Disconnected) {
                    // The writer is gone; its fault is on its way.
                    if self.health.failed() {
                        return;
                    }
                    std::thread::yield_now();
                }
                let is_acked = woken.is_ok() && self.port.acks().any(|ack| ack.ticket == self.tickets);
                let is_held = !all && self.gate.is_awaited() && self.writer.stats().queued_jobs == 0;
                if is_acked || is_held {
                    break;
                }
            }
        }
        // What was sent to the desk before has arrived.
        self.desk.ask(Vec::new()).expect("the desk does not end");
    }
}

struct World {
    random: Random,
    kafka: Kafka,
    lake: Lake,
    /// Rejects that the dead letter has.
    dead: BTreeSet<(usize, i64)>,
    disk: Memory,
    epoch: u64,
    emitted: Vec<Emitted>,
    /// The next offset to be read, and the worker that reads, by partition.
    next: [i64; PARTITIONS],
    reader: [usize; PARTITIONS],
    contents: u64,
    starts: u64,
    workers_max: u64,
    process: Option<Process>,
    trace: bool,
}

impl World {
    fn new(seed: u64, workers_max: u64) -> Self {
        let mut world = World {
            random: Random::of_seed(seed),
            kafka: Kafka::default(),
            lake: Lake::default(),
            dead: BTreeSet::new(),
            disk: Memory::aligned(),
            epoch: START_MS,
            emitted: Vec::new(),
            next: [0; PARTITIONS],
            reader: [0; PARTITIONS],
            contents: 0,
            starts: 0,
            workers_max,
            process: None,
            trace: std::env::var("SIM_TRACE").is_ok(),
        };
        world.start(workers_max as usize);
        world
    }

    fn say(&self, what: Arguments<'_>) {
        if self.trace {
            println!("{what}");
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Starts the process, as `graphs/process.rs` does.
    fn start(&mut self, workers: usize) {
        self.starts += 1;
        self.epoch += EPOCH_MS;
        let (is_after_wal, gate) = (self.random.below(4) > 0, Gate::default());
        self.say(format_args!("start {} with {workers} workers, commits after wal: {is_after_wal}", self.starts));
        let (mut log, recovery) = open(Gated::new(self.disk.clone(), gate.clone()), self.epoch);
        self.check_recovered(&recovery);
        // On this thread: beside the schedule the keeper would have the disk's faults to itself.
        log.save_keys().expect("the disk has no faults yet");
        let remembered = remember::Feed::loaded(recovery.keys()).unwrap();
        let health = Health::default();
        let replayed = Arc::new(Replay::new(recovery.frames(), Arc::new(self.lake.covered.clone())));
        let reader = log.reader();
        let writer = Writer::spawn_on(None, log, health.clone()).unwrap();
        let letters = Letters::default();
        let serve = {
            let letters = letters.clone();
            move |requests: Receiver<Envelope<Vec<Reject>, ()>>| {
                for envelope in requests {
                    // An empty request asks whether those before have come.
                    if envelope.request.is_empty() { envelope.answer(()) } else { letters.lock().unwrap().push(envelope) }
                }
            }
        };
        let (desk, _) = Desk::open(dead_letter::NAME, health.clone(), serve).unwrap();
        // Of eight messages half may stay in memory behind the log: the others are let go and read back.
        let budget = Budget::new(Load { bytes: 1 << 30, messages: 8 });
        let shared: Shared = Arc::new(Mutex::new(Exchange::new(workers)));
        let backlog = Arc::new(replay::Stats::default());
        let ports = graph::Ports {
            shared: shared.clone(),
            is_after_wal,
            dedup: dedup_window::Ports { remembered, stats: Arc::default(), health: health.clone() },
            dead_letter: dead_letter::Ports { desk: desk.clone() },
            wal: wal_commit::Ports { writer: writer.clone(), budget: budget.clone(), backlog: backlog.clone() },
            replay: replay::Ports { replay: replayed, reader, budget: budget.clone(), health: health.clone(), stats: backlog },
            health: health.clone(),
        };
        let ports = Mutex::new(ports);
        let cluster = Cluster::start(workers, move |worker| {
            let ports = ports.lock().unwrap().clone();
            worker.dataflow(|scope| graph::build(scope, ports));
        });
        let (wake, wakes) = channel();
        let port = writer.port(move || {
            // Nobody waits any more once the process has ended.
            let _ = wake.send(());
        });
        gate.close(true);
        let (tickets, read) = (0, BTreeSet::new());
        let process =
            Process { cluster, shared, health, is_after_wal, budget, gate, letters, desk, port, wakes, tickets, writer, read };
        self.process = Some(process);
        self.resume(&recovery.coverage, workers);
        self.tick();
    }

    /// Where each partition is read on, and by whom.
    fn resume(&mut self, logged: &BTreeMap<PartitionKey, OffsetSet>, workers: usize) {
        let mut durable = logged.clone();
        merge(&mut durable, &self.lake.covered);
        for index in 0..PARTITIONS {
            let covered = durable.remove(&partition(index)).unwrap_or_default();
            let (committed, high) = (self.kafka.committed[index], self.kafka.messages[index].len() as i64);
            let known = Known { committed, low: 0, high, covered, read_end: 0, log_lost_records: false };
            self.next[index] = resume::start(&known, Reset::Earliest).offset;
            self.reader[index] = self.below(workers);
        }
    }

    /// What was committed is in the log or published, and its rejects are in the dead letter.
    fn check_recovered(&self, recovery: &Recovery) {
        assert!(!recovery.report.is_loss(), "a crash is no loss: {:?}", recovery.report);
        for index in 0..PARTITIONS {
            self.check_durable(index, self.kafka.committed[index].unwrap_or(0), &recovery.coverage);
        }
    }

    fn check_durable(&self, index: usize, end: i64, logged: &BTreeMap<PartitionKey, OffsetSet>) {
        let mut durable = logged.clone();
        merge(&mut durable, &self.lake.covered);
        let missing = durable.get(&partition(index)).map_or(vec![0..end], |durable| durable.missing_in(0..end));
        assert!(
            end == 0 || missing.is_empty(),
            "partition {index} is committed to {end}: {missing:?} would be lost with the power"
        );
        let invalid = |offset: &i64| !self.kafka.messages[index][*offset as usize].is_valid;
        let lost: Vec<i64> = (0..end).filter(invalid).filter(|offset| !self.dead.contains(&(index, *offset))).collect();
        assert!(lost.is_empty(), "partition {index} is committed to {end}: rejects {lost:?} are not in the dead letter");
    }

    /// Ends the process; with the power, what was not synced is lost in part.
    fn restart(&mut self, is_crash: bool) {
        let random = &mut self.random;
        // A killed process leaves all that it has written.
        let mut choose = |bound: usize| match is_crash {
            true => random.below(bound as u64) as usize,
            false if bound == 4 => 1,
            false => bound - 1,
        };
        let left = self.disk.crash(&mut choose);
        self.say(format_args!("{}", if is_crash { "crash" } else { "kill" }));
        self.process = None;
        self.disk = left;
        let workers = 1 + self.random.below(self.workers_max) as usize;
        self.start(workers);
    }

    fn produce(&mut self) {
        let index = self.below(PARTITIONS);
        let is_copy = self.contents > 0 && self.random.below(5) < 2;
        let content = if is_copy { self.random.below(self.contents) } else { self.contents };
        self.contents = self.contents.max(content + 1);
        let is_valid = self.random.below(8) > 0;
        self.kafka.messages[index].push(Message { content, is_valid });
    }

    /// Reads some messages of a partition and emits them in the open epoch.
    fn emit(&mut self, index: usize, messages: usize) {
        let start = self.next[index];
        let end = (start + messages as i64).min(self.kafka.messages[index].len() as i64);
        if start == end {
            return;
        }
        let (mut arena, mut records) = (Vec::new(), Vec::new());
        for offset in start..end {
            let message = self.kafka.messages[index][offset as usize];
            let payload = if message.is_valid { message.payload() } else { b"no protobuf".to_vec() };
            let payload = Some(Span { start: arena.len() as u32, len: payload.len() as u32 }).inspect(|_| arena.extend(payload));
            records.push(RawRecord { offset, timestamp_ms: START_MS as i64, key: None, payload, headers: Span::default() });
        }
        let load = Load { bytes: arena.len(), messages: records.len() };
        let (epoch, worker) = (self.epoch, self.reader[index]);
        self.next[index] = end;
        self.emitted.push(Emitted { epoch, index, start, end });
        self.say(format_args!("worker {worker} emits {start}..{end} of partition {index} in {epoch}"));
        let process = self.process();
        process.budget.collect(load);
        let charge = process.budget.seal(load);
        let batch = RawBatch { partition: partition(index), start, end, arena: arena.into(), records, polled_ms: 0, charge };
        process.read.insert(index);
        self.feed(worker, Feed::Batch(batch));
    }

    fn feed(&mut self, worker: usize, feed: Feed) {
        let mut shared = self.process().shared.lock().unwrap();
        shared.feeds[worker].push_back(feed);
        shared.wake_source(worker);
    }

    /// Opens the next epoch at all sources.
    fn tick(&mut self) {
        self.epoch += EPOCH_MS;
        let epoch = self.epoch;
        (0..self.process().cluster.workers()).for_each(|worker| self.feed(worker, Feed::Epoch(epoch)));
    }

    /// Lets a worker run. True if its dataflow goes on.
    fn step(&mut self, worker: usize) -> bool {
        let process = self.process();
        let goes_on = process.cluster.step(worker);
        process.settle(false);
        self.look();
        goes_on
    }

    /// Lets all syncs through that wait.
    fn sync(&mut self) {
        let process = self.process();
        process.gate.close(false);
        process.settle(true);
        process.gate.close(true);
        self.look();
    }

    /// Takes note of commits, and of a fault.
    fn look(&mut self) {
        let process = self.process();
        let (is_after_wal, has_failed) = (process.is_after_wal, process.health.failed());
        let committed = std::mem::take(&mut process.shared.lock().unwrap().committed);
        for (partition, end) in committed {
            let index = index_of(&partition);
            self.say(format_args!("partition {index} is committed to {end}"));
            assert!(
                self.kafka.committed[index] <= Some(end),
                "partition {index} is committed to {end} after {:?}",
                self.kafka.committed
            );
            self.kafka.committed[index] = Some(end);
            // As if the power went now, and took with it all that it can.
            let (_log, recovery) = open(self.disk.crash(&mut |_| 0), self.epoch);
            let logged = if is_after_wal { recovery.coverage } else { BTreeMap::new() };
            self.check_durable(index, end, &logged);
        }
        if has_failed {
            let fault = self.process().health.fault();
            self.say(format_args!("fault: {fault:?}"));
            assert!(fault.is_some_and(|fault| fault.message.contains("injected")), "only the disk fails");
            self.restart(true);
        }
    }

    /// The dead letter takes a worker's rejects.
    fn answer(&mut self) {
        let waiting = self.process().letters.lock().unwrap().len();
        if waiting == 0 {
            return;
        }
        let chosen = self.below(waiting);
        let envelope = self.process().letters.lock().unwrap().remove(chosen);
        for Reject { partition, record, .. } in &envelope.request {
            let (index, offset) = (index_of(partition), record.offset);
            assert!(!self.kafka.messages[index][offset as usize].is_valid, "{index}@{offset} is valid and was rejected");
            self.dead.insert((index, offset));
        }
        envelope.answer(());
    }

    /// Storage publishes a delivery.
    fn publish(&mut self) {
        let waiting = self.process().shared.lock().unwrap().delivered.len();
        if waiting == 0 {
            return;
        }
        let chosen = self.below(waiting);
        let (worker, number, batch) = self.process().shared.lock().unwrap().delivered.remove(chosen);
        self.say(format_args!("delivery {number} of worker {worker} is published: {:?}", batch.coverage));
        self.lake.publish(&batch, &self.kafka);
        let mut shared = self.process().shared.lock().unwrap();
        shared.published[worker].insert(number);
        shared.wake_sink(worker);
    }

    fn act(&mut self, choices: usize) {
        let weights = &WEIGHTS[..choices];
        let mut drawn = self.random.below(weights.iter().sum());
        let chosen = weights.iter().position(|weight| {
            let is_chosen = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            is_chosen
        });
        match chosen.unwrap() {
            0 => self.produce(),
            1 => {
                let (index, messages) = (self.below(PARTITIONS), 1 + self.below(4));
                self.emit(index, messages);
            }
            2 => self.tick(),
            3 => {
                let workers = self.process().cluster.workers();
                let worker = self.below(workers);
                self.step(worker);
            }
            4 => self.sync(),
            5 => self.answer(),
            6 => self.publish(),
            7 => {
                let after = self.random.below(6);
                self.disk.fail(after, Fault::Io);
            }
            8 => self.restart(true),
            _ => self.restart(false),
        }
    }

    /// Everything goes on, one after the other; true if a dataflow is left.
    fn round(&mut self) -> bool {
        let workers = self.process().cluster.workers();
        let first = self.below(workers);
        let mut goes_on = false;
        for worker in 0..workers {
            goes_on |= self.step((first + worker) % workers);
        }
        self.sync();
        while !self.process().letters.lock().unwrap().is_empty() {
            self.answer();
        }
        while !self.process().shared.lock().unwrap().delivered.is_empty() {
            self.publish();
        }
        goes_on
    }

    /// Nothing fails any more: everything goes through, and then the input ends.
    fn rest(&mut self) {
        self.disk.heal();
        for round in 0.. {
            assert!(round < ROUNDS, "not all is published after {ROUNDS} rounds: {:?}", self.lake.covered);
            (0..PARTITIONS).for_each(|index| self.emit(index, 5));
            self.tick();
            self.round();
            if self.lake.is_complete(&self.kafka) {
                break;
            }
        }
        (0..self.process().cluster.workers()).for_each(|worker| self.feed(worker, Feed::End));
        for round in 0.. {
            assert!(round < ROUNDS, "the graph has not ended after {ROUNDS} rounds");
            if !self.round() {
                break;
            }
        }
        for index in std::mem::take(&mut self.process().read) {
            let end = self.kafka.messages[index].len() as i64;
            assert_eq!(self.kafka.committed[index], Some(end), "partition {index} at the end");
        }
        self.lake.check_contents(&self.kafka);
        for index in 0..PARTITIONS {
            let invalid = self.kafka.messages[index].iter().enumerate().filter(|(_, message)| !message.is_valid);
            let lost: Vec<_> = invalid.filter(|(offset, _)| !self.dead.contains(&(index, *offset as i64))).collect();
            assert!(lost.is_empty(), "partition {index}: rejects that are in no dead letter: {lost:?}");
        }
        if self.starts == 1 {
            assert_eq!(self.lake.stored, winners(&self.emitted, &self.kafka), "which copies are stored");
        }
    }
}

fn open(disk: impl openwit_operators::wal_commit::disk::Disk + 'static, epoch: u64) -> (Log, Recovery) {
    // Large enough never to be sealed while the schedule runs: what the keeper does then is its own business.
    let segment_bytes = 1 << 20;
    let config = wal_commit::Config { segment_bytes, bytes_max: 64 * segment_bytes, ..wal_commit::Config::new("memory") };
    Log::open_on(Arc::new(disk), config, Epoch(epoch)).unwrap_or_else(|error| panic!("the log does not open: {error}"))
}

/// One history, with as many workers at most and with so many of the choices. Returns how often the process was started.
fn history(seed: u64, workers_max: u64, choices: usize) -> u64 {
    println!("SIM_SEED={seed} workers={workers_max}");
    let mut world = World::new(seed, workers_max);
    (0..STEPS).for_each(|_| world.act(choices));
    world.rest();
    world.starts
}

fn histories(name: &str, choices: usize) -> u64 {
    let number = |variable| std::env::var(variable).ok().map(|value: String| value.parse::<u64>().unwrap());
    let seed = number("SIM_SEED");
    let runs = if seed.is_some() { 1 } else { number("SIM_RUNS").unwrap_or(RUNS) };
    let mut random = Random::for_test(name);
    let mut starts = 0;
    for _ in 0..runs {
        let seed = seed.unwrap_or_else(|| random.bits());
        for workers in 1..=4 {
            starts += history(seed, workers, choices);
        }
    }
    starts
}

#[test]
fn shells_store_what_the_model_names_whatever_the_order_in_which_workers_run() {
    histories("undisturbed shells", HARMLESS);
}

#[test]
fn shells_lose_and_double_nothing_whatever_fails() {
    let starts = histories("disturbed shells", WEIGHTS.len());
    println!("{starts} starts");
}
