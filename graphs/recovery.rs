//! What a start finds durable, in the write-ahead logs and in the catalog: where partitions resume.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use openwit_operators::catalog_commit::registrar::{Answer, Registrar, Request};
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::kafka_source::consumer::Covered;
use openwit_operators::wal_commit::recovery::Recovery;
use serde::{Deserialize, Serialize};

/// Offsets that are durable somewhere: in the log of a process, or in the catalog.
pub struct Durable {
    logged: Mutex<Logged>,
    catalog: Option<Registrar>,
}

/// What logs had in them at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// Offsets by partition. In pairs, as the text in which it travels has no other keys than texts.
    offsets: Vec<(PartitionKey, OffsetSet)>,
    /// One of the logs lost records that were acknowledged.
    lost_records: bool,
}

impl Logged {
    /// Adds what another log had in it.
    fn join(&mut self, other: Logged) {
        let mut offsets: BTreeMap<PartitionKey, OffsetSet> = std::mem::take(&mut self.offsets).into_iter().collect();
        for (partition, more) in other.offsets {
            let known = offsets.entry(partition).or_default();
            more.ranges().for_each(|range| known.insert(range));
        }
        self.offsets = offsets.into_iter().collect();
        self.lost_records |= other.lost_records;
    }

    fn of(&self, partition: &PartitionKey) -> OffsetSet {
        let found = self.offsets.binary_search_by(|(known, _)| known.cmp(partition));
        found.map(|position| self.offsets[position].1.clone()).unwrap_or_default()
    }
}

impl Durable {
    /// Joins what the log covers with the catalog, which is asked anew at every assignment: other nodes write to it. A graph may have
    /// neither.
    pub fn new(log: Option<&Recovery>, catalog: Option<Registrar>) -> Self {
        let offsets = log.map(|log| log.coverage.clone()).unwrap_or_default().into_iter().collect();
        let lost_records = log.is_some_and(|log| log.report.lost_records());
        Durable { logged: Mutex::new(Logged { offsets, lost_records }), catalog }
    }

    /// What this process's log had in it, and those of others that have joined.
    pub fn logged(&self) -> Logged {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds what the log of another process of the cluster had in it: that process stores it, whoever is given the partition. It would be
    /// judged twice otherwise, and not alike where one log has a record and another one's has not the record that it was a duplicate of.
    pub fn join(&self, other: Logged) {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).join(other);
    }
}

impl Covered for Durable {
    fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String> {
        let mut covered = match self.catalog.as_ref().map(|catalog| catalog.ask(Request::Covered(partition.clone()))) {
            None => OffsetSet::default(),
            Some(Some(Answer::Covered(covered))) => covered,
            Some(Some(Answer::Failed(message))) => return Err(message),
            Some(_) => return Err("the catalog's thread has ended".into()),
        };
        for range in self.remembered(partition).ranges() {
            covered.insert(range);
        }
        Ok(covered)
    }

    fn remembered(&self, partition: &PartitionKey) -> OffsetSet {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).of(partition)
    }

    fn log_lost_records(&self) -> bool {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).lost_records
    }
}

#[cfg(test)]
mod tests {
    use openwit_operators::coverage::TopicKey;

    use super::*;

    fn partition(number: i32) -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        PartitionKey { topic: topic.into(), partition: number }
    }

    fn logged(offsets: &[(i32, std::ops::Range<i64>)], lost_records: bool) -> Logged {
        let mut joined = Logged::default();
        for (number, range) in offsets {
            let mut set = OffsetSet::default();
            set.insert(range.clone());
            joined.join(Logged { offsets: vec![(partition(*number), set)], lost_records });
        }
        joined
    }

    #[test]
    fn what_the_log_of_another_process_holds_is_covered_here_too_whoever_is_given_the_partition() {
        let durable = Durable::new(None, None);
        durable.join(logged(&[(1, 5..8), (0, 0..3)], false));
        assert!(!durable.log_lost_records());
        let other = logged(&[(1, 8..9), (2, 4..6)], true);
        // As it travels.
        let text = serde_json::to_string(&other).unwrap();
        durable.join(serde_json::from_str(&text).unwrap());
        assert_eq!(durable.logged(), {
            let mut all = logged(&[(0, 0..3), (1, 5..9), (2, 4..6)], false);
            all.lost_records = true;
            all
        });
        let ranges = |number| durable.covered(&partition(number)).unwrap().ranges().collect::<Vec<_>>();
        assert_eq!([ranges(0), ranges(1), ranges(2), ranges(3)], [vec![0..3], vec![5..9], vec![4..6], vec![]]);
        assert_eq!(durable.remembered(&partition(1)).ranges().collect::<Vec<_>>(), [5..9]);
        assert!(durable.log_lost_records(), "the loss of one is looked for by all");
    }
}
