//! How long messages take from the poll that read them until their offsets may be committed.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets in milliseconds: finest where it matters, around the time of a tick and a sync. Above the last there is
/// one bucket more.
const BOUNDS_MS: [u64; 22] =
    [1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1_000, 2_000, 5_000, 10_000];

/// Counts messages by their latency; written by one operator, read by anybody.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
}

impl Histogram {
    /// Counts `messages` that took `latency_ms`.
    pub fn note(&self, latency_ms: u64, messages: u64) {
        let bucket = BOUNDS_MS.partition_point(|&bound| bound < latency_ms);
        self.buckets[bucket].fetch_add(messages, Ordering::Relaxed);
    }

    /// The bound below which the share `quantile` of all messages lies, in milliseconds; 0 without messages, `u64::MAX` above the
    /// last bound.
    pub fn quantile_ms(&self, quantile: f64) -> u64 {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        let total: u64 = counts.iter().sum();
        let wanted = (total as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        for (index, count) in counts.iter().enumerate() {
            seen += count;
            if total > 0 && seen >= wanted.max(1) {
                return BOUNDS_MS.get(index).copied().unwrap_or(u64::MAX);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_upper_bounds_of_their_buckets() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), 0);
        histogram.note(0, 50);
        histogram.note(12, 49);
        histogram.note(60_000, 1);
        assert_eq!(histogram.quantile_ms(0.5), 1);
        assert_eq!(histogram.quantile_ms(0.51), 15);
        assert_eq!(histogram.quantile_ms(0.99), 15);
        assert_eq!(histogram.quantile_ms(1.0), u64::MAX);
    }
}
