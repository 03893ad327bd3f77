//! Waiting for a condition, with a deadline: the only way these tests synchronize.

use std::time::{Duration, Instant};

/// Between two looks: short against everything waited for, long against the cost of a look.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with `what` was waited for when `patience` is over.
pub fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    assert!(until_or_late(patience, &mut condition), "not within {patience:?}: {what}");
}

/// Waits until `condition` holds; false when `patience` is over.
pub fn until_or_late(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    while !condition() {
        if since.elapsed() > patience {
            return false;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    true
}
