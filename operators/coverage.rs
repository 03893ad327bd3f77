//! Coverage: which offsets of which partitions a batch, a file or a commit accounts for (design D-5).
//!
//! A batch's coverage runs from the end of the partition's previous batch to its own last offset + 1, so the union of all coverage
//! has no gap unless a record was lost, and no overlap unless one was doubled. Every offset inside has exactly one disposition:
//!
//! ```text
//! stored     a record that became zero or more rows (everything not named below)
//! duplicate  dropped: its key was seen inside the dedup window
//! rejected   in the dead letter, with its reason
//! skipped    dropped by policy (tombstones), counted
//! absent     an offset Kafka does not hand out: compacted away, or a transaction marker
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What a topic is, beyond its name: a deleted and recreated topic starts its offsets over and is another topic (KIP-516).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicKey {
    /// Kafka's cluster id.
    pub cluster: Arc<str>,
    /// The topic's name.
    pub name: Arc<str>,
    /// The topic id where the broker tells it, else a local incarnation number; empty for the first.
    pub id: Arc<str>,
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionKey {
    /// The topic.
    pub topic: Arc<TopicKey>,
    /// The partition's number.
    pub partition: i32,
}

impl PartitionKey {
    /// A partition in one of the topics of a cluster that have had this name, the first of which is 0.
    pub fn of_incarnation(cluster: &Arc<str>, topic: &Arc<str>, partition: i32, incarnation: u32) -> Self {
        let id: Arc<str> = if incarnation == 0 { "".into() } else { format!("~{incarnation}").into() };
        PartitionKey { topic: Arc::new(TopicKey { cluster: cluster.clone(), name: topic.clone(), id }), partition }
    }
}

impl std::fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", self.topic.name, self.partition)
    }
}

/// The offsets one batch accounts for in one partition, and what became of those that were not stored.
///
/// Invariant: all listed offsets are ascending, lie in `start..end`, and no offset is listed twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The partition.
    pub partition: PartitionKey,
    /// First offset accounted for.
    pub start: i64,
    /// One past the last offset accounted for.
    pub end: i64,
    /// Offsets dropped as duplicates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub duplicates: Vec<i64>,
    /// Offsets in the dead letter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<i64>,
    /// Offsets dropped by policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<i64>,
    /// Ranges of offsets that Kafka does not hand out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Range<i64>>,
}

/// How many offsets of a coverage had which disposition. Their sum is the coverage's length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispositions {
    /// Records stored.
    pub stored: u64,
    /// Records dropped as duplicates.
    pub duplicates: u64,
    /// Records in the dead letter.
    pub rejected: u64,
    /// Records dropped by policy.
    pub skipped: u64,
    /// Offsets that held no record.
    pub absent: u64,
}

/// What became of one offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// Its record became zero or more rows.
    Stored,
    /// Its record was dropped: its key was seen inside the dedup window.
    Duplicate,
    /// Its record is in the dead letter.
    Rejected,
    /// Its record was dropped by policy.
    Skipped,
    /// Kafka does not hand it out.
    Absent,
}

impl std::ops::AddAssign for Dispositions {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.rejected += other.rejected;
        self.skipped += other.skipped;
        self.absent += other.absent;
    }
}

impl Coverage {
    /// Coverage of `range` in which every offset is stored.
    pub fn stored(partition: PartitionKey, range: Range<i64>) -> Self {
        let Range { start, end } = range;
        Coverage { partition, start, end, duplicates: vec![], rejected: vec![], skipped: vec![], absent: vec![] }
    }

    /// The offsets accounted for.
    pub fn range(&self) -> Range<i64> {
        self.start..self.end
    }

    /// What became of `offset`, if it is accounted for.
    pub fn disposition(&self, offset: i64) -> Option<Disposition> {
        let is_absent = |range: &Range<i64>| range.contains(&offset);
        match offset {
            _ if !self.range().contains(&offset) => None,
            _ if self.duplicates.contains(&offset) => Some(Disposition::Duplicate),
            _ if self.rejected.contains(&offset) => Some(Disposition::Rejected),
            _ if self.skipped.contains(&offset) => Some(Disposition::Skipped),
            _ if self.absent.iter().any(is_absent) => Some(Disposition::Absent),
            _ => Some(Disposition::Stored),
        }
    }

    /// How many offsets had which disposition.
    pub fn dispositions(&self) -> Dispositions {
        let duplicates = self.duplicates.len() as u64;
        let rejected = self.rejected.len() as u64;
        let skipped = self.skipped.len() as u64;
        let absent = self.absent.iter().map(|range| (range.end - range.start) as u64).sum::<u64>();
        let stored = (self.end - self.start) as u64 - duplicates - rejected - skipped - absent;
        Dispositions { stored, duplicates, rejected, skipped, absent }
    }

    /// The part of this coverage that lies in `range`, which may be empty.
    pub fn clip(&self, range: &Range<i64>) -> Coverage {
        let (start, end) = (self.start.max(range.start), self.end.min(range.end).max(self.start.max(range.start)));
        let inside = |offsets: &[i64]| offsets.iter().copied().filter(|offset| (start..end).contains(offset)).collect();
        let clipped = self.absent.iter().map(|absent| absent.start.max(start)..absent.end.min(end));
        Coverage {
            partition: self.partition.clone(),
            start,
            end,
            duplicates: inside(&self.duplicates),
            rejected: inside(&self.rejected),
            skipped: inside(&self.skipped),
            absent: clipped.filter(|range| range.start < range.end).collect(),
        }
    }
}

/// A set of offsets kept as disjoint, non-adjacent, ascending ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetSet {
    /// start -> end, both as in `Range`.
    ranges: BTreeMap<i64, i64>,
}

impl OffsetSet {
    /// Adds `range`; offsets already present stay present once.
    pub fn insert(&mut self, range: Range<i64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Ranges touching or overlapping the new one are swallowed by it.
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    /// Removes `range`; what lies around it stays.
    pub fn remove(&mut self, range: Range<i64>) {
        if range.start >= range.end {
            return;
        }
        while let Some((&start, &end)) = self.ranges.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
            }
        }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = Range<i64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// How many ranges there are: what the set costs in memory.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Removes all offsets below `offset`.
    pub fn remove_below(&mut self, offset: i64) {
        let kept = self.ranges.split_off(&offset);
        let straddling = self.ranges.last_key_value().map(|(_, &end)| end).filter(|&end| end > offset);
        self.ranges = kept;
        if let Some(end) = straddling {
            self.ranges.insert(offset, end);
        }
    }

    /// True if no offset is present.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The range that contains `offset`.
    pub fn range_around(&self, offset: i64) -> Option<Range<i64>> {
        let (&start, &end) = self.ranges.range(..=offset).next_back()?;
        (offset < end).then_some(start..end)
    }

    /// The parts of `range` that are not in this set, ascending.
    pub fn missing_in(&self, range: Range<i64>) -> Vec<Range<i64>> {
        let mut missing = Vec::new();
        let mut next = range.start;
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        for (&start, &end) in self.ranges.range(first..range.end.max(first)) {
            if start > next {
                missing.push(next..start);
            }
            next = next.max(end);
        }
        if next < range.end {
            missing.push(next..range.end);
        }
        missing
    }

    /// True if any offset of `range` is present.
    pub fn overlaps(&self, range: &Range<i64>) -> bool {
        range.start < range.end && self.missing_in(range.clone()) != [range.clone()]
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of one range of offsets are meant")]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn partition() -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        PartitionKey { topic: Arc::new(topic), partition: 0 }
    }

    #[test]
    fn clipping_keeps_every_disposition_of_the_offsets_inside() {
        let mut coverage = Coverage::stored(partition(), 10..20);
        coverage.duplicates = vec![11, 15];
        coverage.rejected = vec![12];
        coverage.absent = vec![16..19];
        let clipped = coverage.clip(&(12..18));
        assert_eq!(clipped.range(), 12..18);
        let expected = Dispositions { stored: 2, duplicates: 1, rejected: 1, skipped: 0, absent: 2 };
        assert_eq!(clipped.dispositions(), expected);
        let became: Vec<_> = (9..21).map(|offset| coverage.disposition(offset)).collect();
        let (stored, absent) = (Some(Disposition::Stored), Some(Disposition::Absent));
        let (duplicate, rejected) = (Some(Disposition::Duplicate), Some(Disposition::Rejected));
        let whole = [stored, duplicate, rejected, stored, stored, duplicate, absent, absent, absent, stored];
        assert_eq!((&became[1..11], became[0], became[11]), (&whole[..], None, None));
        assert!(coverage.clip(&(30..40)).range().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn offset_sets_agree_with_a_set_of_single_offsets(
            ranges in proptest::collection::vec((0i64..60, 0i64..12, 0u8..4), 0..20), probe in (0i64..60, 0i64..20),
        ) {
            let mut set = OffsetSet::default();
            let mut model = BTreeSet::new();
            for (start, length, remove) in ranges {
                if remove == 0 {
                    set.remove(start..start + length);
                    model.retain(|offset| !(start..start + length).contains(offset));
                } else {
                    set.insert(start..start + length);
                    model.extend(start..start + length);
                }
            }
            let listed: Vec<i64> = set.ranges().flatten().collect();
            proptest::prop_assert_eq!(&listed, &model.iter().copied().collect::<Vec<_>>());
            let probe = probe.0..probe.0 + probe.1;
            let missing: Vec<i64> = set.missing_in(probe.clone()).into_iter().flatten().collect();
            let expected: Vec<i64> = probe.clone().filter(|offset| !model.contains(offset)).collect();
            proptest::prop_assert_eq!(missing, expected);
            proptest::prop_assert_eq!(set.overlaps(&probe), probe.clone().any(|offset| model.contains(&offset)));
            let around = set.range_around(probe.start).map(|range| range.contains(&probe.start));
            proptest::prop_assert_eq!(around.unwrap_or(false), model.contains(&probe.start));
            set.remove_below(probe.start);
            let kept: Vec<i64> = set.ranges().flatten().collect();
            proptest::prop_assert_eq!(kept, model.range(probe.start..).copied().collect::<Vec<_>>());
        }
    }
}
