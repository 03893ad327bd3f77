//! Partitions of topics that were deleted and created anew: the broker deletes the offsets of a deleted topic when it gets to it, which
//! may be after those of the new topic were committed, and the client does not commit again what it believes to be there. So for a
//! while the group is asked what it has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::{info, warn};

use super::{CALL_TIMEOUT, Thread, position_list};
use crate::coverage::PartitionKey;

/// How long a broker may take to forget a deleted topic.
const WATCH: Duration = Duration::from_secs(300);
/// How often the group is asked meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Such partitions, and what was handed to the client to be committed for each.
#[derive(Default)]
pub(super) struct Recreated {
    stored: BTreeMap<PartitionKey, Option<i64>>,
    until: Option<Instant>,
    next_look: Option<Instant>,
}

impl Recreated {
    /// Watches one that was assigned.
    pub(super) fn watch(&mut self, partition: PartitionKey, now: Instant) {
        self.stored.entry(partition).or_default();
        self.until = Some(now + WATCH);
        self.next_look = Some(now + LOOK_INTERVAL);
    }

    /// Notes what was handed to the client.
    pub(super) fn note_stored<'p>(&mut self, positions: impl Iterator<Item = &'p (PartitionKey, i64)>) {
        for (partition, position) in positions {
            if let Some(stored) = self.stored.get_mut(partition) {
                *stored = Some(*position);
            }
        }
    }

    /// What is to be asked for now, where it is time.
    fn due(&mut self, now: Instant) -> Vec<(PartitionKey, i64)> {
        if self.until.is_some_and(|until| until <= now) {
            *self = Recreated::default();
        }
        if self.next_look.is_none_or(|next| now < next) {
            return Vec::new();
        }
        self.next_look = Some(now + LOOK_INTERVAL);
        let stored = self.stored.iter().filter_map(|(partition, stored)| Some((partition.clone(), (*stored)?)));
        stored.collect()
    }
}

impl<W: Fn()> Thread<W> {
    /// Commits again what the broker has forgotten of topics that were created anew.
    pub(super) fn look_for_forgotten_offsets(&mut self) {
        let mut stored = self.recreated.due(Instant::now());
        stored.retain(|(partition, _)| self.collector_of(partition).is_some());
        if stored.is_empty() {
            return;
        }
        let committed = self.consumer().committed_offsets(position_list(stored.iter()), CALL_TIMEOUT);
        let Ok(committed) = committed else { return };
        let forgotten = forgotten(stored, &committed);
        if forgotten.is_empty() {
            return;
        }
        match self.consumer().commit(&position_list(forgotten.iter()), CommitMode::Sync) {
            Ok(()) => info!(
                partitions = forgotten.len(),
                "the broker had forgotten offsets of a topic that was created anew: committed again"
            ),
            Err(error) => warn!(%error, "offsets that the broker has forgotten are not committed again yet, trying again"),
        }
    }
}

/// Those of `stored` for which the group has nothing.
fn forgotten(stored: Vec<(PartitionKey, i64)>, committed: &TopicPartitionList) -> Vec<(PartitionKey, i64)> {
    let is_there = |(partition, _): &(PartitionKey, i64)| {
        let found = committed.find_partition(&partition.topic.name, partition.partition);
        found.is_some_and(|found| found.error().is_err() || found.offset().to_raw().is_some_and(|offset| offset >= 0))
    };
    stored.into_iter().filter(|stored| !is_there(stored)).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::topic_partition_list::Offset;

    use super::*;
    use crate::coverage::TopicKey;

    fn partition(number: i32) -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "topic".into(), id: "~1".into() };
        PartitionKey { topic: topic.into(), partition: number }
    }

    #[test]
    fn what_was_stored_is_asked_for_again_and_again_until_the_watch_ends() {
        let (mut recreated, start) = (Recreated::default(), Instant::now());
        assert!(recreated.due(start).is_empty());
        recreated.watch(partition(0), start);
        recreated.watch(partition(1), start);
        recreated.note_stored([(partition(0), 7), (partition(2), 9)].iter());
        assert!(recreated.due(start).is_empty(), "too early");
        assert_eq!(recreated.due(start + LOOK_INTERVAL), [(partition(0), 7)]);
        assert!(recreated.due(start + LOOK_INTERVAL).is_empty(), "just asked");
        recreated.note_stored([(partition(0), 8), (partition(1), 1)].iter());
        assert_eq!(recreated.due(start + 2 * LOOK_INTERVAL), [(partition(0), 8), (partition(1), 1)]);
        assert!(recreated.due(start + WATCH).is_empty());
        assert!(recreated.due(start + WATCH + LOOK_INTERVAL).is_empty());
    }

    #[test]
    fn only_what_the_group_has_nothing_for_is_committed_again() {
        let mut committed = TopicPartitionList::new();
        for (number, offset) in [(0, Offset::Offset(3)), (1, Offset::Invalid), (3, Offset::Offset(0))] {
            committed.add_partition_offset("topic", number, offset).unwrap();
        }
        let stored = [0, 1, 2, 3].map(|number| (partition(number), 5)).to_vec();
        assert_eq!(forgotten(stored, &committed), [(partition(1), 5), (partition(2), 5)]);
    }
}
