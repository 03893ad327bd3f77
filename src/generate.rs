//! The load generator: realistic telemetry, and hostile messages among it, the same for the same seed.
//!
//! Message n of a run is a pure function of the plan and n: a verifier can recompute any message, in any order, without the ones before.
//!
//! ```text
//! topic      n % topics                        partition  n / topics % partitions of the topic
//! kind       by a random number of (seed, n): tombstone, invalid, duplicate or valid, with the plan's shares
//! duplicate  the payload and key of a valid message of the same topic, at most LOOKBACK messages of the topic before
//! valid      a template, one of many built from the seed, stamped with identifiers, times and values of n
//! ```
//!
//! Invariants: valid messages of a run are pairwise distinct, and so are all trace and span identifiers in them; the first message of
//! every topic is valid; an invalid message is rejected by any decoder of its format.
//!
//! This file is the pure part. `producer` sends the messages to Kafka, `command` is the `generate` command.

pub mod command;
pub mod producer;
pub mod time;

mod invalid;
mod json;
mod logs;
mod metrics;
mod patched;
mod plain;
mod random;
mod stamp;
mod traces;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::str::FromStr;

use opentelemetry_proto::tonic::logs::v1::LogsData;
use opentelemetry_proto::tonic::metrics::v1::MetricsData;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use openwit_operators::batch::Signal;
use openwit_operators::otlp::wire;
use serde::Serialize;

use patched::{Patched, Value};
use random::{Random, keyed};
use stamp::{Place, Stamp};

/// How far back a duplicate reaches, in messages of its topic: "the last few thousand", well inside any dedup window.
pub const LOOKBACK: u64 = 4_096;
/// Bytes of templates built: enough variety that no batch repeats itself, and small enough to stay in the processor's cache.
const TEMPLATE_BYTES: usize = 512 << 10;
/// Fewest and most templates, whatever their size.
const TEMPLATES: std::ops::RangeInclusive<usize> = 4..=256;
/// Share of messages, in millionths, that must stay valid so that duplicates have something to repeat.
const VALID_PPM_MIN: u32 = 50_000;

// Streams of the seed, apart from those in `stamp`.
const KIND: u64 = 11;
const ORIGINAL: u64 = 12;
const TEMPLATE: u64 = 13;
const KEY: u64 = 14;
const BROKEN: u64 = 15;

/// How messages are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// OTLP protobuf: `TracesData`, `LogsData` or `MetricsData`
    Otlp,
    /// OTLP JSON, the same messages as text
    OtlpJson,
    /// One plain JSON object per message
    Json,
    /// One line of text per message (logs only)
    Raw,
}

impl Format {
    /// True if a message holds several records: `records_per_message` of them.
    pub fn batches_records(self) -> bool {
        matches!(self, Format::Otlp | Format::OtlpJson)
    }
}

/// A share of all messages, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Ppm(pub u32);

impl FromStr for Ppm {
    type Err = String;

    /// Reads percent: `5`, `0.25` or `5%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("`{text}` is not a percentage"))?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("{percent} is not between 0 and 100 percent"));
        }
        Ok(Ppm((percent * 10_000.0).round() as u32))
    }
}

/// A topic messages go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// How many partitions it has, or how many of them to use.
    pub partitions: i32,
}

/// All that a run's messages depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Where messages go, in turn.
    pub topics: Vec<Topic>,
    /// Their encoding.
    pub format: Format,
    /// Their signal.
    pub signal: Signal,
    /// How many messages; `None` goes on for ever.
    pub count: Option<u64>,
    /// Records in each valid message; 1 unless the format batches records.
    pub records_per_message: usize,
    /// Least size of a plain JSON or raw message, which a filler text brings about; 0 leaves messages at their natural size.
    pub message_bytes_min: usize,
    /// Share of messages that repeat an earlier one.
    pub duplicates: Ppm,
    /// Share of messages that no decoder accepts.
    pub invalid: Ppm,
    /// Share of messages without payload.
    pub tombstones: Ppm,
    /// What the run's randomness is drawn from.
    pub seed: u64,
    /// True if messages carry a key, unique to each distinct message.
    pub keyed: bool,
    /// Event time of the first message, in Unix nanoseconds.
    pub start_time_ns: u64,
    /// Event time between two messages, in nanoseconds; at least 1.
    pub time_step_ns: u64,
}

/// Why a plan makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no topic, or one without partitions.
    #[error("a run needs at least one topic, and each topic at least one partition")]
    NoPartition,
    /// The shares leave too little that is valid.
    #[error("duplicates, invalid messages and tombstones together must leave at least 5 % valid messages")]
    TooLittleValid,
    /// Raw text of another signal than logs.
    #[error("raw text carries logs only, not {0}")]
    RawSignal(Signal),
    /// Several records where the format holds one.
    #[error("a json or raw message holds one record, not {0}")]
    RecordsPerMessage(usize),
    /// No records at all.
    #[error("a message needs at least one record")]
    NoRecord,
    /// Metrics differ by their times alone, so time must move.
    #[error("the time between messages must be at least a nanosecond")]
    NoTimeStep,
}

impl Plan {
    /// Checks that the plan makes sense.
    pub fn check(&self) -> Result<(), PlanError> {
        let no_partition = self.topics.is_empty() || self.topics.iter().any(|topic| topic.partitions < 1);
        let special = [self.duplicates, self.invalid, self.tombstones].iter().map(|share| u64::from(share.0)).sum::<u64>();
        match () {
            () if no_partition => Err(PlanError::NoPartition),
            () if special + u64::from(VALID_PPM_MIN) > 1_000_000 => Err(PlanError::TooLittleValid),
            () if self.format == Format::Raw && self.signal != Signal::Logs => Err(PlanError::RawSignal(self.signal)),
            () if self.records_per_message == 0 => Err(PlanError::NoRecord),
            () if !self.format.batches_records() && self.records_per_message != 1 => {
                Err(PlanError::RecordsPerMessage(self.records_per_message))
            }
            () if self.time_step_ns == 0 => Err(PlanError::NoTimeStep),
            () => Ok(()),
        }
    }

    /// What message `index` is.
    pub fn kind(&self, index: u64) -> Kind {
        match self.decided(index) {
            Decided::Tombstone => Kind::Tombstone,
            Decided::Invalid => {
                let kinds = invalid::kinds(self.format);
                Kind::Invalid(kinds[(keyed(self.seed ^ BROKEN, index) % kinds.len() as u64) as usize])
            }
            Decided::Duplicate => Kind::Duplicate { of: self.original(index) },
            Decided::Valid => Kind::Valid,
        }
    }

    fn decided(&self, index: u64) -> Decided {
        // The first message of a topic is valid: it has nothing to repeat, and a run of one message should show one.
        if index < self.topics.len() as u64 {
            return Decided::Valid;
        }
        let draw = (keyed(self.seed ^ KIND, index) % 1_000_000) as u32;
        let tombstones = self.tombstones.0;
        let invalid = tombstones + self.invalid.0;
        let duplicates = invalid + self.duplicates.0;
        match draw {
            draw if draw < tombstones => Decided::Tombstone,
            draw if draw < invalid => Decided::Invalid,
            draw if draw < duplicates => Decided::Duplicate,
            _ => Decided::Valid,
        }
    }

    /// The valid message that the duplicate `index` repeats: the nearest one at or before a random place in the lookback.
    fn original(&self, index: u64) -> u64 {
        let topics = self.topics.len() as u64;
        let (topic, position) = (index % topics, index / topics);
        let mut candidate = position - 1 - keyed(self.seed ^ ORIGINAL, index) % position.min(LOOKBACK);
        // Ends at position 0 at the latest, which is valid; after some 20 steps on average when 5 % are valid.
        while candidate > 0 && self.decided(candidate * topics + topic) != Decided::Valid {
            candidate -= 1;
        }
        candidate * topics + topic
    }

    /// Where message `index` goes, as (position in `topics`, partition).
    pub fn route(&self, index: u64) -> (usize, i32) {
        let topics = self.topics.len() as u64;
        let topic = (index % topics) as usize;
        (topic, (index / topics % self.topics[topic].partitions as u64) as i32)
    }

    fn template(&self, index: u64) -> u64 {
        keyed(self.seed ^ TEMPLATE, index)
    }

    fn stamp(&self, index: u64) -> Stamp {
        Stamp::new(Place {
            seed: self.seed,
            index,
            records: self.records_per_message as u64,
            time_ns: self.start_time_ns.wrapping_add(index.wrapping_mul(self.time_step_ns)),
            time_step_ns: self.time_step_ns,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decided {
    Valid,
    Duplicate,
    Invalid,
    Tombstone,
}

/// What a message is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Well-formed, and unlike any message before.
    Valid,
    /// The exact payload and key of an earlier message.
    Duplicate {
        /// The number of that message, which is valid.
        of: u64,
    },
    /// To be rejected.
    Invalid(Invalid),
    /// No payload.
    Tombstone,
}

/// In which way a message is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Invalid {
    /// A payload of no bytes.
    Empty,
    /// Cut off in the middle.
    Truncated,
    /// Bytes of no format.
    Random,
    /// Nested far too deep.
    Deep,
    /// A text that is not UTF-8.
    Utf8,
    /// A valid message of another signal.
    Signal,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number in the run, from 0.
    pub index: u64,
    /// Position of its topic in the plan.
    pub topic: usize,
    /// Its partition.
    pub partition: i32,
    /// What it is meant to be.
    pub kind: Kind,
    /// Records (spans, log records, data points) in it that a pipeline should find: 0 when invalid or a tombstone.
    pub records: u64,
    key: String,
    bytes: Vec<u8>,
}

impl Message {
    /// A message to be filled in by `Generator::fill`.
    pub fn empty() -> Self {
        Message { index: 0, topic: 0, partition: 0, kind: Kind::Tombstone, records: 0, key: String::new(), bytes: Vec::new() }
    }

    /// The key, if the plan asks for keys: 16 hex digits.
    pub fn key(&self) -> Option<&str> {
        (!self.key.is_empty()).then_some(self.key.as_str())
    }

    /// The payload; `None` for a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        (self.kind != Kind::Tombstone).then_some(self.bytes.as_slice())
    }

    /// Bytes of key and payload.
    pub fn bytes(&self) -> u64 {
        (self.key.len() + self.bytes.len()) as u64
    }
}

/// Messages built once, to be stamped again and again: stamping allocates nothing.
enum Templates {
    /// Spans as structs, to be encoded once stamped.
    Traces(Vec<TracesData>),
    /// Log records as structs.
    Logs(Vec<LogsData>),
    /// Data points as structs. Never patched: almost every byte of a data point is stamped, and some are varints of any length.
    Metrics(Vec<MetricsData>),
    /// Spans or log records in OTLP protobuf.
    Patched(Vec<Patched>),
}

impl Templates {
    /// The fastest templates for messages of `format`.
    fn build(format: Format, signal: Signal, records: usize, seed: u64) -> Self {
        let structs = Templates::structs(signal, records, seed);
        if format != Format::Otlp {
            return structs;
        }
        let time_ns = 1 << 60;
        // Any two stamps do; times of both are of the length that all times have.
        let stamps =
            [1, 2].map(|index| Stamp::new(Place { seed, index, records: records as u64, time_ns, time_step_ns: 1 << 20 }));
        let patched: Option<Vec<_>> = match &structs {
            Templates::Traces(templates) => templates.iter().map(|template| patch(template, traces::stamp, stamps)).collect(),
            Templates::Logs(templates) => templates.iter().map(|template| patch(template, logs::stamp, stamps)).collect(),
            Templates::Metrics(_) | Templates::Patched(_) => None,
        };
        patched.map_or(structs, Templates::Patched)
    }

    fn structs(signal: Signal, records: usize, seed: u64) -> Self {
        match signal {
            Signal::Traces => Templates::Traces(build(seed, |random| traces::template(random, records))),
            Signal::Logs => Templates::Logs(build(seed, |random| logs::template(random, records))),
            Signal::Metrics => Templates::Metrics(build(seed, |random| metrics::template(random, records))),
        }
    }

    /// Appends the message of `stamp`, made of the template that `draw` chooses.
    fn push(&mut self, out: &mut Vec<u8>, format: Format, draw: u64, stamp: &Stamp) {
        match self {
            Templates::Traces(templates) => {
                let data = pick(templates, draw);
                traces::stamp(data, stamp, &mut |_| ());
                if format == Format::Otlp { push_protobuf(out, data) } else { json::push_traces(out, data) }
            }
            Templates::Logs(templates) => {
                let data = pick(templates, draw);
                logs::stamp(data, stamp, &mut |_| ());
                if format == Format::Otlp { push_protobuf(out, data) } else { json::push_logs(out, data) }
            }
            Templates::Metrics(templates) => {
                let data = pick(templates, draw);
                metrics::stamp(data, stamp);
                if format == Format::Otlp { push_protobuf(out, data) } else { json::push_metrics(out, data) }
            }
            Templates::Patched(templates) => pick(templates, draw).push(out, stamp),
        }
    }
}

fn build<T: prost::Message>(seed: u64, mut template: impl FnMut(&mut Random) -> T) -> Vec<T> {
    let mut random = Random::new(seed ^ TEMPLATE, u64::MAX);
    let first = template(&mut random);
    let count = (TEMPLATE_BYTES / first.encoded_len().max(1)).clamp(*TEMPLATES.start(), *TEMPLATES.end());
    std::iter::once(first).chain((1..count).map(|_| template(&mut random))).collect()
}

/// A function that stamps structs, and names the values it stamped.
type StampWith<T> = fn(&mut T, &Stamp, &mut dyn FnMut(Value));

fn patch<T: prost::Message + Clone>(template: &T, stamp_with: StampWith<T>, stamps: [Stamp; 2]) -> Option<Patched> {
    let mut data = template.clone();
    let encode = |stamp: &Stamp, values: &mut Vec<Value>| {
        stamp_with(&mut data, stamp, &mut |value| values.push(value));
        data.encode_to_vec()
    };
    Patched::of(encode, stamps)
}

fn pick<T>(templates: &mut [T], draw: u64) -> &mut T {
    let position = (draw % templates.len() as u64) as usize;
    &mut templates[position]
}

fn push_protobuf(out: &mut Vec<u8>, data: &impl prost::Message) {
    let encoded = data.encode(out);
    debug_assert!(encoded.is_ok(), "a vector takes all that is encoded into it");
}

/// The messages of a plan, in order.
pub struct Generator {
    plan: Plan,
    templates: Templates,
    /// One small message of another signal, for messages of the wrong one.
    foreign: Templates,
    next: u64,
}

impl Generator {
    /// A generator at the plan's first message.
    pub fn new(plan: Plan) -> Result<Self, PlanError> {
        plan.check()?;
        let foreign = match plan.signal {
            Signal::Traces => Signal::Logs,
            Signal::Logs => Signal::Metrics,
            Signal::Metrics => Signal::Traces,
        };
        let templates = Templates::build(plan.format, plan.signal, plan.records_per_message, plan.seed);
        let foreign = Templates::build(plan.format, foreign, 2, plan.seed);
        Ok(Generator { plan, templates, foreign, next: 0 })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Makes `message` the next of the run, reusing its memory; false when the run is over.
    pub fn advance(&mut self, message: &mut Message) -> bool {
        if self.plan.count.is_some_and(|count| self.next >= count) {
            return false;
        }
        self.fill(self.next, message);
        self.next += 1;
        true
    }

    /// Makes `message` the message `index` of the run, reusing its memory.
    pub fn fill(&mut self, index: u64, message: &mut Message) {
        message.index = index;
        message.kind = self.plan.kind(index);
        (message.topic, message.partition) = self.plan.route(index);
        message.bytes.clear();
        // What a duplicate repeats, key and all, is its original.
        let original = if let Kind::Duplicate { of } = message.kind { of } else { index };
        message.records = match message.kind {
            Kind::Valid | Kind::Duplicate { .. } => {
                self.push_valid(&mut message.bytes, original);
                self.plan.records_per_message as u64
            }
            Kind::Invalid(invalid) => {
                self.push_invalid(&mut message.bytes, invalid, index);
                0
            }
            Kind::Tombstone => 0,
        };
        message.key.clear();
        if self.plan.keyed {
            let number = keyed(self.plan.seed ^ KEY, original);
            message.key.extend((0..16).rev().filter_map(|digit| char::from_digit((number >> (4 * digit) & 15) as u32, 16)));
        }
    }

    fn push_valid(&mut self, out: &mut Vec<u8>, index: u64) {
        let stamp = self.plan.stamp(index);
        match self.plan.format {
            Format::Otlp | Format::OtlpJson => self.templates.push(out, self.plan.format, self.plan.template(index), &stamp),
            Format::Json => plain::push_json(out, self.plan.signal, &stamp, self.plan.message_bytes_min),
            Format::Raw => plain::push_raw(out, &stamp, self.plan.message_bytes_min),
        }
    }

    fn push_invalid(&mut self, out: &mut Vec<u8>, kind: Invalid, index: u64) {
        let format = self.plan.format;
        let mut random = Random::new(self.plan.seed ^ BROKEN, index);
        match kind {
            Invalid::Empty => {}
            Invalid::Truncated => {
                self.push_valid(out, index);
                invalid::truncate(out, &mut random);
                // A cut between two resources would leave a whole message.
                if format == Format::Otlp && wire::fields(out).all(|field| field.is_ok()) {
                    out.pop();
                }
            }
            Invalid::Random => invalid::push_random(out, &mut random),
            Invalid::Deep => invalid::push_deep(out, format, &mut random),
            Invalid::Utf8 => {
                self.push_valid(out, index);
                // Texts that all messages of the format contain: of every resource, of every object, of every line.
                let text: &[u8] = match format {
                    Format::Otlp | Format::OtlpJson => b"prod",
                    Format::Json => b"http.route",
                    Format::Raw => b" order=",
                };
                let broken = invalid::break_text(out, text);
                debug_assert!(broken, "every message of the format contains the text");
            }
            Invalid::Signal => self.foreign.push(out, format, self.plan.template(index), &self.plan.stamp(index)),
        }
    }
}

impl Iterator for Generator {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let mut message = Message::empty();
        self.advance(&mut message).then_some(message)
    }
}

/// What a run's messages were, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Messages.
    pub messages: u64,
    /// Distinct valid messages.
    pub valid: u64,
    /// Messages that repeat an earlier one.
    pub duplicates: u64,
    /// Messages without payload.
    pub tombstones: u64,
    /// Messages to be rejected, all kinds together.
    pub invalid: u64,
    /// Messages to be rejected, by kind.
    pub invalid_by_kind: BTreeMap<Invalid, u64>,
    /// Records in the distinct valid messages: the rows to be stored.
    pub records: u64,
    /// Bytes of keys and payloads.
    pub bytes: u64,
}

impl Tally {
    /// Counts `message`.
    pub fn add(&mut self, message: &Message) {
        self.messages += 1;
        self.bytes += message.bytes();
        match message.kind {
            Kind::Valid => {
                self.valid += 1;
                self.records += message.records;
            }
            Kind::Duplicate { .. } => self.duplicates += 1,
            Kind::Tombstone => self.tombstones += 1,
            Kind::Invalid(kind) => {
                self.invalid += 1;
                *self.invalid_by_kind.entry(kind).or_default() += 1;
            }
        }
    }
}

/// Bytes of one record of OTLP messages, measured on a message of the plan's kind: from a size wanted to a number of records.
pub fn bytes_per_record(format: Format, signal: Signal, seed: u64) -> usize {
    const SAMPLE: usize = 50;
    let mut templates = Templates::structs(signal, SAMPLE, seed);
    let mut out = Vec::new();
    let stamp = Stamp::new(Place { seed, index: 0, records: SAMPLE as u64, time_ns: 1 << 60, time_step_ns: 1 });
    templates.push(&mut out, format, 0, &stamp);
    out.len() / SAMPLE
}
