//! Several processes of one group: they join, leave, are killed, are paused; every message is stored once, its copies are dropped.

use std::process::Command;
use std::time::Duration;

use crate::setup::{Setup, root, service};
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::random::Random;
use crate::support::wait;

/// A killed member is missed after two seconds.
const SESSION: [&str; 4] =
    ["--set", "ingestion.kafka.consumer.session_timeout_ms=2000", "--set", "ingestion.kafka.consumer.heartbeat_interval_ms=300"];

/// Ingest processes of one group, each with a log of its own, and the storage process they deliver to; the catalog is in PostgreSQL.
struct Group {
    setup: Setup,
    storage: Process,
    endpoint: String,
    nodes: Vec<Option<Process>>,
}

impl Group {
    fn new(test: &str, nodes: usize) -> Option<Self> {
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
        let endpoint = format!("http://{}", address.expect("it says where"));
        Some(Group { setup, storage, endpoint, nodes: (0..nodes).map(|_| None).collect() })
    }

    fn arguments(&self, node: usize) -> Vec<String> {
        let folder = self.setup.path(&format!("node-{node}"));
        let own = [
            "graph=ingest".to_owned(),
            format!("node.id=node-{node}"),
            format!("node.data_directory={}", folder.display()),
            format!("storage.endpoints=[\"{}\"]", self.endpoint),
        ];
        let run = ["run", "--config", &self.setup.config(), "--workers", "2"].map(str::to_owned);
        let own = own.into_iter().flat_map(|set| ["--set".to_owned(), set]);
        run.into_iter().chain(own).chain(SESSION.map(str::to_owned)).collect()
    }

    fn start(&mut self, node: usize) -> &mut Process {
        let arguments = self.arguments(node);
        self.nodes[node].insert(Process::start(arguments))
    }

    /// Starts a node that the group is to give partitions.
    fn join(&mut self, node: usize) {
        self.start(node);
        let process = self.nodes[node].as_ref().expect("it was started");
        if !wait::until_or_late(PATIENCE, || process.stderr().contains("partition assigned")) {
            panic!("node {node} was given no partition:\n{}", self.state());
        }
    }

    /// What the group and all nodes say.
    fn state(&self) -> String {
        let said = self.nodes.iter().enumerate().map(|(node, process)| {
            let said = process.as_ref().map_or_else(|| "does not run".to_owned(), Process::stderr);
            format!("node {node}:\n{said}\n")
        });
        said.fold(self.described(), |text, node| text + "\n" + &node)
    }

    fn kill(&mut self, node: usize) {
        assert!(self.nodes[node].take().is_some_and(Process::kill), "node {node} has ended by itself");
    }

    /// Asks a node to stop: it publishes all it has read, and ends well.
    fn stop(&mut self, node: usize) -> String {
        let process = self.nodes[node].take().expect("the node runs");
        process.signal(libc::SIGTERM);
        process.wait(PATIENCE).expect(0).stderr
    }

    /// Sends `count` distinct messages, the same ones for the same seed, each to the same partition.
    fn generate(&self, count: u64, seed: u64, rate: u64) -> Process {
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
            "0",
            "--invalid",
            "0",
            "--start-time",
            "2026-01-01T00:00:00Z",
        ];
        Process::start(["generate", "--brokers", brokers, "--topic", topic, "--format", "otlp"].iter().chain(&load))
    }

    /// What Kafka says of the group.
    fn described(&self) -> String {
        let described = Command::new(root().join("scripts/services")).args(["group", "describe", &self.setup.group]).output();
        let described = described.expect("scripts/services can be run");
        String::from_utf8_lossy(&described.stdout).into_owned() + &String::from_utf8_lossy(&described.stderr)
    }

    /// True if every partition has a commit, and none has a message behind it.
    fn is_read(&self) -> bool {
        let described = self.described();
        let lags = described.lines().skip(2).filter_map(|line| line.split('\t').nth(4));
        lags.filter(|lag| *lag == "0").count() == 8
    }

    fn wait_until_read(&mut self) {
        if !wait::until_or_late(PATIENCE, || self.is_read()) {
            panic!("not all messages were committed:\n{}", self.state());
        }
    }

    /// Everything stored once, nothing unaccounted for: what the catalog says of all messages.
    fn check(self) -> serde_json::Value {
        self.storage.signal(libc::SIGTERM);
        self.storage.wait(PATIENCE).expect(0);
        self.setup.verify("otlp", None);
        openwit(["audit", "--config", &self.setup.config(), "--json"]).expect(0).json()
    }
}

#[test]
fn duplicates_of_what_a_killed_process_handled_are_found_by_the_next_owner() {
    let Some(mut group) = Group::new("killed-owner", 2) else { return };
    group.start(0);
    group.generate(400, 21, 10_000).wait(PATIENCE).expect(0);
    group.wait_until_read();
    group.kill(0);
    // The very same messages once more: nothing of them may be stored.
    group.generate(400, 21, 10_000).wait(PATIENCE).expect(0);
    let next = group.start(1);
    assert!(next.wait_for("dedup window warmed up from Kafka"));
    group.wait_until_read();
    group.stop(1);
    // What the killed process had logged and not published comes from its log.
    group.join(0);
    group.stop(0);
    let audited = group.check();
    assert_eq!(
        (&audited["balance"]["dispositions"]["stored"], &audited["balance"]["dispositions"]["duplicates"]),
        (&400.into(), &400.into()),
        "{audited}"
    );
}

#[test]
fn three_processes_that_join_leave_and_are_killed_store_everything_once() {
    let Some(mut group) = Group::new("three", 3) else { return };
    let mut random = Random::for_test("three_processes_that_join_leave_and_are_killed_store_everything_once");
    group.join(0);
    let (count, rate) = (1_000, 250);
    // The second load is the first one once more: all of it duplicates, of what may have been handled by any of the three.
    for _ in 0..2 {
        let mut sending = group.generate(count, 22, rate);
        while !sending.has_ended() {
            let node = random.below(3) as usize;
            match (&group.nodes[node], random.below(2)) {
                (None, _) => group.join(node),
                (Some(_), 0) => group.kill(node),
                (Some(_), _) => drop(group.stop(node)),
            }
            wait::until_or_late(random.duration_below(Duration::from_millis(800)), || sending.has_ended());
        }
        sending.wait(PATIENCE).expect(0);
    }
    // All come back, publish what their logs hold, and read the rest.
    for node in 0..3 {
        if group.nodes[node].is_none() {
            group.join(node);
        }
    }
    group.wait_until_read();
    (0..3).for_each(|node| drop(group.stop(node)));
    let audited = group.check();
    assert_eq!(
        (&audited["balance"]["dispositions"]["stored"], &audited["balance"]["dispositions"]["duplicates"]),
        (&count.into(), &count.into()),
        "{audited}"
    );
}

#[test]
fn a_process_paused_past_its_session_commits_nothing_of_what_it_lost() {
    let Some(mut group) = Group::new("paused", 2) else { return };
    group.start(0);
    let sending = group.generate(1_200, 23, 200);
    assert!(group.nodes[0].as_mut().expect("it runs").wait_for("flight stream open"));
    group.nodes[0].as_ref().expect("it runs").signal(libc::SIGSTOP);
    // Another one takes over all partitions, with messages on their way in the first.
    let next = group.start(1);
    assert!(next.wait_for("partition assigned"));
    sending.wait(PATIENCE).expect(0);
    group.wait_until_read();
    group.nodes[0].as_ref().expect("it runs").signal(libc::SIGCONT);
    assert!(group.nodes[0].as_mut().expect("it runs").wait_for("lost=true"));
    // It joins again: whatever it had stored for a commit would move the group back now.
    assert!(group.nodes[0].as_mut().expect("it runs").wait_for("partitions revoked"));
    group.wait_until_read();
    (0..2).for_each(|node| drop(group.stop(node)));
    assert!(group.is_read(), "somebody has moved the group back:\n{}", group.described());
    let audited = group.check();
    assert_eq!(audited["balance"]["dispositions"]["stored"], 1_200, "{audited}");
}
