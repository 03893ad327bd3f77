//! Operator `normalize`: every accepted payload leaves as OTLP protobuf of its topic's signal (design D-3).
//!
//! # In
//! `RawBatch`: the messages of one poll of one partition, in offset order.
//!
//! # Out
//! `NormalizedBatch`: for each `RawBatch` one, with its coverage, even if no message was accepted; or several, one after the other, of a
//! batch that has become much larger by being decompressed. `Reject`: each message that failed, with its reason.
//!
//! # Holds
//! The routes of the topics seen, buffers for the record at hand, and a backlog: batches that it has not come to, with their capabilities.
//!
//! # Closes when
//! Its input is closed and its backlog normalized: it keeps nothing else back.
//!
//! # Fails when
//! Never for what a message holds: that is a `Reject`. A batch whose records are not ascending inside its own range breaks the
//! coverage, which is the source's promise: that panics.
//!
//! # Invariants
//! - Each offset of the batch's range is exactly one of: accepted, rejected, skipped (a tombstone, by policy), absent.
//! - Every payload that leaves passed the same walk, `otlp_proto`, whether it came as protobuf or was written here: decoding cannot fail.
//! - The outcome for a message depends on its bytes, its topic's name and the config, not on its batch or on time (design D-8). Who asks
//!   producers for tokens adds the token file as it is when the message is polled, and that time: a message that is read again may be
//!   judged otherwise. It is read again only where its offset is in no log: what is covered there is never judged a second time.
//! - Quotas are judged by the time of the poll, and only those of policy `reject` change an outcome (`quota`).
//! - A token leaves this operator only inside the message it came with, and says by `Reject::secret_header` where.
//!
//! ```text
//! headers > who sent it, whose it is (`access`)
//! payload > decompressed, if it is compressed > taken out of its CloudEvent, if it is in one
//!         > format of its topic > otlp_proto                                    walk     > Arena::Raw, untouched
//!                               > otlp_json | json | raw > written as protobuf > walk     > Arena::Written
//!         > dataset schema of its index, if there is one: what does not conform is rewritten > walk > Arena::Written
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::backlog::Backlog;
use crate::batch::{Arena, Group, NormalizedBatch, RawBatch, RawRecord, Reason, Record, Reject, Signal, Span, headers};
use crate::coverage::{Coverage, PartitionKey};
use crate::dead_letter::replay::is_mark;
use crate::epoch::Epoch;
use crate::fault::Health;
use crate::place::Place;
use crate::quota::Quotas;
use crate::tenant::Tenant;

mod access;
mod compressed;
mod config;
mod dataset;
mod decode;
mod detect;
mod failure;
mod hex;
pub mod index;
mod json;
mod json_split;
mod json_text;
mod metering;
pub(crate) mod otlp_json;
mod otlp_proto;
mod raw;
mod said;
mod stats;
mod structured_event;

#[cfg(test)]
mod tests;

pub use access::{Auth, TenantFrom, Tenants};
pub use config::{Config, ConfigError, Format, Limits, MessageKey, TombstonePolicy};
pub use stats::{ByTenant, Stats, TenantCount};

use access::{Access, Origin, Owners, Purpose, Times};
use compressed::{Codec, Unpacker};
use dataset::{Datasets, Plan};
use decode::{Decoder, Dialect};
use failure::{Checked, Failure};
use index::{Router, UNINDEXED};
use metering::Metering;
use said::{Content, Event, Said};
use stats::Tally;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "normalize";

/// What became of one `RawBatch`.
#[derive(Debug)]
pub struct Normalized {
    /// The accepted messages, and the coverage of all.
    pub batch: NormalizedBatch,
    /// The messages that failed, in offset order.
    pub rejects: Vec<Reject>,
    /// What the tenants of these messages are to be counted for.
    pub tenants: BTreeMap<Tenant, TenantCount>,
    /// The messages that are still to be normalized, of a batch that has become too large for one.
    pub rest: Option<RawBatch>,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Counters.
    pub stats: Arc<Stats>,
    /// Where faults go.
    pub health: Health,
    /// What tenants and topics may send; `None`: any amount.
    pub quotas: Option<Arc<Quotas>>,
}

/// The operator's output streams.
pub struct Outputs<'s> {
    /// Accepted messages, at least one batch per raw batch, empty ones included: their coverage counts.
    pub normalized: Stream<'s, Epoch, Vec<NormalizedBatch>>,
    /// Messages that failed.
    pub rejects: Stream<'s, Epoch, Vec<Reject>>,
}

/// Normalizes batches. A partition's batches all go to one worker of the process that read them: its order is kept, and all workers
/// decode.
pub fn normalize<'s>(stream: Stream<'s, Epoch, Vec<RawBatch>>, config: Config, ports: Ports, place: Place) -> Outputs<'s> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let routed = Exchange::new(move |batch: &RawBatch| place.route(partition_hash(&batch.partition)));
    let mut input = builder.new_input(stream, routed);
    let (output, normalized) = builder.new_output::<Vec<NormalizedBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<NormalizedBatch>>>::from(output);
    let (reject_output, rejects) = builder.new_output::<Vec<Reject>>();
    let mut reject_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Reject>>>::from(reject_output);
    builder.build(move |capabilities| {
        let normalizer = Normalizer::new(config).map(|normalizer| normalizer.metered(ports.quotas.clone()));
        let normalizer = normalizer.map_err(|error| ports.health.fail(NAME, error));
        // A config that was refused: nothing may pass, so the first capabilities are kept.
        let (mut normalizer, _kept) = match normalizer {
            Ok(normalizer) => (Some(normalizer), Vec::new()),
            Err(()) => (None, capabilities),
        };
        let mut backlog = Backlog::new(activator);
        move |_frontiers| {
            let _ = &_kept;
            let Some(normalizer) = &mut normalizer else { return };
            // 1. Take what is there.
            input.for_each(|capability, batches| {
                let held = [0, 1].map(|port| capability.retain_least(port).expect("every batch is sent under a capability"));
                backlog.take(&held, batches);
            });
            // 2. Normalize some of it.
            let mut output = output.activate();
            let mut reject_output = reject_output.activate();
            for ([held, held_for_rejects], raw) in backlog.turn() {
                let mut rejects = Vec::new();
                let mut session = output.session(&held);
                let mut next = Some(raw);
                while let Some(raw) = next.take() {
                    let normalized = normalizer.normalize(raw);
                    ports.stats.note(&normalized);
                    rejects.extend(normalized.rejects);
                    session.give(normalized.batch);
                    next = normalized.rest;
                }
                session.flush();
                let mut session = reject_output.session(&held_for_rejects);
                session.give_iterator(rejects.into_iter());
                session.flush();
            }
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

/// Places a partition on a worker of a process (`Place::route`); the same on every worker of every process.
pub(crate) fn partition_hash(partition: &PartitionKey) -> u64 {
    // Neighbouring partitions of a topic land on neighbouring workers: evenly spread, which a hash of the number is not for a few.
    XxHash3_64::oneshot(partition.topic.name.as_bytes()).wrapping_add(partition.partition as u64)
}

/// Topics whose routes are kept. More than any source reads; over it the routes are simply found anew.
const TOPICS_MAX: usize = 10_000;

/// Bytes the buffers for one record keep between batches.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes written at which a batch ends. Only what was decompressed gets so far from the few MiB that a batch is read with, and the log
/// takes a batch as one frame.
const WRITTEN_BYTES_MAX: usize = 32 << 20;

/// The core of the operator: payloads in, OTLP protobuf and rejects out.
pub struct Normalizer {
    config: Config,
    router: Router,
    access: Access,
    topics: BTreeMap<Arc<str>, Arc<Topic>>,
    decoder: Decoder,
    unpacker: Unpacker,
    datasets: Datasets,
    quotas: Option<Arc<Quotas>>,
    /// The payload at hand, decompressed.
    unpacked: Vec<u8>,
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
    /// Who may send to it, and whose its messages are.
    origin: Origin,
}

impl Normalizer {
    /// A normalizer for `config`.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Self::with_purpose(config, Purpose::Store)
    }

    /// A normalizer for messages that somebody has handled before, of which only the keys are wanted: it accepts none that may have been
    /// refused then for who sent it.
    pub fn for_recall(config: Config) -> Result<Self, ConfigError> {
        Self::with_purpose(config, Purpose::Recall)
    }

    fn with_purpose(config: Config, purpose: Purpose) -> Result<Self, ConfigError> {
        if let Some(problem) = config.problems().into_iter().next() {
            return Err(problem);
        }
        let router = Router::new(config.topics.clone())?;
        let datasets = Datasets::new(&config.datasets).map_err(ConfigError::Dataset)?;
        let decoder = Decoder::new(config.limits);
        let unpacker = Unpacker::new(config.limits.decompressed_bytes_max);
        let access = Access::new(config.auth.clone(), config.tenants.clone(), purpose);
        let (unpacked, rewritten) = (Vec::new(), Vec::new());
        Ok(Normalizer {
            config,
            router,
            access,
            topics: BTreeMap::new(),
            decoder,
            unpacker,
            datasets,
            quotas: None,
            unpacked,
            rewritten,
        })
    }

    /// The same, charging what it normalizes to the accounts of tenants and topics.
    pub fn metered(self, quotas: Option<Arc<Quotas>>) -> Self {
        Normalizer { quotas, ..self }
    }

    /// Normalizes one batch, or as much of it as makes one.
    ///
    /// # Panics
    /// If the records are not ascending inside `batch.start..batch.end`: their coverage would be a lie.
    pub fn normalize(&mut self, batch: RawBatch) -> Normalized {
        let topic = self.topic(&batch.partition.topic.name);
        let RawBatch { partition, start, end, arena, records: raw, polled_ms, charge } = batch;
        let mut coverage = Coverage::stored(partition, start..end);
        let mut written = written_arena(topic.format, &raw, &arena);
        let (mut records, mut rejects) = (Vec::with_capacity(raw.len()), Vec::new());
        let (mut next, mut grown) = (start, 0);
        let (mut tally, mut owners) = (Tally::default(), Owners::default());
        self.access.refresh();
        let mut metering = self.quotas.as_ref().map(|quotas| Metering::begin(quotas, &coverage.partition.topic.name, polled_ms));
        let mut raw = raw.into_iter();
        while let Some(record) = raw.next() {
            let offset = record.offset;
            assert!(next <= offset && offset < end, "{}: offset {offset} outside of {next}..{end}", coverage.partition);
            if next < offset {
                coverage.absent.push(next..offset);
            }
            next = offset + 1;
            let bytes = record.payload.map_or(0, |payload| u64::from(payload.len));
            let tenant = self.admit(&record, &arena, &topic, polled_ms);
            let (tenant, decided) = match tenant {
                Ok(tenant) => {
                    let admitted = metering.as_mut().map_or(Ok(()), |metering| metering.admit(tenant.as_ref()));
                    let decided = admitted.and_then(|()| {
                        let decided = self.record(&record, &arena, (&topic, tenant.as_ref()), &mut written, &mut grown);
                        if let Some(metering) = &mut metering {
                            // What cannot be decoded has cost as much as a record.
                            let events = if let Ok(Some(_)) = &decided { self.decoder.rows() } else { 1 };
                            metering.charge(events, bytes);
                        }
                        decided
                    });
                    (tenant, decided)
                }
                Err(failure) => (None, Err(failure)),
            };
            let count = tenant.as_ref().map(|tenant| tally.of(tenant));
            match decided {
                Ok(Some(record)) => {
                    records.push(Record { tenant: owners.place(tenant.as_ref()), ..record });
                    count.into_iter().for_each(|count| count.accept(bytes));
                }
                Ok(None) => coverage.skipped.push(offset),
                Err(failure) => {
                    coverage.rejected.push(offset);
                    count.into_iter().for_each(|count| count.reject(bytes));
                    rejects.push(self.reject(&failure, &coverage.partition, record, &arena));
                }
            }
            if written.len() >= WRITTEN_BYTES_MAX && grown > 0 && raw.len() > 0 {
                break;
            }
        }
        let rest = (raw.len() > 0).then(|| {
            let (partition, arena, charge) = (coverage.partition.clone(), arena.clone(), charge.clone());
            RawBatch { partition, start: next, end, arena, records: raw.collect(), polled_ms, charge }
        });
        if rest.is_some() {
            coverage.end = next;
        } else if next < end {
            coverage.absent.push(next..end);
        }
        if let Some(metering) = metering {
            metering.finish(&coverage.partition);
        }
        self.shrink();
        let raw = if self.config.zero_copy { arena } else { copy_out(&arena, &mut records, &mut written) };
        let (group, written) = (topic.group.clone(), Bytes::from(written));
        let schema = topic.plan.as_ref().map(|plan| plan.stamp.clone());
        let (tenants, charge) = (owners.finish(), charge.grown(grown));
        let batch = NormalizedBatch { group, coverage, raw, written, records, schema, tenants, charge };
        Normalized { batch, rejects, tenants: tally.finish(), rest }
    }

    /// Whose a message is, found by its headers and its topic before its payload is looked at; or why it must not be stored. `None` where
    /// messages have no tenants.
    fn admit(&mut self, record: &RawRecord, arena: &[u8], topic: &Topic, polled_ms: u64) -> Checked<Option<Tenant>> {
        let times = Times { kafka_ms: record.timestamp_ms, polled_ms };
        self.access.admit(record.headers.of(arena), &topic.origin, times)
    }

    fn reject(&self, failure: &Failure, partition: &PartitionKey, record: RawRecord, arena: &Bytes) -> Reject {
        Reject {
            partition: partition.clone(),
            record,
            arena: arena.clone(),
            reason: failure.reason,
            detail: failure.detail(),
            secret_header: self.access.secret_header(),
        }
    }

    /// Gives back what a huge record made the buffers grow to.
    fn shrink(&mut self) {
        self.decoder.shrink(SCRATCH_BYTES_MAX);
        for buffer in [&mut self.unpacked, &mut self.rewritten] {
            buffer.clear();
            buffer.shrink_to(SCRATCH_BYTES_MAX);
        }
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
        let origin = self.access.origin(name, signal);
        let topic = Arc::new(Topic { group, format, unindexed, payload_seed, id_seed, plan, origin });
        self.topics.insert(name.clone(), topic.clone());
        topic
    }

    /// One message: accepted, skipped (`None`), or failed. A failed one leaves `written` as it was. `grown` counts the bytes written of
    /// what was compressed, which nobody has counted yet.
    fn record(
        &mut self,
        record: &RawRecord,
        arena: &Bytes,
        (topic, tenant): (&Topic, Option<&Tenant>),
        written: &mut Vec<u8>,
        grown: &mut usize,
    ) -> Checked<Option<Record>> {
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
        let said = if record.headers.len == 0 { Said::default() } else { Said::by(record.headers.of(arena)) };
        let codec = said.codec.or_else(|| (topic.format == Format::Auto).then(|| Codec::shown(payload))?);
        let start = written.len();
        self.check_size(payload)?;
        let Some(codec) = codec else {
            let decided = self.payload(payload, record.timestamp_ms, said, topic, written);
            let arena_of_payload = decided.inspect_err(|_| written.truncate(start))?;
            let span = match arena_of_payload {
                Arena::Raw => span,
                Arena::Written => written_span(start, written)?,
            };
            let key = self.key(record, arena, payload, (topic, tenant));
            return Ok(Some(accepted(record, key, (arena_of_payload, span))));
        };
        let mut unpacked = std::mem::take(&mut self.unpacked);
        let span = self.unpacker.unpack(codec, payload, &mut unpacked).and_then(|()| {
            if self.payload(&unpacked, record.timestamp_ms, said, topic, written)? == Arena::Raw {
                written.extend_from_slice(&unpacked);
            }
            written_span(start, written)
        });
        let accepted =
            span.map(|span| accepted(record, self.key(record, arena, &unpacked, (topic, tenant)), (Arena::Written, span)));
        self.unpacked = unpacked;
        let accepted = accepted.inspect_err(|_| written.truncate(start))?;
        *grown += written.len() - start;
        Ok(Some(accepted))
    }

    fn check_size(&self, payload: &[u8]) -> Checked<()> {
        let limit = self.config.limits.payload_bytes_max;
        if payload.len() > limit {
            let message = format_args!("payload of {} bytes is over the limit of {limit}", payload.len());
            return Err(Failure::new(Reason::TooLarge, message));
        }
        Ok(())
    }

    /// Decides on a payload that is not compressed any more. What had to be written is appended to `written`.
    fn payload(
        &mut self,
        payload: &[u8],
        timestamp_ms: i64,
        said: Said<'_>,
        topic: &Topic,
        written: &mut Vec<u8>,
    ) -> Checked<Arena> {
        let Said { content, event, unknown_encoding, .. } = said;
        // Raw text is taken as it came, whatever it may mean.
        let decided = if content == Some(Content::StructuredEvent) && topic.format != Format::Raw {
            self.structured_event(payload, timestamp_ms, topic, written)
        } else {
            self.decide(payload, timestamp_ms, (content, &event), topic, written)
        };
        decided.map_err(|failure| match unknown_encoding {
            Some(encoding) => failure.hinting_at(encoding),
            None => failure,
        })
    }

    /// As `payload`, of what is inside of an event.
    fn structured_event(&mut self, payload: &[u8], timestamp_ms: i64, topic: &Topic, written: &mut Vec<u8>) -> Checked<Arena> {
        let structured_event::Opened { event, content, data } = structured_event::open(payload)?;
        if self.decide(&data, timestamp_ms, (content, &event), topic, written)? == Arena::Raw {
            written.extend_from_slice(&data);
        }
        Ok(Arena::Written)
    }

    /// As `payload`, of which is known what its message says of it.
    fn decide(
        &mut self,
        payload: &[u8],
        timestamp_ms: i64,
        (content, event): (Option<Content>, &Event<'_>),
        topic: &Topic,
        written: &mut Vec<u8>,
    ) -> Checked<Arena> {
        if payload.is_empty() {
            return Err(Failure::new(Reason::Empty, "payload has no bytes"));
        }
        let start = written.len();
        let kafka_nanos = kafka_nanos(timestamp_ms);
        let record_nanos = if event.nanos == 0 { kafka_nanos } else { event.nanos };
        let signal = topic.group.signal;
        let options = json::Options { signal, kafka_nanos, record_nanos, attributes: &event.attributes };
        let decoder = &mut self.decoder;
        let arena = match (topic.format, content) {
            (Format::OtlpProto, _) | (Format::Auto, Some(Content::Protobuf)) => {
                decoder.walk(payload, signal)?;
                Arena::Raw
            }
            (Format::Auto, Some(Content::Json)) => decoder.json(payload, Dialect::Either, options, written)?,
            (Format::Auto, _) => decoder.detect(payload, options, written)?,
            (Format::OtlpJson, _) => decoder.json(payload, Dialect::Otlp, options, written)?,
            (Format::Json, _) => decoder.json(payload, Dialect::Plain, options, written)?,
            (Format::Raw, _) => {
                raw::write(payload, options, written)?;
                decoder.walk(&written[start..], signal)?;
                Arena::Written
            }
        };
        self.conform(arena, payload, start, topic, written)
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
        self.decoder.walk(&self.rewritten, topic.group.signal)?;
        written.truncate(start);
        written.extend_from_slice(&self.rewritten);
        Ok(Arena::Written)
    }

    /// The dedup key: of the id where one is configured and given, else of the payload as it came, but for its compression.
    /// Two tenants have no duplicates of each other: nobody could make another one's message one by sending it first.
    fn key(&self, record: &RawRecord, arena: &[u8], payload: &[u8], (topic, tenant): (&Topic, Option<&Tenant>)) -> u128 {
        let tenant_seed = tenant.map_or(0, Tenant::seed);
        let id = match &self.config.message_key {
            MessageKey::PayloadHash => None,
            MessageKey::KafkaKey => record.key.map(|key| key.of(arena)),
            MessageKey::Header(name) => {
                let named = headers(record.headers.of(arena)).filter(|(header, _)| *header == name.as_bytes());
                named.last().and_then(|(_, value)| value)
            }
        };
        let key = match id.filter(|id| !id.is_empty()) {
            Some(id) => XxHash3_128::oneshot_with_seed(topic.id_seed ^ tenant_seed, id),
            None => XxHash3_128::oneshot_with_seed(topic.payload_seed ^ tenant_seed, payload),
        };
        if record.headers.len == 0 { key } else { key_of_attempt(key, record.headers.of(arena)) }
    }
}

fn accepted(record: &RawRecord, key: u128, (arena, payload): (Arena, Span)) -> Record {
    // Whose it is the caller knows.
    Record { offset: record.offset, timestamp_ms: record.timestamp_ms, key, arena, payload, tenant: 0 }
}

/// The key of a message that was sent back from the dead letter is that of the attempt, for it is no duplicate of what was rejected. Who
/// warms up its window from Kafka judges the rejected one by its own rules, and may take it for stored.
fn key_of_attempt(key: u128, encoded: &[u8]) -> u128 {
    let mut attempt = Vec::new();
    for (name, value) in headers(encoded).filter(|(name, _)| is_mark(name)) {
        attempt.extend_from_slice(name);
        attempt.push(0);
        attempt.extend_from_slice(value.unwrap_or_default());
        attempt.push(0);
    }
    if attempt.is_empty() {
        return key;
    }
    attempt.extend_from_slice(&key.to_le_bytes());
    XxHash3_128::oneshot(&attempt)
}

/// Room for what will be written, judged by the first payload. JSON seldom grows as protobuf, so nothing moves later, and pages of a
/// large arena that stay untouched cost nothing.
fn written_arena(format: Format, records: &[RawRecord], arena: &Bytes) -> Vec<u8> {
    let first = records.iter().find_map(|record| record.payload);
    let writes = match format {
        Format::OtlpProto => false,
        Format::Auto => first.is_some_and(|payload| detect::looks_like_json(payload.of(arena))),
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
