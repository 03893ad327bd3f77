//! Topics that change under a running process on a real broker: partitions added, topics created that a pattern matches.

use crate::kafka::Kafka;
use crate::setup::Setup;
use crate::support::binary::{PATIENCE, Process, openwit};
use crate::support::wait;

/// Sends distinct traces to the first `partitions` of `topic`.
fn generate(setup: &Setup, topic: &str, partitions: &str, count: &str, seed: &str) {
    let to = ["generate", "--brokers", &setup.brokers, "--topic", topic, "--partitions", partitions];
    openwit(to.iter().chain(&["--format", "otlp", "--count", count, "--seed", seed])).expect(0);
}

#[test]
fn partitions_added_and_topics_created_under_a_running_process_are_read_whole() {
    let Some(mut setup) = Setup::new("growing", "traces") else { return };
    let kafka = Kafka::at(&setup.brokers);
    let (first, later) = (setup.topic.clone(), format!("{}-later", setup.topic));
    setup.topic = format!("{first}*");
    generate(&setup, &first, "8", "80", "41");
    let config = setup.config();
    let sets = ["ingestion.kafka.metadata_refresh_interval_ms=300", "ingestion.kafka.consumer_type=high_performance"];
    let mut ingest = Process::start(["run", "--config", &config, "--set", sets[0], "--set", sets[1]]);
    assert!(ingest.wait_for("flight stream open"));
    assert!(kafka.add_partitions(&first, 12));
    generate(&setup, &first, "12", "120", "42");
    assert!(kafka.create_topic(&later, 2));
    generate(&setup, &later, "2", "40", "43");
    let committed = |topic: &str| kafka.committed(&setup.group, topic).into_iter().flatten().sum::<i64>();
    wait::until("all of them to be committed", PATIENCE, || (committed(&first), committed(&later)) == (200, 40));
    ingest.signal(libc::SIGTERM);
    let ended = ingest.wait(PATIENCE).expect(0);
    assert!(ended.stderr.contains(&format!("{first}[11]")), "{}", ended.stderr);
    let audited = openwit(["audit", "--config", &config, "--json"]).expect(0).json();
    assert_eq!((&audited["balance"]["missing"], &audited["balance"]["doubled"]), (&0.into(), &0.into()), "{audited}");
}
