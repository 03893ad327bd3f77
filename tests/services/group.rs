//! A group of processes, and what they share.

use std::path::PathBuf;
use std::process::Command;

use crate::setup::{Setup, root, service};
use crate::support::addresses;
use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::support::wait;

/// A killed member is missed after two seconds.
const SESSION: [&str; 4] =
    ["--set", "ingestion.kafka.consumer.session_timeout_ms=2000", "--set", "ingestion.kafka.consumer.heartbeat_interval_ms=300"];

/// Ingest processes of one group, each with a log of its own, and the storage process they deliver to; the catalog is in PostgreSQL.
pub struct Group {
    setup: Setup,
    storage: Process,
    /// What nodes run, and where they deliver to, as `--set` takes it.
    graph: Vec<String>,
    /// Those that run.
    pub nodes: Vec<Option<Process>>,
    /// The addresses of the nodes as a timely cluster.
    hostfile: Option<PathBuf>,
}

impl Group {
    pub fn new(test: &str, nodes: usize) -> Option<Self> {
        let postgres = service(test, "OPENWIT_TEST_POSTGRES")?;
        let setup = Setup::new(test, "traces")?;
        let schema = setup.schema();
        let setup = setup.with(&format!(
            "metastore: {{type: postgres, url: \"{postgres}\", schema: {schema}}}\nstorage: {{rotation: {{idle_seconds: 1}}}}\n"
        ));
        let mut storage = Process::start(["run", "--config", &setup.config(), "--set", "graph=storage"]);
        assert!(storage.wait_for("Arrow Flight is served address="));
        let said = storage.stderr();
        let address = said.split("Arrow Flight is served address=").nth(1).and_then(|rest| rest.split_whitespace().next());
        let endpoint = format!("storage.endpoints=[\"http://{}\"]", address.expect("it says where"));
        let graph = vec!["graph=ingest".to_owned(), endpoint];
        Some(Group { setup, storage, graph, nodes: (0..nodes).map(|_| None).collect(), hostfile: None })
    }

    /// The same whose nodes are one timely cluster.
    pub fn cluster(test: &str, nodes: usize) -> Option<Self> {
        let group = Group::new(test, nodes)?;
        let hostfile = group.setup.path("hosts");
        std::fs::write(&hostfile, addresses::hostfile(nodes)).expect("the folder is writable");
        Some(Group { hostfile: Some(hostfile), ..group })
    }

    /// The same whose nodes have a graph that stores by itself, all into the folder of the storage process, which has nothing to do.
    pub fn storing(mut self, graph: &str) -> Self {
        let objects = self.setup.path("data/objects");
        self.graph = vec![format!("graph={graph}"), format!("storage.object_store.root={}", objects.display())];
        self
    }

    fn arguments(&self, node: usize) -> Vec<String> {
        let folder = self.setup.path(&format!("node-{node}"));
        let own = [format!("node.id=node-{node}"), format!("node.data_directory={}", folder.display())];
        let run = ["run", "--config", &self.setup.config(), "--workers", "2"].map(str::to_owned);
        let own = self.graph.iter().cloned().chain(own).flat_map(|set| ["--set".to_owned(), set]);
        let cluster = self.hostfile.iter().flat_map(|hostfile| {
            let (processes, hostfile) = (self.nodes.len().to_string(), hostfile.display().to_string());
            ["--processes".to_owned(), processes, "--process".to_owned(), node.to_string(), "--hostfile".to_owned(), hostfile]
        });
        run.into_iter().chain(own).chain(SESSION.map(str::to_owned)).chain(cluster).collect()
    }

    pub fn start(&mut self, node: usize) -> &mut Process {
        let arguments = self.arguments(node);
        self.nodes[node].insert(Process::start(arguments))
    }

    /// Starts a node that the group is to give partitions.
    pub fn join(&mut self, node: usize) {
        self.start(node);
        self.wait_for_partitions(node);
    }

    /// Starts all of them, and waits until each has partitions.
    pub fn join_all(&mut self) {
        // Each of these writes the configuration: none may be reading it.
        let arguments: Vec<Vec<String>> = (0..self.nodes.len()).map(|node| self.arguments(node)).collect();
        self.nodes = arguments.into_iter().map(|arguments| Some(Process::start(arguments))).collect();
        (0..self.nodes.len()).for_each(|node| self.wait_for_partitions(node));
    }

    /// Runs all of them until what is in the topic is published.
    pub fn run_to_end(&self) -> Vec<Finished> {
        let all = (0..self.nodes.len()).map(|node| self.arguments(node));
        let all: Vec<Vec<String>> =
            all.map(|own| own.into_iter().chain(["--until-end", "--json"].map(str::to_owned)).collect()).collect();
        let started: Vec<Process> = all.into_iter().map(Process::start).collect();
        started.into_iter().map(|process| process.wait(PATIENCE)).collect()
    }

    fn wait_for_partitions(&self, node: usize) {
        let process = self.nodes[node].as_ref().expect("it was started");
        if !wait::until_or_late(PATIENCE, || process.stderr().contains("partition assigned")) {
            panic!("node {node} was given no partition:\n{}", self.state());
        }
    }

    /// What the group and all nodes say.
    pub fn state(&self) -> String {
        let said = self.nodes.iter().enumerate().map(|(node, process)| {
            let said = process.as_ref().map_or_else(|| "does not run".to_owned(), Process::stderr);
            format!("node {node}:\n{said}\n")
        });
        said.fold(self.described(), |text, node| text + "\n" + &node)
    }

    pub fn kill(&mut self, node: usize) {
        assert!(self.nodes[node].take().is_some_and(Process::kill), "node {node} has ended by itself");
    }

    /// Asks a node to stop: it publishes all it has read, and ends well.
    pub fn stop(&mut self, node: usize) -> String {
        let process = self.nodes[node].take().expect("the node runs");
        process.signal(libc::SIGTERM);
        process.wait(PATIENCE).expect(0).stderr
    }

    /// Sends `count` distinct messages, the same ones for the same seed, each to the same partition.
    pub fn generate(&self, count: u64, seed: u64, rate: u64) -> Process {
        self.generate_with_duplicates(count, seed, rate, 0)
    }

    /// The same with some percent of duplicates among them, in partitions other than those of what they repeat.
    pub fn generate_with_duplicates(&self, count: u64, seed: u64, rate: u64, percent: u64) -> Process {
        let duplicates = percent.to_string();
        let (count, seed, rate) = (count.to_string(), seed.to_string(), rate.to_string());
        let Setup { brokers, topic, .. } = &self.setup;
        let load = [
            "--count",
            &count,
            "--seed",
            &seed,
            "--rate",
            &rate,
            "--duplicates",
            &duplicates,
            "--invalid",
            "0",
            "--start-time",
            "2026-01-01T00:00:00Z",
            "--json",
        ];
        Process::start(["generate", "--brokers", brokers, "--topic", topic, "--format", "otlp"].iter().chain(&load))
    }

    /// What Kafka says of the group.
    pub fn described(&self) -> String {
        let described = Command::new(root().join("scripts/services")).args(["group", "describe", &self.setup.group]).output();
        let described = described.expect("scripts/services can be run");
        String::from_utf8_lossy(&described.stdout).into_owned() + &String::from_utf8_lossy(&described.stderr)
    }

    /// True if every partition has a commit, and none has a message behind it.
    pub fn is_read(&self) -> bool {
        let described = self.described();
        let lags = described.lines().skip(2).filter_map(|line| line.split('\t').nth(4));
        lags.filter(|lag| *lag == "0").count() == 8
    }

    pub fn wait_until_read(&mut self) {
        if !wait::until_or_late(PATIENCE, || self.is_read()) {
            panic!("not all messages were committed:\n{}", self.state());
        }
    }

    /// Everything stored once, nothing unaccounted for: what the catalog says of all messages.
    pub fn check(self) -> serde_json::Value {
        self.storage.signal(libc::SIGTERM);
        self.storage.wait(PATIENCE).expect(0);
        self.setup.verify("otlp", None);
        openwit(["audit", "--config", &self.setup.config(), "--json"]).expect(0).json()
    }
}
