//! Two tenants, each with a topic of its own: what one of them gets that sends far more than its quota, and that the other does not notice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openwit_graphs::process::{self, Control};
use openwit_ingest::config::{Config, TenantSource};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan, Topic};
use openwit_ingest::plan::{Changes, plan};
use openwit_operators::batch::{RawBatch, Signal};
use openwit_operators::normalize::Normalizer;
use openwit_operators::quota::{Limit, Policy, Quotas, Rules};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord};
use tempfile::TempDir;

use super::consumer::Reader;
use super::pipeline::{INDEX, config, load, send};
use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(60);
/// Messages whose latency is measured, each time.
const LATENCIES: usize = 31;

fn topic_of(tenant: &str) -> String {
    format!("v6.{tenant}.logs.{INDEX}.eu")
}

/// The topics of both tenants, `noisy` with this many messages of one record each.
fn setup(messages: u64) -> (EmbeddedBroker, Config, TempDir) {
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    let of = |tenant: &str| Topic { name: topic_of(tenant), partitions: 1 };
    let load = load(&topic_of("noisy"), Signal::Logs, Format::Json);
    let both = Plan { topics: vec![of("noisy"), of("quiet")], ..load.clone() };
    broker.create_topic(&of("quiet")).unwrap();
    if messages > 0 {
        send_noisy(&broker, messages);
    }
    let mut config = config(&broker, &both, &folder);
    config.ingestion.tenants.from = TenantSource::Topic;
    config.ingestion.tenants.topic_position = Some(1);
    (broker, config, folder)
}

fn send_noisy(broker: &EmbeddedBroker, messages: u64) {
    let load = load(&topic_of("noisy"), Signal::Logs, Format::Json);
    let topics = vec![Topic { name: topic_of("noisy"), partitions: 1 }];
    send(broker, &Plan { topics, count: Some(messages), records_per_message: 1, ..load });
}

/// A producer that sends at once.
fn producer(broker: &EmbeddedBroker) -> BaseProducer {
    ClientConfig::new().set("bootstrap.servers", broker.brokers()).set("linger.ms", "0").create().unwrap()
}

/// Sends one message of the quiet tenant.
fn send_quiet(producer: &BaseProducer, number: usize) {
    let (topic, payload) = (topic_of("quiet"), format!("{{\"msg\":\"{number}\"}}"));
    let record = BaseRecord::<(), str>::to(&topic).partition(0).payload(&payload);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    // Not flushed, which takes 100 ms: who reads it tells that it was sent.
    producer.poll(Duration::ZERO);
}

/// By the test's own clock, so that rates are exact.
#[test]
fn a_tenant_far_over_its_quota_gets_just_that_and_another_waits_for_nothing() {
    const RATE: u64 = 100;
    const BUFFER: u64 = 50;
    let (broker, config, _folder) = setup(3_000);
    let mut config = config;
    config.ingestion.batching.batch_size = 1;
    config.processing.buffer.max_size_messages = BUFFER as usize;
    let limit = Limit { events_per_second: Some(RATE), bytes_per_second: None, burst_ms: 1_000, policy: Policy::Throttle };
    let quotas = Arc::new(Quotas::new(Rules { default: Some(limit), ..Rules::default() }));
    let mut reader = Reader::metered(&config, quotas.clone());
    let mut normalizer = Normalizer::new(reader.normalize.clone()).unwrap().metered(Some(quotas.clone()));
    let mut judge = |batches: Vec<RawBatch>| {
        let is_quiet = |batch: &RawBatch| *batch.partition.topic.name == topic_of("quiet");
        let quiet = batches.iter().filter(|batch| is_quiet(batch)).count();
        batches.into_iter().for_each(|batch| drop(normalizer.normalize(batch)));
        quiet
    };
    let of_noisy = || quotas.counts().get("tenant noisy").copied().unwrap_or_default();
    let (mut pauses, mut cycles, mut debt_events) = (0, 0, 0);
    while of_noisy().events < 2_000 {
        // Until it is paused, and all that was read before is charged.
        wait::until("the noisy tenant to be held back", PATIENCE, || {
            judge(reader.take());
            of_noisy().pauses > pauses
        });
        reader.let_it_turn();
        judge(reader.take());
        pauses = of_noisy().pauses;
        if cycles == 3 {
            // Its clock stands: whatever the quiet tenant sends is read at once, as if it were alone.
            let producer = producer(&broker);
            (0..20).for_each(|number| send_quiet(&producer, number));
            let mut quiet = 0;
            wait::until("the quiet tenant's messages", PATIENCE, || {
                quiet += judge(reader.take());
                quiet == 20
            });
            assert_eq!(of_noisy().pauses, pauses, "the noisy one still waits");
        }
        let now_ms = reader.clock.now_ms.load(Ordering::Acquire);
        let charged = of_noisy().events;
        let wait_ms = (charged - RATE) * 1_000 / RATE - now_ms;
        assert!(wait_ms >= 100, "it waits for what it owes");
        debt_events = debt_events.max(wait_ms * RATE / 1_000);
        // A millisecond less is not enough.
        reader.clock.now_ms.store(now_ms + wait_ms - 1, Ordering::Release);
        reader.let_it_turn();
        assert!(reader.take().is_empty(), "at {now_ms} it owes {wait_ms} ms");
        reader.clock.now_ms.store(now_ms + wait_ms, Ordering::Release);
        cycles += 1;
    }
    let elapsed_ms = reader.clock.now_ms.load(Ordering::Acquire);
    let (charged, due) = (of_noisy().events as f64, (RATE + elapsed_ms * RATE / 1_000) as f64);
    assert!((charged / due - 1.0).abs() < 0.15, "{charged} of {due} in {elapsed_ms} ms");
    // What was under way when it used its quota up, and what took its place before the reader looked again: two buffers at most.
    assert!(cycles > 10 && debt_events <= 2 * BUFFER, "{cycles} cycles, {debt_events}");
    assert!(of_noisy().throttled_ms > elapsed_ms / 2, "{:?}", of_noisy());
    assert_eq!(quotas.counts()["tenant quiet"].pauses, 0);
}

/// How long each of some messages of the quiet tenant takes from its producer until its offset may be committed, in ascending order.
fn latencies(producer: &BaseProducer, control: &Control, sent: &mut i64) -> Vec<Duration> {
    let committable = || {
        let positions = control.counters.positions.positions();
        let of_quiet = positions.into_iter().find(|(partition, _)| *partition.topic.name == topic_of("quiet"));
        of_quiet.and_then(|(_, position)| position.committable).unwrap_or(0)
    };
    let mut all: Vec<Duration> = (0..LATENCIES)
        .map(|_| {
            // Not from its acknowledgement on: its reader may be faster than that.
            let since = Instant::now();
            send_quiet(producer, *sent as usize);
            *sent += 1;
            wait::until("a message to be committable", PATIENCE, || committable() == *sent);
            since.elapsed()
        })
        .collect();
    all.sort_unstable();
    all
}

/// By the wall clock, through the whole graph. The bound is wide, for machines that do other things as well; without quotas and shares of the
/// buffer a quiet tenant's message would wait behind all of the noisy one's.
#[test]
fn a_noisy_tenant_at_many_times_its_quota_does_not_slow_another() {
    let (broker, mut config, folder) = setup(0);
    let quotas = folder.path().join("quotas.yaml");
    let rules = |rate: u64| format!("version: 1\ntenants: [{{tenant: noisy, events_per_second: {rate}}}]\n");
    std::fs::write(&quotas, rules(100)).unwrap();
    config.ingestion.quotas.file = Some(quotas.clone());
    config.ingestion.quotas.reload_interval_ms = 10;
    config.processing.buffer.max_size_messages = 200;
    let control = Control::default();
    let plan = plan(&config, &Changes::default(), control.counters.positions.clone()).unwrap();
    let accounts = plan.graph.as_ref().and_then(|graph| graph.quotas.as_ref()).unwrap().quotas.clone();
    let running = control.clone();
    let process = std::thread::spawn(move || process::run(&plan, &running));
    let (mut sent, producer) = (0, producer(&broker));
    // The first one waits for the group, too.
    latencies(&producer, &control, &mut sent);
    let alone = latencies(&producer, &control, &mut sent);
    // Twenty times what it may send in a second, and more.
    send_noisy(&broker, 4_000);
    let of_noisy = || accounts.counts().get("tenant noisy").copied().unwrap_or_default();
    wait::until("the noisy tenant to be held back", PATIENCE, || of_noisy().pauses > 0);
    let beside = latencies(&producer, &control, &mut sent);
    let last = |all: &[Duration]| all[all.len() - 1];
    println!("slowest of {LATENCIES}: {:?} alone, {:?} beside a noisy tenant", last(&alone), last(&beside));
    let median = |all: &[Duration]| all[all.len() / 2];
    let (alone, beside) = (median(&alone), median(&beside));
    println!("median: {alone:?} alone, {beside:?} beside a noisy tenant");
    assert!(beside <= 4 * alone + Duration::from_millis(250), "{beside:?} beside a noisy tenant, {alone:?} alone");
    assert!(of_noisy().events < 4_000, "all of it went through");
    // New limits count without a restart, for what it owes as well.
    std::fs::write(&quotas, rules(1_000_000)).unwrap();
    let read = || {
        control.counters.normalize.accepted.load(Ordering::Relaxed) + control.counters.normalize.rejected.load(Ordering::Relaxed)
    };
    wait::until("the rest", PATIENCE, || {
        read() + control.counters.normalize.skipped.load(Ordering::Relaxed) == 4_000 + sent as u64
    });
    control.stop();
    process.join().unwrap().unwrap();
}

#[test]
fn a_broken_quota_file_refuses_the_start() {
    let (_broker, mut config, folder) = setup(0);
    let quotas = folder.path().join("quotas.yaml");
    std::fs::write(&quotas, "version: 1\ntenants: [{tenant: a/b}]\n").unwrap();
    config.ingestion.quotas.file = Some(quotas);
    let refused = plan(&config, &Changes::default(), Arc::default()).err().unwrap();
    assert!(refused.contains("tenants[0].tenant") && refused.contains("must have events_per_second"), "{refused}");
}
