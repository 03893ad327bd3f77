//! Captures: what keeps them, and the sources that read them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_operators::batch::{NormalizedBatch, RawBatch, UniqueBatch};
use openwit_operators::capture::{self, Captured, Selection};
use openwit_operators::capture_source;
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::chain;
use openwit_operators::options::{self, Declared, Options};

use super::{Means, Operator, Output, operator};
use crate::dataflow::{Built, Site};
use crate::edge::{Edge, Flow, Kind, Travels};
use crate::held::{Counts, Held};
use crate::wiring::Placed;

/// Keeps what passes an edge.
pub(super) const CAPTURE: Operator = Operator {
    options: CAPTURE_OPTIONS,
    check: |options| capture_config(options).check().map_err(|error| error.to_string()),
    open: Some(open_capture),
    ..operator(
        capture::NAME,
        "Passes batches on and keeps them in files, to be replayed.",
        &[Kind::Raw, Kind::Normalized, Kind::Unique],
        &[Output { name: "passed", kind: None, passes_raw: false }],
        |site| match site.edge() {
            Edge::Raw(flow) => captured(flow, site),
            Edge::Normalized(flow) => captured(flow, site),
            Edge::Unique(flow) => captured(flow, site),
            Edge::Reject(_) | Edge::Durable(_) | Edge::Delivery(_) => panic!("wired with what cannot be captured"),
        },
    )
};

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
        kind: options::Kind::Number(0, 22, "levels"),
        default: Some("0"),
        meaning: "Level of zstd; 0 is a fast one (-5), for a capture beside a load that takes all cores.",
    },
];

/// What level 0 stands for: zstd's own meaning of 0 is its default, 3.
const FAST_LEVEL: i32 = -5;

fn capture_config(options: &Options) -> capture::Config {
    capture::Config {
        directory: options.path("directory"),
        file_bytes_max: options.number("file_bytes_max"),
        total_bytes_max: options.number("total_bytes_max"),
        queue_bytes_max: options.number("queue_bytes_max") as usize,
        flush_ms: options.number("flush_ms"),
        compression_level: match options.number("compression_level") as i32 {
            0 => FAST_LEVEL,
            level => level,
        },
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
    Built::outputs([B::edge(capture::capture(flow, capture::Ports { writer: (*writer).clone() }, site.place))])
}

/// How fast a source of what has its times gives it.
pub(super) const SPEED: Declared = Declared {
    name: "speed_percent",
    kind: options::Kind::Number(0, 100_000, "%"),
    default: Some("0"),
    meaning: "How fast: 100 as it was recorded, 200 twice as fast; 0 as fast as what follows takes it.",
};

/// What `SPEED` says.
pub(super) fn speed(options: &Options) -> capture_source::Speed {
    match options.number(SPEED.name) {
        0 => capture_source::Speed::Full,
        percent => capture_source::Speed::Recorded(percent as f64 / 100.0),
    }
}

/// No time: everything is before it.
pub(super) const TIME_MAX: u64 = u64::MAX;

const CAPTURE_SOURCE_OPTIONS: &[Declared] = &[
    Declared { name: "path", kind: options::Kind::Path, default: None, meaning: "A folder of captures, or one file." },
    SPEED,
    Declared { name: "topics", kind: options::Kind::List, default: Some("[]"), meaning: "Only batches of these topics." },
    Declared {
        name: "since_ms",
        kind: options::Kind::Number(0, TIME_MAX, "ms"),
        default: Some("0"),
        meaning: "Only epochs from this time on, Unix milliseconds.",
    },
    Declared {
        name: "until_ms",
        kind: options::Kind::Number(0, TIME_MAX, "ms"),
        default: Some("18446744073709551615"),
        meaning: "Only epochs before this time, Unix milliseconds.",
    },
];

/// A source of what a capture of one type holds.
pub(super) const fn source<B: Captured + Travels>(
    name: &'static str,
    meaning: &'static str,
    outputs: &'static [Output],
) -> Operator {
    fn open<B: Captured>(placed: &Placed, means: &Means<'_>) -> Result<Held, String> {
        let options = &placed.stage.options;
        let selection = Selection {
            from: Some(Epoch(options.number("since_ms"))),
            until: Some(options.number("until_ms")).filter(|until| *until < TIME_MAX).map(Epoch),
            topics: options.list("topics"),
            ..Selection::default()
        };
        let config = capture_source::Config { path: options.path("path"), selection, speed: speed(options) };
        let ports = capture_source::FeedPorts {
            place: means.place,
            budget: means.budget.clone(),
            health: means.health.clone(),
            clock: means.clock.clone(),
        };
        // The thread ends with the feed.
        let started = capture_source::Feed::<B>::start(config, ports, means.stats.of(&placed.stage.name));
        let (feed, _thread) = started.map_err(|error| format!("starting the reader: {error}"))?;
        Ok(Held::new(feed))
    }
    fn build<'s, B: Captured + Travels>(site: &mut Site<'_, 's>) -> Built<'s> {
        let feed = site.opened::<Arc<capture_source::Feed<B>>>();
        let ports = capture_source::Ports { feed: (*feed).clone() };
        Built::outputs([B::edge(capture_source::capture_source(site.scope, capture_source::NAME, ports, site.place))])
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
