//! The wall clock as a port, so that operators never read it themselves (design D-8).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells Unix time. Only sources and timers may ask; everything else takes time from the record or the epoch.
pub trait Clock: Send + Sync {
    /// Unix time in milliseconds.
    fn now_ms(&self) -> u64;
}

/// The operating system's clock, read once; from then on the monotonic clock carries it forward.
///
/// So a wall clock that is set back, or far ahead, neither stops epochs nor makes them jump.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started_unix_ms: u64,
    started: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        SystemClock { started_unix_ms: since_1970.map_or(0, |since| since.as_millis() as u64), started: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        self.started_unix_ms + self.started.elapsed().as_millis() as u64
    }
}

/// A clock that moves only when told, for tests.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Sets the time, in Unix milliseconds.
    pub fn set_ms(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Release);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
