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
//! A full disk is no failure: the group's open commit is given up, which makes room, its deliveries are asked for again, and nothing
//! is taken for a while. A malformed delivery is refused and changes nothing.
//!
//! # Invariants
//! - No offset is in two commits: what is known is clipped off before a row is written.
//! - A delivery is listed in a commit only if all its offsets are covered by that commit, by earlier ones of its group, or by the
//!   catalog. So the commits of a group must be committed in the order in which they closed; a commit that the catalog refuses takes
//!   all later ones of its group with it (`Roller::abandon`), those on their way to the catalog by their generation.
//! - The file of the latest day is the last of `ClosedCommit::files` and is uploaded last: its presence in the object store proves
//!   the whole commit present, which is what lets the catalog be rebuilt from footers.
//!
//! # Figures
//! See `writer` for what a row costs and how the settings were chosen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::error::ArrowError;
use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::Activator;
use tracing::{info, warn};
use ulid::Ulid;

use crate::batch::{EncodedBatch, Group, Signal};
use crate::catalog_commit::registrar::Refused;
use crate::clock::Clock;
use crate::coverage::{OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::flight_source::Input;
use crate::wal_commit::disk;

pub use coverage_rows::CoverageRow;
pub use day::Day;
pub use roller::{Abandoned, Admitted, GivenUp, Roller, Stats};

pub mod coverage_rows;
pub mod day;
pub mod footer;
mod footer_check;
pub mod ids;
mod news;
mod roller;
pub mod writer;

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
    /// How pages are compressed.
    pub compression: Compression,
    /// Bloom filters on trace ids: a search for one trace skips nearly all row groups, for about a byte per four rows.
    pub bloom_filters: bool,
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard at a level of 1 to 22. Level 1 costs a tenth more than none and halves the file; higher ones gain little.
    Zstd(i32),
    /// Not at all.
    None,
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
            compression: Compression::Zstd(1),
            bloom_filters: true,
        }
    }
}

impl Config {
    /// The settings of one worker: a folder of its own, and ids of its own.
    fn on_worker(mut self, index: usize) -> Self {
        self.directory.push(format!("{WORKER_FOLDER}{index}"));
        self.seed ^= (index as u64).rotate_right(8);
        self
    }
}

/// Each worker's folder in the process's local folder starts so.
const WORKER_FOLDER: &str = "worker-";

/// Removes the folders of workers that a former run had and this one has not.
pub fn discard_surplus(directory: &Path, workers: usize) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(WORKER_FOLDER).and_then(|number| number.parse::<usize>().ok());
        if number.is_some_and(|number| number >= workers) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
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
    /// The schema's version as its writer numbers it; 0 where it does not tell.
    pub schema_version: u32,
}

/// What is published by one catalog transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedCommit {
    /// The commit's id: ascending within a group.
    pub commit_id: Ulid,
    /// The group of all its rows.
    pub group: Group,
    /// How often commits of the group had been refused when it closed: a commit may rest on earlier ones of its own generation only.
    pub generation: u64,
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

    /// True if there was no room for it: what was begun can be thrown away, and done again once there is.
    pub fn is_full(&self) -> bool {
        let is_full = |error: &std::io::Error| disk::is_full(error);
        match self {
            Error::Io { source, .. } => is_full(source),
            Error::Parquet { source: ParquetError::External(cause), .. } => cause.downcast_ref().is_some_and(is_full),
            _ => false,
        }
    }
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Offsets that are in the catalog when the graph starts.
    pub committed: Arc<BTreeMap<PartitionKey, OffsetSet>>,
    /// The wall clock, for age and idleness.
    pub clock: Arc<dyn Clock>,
    /// Where faults go.
    pub health: Health,
    /// Tells senders that a delivery is refused.
    pub refuse: Arc<dyn Refuse>,
}

/// The way back to the sender of a delivery that is not accepted.
pub trait Refuse: Send + Sync {
    /// Ends the delivery's stream with `message`; if `is_retriable`, its sender tries again.
    fn refuse(&self, delivery: DeliveryId, message: &str, is_retriable: bool);

    /// Takes no delivery for `worker` until then: senders wait.
    fn hold(&self, worker: usize, until_ms: u64);
}

/// What became of the commits that went out.
pub struct Feedback<'s> {
    /// They are in the catalog.
    pub committed: Stream<'s, Epoch, Vec<Arc<ClosedCommit>>>,
    /// They never will be.
    pub refused: Stream<'s, Epoch, Vec<Refused>>,
}

/// The operator's output streams.
pub struct Outputs<'s> {
    /// Closed commits, in the order of closing within each group.
    pub closed: Stream<'s, Epoch, Vec<Arc<ClosedCommit>>>,
    /// Deliveries that brought nothing the catalog does not have: published already.
    pub published: Stream<'s, Epoch, Vec<DeliveryId>>,
}

/// Rolls deliveries into Parquet files; `feedback` tells what became of the commits.
pub fn parquet_roll<'s>(
    stream: Stream<'s, Epoch, Vec<Input>>,
    feedback: Feedback<'s>,
    config: Config,
    ports: Ports,
) -> Outputs<'s> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let index = scope.index();
    let activator = scope.activator_for(builder.operator_info().address);
    let mut input = builder.new_input(stream, Pipeline);
    let (output, closed) = builder.new_output::<Vec<Arc<ClosedCommit>>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Arc<ClosedCommit>>>>::from(output);
    let (published_output, published) = builder.new_output::<Vec<DeliveryId>>();
    let mut published_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<DeliveryId>>>::from(published_output);
    let mut committed_input = builder.new_input_connection(feedback.committed, Pipeline, []);
    let mut refused_input = builder.new_input_connection(feedback.refused, Pipeline, []);
    builder.build(move |_capabilities| {
        let mut rolling = Rolling::open(index, config.on_worker(index), &ports);
        move |frontiers| {
            let Some(rolling) = &mut rolling else { return };
            // 1. Learn what is in the catalog, and what never will be.
            committed_input.for_each(|_, commits| commits.drain(..).for_each(|commit| rolling.committed(&commit)));
            refused_input.for_each(|_, refused| refused.drain(..).for_each(|refused| rolling.abandon(refused, &ports)));
            // 2. Admit deliveries. A failure keeps the capabilities, raises the fault and stops admitting.
            let mut output = output.activate();
            let mut published_output = published_output.activate();
            input.for_each(|capability, inputs| {
                let held = capability.retain_least(0).expect("every delivery is sent under a capability");
                for input in inputs.drain(..) {
                    let already = rolling.admit(input, &held, &ports);
                    published_output.session(&capability).give_iterator(already.into_iter());
                }
            });
            // 3. Close what is due; at the end of the input, everything.
            rolling.close_due(frontiers[0].is_empty(), &ports);
            rolling.send(&mut output);
            rolling.arm_timer(&activator, &ports);
        }
    });
    Outputs { closed, published }
}

type Session<'a> =
    timely::dataflow::operators::generic::OutputBuilderSession<'a, Epoch, CapacityContainerBuilder<Vec<Arc<ClosedCommit>>>>;

/// Waits for room on the local disk: how long no delivery is taken after one found the disk full.
const FULL_WAIT_MIN_MS: u64 = 500;
const FULL_WAIT_MAX_MS: u64 = 10_000;

/// The roller with the capabilities of what it has open.
struct Rolling {
    worker: usize,
    roller: Roller,
    /// The least epoch in each open group.
    open: BTreeMap<Group, Capability<Epoch>>,
    closed: Vec<(Capability<Epoch>, ClosedCommit)>,
    /// Capabilities of what could not be written: never dropped, so the frontier never passes it.
    failed: Vec<Capability<Epoch>>,
    timer_ms: Option<u64>,
    /// The next wait for room, since the disk was full and until a commit has reached the catalog.
    full_wait_ms: Option<u64>,
}

impl Rolling {
    fn open(worker: usize, config: Config, ports: &Ports) -> Option<Self> {
        let (open, closed, failed) = (BTreeMap::new(), Vec::new(), Vec::new());
        match Roller::open(config, ports.committed.as_ref().clone()) {
            Ok(roller) => Some(Rolling { worker, roller, open, closed, failed, timer_ms: None, full_wait_ms: None }),
            Err(error) => {
                ports.health.fail(NAME, chain(&error));
                None
            }
        }
    }

    fn committed(&mut self, commit: &ClosedCommit) {
        self.roller.committed(commit);
        if !commit.files.is_empty() && self.full_wait_ms.take().is_some() {
            info!("the local disk of storage has room again");
        }
    }

    /// Asks for the deliveries again that a refused commit takes with it.
    fn abandon(&mut self, refused: Refused, ports: &Ports) {
        let Abandoned { commits, refused: deliveries } = match self.roller.abandon(refused.commit.commit_id, refused.covered) {
            Ok(abandoned) => abandoned,
            Err(error) => return ports.health.fail(NAME, chain(&error)),
        };
        // Nothing is left to give up where an earlier refusal has done so; what is open by now is of the next generation.
        if commits.is_empty() {
            return;
        }
        self.open.remove(&refused.commit.group);
        let message = format!("commit {} was refused: another node was first, send again", refused.commit.commit_id);
        deliveries.into_iter().for_each(|id| ports.refuse.refuse(id, &message, true));
    }

    /// Asks for the deliveries again that found no room, and takes none for a while.
    fn wait_for_room(&mut self, ports: &Ports) {
        for GivenUp { group, deliveries, cause } in self.roller.take_given_up() {
            self.open.remove(&group);
            if self.full_wait_ms.is_none() {
                warn!(%group, cause, "the local disk of storage is full, deliveries wait; make room in storage.local_directory");
            }
            let wait_ms = self.full_wait_ms.unwrap_or(FULL_WAIT_MIN_MS);
            self.full_wait_ms = Some((wait_ms * 2).min(FULL_WAIT_MAX_MS));
            ports.refuse.hold(self.worker, ports.clock.now_ms() + wait_ms);
            let message = format!("storage has no room on its local disk, send again later: {cause}");
            deliveries.into_iter().for_each(|id| ports.refuse.refuse(id, &message, true));
        }
    }

    /// Returns the delivery itself if it is published already.
    fn admit(&mut self, input: Input, held: &Capability<Epoch>, ports: &Ports) -> Option<DeliveryId> {
        let received = match input {
            Input::Flush => {
                let flushed = self.roller.flush();
                self.keep_closed(flushed, held, ports);
                self.wait_for_room(ports);
                return None;
            }
            Input::Delivery(received) => received,
        };
        let (id, group) = (received.id, received.batch.group.clone());
        let admitted = match self.roller.admit(received, ports.clock.now_ms()) {
            Ok(admitted) => admitted,
            Err(error) if error.is_refusal() => {
                // Nothing has changed here, and nothing is acked: the sender still holds the delivery's capability and log.
                warn!(delivery = %id, error = chain(&error), "delivery refused");
                ports.refuse.refuse(id, &chain(&error), error.is_retriable());
                return None;
            }
            Err(error) => {
                ports.health.fail(NAME, format!("epoch {}: {}", held.time(), chain(&error)));
                self.failed.push(held.clone());
                return None;
            }
        };
        let is_settled = admitted.published.is_some() || admitted.closed.iter().any(|commit| commit.deliveries.contains(&id));
        self.keep_closed(Ok(admitted.closed), held, ports);
        if !is_settled {
            self.open.entry(group).or_insert_with(|| held.clone());
        }
        self.wait_for_room(ports);
        admitted.published
    }

    fn keep_closed(&mut self, closed: Result<Vec<ClosedCommit>, Error>, held: &Capability<Epoch>, ports: &Ports) {
        match closed {
            Ok(commits) => {
                for commit in commits {
                    let capability = self.open.remove(&commit.group).unwrap_or_else(|| held.clone());
                    self.closed.push((capability, commit));
                }
            }
            Err(error) => ports.health.fail(NAME, chain(&error)),
        }
    }

    fn close_due(&mut self, is_end: bool, ports: &Ports) {
        // Whatever is open holds a capability; without one there is nothing to close.
        let Some(held) = self.open.values().next().cloned() else { return };
        let closed = if is_end { self.roller.flush() } else { self.roller.tick(ports.clock.now_ms()) };
        self.keep_closed(closed, &held, ports);
        self.wait_for_room(ports);
    }

    fn send(&mut self, output: &mut Session<'_>) {
        for (capability, commit) in self.closed.drain(..) {
            let mut session = output.session(&capability);
            session.give(Arc::new(commit));
            session.flush();
        }
    }

    fn arm_timer(&mut self, activator: &Activator, ports: &Ports) {
        let now_ms = ports.clock.now_ms();
        let Some(deadline_ms) = self.roller.next_deadline_ms() else { return };
        // One timer at a time: activate_after never deduplicates.
        if self.timer_ms.is_none_or(|timer_ms| timer_ms <= now_ms || deadline_ms < timer_ms) {
            let wait_ms = deadline_ms.saturating_sub(now_ms).max(1);
            self.timer_ms = Some(now_ms + wait_ms);
            activator.activate_after(Duration::from_millis(wait_ms));
        }
    }
}
