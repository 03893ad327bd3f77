//! Warms up the dedup window for partitions that another process read before: their last records are read once more, for their keys.
//!
//! A consumer of its own, outside of the group, reads them; the group's consumer holds the partitions paused at their resume offset
//! meanwhile, so no record of theirs is decided before the window knows what came before. Partitions gained together wait for each
//! other: a duplicate may lie in another partition than its original.
//!
//! ```text
//! dating    one record is read at the resume offset (the last one before, rather): its time tells where the window reaches back to
//! reading   from the first record of that time up to the resume offset, less what this process has handled itself
//! warm      the partition is resumed
//! ```
//!
//! The time is that of a record and not the clock's: after a crash the group is behind, and what a late record duplicates is older
//! than a window before now. How far back that is, is the dedup window's business (`Config::reach_ms`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{info, warn};

use super::collector::{Collector, Message};
use super::consumer::{CALL_TIMEOUT, Places, Ports};
use super::headers;
use super::pool::ArenaPool;
use crate::batch::RecalledBatch;
use crate::budget::{Budget, Load};
use crate::coverage::{OffsetSet, PartitionKey};
use crate::kafka_client::{self, Login};

/// What is read ahead, in KiB: it comes on top of what the group's consumer may read ahead.
const PREFETCH_KIB: &str = "4096";
/// Between two lines that tell how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Between two attempts to ask for offsets.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How far back in record time from where a partition resumes.
    pub reach_ms: u64,
    /// Messages of all partitions gained at once: more than the window can remember would only push out each other.
    pub messages_max: u64,
}

/// A partition with a history, at its assignment.
#[derive(Clone, Debug)]
pub struct Gained {
    /// The partition.
    pub partition: PartitionKey,
    /// First offset that the group has handled and the broker still has.
    pub low: i64,
    /// Where it resumes.
    pub resume: i64,
    /// Offsets this process has handled itself: its window knows them.
    pub known: OffsetSet,
}

impl Gained {
    /// What is to be read if the window reaches back to `from`: less the known offsets at both ends. Those in between are read
    /// again, which the window notices.
    fn unknown(&self, from: i64) -> Range<i64> {
        let end = self.known.range_around(self.resume - 1).map_or(self.resume, |run| run.start);
        let from = from.max(self.low);
        let start = self.known.range_around(from).map_or(from, |run| run.end);
        start..end.max(start)
    }
}

/// Where a partition is on its way.
#[derive(Debug)]
enum Stage {
    Dating,
    /// Waits for the others; `None` where no record tells the time.
    Dated(Option<i64>),
    Reading {
        collector: Collector,
        end: i64,
    },
}

#[derive(Debug)]
struct Part {
    gained: Gained,
    stage: Stage,
}

impl Part {
    /// Where it is to be read from, if it is being read.
    fn next(&self) -> Option<i64> {
        match &self.stage {
            Stage::Dating => Some(self.gained.resume - 1),
            Stage::Dated(_) => None,
            Stage::Reading { collector, .. } => Some(collector.next()),
        }
    }
}

/// What a round of reading needs.
pub struct Round<'a> {
    /// Messages at most.
    pub messages_max: usize,
    /// Clock and budget.
    pub ports: &'a Ports,
    /// Where arenas come from.
    pub pool: &'a ArenaPool,
}

/// The partitions of one assignment on their way.
pub struct WarmUp {
    consumer: BaseConsumer,
    login: Login,
    config: Config,
    parts: Places<Part>,
    /// All it began with.
    gained: Places<Gained>,
    partitions: usize,
    /// End-of-partition events per partition number; see `note_end`.
    eofs: BTreeMap<i32, usize>,
    messages: u64,
    wanted: u64,
    began: Instant,
    told: Instant,
    asked: Option<Instant>,
}

impl WarmUp {
    /// Begins with those of `gained` that this process does not know all of; `None` if there is none.
    pub fn begin(client: &BTreeMap<String, String>, config: Config, gained: Vec<Gained>) -> Result<Option<Self>, String> {
        let gained: Vec<Gained> = gained.into_iter().filter(|gained| !gained.unknown(gained.low).is_empty()).collect();
        if gained.is_empty() {
            return Ok(None);
        }
        let (partitions, mut parts, mut all) = (gained.len(), Places::<Part>::new(), Places::<Gained>::new());
        for gained in gained {
            let (name, number) = (gained.partition.topic.name.clone(), gained.partition.partition);
            all.entry(name.clone()).or_default().insert(number, gained.clone());
            parts.entry(name).or_default().insert(number, Part { gained, stage: Stage::Dating });
        }
        let (consumer, login) = consumer(client).map_err(failed)?;
        consumer.assign(&positions(&parts)).map_err(failed)?;
        let now = Instant::now();
        Ok(Some(WarmUp {
            consumer,
            login,
            config,
            parts,
            gained: all,
            partitions,
            eofs: BTreeMap::new(),
            messages: 0,
            wanted: 0,
            began: now,
            told: now,
            asked: None,
        }))
    }

    /// True while the partition must not be read.
    pub fn holds(&self, topic: &str, partition: i32) -> bool {
        self.gained.get(topic).is_some_and(|topic| topic.contains_key(&partition))
    }

    /// The partitions that are held.
    pub fn gained(&self) -> impl Iterator<Item = &Gained> {
        self.gained.values().flat_map(BTreeMap::values)
    }

    /// The same, as the client names them.
    pub fn held(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for Gained { partition, .. } in self.gained() {
            list.add_partition(&partition.topic.name, partition.partition);
        }
        list
    }

    /// Forgets partitions that were taken away.
    pub fn remove(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            let (topic, number) = (element.topic(), element.partition());
            self.gained.get_mut(topic).map(|topic| topic.remove(&number));
            if self.parts.get_mut(topic).is_some_and(|topic| topic.remove(&number).is_some()) {
                self.stop_reading(topic, number);
            }
        }
    }

    /// True once all is read that had to be.
    pub fn is_done(&self) -> bool {
        self.parts.values().all(BTreeMap::is_empty)
    }

    /// Says how much it was.
    pub fn tell_end(&self, ports: &Ports) {
        let elapsed = self.began.elapsed();
        ports.stats.note_warm_up(elapsed);
        let (partitions, messages, seconds) = (self.partitions, self.messages, elapsed.as_secs_f64());
        info!(partitions, messages, seconds, "dedup window warmed up from Kafka");
    }

    /// Reads on.
    pub fn poll(&mut self, round: &Round<'_>) -> Result<Vec<RecalledBatch>, String> {
        self.login.renew(self.consumer.client());
        let mut batches = Vec::new();
        let now_ms = round.ports.clock.now_ms();
        for _ in 0..round.messages_max {
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    let (topic, number) = (message.topic(), message.partition());
                    let Some(part) = self.parts.get_mut(topic).and_then(|topic| topic.get_mut(&number)) else { continue };
                    let read = part.take(&message, round, now_ms);
                    self.messages += u64::from(read == Read::Taken || read == Read::Last);
                    if read == Read::Last || read == Read::Beyond {
                        batches.extend(finish(&mut self.parts, topic, number, round));
                        stop_reading(&self.consumer, topic, number);
                        read_again(&self.consumer, &self.parts, &mut self.eofs, number);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(number))) => batches.extend(self.note_end(number, round)),
                Some(Err(error)) => {
                    warn!(%error, "Kafka reports an error, warming up the dedup window goes on");
                    break;
                }
                None => break,
            }
            if round.ports.budget.is_full() {
                break;
            }
        }
        // Nothing stays open between rounds: it would count against the budget and could not drain.
        for part in self.parts.values_mut().flat_map(BTreeMap::values_mut) {
            if let Stage::Reading { collector, .. } = &mut part.stage {
                batches.extend(collector.close(round.pool).map(RecalledBatch));
            }
        }
        self.locate(now_ms, &round.ports.budget)?;
        self.tell_progress();
        Ok(batches)
    }

    /// The end of a partition stands in for records that nobody can see: transaction markers, compacted ones. The client names only
    /// the partition's number, so with several topics as many events are awaited as topics are being read at that number.
    fn note_end(&mut self, number: i32, round: &Round<'_>) -> Vec<RecalledBatch> {
        let is_read = |topic: &BTreeMap<i32, Part>| topic.get(&number).is_some_and(|part| part.next().is_some());
        let owners: Vec<Arc<str>> = self.parts.iter().filter(|(_, topic)| is_read(topic)).map(|(name, _)| name.clone()).collect();
        let seen = self.eofs.entry(number).or_default();
        *seen += 1;
        if *seen < owners.len() {
            return Vec::new();
        }
        self.eofs.remove(&number);
        let mut batches = Vec::new();
        for topic in owners {
            batches.extend(finish(&mut self.parts, &topic, number, round));
            self.stop_reading(&topic, number);
        }
        batches
    }

    fn stop_reading(&self, topic: &str, number: i32) {
        stop_reading(&self.consumer, topic, number);
    }

    /// Once all are dated: asks where their windows begin, and reads from there.
    fn locate(&mut self, now_ms: u64, budget: &Arc<Budget>) -> Result<(), String> {
        let mut parts = self.parts.values().flat_map(BTreeMap::values).peekable();
        let is_dated = parts.peek().is_some() && parts.all(|part| matches!(part.stage, Stage::Dated(_)));
        let is_soon = self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN_AFTER);
        if !is_dated || is_soon {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let first_offsets = match self.first_offsets(now_ms) {
            Ok(offsets) => offsets,
            Err(error) => {
                warn!(%error, "finding where the dedup window begins failed, trying again");
                return Ok(());
            }
        };
        self.begin_reading(&first_offsets, budget);
        self.consumer.assign(&positions(&self.parts)).map_err(failed)?;
        let (partitions, messages) = (self.partitions, self.wanted);
        info!(partitions, messages, "warming up the dedup window from Kafka");
        Ok(())
    }

    /// The first offset of each partition that lies inside its window.
    fn first_offsets(&self, now_ms: u64) -> KafkaResult<TopicPartitionList> {
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let mut times = TopicPartitionList::new();
        for part in self.parts.values().flat_map(BTreeMap::values) {
            let time_ms = match part.stage {
                Stage::Dated(Some(time_ms)) => time_ms.min(now_ms),
                _ => now_ms,
            };
            let from_ms = time_ms.saturating_sub_unsigned(self.config.reach_ms).max(0);
            let PartitionKey { topic, partition } = &part.gained.partition;
            times.add_partition_offset(&topic.name, *partition, Offset::Offset(from_ms))?;
        }
        self.consumer.offsets_for_times(times, CALL_TIMEOUT)
    }

    fn begin_reading(&mut self, first_offsets: &TopicPartitionList, budget: &Arc<Budget>) {
        let share = (self.config.messages_max / self.partitions.max(1) as u64).max(1);
        self.wanted = 0;
        for (name, topic) in &mut self.parts {
            topic.retain(|number, part| {
                let first = first_offsets.find_partition(name, *number).map(|element| element.offset());
                let oldest = part.gained.resume.saturating_sub_unsigned(share);
                let from = match (first, &part.stage) {
                    (Some(Offset::Offset(first)), _) => first.max(oldest),
                    // No record is that young, and none was seen.
                    (_, Stage::Dated(None)) => part.gained.resume,
                    // One was seen: the broker cannot tell offsets by time.
                    _ => oldest,
                };
                let unknown = part.gained.unknown(from);
                self.wanted += (unknown.end - unknown.start) as u64;
                let partition = part.gained.partition.clone();
                let lane = budget.lane(&partition);
                let collector = Collector::new(partition, unknown.start, lane);
                part.stage = Stage::Reading { collector, end: unknown.end };
                !unknown.is_empty()
            });
        }
    }

    fn tell_progress(&mut self) {
        if self.told.elapsed() >= PROGRESS_EVERY && !self.is_done() {
            self.told = Instant::now();
            let partitions: usize = self.parts.values().map(BTreeMap::len).sum();
            info!(partitions, messages = self.messages, of = self.wanted, "warming up the dedup window from Kafka");
        }
    }
}

fn failed(error: KafkaError) -> String {
    format!("reading back what a former owner read: {error}")
}

/// What a message was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// Nothing: not awaited.
    Passed,
    /// One of those wanted.
    Taken,
    /// The last one wanted.
    Last,
    /// Behind the last one wanted; or the one that tells the time.
    Beyond,
}

impl Part {
    fn take(&mut self, message: &BorrowedMessage<'_>, round: &Round<'_>, now_ms: u64) -> Read {
        let time_ms = message.timestamp().to_millis().unwrap_or(-1);
        match &mut self.stage {
            Stage::Dating => {
                self.stage = Stage::Dated((time_ms >= 0).then_some(time_ms));
                Read::Beyond
            }
            Stage::Dated(_) => Read::Passed,
            Stage::Reading { end, .. } if message.offset() >= *end => Read::Beyond,
            Stage::Reading { collector, end } => {
                let taken =
                    Message { offset: message.offset(), timestamp_ms: time_ms, key: message.key(), payload: message.payload() };
                let Some(bytes) = collector.push(&taken, headers::of(message), round.pool, now_ms) else { return Read::Passed };
                round.ports.budget.collect(Load { bytes, messages: 1 });
                if collector.next() >= *end { Read::Last } else { Read::Taken }
            }
        }
    }
}

/// Ends the stage of a partition: one that was read is warm, one that was being dated is dated.
fn finish(parts: &mut Places<Part>, topic: &str, number: i32, round: &Round<'_>) -> Option<RecalledBatch> {
    let topic = parts.get_mut(topic)?;
    let part = topic.get_mut(&number)?;
    match &mut part.stage {
        Stage::Dating => part.stage = Stage::Dated(None),
        Stage::Dated(_) => {}
        Stage::Reading { collector, .. } => {
            let batch = collector.close(round.pool).map(RecalledBatch);
            topic.remove(&number);
            return batch;
        }
    }
    None
}

/// What the client still has of a partition that is given up is thrown away by it, end-of-partition events included.
fn stop_reading(consumer: &BaseConsumer, topic: &str, number: i32) {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, number);
    if let Err(error) = consumer.incremental_unassign(&list) {
        warn!(%error, topic, number, "giving up a partition read for its keys failed");
    }
}

/// Whose end was seen at this number cannot be told once one of several has ended otherwise: the others are to say it again.
fn read_again(consumer: &BaseConsumer, parts: &Places<Part>, eofs: &mut BTreeMap<i32, usize>, number: i32) {
    if eofs.remove(&number).is_none() {
        return;
    }
    for (name, part) in parts.iter().filter_map(|(name, topic)| Some((name, topic.get(&number)?))) {
        let Some(next) = part.next() else { continue };
        stop_reading(consumer, name, number);
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(name, number, Offset::Offset(next));
        if let Err(error) = added.and_then(|()| consumer.incremental_assign(&list)) {
            warn!(%error, topic = %name, number, "reading a partition for its keys failed");
        }
    }
}

fn positions(parts: &Places<Part>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (name, topic) in parts {
        for (number, part) in topic {
            if let Some(next) = part.next() {
                list.add_partition_offset(name, *number, Offset::Offset(next))
                    .expect("an offset that was seen is a valid offset");
            }
        }
    }
    list
}

/// A consumer that joins no group. librdkafka wants a group's name all the same; nothing is ever committed.
fn consumer(client: &BTreeMap<String, String>) -> KafkaResult<(BaseConsumer, Login)> {
    let (mut config, login) = kafka_client::settings(client);
    config.set_log_level(RDKafkaLogLevel::Warning);
    config.remove("group.instance.id");
    let own = [
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "true"),
        // What retention removes meanwhile is not there to be remembered.
        ("auto.offset.reset", "earliest"),
        ("queued.max.messages.kbytes", PREFETCH_KIB),
        ("statistics.interval.ms", "0"),
    ];
    for (name, value) in own {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    login.renew(consumer.client());
    Ok((consumer, login))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::TopicKey;

    #[test]
    fn only_what_this_process_has_not_handled_is_read() {
        let check = |known: &[(i64, i64)], from: i64, expected: Range<i64>| {
            let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
            let mut set = OffsetSet::default();
            known.iter().for_each(|(start, end)| set.insert(*start..*end));
            let gained =
                Gained { partition: PartitionKey { topic: topic.into(), partition: 0 }, low: 10, resume: 100, known: set };
            assert_eq!(gained.unknown(from), expected, "{known:?} from {from}");
        };
        check(&[], 40, 40..100);
        // Retention has been there.
        check(&[], 0, 10..100);
        check(&[(0, 100)], 40, 100..100);
        check(&[(60, 100)], 40, 40..60);
        check(&[(30, 50)], 40, 50..100);
        // Handled before the partition went away and came back.
        check(&[(0, 50), (90, 120)], 40, 50..90);
        check(&[(60, 70)], 40, 40..100);
        // Nothing of the window is missing.
        check(&[(60, 100)], 80, 100..100);
    }
}
