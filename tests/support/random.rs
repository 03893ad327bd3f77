//! Randomness that can be replayed: the seed is printed, and taken from `SIM_SEED` where that is set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64: a few lines, and good enough to choose moments and places.
pub struct Random(u64);

impl Random {
    /// A generator for the test `name`, seeded by `SIM_SEED` or by the clock. The seed appears in the output of a failed test.
    pub fn for_test(name: &str) -> Self {
        let given = std::env::var("SIM_SEED").ok().map(|seed| seed.parse().expect("SIM_SEED is a number"));
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let seed: u64 = given.unwrap_or_else(clock);
        println!("{name}: SIM_SEED={seed}");
        Random(seed)
    }

    /// A generator with this seed.
    pub fn of_seed(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// A time below `bound`, to the millisecond.
    pub fn duration_below(&mut self, bound: Duration) -> Duration {
        Duration::from_millis(self.below(bound.as_millis() as u64))
    }
}
