//! The thread that owns a consumer, planned from the configuration's keys, on a mock broker: where batches end, where reading pauses and
//! resumes, how much a turn takes, how long a partition that moves away is kept. Clock and budget are the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openwit_ingest::config::{Config, ConsumerType};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan, Topic};
use openwit_ingest::plan::{Changes, plan};
use openwit_operators::batch::{RawBatch, Signal};
use openwit_operators::budget::{Budget, Load};
use openwit_operators::clock::Clock;
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::fault::Health;
use openwit_operators::kafka_source::consumer::{self, Command, Covered, Event, Handle, Ports, Stats};
use openwit_operators::normalize::{self, Normalized, Normalizer};
use openwit_operators::quota::Quotas;
use tempfile::TempDir;

use super::pipeline::{INDEX, config, delivered, load, run_to_the_end, send, send_when, sent};
use crate::support::wait;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Turns of the thread in which nothing happens before it is believed that nothing will.
const QUIET_TURNS: u64 = 20;

/// Nothing is durable yet.
struct Nothing;

impl Covered for Nothing {
    fn covered(&self, _: &PartitionKey) -> Result<OffsetSet, String> {
        Ok(OffsetSet::default())
    }

    fn remembered(&self, _: &PartitionKey) -> OffsetSet {
        OffsetSet::default()
    }

    fn log_lost_records(&self) -> bool {
        false
    }
}

/// Stands still unless told, or walks a millisecond with each reading. The thread reads it once or twice a turn.
#[derive(Default)]
pub(super) struct TurnClock {
    pub now_ms: AtomicU64,
    readings: AtomicU64,
    walks: bool,
}

impl Clock for TurnClock {
    fn now_ms(&self) -> u64 {
        self.readings.fetch_add(1, Ordering::AcqRel);
        self.now_ms.fetch_add(u64::from(self.walks), Ordering::AcqRel)
    }
}

/// A consumer's thread, and what it has handed out.
pub(super) struct Reader {
    handle: Option<Handle>,
    budget: Arc<Budget>,
    pub clock: Arc<TurnClock>,
    stats: Arc<Stats>,
    health: Health,
    pub normalize: normalize::Config,
    /// Held, and with them their share of the budget.
    batches: Vec<RawBatch>,
    revoked: Vec<u64>,
    lost: usize,
}

impl Reader {
    fn start(config: &Config) -> Self {
        Self::with_clock(config, TurnClock::default())
    }

    fn with_clock(config: &Config, clock: TurnClock) -> Self {
        Self::with(config, clock, budget_of(config), None)
    }

    /// One that obeys quotas.
    pub fn metered(config: &Config, quotas: Arc<Quotas>) -> Self {
        Self::with(config, TurnClock::default(), budget_of(config), Some(quotas))
    }

    fn with(config: &Config, clock: TurnClock, budget: Arc<Budget>, quotas: Option<Arc<Quotas>>) -> Self {
        let planned = plan(config, &Changes::default(), Arc::default()).unwrap().graph.unwrap();
        let (clock, stats) = (Arc::new(clock), Arc::new(Stats::default()));
        let health = Health::default();
        let ports = Ports {
            health: health.clone(),
            clock: clock.clone(),
            covered: Arc::new(Nothing),
            budget: budget.clone(),
            quotas,
            stats: stats.clone(),
        };
        // Nobody sleeps: tests look again and again.
        let handle = consumer::spawn(planned.settings.source.unwrap().consumer, ports, || {}).unwrap();
        let normalize = planned.settings.normalize;
        let (batches, revoked) = (Vec::new(), Vec::new());
        Reader { handle: Some(handle), budget, clock, stats, health, normalize, batches, revoked, lost: 0 }
    }

    /// Takes over what the thread has said.
    fn listen(&mut self) {
        assert!(!self.health.failed(), "{:?}", self.health.fault());
        while let Ok(event) = self.handle.as_ref().unwrap().events.try_recv() {
            match event {
                Event::Batch(batch) => self.batches.push(batch),
                Event::Revoked(id, _) => self.revoked.push(id),
                Event::Lost(_) => self.lost += 1,
                Event::Recalled(_) | Event::Ended | Event::Closed(_) => panic!("not asked for: {event:?}"),
            }
        }
    }

    fn wait_for(&mut self, what: &str, condition: impl Fn(&Reader) -> bool) {
        let met = wait::until_or_late(PATIENCE, || {
            self.listen();
            condition(self)
        });
        assert!(met, "{what}: {} messages, {:?} in flight", self.messages(), self.budget.in_flight());
    }

    /// Lets the thread go round a few times.
    pub fn let_it_turn(&mut self) {
        let until = self.clock.readings.load(Ordering::Acquire) + 2 * QUIET_TURNS;
        self.wait_for("some turns of the thread", |reader| reader.clock.readings.load(Ordering::Acquire) >= until);
    }

    fn messages(&self) -> usize {
        self.batches.iter().map(|batch| batch.records.len()).sum()
    }

    fn held(&self) -> Load {
        Load { bytes: self.batches.iter().map(|batch| batch.arena.len()).sum(), messages: self.messages() }
    }

    fn partitions(&self) -> usize {
        self.batches.iter().map(|batch| batch.partition.partition).collect::<BTreeSet<_>>().len()
    }

    fn command(&self, command: Command) {
        self.handle.as_ref().unwrap().commands.send(command).unwrap();
    }

    /// The batches handed out since the last call.
    pub fn take(&mut self) -> Vec<RawBatch> {
        self.listen();
        std::mem::take(&mut self.batches)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let handle = self.handle.take().expect("it is taken only here");
        // Fails only where the thread has ended.
        let _ = handle.commands.send(Command::Close(Vec::new()));
        handle.join();
    }
}

/// The budget that a configuration gives.
fn budget_of(config: &Config) -> Arc<Budget> {
    let planned = plan(config, &Changes::default(), Arc::default()).unwrap().graph.unwrap();
    Budget::new(Load { bytes: planned.in_flight_bytes_max, messages: planned.in_flight_messages_max })
}

/// Traces on one partition.
fn one_partition(count: u64) -> Plan {
    let topic = format!("v6.qtw.traces.{INDEX}.eu");
    Plan {
        topics: vec![Topic { name: topic.clone(), partitions: 1 }],
        count: Some(count),
        ..load(&topic, Signal::Traces, Format::Otlp)
    }
}

/// A load on a broker of its own, and a configuration in which `change` was made.
fn setup(count: u64, change: impl Fn(&mut Config)) -> (EmbeddedBroker, Config, TempDir) {
    let (broker, load, folder) = (EmbeddedBroker::start().unwrap(), one_partition(count), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    change(&mut config);
    (broker, config, folder)
}

#[test]
fn a_batch_closes_at_its_messages_and_what_is_left_at_its_age() {
    // The source's own keys, and those of all sources where it has none.
    let cases: [(Option<usize>, Option<u64>, usize, u64); 2] = [(Some(7), Some(90), 7, 90), (None, None, 16, 20)];
    for (own_size, own_timeout, size, timeout_ms) in cases {
        let (_broker, config, _folder) = setup(100, |config| {
            config.ingestion.kafka.batching.batch_size = own_size;
            config.ingestion.kafka.batching.batch_timeout_ms = own_timeout;
        });
        let mut reader = Reader::start(&config);
        reader.wait_for("all full batches", |reader| reader.batches.len() == 100 / size);
        assert!(reader.batches.iter().all(|batch| batch.records.len() == size));
        reader.wait_for("all messages to be collected", |reader| reader.budget.in_flight().messages == 100);
        reader.clock.now_ms.store(timeout_ms - 1, Ordering::Release);
        reader.let_it_turn();
        assert_eq!(reader.messages(), 100 - 100 % size, "the rest is younger than {timeout_ms} ms");
        reader.clock.now_ms.store(timeout_ms, Ordering::Release);
        reader.wait_for("the rest", |reader| reader.messages() == 100);
    }
}

#[test]
fn a_batch_closes_at_its_bytes() {
    for (own, all, bytes_max) in [(Some(32 << 10), 1 << 20, 32 << 10), (None, 64 << 10, 64 << 10)] {
        let (_broker, config, _folder) = setup(100, |config| {
            config.ingestion.batching.batch_size = 100;
            config.ingestion.batching.batch_bytes_max = all;
            config.ingestion.kafka.batching.batch_bytes_max = own;
        });
        let mut reader = Reader::start(&config);
        reader.wait_for("all messages to be collected", |reader| reader.budget.in_flight().messages == 100);
        reader.clock.now_ms.store(1_000, Ordering::Release);
        reader.wait_for("all messages", |reader| reader.messages() == 100);
        let (last, full) = reader.batches.split_last().unwrap();
        assert!(full.len() > 2 && last.arena.len() < bytes_max + 20_000);
        for batch in full {
            let record = batch.records.last().unwrap();
            let without = record.key.or(record.payload).map_or(batch.arena.len(), |span| span.start as usize);
            assert!(without < bytes_max && bytes_max <= batch.arena.len(), "{without} .. {}", batch.arena.len());
        }
    }
}

#[test]
fn a_turn_takes_as_many_messages_as_a_poll_may_and_no_more() {
    let largest_turn = |records_max: usize| {
        let (_broker, config, _folder) = setup(200, |config| {
            // Every message is a batch that knows its turn.
            config.ingestion.batching.batch_size = 1;
            config.ingestion.kafka.consumer.max_poll_records = records_max;
        });
        let mut reader = Reader::with_clock(&config, TurnClock { walks: true, ..TurnClock::default() });
        reader.wait_for("all messages", |reader| reader.messages() == 200);
        let mut turns: BTreeMap<u64, usize> = BTreeMap::new();
        reader.batches.iter().for_each(|batch| *turns.entry(batch.polled_ms).or_default() += 1);
        turns.into_values().max().unwrap()
    };
    assert_eq!(largest_turn(5), 5);
    let many = largest_turn(150);
    assert!(5 < many && many <= 150, "{many}");
}

/// Holds what is read until the partition, which is alone, has more than its share, gives back one message less than it takes to
/// resume, then that one, then the rest.
fn check_share(limit: Load, change: impl Fn(&mut Config)) {
    let count = 400;
    let (_broker, config, _folder) = setup(count as u64, |config| {
        config.ingestion.batching.batch_size = 1;
        change(config);
    });
    let mut reader = Reader::start(&config);
    reader.wait_for("the partition to be paused", |reader| reader.stats.flows.sum().pauses == 1);
    reader.let_it_turn();
    let full = reader.budget.in_flight();
    assert_eq!(full, reader.held(), "every byte and message is accounted for");
    // To the message: the last one went beyond eight times what is free.
    let last = reader.batches.last().unwrap().arena.len();
    let is_over =
        |load: Load| load.bytes > 8 * (limit.bytes - load.bytes) || load.messages > 8 * (limit.messages - load.messages);
    assert!(is_over(full), "{full:?} of {limit:?}");
    assert!(!is_over(Load { bytes: full.bytes - last, messages: full.messages - 1 }), "{full:?} of {limit:?}");
    assert!(full.messages < count);
    let flow = *reader.stats.flows.partitions().values().next().unwrap();
    assert_eq!((flow.pauses, flow.resumes, flow.is_paused, flow.in_flight), (1, 0, true, full));

    let is_drained = |load: Load| load.bytes <= full.bytes / 2 && load.messages <= full.messages / 2;
    let mut seen: Vec<i64> = reader.batches.iter().map(|batch| batch.start).collect();
    loop {
        let next = reader.batches[0].arena.len();
        let held = reader.held();
        if is_drained(Load { bytes: held.bytes - next, messages: held.messages - 1 }) {
            break;
        }
        drop(reader.batches.remove(0));
    }
    reader.let_it_turn();
    assert_eq!(reader.budget.in_flight(), reader.held());
    assert_eq!(reader.batches.last().unwrap().start, *seen.last().unwrap(), "it has more than half: nothing is read");
    drop(reader.batches.remove(0));
    reader.wait_for("the partition to be resumed", |reader| reader.stats.flows.sum().resumes == 1);
    let end = *seen.last().unwrap();
    let wanted = count as i64;
    reader.wait_for("what fits", |reader| reader.batches.last().is_some_and(|batch| batch.start > end));
    while seen.len() < count {
        reader.wait_for("the rest", |reader| !reader.batches.is_empty());
        seen.extend(reader.take().iter().map(|batch| batch.start).filter(|start| *start > end));
    }
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), count);
    assert!(seen.into_iter().eq(0..wanted), "each message once, in order");
    assert_eq!(reader.stats.buffer_full.load(Ordering::Relaxed), 0);
}

#[test]
fn a_partition_is_paused_at_its_share_of_the_messages_and_resumes_at_half_of_what_it_had() {
    let limit = Load { bytes: 64 << 20, messages: 100 };
    check_share(limit, |config| config.processing.buffer.max_size_messages = 100);
    check_share(limit, |config| {
        config.ingestion.kafka.consumer_type = ConsumerType::HighPerformance;
        config.ingestion.kafka.high_performance.channel_buffer_size = 100;
    });
}

#[test]
fn a_partition_is_paused_at_its_share_of_the_bytes_and_resumes_at_half_of_what_it_had() {
    let limit = Load { bytes: 1 << 20, messages: 100_000 };
    check_share(limit, |config| {
        config.processing.buffer.max_size_bytes = 1 << 20;
        config.ingestion.batching.batch_bytes_max = 64 << 10;
    });
}

/// Fills the budget of `limit` in `unit`s with what is nobody's, but for one; waits until a message has taken that; gives back all but one
/// more than three quarters, then that one, then the rest.
fn check_pause(limit: usize, unit: fn(usize) -> Load, change: impl Fn(&mut Config)) {
    let (_broker, config, _folder) = setup(100, |config| {
        config.ingestion.batching.batch_size = 1;
        change(config);
    });
    let budget = budget_of(&config);
    let charge = |amount: usize| {
        budget.collect(unit(amount));
        budget.seal(unit(amount))
    };
    let (most, one, rest) = (charge(limit / 4 * 3), charge(1), charge(limit - limit / 4 * 3 - 2));
    let mut reader = Reader::with(&config, TurnClock::default(), budget.clone(), None);
    reader.wait_for("partitions to be paused", |reader| reader.stats.pauses.load(Ordering::Relaxed) == 1);
    reader.let_it_turn();
    assert_eq!((reader.messages(), reader.stats.buffer_full.load(Ordering::Relaxed)), (1, 1), "the first one fills it");
    reader.batches.clear();
    drop(rest);
    reader.let_it_turn();
    assert_eq!(reader.messages(), 0, "less than a quarter is free: nothing is read");
    drop(one);
    reader.wait_for("reading to be resumed", |reader| reader.messages() > 0);
    drop(most);
    let mut seen = 1;
    while seen < 100 {
        reader.wait_for("the rest", |reader| !reader.batches.is_empty());
        seen += reader.take().len();
    }
}

#[test]
fn reading_pauses_at_the_messages_that_may_be_buffered_and_resumes_when_a_quarter_is_free() {
    let messages = |messages| Load { bytes: 0, messages };
    check_pause(100, messages, |config| config.processing.buffer.max_size_messages = 100);
    check_pause(100, messages, |config| {
        config.ingestion.kafka.consumer_type = ConsumerType::HighPerformance;
        config.ingestion.kafka.high_performance.channel_buffer_size = 100;
    });
}

#[test]
fn reading_pauses_at_the_bytes_that_may_be_buffered_and_resumes_when_a_quarter_is_free() {
    let bytes = |bytes| Load { bytes, messages: 0 };
    check_pause(1 << 20, bytes, |config| {
        config.processing.buffer.max_size_bytes = 1 << 20;
        config.ingestion.batching.batch_bytes_max = 64 << 10;
    });
}

#[test]
fn a_partition_whose_messages_go_nowhere_keeps_no_other_waiting() {
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    let plan_of = |name: &str, partitions: i32, count: u64| {
        let name = format!("v6.qtw.traces.{name}.eu");
        let topics = vec![Topic { name: name.clone(), partitions }];
        Plan { topics, count: Some(count), records_per_message: 1, ..load(&name, Signal::Traces, Format::Otlp) }
    };
    // 1,066 of them go to whichever is busy first, 118 to the other, and 16 are left.
    let (busy, quiet) = (plan_of("busy", 2, 2_800), plan_of("quiet", 1, 10));
    quiet.topics.iter().for_each(|topic| broker.create_topic(topic).unwrap());
    send(&broker, &busy);
    let both = Plan { topics: [busy.topics.clone(), quiet.topics.clone()].concat(), ..busy };
    let mut config = config(&broker, &both, &folder);
    config.ingestion.batching.batch_size = 10;
    config.processing.buffer.max_size_messages = 1_200;
    let mut reader = Reader::start(&config);
    reader.wait_for("two partitions to be paused", |reader| reader.stats.flows.sum().paused_now == 2);
    reader.let_it_turn();
    let held = reader.messages();
    // Nothing is given back meanwhile.
    send_when(broker.brokers(), &quiet, |_| true);
    let is_quiet = |batch: &RawBatch| batch.partition.topic.name.contains("quiet");
    reader.wait_for("the quiet partition", |reader| reader.batches.iter().any(is_quiet));
    let sum = reader.stats.flows.sum();
    assert_eq!((sum.paused_now, sum.resumes), (2, 0));
    assert_eq!(reader.messages(), held + 10, "nothing of the others");
    assert_eq!(reader.stats.buffer_full.load(Ordering::Relaxed), 0);
    let mut seen: Vec<(Arc<str>, i32, i64)> = Vec::new();
    while seen.len() < 2_810 {
        for batch in reader.take() {
            let PartitionKey { topic, partition } = &batch.partition;
            seen.extend((batch.start..batch.end).map(|offset| (topic.name.clone(), *partition, offset)));
        }
        // What is left of a batch comes by its age.
        reader.clock.now_ms.fetch_add(1_000, Ordering::AcqRel);
        reader.wait_for("the rest", |reader| !reader.batches.is_empty() || seen.len() == 2_810);
    }
    assert_eq!((seen.len(), seen.into_iter().collect::<BTreeSet<_>>().len()), (2_810, 2_810), "each message once");
    let sum = reader.stats.flows.sum();
    assert!(sum.resumes >= 2 && sum.paused_ms > 0, "{sum:?}");
}

#[test]
fn a_partition_that_moves_away_is_kept_until_it_is_drained_or_its_wait_is_over() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    for revoke_wait_ms in [0, 600_000] {
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        send(&broker, &load);
        let mut config = config(&broker, &load, &folder);
        config.ingestion.kafka.consumer.revoke_wait_ms = revoke_wait_ms;
        let mut first = Reader::start(&config);
        first.wait_for("all partitions", |reader| reader.partitions() == 4);
        let mut second = Reader::start(&config);
        first.wait_for("the group to take some away", |reader| !reader.revoked.is_empty());
        if revoke_wait_ms > 0 {
            first.let_it_turn();
            second.listen();
            assert_eq!((first.lost, second.partitions()), (0, 0), "they are not drained yet");
            first.command(Command::Drained(first.revoked[0], Vec::new()));
        }
        wait::until("another member to read them", PATIENCE, || {
            first.listen();
            second.listen();
            second.partitions() == 2
        });
        assert_eq!(first.lost, usize::from(revoke_wait_ms == 0), "given up undrained");
    }
}

#[test]
fn partitions_that_moved_away_while_reading_was_paused_are_read_when_they_come_back() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let config = config(&broker, &load, &folder);
    let budget = budget_of(&config);
    let mut first = Reader::with(&config, TurnClock::default(), budget.clone(), None);
    first.wait_for("all partitions", |reader| reader.partitions() == 4);
    // Full of what is nobody's.
    budget.collect(budget.limit());
    let all = budget.seal(budget.limit());
    first.wait_for("partitions to be paused", |reader| reader.stats.pauses.load(Ordering::Relaxed) == 1);
    let mut second = Reader::start(&config);
    first.wait_for("the group to take some away", |reader| !reader.revoked.is_empty());
    first.command(Command::Drained(first.revoked[0], Vec::new()));
    wait::until("another member to read them", PATIENCE, || {
        first.listen();
        second.listen();
        second.partitions() == 2
    });
    drop(second);
    first.take();
    drop(all);
    // Nothing is committed: those that come back are read from their beginning.
    first.wait_for("what moved away and came back", |reader| reader.partitions() >= 2);
}

#[test]
fn payloads_stay_in_the_buffer_they_were_read_into_only_with_zero_copy() {
    for zero_copy in [true, false] {
        let (_broker, config, _folder) = setup(16, |config| config.ingestion.kafka.enable_zero_copy = zero_copy);
        let mut reader = Reader::start(&config);
        reader.wait_for("a batch", |reader| reader.batches.len() == 1);
        let raw = reader.take().remove(0);
        let read_into = raw.arena.as_ptr_range();
        let mut normalizer = Normalizer::new(reader.normalize.clone()).unwrap();
        let Normalized { batch, .. } = normalizer.normalize(raw);
        assert!(batch.records.len() > 5);
        for record in &batch.records {
            assert_eq!(read_into.contains(&batch.payload(record).as_ptr()), zero_copy);
        }
    }
}

#[test]
fn a_process_over_its_ceiling_reads_on_a_little_at_a_time_and_loses_nothing() {
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), tempfile::tempdir().unwrap());
    let load = load("v6.qtw.logs.shop.ceiling", Signal::Logs, Format::Otlp);
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    // No process is so small: from its first look on, the watch says that too much is taken.
    config.processing.buffer.max_buffer_memory = 1;
    config.processing.buffer.max_size_bytes = 1 << 20;
    config.ingestion.batching.batch_bytes_max = 64 << 10;
    let control = run_to_the_end(&config, 2);
    assert!(control.counters.source.buffer_full.load(Ordering::Relaxed) > 0, "reading was held back");
    delivered(&config, &sent(&load));
}
