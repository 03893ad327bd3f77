//! What a log holds is stored again from it, without Kafka: the same rows, each once, whichever log it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use openwit_graphs::process::{self, Control};
use openwit_ingest::config::Config;
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_ingest::plan::{Input, Output, replay_plan};
use openwit_operators::batch::Signal;
use openwit_operators::frame_source;
use openwit_operators::wal_commit::inspect::Source;
use openwit_operators::wal_commit::long_term::read::Selection;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, elsewhere, load, run_to_the_end, send, sent};
use crate::support::lake::{self, Place};

type Rows = BTreeMap<(Place, i32), u64>;

fn rows(config: &Config) -> Rows {
    let mut rows = Rows::new();
    for row in lake::rows(&config.storage.object_store.root) {
        let twice = rows.insert((row.place.clone(), row.ordinal), row.content);
        assert!(twice.is_none(), "doubled: {row:?}");
    }
    rows
}

fn replay(config: &Config, from: &Path, selection: Selection, workers: usize) -> Control {
    let (control, source) = (Control::default(), Source::find(from).unwrap());
    let plan =
        replay_plan(config, workers, Input::Log(frame_source::Config { source, selection, is_raw: false }), &Output::Published)
            .unwrap();
    let outcome = process::run(&plan, &control).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(outcome.restarts, 0);
    control
}

#[test]
fn both_logs_give_the_same_rows_again_and_none_twice() {
    let mut load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    load.count = Some(1_000);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    // Published segments are kept, so that the short-term log still has everything.
    config.wal_cleanup.retention_seconds = 3_600;
    config.processing.wal.long_term.enabled = true;
    run_to_the_end(&config, 2);
    delivered(&config, &sent(&load));
    let stored = rows(&config);
    let (short, long) = (&config.processing.wal.directory, &config.processing.wal.long_term.directory);

    // The segment that was active at the end is copied by the next start.
    let segments = Source::find(short).unwrap().list().unwrap().iter().filter(|segment| segment.frames > 0).count();
    assert!(segments > 2, "{segments} segments");
    let mut running = Running::start(&config, 1, Until::Stopped);
    running.wait_for("copies of all segments", |_| lake::files(long, ".owl").len() == segments);
    running.stop();

    for (from, workers) in [(short, 2), (long, 4)] {
        let other_folder = TempDir::new().unwrap();
        let mut other = elsewhere(&config, &other_folder);
        // Less than an epoch of frames: memory comes back only as epochs are closed.
        other.processing.buffer.max_size_bytes = 1 << 20;
        let first = replay(&other, from, Selection::default(), workers);
        assert_eq!(rows(&other), stored, "from {}", from.display());
        let frames = first.counters.frames.frames.load(Ordering::Relaxed);
        assert!(frames > 10 && first.counters.frames.covered.load(Ordering::Relaxed) == 0);
        // What is stored is left out.
        let second = replay(&other, from, Selection::default(), workers);
        assert_eq!(second.counters.frames.frames.load(Ordering::Relaxed), 0);
        assert_eq!(second.counters.frames.covered.load(Ordering::Relaxed), frames);
        assert_eq!(rows(&other), stored);
    }
}

#[test]
fn a_replay_of_another_topic_stores_nothing() {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    send(&broker, &load);
    let mut config = config(&broker, &load, &folder);
    config.wal_cleanup.retention_seconds = 3_600;
    run_to_the_end(&config, 1);
    let other_folder = TempDir::new().unwrap();
    let other = elsewhere(&config, &other_folder);
    let selection = Selection { topics: vec!["another".into()], ..Selection::default() };
    let control = replay(&other, &config.processing.wal.directory, selection, 2);
    assert!(control.counters.frames.unselected.load(Ordering::Relaxed) > 10);
    assert!(rows(&other).is_empty());
}
