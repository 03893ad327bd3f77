//! The way back from the dead letter on a real broker: rejects are listed, the cause is mended, they are replayed, and all is stored.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kafka::Kafka;
use crate::setup::Setup;
use crate::support::binary::{Finished, openwit};
use crate::support::lake::{self, Place};

/// With this no message of the load can be read, and mending it is leaving it out.
const BROKEN: &str = "ingestion.kafka.format=json";

fn command(setup: &Setup, words: &[&str], sets: &[&str]) -> Finished {
    let config = setup.config();
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    openwit(words.iter().copied().chain(["--config", &config]).chain(sets))
}

fn places(listed: &Finished) -> BTreeSet<Place> {
    let letters = listed.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    let place = |letter: Value| Place {
        topic: letter["topic"].as_str().expect("a topic").into(),
        partition: letter["partition"].as_i64().expect("a partition") as i32,
        offset: letter["offset"].as_i64().expect("an offset"),
    };
    letters.map(place).collect()
}

#[test]
fn rejects_are_listed_and_after_mending_the_cause_replayed_and_stored_each_once() {
    let Some(setup) = Setup::new("way-back", "traces") else { return };
    let (kafka, letters) = (Kafka::at(&setup.brokers), format!("{}.letters", setup.group));
    assert!(kafka.create_topic(&letters, 3));
    let to_letters = format!("ingestion.kafka.dead_letter.topic={letters}");
    let (count, count_text) = (400, "400");
    let load = ["--count", count_text, "--duplicates", "0", "--invalid", "0", "--seed", "71", "--keyed", "--json"];
    let generate = ["generate", "--brokers", &setup.brokers, "--topic", &setup.topic, "--format", "otlp"];
    let sent = openwit(generate.iter().chain(&load)).expect(0).json();

    let summary = command(&setup, &["run", "--until-end", "--json"], &[&to_letters, BROKEN]).expect(0).json();
    assert_eq!((&summary["rejects"], &summary["rows"]), (&count.into(), &0.into()), "{summary}");
    let ls = ["dead-letter", "ls", "--json"];
    let in_folder = command(&setup, &ls, &[&to_letters]).expect(0);
    let in_topic = command(&setup, &[&ls[..], &["--topic"]].concat(), &[&to_letters]).expect(0);
    assert_eq!(places(&in_folder).len(), count);
    assert_eq!(places(&in_topic), places(&in_folder));
    let third = format!("{}:3", setup.topic);
    let of_partition = places(&command(&setup, &[&ls[..], &["--origin", &third]].concat(), &[]).expect(0));
    assert!(!of_partition.is_empty() && of_partition.iter().all(|place| place.partition == 3));

    // Half from the topic, in two pieces, the second of which goes on where the first ended.
    let replay = ["dead-letter", "replay", "--json", "--topic"];
    let first = command(&setup, &[&replay[..], &["--limit", "150"]].concat(), &[&to_letters]).expect(0).json();
    let after = first["after"].as_str().expect("a place").to_owned();
    let rest = command(&setup, &[&replay[..], &["--after", &after]].concat(), &[&to_letters]).expect(0).json();
    assert_eq!((&first["sent"], &rest["sent"]), (&150.into(), &(count - 150).into()), "{first} {rest}");
    assert_eq!(rest["topics"][&setup.topic], count - 150);

    let summary = command(&setup, &["run", "--until-end", "--json"], &[&to_letters]).expect(0).json();
    assert_eq!((&summary["messages"], &summary["rejects"]), (&count.into(), &0.into()), "{summary}");
    assert_eq!(summary["rows"], sent["records"], "{summary}");
    let rows = lake::rows(&setup.path("data/objects"));
    assert_eq!(Value::from(rows.len()), sent["records"]);
    assert_eq!(rows.iter().map(|row| row.content).collect::<BTreeSet<_>>().len(), rows.len(), "each once");
    // They went back to the partitions in which they were rejected.
    let per_partition = |places: &BTreeSet<Place>, number: i32| places.iter().filter(|place| place.partition == number).count();
    let stored: BTreeSet<Place> = rows.into_iter().map(|row| row.place).collect();
    for partition in 0..8 {
        assert_eq!(per_partition(&stored, partition), per_partition(&places(&in_folder), partition), "partition {partition}");
    }
    setup.audit();
}

#[test]
fn a_message_larger_than_its_topic_takes_now_is_named_and_the_others_are_replayed() {
    let Some(setup) = Setup::new("way-back-large", "traces") else { return };
    let (kafka, small) = (Kafka::at(&setup.brokers), format!("{}.small", setup.group));
    assert!(kafka.create_topic(&small, 1) && kafka.set_topic(&small, "max.message.bytes", "3000"));
    let load = ["--duplicates", "0", "--invalid", "0", "--seed", "72", "--json"];
    let generate = ["generate", "--brokers", &setup.brokers, "--topic", &setup.topic, "--format", "otlp"];
    for size in [["--count", "40", "--records-per-message", "1"], ["--count", "2", "--records-per-message", "50"]] {
        openwit(generate.iter().chain(&load).chain(&size)).expect(0);
    }
    command(&setup, &["run", "--until-end"], &[BROKEN]).expect(0);
    let ended = command(&setup, &["dead-letter", "replay", "--json", "--to", &small], &[]).expect(1);
    assert!(ended.stderr.contains(&format!("is larger than topic {small} takes")), "{}", ended.stderr);
    let replayed = ended.json();
    let counts = [&replayed["sent"], &replayed["topics"][&small], &replayed["too_large"]];
    assert_eq!(counts, [&Value::from(40), &Value::from(40), &Value::from(2)], "{replayed}");
}
