//! Loads are stored exactly once: in one go, killed, stopped, with Kafka's memory of us deleted, on PostgreSQL and S3.

use std::process::Command;
use std::time::Duration;

use crate::kafka::Kafka;
use crate::setup::{LOG_FIRST, Setup, root, service};
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::proxy::{Network, Proxy};
use crate::support::random::Random;
use crate::support::{lake, wait};

#[test]
fn every_format_is_stored_exactly_once_and_read_by_another_reader() {
    for (signal, format, count) in
        [("traces", "otlp", 600), ("logs", "json", 6_000), ("metrics", "otlp", 300), ("logs", "otlp-json", 300)]
    {
        let Some(setup) = Setup::new(&format!("once-{format}"), signal) else { return };
        setup.generate(format, count, 11);
        let summary = setup.run_to_end().json();
        assert_eq!(summary["messages"], count, "{summary}");
        setup.verify(format, None);
        setup.audit();
    }
}

#[test]
fn a_process_killed_again_and_again_loses_and_doubles_nothing() {
    let Some(setup) = Setup::new("killed", "traces") else { return };
    setup.generate("otlp", 1_500, 12);
    // Each round is killed a little later, at a point of its own: while joining, reading, logging, delivering, publishing.
    let mut random = Random::for_test("killed");
    for mark in ["partition assigned", "flight stream open", "flight stream open", "files to index"] {
        let mut process = Process::start(["run", "--config", &setup.config(), "--until-end", "--workers", "2"]);
        process.wait_for(mark);
        wait::until_or_late(random.duration_below(Duration::from_millis(400)), || false);
        process.kill();
    }
    setup.run_to_end();
    setup.verify("otlp", None);
    setup.audit();
}

#[test]
fn a_process_whose_log_is_first_is_killed_again_and_again_and_decides_the_same_each_time() {
    let Some(mut setup) = Setup::new("first", "traces") else { return };
    setup.graph = LOG_FIRST.into();
    // Something is published in each round, and something is not.
    let setup = setup.with("storage: {rotation: {file_bytes_max: 256KiB, idle_seconds: 1}}\n");
    setup.generate("otlp", 3_000, 12);
    let mut random = Random::for_test("first");
    for (mark, workers) in
        [("partition assigned", "2"), ("files to index", "1"), ("files to index", "4"), ("files to index", "2")]
    {
        let mut process = Process::start(["run", "--config", &setup.config(), "--until-end", "--workers", workers]);
        process.wait_for(mark);
        wait::until_or_late(random.duration_below(Duration::from_millis(400)), || false);
        process.kill();
    }
    setup.run_to_end();
    setup.verify("otlp", None);
    setup.audit();
}

#[test]
fn rows_have_the_tenant_of_their_topic_after_a_kill_too() {
    let Some(setup) = Setup::new("owned", "traces") else { return };
    setup.generate("otlp", 600, 21);
    let run = ["run", "--config", &setup.config(), "--until-end", "--workers", "2", "--json"];
    let run = run.iter().chain(&["--set", "ingestion.tenants={from: topic, topic_position: 3}"]);
    let mut process = Process::start(run.clone());
    process.wait_for("flight stream open");
    process.kill();
    let summary = openwit(run).expect(0).json();
    assert!(summary["tenants"].as_object().is_some_and(|tenants| tenants.keys().all(|tenant| tenant == "owned")), "{summary}");
    setup.verify_tenants("otlp", "topic:3");
    setup.audit();
}

#[test]
fn sigterm_ends_with_zero_and_the_next_start_goes_on() {
    let Some(setup) = Setup::new("stopped", "traces") else { return };
    setup.generate("otlp", 1_000, 13);
    let mut process = Process::start(["run", "--config", &setup.config(), "--workers", "2"]);
    assert!(process.wait_for("flight stream open"));
    process.signal(libc::SIGTERM);
    process.wait(PATIENCE).expect(0);
    setup.audit();
    setup.run_to_end();
    setup.verify("otlp", None);
}

#[test]
fn without_kafkas_memory_of_the_group_nothing_is_stored_twice() {
    let Some(setup) = Setup::new("forgotten", "logs") else { return };
    setup.generate("json", 3_000, 14);
    setup.run_to_end();
    // Another group stands for one whose offsets were deleted: Kafka knows nothing, the catalog knows all.
    let other = Setup { group: format!("{}-again", setup.group), ..setup };
    let summary = other.run_to_end().json();
    assert_eq!((&summary["messages"], &summary["rows"]), (&0.into(), &0.into()), "{summary}");
    other.audit();
}

/// Kills a process under way, changes what Kafka knows of its group by `forget`, and starts it again.
fn check_killed_and_forgotten(test: &str, forget: impl Fn(&Setup)) {
    let Some(setup) = Setup::new(test, "traces") else { return };
    setup.generate("otlp", 800, 17);
    let mut process = Process::start(["run", "--config", &setup.config(), "--until-end", "--workers", "2"]);
    process.wait_for("flight stream open");
    process.kill();
    forget(&setup);
    setup.run_to_end();
    setup.verify("otlp", None);
    setup.audit();
    // And once more when all is stored: nothing is read again.
    forget(&setup);
    let summary = setup.run_to_end().json();
    assert_eq!((&summary["messages"], &summary["rows"]), (&0.into(), &0.into()), "{summary}");
    setup.audit();
}

#[test]
fn killed_and_without_the_groups_offsets_nothing_is_stored_twice() {
    check_killed_and_forgotten("offsets-deleted", |setup| {
        // Refused while the killed member counts as one.
        let deleted = || Kafka::at(&setup.brokers).delete_group(&setup.group);
        wait::until("the group to be deleted", PATIENCE, deleted);
    });
}

#[test]
fn killed_and_with_the_group_reset_to_the_beginning_nothing_is_stored_twice() {
    check_killed_and_forgotten("group-reset", |setup| {
        let reset = || Kafka::at(&setup.brokers).reset_group(&setup.group, &setup.topic, 8);
        wait::until("the group to be reset", PATIENCE, reset);
    });
}

#[test]
fn the_catalog_in_postgresql_and_files_in_s3_are_as_exact() {
    let Some((setup, objects)) = Setup::in_postgres_and_s3("postgres-s3", "traces") else { return };
    setup.generate("otlp", 800, 15);
    let mut process = Process::start(["run", "--config", &setup.config(), "--until-end", "--workers", "2"]);
    process.wait_for("flight stream open");
    process.kill();
    setup.run_to_end();
    setup.verify("otlp", Some(&objects));
    setup.audit();
}

#[test]
fn a_process_killed_in_the_middle_of_an_upload_in_parts_leaves_no_object_and_its_rows_are_stored_once() {
    let test = "killed-upload";
    let needed = ["OPENWIT_TEST_S3_ENDPOINT", "OPENWIT_TEST_S3_BUCKET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let found: Vec<String> = needed.iter().filter_map(|variable| service(test, variable)).collect();
    let [endpoint, bucket, key, secret] = &found[..] else { return };
    let Some(setup) = Setup::new(test, "traces") else { return };
    let (store, prefix) = (Proxy::start(endpoint.trim_start_matches("http://")), setup.group.clone());
    // One file of several parts, one part at a time.
    let part_bytes = 5 << 20;
    let setup = setup.with(&format!(
        "storage:\n  rotation: {{idle_seconds: 3600, age_max_seconds: 3600}}\n  parquet: {{compression: none}}\n  upload: {{chunk_bytes: \
         {part_bytes}, chunks_concurrent: 1}}\n  object_store: {{scheme: s3, bucket: {bucket}, endpoint: \"http://{}\", access_key_id: {key}, \
         secret_access_key: {secret}, prefix: {prefix}}}\n",
        store.address()
    ));
    let load = ["--format", "otlp", "--signal", "traces", "--count", "3000", "--message-bytes", "20000", "--seed", "17"];
    openwit(["generate", "--brokers", &setup.brokers, "--topic", &setup.topic].iter().chain(&load)).expect(0);
    // Some hundred pieces of what the proxy carries at once: the moment between two parts lasts long enough to be met.
    store.set(Network::Slow(Duration::from_millis(3)));
    let mut process = Process::start(["run", "--config", &setup.config(), "--until-end", "--workers", "1"]);
    wait::until("the first part to be sent, and some of the second", PATIENCE, || {
        assert!(!process.has_ended(), "{} bytes sent:\n{}", store.sent(), process.stderr());
        store.sent() > part_bytes * 5 / 4
    });
    store.set(Network::Stalled);
    assert!(process.kill());
    let file = lake::files(&setup.path("data/storage"), ".parquet").into_iter().map(|path| path.metadata().unwrap().len()).max();
    let sent = store.sent();
    assert!(file.is_some_and(|bytes| bytes > sent && bytes > 2 * part_bytes), "a file of {file:?} bytes, {sent} bytes sent");
    store.set(Network::Whole);
    let objects = || openwit(["audit", "--config", &setup.config(), "--json"]).json()["files"].as_u64();
    assert_eq!(objects(), Some(0), "nothing is published");
    setup.run_to_end();
    setup.verify("otlp", Some(&format!("s3://{bucket}/{prefix}")));
    setup.audit();
    // Neither an object too many nor one too few.
    openwit(["janitor", "--config", &setup.config()]).expect(0);
}

#[test]
fn ingest_and_storage_as_two_processes_survive_the_death_of_storage() {
    let Some(setup) = Setup::new("split", "traces") else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    drop(listener);
    setup.generate("otlp", 1_000, 16);
    let config = setup.config();
    let metastore = service("split", "OPENWIT_TEST_POSTGRES");
    let Some(postgres) = metastore else { return };
    let schema = setup.schema();
    let common = [
        format!("metastore={{type: postgres, url: \"{postgres}\", schema: {schema}}}"),
        format!("service_ports.arrow_flight={port}"),
    ];
    let storage =
        || Process::start(["run", "--config", &config, "--set", "graph=storage", "--set", &common[0], "--set", &common[1]]);
    let mut first = storage();
    assert!(first.wait_for("Arrow Flight is served"));
    let endpoints = format!("storage.endpoints=[\"http://127.0.0.1:{port}\"]");
    let ingest_data = format!("node.data_directory={}", setup.path("ingest").display());
    let mut ingest = Process::start([
        "run",
        "--config",
        &config,
        "--set",
        "graph=ingest",
        "--set",
        &common[0],
        "--set",
        &endpoints,
        "--set",
        &ingest_data,
        "--until-end",
    ]);
    ingest.wait_for("flight stream open");
    first.kill();
    let second = storage();
    ingest.wait(PATIENCE).expect(0);
    second.signal(libc::SIGTERM);
    second.wait(PATIENCE).expect(0);
    let audited = openwit(["audit", "--config", &config, "--set", &common[0], "--json"]).expect(0).json();
    assert_eq!(audited["balance"]["covered"], 1_000, "{audited}");
}

#[test]
fn the_checker_itself_can_fail() {
    let Some(python) = service("verify_selftest.py", "OPENWIT_TEST_PYTHON") else { return };
    let Some(_) = service("verify_selftest.py", "OPENWIT_TEST_KAFKA") else { return };
    let checked = Command::new(python).arg(root().join("tests/tools/verify_selftest.py")).output().expect("python can be run");
    assert!(checked.status.success(), "{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
}
