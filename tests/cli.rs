//! The command line as scripts and people meet it: help, exit codes, what goes to stdout, and what a wrong configuration is told.
//!
//! Runs the binary, in part against an embedded broker. What the pipeline stores is checked by `embedded.rs` and `services.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

#[path = "cli/broker.rs"]
mod broker;
#[path = "cli/cases.rs"]
mod cases;
#[path = "cli/catalog.rs"]
mod catalog;
#[path = "cli/cluster.rs"]
mod cluster;
#[path = "cli/dead_letter.rs"]
mod dead_letter;
#[path = "cli/graphs.rs"]
mod graphs;
#[path = "cli/parquet.rs"]
mod parquet;
#[path = "cli/replay.rs"]
mod replay;
#[path = "cli/status.rs"]
mod status;
#[path = "cli/threads.rs"]
mod threads;
#[path = "cli/token.rs"]
mod token;
#[path = "cli/whereis.rs"]
mod whereis;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Generator, Plan, Ppm, Topic};
use openwit_operators::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span};
use openwit_operators::budget::Charge;
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::dataset::{Carrier, Column, Kind, Stamp};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::object_upload::ObjectStore;
use openwit_operators::tenant::Tenant;
use openwit_operators::wal_commit::{Config, Job, Log, Writer, long_term};
use serde_json::json;
use tempfile::TempDir;

use support::binary::{Finished, openwit};
use support::lake;

const DONE: i32 = 0;
const FAULT: i32 = 1;
const USAGE: i32 = 2;
const DIFFERENCE: i32 = 3;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command line whose words hold no blanks.
fn line(line: &str) -> Finished {
    openwit(line.split_whitespace())
}

#[test]
fn every_command_explains_itself() {
    let commands = [
        "",
        "demo",
        "run",
        "check",
        "graph",
        "generate",
        "audit",
        "where",
        "janitor",
        "migrate",
        "wal",
        "wal ls",
        "wal cat",
        "wal verify",
        "replay",
        "test",
        "dead-letter",
        "dead-letter ls",
        "dead-letter replay",
        "token",
        "token new",
        "token check",
    ];
    for command in commands {
        let help = line(&format!("{command} --help")).expect(DONE);
        let usage = format!("Usage: openwit-ingest {command}");
        assert!(help.stdout.contains(usage.trim()), "{command}: {}", help.stdout);
        let longest = help.stdout.lines().map(|line| line.chars().count()).max();
        assert!(longest.is_some_and(|longest| longest <= 130), "{command}: a line of {longest:?} characters");
    }
    let help = line("--help").expect(DONE).stdout;
    for named in commands.iter().skip(1).filter(|command| !command.contains(' ')).chain(&["Exit codes:", "OPENWIT_LOG"]) {
        assert!(help.contains(named), "{named} is not in {help}");
    }
    let version = line("--version").expect(DONE).stdout;
    assert_eq!(version, format!("openwit-ingest {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_ends_with_two_says_what_is_wrong_and_starts_nothing() {
    let config = project().join("config/standalone.yaml");
    let config = config.display();
    let cases = [
        (String::new(), "Usage"),
        ("fly".into(), "fly"),
        ("run".into(), "--config"),
        (format!("run --config {config} --workers 0"), "--workers"),
        (format!("run --config {config} --json"), "--until-end"),
        (format!("run --config {config} --set nonsense"), "KEY=VALUE"),
        (format!("graph --config {config} --format svg"), "svg"),
        ("generate --brokers localhost:1 --topic t".into(), "--count"),
        ("generate --brokers localhost:1 --topic t --count 1 --duplicates 99".into(), "5 % valid"),
        ("check --config /nonexistent/openwit.yaml".into(), "/nonexistent/openwit.yaml"),
    ];
    for (arguments, named) in cases {
        let refused = line(&arguments).expect(USAGE);
        assert!(refused.stderr.contains(named), "{arguments}: `{named}` is not in: {}", refused.stderr);
        assert_eq!(refused.stdout, "", "{arguments}");
    }
}

#[test]
fn every_problem_of_a_configuration_is_named_at_once_with_its_key_by_every_command() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("wrong.yaml");
    let yaml = "\
grph: standalone
ingestion:
  kafka:
    brokers: \"\"
    topics: []
    telemetry_type: spans
    consumer: {session_timeout_ms: 1000, heartbeat_interval_ms: 5000}
  batching: {batch_size: 100000}
processing:
  workers: 0
";
    std::fs::write(&path, yaml).unwrap();
    let problems = [
        ("wrong.yaml:1", "grph"),
        ("wrong.yaml:4", "ingestion.kafka.brokers"),
        ("wrong.yaml:5", "ingestion.kafka.topics"),
        ("wrong.yaml:6", "ingestion.kafka.telemetry_type"),
        ("wrong.yaml:7", "ingestion.kafka.consumer."),
        ("wrong.yaml:8", "ingestion.batching.batch_size"),
        ("wrong.yaml:10", "processing.workers"),
        ("--set", "pipeline.batch_size"),
    ];
    for command in ["check", "run", "graph", "audit"] {
        let arguments = [command, "--config", path.to_str().unwrap(), "--set", "pipeline.batch_size=many"];
        let refused = openwit(arguments).expect(USAGE);
        for (place, key) in problems {
            let found = refused.stderr.lines().any(|line| line.contains(place) && line.contains(key));
            assert!(found, "{command}: no line with `{place}` and `{key}` in:\n{}", refused.stderr);
        }
        assert_eq!(refused.stdout, "", "{command}");
    }
}

#[test]
fn the_shipped_configurations_and_the_specifications_example_pass() {
    let config = project().join("config");
    let mut files: Vec<PathBuf> = lake::files(&config, ".yaml");
    // Dataset schemas lie one folder deeper.
    files.retain(|file| file.parent() == Some(config.as_path()));
    assert!(files.len() >= 6, "{files:?}");
    files.push(project().join("tests/data/spec-section-7.yaml"));
    for file in files {
        let checked = openwit(["check", "--config", file.to_str().unwrap()]).expect(DONE);
        assert!(checked.stdout.contains("no errors"), "{}: {}", file.display(), checked.stdout);
    }
}

#[test]
fn dataset_schemas_are_checked_and_compared_with_those_of_before() {
    let (config, example) = (project().join("config/standalone.yaml"), project().join("config/datasets"));
    let folder = TempDir::new().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let text = std::fs::read_to_string(example.join("shop-logs.yaml")).unwrap();
    let write = |folder: &Path, text: &str| {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("shop-logs.yaml"), text).unwrap();
    };
    let check = |datasets: &Path| {
        let directory = format!("ingestion.datasets.directory={}", datasets.display());
        openwit(["check", "--config", config.to_str().unwrap(), "--set", &directory, "--against", old.to_str().unwrap()])
    };
    write(&old, &text);
    let checked = check(&example).expect(DONE);
    assert!(checked.stdout.contains("dataset shop-logs version 1 ("), "{}", checked.stdout);
    assert!(checked.stdout.contains("no change that is not allowed"), "{}", checked.stdout);
    write(&new, &text.replace("version: 1", "version: 2").replace("type: int\n      coerce", "type: double\n      coerce"));
    let refused = check(&new).expect(USAGE);
    assert!(refused.stderr.contains("shop-logs: attributes.fields.\"order.items\".coerce: must have int"), "{}", refused.stderr);
    write(&new, &text.replace("type: double", "type: int").replace("allowed: [open, ", "allowed: ["));
    let refused = check(&new).expect(USAGE);
    let changes = [
        "version: is 1 still",
        "\"order.total\".type: double was changed to int",
        "\"order.state\".allowed: \"open\" was removed",
    ];
    for named in changes {
        assert!(refused.stderr.contains(named), "`{named}` is not in: {}", refused.stderr);
    }
    // What is wrong by itself comes first, with its line.
    write(&new, &text.replace("signal: logs", "signal: log"));
    let refused = check(&new).expect(USAGE);
    assert!(refused.stderr.contains("shop-logs.yaml:7: signal: value \"log\""), "{}", refused.stderr);
}

#[test]
fn a_value_that_is_not_supported_yet_is_refused_not_ignored() {
    let config = project().join("config/standalone.yaml");
    let cases =
        ["ingestion.sources.grpc.enabled=true", "ingestion.sources.http.enabled=true", "storage.parquet.compression=snappy"];
    for set in cases {
        let refused = openwit(["check", "--config", config.to_str().unwrap(), "--set", set]).expect(USAGE);
        let (key, _) = set.split_once('=').unwrap();
        assert!(refused.stderr.contains(key) && refused.stderr.contains("not supported yet"), "{set}: {}", refused.stderr);
    }
}

#[test]
fn graphs_are_drawn_as_they_are_configured() {
    let drawn = |file: &str, format: &str| {
        let config = project().join("config").join(file);
        openwit(["graph", "--config", config.to_str().unwrap(), "--format", format]).expect(DONE).stdout
    };
    let (ingest, storage) = (["kafka_source", "normalize", "dedup_window", "wal_commit", "flight_sink"], ["parquet_roll"]);
    for format in ["text", "mermaid", "dot"] {
        let standalone = drawn("standalone.yaml", format);
        assert!(ingest.iter().chain(&storage).all(|operator| standalone.contains(operator)), "{format}: {standalone}");
        let only_ingest = drawn("ingest.yaml", format);
        assert!(only_ingest.contains("flight_sink") && !only_ingest.contains("parquet_roll"), "{format}: {only_ingest}");
        let only_storage = drawn("storage.yaml", format);
        assert!(only_storage.contains("parquet_roll") && !only_storage.contains("kafka_source"), "{format}: {only_storage}");
        assert!(!drawn("no-dedup.yaml", format).contains("dedup_window"), "{format}");
    }
    let dot = drawn("standalone.yaml", "dot");
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}'), "{dot}");
    assert!(drawn("standalone.yaml", "mermaid").starts_with("flowchart"));
}

#[test]
fn a_fault_ends_with_one_and_is_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("nothing-here");
    let config = project().join("config/standalone.yaml");
    let nobody = "ingestion.kafka.brokers=127.0.0.1:1";
    let data = format!("node.data_directory={}", folder.path().display());
    let empty = TempDir::new().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["wal", "ls", missing.to_str().unwrap()], "nothing-here"),
        (&["wal", "verify", missing.to_str().unwrap()], "nothing-here"),
        (&["wal", "cat", missing.to_str().unwrap()], "nothing-here"),
        (&["wal", "ls", empty.path().to_str().unwrap()], "there is no write-ahead log in it"),
        (&["check", "--connect", "--config", config.to_str().unwrap(), "--set", nobody, "--set", &data], "kafka"),
        (&["generate", "--brokers", "127.0.0.1:1", "--topic", "t", "--count", "1"], "topic `t`"),
    ];
    for (arguments, named) in cases {
        let failed = openwit(arguments).expect(FAULT);
        assert!(failed.stderr.contains(named), "{arguments:?}: `{named}` is not in: {}", failed.stderr);
    }
}

/// A topic with a load on an embedded broker, and the arguments that name both and a folder.
struct Loaded {
    broker: EmbeddedBroker,
    folder: TempDir,
}

const TOPIC: &str = "v6.qtw.traces.shop.eu";

impl Loaded {
    fn new() -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(&Topic { name: TOPIC.into(), partitions: 4 }).unwrap();
        Loaded { broker, folder: TempDir::new().unwrap() }
    }

    fn with_config(&self, command: &[&str]) -> Finished {
        openwit(self.arguments(command, &[]))
    }

    /// The command line with the configuration, and `sets` over it.
    fn arguments(&self, command: &[&str], sets: &[String]) -> Vec<String> {
        let config = project().join("config/standalone.yaml");
        let own = [
            format!("ingestion.kafka.brokers={}", self.broker.brokers()),
            format!("node.data_directory={}", self.folder.path().display()),
            "service_ports.arrow_flight=0".into(),
            "service_ports.admin=0".into(),
            // The mock broker lets a member wait for the end of the session of the one before, less a second, be that one killed or not.
            "ingestion.kafka.consumer={session_timeout_ms: 3000, heartbeat_interval_ms: 500}".into(),
        ];
        let mut arguments: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["--config".into(), config.display().to_string()]);
        own.iter().chain(sets).for_each(|set| arguments.extend(["--set".into(), set.clone()]));
        arguments
    }
}

#[test]
fn run_audit_and_wal_tell_scripts_what_there_is_and_what_is_missing() {
    let loaded = Loaded::new();
    let load = "--count 200 --records-per-message 5 --duplicates 5 --invalid 3 --tombstones 2 --seed 3 --json";
    let sent = line(&format!("generate --brokers {} --topic {TOPIC} {load}", loaded.broker.brokers())).expect(DONE).json();

    let summary = loaded.with_config(&["run", "--until-end", "--json"]).expect(DONE).json();
    let found = [&summary["messages"], &summary["rows"], &summary["duplicates"], &summary["rejects"], &summary["skipped"]];
    assert_eq!(found, [&sent["messages"], &sent["records"], &sent["duplicates"], &sent["invalid"], &sent["tombstones"]]);
    assert_eq!(sent["messages"], json!(200));

    let audited = loaded.with_config(&["audit", "--json"]).expect(DONE).json();
    assert_eq!((&audited["clean"], &audited["lag"], &audited["pending"]), (&json!(true), &json!(0), &json!({})));
    assert_eq!((&audited["balance"]["covered"], &audited["balance"]["rows"]), (&json!(200), &sent["records"]));
    assert!(loaded.with_config(&["check", "--connect"]).expect(DONE).stdout.contains(TOPIC));

    let log = loaded.folder.path().join("wal/short");
    let verified = openwit(["wal", "verify", "--json", log.to_str().unwrap()]).expect(DONE).json();
    assert_eq!((&verified["losses"], &verified["problems"]), (&json!(0), &json!([])));
    assert!(openwit(["wal", "ls", "--json", log.to_str().unwrap()]).expect(DONE).json().is_array());

    let files = lake::files(&loaded.folder.path().join("objects"), ".parquet");
    let [file, ..] = &files[..] else { panic!("no Parquet file was published") };
    std::fs::remove_file(file).unwrap();
    let audited = loaded.with_config(&["audit"]).expect(DIFFERENCE);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(audited.stdout.contains(name) && audited.stdout.contains("NOT CLEAN"), "{}", audited.stdout);
}

/// A short-term and a long-term log of 40 messages of two partitions, all in both but for those of the active segment. The log is
/// still open, as that of a running process.
fn logs(folder: &Path) -> (Writer, PathBuf, PathBuf) {
    let plan = Plan {
        topics: vec![Topic { name: TOPIC.into(), partitions: 2 }],
        format: Format::Otlp,
        signal: Signal::Traces,
        count: Some(40),
        records_per_message: 20,
        message_bytes_min: 0,
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed: 5,
        keyed: false,
        start_time_ns: 1_767_225_600_000_000_000,
        time_step_ns: 1_000_000,
    };
    let (short, long) = (folder.join("short"), folder.join("long"));
    let store = ObjectStore::Fs { root: long.clone() };
    let long_term = long_term::Config { store, node: "node-1".into(), compression_level: 1, cleanup: None };
    let config = Config { segment_bytes: 64 << 10, long_term: Some(long_term), ..Config::new(&short) };
    let writer = Writer::spawn(Log::open(config, Epoch(1_790_000_000_000)).unwrap().0, Health::default()).unwrap();
    let port = writer.port(|| {});
    let topic = Arc::new(TopicKey { cluster: "c".into(), name: TOPIC.into(), id: "".into() });
    for (number, message) in Generator::new(plan).unwrap().enumerate() {
        let (partition, offset) = (PartitionKey { topic: topic.clone(), partition: number as i32 % 2 }, number as i64 / 2);
        let payload = message.payload().unwrap().to_vec();
        let span = Span { start: 0, len: payload.len() as u32 };
        let record =
            Record { offset, timestamp_ms: 1_790_000_000_000, key: number as u128, arena: Arena::Raw, payload: span, tenant: 0 };
        let batch = NormalizedBatch {
            group: Group { index: "shop".into(), signal: Signal::Traces },
            coverage: Coverage::stored(partition, offset..offset + 1),
            raw: payload.into(),
            written: vec![].into(),
            records: vec![record],
            // What is in partition 1 obeys a dataset schema, and is of a tenant.
            schema: (number % 2 == 1).then(|| Arc::new(stamp())),
            tenants: (number % 2 == 1).then(|| Tenant::new("shop").unwrap()).into_iter().collect(),
            charge: Charge::default(),
        };
        let epoch = Epoch(1_790_000_000_000 + number as u64 * 20);
        port.append(Job { ticket: number as u64, batches: vec![(epoch, batch.into())] });
        port.receiver().recv_timeout(support::binary::PATIENCE).unwrap();
    }
    support::wait::until("copies of all sealed segments", support::binary::PATIENCE, || {
        let stats = writer.stats();
        stats.segments_uncopied == 0 && stats.long_term.copied > 1
    });
    (writer, short, long)
}

fn stamp() -> Stamp {
    let column = Column { carrier: Carrier::Row, key: "order.id".into(), name: "order_id".into(), kind: Kind::String };
    Stamp { name: "shop-spans".into(), version: 3, hash: 0xabc, columns: vec![column] }
}

#[test]
fn wal_commands_show_both_logs_of_a_running_process_and_what_is_damaged() {
    let folder = TempDir::new().unwrap();
    let (_writer, short, long) = logs(folder.path());
    let wal = |words: &[&str]| openwit(std::iter::once("wal").chain(words.iter().copied()));
    let cat = |words: &[&str]| -> Vec<serde_json::Value> {
        let printed = wal(&[&["cat"], words].concat()).expect(DONE).stdout;
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (short_text, long_text) = (short.to_str().unwrap(), long.to_str().unwrap());
    let all = cat(&[short_text]);
    assert_eq!(all.len(), 40);
    let span = &all[0]["payload"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert!(span["traceId"].as_str().is_some_and(|id| id.len() == 32), "{}", all[0]);
    for line in &all {
        let dataset = json!({ "name": "shop-spans", "version": 3, "hash": "0000000000000abc" });
        assert_eq!(line.get("dataset"), (line["partition"] == 1).then_some(&dataset), "{line}");
        assert_eq!(line.get("tenant"), (line["partition"] == 1).then_some(&json!("shop")), "{line}");
    }
    // The copies hold the same, in the same order, but for the active segment.
    let copied = cat(&[long_text]);
    assert!(all.starts_with(&copied) && copied.len() > 10 && copied.len() < 40, "{}", copied.len());
    let day = long.join("2026-09-21");
    let files = lake::files(&day, ".owl");
    assert_eq!(cat(&[day.to_str().unwrap()]), copied);
    assert!(copied.starts_with(&cat(&[files[0].to_str().unwrap()])));
    assert_eq!(cat(&[short.join("segment-00000000000000000001.wal").to_str().unwrap()]), cat(&[files[0].to_str().unwrap()]));

    let filter = ["--partition", "1", "--from-offset", "3", "--to-offset", "9", "--payload", "base64", "--topic", TOPIC];
    let offsets: Vec<_> =
        cat(&[&[short_text], &filter[..]].concat()).iter().map(|line| line["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, (3..9).collect::<Vec<_>>());
    assert_eq!(cat(&[short_text, "--limit", "7", "--payload", "none"]).len(), 7);
    assert!(cat(&[short_text, "--topic", "another"]).is_empty());

    for log in [short_text, long_text] {
        let verified = wal(&["verify", "--json", log]).expect(DONE).json();
        assert_eq!((&verified["losses"], &verified["problems"]), (&json!(0), &json!([])), "{log}");
        let listed = wal(&["ls", "--json", log]).expect(DONE).json();
        let frames: u64 = listed.as_array().unwrap().iter().filter_map(|one| one["frames"].as_u64()).sum();
        assert_eq!(json!(frames), verified["frames"]);
    }
    // The same by the configuration, which a store without a path needs.
    let directory = format!("processing.wal.long_term.directory={long_text}");
    let configured = ["long-term", "--config", "config/standalone.yaml", "--set", &directory];
    assert_eq!(cat(&configured), copied);
    let listed = |log: &[&str]| wal(&[&["ls", "--json"], log].concat()).expect(DONE).json();
    assert_eq!(listed(&configured).as_array().map(Vec::len), listed(&[long_text]).as_array().map(Vec::len));
    assert!(wal(&["ls", "long-term"]).expect(USAGE).stderr.contains("--config FILE"));
    let nowhere = folder.path().join("nowhere");
    let missing = format!("processing.wal.long_term.directory={}", nowhere.display());
    let refused = wal(&["ls", "long-term", "--config", "config/standalone.yaml", "--set", &missing]).expect(FAULT);
    assert!(refused.stderr.contains("nowhere") && !nowhere.exists(), "a look creates nothing: {}", refused.stderr);

    let mut bytes = std::fs::read(&files[0]).unwrap();
    bytes[300] ^= 1;
    std::fs::write(&files[0], bytes).unwrap();
    let damaged = wal(&["cat", long_text]).expect(FAULT);
    assert!(damaged.stdout.lines().count() < copied.len() && damaged.stdout.lines().count() > 0);
    assert!(damaged.stderr.contains("damaged") && damaged.stderr.contains(files[0].to_str().unwrap()), "{}", damaged.stderr);
    assert!(wal(&["verify", long_text]).expect(FAULT).stdout.contains("1 of them losses"));
}

#[test]
fn demo_stores_all_it_sends_and_removes_its_traces() {
    let temporary = TempDir::new().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_openwit-ingest"));
    command.args(["demo", "--records", "20000", "--json"]).env("TMPDIR", temporary.path());
    let summary = support::binary::Process::spawn(command).wait(support::binary::PATIENCE).expect(DONE).json();
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!(number("messages"), 400);
    assert_eq!(number("rows"), 50 * (400 - number("duplicates") - number("rejects")), "{summary}");
    assert!(number("duplicates") > 0 && number("rejects") > 0, "{summary}");
    assert_eq!(lake::files(temporary.path(), ""), Vec::<PathBuf>::new());
}
