//! The log before `normalize`: what is acknowledged as it came becomes the same rows, duplicates and rejects as with the log behind the
//! window, whatever dies in between.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use openwit_graphs::wiring::Description;
use openwit_ingest::config::{Config, ConsumerType, Graph};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan, Ppm};
use openwit_operators::batch::Signal;
use openwit_operators::wal_commit::inspect::Source;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, run_to_the_end, send, send_when, sent};
use super::storage_nodes::Apart;
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::lake::Place;
use crate::support::random::Random;
use crate::support::{lake, wait};

/// The stages of the shipped configuration.
fn wal_first() -> Description {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/wal-first.yaml");
    Config::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")).config.description()
}

fn traces() -> Plan {
    load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp)
}

fn setup(load: &Plan) -> (EmbeddedBroker, TempDir, Config) {
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    let mut config = config(&broker, load, &folder);
    config.graph = Graph::Stages(wal_first());
    (broker, folder, config)
}

/// Two consumers, so that two workers write the log and its frames are not in the order of their epochs.
fn with_two_consumers(config: &mut Config) {
    config.ingestion.kafka.consumer_type = ConsumerType::HighPerformance;
    config.ingestion.kafka.high_performance.num_consumers = 2;
}

/// Sends `load` on a thread, up to a number of messages that the test raises.
fn send_up_to(broker: &EmbeddedBroker, load: &Plan) -> (Arc<AtomicU64>, std::thread::JoinHandle<()>) {
    broker.create_topic(&load.topics[0]).unwrap();
    let limit = Arc::new(AtomicU64::new(0));
    let (allowed, brokers, sending) = (limit.clone(), broker.brokers().to_owned(), load.clone());
    let sender = std::thread::spawn(move || send_when(&brokers, &sending, |index| index < allowed.load(Relaxed)));
    (limit, sender)
}

#[test]
fn rows_duplicates_and_rejects_are_those_of_the_log_behind_the_window_on_any_number_of_workers() {
    let load = traces();
    let (broker, _folder, config) = setup(&load);
    send(&broker, &load);
    let sent = sent(&load);
    let [expected, others @ ..] = [None, Some(1), Some(2), Some(4)].map(|workers| {
        let folder = TempDir::new().unwrap();
        let mut config = super::pipeline::elsewhere(&config, &folder);
        config.ingestion.kafka.group_id = format!("group-{workers:?}");
        if workers.is_none() {
            config.graph = Graph::Standalone;
        }
        let control = run_to_the_end(&config, workers.unwrap_or(2));
        let delivered = delivered(&config, &sent);
        assert_eq!(control.counters.normalize.rejected.load(Relaxed), delivered.rejects.len() as u64);
        delivered
    });
    assert!(!expected.rows.is_empty() && !expected.rejects.is_empty());
    assert!(others.iter().all(|other| *other == expected));
}

#[test]
fn a_log_left_by_one_worker_is_read_again_by_four_and_what_they_leave_by_two() {
    let load = traces();
    let (broker, _folder, config) = setup(&load);
    // A file where the object store needs a folder: nothing can be published.
    let in_the_way = config.storage.object_store.root.join(INDEX);
    std::fs::create_dir_all(&config.storage.object_store.root).unwrap();
    std::fs::write(&in_the_way, b"in the way").unwrap();
    let (limit, sender) = send_up_to(&broker, &load);
    for (round, workers) in [1, 4].into_iter().enumerate() {
        let messages = 150 * (round as u64 + 1);
        limit.store(messages, Relaxed);
        let mut running = Running::start(&config, workers, Until::Stopped);
        running.wait_for("all messages to be in the log", |at| at.committable == messages as i64);
        // Files that vanish before they are uploaded end the process, with everything unpublished.
        running.wait_for_end("the fault", || {
            for file in lake::files(&config.storage.local_directory, ".parquet") {
                let _ = std::fs::remove_file(file);
            }
        });
        running.fault();
        assert!(lake::rows(&config.storage.object_store.root).is_empty());
    }
    limit.store(u64::MAX, Relaxed);
    sender.join().unwrap();
    std::fs::remove_file(in_the_way).unwrap();
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
}

#[test]
fn a_second_run_reads_the_log_for_its_keys_only_and_finds_the_duplicates_of_the_first() {
    let load = traces();
    let (broker, _folder, config) = setup(&load);
    send(&broker, &load);
    run_to_the_end(&config, 2);
    let first = delivered(&config, &sent(&load));
    let control = run_to_the_end(&config, 2);
    assert_eq!(control.counters.source.messages.load(Relaxed), 0, "nothing is read from Kafka");
    assert_eq!(control.counters.source.recalled.load(Relaxed), 0, "not even for its keys");
    assert!(control.counters.backlog.recalled.load(Relaxed) > 0, "the log is");
    assert_eq!(control.counters.sink.rows_sent.load(Relaxed), 0, "what is stored goes no further than the window");
    assert_eq!(delivered(&config, &sent(&load)), first);
    // The same once more: every message is a copy of one that the first run stored.
    send_when(broker.brokers(), &load, |_| true);
    let control = run_to_the_end(&config, 4);
    assert_eq!(control.counters.sink.rows_sent.load(Relaxed), 0);
    assert_eq!(lake::rows(&config.storage.object_store.root).len(), first.rows.len());
}

#[test]
fn a_process_killed_again_and_again_stores_each_message_once_and_rejects_each_bad_one() {
    let mut random = Random::for_test("a_process_killed_again_and_again_stores_each_message_once_and_rejects_each_bad_one");
    let load = Plan { count: Some(1_200), duplicates: Ppm(300_000), ..traces() };
    let (broker, folder, mut config) = setup(&load);
    with_two_consumers(&mut config);
    // As large as a process wants it that is started in earnest.
    (config.processing.wal.segment_size_bytes, config.processing.wal.max_size_bytes) = (16 << 20, 256 << 20);
    // Some of it is published when it is killed, and some is not.
    (config.storage.rotation.file_bytes_max, config.storage.rotation.idle_seconds) = (64 << 10, 1);
    let (limit, sender) = send_up_to(&broker, &load);
    let path = folder.path().join("wal-first.yaml");
    std::fs::write(&path, config.to_yaml()).unwrap();
    let objects = &config.storage.object_store.root;
    for (round, workers) in ["2", "4", "3"].into_iter().enumerate() {
        limit.store(300 * (round as u64 + 1), Relaxed);
        let published = lake::files(objects, ".parquet").len();
        let wanted = published + 1 + random.below(3) as usize;
        let mut process = Process::start(["run", "--config", &path.display().to_string(), "--workers", workers]);
        let met = wait::until_or_late(PATIENCE, || lake::files(objects, ".parquet").len() >= wanted || process.has_ended());
        assert!(met && !process.has_ended(), "{}", process.stderr());
        assert!(process.kill());
    }
    limit.store(u64::MAX, Relaxed);
    sender.join().unwrap();
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
}

#[test]
fn what_was_read_back_for_its_keys_is_in_the_log_and_a_restart_decides_by_it() {
    let load = Plan { duplicates: Ppm(300_000), ..traces() };
    let (broker, folder, mut first) = setup(&load);
    (first.processing.wal.segment_size_bytes, first.processing.wal.max_size_bytes) = (16 << 20, 256 << 20);
    let (limit, sender) = send_up_to(&broker, &load);
    // What the first process stores is known to the second from Kafka only.
    limit.store(200, Relaxed);
    let mut running = Running::start(&first, 2, Until::Stopped);
    running.wait_for("half of the messages", |positions| positions.emitted == 200);
    running.stop();
    limit.store(u64::MAX, Relaxed);
    sender.join().unwrap();

    // The second acknowledges the other half, of which a third are duplicates of the first, and is killed before it can store any.
    let mut second = first.clone();
    second.processing.wal.directory = folder.path().join("wal-of-second");
    let mut away = second.clone();
    away.graph = Graph::Stages(Description { storage: false, ..wal_first() });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    away.storage.endpoints = vec![format!("http://127.0.0.1:{port}")];
    let path = folder.path().join("second.yaml");
    std::fs::write(&path, away.to_yaml()).unwrap();
    let mut process = Process::start(["run", "--config", &path.display().to_string(), "--workers", "2"]);
    let segments = || Source::find(&second.processing.wal.directory).and_then(|log| log.list()).unwrap_or_default();
    let logged = || {
        let ranges = segments().into_iter().flat_map(|segment| segment.offsets.into_values());
        ranges.flat_map(|offsets| offsets.ranges().map(|range| range.end - range.start).collect::<Vec<_>>()).sum::<i64>()
    };
    let met = wait::until_or_late(PATIENCE, || logged() == 200 || process.has_ended());
    assert!(met && !process.has_ended(), "{} offsets are in the log, not 200:\n{}", logged(), process.stderr());
    assert!(process.kill());
    assert_eq!(
        segments().iter().map(|segment| segment.records).sum::<u64>(),
        400,
        "with those that were read back for their keys"
    );

    let control = run_to_the_end(&second, 4);
    assert_eq!(control.counters.source.recalled.load(Relaxed), 0, "the log has them");
    assert!(control.counters.dedup.recalled.load(Relaxed) > 0);
    delivered(&second, &sent(&load));
}

/// An ingest node whose log is first, and whose storage node is another process.
fn apart(messages: u64) -> Apart {
    let load = Plan { count: Some(messages), ..traces() };
    let (broker, folder, config) = setup(&load);
    Apart::of(broker, folder, load, config, Graph::Stages(Description { storage: false, ..wal_first() }))
}

fn end(setup: &Apart, storage: Process) {
    storage.signal(libc::SIGTERM);
    storage.wait(PATIENCE).expect(0);
    delivered(&setup.config, &sent(&setup.load));
}

#[test]
fn acknowledging_goes_on_while_storage_is_away_and_the_backlog_is_stored_in_its_order() {
    for workers in [1, 2, 4] {
        let mut setup = apart(1_200);
        if workers > 1 {
            with_two_consumers(&mut setup.ingest);
        }
        // A ninth of the load: the rest has to wait on disk.
        setup.ingest.processing.buffer.max_size_bytes = 1 << 20;
        setup.ingest.processing.wal.max_size_bytes = 32 << 20;
        let mut ingest = Running::start(&setup.ingest, workers, Until::End);
        ingest.wait_for("all messages to be acknowledged", |positions| positions.committable == setup.messages());
        let backlog = &ingest.control().counters.backlog;
        assert!(backlog.backlog.load(Relaxed) > 40, "most of it is in the log alone: {backlog:?}");
        let storage = setup.storage(1);
        let control = ingest.finish();
        assert_eq!(control.counters.backlog.backlog.load(Relaxed), 0);
        assert_eq!(control.counters.backlog.recalled.load(Relaxed), control.counters.backlog.spilled.load(Relaxed));
        end(&setup, storage);
    }
}

#[test]
fn what_a_killed_storage_node_had_received_is_made_again_by_the_graph_from_the_log() {
    let setup = apart(400);
    let storage = setup.storage(3_600);
    let mut ingest = Running::start(&setup.ingest, 2, Until::End);
    let counters = ingest.control().counters.clone();
    ingest.wait_for("everything to be received", |positions| {
        let (sent, received) = (counters.sink.rows_sent.load(Relaxed), counters.sink.rows_received.load(Relaxed));
        positions.committable == setup.messages() && received == sent && received > 0
    });
    assert!(storage.kill());
    let storage = setup.storage(1);
    assert!(ingest.finish_after_restarts() > 0, "what was received is not in memory any more");
    end(&setup, storage);
}

#[test]
fn the_log_is_a_copy_of_the_topic_which_is_shown_and_to_which_any_rules_are_applied() {
    let load = traces();
    let (broker, folder, mut config) = setup(&load);
    // As large as a process wants it that is started in earnest.
    (config.processing.wal.segment_size_bytes, config.processing.wal.max_size_bytes) = (16 << 20, 256 << 20);
    send(&broker, &load);
    run_to_the_end(&config, 2);
    let sent = sent(&load);
    delivered(&config, &sent);
    let (log, path) = (config.processing.wal.directory.display().to_string(), folder.path().join("wal-first.yaml"));
    std::fs::write(&path, config.to_yaml()).unwrap();

    let lines = openwit(["wal", "cat", &log, "--payload", "base64"]).expect(0).stdout;
    let mut shown = BTreeMap::new();
    for line in lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
        let (topic, partition) = (line["topic"].as_str().unwrap().to_owned(), line["partition"].as_i64().unwrap() as i32);
        let place = Place { topic, partition, offset: line["offset"].as_i64().unwrap() };
        let payload = line["payload_base64"].as_str().map(|payload| BASE64_STANDARD.decode(payload).unwrap());
        assert!(shown.insert(place, payload).is_none(), "{line}");
    }
    let expected: BTreeMap<Place, Option<Vec<u8>>> =
        sent.iter().map(|(place, message)| (place.clone(), message.payload.clone())).collect();
    assert!(shown == expected, "duplicates, tombstones and what is invalid included");
    let records = openwit(["wal", "verify", &log, "--json"]).expect(0).json()["records"].as_u64();
    assert_eq!(records, load.count);

    let configured = path.display().to_string();
    let replay = ["replay", "--from", &log, "--config", &configured, "--json"];
    let to = folder.path().join("replayed");
    let replayed = openwit(replay.iter().copied().chain(["--to", to.to_str().unwrap()])).expect(0).json();
    assert_eq!(replayed["records"].as_u64(), load.count);
    // Which of two copies is kept may differ, for a replay of a log has epochs of its own.
    assert!(contents(&to.join("rows")) == contents(&config.storage.object_store.root));
    assert_eq!(lake::letters(&to.join("rejects")).len() as u64, replayed["rejects"].as_u64().unwrap());
    // Another rule: nothing is protobuf any more.
    let json_only = ["--set", "ingestion.kafka.format=otlp_json"];
    let judged = openwit(replay.iter().copied().chain(json_only)).expect(0).json();
    assert_eq!(judged["kept"], 0);
    let refused = openwit(replay.iter().copied().chain(["--publish"])).expect(2).stderr;
    assert!(refused.contains("messages as they came") && refused.contains("--to DIR"), "{refused}");
}

fn contents(folder: &Path) -> Vec<u64> {
    let mut contents: Vec<u64> = lake::rows(folder).into_iter().map(|row| row.content).collect();
    contents.sort_unstable();
    contents
}

#[test]
fn a_log_of_the_other_kind_is_refused_until_all_of_it_is_stored() {
    let load = traces();
    let (broker, _folder, mut config) = setup(&load);
    send(&broker, &load);
    let in_the_way = config.storage.object_store.root.join(INDEX);
    std::fs::create_dir_all(&config.storage.object_store.root).unwrap();
    std::fs::write(&in_the_way, b"in the way").unwrap();
    let mut running = Running::start(&config, 2, Until::Stopped);
    running.wait_for("all messages to be in the log", |at| at.committable == at.emitted && at.emitted > 0);
    running.wait_for_end("the fault", || {
        for file in lake::files(&config.storage.local_directory, ".parquet") {
            let _ = std::fs::remove_file(file);
        }
    });
    running.fault();
    std::fs::remove_file(in_the_way).unwrap();
    assert!(Source::find(&config.processing.wal.directory).unwrap().verify().unwrap().0.is_empty());

    let first = config.graph.clone();
    config.graph = Graph::Standalone;
    let refused = Running::start(&config, 2, Until::End).fault();
    assert!(refused.message.contains("holds messages as they came") && refused.message.contains("former graph"), "{refused}");
    config.graph = first.clone();
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
    // Stored, it is in nobody's way, in either direction.
    for graph in [Graph::Standalone, first] {
        config.graph = graph;
        run_to_the_end(&config, 2);
        delivered(&config, &sent(&load));
    }
}
