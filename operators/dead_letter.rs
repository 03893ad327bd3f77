//! `dead_letter`: keeps every rejected message, whole, where a person or a replay finds it.
//!
//! # In
//! `Reject`: one message that failed, with its reason.
//!
//! # Out
//! No data. Its effect is the letter in the sinks: files (`file`), a Kafka topic (`kafka`), or both (`All`).
//!
//! # Holds
//! The capabilities of epochs whose letters are not acked, and in its sinks the letters themselves; both bounded. A sink that is
//! full refuses a letter (`Error::Full`), the operator keeps it, and the durable feedback waits: backpressure, never loss.
//!
//! # Closes when
//! An epoch is done when each of its rejects is acked by all sinks: synced in a file, or reported delivered by Kafka with acks=all.
//!
//! # Fails when
//! A sink reports an error that cannot be retried: a failed sync, a lock held by another process, a refused topic, a letter too large
//! for its topic (see `kafka::Oversize`). The operator then keeps its capabilities and raises the fault (design D-7).
//!
//! # Invariants
//! - An acked letter survives a crash of the process, and in files one of the machine.
//! - Files hold each identity (cluster, topic, topic id, partition, offset) once, unless `file::Stats::forgotten` counts. Kafka holds it
//!   at least once: readers drop repetitions by the identity in the headers.
//! - Key, payload and headers are the original's, byte for byte, but for the value of a header that holds a secret (I-20).

pub mod file;
pub mod kafka;
pub mod letter;
pub mod read;
pub mod replay;
pub mod resend;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tracing::warn;

use crate::batch::Reject;
use crate::clock::Clock;
use crate::coverage::PartitionKey;
use crate::desk::{Desk, Envelope};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::told::Told;

/// The stage's name in config, metrics and faults.
pub const NAME: &str = "dead_letter";

/// How long one look for acks waits.
const POLL: Duration = Duration::from_millis(10);

/// At most one log line in this time tells of rejects of one reason, and one of errors: a bad producer must not fill the disk with log.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Where rejects go; at least one of folder and topic.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder for files.
    pub file: Option<file::Config>,
    /// The topic.
    pub kafka: Option<kafka::Config>,
}

/// What a sink could not do.
///
/// Retriable errors are news: the sink keeps the letter and goes on trying (or, from `submit`, the caller keeps it and submits it
/// again). All others end the sink's work; those with an id say which letter it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The sink holds as much as it may.
    #[error("dead letters waiting to be written have reached {setting}")]
    Full {
        /// The limit that was reached.
        setting: &'static str,
    },
    /// The directory holds as much as it may. Files moved away or removed make room.
    #[error("dead letter directory {} has reached directory_bytes_max of {bytes_max} bytes", directory.display())]
    DirectoryFull {
        /// The directory.
        directory: PathBuf,
        /// Its limit.
        bytes_max: u64,
    },
    /// A file operation failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// True if trying again may succeed: a full disk.
        retriable: bool,
        /// Why it failed.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Another process writes dead letters to the directory.
    #[error("dead letter directory {} is in use by another process", directory.display())]
    Locked {
        /// The directory.
        directory: PathBuf,
    },
    /// A sync failed before: what the disk holds is unknown, so nothing more is written.
    #[error("dead letters are not written to {} after a failed sync", path.display())]
    Poisoned {
        /// The file whose sync failed.
        path: PathBuf,
    },
    /// A line of a file is not a dead letter.
    #[error("reading line {line} of {}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: u64,
        /// Why.
        #[source]
        source: Arc<letter::ParseError>,
    },
    /// The Kafka producer could not be made or has failed for good.
    #[error("dead letter producer for topic {topic}")]
    Producer {
        /// The dead letter topic.
        topic: String,
        /// Why.
        #[source]
        source: rdkafka::error::KafkaError,
    },
    /// Kafka did not take a letter.
    #[error("delivering dead letter {id} to topic {topic}, attempt {attempt}")]
    Delivery {
        /// The letter.
        id: u64,
        /// The dead letter topic.
        topic: String,
        /// How often it was tried.
        attempt: u32,
        /// True if it is tried again.
        retriable: bool,
        /// Why it failed.
        #[source]
        source: rdkafka::error::KafkaError,
    },
    /// A letter is larger than its topic takes.
    #[error(
        "dead letter {id} of {bytes} bytes is larger than topic {topic} takes: raise its max.message.bytes (the broker's \
         message.max.bytes), write dead letters to files, or let oversized payloads be omitted"
    )]
    TooLarge {
        /// The letter.
        id: u64,
        /// The dead letter topic.
        topic: String,
        /// Bytes of the original key, payload and headers.
        bytes: usize,
    },
}

impl Error {
    /// True if the letter is kept and tried again, by the sink or, after `submit`, by the caller.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Full { .. } | Error::DirectoryFull { .. } => true,
            Error::Io { retriable, .. } | Error::Delivery { retriable, .. } => *retriable,
            Error::Locked { .. } | Error::Poisoned { .. } | Error::Damaged { .. } | Error::Producer { .. } => false,
            Error::TooLarge { .. } => false,
        }
    }

    /// The letter this is about, if it is about one.
    pub fn id(&self) -> Option<u64> {
        match self {
            Error::Delivery { id, .. } | Error::TooLarge { id, .. } => Some(*id),
            _ => None,
        }
    }
}

/// Where dead letters go. Ids are the caller's, each used once.
pub trait Sink: Send {
    /// Takes a letter over. After an error it was not taken; if that is retriable, submit it again after `poll`.
    fn submit(&mut self, id: u64, reject: &Reject) -> Result<(), Error>;

    /// Works on what was submitted, as far as that goes without waiting for a peer: the ids acked since the last call, and errors.
    fn poll(&mut self) -> Vec<Result<u64, Error>>;

    /// Letters taken and not yet acked.
    fn pending(&self) -> usize;

    /// As `poll`, but waits up to `timeout` for all pending letters. Dropping a sink abandons those that are left.
    fn flush(&mut self, timeout: Duration) -> Vec<Result<u64, Error>>;

    /// Tells that `partition` is durable below `offset`: nothing before it is redelivered, its identities may be forgotten.
    fn forget_below(&mut self, partition: &PartitionKey, offset: i64);
}

/// Several sinks as one: a letter is acked when all have acked it.
pub struct All {
    sinks: Vec<Box<dyn Sink>>,
    /// Letters that not all sinks have acked.
    letters: BTreeMap<u64, Progress>,
}

/// Which sinks have taken and acked a letter, a bit each.
#[derive(Clone, Copy, Default)]
struct Progress {
    taken: u32,
    acked: u32,
}

impl All {
    /// All of `sinks`, of which there are 1 to 32.
    pub fn new(sinks: Vec<Box<dyn Sink>>) -> Self {
        assert!((1..=32).contains(&sinks.len()), "{} dead letter sinks", sinks.len());
        All { sinks, letters: BTreeMap::new() }
    }

    fn mask(&self) -> u32 {
        u32::MAX >> (32 - self.sinks.len())
    }

    fn settle(&mut self, results: Vec<(usize, Result<u64, Error>)>) -> Vec<Result<u64, Error>> {
        let mask = self.mask();
        let mut settled = Vec::new();
        for (sink, result) in results {
            match result {
                Err(error) => settled.push(Err(error)),
                Ok(id) => {
                    let progress = self.letters.entry(id).or_default();
                    progress.acked |= 1 << sink;
                    if progress.acked == mask {
                        self.letters.remove(&id);
                        settled.push(Ok(id));
                    }
                }
            }
        }
        settled
    }
}

impl Sink for All {
    fn submit(&mut self, id: u64, reject: &Reject) -> Result<(), Error> {
        let progress = self.letters.entry(id).or_default();
        for (sink, target) in self.sinks.iter_mut().enumerate() {
            // A letter that one sink refused comes again: the others must not take it twice.
            if progress.taken & 1 << sink == 0 {
                if let Err(error) = target.submit(id, reject) {
                    if progress.taken == 0 {
                        self.letters.remove(&id);
                    }
                    return Err(error);
                }
                progress.taken |= 1 << sink;
            }
        }
        Ok(())
    }

    fn poll(&mut self) -> Vec<Result<u64, Error>> {
        let mut results = Vec::new();
        for (number, sink) in self.sinks.iter_mut().enumerate() {
            results.extend(sink.poll().into_iter().map(|result| (number, result)));
        }
        self.settle(results)
    }

    fn pending(&self) -> usize {
        self.letters.len()
    }

    fn flush(&mut self, timeout: Duration) -> Vec<Result<u64, Error>> {
        let mut results = Vec::new();
        for (number, sink) in self.sinks.iter_mut().enumerate() {
            results.extend(sink.flush(timeout).into_iter().map(|result| (number, result)));
        }
        self.settle(results)
    }

    fn forget_below(&mut self, partition: &PartitionKey, offset: i64) {
        for sink in &mut self.sinks {
            sink.forget_below(partition, offset);
        }
    }
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
    /// Rejects that all sinks have acked.
    pub acked: AtomicU64,
    /// Errors that were or will be tried again.
    pub retries: AtomicU64,
}

/// Puts rejects into the dead letter. Its output carries no data: its frontier passes an epoch when all its rejects are acked.
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

/// Opens the configured sinks and starts the dead letter's thread.
pub fn open(
    config: &Config,
    clock: &Arc<dyn Clock>,
    health: Health,
    stats: Arc<Stats>,
) -> Result<(Desk<Vec<Reject>, ()>, JoinHandle<()>), String> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(file) = &config.file {
        let sink = file::File::open(file.clone(), &BTreeMap::new(), clock.clone());
        sinks.push(Box::new(sink.map_err(|error| chain(&error))?));
    }
    if let Some(kafka) = &config.kafka {
        let sink = kafka::Kafka::open(kafka.clone(), clock.clone());
        sinks.push(Box::new(sink.map_err(|error| chain(&error))?));
    }
    if sinks.is_empty() {
        return Err("no dead letter: set dead_letter.directory or dead_letter.topic".into());
    }
    let on_panic = health.clone();
    let clerk = Clerk::new(All::new(sinks), clock.clone(), health, stats);
    Desk::open(NAME, on_panic, move |requests| clerk.serve(&requests))
        .map_err(|error| format!("starting the dead letter: {error}"))
}

/// Rejects of one request that are not all acked.
struct Open {
    envelope: Envelope<Vec<Reject>, ()>,
    left: usize,
}

/// What the thread owns: the sinks, and which request each letter belongs to.
struct Clerk {
    sinks: All,
    health: Health,
    stats: Arc<Stats>,
    next_id: u64,
    next_request: u64,
    open: BTreeMap<u64, Open>,
    /// The request of each letter not yet acked.
    letters: BTreeMap<u64, u64>,
    /// Letters that the sinks have not taken yet.
    backlog: VecDeque<(u64, Reject)>,
    clock: Arc<dyn Clock>,
    /// Rejects by reason.
    told_rejects: Told,
    told_errors: Told,
}

impl Clerk {
    fn new(sinks: All, clock: Arc<dyn Clock>, health: Health, stats: Arc<Stats>) -> Self {
        let told = || Told::every(LOG_INTERVAL.as_millis() as u64);
        Clerk {
            sinks,
            health,
            stats,
            next_id: 0,
            next_request: 0,
            open: BTreeMap::new(),
            letters: BTreeMap::new(),
            backlog: VecDeque::new(),
            clock,
            told_rejects: told(),
            told_errors: told(),
        }
    }

    fn serve(mut self, requests: &Receiver<Envelope<Vec<Reject>, ()>>) {
        loop {
            // 1. Take what is asked; wait only when nothing is under way.
            let next = if self.open.is_empty() { self.wait(requests) } else { requests.try_recv() };
            let now_ms = self.clock.now_ms();
            tell_left_out(self.told_rejects.due(now_ms));
            match next {
                Ok(envelope) => {
                    self.take(envelope);
                    continue;
                }
                // The graph is gone: what is open was never acked, and comes again after the next start.
                Err(TryRecvError::Disconnected) => return tell_left_out(self.told_rejects.rest(now_ms)),
                Err(TryRecvError::Empty) => {}
            }
            // 2. Submit as much as the sinks take, look for acks, answer requests whose letters are all acked.
            let result = self.submit().and_then(|()| self.settle());
            if let Err(error) = result {
                // Without answers the capabilities are held: nothing is committed past these rejects.
                self.health.fail(NAME, chain(&error));
                return;
            }
            if self.health.failed() {
                return;
            }
        }
    }

    /// Waits for the next request, or until the number of rejects that no line has told is due.
    fn wait(&self, requests: &Receiver<Envelope<Vec<Reject>, ()>>) -> Result<Envelope<Vec<Reject>, ()>, TryRecvError> {
        if !self.told_rejects.has_untold() {
            return requests.recv().map_err(|_| TryRecvError::Disconnected);
        }
        requests.recv_timeout(LOG_INTERVAL).map_err(|error| match error {
            RecvTimeoutError::Timeout => TryRecvError::Empty,
            RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
        })
    }

    fn take(&mut self, mut envelope: Envelope<Vec<Reject>, ()>) {
        let rejects = std::mem::take(&mut envelope.request);
        let now_ms = self.clock.now_ms();
        for Reject { partition, record, reason, detail, .. } in &rejects {
            if let Some(left_out) = self.told_rejects.count(reason.code(), now_ms) {
                let (reason, offset) = (reason.code(), record.offset);
                warn!(reason, %partition, offset, detail, left_out, "messages rejected; one of those since the last line is named");
            }
        }
        if rejects.is_empty() {
            return envelope.answer(());
        }
        let request = self.next_request;
        self.next_request += 1;
        self.open.insert(request, Open { envelope, left: rejects.len() });
        for reject in rejects {
            self.letters.insert(self.next_id, request);
            self.backlog.push_back((self.next_id, reject));
            self.next_id += 1;
        }
    }

    fn submit(&mut self) -> Result<(), Error> {
        while let Some((id, reject)) = self.backlog.front() {
            match self.sinks.submit(*id, reject) {
                Ok(()) => drop(self.backlog.pop_front()),
                Err(error) if error.is_retriable() => {
                    // `Full` is how a sink asks to be polled; anything else is worth a line.
                    if !matches!(error, Error::Full { .. }) {
                        self.tell(&error);
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        for result in self.sinks.flush(POLL) {
            match result {
                Ok(id) => self.acked(id),
                Err(error) if error.is_retriable() => self.tell(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn acked(&mut self, id: u64) {
        self.stats.acked.fetch_add(1, Ordering::Relaxed);
        let Some(request) = self.letters.remove(&id) else { return };
        let Some(open) = self.open.get_mut(&request) else { return };
        open.left -= 1;
        if open.left == 0
            && let Some(open) = self.open.remove(&request)
        {
            open.envelope.answer(());
        }
    }

    fn tell(&mut self, error: &Error) {
        self.stats.retries.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.told_errors.count("error", self.clock.now_ms()) {
            warn!(
                left_out,
                error = chain(error),
                "the dead letter cannot be written, trying again; nothing is committed meanwhile"
            );
        }
    }
}

fn tell_left_out(left_out: Vec<(&'static str, u64)>) {
    for (reason, left_out) in left_out {
        warn!(reason, left_out, "messages rejected; none of those since the last line is named");
    }
}

#[cfg(test)]
mod tests;
