//! What a start finds durable, in the write-ahead logs and in the catalog: where partitions resume.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use openwit_operators::catalog_commit::registrar::{Answer, Registrar, Request};
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::kafka_source::consumer::Covered;
use openwit_operators::wal_commit::recovery::{Recovery, merge};
use serde::{Deserialize, Serialize};

/// Offsets that are durable somewhere: in the log of a process, or in the catalog.
pub struct Durable {
    logged: Mutex<Logged>,
    catalog: Option<Registrar>,
}

/// Offsets by partition, ascending. In pairs, as the text in which they travel has no other keys than texts.
type Offsets = Vec<(PartitionKey, OffsetSet)>;

/// What logs had in them at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// What is in them.
    offsets: Offsets,
    /// Whose keys the dedup window has from them.
    remembered: Offsets,
    /// One of the logs lost records that were acknowledged.
    lost_records: bool,
}

impl Logged {
    /// Adds what another log had in it.
    fn join(&mut self, other: Logged) {
        join(&mut self.offsets, other.offsets);
        join(&mut self.remembered, other.remembered);
        self.lost_records |= other.lost_records;
    }
}

fn join(offsets: &mut Offsets, more: Offsets) {
    let mut joined: BTreeMap<PartitionKey, OffsetSet> = std::mem::take(offsets).into_iter().collect();
    merge(&mut joined, &more.into_iter().collect());
    *offsets = joined.into_iter().collect();
}

fn of(offsets: &Offsets, partition: &PartitionKey) -> OffsetSet {
    let found = offsets.binary_search_by(|(known, _)| known.cmp(partition));
    found.map(|position| offsets[position].1.clone()).unwrap_or_default()
}

impl Durable {
    /// Joins what the log covers with the catalog, which is asked anew at every assignment: other nodes write to it. A graph may have
    /// neither. Messages as they came are remembered only by a graph that reads them again: keys of others are read back from Kafka.
    pub fn new(log: Option<&Recovery>, catalog: Option<Registrar>, reads_raw: bool) -> Self {
        let offsets = log.map(|log| log.coverage.clone()).unwrap_or_default();
        let mut remembered = log.map(|log| if reads_raw { &log.coverage } else { &log.normalized }).cloned().unwrap_or_default();
        if let Some(log) = log.filter(|_| reads_raw) {
            merge(&mut remembered, &log.recalled);
        }
        let lost_records = log.is_some_and(|log| log.report.lost_records());
        let logged =
            Logged { offsets: offsets.into_iter().collect(), remembered: remembered.into_iter().collect(), lost_records };
        Durable { logged: Mutex::new(logged), catalog }
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
        let logged = of(&self.logged.lock().unwrap_or_else(PoisonError::into_inner).offsets, partition);
        for range in logged.ranges() {
            covered.insert(range);
        }
        Ok(covered)
    }

    fn remembered(&self, partition: &PartitionKey) -> OffsetSet {
        of(&self.logged.lock().unwrap_or_else(PoisonError::into_inner).remembered, partition)
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
            let offsets = vec![(partition(*number), set)];
            joined.join(Logged { offsets: offsets.clone(), remembered: offsets, lost_records });
        }
        joined
    }

    #[test]
    fn what_the_log_of_another_process_holds_is_covered_here_too_whoever_is_given_the_partition() {
        let durable = Durable::new(None, None, false);
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
