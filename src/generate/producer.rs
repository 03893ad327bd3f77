//! Sends a run's messages to Kafka, and knows of each whether it arrived.
//!
//! The producer is idempotent, so retries neither double nor reorder; its queue is bounded, and a full queue makes the generator wait.
//! Every delivery report is counted: delivered + failed = queued, and one failure fails the run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{ClientConfig, FromClientConfig};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::util::Timeout;
use tracing::{debug, info, warn};

use super::{Generator, Message, Tally, Topic};

/// How long brokers may take to answer a question about topics.
const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// How long librdkafka retries a message before it counts as failed; also how long the end of a run may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes waiting in librdkafka: some round trips' worth at a gigabyte per second, without filling the machine's memory.
const QUEUE_KIB: &str = "131072";
/// Largest message librdkafka accepts from us; the broker's own limit decides in the end.
const MESSAGE_BYTES_MAX: &str = "67108864";
/// Messages between two looks at delivery reports, the clock and the stop flag.
const MESSAGES_PER_POLL: u64 = 64;
/// Wait when nothing may be sent yet.
const PAUSE: Duration = Duration::from_millis(1);

/// How to reach the brokers, and how to send.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bootstrap servers.
    pub brokers: String,
    /// librdkafka's name of a codec.
    pub compression: String,
    /// Further librdkafka properties; they override ours.
    pub properties: Vec<(String, String)>,
}

impl Settings {
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "openwit-ingest-generate");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }

    fn producer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "openwit-ingest-generate")
            .set("enable.idempotence", "true")
            .set("compression.codec", &self.compression)
            .set("linger.ms", "5")
            .set("batch.size", "1000000")
            .set("batch.num.messages", "100000")
            .set("message.max.bytes", MESSAGE_BYTES_MAX)
            .set("queue.buffering.max.kbytes", QUEUE_KIB)
            .set("queue.buffering.max.messages", "1000000")
            .set("delivery.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string());
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }
}

/// When to stop before the plan's count, and how fast to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Messages per second; `None` is as fast as brokers take them.
    pub rate: Option<f64>,
    /// Longest time to send for.
    pub duration: Option<Duration>,
}

impl Pace {
    /// Messages that may have been sent after `elapsed`.
    fn allowed(&self, elapsed: Duration) -> u64 {
        // One message is due at once; a float that overflows saturates.
        self.rate.map_or(u64::MAX, |rate| (elapsed.as_secs_f64() * rate) as u64 + 1)
    }

    fn over(&self, elapsed: Duration) -> bool {
        self.duration.is_some_and(|duration| elapsed >= duration)
    }
}

/// What was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The messages handed to the producer.
    pub tally: Tally,
    /// How many of them brokers acknowledged.
    pub delivered: u64,
    /// From the first message to the last acknowledgement.
    pub elapsed: Duration,
}

/// Why messages could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka refuses the configuration.
    #[error("setting up the Kafka client")]
    Client(#[source] KafkaError),
    /// Brokers did not say what topics there are.
    #[error("asking the brokers for topic `{topic}`")]
    Metadata {
        /// The topic asked for.
        topic: String,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// A topic is missing and cannot be created.
    #[error("topic `{topic}` does not exist and creating it failed: {reason}")]
    Create {
        /// The topic.
        topic: String,
        /// What the broker said.
        reason: String,
    },
    /// A topic has fewer partitions than asked for.
    #[error("topic `{topic}` has {found} partitions, not the {wanted} asked for")]
    Partitions {
        /// The topic.
        topic: String,
        /// Partitions it has.
        found: i32,
        /// Partitions asked for.
        wanted: i32,
    },
    /// The producer refused a message.
    #[error("queueing message {index}")]
    Queue {
        /// The message's number.
        index: u64,
        /// Why.
        #[source]
        source: KafkaError,
    },
    /// Messages were not acknowledged.
    #[error("{failed} of {queued} messages were not delivered: {first}")]
    Undelivered {
        /// Messages without acknowledgement.
        failed: u64,
        /// Messages handed to the producer.
        queued: u64,
        /// The first reason.
        first: String,
    },
}

/// What became of the messages handed to the producer.
#[derive(Default)]
struct Deliveries {
    delivered: AtomicU64,
    failed: AtomicU64,
    first_error: Mutex<Option<String>>,
}

impl Deliveries {
    fn fail(&self, reason: impl std::fmt::Display) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        // A poisoned lock still guards a whole Option.
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_string());
    }

    fn first_error(&self) -> String {
        let first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        first.unwrap_or_else(|| "no delivery report came".to_owned())
    }
}

struct Context(Arc<Deliveries>);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        // Lost connections are retried by librdkafka; what cannot be retried fails the messages.
        warn!(%error, reason, "kafka client reported an error");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.0.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => self.0.fail(error),
        }
    }
}

/// Makes sure that the topics exist, and tells how many partitions each has.
///
/// A missing topic is created with `partitions` (4 if not given); an existing one keeps what it has, of which `partitions` are used.
pub fn ensure_topics(
    settings: &Settings,
    names: &[String],
    partitions: Option<i32>,
    replication: i32,
) -> Result<Vec<Topic>, Error> {
    let client = BaseProducer::from_config(&settings.client()).map_err(Error::Client)?;
    let mut topics = Vec::with_capacity(names.len());
    for name in names {
        let found = match existing_partitions(&client, name)? {
            0 => create_topic(settings, &client, name, partitions.unwrap_or(4), replication)?,
            found => found,
        };
        let wanted = partitions.unwrap_or(found);
        if found < wanted {
            return Err(Error::Partitions { topic: name.clone(), found, wanted });
        }
        topics.push(Topic { name: name.clone(), partitions: wanted });
    }
    Ok(topics)
}

/// Partitions of a topic, 0 if there is none. Asks for all topics, as asking for one by name may create it with the broker's defaults.
fn existing_partitions(client: &BaseProducer, name: &str) -> Result<i32, Error> {
    let metadata = client
        .client()
        .fetch_metadata(None, METADATA_TIMEOUT)
        .map_err(|source| Error::Metadata { topic: name.to_owned(), source })?;
    Ok(metadata.topics().iter().find(|topic| topic.name() == name).map_or(0, |topic| topic.partitions().len() as i32))
}

fn create_topic(settings: &Settings, client: &BaseProducer, name: &str, partitions: i32, replication: i32) -> Result<i32, Error> {
    let refused = request_topic(settings, name, partitions, replication)?;
    // The new topic takes a moment to appear. A broker that cannot create topics on request (the mock) may do so when asked for one.
    let deadline = Instant::now() + METADATA_TIMEOUT;
    loop {
        let metadata = client.client().fetch_metadata(Some(name), METADATA_TIMEOUT);
        let metadata = metadata.map_err(|source| Error::Metadata { topic: name.to_owned(), source })?;
        let found = metadata.topics().first().map_or(0, |topic| topic.partitions().len() as i32);
        if found > 0 {
            info!(topic = name, partitions = found, "created topic");
            return Ok(found);
        }
        let waited_in_vain = refused.is_some() || Instant::now() >= deadline;
        if waited_in_vain {
            let reason = refused.unwrap_or_else(|| "it did not appear in the brokers' metadata".to_owned());
            return Err(Error::Create { topic: name.to_owned(), reason });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks the controller to create a topic; `Some` is why it would not.
fn request_topic(settings: &Settings, name: &str, partitions: i32, replication: i32) -> Result<Option<String>, Error> {
    let admin: AdminClient<_> = AdminClient::from_config(&settings.client()).map_err(Error::Client)?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
    let options = AdminOptions::new().operation_timeout(Some(METADATA_TIMEOUT)).request_timeout(Some(METADATA_TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let refused = match runtime.block_on(admin.create_topics([&topic], &options)) {
        Ok(results) => results.into_iter().find_map(|result| result.err()).and_then(|(_, code)| match code {
            RDKafkaErrorCode::TopicAlreadyExists => None,
            code => Some(code.to_string()),
        }),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = &refused {
        debug!(topic = name, reason, "broker did not create the topic on request");
    }
    Ok(refused)
}

/// Sends messages of `generator` until its plan, `pace` or `stop` ends the run, then waits for all acknowledgements.
///
/// `admits` is asked before each message and may hold it back: it is asked again a millisecond later. It is called exactly once with a
/// result of true for each message sent.
pub fn send(
    settings: &Settings,
    generator: &mut Generator,
    pace: Pace,
    stop: &AtomicBool,
    mut admits: impl FnMut(&Message) -> bool,
) -> Result<Sent, Error> {
    let mut run = Run::start(settings, pace)?;
    let mut message = Message::empty();
    'messages: while !run.finished(stop) && generator.advance(&mut message) {
        while !run.due() || !admits(&message) {
            run.wait();
            if run.ended(stop) {
                break 'messages;
            }
        }
        let topic = &generator.plan().topics[message.topic].name;
        if !run.queue(topic, &message, stop)? {
            break;
        }
        run.tally.add(&message);
    }
    run.finish()
}

/// One run being sent.
struct Run {
    producer: BaseProducer<Context>,
    deliveries: Arc<Deliveries>,
    pace: Pace,
    started: Instant,
    /// Messages that the pace allows so far: saves looking at the clock for each.
    allowed: u64,
    tally: Tally,
}

impl Run {
    fn start(settings: &Settings, pace: Pace) -> Result<Self, Error> {
        let deliveries = Arc::new(Deliveries::default());
        let producer: BaseProducer<Context> =
            settings.producer().create_with_context(Context(deliveries.clone())).map_err(Error::Client)?;
        Ok(Run { producer, deliveries, pace, started: Instant::now(), allowed: 0, tally: Tally::default() })
    }

    /// Serves delivery reports now and then, and says whether the run ends here.
    fn finished(&self, stop: &AtomicBool) -> bool {
        if !self.tally.messages.is_multiple_of(MESSAGES_PER_POLL) {
            return false;
        }
        self.producer.poll(Timeout::After(Duration::ZERO));
        self.ended(stop)
    }

    fn ended(&self, stop: &AtomicBool) -> bool {
        let failed = self.deliveries.failed.load(Ordering::Relaxed) > 0;
        failed || stop.load(Ordering::Relaxed) || self.pace.over(self.started.elapsed())
    }

    /// Waits a moment, with an eye on delivery reports. The client's own wait turns into a busy one below a millisecond.
    fn wait(&self) {
        self.producer.poll(Timeout::After(Duration::ZERO));
        std::thread::sleep(PAUSE);
    }

    /// True if the pace lets the next message go.
    fn due(&mut self) -> bool {
        if self.tally.messages >= self.allowed {
            self.allowed = self.pace.allowed(self.started.elapsed());
        }
        self.tally.messages < self.allowed
    }

    /// Hands a message to the producer, waiting while its queue is full; false when the run ended meanwhile.
    fn queue(&self, topic: &str, message: &Message, stop: &AtomicBool) -> Result<bool, Error> {
        // No timestamp is set: Kafka's is the time of sending. Event times may be years old, and brokers delete by timestamp.
        let mut record = BaseRecord::<str, [u8], ()>::to(topic).partition(message.partition);
        record.key = message.key();
        record.payload = message.payload();
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(true),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => record = back,
                Err((source, _)) => return Err(Error::Queue { index: message.index, source }),
            }
            self.wait();
            if self.ended(stop) {
                return Ok(false);
            }
        }
    }

    /// Waits for all delivery reports.
    fn finish(self) -> Result<Sent, Error> {
        // One more second than messages live: by then each has its report, good or bad.
        let flushed = self.producer.flush(DELIVERY_TIMEOUT + Duration::from_secs(1));
        if let Err(error) = flushed {
            self.producer.purge(PurgeConfig::default().queue().inflight());
            self.producer.poll(Duration::from_millis(100));
            warn!(%error, "giving up on messages without acknowledgement");
        }
        let queued = self.tally.messages;
        let delivered = self.deliveries.delivered.load(Ordering::Relaxed);
        if delivered != queued {
            return Err(Error::Undelivered { failed: queued - delivered, queued, first: self.deliveries.first_error() });
        }
        Ok(Sent { tally: self.tally, delivered, elapsed: self.started.elapsed() })
    }
}
