//! `replay`: the records of a write-ahead log to storage, without Kafka.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openwit_graphs::process::{self, Control};
use openwit_operators::epoch::Epoch;
use openwit_operators::frame_source;
use openwit_operators::wal_commit::long_term::read::Selection;
use serde::Serialize;

use super::run::on_signals;
use super::wal::source;
use super::{Ended, Failure, load};
use crate::cli::ReplayArgs;
use crate::plan::{replay_directory, replay_plan};
use crate::progress::{Mode, Progress, Reading, Unit};

/// What a replay did.
#[derive(Debug, Serialize)]
pub struct Replayed {
    /// Frames sent to storage.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Frames left out because the catalog covers all of their offsets.
    pub covered: u64,
    /// Frames left out because they were not asked for.
    pub unselected: u64,
    /// Damaged places of the log.
    pub damaged: u64,
    /// Bytes of frames read.
    pub bytes: u64,
    /// Rows published.
    pub rows: u64,
    /// Files published.
    pub files: u64,
    /// How long it took.
    pub seconds: f64,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replayed { frames, records, covered, unselected, damaged, bytes, rows, files, seconds } = self;
        writeln!(f, "{frames} frames with {records} records sent, {rows} rows published in {files} files")?;
        writeln!(f, "{covered} frames were stored already, {unselected} not asked for, {damaged} places damaged")?;
        write!(f, "{} MiB read in {seconds:.1} s", bytes >> 20)
    }
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> Ended {
    let config = load(&args.config)?;
    let source = source(&args.from, || Ok(config.clone()))?;
    let to_epoch = |unix_ns: u64| Epoch(unix_ns / 1_000_000);
    let selection = Selection { from: args.since.map(to_epoch), until: args.until.map(to_epoch), topics: args.topics.clone() };
    let frames = frame_source::Config { source, selection };
    let plan = replay_plan(&config, args.workers.map(|workers| workers as usize), frames).map_err(Failure::usage)?;
    let control = Control::default();
    on_signals(&control, Duration::from_secs(config.processing.shutdown_timeout_seconds))?;
    let (started, watched) = (Instant::now(), control.clone());
    let progress = Progress::start(if args.json { Mode::Silent } else { Mode::of_stderr() }, move || reading(&watched));
    let ended = process::run(&plan, &control);
    progress.finish();
    ended.map_err(Failure::fault)?;
    let replayed = replayed(&control, started.elapsed());
    if args.json {
        println!("{}", serde_json::to_string(&replayed).map_err(Failure::fault)?);
    } else {
        println!("{replayed}");
    }
    if control.is_stopping() {
        return Err(Failure::fault("stopped before the end of the log; start it again to send the rest"));
    }
    // All of it is published: the replay's own log has done its work.
    let directory = replay_directory(&config);
    std::fs::remove_dir_all(&directory)
        .map_err(|error| Failure::fault(format!("removing {}, which is not needed any more: {error}", directory.display())))?;
    match replayed.damaged {
        0 => Ok(()),
        damaged => Err(Failure::fault(format!("{}: {damaged} places are damaged and left out", args.from.display()))),
    }
}

fn reading(control: &Control) -> Reading {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (frames, sink) = (&control.counters.frames, &control.counters.sink);
    Reading {
        unit: Unit::Mebibytes,
        consumed: get(&frames.read_bytes) >> 20,
        total: get(&frames.total_bytes).div_ceil(1 << 20),
        bytes: get(&frames.read_bytes),
        records: get(&sink.rows_sent),
        rows_published: get(&sink.rows_published),
        ..Reading::default()
    }
}

fn replayed(control: &Control, elapsed: Duration) -> Replayed {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (frames, counters) = (&control.counters.frames, &control.counters);
    Replayed {
        frames: get(&frames.frames),
        records: get(&frames.records),
        covered: get(&frames.covered),
        unselected: get(&frames.unselected),
        damaged: get(&frames.damaged),
        bytes: get(&frames.read_bytes),
        rows: get(&counters.sink.rows_published),
        files: get(&counters.catalog.files),
        seconds: elapsed.as_secs_f64(),
    }
}
