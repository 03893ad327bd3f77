//! With `until_end`: when every partition is at the end offset that it had at the start, whoever of the group has read it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::{Event, Thread};

/// Between two questions to the group, while only partitions of other members are left.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How long an answer may take: the thread polls nothing meanwhile.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

impl<W: Fn()> Thread<W> {
    /// The end offset may be a transaction marker, which is never handed out: the end-of-partition event stands in for it. The client
    /// names only the partition's number, so with several topics as many events are awaited as topics own that number.
    pub(super) fn note_end_of_partition(&mut self, number: i32) {
        let Some(ends) = &mut self.ends else { return };
        let seen = self.eofs.entry(number).or_default();
        *seen += 1;
        let owners: Vec<&Arc<str>> =
            self.collectors.iter().filter(|(_, topic)| topic.contains_key(&number)).map(|(name, _)| name).collect();
        if *seen >= owners.len() {
            for topic in owners {
                ends.get_mut(topic).and_then(|topic| topic.remove(&number));
            }
            self.check_ended();
        }
    }

    /// With `until_end`: hands out what is collected and says so once every partition is at its end.
    pub(super) fn check_ended(&mut self) {
        let Some(ends) = &mut self.ends else { return };
        for (name, partitions) in ends.iter_mut() {
            let Some(topic) = self.collectors.get(name) else { continue };
            partitions.retain(|partition, end| topic.get(partition).is_none_or(|collector| collector.next() < *end));
        }
        ends.retain(|_, partitions| !partitions.is_empty());
        if ends.is_empty() {
            self.ends = None;
            self.close_all_batches();
            self.send(Event::Ended);
        }
    }

    /// Partitions that other members have are over when the group has committed their ends.
    pub(super) fn look_for_ends_elsewhere(&mut self) {
        let Some(ends) = &self.ends else { return };
        if self.ends_asked_at.is_none_or(|asked_at| asked_at.elapsed() < ASK_INTERVAL) {
            return;
        }
        let is_own = |topic: &str, partition: i32| self.collectors.get(topic).is_some_and(|own| own.contains_key(&partition));
        let mut others = TopicPartitionList::new();
        for (topic, partitions) in ends {
            for partition in partitions.keys() {
                if is_own(topic, *partition) {
                    return;
                }
                others.add_partition(topic, *partition);
            }
        }
        self.ends_asked_at = Some(Instant::now());
        let Ok(committed) = self.consumer().committed_offsets(others, ANSWER_WAIT) else { return };
        let mut reached = Vec::new();
        for element in committed.elements() {
            let (topic, partition): (Arc<str>, i32) = (element.topic().into(), element.partition());
            let end = self.ends.as_ref().and_then(|ends| ends.get(&topic)?.get(&partition).copied());
            let (Some(end), Offset::Offset(committed)) = (end, element.offset()) else { continue };
            // Beyond what the topic has, it is of another topic that had this name.
            let has = |high: i64| committed == end || committed <= high;
            if committed >= end
                && self.consumer().fetch_watermarks(&topic, partition, ANSWER_WAIT).is_ok_and(|(_, high)| has(high))
            {
                reached.push((topic, partition));
            }
        }
        for (topic, partition) in reached {
            self.ends.as_mut().and_then(|ends| ends.get_mut(&topic)?.remove(&partition));
        }
        self.check_ended();
    }
}
