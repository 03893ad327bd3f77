//! Disks and stores that fail: what was read is kept, and delivered once they are mended.

use std::path::Path;
use std::process::Command;

use openwit_ingest::commands::audit::{Scope, audit};
use openwit_ingest::config::{CommitMode, Config};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan};
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, Running, Until, config, delivered, load, run_to_the_end, send, sent};
use crate::support::{self, lake};

/// A load, and a configuration to read it with.
struct Setup {
    broker: EmbeddedBroker,
    load: Plan,
    _folder: TempDir,
    config: Config,
}

impl Setup {
    fn new() -> Self {
        let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
        let (broker, folder) = (EmbeddedBroker::start().unwrap(), TempDir::new().unwrap());
        send(&broker, &load);
        let config = config(&broker, &load, &folder);
        Setup { broker, load, _folder: folder, config }
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
    running.wait_for("all messages in the graph", |positions| positions.emitted == setup.load.count.unwrap_or(0) as i64);
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
    drop(setup.broker);
}

/// A file system of its own that is soon full; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, with the reason told, where this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let output = mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"], folder.path());
        match output {
            Ok(()) => Some(SmallDisk(folder)),
            Err(why) => {
                support::skipped("a full disk under the write-ahead log", &why);
                None
            }
        }
    }

    fn grow(&self, bytes: u64) {
        mount(&["-o", &format!("remount,size={bytes}")], self.0.path()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn mount(args: &[&str], at: &Path) -> Result<(), String> {
    let output = Command::new("mount").args(args).arg(at).output().map_err(|error| format!("mount: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

#[test]
fn a_full_disk_under_the_write_ahead_log_loses_nothing() {
    // Room for the first segment, not for the second.
    let Some(disk) = SmallDisk::mount(1_600 << 10) else { return };
    let mut setup = Setup::new();
    setup.config.processing.wal.directory = disk.0.path().join("wal");
    // Nothing is published before the end, so that no segment comes back.
    setup.config.storage.rotation.file_bytes_max = 64 << 20;
    for _ in 0..2 {
        let fault = Running::start(&setup.config, 2, Until::End).fault();
        assert!(fault.to_string().contains("write-ahead log") || fault.stage == "wal_commit", "{fault}");
        // What is committed in Kafka is in the log or in the catalog.
        let audited = audit(&setup.config, Scope::Committed).unwrap_or_else(|failure| panic!("{}", failure.message));
        assert!(audited.balance.clean, "{audited}");
    }
    disk.grow(64 << 20);
    run_to_the_end(&setup.config, 2);
    delivered(&setup.config, &sent(&setup.load));
}
