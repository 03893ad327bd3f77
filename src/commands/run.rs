//! `run`: a process with the graph of a configuration, from start to a clean stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openwit_graphs::cluster;
use openwit_graphs::frontiers::{Reached, StageFrontier};
use openwit_graphs::process::{self, Control, Plan};
use openwit_graphs::registry::{self, Keeps};
use openwit_graphs::wiring::Placed;
use openwit_operators::normalize::TenantCount;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{info, warn};

use super::audit::{self, Scope};
use super::{Ended, Failure, load};
use crate::admin::Admin;
use crate::cli::{ClusterArgs, RunArgs};
use crate::config::Config;
use crate::plan::{Changes, plan};
use crate::progress::{Mode, Progress, Reading, Unit};
use crate::summary::{PausedPartition, Summary, Totals, Usage};

/// Exit code after a second signal: what shells use for a process ended by SIGINT.
pub(super) const INTERRUPTED: i32 = 130;

/// Partitions named in the summary: it stays readable whatever the number of topics.
const PAUSED_PARTITIONS_MAX: usize = 32;

/// Runs the command.
pub fn run(args: &RunArgs) -> Ended {
    let cluster = cluster(&args.cluster)?;
    let config = load(&args.config)?;
    let changes = Changes { workers: args.workers.map(|workers| workers as usize), until_end: args.until_end, cluster };
    if args.until_end && !config.has_source() {
        return Err(Failure::usage("--until-end needs a graph with a source; graph: storage has none"));
    }
    let control = Control::default();
    let plan = plan(&config, &changes, control.counters.positions.clone()).map_err(Failure::usage)?;
    let words = Words {
        first: "stopping: the sources close, what was read is drained, committed and published",
        second: "second signal: ending at once; the write-ahead log completes what was begun at the next start",
        unfinished,
    };
    let _admin = Admin::start(&config, &control).map_err(Failure::fault)?;
    on_signals(&control, Duration::from_secs(config.processing.shutdown_timeout_seconds), words)?;
    let mode = if args.json || !args.until_end { Mode::Silent } else { Mode::of_stderr() };
    let summary = drive(&plan, &control, mode)?;
    match (args.until_end, &plan.catalog) {
        (false, _) => Ok(()),
        (true, Some(_)) => finish(&config, &summary, args.json),
        // Nothing is registered anywhere: there is nothing to audit.
        (true, None) => {
            println!("{}", if args.json { summary.json() } else { summary.to_string() });
            Ok(())
        }
    }
}

/// The cluster that a process is told to be part of; `None` where it is alone.
pub(super) fn cluster(args: &ClusterArgs) -> Result<Option<cluster::Config>, Failure> {
    let processes = args.processes as usize;
    let addresses = match &args.hostfile {
        None => cluster::Config::local_addresses(processes),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("--hostfile: reading {}: {error}", path.display())))?;
            cluster::Config::parse_hostfile(path, &text, processes)
                .map_err(|invalid| Failure::usage(format!("--hostfile: {invalid}")))?
        }
    };
    let cluster = cluster::Config::new(args.process.unwrap_or(0) as usize, addresses).map_err(Failure::usage)?;
    Ok((processes > 1).then_some(cluster))
}

/// Runs a plan to its end and sums it up.
pub fn drive(plan: &Plan, control: &Control, mode: Mode) -> Result<Summary, Failure> {
    let (started, before) = (Instant::now(), Usage::now());
    let (watched, keepers) = (control.clone(), keepers(plan));
    let progress = Progress::start(mode, move || reading(&watched, &keepers));
    let outcome = process::run(plan, control);
    progress.finish();
    match outcome {
        Ok(outcome) if outcome.restarts > 0 => info!(restarts = outcome.restarts, "the graphs were started again on the way"),
        Ok(_) => {}
        Err(fault) => return Err(Failure::fault(format!("{fault}\n{}", unfinished(control)))),
    }
    let totals = totals(control, plan);
    let (p50, p99) = (totals.committable_ms_p50, totals.committable_ms_p99);
    info!(messages = totals.messages, p50, p99, "milliseconds from poll to committable");
    if !totals.tokens.is_empty() || !totals.rejects_by_reason.is_empty() {
        info!(tokens = ?totals.tokens, rejects = ?totals.rejects_by_reason, "messages let in by token, and rejects by reason");
    }
    if !totals.quotas.is_empty() {
        info!(quotas = ?totals.quotas, "charged, rejected and held back by tenant and topic");
    }
    tell_detours(control);
    let paused_partitions = paused_partitions(control);
    Ok(Summary { paused_partitions, ..Summary::new(totals, started.elapsed(), before, Usage::now()) })
}

fn paused_partitions(control: &Control) -> Vec<PausedPartition> {
    let flows = control.counters.source.flows.partitions();
    let paused = flows.into_iter().filter(|(_, flow)| flow.pauses > 0).map(|(partition, flow)| PausedPartition {
        partition: format!("{}[{}]", partition.topic.name, partition.partition),
        pauses: flow.pauses,
        resumes: flow.resumes,
        paused_ms: flow.paused_ms,
        in_flight_bytes: flow.in_flight.bytes as u64,
    });
    let mut paused: Vec<_> = paused.collect();
    paused.sort_by_key(|partition| std::cmp::Reverse(partition.paused_ms));
    paused.truncate(PAUSED_PARTITIONS_MAX);
    paused
}

/// Says what took another way than the shortest, if anything did.
fn tell_detours(control: &Control) {
    let (backlog, sink, catalog) = (&control.counters.backlog, &control.counters.sink, &control.counters.catalog);
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (spilled, recalled) = (of(&backlog.spilled), of(&backlog.recalled));
    let (resent, rerouted, refused) = (of(&sink.resent), of(&sink.rerouted), of(&catalog.refused));
    if spilled + recalled + resent + rerouted + refused > 0 {
        info!(
            spilled,
            recalled,
            resent,
            rerouted,
            refused,
            "batches kept in the log alone and read back; deliveries sent again, to another node; commits given up"
        );
    }
}

/// Prints a summary and audits the result.
pub fn finish(config: &Config, summary: &Summary, json: bool) -> Ended {
    let audited = audit::audit(config, Scope::Consumed)?;
    if json {
        println!("{}", summary.json());
    } else {
        println!("{summary}\n{audited}");
    }
    audited.verdict()
}

/// The stages behind whose frontier something is kept; rejects are few, and their stage is waited for by the log.
fn keepers(plan: &Plan) -> Vec<String> {
    let stages = plan.graph.iter().flat_map(|graph| &graph.wiring.stages);
    let keeps = |placed: &&Placed| placed.operator.keeps == Keeps::Durable && placed.operator.name != registry::DEAD_LETTER;
    stages.filter(keeps).map(|placed| placed.stage.name.clone()).collect()
}

fn stage_lag_ms(control: &Control, keepers: &[String]) -> Vec<(String, u64)> {
    let frontiers = control.frontiers();
    // Nobody is before the source.
    let furthest = frontiers.iter().filter(|one| !one.is_storage).map(|one| one.reached).max();
    let Some(Reached::Before(source)) = furthest else { return Vec::new() };
    let lag = |stage: &StageFrontier| match stage.reached {
        Reached::Before(at) if keepers.contains(&stage.stage) => Some((stage.stage.clone(), source.0.saturating_sub(at.0))),
        _ => None,
    };
    // In the first epochs a start brings back what the log has: they are no times.
    frontiers.iter().filter_map(lag).filter(|(_, lag)| *lag < source.0 / 2).collect()
}

fn reading(control: &Control, keepers: &[String]) -> Reading {
    let source = &control.counters.source;
    let consumed = source.messages.load(Ordering::Relaxed) as u64;
    let total = source.total.load(Ordering::Relaxed) as u64;
    let rows = control.counters.sink.rows_published.load(Ordering::Relaxed);
    Reading {
        unit: Unit::Messages,
        consumed,
        total,
        bytes: source.bytes.load(Ordering::Relaxed) as u64,
        records: control.counters.sink.rows_sent.load(Ordering::Relaxed),
        rows_published: rows,
        lag: if total > 0 { total.saturating_sub(consumed) } else { source.lag.load(Ordering::Relaxed) as u64 },
        paused: source.flows.sum().paused_now,
        stage_lag_ms: stage_lag_ms(control, keepers),
    }
}

fn totals(control: &Control, plan: &Plan) -> Totals {
    let counters = &control.counters;
    let by_tenant = counters.normalize.by_tenant();
    let mut tenants: BTreeMap<_, _> = by_tenant.tenants.into_iter().map(|(tenant, count)| (tenant.to_string(), count)).collect();
    if by_tenant.others != TenantCount::default() {
        // No tenant can be called so.
        tenants.insert("(others)".to_owned(), by_tenant.others);
    }
    let tokens = plan.graph.as_ref().and_then(|graph| graph.tokens.as_ref());
    let tokens = tokens.map(|tokens| tokens.store.accepted()).unwrap_or_default();
    let quotas = plan.graph.as_ref().and_then(|graph| graph.quotas.as_ref());
    let quotas = quotas.map(|reload| reload.quotas.counts()).unwrap_or_default();
    let flows = counters.source.flows.sum();
    Totals {
        messages: counters.source.messages.load(Ordering::Relaxed) as u64,
        records: counters.sink.rows_published.load(Ordering::Relaxed),
        rows: counters.sink.rows_published.load(Ordering::Relaxed),
        bytes: counters.source.bytes.load(Ordering::Relaxed) as u64,
        duplicates: counters.dedup.duplicates.load(Ordering::Relaxed),
        rejects: counters.normalize.rejected.load(Ordering::Relaxed),
        skipped: counters.normalize.skipped.load(Ordering::Relaxed),
        files: counters.catalog.files.load(Ordering::Relaxed),
        committable_ms_p50: counters.source.committable.quantile_ms(0.5),
        committable_ms_p99: counters.source.committable.quantile_ms(0.99),
        rejects_by_reason: counters.normalize.by_reason().into_iter().map(|(reason, count)| (reason.code(), count)).collect(),
        tenants,
        tokens: tokens.into_iter().map(|(id, count)| (id.to_string(), count)).collect(),
        quotas,
        buffer_full: counters.source.buffer_full.load(Ordering::Relaxed) as u64,
        partition_full: counters.source.partition_full.load(Ordering::Relaxed) as u64,
        pauses: flows.pauses,
        resumes: flows.resumes,
        paused_ms: flows.paused_ms,
        stages: counters.stages.counts(),
    }
}

/// What a command says when signals stop it.
#[derive(Clone, Copy)]
pub(super) struct Words {
    /// At the first signal.
    pub first: &'static str,
    /// At the second one.
    pub second: &'static str,
    /// What is not done when a clean stop takes too long.
    pub unfinished: fn(&Control) -> String,
}

/// The first signal stops the process cleanly, a second one at once; a clean stop that takes too long says what it could not do.
pub(super) fn on_signals(control: &Control, patience: Duration, words: Words) -> Ended {
    let failed = |error: std::io::Error| Failure::fault(format!("installing the signal handlers: {error}"));
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let control = control.clone();
    let watch = move || {
        let is_stopping = Arc::new(AtomicBool::new(false));
        for _signal in signals.forever() {
            if is_stopping.swap(true, Ordering::AcqRel) {
                warn!("{}", words.second);
                std::process::exit(INTERRUPTED);
            }
            info!("{}", words.first);
            control.stop();
            let control = control.clone();
            std::thread::spawn(move || give_up_after(patience, &control, words.unfinished));
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map(|_| ()).map_err(failed)
}

fn give_up_after(patience: Duration, control: &Control, unfinished: fn(&Control) -> String) {
    std::thread::sleep(patience);
    // The process has ended long before in the good case, and this thread with it.
    eprintln!("not stopped within shutdown_timeout_seconds ({} s)\n{}", patience.as_secs(), unfinished(control));
    std::process::exit(i32::from(crate::exit_code::FAULT));
}

/// Which offsets were read and are not durable, or not published.
fn unfinished(control: &Control) -> String {
    let mut lines = Vec::new();
    let published = control.counters.catalog.published();
    for (partition, position) in control.counters.positions.positions() {
        let durable = position.committable.unwrap_or(0);
        if durable < position.emitted {
            let from = position.committable.map_or("the start position".to_owned(), |offset| offset.to_string());
            lines.push(format!(
                "{partition}: offsets from {from} to {} are not durable; they are read again at the next start",
                position.emitted - 1
            ));
        }
        let first_unpublished = published.get(&partition).copied();
        if first_unpublished.is_none_or(|first| first < durable) && durable > 0 {
            let from = first_unpublished.map_or("the start position".to_owned(), |offset| offset.to_string());
            lines.push(format!("{partition}: offsets from {from} to {} are durable and not known to be published; the write-ahead log publishes them at the next start", durable - 1));
        }
    }
    if lines.is_empty() { "everything that was read is durable and published".into() } else { lines.join("\n") }
}
