//! A range of Kafka.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use openwit_operators::batch::RawBatch;
use openwit_operators::capture_source::{self, Feed, FeedPorts};
use openwit_operators::kafka_range_source::{self, Config, OffsetRange, Ranges, Stats};
use openwit_operators::kafka_source::topics::TopicPatterns;
use openwit_operators::options::{self, Declared, Options};

use super::captures::{SPEED, TIME_MAX, speed};
use super::{Operator, operator, output};
use crate::dataflow::Built;
use crate::edge::{Edge, Kind};
use crate::held::{Counts, Held};

/// Reads a range.
pub(super) const KAFKA_RANGE_SOURCE: Operator = Operator {
    options: &[
        Declared {
            name: "topics",
            kind: options::Kind::List,
            default: Some("[]"),
            meaning: "Topics or globs of which all partitions are read, by time.",
        },
        Declared {
            name: "exclude_topics",
            kind: options::Kind::List,
            default: Some("[]"),
            meaning: "Topics or globs among them that are not read.",
        },
        Declared {
            name: "since_ms",
            kind: options::Kind::Number(0, TIME_MAX, "ms"),
            default: Some("0"),
            meaning: "With topics: from the first message of this time on, Unix milliseconds of Kafka's timestamps.",
        },
        Declared {
            name: "until_ms",
            kind: options::Kind::Number(0, TIME_MAX, "ms"),
            default: Some("18446744073709551615"),
            meaning: "With topics: up to the first message of this time; at most to what is there at the start.",
        },
        Declared {
            name: "offsets",
            kind: options::Kind::List,
            default: Some("[]"),
            meaning: "In the place of topics: TOPIC[PARTITION]=START..END, either end may be left out.",
        },
        Declared {
            name: "brokers",
            kind: options::Kind::List,
            default: Some("[]"),
            meaning: "Brokers, host:port; those of ingestion.kafka where none is given.",
        },
        SPEED,
    ],
    check: |options| ranges(options).map(drop),
    open: Some(|placed, means| {
        let options = &placed.stage.options;
        let config = Config {
            client: super::sinks::client(options, means.brokers)?,
            ranges: ranges(options)?,
            epoch_interval_ms: means.epoch_interval_ms,
            speed: speed(options),
        };
        let ports = FeedPorts {
            place: means.place,
            budget: means.budget.clone(),
            health: means.health.clone(),
            clock: means.clock.clone(),
        };
        // The thread ends with the feed.
        let started = kafka_range_source::start(config, ports, means.covered.clone(), means.stats.of(&placed.stage.name));
        let (feed, _thread) = started.map_err(|error| format!("starting the reader: {error}"))?;
        Ok(Held::new(feed))
    }),
    ..operator(
        kafka_range_source::NAME,
        "Reads a range of Kafka's offsets or timestamps, to its end; joins no group, commits nothing.",
        &[],
        &[output("raw", Kind::Raw)],
        |site| {
            let feed = site.opened::<Arc<Feed<RawBatch>>>();
            let ports = capture_source::Ports { feed: (*feed).clone() };
            Built::outputs([Edge::Raw(capture_source::capture_source(site.scope, kafka_range_source::NAME, ports, site.place))])
        },
    )
};

fn ranges(options: &Options) -> Result<Ranges, String> {
    let (topics, offsets) = (options.list("topics"), options.list("offsets"));
    let (since, until) = (options.number("since_ms"), options.number("until_ms"));
    let bound = |time: u64, none: u64| (time != none).then(|| i64::try_from(time).unwrap_or(i64::MAX));
    let (since, until) = (bound(since, 0), bound(until, TIME_MAX));
    match (topics.is_empty(), offsets.is_empty()) {
        (true, true) => Err("topics or offsets must be given".to_owned()),
        (false, false) => Err("topics or offsets, not both".to_owned()),
        (true, false) if since.or(until).is_some() => Err("offsets: a range of offsets has no since_ms or until_ms".to_owned()),
        (true, false) => OffsetRange::list(&offsets).map(Ranges::Offsets).map_err(|error| format!("offsets: {error}")),
        (false, true) => {
            let patterns = TopicPatterns::new(&topics, &options.list("exclude_topics"));
            let patterns = patterns.map_err(|error| format!("topics: {error}"))?;
            match (since, until) {
                (Some(since), Some(until)) if since >= until => Err("until_ms: is not after since_ms".to_owned()),
                _ => Ok(Ranges::Times(patterns, since, until)),
            }
        }
    }
}

impl Counts for Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let counters = [
            ("batches", &self.batches),
            ("records", &self.records),
            ("read_bytes", &self.read_bytes),
            ("read_offsets", &self.read_offsets),
            ("total_offsets", &self.total_offsets),
        ];
        counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).into()
    }
}
