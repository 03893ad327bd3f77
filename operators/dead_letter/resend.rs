//! Sends letters' messages back to Kafka, each once, and knows up to where all are acked.
//!
//! The producer is idempotent with acks=all: what librdkafka retries on its own is neither doubled nor reordered. What comes back with
//! an error is not sent again here, for it may have arrived; it ends the run, which tells the place up to which all is acked. One
//! exception: Kafka refuses a batch as too large as a whole, and such a refusal wrote nothing. So those of the batch are sent once more,
//! one by one; what is refused alone is too large for its topic, is named, and the others go on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use tracing::warn;

use super::letter;
use super::read::Place;

/// How long librdkafka tries before a message counts as not delivered.
const DELIVERY_TIMEOUT_MS: &str = "60000";
/// How long brokers may take to name their topics.
const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// Messages on their way. Enough for full batches on each connection; kept whole until acked.
const IN_FLIGHT_MAX: usize = 10_000;
/// Bytes of those; one message alone may be larger.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Small, for a batch must fit a topic of small messages, and a refused one costs a round trip for each of its messages.
const BATCH_BYTES: &str = "65536";
/// How long one look for acks waits.
const POLL: Duration = Duration::from_millis(20);

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where its letter lies.
    pub place: Place,
    /// Where it goes.
    pub topic: String,
    /// The partition; `None`, or one that the topic does not have, lets the key decide.
    pub partition: Option<i32>,
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original payload.
    pub payload: Option<Vec<u8>>,
    /// The original headers and the replay's.
    pub headers: Vec<letter::Header>,
    /// The timestamp; `None` is the time of sending.
    pub timestamp_ms: Option<i64>,
}

impl Message {
    /// Bytes of key, payload and headers.
    pub fn bytes(&self) -> usize {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + length(value)).sum();
        length(&self.key) + length(&self.payload) + headers
    }
}

/// Why messages were not sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The producer could not be made.
    #[error("making a producer to replay dead letters")]
    Client(#[source] KafkaError),
    /// Brokers did not say what topics there are.
    #[error("asking the brokers for topic {topic}")]
    Metadata {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// The topic does not exist.
    #[error("topic {topic}, to which letter {place} goes back, does not exist: create it, or choose another with --to")]
    NoTopic {
        /// The topic.
        topic: String,
        /// The letter.
        place: Place,
    },
    /// The message is larger than the topic takes.
    #[error(
        "letter {place} of {bytes} bytes is larger than topic {topic} takes: raise its max.message.bytes, then replay this one"
    )]
    TooLarge {
        /// The letter.
        place: Place,
        /// The topic.
        topic: String,
        /// Bytes of key, payload and headers.
        bytes: usize,
    },
    /// Kafka did not ack the message; it may have arrived.
    #[error("sending letter {place} to topic {topic}")]
    Delivery {
        /// The letter.
        place: Place,
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
}

/// How far a replay got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages acked.
    pub acked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// All letters up to this one are acked, refused by name, or left out.
    pub done_to: Option<Place>,
    /// Messages acked behind that place: going on from there sends them a second time.
    pub acked_behind: u64,
}

/// Up to where all is done, of letters that are done in any order.
#[derive(Debug, Default)]
struct Ledger {
    open: VecDeque<Entry>,
    next_id: u64,
    done_to: Option<Place>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    place: Place,
    is_done: bool,
    is_acked: bool,
}

impl Ledger {
    /// A letter that is sent.
    fn begin(&mut self, place: Place) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.open.push_back(Entry { id, place, is_done: false, is_acked: false });
        id
    }

    /// A letter that is left out. A long row of these takes the room of one.
    fn pass(&mut self, place: Place) {
        match self.open.back_mut() {
            None => self.done_to = Some(place),
            Some(last) if last.is_done && !last.is_acked => last.place = place,
            Some(_) => {
                let id = self.begin(place);
                self.done(id, false);
            }
        }
    }

    fn done(&mut self, id: u64, is_acked: bool) {
        if let Ok(at) = self.open.binary_search_by_key(&id, |entry| entry.id) {
            (self.open[at].is_done, self.open[at].is_acked) = (true, is_acked);
        }
        while self.open.front().is_some_and(|entry| entry.is_done) {
            self.done_to = self.open.pop_front().map(|entry| entry.place);
        }
    }

    fn acked_behind(&self) -> u64 {
        self.open.iter().filter(|entry| entry.is_acked).count() as u64
    }
}

/// What librdkafka reports, in its order.
type Reports = Arc<Mutex<Vec<(u64, Option<KafkaError>)>>>;

struct Context(Reports);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        // Lost connections are retried by librdkafka; what it gives up comes back with its message.
        warn!(%error, reason, "replay producer");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: usize) {
        let error = result.as_ref().err().map(|(error, _)| error.clone());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((id as u64, error));
    }
}

/// Sends messages and waits for their acks.
pub struct Resender {
    producer: BaseProducer<Context>,
    reports: Reports,
    ledger: Ledger,
    /// Messages without a final report, and their bytes.
    unsettled: BTreeMap<u64, Message>,
    unsettled_bytes: usize,
    /// How many of those librdkafka has.
    flying: usize,
    /// Those that were refused as too large in a batch.
    suspects: VecDeque<u64>,
    /// The suspect that flies alone.
    alone: Option<u64>,
    /// Partitions of the topics met.
    partitions: BTreeMap<String, i32>,
    acked: BTreeMap<String, u64>,
    bytes: u64,
    refused: Vec<Error>,
    /// True after an error that ends the run, and the error until it is told.
    is_broken: bool,
    error: Option<Error>,
}

impl Resender {
    /// Makes the producer by librdkafka settings as the source of the pipeline has them.
    pub fn open(client: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut config = ClientConfig::new();
        config.extend(client.clone());
        config.set("enable.idempotence", "true").set("acks", "all").set("delivery.timeout.ms", DELIVERY_TIMEOUT_MS);
        // The limit is the topic's, not the client's. The partitioner is that of Kafka's own clients.
        config.set("message.max.bytes", "1000000000").set("batch.size", BATCH_BYTES).set("partitioner", "murmur2_random");
        let reports = Reports::default();
        let producer = config.create_with_context(Context(reports.clone())).map_err(Error::Client)?;
        Ok(Resender {
            producer,
            reports,
            ledger: Ledger::default(),
            unsettled: BTreeMap::new(),
            unsettled_bytes: 0,
            flying: 0,
            suspects: VecDeque::new(),
            alone: None,
            partitions: BTreeMap::new(),
            acked: BTreeMap::new(),
            bytes: 0,
            refused: Vec::new(),
            is_broken: false,
            error: None,
        })
    }

    /// Notes a letter that is not sent.
    pub fn pass(&mut self, place: Place) {
        self.ledger.pass(place);
    }

    /// Sends a message, as soon as there is room for one more on its way. After an error nothing more is sent.
    pub fn send(&mut self, mut message: Message) -> Result<(), Error> {
        let partitions = self.partitions_of(&message.topic, &message.place)?;
        message.partition = message.partition.filter(|partition| (0..partitions).contains(partition));
        self.step(Duration::ZERO);
        while self.unsettled.len() >= IN_FLIGHT_MAX || self.unsettled_bytes >= IN_FLIGHT_BYTES_MAX {
            self.check()?;
            self.step(POLL);
        }
        self.check()?;
        let id = self.ledger.begin(message.place.clone());
        self.unsettled_bytes += message.bytes();
        self.unsettled.insert(id, message);
        self.launch(id);
        self.check()
    }

    /// Waits until every message has its report, which librdkafka gives within `DELIVERY_TIMEOUT_MS`.
    pub fn settle(&mut self) -> Result<(), Error> {
        while self.flying > 0 || (!self.is_broken && !self.suspects.is_empty()) {
            self.step(POLL);
        }
        self.check()
    }

    /// How far it got.
    pub fn progress(&self) -> Progress {
        let (done_to, acked_behind) = (self.ledger.done_to.clone(), self.ledger.acked_behind());
        Progress { acked: self.acked.values().sum(), bytes: self.bytes, done_to, acked_behind }
    }

    /// Messages acked, by topic.
    pub fn acked(&self) -> &BTreeMap<String, u64> {
        &self.acked
    }

    /// Letters refused since the last call, that others do not suffer from.
    pub fn take_refused(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.refused)
    }

    /// How many partitions a topic has. Asks for all topics, as asking for one by name may create it.
    pub fn partitions_of(&mut self, topic: &str, place: &Place) -> Result<i32, Error> {
        if let Some(partitions) = self.partitions.get(topic) {
            return Ok(*partitions);
        }
        let metadata = self.producer.client().fetch_metadata(None, METADATA_TIMEOUT);
        let metadata = metadata.map_err(|source| Error::Metadata { topic: topic.to_owned(), source })?;
        self.partitions = metadata.topics().iter().map(|one| (one.name().to_owned(), one.partitions().len() as i32)).collect();
        let found = self.partitions.get(topic).copied().filter(|partitions| *partitions > 0);
        found.ok_or_else(|| Error::NoTopic { topic: topic.to_owned(), place: place.clone() })
    }

    /// The error that ends the run, told once: others are its consequences.
    fn check(&mut self) -> Result<(), Error> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn step(&mut self, wait: Duration) {
        self.producer.poll(wait);
        let reports = std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, error) in reports {
            self.flying -= 1;
            match error {
                None => drop(self.finish(id, true)),
                Some(error) => self.failed(id, error),
            }
        }
        if self.flying == 0
            && !self.is_broken
            && let Some(id) = self.suspects.pop_front()
        {
            self.alone = Some(id);
            self.launch(id);
        }
    }

    fn finish(&mut self, id: u64, is_acked: bool) -> Option<Message> {
        let message = self.unsettled.remove(&id)?;
        self.unsettled_bytes -= message.bytes();
        if is_acked {
            *self.acked.entry(message.topic.clone()).or_default() += 1;
            self.bytes += message.bytes() as u64;
        }
        self.ledger.done(id, is_acked);
        Some(message)
    }

    fn failed(&mut self, id: u64, source: KafkaError) {
        if source.rdkafka_error_code() != Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            let Some(message) = self.unsettled.get(&id) else { return };
            let (place, topic) = (message.place.clone(), message.topic.clone());
            if !self.is_broken {
                (self.is_broken, self.error) = (true, Some(Error::Delivery { place, topic, source }));
            }
        } else if self.alone == Some(id) {
            let Some(message) = self.finish(id, false) else { return };
            let bytes = message.bytes();
            self.refused.push(Error::TooLarge { place: message.place, topic: message.topic, bytes });
        } else {
            self.suspects.push_back(id);
        }
    }

    /// Hands a message to librdkafka, whose queue holds more than may be on its way here.
    fn launch(&mut self, id: u64) {
        let Some(message) = self.unsettled.get(&id) else { return };
        let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
        for (name, value) in &message.headers {
            headers = headers.insert(Header { key: &String::from_utf8_lossy(name), value: value.as_deref() });
        }
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&message.topic, id as usize).headers(headers);
        (record.key, record.payload) = (message.key.as_deref(), message.payload.as_deref());
        record.partition = message.partition;
        // For librdkafka 0 is "now", and times before 1970 do not exist.
        record.timestamp = message.timestamp_ms.filter(|&time| time > 0);
        match self.producer.send(record).map_err(|(error, _)| error) {
            Ok(()) => self.flying += 1,
            Err(error) => self.failed(id, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: i64) -> Place {
        Place::Message { partition: 0, offset }
    }

    #[test]
    fn a_place_is_done_only_when_all_before_it_are() {
        let mut ledger = Ledger::default();
        ledger.pass(place(0));
        assert_eq!(ledger.done_to, Some(place(0)));
        let ids: Vec<u64> = (1..4).map(|offset| ledger.begin(place(offset))).collect();
        (4..1_000).for_each(|offset| ledger.pass(place(offset)));
        assert_eq!(ledger.open.len(), 4, "letters left out take the room of one");
        let last = ledger.begin(place(1_000));
        ledger.done(ids[1], true);
        ledger.done(last, true);
        assert_eq!((ledger.done_to.clone(), ledger.acked_behind()), (Some(place(0)), 2));
        ledger.done(ids[0], true);
        assert_eq!((ledger.done_to.clone(), ledger.acked_behind()), (Some(place(2)), 1));
        ledger.done(ids[2], false);
        assert_eq!((ledger.done_to.clone(), ledger.acked_behind()), (Some(place(1_000)), 0));
        assert!(ledger.open.is_empty());
    }
}
