//! `kafka_range_source`: reads a range of Kafka's offsets, or of its timestamps, as a source, and ends. It joins no group and commits nothing.
//!
//! # In
//! Nothing.
//!
//! # Out
//! `RawBatch`: all messages of the range, in epochs of their Kafka timestamps.
//!
//! # Holds
//! What the feed of `capture_source` holds; on its thread, of each partition one batch that is being filled, and what the client has fetched ahead:
//! `PREFETCH_BYTES` over all partitions.
//!
//! # Closes when
//! Every partition has been read to the end of its range, or the process is told to stop; then what was read of the epoch that is open goes on.
//!
//! # Fails when
//! The range cannot be read as it was asked for: a topic or partition that is not there, offsets that retention has removed or the
//! partition has not reached. Brokers that are away are waited for, and told.
//!
//! # Invariants
//! - Batches, their cuts and their epochs are a function of the messages in the range: neither the number of workers nor the speed of the
//!   brokers matters. A range that is read again gives the same.
//! - Within a partition epochs never go back, though timestamps may.
//! - No epoch has more than about `EPOCH_BYTES`, however many messages have one timestamp.
//! - Offsets in the range that Kafka does not hand out are accounted for by the batch behind them, at the end by the last one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use crate::batch::RawBatch;
use crate::capture_source::{Feed, FeedPorts, Speed};
use crate::epoch::Epoch;
use crate::kafka_source::consumer::Covered;
use crate::kafka_source::topics::TopicPatterns;

mod reader;

#[cfg(test)]
mod tests;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "kafka_range_source";

/// Messages of a batch.
const BATCH_RECORDS: usize = 1_000;
/// Bytes of a batch, unless one message has more.
const BATCH_BYTES: usize = 512 << 10;
/// Bytes of an epoch: what is in memory is let go when its epoch is closed.
const EPOCH_BYTES: usize = 16 << 20;
/// Bytes that the client fetches ahead, over all partitions.
const PREFETCH_BYTES: usize = 64 << 20;

/// Which messages are read.
#[derive(Clone, Debug)]
pub enum Ranges {
    /// Those of all partitions of these topics whose timestamp is at least the first and below the second, in Unix milliseconds. Where a
    /// timestamp is missing there is no such bound; the end is at most what the partition has when reading begins.
    Times(TopicPatterns, Option<i64>, Option<i64>),
    /// Those at these offsets.
    Offsets(Vec<OffsetRange>),
}

/// Offsets of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset; the oldest that the broker has by default.
    pub start: Option<i64>,
    /// One past the last offset; what the partition has when reading begins by default.
    pub end: Option<i64>,
}

impl std::str::FromStr for OffsetRange {
    type Err = String;

    /// `TOPIC[PARTITION]=START..END`, where either end may be left out.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` is not TOPIC[PARTITION]=START..END, as in orders.eu[3]=1000..2000");
        let (place, offsets) = text.split_once('=').ok_or_else(form)?;
        let (topic, partition) = place.strip_suffix(']').and_then(|place| place.rsplit_once('[')).ok_or_else(form)?;
        let partition = partition.parse().ok().filter(|partition| *partition >= 0).ok_or_else(form)?;
        let (start, end) = offsets.split_once("..").ok_or_else(form)?;
        let offset = |text: &str| match text {
            "" => Ok(None),
            digits => digits.parse().ok().filter(|offset| *offset >= 0).map(Some).ok_or_else(form),
        };
        let (start, end) = (offset(start)?, offset(end)?);
        if topic.is_empty() {
            return Err(form());
        }
        match (start, end) {
            (Some(start), Some(end)) if start >= end => Err(format!("`{text}` is empty: the end is one past the last offset")),
            _ => Ok(OffsetRange { topic: topic.to_owned(), partition, start, end }),
        }
    }
}

impl OffsetRange {
    /// Reads a list of them. A partition that is named twice is refused.
    pub fn list(texts: &[String]) -> Result<Vec<Self>, String> {
        let ranges = texts.iter().map(|text| text.parse()).collect::<Result<Vec<OffsetRange>, _>>()?;
        let mut seen = std::collections::BTreeSet::new();
        match ranges.iter().find(|range| !seen.insert((&range.topic, range.partition))) {
            Some(twice) => Err(format!("{}[{}] is named twice", twice.topic, twice.partition)),
            None => Ok(ranges),
        }
    }
}

/// What is read, and how fast.
#[derive(Clone, Debug)]
pub struct Config {
    /// librdkafka properties: brokers, security.
    pub client: BTreeMap<String, String>,
    /// Which messages.
    pub ranges: Ranges,
    /// Length of an epoch in milliseconds.
    pub epoch_interval_ms: u64,
    /// How fast.
    pub speed: Speed,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Offsets in all ranges.
    pub total_offsets: AtomicU64,
    /// Offsets of them that were read, or passed over as Kafka does not hand them out.
    pub read_offsets: AtomicU64,
    /// Batches.
    pub batches: AtomicU64,
    /// Messages.
    pub records: AtomicU64,
    /// Their key, payload and header bytes.
    pub read_bytes: AtomicU64,
}

/// Starts the thread that reads. `covered` tells which topic of a name it is, where several have had it.
pub fn start(
    config: Config,
    ports: FeedPorts,
    covered: Arc<dyn Covered>,
    stats: Arc<Stats>,
) -> std::io::Result<(Arc<Feed<RawBatch>>, JoinHandle<()>)> {
    let (speed, health) = (config.speed, ports.health.clone());
    Feed::read_by(NAME, speed, ports, move |put| {
        let is_over = || health.failed() || health.stopping();
        reader::read(&config, &*covered, &stats, &is_over, put)
    })
}

/// The epochs of one partition's messages, in their order.
#[derive(Clone, Copy, Debug)]
struct Epochs {
    interval_ms: u64,
    bytes_max: usize,
    current: Epoch,
    bytes: usize,
}

impl Epochs {
    /// Of a partition that is read with `partitions` - 1 others.
    fn new(interval_ms: u64, partitions: usize) -> Self {
        let bytes_max = (EPOCH_BYTES / partitions.max(1)).max(64 << 10);
        Epochs { interval_ms: interval_ms.max(1), bytes_max, current: Epoch(0), bytes: 0 }
    }

    /// The epoch of the partition's next message: that of its time, unless the one before was later, or the epoch is full.
    fn place(&mut self, timestamp_ms: i64, bytes: usize) -> Epoch {
        let time = u64::try_from(timestamp_ms).map_or(Epoch(0), |time| Epoch(time - time % self.interval_ms));
        let is_full = self.bytes > 0 && self.bytes.saturating_add(bytes) > self.bytes_max;
        let least = if is_full { Epoch(self.current.0 + 1) } else { self.current };
        if time.max(least) > self.current {
            (self.current, self.bytes) = (time.max(least), 0);
        }
        self.bytes += bytes;
        self.current
    }
}

/// What is to be read of a partition, of which the broker has `there`, where the offsets `asked` were asked for.
fn range_of(place: &str, asked: (Option<i64>, Option<i64>), there: Range<i64>) -> Result<Range<i64>, String> {
    let (start, end) = (asked.0.unwrap_or(there.start), asked.1.unwrap_or(there.end));
    if start < there.start {
        return Err(format!("{place}: offset {start} is gone: retention has removed all before {}", there.start));
    }
    if end > there.end {
        return Err(format!("{place}: offset {} is not there yet: the partition ends at {}", end - 1, there.end));
    }
    Ok(start..end.max(start))
}
