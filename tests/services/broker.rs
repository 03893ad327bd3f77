//! A broker that dies, hangs, forgets what is old, or loses a topic: what it still has is stored once, what is gone is told.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::kafka::Kafka;
use crate::setup::{Setup, root, service};
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::random::Random;
use crate::support::wait;

/// A broker of one test's own, which may be killed: nobody else leans on it. Stopped when dropped.
struct OwnBroker(tempfile::TempDir);

impl OwnBroker {
    /// `None` where there is no Kafka at all.
    fn start(test: &str) -> Option<Self> {
        service(test, "OPENWIT_TEST_KAFKA")?;
        let broker = OwnBroker(tempfile::tempdir().expect("a temporary folder"));
        broker.services(&["up", "--require", "kafka"]);
        Some(broker)
    }

    fn services(&self, args: &[&str]) -> String {
        let ran = Command::new(root().join("scripts/services")).args(args).env("OPENWIT_SERVICES_DIR", self.folder()).output();
        let ran = ran.expect("scripts/services can be run");
        assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn address(&self) -> String {
        let environment = self.services(&["env"]);
        let line = environment.lines().find_map(|line| line.strip_prefix("export OPENWIT_TEST_KAFKA="));
        line.expect("Kafka is up").to_owned()
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        let _ = Command::new(root().join("scripts/services")).arg("down").env("OPENWIT_SERVICES_DIR", self.folder()).output();
    }
}

fn generate(setup: &Setup, count: u64, seed: u64, more: &[&str]) -> Process {
    let (count, seed) = (count.to_string(), seed.to_string());
    let Setup { brokers, topic, .. } = setup;
    let load = ["--format", "otlp", "--count", &count, "--seed", &seed];
    Process::start(["generate", "--brokers", brokers, "--topic", topic].iter().chain(&load).chain(more))
}

#[test]
fn a_broker_killed_and_paused_under_load_costs_nothing_but_time() {
    let Some(broker) = OwnBroker::start("broker-killed") else { return };
    let mut random = Random::for_test("a_broker_killed_and_paused_under_load_costs_nothing_but_time");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (brokers, topic) = (broker.address(), "v6.qtw.traces.broker-killed.one".to_owned());
    let setup = Setup {
        brokers,
        topic,
        group: "broker-killed".into(),
        folder,
        signal: "traces",
        graph: "standalone".into(),
        extra: String::new(),
    };
    assert!(Kafka::at(&setup.brokers).create_topic(&setup.topic, 8));
    let session = "ingestion.kafka.consumer.session_timeout_ms=2000";
    let mut ingest = Process::start(["run", "--config", &setup.config(), "--workers", "2", "--set", session]);
    let sending = generate(&setup, 1_200, 31, &["--rate", "150"]);
    for (take, give_back) in [("kill", "restart"), ("pause", "resume")] {
        assert!(ingest.wait_for("flight stream open"));
        wait::until_or_late(random.duration_below(Duration::from_millis(800)), || false);
        broker.services(&[take, "kafka"]);
        // Longer than the session, so that a paused broker throws the member out when it wakes up.
        wait::until_or_late(Duration::from_millis(2_000) + random.duration_below(Duration::from_secs(1)), || false);
        broker.services(&[give_back, "kafka"]);
    }
    sending.wait(PATIENCE).expect(0);
    assert!(!ingest.has_ended(), "{}", ingest.stderr());
    ingest.signal(libc::SIGTERM);
    let ended = ingest.wait(PATIENCE).expect(0);
    assert!(ended.stderr.contains("kafka client"), "the outage is told:\n{}", ended.stderr);
    setup.run_to_end();
    setup.verify("otlp", None);
    setup.audit();
}

#[test]
fn messages_that_retention_removed_before_they_were_read_are_told() {
    let Some(setup) = Setup::new("retention", "traces") else { return };
    let kafka = Kafka::at(&setup.brokers);
    generate(&setup, 80, 32, &["--partitions", "1"]).wait(PATIENCE).expect(0);
    // A session longer than the pause: the partition stays where it is.
    let session = "ingestion.kafka.consumer.session_timeout_ms=100000";
    let mut ingest = Process::start(["run", "--config", &setup.config(), "--workers", "1", "--set", session]);
    assert!(ingest.wait_for("flight stream open"));
    // Hung, while messages come and go again: its position is gone when it wakes up.
    ingest.signal(libc::SIGSTOP);
    generate(&setup, 3_000, 33, &["--partitions", "1", "--message-bytes", "20000"]).wait(PATIENCE).expect(0);
    assert!(kafka.delete_records(&setup.topic, 0, 3_000));
    ingest.signal(libc::SIGCONT);
    assert!(ingest.wait_for("the broker's retention removed offsets before they were read"));
    // What is left of them is read.
    wait::until("what is left to be committed", PATIENCE, || crate::disks::committed(&setup) == "3080");
    ingest.signal(libc::SIGTERM);
    let ended = ingest.wait(PATIENCE).expect(0);
    let told = ended.stderr.lines().find(|line| line.contains("retention removed")).expect("it was seen");
    assert!(told.contains("from=80 to=3000"), "{told}");
    assert!(!ended.stderr.contains("partitions revoked"), "{}", ended.stderr);
    // What was still there is stored, what is gone is missing and not taken for absent.
    let audited = openwit(["audit", "--config", &setup.config(), "--json"]).json();
    let balance = &audited["balance"];
    assert_eq!((&balance["missing"], &balance["doubled"]), (&2_920.into(), &0.into()), "{audited}");
}

#[test]
fn a_run_that_is_to_stop_at_lost_messages_reads_and_commits_nothing_behind_them() {
    let Some(setup) = Setup::new("lost-stop", "traces") else { return };
    let kafka = Kafka::at(&setup.brokers);
    let stop = "ingestion.kafka.lost_offsets=stop";
    let session = "ingestion.kafka.consumer.session_timeout_ms=100000";
    let one_partition = |count, seed| generate(&setup, count, seed, &["--partitions", "1"]).wait(PATIENCE).expect(0);
    one_partition(80, 38);
    // Under a running process, that hangs meanwhile.
    let ingest = Process::start(["run", "--config", &setup.config(), "--workers", "1", "--set", session, "--set", stop]);
    let committed = |messages: u64| {
        wait::until("offsets to be committed", PATIENCE, || crate::disks::committed(&setup) == messages.to_string());
    };
    committed(80);
    ingest.signal(libc::SIGSTOP);
    one_partition(3_000, 39);
    assert!(kafka.delete_records(&setup.topic, 0, 3_000));
    ingest.signal(libc::SIGCONT);
    let ended = ingest.wait(PATIENCE).expect(1);
    assert!(ended.stderr.contains("removed offsets 80 to 2999"), "{}", ended.stderr);
    committed(80);
    // At a start.
    let ended = openwit(["run", "--config", &setup.config(), "--until-end", "--set", stop]).expect(1);
    assert!(ended.stderr.contains("removed offsets 80 to 2999"), "{}", ended.stderr);
    committed(80);
    // Somebody decides to go on.
    openwit(["run", "--config", &setup.config(), "--until-end"]).expect(3);
    committed(3_080);
}

#[test]
fn a_topic_deleted_and_created_anew_is_stored_beside_the_former_one() {
    let Some(setup) = Setup::new("recreated", "traces") else { return };
    let kafka = Kafka::at(&setup.brokers);
    generate(&setup, 240, 35, &[]).wait(PATIENCE).expect(0);
    setup.run_to_end();
    setup.verify("otlp", None);
    assert!(kafka.delete_topic(&setup.topic));
    wait::until("the topic to be created anew", PATIENCE, || kafka.create_topic(&setup.topic, 8));
    generate(&setup, 160, 36, &[]).wait(PATIENCE).expect(0);
    let finished = setup.run_to_end();
    assert!(finished.stderr.contains("the topic was deleted and created anew"), "{}", finished.stderr);
    assert_eq!(finished.json()["messages"], 160);
    assert_eq!(crate::disks::committed(&setup), "160");
    setup.audit();
    // Longer than the former one by now, and still not taken for it.
    generate(&setup, 240, 37, &[]).wait(PATIENCE).expect(0);
    assert_eq!(setup.run_to_end().json()["messages"], 240);
    setup.audit();
}

/// The broker forgets the offsets of a deleted topic when it gets to it: before the topic is created anew, or after it is read again.
#[test]
fn a_topic_created_anew_under_a_running_process_is_read_and_committed_from_its_beginning() {
    let Some(setup) = Setup::new("recreated-live", "traces") else { return };
    let kafka = Kafka::at(&setup.brokers);
    let committed = |offsets: &str| {
        let what = format!("offsets up to {offsets} to be committed");
        wait::until(&what, PATIENCE, || crate::disks::committed(&setup) == offsets);
    };
    generate(&setup, 240, 35, &[]).wait(PATIENCE).expect(0);
    let quickly = ["--set", "ingestion.kafka.metadata_refresh_interval_ms=500"];
    let ingest = Process::start(["run", "--config", &setup.config()].into_iter().chain(quickly));
    committed("240");
    for (messages, seed, waits) in [(160, 36, false), (80, 37, true)] {
        assert!(kafka.delete_topic(&setup.topic));
        if waits {
            committed("0");
        }
        wait::until("the topic to be created anew", PATIENCE, || kafka.create_topic(&setup.topic, 8));
        generate(&setup, messages, seed, &[]).wait(PATIENCE).expect(0);
        committed(&messages.to_string());
    }
    ingest.signal(libc::SIGTERM);
    let ended = ingest.wait(PATIENCE).expect(0);
    assert!(ended.stderr.contains("the topic was deleted and created anew"), "{}", ended.stderr);
    setup.audit();
}
