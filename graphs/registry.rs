//! The operators that a graph can name, a line or a few each.
//!
//! How to add one: docs/adding-an-operator.md.

mod captures;
mod kafka_range;
mod lines;
mod memory;
mod parquet;
mod sinks;

use std::collections::BTreeMap;
use std::sync::Arc;

use openwit_operators::batch::{NormalizedBatch, RawBatch, Sourced, UniqueBatch};
use openwit_operators::budget::Budget;
use openwit_operators::clock::Clock;
use openwit_operators::dataset::Schema;
use openwit_operators::dedup_window::dedup_window;
use openwit_operators::fault::Health;
use openwit_operators::kafka_source::consumer::Covered;
use openwit_operators::options::{Declared, Options};
use openwit_operators::parquet_source::Lake;
use openwit_operators::place::Place;
use openwit_operators::recall::recall;
use openwit_operators::redact::Redact;
use openwit_operators::transform::{Transform, transform};
use openwit_operators::wal_commit::{self, replay::wal_replay, reread::wal_reread, wal_commit};
use openwit_operators::{
    arrow_encode, capture_source, dead_letter, dedup_window, flight_sink, frame_source, kafka_source, normalize, settle,
};
use timely::dataflow::operators::generic::operator::empty;
use timely::dataflow::operators::{Concat, OkErr};

use crate::dataflow::{Built, Site, frontier_only, mapped};
use crate::edge::{Edge, Flow, Kind, Travels};
use crate::held::{Held, StageStats};
use crate::wiring::Placed;

/// The operator of the log.
pub const LOG: &str = wal_commit::NAME;
/// The operator of the dead letter.
pub const DEAD_LETTER: &str = dead_letter::NAME;
/// The operator that makes rows for storage nodes.
pub const ENCODE: &str = arrow_encode::NAME;
/// The operator that hands over to storage nodes.
pub const FLIGHT: &str = flight_sink::NAME;

/// What it means that a stage has done with an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// That it has passed on or shown it.
    Nothing,
    /// That it has kept it where a crash does not reach it.
    Durable,
}

/// An output of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// What comes out; `None`: the type that goes in.
    pub kind: Option<Kind>,
    /// Messages as they came stay what they are.
    pub passes_raw: bool,
}

impl Output {
    /// What comes out where `takes` goes in.
    pub fn given(&self, takes: Option<Kind>) -> Option<Kind> {
        let is_passed = self.passes_raw && takes == Some(Kind::Raw);
        self.kind.filter(|_| !is_passed).or(takes)
    }
}

/// What a stage may need to open something that its operators on all workers share.
pub struct Means<'a> {
    /// Where faults go.
    pub health: &'a Health,
    /// The wall clock.
    pub clock: &'a Arc<dyn Clock>,
    /// The memory budget of the process.
    pub budget: &'a Arc<Budget>,
    /// Where the process is: its first worker.
    pub place: Place,
    /// Counters of stages, kept over restarts.
    pub stats: &'a StageStats,
    /// The properties of any client of the brokers.
    pub brokers: &'a BTreeMap<String, String>,
    /// Length of an epoch in milliseconds.
    pub epoch_interval_ms: u64,
    /// The dataset schemas of the configuration.
    pub datasets: &'a [Schema],
    /// What the catalog lists, for the source of it.
    pub stored: Option<&'a Arc<Lake>>,
    /// What the catalog covers, where the graph knows of one.
    pub covered: &'a Arc<dyn Covered>,
}

type Open = fn(&Placed, &Means<'_>) -> Result<Held, String>;

/// An operator that a graph can name.
pub struct Operator {
    /// Its name.
    pub name: &'static str,
    /// What it does, as a sentence.
    pub meaning: &'static str,
    /// What may go into it; nothing into a source.
    pub inputs: &'static [Kind],
    /// What comes out of it, the main output first; nothing out of a sink.
    pub outputs: &'static [Output],
    /// What its progress means.
    pub keeps: Keeps,
    /// A process has one of it: it has a section of the configuration to itself.
    pub is_single: bool,
    /// A source whose offsets are committed.
    pub commits: bool,
    /// Commands put it into graphs; no configuration names it.
    pub is_internal: bool,
    /// What it can be told where a graph names it.
    pub options: &'static [Declared],
    /// Says what is wrong with its options beyond the type of each.
    pub check: fn(&Options) -> Result<(), String>,
    /// Says why it loses, with these options, what it has kept and what is committed.
    pub forgets: fn(&Options) -> Option<&'static str>,
    /// Opens what its instances on all workers share, once for each start.
    pub open: Option<Open>,
    /// Builds it on one worker.
    pub build: for<'a, 's> fn(&mut Site<'a, 's>) -> Built<'s>,
}

impl Operator {
    /// True if nothing goes into it.
    pub fn is_source(&self) -> bool {
        self.inputs.is_empty()
    }
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The operators that a configuration can name.
pub fn public() -> impl Iterator<Item = &'static Operator> {
    OPERATORS.iter().filter(|operator| !operator.is_internal)
}

/// The operator of this name.
pub fn find(name: &str) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| operator.name == name)
}

const fn output(name: &'static str, kind: Kind) -> Output {
    Output { name, kind: Some(kind), passes_raw: false }
}

/// An operator to begin with: one of many, no options, nothing kept.
const fn operator(
    name: &'static str,
    meaning: &'static str,
    inputs: &'static [Kind],
    outputs: &'static [Output],
    build: for<'a, 's> fn(&mut Site<'a, 's>) -> Built<'s>,
) -> Operator {
    let (keeps, is_single, commits, is_internal) = (Keeps::Nothing, false, false, false);
    let (options, open) = (&[], None);
    Operator {
        name,
        meaning,
        inputs,
        outputs,
        keeps,
        is_single,
        commits,
        is_internal,
        options,
        check: |_| Ok(()),
        forgets: |_| None,
        open,
        build,
    }
}

/// An operator that changes batches one by one.
const fn changing<T: Transform<Batch: Travels>>(inputs: &'static [Kind], outputs: &'static [Output]) -> Operator {
    fn build<'s, T: Transform<Batch: Travels>>(site: &mut Site<'_, 's>) -> Built<'s> {
        let core = T::new(&site.stage.options).expect("its options were checked");
        Built::outputs([T::Batch::edge(transform(core, site.input()))])
    }
    Operator {
        options: T::OPTIONS,
        check: |options| T::new(options).map(drop),
        ..operator(T::NAME, T::MEANING, inputs, outputs, build::<T>)
    }
}

/// All operators, in the order in which data passes them.
pub static OPERATORS: &[Operator] = &[
    Operator {
        is_single: true,
        commits: true,
        ..operator(
            kafka_source::NAME,
            "Reads Kafka topics (ingestion.kafka) and commits their offsets.",
            &[],
            &[output("raw", Kind::Raw)],
            |site| {
                let commit = site.commit();
                let config = site.settings.source.clone().expect("made where the graph has this source");
                let read = kafka_source::kafka_source(site.scope, config, site.ports(|ports| &ports.source), commit, site.place);
                site.leave_recalled(read.recalled);
                Built::outputs([Edge::Raw(read.raw)])
            },
        )
    },
    Operator {
        is_single: true,
        is_internal: true,
        ..operator(
            frame_source::NAME,
            "Reads the frames of a log, in a replay.",
            &[],
            &[output("unique", Kind::Unique)],
            |site| Built::outputs([Edge::Unique(frame_source::frame_source(site.scope, site.ports(|ports| &ports.frames)))]),
        )
    },
    Operator {
        is_single: true,
        is_internal: true,
        ..operator(
            frame_source::RAW_NAME,
            "Reads the frames of a log that stood before normalize, in a replay.",
            &[],
            &[output("raw", Kind::Raw)],
            |site| Built::outputs([Edge::Raw(frame_source::frame_source(site.scope, site.ports(|ports| &ports.frames)))]),
        )
    },
    captures::source::<RawBatch>(capture_source::NAME, "Reads a capture of messages as they came.", &[output("raw", Kind::Raw)]),
    captures::source::<NormalizedBatch>(
        "capture_source_normalized",
        "Reads a capture of what came out of normalize.",
        &[output("normalized", Kind::Normalized)],
    ),
    captures::source::<UniqueBatch>(
        "capture_source_unique",
        "Reads a capture of what came out of dedup_window.",
        &[output("unique", Kind::Unique)],
    ),
    kafka_range::KAFKA_RANGE_SOURCE,
    parquet::PARQUET_SOURCE,
    parquet::PARQUET_SOURCE_STORED,
    lines::LINE_SOURCE,
    memory::MEMORY_SOURCE,
    captures::CAPTURE,
    Operator {
        is_single: true,
        ..operator(
            normalize::NAME,
            "Validates messages and makes OTLP protobuf of them; those that fail go to its output rejects.",
            &[Kind::Raw],
            &[output("normalized", Kind::Normalized), output("rejects", Kind::Reject)],
            |site| {
                let (config, ports) = (site.settings.normalize.clone(), site.ports(|ports| &ports.normalize));
                let normalized = normalize::normalize(site.input(), config, ports, site.place);
                Built::outputs([Edge::Normalized(normalized.normalized), Edge::Reject(normalized.rejects)])
            },
        )
    },
    Operator {
        is_single: true,
        ..operator(
            dedup_window::NAME,
            "Drops messages whose id or payload was seen within the window (processing.dedup_*).",
            &[Kind::Normalized],
            &[output("unique", Kind::Unique)],
            |site| {
                let normalized = site.input();
                let recalled = match site.recalled() {
                    Some(recalled) => recall(recalled, site.settings.normalize.clone(), site.place),
                    None => empty(site.scope),
                };
                let (config, ports) = (site.settings.dedup, site.ports(|ports| &ports.dedup));
                Built::outputs([Edge::Unique(dedup_window(normalized, recalled, config, ports, site.place))])
            },
        )
    },
    Operator {
        build: |site| {
            let core = Redact::new(&site.stage.options).expect("its options were checked");
            Built::outputs([match site.edge() {
                // Behind the window, or of what was stored: it stays what it is.
                Edge::Unique(unique) => {
                    let redacted = transform(core, mapped(unique, "as_normalized", |UniqueBatch(batch)| batch));
                    Edge::Unique(mapped(redacted, "as_unique", UniqueBatch))
                }
                Edge::Normalized(normalized) => Edge::Normalized(transform(core, normalized)),
                Edge::Raw(_) | Edge::Reject(_) | Edge::Durable(_) | Edge::Delivery(_) => {
                    panic!("wired with what is not redacted")
                }
            }])
        },
        ..changing::<Redact>(&[Kind::Normalized, Kind::Unique], &[Output { name: "redacted", kind: None, passes_raw: false }])
    },
    Operator {
        is_single: true,
        keeps: Keeps::Durable,
        ..operator(
            dead_letter::NAME,
            "Keeps rejected messages where a person finds them (ingestion.kafka.dead_letter).",
            &[Kind::Reject],
            &[],
            |site| {
                let rejects = site.input();
                let rejects = match site.settled() {
                    Some(committed) => settle::new_rejects(rejects, committed),
                    None => rejects,
                };
                Built::sink(dead_letter::dead_letter(rejects, site.ports(|ports| &ports.dead_letter)))
            },
        )
    },
    Operator {
        is_single: true,
        keeps: Keeps::Durable,
        ..operator(
            wal_commit::NAME,
            "Makes messages durable in the write-ahead log (processing.wal), and reads back what lies there alone; before normalize \
             it holds them as they came.",
            &[Kind::Unique, Kind::Normalized, Kind::Raw],
            &[Output { passes_raw: true, ..output("durable", Kind::Durable) }],
            |site| {
                let edge = site.edge();
                if let Edge::Raw(raw) = edge {
                    // Its rejects are found behind it: it waits for none.
                    let frontiers = wal_commit::Frontiers { dead_letter: empty(site.scope), published: site.published() };
                    let (wal, reread) = site.ports(|ports| &ports.raw_wal);
                    let mut sourced = mapped(raw, "read", Sourced::Read);
                    if let Some(recalled) = site.recalled() {
                        sourced = sourced.concat(mapped(recalled, "recalled", Sourced::Recalled));
                    }
                    let logged = wal_commit(sourced, frontiers, wal);
                    let reread = wal_reread(logged.spilled.clone(), reread);
                    let (read, recalled) = logged.durable.concat(reread).ok_err(|sourced| match sourced {
                        Sourced::Read(batch) => Ok(batch),
                        Sourced::Recalled(batch) => Err(batch),
                    });
                    site.leave_recalled(recalled);
                    return Built { outputs: vec![Edge::Raw(read)], done: Some(frontier_only(logged.spilled)) };
                }
                let unique = unique(edge);
                // What is in a log already has no rejects left: nothing waits for a dead letter.
                let dead_letter = site.dead_letter().unwrap_or_else(|| frontier_only(unique.clone()));
                let published = site.published();
                let (wal, replay) = site.ports(|ports| &ports.wal);
                let logged = wal_commit(unique, wal_commit::Frontiers { dead_letter, published }, wal);
                let replayed = wal_replay(logged.spilled.clone(), replay);
                // Of an epoch some batches may stay in memory and others not: it is durable when both streams have passed it, and they
                // pass it together.
                Built { outputs: vec![Edge::Durable(logged.durable.concat(replayed))], done: Some(frontier_only(logged.spilled)) }
            },
        )
    },
    Operator {
        is_single: true,
        ..operator(
            arrow_encode::NAME,
            "Makes Arrow record batches of messages (pipeline).",
            &[Kind::Durable, Kind::Unique, Kind::Normalized],
            &[output("deliveries", Kind::Delivery)],
            |site| {
                let durable = match site.edge() {
                    Edge::Durable(durable) => durable,
                    edge => {
                        let unique = unique(edge);
                        let dead_letter = site.dead_letter().unwrap_or_else(|| empty(site.scope));
                        let committed = site.settled().expect("made where the log stands before normalize");
                        settle::settle(unique, dead_letter, committed)
                    }
                };
                let encoded = arrow_encode::arrow_encode(durable, site.settings.encode, site.ports(|ports| &ports.encode));
                Built::outputs([Edge::Delivery(encoded)])
            },
        )
    },
    Operator {
        is_single: true,
        keeps: Keeps::Durable,
        ..operator(
            flight_sink::NAME,
            "Hands rows over to storage nodes by Arrow Flight (storage.endpoints), and learns when they are published.",
            &[Kind::Delivery],
            &[],
            |site| {
                let ports = site.ports(|ports| &ports.sink);
                Built::sink(flight_sink::flight_sink(site.input(), site.settings.sink.clone(), ports))
            },
        )
    },
    sinks::KAFKA_SINK,
    sinks::PARQUET_FILES,
    sinks::STDOUT_SINK,
    sinks::BLACKHOLE,
    memory::MEMORY_SINK,
];

/// Messages of any of the types that hold normalized ones.
fn unique(edge: Edge<'_>) -> Flow<'_, UniqueBatch> {
    match edge {
        Edge::Unique(unique) => unique,
        Edge::Normalized(normalized) => mapped(normalized, "no_dedup", UniqueBatch),
        Edge::Durable(durable) => mapped(durable, "as_unique", |durable| UniqueBatch(durable.batch)),
        Edge::Raw(_) | Edge::Reject(_) | Edge::Delivery(_) => panic!("wired with what holds no normalized messages"),
    }
}
