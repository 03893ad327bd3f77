//! `replay_digests`: one capture with every oddity, replayed again and again under random numbers of workers: all results must be equal.
//!
//! ```text
//! cargo run --release --example replay_digests -- --records 2000000 --runs 20 --seed 1
//! ```
//!
//! 1. Makes a capture of that many messages from the seed: duplicates, late messages, idle partitions, rebalances and all else that
//!    `tests/support/captures.rs` lists.
//! 2. Replays it into Parquet files, each time on another number of workers, and prints the digests of what came of it: of the rows, of
//!    what became of every offset, and of the files with their names and every byte; and how many messages were rejected.
//! 3. Compares each result with the first.
//!
//! Ends with 0 if all are equal. Else it says which rows differ, keeps both results and ends with 3.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use openwit_graphs::process::{self, Control};
use openwit_graphs::wiring::Stage;
use openwit_ingest::config::{Config, default_options};
use openwit_ingest::exit_code;
use openwit_ingest::plan::{Input, Output, REJECTS, ROWS, replay_plan};
use openwit_operators::compare::{Digest, Limits, compare, digest};
use openwit_operators::dead_letter::read::Source;
use openwit_operators::options::Value;

#[path = "../../tests/support/captures.rs"]
mod captures;
#[path = "../../tests/support/random.rs"]
#[allow(dead_code, reason = "what tests alone use")]
mod random;

use random::Random;

/// Messages of an epoch, on average about: as many as twenty milliseconds of a busy process have.
const PER_EPOCH: u64 = 500;
/// More workers than most machines have cores.
const WORKERS_MAX: u64 = 8;

/// One capture, replayed again and again under random numbers of workers: all results must be equal.
#[derive(Debug, Parser)]
struct Args {
    /// Messages of the capture
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Replays
    #[arg(long, default_value_t = 20)]
    runs: u64,
    /// What the capture and the numbers of workers are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the capture and the results lie; must be empty [default: a temporary folder that is removed]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What a replay left.
#[derive(PartialEq, Eq)]
struct Left {
    digest: Digest,
    rejects: BTreeSet<(String, i32, i64, String)>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let temporary = tempfile::tempdir().context("making a temporary folder")?;
    let folder = args.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let (capture, config) = (folder.join("capture"), config(&folder)?);
    let started = Instant::now();
    let made = captures::make(&capture, args.records, PER_EPOCH, args.seed);
    println!("seed {}, captured in {:.1} s: {made:?}", args.seed, started.elapsed().as_secs_f64());

    // Not the numbers that the capture is made of.
    let mut random = Random::of_seed(!args.seed);
    let first_folder = folder.join("first");
    let mut first: Option<Left> = None;
    for run in 1..=args.runs {
        let workers = 1 + random.below(WORKERS_MAX) as usize;
        let to = if first.is_none() { first_folder.clone() } else { folder.join("other") };
        let started = Instant::now();
        replay(&config, &capture, &to, workers)?;
        let seconds = started.elapsed().as_secs_f64();
        let left = left(&to)?;
        let Digest { rows, content, coverage, files_digest, files } = &left.digest;
        println!(
            "run {run}: {workers} workers, {:.0} records/s; {rows} rows {content}, coverage {}, {} files {files_digest}, {} rejects",
            made.messages as f64 / seconds,
            coverage.as_deref().unwrap_or("unknown"),
            files.len(),
            left.rejects.len()
        );
        let Some(expected) = &first else {
            first = Some(left);
            continue;
        };
        if left != *expected {
            println!("{}", compare(&first_folder.join(ROWS), &to.join(ROWS), &Limits::default())?);
            let kept = if args.dir.is_some() { folder } else { temporary.keep() };
            println!("run {run} differs from run 1; both are kept in {}", kept.display());
            return Ok(ExitCode::from(exit_code::DIFFERENCE));
        }
    }
    println!("{} runs, all equal", args.runs);
    Ok(ExitCode::from(exit_code::DONE))
}

fn config(folder: &Path) -> anyhow::Result<Config> {
    let path = folder.join("replay.yaml");
    std::fs::write(&path, captures::CONFIG)?;
    let data = format!("node.data_directory={}", folder.join("data").display());
    let loaded = Config::load(&path, &[data]).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    Ok(loaded.config)
}

fn replay(config: &Config, capture: &Path, to: &Path, workers: usize) -> anyhow::Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    let mut options = default_options("capture_source");
    options.set("path", Value::Path(capture.to_owned()));
    let input = Input::Stage(Stage::of("capture_source").with(options));
    let plan = replay_plan(config, workers, input, &Output::Files(to.to_owned(), false)).map_err(anyhow::Error::msg)?;
    let control = Control::default();
    process::run(&plan, &control).map_err(|fault| anyhow::anyhow!("{workers} workers: {fault}"))?;
    let forced = control.counters.dedup.forced.load(std::sync::atomic::Ordering::Relaxed);
    anyhow::ensure!(forced == 0, "the dedup window was full {forced} times: what is a duplicate depends on the workers then");
    Ok(())
}

fn left(to: &Path) -> anyhow::Result<Left> {
    let mut rejects = BTreeSet::new();
    for found in Source::folder(&to.join(REJECTS))?.letters(None) {
        let letter = found?.letter;
        let partition = letter.partition;
        rejects.insert((partition.topic.name.to_string(), partition.partition, letter.offset, letter.reason));
    }
    Ok(Left { digest: digest(&to.join(ROWS))?, rejects })
}
