//! Changes what Kafka knows of the consumer group, behind the pipeline's back.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::node::GROUP;

/// Killed members stay in the group for their session timeout, and the broker may be away itself.
const PATIENCE: Duration = Duration::from_secs(180);
const ONE_ANSWER: Duration = Duration::from_secs(10);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(500);

/// Deletes the group's offsets, or sets them all to the beginning. The group's members must be dead; until Kafka knows they are, it is
/// asked again.
pub fn reset(brokers: &str, to_the_beginning: bool) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let attempted = if to_the_beginning { rewind(brokers) } else { delete(brokers) };
        match attempted {
            Ok(()) => return Ok(()),
            Err(error) if since.elapsed() > PATIENCE => return Err(error).context("changing the group"),
            Err(_) => std::thread::sleep(BETWEEN_ATTEMPTS),
        }
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", GROUP).set("client.id", "soak-group");
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Critical);
    config
}

fn delete(brokers: &str) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
    let options = AdminOptions::new().request_timeout(Some(ONE_ANSWER));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for result in runtime.block_on(admin.delete_groups(&[GROUP], &options))? {
        match result {
            // It never committed.
            Err((_, rdkafka::types::RDKafkaErrorCode::GroupIdNotFound)) => {}
            result => {
                result.map_err(|(group, code)| anyhow::anyhow!("deleting {group}: {code}"))?;
            }
        }
    }
    Ok(())
}

fn rewind(brokers: &str) -> anyhow::Result<()> {
    let consumer: BaseConsumer = client(brokers).create()?;
    let metadata = consumer.fetch_metadata(None, ONE_ANSWER)?;
    let mut list = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| topic.name().starts_with("v6.soak.")) {
        for partition in topic.partitions() {
            list.add_partition_offset(topic.name(), partition.id(), Offset::Offset(0))?;
        }
    }
    // Kafka takes a commit from outside only while the group has no members.
    Ok(consumer.commit(&list, CommitMode::Sync)?)
}
