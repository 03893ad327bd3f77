//! Writes normalized records to a Kafka topic, as the OTLP protobuf that they have become.
//!
//! # In
//! `UniqueBatch`: normalized messages of one group, without duplicates.
//!
//! # Out
//! No data. Its effect is the messages; the frontier passes an epoch when Kafka has acknowledged each of its records with acks=all.
//!
//! # Holds
//! Batches that are not acknowledged, with their shares of the memory budget and the capabilities of their epochs. Of their records at most
//! `in_flight_max`, of `in_flight_bytes_max`, are with librdkafka.
//!
//! # Closes when
//! The input ends.
//!
//! # Fails when
//! Kafka refuses a record for good: the topic may not be written to, or takes no message so large. Whatever may pass is tried again, for ever.
//!
//! # Invariants
//! - No record is given up, and none is acknowledged before it is in the topic.
//! - Each record is there at least once: again after a crash, and after the producer failed for good. Readers tell repetitions by the headers
//!   `openwit.topic`, `openwit.topic_id`, `openwit.partition` and `openwit.offset`.
//!
//! ```text
//! key       none, or the dedup key as 32 hex digits      payload   TracesData, LogsData or MetricsData
//! headers   openwit.signal .index .cluster .topic .topic_id .partition .offset .tenant (if there is one)
//! time      the original's, if it has one
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tracing::warn;

use crate::batch::{Arena, NormalizedBatch, Record, UniqueBatch};
use crate::clock::Clock;
use crate::desk::{Desk, Envelope};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::kafka_producer::{Courier, Form, Parcel, Settings, Trouble};
use crate::told::Told;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "kafka_sink";

/// How long one look for acknowledgements waits.
const POLL: Duration = Duration::from_millis(10);

/// How often the log tells that records are not delivered.
const LOG_INTERVAL_MS: u64 = 5_000;

/// What the key of a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Key {
    /// There is none: librdkafka spreads messages over the partitions.
    #[default]
    None,
    /// The dedup key, a hash of the message id or of the payload: messages with one id are in one partition.
    Dedup,
}

/// How the sink is told to work.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The topic. It must exist or be created by the broker on first use.
    pub topic: String,
    /// librdkafka settings: `bootstrap.servers` and security as the source has them. What the guarantees rest on is set over them.
    pub client: BTreeMap<String, String>,
    /// What the key of a message is.
    pub key: Key,
    /// How long librdkafka tries on its own before a record comes back, to be sent again. Default 300,000 ms. Too small: repetitions.
    pub delivery_timeout_ms: u64,
    /// The wait before a record that came back is sent again, doubled each time. Default 100 ms.
    pub backoff_ms: u64,
    /// The longest such wait. Default 10,000 ms.
    pub backoff_max_ms: u64,
    /// Records with librdkafka and not acknowledged; at the limit the others wait. Default 100,000.
    pub in_flight_max: usize,
    /// Bytes of their payloads; likewise. Default 32 MiB; one record alone may be larger.
    pub in_flight_bytes_max: usize,
}

impl Config {
    /// The defaults, for `topic` on `brokers`.
    pub fn new(topic: impl Into<String>, brokers: impl Into<String>) -> Self {
        Config {
            topic: topic.into(),
            client: BTreeMap::from([("bootstrap.servers".to_owned(), brokers.into())]),
            key: Key::None,
            delivery_timeout_ms: 300_000,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            in_flight_max: 100_000,
            in_flight_bytes_max: 32 << 20,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            who: "kafka_sink producer",
            topic: self.topic.clone(),
            client: self.client.clone(),
            delivery_timeout_ms: self.delivery_timeout_ms,
            backoff_ms: self.backoff_ms,
            backoff_max_ms: self.backoff_max_ms,
            pending_max: self.in_flight_max,
            pending_bytes_max: self.in_flight_bytes_max,
            may_send_bare: false,
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

/// Why records cannot be written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The producer could not be made.
    #[error("cannot make the producer for topic {topic}")]
    Producer {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// Kafka did not take a record.
    #[error("cannot write {record} to topic {topic}, attempt {attempt}")]
    Delivery {
        /// Which.
        record: String,
        /// The topic.
        topic: String,
        /// How often it was tried.
        attempt: u32,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// A record is larger than the topic takes.
    #[error(
        "{record} of {bytes} bytes is larger than topic {topic} takes: raise its max.message.bytes (the broker's message.max.bytes)"
    )]
    TooLarge {
        /// Which.
        record: String,
        /// The topic.
        topic: String,
        /// Bytes of its payload.
        bytes: usize,
    },
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Records that Kafka has acknowledged.
    pub acked: AtomicU64,
    /// Deliveries that failed and were or will be tried again.
    pub retries: AtomicU64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The producer's thread.
    pub desk: Desk<Vec<NormalizedBatch>, ()>,
}

impl Ports {
    /// Makes the producer, which connects in the background, and starts its thread. It ends with the last of the ports.
    pub fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        health: Health,
        stats: Arc<Stats>,
    ) -> Result<(Ports, JoinHandle<()>), String> {
        let courier = Courier::open(config.settings(), clock.clone());
        let courier = courier.map_err(|source| chain(&Error::Producer { topic: config.topic.clone(), source }))?;
        let clerk = Clerk {
            config: config.clone(),
            courier,
            clock,
            health: health.clone(),
            stats,
            told: Told::every(LOG_INTERVAL_MS),
            next_id: 0,
            next_request: 0,
            open: BTreeMap::new(),
            records: BTreeMap::new(),
            waiting: VecDeque::new(),
        };
        let opened = Desk::open(NAME, health, move |requests| clerk.serve(&requests));
        let (desk, thread) = opened.map_err(|error| format!("cannot start the thread of {NAME}: {error}"))?;
        Ok((Ports { desk }, thread))
    }
}

/// Writes records to the topic. Its output carries no data: its frontier passes an epoch when all its records are acknowledged.
pub fn kafka_sink<'s>(stream: Stream<'s, Epoch, Vec<UniqueBatch>>, ports: Ports) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let mut counter = ports.desk.counter(scope.worker().sync_activator_for(address.to_vec()));
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, acked) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let mut held: BTreeMap<u64, Capability<Epoch>> = BTreeMap::new();
        move |_frontiers| {
            // 1. Hand batches over, and hold their epoch.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                held.insert(counter.request(batches.drain(..).map(|batch| batch.0).collect()), capability);
            });
            // 2. Let go of what is acknowledged.
            while let Some((ticket, ())) = counter.answer() {
                held.remove(&ticket);
            }
        }
    });
    acked
}

/// A record on its way. Its payload lies in its batch's arena.
struct Outgoing {
    key: Option<String>,
    headers: OwnedHeaders,
    payload: Bytes,
    timestamp_ms: i64,
}

impl Outgoing {
    fn of(batch: &NormalizedBatch, record: &Record, key: Key) -> Self {
        let arena = match record.arena {
            Arena::Raw => &batch.raw,
            Arena::Written => &batch.written,
        };
        let start = record.payload.start as usize;
        let partition = &batch.coverage.partition;
        let (number, offset) = (partition.partition.to_string(), record.offset.to_string());
        let named = [
            ("openwit.signal", batch.group.signal.name()),
            ("openwit.index", &batch.group.index),
            ("openwit.cluster", &partition.topic.cluster),
            ("openwit.topic", &partition.topic.name),
            ("openwit.topic_id", &partition.topic.id),
            ("openwit.partition", &number),
            ("openwit.offset", &offset),
        ];
        let tenant = batch.tenant(record).map(|tenant| ("openwit.tenant", tenant.name()));
        let mut headers = OwnedHeaders::new_with_capacity(named.len() + 1);
        for (key, value) in named.into_iter().chain(tenant) {
            headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
        }
        let key = (key == Key::Dedup).then(|| format!("{:032x}", record.key));
        let payload = arena.slice(start..start + record.payload.len as usize);
        Outgoing { key, headers, payload, timestamp_ms: record.timestamp_ms }
    }
}

impl Parcel for Outgoing {
    fn bytes(&self) -> usize {
        self.payload.len()
    }

    fn record<'a>(&'a self, topic: &'a str, id: usize, _form: Form) -> BaseRecord<'a, [u8], [u8], usize> {
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, id).headers(self.headers.clone());
        record.key = self.key.as_deref().map(str::as_bytes);
        record.payload = Some(&self.payload);
        // For librdkafka 0 is "now", and times before 1970 do not exist.
        record.timestamp = Some(self.timestamp_ms).filter(|&time| time > 0);
        record
    }
}

/// A request whose records are not all acknowledged.
struct Open {
    envelope: Envelope<Vec<NormalizedBatch>, ()>,
    left: usize,
}

/// What the thread owns.
struct Clerk {
    config: Config,
    courier: Courier<Outgoing>,
    clock: Arc<dyn Clock>,
    health: Health,
    stats: Arc<Stats>,
    told: Told,
    next_id: u64,
    next_request: u64,
    open: BTreeMap<u64, Open>,
    /// The request of each record that is not acknowledged, and where it lies there: its batch, its place in that.
    records: BTreeMap<u64, (u64, Place)>,
    /// What the producer has not been given yet: a request, and the record that is next.
    waiting: VecDeque<(u64, Place)>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    batch: usize,
    record: usize,
}

impl Clerk {
    fn serve(mut self, requests: &Receiver<Envelope<Vec<NormalizedBatch>, ()>>) {
        loop {
            // 1. Take what is asked; wait only when nothing is under way.
            let next =
                if self.open.is_empty() { requests.recv().map_err(|_| TryRecvError::Disconnected) } else { requests.try_recv() };
            match next {
                Ok(envelope) => {
                    self.take(envelope);
                    continue;
                }
                // The graph is gone: what is open was never acknowledged, and comes again after the next start.
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {}
            }
            // 2. Give the producer what it has room for, look for acknowledgements, answer requests of which nothing is left.
            self.send();
            if let Err(error) = self.settle() {
                // Without answers the capabilities are held: no epoch counts as written that is not.
                self.health.fail(NAME, chain(&error));
                return;
            }
            if self.health.failed() {
                return;
            }
        }
    }

    fn take(&mut self, envelope: Envelope<Vec<NormalizedBatch>, ()>) {
        let left = envelope.request.iter().map(|batch| batch.records.len()).sum();
        if left == 0 {
            return envelope.answer(());
        }
        let request = self.next_request;
        self.next_request += 1;
        self.open.insert(request, Open { envelope, left });
        self.waiting.push_back((request, Place::default()));
    }

    fn send(&mut self) {
        let Config { key, in_flight_max, in_flight_bytes_max, .. } = self.config;
        while let Some((request, place)) = self.waiting.front_mut() {
            let is_full = self.courier.pending() >= in_flight_max.max(1) || self.courier.pending_bytes() >= in_flight_bytes_max;
            if is_full && self.courier.pending() > 0 {
                return;
            }
            let batch = self.open.get(request).and_then(|open| open.envelope.request.get(place.batch));
            let Some(batch) = batch else {
                self.waiting.pop_front();
                continue;
            };
            let Some(record) = batch.records.get(place.record) else {
                *place = Place { batch: place.batch + 1, record: 0 };
                continue;
            };
            self.courier.push(self.next_id, Outgoing::of(batch, record, key));
            self.records.insert(self.next_id, (*request, *place));
            self.next_id += 1;
            place.record += 1;
        }
    }

    fn settle(&mut self) -> Result<(), Error> {
        for result in self.courier.step(POLL) {
            match result {
                Ok(id) => self.acked(id),
                Err(Trouble::Delivery { retriable: true, source, attempt, .. }) => self.tell(attempt, &source),
                Err(trouble) => return Err(self.error_of(trouble)),
            }
        }
        Ok(())
    }

    fn acked(&mut self, id: u64) {
        self.stats.acked.fetch_add(1, Ordering::Relaxed);
        let Some((request, _)) = self.records.remove(&id) else { return };
        let Some(open) = self.open.get_mut(&request) else { return };
        open.left -= 1;
        if open.left == 0
            && let Some(open) = self.open.remove(&request)
        {
            open.envelope.answer(());
        }
    }

    fn tell(&mut self, attempt: u32, error: &KafkaError) {
        self.stats.retries.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.told.count("delivery", self.clock.now_ms()) {
            let topic = &self.config.topic;
            warn!(
                topic,
                attempt,
                left_out,
                error = chain(error),
                "records are not delivered, trying again; nothing is acknowledged meanwhile"
            );
        }
    }

    fn error_of(&self, trouble: Trouble) -> Error {
        let topic = self.config.topic.clone();
        match trouble {
            Trouble::Producer { source } => Error::Producer { topic, source },
            Trouble::Delivery { id, attempt, source, .. } => Error::Delivery { record: self.name_of(id), topic, attempt, source },
            Trouble::TooLarge { id, bytes } => Error::TooLarge { record: self.name_of(id), topic, bytes },
        }
    }

    fn name_of(&self, id: u64) -> String {
        let found = self.records.get(&id).and_then(|(request, place)| {
            let batch = self.open.get(request)?.envelope.request.get(place.batch)?;
            Some((&batch.coverage.partition, batch.records.get(place.record)?.offset))
        });
        found.map_or("a record".into(), |(partition, offset)| format!("offset {offset} of {partition}"))
    }
}

#[cfg(test)]
mod tests;
