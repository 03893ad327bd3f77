//! Sinks beside `flight_sink`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_operators::batch::Measured;
use openwit_operators::fault::chain;
use openwit_operators::options::{self, Declared, Options};
use openwit_operators::parquet_files::{Existing, Limits};
use openwit_operators::parquet_roll::Compression;
use openwit_operators::parquet_roll::writer::Shape;
use openwit_operators::{blackhole, kafka_sink, parquet_files, stdout_sink};

use super::{Keeps, Operator, operator, unique};
use crate::dataflow::{Built, Site};
use crate::edge::{Edge, Flow, Kind};
use crate::held::{Counts, Held};

/// What holds normalized messages.
const MESSAGES: &[Kind] = &[Kind::Unique, Kind::Normalized, Kind::Durable];

/// Writes messages to a topic.
pub(super) const KAFKA_SINK: Operator = Operator {
    keeps: Keeps::Durable,
    options: &[
        Declared { name: "topic", kind: options::Kind::Text, default: None, meaning: "The topic: not one that is read." },
        Declared {
            name: "brokers",
            kind: options::Kind::List,
            default: Some("[]"),
            meaning: "Brokers, host:port; those of ingestion.kafka where none is given.",
        },
        Declared {
            name: "key",
            kind: options::Kind::Choice(&["none", "dedup"]),
            default: Some("none"),
            meaning: "The key of a message: none, or dedup, by which messages with one id are in one partition.",
        },
    ],
    open: Some(|placed, means| {
        let options = &placed.stage.options;
        let key = if options.text("key") == "dedup" { kafka_sink::Key::Dedup } else { kafka_sink::Key::None };
        let client = client(options, means.brokers)?;
        let config = kafka_sink::Config { client, key, ..kafka_sink::Config::new(options.text("topic"), String::new()) };
        let stats = means.stats.of(&placed.stage.name);
        let (ports, thread) = kafka_sink::Ports::open(&config, means.clock.clone(), means.health.clone(), stats)?;
        Ok(Held::new(ports).served_by(thread))
    }),
    ..operator(
        kafka_sink::NAME,
        "Writes messages as OTLP protobuf to a Kafka topic, acknowledged by all replicas.",
        MESSAGES,
        &[],
        |site| {
            let messages = unique(site.edge());
            Built::sink(kafka_sink::kafka_sink(messages, (*site.opened::<kafka_sink::Ports>()).clone()))
        },
    )
};

/// The properties of a client of the brokers that the option `brokers` names, or else the configuration.
pub(super) fn client(options: &Options, brokers: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    let mut client = brokers.clone();
    let own = options.list("brokers");
    if !own.is_empty() {
        client.insert("bootstrap.servers".into(), own.join(","));
    }
    match client.get("bootstrap.servers").is_none_or(String::is_empty) {
        true => Err("options.brokers: must name at least one, as ingestion.kafka.brokers names none".into()),
        false => Ok(client),
    }
}

/// Writes rows to files on the local disk.
pub(super) const PARQUET_FILES: Operator = Operator {
    keeps: Keeps::Durable,
    options: &[
        Declared { name: "directory", kind: options::Kind::Path, default: None, meaning: "The folder." },
        Declared {
            name: "replace",
            kind: options::Kind::Bool,
            default: Some("false"),
            meaning: "Remove what this operator left there before; else the folder must be empty.",
        },
        Declared {
            name: "file_bytes_max",
            kind: options::Kind::Bytes(1 << 10, 1 << 32),
            default: Some("128MiB"),
            meaning: "Bytes of rows in memory at which a file ends, at the end of an epoch.",
        },
        Declared {
            name: "epoch_span_max",
            kind: options::Kind::Number(1, 86_400_000, "ms"),
            default: Some("60000"),
            meaning: "A file holds epochs that are less than this apart.",
        },
        Declared {
            name: "row_group_rows",
            kind: options::Kind::Number(1_000, 10_000_000, "rows"),
            default: Some("200000"),
            meaning: "Rows of a row group.",
        },
        Declared {
            name: "compression_level",
            kind: options::Kind::Number(1, 22, "levels"),
            default: Some("3"),
            meaning: "Level of zstd.",
        },
    ],
    forgets: |options| {
        let replaces = options.iter().any(|(name, value)| name == "replace" && *value == options::Value::Bool(true));
        replaces.then_some("with replace: true each start removes what was kept before, and its offsets are committed")
    },
    open: Some(|placed, means| {
        let config = files_config(&placed.stage.options);
        let stats = means.stats.of(&placed.stage.name);
        let opened = parquet_files::Ports::open(&config, means.clock.clone(), means.health.clone(), stats);
        let (ports, thread) = opened.map_err(|error| chain(&error))?;
        Ok(Held::new(ports).served_by(thread))
    }),
    ..operator(
        parquet_files::NAME,
        "Writes rows to Parquet files in a local folder: the same files whatever the number of workers.",
        MESSAGES,
        &[],
        |site| {
            let messages = unique(site.edge());
            let (config, ports) = (files_config(&site.stage.options), site.opened::<parquet_files::Ports>());
            Built::sink(parquet_files::parquet_files(messages, config, (*ports).clone()))
        },
    )
};

fn files_config(options: &Options) -> parquet_files::Config {
    let shape = Shape {
        row_group_rows_max: options.number("row_group_rows") as usize,
        compression: Compression::Zstd(options.number("compression_level") as i32),
        bloom_filters: false,
    };
    let (file_bytes_max, epoch_span_max) = (options.number("file_bytes_max"), options.number("epoch_span_max"));
    parquet_files::Config {
        directory: options.path("directory"),
        existing: if options.flag("replace") { Existing::Replace } else { Existing::Refuse },
        limits: Limits { file_bytes_max, epoch_span_max, shape },
    }
}

/// Shows messages.
pub(super) const STDOUT_SINK: Operator = Operator {
    open: Some(|placed, means| {
        let stats = means.stats.of(&placed.stage.name);
        let opened = stdout_sink::Ports::open(Box::new(std::io::stdout()), means.health.clone(), stats);
        let (ports, thread) = opened.map_err(|error| format!("starting the thread that writes: {error}"))?;
        Ok(Held::new(ports).served_by(thread))
    }),
    ..operator(
        stdout_sink::NAME,
        "Writes a line of JSON for each message, or reject, to standard output.",
        &[Kind::Unique, Kind::Normalized, Kind::Durable, Kind::Reject],
        &[],
        |site| {
            let ports = (*site.opened::<stdout_sink::Ports>()).clone();
            Built::sink(match site.edge() {
                Edge::Reject(rejects) => stdout_sink::stdout_sink(rejects, ports),
                messages => stdout_sink::stdout_sink(unique(messages), ports),
            })
        },
    )
};

/// Counts and drops.
pub(super) const BLACKHOLE: Operator = Operator {
    ..operator(blackhole::NAME, "Counts what it is given, and drops it.", Kind::ALL, &[], |site| match site.edge() {
        Edge::Raw(flow) => counted(flow, site),
        Edge::Normalized(flow) => counted(flow, site),
        Edge::Reject(flow) => counted(flow, site),
        Edge::Unique(flow) => counted(flow, site),
        Edge::Durable(flow) => counted(flow, site),
        Edge::Delivery(flow) => counted(flow, site),
    })
};

fn counted<'s, B: Measured + Clone + 'static>(flow: Flow<'s, B>, site: &Site<'_, 's>) -> Built<'s> {
    Built::sink(blackhole::blackhole(flow, site.stats()))
}

fn get(counters: &[(&'static str, &AtomicU64)]) -> Vec<(&'static str, u64)> {
    counters.iter().map(|(name, counter)| (*name, counter.load(Ordering::Relaxed))).collect()
}

impl Counts for blackhole::Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        get(&[("batches", &self.batches), ("records", &self.records), ("bytes", &self.bytes)])
    }
}

impl Counts for stdout_sink::Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        get(&[("lines", &self.lines), ("bytes", &self.bytes)])
    }
}

impl Counts for kafka_sink::Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        get(&[("acked", &self.acked), ("retries", &self.retries)])
    }
}

impl Counts for parquet_files::Stats {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        get(&[
            ("batches", &self.batches),
            ("rows", &self.rows),
            ("files", &self.files),
            ("file_bytes", &self.file_bytes),
            ("retries", &self.retries),
        ])
    }
}
