//! Partitions that go from one process to another: what the former owner handled is not handled again, and known to the next.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_ingest::config::Config;
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan, Ppm};
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, run_to_the_end, send_when, sent};
use crate::support::random::Random;

/// The same catalog and object store, and a log of its own: another process.
fn another_node(config: &Config, folder: &Path) -> Config {
    let mut config = config.clone();
    config.processing.wal.directory = folder.join("wal");
    config.storage.local_directory = folder.join("parquet");
    config
}

fn setup() -> (EmbeddedBroker, Plan) {
    let topic = format!("v6.qtw.traces.{INDEX}.eu");
    // A third are duplicates, so that many lie on the other side of the move.
    let load = Plan { duplicates: Ppm(300_000), ..load(&topic, Signal::Traces, Format::Otlp) };
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(&load.topics[0]).unwrap();
    (broker, load)
}

#[test]
fn duplicates_across_a_move_to_another_process_are_found() {
    let mut random = Random::for_test("duplicates_across_a_move_to_another_process_are_found");
    let (broker, load) = setup();
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = config(&broker, &load, &folder);
    let second = another_node(&first, other.path());
    // Messages come in up to the move, and the rest behind it.
    let moved_at = 100 + random.below(200);
    let limit = Arc::new(AtomicU64::new(moved_at));
    let (allowed, brokers, sending) = (limit.clone(), broker.brokers().to_owned(), load.clone());
    let sender = std::thread::spawn(move || send_when(&brokers, &sending, |index| index < allowed.load(Ordering::Relaxed)));
    let mut running = Running::start(&first, 2, Until::Stopped);
    running.wait_for("all messages before the move", |positions| positions.emitted == moved_at as i64);
    running.stop();
    limit.store(u64::MAX, Ordering::Relaxed);
    sender.join().unwrap();
    let control = run_to_the_end(&second, 2);
    // Every duplicate is accounted for as one, wherever its original was handled.
    delivered(&second, &sent(&load));
    let recalled = control.counters.source.recalled.load(Ordering::Relaxed);
    assert_eq!(recalled, moved_at as usize, "all that the first process handled");
    assert!(control.counters.dedup.recalled.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_process_that_reads_on_where_it_left_recalls_nothing_from_kafka() {
    let (broker, load) = setup();
    let folder = TempDir::new().unwrap();
    let config = config(&broker, &load, &folder);
    let half = Plan { count: Some(200), ..load.clone() };
    send_when(broker.brokers(), &half, |_| true);
    run_to_the_end(&config, 2);
    let rest = Plan { count: Some(100), seed: load.seed + 1, ..load.clone() };
    send_when(broker.brokers(), &rest, |_| true);
    let control = run_to_the_end(&config, 1);
    assert_eq!(control.counters.source.messages.load(Ordering::Relaxed), 100);
    assert_eq!(control.counters.source.recalled.load(Ordering::Relaxed), 0, "its own log holds the keys");
}

#[test]
fn a_restart_recalls_again_what_another_process_handled_and_has_not_published() {
    let (broker, load) = setup();
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = config(&broker, &load, &folder);
    // A catalog that knows nothing of the first process stands for one to which that has published nothing yet.
    let mut second = another_node(&first, other.path());
    let embedded = Config::embedded(other.path());
    second.metastore.path = embedded.metastore.path;
    second.storage.object_store.root = embedded.storage.object_store.root;
    let send = |count: u64, seed: u64| {
        send_when(broker.brokers(), &Plan { count: Some(count), seed, ..load.clone() }, |_| true);
    };
    send(200, 1);
    run_to_the_end(&first, 2);
    for (messages, seed) in [(100, 2), (60, 3)] {
        send(messages, seed);
        let source = run_to_the_end(&second, 2).counters.source;
        assert_eq!(source.messages.load(Ordering::Relaxed), messages as usize);
        assert_eq!(source.recalled.load(Ordering::Relaxed), 200, "what the first process handled, whatever the own log has");
    }
}
