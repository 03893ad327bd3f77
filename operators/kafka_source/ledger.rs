//! The source's ledger: which offsets each epoch carries (design D-4).
//!
//! The commit frontier (durable in the log, or published) comes back to the source by a data-free feedback edge and retires entries
//! here: offsets of epochs that it has passed may go to Kafka. The ledger cannot be wrong about filters, dedup or exchanges
//! downstream: it never looks at them.

use std::collections::BTreeMap;

use crate::coverage::PartitionKey;
use crate::epoch::Epoch;

/// Epochs that carry something, and what.
#[derive(Debug, Default)]
pub struct Ledger {
    offsets: BTreeMap<Epoch, BTreeMap<PartitionKey, i64>>,
    /// The next offset to commit of every owned partition, as far as it may be committed.
    committable: BTreeMap<PartitionKey, i64>,
}

impl Ledger {
    /// Notes a batch emitted in `epoch` that ends before offset `end`.
    pub fn emit(&mut self, epoch: Epoch, partition: &PartitionKey, end: i64) {
        let newest = self.offsets.last_key_value().map_or(Epoch(0), |(newest, _)| *newest);
        assert!(epoch >= newest, "epoch {epoch} is emitted after epoch {newest}");
        self.offsets.entry(epoch).or_default().insert(partition.clone(), end);
    }

    /// Retires the offsets of all epochs before `frontier` (`None`: of all); returns the positions that moved.
    pub fn retire_committable(&mut self, frontier: Option<Epoch>) -> BTreeMap<PartitionKey, i64> {
        let mut moved = BTreeMap::new();
        while let Some(entry) = self.offsets.first_entry() {
            if frontier.is_some_and(|frontier| *entry.key() >= frontier) {
                break;
            }
            moved.extend(entry.remove());
        }
        for (partition, end) in &moved {
            let before = self.committable.insert(partition.clone(), *end);
            assert!(before.is_none_or(|before| before <= *end), "{partition}: committable offset went back to {end}");
        }
        moved
    }

    /// The committable position of each of `partitions` that has one.
    pub fn committable(&self, partitions: &[PartitionKey]) -> Vec<(PartitionKey, i64)> {
        let position = |partition: &PartitionKey| Some((partition.clone(), *self.committable.get(partition)?));
        partitions.iter().filter_map(position).collect()
    }

    /// The committable positions of all owned partitions.
    pub fn all_committable(&self) -> Vec<(PartitionKey, i64)> {
        self.committable.iter().map(|(partition, end)| (partition.clone(), *end)).collect()
    }

    /// Emitted positions that are not committable yet, with the last one of each partition.
    pub fn outstanding(&self) -> BTreeMap<PartitionKey, i64> {
        self.offsets.values().flatten().map(|(partition, end)| (partition.clone(), *end)).collect()
    }

    /// Forgets the offsets of a partition that is no longer owned: its next owner may be elsewhere already.
    pub fn forget(&mut self, partition: &PartitionKey) {
        self.committable.remove(partition);
        for positions in self.offsets.values_mut() {
            positions.remove(partition);
        }
    }

    /// True when every emitted offset is committable.
    pub fn is_settled(&self) -> bool {
        self.offsets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::TopicKey;

    fn partition(number: i32) -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        PartitionKey { topic: topic.into(), partition: number }
    }

    #[test]
    fn an_offset_is_committable_only_after_the_frontier_passed_its_epoch() {
        let mut ledger = Ledger::default();
        ledger.emit(Epoch(20), &partition(0), 5);
        ledger.emit(Epoch(20), &partition(1), 7);
        ledger.emit(Epoch(40), &partition(0), 9);
        assert!(ledger.retire_committable(Some(Epoch(20))).is_empty());
        let moved = ledger.retire_committable(Some(Epoch(40)));
        assert_eq!(moved, BTreeMap::from([(partition(0), 5), (partition(1), 7)]));
        assert_eq!(ledger.committable(&[partition(0), partition(3)]), vec![(partition(0), 5)]);
        assert!(!ledger.is_settled());
        assert_eq!(ledger.retire_committable(None), BTreeMap::from([(partition(0), 9)]));
        assert!(ledger.is_settled());
    }

    #[test]
    fn a_forgotten_partition_is_never_committed() {
        let mut ledger = Ledger::default();
        ledger.emit(Epoch(20), &partition(0), 5);
        ledger.forget(&partition(0));
        assert!(ledger.retire_committable(None).is_empty());
        assert!(ledger.all_committable().is_empty());
    }
}
