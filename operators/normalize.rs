//! Operator `normalize`: every accepted payload leaves as OTLP protobuf of its topic's signal (design D-3).
//!
//! # In
//! `RawBatch`: the messages of one poll of one partition, in offset order.
//!
//! # Out
//! `NormalizedBatch`: for each `RawBatch` one, with its coverage, even if no message was accepted. `Reject`: each message that failed,
//! with its reason.
//!
//! # Holds
//! The routes of the topics seen, and buffers for the record at hand. No message, no capability.
//!
//! # Closes when
//! Its input closes: it keeps nothing back.
//!
//! # Fails when
//! Never for what a message holds: that is a `Reject`. A batch whose records are not ascending inside its own range breaks the
//! coverage, which is the source's promise: that panics.
//!
//! # Invariants
//! - Each offset of the batch's range is exactly one of: accepted, rejected, skipped (a tombstone, by policy), absent.
//! - Every payload that leaves passed the same walk, `otlp_proto`, whether it came as protobuf or was written here: decoding cannot fail.
//! - The outcome for a message depends on its bytes, its topic's name and the config, not on its batch or on time (design D-8).
//!
//! ```text
//! payload > format of its topic > otlp_proto                                    walk     > Arena::Raw, untouched
//!                               > otlp_json | json | raw > written as protobuf > walk     > Arena::Written
//!         > dataset schema of its index, if there is one: what does not conform is rewritten > walk > Arena::Written
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::batch::{Arena, Group, NormalizedBatch, RawBatch, RawRecord, Reason, Record, Reject, Signal, Span, headers};
use crate::coverage::{Coverage, PartitionKey};
use crate::dataset::Schema;
use crate::epoch::Epoch;
use crate::fault::Health;

mod dataset;
mod detect;
mod failure;
mod hex;
pub mod index;
mod json;
mod json_text;
mod otlp_json;
mod otlp_proto;
mod raw;
mod write;

#[cfg(test)]
mod tests;

use dataset::{Datasets, Plan};
use failure::{Checked, Failure};
use index::{IndexRules, Router, UNINDEXED};
use otlp_proto::Rules;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "normalize";

/// How payloads are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// OTLP protobuf, OTLP JSON or plain JSON, told apart message by message.
    #[default]
    Auto,
    /// OTLP protobuf.
    OtlpProto,
    /// OTLP JSON.
    OtlpJson,
    /// One flat JSON object per message.
    Json,
    /// A line of text per message, for logs only.
    Raw,
}

/// What happens to a message without a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TombstonePolicy {
    /// It is dropped and counted: in a log of telemetry it says nothing.
    #[default]
    Skip,
    /// It is rejected as `empty`.
    Reject,
}

/// What tells two messages to be the same.
///
/// Where the configured id is absent or empty, the payload's hash takes its place: one empty id must not make all messages one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MessageKey {
    /// A hash of the payload as it came.
    #[default]
    PayloadHash,
    /// The message's Kafka key.
    KafkaKey,
    /// The value of the header of this name; the last, if there are several.
    Header(String),
}

/// Limits on a payload. What is over one is a reject, `too_large` or `too_deep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Levels of values inside one another; default 64. JSON also ends at 128 levels of its own, so OTLP JSON holds about 30.
    pub depth_max: u32,
    /// Bytes of one span, log record or data point with its metric, scope and resource; default 3 MiB. Larger than what fits a Flight
    /// message, and `arrow_encode` has to reject it.
    pub row_bytes_max: usize,
    /// Bytes of one payload as it came; default 64 MiB. Too small, and big exports are rejected whole.
    pub payload_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // gRPC's default of 4 MiB, less a quarter for what Arrow adds; Kafka brokers are rarely configured beyond tens of MiB a message.
        Limits { depth_max: 64, row_bytes_max: 3 << 20, payload_bytes_max: 64 << 20 }
    }
}

/// How messages are normalized.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How payloads are encoded, where no pattern says otherwise.
    pub format: Format,
    /// The signal topics carry, where no pattern says otherwise. May be left out only if no topic can need it.
    pub telemetry_type: Option<Signal>,
    /// Which index a topic's messages belong to.
    pub topics: IndexRules,
    /// What rows must be like, by index and signal; the first that fits counts. An index without a schema takes what OTLP allows.
    pub datasets: Arc<[Schema]>,
    /// What happens to messages without a payload.
    pub tombstones: TombstonePolicy,
    /// What tells two messages to be the same.
    pub message_key: MessageKey,
    /// Limits on a payload.
    pub limits: Limits,
    /// Payloads that pass untouched stay in the source's arena, which then lives until the last of them is delivered. If false they
    /// are copied out, and the arena with its keys, headers and rejects returns to the pool at once: slower, less memory.
    pub zero_copy: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            format: Format::default(),
            telemetry_type: None,
            topics: IndexRules::default(),
            datasets: Arc::default(),
            tombstones: TombstonePolicy::default(),
            message_key: MessageKey::default(),
            limits: Limits::default(),
            zero_copy: true,
        }
    }
}

/// Why a `Config` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The index rules are wrong.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// Some topic's signal would be unknown.
    #[error("telemetry_type is needed: a topic that no pattern with a signal matches would have none")]
    SignalMissing,
    /// Raw text has no form for spans or data points.
    #[error("format raw carries logs only, but {place} sets {signal}")]
    RawNotLogs {
        /// Which entry combines them.
        place: String,
        /// The signal.
        signal: Signal,
    },
    /// A limit of nothing rejects everything.
    #[error("{key} must be at least 1")]
    ZeroLimit {
        /// The limit.
        key: &'static str,
    },
    /// A dataset schema is wrong.
    #[error("{0}")]
    Dataset(String),
    /// A header's name is empty.
    #[error("message_key names a header without a name")]
    HeaderUnnamed,
}

impl Config {
    /// Every problem, not just the first.
    pub fn problems(&self) -> Vec<ConfigError> {
        let mut problems: Vec<ConfigError> = Router::new(self.topics.clone()).err().map(ConfigError::from).into_iter().collect();
        let patterns = &self.topics.patterns;
        let indexed_by_default = self.topics.default_index_position.is_some() || self.topics.auto_generate.enabled;
        let by_patterns = !patterns.is_empty() && patterns.iter().all(|pattern| pattern.signal.is_some());
        if self.telemetry_type.is_none() && (indexed_by_default || !by_patterns) {
            problems.push(ConfigError::SignalMissing);
        }
        let mut check_raw = |place: String, format: Format, signal: Option<Signal>| match signal {
            Some(signal @ (Signal::Traces | Signal::Metrics)) if format == Format::Raw => {
                problems.push(ConfigError::RawNotLogs { place, signal });
            }
            _ => {}
        };
        check_raw("telemetry_type".to_owned(), self.format, self.telemetry_type);
        for (position, pattern) in patterns.iter().enumerate() {
            let place = format!("topic_index_config.patterns[{position}]");
            check_raw(place, pattern.format.unwrap_or(self.format), pattern.signal.or(self.telemetry_type));
        }
        let Limits { depth_max, row_bytes_max, payload_bytes_max } = self.limits;
        let limits =
            [("depth_max", depth_max as usize), ("row_bytes_max", row_bytes_max), ("payload_bytes_max", payload_bytes_max)];
        problems.extend(limits.into_iter().filter(|&(_, limit)| limit == 0).map(|(key, _)| ConfigError::ZeroLimit { key }));
        problems.extend(Datasets::new(&self.datasets).err().map(ConfigError::Dataset));
        if self.message_key == MessageKey::Header(String::new()) {
            problems.push(ConfigError::HeaderUnnamed);
        }
        problems
    }
}

/// What became of one `RawBatch`.
#[derive(Debug)]
pub struct Normalized {
    /// The accepted messages, and the coverage of all.
    pub batch: NormalizedBatch,
    /// The messages that failed, in offset order.
    pub rejects: Vec<Reject>,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Counters.
    pub stats: Arc<Stats>,
    /// Where faults go.
    pub health: Health,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages accepted.
    pub accepted: AtomicU64,
    /// Messages dropped by policy.
    pub skipped: AtomicU64,
    /// Messages rejected.
    pub rejected: AtomicU64,
    by_reason: Mutex<BTreeMap<Reason, u64>>,
}

impl Stats {
    /// Messages rejected, by reason.
    pub fn by_reason(&self) -> BTreeMap<Reason, u64> {
        self.by_reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, normalized: &Normalized) {
        self.accepted.fetch_add(normalized.batch.records.len() as u64, Ordering::Relaxed);
        self.skipped.fetch_add(normalized.batch.coverage.skipped.len() as u64, Ordering::Relaxed);
        if normalized.rejects.is_empty() {
            return;
        }
        self.rejected.fetch_add(normalized.rejects.len() as u64, Ordering::Relaxed);
        let mut by_reason = self.by_reason.lock().unwrap_or_else(PoisonError::into_inner);
        for reject in &normalized.rejects {
            *by_reason.entry(reject.reason).or_default() += 1;
        }
    }
}

/// The operator's output streams.
pub struct Outputs<'s> {
    /// Accepted messages, one batch per raw batch, empty ones included: their coverage counts.
    pub normalized: Stream<'s, Epoch, Vec<NormalizedBatch>>,
    /// Messages that failed.
    pub rejects: Stream<'s, Epoch, Vec<Reject>>,
}

/// Normalizes batches. A partition's batches all go to one worker: its order is kept, and all workers decode.
pub fn normalize<'s>(stream: Stream<'s, Epoch, Vec<RawBatch>>, config: Config, ports: Ports) -> Outputs<'s> {
    let mut builder = OperatorBuilder::new(NAME.into(), stream.scope());
    let mut input = builder.new_input(stream, Exchange::new(|batch: &RawBatch| partition_hash(&batch.partition)));
    let (output, normalized) = builder.new_output::<Vec<NormalizedBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<NormalizedBatch>>>::from(output);
    let (reject_output, rejects) = builder.new_output::<Vec<Reject>>();
    let mut reject_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Reject>>>::from(reject_output);
    builder.build(move |capabilities| {
        let normalizer = Normalizer::new(config).map_err(|error| ports.health.fail(NAME, error));
        // A config that was refused: nothing may pass, so the first capabilities are kept.
        let (mut normalizer, _kept) = match normalizer {
            Ok(normalizer) => (Some(normalizer), Vec::new()),
            Err(()) => (None, capabilities),
        };
        move |_frontiers| {
            let _ = &_kept;
            let Some(normalizer) = &mut normalizer else { return };
            let mut output = output.activate();
            let mut reject_output = reject_output.activate();
            input.for_each(|capability, batches| {
                let mut rejects = Vec::new();
                let mut session = output.session(&capability);
                for raw in batches.drain(..) {
                    let normalized = normalizer.normalize(raw);
                    ports.stats.note(&normalized);
                    rejects.extend(normalized.rejects);
                    session.give(normalized.batch);
                }
                session.flush();
                let mut session = reject_output.session(&capability);
                session.give_iterator(rejects.into_iter());
                session.flush();
            });
        }
    });
    Outputs { normalized, rejects }
}

/// Moves the payloads that lie in `arena` to `written`, so that nothing refers to `arena` any more; gives back an empty arena.
fn copy_out(arena: &Bytes, records: &mut [Record], written: &mut Vec<u8>) -> Bytes {
    for record in records.iter_mut().filter(|record| record.arena == Arena::Raw) {
        let start = written.len() as u32;
        written.extend_from_slice(record.payload.of(arena));
        (record.arena, record.payload) = (Arena::Written, Span { start, len: record.payload.len });
    }
    Bytes::new()
}

/// Places a partition on a worker; the same on every worker of every process.
pub(crate) fn partition_hash(partition: &PartitionKey) -> u64 {
    // Neighbouring partitions of a topic land on neighbouring workers: evenly spread, which a hash of the number is not for a few.
    XxHash3_64::oneshot(partition.topic.name.as_bytes()).wrapping_add(partition.partition as u64)
}

/// Topics whose routes are kept. More than any source reads; over it the routes are simply found anew.
const TOPICS_MAX: usize = 10_000;

/// Bytes the buffers for one record keep between batches.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

/// The core of the operator: payloads in, OTLP protobuf and rejects out.
pub struct Normalizer {
    config: Config,
    router: Router,
    topics: BTreeMap<Arc<str>, Arc<Topic>>,
    json: json::Writer,
    datasets: Datasets,
    /// The payload at hand in the form that its dataset schema asks for.
    rewritten: Vec<u8>,
}

/// What is the same for all messages of a topic.
struct Topic {
    group: Group,
    format: Format,
    /// Why the topic has no index, if it has none.
    unindexed: Option<String>,
    /// Seeds of the dedup keys: the group's, so that equal payloads of two indexes are not each other's duplicates, and one each for
    /// payloads and ids, so that an id is not the duplicate of a payload that says the same.
    payload_seed: u64,
    id_seed: u64,
    /// The dataset schema of the group.
    plan: Option<Arc<Plan>>,
}

impl Normalizer {
    /// A normalizer for `config`.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        if let Some(problem) = config.problems().into_iter().next() {
            return Err(problem);
        }
        let router = Router::new(config.topics.clone())?;
        let json = json::Writer::new(config.limits.depth_max);
        let datasets = Datasets::new(&config.datasets).map_err(ConfigError::Dataset)?;
        Ok(Normalizer { config, router, topics: BTreeMap::new(), json, datasets, rewritten: Vec::new() })
    }

    /// Normalizes one batch.
    ///
    /// # Panics
    /// If the records are not ascending inside `batch.start..batch.end`: their coverage would be a lie.
    pub fn normalize(&mut self, batch: RawBatch) -> Normalized {
        let topic = self.topic(&batch.partition.topic.name);
        let RawBatch { partition, start, end, arena, records: raw, charge, .. } = batch;
        let mut coverage = Coverage::stored(partition, start..end);
        let mut written = written_arena(topic.format, &raw, &arena);
        let (mut records, mut rejects) = (Vec::with_capacity(raw.len()), Vec::new());
        let mut next = start;
        for record in raw {
            let offset = record.offset;
            assert!(next <= offset && offset < end, "{}: offset {offset} outside of {next}..{end}", coverage.partition);
            if next < offset {
                coverage.absent.push(next..offset);
            }
            next = offset + 1;
            match self.record(&record, &arena, &topic, &mut written) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => coverage.skipped.push(offset),
                Err(failure) => {
                    coverage.rejected.push(offset);
                    let (partition, arena) = (coverage.partition.clone(), arena.clone());
                    rejects.push(Reject { partition, record, arena, reason: failure.reason, detail: failure.detail() });
                }
            }
        }
        if next < end {
            coverage.absent.push(next..end);
        }
        self.json.shrink(SCRATCH_BYTES_MAX);
        self.rewritten.clear();
        self.rewritten.shrink_to(SCRATCH_BYTES_MAX);
        let raw = if self.config.zero_copy { arena } else { copy_out(&arena, &mut records, &mut written) };
        let (group, written) = (topic.group.clone(), Bytes::from(written));
        let schema = topic.plan.as_ref().map(|plan| plan.stamp.clone());
        let batch = NormalizedBatch { group, coverage, raw, written, records, schema, charge };
        Normalized { batch, rejects }
    }

    fn topic(&mut self, name: &Arc<str>) -> Arc<Topic> {
        if let Some(topic) = self.topics.get(name) {
            return topic.clone();
        }
        if self.topics.len() >= TOPICS_MAX {
            self.topics.clear();
        }
        let index::Route { index, signal, format } = self.router.route(name);
        // `problems` leaves a topic without a signal only if it has no index either: none of its messages is looked at.
        let signal = signal.or(self.config.telemetry_type).unwrap_or(Signal::Logs);
        let (index, unindexed) = match index {
            Ok(index) => (index, None),
            Err(why) => (UNINDEXED.to_owned(), Some(why)),
        };
        let seed = |use_of_seed: &str| XxHash3_64::oneshot(format!("{use_of_seed}\0{signal}\0{index}").as_bytes());
        let (payload_seed, id_seed) = (seed("payload"), seed("id"));
        let group = Group { index: index.into(), signal };
        let format = format.unwrap_or(self.config.format);
        let plan = self.datasets.plan(&group).filter(|_| unindexed.is_none());
        let topic = Arc::new(Topic { group, format, unindexed, payload_seed, id_seed, plan });
        self.topics.insert(name.clone(), topic.clone());
        topic
    }

    /// One message: accepted, skipped (`None`), or failed. A failed one leaves `written` as it was.
    fn record(&mut self, record: &RawRecord, arena: &Bytes, topic: &Topic, written: &mut Vec<u8>) -> Checked<Option<Record>> {
        if let Some(why) = &topic.unindexed {
            return Err(Failure::new(Reason::NoIndex, why));
        }
        let Some(span) = record.payload else {
            return match self.config.tombstones {
                TombstonePolicy::Skip => Ok(None),
                TombstonePolicy::Reject => Err(Failure::new(Reason::Empty, "message is a tombstone: it has no payload")),
            };
        };
        let payload = span.of(arena);
        let start = written.len();
        let decided = self.payload(payload, record.timestamp_ms, topic, written);
        let decided = decided.and_then(|arena| self.conform(arena, payload, start, topic, written));
        let arena_of_payload = decided.inspect_err(|_| written.truncate(start))?;
        let span = match arena_of_payload {
            Arena::Raw => span,
            Arena::Written => written_span(start, written)?,
        };
        let (offset, timestamp_ms) = (record.offset, record.timestamp_ms);
        Ok(Some(Record {
            offset,
            timestamp_ms,
            key: self.key(record, arena, payload, topic),
            arena: arena_of_payload,
            payload: span,
        }))
    }

    /// Decides on a payload. What had to be written is appended to `written`.
    fn payload(&mut self, payload: &[u8], timestamp_ms: i64, topic: &Topic, written: &mut Vec<u8>) -> Checked<Arena> {
        if payload.is_empty() {
            return Err(Failure::new(Reason::Empty, "payload has no bytes"));
        }
        let limit = self.config.limits.payload_bytes_max;
        if payload.len() > limit {
            let message = format_args!("payload of {} bytes is over the limit of {limit}", payload.len());
            return Err(Failure::new(Reason::TooLarge, message));
        }
        let start = written.len();
        let options = json::Options { signal: topic.group.signal, kafka_nanos: kafka_nanos(timestamp_ms), stop_at_otlp: false };
        match topic.format {
            Format::Auto => return self.detect(payload, options, written),
            Format::OtlpProto => return self.walk(payload, options.signal).map(|()| Arena::Raw),
            Format::OtlpJson => otlp_json::write(json_text::object_text(payload)?, options.signal, written)?,
            Format::Json => drop(self.json.write(json_text::object_text(payload)?, options, written)?),
            Format::Raw => raw::write(payload, options.kafka_nanos, written)?,
        }
        self.walk(&written[start..], options.signal).map(|()| Arena::Written)
    }

    /// Brings a payload that passed the walk into the form that its dataset schema asks for. What was written of it is `written` from
    /// `start` on.
    fn conform(&mut self, arena: Arena, payload: &[u8], start: usize, topic: &Topic, written: &mut Vec<u8>) -> Checked<Arena> {
        let Some(plan) = &topic.plan else { return Ok(arena) };
        let payload = match arena {
            Arena::Raw => payload,
            Arena::Written => &written[start..],
        };
        if plan.conforms(payload) {
            return Ok(arena);
        }
        self.rewritten.clear();
        plan.rewrite(payload, &mut self.rewritten)?;
        // Defaults make rows larger, so limits are looked at again.
        self.walk(&self.rewritten, topic.group.signal)?;
        written.truncate(start);
        written.extend_from_slice(&self.rewritten);
        Ok(Arena::Written)
    }

    /// Format `auto`, as `detect` says.
    fn detect(&mut self, payload: &[u8], options: json::Options, written: &mut Vec<u8>) -> Checked<Arena> {
        if !detect::protobuf_first(payload) {
            return self.detect_json(payload, options, written);
        }
        match self.walk(payload, options.signal) {
            Ok(()) => Ok(Arena::Raw),
            Err(protobuf) if !detect::looks_like_object(payload) => Err(detect::only_protobuf(protobuf)),
            Err(protobuf) => {
                let json = self.detect_json(payload, options, written);
                json.map_err(|json| detect::neither(protobuf, &json))
            }
        }
    }

    /// OTLP JSON and plain JSON are told apart while reading: the first of OTLP's keys ends the attempt at a plain record, and it
    /// nearly always comes first.
    fn detect_json(&mut self, payload: &[u8], options: json::Options, written: &mut Vec<u8>) -> Checked<Arena> {
        let start = written.len();
        let text = json_text::object_text(payload)?;
        let options = json::Options { stop_at_otlp: true, ..options };
        if self.json.write(text, options, written)? == json::Outcome::Otlp {
            otlp_json::write(text, options.signal, written)?;
        }
        self.walk(&written[start..], options.signal).map(|()| Arena::Written)
    }

    fn walk(&self, payload: &[u8], signal: Signal) -> Checked<()> {
        let Limits { depth_max, row_bytes_max, .. } = self.config.limits;
        otlp_proto::check_or_name_signal(payload, signal, &Rules { depth_max, row_bytes_max }).map(drop)
    }

    /// The dedup key: of the id where one is configured and given, else of the payload as it came.
    fn key(&self, record: &RawRecord, arena: &[u8], payload: &[u8], topic: &Topic) -> u128 {
        let id = match &self.config.message_key {
            MessageKey::PayloadHash => None,
            MessageKey::KafkaKey => record.key.map(|key| key.of(arena)),
            MessageKey::Header(name) => {
                let named = headers(record.headers.of(arena)).filter(|(header, _)| *header == name.as_bytes());
                named.last().and_then(|(_, value)| value)
            }
        };
        match id.filter(|id| !id.is_empty()) {
            Some(id) => XxHash3_128::oneshot_with_seed(topic.id_seed, id),
            None => XxHash3_128::oneshot_with_seed(topic.payload_seed, payload),
        }
    }
}

/// Room for what will be written, judged by the first payload. JSON seldom grows as protobuf, so nothing moves later, and pages of a
/// large arena that stay untouched cost nothing.
fn written_arena(format: Format, records: &[RawRecord], arena: &Bytes) -> Vec<u8> {
    let first = records.iter().find_map(|record| record.payload);
    let writes = match format {
        Format::OtlpProto => false,
        Format::Auto => first.is_some_and(|payload| detect::looks_like_object(payload.of(arena))),
        Format::OtlpJson | Format::Json | Format::Raw => first.is_some(),
    };
    Vec::with_capacity(if writes { arena.len() } else { 0 })
}

/// Where the payload written last lies. Arenas end at 4 GiB, which a batch below the source's limit cannot reach.
fn written_span(start: usize, written: &mut Vec<u8>) -> Checked<Span> {
    let len = written.len() - start;
    match (u32::try_from(written.len()), u32::try_from(start), u32::try_from(len)) {
        (Ok(_), Ok(start), Ok(len)) => Ok(Span { start, len }),
        _ => {
            written.truncate(start);
            Err(Failure::new(Reason::TooLarge, "the payloads written for one batch are over 4 GiB"))
        }
    }
}

/// Kafka's time in nanoseconds; 0, unknown, for none and for times that a producer made up beyond all bounds.
fn kafka_nanos(timestamp_ms: i64) -> u64 {
    let nanos = timestamp_ms.checked_mul(1_000_000).and_then(|nanos| u64::try_from(nanos).ok());
    nanos.unwrap_or(0)
}
