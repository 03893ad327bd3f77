//! What a replay reads.

use std::path::Path;
use std::sync::Arc;

use openwit_graphs::catalog;
use openwit_graphs::wiring::Stage;
use openwit_operators::capture::{self, Files};
use openwit_operators::catalog_commit;
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::chain;
use openwit_operators::options::{Options, Value};
use openwit_operators::parquet_source::Lake;
use openwit_operators::wal_commit::long_term::read::Selection;
use openwit_operators::{capture_source, frame_source, kafka_range_source, parquet_source};

use super::super::Failure;
use super::super::wal::source;
use crate::cli::ReplayArgs;
use crate::config::{Config, default_options};
use crate::plan::{Input, catalog_location, object_store};

/// The name by which the brokers of the configuration are read.
const KAFKA: &str = "kafka";
/// The name by which the catalog and the object store of the configuration are read.
const PARQUET: &str = "parquet";

/// What is read: Kafka if it is named so, a capture or Parquet files if it is that, else a log.
pub fn input(args: &ReplayArgs, config: &Config) -> Result<Input, Failure> {
    let source = found(args, config)?;
    let is_parquet = match &source {
        Input::Stage(stage) => stage.operator == parquet_source::NAME,
        Input::Stored(..) => true,
        Input::Log(_) => false,
    };
    match [("--index", &args.indexes), ("--signal", &args.signals)].iter().find(|(_, chosen)| !is_parquet && !chosen.is_empty()) {
        None => Ok(source),
        Some((option, _)) => Err(Failure::usage(format!(
            "{option}: of what {} holds, topics can be chosen; Parquet files have rows",
            args.from.display()
        ))),
    }
}

fn found(args: &ReplayArgs, config: &Config) -> Result<Input, Failure> {
    if args.from == Path::new(KAFKA) {
        return kafka(args, config).map(Input::Stage);
    }
    if !args.offsets.is_empty() {
        return Err(Failure::usage(format!("--offsets: {} has none to choose by; --from {KAFKA} has", args.from.display())));
    }
    if args.from == Path::new(PARQUET) {
        return stored(args, config);
    }
    let files = match Files::open(&args.from) {
        Ok(files) => files,
        Err(_) if parquet_source::is_there(&args.from) => return Ok(Input::Stage(parquet(args))),
        // `long-term` is no path, and a folder without captures may hold a log: what is neither is told there.
        Err(_) => return log(args, config),
    };
    let kind = files.kind().map_err(|error| Failure::fault(chain(&error)))?;
    // A single file can be anything; damaged captures are known by their names.
    if kind.is_none() && !files.files().iter().all(|file| file.is_capture()) {
        return if parquet_source::is_there(&args.from) { Ok(Input::Stage(parquet(args))) } else { log(args, config) };
    }
    capture_stage(args, kind).map(Input::Stage)
}

fn log(args: &ReplayArgs, config: &Config) -> Result<Input, Failure> {
    let source = source(&args.from, || Ok(config.clone())).map_err(|failure| {
        let message =
            format!("--from {}: neither a capture nor Parquet files nor a log: {}", args.from.display(), failure.message);
        Failure { message, ..failure }
    })?;
    if args.speed.is_some() {
        return Err(Failure::usage("--speed: a log does not know when its messages were read; a capture does"));
    }
    let to_epoch = |unix_ns: u64| Epoch(unix_ns / 1_000_000);
    let selection = Selection { from: args.since.map(to_epoch), until: args.until.map(to_epoch), topics: args.topics.clone() };
    let is_raw = source.is_raw().map_err(|error| Failure::fault(chain(&error)))?.unwrap_or(false);
    Ok(Input::Log(frame_source::Config { source, selection, is_raw }))
}

fn capture_stage(args: &ReplayArgs, kind: Option<capture::Kind>) -> Result<Stage, Failure> {
    let operator = match kind {
        None | Some(capture::Kind::Raw) => capture_source::NAME,
        Some(capture::Kind::Normalized) => "capture_source_normalized",
        Some(capture::Kind::Unique) => "capture_source_unique",
    };
    let mut options = default_options(operator);
    options.set("path", Value::Path(args.from.clone()));
    options.set("topics", Value::List(args.topics.clone()));
    set_times(&mut options, args);
    Ok(Stage::of(operator).with(options))
}

/// What the catalog lists now. Nothing of it is held open: a replay takes long, and a process may need the catalog.
fn stored(args: &ReplayArgs, config: &Config) -> Result<Input, Failure> {
    if args.result.publish {
        return Err(Failure::usage(format!(
            "--publish: --from {PARQUET} is what the catalog has already; to publish it into another one, name the folder of its object store"
        )));
    }
    let opened = catalog::open_to_look(&catalog_location(config)).map_err(|error| match error {
        catalog_commit::Error::Locked { .. } => {
            let folder = "name the folder of its object store in the place of the catalog";
            Failure::fault(format!("--from {PARQUET}: the embedded catalog is in use by another process: stop it, or {folder}"))
        }
        error => Failure::fault(chain(&error)),
    })?;
    let catalog = opened
        .ok_or_else(|| Failure::usage(format!("--from {PARQUET}: the configuration has no catalog yet: nothing is stored")))?;
    let lake = Lake::of_catalog(&*catalog, object_store(config), &config.storage.object_store.prefix);
    let lake = lake.map_err(|error| Failure::fault(format!("--from {PARQUET}: {}", chain(&error))))?;
    let options = chosen(default_options(parquet_source::STORED_NAME), args);
    Ok(Input::Stored(Stage::of(parquet_source::STORED_NAME).with(options), Arc::new(lake)))
}

fn parquet(args: &ReplayArgs) -> Stage {
    let mut options = default_options(parquet_source::NAME);
    options.set("path", Value::Path(args.from.clone()));
    Stage::of(parquet_source::NAME).with(chosen(options, args))
}

/// What sources of rows are told to leave out.
fn chosen(mut options: Options, args: &ReplayArgs) -> Options {
    let lists = [("topics", &args.topics), ("indexes", &args.indexes), ("signals", &args.signals)];
    lists.into_iter().for_each(|(name, chosen)| options.set(name, Value::List(chosen.clone())));
    set_times(&mut options, args);
    options
}

fn kafka(args: &ReplayArgs, config: &Config) -> Result<Stage, Failure> {
    let kafka = &config.ingestion.kafka;
    if kafka.brokers.is_empty() {
        return Err(Failure::usage(format!("--from {KAFKA}: ingestion.kafka.brokers names no broker to read from")));
    }
    let mut options = default_options(kafka_range_source::NAME);
    if args.offsets.is_empty() {
        let topics = if args.topics.is_empty() { &kafka.topics } else { &args.topics };
        options.set("topics", Value::List(topics.clone()));
        options.set("exclude_topics", Value::List(kafka.exclude_topics.clone()));
    } else {
        kafka_range_source::OffsetRange::list(&args.offsets).map_err(|error| Failure::usage(format!("--offsets: {error}")))?;
        options.set("offsets", Value::List(args.offsets.clone()));
    }
    set_times(&mut options, args);
    Ok(Stage::of(kafka_range_source::NAME).with(options))
}

/// What sources of what has times take.
fn set_times(options: &mut Options, args: &ReplayArgs) {
    options.set("speed_percent", Value::Number(args.speed.map_or(0, |factor| (factor * 100.0).round() as u64)));
    let times = [("since_ms", args.since), ("until_ms", args.until)];
    for (name, unix_ns) in times {
        if let Some(unix_ns) = unix_ns {
            options.set(name, Value::Number(unix_ns / 1_000_000));
        }
    }
}
