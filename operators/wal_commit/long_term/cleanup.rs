//! What of the long-term log is removed.
//!
//! The clock is the newest epoch of the log: epochs are Unix milliseconds and go on while nothing is read, so no wall clock is needed,
//! and a clock that is set forward while the process is down removes nothing before the first epoch is published.
//!
//! Two things are never removed: copies of other nodes, and copies of what is not published. The short-term log holds those
//! anyway; but a cleanup shall not depend on it.

use super::{Cleanup, Name};
use crate::epoch::Epoch;

/// A copy in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// What its name says.
    pub name: Name,
    /// Its path in the store.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

/// How far the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Every epoch before this one is published.
    pub published: Epoch,
    /// The newest epoch there is.
    pub newest: Epoch,
}

/// Which of `found`, the copies of one node, are to be removed: oldest first, those past their time and those beyond the bound.
pub fn expired(mut found: Vec<Found>, cleanup: &Cleanup, horizon: Horizon) -> Vec<Found> {
    found.sort();
    let mut bytes: u64 = found.iter().map(|copy| copy.bytes).sum();
    let mut expired = Vec::new();
    for copy in found {
        let is_past = copy.name.last.0.saturating_add(cleanup.retention_ms) < horizon.newest.0;
        let is_published = copy.name.last < horizon.published;
        if is_published && (is_past || bytes > cleanup.bytes_max) {
            bytes -= copy.bytes;
            expired.push(copy);
        }
    }
    expired
}
