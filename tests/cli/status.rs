//! `/healthz` and `/status` of a process, and `graph --live`, from the start to the end of it.

use std::net::TcpListener;

use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::Topic;
use tempfile::TempDir;

use crate::support::binary::{PATIENCE, Process};
use crate::support::proxy::{Network, Proxy};
use crate::support::wait;
use crate::{DONE, FAULT, Loaded, TOPIC, USAGE, line};

/// Where a process serves its status, as it says itself.
fn url(process: &mut Process) -> String {
    assert!(process.wait_for("status over HTTP is served"), "{}", process.stderr());
    let said = process.stderr();
    let said = said.lines().find(|line| line.contains("status over HTTP is served")).unwrap();
    format!("http://{}", said.rsplit_once("address=").unwrap().1.trim())
}

#[test]
fn a_process_tells_where_it_is_from_its_start_on_and_graph_live_draws_it() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(&Topic { name: TOPIC.into(), partitions: 2 }).unwrap();
    let loaded = Loaded { broker, folder: TempDir::new().unwrap() };
    let proxy = Proxy::start(loaded.broker.brokers());
    proxy.set(Network::Cut);
    let brokers = format!("ingestion.kafka.brokers={}", proxy.address());
    let mut process = Process::start(loaded.arguments(&["run"], &[brokers]));
    let url = url(&mut process);
    let live = || line(&format!("graph --live --once --url {url}"));
    // No broker answers yet.
    let stages = ["kafka_source", "normalize", "wal_commit", "flight_sink", "parquet_roll", "catalog_commit"];
    wait::until("all stages to be told", PATIENCE, || {
        let drawn = live().expect(DONE).stdout;
        assert!(drawn.starts_with("openwit-ingest local: "), "{drawn}");
        stages.iter().all(|stage| drawn.lines().any(|line| line.starts_with(stage)))
    });
    proxy.set(Network::Whole);
    line(&format!("generate --brokers {} --topic {TOPIC} --count 60 --seed 4", loaded.broker.brokers())).expect(DONE);
    wait::until("everything to be read and logged", PATIENCE, || {
        let drawn = live().expect(DONE).stdout;
        let is_done = |stage: &str| drawn.lines().any(|line| line.starts_with(stage) && line.contains(" s               0"));
        drawn.contains("running") && is_done("kafka_source") && is_done("wal_commit")
    });
    // It goes on until it is interrupted, and a stop of the process is no reason to end.
    let mut watching = Process::start(["graph", "--live", "--url", &url]);
    process.signal(libc::SIGTERM);
    process.wait(PATIENCE).expect(DONE);
    assert!(!watching.has_ended());
    watching.signal(libc::SIGKILL);
    let gone = live().expect(FAULT);
    assert!(gone.stderr.contains(&url) && gone.stderr.contains("does the process run"), "{}", gone.stderr);
}

#[test]
fn a_port_that_is_in_use_is_named_with_its_key_before_anything_starts() {
    let loaded = Loaded::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = Process::start(loaded.arguments(&["run"], &[format!("service_ports.admin={port}")])).wait(PATIENCE);
    let stderr = refused.expect(FAULT).stderr;
    assert!(stderr.contains("service_ports.admin: 127.0.0.1:") && stderr.contains("a port of its own"), "{stderr}");
    assert!(!loaded.folder.path().join("wal").exists());
    let unknown = loaded.with_config(&["graph", "--live", "--once"]).expect(USAGE);
    assert!(unknown.stderr.contains("service_ports.admin is 0"), "{}", unknown.stderr);
}
