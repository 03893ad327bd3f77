//! The load: several topics of different signals, with duplicates, invalid messages and tombstones, at a steady pace that catches up
//! after the broker was away. Each message carries its number, so that the check can make it again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use openwit_ingest::generate::{Format, Generator, Kind, Message, Plan, Ppm, Topic};
use openwit_operators::batch::Signal;
use openwit_operators::kafka_client::{BrokerWatch, STATISTICS_INTERVAL_MS};
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

/// The header that holds a message's number in the load of its topic.
pub const INDEX_HEADER: &str = "soak-index";
/// How long the broker may take to acknowledge the last messages, once it is up.
const FLUSH_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the clock: short against a batch of the producer.
const PAUSE: Duration = Duration::from_millis(5);

/// One topic's share of the load.
struct Share {
    topic: &'static str,
    partitions: i32,
    signal: Signal,
    format: Format,
    records_per_message: usize,
    /// Of all rows.
    part: f64,
}

/// Batches of spans make most rows, single log lines most messages, and metrics the widest columns.
const SHARES: [Share; 3] = [
    Share {
        topic: "v6.soak.traces.shop.eu",
        partitions: 8,
        signal: Signal::Traces,
        format: Format::Otlp,
        records_per_message: 50,
        part: 0.82,
    },
    Share {
        topic: "v6.soak.logs.app.eu",
        partitions: 4,
        signal: Signal::Logs,
        format: Format::Json,
        records_per_message: 1,
        part: 0.1,
    },
    Share {
        topic: "v6.soak.metrics.host.eu",
        partitions: 4,
        signal: Signal::Metrics,
        format: Format::Otlp,
        records_per_message: 40,
        part: 0.08,
    },
];

/// A plan and its pace.
#[derive(Clone)]
pub struct Feed {
    /// What is sent.
    pub plan: Plan,
    /// Messages per second.
    pub rate: f64,
}

impl Feed {
    /// The topic.
    pub fn topic(&self) -> &Topic {
        &self.plan.topics[0]
    }
}

/// The feeds that make `rows_per_second` together; message times begin at `start_time_ns`.
pub fn feeds(rows_per_second: f64, seed: u64, start_time_ns: u64) -> Vec<Feed> {
    let feed = |(share, seed): (&Share, u64)| {
        let rate = rows_per_second * share.part / share.records_per_message as f64;
        let topic = Topic { name: share.topic.into(), partitions: share.partitions };
        let plan = Plan {
            topics: vec![topic],
            format: share.format,
            signal: share.signal,
            count: None,
            records_per_message: share.records_per_message,
            message_bytes_min: 0,
            duplicates: Ppm(30_000),
            invalid: Ppm(10_000),
            tombstones: Ppm(3_000),
            seed,
            keyed: false,
            start_time_ns,
            time_step_ns: (1e9 / rate) as u64,
        };
        Feed { plan, rate }
    };
    SHARES.iter().zip(seed..).map(feed).collect()
}

/// What was sent so far.
#[derive(Default)]
pub struct Progress {
    /// Messages the broker acknowledged.
    pub acknowledged: AtomicU64,
    /// Messages it refused.
    pub refused: AtomicU64,
}

/// Counts delivery reports.
struct Reports<'a> {
    progress: &'a Progress,
    brokers: BrokerWatch,
}

impl ClientContext for Reports<'_> {
    fn stats(&self, statistics: rdkafka::Statistics) {
        self.brokers.note(&statistics);
    }
}

impl ProducerContext for Reports<'_> {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {
        let counter = if result.is_ok() { &self.progress.acknowledged } else { &self.progress.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends until `stop`, then waits for all acknowledgements. Every message must be acknowledged, however long the broker is away.
pub fn send(brokers: &str, feeds: &[Feed], stop: &AtomicBool, progress: &Progress) -> anyhow::Result<()> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "soak-load")
        .set("enable.idempotence", "true")
        .set("compression.codec", "zstd")
        .set("linger.ms", "20")
        .set("message.max.bytes", "20000000")
        .set("queue.buffering.max.kbytes", "65536")
        .set("queue.buffering.max.messages", "200000")
        .set("reconnect.backoff.max.ms", "500")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS)
        // No message expires.
        .set("message.timeout.ms", "0")
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Critical);
    let producer = BaseProducer::from_config_and_context(&config, Reports { progress, brokers: BrokerWatch::default() })
        .context("creating the producer")?;
    let mut cursors = feeds.iter().map(Cursor::new).collect::<anyhow::Result<Vec<_>>>()?;
    let since = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let elapsed = since.elapsed().as_secs_f64();
        for cursor in &mut cursors {
            cursor.catch_up(elapsed, &producer, stop)?;
        }
        producer.poll(PAUSE);
        producer.context().brokers.revive(producer.client(), brokers);
        anyhow::ensure!(progress.refused.load(Ordering::Relaxed) == 0, "the broker refused a message of the load");
    }
    let since = Instant::now();
    while producer.in_flight_count() > 0 {
        producer.poll(PAUSE);
        producer.context().brokers.revive(producer.client(), brokers);
        anyhow::ensure!(since.elapsed() < FLUSH_PATIENCE, "the broker did not acknowledge the load within {FLUSH_PATIENCE:?}");
    }
    let sent: u64 = cursors.iter().map(|cursor| cursor.next).sum();
    let acknowledged = progress.acknowledged.load(Ordering::Relaxed);
    anyhow::ensure!(acknowledged == sent, "{sent} messages were sent, {acknowledged} acknowledged");
    Ok(())
}

/// How far a feed has got.
struct Cursor {
    generator: Generator,
    message: Message,
    rate: f64,
    next: u64,
}

impl Cursor {
    fn new(feed: &Feed) -> anyhow::Result<Self> {
        Ok(Cursor { generator: Generator::new(feed.plan.clone())?, message: Message::empty(), rate: feed.rate, next: 0 })
    }

    /// Sends what is due after `elapsed` seconds.
    fn catch_up(&mut self, elapsed: f64, producer: &BaseProducer<Reports<'_>>, stop: &AtomicBool) -> anyhow::Result<()> {
        let due = (elapsed * self.rate) as u64;
        while self.next < due && !stop.load(Ordering::Relaxed) {
            self.generator.fill(self.next, &mut self.message);
            if !send_one(producer, self.generator.plan(), &self.message)? {
                // The queue is full: the broker is away, or slow.
                return Ok(());
            }
            self.next += 1;
        }
        Ok(())
    }
}

/// The partition of a message. A duplicate goes where its original went, as it would for a producer that sends by key: a pipeline of
/// several processes finds duplicates within a partition only.
pub fn partition(plan: &Plan, index: u64, kind: Kind) -> i32 {
    plan.route(if let Kind::Duplicate { of } = kind { of } else { index }).1
}

/// Queues one message; false if the queue is full.
fn send_one(producer: &BaseProducer<Reports<'_>>, plan: &Plan, message: &Message) -> anyhow::Result<bool> {
    let index = message.index.to_string();
    let headers = OwnedHeaders::new().insert(Header { key: INDEX_HEADER, value: Some(&index) });
    let partition = partition(plan, message.index, message.kind);
    let mut record = BaseRecord::<str, [u8], ()>::to(&plan.topics[0].name).partition(partition).headers(headers);
    record.payload = message.payload();
    match producer.send(record) {
        Ok(()) => Ok(true),
        Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
        Err((error, _)) => Err(error).context("queueing a message"),
    }
}
