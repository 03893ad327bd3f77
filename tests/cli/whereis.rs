//! `where`: one test for each thing that can have become of a record, each compared with what the files, letters and topics say
//! without the program's help.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Topic;
use openwit_operators::batch::{Group, Signal};
use openwit_operators::catalog_commit::sled_catalog::SledCatalog;
use openwit_operators::catalog_commit::{Catalog, Commit};
use openwit_operators::coverage::{Dispositions, PartitionKey, TopicKey};
use openwit_operators::parquet_roll::CoverageRow;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tempfile::TempDir;
use ulid::Ulid;

use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::support::{lake, wait};
use crate::{DIFFERENCE, DONE, FAULT, Loaded, TOPIC, USAGE, line, logs, project};

/// A topic on an embedded broker, and a pipeline that reads it.
struct Pipeline {
    loaded: Loaded,
    sets: Vec<String>,
}

impl Pipeline {
    fn new(partitions: i32) -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(&Topic { name: TOPIC.into(), partitions }).unwrap();
        Pipeline { loaded: Loaded { broker, folder: TempDir::new().unwrap() }, sets: vec![] }
    }

    fn generate(&self, load: &str) -> Value {
        let brokers = self.loaded.broker.brokers();
        line(&format!("generate --brokers {brokers} --topic {TOPIC} --json {load}")).expect(DONE).json()
    }

    fn command(&self, words: &[&str]) -> Finished {
        openwit(self.loaded.arguments(words, &self.sets))
    }

    fn run(&self) -> Value {
        self.command(&["run", "--until-end", "--json"]).expect(DONE).json()
    }

    fn whereabouts(&self, partition: i32, offset: i64) -> Finished {
        self.command(&["where", TOPIC, &partition.to_string(), &offset.to_string(), "--json"])
    }

    /// The answer, which is no loss.
    fn found(&self, partition: i32, offset: i64) -> Value {
        self.whereabouts(partition, offset).expect(DONE).json()
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.loaded.folder.path().join(name)
    }

    /// From now on as a group that has committed `offset` and read nothing.
    fn commit(&mut self, partition: i32, offset: i64) {
        let group = "planted";
        self.sets.push(format!("ingestion.kafka.group_id={group}"));
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.loaded.broker.brokers()).set("group.id", group);
        let consumer: BaseConsumer = client.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(TOPIC, partition, Offset::Offset(offset)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }
}

#[test]
fn every_record_of_a_run_is_where_the_files_and_letters_have_it_and_the_rest_is_told_apart() {
    let pipeline = Pipeline::new(4);
    let sent = pipeline.generate("--count 24 --records-per-message 3 --duplicates 20 --invalid 15 --tombstones 15 --seed 3");
    pipeline.run();
    let mut rows: BTreeMap<(i32, i64), (PathBuf, BTreeSet<i32>)> = BTreeMap::new();
    for file in lake::files(&pipeline.folder("objects"), ".parquet") {
        for row in lake::rows_of([file.clone()]) {
            let place = (row.place.partition, row.place.offset);
            rows.entry(place).or_insert_with(|| (file.clone(), BTreeSet::new())).1.insert(row.ordinal);
        }
    }
    let letters = lake::letters(&pipeline.folder("dead-letter"));
    let letters: BTreeMap<(i32, i64), String> =
        letters.into_iter().map(|letter| ((letter.partition, letter.offset), letter.reason)).collect();
    let mut verdicts: BTreeMap<String, u64> = BTreeMap::new();
    for partition in 0..4 {
        for offset in 0..6 {
            let found = pipeline.found(partition, offset);
            let one = &found["incarnations"][0];
            *verdicts.entry(found["verdict"].as_str().unwrap().to_owned()).or_default() += 1;
            assert_eq!(one["covered"], json!(true), "{found}");
            let place = (partition, offset);
            if let Some((file, ordinals)) = rows.get(&place) {
                let part = &one["commits"][0]["files"][0];
                assert!(part["uri"].as_str().unwrap().ends_with(file.to_str().unwrap()), "{found}");
                assert_eq!((&found["verdict"], &part["ordinals"]), (&json!("stored"), &json!(ordinals)));
                assert_eq!(found["stage"], "catalog_commit");
            } else if let Some(reason) = letters.get(&place) {
                assert_eq!((&found["verdict"], &one["letters"][0]["reason"]), (&json!("rejected"), &json!(reason)));
            } else {
                let is_tombstone = found["kafka"]["message"]["is"] == "tombstone";
                assert_eq!(found["verdict"], if is_tombstone { "skipped" } else { "duplicate" }, "{found}");
            }
        }
    }
    let count = |verdict: &str| json!(verdicts.get(verdict).copied().unwrap_or(0));
    let found = [count("rejected"), count("duplicate"), count("skipped")];
    assert_eq!(found, [sent["invalid"].clone(), sent["duplicates"].clone(), sent["tombstones"].clone()]);
    assert!(found.iter().all(|count| *count != json!(0)), "each is among them: {verdicts:?}");
    assert_eq!(verdicts.values().sum::<u64>(), 24, "{verdicts:?}");
    assert_eq!(count("stored"), json!(rows.len()));

    // As a person reads it, and without Kafka.
    let ((partition, offset), (file, _)) = rows.first_key_value().unwrap();
    let (partition, offset) = (partition.to_string(), offset.to_string());
    let text = pipeline.command(&["where", TOPIC, &partition, &offset, "--offline"]).expect(DONE).stdout;
    let name = file.file_name().unwrap().to_str().unwrap();
    for named in ["stored: 3 rows in", name, "catalog_commit", "ordinals 0 to 2", "commit  "] {
        assert!(text.contains(named), "`{named}` is not in {text}");
    }
    assert!(!text.contains("Kafka"), "{text}");

    // More is written, and not read.
    assert_eq!(pipeline.found(0, 6)["verdict"], "not_written");
    pipeline.generate("--count 8 --seed 4");
    assert_eq!((&pipeline.found(0, 6)["verdict"], &pipeline.found(0, 6)["stage"]), (&json!("not_read"), &json!("kafka_source")));
    let other = pipeline.command(&["where", "another", "0", "5", "--json"]).expect(DONE).json();
    assert!(other["verdict"] == "unknown" && other["notes"][0].as_str().unwrap().contains("no partition another[0]"), "{other}");
    pipeline.command(&["where", TOPIC, "0"]).expect(USAGE);
}

#[test]
fn a_record_that_is_in_the_log_alone_is_told_to_be_there_beside_its_process_and_after_it() {
    let mut pipeline = Pipeline::new(1);
    // Nothing is published before the process is asked to stop.
    pipeline.sets.push("storage.rotation={idle_seconds: 3600, age_max_seconds: 3600}".into());
    pipeline.generate("--count 10 --duplicates 20 --seed 5");
    let process = Process::start(pipeline.loaded.arguments(&["run"], &pipeline.sets));
    wait::until("all offsets to be committed", PATIENCE, || pipeline.found(0, 9)["kafka"]["committed"] == 10);
    let check = |catalog: &str| {
        let (mut stored, mut duplicates) = (0, 0);
        for offset in 0..10 {
            let found = pipeline.found(0, offset);
            let frame = &found["incarnations"][0]["frames"][0];
            assert_eq!((&found["catalog"], &frame["log"]), (&json!(catalog), &json!("short-term")), "{found}");
            match found["verdict"].as_str().unwrap() {
                "in_log" => {
                    stored += 1;
                    assert!(found["stage"] == "wal_commit" && frame["payload_bytes"].as_u64().unwrap() > 0, "{found}");
                }
                "duplicate" => duplicates += 1,
                other => panic!("{other}: {found}"),
            }
        }
        assert!(stored > 5 && duplicates > 0 && stored + duplicates == 10, "{stored} and {duplicates}");
    };
    check("in_use");
    assert!(process.kill());
    check("asked");
    // A look does not pass a catalog off as clean that was not closed: the next start completes it from the files.
    pipeline.run();
    assert_eq!(pipeline.found(0, 0)["verdict"], "stored");
}

#[test]
fn both_logs_of_a_running_process_are_looked_at() {
    let folder = TempDir::new().unwrap();
    let (_writer, short, long) = logs(folder.path());
    let sets = [
        format!("node.data_directory={}", folder.path().display()),
        format!("processing.wal.directory={}", short.display()),
        format!("processing.wal.long_term={{enabled: true, directory: {}}}", long.display()),
    ];
    let config = project().join("config/standalone.yaml").display().to_string();
    let found = |partition: &str, offset: &str| {
        let mut words = vec!["where", TOPIC, partition, offset, "--offline", "--json", "--config", &config];
        sets.iter().for_each(|set| words.extend(["--set", set]));
        openwit(words).expect(DONE).json()
    };
    let first = found("1", "0");
    let frames = first["incarnations"][0]["frames"].as_array().unwrap();
    let logs: Vec<&str> = frames.iter().map(|frame| frame["log"].as_str().unwrap()).collect();
    assert_eq!((logs, &first["verdict"]), (vec!["short-term", "long-term"], &json!("in_log")), "{first}");
    let payload = |frame: &Value| (frame["segment"].clone(), frame["payload_bytes"].clone(), frame["epoch"].clone());
    assert_eq!(payload(&frames[0]), payload(&frames[1]));
    // The segment that is being written has no copy.
    let last = found("1", "19");
    let frames = last["incarnations"][0]["frames"].as_array().unwrap();
    assert!(matches!(&frames[..], [only] if only["log"] == "short-term"), "{last}");
    assert_eq!(found("1", "20")["verdict"], "unknown");
}

#[test]
fn a_record_that_was_committed_and_is_nowhere_is_lost() {
    let mut pipeline = Pipeline::new(1);
    pipeline.generate("--count 30 --seed 6");
    pipeline.run();
    pipeline.generate("--count 5 --seed 7");
    assert_eq!(pipeline.found(0, 32)["verdict"], "not_read");
    pipeline.commit(0, 33);
    let lost = pipeline.whereabouts(0, 32).expect(DIFFERENCE);
    assert_eq!(lost.json()["verdict"], "lost");
    assert!(lost.stderr.contains("offset 32: LOST: the group has committed up to 33"), "{}", lost.stderr);
    assert_eq!(pipeline.found(0, 33)["verdict"], "not_read");

    // Its file vanishes; what the file does not have is where it was.
    std::fs::remove_dir_all(pipeline.folder("wal")).unwrap();
    assert_eq!(pipeline.found(0, 10)["verdict"], "stored");
    for file in lake::files(&pipeline.folder("objects"), ".parquet") {
        std::fs::remove_file(file).unwrap();
    }
    let lost = pipeline.whereabouts(0, 10).expect(DIFFERENCE);
    assert!(lost.json()["verdict"] == "lost" && lost.stderr.contains("missing in the object store"), "{}", lost.stderr);
}

#[test]
fn rows_that_the_catalog_does_not_cover_are_a_difference() {
    let pipeline = Pipeline::new(1);
    pipeline.generate("--count 30 --seed 8");
    pipeline.run();
    std::fs::remove_dir_all(pipeline.folder("wal")).unwrap();
    std::fs::remove_dir_all(pipeline.folder("catalog")).unwrap();
    // There is no catalog: Kafka's word is all there is.
    let lost = pipeline.whereabouts(0, 10).expect(DIFFERENCE);
    assert!(lost.json()["verdict"] == "uncovered" && lost.stderr.contains("openwit-ingest janitor"), "{}", lost.stderr);
    pipeline.command(&["janitor"]).expect(DONE);
    assert_eq!(pipeline.found(0, 10)["verdict"], "stored");
}

#[test]
fn what_retention_removed_before_it_was_read_is_told_so() {
    let mut pipeline = Pipeline::new(1);
    // The broker keeps 5 MiB of a partition.
    pipeline.generate("--count 80 --message-bytes 100000 --seed 9");
    let removed = pipeline.found(0, 0);
    assert!(removed["verdict"] == "removed" && removed["kafka"]["low"].as_i64().unwrap() > 10, "{removed}");
    pipeline.run();
    assert_eq!((&pipeline.found(0, 0)["verdict"], &pipeline.found(0, 79)["verdict"]), (&json!("removed"), &json!("stored")));

    // The same name on another cluster is another topic.
    let former = pipeline.loaded.broker;
    pipeline.loaded.broker = EmbeddedBroker::start().unwrap();
    pipeline.loaded.broker.create_topic(&Topic { name: TOPIC.into(), partitions: 1 }).unwrap();
    let found = pipeline.found(0, 79);
    assert_eq!(verdicts(&found), ["stored", "not_written"], "{found}");
    drop(former);
}

fn verdicts(found: &Value) -> Vec<&str> {
    found["incarnations"].as_array().unwrap().iter().map(|one| one["verdict"].as_str().unwrap()).collect()
}

#[test]
fn every_incarnation_of_a_topic_that_was_created_anew_is_shown() {
    let pipeline = Pipeline::new(1);
    pipeline.generate("--count 40 --seed 10");
    // A former topic of the name had a hundred messages; their files have expired.
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", pipeline.loaded.broker.brokers());
    let consumer: BaseConsumer = client.create().unwrap();
    let cluster = consumer.client().fetch_cluster_id(PATIENCE).unwrap();
    let topic = TopicKey { cluster: cluster.into(), name: TOPIC.into(), id: "".into() };
    let group = Group { index: "shop".into(), signal: Signal::Traces };
    let coverage = CoverageRow {
        partition: PartitionKey { topic: topic.into(), partition: 0 },
        range: 0..100,
        dispositions: Dispositions { stored: 100, ..Dispositions::default() },
        rows: 100,
        kafka_time_max_ms: None,
    };
    let commit = Commit { commit_id: Ulid(1), group, node: "former".into(), files: vec![], coverage: vec![coverage] };
    SledCatalog::open(&pipeline.folder("catalog")).unwrap().commit(&commit).unwrap();
    let before = pipeline.found(0, 35);
    assert_eq!((verdicts(&before), &before["verdict"]), (vec!["expired", "not_read"], &json!("not_read")), "{before}");
    pipeline.run();
    let now = pipeline.found(0, 35);
    assert_eq!((verdicts(&now), &now["incarnations"][1]["topic_id"]), (vec!["expired", "stored"], &json!("~1")), "{now}");
    let behind = pipeline.found(0, 79);
    assert_eq!((verdicts(&behind), &behind["verdict"]), (vec!["expired", "not_written"], &json!("not_written")), "{behind}");
    let text = pipeline.command(&["where", TOPIC, "0", "79"]).expect(DONE).stdout;
    assert!(text.contains("the first of this name, a former one") && text.contains("~1, as it is now"), "{text}");
}

#[test]
fn a_broker_that_is_away_is_told_and_not_needed() {
    let mut pipeline = Pipeline::new(1);
    pipeline.generate("--count 10 --seed 11");
    pipeline.run();
    pipeline.sets.push("ingestion.kafka.brokers=127.0.0.1:1".into());
    let refused = pipeline.whereabouts(0, 5).expect(FAULT);
    assert!(refused.stderr.contains("--offline answers without Kafka"), "{}", refused.stderr);
    let found = pipeline.command(&["where", TOPIC, "0", "5", "--json", "--offline"]).expect(DONE).json();
    assert_eq!((&found["verdict"], &found["kafka"]), (&json!("stored"), &Value::Null));
    let found = pipeline.command(&["where", TOPIC, "0", "10", "--json", "--offline"]).expect(DONE).json();
    assert_eq!(found["verdict"], "unknown");
}
