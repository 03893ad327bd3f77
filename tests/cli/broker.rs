//! A broker that is away when a process starts: it is waited for, and a stop is not.

use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Topic;
use tempfile::TempDir;

use crate::support::binary::{PATIENCE, Process};
use crate::support::proxy::{Network, Proxy};
use crate::{DONE, FAULT, Loaded, TOPIC, line};

/// A load on a broker, and a proxy that keeps the way to it cut.
fn unreachable() -> (Loaded, Proxy) {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(&Topic { name: TOPIC.into(), partitions: 4 }).unwrap();
    let loaded = Loaded { broker, folder: TempDir::new().unwrap() };
    let proxy = Proxy::start(loaded.broker.brokers());
    proxy.set(Network::Cut);
    (loaded, proxy)
}

fn run(loaded: &Loaded, proxy: &Proxy) -> Process {
    let brokers = format!("ingestion.kafka.brokers={}", proxy.address());
    let mut process = Process::start(loaded.arguments(&["run", "--until-end", "--json"], &[brokers]));
    assert!(process.wait_for("no Kafka broker answers yet"), "{}", process.stderr());
    process
}

#[test]
fn a_broker_away_at_the_start_is_waited_for() {
    let (loaded, proxy) = unreachable();
    let process = run(&loaded, &proxy);
    line(&format!("generate --brokers {} --topic {TOPIC} --count 60 --seed 4", loaded.broker.brokers())).expect(DONE);
    proxy.set(Network::Whole);
    let summary = process.wait(PATIENCE).expect(DONE).json();
    assert_eq!(summary["messages"], 60, "{summary}");
    loaded.with_config(&["audit"]).expect(DONE);
}

#[test]
fn a_stop_while_no_broker_answers_ends_with_one() {
    let (loaded, proxy) = unreachable();
    let process = run(&loaded, &proxy);
    process.signal(libc::SIGTERM);
    let ended = process.wait(PATIENCE).expect(FAULT);
    assert!(ended.stderr.contains("kafka_source: stopped before the Kafka broker answered"), "{}", ended.stderr);
}
