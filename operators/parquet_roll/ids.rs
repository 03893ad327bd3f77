//! Names for commits and files that sort by time and repeat under the same seed.

use ulid::Ulid;

/// Makes ULIDs: 48 bits of Unix milliseconds, 80 bits from a seeded generator, every one greater than the one before.
///
/// The seed must differ between processes that share a catalog (the shell mixes node id, start time and process id). Should two
/// processes ever make the same id, the catalog notices that the contents differ and refuses the second; nothing is lost silently.
#[derive(Clone, Debug)]
pub struct Ulids {
    state: u64,
    last: Ulid,
}

impl Ulids {
    /// A generator whose ids follow from `seed` and the times given.
    pub fn new(seed: u64) -> Self {
        Ulids { state: seed, last: Ulid::nil() }
    }

    /// The next id. A clock that steps back does not step the ids back.
    pub fn next(&mut self, now_ms: u64) -> Ulid {
        let random = u128::from(self.draw()) << 64 | u128::from(self.draw());
        let drawn = Ulid::from_parts(now_ms, random);
        // Within one millisecond the order of the draws is random: count on from the last instead.
        let next = if drawn.timestamp_ms() > self.last.timestamp_ms() { drawn } else { self.last.increment().unwrap_or(drawn) };
        self.last = next;
        next
    }

    /// SplitMix64: passes statistical tests, needs no dependency, and any seed is a good seed.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_ascend_even_when_the_clock_steps_back_and_repeat_under_the_same_seed() {
        let times = [5, 5, 9, 7, 7, 1_764_000_000_000, 3];
        let run = |seed| {
            let mut ids = Ulids::new(seed);
            times.map(|now_ms| ids.next(now_ms))
        };
        assert!(run(1).is_sorted_by(|left, right| left < right));
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
