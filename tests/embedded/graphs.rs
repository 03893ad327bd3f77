//! Graphs of one's own, run whole: what they store, and what a replay of their captures stores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use openwit_graphs::replayed::fed_by;
use openwit_graphs::shipped;
use openwit_graphs::wiring::{Description, Stage};
use openwit_ingest::config::{Config, Graph, default_options};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Topic};
use openwit_operators::batch::Signal;
use openwit_operators::options::Value;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use tempfile::TempDir;

use super::pipeline::{INDEX, Until, config, delivered, elsewhere, load, run_to_the_end, send, sent};
use crate::support::lake::{self, Place};
use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(120);

fn stage<const N: usize>(operator: &str, given: [(&str, Value); N]) -> Stage {
    let mut options = default_options(operator);
    given.into_iter().for_each(|(name, value)| options.set(name, value));
    Stage::of(operator).with(options)
}

fn capture_into(directory: &Path) -> Stage {
    let (directory, small) = (Value::Path(directory.to_owned()), Value::Number(16 << 10));
    let limits = [("file_bytes_max", small.clone()), ("queue_bytes_max", small), ("flush_ms", Value::Number(1))];
    let [files, queue, flush] = limits;
    stage("capture", [("directory", directory), files, queue, flush])
}

fn capture_source(operator: &str, path: &Path) -> Stage {
    stage(operator, [("path", Value::Path(path.to_owned()))])
}

fn masking(attribute: &str) -> Stage {
    stage("redact", [("attributes", Value::List(vec![attribute.to_owned()]))]).from("normalize")
}

/// The standalone graph with `stage` behind its stage `above`.
fn standalone_with(stage: Stage, above: &str) -> Description {
    let mut description = shipped::standalone(true);
    let at = description.stages.iter().position(|stage| stage.name == above).unwrap();
    description.stages.insert(at + 1, stage);
    description
}

fn rows(config: &Config) -> BTreeMap<(Place, i32), u64> {
    let rows = lake::rows(&config.storage.object_store.root);
    rows.into_iter().map(|row| ((row.place, row.ordinal), row.content)).collect()
}

#[test]
fn captures_of_both_edges_store_again_what_the_live_run_stored_on_any_number_of_workers() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    let (raw, unique) = (folder.path().join("raw"), folder.path().join("unique"));
    let mut description = standalone_with(capture_into(&raw).named("raw"), "kafka_source");
    let window = description.stages.iter().position(|stage| stage.name == "dedup_window").unwrap();
    description.stages.insert(window + 1, capture_into(&unique).named("unique"));
    config.graph = Graph::Stages(description);
    run_to_the_end(&config, 2);
    let expected = delivered(&config, &sent(&load));
    let stored = rows(&config);
    assert!(!lake::files(&raw, ".owcap").is_empty());

    for (source, path, workers) in [
        ("capture_source", &raw, 1),
        ("capture_source", &raw, 2),
        ("capture_source", &raw, 4),
        ("capture_source_unique", &unique, 3),
    ] {
        let other_folder = TempDir::new().unwrap();
        let mut other = elsewhere(&config, &other_folder);
        let fed = fed_by(&shipped::standalone(true), capture_source(source, path)).unwrap();
        other.graph = Graph::Stages(fed);
        run_to_the_end(&other, workers);
        assert_eq!(rows(&other), stored, "{source} on {workers} workers");
        if source == "capture_source" {
            assert_eq!(delivered(&other, &sent(&load)), expected, "rejects and coverage as well");
        }
    }
}

#[test]
fn what_is_to_be_redacted_is_in_no_row_and_nothing_else_changes() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let plain = config(&broker, &load, &folder);
    run_to_the_end(&plain, 1);
    let sent = sent(&load);
    let expected = delivered(&plain, &sent);
    for (attribute, changes) in [("http.*", true), ("no.such.attribute", false)] {
        let other_folder = TempDir::new().unwrap();
        let mut other = elsewhere(&plain, &other_folder);
        other.ingestion.kafka.group_id = format!("redacting {attribute}");
        other.graph = Graph::Stages(standalone_with(masking(attribute), "dead_letter"));
        run_to_the_end(&other, 2);
        // By messages: which copy of one is stored depends on the run.
        let found = delivered(&other, &sent);
        assert_eq!(found.rows.len(), expected.rows.len());
        assert_eq!(found.rows != expected.rows, changes, "{attribute}");
        assert_eq!(found.rejects, expected.rejects);
    }
}

#[test]
fn a_graph_of_stages_goes_on_after_a_stop_where_it_was() {
    let load = load(&format!("v6.qtw.logs.{INDEX}.eu"), Signal::Logs, Format::Json);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    config.graph = Graph::Stages(standalone_with(capture_into(&folder.path().join("capture")), "kafka_source"));
    let mut running = super::pipeline::Running::start(&config, 2, Until::Stopped);
    running.wait_for("a part to be committable", |positions| positions.committable > 0);
    running.stop();
    run_to_the_end(&config, 1);
    delivered(&config, &sent(&load));
}

/// The stages of a shipped configuration, with the values of options that a test gives.
fn shipped_stages(name: &str, overrides: &[(&str, &str, Value)]) -> Description {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    let mut description = Config::load(&path, &[]).unwrap_or_else(|problems| panic!("{problems}")).config.description();
    for (stage, option, value) in overrides {
        let stage = description.stages.iter_mut().find(|found| found.name == *stage).unwrap();
        stage.options.set(option, value.clone());
    }
    description
}

/// The places, in the topics that were read, of all messages of a topic that `kafka_sink` wrote.
fn copied(brokers: &str, topic: &str, messages: usize) -> BTreeSet<Place> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "copies")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let mut places = BTreeSet::new();
    wait::until("all copies", PATIENCE, || {
        while let Some(message) = consumer.poll(Duration::from_millis(20)) {
            let message = message.unwrap().detach();
            let headers = message.headers().unwrap();
            let header = |name: &str| {
                let header = headers.iter().find(|header| header.key == name).unwrap_or_else(|| panic!("no header {name}"));
                String::from_utf8(header.value.unwrap().to_vec()).unwrap()
            };
            let (partition, offset) = ("openwit.partition", "openwit.offset");
            let place = Place {
                topic: header("openwit.topic"),
                partition: header(partition).parse().unwrap(),
                offset: header(offset).parse().unwrap(),
            };
            assert!(places.insert(place), "no copy twice where nothing failed");
        }
        places.len() >= messages
    });
    places
}

#[test]
fn a_tee_gives_both_sinks_every_message_once() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    broker.create_topic(&Topic { name: "copies".into(), partitions: 4 }).unwrap();
    let mut config = config(&broker, &load, &folder);
    config.graph = Graph::Stages(shipped_stages("tee.yaml", &[("kafka_sink", "topic", Value::Text("copies".into()))]));
    run_to_the_end(&config, 2);
    let rows = delivered(&config, &sent(&load)).rows;
    let stored: BTreeSet<Place> = lake::rows(&config.storage.object_store.root).into_iter().map(|row| row.place).collect();
    let messages: BTreeSet<u64> = rows.keys().map(|(message, _)| *message).collect();
    assert_eq!(copied(broker.brokers(), "copies", messages.len()), stored);
}

#[test]
fn the_shipped_capture_is_replayed_into_files_without_kafka() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    let capture = || Value::Path(folder.path().join("capture"));
    config.graph = Graph::Stages(shipped_stages("capture.yaml", &[("capture", "directory", capture())]));
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
    let stored = rows(&config);
    drop(broker);

    let (other_folder, files) = (TempDir::new().unwrap(), folder.path().join("files"));
    let mut other = elsewhere(&config, &other_folder);
    let overrides = [("capture_source", "path", capture()), ("parquet_files", "directory", Value::Path(files.clone()))];
    other.graph = Graph::Stages(shipped_stages("replay.yaml", &overrides));
    run_to_the_end(&other, 3);
    let found: BTreeMap<(Place, i32), u64> =
        lake::rows(&files).into_iter().map(|row| ((row.place, row.ordinal), row.content)).collect();
    assert_eq!(found, stored);
}
