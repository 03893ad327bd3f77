//! Brokers that answer with errors, go away and come back: reading and committing go on, nothing is lost or doubled.

use std::sync::atomic::Ordering::Relaxed;

use openwit_ingest::config::Config;
use openwit_ingest::generate::{Format, Plan};
use openwit_operators::batch::Signal;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

use super::pipeline::{INDEX, PATIENCE, Running, Until, config_at, delivered, load, run_to_the_end, send_when, sent};

/// A cluster of three brokers that holds a load.
fn cluster() -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Plan) {
    let load = load(&format!("v6.qtw.traces.{INDEX}.eu"), Signal::Traces, Format::Otlp);
    let cluster = MockCluster::new(3).unwrap();
    for topic in &load.topics {
        cluster.create_topic(&topic.name, topic.partitions, 1).unwrap();
    }
    send_when(&cluster.bootstrap_servers(), &load, |_| true);
    (cluster, load)
}

/// The sum of the offsets that the group has committed; 0 while its brokers do not tell.
fn committed(config: &Config, load: &Plan) -> i64 {
    let kafka = &config.ingestion.kafka;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", kafka.brokers.join(",")).set("group.id", &kafka.group_id);
    let consumer: BaseConsumer = client.create().unwrap();
    let mut partitions = TopicPartitionList::new();
    for topic in &load.topics {
        partitions.add_partition_range(&topic.name, 0, topic.partitions - 1);
    }
    let committed = consumer.committed_offsets(partitions, PATIENCE);
    committed.map_or(0, |list| list.elements().iter().filter_map(|at| at.offset().to_raw()).filter(|at| *at > 0).sum())
}

#[test]
fn brokers_that_answer_with_errors_cost_nothing_but_time() {
    use RDKafkaRespErr::*;
    let (cluster, load) = cluster();
    let folder = TempDir::new().unwrap();
    let config = config_at(&cluster.bootstrap_servers(), &load, &folder);
    let errors: [(RDKafkaApiKey, &[RDKafkaRespErr]); 6] = [
        (RDKafkaApiKey::JoinGroup, &[RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, RD_KAFKA_RESP_ERR_NOT_COORDINATOR]),
        (RDKafkaApiKey::SyncGroup, &[RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS]),
        (RDKafkaApiKey::OffsetFetch, &[RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, RD_KAFKA_RESP_ERR_NOT_COORDINATOR]),
        (RDKafkaApiKey::ListOffsets, &[RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION]),
        (
            RDKafkaApiKey::Fetch,
            &[
                RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
                RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
                RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
            ],
        ),
        (
            RDKafkaApiKey::OffsetCommit,
            &[
                RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
                RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
                RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            ],
        ),
    ];
    for (request, errors) in errors {
        cluster.request_errors(request, errors);
    }
    Running::start(&config, 2, Until::End).finish();
    delivered(&config, &sent(&load));
}

#[test]
fn brokers_that_go_away_and_coordinators_that_move_cost_nothing_but_time() {
    let (cluster, load) = cluster();
    let folder = TempDir::new().unwrap();
    let config = config_at(&cluster.bootstrap_servers(), &load, &folder);
    for broker in 2..=3 {
        cluster.broker_down(broker).unwrap();
    }
    // Only the partitions of the first broker can be read.
    let mut running = Running::start(&config, 2, Until::Stopped);
    cluster.coordinator(MockCoordinator::Group(config.ingestion.kafka.group_id.clone()), 1).unwrap();
    for broker in 2..=3 {
        cluster.broker_up(broker).unwrap();
    }
    let all = load.count.unwrap() as i64;
    running.wait_for("the first messages", |positions| positions.emitted > 0);
    cluster.coordinator(MockCoordinator::Group(config.ingestion.kafka.group_id.clone()), 2).unwrap();
    cluster.broker_down(1).unwrap();
    cluster.broker_up(1).unwrap();
    running.wait_for("all messages in the graph", |positions| positions.emitted == all);
    running.wait_for("all offsets to be committable", |positions| positions.committable == all);
    // Before the stop: a process that its group misses at that moment, as one may on a busy machine, has nothing to commit any more.
    running.wait_for("all offsets to be committed", |_| committed(&config, &load) == all);
    running.stop();
    delivered(&config, &sent(&load));
}

#[test]
fn a_broker_away_at_a_stop_is_given_up_and_the_next_run_reads_nothing_again() {
    let (cluster, load) = cluster();
    let folder = TempDir::new().unwrap();
    let mut config = config_at(&cluster.bootstrap_servers(), &load, &folder);
    // Nothing is committed before the stop.
    config.ingestion.kafka.commit_strategy.interval_ms = 3_600_000;
    let all = load.count.unwrap() as i64;
    let mut running = Running::start(&config, 2, Until::Stopped);
    running.wait_for("all offsets to be committable", |positions| positions.committable == all);
    (1..=3).for_each(|broker| cluster.broker_down(broker).unwrap());
    running.control().stop();
    let fault = running.fault().to_string();
    assert!(fault.starts_with("kafka_source: committing offsets at stop: "), "{fault}");
    (1..=3).for_each(|broker| cluster.broker_up(broker).unwrap());
    let control = run_to_the_end(&config, 2);
    assert_eq!(control.counters.source.messages.load(Relaxed), 0, "the catalog knows what the group does not");
    delivered(&config, &sent(&load));
}
