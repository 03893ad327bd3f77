//! The time of every dataflow: a totally ordered epoch (design D-4).
//!
//! An epoch is a wall-clock reading in Unix milliseconds, rounded down to the tick (`epoch_interval_ms`). The frontier passing
//! epoch `e` at a stage means: everything emitted up to `e` has had that stage's effect. Epochs order work; they are not event time.

use serde::{Deserialize, Serialize};
use timely::PartialOrder;
use timely::order::TotalOrder;
use timely::progress::timestamp::{PathSummary, Refines, Timestamp};

/// Unix milliseconds rounded down to the source's tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that contains `unix_ms` when one tick lasts `tick_ms` (at least 1).
    pub fn of(unix_ms: u64, tick_ms: u64) -> Self {
        let tick_ms = tick_ms.max(1);
        Epoch(unix_ms / tick_ms * tick_ms)
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialOrder for Epoch {
    fn less_equal(&self, other: &Self) -> bool {
        self <= other
    }
}

impl TotalOrder for Epoch {}

/// No operator delays its input, and feedback edges carry no data: the only summary is the identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Same;

impl PartialOrder for Same {
    fn less_equal(&self, _other: &Self) -> bool {
        true
    }
}

impl PathSummary<Epoch> for Same {
    fn results_in(&self, src: &Epoch) -> Option<Epoch> {
        Some(*src)
    }
    fn followed_by(&self, _other: &Self) -> Option<Self> {
        Some(Same)
    }
}

impl Timestamp for Epoch {
    type Summary = Same;
    fn minimum() -> Self {
        Epoch(0)
    }
}

impl Refines<()> for Epoch {
    fn to_inner(_other: ()) -> Self {
        Epoch(0)
    }
    fn to_outer(self) {}
    fn summarize(_path: Same) {}
}
