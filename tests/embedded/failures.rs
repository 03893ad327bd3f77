//! Disks and stores that fail: what was read is kept, and delivered once they are mended.

use std::sync::atomic::Ordering::Relaxed;

use openwit_ingest::config::{CommitMode, Config};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan};
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, run_to_the_end, send, send_when, sent};
use crate::support::disk::Disk;
use crate::support::lake;

/// A load, and a configuration to read it with.
struct Setup {
    _broker: EmbeddedBroker,
    load: Plan,
    _folder: TempDir,
    config: Config,
}

impl Setup {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl Fn(&mut Plan)) -> Self {
        let mut load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
        change(&mut load);
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        send(&broker, &load);
        let config = config(&broker, &load, &folder);
        Setup { _broker: broker, load, _folder: folder, config }
    }

    fn messages(&self) -> i64 {
        self.load.count.unwrap_or_default() as i64
    }
}

/// Runs against an object store that refuses every file until all is read and waits in the log, then mends it.
fn check_held_until_mended(mode: CommitMode) {
    let mut setup = Setup::new();
    setup.config.ingestion.kafka.commit_strategy.mode = mode;
    // A file where the store needs a folder: this stops even root.
    let in_the_way = setup.config.storage.object_store.root.join(INDEX);
    std::fs::create_dir_all(&setup.config.storage.object_store.root).unwrap();
    std::fs::write(&in_the_way, b"in the way").unwrap();

    let mut running = Running::start(&setup.config, 2, Until::End);
    running.wait_for("all messages in the graph", |positions| positions.emitted == setup.messages());
    match mode {
        CommitMode::AfterWal => running.wait_for("all offsets to be committable", |at| at.committable == at.emitted),
        CommitMode::AfterPublish => assert_eq!(running.positions().committable, 0, "nothing is published yet"),
    }
    assert!(lake::rows(&setup.config.storage.object_store.root).is_empty());
    std::fs::remove_file(in_the_way).unwrap();
    running.finish();
    delivered(&setup.config, &sent(&setup.load));
}

#[test]
fn an_object_store_that_refuses_files_holds_the_run_and_loses_nothing() {
    check_held_until_mended(CommitMode::AfterWal);
}

#[test]
fn an_object_store_that_refuses_files_holds_the_offsets_that_wait_for_publication() {
    check_held_until_mended(CommitMode::AfterPublish);
}

#[test]
fn an_object_store_that_cannot_be_opened_stops_the_start_before_anything_is_committed() {
    let setup = Setup::new();
    std::fs::write(&setup.config.storage.object_store.root, b"in the way").unwrap();
    let fault = Running::start(&setup.config, 2, Until::End).fault();
    assert!(fault.message.contains("object store"), "{fault}");
    std::fs::remove_file(&setup.config.storage.object_store.root).unwrap();
    run_to_the_end(&setup.config, 2);
    delivered(&setup.config, &sent(&setup.load));
}

#[test]
fn a_full_disk_under_the_write_ahead_log_holds_the_run_and_loses_nothing() {
    let (too_small, large) = (1 << 20, 64 << 20);
    let Some(disk) = Disk::mount(too_small) else { return };
    let mut setup = Setup::new();
    setup.config.processing.wal.directory = disk.path().join("wal");
    // Nothing is published before the end, so that no space comes back by itself.
    setup.config.storage.rotation.file_bytes_max = 64 << 20;
    let mut running = Running::start(&setup.config, 2, Until::End);
    running.wait_for("the disk to be full", |_| disk.used() > too_small / 8 * 7);
    running.wait_for("all messages in the graph", |positions| positions.emitted == setup.messages());
    disk.grow(large);
    running.finish();
    delivered(&setup.config, &sent(&setup.load));
}

#[test]
fn a_full_disk_under_storage_is_waited_for_and_commits_that_fit_get_through() {
    // Too small for the load in one commit; what is published makes room again.
    let Some(disk) = Disk::mount(160 << 10) else { return };
    let mut setup = Setup::with(|load| load.count = Some(1_200));
    setup.config.storage.local_directory = disk.path().join("local");
    setup.config.storage.rotation.file_bytes_max = 64 << 20;
    setup.config.storage.parquet.row_group_rows = 200;
    let control = run_to_the_end(&setup.config, 2);
    assert!(control.counters.sink.resent.load(Relaxed) > 0, "the disk was never full");
    delivered(&setup.config, &sent(&setup.load));
}

#[test]
fn a_write_ahead_log_smaller_than_the_load_waits_for_publication() {
    let mut setup = Setup::with(|load| load.count = Some(1_200));
    // The log holds what is on its way, and no more.
    setup.config.processing.wal.max_size_bytes = 2 << 20;
    setup.config.processing.buffer.max_size_bytes = 1 << 20;
    setup.config.pipeline.in_flight_bytes_max = 1 << 20;
    setup.config.storage.rotation.file_bytes_max = 64 << 20;
    setup.config.storage.rotation.idle_seconds = 1;
    run_to_the_end(&setup.config, 2);
    delivered(&setup.config, &sent(&setup.load));
}

#[test]
fn partitions_that_stay_empty_hold_nobody_up() {
    let mut load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
    broker.create_topic(&load.topics[0]).unwrap();
    // Only the first of four has messages.
    load.topics[0].partitions = 1;
    send_when(broker.brokers(), &load, |_| true);
    let mut config = config(&broker, &load, &folder);
    config.storage.rotation.idle_seconds = 1;
    let mut running = Running::start(&config, 2, Until::Stopped);
    let all = load.count.unwrap() as i64;
    running.wait_for("all offsets to be committable", |positions| positions.committable == all);
    let sink = running.control().counters.sink.clone();
    // While it runs: an end of the input would close everything.
    running.wait_for("everything to be published", |_| {
        let (sent, published) = (sink.rows_sent.load(Relaxed), sink.rows_published.load(Relaxed));
        sent > 0 && sent == published && sink.unpublished.load(Relaxed) == 0
    });
    running.stop();
    delivered(&config, &sent(&load));
}
