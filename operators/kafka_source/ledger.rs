//! The source's ledger: which offsets and bytes each epoch carries (design D-4).
//!
//! Two frontiers come back to the source by data-free feedback edges and retire entries here:
//!
//! ```text
//! emitted >= delivered   the received frontier: storage has the rows, their memory is free
//! emitted >= committed   the commit frontier: durable in the WAL (or published), offsets may go to Kafka
//! ```
//!
//! The ledger cannot be wrong about filters, dedup or exchanges downstream: it never looks at them.

use std::collections::BTreeMap;

use crate::coverage::PartitionKey;
use crate::epoch::Epoch;

/// What is in flight: emitted and not yet delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Arena bytes.
    pub bytes: usize,
    /// Messages.
    pub messages: usize,
}

/// Epochs that carry something, and what.
#[derive(Debug, Default)]
pub struct Ledger {
    offsets: BTreeMap<Epoch, BTreeMap<PartitionKey, i64>>,
    load: BTreeMap<Epoch, InFlight>,
    in_flight: InFlight,
    /// The next offset to commit of every owned partition, as far as it may be committed.
    committable: BTreeMap<PartitionKey, i64>,
}

impl Ledger {
    /// Notes a batch emitted in `epoch` that ends before offset `end`.
    pub fn emit(&mut self, epoch: Epoch, partition: &PartitionKey, end: i64, load: InFlight) {
        let newest = self.load.last_key_value().map_or(Epoch(0), |(newest, _)| *newest);
        assert!(epoch >= newest, "epoch {epoch} is emitted after epoch {newest}");
        self.offsets.entry(epoch).or_default().insert(partition.clone(), end);
        let entry = self.load.entry(epoch).or_default();
        entry.bytes += load.bytes;
        entry.messages += load.messages;
        self.in_flight.bytes += load.bytes;
        self.in_flight.messages += load.messages;
    }

    /// Retires the memory of all epochs before `frontier` (`None`: of all); returns what became free.
    pub fn retire_delivered(&mut self, frontier: Option<Epoch>) -> InFlight {
        let mut freed = InFlight::default();
        while let Some(entry) = self.load.first_entry() {
            if frontier.is_some_and(|frontier| *entry.key() >= frontier) {
                break;
            }
            let load = entry.remove();
            freed.bytes += load.bytes;
            freed.messages += load.messages;
        }
        self.in_flight.bytes -= freed.bytes;
        self.in_flight.messages -= freed.messages;
        freed
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

    /// What is emitted and not delivered.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight
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
        let load = InFlight { bytes: 10, messages: 1 };
        ledger.emit(Epoch(20), &partition(0), 5, load);
        ledger.emit(Epoch(20), &partition(1), 7, load);
        ledger.emit(Epoch(40), &partition(0), 9, load);
        assert!(ledger.retire_committable(Some(Epoch(20))).is_empty());
        let moved = ledger.retire_committable(Some(Epoch(40)));
        assert_eq!(moved, BTreeMap::from([(partition(0), 5), (partition(1), 7)]));
        assert_eq!(ledger.committable(&[partition(0), partition(3)]), vec![(partition(0), 5)]);
        assert!(!ledger.is_settled());
        assert_eq!(ledger.retire_committable(None), BTreeMap::from([(partition(0), 9)]));
        assert!(ledger.is_settled());
    }

    #[test]
    fn memory_is_freed_by_the_received_frontier_alone() {
        let mut ledger = Ledger::default();
        ledger.emit(Epoch(20), &partition(0), 5, InFlight { bytes: 10, messages: 1 });
        ledger.emit(Epoch(40), &partition(0), 6, InFlight { bytes: 3, messages: 2 });
        ledger.retire_committable(None);
        assert_eq!(ledger.in_flight(), InFlight { bytes: 13, messages: 3 });
        assert_eq!(ledger.retire_delivered(Some(Epoch(40))), InFlight { bytes: 10, messages: 1 });
        assert_eq!(ledger.in_flight(), InFlight { bytes: 3, messages: 2 });
    }

    #[test]
    fn a_forgotten_partition_is_never_committed() {
        let mut ledger = Ledger::default();
        ledger.emit(Epoch(20), &partition(0), 5, InFlight::default());
        ledger.forget(&partition(0));
        assert!(ledger.retire_committable(None).is_empty());
        assert!(ledger.all_committable().is_empty());
    }
}
