//! Reads lines from standard input, a pipe or a file as messages of one topic: a source in the place of Kafka.
//!
//! # In
//! Nothing.
//!
//! # Out
//! `RawBatch`: each line a message of partition 0 of the topic. Its offset is the number of the line, from 1, and its timestamp the time when it
//! was taken. Empty lines are no messages; their numbers count as absent.
//!
//! # Holds
//! A capability at the present tick, like `kafka_source`; the open batch. On its thread, `QUEUE_CHUNKS` chunks that are not taken.
//!
//! # Closes when
//! The input ends, or the process is told to stop. A batch goes on at `batch_records_max`, `batch_bytes_max` or after `batch_wait_ms`.
//!
//! # Fails when
//! The input cannot be read, or a line is longer than `line_bytes_max`: nobody could tell where the next one begins without reading on, and a
//! line left out would be lost. No more than that is ever held of a line.
//!
//! # Invariants
//! - A worker never waits for the input: a thread of its own reads it. Only the first worker of all has one.
//! - Batches are emitted in the order of lines, and account for every line from the first to the last.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use memchr::memchr;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use crate::backlog::BYTES_PER_SCHEDULING;
use crate::batch::{RawBatch, RawRecord, Span};
use crate::budget::{Budget, Load};
use crate::clock::Clock;
use crate::coverage::{PartitionKey, TopicKey};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "line_source";

/// The cluster of the topic: there is none.
const CLUSTER: &str = "lines";
/// Most bytes of a line, and of a batch, that are obeyed: an arena's places have 32 bits.
const BYTES_LIMIT: usize = 1 << 30;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Chunks read ahead: a few MiB, enough for a worker that has other things to do.
const QUEUE_CHUNKS: usize = 32;
/// How long the operator waits where there is no line yet, or no memory: neither can wake it.
const WAIT: Duration = Duration::from_millis(5);

/// What the lines are, and how they are batched.
#[derive(Clone, Debug)]
pub struct Config {
    /// The topic whose messages the lines are: index and signal follow from it, as from any topic's name.
    pub topic: String,
    /// Lines of a batch.
    pub batch_records_max: usize,
    /// Bytes of a batch, short of the line that exceeds them.
    pub batch_bytes_max: usize,
    /// How long the first line of a batch waits for more.
    pub batch_wait_ms: u64,
    /// Bytes of a line, without its end. A longer one ends the run.
    pub line_bytes_max: usize,
    /// A tick of the dataflow's time.
    pub epoch_interval_ms: u64,
}

impl Config {
    /// The defaults, for lines of `topic`.
    pub fn new(topic: impl Into<String>) -> Self {
        Config {
            topic: topic.into(),
            batch_records_max: 1_000,
            batch_bytes_max: 4 << 20,
            batch_wait_ms: 100,
            line_bytes_max: 16 << 20,
            epoch_interval_ms: 20,
        }
    }
}

/// Why lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line is too long.
    #[error("line {line} is longer than line_bytes_max of {bytes_max} bytes: raise it, or cut the line where it is made")]
    TooLong {
        /// Its number, from 1.
        line: i64,
        /// The limit.
        bytes_max: usize,
    },
    /// The input failed.
    #[error("cannot read line {line}")]
    Io {
        /// Its number, from 1.
        line: i64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Lines read, empty ones included.
    pub lines: AtomicU64,
    /// Messages emitted.
    pub records: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The lines, for the first worker. In other processes than the first of a cluster, of `std::io::empty()`.
    pub feed: Arc<Feed>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Where faults go and a stop is announced.
    pub health: Health,
    /// Counters.
    pub stats: Arc<Stats>,
}

/// The lines on their way to the operator.
pub struct Feed {
    chunks: Mutex<Receiver<Chunk>>,
}

impl Feed {
    /// Starts the thread that reads `input`. Nobody joins it: it may wait for input for ever, and ends with the input, with the process, or when
    /// what it read is not wanted any more.
    pub fn start(
        input: Box<dyn Read + Send>,
        line_bytes_max: usize,
        health: Health,
        stats: Arc<Stats>,
    ) -> std::io::Result<Arc<Feed>> {
        let (sender, chunks) = sync_channel(QUEUE_CHUNKS);
        let reader = Reader { splitter: Splitter::new(line_bytes_max), stats };
        std::thread::Builder::new().name(NAME.into()).spawn(move || {
            let on_panic = health.clone();
            let work = std::panic::AssertUnwindSafe(move || {
                // The fault comes before the end of the queue: what looks exhausted then is not taken for the end of the input.
                if let Err(error) = reader.run(input, &sender) {
                    health.fail(NAME, chain(&error));
                }
            });
            if let Err(panic) = std::panic::catch_unwind(work) {
                on_panic.fail(NAME, format!("the thread that reads panicked: {}", crate::fault::panic_text(panic.as_ref())));
            }
        })?;
        Ok(Arc::new(Feed { chunks: Mutex::new(chunks) }))
    }

    fn next(&self) -> Result<Chunk, TryRecvError> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).try_recv()
    }
}

/// Whole lines, as they were read together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Chunk {
    arena: Vec<u8>,
    /// Number and place of each line that is not empty.
    lines: Vec<(i64, Span)>,
    /// The number after the last line.
    end: i64,
}

/// Cuts what is read into lines. No input, no clock.
struct Splitter {
    line_bytes_max: usize,
    /// The begin of a line whose end was not read.
    begun: Vec<u8>,
    /// The number of the line that is next to end.
    next: i64,
}

impl Splitter {
    fn new(line_bytes_max: usize) -> Self {
        Splitter { line_bytes_max: line_bytes_max.min(BYTES_LIMIT), begun: Vec::new(), next: 1 }
    }

    /// The lines that `bytes` end.
    fn push(&mut self, mut bytes: &[u8]) -> Result<Chunk, Error> {
        let mut chunk = Chunk::default();
        while let Some(end) = memchr(b'\n', bytes) {
            self.extend(&bytes[..end])?;
            self.end_line(&mut chunk);
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes)?;
        chunk.end = self.next;
        Ok(chunk)
    }

    /// The last line, if the input does not end with a line's end.
    fn finish(&mut self) -> Chunk {
        let mut chunk = Chunk::default();
        if !self.begun.is_empty() {
            self.end_line(&mut chunk);
        }
        chunk.end = self.next;
        chunk
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // One byte more, as a carriage return may belong to the line's end.
        if self.begun.len() + bytes.len() > self.line_bytes_max.saturating_add(1) {
            return Err(Error::TooLong { line: self.next, bytes_max: self.line_bytes_max });
        }
        self.begun.extend_from_slice(bytes);
        let is_too_long = self.begun.len() > self.line_bytes_max && !self.begun.ends_with(b"\r");
        if is_too_long { Err(Error::TooLong { line: self.next, bytes_max: self.line_bytes_max }) } else { Ok(()) }
    }

    fn end_line(&mut self, chunk: &mut Chunk) {
        if self.begun.ends_with(b"\r") {
            self.begun.pop();
        }
        if !self.begun.is_empty() {
            let place = Span { start: chunk.arena.len() as u32, len: self.begun.len() as u32 };
            chunk.arena.extend_from_slice(&self.begun);
            chunk.lines.push((self.next, place));
        }
        self.begun.clear();
        self.next += 1;
    }
}

/// The thread's part.
struct Reader {
    splitter: Splitter,
    stats: Arc<Stats>,
}

impl Reader {
    fn run(mut self, mut input: Box<dyn Read + Send>, sender: &SyncSender<Chunk>) -> Result<(), Error> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let chunk = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => self.splitter.push(&buffer[..read])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Io { line: self.splitter.next, source }),
            };
            if !self.send(chunk, sender) {
                // The graph is gone.
                return Ok(());
            }
        }
        let last = self.splitter.finish();
        self.send(last, sender);
        Ok(())
    }

    fn send(&self, chunk: Chunk, sender: &SyncSender<Chunk>) -> bool {
        self.stats.lines.store((self.splitter.next - 1) as u64, Ordering::Relaxed);
        sender.send(chunk).is_ok()
    }
}

/// The core: collects lines into batches. No input, no clock.
struct Collector {
    partition: PartitionKey,
    batch_records_max: usize,
    batch_bytes_max: usize,
    /// What the open batch accounts for.
    start: i64,
    end: i64,
    arena: Vec<u8>,
    records: Vec<RawRecord>,
    /// When its first line came.
    since_ms: u64,
}

impl Collector {
    fn new(config: &Config) -> Self {
        let topic = TopicKey { cluster: CLUSTER.into(), name: config.topic.as_str().into(), id: "".into() };
        Collector {
            partition: PartitionKey { topic: Arc::new(topic), partition: 0 },
            batch_records_max: config.batch_records_max.max(1),
            batch_bytes_max: config.batch_bytes_max.min(BYTES_LIMIT),
            start: 1,
            end: 1,
            arena: Vec::new(),
            records: Vec::new(),
            since_ms: 0,
        }
    }

    /// Takes lines that came at `now_ms`; gives the batches that they fill.
    fn push(&mut self, chunk: &Chunk, now_ms: u64) -> Vec<RawBatch> {
        let mut full = Vec::new();
        for &(number, place) in &chunk.lines {
            let line = place.of(&chunk.arena);
            let is_over = self.arena.len() + line.len() > self.batch_bytes_max && !self.records.is_empty();
            if is_over || self.records.len() >= self.batch_records_max {
                full.extend(self.take());
            }
            if self.records.is_empty() {
                self.since_ms = now_ms;
            }
            let payload = Some(Span { start: self.arena.len() as u32, len: line.len() as u32 });
            self.arena.extend_from_slice(line);
            let headers = Span::default();
            self.records.push(RawRecord { offset: number, timestamp_ms: now_ms as i64, key: None, payload, headers });
            self.end = number + 1;
        }
        if chunk.end > self.end {
            self.end = chunk.end;
        }
        full
    }

    /// The open batch, if it has waited for `wait_ms`.
    fn due(&mut self, now_ms: u64, wait_ms: u64) -> Option<RawBatch> {
        let is_due = !self.records.is_empty() && now_ms.saturating_sub(self.since_ms) >= wait_ms;
        if is_due { self.take() } else { None }
    }

    /// The open batch, if it accounts for anything.
    fn take(&mut self) -> Option<RawBatch> {
        if self.start == self.end {
            return None;
        }
        let batch = RawBatch {
            partition: self.partition.clone(),
            start: std::mem::replace(&mut self.start, self.end),
            end: self.end,
            arena: Bytes::from(std::mem::take(&mut self.arena)),
            records: std::mem::take(&mut self.records),
            polled_ms: self.since_ms,
            charge: Default::default(),
        };
        Some(batch)
    }
}

/// Emits lines as messages, on the first worker of all.
pub fn line_source<'s>(scope: Scope<'s, Epoch>, config: Config, ports: Ports) -> Stream<'s, Epoch, Vec<RawBatch>> {
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let is_first = scope.index() == 0;
    let (output, lines) = builder.new_output::<Vec<RawBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<RawBatch>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop().filter(|_| is_first);
        let mut collector = Collector::new(&config);
        move |_frontiers| {
            let Some(open) = &mut capability else { return };
            // 1. The tick: a source without lines holds nobody.
            let now_ms = ports.clock.now_ms();
            let epoch = Epoch::of(now_ms, config.epoch_interval_ms).max(*open.time());
            open.downgrade(&epoch);
            // 2. Take what was read, as far as there is memory for it.
            let mut ready = Vec::new();
            let (mut bytes, mut is_over) = (0, ports.health.stopping());
            while bytes < BYTES_PER_SCHEDULING && !is_over && !ports.budget.is_full() {
                match ports.feed.next() {
                    Ok(chunk) => {
                        bytes += chunk.arena.len().max(1);
                        ready.extend(collector.push(&chunk, now_ms));
                    }
                    Err(TryRecvError::Empty) => break,
                    // An input that cannot be read looks exhausted, too: the frontier must not pass the rest.
                    Err(TryRecvError::Disconnected) if ports.health.failed() => return,
                    Err(TryRecvError::Disconnected) => is_over = true,
                }
            }
            // 3. Emit what is full, or old enough; at the end, everything.
            ready.extend(if is_over { collector.take() } else { collector.due(now_ms, config.batch_wait_ms) });
            emit(ready, open, &ports, &mut output.activate());
            // 4. Come back for more, at once or when there may be some.
            if is_over {
                capability = None;
            } else if bytes >= BYTES_PER_SCHEDULING {
                activator.activate();
            } else {
                activator.activate_after(WAIT);
            }
        }
    });
    lines
}

type Output<'a> = timely::dataflow::operators::generic::OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<RawBatch>>>;

fn emit(batches: Vec<RawBatch>, capability: &Capability<Epoch>, ports: &Ports, output: &mut Output<'_>) {
    let mut session = output.session(capability);
    for mut batch in batches {
        let load = Load { bytes: batch.arena.len(), messages: batch.records.len() };
        ports.budget.collect(load);
        batch.charge = ports.budget.seal(load);
        ports.stats.records.fetch_add(load.messages as u64, Ordering::Relaxed);
        ports.stats.bytes.fetch_add(load.bytes as u64, Ordering::Relaxed);
        session.give(batch);
    }
    session.flush();
}

#[cfg(test)]
mod tests;
