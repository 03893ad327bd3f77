//! The dead letter as a Kafka topic: the original message, with the reason and its source in headers.
//!
//! ```text
//! key, payload, headers, timestamp    as they were
//! openwit.reason openwit.detail openwit.cluster openwit.topic openwit.partition openwit.offset openwit.timestamp_ms
//! ```
//!
//! At least once: after a crash a message may be there twice, told apart by topic, partition and offset in the headers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::{Error, Kept, Sink};
use crate::batch::{Reject, headers};

/// How long one message may take to be acked before the sink reports an error, and tries again.
const DELIVERY_TIMEOUT_MS: &str = "30000";
/// How long one look for acks waits.
const POLL: Duration = Duration::from_millis(10);

type Reports = Arc<Mutex<Vec<(usize, Result<(), KafkaError>)>>>;

/// Takes delivery reports, each with the position of its reject in the group.
struct Context {
    reports: Reports,
}

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, position: usize) {
        let result = result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone());
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).push((position, result));
    }
}

/// Sends letters to a topic.
pub struct KafkaSink {
    topic: String,
    producer: BaseProducer<Context>,
    reports: Reports,
}

impl KafkaSink {
    /// A producer for `topic`; the broker is reached with the first letter.
    pub fn open(topic: &str, client: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut config = ClientConfig::new();
        for (name, value) in client {
            config.set(name, value);
        }
        let owned = [("enable.idempotence", "true"), ("acks", "all"), ("message.timeout.ms", DELIVERY_TIMEOUT_MS)];
        for (name, value) in owned {
            config.set(name, value);
        }
        // Rejects may be as large as what consumers take.
        config.set("message.max.bytes", "1000000000");
        let reports = Reports::default();
        let producer = config.create_with_context(Context { reports: reports.clone() });
        let producer = producer.map_err(|source| Error::Kafka { topic: topic.into(), source })?;
        Ok(KafkaSink { topic: topic.into(), producer, reports })
    }

    fn send(&self, position: usize, reject: &Reject) -> Result<(), KafkaError> {
        let headers = headers_of(reject);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, position).headers(headers);
        if let Some(key) = reject.record.key {
            record = record.key(key.of(&reject.arena));
        }
        if let Some(payload) = reject.record.payload {
            record = record.payload(payload.of(&reject.arena));
        }
        if reject.record.timestamp_ms >= 0 {
            record = record.timestamp(reject.record.timestamp_ms);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.producer.poll(POLL);
                    record = back;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn take_reports(&self) -> Vec<(usize, Result<(), KafkaError>)> {
        std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn failed(&self, source: KafkaError, reject: &Reject) -> Error {
        match source.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
                let bytes = reject.record.payload.map_or(0, |payload| payload.len as usize);
                Error::TooLarge { topic: self.topic.clone(), bytes }
            }
            _ => Error::Kafka { topic: self.topic.clone(), source },
        }
    }
}

fn headers_of(reject: &Reject) -> OwnedHeaders {
    let mut owned = OwnedHeaders::new();
    for (name, value) in headers(reject.record.headers.of(&reject.arena)) {
        // The client takes header names as text; a name that is none is shown lossily.
        let name = String::from_utf8_lossy(name);
        owned = owned.insert(Header { key: &name, value });
    }
    let partition = &reject.partition;
    let added = [
        ("openwit.reason", reject.reason.code().to_owned()),
        ("openwit.detail", reject.detail.clone()),
        ("openwit.cluster", partition.topic.cluster.to_string()),
        ("openwit.topic", partition.topic.name.to_string()),
        ("openwit.partition", partition.partition.to_string()),
        ("openwit.offset", reject.record.offset.to_string()),
        ("openwit.timestamp_ms", reject.record.timestamp_ms.to_string()),
    ];
    added.iter().fold(owned, |owned, (key, value)| owned.insert(Header { key, value: Some(value) }))
}

impl Sink for KafkaSink {
    fn keep(&mut self, rejects: &[Reject]) -> Result<Kept, Error> {
        // Reports of a group given up before would be taken for this one's.
        drop(self.take_reports());
        let mut outstanding: BTreeSet<usize> = BTreeSet::new();
        let mut first_error = None;
        for (position, reject) in rejects.iter().enumerate() {
            match self.send(position, reject) {
                Ok(()) => drop(outstanding.insert(position)),
                Err(error) => drop(first_error.get_or_insert(self.failed(error, reject))),
            }
        }
        // Every message is reported within the delivery timeout, as acked or as failed.
        while !outstanding.is_empty() {
            self.producer.poll(POLL);
            for (position, result) in self.take_reports() {
                outstanding.remove(&position);
                if let Err(error) = result {
                    first_error.get_or_insert(self.failed(error, &rejects[position]));
                }
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(Kept { written: rejects.len() as u64, repeated: 0 }),
        }
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        // Nothing is outstanding after `keep`; this lets the client close its connections.
        let _ = self.producer.flush(Duration::from_secs(1));
    }
}
