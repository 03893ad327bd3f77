//! Dead letters in a Kafka topic: the original message with headers of ours, by an idempotent producer with acks=all.
//!
//! At least once: a letter is acked when Kafka reports it delivered, and sent again whenever that is in doubt. Nothing is dropped: what
//! fails and may succeed later waits (exponential backoff) and is sent again; the sink then fills up and refuses more
//! (`Error::Full`). What cannot succeed ends the sink with an error: a topic that may not be written to, and, by
//! `Oversize::Refuse`, a letter larger than its topic takes.
//!
//! The producer lives in librdkafka's threads; this sink only works in `submit`, `poll` and `flush`, and never waits in the first two,
//! except for up to half a second when a producer that failed for good is replaced.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::letter::Letter;
use super::outbox::{Backoff, Failure, Form, Outbox, Verdict};
use super::{Error, Sink};
use crate::batch::Reject;
use crate::clock::Clock;
use crate::coverage::PartitionKey;
use crate::kafka_client::{self, BrokerWatch, Complaints, Login, STATISTICS_INTERVAL_MS};

/// A bare letter keeps key and headers up to this size: well below every sensible limit of a topic.
const BARE_BYTES_MAX: usize = 64 << 10;

/// Client settings that the guarantees rest on, with their aliases: what `Config::client` says of them is not used.
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

    fn client_config(&self) -> (ClientConfig, Login) {
        let (mut client, login) = kafka_client::settings(&self.client);
        OURS.iter().for_each(|key| _ = client.remove(key));
        client.set("enable.idempotence", "true").set("acks", "all").set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
        client.set("delivery.timeout.ms", self.delivery_timeout_ms.to_string());
        // The limit is the topic's, not the client's; and a batch of one letter is all that must fit there.
        client.set("message.max.bytes", "1000000000");
        // Our own bounds come first; librdkafka must hold what they let through.
        let queue_kbytes = (self.pending_bytes_max / 512).saturating_add(1 << 20).min(i32::MAX as usize);
        client.set("queue.buffering.max.kbytes", queue_kbytes.to_string());
        client.set("queue.buffering.max.messages", (self.pending_letters_max.max(1)).to_string());
        (client, login)
    }
}

impl fmt::Debug for Config {
    /// Only the names of client settings: their values hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client: Vec<&String> = self.client.keys().collect();
        f.debug_struct("Config").field("topic", &self.topic).field("client", &client).finish_non_exhaustive()
    }
}

/// What a Kafka sink has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Letters delivered.
    pub delivered: u64,
    /// Deliveries that failed and were tried again.
    pub retried: u64,
    /// Letters sent without their payload.
    pub omitted: u64,
    /// Producers replaced after they failed for good.
    pub replaced: u64,
}

/// What librdkafka reports, in its order.
type Reports = Arc<Mutex<Vec<(u64, Option<KafkaError>)>>>;

/// Collects the delivery reports of one producer.
struct Context {
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
        self.complaints.note("dead letter producer", &error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: usize) {
        let error = result.as_ref().err().map(|(error, _)| error.clone());
        lock(&self.reports).push((id as u64, error));
    }
}

/// Dead letters in a Kafka topic.
pub struct Kafka {
    config: Config,
    clock: Arc<dyn Clock>,
    producer: BaseProducer<Context>,
    reports: Reports,
    outbox: Outbox,
    stats: Stats,
}

impl Kafka {
    /// Makes the producer. It connects in the background: brokers may be down.
    pub fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let reports = Reports::default();
        let producer = produce(&config, &reports)?;
        let backoff = Backoff { first_ms: config.backoff_ms, max_ms: config.backoff_max_ms };
        let outbox = Outbox::new(backoff, config.oversize == Oversize::OmitPayload);
        Ok(Kafka { config, clock, producer, reports, outbox, stats: Stats::default() })
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Makes the producer fail for good, as librdkafka does when it cannot tell any more what was written.
    #[cfg(test)]
    pub(super) fn fail_for_good(&self) {
        let code = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the pointer is the living producer's, the text ends with a zero and is only read during the call.
        unsafe { rdkafka_sys::rd_kafka_test_fatal_error(self.producer.client().native_ptr(), code, c"test".as_ptr()) };
    }

    fn step(&mut self, wait: Duration) -> Vec<Result<u64, Error>> {
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
        let servers = self.config.client.get("bootstrap.servers").map_or("", String::as_str);
        self.producer.context().brokers.revive(self.producer.client(), servers);
        let mut results = self.take_reports();
        if let Err(error) = self.replace_if_fatal() {
            results.push(Err(error));
            return results;
        }
        self.send_ready(&mut results);
        results
    }

    fn take_reports(&mut self) -> Vec<Result<u64, Error>> {
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

    fn failed(&mut self, id: u64, source: KafkaError) -> Option<Error> {
        let failure = failure_of(&source);
        let topic = self.config.topic.clone();
        match self.outbox.failed(id, failure, self.clock.now_ms()) {
            Verdict::Again(attempt) => {
                self.stats.retried += 1;
                Some(Error::Delivery { id, topic, attempt, retriable: true, source })
            }
            Verdict::GivenUp(attempt) => Some(Error::Delivery { id, topic, attempt, retriable: false, source }),
            Verdict::TooLarge(bytes) => Some(Error::TooLarge { id, topic, bytes }),
            Verdict::Unknown => None,
        }
    }

    fn send_ready(&mut self, results: &mut Vec<Result<u64, Error>>) {
        while let Some((id, letter, form)) = self.outbox.next(self.clock.now_ms()) {
            let sent = send(&self.producer, &self.config.topic, id, letter, form);
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
    fn replace_if_fatal(&mut self) -> Result<(), Error> {
        let Some((code, reason)) = self.producer.client().fatal_error() else {
            return Ok(());
        };
        tracing::warn!(%code, reason, "replacing the dead letter producer after a fatal error");
        self.reports = Reports::default();
        self.producer = produce(&self.config, &self.reports)?;
        self.outbox.lose_flight();
        self.stats.replaced += 1;
        Ok(())
    }
}

impl Sink for Kafka {
    fn submit(&mut self, id: u64, reject: &Reject) -> Result<(), Error> {
        if self.outbox.len() >= self.config.pending_letters_max {
            return Err(Error::Full { setting: "pending_letters_max" });
        }
        if self.outbox.bytes() >= self.config.pending_bytes_max {
            return Err(Error::Full { setting: "pending_bytes_max" });
        }
        self.outbox.push(id, Letter::of(reject, self.clock.now_ms()));
        Ok(())
    }

    fn poll(&mut self) -> Vec<Result<u64, Error>> {
        self.step(Duration::ZERO)
    }

    fn pending(&self) -> usize {
        self.outbox.len()
    }

    fn flush(&mut self, timeout: Duration) -> Vec<Result<u64, Error>> {
        let started = Instant::now();
        let mut results = self.poll();
        while self.outbox.len() > 0 && started.elapsed() < timeout {
            results.extend(self.step(Duration::from_millis(20)));
        }
        results
    }

    fn forget_below(&mut self, _partition: &PartitionKey, _offset: i64) {}
}

fn produce(config: &Config, reports: &Reports) -> Result<BaseProducer<Context>, Error> {
    let (client, login) = config.client_config();
    let (brokers, complaints) = (BrokerWatch::default(), Complaints::default());
    let producer: KafkaResult<_> = client.create_with_context(Context { reports: reports.clone(), brokers, login, complaints });
    producer.map_err(|source| Error::Producer { topic: config.topic.clone(), source })
}

fn send(producer: &BaseProducer<Context>, topic: &str, id: u64, letter: &Letter, form: Form) -> KafkaResult<()> {
    let key = letter.key.as_deref().unwrap_or_default();
    let keeps_key = form == Form::Whole || key.len() <= BARE_BYTES_MAX;
    let keeps_headers = form == Form::Whole || letter.header_bytes() <= BARE_BYTES_MAX;
    let mut headers = OwnedHeaders::new_with_capacity(letter.headers.len() + 10);
    for (name, value) in letter.headers.iter().filter(|_| keeps_headers) {
        headers = headers.insert(Header { key: &String::from_utf8_lossy(name), value: value.as_deref() });
    }
    for (name, value) in letter.kafka_headers() {
        headers = headers.insert(Header { key: name, value: Some(value.as_bytes()) });
    }
    if form == Form::Bare {
        let mut omitted = format!("payload:{}", letter.payload.as_ref().map_or(0, Vec::len));
        if !keeps_key {
            omitted += &format!(",key:{}", key.len());
        }
        if !keeps_headers {
            omitted += &format!(",headers:{}", letter.header_bytes());
        }
        headers = headers.insert(Header { key: "openwit.omitted", value: Some(omitted.as_bytes()) });
    }
    let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, id as usize).headers(headers);
    record.key = letter.key.as_deref().filter(|_| keeps_key);
    // A null payload is a tombstone, so an omitted one is sent as an empty one.
    record.payload = if form == Form::Whole { letter.payload.as_deref() } else { Some(&[]) };
    // For librdkafka 0 is "now", and times before 1970 do not exist: the header keeps the original's.
    record.timestamp = Some(letter.timestamp_ms).filter(|&time| time > 0);
    producer.send(record).map_err(|(error, _)| error)
}

/// What a failure means. Unknown ones are taken to pass: a letter that waits is better than one given up.
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

/// The dead letter in a Kafka message, as this sink writes them; `None` if it is none.
pub fn read_message(message: &impl Message) -> Option<Letter> {
    let headers = message
        .headers()
        .map(|headers| headers.iter().map(|header| (header.key.as_bytes().to_vec(), header.value.map(<[u8]>::to_vec))).collect());
    Letter::from_kafka(message.key(), message.payload(), headers.unwrap_or_default())
}
