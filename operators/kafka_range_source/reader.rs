//! The thread that reads the range: always on from the partition that is furthest behind.
//!
//! ```text
//!            partition queues of the client      batches being filled
//!  t[0]  ..  e3 e3 e2   ------------------------>  e2  \
//!  t[1]  ..  e5 e4 e4   ------------------------>  e4   > the one of the least epoch is read on; whenever its epoch ends
//!  t[2]  ..  e9 e9 e9   ------------------------>  e9  /  or its batch is full, the batch is given to the feed
//! ```
//!
//! So batches come in the order of their epochs, and no partition is read ahead of the others by more than the client prefetches.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{info, warn};

use super::{BATCH_BYTES, BATCH_RECORDS, Config, Epochs, NAME, OffsetRange, PREFETCH_BYTES, Ranges, Stats, range_of};
use crate::batch::RawBatch;
use crate::budget::{Budget, Load};
use crate::capture::Recorded;
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;
use crate::kafka_client::{self, Login};
use crate::kafka_source::collector::{BatchLimits, Collector, Message};
use crate::kafka_source::consumer::{CALL_TIMEOUT, Covered};
use crate::kafka_source::headers;
use crate::kafka_source::pool::ArenaPool;
use crate::kafka_source::resume;

/// How long is waited for a message at a time.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// Messages read between two looks at what the client has to say.
const SERVED_EVERY: u32 = 1_000;
/// Between two lines that tell that nothing comes.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Between two attempts to ask a broker.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Arenas kept for the next batches.
const ARENAS: usize = 64;

type Queue = PartitionQueue<DefaultConsumerContext>;
type Put<'a> = dyn FnMut(Recorded<RawBatch>) -> bool + 'a;

/// Reads the range of `config` into `put`, to its end or until `is_over`.
pub fn read(
    config: &Config,
    covered: &dyn Covered,
    stats: &Stats,
    is_over: &dyn Fn() -> bool,
    put: &mut Put<'_>,
) -> Result<(), String> {
    match Assigned::new(config, covered, stats, is_over)? {
        Some(assigned) => assigned.read(stats, put),
        None => Ok(()),
    }
}

/// The range, found, and a client that has begun to fetch it.
pub(super) struct Assigned<'a> {
    asker: Asker<'a>,
    pub(super) client: Client,
    parts: Vec<Part>,
    budget: Arc<Budget>,
}

impl<'a> Assigned<'a> {
    /// `None` if it is over before.
    pub(super) fn new(
        config: &Config,
        covered: &dyn Covered,
        stats: &Stats,
        is_over: &'a dyn Fn() -> bool,
    ) -> Result<Option<Self>, String> {
        let asker = Asker { client: Client::new(&config.client, 1)?, is_over };
        let Some((cluster, places)) = asker.cluster_and_places(&config.ranges)? else { return Ok(None) };
        let total: i64 = places.values().map(|found| found.wanted.end - found.wanted.start).sum();
        stats.total_offsets.store(total as u64, Ordering::Relaxed);
        info!(partitions = places.len(), offsets = total, "reading a range of Kafka");
        let client = Client::new(&config.client, places.len())?;
        // The feed charges batches to the budget of the process when it emits them.
        let budget = Budget::new(Load { bytes: usize::MAX, messages: usize::MAX });
        let (mut parts, mut positions) = (Vec::with_capacity(places.len()), TopicPartitionList::new());
        for ((topic, partition), Found { wanted, high }) in places.iter().filter(|(_, found)| !found.wanted.is_empty()) {
            let added = positions.add_partition_offset(topic, *partition, Offset::Offset(wanted.start));
            added.map_err(|error| format!("{topic}[{partition}]: {error}"))?;
            let key = key_of(covered, &cluster, topic, *partition, *high)?;
            let collector = Collector::new(key.clone(), wanted.start, budget.lane(&key));
            parts.push(Part { collector, end: wanted.end, epochs: Epochs::new(config.epoch_interval_ms, places.len()) });
        }
        client.consumer.assign(&positions).map_err(|error| format!("assigning the partitions: {error}"))?;
        Ok(Some(Assigned { asker, client, parts, budget }))
    }

    pub(super) fn read(self, stats: &Stats, put: &mut Put<'_>) -> Result<(), String> {
        let Assigned { asker, client, parts, budget } = self;
        let queues = parts.iter().map(|part| client.queue_of(part.collector.partition())).collect::<Result<Vec<_>, _>>()?;
        // What was fetched before its partition had a queue of its own lies elsewhere, and what came behind it would look like all there is.
        // So every partition begins anew: of what was fetched before, the client hands out nothing any more.
        for part in &parts {
            if asker.patiently_with(&client, "beginning to read", |consumer| part.seek_to_start(consumer))?.is_none() {
                return Ok(());
            }
        }
        let (pool, is_over) = (ArenaPool::new(ARENAS, BATCH_BYTES, false), asker.is_over);
        Merge { client: &client, parts, budget, pool, stats, is_over, put, unserved: SERVED_EVERY, silent: None }.run(&queues)
    }
}

/// The partition, in the last of the topics that have had this name.
fn key_of(covered: &dyn Covered, cluster: &Arc<str>, topic: &str, partition: i32, high: i64) -> Result<PartitionKey, String> {
    let covered_of = |key: &PartitionKey| covered.covered(key).map_err(|error| format!("asking the catalog: {error}"));
    let key_of = |incarnation| PartitionKey::of_incarnation(cluster, &topic.into(), partition, incarnation);
    let mut incarnation = 0;
    loop {
        let (key, next) = (key_of(incarnation), key_of(incarnation + 1));
        let is_former = covered_of(&next)?.ranges().next().is_some() || resume::ends_beyond(&covered_of(&key)?, high);
        if !is_former {
            return Ok(key);
        }
        incarnation += 1;
    }
}

/// A consumer outside of any group.
pub(super) struct Client {
    pub(super) consumer: Arc<BaseConsumer>,
    login: Login,
}

impl Client {
    fn new(properties: &BTreeMap<String, String>, partitions: usize) -> Result<Self, String> {
        let (mut config, login) = kafka_client::settings(properties);
        config.set_log_level(RDKafkaLogLevel::Warning);
        config.remove("group.instance.id");
        // Counted for each partition, as each has a queue of its own.
        let prefetch_kib = (PREFETCH_BYTES / 1024 / partitions.max(1)).max(64).to_string();
        let own = [
            // librdkafka wants a group's name; nothing is ever committed.
            ("group.id", NAME),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            // What retention removes meanwhile must not be left out in silence.
            ("auto.offset.reset", "error"),
            ("queued.max.messages.kbytes", prefetch_kib.as_str()),
            ("statistics.interval.ms", "0"),
        ];
        for (name, value) in own {
            config.set(name, value);
        }
        let consumer: BaseConsumer = config.create().map_err(|error| format!("making a Kafka client: {error}"))?;
        login.renew(consumer.client());
        Ok(Client { consumer: Arc::new(consumer), login })
    }

    fn queue_of(&self, partition: &PartitionKey) -> Result<Queue, String> {
        let queue = self.consumer.split_partition_queue(&partition.topic.name, partition.partition);
        queue.ok_or_else(|| format!("{partition}: the client has no queue for it"))
    }
}

/// What is to be read of a partition.
struct Found {
    wanted: Range<i64>,
    /// One past the last offset that the broker has.
    high: i64,
}

type Places = BTreeMap<(String, i32), Found>;

/// Finds out what there is.
struct Asker<'a> {
    client: Client,
    is_over: &'a dyn Fn() -> bool,
}

impl Asker<'_> {
    /// `None` if it is over before a broker has answered.
    fn cluster_and_places(&self, asked: &Ranges) -> Result<Option<(Arc<str>, Places)>, String> {
        let cluster = self.patiently("asking for the cluster's id", |consumer| {
            let id = consumer.client().fetch_cluster_id(CALL_TIMEOUT);
            id.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure))
        })?;
        let places = if cluster.is_some() { self.places(asked)? } else { None };
        Ok(cluster.map(Arc::from).zip(places))
    }

    fn places(&self, asked: &Ranges) -> Result<Option<Places>, String> {
        // Asking for all topics does not create the one that is missing, asking for one may.
        let metadata = self.patiently("asking for the topics", |consumer| consumer.fetch_metadata(None, CALL_TIMEOUT))?;
        let Some(metadata) = metadata else { return Ok(None) };
        let partitions_of = |topic: &rdkafka::metadata::MetadataTopic| topic.partitions().iter().map(|one| one.id()).collect();
        let topics: BTreeMap<&str, Vec<i32>> =
            metadata.topics().iter().map(|topic| (topic.name(), partitions_of(topic))).collect();
        match asked {
            Ranges::Offsets(ranges) => self.by_offsets(&topics, ranges),
            Ranges::Times(patterns, since, until) => {
                let places = topics.iter().filter(|(topic, _)| patterns.matches(topic));
                let places = places.flat_map(|(topic, partitions)| partitions.iter().map(|partition| (*topic, *partition)));
                let Some(mut places) = self.whole(places)? else { return Ok(None) };
                if places.is_empty() {
                    return Err("no topic matches".to_owned());
                }
                let since = self.bound(&mut places, *since, |wanted, first| wanted.start = first)?;
                let until = self.bound(&mut places, *until, |wanted, first| wanted.end = first)?;
                Ok(since.and(until).map(|()| places))
            }
        }
    }

    fn by_offsets(&self, topics: &BTreeMap<&str, Vec<i32>>, ranges: &[OffsetRange]) -> Result<Option<Places>, String> {
        let is_there = |range: &OffsetRange| match topics.get(range.topic.as_str()) {
            None => Err(format!("there is no topic {}", range.topic)),
            Some(partitions) if !partitions.contains(&range.partition) => {
                Err(format!("topic {} has {} partitions, and none of number {}", range.topic, partitions.len(), range.partition))
            }
            Some(_) => Ok(()),
        };
        ranges.iter().try_for_each(is_there)?;
        let Some(mut places) = self.whole(ranges.iter().map(|range| (range.topic.as_str(), range.partition)))? else {
            return Ok(None);
        };
        for OffsetRange { topic, partition, start, end } in ranges {
            if let Some(Found { wanted, .. }) = places.get_mut(&(topic.clone(), *partition)) {
                *wanted = range_of(&format!("{topic}[{partition}]"), (*start, *end), wanted.clone())?;
            }
        }
        Ok(Some(places))
    }

    /// All that the broker has of these partitions.
    fn whole<'t>(&self, partitions: impl Iterator<Item = (&'t str, i32)>) -> Result<Option<Places>, String> {
        let mut places = Places::new();
        for (topic, partition) in partitions {
            let doing = format!("asking for the offsets of {topic}[{partition}]");
            let there = self.patiently(&doing, |consumer| consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT))?;
            let Some((low, high)) = there else { return Ok(None) };
            places.insert((topic.to_owned(), partition), Found { wanted: low..high, high });
        }
        Ok(Some(places))
    }

    /// Tells `set` the first offset of each partition whose message is of `time` or later, within what is wanted; its end if none is.
    fn bound(&self, places: &mut Places, time: Option<i64>, set: impl Fn(&mut Range<i64>, i64)) -> Result<Option<()>, String> {
        let Some(time) = time else { return Ok(Some(())) };
        let firsts = self.patiently("asking for offsets by time", |consumer| {
            let mut times = TopicPartitionList::new();
            for (topic, partition) in places.keys() {
                times.add_partition_offset(topic, *partition, Offset::Offset(time))?;
            }
            let firsts = consumer.offsets_for_times(times, CALL_TIMEOUT)?;
            firsts.elements().iter().try_for_each(|element| element.error())?;
            Ok(firsts)
        })?;
        let Some(firsts) = firsts else { return Ok(None) };
        for ((topic, partition), Found { wanted, .. }) in places.iter_mut() {
            let first = match firsts.find_partition(topic, *partition).map(|element| element.offset()) {
                Some(Offset::Offset(first)) => first.clamp(wanted.start, wanted.end),
                _ => wanted.end,
            };
            set(wanted, first);
        }
        Ok(Some(()))
    }

    /// Asks until there is an answer. `None` if it is over before. What no waiting mends fails.
    fn patiently<T>(&self, doing: &str, ask: impl Fn(&BaseConsumer) -> KafkaResult<T>) -> Result<Option<T>, String> {
        self.patiently_with(&self.client, doing, ask)
    }

    fn patiently_with<T>(
        &self,
        client: &Client,
        doing: &str,
        ask: impl Fn(&BaseConsumer) -> KafkaResult<T>,
    ) -> Result<Option<T>, String> {
        let mut told: Option<Instant> = None;
        while !(self.is_over)() {
            client.login.renew(client.consumer.client());
            match ask(&client.consumer) {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) if is_final(&error) => return Err(format!("{doing}: {error}")),
                Err(error) => {
                    if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                        told = Some(Instant::now());
                        warn!(%error, "{doing}: no broker answers, trying again");
                    }
                    // Serves what the client has to say as well; no message is wanted yet.
                    let _ = client.consumer.poll(ASK_AGAIN_AFTER);
                }
            }
        }
        Ok(None)
    }
}

/// True for what no waiting mends.
fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let refused = [
        Code::TopicAuthorizationFailed,
        Code::ClusterAuthorizationFailed,
        Code::GroupAuthorizationFailed,
        Code::SaslAuthenticationFailed,
        Code::UnknownTopicOrPartition,
        Code::UnknownTopic,
        Code::UnknownPartition,
        Code::OffsetOutOfRange,
        Code::AutoOffsetReset,
        Code::Fatal,
    ];
    error.rdkafka_error_code().is_some_and(|code| refused.contains(&code))
}

/// A partition that is read.
struct Part {
    collector: Collector,
    end: i64,
    epochs: Epochs,
}

impl Part {
    /// Fails as long as the client has not begun to fetch the partition.
    fn seek_to_start(&self, consumer: &BaseConsumer) -> KafkaResult<()> {
        let PartitionKey { topic, partition, .. } = self.collector.partition();
        consumer.seek(&topic.name, *partition, Offset::Offset(self.collector.next()), CALL_TIMEOUT)
    }

    fn told(&self, error: &KafkaError) -> String {
        let (partition, offset) = (self.collector.partition(), self.collector.next());
        format!("{partition}: reading offset {offset}: {error}; if retention has removed it meanwhile, begin later")
    }
}

/// What became of a look at a partition's queue.
enum Look {
    /// One message was read.
    Read,
    /// None has come yet.
    Nothing,
    /// The partition is read.
    End,
    /// Nothing more is wanted.
    Over,
}

struct Merge<'a, 'p> {
    client: &'a Client,
    parts: Vec<Part>,
    budget: Arc<Budget>,
    pool: ArenaPool,
    stats: &'a Stats,
    is_over: &'a dyn Fn() -> bool,
    put: &'a mut Put<'p>,
    /// Messages to be read before the client is served again.
    unserved: u32,
    /// Since when nothing has come, or since that was told.
    silent: Option<Instant>,
}

impl Merge<'_, '_> {
    fn run(mut self, queues: &[Queue]) -> Result<(), String> {
        // The least epoch that the next batch of each partition may have; none is known before its first message.
        let mut behind: BinaryHeap<Reverse<(Epoch, usize)>> = (0..self.parts.len()).map(|at| Reverse((Epoch(0), at))).collect();
        while let Some(Reverse((_, at))) = behind.pop() {
            let next = behind.peek().map_or(Epoch(u64::MAX), |Reverse((epoch, _))| *epoch);
            loop {
                match self.look(at, &queues[at])? {
                    Look::Read if self.parts[at].epochs.current > next => {
                        behind.push(Reverse((self.parts[at].epochs.current, at)));
                        break;
                    }
                    Look::Nothing if (self.is_over)() => return Ok(()),
                    Look::Read | Look::Nothing => {}
                    Look::End => break,
                    Look::Over => return Ok(()),
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, at: usize, queue: &Queue) -> Result<Look, String> {
        self.serve()?;
        let message = match queue.poll(POLL_WAIT) {
            Some(Ok(message)) => message,
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(self.end(at)),
            Some(Err(error)) if is_final(&error) => return Err(self.parts[at].told(&error)),
            Some(Err(error)) => return Ok(self.nothing(at, Some(&error))),
            None => return Ok(self.nothing(at, None)),
        };
        self.silent = None;
        let Part { collector, end, epochs } = &mut self.parts[at];
        if message.offset() >= *end {
            return Ok(self.end(at));
        }
        if message.offset() < collector.next() {
            return Ok(Look::Read);
        }
        let timestamp_ms = message.timestamp().to_millis().unwrap_or(-1);
        let before = epochs.current;
        let epoch = epochs.place(timestamp_ms, message.payload_len() + message.key_len());
        // What is open is of an earlier epoch, and goes first.
        let earlier = if epoch > before { collector.close(&self.pool) } else { None };
        let taken = Message { offset: message.offset(), timestamp_ms, key: message.key(), payload: message.payload() };
        // Tokens are looked at as of the message's time.
        if let Some(bytes) = collector.push(&taken, headers::of(&message), &self.pool, epoch.0) {
            self.budget.collect(Load { bytes, messages: 1 });
        }
        let limits = BatchLimits { records_max: BATCH_RECORDS, bytes_max: BATCH_BYTES, timeout_ms: 0 };
        let is_last = collector.next() >= *end;
        let full = if collector.is_full(&limits) && !is_last { collector.close(&self.pool) } else { None };
        for (epoch, batch) in earlier.map(|batch| (before, batch)).into_iter().chain(full.map(|batch| (epoch, batch))) {
            if !self.give(epoch, batch) {
                return Ok(Look::Over);
            }
        }
        Ok(if is_last { self.end(at) } else { Look::Read })
    }

    fn nothing(&mut self, at: usize, error: Option<&KafkaError>) -> Look {
        let silent = *self.silent.get_or_insert_with(Instant::now);
        if silent.elapsed() >= TOLD_EVERY {
            self.silent = Some(Instant::now());
            let (partition, offset) = (self.parts[at].collector.partition(), self.parts[at].collector.next());
            warn!(%partition, offset, error = error.map(ToString::to_string), "no message comes from Kafka, waiting");
        }
        Look::Nothing
    }

    /// Accounts for the rest of the range, which Kafka does not hand out.
    fn end(&mut self, at: usize) -> Look {
        let Part { collector, end, epochs } = &mut self.parts[at];
        let (epoch, end) = (epochs.current, *end);
        let last = match collector.close(&self.pool) {
            Some(batch) => RawBatch { end, ..batch },
            None => {
                let (partition, emitted) = collector.emitted();
                if emitted.end >= end {
                    return Look::End;
                }
                empty(partition.clone(), emitted.end..end)
            }
        };
        if self.give(epoch, last) { Look::End } else { Look::Over }
    }

    fn give(&mut self, epoch: Epoch, batch: RawBatch) -> bool {
        let add = |counter: &AtomicU64, value: usize| counter.fetch_add(value as u64, Ordering::Relaxed);
        add(&self.stats.batches, 1);
        add(&self.stats.records, batch.records.len());
        add(&self.stats.read_bytes, batch.arena.len());
        add(&self.stats.read_offsets, (batch.end - batch.start) as usize);
        (self.put)(Recorded { epoch, batch })
    }

    /// Lets the client say what it has to say: it must be polled beside its partitions' queues.
    fn serve(&mut self) -> Result<(), String> {
        self.unserved = self.unserved.saturating_sub(1);
        if self.unserved > 0 && self.silent.is_none() {
            return Ok(());
        }
        self.unserved = SERVED_EVERY;
        self.client.login.renew(self.client.consumer.client());
        while let Some(polled) = self.client.consumer.poll(Duration::ZERO) {
            match polled {
                Err(error) if is_final(&error) => return Err(format!("reading: {error}")),
                Err(_) => {}
                Ok(message) => {
                    let (topic, number, offset) = (message.topic(), message.partition(), message.offset());
                    return Err(format!("{topic}[{number}]: offset {offset} came out of turn; report this, please"));
                }
            }
        }
        Ok(())
    }
}

fn empty(partition: PartitionKey, offsets: Range<i64>) -> RawBatch {
    let Range { start, end } = offsets;
    RawBatch { partition, start, end, arena: Default::default(), records: Vec::new(), polled_ms: 0, charge: Default::default() }
}
