//! Captures of a raw edge made of a seed, with every oddity that a source meets in production, without a broker.
//!
//! ```text
//! duplicates   in a batch, in a partition, across partitions and epochs, within the dedup window and long after it
//! times        in order, late by less and by more than the window, an hour ahead, none at all
//! partitions   that are idle for many epochs, and that go away and come back: in a later epoch or in the same one, from an offset that was
//!              read before, with other cuts between their batches
//! batches      of one message, of a thousand, of none (offsets that hold nothing), with gaps between offsets
//! messages     of two signals and three formats, valid, invalid, without payload, with keys and headers
//! epochs       with a message or none, and with thousands; minutes in which nothing happens
//! ```

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use openwit_ingest::generate::{Format, Generator, Message, Plan, Ppm, Topic};
use openwit_operators::batch::{RawBatch, RawRecord, Signal, Span, push_header};
use openwit_operators::budget::Charge;
use openwit_operators::capture::{self, Port, Writer};
use openwit_operators::clock::SystemClock;
use openwit_operators::coverage::{PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;

use super::random::Random;

/// The dedup window that the times below are meant for.
pub const WINDOW_MS: u64 = 10_000;
/// A configuration that reads such captures. Its brokers are asked nothing.
pub const CONFIG: &str = "\
graph: standalone
ingestion:
  kafka:
    brokers: 127.0.0.1:1
    topics: [v6.qtw.traces.shop.eu, v6.qtw.logs.shop.eu, v6.qtw.logs.till.eu]
    topic_index_config:
      default_index_position: 3
      patterns:
        - {match: v6.qtw.traces.*.*, telemetry_type: traces, format: otlp_proto}
        - {match: v6.qtw.logs.shop.*, telemetry_type: logs, format: json}
        - {match: v6.qtw.logs.till.*, telemetry_type: logs, format: otlp_proto}
processing:
  dedup_window_seconds: 10
";

/// When the first epoch begins.
const START_MS: u64 = 1_790_000_000_000;
/// Messages of a partition that may be read a second time.
const REREAD_MAX: usize = 600;
/// Messages of a large batch.
const BATCH_MAX: u64 = 1_000;

/// What a capture holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Messages, those that come again included.
    pub messages: u64,
    /// Batches.
    pub batches: u64,
    /// Epochs that have any.
    pub epochs: u64,
    /// Messages that had been read before.
    pub reread: u64,
    /// Batches without a message.
    pub empty: u64,
    /// Messages that repeat an earlier one on purpose, besides those that the load generator repeats.
    pub repeated: u64,
    /// Messages late by less than the window.
    pub late: u64,
    /// Messages late by more.
    pub too_late: u64,
    /// Times that a partition went away.
    pub gone: u64,
    /// Times that a partition was idle.
    pub idle: u64,
}

/// Where a message lies, and what it is.
#[derive(Clone, Copy)]
struct Placed {
    offset: i64,
    index: u64,
    timestamp_ms: i64,
}

struct Partition {
    key: PartitionKey,
    topic: usize,
    /// The offset of the next new message.
    end: i64,
    /// One past what the last batch accounted for.
    read_to: i64,
    /// What was read last, and what comes again after a rebalance.
    recent: VecDeque<Placed>,
    again: VecDeque<Placed>,
    /// Epochs to go without a batch.
    silent: u64,
}

struct Load {
    generator: Generator,
    /// The next message that no partition has.
    next: u64,
}

fn load(name: &str, signal: Signal, format: Format, records_per_message: usize, seed: u64) -> Load {
    let plan = Plan {
        topics: vec![Topic { name: name.into(), partitions: 1 }],
        format,
        signal,
        count: None,
        records_per_message,
        message_bytes_min: 0,
        duplicates: Ppm(60_000),
        invalid: Ppm(30_000),
        tombstones: Ppm(20_000),
        seed,
        keyed: true,
        start_time_ns: START_MS * 1_000_000,
        time_step_ns: 1_000_000,
    };
    Load { generator: Generator::new(plan).expect("the plan makes sense"), next: 0 }
}

/// Writes a capture of `messages` messages into `directory`, of about `per_epoch` in an epoch.
pub fn make(directory: &Path, messages: u64, per_epoch: u64, seed: u64) -> Made {
    let config = capture::Config { file_bytes_max: 1 << 20, flush_ms: 1, ..capture::Config::new(directory) };
    let writer = Writer::spawn(config, Health::default(), Arc::new(SystemClock::default())).expect("a folder to write to");
    let (wake, woken) = channel();
    let port = writer.port(0, 1, move || {
        // Nobody waits any more once all is handed over.
        let _ = wake.send(());
    });
    let mut maker = Maker::new(messages, per_epoch, seed);
    let mut sink = Sink { port, woken };
    while maker.made.messages < messages {
        let batches = maker.epoch();
        sink.put(maker.now, &batches);
    }
    sink.port.advance(None);
    writer.shutdown();
    maker.made
}

/// The capture's writer, which is waited for when it is behind.
struct Sink {
    port: Port<RawBatch>,
    woken: Receiver<()>,
}

impl Sink {
    fn put(&mut self, epoch: Epoch, batches: &[RawBatch]) {
        self.port.append(epoch, batches);
        self.port.advance(Some(Epoch(epoch.0 + 1)));
        while !self.port.has_room() {
            self.woken.recv().expect("the writer lives");
        }
    }
}

struct Maker {
    random: Random,
    loads: Vec<Load>,
    partitions: Vec<Partition>,
    now: Epoch,
    messages: u64,
    per_epoch: u64,
    made: Made,
    message: Message,
}

impl Maker {
    fn new(messages: u64, per_epoch: u64, seed: u64) -> Self {
        let topics = [
            ("v6.qtw.traces.shop.eu", Signal::Traces, Format::Otlp, 2, 5),
            ("v6.qtw.logs.shop.eu", Signal::Logs, Format::Json, 1, 4),
            ("v6.qtw.logs.till.eu", Signal::Logs, Format::Otlp, 6, 2),
        ];
        let mut partitions = Vec::new();
        for (number, (name, .., count)) in topics.iter().enumerate() {
            let topic = Arc::new(TopicKey { cluster: "cluster".into(), name: (*name).into(), id: "".into() });
            for partition in 0..*count {
                let key = PartitionKey { topic: topic.clone(), partition };
                let (recent, again) = (VecDeque::new(), VecDeque::new());
                partitions.push(Partition { key, topic: number, end: 0, read_to: 0, recent, again, silent: 0 });
            }
        }
        Maker {
            random: Random::of_seed(seed),
            loads: topics.iter().map(|(name, signal, format, records, _)| load(name, *signal, *format, *records, seed)).collect(),
            partitions,
            now: Epoch(START_MS),
            messages,
            per_epoch: per_epoch.max(1),
            made: Made::default(),
            message: Message::empty(),
        }
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.random.below(many) == 0
    }

    /// The batches of the next epoch that has any.
    fn epoch(&mut self) -> Vec<RawBatch> {
        loop {
            let step = match self.random.below(100) {
                0 => WINDOW_MS * (2 + self.random.below(10)),
                1..=30 => 20,
                _ => 20 * (1 + self.random.below(50)),
            };
            self.now = Epoch(self.now.0 + step);
            let wanted = match self.random.below(20) {
                0 => self.per_epoch * 8,
                1..=4 => self.random.below(4),
                _ => self.random.below(self.per_epoch * 2),
            };
            let batches = self.batches(wanted);
            if !batches.is_empty() {
                self.made.epochs += 1;
                self.made.batches += batches.len() as u64;
                return batches;
            }
        }
    }

    fn batches(&mut self, wanted: u64) -> Vec<RawBatch> {
        let mut batches = Vec::new();
        let share = wanted / self.partitions.len() as u64 + 1;
        for number in 0..self.partitions.len() {
            if self.partitions[number].silent > 0 {
                self.partitions[number].silent -= 1;
                continue;
            }
            if self.made.messages >= self.messages {
                break;
            }
            let count = self.random.below(share * 2);
            self.deliver(number, count, &mut batches);
            match self.random.below(60) {
                0 => {
                    self.partitions[number].silent = self.random.below(30);
                    self.made.idle += 1;
                }
                1 | 2 => self.rebalance(number, &mut batches),
                _ => {}
            }
        }
        batches
    }

    /// `count` messages of a partition: first those that come again.
    fn deliver(&mut self, number: usize, count: u64, batches: &mut Vec<RawBatch>) {
        let mut left = count.min(self.messages - self.made.messages);
        if left == 0 && self.one_in(10) {
            batches.push(self.nothing(number));
        }
        while left > 0 {
            let size = 1 + self.random.below(left.min(BATCH_MAX));
            left -= size;
            let batch = self.batch(number, size);
            batches.push(batch);
        }
    }

    /// A batch of offsets that hold no message.
    fn nothing(&mut self, number: usize) -> RawBatch {
        self.made.empty += 1;
        let (gap, partition) = (1 + self.random.below(3) as i64, &mut self.partitions[number]);
        let start = partition.read_to;
        // While something comes again only offsets before it can be known to be empty.
        let end = partition.again.front().map_or_else(|| partition.end + gap, |next| next.offset.max(start));
        partition.end = partition.end.max(end);
        partition.read_to = end;
        self.raw(number, start, end, &[])
    }

    fn batch(&mut self, number: usize, size: u64) -> RawBatch {
        let mut placed = Vec::with_capacity(size as usize);
        for _ in 0..size {
            let next = match self.partitions[number].again.pop_front() {
                Some(again) => {
                    self.made.reread += 1;
                    again
                }
                None => self.new_message(number),
            };
            placed.push(next);
        }
        self.made.messages += size;
        let partition = &mut self.partitions[number];
        let (start, end) = (partition.read_to, placed.last().map_or(partition.read_to, |last| last.offset + 1));
        partition.read_to = end;
        partition.recent.extend(&placed);
        let surplus = partition.recent.len().saturating_sub(REREAD_MAX);
        partition.recent.drain(..surplus);
        self.raw(number, start, end, &placed)
    }

    fn new_message(&mut self, number: usize) -> Placed {
        let topic = self.partitions[number].topic;
        let next = self.loads[topic].next;
        // Of the last few, of any before, or the next that there was not yet.
        let index = match self.random.below(40) {
            0 if next > 0 => next - 1 - self.random.below(next.min(5)),
            1 if next > 0 => self.random.below(next),
            _ => next,
        };
        self.made.repeated += u64::from(index < next);
        self.loads[topic].next = next.max(index + 1);
        let now = self.now.0 as i64;
        let timestamp_ms = match self.random.below(100) {
            0..=3 => {
                self.made.late += 1;
                now - self.random.below(WINDOW_MS) as i64
            }
            4 | 5 => {
                self.made.too_late += 1;
                now - (WINDOW_MS * 2 + self.random.below(WINDOW_MS * 20)) as i64
            }
            6 => now + 3_600_000,
            7 => -1,
            _ => now - self.random.below(300) as i64,
        };
        let gap = if self.one_in(50) { 1 + self.random.below(3) as i64 } else { 0 };
        let partition = &mut self.partitions[number];
        let offset = partition.end + gap;
        partition.end = offset + 1;
        Placed { offset, index, timestamp_ms }
    }

    /// The partition goes away, and comes back where somebody had committed: now or after some epochs.
    fn rebalance(&mut self, number: usize, batches: &mut Vec<RawBatch>) {
        self.made.gone += 1;
        let reread = self.random.below(self.partitions[number].recent.len() as u64 + 1) as usize;
        let partition = &mut self.partitions[number];
        let from = partition.recent.len() - reread;
        let mut again: VecDeque<Placed> = partition.recent.drain(from..).collect();
        partition.read_to = again.front().map_or(partition.read_to, |first| first.offset);
        again.append(&mut partition.again);
        partition.again = again;
        if self.one_in(3) {
            let count = self.random.below(reread as u64 + 20);
            self.deliver(number, count, batches);
        } else {
            self.partitions[number].silent = 1 + self.random.below(20);
        }
    }

    fn raw(&mut self, number: usize, start: i64, end: i64, placed: &[Placed]) -> RawBatch {
        let (mut arena, mut records) = (Vec::new(), Vec::with_capacity(placed.len()));
        let partition = &self.partitions[number];
        let generator = &mut self.loads[partition.topic].generator;
        for Placed { offset, index, timestamp_ms } in placed {
            generator.fill(*index, &mut self.message);
            let key = self.message.key().map(|key| put(&mut arena, key.as_bytes()));
            let payload = self.message.payload().map(|payload| put(&mut arena, payload));
            let at = arena.len();
            if index.is_multiple_of(16) {
                push_header(&mut arena, b"traceparent", Some(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
            }
            let headers = Span { start: at as u32, len: (arena.len() - at) as u32 };
            records.push(RawRecord { offset: *offset, timestamp_ms: *timestamp_ms, key, payload, headers });
        }
        let (partition, arena) = (partition.key.clone(), arena.into());
        RawBatch { partition, start, end, arena, records, polled_ms: self.now.0, charge: Charge::default() }
    }
}

fn put(arena: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = arena.len() as u32;
    arena.extend_from_slice(bytes);
    Span { start, len: bytes.len() as u32 }
}
