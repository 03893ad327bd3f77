//! The `generate` command: from arguments to a plan, and from what was sent to a summary.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::producer::{self, Pace, Sent, Settings};
use super::{Format, Generator, Plan, PlanError, Tally, Topic, bytes_per_record};
use crate::cli::{Assignment, GenerateArgs};

/// Records in a message of a format that batches them, unless arguments say otherwise: what SDKs and collectors send.
const RECORDS_PER_MESSAGE: usize = 50;
/// Event time between messages of a run without rate: such runs reach some 100,000 messages a second at best.
const TIME_STEP_NS: u64 = 10_000;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments contradict each other.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Sending failed.
    #[error(transparent)]
    Producer(#[from] producer::Error),
    /// The handler for interrupts could not be installed.
    #[error("installing the signal handler")]
    Signals(#[source] std::io::Error),
    /// The summary could not be written.
    #[error("writing the summary")]
    Output(#[source] std::io::Error),
}

impl Error {
    /// True if the user's arguments are at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Plan(_) | Error::Producer(producer::Error::Partitions { .. }))
    }
}

/// What a run sent, for people and for scripts. With the plan in it, a verifier can recompute every message.
#[derive(Serialize)]
struct Summary<'a> {
    plan: &'a Plan,
    #[serde(flatten)]
    tally: &'a Tally,
    delivered: u64,
    seconds: f64,
    messages_per_second: f64,
    mb_per_second: f64,
}

/// Runs the command: makes sure of the topics, sends, and prints a summary to `out`.
pub fn run(args: &GenerateArgs, out: &mut impl Write) -> Result<(), Error> {
    let settings = settings(args);
    // A plan without brokers' help: what is wrong with the arguments is told before anything is created.
    plan(args, placeholder_topics(args))?.check()?;
    let topics = producer::ensure_topics(&settings, &args.topics, args.partitions, args.replication_factor)?;
    let plan = plan(args, topics)?;
    // Where rate and seconds set the count, the clock must not end the run a message early.
    let duration = args.seconds.filter(|_| args.rate.is_none()).map(Duration::from_secs_f64);
    let pace = Pace { rate: args.rate, duration };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second signal ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone()).map_err(Error::Signals)?;
        signal_hook::flag::register(signal, stop.clone()).map_err(Error::Signals)?;
    }
    let mut generator = Generator::new(plan)?;
    let sent = producer::send(&settings, &mut generator, pace, &stop, |_| true)?;
    print(out, args.json, generator.plan(), &sent).map_err(Error::Output)
}

fn settings(args: &GenerateArgs) -> Settings {
    let property = |Assignment { key, value }: &Assignment| (key.clone(), value.clone());
    Settings {
        brokers: args.brokers.clone(),
        compression: args.compression.clone(),
        properties: args.properties.iter().map(property).collect(),
    }
}

fn placeholder_topics(args: &GenerateArgs) -> Vec<Topic> {
    args.topics.iter().map(|name| Topic { name: name.clone(), partitions: args.partitions.unwrap_or(1) }).collect()
}

/// The plan that the arguments describe.
fn plan(args: &GenerateArgs, topics: Vec<Topic>) -> Result<Plan, Error> {
    let start_time_ns = args.start_time.unwrap_or_else(whole_seconds_now_ns);
    let plan = Plan {
        topics,
        format: args.format,
        signal: args.signal,
        count: count(args),
        records_per_message: records_per_message(args),
        message_bytes_min: if args.format.batches_records() { 0 } else { args.message_bytes.unwrap_or(0) },
        duplicates: args.duplicates,
        invalid: args.invalid,
        tombstones: args.tombstones,
        seed: args.seed,
        keyed: args.keyed,
        start_time_ns,
        time_step_ns: time_step_ns(args),
    };
    plan.check()?;
    Ok(plan)
}

/// A rate for some seconds is a count, so that the run is the same whatever the broker's speed.
fn count(args: &GenerateArgs) -> Option<u64> {
    let paced = args.rate.zip(args.seconds).map(|(rate, seconds)| (rate * seconds).round().max(1.0) as u64);
    [args.count, paced].into_iter().flatten().min()
}

fn records_per_message(args: &GenerateArgs) -> usize {
    if !args.format.batches_records() {
        return args.records_per_message.unwrap_or(1);
    }
    let sized = args.message_bytes.map(|bytes| (bytes / bytes_per_record(args.format, args.signal, args.seed).max(1)).max(1));
    args.records_per_message.or(sized).unwrap_or(RECORDS_PER_MESSAGE)
}

fn time_step_ns(args: &GenerateArgs) -> u64 {
    let by_rate = args.rate.map(|rate| (1e9 / rate) as u64);
    args.time_step_us.map(|step| step.saturating_mul(1_000)).or(by_rate).unwrap_or(TIME_STEP_NS).max(1)
}

fn whole_seconds_now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() * 1_000_000_000)
}

fn print(out: &mut impl Write, json: bool, plan: &Plan, sent: &Sent) -> std::io::Result<()> {
    let tally = &sent.tally;
    let seconds = sent.elapsed.as_secs_f64().max(1e-9);
    let (messages_per_second, mb_per_second) = (tally.messages as f64 / seconds, tally.bytes as f64 / 1e6 / seconds);
    if json {
        let summary = Summary { plan, tally, delivered: sent.delivered, seconds, messages_per_second, mb_per_second };
        serde_json::to_writer(&mut *out, &summary)?;
        return writeln!(out);
    }
    let names: Vec<_> = plan.topics.iter().map(|topic| format!("{} ({} partitions)", topic.name, topic.partitions)).collect();
    let records = match plan.format {
        Format::Json | Format::Raw => "records",
        _ => match plan.signal {
            openwit_operators::batch::Signal::Traces => "spans",
            openwit_operators::batch::Signal::Logs => "log records",
            openwit_operators::batch::Signal::Metrics => "data points",
        },
    };
    writeln!(out, "sent to      {}", names.join(", "))?;
    writeln!(out, "messages     {:>14}  all acknowledged", tally.messages)?;
    writeln!(out, "  valid      {:>14}  distinct, {} {records}", tally.valid, tally.records)?;
    writeln!(out, "  duplicates {:>14}", tally.duplicates)?;
    writeln!(out, "  invalid    {:>14}", tally.invalid)?;
    for (kind, count) in &tally.invalid_by_kind {
        writeln!(out, "    {:<9}{count:>14}", format!("{kind:?}").to_lowercase())?;
    }
    if tally.tombstones > 0 {
        writeln!(out, "  tombstones {:>14}", tally.tombstones)?;
    }
    writeln!(out, "bytes        {:>14}", tally.bytes)?;
    writeln!(out, "seconds      {seconds:>14.3}  {messages_per_second:.0} messages/s, {mb_per_second:.1} MB/s")?;
    writeln!(out, "seed         {:>14}  first event time {} ns", plan.seed, plan.start_time_ns)
}
