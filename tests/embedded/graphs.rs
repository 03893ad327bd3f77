//! Graphs of one's own, run whole: what they store, and what a replay of their captures stores.

use std::collections::BTreeMap;
use std::path::Path;

use openwit_graphs::replayed::fed_by;
use openwit_graphs::shipped;
use openwit_graphs::wiring::{Description, Stage};
use openwit_ingest::config::{Config, Graph, default_options};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_operators::batch::Signal;
use openwit_operators::options::Value;
use tempfile::TempDir;

use super::pipeline::{INDEX, Until, config, delivered, load, run_to_the_end, send, sent};
use crate::support::lake::{self, Place};

fn stage<const N: usize>(operator: &str, given: [(&str, Value); N]) -> Stage {
    let mut options = default_options(operator);
    given.into_iter().for_each(|(name, value)| options.set(name, value));
    Stage::of(operator).with(options)
}

fn capture_into(directory: &Path) -> Stage {
    let (directory, small) = (Value::Path(directory.to_owned()), Value::Number(64 << 10));
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

/// `config` with everything it writes in another folder.
fn elsewhere(config: &Config, folder: &TempDir) -> Config {
    let embedded = Config::embedded(folder.path());
    let mut other = config.clone();
    other.storage.object_store.root = embedded.storage.object_store.root;
    other.storage.local_directory = embedded.storage.local_directory;
    other.metastore.path = embedded.metastore.path;
    other.processing.wal.directory = embedded.processing.wal.directory;
    other.ingestion.kafka.dead_letter.directory = embedded.ingestion.kafka.dead_letter.directory;
    other
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
    assert!(lake::files(&raw, ".owcap").len() > 2, "several files");

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
    let (stored, expected) = (rows(&plain), delivered(&plain, &sent).rejects);
    for (attribute, changes) in [("http.*", true), ("no.such.attribute", false)] {
        let other_folder = TempDir::new().unwrap();
        let mut other = elsewhere(&plain, &other_folder);
        other.ingestion.kafka.group_id = format!("redacting {attribute}");
        other.graph = Graph::Stages(standalone_with(masking(attribute), "dead_letter"));
        run_to_the_end(&other, 2);
        let found = rows(&other);
        assert_eq!(found.len(), stored.len());
        assert_eq!(found.values().ne(stored.values()), changes, "{attribute}");
        assert_eq!(delivered(&other, &sent).rejects, expected);
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
