//! Where a partition resumes when it is assigned (design D-6), and which incarnation of its topic it is (D-5).

use crate::coverage::OffsetSet;

/// What is known of a partition at its assignment.
#[derive(Clone, Debug)]
pub struct Known {
    /// The group's committed offset.
    pub committed: Option<i64>,
    /// First offset the broker still has.
    pub low: i64,
    /// One past the last offset the broker has.
    pub high: i64,
    /// Offsets in the local write-ahead log or in the catalog.
    pub covered: OffsetSet,
    /// One past the last offset that this process has read of it, durable or not; 0 if none.
    pub read_end: i64,
    /// The local log lost records that were acknowledged: what stands before the committed offset may be in Kafka only.
    pub log_lost_records: bool,
}

impl Known {
    /// From where on the group has handled the partition; `None` if it has not.
    ///
    /// A group that begins with the oldest message has handled all of it, also what another node holds in its log and has not published
    /// yet. One that began at the end of a topic has not: what lies before stands before the committed offset all the same.
    pub fn handled_from(&self, reset: Reset) -> Option<i64> {
        match self.proven_from(reset) {
            Some(_) if reset == Reset::Earliest => Some(self.low),
            proven => proven,
        }
    }

    /// From where on the log or the catalog proves that the group has handled the partition; where both have nothing of it, what its
    /// committed offset says.
    fn proven_from(&self, reset: Reset) -> Option<i64> {
        if let Some(first) = self.covered.ranges().next() {
            return Some(first.start.max(self.low));
        }
        let is_committed = self.committed.is_some_and(|committed| committed <= self.high);
        (is_committed && reset == Reset::Earliest).then_some(self.low)
    }
}

/// Where a partition without any history starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// At the oldest message.
    Earliest,
    /// At the next message.
    Latest,
}

/// What happens where retention removed messages before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Reading goes on with the oldest message that is left; what is gone is told.
    Continue,
    /// Nothing behind them is read: the run ends by a fault, and so does each one after it, until somebody decides.
    Stop,
}

/// Where to start, and what has to be told to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// First offset to read.
    pub offset: i64,
    /// Offsets that retention removed before they were read: from the position we had to the broker's first offset.
    pub lost: Option<std::ops::Range<i64>>,
}

/// True if the topic was deleted and created anew: the broker ends before offsets that are already covered, or were read.
pub fn is_recreated(known: &Known) -> bool {
    known.read_end > known.high || ends_beyond(&known.covered, known.high)
}

/// True if there are offsets of a partition that ended behind `high`.
pub fn ends_beyond(covered: &OffsetSet, high: i64) -> bool {
    covered.ranges().next_back().is_some_and(|last| last.end > high)
}

/// The largest of the committed offset and the end of the covered run that the partition stands in.
///
/// Not simply the greatest covered offset: frames of a partition may be durable behind a hole, and the hole must be read.
///
/// After a loss in the local log the committed offset proves nothing either: the partition resumes at its first hole. What is covered
/// behind the hole is read again and dropped by its offsets.
pub fn start(known: &Known, reset: Reset) -> Start {
    // A commit beyond the log's end is of a former incarnation of the topic.
    let committed = known.committed.filter(|committed| *committed <= known.high);
    let wanted = match committed {
        Some(committed) => known.covered.range_around(committed).map_or(committed, |run| run.end),
        None => match known.covered.ranges().next() {
            Some(first_run) => first_run.end,
            None if reset == Reset::Latest => known.high,
            None => known.low,
        },
    };
    let offset = wanted.max(known.low);
    let hole = known.log_lost_records.then(|| known.proven_from(reset)).flatten();
    let hole = hole.map(|from| known.covered.range_around(from).map_or(from, |run| run.end));
    Start { offset: hole.map_or(offset, |hole| hole.min(offset)), lost: (wanted < known.low).then_some(wanted..known.low) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_resumes_behind_everything_that_is_durable() {
        let check =
            |committed: Option<i64>, covered: &[(i64, i64)], low: i64, expected: i64, lost: Option<std::ops::Range<i64>>| {
                let mut set = OffsetSet::default();
                covered.iter().for_each(|(start, end)| set.insert(*start..*end));
                let known = Known { committed, low, high: 1_000, covered: set, read_end: 0, log_lost_records: false };
                assert_eq!(start(&known, Reset::Earliest), Start { offset: expected, lost }, "{known:?}");
            };
        check(None, &[], 0, 0, None);
        check(None, &[], 7, 7, None);
        check(Some(50), &[], 0, 50, None);
        check(Some(50), &[(0, 80)], 0, 80, None);
        // The group was reset to earliest: what is covered is not read again.
        check(Some(0), &[(0, 80)], 0, 80, None);
        // The group's offsets were deleted.
        check(None, &[(0, 80)], 0, 80, None);
        // A frame behind a hole does not hide the hole.
        check(Some(0), &[(0, 80), (90, 100)], 0, 80, None);
        check(Some(85), &[(0, 80), (90, 100)], 0, 85, None);
        // Retention overtook us.
        check(Some(50), &[(0, 60)], 70, 70, Some(60..70));
        // A commit of a former incarnation.
        check(Some(5_000), &[], 0, 0, None);
    }

    #[test]
    fn after_a_loss_in_the_log_a_partition_resumes_at_its_first_hole() {
        let check = |committed: Option<i64>, covered: &[(i64, i64)], low: i64, reset: Reset, expected: i64| {
            let mut set = OffsetSet::default();
            covered.iter().for_each(|(start, end)| set.insert(*start..*end));
            let known = Known { committed, low, high: 1_000, covered: set, read_end: 0, log_lost_records: true };
            assert_eq!(start(&known, reset).offset, expected, "{known:?}");
        };
        // The hole lies before the committed offset, between frames or behind the last.
        check(Some(100), &[(0, 50), (60, 100)], 0, Reset::Earliest, 50);
        check(Some(100), &[(0, 80)], 0, Reset::Earliest, 80);
        check(Some(100), &[(40, 80)], 0, Reset::Latest, 80);
        // Nothing is left of the log, and nothing was published.
        check(Some(100), &[], 0, Reset::Earliest, 0);
        check(Some(100), &[], 0, Reset::Latest, 100);
        // There is no hole.
        check(Some(100), &[(0, 120)], 0, Reset::Earliest, 120);
        check(None, &[(0, 120)], 0, Reset::Earliest, 120);
        // What Kafka has removed cannot be read again.
        check(Some(100), &[(0, 50), (60, 100)], 55, Reset::Earliest, 55);
        check(Some(100), &[(0, 50), (60, 100)], 70, Reset::Earliest, 100);
    }

    #[test]
    fn what_nobody_of_the_group_has_handled_is_not_taken_for_handled() {
        let check = |committed: Option<i64>, covered: &[(i64, i64)], reset: Reset, expected: Option<i64>| {
            let mut set = OffsetSet::default();
            covered.iter().for_each(|(start, end)| set.insert(*start..*end));
            let known = Known { committed, low: 10, high: 100, covered: set, read_end: 0, log_lost_records: false };
            assert_eq!(known.handled_from(reset), expected, "{known:?}");
        };
        check(None, &[], Reset::Earliest, None);
        check(Some(50), &[], Reset::Earliest, Some(10));
        // It may have begun at 50.
        check(Some(50), &[], Reset::Latest, None);
        check(Some(80), &[(50, 60)], Reset::Latest, Some(50));
        // What lies before is in another node's log, and not published yet.
        check(Some(80), &[(50, 60)], Reset::Earliest, Some(10));
        check(None, &[(50, 60)], Reset::Earliest, Some(10));
        check(None, &[(0, 60)], Reset::Earliest, Some(10));
        // A commit of a former incarnation.
        check(Some(500), &[], Reset::Earliest, None);
    }

    #[test]
    fn latest_skips_history_only_when_there_is_none_of_ours() {
        let mut known =
            Known { committed: None, low: 0, high: 100, covered: OffsetSet::default(), read_end: 0, log_lost_records: false };
        assert_eq!(start(&known, Reset::Latest).offset, 100);
        known.covered.insert(20..30);
        assert_eq!(start(&known, Reset::Latest).offset, 30);
    }

    #[test]
    fn a_log_that_ends_before_known_coverage_is_another_topic() {
        let mut known =
            Known { committed: None, low: 0, high: 100, covered: OffsetSet::default(), read_end: 0, log_lost_records: false };
        assert!(!is_recreated(&known));
        known.covered.insert(0..100);
        assert!(!is_recreated(&known));
        known.covered.insert(100..101);
        assert!(is_recreated(&known));
        // Nothing of it is durable yet.
        known = Known { covered: OffsetSet::default(), read_end: 100, ..known };
        assert!(!is_recreated(&known));
        known.read_end = 101;
        assert!(is_recreated(&known));
    }
}
