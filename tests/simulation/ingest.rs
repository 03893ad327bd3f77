//! An ingest node: collector, window, log and encoder, with the frontiers between them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use openwit_operators::arrow_encode::{self, Encoder};
use openwit_operators::batch::{Arena, EncodedBatch, Group, NormalizedBatch, RawBatch, Record};
use openwit_operators::budget::{Budget, Load};
use openwit_operators::coverage::{Coverage, OffsetSet, PartitionKey};
use openwit_operators::dedup_window::window::{self, Partitions, Progress, Sighting, Window};
use openwit_operators::epoch::Epoch;
use openwit_operators::kafka_source::collector::{Collector, Message as Polled};
use openwit_operators::kafka_source::ledger::Ledger;
use openwit_operators::kafka_source::pool::ArenaPool;
use openwit_operators::kafka_source::resume::{self, Known, Reset};
use openwit_operators::wal_commit::memory::{Fault, Memory};
use openwit_operators::wal_commit::{self, Log, segment};

use crate::model::{Kafka, Lake, PARTITIONS, group, index_of, partition};

/// Messages of a batch at most.
const BATCH_RECORDS: usize = 4;
/// Time between epochs.
const EPOCH_MS: u64 = 20;
/// Record times and the first epoch.
const START_MS: u64 = 1_767_225_600_000;

/// What could not be done any more: the process has to start anew.
#[derive(Debug)]
pub struct Failed;

/// One delivery on its way.
#[derive(Clone)]
pub struct Sent {
    /// Its number in the session.
    pub sequence: u64,
    /// Its rows.
    pub batch: EncodedBatch,
}

/// One process.
pub struct Ingest {
    node: usize,
    disk: Memory,
    log: Option<Log>,
    logged: BTreeMap<PartitionKey, OffsetSet>,
    window: Window,
    numbers: Partitions,
    pool: ArenaPool,
    budget: Arc<Budget>,
    collectors: BTreeMap<usize, Collector>,
    ledger: Ledger,
    epoch: u64,
    emitted: BTreeMap<u64, Vec<NormalizedBatch>>,
    unique: VecDeque<(u64, NormalizedBatch)>,
    unsynced: Vec<(u64, NormalizedBatch)>,
    durable: VecDeque<(u64, NormalizedBatch)>,
    encoders: BTreeMap<Group, (Encoder, Option<u64>)>,
    unpublished: BTreeMap<u64, (u64, Vec<Coverage>)>,
    next_sequence: u64,
    /// The Flight session; another one after each start.
    pub session: u64,
    /// Where each topic's deliveries go.
    pub route: [usize; 2],
    /// All that a sync has made durable, ever.
    pub synced: BTreeMap<PartitionKey, OffsetSet>,
}

fn add(to: &mut BTreeMap<PartitionKey, OffsetSet>, coverage: &Coverage) {
    to.entry(coverage.partition.clone()).or_default().insert(coverage.range());
}

impl Ingest {
    /// A node with an empty disk, not yet started.
    pub fn new(node: usize) -> Self {
        Ingest {
            node,
            disk: Memory::aligned(),
            log: None,
            logged: BTreeMap::new(),
            window: Window::new(window_config()),
            numbers: Partitions::default(),
            pool: ArenaPool::new(4, 4096, false),
            budget: Budget::new(Load { bytes: 1 << 30, messages: 1 << 30 }),
            collectors: BTreeMap::new(),
            ledger: Ledger::default(),
            epoch: START_MS,
            emitted: BTreeMap::new(),
            unique: VecDeque::new(),
            unsynced: Vec::new(),
            durable: VecDeque::new(),
            encoders: BTreeMap::new(),
            unpublished: BTreeMap::new(),
            next_sequence: 0,
            session: 0,
            route: [0; 2],
            synced: BTreeMap::new(),
        }
    }

    /// Ends the process, and with `choose` the machine: what was not synced is lost in part.
    pub fn stop(&mut self, choose: Option<&mut dyn FnMut(usize) -> usize>) {
        self.log = None;
        if let Some(choose) = choose {
            self.disk = self.disk.crash(choose);
        }
        self.disk.heal();
    }

    /// Starts the process: recovers the log, warms up the window, replays, resumes its partitions.
    pub fn start(&mut self, session: u64, kafka: &Kafka, lake: &Lake) {
        let before = std::mem::replace(self, Ingest::new(self.node));
        (self.disk, self.route, self.synced, self.session) = (before.disk, before.route, before.synced, session);
        self.epoch = before.epoch + EPOCH_MS;
        let (log, recovery) = Log::open_on(Arc::new(self.disk.clone()), log_config(), Epoch(self.epoch)).unwrap();
        assert!(!recovery.report.is_loss(), "a crash is no loss: {:?}", recovery.report);
        self.logged = recovery.coverage.clone();
        for (partition, synced) in &self.synced {
            let holds =
                |offsets: Option<&OffsetSet>, offset| offsets.is_some_and(|offsets| offsets.range_around(offset).is_some());
            let is_kept = |&offset: &i64| holds(self.logged.get(partition), offset) || holds(lake.covered.get(partition), offset);
            let lost: Vec<i64> = synced.ranges().flatten().filter(|offset| !is_kept(offset)).collect();
            assert!(lost.is_empty(), "node {}: synced, and neither recovered nor published: {lost:?} of {partition}", self.node);
        }
        // What was only written and is found is synced by the recovery, and counts from here on.
        for (partition, found) in &self.logged {
            let synced = self.synced.entry(partition.clone()).or_default();
            found.ranges().for_each(|range| synced.insert(range));
        }
        for key in recovery.keys().map(Result::unwrap) {
            let partition = self.numbers.index(&key.partition).unwrap();
            self.window.advance(Progress { epoch_ms: key.epoch.0, time_ms: key.timestamp_ms, records: 1 });
            self.window.remember(&[Sighting { key: key.key, time_ms: key.timestamp_ms, partition, offset: key.offset }]);
        }
        let frames = recovery.frames().map(|frame| frame.unwrap().batch).filter(|batch| !lake.holds(&batch.coverage));
        self.durable = (1..).zip(frames).collect();
        self.log = Some(log);
        self.epoch += EPOCH_MS;
        for index in (0..PARTITIONS).filter(|&index| kafka.owner[index] == before.node) {
            self.assign(index, kafka, lake);
        }
    }

    /// Begins to read a partition.
    pub fn assign(&mut self, index: usize, kafka: &Kafka, lake: &Lake) {
        let key = partition(index);
        let mut covered = lake.covered.get(&key).cloned().unwrap_or_default();
        self.logged.get(&key).iter().flat_map(|logged| logged.ranges()).for_each(|range| covered.insert(range));
        let (committed, high) = (kafka.committed[index], kafka.messages[index].len() as i64);
        let known = Known { committed, low: 0, high, covered, read_end: 0, log_lost_records: false };
        let start = resume::start(&known, Reset::Earliest);
        self.collectors.insert(index, Collector::new(key.clone(), start.offset, self.budget.lane(&key)));
    }

    /// Gives a partition up: what is collected is thrown away, what is emitted goes its way.
    pub fn revoke(&mut self, index: usize) {
        self.collectors.remove(&index);
        self.ledger.forget(&partition(index));
    }

    /// Plans a fault of the disk.
    pub fn break_disk(&self, after: u64, fault: Fault) {
        self.disk.fail(after, fault);
    }

    /// Reads some messages of a partition; closes the batch when it is full.
    pub fn poll(&mut self, index: usize, messages: usize, kafka: &Kafka) {
        let Some(collector) = self.collectors.get_mut(&index) else { return };
        for _ in 0..messages {
            let offset = collector.next();
            let Some(message) = kafka.messages[index].get(offset as usize) else { break };
            let payload = message.payload();
            let polled = Polled { offset, timestamp_ms: START_MS as i64, key: None, payload: Some(&payload) };
            let bytes = collector.push(&polled, std::iter::empty(), &self.pool, 0).unwrap();
            self.budget.collect(Load { bytes, messages: 1 });
            if collector.is_full(&limits()) {
                self.close(index, kafka);
                return;
            }
        }
    }

    /// Closes a partition's batch and emits it in the open epoch.
    pub fn close(&mut self, index: usize, kafka: &Kafka) {
        let Some(batch) = self.collectors.get_mut(&index).and_then(|collector| collector.close(&self.pool)) else {
            return;
        };
        self.ledger.emit(Epoch(self.epoch), &batch.partition, batch.end);
        self.emitted.entry(self.epoch).or_default().push(normalized(batch, index, kafka));
    }

    /// Opens the next epoch.
    pub fn tick(&mut self) {
        self.epoch += EPOCH_MS;
    }

    /// Decides the duplicates of the oldest complete epoch.
    pub fn dedup(&mut self) {
        let Some(entry) = self.emitted.first_entry().filter(|entry| *entry.key() < self.epoch) else { return };
        let (epoch, mut batches) = entry.remove_entry();
        batches.sort_by(|one, other| {
            (&one.coverage.partition, one.coverage.start).cmp(&(&other.coverage.partition, other.coverage.start))
        });
        for mut batch in batches {
            if let Some(progress) = Progress::of(epoch, batch.records.iter().map(|record| record.timestamp_ms)) {
                self.window.advance(progress);
            }
            let partition = self.numbers.index(&batch.coverage.partition).unwrap();
            let sighting =
                |record: &Record| Sighting { key: record.key, time_ms: record.timestamp_ms, partition, offset: record.offset };
            let (sightings, mut verdicts) = (batch.records.iter().map(sighting).collect::<Vec<_>>(), Vec::new());
            self.window.observe(&sightings, &mut verdicts);
            let mut verdict = verdicts.into_iter();
            let duplicates = &mut batch.coverage.duplicates;
            batch.records.retain(|record| {
                let is_duplicate = verdict.next().unwrap();
                duplicates.extend(is_duplicate.then_some(record.offset));
                !is_duplicate
            });
            self.unique.push_back((epoch, batch));
        }
    }

    /// Appends the next batch to the log.
    pub fn append(&mut self) -> Result<(), Failed> {
        let Some((epoch, batch)) = self.unique.front() else { return Ok(()) };
        match self.log.as_mut().unwrap().append(Epoch(*epoch), batch) {
            Ok(_) => self.unsynced.extend(self.unique.pop_front()),
            Err(error) if error.is_full() => {}
            Err(_) => return Err(Failed),
        }
        Ok(())
    }

    /// Makes durable what is appended.
    pub fn sync(&mut self) -> Result<(), Failed> {
        match self.log.as_mut().unwrap().sync() {
            Ok(()) => {}
            Err(error) if error.is_full() => return Ok(()),
            Err(_) => return Err(Failed),
        }
        self.unsynced.iter().for_each(|(_, batch)| add(&mut self.synced, &batch.coverage));
        self.durable.extend(self.unsynced.drain(..));
        Ok(())
    }

    /// Commits to Kafka what the durable frontier has passed.
    pub fn commit_offsets(&mut self, kafka: &mut Kafka) {
        let waiting = self
            .emitted
            .keys()
            .chain(self.unique.iter().map(|(epoch, _)| epoch))
            .chain(self.unsynced.iter().map(|(epoch, _)| epoch));
        let frontier = waiting.copied().chain([self.epoch]).min().unwrap();
        for (partition, end) in self.ledger.retire_committable(Some(Epoch(frontier))) {
            let index = index_of(&partition);
            if kafka.owner[index] == self.node {
                kafka.committed[index] = Some(end);
            }
        }
    }

    /// Encodes the next batch; deliveries hold the least epoch of what is in them. One that has some of its offsets already leaves first:
    /// a partition that was lost and came back is in the log twice.
    pub fn encode(&mut self) -> Option<(usize, Sent)> {
        let (epoch, batch) = self.durable.pop_front()?;
        let group = batch.group.clone();
        let topic = index_of(&batch.coverage.partition) / 2;
        let contradicts = self.encoders.get(&group).is_some_and(|(encoder, _)| encoder.contradicts(&batch.coverage));
        let sent = contradicts.then(|| self.send(topic)).flatten();
        let new = || (Encoder::new(arrow_encode::Config { batch_rows_max: 5, ..arrow_encode::Config::new(group.clone()) }), None);
        let (encoder, held) = self.encoders.entry(group.clone()).or_insert_with(new);
        encoder.append(&batch).unwrap();
        *held = Some(held.map_or(epoch, |held: u64| held.min(epoch)));
        Some((topic, sent?))
    }

    /// Sends what is encoded of a topic.
    pub fn send(&mut self, topic: usize) -> Option<Sent> {
        let (encoder, held) = self.encoders.get_mut(&group(2 * topic))?;
        let (batch, epoch) = (encoder.finish()?, held.take().unwrap());
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.unpublished.insert(sequence, (epoch, batch.coverage.clone()));
        Some(Sent { sequence, batch })
    }

    /// Storage says that a delivery is published: it must be in the catalog.
    pub fn published(&mut self, sequence: u64, lake: &Lake) {
        let Some((_, coverage)) = self.unpublished.remove(&sequence) else { return };
        let missing = coverage.iter().find(|coverage| !lake.holds(coverage));
        assert!(missing.is_none(), "delivery {sequence} was acknowledged, {missing:?} is not in the catalog");
    }

    /// Releases what the published frontier has passed.
    pub fn release(&mut self) -> Result<(), Failed> {
        let held = self.encoders.values().filter_map(|(_, held)| *held);
        let queued = self.unique.iter().chain(&self.unsynced).chain(&self.durable).map(|(epoch, _)| *epoch);
        let unpublished = self.unpublished.values().map(|(epoch, _)| *epoch);
        let all = held.chain(queued).chain(unpublished).chain(self.emitted.keys().copied()).chain([self.epoch]);
        let frontier = all.min().unwrap();
        let log = self.log.as_mut().unwrap();
        let done = log.save_keys().and_then(|()| log.release(Epoch(frontier)));
        done.or_else(|error| if error.is_full() { Ok(()) } else { Err(Failed) })
    }
}

fn limits() -> openwit_operators::kafka_source::collector::BatchLimits {
    openwit_operators::kafka_source::collector::BatchLimits { records_max: BATCH_RECORDS, bytes_max: 1 << 20, timeout_ms: 0 }
}

/// Segments so small that they are sealed and reused all the time, and a log that is full now and then.
fn log_config() -> wal_commit::Config {
    wal_commit::Config {
        segment_bytes: segment::BYTES_MIN,
        bytes_max: 12 * segment::BYTES_MIN,
        ..wal_commit::Config::new("memory")
    }
}

fn window_config() -> window::Config {
    window::Config { window_ms: 3_600_000, bytes_max: 1 << 20 }
}

/// What `normalize` makes of a batch: invalid messages are rejected, the others pass.
fn normalized(batch: RawBatch, index: usize, kafka: &Kafka) -> NormalizedBatch {
    let mut coverage = Coverage::stored(batch.partition, batch.start..batch.end);
    let mut records = Vec::new();
    for record in &batch.records {
        let message = kafka.messages[index][record.offset as usize];
        if !message.is_valid {
            coverage.rejected.push(record.offset);
            continue;
        }
        let key =
            (u128::from(message.content) << 1 | (index / 2) as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        let (offset, timestamp_ms, payload) = (record.offset, record.timestamp_ms, record.payload.unwrap());
        records.push(Record { offset, timestamp_ms, key, arena: Arena::Raw, payload, tenant: 0 });
    }
    NormalizedBatch {
        group: group(index),
        coverage,
        raw: batch.arena,
        written: Default::default(),
        records,
        schema: None,
        tenants: Vec::new(),
        charge: batch.charge,
    }
}
