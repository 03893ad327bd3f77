//! `catalog_commit`: publishes a commit, all of it or nothing.
//!
//! # In
//! A `ClosedCommit` whose files lie in the object store.
//!
//! # Out
//! *Committed*: the same commit, once the catalog has it durably: its deliveries may be acknowledged as published, its local files
//! are removed. *Refused*: a commit that will never be there because another node covered some of its offsets first, or because an
//! earlier one of its group was refused; with what the catalog covers, for `Roller::abandon`. Its files are removed, too.
//!
//! # Holds
//! Nothing between commits. The catalog is synchronous and lives on a thread of its own.
//!
//! # Closes when
//! Each commit by itself, in the order of closing within a group.
//!
//! # Fails when
//! The catalog refuses a commit for any other reason than an overlap. One that cannot be reached is waited for.
//!
//! # Invariants
//! - One transaction holds the file rows, the coverage rows and the index work of a commit.
//! - No offset of a (cluster, topic, topic id, partition) is covered twice.
//! - Committing again is harmless: after a lost answer the same commit is sent once more and found to be there. A different commit
//!   under the same id is refused.
//! - What `commit` returned survives a power failure.
//! - After a refusal no commit of the same group and generation is registered (`refusals`): its deliveries may rest on the refused one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tracing::warn;
use ulid::Ulid;

use crate::batch::Group;
use crate::catalog_commit::registrar::{Answer, Cause, Refused, Registrar, Request};
use crate::coverage::{Dispositions, OffsetSet, PartitionKey, TopicKey};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::object_upload::{StoreUri, remove_objects};
use crate::parquet_roll::footer::ulid_text;
use crate::parquet_roll::{ClosedCommit, CoverageRow, Day, FileKind};

pub mod audit;
pub mod janitor;
pub mod locate;
pub mod postgres_catalog;
pub mod rebuild;
pub mod refusals;
pub mod registrar;
pub mod sled_catalog;

#[cfg(test)]
mod conformance;

/// The operator's name in config, metrics and faults.
pub const NAME: &str = "catalog_commit";

/// A file as the catalog knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    /// The file's id.
    #[serde(with = "ulid_text")]
    pub file: Ulid,
    /// The commit that brought it.
    #[serde(with = "ulid_text")]
    pub commit_id: Ulid,
    /// The group of its rows.
    pub group: Group,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// Where it lies in the object store.
    pub path: String,
    /// The same in full, for readers; `None` in rows of former versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
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
    /// Names its schema.
    pub schema_hash: Arc<str>,
    /// The version of its schema; 0 where its writer did not tell.
    #[serde(default)]
    pub schema_version: u32,
}

/// What one transaction publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The commit's id.
    #[serde(with = "ulid_text")]
    pub commit_id: Ulid,
    /// The group of its rows.
    pub group: Group,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// Its files with rows.
    pub files: Vec<FileRow>,
    /// What it accounts for.
    pub coverage: Vec<CoverageRow>,
}

impl Commit {
    /// The catalog's part of a closed commit whose files lie in `store`.
    pub fn of(closed: &ClosedCommit, store: Option<&StoreUri>) -> Commit {
        let files = closed.files.iter().filter(|file| file.kind == FileKind::Rows).map(|file| FileRow {
            file: file.file,
            commit_id: closed.commit_id,
            group: closed.group.clone(),
            node: closed.node.clone(),
            path: file.path.clone(),
            uri: store.map(|store| store.object(&file.path)),
            day: file.day,
            rows: file.rows,
            bytes: file.bytes,
            time_min_ns: file.time_min_ns,
            time_max_ns: file.time_max_ns,
            schema_hash: file.schema_hash.clone(),
            schema_version: file.schema_version,
        });
        let (group, node, coverage) = (closed.group.clone(), closed.node.clone(), closed.coverage.clone());
        Commit { commit_id: closed.commit_id, group, node, files: files.collect(), coverage }
    }

    /// True if there is nothing to publish: such a commit only carries acknowledgements.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.coverage.is_empty()
    }

    /// A hash of whose it is and what it covers: tells a repeated commit from another one under the same id.
    ///
    /// Files are left out: those that retention removed are missing when the janitor finds the commit again. Two commits that cover
    /// the same offsets cannot both be right anyway.
    fn digest(&self) -> u128 {
        // Spelled out, not by `Debug`: digests are kept, and compared by later versions.
        let mut text = format!("{}\n{}\n", self.group, self.node);
        for row in &self.coverage {
            let PartitionKey { topic, partition } = &row.partition;
            let Dispositions { stored, duplicates, rejected, skipped, absent } = row.dispositions;
            text.push_str(&format!("{}\t{}\t{}\t{partition} ", topic.cluster, topic.name, topic.id));
            text.push_str(&format!("{}..{} {} ", row.range.start, row.range.end, row.rows));
            text.push_str(&format!("{stored} {duplicates} {rejected} {skipped} {absent}\n"));
        }
        twox_hash::XxHash3_128::oneshot(text.as_bytes())
    }

    /// Refuses what no correct writer sends, before anything is stored.
    fn check(&self) -> Result<(), Error> {
        let invalid = |detail: String| Err(Error::Invalid { commit_id: self.commit_id.to_string(), detail });
        if let Some(row) = self.coverage.iter().find(|row| !row.is_valid()) {
            return invalid(format!("coverage {}..{} of {} does not add up", row.range.start, row.range.end, row.partition));
        }
        if let Some(file) = self.files.iter().find(|file| file.commit_id != self.commit_id || file.group != self.group) {
            return invalid(format!("file {} belongs to another commit or group", file.path));
        }
        if !self.files.is_empty() && self.coverage.is_empty() {
            return invalid("it has files and no coverage".into());
        }
        Ok(())
    }
}

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is in the catalog now.
    New,
    /// It was there already: an earlier attempt had succeeded.
    AlreadyCommitted,
}

/// What the catalog knows of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Unknown,
    /// It is registered.
    Registered,
    /// It was given up: it can never be registered, and its objects are nobody's.
    Abandoned,
}

/// How far a partition is published without a gap, from its first covered offset on.
///
/// An offset below `offset` is stored, a duplicate, rejected, skipped or absent, for good. `kafka_time_max_ms` is a proof of time only
/// where the broker stamps messages (`LogAppendTime`): then all that was appended before it is published. Where producers do, it tells
/// how far the partition has come, and stragglers may have earlier times behind it. Event times prove nothing: a late event can always
/// come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteThrough {
    /// First covered offset.
    pub start: i64,
    /// One past the last offset of the unbroken run that begins there.
    pub offset: i64,
    /// The greatest Kafka timestamp of the run's rows, in Unix milliseconds.
    pub kafka_time_max_ms: Option<i64>,
}

/// How far each partition is published without a gap; `coverage` as `Catalog::coverage` gives it.
pub fn complete_through(coverage: &BTreeMap<PartitionKey, Vec<CoverageRow>>) -> BTreeMap<PartitionKey, CompleteThrough> {
    let first = |(partition, rows): (&PartitionKey, &Vec<CoverageRow>)| {
        let CoverageRow { range, kafka_time_max_ms, .. } = rows.first()?;
        let complete = CompleteThrough { start: range.start, offset: range.end, kafka_time_max_ms: *kafka_time_max_ms };
        Some((partition.clone(), complete))
    };
    coverage.iter().filter_map(first).collect()
}

/// What came of binding a topic to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The topic had no group.
    New,
    /// It had this one.
    Same,
}

/// Work for an indexer: one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexWork {
    /// The file's id; its first part is the time at which it was begun.
    #[serde(with = "ulid_text")]
    pub file: Ulid,
    /// The group of its rows.
    pub group: Group,
    /// Where it lies in the object store.
    pub path: String,
}

/// How much index work waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexBacklog {
    /// Files waiting.
    pub files: u64,
    /// When the oldest was begun, in Unix milliseconds.
    pub oldest_ms: Option<u64>,
}

/// Which files to list. The default lists all.
#[derive(Clone, Debug, Default)]
pub struct FileFilter {
    /// Only of this group.
    pub group: Option<Group>,
    /// Only with an event time in this range of nanoseconds, as far as minima and maxima can tell.
    pub time_ns: Option<Range<i64>>,
    /// Only with rows of days before this one.
    pub before: Option<Day>,
    /// Only with ids greater than this one: the last id of the page before.
    pub after: Option<Ulid>,
    /// At most so many; `None` for all.
    pub limit: Option<usize>,
}

impl FileFilter {
    /// True if `file` is asked for; `limit` is the lister's business.
    pub fn admits(&self, file: &FileRow) -> bool {
        let in_time = |time: &Range<i64>| match (file.time_min_ns, file.time_max_ns) {
            (Some(min), Some(max)) => min < time.end && max >= time.start,
            // Rows without any time cannot be excluded.
            _ => true,
        };
        self.group.as_ref().is_none_or(|group| *group == file.group)
            && self.time_ns.as_ref().is_none_or(in_time)
            && self.before.is_none_or(|before| file.day < before)
            && self.after.is_none_or(|after| file.file > after)
    }
}

/// Where files, coverage and index work are registered. Implementations agree to the letter: see `conformance`.
///
/// Shared by the threads of a process: the registrar's and the janitor's.
pub trait Catalog: Send + Sync {
    /// Publishes a commit in one durable transaction.
    fn commit(&self, commit: &Commit) -> Result<Committed, Error>;

    /// What it knows of a commit.
    fn standing(&self, commit_id: Ulid) -> Result<Standing, Error>;

    /// Gives up a commit that is not registered, so that its objects may be removed: whoever still tries to register it is refused
    /// with `Error::Abandoned`. A registered one stays as it is. Gives how the commit stands now.
    fn abandon(&self, commit_id: Ulid, group: &Group, node: &str) -> Result<Standing, Error>;

    /// What is accounted for: per partition disjoint, non-adjacent rows, ascending.
    fn coverage(&self) -> Result<BTreeMap<PartitionKey, Vec<CoverageRow>>, Error>;

    /// How far each partition is published without a gap.
    fn complete_through(&self) -> Result<BTreeMap<PartitionKey, CompleteThrough>, Error>;

    /// Published files in the order of their ids.
    fn files(&self, filter: &FileFilter) -> Result<Vec<FileRow>, Error>;

    /// Takes files out of what is published, with their index work; their rows are kept until `remove_files`, so that no crash leaves
    /// an object that nobody knows. Coverage stays: their offsets remain accounted for. Gives how many were published before.
    fn retire_files(&self, files: &[Ulid]) -> Result<u64, Error>;

    /// Retired files, the oldest first.
    fn retired_files(&self, limit: usize) -> Result<Vec<FileRow>, Error>;

    /// Forgets retired files whose objects were removed; published ones stay. Gives how many there were.
    fn remove_files(&self, files: &[Ulid]) -> Result<u64, Error>;

    /// Publishes files of registered commits whose rows were lost, with index work; known ones stay as they are. Gives how many were
    /// missing.
    fn restore_files(&self, files: &[FileRow]) -> Result<u64, Error>;

    /// Gives published files whose rows have no URI, as former versions wrote them, the one they have in `store`. Gives how many.
    fn locate_files(&self, store: &StoreUri) -> Result<u64, Error>;

    /// The oldest index work, in the order of file ids.
    fn index_pending(&self, limit: usize) -> Result<Vec<IndexWork>, Error>;

    /// How much index work there is.
    fn index_backlog(&self) -> Result<IndexBacklog, Error>;

    /// Index work is done; false if there was none for that file.
    fn index_done(&self, file: Ulid) -> Result<bool, Error>;

    /// Records that a topic belongs to a group; refuses another group than the recorded one.
    fn bind_topic(&self, topic: &TopicKey, group: &Group) -> Result<Binding, Error>;

    /// Moves a topic to another group, for a person who knows that its old rows stay where they are.
    fn rebind_topic(&self, topic: &TopicKey, group: &Group) -> Result<(), Error>;

    /// All topics and their groups.
    fn topics(&self) -> Result<BTreeMap<TopicKey, Group>, Error>;
}

/// What the catalog covers, as the offset sets that `Roller::open` and the source start from.
pub fn covered(coverage: &BTreeMap<PartitionKey, Vec<CoverageRow>>) -> BTreeMap<PartitionKey, OffsetSet> {
    let mut covered: BTreeMap<PartitionKey, OffsetSet> = BTreeMap::new();
    for (partition, rows) in coverage {
        let offsets = covered.entry(partition.clone()).or_default();
        rows.iter().for_each(|row| offsets.insert(row.range.clone()));
    }
    covered
}

/// Why the catalog did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Some of the commit's offsets are covered already, by another commit.
    #[error("commit {commit_id} covers offsets {}..{} of {partition}, but {}..{} are covered already", wanted.start, wanted.end, known.start, known.end)]
    Overlap {
        /// The commit.
        commit_id: String,
        /// The partition.
        partition: PartitionKey,
        /// What the commit covers.
        wanted: Range<i64>,
        /// What the catalog covers there.
        known: Range<i64>,
    },
    /// The id is taken by a commit with other contents.
    #[error("commit {commit_id} is in the catalog with other contents: two nodes made the same id")]
    Clash {
        /// The commit.
        commit_id: String,
    },
    /// The janitor gave the commit up before it was registered, and removed objects of it.
    #[error("commit {commit_id} was given up by the janitor, as it was not finished within storage.janitor.grace_seconds")]
    Abandoned {
        /// The commit.
        commit_id: String,
    },
    /// The commit contradicts itself.
    #[error("commit {commit_id} is not valid: {detail}")]
    Invalid {
        /// The commit.
        commit_id: String,
        /// What is wrong.
        detail: String,
    },
    /// The topic belongs to another group.
    #[error("topic {} belongs to {bound}, not to {wanted}: rename one of them, or move the topic on purpose", topic.name)]
    Bound {
        /// The topic.
        topic: TopicKey,
        /// The group it belongs to.
        bound: Group,
        /// The group asked for.
        wanted: Group,
    },
    /// The catalog on disk or in the database was written by another version.
    #[error(
        "{catalog} has schema version {found}, this version knows {known}: a newer openwit-ingest wrote it, so start that one"
    )]
    Version {
        /// Which catalog.
        catalog: String,
        /// Its version.
        found: String,
        /// Ours.
        known: u32,
    },
    /// The tables are of an older version, and the role may not change them.
    #[error(
        "the tables in schema {schema} have version {found}, this version needs {known}, and the role may not change them: run \
         `openwit-ingest migrate` with the URL of their owner"
    )]
    NotMigrated {
        /// The schema that holds the tables.
        schema: String,
        /// Their version; 0 where there are none.
        found: u32,
        /// Ours.
        known: u32,
        /// What the server said.
        source: postgres::Error,
    },
    /// A certificate or key for TLS cannot be used.
    #[error("cannot use {}, named by metastore.tls", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: openssl::error::ErrorStack,
    },
    /// No encrypted connection came about.
    #[error(
        "no encrypted connection to the PostgreSQL server: metastore.tls.ca_location must hold the authority that signed its certificate, \
         and metastore.url name the host that this is for"
    )]
    Encryption {
        /// Why.
        source: postgres::Error,
    },
    /// Another process has the embedded catalog open.
    #[error("{catalog} is in use by another process")]
    Locked {
        /// Which catalog.
        catalog: String,
    },
    /// The embedded catalog is damaged. Nothing is lost: the files' own footers hold everything.
    #[error("{catalog} is damaged ({detail}): `openwit-ingest janitor` moves it aside and rebuilds it from the object store")]
    Damaged {
        /// Which catalog.
        catalog: String,
        /// What was found.
        detail: String,
    },
    /// The embedded catalog's store failed.
    #[error("cannot {doing} in {catalog}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// Which catalog.
        catalog: String,
        /// Why it failed.
        source: sled::Error,
    },
    /// The database refused or cannot be reached.
    #[error("cannot {doing} in the PostgreSQL catalog")]
    Postgres {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: postgres::Error,
    },
    /// A setting is refused.
    #[error("the catalog's setting {key} is refused: {detail}")]
    Config {
        /// The setting.
        key: &'static str,
        /// Why.
        detail: String,
    },
}

impl Error {
    /// True if the commit itself is refused: repeating it changes nothing, but other commits may go through.
    pub fn is_about_the_commit(&self) -> bool {
        matches!(self, Error::Overlap { .. } | Error::Clash { .. } | Error::Invalid { .. } | Error::Abandoned { .. })
    }

    /// True if the same call may succeed later. Repeating it is always safe, also where it is unknown whether it had succeeded.
    pub fn is_retriable(&self) -> bool {
        match self {
            // A certificate may be mended on the server's side.
            Error::Postgres { source, .. } | Error::Encryption { source } => postgres_catalog::is_retriable(source),
            _ => false,
        }
    }
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The catalog's thread.
    pub registrar: Registrar,
    /// Where objects of refused commits are removed.
    pub runtime: tokio::runtime::Handle,
    /// The object store.
    pub store: opendal::Operator,
    /// Where faults go.
    pub health: Health,
}

/// The operator's output streams. Every commit comes out on one of them.
pub struct Outputs<'s> {
    /// Commits that are in the catalog.
    pub committed: Stream<'s, Epoch, Vec<Arc<ClosedCommit>>>,
    /// Commits that never will be.
    pub refused: Stream<'s, Epoch, Vec<Refused>>,
}

/// Registers commits in the catalog, and lets go of their local files.
pub fn catalog_commit<'s>(stream: Stream<'s, Epoch, Vec<Arc<ClosedCommit>>>, ports: Ports) -> Outputs<'s> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let mut counter = ports.registrar.counter(scope.worker().sync_activator_for(address.to_vec()));
    let mut input = builder.new_input(stream, Pipeline);
    let (output, committed) = builder.new_output::<Vec<Arc<ClosedCommit>>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Arc<ClosedCommit>>>>::from(output);
    let (refused_output, refused) = builder.new_output::<Vec<Refused>>();
    let mut refused_output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Refused>>>::from(refused_output);
    builder.build(move |_capabilities| {
        let mut waiting: BTreeMap<u64, Waiting> = BTreeMap::new();
        move |_frontiers| {
            // 1. Ask for each commit, in order.
            input.for_each(|capability, commits| {
                let committed = capability.retain_least(0).expect("every commit is sent under a capability");
                let refused = capability.retain_least(1).expect("every commit is sent under a capability");
                for commit in commits.drain(..) {
                    let ticket = counter.request(Request::Commit(commit.clone()));
                    waiting.insert(ticket, Waiting { committed: committed.clone(), refused: refused.clone(), commit });
                }
            });
            // 2. Hand on what is settled. A commit that failed otherwise keeps its capabilities.
            let mut output = output.activate();
            let mut refused_output = refused_output.activate();
            while let Some((ticket, answer)) = counter.answer() {
                if !matches!(answer, Answer::Committed | Answer::Refused(_)) {
                    continue;
                }
                let Some(Waiting { committed, refused, commit }) = waiting.remove(&ticket) else { continue };
                if let Answer::Refused(refusal) = answer {
                    discard_objects(&refusal, &ports);
                    let mut session = refused_output.session(&refused);
                    session.give(refusal);
                    session.flush();
                } else {
                    let mut session = output.session(&committed);
                    session.give(commit);
                    session.flush();
                }
            }
        }
    });
    Outputs { committed, refused }
}

/// A commit at the registrar, with a capability for either answer.
struct Waiting {
    committed: Capability<Epoch>,
    refused: Capability<Epoch>,
    commit: Arc<ClosedCommit>,
}

/// Removes the objects of a commit that nobody can ever register, the last one first. Best effort: what stays is found by the janitor.
///
/// A commit refused for its predecessor's sake alone is left to the janitor altogether: its offsets may be free, and whoever looks at the
/// object store just now may be about to register it, which is right as well.
fn discard_objects(refused: &Refused, ports: &Ports) {
    if refused.cause != Cause::Overlap {
        return;
    }
    let (store, commit) = (ports.store.clone(), refused.commit.clone());
    let removal = async move {
        if let Err(error) = remove_objects(&store, &commit).await {
            warn!(commit = %commit.commit_id, error = chain(&error), "an object that nobody needs stays until the janitor comes");
        }
    };
    ports.runtime.spawn(ports.health.clone().watch(NAME, removal));
}
