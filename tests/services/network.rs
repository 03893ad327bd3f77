//! The network between ingest and storage, storage and S3, storage and PostgreSQL: cut, stalled, slow, half open. Nothing is lost or
//! doubled, and it goes on by itself.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::setup::{Setup, service};
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::proxy::{Network, Proxy};
use crate::support::wait;

/// How long each state of the network lasts where nothing tells that it had its effect.
const WHILE: Duration = Duration::from_millis(700);

/// Long against a local round trip, short against every timeout.
const SLOW: Network = Network::Slow(Duration::from_millis(20));

fn keep(proxy: &Proxy, network: Network) {
    proxy.set(network);
    wait::until_or_late(WHILE, || false);
}

#[test]
fn a_network_between_ingest_and_storage_that_is_cut_stalled_slow_or_half_open_loses_and_doubles_nothing() {
    let Some(setup) = Setup::new("cut-flight", "traces") else { return };
    let Some(postgres) = service("cut-flight", "OPENWIT_TEST_POSTGRES") else { return };
    let schema = setup.schema();
    // Small deliveries, so that each state of the network meets some; commits soon, so that acks are under way, too.
    let setup = setup.with(&format!(
        "metastore: {{type: postgres, url: \"{postgres}\", schema: {schema}}}\nprocessing: {{flush_size_messages: 20}}\nstorage: \
         {{rotation: {{file_bytes_max: 64KiB}}}}\n"
    ));
    setup.generate("otlp", 400, 31);
    let config = setup.config();
    let mut storage = Process::start(["run", "--config", &config, "--set", "graph=storage"]);
    assert!(storage.wait_for("Arrow Flight is served"), "{}", storage.stderr());
    let proxy = Proxy::start(&served_at(&storage.stderr()));
    proxy.set(Network::Cut);
    let endpoints = format!("storage.endpoints=[\"http://{}\"]", proxy.address());
    let data = format!("node.data_directory={}", setup.path("ingest").display());
    let common = ["run", "--config", &config, "--set", "graph=ingest", "--set", &endpoints, "--set", &data];
    let mut ingest = Process::start(common);
    ingest.wait_for("flight send failed, trying again");
    keep(&proxy, Network::Stalled);
    proxy.set(Network::Deaf);
    wait::until("storage has answered and nobody heard", PATIENCE, || proxy.lost() > 0);
    proxy.set(Network::Whole);
    ingest.wait_for("flight stream open");
    setup.generate("otlp", 400, 32);
    keep(&proxy, SLOW);
    setup.generate("otlp", 400, 33);
    proxy.set(Network::Deaf);
    keep(&proxy, Network::Cut);
    proxy.set(Network::Whole);
    ingest.signal(libc::SIGTERM);
    ingest.wait(PATIENCE).expect(0);
    // What the stop left in Kafka is read now.
    openwit(common.iter().copied().chain(["--until-end"])).expect(0);
    storage.signal(libc::SIGTERM);
    storage.wait(PATIENCE).expect(0);
    let audited = openwit(["audit", "--config", &config, "--json"]).expect(0).json();
    assert_eq!(audited["balance"]["covered"], 1_200, "{audited}");
    let letters = setup.path("ingest/dead-letter");
    setup.verify_letters("otlp", None, &letters);
}

/// A member of the group that takes its share of the partitions, and gives them back when it is dropped.
fn another_member(setup: &Setup) -> BaseConsumer {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &setup.brokers).set("group.id", &setup.group).set("enable.auto.commit", "false");
    let member: BaseConsumer =
        client.set("partition.assignment.strategy", "cooperative-sticky").create().expect("the settings are valid");
    member.subscribe(&[&setup.topic]).expect("the topic's name is valid");
    wait::until("the other member to have partitions", PATIENCE, || {
        // What it reads is of no interest: it commits nothing.
        drop(member.poll(Duration::from_millis(100)));
        member.assignment().is_ok_and(|assigned| assigned.count() > 0)
    });
    member
}

#[test]
fn a_catalog_away_when_partitions_are_assigned_is_waited_for_unless_the_process_is_stopped() {
    let test = "cut-assign";
    let Some(postgres) = service(test, "OPENWIT_TEST_POSTGRES") else { return };
    let Some(setup) = Setup::new(test, "traces") else { return };
    let (host, database) = postgres.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a URL with a user");
    let (catalog, schema) = (Proxy::start(host), setup.schema());
    let setup = setup.with(&format!(
        "metastore: {{type: postgres, url: \"postgresql://postgres@{}/{database}\", schema: {schema}}}\nstorage: {{rotation: \
         {{idle_seconds: 1}}}}\n",
        catalog.address()
    ));
    setup.generate("otlp", 300, 35);
    let process = Process::start(["run", "--config", &setup.config(), "--workers", "2"]);
    let is_published = |count: u64| {
        openwit(["audit", "--config", &setup.config(), "--json"]).json()["balance"]["covered"].as_u64() == Some(count)
    };
    let waits = |process: &Process| process.stderr().matches("reading the catalog's coverage failed, trying again").count();
    wait::until("the first load to be published", PATIENCE, || is_published(300));
    let member = another_member(&setup);
    catalog.set(Network::Cut);
    drop(member);
    wait::until("the process to wait for the catalog", PATIENCE, || waits(&process) > 0);
    setup.generate("otlp", 300, 36);
    catalog.set(Network::Whole);
    wait::until("the second load to be published", PATIENCE, || is_published(600));
    // Once more, and stopped: nothing is open, so nothing needs the catalog.
    let member = another_member(&setup);
    let before = waits(&process);
    catalog.set(Network::Cut);
    drop(member);
    wait::until("the process to wait for the catalog", PATIENCE, || waits(&process) > before);
    process.signal(libc::SIGTERM);
    let ended = process.wait(PATIENCE).expect(0);
    assert!(ended.stderr.contains("stopping, the partitions assigned last are not read"), "{}", ended.stderr);
    catalog.set(Network::Whole);
    setup.generate("otlp", 100, 37);
    setup.run_to_end();
    setup.verify("otlp", None);
    setup.audit();
}

/// The address in the log line that says where Flight is served.
fn served_at(stderr: &str) -> String {
    let (_, rest) = stderr.split_once("Arrow Flight is served address=").expect("the line names the address");
    rest.split_whitespace().next().expect("an address").to_owned()
}

#[test]
fn s3_and_postgresql_that_cannot_be_reached_hold_publication_and_lose_nothing() {
    let needed = [
        "OPENWIT_TEST_POSTGRES",
        "OPENWIT_TEST_S3_ENDPOINT",
        "OPENWIT_TEST_S3_BUCKET",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    ];
    let found: Vec<String> = needed.iter().filter_map(|variable| service("cut-stores", variable)).collect();
    let [postgres, endpoint, bucket, key, secret] = &found[..] else { return };
    let Some(setup) = Setup::new("cut-stores", "traces") else { return };
    let (host, database) = postgres.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/')).expect("a URL with a user");
    let (catalog, store) = (Proxy::start(host), Proxy::start(endpoint.trim_start_matches("http://")));
    let (prefix, schema) = (setup.group.clone(), setup.schema());
    let setup = setup.with(&format!(
        "metastore: {{type: postgres, url: \"postgresql://postgres@{}/{database}\", schema: {schema}}}\nstorage:\n  rotation: \
         {{file_bytes_max: 64KiB}}\n  upload: {{attempts_max: 2, backoff_ms: 50, backoff_max_ms: 200}}\n  object_store: {{scheme: s3, bucket: \
         {bucket}, endpoint: \"http://{}\", access_key_id: {key}, secret_access_key: {secret}, prefix: {prefix}}}\n",
        catalog.address(),
        store.address()
    ));
    setup.generate("otlp", 600, 34);
    catalog.set(Network::Cut);
    store.set(Network::Cut);
    let mut process = Process::start(["run", "--config", &setup.config(), "--workers", "2", "--until-end"]);
    assert!(process.wait_for("the catalog cannot be reached, trying again"), "{}", process.stderr());
    catalog.set(Network::Whole);
    // The object store first: files wait locally, the catalog hears of none.
    assert!(process.wait_for("upload failed, trying again"), "{}", process.stderr());
    let audited = openwit(["audit", "--config", &setup.config(), "--json"]).json();
    assert_eq!(audited["files"], 0, "nothing is published before its files are there: {audited}");
    // Then the catalog: the files are uploaded, their commits wait.
    catalog.set(Network::Cut);
    store.set(SLOW);
    assert!(process.wait_for(" doing="), "{}", process.stderr());
    // An answer that is lost: was the commit written or not? It is sent again, and known.
    catalog.set(Network::Deaf);
    wait::until("PostgreSQL has answered and nobody heard", PATIENCE, || catalog.lost() > 0);
    keep(&store, Network::Stalled);
    for proxy in [&catalog, &store] {
        proxy.set(Network::Whole);
    }
    process.wait(PATIENCE).expect(0);
    setup.verify("otlp", Some(&format!("s3://{bucket}/{prefix}")));
    setup.audit();
}
