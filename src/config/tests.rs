//! What the configuration promises: one table, every problem at once with its place, the specification's example as it stands,
//! and no secret in any text. That keys reach what is run is in `effects`; that they have their effect there is for the tests of the
//! part they configure, which `docs/configuration-tests.md` names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use openwit_operators::batch::Signal;
use proptest::prelude::*;

use super::key::{Key, Kind, Value};
use super::layers::default_of;
use super::*;

fn no_environment(_: &str) -> Option<String> {
    None
}

fn parse(text: &str, overrides: &[&str]) -> Result<Loaded, Problems> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Config::parse("test.yaml", text, &overrides, &no_environment)
}

/// The least that the default graph needs.
mod effects;

const TOPICS: &str = "ingestion: {kafka: {topics: [spans]}}";

fn problems(text: &str, overrides: &[&str]) -> String {
    parse(text, overrides).expect_err("the configuration must be refused").to_string()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn shipped() -> Vec<PathBuf> {
    let files = std::fs::read_dir(root().join("config")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    files
}

#[test]
fn reference_equals_the_code() {
    let path = root().join("config/reference.yaml");
    if std::env::var_os("OPENWIT_UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, reference_yaml()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == reference_yaml(), "run this test with OPENWIT_UPDATE_REFERENCE=1 and look at the difference");
}

#[test]
fn reference_is_the_defaults() {
    let reference = parse(&reference_yaml(), &["ingestion.kafka.topics=[spans]"]).unwrap();
    assert_eq!(reference.config, parse(TOPICS, &[]).unwrap().config);
    assert_eq!(reference.warnings.to_string(), "");
}

#[test]
fn every_shipped_file_loads_and_none_with_a_wrong_key_does() {
    let files = shipped();
    assert!(files.len() >= 7, "{files:?}");
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.display().to_string();
        let loaded = Config::parse(&name, &text, &[], &no_environment);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
        let wrong = format!("{text}\nnod: {{}}\n");
        let line = text.lines().count() + 2;
        let found = Config::parse(&name, &wrong, &[], &no_environment).unwrap_err().to_string();
        assert_eq!(found, format!("{name}:{line}: nod: unknown key: did you mean node?"));
    }
}

#[test]
fn specification_example_loads_verbatim_and_every_key_of_it_arrives() {
    let text = std::fs::read_to_string(root().join("tests/data/spec-section-7.yaml")).unwrap();
    let loaded = parse(&text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.warnings.to_string(), "");
    let kafka = &loaded.config.ingestion.kafka;
    assert_eq!(kafka.brokers, ["ns1005571.ip-147-135-65.us:9092"]);
    assert_eq!(kafka.group_id, "ingestion-group");
    assert_eq!(kafka.topics, ["v6.qtw.traces.*.*"]);
    assert_eq!(kafka.consumer_type, ConsumerType::Standard);
    let expected =
        HighPerformance { num_consumers: 8, processing_threads: 16, num_grpc_clients: 4, channel_buffer_size: 100_000 };
    assert_eq!(kafka.high_performance, expected);
    assert_eq!((kafka.fetch_min_bytes, kafka.fetch_max_bytes, kafka.max_partition_fetch_bytes), (1 << 20, 50 << 20, 10 << 20));
    assert_eq!((kafka.enable_zero_copy, kafka.preallocate_buffers, kafka.buffer_pool_size), (true, true, 1_000));
    assert_eq!(kafka.topic_index_config.default_index_position, 3);
    let pattern = &kafka.topic_index_config.patterns[0];
    assert_eq!((pattern.r#match.as_str(), pattern.index_position, pattern.telemetry_type), ("v6.qtw.*.*.*", Some(3), None));
    let expected = AutoGenerate { enabled: false, prefix: "auto_".to_owned(), strategy: AutoGenerateStrategy::Hash, numbers: 16 };
    assert_eq!(kafka.auto_generate, expected);
    let expected = Consumer {
        session_timeout_ms: 180_000,
        heartbeat_interval_ms: 3_000,
        max_poll_interval_ms: 900_000,
        max_poll_records: 50_000,
        ..kafka.consumer.clone()
    };
    assert_eq!(kafka.consumer, expected);
    let batching = loaded.config.kafka_batching();
    assert_eq!((batching.batch_size, batching.batch_timeout_ms), (1_000, 5_000));
    assert_eq!(kafka.telemetry_type, Signal::Traces);
    assert_eq!((loaded.config.workers(), loaded.config.consumers(), loaded.config.flight_streams()), (1, 1, 1));

    let fast = parse(&text, &["ingestion.kafka.consumer_type=high_performance", "processing.buffer.max_buffer_memory=4GiB"])
        .unwrap()
        .config;
    assert_eq!((fast.workers(), fast.consumers(), fast.flight_streams(), fast.messages_in_flight_max()), (16, 8, 4, 100_000));
}

#[test]
fn eight_mistakes_are_eight_problems_each_with_its_line() {
    let text = "\
graph: standalon
node:
  id: a/b
ingestion:
  kafka:
    topics: [spans]
    topcis: [spans]
    fetch_max_bytes: 64MB
    consumer:
      session_timeout_ms: 500
      heartbeat_interval_ms: 9000
    commit_strategy:
      mode: never
  batching:
    batch_size: 5000
    batch_size: 6000
processing:
  wal: [on]
";
    let expected = r#"test.yaml:1: graph: value "standalon": must be one of standalone, ingest, storage, or a map of stages (docs/graphs.md)
test.yaml:3: node.id: value "a/b": must be 1 to 128 of a-z A-Z 0-9 . _ - and not begin with a dot
test.yaml:7: ingestion.kafka.topcis: unknown key: did you mean ingestion.kafka.topics?
test.yaml:8: ingestion.kafka.fetch_max_bytes: value "64MB": must be a size like 64MiB, 1KiB to 2147483135
test.yaml:10: ingestion.kafka.consumer.session_timeout_ms: value "500": must be a whole number, 1000 to 3600000 ms
test.yaml:13: ingestion.kafka.commit_strategy.mode: value "never": must be one of after_wal, after_publish
test.yaml:15: ingestion.batching.batch_size: value "5000": a batch of 5000 messages of 1KiB is 5120000 bytes, which must stay below ingestion.grpc.max_message_size, 4MiB: lower batch_size to 4095, raise the limit, or correct pipeline.average_message_bytes
test.yaml:16: ingestion.batching.batch_size: given twice: first in line 15
test.yaml:18: processing.wal: this must be a map of keys, of which there are enabled, directory, max_size_bytes, segment_size_bytes, sync_on_write, sync_interval_ms, direct_io, dedup_keys_bytes_max, long_term"#;
    let found = problems(text, &[]);
    // The ninth, the batch size rule, is not checked on a key that has a problem already.
    let expected: Vec<&str> = expected.lines().filter(|line| !line.contains(":15:")).collect();
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    assert_eq!(expected.len(), 8);
}

#[test]
fn relations_of_tokens_and_tenants_are_checked() {
    check_refused(&[
        (
            &["ingestion.tenants.from=token"],
            "ingestion.tenants.from: value \"token\": from: token needs ingestion.auth.tokens_file",
        ),
        (&["ingestion.tenants.from=topic"], "from: topic needs ingestion.tenants.topic_position"),
        (
            &["ingestion.auth.tokens_file=t", "ingestion.tenants={from: header, header: Authorization}"],
            "ingestion.tenants.header: value \"Authorization\": must not be ingestion.auth.header",
        ),
        (
            &["ingestion.auth.tokens_file=t", "ingestion.kafka.message_id=header:Authorization"],
            "ingestion.kafka.message_id: value \"header:Authorization\": must not be ingestion.auth.header",
        ),
    ]);
}

#[test]
fn relations_between_keys_are_checked() {
    check_refused(&[
        (&["ingestion.kafka.topics=[]"], "ingestion.kafka.topics: must name at least one topic"),
        (
            &["ingestion.sources.kafka.enabled=false"],
            "ingestion.sources.kafka.enabled: value \"false\": graph standalone needs a source",
        ),
        (&["ingestion.kafka.brokers=[]"], "must name at least one broker"),
        (&["graph=ingest"], "storage.endpoints: graph ingest delivers to other processes"),
        (&["ingestion.kafka.consumer.heartbeat_interval_ms=45000"], "must be below session_timeout_ms, 45000 ms"),
        (&["ingestion.kafka.consumer.session_timeout_ms=400000"], "must not be above max_poll_interval_ms, 300000 ms"),
        (&["ingestion.kafka.consumer.revoke_wait_ms=300000"], "must be below max_poll_interval_ms, 300000 ms"),
        (
            &["ingestion.kafka.format=raw"],
            "ingestion.kafka.format: value \"raw\": format raw carries logs only, telemetry_type is traces",
        ),
        (
            &["ingestion.kafka.topic_index_config.patterns=[{match: a.*, format: raw}]"],
            "patterns: value \"as given\": match a.*: format raw carries logs only",
        ),
        (
            &["processing.wal={max_size_bytes: 64MiB, segment_size_bytes: 16MiB}"],
            "together 96 MiB: the log would wait for itself",
        ),
        (&["storage.upload.backoff_ms=40000"], "backoff_ms must not be above backoff_max_ms, 30000 ms"),
        (&["storage={object_store: {scheme: s3, bucket: abc}, rotation: {file_bytes_max: 1TiB}}"], "less than 10000 parts"),
        (&["ingestion.kafka.fetch_min_bytes=20MiB"], "must not be above fetch_max_bytes, 16MiB"),
        (&["ingestion.batching.batch_size=4096"], "lower batch_size to 4095"),
        (&["ingestion.kafka.batching.batch_size=4096"], "ingestion.kafka.batching.batch_size: value \"4096\": a batch of"),
        (&["pipeline.average_message_bytes=1MiB"], "pipeline.average_message_bytes: value \"1MiB\": a batch of"),
        (
            &["processing.buffer.max_size_messages=999"],
            "processing.buffer.max_size_messages: value \"999\": batch_size must not be above",
        ),
        (
            &["ingestion.batching.batch_bytes_max=65MiB"],
            "batch_bytes_max must not be above processing.buffer.max_size_bytes, 64MiB",
        ),
        (&["ingestion.grpc.max_message_size=33MiB"], "must not be above pipeline.in_flight_bytes_max, 32MiB"),
        (&["processing.buffer.max_size_bytes=1GiB"], "all buffers together may take 1360 MiB, above max_buffer_memory, 1GiB"),
        (&["processing.wal.enabled=false"], "not supported yet: running without a write-ahead log"),
        (&["processing.wal.segment_size_bytes=1025MiB"], "must not be above half of max_size_bytes, 2GiB"),
        (&["processing.wal.segment_size_bytes=64000001"], "must be a multiple of 4KiB"),
        (
            &["processing.wal.segment_size_bytes=2MiB"],
            "batch_bytes_max must not be above half of processing.wal.segment_size_bytes, 2MiB",
        ),
        (
            &["ingestion.limits.decompressed_bytes_max=513MiB"],
            "ingestion.limits.decompressed_bytes_max: value \"513MiB\": must not be above a quarter of processing.wal.max_size_bytes, 2GiB",
        ),
        (&["ingestion.kafka.dead_letter.directory=null"], "a rejected message must go somewhere"),
        (&["ingestion.kafka.dead_letter.topic=spans"], "rejected messages would go round for ever"),
        (
            &["ingestion.kafka.security.protocol=sasl_ssl"],
            "ingestion.kafka.security.sasl.username: must be given for protocol sasl_ssl",
        ),
        (
            &["ingestion.kafka.security={protocol: sasl_ssl, sasl: {mechanism: OAUTHBEARER}}"],
            "ingestion.kafka.security.sasl.oauthbearer.token_endpoint_url: must be given for protocol sasl_ssl and mechanism OAUTHBEARER",
        ),
        (
            &["ingestion.kafka.security={protocol: ssl, tls: {certificate_location: a.pem}}"],
            "tls.key_location: must be given with certificate_location",
        ),
        (&["storage.local_directory=data/wal"], "storage.local_directory: value \"data/wal\": must not be, hold or lie in"),
    ]);
}

#[test]
fn relations_of_stores_and_catalogs_are_checked() {
    check_refused(&[
        (&["storage.object_store.scheme=s3"], "storage.object_store.bucket: must be given for scheme s3"),
        (
            &["storage.object_store={scheme: s3, bucket: abc, access_key_id: k}"],
            "secret_access_key: must be given with access_key_id",
        ),
        (&["storage.object_store.scheme=gcs"], "storage.object_store.bucket: must be given for scheme gcs"),
        (
            &["storage.object_store={scheme: azblob, container: abc}"],
            "storage.object_store.endpoint: must be given for scheme azblob",
        ),
        (
            &["storage.object_store={scheme: azblob, container: abc, endpoint: 'http://a', account_key: k}"],
            "account_name: must be given with account_key",
        ),
        (
            &["metastore={type: postgres, url: 'postgres://h/d?sslmode=require'}"],
            "metastore.url: value \"***\": must not say how to encrypt: that is for metastore.tls.mode",
        ),
        (
            &["metastore={type: postgres, url: 'postgres://h/d', tls: {key_location: a.key}}"],
            "metastore.tls.certificate_location: must be given with key_location",
        ),
        (&["metastore.type=postgres"], "metastore.type: value \"postgres\": must be given for type postgres"),
        (&["metastore={type: postgres, url: mysql://u:hunter2@h}"], "metastore.url: value \"***\": must begin with postgres://"),
    ]);
}

/// Each list of overrides is refused with a problem that says this.
fn check_refused(cases: &[(&[&str], &str)]) {
    for (overrides, says) in cases {
        let found = problems(TOPICS, overrides);
        assert!(found.contains(says), "{overrides:?}:\n{found}");
    }
}

#[test]
fn what_works_but_is_not_meant_is_a_warning() {
    for (overrides, says) in [
        (&["processing.wal.sync_on_write=false"][..], "a power failure loses up to the last 100 ms"),
        (&["processing.wal.sync_interval_ms=5"], "has no effect: processing.wal.sync_on_write is true"),
        (&["ingestion.kafka.consumer.heartbeat_interval_ms=20000"], "more than a third of session_timeout_ms"),
        (&["ingestion.kafka.max_partition_fetch_bytes=20MiB"], "above fetch_max_bytes, 16MiB"),
        (&["ingestion.kafka.security.sasl.username=me"], "has no effect: protocol plaintext does not log in"),
        (&["ingestion.kafka.security={protocol: ssl, tls: {verify_certificate: false}}"], "anyone on the way"),
        (
            &["ingestion.kafka.security={protocol: sasl_plaintext, sasl: {mechanism: PLAIN, username: u, password: p}}"],
            "anyone on the way to the brokers can read the password",
        ),
        (
            &["ingestion.kafka.security={protocol: sasl_ssl, sasl: {username: u, password: p, oauthbearer: {client_id: c}}}"],
            "has no effect: mechanism SCRAM-SHA-512 does not log in with it",
        ),
        (
            &[
                "ingestion.kafka.security={protocol: sasl_ssl, sasl: {mechanism: OAUTHBEARER, oauthbearer: {token_endpoint_url: 'http://i/t', \
               client_id: c, client_secret: s}}}",
            ],
            "anyone on the way can read the client's secret",
        ),
        (&["ingestion.batching.batch_timeout_ms=5"], "below processing.epoch_interval_ms, 20 ms"),
        (&["storage.rotation.idle_seconds=301"], "has no effect above age_max_seconds"),
        (&["storage.rotation.file_bytes_max=1GiB"], "under load reading pauses until"),
        (&["storage.object_store.bucket=abc"], "has no effect: storage.object_store.scheme is fs"),
        (
            &["storage.object_store={scheme: gcs, bucket: abc, account_name: a}"],
            "has no effect: storage.object_store.scheme is gcs",
        ),
        (&["metastore.tls.mode=require"], "has no effect: metastore.type is sled"),
        (
            &["metastore={type: postgres, url: 'postgres://h/d', tls: {ca_location: ca.pem}}"],
            "has no effect: only metastore.tls.mode verify-full",
        ),
        (&["metastore.url=postgres://x"], "has no effect: metastore.type is sled"),
    ] {
        let loaded = parse(TOPICS, overrides).unwrap_or_else(|problems| panic!("{overrides:?}: {problems}"));
        let found = loaded.warnings.to_string();
        assert!(found.contains(says) && found.starts_with("--set: warning: "), "{overrides:?}: {found}");
        assert_eq!(loaded.warnings.list.len(), 1, "{found}");
    }
}

#[test]
fn keys_without_effect_yet_accept_only_their_default() {
    let expected = r#"--set: ingestion.sources.http.enabled: value "true": not supported yet: OTLP over HTTP as a source; send through Kafka"#;
    assert_eq!(problems(TOPICS, &["ingestion.sources.http.enabled=true"]), expected);
    assert!(parse(TOPICS, &["ingestion.sources={http: {enabled: false}, grpc: {enabled: false}}"]).is_ok());
    for (given, says) in [
        ("storage.parquet.compression=SNAPPY", "not supported yet: it is not built in; use one of zstd, none"),
        ("ingestion.kafka.security.sasl.mechanism=GSSAPI", "not supported yet: librdkafka is built without Kerberos"),
    ] {
        let found = problems(TOPICS, &[given]);
        assert!(found.contains(says), "{given}: {found}");
    }
}

#[test]
fn the_inactive_value_of_a_key_without_effect_is_accepted() {
    assert!(problems(TOPICS, &["processing.wal.enabled=false"]).contains("not supported yet: running without a write-ahead log"));
    assert!(parse(TOPICS, &["processing.wal.enabled=true"]).is_ok());
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name() {
    for (given, says) in [
        ("ingestion.kafka.batchng.batch_size=1", "did you mean ingestion.kafka.batching?"),
        ("processing.wal.sync_on_wrte=true", "did you mean processing.wal.sync_on_write?"),
        ("kafka={}", "it is ingestion.kafka here"),
        ("processing.sync_on_write=true", "did you mean processing.wal.sync_on_write?"),
        ("storage.file_rotation={file_size_mb: 1}", "it is storage.rotation here"),
        ("wal_cleanup.zzzzzzzzzz=1", "known here are enabled, interval_seconds"),
        ("ingestion.kafka.topic_index_config.patterns=[{mach: a}]", "patterns[0].mach: unknown key: did you mean match?"),
        ("ingestion.kafka.topic_index_config.patterns=[{index_position: 1}]", "patterns[0].match: must be given"),
        (
            "ingestion.kafka.topic_index_config.patterns=[{match: a, index_position: x}]",
            "patterns[0].index_position: value \"x\"",
        ),
    ] {
        let found = problems(TOPICS, &[given]);
        assert!(found.contains(says), "{given}: {found}");
    }
}

#[test]
fn overrides_lie_over_the_file_and_the_file_over_the_defaults() {
    let text = "node: {id: file}\ningestion: {kafka: {topics: [a, b], librdkafka: {socket.keepalive.enable: 'true'}}}";
    let overrides =
        ["node.id=set", "ingestion.kafka.topics=c,d", "ingestion.kafka.librdkafka.socket.nagle.disable=true", "node.id=last"];
    let config = parse(text, &overrides).unwrap().config;
    assert_eq!(config.node.id, "last");
    assert_eq!(config.ingestion.kafka.topics, ["c", "d"]);
    let settings: Vec<&str> = config.ingestion.kafka.librdkafka.iter().map(|(name, _)| name).collect();
    assert_eq!(settings, ["socket.keepalive.enable", "socket.nagle.disable"]);
    assert_eq!(config.processing.wal.directory, Path::new("./data/wal/short"));
    let moved = parse(TOPICS, &["node.data_directory=/d", "processing.wal.directory=/fast"]).unwrap().config;
    assert_eq!(
        (moved.processing.wal.directory.as_path(), moved.metastore.path.as_path()),
        (Path::new("/fast"), Path::new("/d/catalog"))
    );
    assert!(problems(TOPICS, &["node.id"]).contains("must be key=value"));
}

#[test]
fn a_missing_variable_is_a_problem_of_its_key() {
    let environment = |name: &str| (name == "TOPIC").then(|| "spans,logs".to_owned());
    let text = "ingestion:\n  kafka:\n    topics: ${TOPIC}\n    group_id: ${NOWHERE}\n    brokers: '${NOWHERE:-b:1}'\n";
    let found = Config::parse("test.yaml", text, &[], &environment).unwrap_err().to_string();
    assert_eq!(
        found,
        "test.yaml:4: ingestion.kafka.group_id: the environment has no variable NOWHERE; set it, or write ${NOWHERE:-default}"
    );
    let text = text.replace("${NOWHERE}", "g");
    let config = Config::parse("test.yaml", &text, &[], &environment).unwrap().config;
    assert_eq!(config.ingestion.kafka.topics, ["spans", "logs"]);
    assert_eq!(config.ingestion.kafka.brokers, ["b:1"]);
}

#[test]
fn no_secret_reaches_any_text() {
    let text = "
ingestion:
  kafka:
    topics: [spans]
    security:
      protocol: sasl_ssl
      sasl: {username: me, password: hunter2}
      tls: {certificate_location: c.pem, key_location: k.pem, key_password: hunter2}
    librdkafka: {ssl.keystore.password: hunter2}
storage: {object_store: {scheme: s3, bucket: abc, access_key_id: hunter2, secret_access_key: hunter2}}
metastore: {type: postgres, url: 'postgres://u:hunter2@h/d'}
";
    let config = parse(text, &[]).unwrap_or_else(|problems| panic!("{problems}")).config;
    assert_eq!(config.ingestion.kafka.connection_properties().get("sasl.password"), Some("hunter2"));
    for shown in [
        config.to_yaml(),
        format!("{config:?}"),
        format!("{config:#?}"),
        format!("{:?}", config.ingestion.kafka.consumer_properties()),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    for wrong in [
        "ingestion.kafka.security.sasl.pasword=hunter2",
        "ingestion.kafka.security.sasl.password=[hunter2]",
        "ingestion.kafka.librdkafka.sasl.password=hunter2",
        "ingestion.kafka.librdkafka.ssl.nonsense.password=hunter2",
        "metastore={type: postgres, url: hunter2}",
    ] {
        let found = problems(TOPICS, &[wrong]);
        assert!(!found.contains("hunter2"), "{found}");
    }
}

#[test]
fn effective_yaml_loads_as_the_same_configuration() {
    let spec = std::fs::read_to_string(root().join("tests/data/spec-section-7.yaml")).unwrap();
    let mut texts = vec![spec, TOPICS.to_owned()];
    texts.extend(shipped().iter().map(|path| std::fs::read_to_string(path).unwrap()));
    for text in texts {
        let overrides = ["metastore={type: sled, url: null}", r#"ingestion.kafka.librdkafka.client.rack='$${x} ''y'' "z": #'"#];
        let config = parse(&text, &overrides).unwrap_or_else(|problems| panic!("{problems}")).config;
        let again = parse(&config.to_yaml(), &[]).unwrap_or_else(|problems| panic!("{problems}\n{}", config.to_yaml())).config;
        assert_eq!(again, config);
    }
}

#[test]
fn embedded_defaults_pass_the_checks_and_stay_small() {
    let config = Config::embedded(Path::new("/tmp/demo"));
    assert_eq!(config.service_ports.arrow_flight, 0);
    for (key, path) in config.directories() {
        assert!(path.starts_with("/tmp/demo"), "{key}");
    }
    let memory: u64 = config.buffer_memory().iter().map(|part| part.bytes).sum();
    assert!(memory < 512 << 20, "{memory}");
    assert_eq!(config.arenas_kept_max(), 32);
    assert!(parse(&config.to_yaml(), &["ingestion.kafka.topics=spans"]).is_ok());
}

/// All keys, those of entries included.
fn all_keys() -> Vec<(String, Key)> {
    let mut all = Vec::new();
    for (path, key) in table().keys() {
        all.push((path.to_owned(), *key));
        if let Kind::Entries(inner) = key.kind {
            all.extend(inner().keys().map(|(name, key)| (format!("{path}[].{name}"), *key)));
        }
    }
    all
}

#[test]
fn every_key_is_documented_and_its_default_is_allowed() {
    for (path, key) in all_keys() {
        assert!(key.meaning.ends_with('.'), "{path} ends its meaning with a full stop");
        if !path.ends_with("].match") {
            assert!(default_of(&key).is_ok(), "{path}: {:?}", default_of(&key));
        }
        let is_amount =
            matches!(key.kind, Kind::Bytes { .. }) || (matches!(key.kind, Kind::Number { .. }) && !key.unit.is_empty());
        let has_own_row = !key.optional && key.unit != "tokens";
        if is_amount && has_own_row {
            assert!(!key.too_small.is_empty() || path.ends_with("buffer_pool_size"), "{path} says what too small does");
            assert!(!key.too_large.is_empty(), "{path} says what too large does");
        }
        for (suffix, unit) in [("_ms", "ms"), ("_seconds", "seconds"), ("_bytes", "bytes"), ("_bytes_max", "bytes")] {
            if path.ends_with(suffix) {
                assert_eq!(key.unit, unit, "{path}");
            }
        }
    }
    let paths: BTreeSet<String> = all_keys().into_iter().map(|(path, _)| path).collect();
    assert!(paths.len() > 100, "{}", paths.len());
}

#[test]
fn every_value_the_table_allows_fits_its_field() {
    let mut tried = 0;
    for (path, key) in table().keys() {
        let texts: Vec<String> = match key.kind {
            Kind::Bool => vec!["true".to_owned(), "false".to_owned()],
            Kind::Number { min, max } | Kind::Bytes { min, max } => vec![min.to_string(), max.to_string()],
            Kind::Choice { names, .. } => names.iter().map(|name| (*name).to_owned()).collect(),
            _ => continue,
        };
        for text in texts {
            let value = key.read(&text).unwrap();
            let mut layers = Layers::new(table(), "test.yaml", &no_environment);
            layers.set(path, value.clone());
            let (raw, _) = layers.finish();
            let mut spilled = RawConfig::default();
            Config::fill("", &raw).spill("", &mut spilled);
            assert_eq!(spilled.get(path).map(|given| &given.value), Some(&value), "{path}");
            tried += 1;
        }
    }
    assert!(tried > 150, "{tried}");
}

#[test]
fn properties_are_those_that_librdkafka_knows() {
    let overrides = [
        "ingestion.kafka.group_instance_id=n",
        "ingestion.kafka.prefetch_bytes_max=2097151KiB",
        "processing.buffer.max_buffer_memory=8GiB",
    ];
    let kafka = parse(TOPICS, &overrides).unwrap().config.ingestion.kafka;
    let mut client = rdkafka::ClientConfig::new();
    client.extend(kafka.consumer_properties().iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(client.create_native_config().is_ok());
    assert_eq!(client.get("queued.max.messages.kbytes"), Some("2097151"));
    for (path, property) in [
        ("ingestion.kafka.fetch_min_bytes", "fetch.min.bytes"),
        ("ingestion.kafka.fetch_max_bytes", "fetch.max.bytes"),
        ("ingestion.kafka.max_partition_fetch_bytes", "max.partition.fetch.bytes"),
        ("ingestion.kafka.consumer.session_timeout_ms", "session.timeout.ms"),
        ("ingestion.kafka.consumer.heartbeat_interval_ms", "heartbeat.interval.ms"),
        ("ingestion.kafka.consumer.max_poll_interval_ms", "max.poll.interval.ms"),
        ("ingestion.kafka.batching.fetch_wait_max_ms", "fetch.wait.max.ms"),
        ("ingestion.kafka.metadata_refresh_interval_ms", "topic.metadata.refresh.interval.ms"),
        ("ingestion.kafka.commit_strategy.interval_ms", "auto.commit.interval.ms"),
    ] {
        let (Kind::Number { min, max } | Kind::Bytes { min, max }) = table().key(path).unwrap().kind else {
            panic!("{path} is an amount")
        };
        for end in [min, max] {
            let result = rdkafka::ClientConfig::new().set(property, end.to_string()).create_native_config();
            assert!(result.is_ok(), "{path} allows {end}, which librdkafka refuses");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.yaml");
    assert!(Config::load(&missing, &[]).unwrap_err().to_string().contains("none.yaml: cannot be read"));
    let large = folder.path().join("large.yaml");
    std::fs::write(&large, vec![b'#'; 2 << 20]).unwrap();
    assert!(Config::load(&large, &[]).unwrap_err().to_string().contains("not a configuration"));
    std::fs::write(&large, [0xff, 0xfe]).unwrap();
    assert!(Config::load(&large, &[]).unwrap_err().to_string().contains("cannot be read"));
    std::fs::write(&large, TOPICS).unwrap();
    assert_eq!(Config::load(&large, &[]).unwrap().config, parse(TOPICS, &[]).unwrap().config);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_value_of_any_key_makes_the_loader_panic(position in 0_usize..1_000, text in any::<String>(), shaped in "[\\[\\]{}a-z0-9$:,* .*\"']{0,24}") {
        let table = table();
        let row = &table.rows()[position % table.rows().len()];
        for value in [&text, &shaped] {
            let _ = parse(TOPICS, &[&format!("{}={value}", row.path)]);
        }
    }

    #[test]
    fn any_number_or_text_is_read_as_written(number in 0..=u64::MAX, position in 0_usize..1_000) {
        let table = table();
        let numbers: Vec<_> = table.keys().filter(|(_, key)| matches!(key.kind, Kind::Number { .. })).collect();
        let (path, key) = numbers[position % numbers.len()];
        let Kind::Number { min, max } = key.kind else { panic!("a number") };
        let expected = (min..=max).contains(&number).then_some(Value::Number(number));
        prop_assert_eq!(key.read(&number.to_string()).ok(), expected, "{}", path);
    }
}

const STAGES: &str = r"
ingestion:
  kafka: {brokers: kafka:9092, topics: [v6.qtw.traces.*.*]}
graph:
  storage: true
  stages:
    - kafka_source
    - normalize
    - dead_letter
    - operator: redact
      from: normalize
      options: {attributes: [password, '*.token']}
    - operator: dedup_window
      name: window
    - wal_commit
    - arrow_encode
    - flight_sink
";

#[test]
fn a_graph_of_stages_is_read_and_printed_as_it_is() {
    let config = parse(STAGES, &[]).unwrap_or_else(|problems| panic!("{problems}")).config;
    let description = config.description();
    let names: Vec<&str> = description.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(
        names,
        ["kafka_source", "normalize", "dead_letter", "redact", "window", "wal_commit", "arrow_encode", "flight_sink"]
    );
    let options = &description.stages[3].options;
    assert_eq!(
        (options.list("attributes"), options.text("replacement")),
        (vec!["password".into(), "*.token".into()], "[redacted]".into())
    );
    assert!(config.has_storage() && config.has_ingest() && config.has_source());
    let again = parse(&config.to_yaml(), &[]).unwrap_or_else(|problems| panic!("{problems}")).config;
    assert_eq!(again.description(), description);
}

#[test]
fn each_mistake_in_a_graph_of_stages_is_told_with_its_line_and_key() {
    let text = STAGES
        .replace("- kafka_source\n", "- operator: kafka_source\n      options: {topic: x}\n")
        .replace("options: {attributes: [password, '*.token']}", "options: {attribute: [a], replacement: 7, remove: maybe}")
        .replace("      name: window\n", "      nam: window\n");
    let expected = [
        "test.yaml:8: graph.stages[0].options.topic: kafka_source has no options: its settings are in a section of their own",
        "test.yaml:13: graph.stages[3].options.attribute: unknown key: did you mean attributes?",
        "test.yaml:13: graph.stages[3].options.remove: value \"maybe\": must be true or false",
        "graph.stages[3].options.attributes: must be given: A list, each text that is not empty",
        "test.yaml:15: graph.stages[4].nam: unknown key: did you mean name?",
    ];
    let found = problems(&text, &[]);
    expected.iter().for_each(|expected| assert!(found.to_lowercase().contains(&expected.to_lowercase()), "{expected}:\n{found}"));
    assert_eq!(found.lines().count(), expected.len(), "{found}");
    let wired = STAGES.replace("      from: normalize\n", "      from: kafka_source\n");
    let expected = "test.yaml:11: graph.stages[3].from: value \"kafka_source\": kafka_source gives RawBatch, redact takes NormalizedBatch or UniqueBatch";
    let found = problems(&wired, &[]);
    assert!(found.contains(expected), "{found}");
}

#[test]
fn quotas_are_refused_where_messages_come_out_of_the_log_before_they_are_charged() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/wal-first.yaml")).unwrap();
    let quotas = "ingestion.quotas.file=tests/data/quotas.yaml";
    assert!(parse(&text, &[]).is_ok());
    let found = problems(&text, &[quotas]);
    assert!(found.contains("put wal_commit behind normalize, or leave the quotas out"), "{found}");
    let behind = text.replace("    - wal_commit\n", "").replace("    - arrow_encode\n", "    - wal_commit\n    - arrow_encode\n");
    assert!(parse(&behind, &[quotas]).is_ok());
}

#[test]
fn a_graph_of_stages_needs_what_its_stages_need_and_nothing_else() {
    let found = problems(&STAGES.replace("storage: true", "storage: false"), &[]);
    assert!(found.contains("storage.endpoints: graph of stages delivers to other processes"), "{found}");
    let found = problems(STAGES, &["processing.dedup_enabled=false"]);
    assert!(found.contains("a stage of the graph is a dedup_window"), "{found}");
    assert_eq!(
        problems("graph: {storage: false}", &[]),
        "test.yaml:1: graph: has no stages, and is no storage node: nothing would run"
    );
    assert!(problems("graph: {stage: []}", &[]).contains("did you mean graph.stages?"));
}
