//! What a disk does to a whole process: folders that cannot be written, logs that were damaged between two runs, objects that
//! somebody deleted or changed.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::setup::Setup;
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::disk::Disk;
use crate::support::{lake, wait};

#[test]
fn a_folder_that_cannot_be_written_is_named_at_the_start_and_nothing_is_lost() {
    let Some(setup) = Setup::new("read-only", "traces") else { return };
    setup.generate("otlp", 200, 41);
    for (stage, folder) in
        [("wal_commit", "data/wal/short"), ("dead_letter", "data/dead-letter"), ("parquet_roll", "data/storage")]
    {
        let path = setup.path(folder);
        fs::create_dir_all(&path).expect("the folder is writable");
        // Permissions do not stop root.
        let Some(disk) = Disk::mount_at(&path, 1 << 20) else { return };
        disk.make_read_only();
        let ended = openwit(["run", "--config", &setup.config(), "--until-end"]).expect(1);
        assert!(ended.stderr.contains(&path.display().to_string()), "{stage} must name {}:\n{}", path.display(), ended.stderr);
        assert!(ended.stderr.to_lowercase().contains("read-only file system"), "{stage}:\n{}", ended.stderr);
    }
    setup.run_to_end();
    setup.verify("otlp", None);
}

/// Kills a process whose object store refuses all files when everything is in its log; returns the segments in use.
fn killed_with_a_full_log(setup: &Setup, messages: u64) -> Vec<PathBuf> {
    let store = setup.path("data/objects");
    fs::create_dir_all(store.parent().expect("it is below the folder")).expect("the folder is writable");
    // A folder of this name is what the store needs.
    fs::create_dir_all(&store).expect("the folder is writable");
    let index = setup.topic.split('.').nth(3).expect("the topic's fourth token");
    fs::write(store.join(index), b"in the way").expect("the folder is writable");
    let mut process = Process::start(["run", "--config", &setup.config(), "--workers", "2"]);
    assert!(process.wait_for("upload failed, trying again"), "{}", process.stderr());
    let committed_all =
        |messages: u64| wait::until("all offsets to be committed", PATIENCE, || committed(setup) == messages.to_string());
    committed_all(messages);
    // Frames written later prove that the earlier ones were durable: without any, damage could not be told from a torn end.
    setup.generate("otlp", 40, 44);
    committed_all(messages + 40);
    process.kill();
    fs::remove_file(store.join(index)).expect("it is there");
    let mut segments = lake::files(&setup.path("data/wal/short"), ".wal");
    segments.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-")));
    assert!(!segments.is_empty(), "no segments in {}", setup.path("data/wal/short").display());
    segments
}

fn consumer(setup: &Setup) -> BaseConsumer {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &setup.brokers).set("group.id", &setup.group);
    client.create().expect("the settings are valid")
}

fn partitions(setup: &Setup) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..8 {
        list.add_partition(&setup.topic, partition);
    }
    list
}

/// The sum of the group's committed offsets.
pub fn committed(setup: &Setup) -> String {
    let committed = consumer(setup).committed_offsets(partitions(setup), PATIENCE);
    let elements =
        committed.map(|list| list.elements().iter().filter_map(|at| at.offset().to_raw()).filter(|at| *at > 0).sum::<i64>());
    elements.unwrap_or_default().to_string()
}

/// Sets the group back to the beginning, once its killed member has left it.
fn rewind(setup: &Setup) {
    let mut list = partitions(setup);
    list.set_all_offsets(Offset::Offset(0)).expect("the offset is valid");
    wait::until("the killed member to leave the group", PATIENCE, || consumer(setup).commit(&list, CommitMode::Sync).is_ok());
}

fn damage(setup: &Setup, damage: impl Fn(&Path)) {
    setup.generate("otlp", 600, 42);
    let segments = killed_with_a_full_log(setup, 600);
    damage(&segments[0]);
    // What is damaged is told, the rest is published, and what is missing is a finding, not a silence.
    let ended = openwit(["run", "--config", &setup.config(), "--until-end", "--workers", "2"]).expect(3);
    assert!(ended.stderr.contains("the write-ahead log is damaged"), "{}", ended.stderr);
    let audited = openwit(["audit", "--config", &setup.config(), "--json"]).expect(3).json();
    assert!(audited["balance"]["missing"].as_u64().is_some_and(|missing| (1..600).contains(&missing)), "{audited}");
    assert_eq!(audited["balance"]["doubled"], 0, "{audited}");
    // The messages are in Kafka still: read again from the beginning, what is covered is dropped by its offsets.
    rewind(setup);
    setup.run_to_end();
    setup.verify("otlp", None);
    setup.audit();
}

#[test]
fn a_log_damaged_between_two_runs_is_reported_and_healed_by_reading_again() {
    let Some(setup) = Setup::new("damaged-log", "traces") else { return };
    damage(&setup, |segment| {
        let mut file = fs::File::options().write(true).open(segment).expect("it is there");
        // In the middle of what was written: frames lie before it and behind it.
        file.seek(SeekFrom::Start(300_000)).expect("it can be read anywhere");
        file.write_all(&[0xa5; 4_096]).expect("the disk works");
    });
}

#[test]
fn an_object_deleted_or_changed_behind_the_catalogs_back_is_named_by_the_audit() {
    let Some(setup) = Setup::new("objects", "traces") else { return };
    setup.generate("otlp", 200, 43);
    setup.run_to_end();
    let objects = lake::files(&setup.path("data/objects"), ".parquet");
    let path = objects[0].clone();
    let bytes = fs::read(&path).expect("it is there");
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("the folder is writable");
    let audited = openwit(["audit", "--config", &setup.config()]).expect(3);
    let line = audited.stdout.lines().find(|line| line.contains(&name)).unwrap_or_default();
    assert!(line.contains(&format!("{} bytes, the catalog says {}", bytes.len() / 2, bytes.len())), "{}", audited.stdout);
    fs::remove_file(&path).expect("it is there");
    let audited = openwit(["audit", "--config", &setup.config()]).expect(3);
    assert!(
        audited.stdout.lines().any(|line| line.contains("missing in the object store") && line.contains(&name)),
        "{}",
        audited.stdout
    );
    fs::write(&path, &bytes).expect("the folder is writable");
    setup.audit();
}
