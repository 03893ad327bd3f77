//! An idempotent producer with acks=all that gives nothing up which may succeed later: what dead letters and `kafka_sink` share.
//!
//! At least once: a parcel is acked when Kafka reports it delivered, and sent again whenever that is in doubt. Nothing is dropped: what
//! fails and may succeed later waits (exponential backoff) and is sent again. What cannot succeed is reported as trouble that is not
//! retriable: a topic that may not be written to, a parcel larger than its topic takes.
//!
//! The producer lives in librdkafka's threads; a [`Courier`] only works in `step`, and waits there no longer than it is told, except for up
//! to half a second when a producer that failed for good is replaced.

mod outbox;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::clock::Clock;
use crate::kafka_client::{self, BrokerWatch, Complaints, Login, STATISTICS_INTERVAL_MS};
pub use outbox::Form;
use outbox::{Backoff, Failure, Outbox, Verdict};

/// Client settings that the guarantees rest on, with their aliases: what `Settings::client` says of them is not used.
const OURS: [&str; 8] = [
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "delivery.timeout.ms",
    "message.timeout.ms",
    "message.max.bytes",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
];

/// What is sent.
pub trait Parcel {
    /// Its bytes, for the bound of what is held.
    fn bytes(&self) -> usize;
    /// The message it is. `Form::Bare` comes only where the settings allow it.
    fn record<'a>(&'a self, topic: &'a str, id: usize, form: Form) -> BaseRecord<'a, [u8], [u8], usize>;
}

/// How a courier is told to work.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who sends, for the log: "dead letter producer".
    pub who: &'static str,
    /// The topic.
    pub topic: String,
    /// librdkafka settings. What the guarantees rest on is set over them.
    pub client: BTreeMap<String, String>,
    /// How long librdkafka tries on its own before a parcel comes back.
    pub delivery_timeout_ms: u64,
    /// The wait before a parcel that came back is sent again, doubled each time.
    pub backoff_ms: u64,
    /// The longest such wait.
    pub backoff_max_ms: u64,
    /// Parcels that librdkafka must have room for.
    pub pending_max: usize,
    /// Bytes of them.
    pub pending_bytes_max: usize,
    /// Whether a parcel that is too large is sent bare.
    pub may_send_bare: bool,
}

impl Settings {
    fn client_config(&self) -> (ClientConfig, Login) {
        let (mut client, login) = kafka_client::settings(&self.client);
        OURS.iter().for_each(|key| _ = client.remove(key));
        client.set("enable.idempotence", "true").set("acks", "all").set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
        client.set("delivery.timeout.ms", self.delivery_timeout_ms.to_string());
        // The limit is the topic's, not the client's; and a batch of one parcel is all that must fit there.
        client.set("message.max.bytes", "1000000000");
        // Our own bounds come first; librdkafka must hold what they let through.
        let queue_kbytes = (self.pending_bytes_max / 512).saturating_add(1 << 20).min(i32::MAX as usize);
        client.set("queue.buffering.max.kbytes", queue_kbytes.to_string());
        client.set("queue.buffering.max.messages", (self.pending_max.max(1)).to_string());
        (client, login)
    }
}

/// What a courier has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Parcels delivered.
    pub delivered: u64,
    /// Deliveries that failed and were tried again.
    pub retried: u64,
    /// Parcels sent bare.
    pub omitted: u64,
    /// Producers replaced after they failed for good.
    pub replaced: u64,
}

/// What went wrong.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The producer could not be made anew.
    Producer {
        /// Why.
        source: KafkaError,
    },
    /// A parcel was not delivered.
    Delivery {
        /// Which.
        id: u64,
        /// How often it was tried.
        attempt: u32,
        /// True if it is tried again.
        retriable: bool,
        /// Why.
        source: KafkaError,
    },
    /// A parcel is larger than its topic takes, and given up.
    TooLarge {
        /// Which.
        id: u64,
        /// Its bytes.
        bytes: usize,
    },
}

/// What librdkafka reports, in its order.
type Reports = Arc<Mutex<Vec<(u64, Option<KafkaError>)>>>;

/// Collects the delivery reports of one producer.
struct Context {
    who: &'static str,
    reports: Reports,
    brokers: BrokerWatch,
    login: Login,
    complaints: Complaints,
}

impl ClientContext for Context {
    fn stats(&self, statistics: rdkafka::Statistics) {
        self.brokers.note(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.complaints.note(self.who, &error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: usize) {
        let error = result.as_ref().err().map(|(error, _)| error.clone());
        lock(&self.reports).push((id as u64, error));
    }
}

/// Sends parcels, each until it is acked.
pub struct Courier<P> {
    settings: Settings,
    clock: Arc<dyn Clock>,
    producer: BaseProducer<Context>,
    reports: Reports,
    outbox: Outbox<P>,
    stats: Stats,
}

impl<P: Parcel> Courier<P> {
    /// Makes the producer. It connects in the background: brokers may be down.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>) -> KafkaResult<Self> {
        let reports = Reports::default();
        let producer = produce(&settings, &reports)?;
        let backoff = Backoff { first_ms: settings.backoff_ms, max_ms: settings.backoff_max_ms };
        let outbox = Outbox::new(backoff, settings.may_send_bare);
        Ok(Courier { settings, clock, producer, reports, outbox, stats: Stats::default() })
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Parcels held.
    pub fn pending(&self) -> usize {
        self.outbox.len()
    }

    /// Their bytes.
    pub fn pending_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Takes a parcel over. Ids are the caller's, each used once.
    pub fn push(&mut self, id: u64, parcel: P) {
        self.outbox.push(id, parcel);
    }

    /// Makes the producer fail for good, as librdkafka does when it cannot tell any more what was written.
    #[cfg(test)]
    pub(crate) fn fail_for_good(&self) {
        let code = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the pointer is the living producer's, the text ends with a zero and is only read during the call.
        unsafe { rdkafka_sys::rd_kafka_test_fatal_error(self.producer.client().native_ptr(), code, c"test".as_ptr()) };
    }

    /// Works on what was pushed, waiting for news up to `wait`: the ids acked since the last call, and what went wrong.
    pub fn step(&mut self, wait: Duration) -> Vec<Result<u64, Trouble>> {
        self.producer.poll(wait);
        // One call serves one event; what else is there by now is served without waiting.
        for _ in 0..64 {
            let before = lock(&self.reports).len();
            self.producer.poll(Duration::ZERO);
            if lock(&self.reports).len() == before {
                break;
            }
        }
        self.producer.context().login.renew(self.producer.client());
        let servers = self.settings.client.get("bootstrap.servers").map_or("", String::as_str);
        self.producer.context().brokers.revive(self.producer.client(), servers);
        let mut results = self.take_reports();
        if let Err(error) = self.replace_if_fatal() {
            results.push(Err(error));
            return results;
        }
        self.send_ready(&mut results);
        results
    }

    fn take_reports(&mut self) -> Vec<Result<u64, Trouble>> {
        let reports = std::mem::take(&mut *lock(&self.reports));
        let mut results = Vec::with_capacity(reports.len());
        for (id, error) in reports {
            match error {
                Some(error) => results.extend(self.failed(id, error).map(Err)),
                None if self.outbox.delivered(id) => {
                    self.stats.delivered += 1;
                    results.push(Ok(id));
                }
                None => {}
            }
        }
        results
    }

    fn failed(&mut self, id: u64, source: KafkaError) -> Option<Trouble> {
        let failure = failure_of(&source);
        match self.outbox.failed(id, failure, self.clock.now_ms()) {
            Verdict::Again(attempt) => {
                self.stats.retried += 1;
                Some(Trouble::Delivery { id, attempt, retriable: true, source })
            }
            Verdict::GivenUp(attempt) => Some(Trouble::Delivery { id, attempt, retriable: false, source }),
            Verdict::TooLarge(bytes) => Some(Trouble::TooLarge { id, bytes }),
            Verdict::Unknown => None,
        }
    }

    fn send_ready(&mut self, results: &mut Vec<Result<u64, Trouble>>) {
        while let Some((id, parcel, form)) = self.outbox.next(self.clock.now_ms()) {
            let record = parcel.record(&self.settings.topic, id as usize, form);
            let sent = self.producer.send(record).map_err(|(error, _)| error);
            self.stats.omitted += u64::from(form == Form::Bare && sent.is_ok());
            match sent {
                Ok(()) => {}
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                    self.outbox.unsent(id);
                    return;
                }
                Err(error) => results.extend(self.failed(id, error).map(Err)),
            }
        }
    }

    /// An idempotent producer that cannot tell any more what was written refuses all work. A new one sends what was in flight again.
    fn replace_if_fatal(&mut self) -> Result<(), Trouble> {
        let Some((code, reason)) = self.producer.client().fatal_error() else {
            return Ok(());
        };
        tracing::warn!(%code, reason, "replacing the {} after a fatal error", self.settings.who);
        self.reports = Reports::default();
        self.producer = produce(&self.settings, &self.reports).map_err(|source| Trouble::Producer { source })?;
        self.outbox.lose_flight();
        self.stats.replaced += 1;
        Ok(())
    }
}

fn produce(settings: &Settings, reports: &Reports) -> KafkaResult<BaseProducer<Context>> {
    let (client, login) = settings.client_config();
    let (brokers, complaints) = (BrokerWatch::default(), Complaints::default());
    client.create_with_context(Context { who: settings.who, reports: reports.clone(), brokers, login, complaints })
}

/// What a failure means. Unknown ones are taken to pass: a parcel that waits is better than one given up.
fn failure_of(error: &KafkaError) -> Failure {
    use RDKafkaErrorCode::{
        ClusterAuthorizationFailed, InvalidArgument, InvalidRecord, InvalidTopic, MessageSizeTooLarge, PolicyViolation,
        TopicAuthorizationFailed, UnsupportedForMessageFormat,
    };
    match error.rdkafka_error_code() {
        Some(MessageSizeTooLarge) => Failure::TooLarge,
        Some(
            TopicAuthorizationFailed
            | ClusterAuthorizationFailed
            | InvalidTopic
            | InvalidArgument
            | InvalidRecord
            | PolicyViolation
            | UnsupportedForMessageFormat,
        ) => Failure::Lasting,
        _ => Failure::Passing,
    }
}

/// What the lock guards is a list that is whole after every push.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
