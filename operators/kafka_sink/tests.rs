//! The sink on rdkafka's mock cluster: what is in the topic, what an error holds, what a refusal says. It cannot prove what a real broker
//! does when it dies.

use std::collections::BTreeSet;
use std::time::Instant;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::clock::SystemClock;
use crate::tenant::Tenant;
use crate::testing::{self, Dice, Passed, Shape, run};

const WAIT: Duration = Duration::from_secs(60);

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("out", 1, 1).unwrap();
    cluster
}

fn config(cluster: &Cluster) -> Config {
    let mut config = Config { backoff_ms: 10, key: Key::Dedup, ..Config::new("out", cluster.bootstrap_servers()) };
    config.client.insert("reconnect.backoff.max.ms".into(), "100".into());
    config
}

type Items = Vec<(Epoch, UniqueBatch)>;

fn items(dice: &mut Dice) -> Items {
    let batches = testing::batches(20, dice).into_iter().map(|(epoch, mut batch)| {
        batch.tenants = vec![Tenant::new("acme").unwrap()];
        (epoch, UniqueBatch(batch))
    });
    batches.collect()
}

/// A message as (partition, offset, key, payload) of the original, with index, signal and tenant.
type Seen = (i64, i64, Vec<u8>, Vec<u8>, String);

fn expected(items: &Items) -> Vec<Seen> {
    let mut seen = Vec::new();
    for (_, UniqueBatch(batch)) in items {
        for record in &batch.records {
            let key = format!("{:032x}", record.key).into_bytes();
            let group = format!("{} acme", batch.group);
            seen.push((batch.coverage.partition.partition.into(), record.offset, key, batch.payload(record).to_vec(), group));
        }
    }
    seen.sort();
    seen
}

fn consume(cluster: &Cluster, count: usize) -> Vec<Seen> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "reader");
    let consumer: BaseConsumer = client.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset("out", 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let started = Instant::now();
    let mut seen = Vec::new();
    while seen.len() < count && started.elapsed() < WAIT {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let headers: BTreeMap<&str, &[u8]> =
            message.headers().unwrap().iter().map(|header| (header.key, header.value.unwrap())).collect();
        let text = |name: &str| std::str::from_utf8(headers[name]).unwrap().to_owned();
        assert!(text("openwit.topic").starts_with('t'));
        let group = format!("{}/{} {}", text("openwit.index"), text("openwit.signal"), text("openwit.tenant"));
        let offset: i64 = text("openwit.offset").parse().unwrap();
        assert_eq!(message.timestamp().to_millis(), Some(1_000 + offset));
        let (key, payload) = (message.key().unwrap().to_vec(), message.payload().unwrap_or_default().to_vec());
        seen.push((text("openwit.partition").parse().unwrap(), offset, key, payload, group));
    }
    seen.sort();
    seen
}

struct Ran {
    health: Health,
    stats: Arc<Stats>,
    passed: Passed,
}

/// Runs the sink on a thread of its own; `during` is told how far it came.
fn write(config: &Config, items: &Items, workers: usize, dice: &mut Dice, during: impl FnOnce(&Ran)) -> Ran {
    let ran = Ran { health: Health::default(), stats: Arc::default(), passed: Passed::default() };
    let (ports, thread) = Ports::open(config, Arc::new(SystemClock::default()), ran.health.clone(), ran.stats.clone()).unwrap();
    let (health, passed) = (ran.health.clone(), ran.passed.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            run(Shape::Workers(workers), items, dice, &health, &passed, move |stream, _| kafka_sink(stream, ports.clone()))
        });
        during(&ran);
    });
    thread.join().unwrap();
    ran
}

fn wait_for(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "nothing happens");
        std::thread::yield_now();
    }
}

#[test]
fn every_record_is_in_the_topic_with_its_headers_for_any_number_of_workers() {
    let mut dice = Dice::new(41);
    let items = items(&mut dice);
    let expected = expected(&items);
    for workers in [1, 3] {
        let cluster = cluster();
        // A bound far below the number of records: they go in turns.
        let config = Config { in_flight_max: 7, in_flight_bytes_max: 2_000, ..config(&cluster) };
        let ran = write(&config, &items, workers, &mut dice, |_| {});
        assert_eq!((ran.health.fault(), ran.passed.epoch()), (None, u64::MAX));
        assert_eq!(ran.stats.acked.load(Ordering::Relaxed), expected.len() as u64);
        assert_eq!(consume(&cluster, expected.len()), expected);
    }
}

#[test]
fn a_broker_that_is_away_holds_the_frontier_and_nothing_is_lost() {
    let mut dice = Dice::new(42);
    let items = items(&mut dice);
    let cluster = cluster();
    cluster.broker_down(-1).unwrap();
    let config = Config { delivery_timeout_ms: 300, ..config(&cluster) };
    let first = items.iter().find(|(_, batch)| !batch.0.records.is_empty()).unwrap().0;
    let ran = write(&config, &items, 2, &mut dice, |ran| {
        wait_for(|| ran.stats.retries.load(Ordering::Relaxed) > 3);
        assert!(ran.passed.epoch() <= first.0, "passed {} while nothing was acknowledged", ran.passed.epoch());
        cluster.broker_up(-1).unwrap();
    });
    assert_eq!((ran.health.fault(), ran.passed.epoch()), (None, u64::MAX));
    let expected = expected(&items);
    let identities =
        |seen: Vec<Seen>| seen.into_iter().map(|(partition, offset, ..)| (partition, offset)).collect::<BTreeSet<_>>();
    assert_eq!(identities(consume(&cluster, expected.len())), identities(expected));
}

#[test]
fn a_topic_that_may_not_be_written_to_is_a_fault_that_names_the_record() {
    let mut dice = Dice::new(43);
    let items = items(&mut dice);
    let cluster = cluster();
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refused; 50]);
    let ran = write(&config(&cluster), &items, 1, &mut dice, |_| {});
    let fault = ran.health.fault().unwrap().message;
    assert!(fault.contains("to topic out") && fault.contains("offset "), "{fault}");
    assert!(ran.passed.epoch() < u64::MAX);
}

#[test]
fn a_record_too_large_for_the_topic_is_a_fault_that_names_the_setting() {
    let mut dice = Dice::new(44);
    let items: Items = items(&mut dice).into_iter().filter(|(_, batch)| !batch.0.records.is_empty()).take(1).collect();
    let cluster = cluster();
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large; 50]);
    let ran = write(&config(&cluster), &items, 1, &mut dice, |_| {});
    let fault = ran.health.fault().unwrap().message;
    assert!(fault.contains("max.message.bytes"), "{fault}");
}

#[test]
fn passwords_do_not_show_in_a_printed_config() {
    let mut config = Config::new("out", "broker:9092");
    config.client.insert("sasl.password".into(), "secret".into());
    let printed = format!("{config:?}");
    assert!(printed.contains("sasl.password") && !printed.contains("secret"));
}
