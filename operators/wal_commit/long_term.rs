//! The long-term log: a compressed copy of every sealed segment, in one folder per day, for restoring and reindexing.
//!
//! ```text
//! STORE/                                                        a local folder or an object store
//!   2026-11-26/                                                 the UTC day of the segment's first epoch
//!     node-1-00000000000000000042-1795700000020-1795700063980.owl
//!       |            |                  |             |
//!     node        segment          first epoch    last epoch
//! ```
//!
//! A copy is made by a thread of its own ([`copier`]) once its segment is sealed, published or not. Until it is durable the segment is
//! not reused: a store that is away or slow costs space in the short-term log, and acknowledgements only once that is full. The
//! name says whose copy it is and of what, so that nodes share a store, a log that began anew after its disk was lost overwrites
//! nothing, and copying again after a crash gives the same name.
//!
//! A copy appears whole or not at all: local files are written under another name, synced, renamed, and their folders synced; an
//! object is there once its last part is. What is removed, and when, is in [`cleanup`]; the bytes are in [`format`].

use std::time::Duration;

use crate::epoch::Epoch;
use crate::object_upload::ObjectStore;
use crate::parquet_roll::day::Day;

pub mod cleanup;
pub(super) mod copier;
pub mod format;
pub mod read;
pub mod shelf;

#[cfg(test)]
pub(super) mod memory;
#[cfg(test)]
mod tests;

/// The end of every copy's name.
const EXTENSION: &str = ".owl";

/// Where the long-term log is, and how it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The folder or bucket. Several nodes may share it.
    pub store: ObjectStore,
    /// Whose copies they are. Without a node's own name its copies and those of others could not be told apart.
    pub node: String,
    /// Level of zstd.
    pub compression_level: i32,
    /// What is removed; `None` keeps all.
    pub cleanup: Option<Cleanup>,
}

/// When copies are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleanup {
    /// Time between two looks.
    pub interval: Duration,
    /// Copies whose last epoch lies further back than this go.
    pub retention_ms: u64,
    /// Bytes of all copies of this node. Beyond them the oldest go.
    pub bytes_max: u64,
}

/// What the long-term log did since the log was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments copied.
    pub copied: u64,
    /// Bytes of their frames.
    pub frame_bytes: u64,
    /// Bytes of the copies.
    pub stored_bytes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// True while attempts fail.
    pub failing: bool,
    /// Regions of segments that could not be copied because they are damaged.
    pub damaged: u64,
    /// Copies removed.
    pub removed: u64,
    /// Copies of this node after the last cleanup.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Cleanups that failed.
    pub cleanup_failures: u64,
}

/// A sealed segment that is to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub segment: u64,
    /// Where its frames end. What lies behind is its file's former life.
    pub end: u64,
    /// Its first epoch.
    pub first: Epoch,
    /// Its last epoch.
    pub last: Epoch,
}

/// What a copy's name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    // The order of the fields is the order of copies: by time, and within the same millisecond by node and number.
    /// The segment's first epoch.
    pub first: Epoch,
    /// Whose segment it is.
    pub node: String,
    /// The segment's number.
    pub segment: u64,
    /// The segment's last epoch.
    pub last: Epoch,
}

impl Name {
    /// The name of the copy of `job` by `node`.
    pub fn new(node: &str, job: &Job) -> Name {
        Name { first: job.first, node: node.to_owned(), segment: job.segment, last: job.last }
    }

    /// The day of the folder it is in.
    pub fn day(&self) -> Day {
        day_of(self.first)
    }

    /// The path in the store.
    pub fn path(&self) -> String {
        let Name { first, node, segment, last } = self;
        format!("{}/{node}-{segment:020}-{first:013}-{last:013}{EXTENSION}", self.day(), first = first.0, last = last.0)
    }

    /// Reads a path or a file's name; `None` if no copy is called so.
    pub fn parse(path: &str) -> Option<Name> {
        let name = path.rsplit('/').next().unwrap_or(path).strip_suffix(EXTENSION)?;
        let mut parts = name.rsplitn(4, '-');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (last, first, segment) = (Epoch(number()?), Epoch(number()?), number()?);
        let node = parts.next()?.to_owned();
        Some(Name { first, node, segment, last })
    }
}

/// The UTC day of an epoch; epochs beyond the calendar are filed under the first day.
pub fn day_of(epoch: Epoch) -> Day {
    i64::try_from(epoch.0).map_or(Day::UNDATED, Day::of_kafka_ms)
}
