//! `replay`: a graph on a capture, a log, a range of Kafka or stored rows in the place of its source, and its result stored, kept in a folder, counted or compared.

mod input;
mod result;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openwit_graphs::process::{self, Control};
use openwit_graphs::registry;
use openwit_operators::capture_source;
use serde::{Deserialize, Serialize};

use self::input::input;
use self::result::{Difference, Sides, compared};
use super::run::{Words, cluster, on_signals};
use super::{Ended, Failure, load};
use crate::cli::{ConfigArgs, ReplayArgs};
use crate::config::Config;
use crate::plan::{Input, Output, replay_directory, replay_plan};
use crate::progress::{Mode, Progress, Reading, Unit};

/// What a replay did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replayed {
    /// Frames of a log, or batches of a capture, that were sent through the graph.
    pub frames: u64,
    /// Messages in them.
    pub records: u64,
    /// Messages of which rows came.
    pub kept: u64,
    /// Messages dropped as duplicates.
    pub duplicates: u64,
    /// Messages rejected.
    pub rejects: u64,
    /// Messages without a payload.
    pub skipped: u64,
    /// Rows published, or written to files; none where they were only to be counted, as rows are made by the sink.
    pub rows: Option<u64>,
    /// Files published, or written.
    pub files: Option<u64>,
    /// Frames left out because the catalog covers all of their offsets.
    pub covered: u64,
    /// Frames left out because they were not asked for.
    pub unselected: u64,
    /// Damaged places of what was read.
    pub damaged: u64,
    /// Times that the dedup window was full and forgot early.
    pub window_full: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replayed {
            frames, records, kept, duplicates, rejects, skipped, covered, unselected, damaged, bytes, seconds, ..
        } = self;
        writeln!(f, "{records} messages in {frames} batches replayed")?;
        writeln!(f, "{kept} kept, {duplicates} duplicates, {rejects} rejected, {skipped} without payload")?;
        match (self.rows, self.files) {
            (Some(rows), Some(files)) => writeln!(f, "{rows} rows in {files} files")?,
            _ => writeln!(f, "nothing is stored: --to DIR keeps rows and rejects")?,
        }
        if covered + unselected + damaged > 0 {
            writeln!(f, "left out: {covered} batches stored already, {unselected} not asked for, {damaged} places damaged")?;
        }
        if self.window_full > 0 {
            writeln!(
                f,
                "the dedup window was full {} times and forgot early: what is a duplicate depends on --workers; \
                 raise processing.dedup_max_bytes",
                self.window_full
            )?;
        }
        write!(f, "{:.1} MiB read in {seconds:.1} s", *bytes as f64 / f64::from(1 << 20))
    }
}

/// Runs the command.
pub fn run(args: &ReplayArgs) -> Ended {
    let cluster = cluster(&args.cluster)?;
    if cluster.is_some() && (args.result.expect.is_some() || args.result.compare.is_some()) {
        return Err(Failure::usage(
            "--processes: each process has a part of the result; write the parts with --to, and compare what is in all of these folders",
        ));
    }
    let config = load(&args.config)?;
    let control = Control::default();
    on_signals(&control, Duration::from_secs(config.processing.shutdown_timeout_seconds), WORDS)?;
    match (&args.result.expect, &args.result.compare) {
        (Some(expected), _) => against(args, &config, expected, &control),
        (None, Some(other)) => beside(args, &config, other, &control),
        (None, None) => {
            let output = match &args.result.to {
                _ if args.result.publish => Output::Published,
                Some(directory) => Output::Files(directory.clone(), args.result.replace),
                None => Output::Counted,
            };
            let replayed = replay(args, &config, &output, &control)?;
            if args.json {
                println!("{}", serde_json::to_string(&replayed).map_err(Failure::fault)?);
            } else {
                println!("{replayed}");
            }
            complete(args, &replayed)
        }
    }
}

const WORDS: Words = Words {
    first: "stopping: nothing more is read, what was begun is ended; the result is a part",
    second: "second signal: ending at once",
    unfinished: |_| "the replay is not complete".to_owned(),
};

/// Compares with an earlier result.
fn against(args: &ReplayArgs, config: &Config, expected: &Path, control: &Control) -> Ended {
    // Said before hours are spent.
    result::is_whole(expected)?;
    let work = Work::new(args)?;
    let to = work.result("result");
    if std::fs::canonicalize(&to).is_ok_and(|to| std::fs::canonicalize(expected).is_ok_and(|expected| to == expected)) {
        return Err(Failure::usage(
            "--to and --expect name one folder: the result cannot take the place of what it is compared with",
        ));
    }
    let replayed = replay(args, config, &Output::Files(to.clone(), args.result.replace), control)?;
    let sides = Sides { a: (expected, expected), b: (&to, &args.config.config) };
    told(args, &compared(sides, args.result.show)?, &replayed)
}

/// Runs two configurations and compares what they give.
fn beside(args: &ReplayArgs, config: &Config, other: &Path, control: &Control) -> Ended {
    let other_config = load(&ConfigArgs { config: other.to_owned(), set: args.config.set.clone() })?;
    let work = Work::new(args)?;
    let (one, two) = (work.result("one"), work.result("other"));
    let outputs = [&one, &two].map(|to| Output::Files(to.clone(), args.result.replace));
    // What is wrong with the second is said before the first has run.
    planned(args, &other_config, &outputs[1])?;
    let replayed = replay(args, config, &outputs[0], control)?;
    replay(args, &other_config, &outputs[1], &control.next())?;
    let sides = Sides { a: (&one, &args.config.config), b: (&two, other) };
    told(args, &compared(sides, args.result.show)?, &replayed)
}

fn told(args: &ReplayArgs, difference: &Difference, replayed: &Replayed) -> Ended {
    if args.json {
        println!("{}", serde_json::to_string(difference).map_err(Failure::fault)?);
    } else {
        println!("{difference}");
    }
    // A comparison of what is not whole proves nothing, whatever it says.
    complete(args, replayed)?;
    if difference.equal { Ok(()) } else { Err(Failure::difference("the results differ")) }
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
        damaged => {
            let from = args.from.display();
            Err(Failure::fault(format!(
                "{from}: {damaged} damaged places were left out; the warnings above say which, and what they held"
            )))
        }
    }
}

fn planned(args: &ReplayArgs, config: &Config, output: &Output) -> Result<process::Plan, Failure> {
    let input = input(args, config)?;
    let cluster = cluster(&args.cluster)?;
    let is_capture = matches!(&input, Input::Stage(stage) if stage.operator.starts_with(capture_source::NAME));
    if cluster.is_some() && !is_capture {
        return Err(Failure::usage("--processes: only captures are shared among processes; replay this with one"));
    }
    let plan = replay_plan(config, workers(args, config, output), input, output).map_err(Failure::usage)?;
    Ok(process::Plan { cluster, ..plan })
}

/// As many workers as it was told; else one for each core, as the result is the same with any number. What is published goes the way of
/// production, and in a cluster all processes must have the same number: there it is the one of the configuration.
fn workers(args: &ReplayArgs, config: &Config, output: &Output) -> usize {
    let configured = config.workers();
    let told = args.workers.map(|workers| workers as usize);
    let is_cluster = args.cluster.processes > 1;
    told.unwrap_or_else(|| match output {
        Output::Files(..) | Output::Counted if !is_cluster => {
            configured.max(std::thread::available_parallelism().map_or(1, usize::from))
        }
        _ => configured,
    })
}

fn replay(args: &ReplayArgs, config: &Config, output: &Output, control: &Control) -> Result<Replayed, Failure> {
    let plan = planned(args, config, output)?;
    if let Output::Files(directory, replace) = output {
        result::make_room(directory, *replace)?;
    }
    let (started, watched) = (Instant::now(), control.clone());
    let progress = Progress::start(if args.json { Mode::Silent } else { Mode::of_stderr() }, move || reading(&watched));
    let ended = process::run(&plan, control);
    progress.finish();
    ended.map_err(Failure::fault)?;
    let replayed = replayed(control, output, started.elapsed());
    if control.is_stopping() {
        return Err(Failure::fault(broken_off(args, output)));
    }
    match output {
        Output::Files(directory, _) => result::end(directory, &args.from, &replayed)?,
        // All of it is published: the replay's own log has done its work.
        Output::Published => remove_log(&replay_directory(config))?,
        Output::Counted => {}
    }
    Ok(replayed)
}

fn broken_off(args: &ReplayArgs, output: &Output) -> String {
    let goes_on = match output {
        Output::Published => "what it stored is left out when it is started again".to_owned(),
        Output::Files(directory, _) if args.result.to.is_some() => {
            format!("{} holds a part and is not taken for a result; start it again with --replace", directory.display())
        }
        Output::Files(..) | Output::Counted => "start it again to replay all of it".to_owned(),
    };
    format!("stopped before the end: {goes_on}")
}

fn remove_log(directory: &Path) -> Ended {
    if !directory.exists() {
        return Ok(());
    }
    let removed = std::fs::remove_dir_all(directory);
    removed.map_err(|error| Failure::fault(format!("removing {}, which is not needed any more: {error}", directory.display())))
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What the stages that have this counter say of it, all together.
fn of_stages(control: &Control, counter: &str) -> u64 {
    control.counters.stages.counts().values().filter_map(|counts| counts.get(counter)).sum()
}

/// What a source says that is a stage. A replay names it after its operator.
fn of_source(control: &Control, counter: &str) -> u64 {
    let stages = control.counters.stages.counts();
    let sources = stages.iter().filter(|(stage, _)| registry::find(stage).is_some_and(registry::Operator::is_source));
    sources.filter_map(|(_, counts)| counts.get(counter)).sum()
}

fn reading(control: &Control) -> Reading {
    let (frames, sink) = (&control.counters.frames, &control.counters.sink);
    let rows = Reading {
        records: get(&sink.rows_sent) + of_stages(control, "rows"),
        rows_published: get(&sink.rows_published) + of_stages(control, "rows"),
        ..Reading::default()
    };
    let total_offsets = of_source(control, "total_offsets");
    if total_offsets > 0 {
        let (consumed, bytes) = (of_source(control, "read_offsets"), of_source(control, "read_bytes"));
        return Reading { unit: Unit::Messages, consumed, total: total_offsets, bytes, ..rows };
    }
    let read_bytes = get(&frames.read_bytes) + of_source(control, "read_bytes");
    let total_bytes = get(&frames.total_bytes) + of_source(control, "total_bytes");
    Reading {
        unit: Unit::Mebibytes,
        consumed: read_bytes.div_ceil(1 << 20),
        total: total_bytes.div_ceil(1 << 20),
        bytes: read_bytes,
        ..rows
    }
}

fn replayed(control: &Control, output: &Output, elapsed: Duration) -> Replayed {
    let (frames, counters) = (&control.counters.frames, &control.counters);
    let records = get(&frames.records) + of_source(control, "records");
    let (duplicates, rejects) = (get(&counters.dedup.duplicates), get(&counters.normalize.rejected));
    let skipped = get(&counters.normalize.skipped);
    let stored = |of_storage: &AtomicU64, of_files: &str| match output {
        Output::Published => Some(get(of_storage) + of_stages(control, of_files)),
        Output::Files(..) => Some(of_stages(control, of_files)),
        Output::Counted => None,
    };
    Replayed {
        frames: get(&frames.frames) + of_source(control, "batches"),
        records,
        kept: records.saturating_sub(duplicates + rejects + skipped),
        duplicates,
        rejects,
        skipped,
        rows: stored(&counters.sink.rows_published, "rows"),
        files: stored(&counters.catalog.files, "files"),
        covered: get(&frames.covered),
        unselected: get(&frames.unselected),
        damaged: get(&frames.damaged) + of_source(control, "damaged"),
        window_full: get(&counters.dedup.forced),
        bytes: get(&frames.read_bytes) + of_source(control, "read_bytes"),
        seconds: elapsed.as_secs_f64(),
    }
}
