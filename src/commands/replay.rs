//! `replay`: a graph on a capture or a log in the place of its source, and its result stored, kept in a folder, counted or compared.

mod result;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openwit_graphs::process::{self, Control};
use openwit_operators::capture::{self, Files};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::chain;
use openwit_operators::frame_source;
use openwit_operators::options::Value;
use openwit_operators::wal_commit::long_term::read::Selection;
use serde::Serialize;

use self::result::{Difference, compared};
use super::run::on_signals;
use super::wal::source;
use super::{Ended, Failure, load};
use crate::cli::{ConfigArgs, ReplayArgs};
use crate::config::{Config, default_options};
use crate::plan::{Input, Output, replay_directory, replay_plan};
use crate::progress::{Mode, Progress, Reading, Unit};

/// What a replay did.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// Frames of a log, or batches of a capture, that were sent through the graph.
    pub frames: u64,
    /// Messages in them.
    pub records: u64,
    /// Frames left out because the catalog covers all of their offsets.
    pub covered: u64,
    /// Frames left out because they were not asked for.
    pub unselected: u64,
    /// Damaged places of what was read.
    pub damaged: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Messages dropped as duplicates.
    pub duplicates: u64,
    /// Messages rejected.
    pub rejects: u64,
    /// Rows published, or written to files.
    pub rows: u64,
    /// Files published, or written.
    pub files: u64,
    /// How long it took.
    pub seconds: f64,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replayed { frames, records, covered, unselected, damaged, bytes, duplicates, rejects, rows, files, seconds } = self;
        writeln!(f, "{frames} batches with {records} messages replayed, {duplicates} duplicates, {rejects} rejected")?;
        writeln!(f, "{rows} rows in {files} files")?;
        writeln!(f, "{covered} batches were stored already, {unselected} not asked for, {damaged} places damaged")?;
        write!(f, "{} MiB read in {seconds:.1} s", bytes >> 20)
    }
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> Ended {
    let config = load(&args.config)?;
    match (&args.result.expect, &args.result.compare) {
        (Some(expected), _) => against(args, &config, expected),
        (None, Some(other)) => beside(args, &config, other),
        (None, None) => {
            let output = match &args.result.to {
                _ if args.result.publish => Output::Published,
                Some(directory) => Output::Files(directory.clone(), args.result.replace),
                None => Output::Counted,
            };
            let replayed = replay(args, &config, &output)?;
            if args.json {
                println!("{}", serde_json::to_string(&replayed).map_err(Failure::fault)?);
            } else {
                println!("{replayed}");
            }
            complete(args, &replayed)
        }
    }
}

/// Compares with an earlier result.
fn against(args: &ReplayArgs, config: &Config, expected: &Path) -> Ended {
    let work = Work::new(args)?;
    let output = Output::Files(work.result("result"), args.result.replace);
    let replayed = replay(args, config, &output)?;
    let difference = compared(expected, &work.result("result"), args.result.show)?;
    complete(args, &replayed)?;
    told(args, &difference)
}

/// Runs two configurations and compares what they give.
fn beside(args: &ReplayArgs, config: &Config, other: &Path) -> Ended {
    let other = load(&ConfigArgs { config: other.to_owned(), set: args.config.set.clone() })?;
    let work = Work::new(args)?;
    let (one, two) = (work.result("one"), work.result("other"));
    let replayed = replay(args, config, &Output::Files(one.clone(), args.result.replace))?;
    replay(args, &other, &Output::Files(two.clone(), args.result.replace))?;
    let difference = compared(&one, &two, args.result.show)?;
    complete(args, &replayed)?;
    told(args, &difference)
}

fn told(args: &ReplayArgs, difference: &Difference) -> Ended {
    if args.json {
        println!("{}", serde_json::to_string(difference).map_err(Failure::fault)?);
    } else {
        println!("{difference}");
    }
    match difference.is_equal() {
        true => Ok(()),
        false => Err(Failure::difference("the results differ")),
    }
}

/// Where results lie that are only compared: in the folder of `--to`, or in a temporary one that is removed.
struct Work {
    kept: Option<PathBuf>,
    temporary: tempfile::TempDir,
}

impl Work {
    fn new(args: &ReplayArgs) -> Result<Self, Failure> {
        let temporary = tempfile::Builder::new().prefix("openwit-replay-").tempdir();
        let temporary = temporary.map_err(|error| Failure::fault(format!("making a temporary folder: {error}")))?;
        Ok(Work { kept: args.result.to.clone(), temporary })
    }

    fn result(&self, name: &str) -> PathBuf {
        match &self.kept {
            Some(kept) if name == "result" => kept.clone(),
            Some(kept) => kept.join(name),
            None => self.temporary.path().join(name),
        }
    }
}

fn complete(args: &ReplayArgs, replayed: &Replayed) -> Ended {
    match replayed.damaged {
        0 => Ok(()),
        damaged => Err(Failure::fault(format!("{}: {damaged} places are damaged and left out", args.from.display()))),
    }
}

fn replay(args: &ReplayArgs, config: &Config, output: &Output) -> Result<Replayed, Failure> {
    let input = input(args, config)?;
    let plan = replay_plan(config, args.workers.map(|workers| workers as usize), input, output).map_err(Failure::usage)?;
    if let Output::Files(directory, replace) = output {
        result::make_room(directory, *replace)?;
    }
    let control = Control::default();
    on_signals(&control, Duration::from_secs(config.processing.shutdown_timeout_seconds))?;
    let (started, watched) = (Instant::now(), control.clone());
    let progress = Progress::start(if args.json { Mode::Silent } else { Mode::of_stderr() }, move || reading(&watched));
    let ended = process::run(&plan, &control);
    progress.finish();
    ended.map_err(Failure::fault)?;
    let replayed = replayed(&control, started.elapsed());
    if control.is_stopping() {
        return Err(Failure::fault("stopped before the end; start it again to replay all of it"));
    }
    // All of it is published: the replay's own log has done its work.
    let directory = replay_directory(config);
    if matches!(output, Output::Published) && directory.exists() {
        std::fs::remove_dir_all(&directory).map_err(|error| {
            Failure::fault(format!("removing {}, which is not needed any more: {error}", directory.display()))
        })?;
    }
    Ok(replayed)
}

/// What is read: a capture if it is one, else a log.
fn input(args: &ReplayArgs, config: &Config) -> Result<Input, Failure> {
    let captures = if args.from.exists() { Files::open(&args.from).ok() } else { None };
    if let Some(files) = captures.filter(|files| !files.files().is_empty()) {
        let kind = files.kind().map_err(|error| Failure::fault(chain(&error)))?;
        return capture_stage(args, kind).map(Input::Stage);
    }
    if args.speed.is_some() {
        return Err(Failure::usage("--speed: a log does not know when its messages were read; a capture does"));
    }
    let source = source(&args.from, || Ok(config.clone()))?;
    let to_epoch = |unix_ns: u64| Epoch(unix_ns / 1_000_000);
    let selection = Selection { from: args.since.map(to_epoch), until: args.until.map(to_epoch), topics: args.topics.clone() };
    Ok(Input::Log(frame_source::Config { source, selection }))
}

fn capture_stage(args: &ReplayArgs, kind: Option<capture::Kind>) -> Result<openwit_graphs::wiring::Stage, Failure> {
    let operator = match kind {
        None | Some(capture::Kind::Raw) => "capture_source",
        Some(capture::Kind::Normalized) => "capture_source_normalized",
        Some(capture::Kind::Unique) => "capture_source_unique",
    };
    let mut options = default_options(operator);
    options.set("path", Value::Path(args.from.clone()));
    options.set("topics", Value::List(args.topics.clone()));
    options.set("speed_percent", Value::Number(args.speed.map_or(0, |factor| ((factor * 100.0).round() as u64).max(1))));
    let times = [("since_ms", args.since), ("until_ms", args.until)];
    for (name, unix_ns) in times {
        if let Some(unix_ns) = unix_ns {
            options.set(name, Value::Number(unix_ns / 1_000_000));
        }
    }
    Ok(openwit_graphs::wiring::Stage::of(operator).with(options))
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What the stages that have this counter say of it, all together.
fn of_stages(control: &Control, counter: &str) -> u64 {
    control.counters.stages.counts().values().filter_map(|counts| counts.get(counter)).sum()
}

fn reading(control: &Control) -> Reading {
    let (frames, sink) = (&control.counters.frames, &control.counters.sink);
    let read_bytes = get(&frames.read_bytes) + of_stages(control, "read_bytes");
    let total_bytes = get(&frames.total_bytes) + of_stages(control, "total_bytes");
    Reading {
        unit: Unit::Mebibytes,
        consumed: read_bytes >> 20,
        total: total_bytes.div_ceil(1 << 20),
        bytes: read_bytes,
        records: get(&sink.rows_sent) + of_stages(control, "rows"),
        rows_published: get(&sink.rows_published) + of_stages(control, "rows"),
        ..Reading::default()
    }
}

fn replayed(control: &Control, elapsed: Duration) -> Replayed {
    let (frames, counters) = (&control.counters.frames, &control.counters);
    // Of captures, which know no catalog.
    let of_capture = |counter: &str| {
        let stages = control.counters.stages.counts();
        stages.values().filter(|counts| counts.contains_key("damaged")).filter_map(|counts| counts.get(counter)).sum::<u64>()
    };
    Replayed {
        frames: get(&frames.frames) + of_capture("batches"),
        records: get(&frames.records) + of_capture("records"),
        covered: get(&frames.covered),
        unselected: get(&frames.unselected),
        damaged: get(&frames.damaged) + of_capture("damaged"),
        bytes: get(&frames.read_bytes) + of_capture("read_bytes"),
        duplicates: get(&counters.dedup.duplicates),
        rejects: get(&counters.normalize.rejected),
        rows: get(&counters.sink.rows_published) + of_stages(control, "rows"),
        files: get(&counters.catalog.files) + of_stages(control, "files"),
        seconds: elapsed.as_secs_f64(),
    }
}
