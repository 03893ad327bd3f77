//! `replay --from kafka`: what a real broker has, by time and by offset, without a group.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::kafka::Kafka;
use crate::setup::Setup;
use crate::support::binary::{Finished, openwit};

fn replay(setup: &Setup, words: &[&str]) -> Finished {
    let config = setup.config();
    let always = ["replay", "--from", "kafka", "--config", config.as_str()];
    openwit(always.iter().chain(words))
}

fn counted(setup: &Setup, words: &[&str]) -> u64 {
    let json = replay(setup, words).expect(0).json();
    json["records"].as_u64().expect("a number of messages")
}

fn now_seconds() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    // The next second: a time is given in whole ones.
    (now.as_secs() + 1).to_string()
}

#[test]
fn a_range_of_kafka_is_replayed_by_time_and_offset_the_same_each_time_and_without_a_group() {
    let Some(setup) = Setup::new("kafka-range", "traces") else { return };
    let kafka = Kafka::at(&setup.brokers);
    setup.generate("otlp", 400, 71);
    let between = now_seconds();
    crate::support::wait::until("the next second", crate::support::binary::PATIENCE, || now_seconds() > between);
    setup.generate("otlp", 600, 72);
    // All of it, again, on another number of workers.
    let golden = setup.path("golden").display().to_string();
    let first = replay(&setup, &["--to", &golden, "--workers", "2", "--json"]).expect(0).json();
    let sent = first["records"].as_u64().expect("a number");
    assert!(sent >= 1_000 && first["rows"].as_u64().is_some_and(|rows| rows > 0), "{first}");
    replay(&setup, &["--expect", &golden, "--workers", "1"]).expect(0);
    // By time.
    let (before, after) = (counted(&setup, &["--until", &between, "--json"]), counted(&setup, &["--since", &between, "--json"]));
    assert_eq!(before + after, sent);
    assert!((400..=430).contains(&before) && (600..=650).contains(&after), "{before} and {after}");
    // By offset.
    let of = |range: &str| format!("{}[3]={range}", setup.topic);
    assert_eq!(counted(&setup, &["--offsets", &of("5..15"), "--json"]), 10);
    assert!(kafka.delete_records(&setup.topic, 3, 10));
    let gone = replay(&setup, &["--offsets", &of("5..15")]).expect(1);
    assert!(gone.stderr.contains("offset 5 is gone: retention has removed all before 10"), "{}", gone.stderr);
    let beyond = replay(&setup, &["--offsets", &of("10..100000")]).expect(1);
    assert!(beyond.stderr.contains("is not there yet"), "{}", beyond.stderr);
    // What was not there to be read is a difference, and told.
    let less = replay(&setup, &["--expect", &golden]).expect(3);
    assert!(less.stdout.contains(&format!("{}[3]", setup.topic)), "{}", less.stdout);
    // Nobody joined the group, or committed for it.
    assert_eq!(crate::disks::committed(&setup), "0");
    // Into storage, twice: what is stored is left out.
    for _ in 0..2 {
        replay(&setup, &["--publish"]).expect(0);
    }
    let audited = openwit(["audit", "--config", &setup.config(), "--json"]).json();
    let balance = &audited["balance"];
    assert_eq!((&balance["missing"], &balance["doubled"]), (&0.into(), &0.into()), "{audited}");
    assert!(balance["dispositions"]["stored"].as_u64().is_some_and(|stored| stored > 0), "{audited}");
}
