//! `dead-letter ls` and `dead-letter replay`: rejects are listed, filtered, sent back, told when they are rejected again, and none is
//! sent twice. The letters are real ones, of a run; the broker is librdkafka's mock.

use std::collections::BTreeSet;
use std::path::PathBuf;

use openwit_ingest::commands::dead_letter::replay::{Replayed, Request, send_back};
use openwit_ingest::config::Config;
use openwit_ingest::generate::Topic;
use openwit_operators::dead_letter::read::Source;
use serde_json::{Value, json};

use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::support::lake;
use crate::{DONE, FAULT, Loaded, TOPIC, USAGE, line};

const LETTERS: &str = "letters";

/// A run whose rejects are in a folder and in a topic.
struct Rejected {
    loaded: Loaded,
    rejects: u64,
}

impl Rejected {
    fn new(count: u64, invalid: u64) -> Self {
        let loaded = Loaded::new();
        loaded.broker.create_topic(&Topic { name: LETTERS.into(), partitions: 2 }).unwrap();
        let load = format!("--count {count} --invalid {invalid} --duplicates 0 --seed 11 --keyed --json");
        let sent = line(&format!("generate --brokers {} --topic {TOPIC} {load}", loaded.broker.brokers())).expect(DONE).json();
        let rejected = Rejected { loaded, rejects: sent["invalid"].as_u64().unwrap() };
        assert!(rejected.rejects > 5, "{sent}");
        let summary = rejected.run();
        assert_eq!(summary["rejects"], json!(rejected.rejects), "{summary}");
        rejected
    }

    fn run(&self) -> Value {
        self.command(&["run", "--until-end", "--json"]).expect(DONE).json()
    }

    fn command(&self, words: &[&str]) -> Finished {
        openwit(self.arguments(words))
    }

    fn arguments(&self, words: &[&str]) -> Vec<String> {
        self.loaded.arguments(words, &[format!("ingestion.kafka.dead_letter.topic={LETTERS}")])
    }

    fn folder(&self) -> PathBuf {
        self.loaded.folder.path().join("dead-letter")
    }

    /// The lines of `dead-letter ls --json` with further arguments.
    fn ls(&self, words: &[&str]) -> Vec<Value> {
        let listed = self.command(&[&["dead-letter", "ls", "--json"], words].concat()).expect(DONE).stdout;
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn replay(&self, words: &[&str]) -> Value {
        self.command(&[&["dead-letter", "replay", "--json"], words].concat()).expect(DONE).json()
    }
}

fn identities(letters: &[Value]) -> BTreeSet<(i64, i64)> {
    letters.iter().map(|letter| (letter["partition"].as_i64().unwrap(), letter["offset"].as_i64().unwrap())).collect()
}

#[test]
fn letters_are_listed_from_folder_and_topic_alike_and_filters_take_what_they_name() {
    let rejected = Rejected::new(150, 12);
    let all = rejected.ls(&[]);
    assert_eq!(all.len() as u64, rejected.rejects);
    let kept = lake::letters(&rejected.folder());
    for (letter, kept) in all.iter().zip(&kept) {
        assert_eq!((&letter["topic"], &letter["reason"]), (&json!(kept.topic), &json!(kept.reason)));
        assert_eq!(letter["offset"], json!(kept.offset));
    }
    // The topic has the same letters.
    let of_topic = rejected.ls(&["--topic"]);
    assert_eq!(identities(&of_topic), identities(&all));
    assert_eq!(of_topic.len(), all.len());
    assert_eq!(identities(&rejected.ls(&["--topic", LETTERS])), identities(&all));
    // So has the folder without a configuration, with the payloads.
    let folder = rejected.folder().display().to_string();
    let whole = openwit(["dead-letter", "ls", "--directory", &folder, "--json", "--payload"]).expect(DONE).stdout;
    let whole: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let payloads: Vec<Value> = whole.iter().map(|letter| letter["payload_base64"].clone()).collect();
    assert_eq!(payloads, kept.iter().map(|letter| json!(letter.payload_base64)).collect::<Vec<_>>());

    let first = &all[0];
    let reason = first["reason"].as_str().unwrap();
    let expected: Vec<&Value> = all.iter().filter(|letter| letter["reason"] == first["reason"]).collect();
    assert_eq!(rejected.ls(&["--reason", reason]).iter().collect::<Vec<_>>(), expected);
    let (partition, offset) = (first["partition"].as_i64().unwrap(), first["offset"].as_i64().unwrap());
    let one = format!("{TOPIC}:{partition}:{offset}..{}", offset + 1);
    assert_eq!(rejected.ls(&["--origin", &one]), all[..1]);
    assert_eq!(rejected.ls(&["--topic-origin", &format!("{TOPIC}:{partition}")]).len(), {
        all.iter().filter(|letter| letter["partition"] == first["partition"]).count()
    });
    assert!(rejected.ls(&["--origin", "another"]).is_empty() && rejected.ls(&["--until", "2020-01-01T00:00:00Z"]).is_empty());
    assert_eq!(rejected.ls(&["--since", "2020-01-01T00:00:00Z", "--limit", "3"]), all[..3]);
    assert_eq!(rejected.ls(&["--after", all[2]["place"].as_str().unwrap()]), all[3..]);

    // `where` finds both letters of a message.
    let (partition, offset) = (partition.to_string(), offset.to_string());
    let found = rejected.command(&["where", TOPIC, &partition, &offset, "--json"]).expect(DONE).json();
    let letters = found["incarnations"][0]["letters"].as_array().unwrap();
    assert!(found["verdict"] == "rejected" && letters.iter().all(|letter| letter["reason"] == first["reason"]), "{found}");
    let sources: Vec<&str> = letters.iter().map(|letter| letter["source"].as_str().unwrap()).collect();
    assert!(matches!(sources[..], [one, other] if one.starts_with("folder") && other == "topic letters"), "{sources:?}");

    let counted = rejected.ls(&["--count"]);
    let letters: u64 = counted.iter().map(|one| one["letters"].as_u64().unwrap()).sum();
    assert_eq!(letters, rejected.rejects);
    let table = rejected.command(&["dead-letter", "ls", "--count"]).expect(DONE).stdout;
    assert!(table.contains(reason) && table.lines().last().unwrap().starts_with("all"), "{table}");
    let table = rejected.command(&["dead-letter", "ls"]).expect(DONE).stdout;
    assert!(table.starts_with("rejected at") && table.lines().count() as u64 == rejected.rejects + 1, "{table}");

    let refused = rejected.command(&["dead-letter", "ls", "--after", "1:7"]).expect(USAGE);
    assert!(refused.stderr.contains("--after 1:7"), "{}", refused.stderr);
    let refused = rejected.command(&["dead-letter", "replay", "--to", LETTERS]).expect(USAGE);
    assert!(refused.stderr.contains("--to letters: that is a topic of dead letters"), "{}", refused.stderr);
    let failed = openwit(["dead-letter", "ls", "--directory", "/nonexistent/letters"]).expect(FAULT);
    assert!(failed.stderr.contains("/nonexistent/letters"), "{}", failed.stderr);
}

#[test]
fn a_replayed_message_that_is_rejected_again_is_told_and_is_not_sent_again_unless_asked_for() {
    let rejected = Rejected::new(100, 10);
    let all = rejected.ls(&[]);
    let planned = rejected.replay(&["--dry-run"]);
    assert_eq!((&planned["sent"], &planned["dry_run"]), (&json!(rejected.rejects), &json!(true)));
    assert_eq!(rejected.run()["messages"], 0, "a dry run sends nothing");

    let replayed = rejected.replay(&[]);
    assert_eq!((&replayed["sent"], &replayed["topics"][TOPIC]), (&json!(rejected.rejects), &json!(rejected.rejects)));
    assert_eq!(replayed["after"], all.last().unwrap()["place"]);
    // Nothing was mended.
    let summary = rejected.run();
    assert_eq!((&summary["messages"], &summary["rejects"]), (&json!(rejected.rejects), &json!(rejected.rejects)), "{summary}");
    let now = rejected.ls(&[]);
    assert_eq!(now.len() as u64, 2 * rejected.rejects);
    let marked = now.iter().filter(|letter| letter["replays"] == 1);
    assert_eq!(marked.count() as u64, rejected.rejects);
    for place in [&[][..], &["--topic"]] {
        let none = rejected.replay(place);
        assert_eq!((&none["sent"], &none["rejected_again"]), (&json!(0), &json!(2 * rejected.rejects)), "{place:?}");
    }
    // Asked for, each message is sent once, not once for each of its letters.
    let again = rejected.replay(&["--again"]);
    assert_eq!((&again["sent"], &again["repeated"]), (&json!(rejected.rejects), &json!(rejected.rejects)));
    rejected.run();
    let attempts: Vec<u64> = rejected.ls(&[]).iter().map(|letter| letter["replays"].as_u64().unwrap()).collect();
    assert_eq!(attempts.iter().filter(|attempt| **attempt == 2).count() as u64, rejected.rejects, "{attempts:?}");
    rejected.loaded.with_config(&["audit"]).expect(DONE);
}

#[test]
fn a_damaged_file_is_named_and_all_other_letters_are_used() {
    let rejected = Rejected::new(100, 10);
    rejected.loaded.broker.create_topic(&Topic { name: "repaired".into(), partitions: 1 }).unwrap();
    let files = lake::files(&rejected.folder(), ".ndjson");
    let mut bytes = std::fs::read(&files[0]).unwrap();
    bytes[10] = b'\0';
    bytes.extend_from_slice(b"{\"version\":1,\"torn");
    std::fs::write(&files[0], bytes).unwrap();
    let name = files[0].file_name().unwrap().to_str().unwrap();
    let listed = rejected.command(&["dead-letter", "ls", "--json"]).expect(FAULT);
    assert_eq!(listed.stdout.lines().count() as u64, rejected.rejects - 1);
    assert!(listed.stderr.contains(name) && listed.stderr.contains("line 1"), "{}", listed.stderr);
    let replayed = rejected.command(&["dead-letter", "replay", "--json", "--to", "repaired"]).expect(FAULT);
    assert!(replayed.stderr.contains(name), "{}", replayed.stderr);
    let replayed = replayed.json();
    assert_eq!((&replayed["sent"], &replayed["damaged"]), (&json!(rejected.rejects - 1), &json!(1)));
    assert_eq!(replayed["topics"]["repaired"], json!(rejected.rejects - 1));
    let nowhere = rejected.command(&["dead-letter", "replay", "--to", "nowhere"]).expect(FAULT);
    assert!(nowhere.stderr.contains("topic nowhere") && nowhere.stderr.contains("--to"), "{}", nowhere.stderr);
}

#[test]
fn an_interrupted_replay_tells_where_to_go_on_and_together_they_send_each_message_once() {
    let rejected = Rejected::new(100, 15);
    let mut config = Config::embedded(rejected.loaded.folder.path());
    config.ingestion.kafka.brokers = vec![rejected.loaded.broker.brokers().to_owned()];
    let source = Source::folder(&rejected.folder()).unwrap();
    let mut request = Request::default();
    let (mut sent, mut runs) = (0, 0);
    // Each run is stopped behind its fourth letter.
    loop {
        let mut asked = 0;
        let mut should_stop = || {
            asked += 1;
            asked == 5
        };
        let (replayed, ended): (Replayed, _) = send_back(&source, &config, &request, &mut should_stop).unwrap();
        (sent, runs) = (sent + replayed.sent, runs + 1);
        let after = replayed.after.clone().unwrap();
        request.after = Some(after.parse().unwrap());
        match ended {
            Ok(()) => break,
            Err(failure) => {
                assert_eq!((replayed.sent, i32::from(failure.exit_code)), (4, FAULT));
                assert!(failure.message.contains(&format!("--after {after}")), "{}", failure.message);
            }
        }
    }
    assert_eq!((sent, runs), (rejected.rejects, rejected.rejects.div_ceil(4)));
    let summary = rejected.run();
    assert_eq!((&summary["messages"], &summary["rejects"]), (&json!(sent), &json!(sent)), "{summary}");
}

#[test]
fn a_signal_at_any_moment_of_a_replay_loses_and_doubles_nothing() {
    let rejected = Rejected::new(600, 60);
    let process = |words: &[&str]| Process::start(rejected.arguments(&[&["dead-letter", "replay", "--json"], words].concat()));
    let mut first = process(&[]);
    assert!(first.wait_for("replaying dead letters"), "{}", first.stderr());
    if !first.has_ended() {
        first.signal(libc::SIGTERM);
    }
    // It may have been done by then.
    let first = first.wait(PATIENCE);
    let mut sent = first.json()["sent"].as_u64().unwrap();
    if first.code == Some(FAULT) {
        let told = first.json()["after"].as_str().map(str::to_owned);
        let rest = told.map_or_else(|| process(&[]), |after| process(&["--after", &after])).wait(PATIENCE).expect(DONE);
        sent += rest.json()["sent"].as_u64().unwrap();
    } else {
        first.expect(DONE);
    }
    assert_eq!(sent, rejected.rejects);
    assert_eq!(rejected.run()["messages"], json!(rejected.rejects));
}
