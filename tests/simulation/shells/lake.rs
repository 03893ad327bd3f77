//! What is published, and which duplicates there should be, written from the definition.

use std::collections::{BTreeMap, BTreeSet};

use openwit_operators::batch::EncodedBatch;
use openwit_operators::coverage::{Coverage, OffsetSet, PartitionKey};

use crate::model::{Kafka, PARTITIONS, index_of, partition, rows_of};

/// All that was delivered and acknowledged.
#[derive(Default)]
pub struct Lake {
    /// What is covered.
    pub covered: BTreeMap<PartitionKey, OffsetSet>,
    /// Offsets with rows, by partition.
    pub stored: [BTreeSet<i64>; PARTITIONS],
}

impl Lake {
    /// Takes a delivery, which must hold the rows of the messages it covers, each once, and nothing that was there before.
    pub fn publish(&mut self, batch: &EncodedBatch, kafka: &Kafka) {
        let mut rows: BTreeMap<(usize, i64), BTreeSet<i32>> = BTreeMap::new();
        for (index, offset, ordinal) in batch.batches.iter().flat_map(rows_of) {
            assert!(rows.entry((index, offset)).or_default().insert(ordinal), "row {ordinal} of {index}@{offset} is there twice");
        }
        for coverage in &batch.coverage {
            let (index, range) = (index_of(&coverage.partition), coverage.range());
            let covered = self.covered.entry(coverage.partition.clone()).or_default();
            assert!(
                range.is_empty() || !covered.overlaps(&range),
                "{range:?} of partition {index} is covered twice: {covered:?}"
            );
            covered.insert(range.clone());
            range.for_each(|offset| self.take(coverage, offset, rows.remove(&(index, offset)), kafka));
        }
        assert!(rows.is_empty(), "rows outside of the coverage: {rows:?}");
    }

    fn take(&mut self, coverage: &Coverage, offset: i64, ordinals: Option<BTreeSet<i32>>, kafka: &Kafka) {
        let index = index_of(&coverage.partition);
        let message = kafka.messages[index][offset as usize];
        let is_rejected = coverage.rejected.contains(&offset);
        assert_eq!(is_rejected, !message.is_valid, "{index}@{offset} is covered as rejected");
        let is_duplicate = coverage.duplicates.contains(&offset);
        match ordinals {
            Some(ordinals) => {
                assert!(!is_rejected && !is_duplicate, "{index}@{offset} has rows, and should have none");
                assert_eq!(ordinals.len(), message.rows(), "rows of {index}@{offset}");
                self.stored[index].insert(offset);
            }
            None => assert!(is_rejected || is_duplicate, "{index}@{offset} has no rows"),
        }
    }

    /// True if everything up to the end of each partition is covered.
    pub fn is_complete(&self, kafka: &Kafka) -> bool {
        (0..PARTITIONS).all(|index| self.is_covered(index, kafka.messages[index].len() as i64))
    }

    /// True if everything before `end` is covered.
    pub fn is_covered(&self, index: usize, end: i64) -> bool {
        let covered = self.covered.get(&partition(index));
        end == 0 || covered.is_some_and(|covered| covered.missing_in(0..end).is_empty())
    }

    /// Each valid content is stored once in its topic.
    pub fn check_contents(&self, kafka: &Kafka) {
        for topic in 0..PARTITIONS / 2 {
            let mut copies: BTreeMap<u64, usize> = BTreeMap::new();
            for index in [2 * topic, 2 * topic + 1] {
                for (offset, message) in kafka.messages[index].iter().enumerate().filter(|(_, message)| message.is_valid) {
                    *copies.entry(message.content).or_default() += usize::from(self.stored[index].contains(&(offset as i64)));
                }
            }
            let wrong: Vec<_> = copies.iter().filter(|(_, copies)| **copies != 1).collect();
            assert!(wrong.is_empty(), "contents of topic {topic} that are lost or doubled, with their copies: {wrong:?}");
        }
    }
}

/// A batch as the source emitted it.
#[derive(Clone, Copy, Debug)]
pub struct Emitted {
    /// Its epoch.
    pub epoch: u64,
    /// The partition's index.
    pub index: usize,
    /// Its first offset.
    pub start: i64,
    /// One past its last.
    pub end: i64,
}

/// The offsets that are stored if nothing crashes: of each content the first, by epoch, partition and offset.
pub fn winners(emitted: &[Emitted], kafka: &Kafka) -> [BTreeSet<i64>; PARTITIONS] {
    let mut emitted = emitted.to_vec();
    emitted.sort_by_key(|batch| (batch.epoch, partition(batch.index), batch.start));
    let (mut seen, mut winners) = (BTreeSet::new(), <[BTreeSet<i64>; PARTITIONS]>::default());
    for Emitted { index, start, end, .. } in emitted {
        for offset in start..end {
            let message = kafka.messages[index][offset as usize];
            if message.is_valid && seen.insert((index / 2, message.content)) {
                winners[index].insert(offset);
            }
        }
    }
    winners
}
