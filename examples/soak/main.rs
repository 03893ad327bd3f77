//! `soak`: load against real Kafka, PostgreSQL and S3 while everything is killed again and again, then a comparison of what was
//! produced with what was stored, row by row.
//!
//! ```text
//! cargo run --release --example soak -- --minutes 60 --seed 1
//! ```
//!
//! 1. Starts services of its own by `scripts/services`, ingest nodes in one group and storage nodes.
//! 2. Sends spans, logs and metrics with duplicates, invalid messages and tombstones among them, while killing, stopping, pausing and
//!    restarting nodes and services at random, and deleting or rewinding the group's offsets. Each outage is printed with its time;
//!    all are drawn from the seed before the start.
//! 3. Ends the load, lets all be published, audits, and stops the nodes.
//! 4. Reads all messages back from Kafka, checks them against the generator, decodes them with decoders of another make, and
//!    compares every row of every Parquet file in the catalog, all columns, with what it must be; likewise the dead letters.
//!
//! Ends with 0 if nothing is lost, doubled, changed, invented or wrongly rejected, and with 3 otherwise; the folder is then kept.
//! Whatever ends this process ends all others that it started.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Parser;
use openwit_ingest::exit_code;
use openwit_ingest::plan::catalog_location;

mod chaos;
mod compare;
mod decode;
mod digest;
mod group;
mod ledger;
mod load;
mod node;
mod outages;
#[path = "../../tests/support/random.rs"]
#[allow(dead_code, reason = "what tests alone use")]
mod random;
mod report;
mod rows;
mod services;
mod watch;

use chaos::Chaos;
use load::Progress;
use node::{Node, Role, Surroundings};
use report::Report;
use services::Services;
use watch::Watch;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(20);
/// How long everything may take to come up after the last outage; a broker with a large log takes longest.
const CALM_PATIENCE: Duration = Duration::from_secs(300);

/// Load against real services while everything is killed; then every row is compared with what was produced.
#[derive(Debug, Parser)]
struct Args {
    /// How long the load runs
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    minutes: f64,
    /// What load and outages are drawn from [default: the clock]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Rows per second, duplicates included
    #[arg(long, value_name = "R", default_value_t = 7_000.0)]
    rate: f64,
    /// Mean seconds between two outages; 0 for none
    #[arg(long, value_name = "SECONDS", default_value_t = 8.0)]
    interval: f64,
    /// Ingest nodes, which share one group
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=8))]
    ingest: u64,
    /// Storage nodes
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=8))]
    storage: u64,
    /// Ingest nodes have their log before normalize
    #[arg(long)]
    wal_first: bool,
    /// How long publication may take once the load has ended
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    drain_seconds: u64,
    /// A folder that is not there yet; up to 10 GB an hour at the default rate [default: in the system's temporary one]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The program to test [default: built now]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Keep the folder even if nothing was found
    #[arg(long)]
    keep: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let is_interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, is_interrupted.clone()) {
            eprintln!("installing the signal handler: {error}");
            return ExitCode::from(exit_code::FAULT);
        }
    }
    match run(&args, &is_interrupted) {
        Ok(true) => ExitCode::from(exit_code::DONE),
        Ok(false) => ExitCode::from(exit_code::DIFFERENCE),
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::from(exit_code::FAULT)
        }
    }
}

fn run(args: &Args, is_interrupted: &AtomicBool) -> anyhow::Result<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let seed = args.seed.unwrap_or(now.as_secs());
    let binary = args.binary.clone().map_or_else(build, Ok)?;
    let folder = args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("openwit-soak-{}", std::process::id())));
    std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    eprintln!("soak: seed {seed}, {} minutes, {}, in {}", args.minutes, binary.display(), folder.display());
    // A copy: whoever builds while this runs must not change what is tested.
    let tested = folder.join("openwit-ingest");
    std::fs::copy(&binary, &tested).with_context(|| format!("copying {}", binary.display()))?;
    let services = Services::start(&folder.join("services"))?;
    let report = soak(args, seed, now, tested, &folder, &services, is_interrupted)?;
    println!("{}", if args.json { report.json()? } else { report.to_string() });
    if report.passed && !args.keep {
        services.delete()?;
        drop(services);
        std::fs::remove_dir_all(&folder)?;
    } else {
        eprintln!("kept: {}", folder.display());
    }
    Ok(report.passed)
}

/// Builds the program as this one was built, and returns its path.
fn build() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("this program does not lie where cargo puts examples")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.args(["build", "--workspace", "--bins"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        anyhow::ensure!(command.status()?.success(), "building the program failed");
    }
    let binary = target.join("openwit-ingest");
    anyhow::ensure!(binary.exists(), "{} is not there: run this by cargo, or give --binary", binary.display());
    Ok(binary)
}

fn soak(
    args: &Args,
    seed: u64,
    now: Duration,
    binary: PathBuf,
    folder: &Path,
    services: &Services,
    is_interrupted: &AtomicBool,
) -> anyhow::Result<Report> {
    let feeds = load::feeds(args.rate, seed, now.as_nanos() as u64);
    for feed in &feeds {
        services.create_topic(&feed.topic().name, feed.topic().partitions)?;
    }
    let (ingest, storage) = (args.ingest as usize, args.storage as usize);
    let surroundings = Surroundings::new(binary, folder.to_owned(), services, storage, args.wal_first)?;
    let config = surroundings.audit_config()?;
    let length = Duration::from_secs_f64(args.minutes * 60.0);
    let outages = match args.interval {
        interval if interval > 0.0 => outages::schedule(seed, length, Duration::from_secs_f64(interval), ingest, storage),
        _ => Vec::new(),
    };
    let nodes = (0..ingest).map(|number| Node::new(&surroundings, Role::Ingest, number));
    let nodes = nodes.chain((0..storage).map(|number| Node::new(&surroundings, Role::Storage, number)));
    let mut chaos = Chaos::start(&surroundings, services, nodes.collect::<anyhow::Result<_>>()?, outages, seed)?;

    // 1. The load, and what watches it.
    let progress = Arc::new(Progress::default());
    let stop = Arc::new(AtomicBool::new(false));
    let watch = Watch::start(catalog_location(&config), progress.clone());
    let load = {
        let (brokers, feeds) = (surroundings.brokers.clone(), feeds.clone());
        let (stop, progress) = (stop.clone(), progress.clone());
        std::thread::spawn(move || load::send(&brokers, &feeds, &stop, &progress))
    };
    let since = Instant::now();
    while since.elapsed() < length && !load.is_finished() {
        step(&mut chaos, is_interrupted)?;
    }

    // 2. Everything comes up again, the load ends, all is published.
    chaos.calm_down();
    let calming = Instant::now();
    while !chaos.is_calm() {
        anyhow::ensure!(calming.elapsed() < CALM_PATIENCE, "not everything is up {CALM_PATIENCE:?} after the last outage");
        step(&mut chaos, is_interrupted)?;
    }
    stop.store(true, Ordering::Relaxed);
    let minutes = since.elapsed().as_secs_f64() / 60.0;
    load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
    let drain_seconds = drain(args, &mut chaos, &watch, &progress, is_interrupted)?;
    let seen = watch.finish()?;
    let stopped_badly = chaos.stop_nodes()?;

    // 3. The verdict.
    let audit = audit(&surroundings)?;
    let since = Instant::now();
    let findings = compare::compare(&surroundings.brokers, &feeds, &config, &node::dead_letters(folder, ingest))?;
    let passed = findings.differences.is_empty() && audit.0 == Some(0) && drain_seconds.is_some() && stopped_badly.is_empty();
    Ok(Report {
        seed,
        minutes,
        kills: chaos.kills(),
        group_resets: chaos.group_resets,
        processes: chaos.counts,
        findings,
        seen,
        drain_seconds,
        compare_seconds: since.elapsed().as_secs_f64(),
        audit,
        stopped_badly,
        passed,
    })
}

fn step(chaos: &mut Chaos<'_>, is_interrupted: &AtomicBool) -> anyhow::Result<()> {
    anyhow::ensure!(!is_interrupted.load(Ordering::Relaxed), "interrupted");
    chaos.tick()?;
    std::thread::sleep(TICK);
    Ok(())
}

/// Waits until all that was sent is published; `None` if that takes too long.
fn drain(
    args: &Args,
    chaos: &mut Chaos<'_>,
    watch: &Watch,
    progress: &Progress,
    is_interrupted: &AtomicBool,
) -> anyhow::Result<Option<f64>> {
    let since = Instant::now();
    while watch.published() < progress.acknowledged.load(Ordering::Relaxed) {
        if since.elapsed().as_secs() > args.drain_seconds {
            return Ok(None);
        }
        step(chaos, is_interrupted)?;
    }
    Ok(Some(since.elapsed().as_secs_f64()))
}

/// The exit code of `audit` and its last line.
fn audit(surroundings: &Surroundings) -> anyhow::Result<(Option<i32>, String)> {
    let mut command = Command::new(&surroundings.binary);
    command.args(["audit", "--config"]).arg(surroundings.audit()?).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("running audit")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    std::fs::write(surroundings.folder.join("audit.txt"), &text)?;
    Ok((output.status.code(), text.trim_end().lines().last().unwrap_or_default().to_owned()))
}
