//! Puts rejected messages aside, whole and with their reason, before their offsets may be committed.
//!
//! # In
//! `Reject`, from `normalize`.
//!
//! # Out
//! A stream without data, whose frontier passes an epoch when all its rejects are acked. `wal_commit` waits for it.
//!
//! # Holds
//! The capability of every reject not yet acked. The rejects themselves are on the dead letter's thread.
//!
//! # Closes when
//! The input is done and every reject is acked.
//!
//! # Fails when
//! A letter is larger than the dead-letter topic takes and there is no folder beside it. A disk or broker that fails is tried again
//! until it works: the frontier waits, so nothing is committed meanwhile.
//!
//! # Invariants
//! - No offset of a rejected message is durable anywhere before the message is in every configured dead letter (I-3).
//! - In files a message is written once, also when it is rejected again after a crash; in a topic at least once, its identity in the
//!   headers. The bytes of key, payload and headers are the original ones.

mod file;
mod kafka;
mod letter;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tracing::warn;

pub use self::file::FileSink;
pub use self::kafka::KafkaSink;
pub use self::letter::{Letter, read_directory};
use crate::batch::Reject;
use crate::desk::{Desk, Envelope};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "dead_letter";

/// Waits between attempts.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Rejects written and synced as one group at most.
const GROUP_MAX: usize = 10_000;

/// At most one log line in this time tells of rejects: one bad producer must not fill the disk with log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where rejects go; at least one of folder and topic.
#[derive(Clone, Debug)]
pub struct Config {
    /// A folder for NDJSON files.
    pub directory: Option<PathBuf>,
    /// Size at which a file is followed by the next.
    pub file_bytes_max: u64,
    /// A Kafka topic.
    pub topic: Option<String>,
    /// The Kafka client's properties: brokers and security.
    pub client: BTreeMap<String, String>,
}

/// Why rejects are not in the dead letter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a file in it.
    #[error("{doing} {path}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The dead-letter topic.
    #[error("sending to the dead-letter topic {topic}")]
    Kafka {
        /// The topic.
        topic: String,
        /// Why it failed.
        source: rdkafka::error::KafkaError,
    },
    /// A letter that the topic will never take.
    #[error(
        "a message of {bytes} bytes is over the limit of the dead-letter topic {topic}: raise its max.message.bytes, or set dead_letter.directory"
    )]
    TooLarge {
        /// The topic.
        topic: String,
        /// The message's size.
        bytes: usize,
    },
}

impl Error {
    /// True if the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        !matches!(self, Error::TooLarge { .. })
    }
}

/// A place that keeps rejects.
pub trait Sink: Send {
    /// Keeps all of `rejects`: returns only when they are safe there. After an error the same ones are given again.
    fn keep(&mut self, rejects: &[Reject]) -> Result<Kept, Error>;
}

/// What came of a group of rejects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Rejects written.
    pub written: u64,
    /// Rejects that were there already.
    pub repeated: u64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The dead letter's thread.
    pub desk: Desk<Vec<Reject>, ()>,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rejects written; with two places, by the first.
    pub written: AtomicU64,
    /// Rejects that were there already: rejected again after a restart.
    pub repeated: AtomicU64,
    /// Attempts that failed and were repeated.
    pub retries: AtomicU64,
}

/// Writes rejects to the dead letter.
pub fn dead_letter<'s>(stream: Stream<'s, Epoch, Vec<Reject>>, ports: Ports) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let mut counter = ports.desk.counter(scope.worker().sync_activator_for(address.to_vec()));
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, acked) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let mut held: BTreeMap<u64, Capability<Epoch>> = BTreeMap::new();
        move |_frontiers| {
            // 1. Hand rejects over, and hold their epoch.
            input.for_each(|capability, rejects| {
                let capability = capability.retain_least(0).expect("every reject is sent under a capability");
                held.insert(counter.request(std::mem::take(rejects)), capability);
            });
            // 2. Let go of what is acked.
            while let Some((ticket, ())) = counter.answer() {
                held.remove(&ticket);
            }
        }
    });
    acked
}

/// Opens the configured places and starts the dead letter's thread.
pub fn open(config: &Config, health: Health, stats: Arc<Stats>) -> Result<(Desk<Vec<Reject>, ()>, JoinHandle<()>), String> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(directory) = &config.directory {
        let sink = FileSink::open(directory, config.file_bytes_max);
        sinks.push(Box::new(sink.map_err(|error| chain(&error))?));
    }
    if let Some(topic) = &config.topic {
        let sink = KafkaSink::open(topic, &config.client);
        sinks.push(Box::new(sink.map_err(|error| chain(&error))?));
    }
    if sinks.is_empty() {
        return Err("no dead letter: set dead_letter.directory or dead_letter.topic".into());
    }
    let on_panic = health.clone();
    let clerk = Clerk { sinks, health, stats, logged: None, unlogged: 0 };
    Desk::open(NAME, on_panic, move |requests| clerk.serve(&requests))
        .map_err(|error| format!("starting the dead letter: {error}"))
}

/// What the thread owns.
struct Clerk {
    sinks: Vec<Box<dyn Sink>>,
    health: Health,
    stats: Arc<Stats>,
    logged: Option<Instant>,
    unlogged: usize,
}

impl Clerk {
    fn serve(mut self, requests: &Receiver<Envelope<Vec<Reject>, ()>>) {
        while let Ok(first) = requests.recv() {
            // Everything that waits shares one sync.
            let mut envelopes = vec![first];
            let mut count = envelopes[0].request.len();
            while count < GROUP_MAX {
                let Ok(envelope) = requests.try_recv() else { break };
                count += envelope.request.len();
                envelopes.push(envelope);
            }
            let rejects: Vec<Reject> = envelopes.iter_mut().flat_map(|envelope| std::mem::take(&mut envelope.request)).collect();
            self.tell(&rejects);
            // Without an answer the capabilities are held for ever: a fault was raised.
            if self.keep(&rejects) {
                envelopes.into_iter().for_each(|envelope| envelope.answer(()));
            }
        }
    }

    fn keep(&mut self, rejects: &[Reject]) -> bool {
        let mut is_first = true;
        let mut is_safe_elsewhere = false;
        for sink in &mut self.sinks {
            let Some(kept) = keep_patiently(sink.as_mut(), rejects, is_safe_elsewhere, &self.health, &self.stats) else {
                return false;
            };
            if is_first {
                self.stats.written.fetch_add(kept.written, Ordering::Relaxed);
                self.stats.repeated.fetch_add(kept.repeated, Ordering::Relaxed);
            }
            (is_first, is_safe_elsewhere) = (false, true);
        }
        true
    }

    fn tell(&mut self, rejects: &[Reject]) {
        self.unlogged += rejects.len();
        let is_due = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL);
        if let (true, Some(last)) = (is_due, rejects.last()) {
            let Reject { partition, record, reason, detail, .. } = last;
            warn!(count = self.unlogged, %partition, offset = record.offset, reason = reason.code(), detail, "messages rejected; the last one is named");
            (self.logged, self.unlogged) = (Some(Instant::now()), 0);
        }
    }
}

fn keep_patiently(
    sink: &mut dyn Sink,
    rejects: &[Reject],
    is_safe_elsewhere: bool,
    health: &Health,
    stats: &Stats,
) -> Option<Kept> {
    let mut wait = RETRY_WAIT_MIN;
    loop {
        let error = match sink.keep(rejects) {
            Ok(kept) => return Some(kept),
            Err(error) => error,
        };
        if health.failed() {
            return None;
        }
        if !error.is_retriable() {
            if is_safe_elsewhere {
                warn!(error = chain(&error), "some rejects are in the dead-letter folder only");
                return Some(Kept::default());
            }
            health.fail(NAME, chain(&error));
            return None;
        }
        stats.retries.fetch_add(1, Ordering::Relaxed);
        warn!(error = chain(&error), "the dead letter cannot be written, trying again; nothing is committed meanwhile");
        std::thread::sleep(wait);
        wait = (wait * 2).min(RETRY_WAIT_MAX);
    }
}
