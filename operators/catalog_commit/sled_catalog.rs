//! The embedded catalog: a folder, no service.
//!
//! ```text
//! tree      key                                  value
//! meta      "schema"                             version, u32 big endian
//!           "closed"                             Counts, JSON; absent while a process has the catalog open
//! files     file ULID, 16 bytes                  FileRow, JSON
//! retired   file ULID, 16 bytes                  FileRow, JSON, of files whose objects are about to be removed
//! commits   commit ULID, 16 bytes                digest, u128 big endian; "abandoned" for one that was given up
//! coverage  [cluster, topic, topic id, partition] as JSON    all CoverageRows of the partition, JSON
//! index     file ULID, 16 bytes                  IndexWork, JSON
//! topics    [cluster, topic, topic id] as JSON   [TopicKey, Group], JSON
//! ```
//! All coverage of a partition is one value, so that checking and changing it is one step inside of sled's transaction, which knows
//! no ranges. It holds as many rows as the partition has gaps, usually one.
//!
//! sled 0.34 is beta and known to break when its process is killed at the wrong moment. It is chosen because losing it costs time, not
//! data: `rebuild` restores it from the object store. So opening it treats every error, and every panic of sled itself, as "damaged";
//! and as sled may also drop damaged entries without a word (a test shows it), it counts its entries when it is closed and reads and
//! counts them again when it is opened. What was not closed or does not agree is `State::Unclean`: whoever opens it then rebuilds before
//! trusting it, which costs one listing of the object store and its footers.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sled::transaction::{ConflictableTransactionError, TransactionError, TransactionalTree};
use sled::{Db, Transactional, Tree};
use ulid::Ulid;

use crate::batch::Group;
use crate::catalog_commit::{
    Binding, Catalog, Commit, Committed, CompleteThrough, Error, FileFilter, FileRow, IndexBacklog, IndexWork, Standing,
    complete_through,
};
use crate::coverage::{PartitionKey, TopicKey};
use crate::object_upload::StoreUri;
use crate::parquet_roll::CoverageRow;
use crate::parquet_roll::coverage_rows;

const VERSION: u32 = 1;
/// sled's default is 1 GB. A catalog of 100,000 files is 50 MB; most reads are of a few coverage values.
const CACHE_BYTES: u64 = 32 << 20;

/// In the place of the digest of a commit that was given up.
const ABANDONED: &[u8] = b"abandoned";

/// How the catalog was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It did not exist, or nothing of it was left.
    New,
    /// Its last process closed it, and it holds as much as then.
    Clean,
    /// Its last process died, or entries are gone.
    Unclean,
}

impl State {
    /// True if the catalog may lack what the object store holds.
    pub fn needs_rebuild(self) -> bool {
        self != State::Clean
    }
}

/// How much a catalog holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    files: usize,
    /// Absent in what older versions wrote.
    #[serde(default)]
    retired: usize,
    commits: usize,
    partitions: usize,
    rows_covered: u64,
    index: usize,
    topics: usize,
}

/// A catalog in a local folder, owned by one process.
pub struct SledCatalog {
    name: String,
    state: State,
    /// Whoever looks at it does not vouch for it: one that was not closed cleanly stays so.
    is_looked_at: bool,
    meta: Tree,
    db: Db,
    files: Tree,
    retired: Tree,
    commits: Tree,
    coverage: Tree,
    index: Tree,
    topics: Tree,
}

impl SledCatalog {
    /// Opens the catalog in `folder`, creating it when there is none.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let name = format!("catalog {}", folder.display());
        let damaged = |detail: String| Error::Damaged { catalog: name.clone(), detail };
        let opened = catch_unwind(AssertUnwindSafe(|| Self::open_trees(folder, name.clone())));
        match opened {
            Ok(Ok(catalog)) => Ok(catalog),
            Ok(Err(Error::Store { source: sled::Error::Io(error), .. })) if is_lock(&error) => {
                Err(Error::Locked { catalog: name })
            }
            Ok(Err(Error::Store { source, .. })) => Err(damaged(source.to_string())),
            Ok(Err(other)) => Err(other),
            Err(panic) => {
                let message =
                    panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
                Err(damaged(message.unwrap_or_else(|| "sled panicked".into())))
            }
        }
    }

    /// Opens the catalog of a process that does not run, to look at it: the next process finds it as clean, or not, as it was left.
    pub fn look(folder: &Path) -> Result<Self, Error> {
        let mut catalog = Self::open(folder)?;
        catalog.is_looked_at = true;
        Ok(catalog)
    }

    fn open_trees(folder: &Path, name: String) -> Result<Self, Error> {
        let store = |source| Error::Store { doing: "open", catalog: name.clone(), source };
        // No flushing in the background: whatever matters is flushed before its call returns.
        let db = sled::Config::new().path(folder).cache_capacity(CACHE_BYTES).flush_every_ms(None).open().map_err(store)?;
        let tree = |tree: &str| db.open_tree(tree).map_err(store);
        let meta = tree("meta")?;
        let (schema, closed) = (meta.get("schema").map_err(store)?, meta.get("closed").map_err(store)?);
        if let Some(found) = schema.as_ref().filter(|found| **found != VERSION.to_be_bytes()) {
            return Err(Error::Version { catalog: name, found: format!("{found:?}"), known: VERSION });
        }
        let mut catalog = SledCatalog {
            name: name.clone(),
            state: State::New,
            is_looked_at: false,
            meta,
            files: tree("files")?,
            retired: tree("retired")?,
            commits: tree("commits")?,
            coverage: tree("coverage")?,
            index: tree("index")?,
            topics: tree("topics")?,
            db,
        };
        // Reads everything: damage shows now, where it can be told what to do, and not as a panic in the middle of a commit.
        let counts = catalog.count()?;
        let known = closed.map(|closed| catalog.read::<Counts>(&closed)).transpose()?;
        catalog.state = match (schema, known) {
            (None, _) => State::New,
            (Some(_), Some(known)) if known == counts => State::Clean,
            _ => State::Unclean,
        };
        catalog.meta.insert("schema", &VERSION.to_be_bytes()).map_err(store)?;
        catalog.meta.remove("closed").map_err(store)?;
        catalog.flush("open")?;
        Ok(catalog)
    }

    /// Moves a damaged catalog out of the way, so that a new one can be opened and rebuilt in its place. Gives the new path.
    pub fn set_aside(folder: &Path, now_ms: u64) -> std::io::Result<PathBuf> {
        let mut name = folder.as_os_str().to_owned();
        name.push(format!(".damaged-{now_ms}"));
        std::fs::rename(folder, &name)?;
        Ok(name.into())
    }

    /// How the catalog was found when it was opened.
    pub fn state(&self) -> State {
        self.state
    }

    fn count(&self) -> Result<Counts, Error> {
        let coverage = self.coverage()?;
        if let Some(row) = coverage.values().flatten().find(|row| !row.is_valid()) {
            let detail = format!("coverage {}..{} of {} does not add up", row.range.start, row.range.end, row.partition);
            return Err(Error::Damaged { catalog: self.name.clone(), detail });
        }
        let entries =
            |tree: &Tree| tree.iter().try_fold(0, |count, entry| entry.map(|_| count + 1)).map_err(self.failed("count entries"));
        Ok(Counts {
            files: self.files(&FileFilter::default())?.len(),
            retired: self.retired_files(usize::MAX)?.len(),
            commits: entries(&self.commits)?,
            partitions: coverage.len(),
            rows_covered: coverage.values().flatten().map(|row| row.rows).fold(0, u64::wrapping_add),
            index: self.index_pending(usize::MAX)?.len(),
            topics: self.topics()?.len(),
        })
    }

    fn failed(&self, doing: &'static str) -> impl Fn(sled::Error) -> Error + '_ {
        move |source| Error::Store { doing, catalog: self.name.clone(), source }
    }

    fn aborted(&self, doing: &'static str) -> impl Fn(TransactionError<Error>) -> Error + '_ {
        move |error| match error {
            TransactionError::Abort(error) => error,
            TransactionError::Storage(source) => self.failed(doing)(source),
        }
    }

    fn read<T: DeserializeOwned>(&self, value: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(value).map_err(|error| Error::Damaged { catalog: self.name.clone(), detail: error.to_string() })
    }

    fn flush(&self, doing: &'static str) -> Result<(), Error> {
        self.db.flush().map(|_| ()).map_err(self.failed(doing))
    }

    /// The body of the commit's transaction. sled may run it more than once.
    fn transact(&self, commit: &Commit, trees: &Trees<'_>) -> Result<Committed, ConflictableTransactionError<Error>> {
        let id = commit.commit_id.to_bytes();
        let digest = commit.digest().to_be_bytes();
        if let Some(known) = trees.commits.get(id)? {
            if *known == *ABANDONED {
                return abort(Error::Abandoned { commit_id: commit.commit_id.to_string() });
            }
            let same = *known == digest;
            return if same {
                Ok(Committed::AlreadyCommitted)
            } else {
                abort(Error::Clash { commit_id: commit.commit_id.to_string() })
            };
        }
        for row in &commit.coverage {
            let key = partition_key(&row.partition);
            let known = trees.coverage.get(&key)?;
            let mut rows: Vec<CoverageRow> = match known {
                Some(value) => self.read(&value).or_else(abort)?,
                None => vec![],
            };
            if let Err(known) = coverage_rows::add(&mut rows, row.clone()) {
                let (commit_id, partition, wanted) = (commit.commit_id.to_string(), row.partition.clone(), row.range.clone());
                return abort(Error::Overlap { commit_id, partition, wanted, known });
            }
            trees.coverage.insert(key, json(&rows))?;
        }
        for file in &commit.files {
            trees.files.insert(&file.file.to_bytes(), json(file))?;
            trees.index.insert(&file.file.to_bytes(), json(&work_of(file)))?;
        }
        trees.commits.insert(&id, &digest)?;
        Ok(Committed::New)
    }
}

struct Trees<'a> {
    files: &'a TransactionalTree,
    commits: &'a TransactionalTree,
    coverage: &'a TransactionalTree,
    index: &'a TransactionalTree,
}

fn abort<T>(error: Error) -> Result<T, ConflictableTransactionError<Error>> {
    Err(ConflictableTransactionError::Abort(error))
}

fn standing_of(known: &[u8]) -> Standing {
    if known == ABANDONED { Standing::Abandoned } else { Standing::Registered }
}

fn work_of(file: &FileRow) -> IndexWork {
    IndexWork { file: file.file, group: file.group.clone(), path: file.path.clone() }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("structs of strings and numbers always become JSON")
}

fn topic_key(topic: &TopicKey) -> Vec<u8> {
    json(&(&topic.cluster, &topic.name, &topic.id))
}

fn partition_key(partition: &PartitionKey) -> Vec<u8> {
    let PartitionKey { topic, partition } = partition;
    json(&(&topic.cluster, &topic.name, &topic.id, partition))
}

fn is_lock(error: &std::io::Error) -> bool {
    // sled wraps the refused lock into an error of kind Other.
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

impl Drop for SledCatalog {
    /// Best effort: where it fails, the next one to open it finds it unclean. A panic may come from sled: then nothing more is asked of it.
    fn drop(&mut self) {
        if std::thread::panicking() || (self.is_looked_at && self.state.needs_rebuild()) {
            return;
        }
        let closed = self.count().and_then(|counts| self.meta.insert("closed", json(&counts)).map_err(self.failed("close")));
        if closed.and_then(|_| self.flush("close")).is_err() {
            tracing::warn!(catalog = self.name, "catalog could not be closed properly");
        }
    }
}

impl Catalog for SledCatalog {
    fn commit(&self, commit: &Commit) -> Result<Committed, Error> {
        commit.check()?;
        if commit.is_empty() {
            return Ok(Committed::New);
        }
        let trees = (&self.files, &self.commits, &self.coverage, &self.index);
        let committed = trees
            .transaction(|(files, commits, coverage, index)| self.transact(commit, &Trees { files, commits, coverage, index }));
        let committed = committed.map_err(self.aborted("commit"))?;
        // Also when it was there already: the attempt that brought it may have failed right here.
        self.flush("sync a commit")?;
        Ok(committed)
    }

    fn standing(&self, commit_id: Ulid) -> Result<Standing, Error> {
        let known = self.commits.get(commit_id.to_bytes()).map_err(self.failed("look for a commit"))?;
        Ok(known.map_or(Standing::Unknown, |known| standing_of(&known)))
    }

    fn abandon(&self, commit_id: Ulid, _group: &Group, _node: &str) -> Result<Standing, Error> {
        let key = commit_id.to_bytes();
        let abandoned = self.commits.compare_and_swap(key, None as Option<&[u8]>, Some(ABANDONED));
        let known = abandoned.map_err(self.failed("give up a commit"))?.err().and_then(|error| error.current);
        self.flush("sync a commit given up")?;
        Ok(known.map_or(Standing::Abandoned, |known| standing_of(&known)))
    }

    fn complete_through(&self) -> Result<BTreeMap<PartitionKey, CompleteThrough>, Error> {
        Ok(complete_through(&self.coverage()?))
    }

    fn coverage(&self) -> Result<BTreeMap<PartitionKey, Vec<CoverageRow>>, Error> {
        let mut coverage = BTreeMap::new();
        for value in self.coverage.iter().values() {
            let rows: Vec<CoverageRow> = self.read(&value.map_err(self.failed("read coverage"))?)?;
            if let Some(first) = rows.first() {
                coverage.insert(first.partition.clone(), rows);
            }
        }
        Ok(coverage)
    }

    fn files(&self, filter: &FileFilter) -> Result<Vec<FileRow>, Error> {
        let start = filter.after.unwrap_or_else(Ulid::nil).to_bytes();
        let mut files = Vec::new();
        for value in self.files.range(start..).values() {
            let file: FileRow = self.read(&value.map_err(self.failed("list files"))?)?;
            if filter.admits(&file) {
                files.push(file);
            }
            if filter.limit.is_some_and(|limit| files.len() >= limit) {
                break;
            }
        }
        Ok(files)
    }

    fn retire_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        let mut count = 0;
        for file in files {
            let key = file.to_bytes();
            let moved = (&self.files, &self.retired, &self.index).transaction(|(files, retired, index)| {
                let Some(row) = files.remove(&key)? else { return Ok(false) };
                index.remove(&key)?;
                retired.insert(&key, row)?;
                Ok(true)
            });
            count += u64::from(moved.map_err(self.aborted("retire a file"))?);
        }
        self.flush("sync retired files")?;
        Ok(count)
    }

    fn retired_files(&self, limit: usize) -> Result<Vec<FileRow>, Error> {
        let values = self.retired.iter().values().take(limit);
        values.map(|value| self.read(&value.map_err(self.failed("list retired files"))?)).collect()
    }

    fn remove_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        let mut removed = 0;
        for file in files {
            removed += u64::from(self.retired.remove(file.to_bytes()).map_err(self.failed("remove a file"))?.is_some());
        }
        self.flush("sync removed files")?;
        Ok(removed)
    }

    fn restore_files(&self, files: &[FileRow]) -> Result<u64, Error> {
        let mut restored = 0;
        for file in files {
            let (key, work) = (file.file.to_bytes(), work_of(file));
            let trees = (&self.files, &self.retired, &self.index);
            let added = trees.transaction(|(files, retired, index)| {
                if files.get(key)?.is_some() || retired.get(key)?.is_some() {
                    return Ok(false);
                }
                files.insert(&key, json(file))?;
                index.insert(&key, json(&work))?;
                Ok(true)
            });
            restored += u64::from(added.map_err(self.aborted("restore a file"))?);
        }
        self.flush("sync restored files")?;
        Ok(restored)
    }

    fn locate_files(&self, store: &StoreUri) -> Result<u64, Error> {
        let mut located = 0;
        for entry in self.files.iter() {
            let (key, value) = entry.map_err(self.failed("list files"))?;
            let file: FileRow = self.read(&value)?;
            if file.uri.is_none() {
                let located_row = json(&FileRow { uri: Some(store.object(&file.path)), ..file });
                let swapped = self.files.compare_and_swap(key, Some(value), Some(located_row));
                located += u64::from(swapped.map_err(self.failed("locate a file"))?.is_ok());
            }
        }
        self.flush("sync located files")?;
        Ok(located)
    }

    fn index_pending(&self, limit: usize) -> Result<Vec<IndexWork>, Error> {
        let values = self.index.iter().values().take(limit);
        values.map(|value| self.read(&value.map_err(self.failed("read index work"))?)).collect()
    }

    fn index_backlog(&self) -> Result<IndexBacklog, Error> {
        let oldest = self.index.first().map_err(self.failed("read index work"))?;
        let oldest: Option<IndexWork> = oldest.map(|(_, value)| self.read(&value)).transpose()?;
        Ok(IndexBacklog { files: self.index.len() as u64, oldest_ms: oldest.map(|work| work.file.timestamp_ms()) })
    }

    fn index_done(&self, file: Ulid) -> Result<bool, Error> {
        let done = self.index.remove(file.to_bytes()).map_err(self.failed("finish index work"))?;
        self.flush("sync finished index work")?;
        Ok(done.is_some())
    }

    fn bind_topic(&self, topic: &TopicKey, group: &Group) -> Result<Binding, Error> {
        let known = self.topics.get(topic_key(topic)).map_err(self.failed("read a topic"))?;
        match known.map(|value| self.read::<(TopicKey, Group)>(&value)).transpose()? {
            Some((_, bound)) if bound == *group => Ok(Binding::Same),
            Some((_, bound)) => Err(Error::Bound { topic: topic.clone(), bound, wanted: group.clone() }),
            None => self.rebind_topic(topic, group).map(|()| Binding::New),
        }
    }

    fn rebind_topic(&self, topic: &TopicKey, group: &Group) -> Result<(), Error> {
        self.topics.insert(topic_key(topic), json(&(topic, group))).map_err(self.failed("bind a topic"))?;
        self.flush("sync a topic's group")
    }

    fn topics(&self) -> Result<BTreeMap<TopicKey, Group>, Error> {
        let values = self.topics.iter().values();
        values.map(|value| self.read::<(TopicKey, Group)>(&value.map_err(self.failed("read topics"))?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_upload::{ObjectStore, build_operator};

    #[test]
    fn file_rows_of_former_versions_are_read_and_given_their_uri() {
        let folder = tempfile::tempdir().unwrap();
        drop(SledCatalog::open(folder.path()).unwrap());
        let (file, former) = (
            Ulid::from_string("01ARZ3NDEKTSV4RRFFQ69G5FAW").unwrap(),
            r#"{"file":"01ARZ3NDEKTSV4RRFFQ69G5FAW","commit_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","group":{"index":"orders","signal":"traces"},
                "node":"n","path":"lake/a.parquet","day":1,"rows":7,"bytes":8,"time_min_ns":1,"time_max_ns":2,"schema_hash":"h"}"#,
        );
        let db = sled::open(folder.path()).unwrap();
        db.open_tree("files").unwrap().insert(file.to_bytes(), former).unwrap();
        drop(db);
        let catalog = SledCatalog::open(folder.path()).unwrap();
        let store = StoreUri::of(&build_operator(&ObjectStore::Memory).unwrap());
        let uris = |catalog: &SledCatalog| -> Vec<_> {
            catalog.files(&FileFilter::default()).unwrap().into_iter().map(|row| (row.rows, row.uri)).collect()
        };
        assert_eq!(uris(&catalog), [(7, None)]);
        assert_eq!((catalog.locate_files(&store).unwrap(), catalog.locate_files(&store).unwrap()), (1, 0));
        drop(catalog);
        let catalog = SledCatalog::open(folder.path()).unwrap();
        assert_eq!(uris(&catalog), [(7, Some("memory:///lake/a.parquet".to_owned()))]);
    }
}
