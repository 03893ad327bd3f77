//! That every key of the Kafka source and of the buffer changes what is run, and has a test that shows what it does.

use std::collections::BTreeMap;

use openwit_graphs::process::Plan;

use super::*;
use crate::plan::{Changes, plan};

/// The parts of the table that `docs/configuration-tests.md` is about.
const PREFIXES: [&str; 6] = [
    "ingestion.kafka.",
    "ingestion.batching.",
    "ingestion.auth.",
    "ingestion.tenants.",
    "ingestion.quotas.",
    "processing.buffer.",
];

/// The page with the table.
const PAGE: &str = "docs/configuration-tests.md";

const FAST: &str = "ingestion.kafka.consumer_type=high_performance";
const TLS: &str = "ingestion.kafka.security.protocol=ssl";
const PASSWORD: &str = "ingestion.kafka.security={protocol: sasl_ssl, sasl: {username: u, password: p}}";
const TOKEN: &str = "ingestion.kafka.security={protocol: sasl_ssl, sasl: {mechanism: OAUTHBEARER, oauthbearer: {\
                     token_endpoint_url: 'https://id/t', client_id: i, client_secret: s}}}";
const TOKENS_FILE: &str = "ingestion.auth.tokens_file=tests/data/tokens.yaml";
const QUOTAS_FILE: &str = "ingestion.quotas.file=tests/data/quotas.yaml";
const BY_HEADER: &str = "ingestion.tenants.from=header";
const BY_TOPIC: &str = "ingestion.tenants={from: topic, topic_position: 1}";
const AUTO: &str = "ingestion.kafka.auto_generate.enabled=true";
const PATTERN: &str = "ingestion.kafka.topic_index_config.patterns=[{match: a.*}]";

/// A value of each key other than its default, and what it needs beside it.
const CHANGES: &[(&str, &str, &[&str])] = &[
    ("ingestion.auth.header", "x-token", &[TOKENS_FILE]),
    ("ingestion.auth.reload_interval_ms", "77", &[TOKENS_FILE]),
    ("ingestion.auth.tokens_file", "tests/data/tokens.yaml", &[]),
    ("ingestion.batching.batch_bytes_max", "1MiB", &[]),
    ("ingestion.batching.batch_size", "10", &[]),
    ("ingestion.batching.batch_timeout_ms", "7", &[]),
    ("ingestion.kafka.auto_generate.enabled", "true", &[]),
    ("ingestion.kafka.auto_generate.numbers", "7", &[AUTO, "ingestion.kafka.auto_generate.strategy=numbers"]),
    ("ingestion.kafka.auto_generate.prefix", "made_", &[AUTO]),
    ("ingestion.kafka.auto_generate.strategy", "topic", &[AUTO]),
    ("ingestion.kafka.auto_offset_reset", "latest", &[]),
    ("ingestion.kafka.batching.batch_bytes_max", "1MiB", &[]),
    ("ingestion.kafka.batching.batch_size", "10", &[]),
    ("ingestion.kafka.batching.batch_timeout_ms", "7", &[]),
    ("ingestion.kafka.batching.fetch_wait_max_ms", "7", &[]),
    ("ingestion.kafka.brokers", "other:1", &[]),
    ("ingestion.kafka.buffer_pool_size", "3", &[]),
    ("ingestion.kafka.client_id", "other", &[]),
    ("ingestion.kafka.commit_strategy.interval_ms", "77", &[]),
    ("ingestion.kafka.commit_strategy.mode", "after_publish", &[]),
    ("ingestion.kafka.consumer.heartbeat_interval_ms", "777", &[]),
    ("ingestion.kafka.consumer.max_poll_interval_ms", "77777", &[]),
    ("ingestion.kafka.consumer.max_poll_records", "77", &[]),
    ("ingestion.kafka.consumer.revoke_wait_ms", "77", &[]),
    ("ingestion.kafka.consumer.session_timeout_ms", "7777", &[]),
    ("ingestion.kafka.consumer_type", "high_performance", &[]),
    ("ingestion.kafka.dead_letter.directory", "elsewhere", &[]),
    ("ingestion.kafka.dead_letter.file_bytes_max", "1MiB", &[]),
    ("ingestion.kafka.dead_letter.topic", "rejects", &[]),
    ("ingestion.kafka.enable_zero_copy", "false", &[]),
    ("ingestion.kafka.exclude_topics", "x", &[]),
    ("ingestion.kafka.fetch_max_bytes", "8MiB", &[]),
    ("ingestion.kafka.fetch_min_bytes", "7", &[]),
    ("ingestion.kafka.format", "json", &[]),
    ("ingestion.kafka.group_id", "other", &[]),
    ("ingestion.kafka.group_instance_id", "other", &[]),
    ("ingestion.kafka.lost_offsets", "stop", &[]),
    ("ingestion.kafka.high_performance.channel_buffer_size", "7777", &[FAST]),
    ("ingestion.kafka.high_performance.num_consumers", "3", &[FAST]),
    ("ingestion.kafka.high_performance.num_grpc_clients", "3", &[FAST]),
    ("ingestion.kafka.high_performance.processing_threads", "3", &[FAST]),
    ("ingestion.kafka.librdkafka", "{socket.keepalive.enable: 'true'}", &[]),
    ("ingestion.kafka.max_partition_fetch_bytes", "1MiB", &[]),
    ("ingestion.kafka.message_id", "kafka_key", &[]),
    ("ingestion.kafka.metadata_refresh_interval_ms", "777", &[]),
    ("ingestion.kafka.prefetch_bytes_max", "8MiB", &[]),
    ("ingestion.kafka.preallocate_buffers", "true", &[]),
    ("ingestion.kafka.security.protocol", "ssl", &[]),
    ("ingestion.kafka.security.sasl.mechanism", "SCRAM-SHA-256", &[PASSWORD]),
    ("ingestion.kafka.security.sasl.oauthbearer.ca_location", "ca.pem", &[TOKEN]),
    ("ingestion.kafka.security.sasl.oauthbearer.client_id", "other", &[TOKEN]),
    ("ingestion.kafka.security.sasl.oauthbearer.client_secret", "other", &[TOKEN]),
    ("ingestion.kafka.security.sasl.oauthbearer.scope", "kafka", &[TOKEN]),
    ("ingestion.kafka.security.sasl.oauthbearer.token_endpoint_url", "https://other/t", &[TOKEN]),
    ("ingestion.kafka.security.sasl.password", "other", &[PASSWORD]),
    ("ingestion.kafka.security.sasl.username", "other", &[PASSWORD]),
    ("ingestion.kafka.security.tls.ca_location", "ca.pem", &[TLS]),
    ("ingestion.kafka.security.tls.certificate_location", "a.pem", &[TLS, "ingestion.kafka.security.tls.key_location=a.key"]),
    ("ingestion.kafka.security.tls.key_location", "b.key", &[TLS, "ingestion.kafka.security.tls.certificate_location=a.pem"]),
    ("ingestion.kafka.security.tls.key_password", "other", &[TLS]),
    ("ingestion.kafka.security.tls.verify_certificate", "false", &[TLS]),
    ("ingestion.kafka.security.tls.verify_hostname", "false", &[TLS]),
    ("ingestion.kafka.telemetry_type", "logs", &[]),
    ("ingestion.kafka.tombstones", "reject", &[]),
    ("ingestion.kafka.topic_index_config.default_index_position", "3", &[]),
    ("ingestion.kafka.topic_index_config.patterns", "[{match: a.*}]", &[]),
    ("ingestion.kafka.topic_index_config.patterns[].format", "[{match: a.*, format: json}]", &[PATTERN]),
    ("ingestion.kafka.topic_index_config.patterns[].index_position", "[{match: a.*, index_position: 1}]", &[PATTERN]),
    ("ingestion.kafka.topic_index_config.patterns[].match", "[{match: b.*}]", &[PATTERN]),
    ("ingestion.kafka.topic_index_config.patterns[].telemetry_type", "[{match: a.*, telemetry_type: logs}]", &[PATTERN]),
    ("ingestion.kafka.topics", "x", &[]),
    ("ingestion.quotas.file", "tests/data/quotas.yaml", &[]),
    ("ingestion.quotas.reload_interval_ms", "77", &[QUOTAS_FILE]),
    ("ingestion.tenants.default", "rest", &[BY_HEADER]),
    ("ingestion.tenants.from", "header", &[]),
    ("ingestion.tenants.header", "x-tenant", &[BY_HEADER]),
    ("ingestion.tenants.topic_position", "2", &[BY_TOPIC]),
    ("processing.buffer.flush_interval_seconds", "7", &[]),
    ("processing.buffer.max_buffer_memory", "2GiB", &[]),
    ("processing.buffer.max_size_bytes", "32MiB", &[]),
    ("processing.buffer.max_size_messages", "7777", &[]),
];

/// The keys under `PREFIXES`, in their order.
fn keys() -> Vec<String> {
    let all = all_keys().into_iter().map(|(path, _)| path);
    all.filter(|path| PREFIXES.iter().any(|prefix| path.starts_with(prefix))).collect()
}

/// All that the ingest side of a plan is told.
fn told(plan: &Plan) -> Vec<String> {
    let ingest = plan.graph.as_ref().unwrap();
    let graph = &ingest.settings;
    let kafka = graph.source.as_ref().unwrap();
    let source = &kafka.consumer;
    vec![
        format!("{} workers, {} consumers, {:?}", plan.workers, kafka.consumers, graph.commit_mode),
        format!("{:?} {:?} {:?}", source.client, source.topics, source.limits),
        format!("{} {:?} {:?} {:?}", source.poll_records_max, source.reset, source.lost, source.revoke_wait),
        format!("{:?}", source.pool),
        format!("{:?} {:?} {:?}", graph.normalize, graph.encode, graph.sink),
        format!("{} {} {}", ingest.in_flight_bytes_max, ingest.in_flight_messages_max, ingest.memory_bytes_max),
        format!("{:?} {:?} {:?}", ingest.dead_letter, ingest.tokens, ingest.quotas),
    ]
}

fn planned(overrides: &[&str]) -> Vec<String> {
    let loaded = parse(TOPICS, overrides).unwrap_or_else(|problems| panic!("{overrides:?}: {problems}"));
    told(&plan(&loaded.config, &Changes::default(), std::sync::Arc::default()).unwrap())
}

#[test]
fn every_key_of_the_source_and_the_buffer_changes_what_is_run() {
    for (path, value, beside) in CHANGES {
        let key = path.split("[]").next().unwrap();
        let change = format!("{key}={value}");
        // Some of what is needed beside a key would not stand without it.
        let mut with = beside.to_vec();
        let without = match parse(TOPICS, &with) {
            Ok(_) => planned(&with),
            Err(_) => planned(&[]),
        };
        with.push(&change);
        assert!(planned(&with) != without, "{change} changes nothing");
    }
    let mut tried: Vec<&str> = CHANGES.iter().map(|(path, ..)| *path).collect();
    tried.sort_unstable();
    let mut keys = keys();
    keys.sort_unstable();
    assert_eq!(tried, keys);
}

#[test]
fn keys_that_librdkafka_obeys_become_its_properties() {
    let client = |overrides: &[&str]| parse(TOPICS, overrides).unwrap().config.ingestion.kafka.consumer_properties();
    for (key, value, property, expected) in [
        ("auto_offset_reset", "latest", "auto.offset.reset", "latest"),
        ("batching.fetch_wait_max_ms", "7", "fetch.wait.max.ms", "7"),
        ("brokers", "a:1,b:2", "bootstrap.servers", "a:1,b:2"),
        ("client_id", "me", "client.id", "me"),
        ("commit_strategy.interval_ms", "77", "auto.commit.interval.ms", "77"),
        ("consumer.heartbeat_interval_ms", "777", "heartbeat.interval.ms", "777"),
        ("consumer.max_poll_interval_ms", "77777", "max.poll.interval.ms", "77777"),
        ("consumer.session_timeout_ms", "7777", "session.timeout.ms", "7777"),
        ("fetch_max_bytes", "8MiB", "fetch.max.bytes", "8388608"),
        ("fetch_min_bytes", "7", "fetch.min.bytes", "7"),
        ("group_id", "us", "group.id", "us"),
        ("group_instance_id", "one", "group.instance.id", "one"),
        ("librdkafka", "{socket.keepalive.enable: 'true'}", "socket.keepalive.enable", "true"),
        ("max_partition_fetch_bytes", "1MiB", "max.partition.fetch.bytes", "1048576"),
        ("metadata_refresh_interval_ms", "777", "topic.metadata.refresh.interval.ms", "777"),
        ("prefetch_bytes_max", "8MiB", "queued.max.messages.kbytes", "8192"),
        ("security.protocol", "ssl", "security.protocol", "ssl"),
    ] {
        assert_eq!(client(&[&format!("ingestion.kafka.{key}={value}")]).get(property), Some(expected), "{key}");
    }
    let tls = client(&[
        TLS,
        "ingestion.kafka.security.tls={ca_location: ca.pem, certificate_location: c.pem, key_location: k.pem, key_password: p, \
         verify_hostname: false}",
    ]);
    for (property, expected) in [
        ("ssl.ca.location", "ca.pem"),
        ("ssl.certificate.location", "c.pem"),
        ("ssl.key.location", "k.pem"),
        ("ssl.key.password", "p"),
        ("enable.ssl.certificate.verification", "true"),
        ("ssl.endpoint.identification.algorithm", "none"),
    ] {
        assert_eq!(tls.get(property), Some(expected), "{property}");
    }
    let unchecked = client(&[TLS, "ingestion.kafka.security.tls.verify_certificate=false"]);
    assert_eq!(unchecked.get("enable.ssl.certificate.verification"), Some("false"));
}

#[test]
fn the_pool_keeps_as_many_buffers_as_asked_for_but_no_more_than_fit() {
    let kept =
        |size: &str| parse(TOPICS, &[&format!("ingestion.kafka.buffer_pool_size={size}")]).unwrap().config.arenas_kept_max();
    // 64 MiB of buffer hold 32 batches of 2 MiB.
    assert_eq!([kept("0"), kept("3"), kept("1000")], [0, 3, 32]);
}

/// The rows of the page: key, and its tests as (file, name).
fn rows() -> Vec<(String, Vec<(String, String)>)> {
    let text = std::fs::read_to_string(root().join(PAGE)).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [key, what, tests] = cells[..] else { panic!("{PAGE}: a row has three cells: {line}") };
        assert!(!what.is_empty(), "{PAGE}: {key} says what it changes");
        let tests = tests.split("<br>").map(|test| {
            let test = test.trim().trim_matches('`');
            let (file, name) = test.split_once(": ").unwrap_or_else(|| panic!("{PAGE}: `FILE: TEST` and not {test}"));
            (file.to_owned(), name.to_owned())
        });
        (key.trim_matches('`').to_owned(), tests.collect())
    };
    lines.map(row).collect()
}

#[test]
fn every_key_has_a_row_that_names_a_test_there_is() {
    let rows = rows();
    let documented: Vec<&str> = rows.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(documented, keys(), "{PAGE} has one row for each key, in the order of the reference");
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for (key, tests) in &rows {
        for (file, name) in tests {
            let text = files.entry(file).or_insert_with(|| {
                std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{PAGE}: {key}: {file}: {error}"))
            });
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let is_test = lines.iter().enumerate().any(|(number, line)| {
                let attributes = lines[..number].iter().rev().take_while(|line| line.starts_with("#["));
                line.starts_with(&format!("fn {name}(")) && attributes.into_iter().any(|line| *line == "#[test]")
            });
            assert!(is_test, "{PAGE}: {key}: {file} has no test {name}");
        }
    }
}
