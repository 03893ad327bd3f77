//! The same load on 1, 2 and 4 workers, in one go and in several.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_ingest::config::AutoOffsetReset;
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan, Ppm};
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, run_to_the_end, send, send_when, sent};
use crate::support::lake;
use crate::support::random::Random;

const WORKERS: [usize; 3] = [1, 2, 4];

fn topic(signal: Signal) -> String {
    format!("v6.qtw.{signal}.{INDEX}.eu")
}

/// Runs `load` on each number of workers, each time with a group and a folder of its own, and compares the results.
fn check(load: &Plan) {
    let broker = EmbeddedBroker::start().unwrap();
    send(&broker, load);
    let sent = sent(load);
    let mut results = WORKERS.map(|workers| {
        let folder = TempDir::new().unwrap();
        let mut config = config(&broker, load, &folder);
        config.ingestion.kafka.group_id = format!("group-{workers}");
        let control = run_to_the_end(&config, workers);
        let rejected = control.counters.normalize.rejected.load(Ordering::Relaxed);
        let delivered = delivered(&config, &sent);
        assert_eq!(rejected, delivered.rejects.len() as u64, "{workers} workers");
        delivered
    });
    results.sort_by_key(|delivered| delivered.rejects.len());
    let [first, others @ ..] = &results;
    assert!(!first.rows.is_empty() && !first.rejects.is_empty());
    for other in others {
        assert!(first.rejects == other.rejects, "rejects differ between numbers of workers");
        assert!(first.rows == other.rows, "contents of rows differ between numbers of workers");
    }
}

#[test]
fn traces_come_out_exactly_once_and_the_same_for_every_number_of_workers() {
    check(&load(&topic(Signal::Traces), Signal::Traces, Format::Otlp));
}

#[test]
fn metrics_come_out_exactly_once_and_the_same_for_every_number_of_workers() {
    check(&load(&topic(Signal::Metrics), Signal::Metrics, Format::Otlp));
}

#[test]
fn otlp_json_logs_come_out_exactly_once_and_the_same_for_every_number_of_workers() {
    check(&load(&topic(Signal::Logs), Signal::Logs, Format::OtlpJson));
}

#[test]
fn plain_json_logs_come_out_exactly_once_and_the_same_for_every_number_of_workers() {
    // Without copies: a plain log's observed time is Kafka's, so the row tells which of two copies came first, and from a live broker
    // that is chance.
    let load = load(&topic(Signal::Logs), Signal::Logs, Format::Json);
    check(&Plan { duplicates: Ppm(0), ..load });
}

#[test]
fn a_second_run_reads_nothing_and_doubles_nothing() {
    let load = load(&topic(Signal::Traces), Signal::Traces, Format::Otlp);
    let broker = EmbeddedBroker::start().unwrap();
    send(&broker, &load);
    let (sent, folder) = (sent(&load), TempDir::new().unwrap());
    let mut config = config(&broker, &load, &folder);
    run_to_the_end(&config, 2);
    let first = delivered(&config, &sent);
    // With the group's offsets, and without them: the catalog knows what is stored.
    for group in [config.ingestion.kafka.group_id.clone(), "a-group-without-offsets".into()] {
        config.ingestion.kafka.group_id = group;
        let control = run_to_the_end(&config, 1);
        assert_eq!(control.counters.source.messages.load(Ordering::Relaxed), 0);
        assert_eq!(first, delivered(&config, &sent));
    }
}

#[test]
fn a_group_that_began_at_the_end_of_a_topic_misses_nothing_from_then_on() {
    let mut load = load(&topic(Signal::Traces), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    config.ingestion.kafka.auto_offset_reset = AutoOffsetReset::Latest;
    // What comes between this run, which has nothing to read, and the next one is not lost.
    run_to_the_end(&config, 2);
    load.seed += 1;
    send_when(broker.brokers(), &load, |_| true);
    let control = run_to_the_end(&config, 2);
    assert_eq!(control.counters.source.messages.load(Ordering::Relaxed) as u64, load.count.unwrap());
    let first = lake::rows(&config.storage.object_store.root).iter().map(|row| row.place.offset).min();
    assert_eq!(first, Some(100), "the first quarter of 400 messages lies before the beginning, in each of four partitions");
}

#[test]
fn runs_stopped_at_any_moment_are_completed_by_the_next() {
    let mut random = Random::for_test("runs_stopped_at_any_moment_are_completed_by_the_next");
    let load = load(&topic(Signal::Traces), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    broker.create_topic(&load.topics[0]).unwrap();
    let config = config(&broker, &load, &folder);
    // Messages come in while it runs, up to the limit of each round, so that each round has something to be stopped in.
    let limit = Arc::new(AtomicU64::new(0));
    let (allowed, brokers, sending) = (limit.clone(), broker.brokers().to_owned(), load.clone());
    let sender = std::thread::spawn(move || send_when(&brokers, &sending, |index| index < allowed.load(Ordering::Relaxed)));
    for round in 1..4 {
        limit.store(round * 100, Ordering::Relaxed);
        let mut running = Running::start(&config, WORKERS[random.below(3) as usize], Until::Stopped);
        let stop_at = ((round - 1) * 100 + 1 + random.below(100)) as i64;
        running.wait_for("new messages in the graph", |positions| positions.emitted >= stop_at);
        running.stop();
    }
    limit.store(u64::MAX, Ordering::Relaxed);
    sender.join().unwrap();
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
}

#[test]
fn a_log_left_by_one_worker_is_replayed_by_four_and_what_they_leave_by_two() {
    let load = load(&topic(Signal::Traces), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    broker.create_topic(&load.topics[0]).unwrap();
    let config = config(&broker, &load, &folder);
    // A file where the object store needs a folder: nothing can be published.
    let in_the_way = config.storage.object_store.root.join(INDEX);
    std::fs::create_dir_all(&config.storage.object_store.root).unwrap();
    std::fs::write(&in_the_way, b"in the way").unwrap();
    let limit = Arc::new(AtomicU64::new(0));
    let (allowed, brokers, sending) = (limit.clone(), broker.brokers().to_owned(), load.clone());
    let sender = std::thread::spawn(move || send_when(&brokers, &sending, |index| index < allowed.load(Ordering::Relaxed)));
    for (round, workers) in [1, 4].into_iter().enumerate() {
        let messages = 150 * (round as u64 + 1);
        limit.store(messages, Ordering::Relaxed);
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
    limit.store(u64::MAX, Ordering::Relaxed);
    sender.join().unwrap();
    std::fs::remove_file(in_the_way).unwrap();
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
}

#[test]
fn coalesced_rows_leave_when_their_time_is_over_or_at_the_end() {
    let load = load(&topic(Signal::Traces), Signal::Traces, Format::Otlp);
    let broker = EmbeddedBroker::start().unwrap();
    send(&broker, &load);
    for (seconds, leave_at_once) in [(0, true), (3_600, false)] {
        let folder = TempDir::new().unwrap();
        let mut config = config(&broker, &load, &folder);
        config.ingestion.kafka.group_id = format!("group-{seconds}");
        // Nothing else sends them.
        config.processing.flush_size_messages = 1_000_000;
        config.processing.buffer.flush_interval_seconds = seconds;
        let mut running = Running::start(&config, 1, Until::Stopped);
        running.wait_for("all messages to be in the log", |at| at.committable == load.count.unwrap() as i64);
        let sink = running.control().counters.sink.clone();
        let sent_rows = || sink.rows_sent.load(Ordering::Relaxed);
        match leave_at_once {
            true => running.wait_for("rows to be sent", |_| sent_rows() > 0),
            false => assert_eq!(sent_rows(), 0, "held for an hour, or to the end"),
        }
        running.stop();
        delivered(&config, &sent(&load));
    }
}
