//! How long to wait before trying again.

use std::time::Duration;

/// Waits that double up to a limit, each drawn between half and all of it, so that those who failed together do not return together.
#[derive(Clone, Debug)]
pub struct Backoff {
    next_ms: u64,
    max_ms: u64,
    state: u64,
}

impl Backoff {
    /// Starts with waits of up to `first_ms`; the same seed gives the same waits.
    pub fn new(first_ms: u64, max_ms: u64, seed: u64) -> Self {
        Backoff { next_ms: first_ms.clamp(1, max_ms.max(1)), max_ms: max_ms.max(1), state: seed | 1 }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        // Xorshift: its quality is enough for spreading.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let half = self.next_ms / 2;
        let wait_ms = half + self.state % (self.next_ms - half + 1);
        self.next_ms = self.next_ms.saturating_mul(2).min(self.max_ms);
        Duration::from_millis(wait_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_lie_in_the_upper_half() {
        for seed in 0..50 {
            let mut backoff = Backoff::new(100, 1_000, seed);
            for limit in [100, 200, 400, 800, 1_000, 1_000] {
                let wait_ms = backoff.next_wait().as_millis() as u64;
                assert!((limit / 2..=limit).contains(&wait_ms), "{wait_ms} of {limit}");
            }
        }
    }
}
