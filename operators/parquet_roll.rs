//! `parquet_roll`: appends deliveries to open Parquet files and closes them, group by group, into commits.
//!
//! # In
//! Deliveries: rows of one group (index, signal) with their coverage, each to be accepted whole or not at all.
//!
//! # Out
//! `ClosedCommit`: the files of one group with the coverage they account for and the deliveries that may be acknowledged once it is in
//! the catalog. Deliveries that the catalog already covers come back at once as published.
//!
//! # Holds
//! One open file per (group, UTC day of the event time, schema); per partition the offsets known to the catalog and those accepted
//! but not yet committed, both as merged ranges; per open and closed commit its coverage and delivery ids.
//!
//! ```text
//! active/{file}.parquet    being written            \  local, discarded at start: whatever was not committed
//! stable/{file}.parquet    footer written, verified /  is still in a write-ahead log and is delivered again
//! ```
//!
//! # Closes when
//! A group's files together reach `file_bytes_max`, its oldest row `age_max_ms`, or nothing came for `idle_ms`; when
//! `open_writers_max` is passed the group least recently used closes early. All files of a group close together.
//!
//! # Fails when
//! A local write, sync or rename fails, or a footer does not read back as written: nothing is accepted any more and the graph stops.
//! A malformed delivery is refused and changes nothing.
//!
//! # Invariants
//! - No offset is in two commits: what is known is clipped off before a row is written.
//! - A delivery is listed in a commit only if all its offsets are covered by that commit, by earlier ones of its group, or by the
//!   catalog. So the commits of a group must be committed in the order in which they closed; a commit that the catalog refuses takes
//!   all later ones of its group with it (`Roller::abandon`).
//! - The file of the latest day is the last of `ClosedCommit::files` and is uploaded last: its presence in the object store proves
//!   the whole commit present, which is what lets the catalog be rebuilt from footers.
//!
//! # Figures
//! See `writer` for what a row costs and how the settings were chosen.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::error::ArrowError;
use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::batch::{EncodedBatch, Group, Signal};
use crate::coverage::PartitionKey;

pub use coverage_rows::CoverageRow;
pub use day::Day;
pub use roller::{Abandoned, Admitted, Roller, Stats};

pub mod coverage_rows;
pub mod day;
pub mod footer;
pub mod ids;
mod news;
mod roller;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

/// The operator's name in config, metrics and faults.
pub const NAME: &str = "parquet_roll";

/// Column of the topic's name.
pub const TOPIC: &str = "_topic";
/// Column of the partition's number.
pub const PARTITION: &str = "_partition";
/// Column of the message's offset.
pub const OFFSET: &str = "_offset";
/// Column of the message's Kafka timestamp.
pub const KAFKA_TIMESTAMP: &str = "_kafka_timestamp";

/// The column that holds a signal's event time.
pub fn time_column(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "start_time",
        Signal::Logs | Signal::Metrics => "time",
    }
}

/// What shapes files and commits.
#[derive(Clone, Debug)]
pub struct Config {
    /// Local folder for `active/` and `stable/`; owned by one process at a time.
    pub directory: PathBuf,
    /// Folder in the object store below which all groups lie; may be empty.
    pub prefix: String,
    /// Name of this node, unique among the nodes that share the object store: part of every path.
    pub node_id: String,
    /// Seed of commit and file ids; must differ between runs and nodes.
    pub seed: u64,
    /// Bytes of all open files of a group at which it closes. Too small: many small files, and a footer, an upload and a transaction
    /// for each. Too large: more to deliver again after a crash.
    pub file_bytes_max: u64,
    /// Age at which a group closes. It bounds how long a row stays unpublished, and so how much write-ahead log is kept.
    pub age_max_ms: u64,
    /// Time without rows after which a group closes.
    pub idle_ms: u64,
    /// Open files over all groups. Beyond it the group least recently used closes early; one delivery may pass it for as long as it
    /// takes to write it.
    pub open_writers_max: usize,
    /// Rows of a row group. Larger ones compress and scan better; each open file holds up to one of them encoded in memory.
    pub row_group_rows_max: usize,
    /// Memory of all open row groups. Beyond it the largest ends early.
    pub memory_bytes_max: usize,
    /// How far an event time may be from the record's Kafka timestamp to choose the file's day.
    pub event_time_skew_days_max: u32,
}

impl Config {
    /// The defaults, for a node and its local folder.
    pub fn new(directory: PathBuf, node_id: String, seed: u64) -> Self {
        Config {
            directory,
            prefix: String::new(),
            node_id,
            seed,
            file_bytes_max: 128 << 20,
            age_max_ms: 60_000,
            idle_ms: 10_000,
            open_writers_max: 64,
            row_group_rows_max: 100_000,
            memory_bytes_max: 256 << 20,
            event_time_skew_days_max: 30,
        }
    }
}

/// Names a delivery within its Flight session, so that it can be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeliveryId {
    /// The session, unique within the process.
    pub session: u64,
    /// The delivery's number in its session.
    pub sequence: u64,
}

impl std::fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.session, self.sequence)
    }
}

/// One delivery: the unit that is accepted whole or not at all.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its name.
    pub id: DeliveryId,
    /// Its rows and coverage.
    pub batch: EncodedBatch,
}

/// What a stable file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Rows, as Parquet. Belongs into the catalog.
    Rows,
    /// The coverage of a commit without rows, as JSON: nothing but what a rebuild of the catalog needs.
    Coverage,
}

/// A finished local file and where it belongs in the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StableFile {
    /// The file's id.
    pub file: Ulid,
    /// What it holds.
    pub kind: FileKind,
    /// Where it lies locally.
    pub local: PathBuf,
    /// Where it belongs in the object store.
    pub path: String,
    /// The day of its rows.
    pub day: Day,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// The least event time in nanoseconds, if any row has one.
    pub time_min_ns: Option<i64>,
    /// The greatest event time in nanoseconds, if any row has one.
    pub time_max_ns: Option<i64>,
    /// Names the schema: equal for equal field names, types and nullability.
    pub schema_hash: Arc<str>,
}

/// What is published by one catalog transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedCommit {
    /// The commit's id: ascending within a group.
    pub commit_id: Ulid,
    /// The group of all its rows.
    pub group: Group,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// Its files, by day, the latest last. Empty when there is nothing to commit and only deliveries wait for earlier commits.
    pub files: Vec<StableFile>,
    /// What it accounts for, by partition and offset.
    pub coverage: Vec<CoverageRow>,
    /// The deliveries to acknowledge as published once it is committed.
    pub deliveries: Vec<DeliveryId>,
}

/// Why a delivery was refused or the stage stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The delivery contradicts itself. It is refused whole; nothing has changed.
    #[error("delivery {id} of group {group} is malformed: {detail}")]
    Malformed {
        /// The delivery.
        id: DeliveryId,
        /// The group it names.
        group: Group,
        /// What is wrong.
        detail: String,
    },
    /// The delivery names offsets that wait for a commit of another group. It is refused; sent again after that commit it is fine.
    #[error("delivery {id} of group {group} names offsets of {partition} that wait for a commit of group {pending}")]
    OtherGroup {
        /// The delivery.
        id: DeliveryId,
        /// The group it names.
        group: Group,
        /// The partition.
        partition: PartitionKey,
        /// The group whose commit they wait for.
        pending: Group,
    },
    /// Another process uses the local folder.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A local file operation failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Encoding or reading Parquet failed.
    #[error("cannot {doing} {}", path.display())]
    Parquet {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: ParquetError,
    },
    /// A finished file does not read back as it was written.
    #[error("{} does not read back as written: {detail}", path.display())]
    Readback {
        /// The file.
        path: PathBuf,
        /// What differs.
        detail: String,
    },
    /// Selecting rows failed.
    #[error("cannot select rows of delivery {id}")]
    Arrow {
        /// The delivery.
        id: DeliveryId,
        /// Why it failed.
        source: ArrowError,
    },
    /// An earlier error left files and memory apart; nothing is accepted until a restart.
    #[error("stopped by an earlier error: {cause}")]
    Poisoned {
        /// That error.
        cause: String,
    },
    /// A setting makes no sense.
    #[error("{key} is {value}, it must be at least {least}")]
    Config {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: u64,
        /// Its least value.
        least: u64,
    },
}

impl Error {
    /// True if only the delivery was refused: the stage goes on, the sender must be told.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Malformed { .. } | Error::OtherGroup { .. })
    }

    /// True if the same delivery may be accepted later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Error::OtherGroup { .. })
    }
}
