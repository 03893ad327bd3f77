//! The operators that a graph can name, a line or a few each.
//!
//! How to add one: docs/adding-an-operator.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_operators::batch::{NormalizedBatch, RawBatch, UniqueBatch};
use openwit_operators::budget::Budget;
use openwit_operators::capture::{self, Captured, Selection};
use openwit_operators::clock::Clock;
use openwit_operators::dedup_window::dedup_window;
use openwit_operators::fault::{Health, chain};
use openwit_operators::options::{self, Declared, Options};
use openwit_operators::recall::recall;
use openwit_operators::redact::Redact;
use openwit_operators::transform::{Transform, transform};
use openwit_operators::wal_commit::{self, replay::wal_replay, wal_commit};
use openwit_operators::{
    arrow_encode, capture_source, dead_letter, dedup_window, flight_sink, frame_source, kafka_source, normalize,
};
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::operator::empty;

use crate::dataflow::{Built, Site, frontier_only, mapped};
use crate::edge::{Edge, Flow, Kind, Travels};
use crate::held::{Counts, Held, StageStats};
use crate::wiring::Placed;

/// The operator of the log.
pub const LOG: &str = wal_commit::NAME;
/// The operator of the dead letter.
pub const DEAD_LETTER: &str = dead_letter::NAME;
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
}

/// What a stage may need to open something that its operators on all workers share.
pub struct Means<'a> {
    /// Where faults go.
    pub health: &'a Health,
    /// The wall clock.
    pub clock: &'a Arc<dyn Clock>,
    /// The memory budget of the process.
    pub budget: &'a Arc<Budget>,
    /// Workers of this process.
    pub workers: usize,
    /// Counters of stages, kept over restarts.
    pub stats: &'a StageStats,
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
    /// What it can be told where a graph names it.
    pub options: &'static [Declared],
    /// Says what is wrong with its options beyond the type of each.
    pub check: fn(&Options) -> Result<(), String>,
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

/// The operator of this name.
pub fn find(name: &str) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| operator.name == name)
}

const fn output(name: &'static str, kind: Kind) -> Output {
    Output { name, kind: Some(kind) }
}

/// An operator to begin with: one of many, no options, nothing kept.
const fn operator(
    name: &'static str,
    meaning: &'static str,
    inputs: &'static [Kind],
    outputs: &'static [Output],
    build: for<'a, 's> fn(&mut Site<'a, 's>) -> Built<'s>,
) -> Operator {
    let (keeps, is_single, commits, options, open) = (Keeps::Nothing, false, false, &[], None);
    Operator { name, meaning, inputs, outputs, keeps, is_single, commits, options, check: |_| Ok(()), open, build }
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
                let read = kafka_source::kafka_source(site.scope, config, site.ports(|ports| &ports.source), commit);
                site.leave_recalled(read.recalled);
                Built::outputs([Edge::Raw(read.raw)])
            },
        )
    },
    Operator {
        is_single: true,
        ..operator(
            frame_source::NAME,
            "Reads the frames of a log, in a replay.",
            &[],
            &[output("unique", Kind::Unique)],
            |site| Built::outputs([Edge::Unique(frame_source::frame_source(site.scope, site.ports(|ports| &ports.frames)))]),
        )
    },
    capture_source::<RawBatch>(capture_source::NAME, "Reads a capture of messages as they came.", &[output("raw", Kind::Raw)]),
    capture_source::<NormalizedBatch>(
        "capture_source_normalized",
        "Reads a capture of what came out of normalize.",
        &[output("normalized", Kind::Normalized)],
    ),
    capture_source::<UniqueBatch>(
        "capture_source_unique",
        "Reads a capture of what came out of dedup_window.",
        &[output("unique", Kind::Unique)],
    ),
    Operator {
        options: CAPTURE_OPTIONS,
        check: |options| capture_config(options).check().map_err(|error| error.to_string()),
        open: Some(open_capture),
        ..operator(
            capture::NAME,
            "Passes batches on and keeps them in files, to be replayed.",
            &[Kind::Raw, Kind::Normalized, Kind::Unique],
            &[Output { name: "passed", kind: None }],
            |site| match site.edge() {
                Edge::Raw(flow) => captured(flow, site),
                Edge::Normalized(flow) => captured(flow, site),
                Edge::Unique(flow) => captured(flow, site),
                Edge::Reject(_) | Edge::Durable(_) | Edge::Delivery(_) => panic!("wired with what cannot be captured"),
            },
        )
    },
    Operator {
        is_single: true,
        ..operator(
            normalize::NAME,
            "Validates messages and makes OTLP protobuf of them; those that fail go to its output rejects.",
            &[Kind::Raw],
            &[output("normalized", Kind::Normalized), output("rejects", Kind::Reject)],
            |site| {
                let normalized =
                    normalize::normalize(site.input(), site.settings.normalize.clone(), site.ports(|ports| &ports.normalize));
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
                    Some(recalled) => recall(recalled, site.settings.normalize.clone()),
                    None => empty(site.scope),
                };
                Built::outputs([Edge::Unique(dedup_window(
                    normalized,
                    recalled,
                    site.settings.dedup,
                    site.ports(|ports| &ports.dedup),
                ))])
            },
        )
    },
    changing::<Redact>(&[Kind::Normalized], &[output("normalized", Kind::Normalized)]),
    Operator {
        is_single: true,
        keeps: Keeps::Durable,
        ..operator(
            dead_letter::NAME,
            "Keeps rejected messages where a person finds them (ingestion.kafka.dead_letter).",
            &[Kind::Reject],
            &[],
            |site| Built::sink(dead_letter::dead_letter(site.input(), site.ports(|ports| &ports.dead_letter))),
        )
    },
    Operator {
        is_single: true,
        keeps: Keeps::Durable,
        ..operator(
            wal_commit::NAME,
            "Makes messages durable in the write-ahead log (processing.wal), and reads back what lies there alone.",
            &[Kind::Unique, Kind::Normalized],
            &[output("durable", Kind::Durable)],
            |site| {
                let unique = unique(site.edge());
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
            &[Kind::Durable],
            &[output("deliveries", Kind::Delivery)],
            |site| {
                let encoded = arrow_encode::arrow_encode(site.input(), site.settings.encode, site.ports(|ports| &ports.encode));
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

const CAPTURE_OPTIONS: &[Declared] = &[
    Declared {
        name: "directory",
        kind: options::Kind::Path,
        default: None,
        meaning: "Where the files lie: a folder of this stage alone.",
    },
    Declared {
        name: "file_bytes_max",
        kind: options::Kind::Bytes(1 << 16, 1 << 40),
        default: Some("256MiB"),
        meaning: "A file of this size is ended.",
    },
    Declared {
        name: "total_bytes_max",
        kind: options::Kind::Bytes(1 << 17, 1 << 50),
        default: Some("16GiB"),
        meaning: "All files together; beyond it the oldest are removed.",
    },
    Declared {
        name: "queue_bytes_max",
        kind: options::Kind::Bytes(1 << 16, 1 << 40),
        default: Some("64MiB"),
        meaning: "Bytes that wait to be written, from which on batches are held back.",
    },
    Declared {
        name: "flush_ms",
        kind: options::Kind::Number(1, 60_000, "ms"),
        default: Some("100"),
        meaning: "How long an epoch may wait to be compressed with others.",
    },
    Declared {
        name: "compression_level",
        kind: options::Kind::Number(1, 22, "levels"),
        default: Some("1"),
        meaning: "Level of zstd.",
    },
];

fn capture_config(options: &Options) -> capture::Config {
    capture::Config {
        directory: options.path("directory"),
        file_bytes_max: options.number("file_bytes_max"),
        total_bytes_max: options.number("total_bytes_max"),
        queue_bytes_max: options.number("queue_bytes_max") as usize,
        flush_ms: options.number("flush_ms"),
        compression_level: options.number("compression_level") as i32,
    }
}

fn open_capture(placed: &Placed, means: &Means<'_>) -> Result<Held, String> {
    fn open<B: Captured>(placed: &Placed, means: &Means<'_>) -> Result<Held, String> {
        let config = capture_config(&placed.stage.options);
        let opened = capture::Writer::<B>::spawn(config, means.health.clone(), means.clock.clone());
        let writer = opened.map_err(|error| chain(&error))?;
        let ends = writer.clone();
        Ok(Held::new(writer).closed_by(move || ends.shutdown()))
    }
    match placed.takes {
        Some(Kind::Raw) => open::<RawBatch>(placed, means),
        Some(Kind::Normalized) => open::<NormalizedBatch>(placed, means),
        _ => open::<UniqueBatch>(placed, means),
    }
}

fn captured<'s, B: Captured + Travels>(flow: Flow<'s, B>, site: &Site<'_, 's>) -> Built<'s> {
    let writer = site.opened::<capture::Writer<B>>();
    Built::outputs([B::edge(capture::capture(flow, capture::Ports { writer: (*writer).clone() }))])
}

const CAPTURE_SOURCE_OPTIONS: &[Declared] = &[
    Declared { name: "path", kind: options::Kind::Path, default: None, meaning: "A folder of captures, or one file." },
    Declared {
        name: "speed_percent",
        kind: options::Kind::Number(0, 100_000, "%"),
        default: Some("0"),
        meaning: "How fast: 100 as it was recorded, 200 twice as fast; 0 as fast as what follows takes it.",
    },
    Declared { name: "topics", kind: options::Kind::List, default: Some("[]"), meaning: "Only batches of these topics." },
];

const fn capture_source<B: Captured + Travels>(
    name: &'static str,
    meaning: &'static str,
    outputs: &'static [Output],
) -> Operator {
    fn open<B: Captured>(placed: &Placed, means: &Means<'_>) -> Result<Held, String> {
        let options = &placed.stage.options;
        let speed = match options.number("speed_percent") {
            0 => capture_source::Speed::Full,
            percent => capture_source::Speed::Recorded(percent as f64 / 100.0),
        };
        let selection = Selection { topics: options.list("topics"), ..Selection::default() };
        let config = capture_source::Config { path: options.path("path"), selection, speed };
        let ports = capture_source::FeedPorts {
            workers: means.workers,
            budget: means.budget.clone(),
            health: means.health.clone(),
            clock: means.clock.clone(),
            stats: means.stats.of(&placed.stage.name),
        };
        // The thread ends with the feed.
        let started = capture_source::Feed::<B>::start(config, ports);
        let (feed, _thread) = started.map_err(|error| format!("starting the reader: {error}"))?;
        Ok(Held::new(feed))
    }
    fn build<'s, B: Captured + Travels>(site: &mut Site<'_, 's>) -> Built<'s> {
        let feed = site.opened::<Arc<capture_source::Feed<B>>>();
        Built::outputs([B::edge(capture_source::capture_source(site.scope, capture_source::Ports { feed: (*feed).clone() }))])
    }
    Operator { options: CAPTURE_SOURCE_OPTIONS, open: Some(open::<B>), ..operator(name, meaning, &[], outputs, build::<B>) }
}

impl Counts for capture_source::Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("batches", count(&self.batches)),
            ("records", count(&self.records)),
            ("read_bytes", count(&self.read_bytes)),
            ("total_bytes", count(&self.total_bytes)),
            ("damaged", count(&self.damaged)),
        ]
    }
}
