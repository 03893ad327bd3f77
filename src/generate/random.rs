//! Randomness that is the same on every machine: SplitMix64.
//!
//! SplitMix64 adds a constant to a counter and mixes the sum with a bijection (Steele, Lea, Flood: "Fast Splittable Pseudorandom
//! Number Generators", 2014). Two properties are used here and were the reason to choose it:
//!
//! - the stream can start anywhere, so message n is computed without computing the n - 1 before it;
//! - the mixing is a bijection of 64-bit numbers, so identifiers mixed from distinct counters are distinct, not just probably so.

/// The odd constant by which the counter advances: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes all bits of `value` into all bits of the result. Distinct values give distinct results.
#[inline]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A number that depends on both arguments. For a fixed `seed`, distinct `counter`s give distinct numbers.
#[inline]
pub fn keyed(seed: u64, counter: u64) -> u64 {
    mixed(mix(seed), counter)
}

/// `keyed` for a seed that is mixed already.
#[inline]
pub fn mixed(mixed_seed: u64, counter: u64) -> u64 {
    mix(mixed_seed.wrapping_add(counter.wrapping_mul(STEP)))
}

/// Like `mixed`, but never zero: OTLP takes an identifier of zeros for a missing one.
///
/// The counter that mixes to zero borrows the number of the counter `u64::MAX`, which no run reaches.
#[inline]
pub fn mixed_nonzero(mixed_seed: u64, counter: u64) -> u64 {
    match mixed(mixed_seed, counter) {
        0 => mixed(mixed_seed, u64::MAX),
        number => number,
    }
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream that belongs to `seed` and `stream`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Random(keyed(seed, stream))
    }

    /// The stream that begins behind `state`.
    pub fn of_stream(state: u64) -> Self {
        Random(state)
    }

    /// The next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number in `0..bound`; 0 when `bound` is 0. The bias of bound / 2^64 does not matter here.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// One of `choices`, which are not empty.
    #[inline]
    pub fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// True in one of `n` cases.
    #[inline]
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_equals_the_published_splitmix64_sequence() {
        let mut random = Random(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_below_a_bound_stay_below_it_and_reach_all_values() {
        let mut random = Random::new(1, 2);
        let mut seen = [0u32; 7];
        for _ in 0..7_000 {
            seen[random.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 800), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
