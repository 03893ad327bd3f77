//! Several storage nodes on one catalog: others stand in for one that is away, and one that wakes up too late loses to the catalog.

use std::net::TcpListener;

use crate::disks::committed;
use crate::setup::{Setup, service};
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::wait;

/// Two storage nodes and an ingest node that delivers to both.
struct Nodes {
    setup: Setup,
    metastore: String,
    ports: [u16; 2],
}

impl Nodes {
    fn new(test: &str) -> Option<Self> {
        let postgres = service(test, "OPENWIT_TEST_POSTGRES")?;
        let setup = Setup::new(test, "traces")?;
        let metastore = format!("metastore={{type: postgres, url: \"{postgres}\", schema: {}}}", setup.schema());
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let ports = listeners.map(|listener| listener.local_addr().expect("it is bound").port());
        Some(Nodes { setup, metastore, ports })
    }

    fn start(&self, name: &str, graph: &str, sets: &[String]) -> Process {
        let mut args = vec!["run".to_owned(), "--config".into(), self.setup.config()];
        let own = [
            format!("graph={graph}"),
            format!("node={{id: {name}, data_directory: {}}}", self.setup.path(name).display()),
            format!("storage.object_store.root={}", self.setup.path("data/objects").display()),
            format!("ingestion.kafka.dead_letter.directory={}", self.setup.path("data/dead-letter").display()),
            self.metastore.clone(),
        ];
        args.extend(own.iter().chain(sets).flat_map(|set| ["--set".to_owned(), set.clone()]));
        Process::start(args)
    }

    /// Publishes what was idle for so long.
    fn storage(&self, index: usize, idle_seconds: u64) -> Process {
        let rotation = format!("storage.rotation={{idle_seconds: {idle_seconds}, age_max_seconds: 3600}}");
        let sets = [format!("service_ports.arrow_flight={}", self.ports[index]), rotation];
        let mut storage = self.start(&format!("storage-{index}"), "storage", &sets);
        assert!(storage.wait_for("Arrow Flight is served"), "{}", storage.stderr());
        storage
    }

    fn ingest(&self) -> Process {
        let [first, second] = self.ports;
        self.start(
            "ingest",
            "ingest",
            &[
                format!("storage.endpoints=[\"http://127.0.0.1:{first}\", \"http://127.0.0.1:{second}\"]"),
                "storage.failover={after_ms: 500, recover_after_ms: 600000}".into(),
            ],
        )
    }

    fn published(&self) -> u64 {
        let config = self.setup.config();
        let objects = format!("storage.object_store.root={}", self.setup.path("data/objects").display());
        let audited = openwit(["audit", "--config", &config, "--set", &self.metastore, "--set", &objects, "--json"]).json();
        assert_eq!(audited["balance"]["doubled"], 0, "{audited}");
        audited["balance"]["covered"].as_u64().expect("a number")
    }
}

#[test]
fn a_storage_node_that_hangs_is_replaced_and_loses_to_the_catalog_when_it_wakes_up() {
    let Some(nodes) = Nodes::new("storage-nodes") else { return };
    let (hanging, other) = (nodes.storage(0, 3_600), nodes.storage(1, 1));
    let mut ingest = nodes.ingest();
    nodes.setup.generate("otlp", 400, 51);
    wait::until("the load to be read", PATIENCE, || committed(&nodes.setup) == "400");
    // Both have their partitions' rows by then; only one publishes them.
    wait::until("one node's share to be published", PATIENCE, || nodes.published() > 0);
    hanging.signal(libc::SIGSTOP);
    nodes.setup.generate("otlp", 400, 52);
    assert!(ingest.wait_for("others stand in"), "{}", ingest.stderr());
    let is_published = wait::until_or_late(PATIENCE, || nodes.published() == 800);
    assert!(is_published, "published {}; ingest:\n{}\nthe other node:\n{}", nodes.published(), ingest.stderr(), other.stderr());
    // It wakes up with rows that are published by now.
    hanging.signal(libc::SIGCONT);
    hanging.signal(libc::SIGTERM);
    let ended = hanging.wait(PATIENCE).expect(0);
    assert!(ended.stderr.contains("commit given up"), "{}", ended.stderr);
    ingest.signal(libc::SIGTERM);
    ingest.wait(PATIENCE).expect(0);
    other.signal(libc::SIGTERM);
    other.wait(PATIENCE).expect(0);
    assert_eq!(nodes.published(), 800);
    nodes.setup.verify("otlp", None);
}
