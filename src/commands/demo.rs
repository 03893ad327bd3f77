//! `demo`: broker, load, pipeline, storage and audit in one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use openwit_graphs::process::Control;
use openwit_operators::batch::Signal;

use super::run::{drive, finish};
use super::{Ended, Failure};
use crate::cli::DemoArgs;
use crate::config::Config;
use crate::embedded_broker::{EmbeddedBroker, Window};
use crate::generate::producer::{self, Pace, Settings};
use crate::generate::{Format, Generator, Plan, Ppm, Tally, Topic};
use crate::plan::{Changes, plan};
use crate::progress::Mode;
use crate::summary::Summary;

/// The demo's topic: the fourth token is the index.
const TOPIC: &str = "v6.qtw.traces.demo.local";
/// Enough partitions that the broker, which keeps about 5 MB of each, does not throttle the load.
const PARTITIONS: i32 = 16;
const RECORDS_PER_MESSAGE: usize = 50;
/// How long the pipeline may take to read the last message once all are sent.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Runs the command.
pub fn run(args: &DemoArgs) -> Ended {
    let directory = directory(args)?;
    if !args.json {
        println!("demo in {}", directory.display());
    }
    let broker = EmbeddedBroker::start().map_err(Failure::fault)?;
    let topic = Topic { name: TOPIC.into(), partitions: PARTITIONS };
    broker.create_topic(&topic).map_err(Failure::fault)?;
    let mut config = Config::embedded(&directory);
    config.ingestion.kafka.brokers = vec![broker.brokers().to_owned()];
    config.ingestion.kafka.topics = vec![TOPIC.into()];
    config.ingestion.kafka.topic_index_config.default_index_position = 3;
    config.ingestion.kafka.telemetry_type = Signal::Traces;
    config.processing.workers = std::thread::available_parallelism().map_or(1, usize::from).min(2);

    let control = Control::default();
    let plan = plan(&config, &Changes::default(), control.counters.positions.clone()).map_err(Failure::usage)?;
    let load = send_load(args, broker.brokers().to_owned(), topic, control.clone())?;
    let mode = if args.json { Mode::Silent } else { Mode::of_stderr() };
    let summary = drive(&plan, &control, mode);
    let sent = load.join().map_err(|_| Failure::fault("the load generator panicked"))?;
    let summary = summary?;
    let tally = sent?;
    if !args.json {
        println!(
            "sent: {} messages: {} valid, {} duplicates, {} invalid",
            tally.messages, tally.valid, tally.duplicates, tally.invalid
        );
    }
    finish(&config, &summary, args.json)?;
    compare(&tally, &summary)?;
    clean_up(args, &directory)
}

/// The audit shows that all that came in is accounted for; this, that all that was sent came in and was judged rightly.
fn compare(sent: &Tally, found: &Summary) -> Ended {
    let pairs = [
        ("messages", sent.messages, found.messages),
        ("duplicates", sent.duplicates, found.duplicates),
        ("invalid", sent.invalid, found.rejects),
        ("records", sent.records, found.rows),
    ];
    let differ: Vec<String> = pairs
        .iter()
        .filter(|(_, sent, found)| sent != found)
        .map(|(what, sent, found)| format!("{what}: {sent} sent, {found} found"))
        .collect();
    if differ.is_empty() { Ok(()) } else { Err(Failure::difference(differ.join("; "))) }
}

fn directory(args: &DemoArgs) -> Result<PathBuf, Failure> {
    let directory = match &args.dir {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("openwit-demo-{}", std::process::id())),
    };
    let is_used = std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        return Err(Failure::usage(format!("--dir {}: the folder is not empty", directory.display())));
    }
    std::fs::create_dir_all(&directory).map_err(|error| Failure::fault(format!("creating {}: {error}", directory.display())))?;
    Ok(directory)
}

fn clean_up(args: &DemoArgs, directory: &Path) -> Ended {
    if args.keep || args.dir.is_some() {
        if !args.json {
            println!("kept: Parquet files in {}", directory.join("objects").display());
        }
        return Ok(());
    }
    std::fs::remove_dir_all(directory).map_err(|error| Failure::fault(format!("removing {}: {error}", directory.display())))
}

type Load = JoinHandle<Result<Tally, Failure>>;

/// Sends the load on a thread of its own, paced by what the pipeline has read; then stops the pipeline when it has read all.
fn send_load(args: &DemoArgs, brokers: String, topic: Topic, control: Control) -> Result<Load, Failure> {
    let messages = args.records.div_ceil(RECORDS_PER_MESSAGE as u64);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let load = Plan {
        topics: vec![topic.clone()],
        format: Format::Otlp,
        signal: Signal::Traces,
        count: Some(messages),
        records_per_message: RECORDS_PER_MESSAGE,
        message_bytes_min: 0,
        duplicates: Ppm(20_000),
        invalid: Ppm(10_000),
        tombstones: Ppm(0),
        seed: 1,
        keyed: false,
        start_time_ns: now * 1_000_000_000,
        time_step_ns: 10_000,
    };
    load.check().map_err(Failure::usage)?;
    control.counters.source.total.store(messages as usize, Ordering::Relaxed);
    let thread = std::thread::Builder::new().name("demo-load".into());
    let started = thread.spawn(move || {
        let sent = send(load, brokers, &topic, &control);
        // Without a load there is nothing to wait for.
        control.stop();
        sent
    });
    started.map_err(|error| Failure::fault(format!("starting the load: {error}")))
}

fn send(load: Plan, brokers: String, topic: &Topic, control: &Control) -> Result<Tally, Failure> {
    let positions = control.counters.positions.clone();
    let consumed = move |topic: &str, partition: i32| {
        let positions = positions.positions();
        let found = positions.iter().find(|(key, _)| &*key.topic.name == topic && key.partition == partition);
        found.map_or(0, |(_, position)| position.emitted)
    };
    let mut window = Window::new(std::slice::from_ref(topic), consumed);
    let mut generator = Generator::new(load).map_err(Failure::usage)?;
    let settings = Settings { brokers, compression: "none".into(), properties: Vec::new() };
    let never = Arc::new(AtomicBool::new(false));
    let pace = Pace { rate: None, duration: None };
    let sent =
        producer::send(&settings, &mut generator, pace, &never, |message| window.admits(message)).map_err(Failure::fault)?;
    // Emitted, not merely read: a stop throws away what waits before the graph, to read it again at the next start.
    while control.fault().is_none() && (control.counters.source.messages.load(Ordering::Relaxed) as u64) < sent.tally.messages {
        std::thread::sleep(DRAIN_POLL);
    }
    Ok(sent.tally)
}
