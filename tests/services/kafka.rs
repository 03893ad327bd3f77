//! What tests do to a broker by its own protocol.

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::Offset;

use crate::support::binary::PATIENCE;

/// A cluster and a runtime to wait for its answers.
pub struct Kafka {
    brokers: String,
    admin: AdminClient<DefaultClientContext>,
    runtime: tokio::runtime::Runtime,
}

impl Kafka {
    /// The cluster at `brokers`.
    pub fn at(brokers: &str) -> Self {
        let admin = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("the settings are valid");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
        Kafka { brokers: brokers.to_owned(), admin, runtime }
    }

    /// Creates a topic; true once that has succeeded.
    pub fn create_topic(&self, name: &str, partitions: i32) -> bool {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let created = self.runtime.block_on(self.admin.create_topics([&topic], &AdminOptions::new()));
        created.is_ok_and(|results| results.iter().all(Result::is_ok))
    }

    /// Gives a topic as many partitions as `count`; true once that has succeeded.
    pub fn add_partitions(&self, name: &str, count: usize) -> bool {
        let added = self.runtime.block_on(self.admin.create_partitions(&[NewPartitions::new(name, count)], &AdminOptions::new()));
        added.is_ok_and(|results| results.iter().all(Result::is_ok))
    }

    /// Changes a setting of a topic; true once that has succeeded.
    pub fn set_topic(&self, name: &str, setting: &str, value: &str) -> bool {
        let change = AlterConfig::new(ResourceSpecifier::Topic(name)).set(setting, value);
        let changed = self.runtime.block_on(self.admin.alter_configs([&change], &AdminOptions::new()));
        changed.is_ok_and(|results| results.iter().all(Result::is_ok))
    }

    /// Deletes a topic; true once that has succeeded.
    pub fn delete_topic(&self, name: &str) -> bool {
        let deleted = self.runtime.block_on(self.admin.delete_topics(&[name], &AdminOptions::new()));
        deleted.is_ok_and(|results| results.iter().all(Result::is_ok))
    }

    /// Deletes a group with its offsets; false while it has members.
    pub fn delete_group(&self, group: &str) -> bool {
        let deleted = self.runtime.block_on(self.admin.delete_groups(&[group], &AdminOptions::new()));
        deleted.is_ok_and(|results| results.iter().all(Result::is_ok))
    }

    /// Commits offset 0 for all partitions; false while the group has members.
    pub fn reset_group(&self, group: &str, topic: &str, partitions: i32) -> bool {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .create()
            .expect("the settings are valid");
        let mut offsets = TopicPartitionList::new();
        for partition in 0..partitions {
            offsets.add_partition_offset(topic, partition, Offset::Offset(0)).expect("0 is an offset");
        }
        consumer.commit(&offsets, CommitMode::Sync).is_ok()
    }

    /// The offsets that a group has committed, by partition.
    pub fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .create()
            .expect("the settings are valid");
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the broker answers");
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(topic, 0, metadata.topics()[0].partitions().len() as i32 - 1);
        let committed = consumer.committed_offsets(partitions, PATIENCE).expect("the broker answers");
        committed.elements().iter().map(|element| element.offset().to_raw().filter(|offset| *offset >= 0)).collect()
    }

    /// Deletes all messages of a partition before `offset`, as retention would; true once that has succeeded.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("it is an offset");
        let deleted = self.runtime.block_on(self.admin.delete_records(&before, &AdminOptions::new()));
        deleted.is_ok_and(|list| list.elements().iter().all(|element| element.error().is_ok()))
    }
}
