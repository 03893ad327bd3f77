//! What a disk does to a whole process: folders that cannot be written, logs that were damaged between two runs, objects that
//! somebody deleted or changed, a disk that is gone with all that was on it.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::setup::{Setup, service};
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
fn killed_with_a_full_log(setup: &Setup, store: &Path, messages: u64) -> Vec<PathBuf> {
    fs::create_dir_all(store).expect("the folder is writable");
    // A folder of this name is what the store needs.
    let index = store.join(setup.topic.split('.').nth(3).expect("the topic's fourth token"));
    let aside = store.join("aside");
    let has_files = index.exists();
    if has_files {
        fs::rename(&index, &aside).expect("the folder is writable");
    }
    fs::write(&index, b"in the way").expect("the folder is writable");
    let mut process = Process::start(["run", "--config", &setup.config(), "--workers", "2"]);
    assert!(process.wait_for("upload failed, trying again"), "{}", process.stderr());
    wait::until("all offsets to be committed", PATIENCE, || committed(setup) == messages.to_string());
    process.kill();
    fs::remove_file(&index).expect("it is there");
    if has_files {
        fs::rename(&aside, &index).expect("the folder is writable");
    }
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

/// Sets the group's offsets, once its killed member has left it.
fn set_group_to(setup: &Setup, offsets: &TopicPartitionList) {
    wait::until("the killed member to leave the group", PATIENCE, || consumer(setup).commit(offsets, CommitMode::Sync).is_ok());
}

/// Damages the newest segment of a killed node's log, and lets the next run find it.
fn damage(test: &str, damage: impl Fn(&Path)) {
    let Some(setup) = Setup::new(test, "traces") else { return };
    setup.generate("otlp", 600, 42);
    let segments = killed_with_a_full_log(&setup, &setup.path("data/objects"), 600);
    damage(segments.last().expect("a segment"));
    let verified = openwit(["wal", "verify", &setup.path("data/wal/short").display().to_string()]).expect(1);
    assert!(verified.stdout.contains("damaged"), "{}{}", verified.stdout, verified.stderr);
    // What is damaged is told. The messages are in Kafka still, behind the committed offsets: they are read again.
    let ended = openwit(["run", "--config", &setup.config(), "--until-end", "--workers", "2"]).expect(0);
    assert!(ended.stderr.contains("the write-ahead log is damaged"), "{}", ended.stderr);
    assert!(ended.stderr.contains("read from before the group's offset"), "{}", ended.stderr);
    assert_eq!(committed(&setup), "600", "the group is where it was");
    setup.verify("otlp", None);
    setup.audit();
}

fn overwrite(segment: &Path, at: u64) {
    let mut file = fs::File::options().write(true).open(segment).expect("it is there");
    file.seek(SeekFrom::Start(at)).expect("it can be read anywhere");
    file.write_all(&[0xa5; 4_096]).expect("the disk works");
}

#[test]
fn a_log_damaged_in_its_middle_between_two_runs_heals_by_reading_kafka_again() {
    // Frames lie before it and behind it.
    damage("damaged-log", |segment| overwrite(segment, 300_000));
}

#[test]
fn a_log_damaged_in_its_last_group_between_two_runs_heals_by_reading_kafka_again() {
    damage("damaged-end", |segment| {
        let bytes = fs::read(segment).expect("it is there");
        let end = bytes.iter().rposition(|&byte| byte != 0).expect("frames");
        overwrite(segment, (end as u64 - 4_096) & !511);
    });
}

#[test]
fn a_disk_lost_with_records_not_published_is_a_gap_and_read_again_from_its_start() {
    let test = "lost-disk";
    let Some(postgres) = service(test, "OPENWIT_TEST_POSTGRES") else { return };
    let Some(setup) = Setup::new(test, "traces") else { return };
    let (schema, lake) = (setup.schema(), setup.path("lake"));
    let setup = setup.with(&format!(
        "metastore: {{type: postgres, url: \"{postgres}\", schema: {schema}}}\nstorage: {{object_store: {{root: {}}}}}\n",
        lake.display()
    ));
    setup.generate("otlp", 400, 45);
    setup.run_to_end();
    setup.generate("otlp", 600, 46);
    killed_with_a_full_log(&setup, &lake, 1_000);
    // The dead letters lie on another disk.
    let (data, lost) = (setup.path("data"), setup.path("lost"));
    fs::rename(&data, &lost).expect("the folder is writable");
    fs::create_dir(&data).expect("the folder is writable");
    fs::rename(lost.join("dead-letter"), data.join("dead-letter")).expect("the folder is writable");
    // What was committed and not published is a gap, partition by partition.
    let audited = openwit(["audit", "--config", &setup.config(), "--json"]).expect(3).json();
    assert_eq!((&audited["balance"]["missing"], &audited["balance"]["doubled"]), (&600.into(), &0.into()), "{audited}");
    let mut starts = TopicPartitionList::new();
    for partition in audited["balance"]["partitions"].as_array().expect("a list") {
        let (number, gaps) = (partition["partition"].as_i64().expect("a number"), partition["gaps"].as_array().expect("a list"));
        let [gap] = &gaps[..] else { panic!("one gap, behind what is published: {partition}") };
        let start = Offset::Offset(gap["start"].as_i64().expect("a number"));
        starts.add_partition_offset(&setup.topic, number as i32, start).expect("it is an offset");
    }
    set_group_to(&setup, &starts);
    setup.run_to_end();
    setup.verify("otlp", Some(&lake.display().to_string()));
    setup.audit();
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
