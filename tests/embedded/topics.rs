//! Which topics are read and where their rows go: patterns with several wildcards, excludes, index positions, made-up indexes, and topics
//! that are created while a process runs.

use std::collections::{BTreeMap, BTreeSet};

use openwit_graphs::catalog;
use openwit_ingest::config::{AutoGenerateStrategy, AutoOffsetReset, Config, TopicPattern};
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::{Format, Plan, Ppm, Topic};
use openwit_ingest::plan::catalog_location;
use openwit_operators::batch::Signal;
use openwit_operators::catalog_commit::FileFilter;
use tempfile::TempDir;

use super::pipeline::{Running, Until, config, load, run_to_the_end, send};

/// Messages of each topic.
const COUNT: u64 = 10;

/// Valid traces on new topics, one partition each.
fn traces(topics: &[&str]) -> Plan {
    Plan {
        topics: topics.iter().map(|name| Topic { name: (*name).to_owned(), partitions: 1 }).collect(),
        count: Some(COUNT * topics.len() as u64),
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        ..load("", Signal::Traces, Format::Otlp)
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A configuration that reads `topics` less `excluded`.
fn reading(broker: &EmbeddedBroker, folder: &TempDir, topics: &[&str], excluded: &[&str]) -> Config {
    let mut config = config(broker, &traces(&[]), folder);
    config.ingestion.kafka.topics = owned(topics);
    config.ingestion.kafka.exclude_topics = owned(excluded);
    config
}

/// Indexes that have rows.
fn indexes(config: &Config) -> BTreeSet<String> {
    let catalog = catalog::open(&catalog_location(config)).unwrap();
    catalog.files(&FileFilter::default()).unwrap().iter().map(|file| file.group.index.to_string()).collect()
}

/// Messages read of each topic.
fn read(running: &Running) -> BTreeMap<String, i64> {
    let positions = running.control().counters.positions.positions();
    positions.into_iter().map(|(partition, position)| (partition.topic.name.to_string(), position.emitted)).collect()
}

#[test]
fn patterns_with_several_wildcards_are_read_less_what_is_excluded_and_kafkas_own_topics() {
    let broker = EmbeddedBroker::start().unwrap();
    let wanted = ["v6.qtw.traces.shop.eu", "v6.abc.traces.bank.us", "plain-logs.x", "a.b.c.d"];
    let others = ["v6.qtw.traces.shop.debug", "v6.qtw.traces.shop", "secret", "a.b.c.private", "__consumer_offsets", "plain.x"];
    send(&broker, &traces(&others));
    send(&broker, &traces(&wanted));
    let folder = TempDir::new().unwrap();
    let topics = ["v6.*.traces.*.*", "plain-*.*", "a.**", "*"];
    let mut config = reading(&broker, &folder, &topics, &["v6.*.*.*.debug", "secret", "**.private"]);
    config.ingestion.kafka.topic_index_config.default_index_position = 0;
    let mut running = Running::start(&config, 1, Until::Stopped);
    running.wait_for("the wanted topics", |positions| positions.committable >= COUNT as i64 * wanted.len() as i64);
    assert_eq!(read(&running), wanted.map(|topic| (topic.to_owned(), COUNT as i64)).into());
    running.stop();
}

#[test]
fn each_topic_goes_to_the_index_at_the_position_of_its_pattern_or_to_one_made_up() {
    let broker = EmbeddedBroker::start().unwrap();
    send(&broker, &traces(&["v6.qtw.traces.shop.eu", "v6.qtw.traces.Bank.eu", "cart.prod.x", "orders"]));
    for (strategy, made_up) in [
        // The hash is that of every version.
        (AutoGenerateStrategy::Hash, "made_a88ccdc9fa4974fb"),
        (AutoGenerateStrategy::Topic, "made_orders"),
    ] {
        let folder = TempDir::new().unwrap();
        let mut config = reading(&broker, &folder, &["**"], &[]);
        let kafka = &mut config.ingestion.kafka;
        kafka.group_id = format!("group-{made_up}");
        let pattern = |glob: &str, position| TopicPattern {
            r#match: glob.into(),
            index_position: Some(position),
            telemetry_type: None,
            format: None,
        };
        // The first that matches counts; others are as by default.
        kafka.topic_index_config.patterns = vec![pattern("*.prod.*", 0), pattern("*.*.x", 2), pattern("v6.*.*.Bank.*", 4)];
        kafka.auto_generate.enabled = true;
        kafka.auto_generate.prefix = "made_".into();
        kafka.auto_generate.strategy = strategy;
        run_to_the_end(&config, 1);
        assert_eq!(indexes(&config), ["shop", "eu", "cart", made_up].map(str::to_owned).into());
    }
}

#[test]
fn topics_created_while_a_process_runs_are_read_from_their_beginning() {
    let broker = EmbeddedBroker::start().unwrap();
    send(&broker, &traces(&["v6.qtw.traces.shop.eu"]));
    let folder = TempDir::new().unwrap();
    let mut config = reading(&broker, &folder, &["v6.*.traces.*.*", "v7.qtw.traces.named.eu"], &["*.*.*.*.debug"]);
    config.ingestion.kafka.auto_offset_reset = AutoOffsetReset::Earliest;
    config.ingestion.kafka.metadata_refresh_interval_ms = 200;
    let mut running = Running::start(&config, 2, Until::Stopped);
    running.wait_for("the first topic", |positions| positions.emitted == COUNT as i64);
    let (later, excluded) = (["v6.new.traces.late.eu", "v7.qtw.traces.named.eu"], "v6.new.traces.late.debug");
    send(&broker, &traces(&[excluded]));
    send(&broker, &traces(&later));
    running.wait_for("the later topics", |positions| positions.committable >= 3 * COUNT as i64);
    let expected = ["v6.qtw.traces.shop.eu", later[0], later[1]].map(|topic| (topic.to_owned(), COUNT as i64));
    assert_eq!(read(&running), expected.into());
    running.stop();
    assert_eq!(indexes(&config), ["shop", "late", "named"].map(str::to_owned).into());
}
