//! Backpressure: when nothing is read, and which partitions are paused.
//!
//! Two bounds, of which the narrower one acts first: each partition's share of the budget (`gate`), and the whole budget. Where the whole
//! is full nothing is read, and after a second all partitions are paused.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::collector::Collector;
use super::super::gate::Turn;
use super::{KafkaResult, Ordering, Thread};
use crate::budget::Load;
use crate::coverage::PartitionKey;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::{info, warn};

/// Longer blocks pause the partitions: a pause throws the client's prefetched messages away, so it is not for short ones.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
/// How often it is told that partitions wait.
const TOLD_EVERY: Duration = Duration::from_secs(10);

impl<W: Fn()> Thread<W> {
    /// Waits while the budget is full, or a partition over its share; true if nothing should be read now.
    pub(super) fn wait_for_room(&mut self) -> Result<bool, String> {
        if self.is_stopping {
            self.serve_group()?;
            return Ok(true);
        }
        self.obey_quotas();
        self.resume_drained();
        if self.blocked_since.is_some() || self.ports.budget.is_full() {
            return self.wait_for_budget();
        }
        let mut gate = std::mem::take(&mut self.gate);
        let open = |partition: &PartitionKey| self.collector_of(partition).map_or(Load::default(), Collector::open);
        let turn = gate.turn(open, Instant::now());
        self.gate = gate;
        match turn {
            Turn::Read => return Ok(false),
            Turn::Stand => {}
            Turn::Close(partition) => self.close_batch_of(&partition),
            Turn::Pause(partition) => {
                self.close_batch_of(&partition);
                self.pause_alone(&partition);
                return Ok(false);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
        Ok(true)
    }

    fn wait_for_budget(&mut self) -> Result<bool, String> {
        let Some(since) = self.blocked_since else {
            self.ports.stats.buffer_full.fetch_add(1, Ordering::Relaxed);
            self.blocked_since = Some(Instant::now());
            return Ok(true);
        };
        // Collected messages count against the budget and cannot drain by themselves: they are what may be filling it.
        self.close_all_batches();
        if self.ports.budget.has_room() {
            self.blocked_since = None;
            if self.is_paused {
                self.pause(false);
            }
            return Ok(false);
        }
        if !self.is_paused && since.elapsed() > PAUSE_AFTER {
            self.ports.stats.pauses.fetch_add(1, Ordering::Relaxed);
            self.pause(true);
        }
        if self.is_paused {
            self.serve_group()?;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Polls paused partitions, so that rebalances and commits are served; hardly ever a message prefetched before the pause comes.
    fn serve_group(&mut self) -> Result<(), String> {
        self.poll_up_to(1)
    }

    /// Pauses all partitions, or resumes those that do not wait for something of their own.
    pub(super) fn pause(&mut self, pause: bool) {
        let paused = self.consumer().assignment().and_then(|assigned| match pause {
            true => self.consumer().pause(&assigned),
            false => self.resume(&assigned),
        });
        if let Err(error) = paused {
            warn!(%error, pause, "pausing or resuming partitions failed");
        }
        self.is_paused = pause;
    }

    /// Pauses one partition; who calls it remembers why.
    pub(super) fn pause_alone(&mut self, partition: &PartitionKey) {
        self.ports.stats.flows.note_pause(partition);
        if let Err(error) = self.consumer().pause(&list_of(partition)) {
            warn!(%error, %partition, "pausing a partition failed");
        }
    }

    fn resume_drained(&mut self) {
        let drained = self.gate.take_drained();
        self.resume_alone(&drained);
        self.tell_of_waiting();
    }

    /// Resumes those that wait for nothing else.
    pub(super) fn resume_alone(&mut self, partitions: &[PartitionKey]) {
        for partition in partitions {
            if self.waits_for_itself(partition) {
                continue;
            }
            self.ports.stats.flows.note_resume(partition);
            if !self.is_paused
                && let Err(error) = self.resume(&list_of(partition))
            {
                warn!(%error, %partition, "resuming a partition failed");
            }
        }
    }

    /// True while a partition is paused alone, for its share of the buffer or for a quota.
    pub(super) fn waits_for_itself(&self, partition: &PartitionKey) -> bool {
        self.gate.waits(partition) || self.throttle.waits(partition)
    }

    /// Resumes those of `list` that wait for nothing any more.
    pub(super) fn resume(&mut self, list: &TopicPartitionList) -> KafkaResult<()> {
        let mut free = TopicPartitionList::new();
        for element in list.elements() {
            if !self.is_held(element.topic(), element.partition()) && !self.waits(element.topic(), element.partition()) {
                free.add_partition(element.topic(), element.partition());
            }
        }
        self.hear_ends_again(&free)?;
        self.consumer().resume(&free)
    }

    /// The client says the end of a resumed partition once more, and names only its number. Where an end was heard at that number
    /// already, whose it was cannot be told: all others are to say theirs again, too.
    fn hear_ends_again(&mut self, resumed: &TopicPartitionList) -> KafkaResult<()> {
        let numbers: BTreeSet<i32> = resumed.elements().iter().map(|element| element.partition()).collect();
        let numbers: Vec<i32> = numbers.into_iter().filter(|number| self.eofs.remove(number).is_some()).collect();
        if self.ends.is_none() || numbers.is_empty() {
            return Ok(());
        }
        let mut others = TopicPartitionList::new();
        for (topic, partitions) in &self.collectors {
            for number in numbers.iter().filter(|number| partitions.contains_key(number)) {
                let is_free = !self.is_held(topic, *number) && !self.waits(topic, *number);
                if is_free && resumed.find_partition(topic, *number).is_none() {
                    others.add_partition(topic, *number);
                }
            }
        }
        self.consumer().pause(&others)?;
        self.consumer().resume(&others)
    }

    /// True while a partition is paused alone.
    fn waits(&self, topic: &str, partition: i32) -> bool {
        let collector = self.collectors.get(topic).and_then(|topic| topic.get(&partition));
        collector.is_some_and(|collector| self.waits_for_itself(collector.partition()))
    }

    pub(super) fn close_batch_of(&mut self, partition: &PartitionKey) {
        let topic = self.collectors.get_mut(&partition.topic.name);
        let collector = topic.and_then(|topic| topic.get_mut(&partition.partition));
        if let Some(batch) = collector.and_then(|collector| collector.close(&self.config.pool)) {
            self.emit(batch);
        }
    }

    fn tell_of_waiting(&mut self) {
        if self.told_of_waiting.elapsed() < TOLD_EVERY {
            return;
        }
        self.told_of_waiting = Instant::now();
        let flows = self.ports.stats.flows.partitions();
        let paused = flows.values().filter(|flow| flow.is_paused).count();
        let Some((partition, flow)) =
            flows.iter().filter(|(_, flow)| flow.is_paused).max_by_key(|(_, flow)| flow.in_flight.bytes)
        else {
            return;
        };
        let Load { bytes, messages } = self.ports.budget.in_flight();
        let largest_bytes = flow.in_flight.bytes;
        info!(paused, bytes, messages, largest = %partition, largest_bytes, "partitions wait until what was read of them has drained");
    }
}

fn list_of(partition: &PartitionKey) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition(&partition.topic.name, partition.partition);
    list
}
