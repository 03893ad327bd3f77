//! What Kafka says of a record: the partition's offsets, the group's commit, and what is at the offset.

use std::time::{Duration, Instant};

use openwit_operators::kafka_client;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;

use super::super::Failure;
use super::Place;
use crate::config::Config;
use crate::plan::consumer_properties;

/// How long the broker may take to answer one question.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one look at the consumer waits.
const POLL: Duration = Duration::from_millis(100);

/// What Kafka says.
#[derive(Clone, Debug, Serialize)]
pub struct Kafka {
    /// The cluster's id.
    pub cluster: String,
    /// First offset that it still has.
    pub low: i64,
    /// One past the last offset that readers are given: before the first transaction that is open.
    pub high: i64,
    /// The group's committed offset.
    pub committed: Option<i64>,
    /// What is at the offset.
    pub message: Message,
}

/// What is at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Message {
    /// A message.
    There {
        /// Its payload.
        payload_bytes: usize,
        /// Its time, in Unix milliseconds.
        timestamp_ms: Option<i64>,
    },
    /// A message without a payload.
    Tombstone,
    /// No message, though the partition goes on: compacted away, of an aborted transaction, or a transaction's marker.
    Absent,
    /// Retention has removed it.
    Removed,
    /// Nothing was written there yet, or in a transaction that is open.
    NotWritten,
    /// The broker did not give it in time.
    Unknown,
}

/// Asks Kafka; `None` where it has no such partition.
pub fn ask(config: &Config, place: &Place, notes: &mut Vec<String>) -> Result<Option<Kafka>, Failure> {
    let failed = |doing: &str, error: KafkaError| Failure::fault(format!("{doing}: {error}; --offline answers without Kafka"));
    let (mut client, login) = kafka_client::settings(&consumer_properties(config));
    // One message is wanted, and nobody's partitions.
    client.set("enable.partition.eof", "true").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "100");
    client.remove("group.instance.id");
    let consumer: BaseConsumer = client.create().map_err(|error| failed("creating a Kafka client", error))?;
    login.begin(consumer.client());
    // Asking for all topics does not create the one that is missing, asking for one may.
    let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(|error| failed("reading topic metadata", error))?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == place.topic);
    if !topic.is_some_and(|topic| topic.partitions().iter().any(|partition| partition.id() == place.partition)) {
        notes.push(format!("Kafka has no partition {}[{}]", place.topic, place.partition));
        return Ok(None);
    }
    let cluster = consumer.client().fetch_cluster_id(PATIENCE).unwrap_or_default();
    let mut list = TopicPartitionList::new();
    list.add_partition(&place.topic, place.partition);
    let committed = consumer.committed_offsets(list, PATIENCE).map_err(|error| failed("reading committed offsets", error))?;
    let committed = committed.elements().first().and_then(|element| match element.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    });
    let (low, high) = consumer
        .fetch_watermarks(&place.topic, place.partition, PATIENCE)
        .map_err(|error| failed("reading the partition's offsets", error))?;
    let message = match place.offset {
        offset if offset < low => Message::Removed,
        offset if offset >= high => Message::NotWritten,
        _ => read(&consumer, place, high).map_err(|error| failed("reading the message", error))?,
    };
    Ok(Some(Kafka { cluster, low, high, committed, message }))
}

/// The message at the offset. No group is joined.
fn read(consumer: &BaseConsumer, place: &Place, high: i64) -> Result<Message, KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&place.topic, place.partition, Offset::Offset(place.offset))?;
    consumer.assign(&list)?;
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        match consumer.poll(POLL) {
            Some(Ok(message)) if message.offset() == place.offset => {
                let timestamp_ms = message.timestamp().to_millis();
                return Ok(message
                    .payload()
                    .map_or(Message::Tombstone, |payload| Message::There { payload_bytes: payload.len(), timestamp_ms }));
            }
            // The next one, or the end.
            Some(Ok(message)) if message.offset() > place.offset => return Ok(Message::Absent),
            Some(Err(KafkaError::PartitionEOF(_))) if place.offset < high => return Ok(Message::Absent),
            // A broker that is away is tried again by the client.
            Some(_) | None => {}
        }
    }
    Ok(Message::Unknown)
}
