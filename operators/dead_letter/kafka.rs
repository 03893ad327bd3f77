//! Dead letters in a Kafka topic: the original message with headers of ours, by an idempotent producer with acks=all.
//!
//! At least once: a letter is acked when Kafka reports it delivered, and sent again whenever that is in doubt. Nothing is dropped: what
//! fails and may succeed later waits (exponential backoff) and is sent again; the sink then fills up and refuses more
//! (`Error::Full`). What cannot succeed ends the sink with an error: a topic that may not be written to, and, by
//! `Oversize::Refuse`, a letter larger than its topic takes.
//!
//! The producer and what is sent again is `kafka_producer`'s; this sink only works in `submit`, `poll` and `flush`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use super::letter::Letter;
use super::{Error, Sink};
use crate::batch::Reject;
use crate::clock::Clock;
use crate::coverage::PartitionKey;
use crate::kafka_producer::{Courier, Form, Parcel, Settings, Trouble};

/// A bare letter keeps key and headers up to this size: well below every sensible limit of a topic.
const BARE_BYTES_MAX: usize = 64 << 10;

/// What is done with a letter that is larger than its topic takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oversize {
    /// `Error::TooLarge` ends the sink, naming the topic's limit. Nothing is lost; nothing goes on either.
    #[default]
    Refuse,
    /// It is sent without its payload, with `openwit.omitted` telling what is missing. Choose this where files hold the whole letter,
    /// or where the source topic's retention is long enough to fetch it by topic, partition and offset.
    OmitPayload,
}

/// How the Kafka sink is told to work.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The dead letter topic. It must exist or be created by the broker on first use.
    pub topic: String,
    /// librdkafka settings: `bootstrap.servers` and security as the source has them. What the guarantees rest on is set over them.
    pub client: BTreeMap<String, String>,
    /// How long librdkafka tries on its own before a letter comes back, to be sent again. Default 300,000 ms. Too small: repetitions.
    pub delivery_timeout_ms: u64,
    /// The wait before a letter that came back is sent again, doubled each time. Default 100 ms.
    pub backoff_ms: u64,
    /// The longest such wait. Default 10,000 ms.
    pub backoff_max_ms: u64,
    /// Letters held until Kafka acks them; at the limit letters are refused. Default 100,000.
    pub pending_letters_max: usize,
    /// Bytes of their keys, payloads and headers; likewise. Default 32 MiB; one letter alone may be larger. librdkafka holds as much
    /// again.
    pub pending_bytes_max: usize,
    /// What is done with a letter larger than the topic takes.
    pub oversize: Oversize,
}

impl Config {
    /// The defaults, for `topic` on `brokers`.
    pub fn new(topic: impl Into<String>, brokers: impl Into<String>) -> Self {
        Config {
            topic: topic.into(),
            client: BTreeMap::from([("bootstrap.servers".to_owned(), brokers.into())]),
            delivery_timeout_ms: 300_000,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            pending_letters_max: 100_000,
            pending_bytes_max: 32 << 20,
            oversize: Oversize::Refuse,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            who: "dead letter producer",
            topic: self.topic.clone(),
            client: self.client.clone(),
            delivery_timeout_ms: self.delivery_timeout_ms,
            backoff_ms: self.backoff_ms,
            backoff_max_ms: self.backoff_max_ms,
            pending_max: self.pending_letters_max,
            pending_bytes_max: self.pending_bytes_max,
            may_send_bare: self.oversize == Oversize::OmitPayload,
        }
    }
}

impl fmt::Debug for Config {
    /// Only the names of client settings: their values hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client: Vec<&String> = self.client.keys().collect();
        f.debug_struct("Config").field("topic", &self.topic).field("client", &client).finish_non_exhaustive()
    }
}

/// Dead letters in a Kafka topic.
pub struct Kafka {
    config: Config,
    clock: Arc<dyn Clock>,
    courier: Courier<Letter>,
}

impl Kafka {
    /// Makes the producer. It connects in the background: brokers may be down.
    pub fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let courier = Courier::open(config.settings(), clock.clone());
        let courier = courier.map_err(|source| Error::Producer { topic: config.topic.clone(), source })?;
        Ok(Kafka { config, clock, courier })
    }

    /// What was done so far.
    pub fn stats(&self) -> crate::kafka_producer::Stats {
        self.courier.stats()
    }

    #[cfg(test)]
    pub(super) fn fail_for_good(&self) {
        self.courier.fail_for_good();
    }

    fn step(&mut self, wait: Duration) -> Vec<Result<u64, Error>> {
        let topic = &self.config.topic;
        let error = |trouble| match trouble {
            Trouble::Producer { source } => Error::Producer { topic: topic.clone(), source },
            Trouble::Delivery { id, attempt, retriable, source } => {
                Error::Delivery { id, topic: topic.clone(), attempt, retriable, source }
            }
            Trouble::TooLarge { id, bytes } => Error::TooLarge { id, topic: topic.clone(), bytes },
        };
        self.courier.step(wait).into_iter().map(|result| result.map_err(error)).collect()
    }
}

impl Sink for Kafka {
    fn submit(&mut self, id: u64, reject: &Reject) -> Result<(), Error> {
        if self.courier.pending() >= self.config.pending_letters_max {
            return Err(Error::Full { setting: "pending_letters_max" });
        }
        if self.courier.pending_bytes() >= self.config.pending_bytes_max {
            return Err(Error::Full { setting: "pending_bytes_max" });
        }
        self.courier.push(id, Letter::of(reject, self.clock.now_ms()));
        Ok(())
    }

    fn poll(&mut self) -> Vec<Result<u64, Error>> {
        self.step(Duration::ZERO)
    }

    fn pending(&self) -> usize {
        self.courier.pending()
    }

    fn flush(&mut self, timeout: Duration) -> Vec<Result<u64, Error>> {
        let started = Instant::now();
        let mut results = self.poll();
        while self.courier.pending() > 0 && started.elapsed() < timeout {
            results.extend(self.step(Duration::from_millis(20)));
        }
        results
    }

    fn forget_below(&mut self, _partition: &PartitionKey, _offset: i64) {}
}

impl Parcel for Letter {
    fn bytes(&self) -> usize {
        self.original_bytes()
    }

    fn record<'a>(&'a self, topic: &'a str, id: usize, form: Form) -> BaseRecord<'a, [u8], [u8], usize> {
        let key = self.key.as_deref().unwrap_or_default();
        let keeps_key = form == Form::Whole || key.len() <= BARE_BYTES_MAX;
        let keeps_headers = form == Form::Whole || self.header_bytes() <= BARE_BYTES_MAX;
        let mut headers = OwnedHeaders::new_with_capacity(self.headers.len() + 10);
        for (name, value) in self.headers.iter().filter(|_| keeps_headers) {
            headers = headers.insert(Header { key: &String::from_utf8_lossy(name), value: value.as_deref() });
        }
        for (name, value) in self.kafka_headers() {
            headers = headers.insert(Header { key: name, value: Some(value.as_bytes()) });
        }
        if form == Form::Bare {
            let mut omitted = format!("payload:{}", self.payload.as_ref().map_or(0, Vec::len));
            if !keeps_key {
                omitted += &format!(",key:{}", key.len());
            }
            if !keeps_headers {
                omitted += &format!(",headers:{}", self.header_bytes());
            }
            headers = headers.insert(Header { key: "openwit.omitted", value: Some(omitted.as_bytes()) });
        }
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, id).headers(headers);
        record.key = self.key.as_deref().filter(|_| keeps_key);
        // A null payload is a tombstone, so an omitted one is sent as an empty one.
        record.payload = if form == Form::Whole { self.payload.as_deref() } else { Some(&[]) };
        // For librdkafka 0 is "now", and times before 1970 do not exist: the header keeps the original's.
        record.timestamp = Some(self.timestamp_ms).filter(|&time| time > 0);
        record
    }
}

/// The dead letter in a Kafka message, as this sink writes them; `None` if it is none.
pub fn read_message(message: &impl Message) -> Option<Letter> {
    let headers = message
        .headers()
        .map(|headers| headers.iter().map(|header| (header.key.as_bytes().to_vec(), header.value.map(<[u8]>::to_vec))).collect());
    Letter::from_kafka(message.key(), message.payload(), headers.unwrap_or_default())
}
