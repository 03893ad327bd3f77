//! Which offsets of a partition were emitted in which epoch, as far as somebody may ask: how far a stage is, whose frontier stands at an
//! epoch.
//!
//! Bounded: where a stage stands for long, epochs are forgotten in between. Then an answer is behind the truth, never ahead of it.

use std::ops::Range;

use super::Passed;
use crate::epoch::Epoch;

/// Epochs that are remembered of a partition: with the usual tick those of the last twenty seconds, and of hours where half of them were
/// forgotten again and again. 16 bytes each.
const EPOCHS_MAX: usize = 1_024;

/// Epochs and the end of what was emitted in each. Epochs ascend, ends do not go back.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    ends: Vec<(Epoch, i64)>,
}

impl History {
    /// Notes what was emitted in `epoch`. Offsets that begin anew, after a partition has come back, begin a new history.
    pub(super) fn note(&mut self, epoch: Epoch, offsets: Range<i64>) {
        let newest = self.ends.last().map(|(_, end)| *end);
        if newest.is_none_or(|end| offsets.start < end) {
            self.ends.clear();
            // What lies before was handled before: passed with everything that is older than this epoch.
            self.ends.push((Epoch(epoch.0.saturating_sub(1)), offsets.start));
        }
        match self.ends.last_mut() {
            Some((newest, end)) if *newest == epoch => *end = offsets.end,
            _ => self.ends.push((epoch, offsets.end)),
        }
        if self.ends.len() > EPOCHS_MAX {
            self.thin();
        }
    }

    /// Forgets every other epoch but the first and the last.
    fn thin(&mut self) {
        let last = self.ends.len() - 1;
        let mut number = 0;
        self.ends.retain(|_| {
            let is_kept = number % 2 == 0 || number == last;
            number += 1;
            is_kept
        });
    }

    /// What was emitted before `frontier`; `None`: at all.
    pub(super) fn before(&self, frontier: Option<Epoch>) -> Passed {
        let passed = self.ends.partition_point(|(epoch, _)| frontier.is_none_or(|frontier| *epoch < frontier));
        let newest = passed.checked_sub(1).and_then(|newest| self.ends.get(newest));
        let passed = newest.or(self.ends.first()).map(|(_, end)| *end);
        let behind = self.ends.last().zip(passed).map(|((_, end), passed)| (*end - passed) as u64);
        Passed { offset: newest.map(|(_, end)| *end), epoch: newest.map(|(epoch, _)| *epoch), behind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontier_has_passed_what_was_emitted_in_epochs_before_it() {
        let mut history = History::default();
        assert_eq!(history.before(None), Passed::default());
        history.note(Epoch(20), 100..105);
        history.note(Epoch(20), 105..107);
        history.note(Epoch(60), 107..110);
        let check = |frontier: Option<u64>, offset: Option<i64>, epoch: Option<u64>| {
            // Nothing of what lies before 100 was read in this start.
            let expected = Passed { offset, epoch: epoch.map(Epoch), behind: Some((110 - offset.unwrap_or(100)) as u64) };
            assert_eq!(history.before(frontier.map(Epoch)), expected, "{frontier:?}");
        };
        check(Some(0), None, None);
        check(Some(19), None, None);
        // Where reading began all is handled that lies before.
        check(Some(20), Some(100), Some(19));
        check(Some(21), Some(107), Some(20));
        check(Some(60), Some(107), Some(20));
        check(Some(80), Some(110), Some(60));
        check(None, Some(110), Some(60));
        // The partition went, and came back behind what another process had read, or before what this one had.
        history.note(Epoch(100), 400..401);
        assert_eq!(history.before(Some(Epoch(100))).offset, Some(110));
        assert_eq!(history.before(Some(Epoch(101))).offset, Some(401));
        history.note(Epoch(120), 90..95);
        assert_eq!(history.before(Some(Epoch(120))).offset, Some(90));
        assert_eq!(history.before(Some(Epoch(100))).offset, None);
    }

    #[test]
    fn a_history_is_bounded_and_never_ahead_of_the_truth() {
        let mut history = History::default();
        let epochs = 100_000;
        for number in 0..epochs {
            history.note(Epoch(1_000 + number), number as i64..number as i64 + 1);
        }
        assert!(history.ends.len() <= EPOCHS_MAX);
        let mut before = None;
        for frontier in (1_000..=1_000 + epochs).step_by(97) {
            let found = history.before(Some(Epoch(frontier))).offset;
            assert!(found >= before && found <= Some((frontier - 1_000) as i64), "{frontier}: {found:?}");
            before = found;
        }
        assert_eq!(history.before(None).offset, Some(epochs as i64));
    }
}
