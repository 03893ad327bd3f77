//! `where` on real services: what it says of each record against what PostgreSQL, S3, letters and Kafka say without it; offsets that Kafka
//! never hands out; offsets that nobody was to read, or could. What each record of a run can become is proven in `tests/cli/whereis.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use openwit_operators::object_upload::{ObjectStore, S3, Secret, build_operator};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::kafka::Kafka;
use crate::setup::{Setup, service};
use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::support::{lake, wait};

fn whereabouts(setup: &Setup, partition: i32, offset: i64, more: &[&str]) -> Finished {
    let (config, partition, offset) = (setup.config(), partition.to_string(), offset.to_string());
    openwit(["where", &setup.topic, &partition, &offset, "--json", "--config", &config].iter().chain(more))
}

/// The answer, which is no loss.
fn found(setup: &Setup, partition: i32, offset: i64) -> Value {
    whereabouts(setup, partition, offset, &[]).expect(0).json()
}

/// The verdicts on some offsets of the first partition.
fn verdicts(setup: &Setup, offsets: Range<i64>, more: &[&str]) -> Vec<String> {
    let verdict = |offset| {
        let answer = whereabouts(setup, 0, offset, more).expect(0).json();
        answer["verdict"].as_str().expect("a verdict").to_owned()
    };
    offsets.map(verdict).collect()
}

/// The bucket that tests have, looked at without the program.
struct Bucket {
    store: opendal::Operator,
    runtime: tokio::runtime::Runtime,
    url: String,
}

impl Bucket {
    fn open(test: &str) -> Option<Self> {
        let bucket = service(test, "OPENWIT_TEST_S3_BUCKET")?;
        let url = format!("s3://{bucket}/");
        let store = ObjectStore::S3(S3 {
            bucket,
            root: String::new(),
            endpoint: Some(service(test, "OPENWIT_TEST_S3_ENDPOINT")?),
            region: Some("us-east-1".into()),
            access_key_id: Some(Secret::new(service(test, "AWS_ACCESS_KEY_ID")?)),
            secret_access_key: Some(Secret::new(service(test, "AWS_SECRET_ACCESS_KEY")?)),
            virtual_host_style: false,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
        Some(Bucket { store: build_operator(&store).expect("the settings are valid"), runtime, url })
    }

    fn path<'u>(&self, uri: &'u str) -> &'u str {
        uri.strip_prefix(&self.url).unwrap_or_else(|| panic!("{uri} is not in {}", self.url))
    }

    fn rows(&self, uri: &str) -> Vec<lake::Row> {
        let read = self.runtime.block_on(self.store.read(self.path(uri))).unwrap_or_else(|error| panic!("{uri}: {error}"));
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), read.to_vec()).expect("the file is writable");
        lake::rows_of([file.path().to_owned()])
    }

    fn delete(&self, uri: &str) {
        self.runtime.block_on(self.store.delete(self.path(uri))).expect("the store deletes");
    }
}

/// What the catalog's tables list: URI, commit, and number of rows.
fn listed(setup: &Setup) -> Vec<(String, String, i64)> {
    let url = std::env::var("OPENWIT_TEST_POSTGRES").expect("the test has it");
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("PostgreSQL answers");
    let select = format!("SELECT uri, commit_id, rows FROM {}.files", setup.schema());
    let rows = client.query(&select, &[]).expect("the table is there");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[test]
fn every_record_is_where_postgresql_s3_and_the_letters_have_it_and_what_s3_has_lost_is_told() {
    let test = "where-stores";
    let Some((setup, url)) = Setup::in_postgres_and_s3(test, "traces") else { return };
    let Some(bucket) = Bucket::open(test) else { return };
    // Nothing is published before the process is asked to stop.
    let late = "storage.rotation={idle_seconds: 3600, age_max_seconds: 3600}";
    let generate =
        ["generate", "--brokers", &setup.brokers, "--topic", &setup.topic, "--partitions", "2", "--format", "otlp", "--json"];
    let load = ["--count", "24", "--records-per-message", "3", "--duplicates", "15", "--invalid", "10", "--tombstones", "10"];
    let sent = openwit(generate.iter().chain(&load).chain(&["--seed", "3"])).expect(0).json();
    assert_eq!((&found(&setup, 0, 11)["verdict"], &found(&setup, 0, 12)["verdict"]), (&json!("not_read"), &json!("not_written")));

    // Beside its process: the catalog is asked all the same.
    let process = Process::start(["run", "--config", &setup.config(), "--workers", "2", "--set", late]);
    wait::until("all of it to be committed", PATIENCE, || crate::disks::committed(&setup) == "24");
    let beside: Vec<Value> = (0..6).map(|offset| found(&setup, 0, offset)).collect();
    let of = |verdict: &str| beside.iter().filter(|answer| answer["verdict"] == verdict).collect::<Vec<_>>();
    for answer in of("in_log") {
        let one = &answer["incarnations"][0];
        assert_eq!((&answer["catalog"], &one["covered"]), (&json!("asked"), &json!(false)), "{answer}");
        assert_eq!((&one["frames"][0]["log"], answer["stage"].as_str()), (&json!("short-term"), Some("wal_commit")), "{answer}");
    }
    assert!(of("in_log").len() > 2 && of("stored").is_empty(), "{beside:?}");
    process.signal(libc::SIGTERM);
    process.wait(PATIENCE).expect(0);

    // Rows by message, with the object that has them, as another reader sees them.
    let listed = listed(&setup);
    let mut rows: BTreeMap<lake::Place, (&str, &str, BTreeSet<i32>)> = BTreeMap::new();
    for (uri, commit, count) in &listed {
        assert!(uri.starts_with(&format!("{url}/")), "{uri}");
        let in_file = bucket.rows(uri);
        assert_eq!(in_file.len() as i64, *count, "{uri}");
        for row in in_file {
            rows.entry(row.place).or_insert_with(|| (uri, commit, BTreeSet::new())).2.insert(row.ordinal);
        }
    }
    let letters = lake::letters(&setup.path("data/dead-letter"));
    let letters: BTreeMap<lake::Place, &str> = letters.iter().map(|letter| (letter.place(), letter.reason.as_str())).collect();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (partition, offset) in (0..2).flat_map(|partition| (0..12).map(move |offset| (partition, offset))) {
        let answer = found(&setup, partition, offset);
        let (one, verdict) = (&answer["incarnations"][0], answer["verdict"].as_str().expect("a verdict"));
        *counts.entry(verdict.to_owned()).or_default() += 1;
        assert_eq!((&answer["catalog"], &one["covered"]), (&json!("asked"), &json!(true)), "{answer}");
        let place = lake::Place { topic: setup.topic.clone(), partition, offset };
        if let Some((uri, commit, ordinals)) = rows.get(&place) {
            let (found, file) = (&one["commits"][0], &one["commits"][0]["files"][0]);
            assert_eq!(
                (verdict, &found["commit_id"], &found["is_registered"]),
                ("stored", &json!(commit), &json!(true)),
                "{answer}"
            );
            assert_eq!((&file["uri"], &file["ordinals"]), (&json!(uri), &json!(ordinals)), "{answer}");
        } else if let Some(reason) = letters.get(&place) {
            assert_eq!((verdict, &one["letters"][0]["reason"]), ("rejected", &json!(reason)), "{answer}");
        } else {
            let is_tombstone = answer["kafka"]["message"]["is"] == "tombstone";
            assert_eq!(verdict, if is_tombstone { "skipped" } else { "duplicate" }, "{answer}");
        }
    }
    let count = |verdict: &str| json!(counts.get(verdict).copied().unwrap_or(0));
    let expected = [json!(rows.len()), sent["invalid"].clone(), sent["duplicates"].clone(), sent["tombstones"].clone()];
    assert_eq!([count("stored"), count("rejected"), count("duplicate"), count("skipped")], expected, "{counts:?}");
    assert!(expected.iter().all(|number| *number != 0), "{expected:?}");

    // An object that somebody removed is missed, and told with exit code 3.
    let (lost, (uri, ..)) = rows.first_key_value().expect("there are rows");
    bucket.delete(uri);
    let answer = whereabouts(&setup, lost.partition, lost.offset, &[]).expect(3);
    assert!(answer.json()["verdict"] == "lost" && answer.stderr.contains("missing in the object store"), "{}", answer.stderr);
    assert!(answer.stdout.contains(bucket.path(uri)), "{}", answer.stdout);
}

/// Sends messages to the first partition.
struct Sender {
    producer: BaseProducer,
    topic: String,
    sent: u64,
}

impl Sender {
    fn new(setup: &Setup) -> Self {
        Sender::with(setup, &mut ClientConfig::new())
    }

    /// One whose messages are in transactions.
    fn transactional(setup: &Setup) -> Self {
        let sender = Sender::with(setup, ClientConfig::new().set("transactional.id", &setup.group));
        sender.producer.init_transactions(PATIENCE).expect("the broker knows transactions");
        sender
    }

    fn with(setup: &Setup, settings: &mut ClientConfig) -> Self {
        let producer = settings.set("bootstrap.servers", &setup.brokers).create().expect("the settings are valid");
        Sender { producer, topic: setup.topic.clone(), sent: 0 }
    }

    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let payload = format!("{{\"message\":\"number {}\"}}", self.sent);
            let record: BaseRecord<'_, (), str> = BaseRecord::to(&self.topic).partition(0).payload(&payload);
            self.producer.send(record).map_err(|(error, _)| error).expect("there is room");
            self.sent += 1;
        }
        self.producer.flush(PATIENCE).expect("the broker takes them");
    }

    fn begin(&mut self, count: u64) {
        self.producer.begin_transaction().expect("none is open");
        self.send(count);
    }

    fn commit(&self) {
        self.producer.commit_transaction(PATIENCE).expect("the broker commits");
    }

    fn abort(&self) {
        self.producer.abort_transaction(PATIENCE).expect("the broker aborts");
    }
}

#[test]
fn offsets_of_markers_and_aborted_transactions_are_absent_and_those_of_an_open_one_not_written() {
    let Some(setup) = Setup::new("where-absent", "logs") else { return };
    let mut sender = Sender::transactional(&setup);
    sender.begin(3);
    sender.commit();
    sender.begin(2);
    sender.abort();
    sender.begin(2);
    sender.commit();
    sender.begin(1);
    // The last marker is not covered: no message behind it has come.
    let expected =
        ["stored", "stored", "stored", "absent", "absent", "absent", "absent", "stored", "stored", "absent", "not_written"];
    setup.run_to_end();
    assert_eq!(verdicts(&setup, 0..11, &[]), expected);
    let (middle, last) = (found(&setup, 0, 5), found(&setup, 0, 9));
    assert_eq!((&middle["incarnations"][0]["covered"], &last["incarnations"][0]["covered"]), (&json!(true), &json!(false)));
    assert_eq!((&middle["kafka"]["message"]["is"], &middle["stage"]), (&json!("absent"), &json!("kafka_source")), "{middle}");
    let open = found(&setup, 0, 10);
    assert!(open["says"].as_str().is_some_and(|says| says.contains("transaction")), "{open}");

    // With a message behind it, the marker before is covered like the others.
    sender.commit();
    setup.run_to_end();
    let expected = [&expected[..10], &["stored", "absent"]].concat();
    assert_eq!(verdicts(&setup, 0..12, &[]), expected);
    assert_eq!(found(&setup, 0, 9)["incarnations"][0]["covered"], json!(true));
    // The frames know it without Kafka, and without the frames what the commit counts and Kafka has. Neither is taken for another offset.
    let offline = |offsets: Range<i64>| verdicts(&setup, offsets, &["--offline"]);
    assert_eq!(offline(2..7), expected[2..7]);
    std::fs::remove_dir_all(setup.path("data/wal")).expect("it is a folder");
    assert_eq!(verdicts(&setup, 0..12, &[]), expected);
    assert_eq!(offline(8..10), expected[8..10]);
}

#[test]
fn what_was_there_before_a_group_that_began_at_the_end_is_told_so_as_soon_as_the_catalog_can_be_asked() {
    let Some(setup) = Setup::new("where-before", "logs") else { return };
    let latest = ["--set", "ingestion.kafka.auto_offset_reset=latest"];
    let mut sender = Sender::new(&setup);
    sender.send(3);
    let nothing = whereabouts(&setup, 0, 1, &latest).expect(0);
    let says = nothing.json()["says"].as_str().expect("words").to_owned();
    assert!(nothing.json()["verdict"] == "not_read" && says.ends_with("begins at the topic's end"), "{says}");
    let process = Process::start(["run", "--config", &setup.config()].iter().chain(&latest));
    wait::until("partitions to be assigned", PATIENCE, || process.stderr().contains("partition assigned"));
    sender.send(2);
    wait::until("the new ones to be committed", PATIENCE, || {
        Kafka::at(&setup.brokers).committed(&setup.group, &setup.topic)[0] == Some(5)
    });
    // Only the catalog knows where reading began, and its process has it.
    let beside = whereabouts(&setup, 0, 1, &latest).expect(0).json();
    let says = beside["says"].as_str().expect("words");
    assert_eq!((&beside["catalog"], &beside["verdict"]), (&json!("in_use"), &json!("unknown")), "{beside}");
    assert!(
        says.contains("before the first message that was read, or") && says.contains("when the process does not run"),
        "{says}"
    );
    process.signal(libc::SIGTERM);
    process.wait(PATIENCE).expect(0);
    let expected = ["before_start", "before_start", "before_start", "stored", "stored", "not_written"];
    assert_eq!(verdicts(&setup, 0..6, &latest), expected);
    // Without a catalog it is no loss either; the one that is made from the files knows.
    std::fs::remove_dir_all(setup.path("data/catalog")).expect("it is a folder");
    assert_eq!(verdicts(&setup, 1..2, &latest), ["unknown"]);
    openwit(["janitor", "--config", &setup.config()]).expect(0);
    // Retention comes later, and changes nothing of that.
    assert!(Kafka::at(&setup.brokers).delete_records(&setup.topic, 0, 2));
    assert_eq!(verdicts(&setup, 0..3, &latest), expected[..3]);
    let answer = whereabouts(&setup, 0, 2, &latest).expect(0).json();
    assert_eq!((&answer["catalog"], &answer["stage"]), (&json!("asked"), &json!("kafka_source")), "{answer}");
}

#[test]
fn what_retention_removed_before_it_was_read_is_told_from_what_it_removed_afterwards() {
    let Some(setup) = Setup::new("where-removed", "logs") else { return };
    let kafka = Kafka::at(&setup.brokers);
    let mut sender = Sender::new(&setup);
    sender.send(5);
    assert!(kafka.delete_records(&setup.topic, 0, 2));
    assert_eq!(verdicts(&setup, 0..3, &[]), ["removed", "removed", "not_read"]);
    setup.run_to_end();
    assert!(kafka.delete_records(&setup.topic, 0, 4));
    assert_eq!(verdicts(&setup, 0..6, &[]), ["removed", "removed", "stored", "stored", "stored", "not_written"]);
    let [early, late] = [1, 3].map(|offset| found(&setup, 0, offset));
    let kafka_says = |answer: &Value| (answer["kafka"]["low"].clone(), answer["kafka"]["message"]["is"].clone());
    assert_eq!((kafka_says(&early), kafka_says(&late)), ((json!(4), json!("removed")), (json!(4), json!("removed"))));
    assert_eq!((&early["stage"], &late["stage"]), (&json!("kafka_source"), &json!("catalog_commit")));
}
