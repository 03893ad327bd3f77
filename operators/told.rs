//! How often the log tells of the same thing: at once the first time, then in intervals, with the number of those left out. No clock.

use std::collections::BTreeMap;

/// What was told, by kind. Kinds are few and fixed, so this does not grow with what is counted.
pub(crate) struct Told {
    interval_ms: u64,
    kinds: BTreeMap<&'static str, Since>,
}

/// When a kind was told last, and how often it happened since without being told.
#[derive(Default)]
struct Since {
    told_ms: Option<u64>,
    untold: u64,
}

impl Since {
    fn is_due(&self, now_ms: u64, interval_ms: u64) -> bool {
        // A clock that was set back must not silence the log.
        self.told_ms.is_none_or(|told_ms| now_ms.checked_sub(told_ms).is_none_or(|passed_ms| passed_ms >= interval_ms))
    }
}

impl Told {
    /// One line of a kind in this time.
    pub fn every(interval_ms: u64) -> Self {
        Told { interval_ms, kinds: BTreeMap::new() }
    }

    /// Counts one of `kind`. `Some` if it is to be told, with the number left out since the last that was.
    pub fn count(&mut self, kind: &'static str, now_ms: u64) -> Option<u64> {
        let since = self.kinds.entry(kind).or_default();
        if !since.is_due(now_ms, self.interval_ms) {
            since.untold += 1;
            return None;
        }
        since.told_ms = Some(now_ms);
        Some(std::mem::take(&mut since.untold))
    }

    /// True if something was left out that no line has told the number of.
    pub fn has_untold(&self) -> bool {
        self.kinds.values().any(|since| since.untold > 0)
    }

    /// The kinds of which only the number left out is to be told now: nothing of theirs came since their interval ended.
    pub fn due(&mut self, now_ms: u64) -> Vec<(&'static str, u64)> {
        let interval_ms = self.interval_ms;
        self.take(|since| since.is_due(now_ms, interval_ms), now_ms)
    }

    /// All numbers left out, at the end.
    pub fn rest(&mut self, now_ms: u64) -> Vec<(&'static str, u64)> {
        self.take(|_| true, now_ms)
    }

    fn take(&mut self, is_due: impl Fn(&Since) -> bool, now_ms: u64) -> Vec<(&'static str, u64)> {
        let mut taken = Vec::new();
        for (kind, since) in self.kinds.iter_mut().filter(|(_, since)| since.untold > 0 && is_due(since)) {
            since.told_ms = Some(now_ms);
            taken.push((*kind, std::mem::take(&mut since.untold)));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_one_line_an_interval_and_the_numbers_add_up() {
        let mut told = Told::every(5_000);
        let (mut lines, mut counted) = (0, 0);
        // A reject a millisecond for 20 seconds.
        for now_ms in 0..20_000 {
            if let Some(left_out) = told.count("malformed", now_ms) {
                lines += 1;
                counted += 1 + left_out;
            }
            assert_eq!(told.due(now_ms), [], "a kind that keeps coming tells the number with its own lines");
        }
        assert_eq!(lines, 4);
        assert!(told.has_untold());
        assert_eq!(told.rest(20_000), [("malformed", 20_000 - counted)]);
        assert!(!told.has_untold() && told.rest(20_001).is_empty());
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other() {
        let mut told = Told::every(5_000);
        assert_eq!(told.count("malformed", 10), Some(0));
        assert_eq!(told.count("malformed", 11), None);
        assert_eq!(told.count("too_deep", 12), Some(0));
        assert_eq!(told.due(5_009), []);
        assert_eq!(told.due(5_010), [("malformed", 1)]);
        // That was a line: the next comes an interval later.
        assert_eq!((told.count("malformed", 5_011), told.count("malformed", 10_010)), (None, Some(1)));
    }

    #[test]
    fn a_clock_set_back_does_not_silence_the_log() {
        let mut told = Told::every(5_000);
        assert_eq!(told.count("empty", 1_000_000), Some(0));
        assert_eq!((told.count("empty", 1_000_001), told.count("empty", 7)), (None, Some(1)));
    }
}
