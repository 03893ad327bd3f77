//! Parquet files as a source.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use openwit_operators::batch::{Signal, UniqueBatch};
use openwit_operators::capture_source::{self, Feed, FeedPorts};
use openwit_operators::dataset::Schema;
use openwit_operators::kafka_source::topics::TopicPatterns;
use openwit_operators::options::{self, Declared, Options};
use openwit_operators::parquet_source::{self, Config, From, Selection, Stats};

use super::captures::{SPEED, TIME_MAX, speed};
use super::{Means, Operator, Output, operator, output};
use crate::dataflow::Built;
use crate::edge::{Edge, Kind};
use crate::held::{Counts, Held};
use crate::wiring::Placed;

/// Reads the files in a folder.
pub(super) const PARQUET_SOURCE: Operator = Operator {
    options: &[
        Declared {
            name: "path",
            kind: options::Kind::Path,
            default: None,
            meaning: "A folder with Parquet files of this program at any depth, or one file.",
        },
        TOPICS,
        INDEXES,
        SIGNALS,
        SINCE,
        UNTIL,
        SPEED,
    ],
    open: Some(|placed, means| open(placed, means, From::Folder(placed.stage.options.path("path")))),
    ..source(
        parquet_source::NAME,
        "Reads Parquet files that storage or parquet_files has written, to their end, as the messages that the rows were of.",
    )
};

/// Reads what the catalog lists.
pub(super) const PARQUET_SOURCE_STORED: Operator = Operator {
    is_single: true,
    is_internal: true,
    options: &[TOPICS, INDEXES, SIGNALS, SINCE, UNTIL, SPEED],
    open: Some(|placed, means| {
        let lake = means.stored.expect("made where the graph has this source");
        open(placed, means, From::Lake(lake.clone()))
    }),
    ..source(parquet_source::STORED_NAME, "Reads the Parquet files that the catalog lists, in a replay.")
};

const TOPICS: Declared = Declared {
    name: "topics",
    kind: options::Kind::List,
    default: Some("[]"),
    meaning: "Only messages of these topics or globs; of all where none is named.",
};
const INDEXES: Declared = Declared {
    name: "indexes",
    kind: options::Kind::List,
    default: Some("[]"),
    meaning: "Only rows of these indexes; of all where none is named.",
};
const SIGNALS: Declared = Declared {
    name: "signals",
    kind: options::Kind::List,
    default: Some("[]"),
    meaning: "Only rows of these signals: traces, logs, metrics; of all where none is named.",
};
const SINCE: Declared = Declared {
    name: "since_ms",
    kind: options::Kind::Number(0, TIME_MAX, "ms"),
    default: Some("0"),
    meaning: "Of each partition from the first message of this time on, Unix milliseconds of Kafka's timestamps.",
};
const UNTIL: Declared = Declared {
    name: "until_ms",
    kind: options::Kind::Number(0, TIME_MAX, "ms"),
    default: Some("18446744073709551615"),
    meaning: "Of each partition up to the first message of this time.",
};

const UNIQUE: &[Output] = &[output("unique", Kind::Unique)];

const fn source(name: &'static str, meaning: &'static str) -> Operator {
    Operator {
        check: |options| selection(options).map(drop),
        ..operator(name, meaning, &[], UNIQUE, |site| {
            let feed = site.opened::<Arc<Feed<UniqueBatch>>>();
            let ports = capture_source::Ports { feed: (*feed).clone() };
            Built::outputs([Edge::Unique(capture_source::capture_source(site.scope, parquet_source::NAME, ports, site.place))])
        })
    }
}

fn open(placed: &Placed, means: &Means<'_>, from: From) -> Result<Held, String> {
    let options = &placed.stage.options;
    let config = Config {
        from,
        selection: selection(options)?,
        schemas: means.datasets.iter().map(Schema::stamp).collect(),
        epoch_interval_ms: means.epoch_interval_ms,
        speed: speed(options),
    };
    let ports =
        FeedPorts { place: means.place, budget: means.budget.clone(), health: means.health.clone(), clock: means.clock.clone() };
    // The thread ends with the feed.
    let started = parquet_source::start(config, ports, means.stats.of(&placed.stage.name));
    let (feed, _thread) = started.map_err(|error| format!("starting the reader: {error}"))?;
    Ok(Held::new(feed))
}

fn selection(options: &Options) -> Result<Selection, String> {
    let topics = options.list("topics");
    let topics = (!topics.is_empty()).then(|| TopicPatterns::new(&topics, &[])).transpose();
    let signal = |name: &String| {
        let known = [Signal::Traces, Signal::Logs, Signal::Metrics].into_iter().find(|signal| signal.name() == name);
        known.ok_or_else(|| format!("signals: {name:?} is none of traces, logs and metrics"))
    };
    let bound = |name, none: u64| {
        Some(options.number(name)).filter(|time| *time != none).map(|time| i64::try_from(time).unwrap_or(i64::MAX))
    };
    let (since_ms, until_ms) = (bound("since_ms", 0), bound("until_ms", TIME_MAX));
    if since_ms.zip(until_ms).is_some_and(|(since, until)| since >= until) {
        return Err("until_ms: is not after since_ms".to_owned());
    }
    Ok(Selection {
        topics: topics.map_err(|error| format!("topics: {error}"))?,
        indexes: options.list("indexes"),
        signals: options.list("signals").iter().map(signal).collect::<Result<_, _>>()?,
        since_ms,
        until_ms,
    })
}

impl Counts for Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let counters = [
            ("batches", &self.batches),
            ("records", &self.records),
            ("read_bytes", &self.read_bytes),
            ("total_bytes", &self.total_bytes),
        ];
        counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).into()
    }
}
