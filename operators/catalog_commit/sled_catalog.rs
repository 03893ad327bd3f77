//! The embedded catalog: a folder, no service.
//!
//! ```text
//! tree      key                                  value
//! meta      "schema"                             version, u32 big endian
//! files     file ULID, 16 bytes                  FileRow, JSON
//! commits   commit ULID, 16 bytes                digest, u128 big endian
//! coverage  [cluster, topic, topic id, partition] as JSON    all CoverageRows of the partition, JSON
//! index     file ULID, 16 bytes                  IndexWork, JSON
//! topics    [cluster, topic, topic id] as JSON   [TopicKey, Group], JSON
//! ```
//! All coverage of a partition is one value, so that checking and changing it is one step inside of sled's transaction, which knows
//! no ranges. It holds as many rows as the partition has gaps, usually one.
//!
//! sled 0.34 is beta and known to break when its process is killed at the wrong moment. It is chosen because losing it costs time, not
//! data: `rebuild` restores it from the object store. So opening it treats every error, and every panic of sled itself, as "damaged".

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sled::transaction::{ConflictableTransactionError, TransactionError, TransactionalTree};
use sled::{Db, Transactional, Tree};
use ulid::Ulid;

use crate::batch::Group;
use crate::catalog_commit::{Binding, Catalog, Commit, Committed, Error, FileFilter, FileRow, IndexBacklog, IndexWork};
use crate::coverage::{PartitionKey, TopicKey};
use crate::parquet_roll::CoverageRow;
use crate::parquet_roll::coverage_rows;

const VERSION: u32 = 1;
/// sled's default is 1 GB. A catalog of 100,000 files is 50 MB; most reads are of a few coverage values.
const CACHE_BYTES: u64 = 32 << 20;

/// A catalog in a local folder, owned by one process.
pub struct SledCatalog {
    name: String,
    db: Db,
    files: Tree,
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
            Ok(Err(Error::Store { source: sled::Error::Io(error), .. })) if is_lock(&error) => Err(Error::Locked { catalog: name }),
            Ok(Err(Error::Store { source, .. })) => Err(damaged(source.to_string())),
            Ok(Err(other)) => Err(other),
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
                Err(damaged(message.unwrap_or_else(|| "sled panicked".into())))
            }
        }
    }

    fn open_trees(folder: &Path, name: String) -> Result<Self, Error> {
        let store = |source| Error::Store { doing: "open", catalog: name.clone(), source };
        // No flushing in the background: whatever matters is flushed before its call returns.
        let db = sled::Config::new().path(folder).cache_capacity(CACHE_BYTES).flush_every_ms(None).open().map_err(store)?;
        let tree = |tree: &str| db.open_tree(tree).map_err(store);
        let meta = tree("meta")?;
        match meta.get("schema").map_err(store)? {
            None => {
                meta.insert("schema", &VERSION.to_be_bytes()).map_err(store)?;
                db.flush().map_err(store)?;
            }
            Some(found) if *found == VERSION.to_be_bytes() => {}
            Some(found) => return Err(Error::Version { catalog: name, found: format!("{found:?}"), known: VERSION }),
        }
        let (files, commits, coverage, index, topics) = (tree("files")?, tree("commits")?, tree("coverage")?, tree("index")?, tree("topics")?);
        Ok(SledCatalog { name, files, commits, coverage, index, topics, db })
    }

    fn failed(&self, doing: &'static str) -> impl Fn(sled::Error) -> Error + '_ {
        move |source| Error::Store { doing, catalog: self.name.clone(), source }
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
            let same = *known == digest;
            return if same { Ok(Committed::AlreadyCommitted) } else { abort(Error::Clash { commit_id: commit.commit_id.to_string() }) };
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
            let work = IndexWork { file: file.file, group: file.group.clone(), path: file.path.clone() };
            trees.files.insert(&file.file.to_bytes(), json(file))?;
            trees.index.insert(&file.file.to_bytes(), json(&work))?;
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

impl Catalog for SledCatalog {
    fn commit(&self, commit: &Commit) -> Result<Committed, Error> {
        commit.check()?;
        if commit.is_empty() {
            return Ok(Committed::New);
        }
        let trees = (&self.files, &self.commits, &self.coverage, &self.index);
        let committed = trees.transaction(|(files, commits, coverage, index)| self.transact(commit, &Trees { files, commits, coverage, index }));
        let committed = committed.map_err(|error| match error {
            TransactionError::Abort(error) => error,
            TransactionError::Storage(source) => self.failed("commit")(source),
        })?;
        // Also when it was there already: the attempt that brought it may have failed right here.
        self.flush("sync a commit")?;
        Ok(committed)
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

    fn remove_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        let mut removed = 0;
        for file in files {
            self.index.remove(file.to_bytes()).map_err(self.failed("remove index work"))?;
            removed += u64::from(self.files.remove(file.to_bytes()).map_err(self.failed("remove a file"))?.is_some());
        }
        self.flush("sync removed files")?;
        Ok(removed)
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
