//! Lines of standard input.

use std::sync::atomic::Ordering;

use openwit_operators::line_source::{self, Config, Feed, Ports};
use openwit_operators::options::{self, Declared, Options};

use super::{Operator, operator, output};
use crate::dataflow::Built;
use crate::edge::{Edge, Kind};
use crate::held::{Counts, Held};

/// Reads lines.
pub(super) const LINE_SOURCE: Operator = Operator {
    options: &[
        Declared {
            name: "topic",
            kind: options::Kind::Text,
            default: None,
            meaning: "The topic whose messages the lines are: index, signal and format follow from it.",
        },
        Declared {
            name: "batch_size",
            kind: options::Kind::Number(1, 1_000_000, "lines"),
            default: Some("1000"),
            meaning: "Lines of a batch.",
        },
        Declared {
            name: "batch_wait_ms",
            kind: options::Kind::Number(1, 60_000, "ms"),
            default: Some("50"),
            meaning: "How long the first line of a batch waits for more.",
        },
        Declared {
            name: "line_bytes_max",
            kind: options::Kind::Bytes(1, 256 << 20),
            default: Some("16MiB"),
            meaning: "A longer line ends the run.",
        },
    ],
    open: Some(|placed, means| {
        let stats = means.stats.of::<line_source::Stats>(&placed.stage.name);
        let config = config(&placed.stage.options, means.epoch_interval_ms);
        let feed = Feed::start(Box::new(std::io::stdin()), config.line_bytes_max, means.health.clone(), stats.clone());
        let feed = feed.map_err(|error| format!("starting the reader of standard input: {error}"))?;
        let (clock, budget, health) = (means.clock.clone(), means.budget.clone(), means.health.clone());
        Ok(Held::new((config, Ports { feed, clock, budget, health, stats })))
    }),
    ..operator(
        line_source::NAME,
        "Reads lines of standard input as messages of a topic, to the end.",
        &[],
        &[output("raw", Kind::Raw)],
        |site| {
            let opened = site.opened::<(Config, Ports)>();
            let (config, ports) = (*opened).clone();
            Built::outputs([Edge::Raw(line_source::line_source(site.scope, config, ports))])
        },
    )
};

fn config(options: &Options, epoch_interval_ms: u64) -> Config {
    Config {
        batch_records_max: options.number("batch_size") as usize,
        batch_wait_ms: options.number("batch_wait_ms"),
        line_bytes_max: options.number("line_bytes_max") as usize,
        epoch_interval_ms,
        ..Config::new(options.text("topic"))
    }
}

impl Counts for line_source::Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let counters = [("lines", &self.lines), ("records", &self.records), ("bytes", &self.bytes)];
        counters.map(|(name, counter)| (name, counter.load(Ordering::Relaxed))).into()
    }
}
