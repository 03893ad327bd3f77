//! Brings catalog and object store together again: the footers of the files hold everything the catalog knows.
//!
//! ```text
//! object        commit in catalog?   its coverage       then
//! complete      no                   free               registered
//! complete      no                   all covered        superseded: rows of an abandoned commit, stored again elsewhere; remove
//! complete      no                   partly covered     conflicting: needs a person, since rows may be doubled or lost
//! complete      yes                  -                  nothing; a file without a row is unreferenced: left by retention; remove
//! incomplete    -                    -                  nothing: the upload is under way or died; its rows are in a write-ahead log
//! ```
//! A commit is complete when its last file is there, since that is uploaded after all others. Everything is idempotent, and safe
//! beside running nodes: who comes second, node or rebuild, finds the commit by its id or is refused as overlapping.
//!
//! What cannot come back: coverage of commits all of whose files retention has removed. Those offsets show as a gap at the start of
//! their partitions only if the broker still has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use opendal::{ErrorKind, Operator};
use parquet::file::metadata::ParquetMetaDataReader;
use serde::Serialize;
use tokio::runtime::Handle;
use ulid::Ulid;

use crate::batch::Group;
use crate::catalog_commit::{self, Catalog, Commit, Committed, FileFilter, FileRow, covered};
use crate::coverage::{OffsetSet, PartitionKey, TopicKey};
use crate::parquet_roll::footer::{self, CommitNote, FileNote};
use crate::parquet_roll::{CoverageRow, Day};

#[cfg(test)]
mod tests;

/// Read at once from the end of a file: holds the footers of most.
const TAIL_BYTES: u64 = 64 << 10;
/// No footer of ours comes near; a larger one is damaged or hostile.
const FOOTER_BYTES_MAX: u64 = 256 << 20;
/// Objects looked at in parallel: hides the object store's latency.
const CONCURRENT: usize = 16;
/// Files asked of the catalog at once.
const PAGE_FILES: usize = 10_000;

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Objects seen that look like ours.
    pub objects: u64,
    /// Commits registered now.
    pub registered: u64,
    /// Commits that were registered already.
    pub known: u64,
    /// Commits whose last file is missing: being uploaded, or never finished. Their objects.
    pub incomplete: Vec<String>,
    /// Objects of commits whose offsets are all covered by others: their rows are stored elsewhere. May be removed.
    pub superseded: Vec<String>,
    /// Commits that overlap others in part, with what the catalog said. Nothing was done.
    pub conflicting: Vec<String>,
    /// Objects of known commits that retention has taken out of the catalog. May be removed.
    pub unreferenced: Vec<String>,
    /// Objects that could not be read as ours, with the reason.
    pub unreadable: Vec<String>,
    /// Files of complete commits without an object: removed by retention, or lost.
    pub absent: Vec<String>,
    /// Rows of the catalog whose object is gone.
    pub missing_objects: Vec<String>,
}

/// Why the work could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object store refused or cannot be reached.
    #[error("cannot {doing} {path}")]
    Object {
        /// What was being done.
        doing: &'static str,
        /// To which object or folder.
        path: String,
        /// Why it failed.
        source: Box<opendal::Error>,
    },
    /// The catalog refused or cannot be reached.
    #[error(transparent)]
    Catalog(#[from] catalog_commit::Error),
}

/// One commit as its objects tell it.
struct Found {
    note: CommitNote,
    paths: Vec<String>,
    files: Vec<FileRow>,
}

enum Object {
    File { note: CommitNote, row: Box<FileRow> },
    Coverage { note: CommitNote, path: String },
    Unreadable(String),
    Gone,
}

/// Registers every complete commit below `prefix` that the catalog lacks, and reports what does not fit.
///
/// Synchronous, as the catalog is; reads run on `runtime`, of which the caller must not be a part. A store of a million files needs
/// about a gigabyte of memory here.
pub fn rebuild_from_footers(operator: &Operator, prefix: &str, catalog: &dyn Catalog, runtime: &Handle) -> Result<Report, Error> {
    let mut report = Report::default();
    let found = runtime.block_on(scan(operator, prefix, &mut report))?;
    let seen: BTreeSet<Ulid> = found.values().flat_map(|found| &found.files).map(|file| file.file).collect();
    let mut settling =
        Settling { catalog, known_files: known_files(catalog)?, seen, offsets: None, groups: BTreeMap::new(), report };
    // By id, so by time: a topic that moved is bound to the group of its latest commit.
    for (commit_id, found) in found {
        settling.settle(commit_id, found)?;
    }
    settling.bind_topics()?;
    let Settling { mut report, seen, .. } = settling;
    report.missing_objects = missing_objects(operator, catalog, runtime, &seen)?;
    Ok(report)
}

/// Decides, commit by commit.
struct Settling<'a> {
    catalog: &'a dyn Catalog,
    /// Files the catalog had before.
    known_files: BTreeSet<Ulid>,
    /// Files that lie in the object store.
    seen: BTreeSet<Ulid>,
    /// What the catalog covers; read when first needed.
    offsets: Option<BTreeMap<PartitionKey, OffsetSet>>,
    groups: BTreeMap<Arc<TopicKey>, Group>,
    report: Report,
}

impl Settling<'_> {
    fn settle(&mut self, commit_id: Ulid, found: Found) -> Result<(), Error> {
        let Found { note, paths, files } = found;
        if note.files.last().is_some_and(|last| !self.seen.contains(last)) {
            self.report.incomplete.extend(paths);
            return Ok(());
        }
        let absent = note.files.iter().filter(|file| !self.seen.contains(file));
        self.report.absent.extend(absent.map(|file| file.to_string()));
        let commit = Commit { commit_id, group: note.group, node: note.node, files, coverage: note.coverage };
        match self.catalog.commit(&commit) {
            Ok(Committed::New) => self.report.registered += 1,
            Ok(Committed::AlreadyCommitted) => {
                self.report.known += 1;
                let unreferenced = commit.files.iter().filter(|file| !self.known_files.contains(&file.file));
                self.report.unreferenced.extend(unreferenced.map(|file| file.path.clone()));
            }
            Err(catalog_commit::Error::Overlap { .. }) if self.is_covered(&commit)? => {
                self.report.superseded.extend(paths);
                return Ok(());
            }
            Err(error) if error.is_about_the_commit() => {
                self.report.conflicting.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        for row in &commit.coverage {
            self.groups.insert(row.partition.topic.clone(), commit.group.clone());
            if let Some(offsets) = &mut self.offsets {
                offsets.entry(row.partition.clone()).or_default().insert(row.range.clone());
            }
        }
        Ok(())
    }

    fn is_covered(&mut self, commit: &Commit) -> Result<bool, Error> {
        let offsets = match self.offsets.take() {
            Some(offsets) => offsets,
            None => covered(&self.catalog.coverage()?),
        };
        let offsets = self.offsets.insert(offsets);
        let known =
            |row: &CoverageRow| offsets.get(&row.partition).is_some_and(|known| known.missing_in(row.range.clone()).is_empty());
        Ok(commit.coverage.iter().all(known))
    }

    /// Topics that the catalog already knows keep their group.
    fn bind_topics(&self) -> Result<(), Error> {
        let known = self.catalog.topics()?;
        for (topic, group) in self.groups.iter().filter(|(topic, _)| !known.contains_key(&***topic)) {
            self.catalog.rebind_topic(topic, group)?;
        }
        Ok(())
    }
}

fn pages(catalog: &dyn Catalog, mut visit: impl FnMut(Vec<FileRow>) -> Result<(), Error>) -> Result<(), Error> {
    let mut filter = FileFilter { limit: Some(PAGE_FILES), ..FileFilter::default() };
    loop {
        let page = catalog.files(&filter)?;
        let Some(last) = page.last() else { return Ok(()) };
        filter.after = Some(last.file);
        visit(page)?;
    }
}

fn known_files(catalog: &dyn Catalog) -> Result<BTreeSet<Ulid>, Error> {
    let mut known = BTreeSet::new();
    pages(catalog, |page| {
        known.extend(page.into_iter().map(|file| file.file));
        Ok(())
    })?;
    Ok(known)
}

/// Rows whose file was not seen are asked for once more: nodes have gone on committing since the listing.
fn missing_objects(
    operator: &Operator,
    catalog: &dyn Catalog,
    runtime: &Handle,
    seen: &BTreeSet<Ulid>,
) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    pages(catalog, |page| {
        for file in page.into_iter().filter(|file| !seen.contains(&file.file)) {
            let exists = runtime.block_on(operator.exists(&file.path));
            if !exists.map_err(|source| Error::Object { doing: "look for", path: file.path.clone(), source: Box::new(source) })? {
                missing.push(file.path);
            }
        }
        Ok(())
    })?;
    Ok(missing)
}

async fn scan(operator: &Operator, prefix: &str, report: &mut Report) -> Result<BTreeMap<Ulid, Found>, Error> {
    let prefix = prefix.trim_matches('/');
    let folder = if prefix.is_empty() { "/".to_string() } else { format!("{prefix}/") };
    let list = |source| Error::Object { doing: "list", path: folder.clone(), source: Box::new(source) };
    let lister = operator.lister_with(&folder).recursive(true).await.map_err(list)?;
    let ours = lister.try_filter(|entry| {
        let name = entry.name();
        let stem = name.strip_suffix(".parquet").or_else(|| name.strip_suffix(".json"));
        std::future::ready(entry.metadata().is_file() && stem.is_some_and(|stem| Ulid::from_string(stem).is_ok()))
    });
    let looks = ours.map(|entry| async {
        let path = entry.map_err(list)?.path().to_string();
        look(operator, path).await
    });
    let mut looks = std::pin::pin!(looks.buffer_unordered(CONCURRENT));
    let mut found: BTreeMap<Ulid, Found> = BTreeMap::new();
    while let Some(object) = looks.try_next().await? {
        let (note, path, file) = match object {
            Object::File { note, row } => (note, row.path.clone(), Some(*row)),
            Object::Coverage { note, path } => (note, path, None),
            Object::Unreadable(reason) => {
                report.unreadable.push(reason);
                continue;
            }
            Object::Gone => continue,
        };
        report.objects += 1;
        let commit = found.entry(note.commit_id).or_insert_with(|| Found { note, paths: vec![], files: vec![] });
        commit.paths.push(path);
        commit.files.extend(file);
    }
    for commit in found.values_mut() {
        // The order of the answers is nobody's.
        commit.paths.sort();
        commit.files.sort_by_key(|file| file.file);
    }
    report.unreadable.sort();
    Ok(found)
}

/// Reads what an object says about itself. Only the object store's own failures are errors.
async fn look(operator: &Operator, path: String) -> Result<Object, Error> {
    let read =
        if path.ends_with(".json") { look_at_coverage(operator, &path).await } else { look_at_file(operator, &path).await };
    match read {
        Ok(object) => Ok(object),
        // Removed since it was listed.
        Err(Trouble::Store(source)) if source.kind() == ErrorKind::NotFound => Ok(Object::Gone),
        Err(Trouble::Store(source)) => Err(Error::Object { doing: "read", path, source }),
        Err(Trouble::Content(detail)) => Ok(Object::Unreadable(format!("{path}: {detail}"))),
    }
}

enum Trouble {
    Store(Box<opendal::Error>),
    Content(String),
}

impl From<opendal::Error> for Trouble {
    fn from(source: opendal::Error) -> Self {
        Trouble::Store(Box::new(source))
    }
}

fn content(detail: impl std::fmt::Display) -> Trouble {
    Trouble::Content(detail.to_string())
}

async fn look_at_coverage(operator: &Operator, path: &str) -> Result<Object, Trouble> {
    if operator.stat(path).await?.content_length() > FOOTER_BYTES_MAX {
        return Err(content("too large for a commit's coverage"));
    }
    let json = operator.read(path).await?.to_bytes();
    let note = CommitNote::from_json(&json).map_err(content)?;
    if !note.files.is_empty() {
        return Err(content("a commit with files needs no object for its coverage"));
    }
    Ok(Object::Coverage { note, path: path.to_string() })
}

async fn look_at_file(operator: &Operator, path: &str) -> Result<Object, Trouble> {
    let bytes = operator.stat(path).await?.content_length();
    let metadata = ParquetMetaDataReader::decode_metadata(&footer_bytes(operator, path, bytes).await?).map_err(content)?;
    let (note, file) = footer::read(&metadata).map_err(content)?;
    let FileNote { file, day, time_min_ns, time_max_ns, schema_hash } = file;
    if !note.files.contains(&file) || !path.ends_with(&format!("/{}.parquet", file.to_string())) {
        return Err(content("the footer is that of another file"));
    }
    let rows = u64::try_from(metadata.file_metadata().num_rows()).map_err(content)?;
    let (commit_id, group, node) = (note.commit_id, note.group.clone(), note.node.clone());
    let row =
        FileRow { file, commit_id, group, node, path: path.to_string(), day, rows, bytes, time_min_ns, time_max_ns, schema_hash };
    Ok(Object::File { note, row: Box::new(row) })
}

/// The Thrift bytes in front of the last eight: four of length, and the magic.
async fn footer_bytes(operator: &Operator, path: &str, bytes: u64) -> Result<Bytes, Trouble> {
    if bytes < 12 {
        return Err(content("too short for a Parquet file"));
    }
    let tail_bytes = bytes.min(TAIL_BYTES);
    let tail = operator.read_with(path).range(bytes - tail_bytes..bytes).await?.to_bytes();
    let end = tail.len().checked_sub(8).ok_or_else(|| content("it shrank while being read"))?;
    let length = tail.get(end..end + 4).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
    let length = length.map(u64::from).filter(|length| *length <= FOOTER_BYTES_MAX && length + 12 <= bytes);
    let (Some(length), b"PAR1") = (length, &tail[end + 4..]) else { return Err(content("no Parquet footer")) };
    match end.checked_sub(length as usize) {
        Some(start) => Ok(tail.slice(start..end)),
        None => Ok(operator.read_with(path).range(bytes - 8 - length..bytes - 8).await?.to_bytes()),
    }
}

/// Retention: takes files all of whose rows are of days before `before` out of the catalog, then removes their objects. In this order
/// a reader never meets a row without its object; what a crash leaves behind, a rebuild reports as unreferenced.
pub fn expire(operator: &Operator, catalog: &dyn Catalog, runtime: &Handle, group: &Group, before: Day) -> Result<u64, Error> {
    let mut filter =
        FileFilter { group: Some(group.clone()), before: Some(before), limit: Some(PAGE_FILES), ..FileFilter::default() };
    let mut expired = 0;
    loop {
        let page = catalog.files(&filter)?;
        let Some(last) = page.last() else { return Ok(expired) };
        filter.after = Some(last.file);
        // Undated rows have no age.
        let old: Vec<FileRow> = page.into_iter().filter(|file| file.day != Day::UNDATED).collect();
        expired += catalog.remove_files(&old.iter().map(|file| file.file).collect::<Vec<_>>())?;
        for file in old {
            let removed = runtime.block_on(operator.delete(&file.path));
            removed.map_err(|source| Error::Object { doing: "remove", path: file.path, source: Box::new(source) })?;
        }
    }
}
