//! Disks and stores that fail: the run ends with the fault's name, keeps what it has read, and the next run completes it.

use std::path::Path;
use std::process::Command;

use openwit_ingest::commands::audit::{Scope, audit};
use openwit_ingest::config::{CommitMode, Config};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Format;
use openwit_operators::batch::Signal;
use tempfile::TempDir;

use super::pipeline::{INDEX, config, delivered, load, run, run_to_the_end, send, sent};

/// Runs a load against something broken by `break_it`, then mended by `mend`: the fault names `stage`, and nothing is lost or doubled.
fn check(stage: &str, change: impl Fn(&mut Config), break_it: impl Fn(&Config), mend: impl Fn(&Config)) {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let broker = EmbeddedBroker::start().unwrap();
    send(&broker, &load);
    let (sent, folder) = (sent(&load), TempDir::new().unwrap());
    let mut config = config(&broker, &load, &folder);
    change(&mut config);
    break_it(&config);
    for _ in 0..2 {
        let (outcome, _) = run(&config, 2);
        let fault = outcome.expect_err("a run that cannot store anything does not end well");
        assert_eq!(fault.stage, stage, "{fault}");
        // What is committed in Kafka is in the log or in the catalog.
        let audited = audit(&config, Scope::Committed).unwrap_or_else(|failure| panic!("{}", failure.message));
        assert!(audited.balance.clean, "{audited}");
    }
    mend(&config);
    run_to_the_end(&config, 2);
    delivered(&config, &sent);
}

/// The folder in the object store in which all files of the load belong.
fn put_a_file_where_the_store_needs_a_folder(config: &Config) {
    let root = &config.storage.object_store.root;
    std::fs::create_dir_all(root).unwrap();
    std::fs::write(root.join(INDEX), b"in the way").unwrap();
}

fn remove_the_file(config: &Config) {
    std::fs::remove_file(config.storage.object_store.root.join(INDEX)).unwrap();
}

#[test]
fn an_object_store_that_refuses_files_loses_nothing() {
    check("object_upload", |_| (), put_a_file_where_the_store_needs_a_folder, remove_the_file);
}

#[test]
fn an_object_store_that_refuses_files_loses_nothing_when_offsets_wait_for_publication() {
    let after_publish = |config: &mut Config| config.ingestion.kafka.commit_strategy.mode = CommitMode::AfterPublish;
    check("object_upload", after_publish, put_a_file_where_the_store_needs_a_folder, remove_the_file);
}

#[test]
fn an_object_store_that_cannot_be_opened_stops_the_start_and_loses_nothing() {
    let in_the_way = |config: &Config| std::fs::write(&config.storage.object_store.root, b"in the way").unwrap();
    check("object_upload", |_| (), in_the_way, |config| std::fs::remove_file(&config.storage.object_store.root).unwrap());
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
                crate::support::skipped("a full disk under the write-ahead log", &why);
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
    let Some(disk) = SmallDisk::mount(3 << 20) else { return };
    let on_the_small_disk = |config: &mut Config| config.processing.wal.directory = disk.0.path().join("wal");
    check("wal_commit", on_the_small_disk, |_| (), |_| disk.grow(64 << 20));
}
