//! `parquet_source`: reads Parquet files that this program has written as a source, and ends: those of storage, and those of `parquet_files`.
//!
//! # In
//! Nothing.
//!
//! # Out
//! `UniqueBatch`: the messages that the rows were of, made anew. What was stored is normalized and without duplicates, as it was before.
//!
//! # Holds
//! What the feed of `capture_source` holds; on its thread up to `OPEN_FILES_MAX` files, each with a record batch and the pages it is of, of each
//! of their commits 16 bytes for each message, and of messages whose rows lie in several files what was read of them.
//!
//! # Closes when
//! All files are read, or the process is told to stop; then at the end of the epoch that is open.
//!
//! # Fails when
//! Anything is not as it was written: a file that is damaged, cut short, not of this program or there twice, one that is missing of a commit,
//! rows that no message can be made of. Which file it is, is told; what was emitted before stays incomplete, as the frontier does not pass it.
//!
//! # Invariants
//! - What `arrow_encode` makes of the messages is the same rows, in every column.
//! - Every offset that the files account for is accounted for once, and by as many offsets of each kind as there were.
//! - Batches, their cuts and their epochs are a function of the files: neither their names nor the number of workers matters.
//! - Within a partition offsets ascend, and epochs never go back.
//!
//! ```text
//! reader        units side by side, their batches in the order of epochs
//!  +- files       what there is, by footers
//!  |   +- lake        what a catalog lists
//!  |   +- place       a disk or an object store
//!  +- order       which commits wait for which, or for each other
//!  +- unit        the files of some commits side by side: their messages
//!      +- file        the rows of one file
//!      +- lane        the batches of one partition
//!      |   +- accounts    what became of offsets without rows
//!      +- message     a message of the parts of its rows
//!      +- rows        rows of any signal, the inverse of arrow_encode
//!          +- traces, logs, metrics
//!          +- attributes  out of columns and maps
//!          +- values      out of texts
//!          +- columns     arrays by name and type
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use crate::batch::{Signal, UniqueBatch};
use crate::capture_source::{Feed, FeedPorts, Speed};
use crate::dataset::Stamp;
use crate::fault::chain;
use crate::kafka_source::topics::TopicPatterns;

mod accounts;
mod attributes;
mod columns;
mod file;
mod files;
mod lake;
mod lane;
mod logs;
mod message;
mod metrics;
mod order;
mod place;
mod reader;
mod rows;
mod traces;
mod unit;
mod values;

#[cfg(test)]
mod tests;

pub use files::is_there;
pub use lake::{Lake, LakeError};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "parquet_source";
/// Its name where it reads what a catalog lists.
pub const STORED_NAME: &str = "parquet_source_stored";

/// Messages of a batch.
const BATCH_RECORDS: usize = 1_000;
/// Bytes of a batch, unless one message has more.
const BATCH_BYTES: usize = 512 << 10;
/// Bytes of an epoch: what is in memory is let go when its epoch is closed.
const EPOCH_BYTES: usize = 16 << 20;
/// Files that are open at once, unless one commit has more: each takes some MiB. Where more commits lie side by side in time, their epochs are
/// those of when they are read.
const OPEN_FILES_MAX: usize = 32;

/// Where files are.
#[derive(Clone, Debug)]
pub enum From {
    /// In a folder, at any depth; or it is one file.
    Folder(PathBuf),
    /// In an object store, as a catalog lists them.
    Lake(Arc<Lake>),
}

/// What is read, and how fast.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where.
    pub from: From,
    /// Which of its messages.
    pub selection: Selection,
    /// The dataset schemas that rows may obey, by whose columns their attributes are known.
    pub schemas: Vec<Stamp>,
    /// Length of an epoch in milliseconds.
    pub epoch_interval_ms: u64,
    /// How fast.
    pub speed: Speed,
}

/// Which messages are read. What is left out is accounted for by nobody.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Those of these topics; of all where there is none.
    pub topics: Option<TopicPatterns>,
    /// Those of these indexes; of all where none is named.
    pub indexes: Vec<String>,
    /// Those of these signals; of all where none is named.
    pub signals: Vec<Signal>,
    /// Of each partition from the first message on whose Kafka timestamp is at least this, in Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Of each partition, behind its first one, up to the first message whose Kafka timestamp is at least this.
    pub until_ms: Option<i64>,
}

impl Selection {
    fn has_topic(&self, topic: &str) -> bool {
        self.topics.as_ref().is_none_or(|topics| topics.matches(topic))
    }
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Bytes of all files.
    pub total_bytes: AtomicU64,
    /// Bytes of them that were read, or passed over as nothing in them was asked for.
    pub read_bytes: AtomicU64,
    /// Batches.
    pub batches: AtomicU64,
    /// Messages.
    pub records: AtomicU64,
}

/// Why files are not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Error {
    /// Something is not as it was written.
    #[error("{place}: {problem}")]
    Wrong {
        /// A file, a folder or a commit.
        place: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Nothing more is wanted.
    #[error("stopped")]
    Stopped,
}

impl Error {
    fn of(path: &Path, problem: impl Into<String>) -> Self {
        Error::at(path.display().to_string(), problem)
    }

    fn at(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Wrong { place: place.into(), problem: problem.into() }
    }
}

/// Why no message can be made of a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {detail}")]
struct Problem {
    column: String,
    detail: String,
}

impl Problem {
    fn of(column: impl Into<String>, detail: impl Into<String>) -> Self {
        Problem { column: column.into(), detail: detail.into() }
    }
}

/// Starts the thread that reads.
pub fn start(config: Config, ports: FeedPorts, stats: Arc<Stats>) -> std::io::Result<(Arc<Feed<UniqueBatch>>, JoinHandle<()>)> {
    let (speed, health) = (config.speed, ports.health.clone());
    Feed::read_by(NAME, speed, ports, move |put| {
        let is_over = || health.failed() || health.stopping();
        match reader::read(&config, &stats, &is_over, put) {
            Ok(()) | Err(Error::Stopped) => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    })
}
