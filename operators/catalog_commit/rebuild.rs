//! Brings catalog and object store together again: the footers of the files hold everything the catalog knows.
//!
//! ```text
//! object        commit in catalog?   its coverage       then
//! any           registered           covered            a file without a row is restored; else nothing
//! any           registered           not covered        damaged: the catalog lost entries
//! any           abandoned            -                  abandoned: given up by the janitor; remove
//! complete      unknown              free               registered
//! complete      unknown              all covered        superseded: rows of an abandoned commit, stored again elsewhere; remove
//! complete      unknown              partly covered     conflicting: needs a person, since rows may be doubled or lost
//! incomplete    unknown              -                  nothing: the upload is under way or died; its rows are in a write-ahead log
//! ```
//! A commit is complete when its last file is there, since that is uploaded after all others. Everything is idempotent, and safe
//! beside running nodes: who comes second, node or rebuild, finds the commit by its id or is refused as overlapping. What may be removed
//! is removed by `janitor`, not here.
//!
//! What cannot come back: coverage of commits all of whose files retention has removed. Those offsets show as a gap at the start of
//! their partitions only if the broker still has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use opendal::{ErrorKind, Operator};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use ulid::Ulid;

use crate::batch::Group;
use crate::catalog_commit::{self, Catalog, Commit, Committed, FileFilter, FileRow, Standing, covered};
use crate::coverage::{OffsetSet, PartitionKey, TopicKey};
use crate::object_upload::StoreUri;
use crate::parquet_roll::CoverageRow;
use crate::parquet_roll::footer::{self, CommitNote, FileNote, ulid_text};

#[cfg(test)]
pub(super) mod tests;

/// Read at once from the end of a file: holds the footers of most.
const TAIL_BYTES: u64 = 64 << 10;
/// No footer of ours comes near; a larger one is damaged or hostile.
const FOOTER_BYTES_MAX: u64 = 256 << 20;
/// Objects looked at in parallel: hides the object store's latency.
const CONCURRENT: usize = 16;
/// Files asked of the catalog at once.
const PAGE_FILES: usize = 10_000;

/// Which objects are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All: after a catalog was lost, or is not trusted.
    Everything,
    /// Those that the catalog does not know: what a pass beside running nodes costs is one listing.
    Unknown,
}

/// How to go about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which objects are read.
    pub depth: Depth,
    /// Change nothing; the report says what would be.
    pub is_rehearsal: bool,
}

/// Ends work between two requests.
#[derive(Clone, Debug)]
pub struct Stop {
    receiver: watch::Receiver<bool>,
    /// Of a `Stop` that never comes.
    _never: Option<Arc<watch::Sender<bool>>>,
}

impl Stop {
    /// One that comes when the sender says so, or is dropped.
    pub fn pair() -> (watch::Sender<bool>, Stop) {
        let (sender, receiver) = watch::channel(false);
        (sender, Stop { receiver, _never: None })
    }

    /// One that never comes.
    pub fn never() -> Stop {
        let (sender, receiver) = watch::channel(false);
        Stop { receiver, _never: Some(Arc::new(sender)) }
    }

    /// Waits for it.
    pub async fn came(&self) {
        // A sender that is gone has said so, too.
        let _ = self.receiver.clone().wait_for(|stopped| *stopped).await;
    }

    /// Runs a request to the object store, unless the stop comes first.
    pub(super) fn or<T>(&self, runtime: &Handle, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.came() => Err(Error::Stopped),
                done = request => done,
            }
        })
    }
}

/// Objects of a commit that is not in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The commit.
    #[serde(with = "ulid_text")]
    pub commit_id: Ulid,
    /// The group of its rows.
    pub group: Group,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// Its objects that are there.
    pub paths: Vec<String>,
    /// When the youngest of them was written, in Unix milliseconds by the store's clock.
    pub modified_ms: u64,
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Objects below the prefix that look like ours.
    pub objects: u64,
    /// Commits registered now.
    pub registered: u64,
    /// Commits among the objects read that were registered already.
    pub known: u64,
    /// Files whose rows the catalog had lost: registered again.
    pub restored: Vec<String>,
    /// Commits whose last file is missing: being uploaded, or never finished.
    pub incomplete: Vec<Leftover>,
    /// Commits whose offsets are all covered by others: their rows are stored elsewhere.
    pub superseded: Vec<Leftover>,
    /// Commits that were given up and whose objects are not gone yet.
    pub abandoned: Vec<Leftover>,
    /// Commits that overlap others in part, with what the catalog said. Nothing was done.
    pub conflicting: Vec<String>,
    /// What the catalog lost of registered commits and cannot be put back one by one: it has to be rebuilt from nothing.
    pub damaged: Vec<String>,
    /// Objects that could not be read as ours, with the reason.
    pub unreadable: Vec<String>,
    /// Files of complete commits without an object: removed by retention, or lost.
    pub absent: Vec<String>,
    /// Rows of the catalog whose object is gone.
    pub missing_objects: Vec<String>,
}

impl Report {
    /// What needs a person, in words.
    pub fn findings(&self) -> impl Iterator<Item = String> + '_ {
        let missing = self.missing_objects.iter().map(|path| format!("missing in the object store: {path}"));
        let unreadable = self.unreadable.iter().map(|object| format!("not readable: {object}"));
        self.conflicting.iter().chain(&self.damaged).cloned().chain(unreadable).chain(missing)
    }
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
    /// It was stopped; the next pass begins anew.
    #[error("stopped before it was done")]
    Stopped,
    /// The catalog refused or cannot be reached.
    #[error(transparent)]
    Catalog(#[from] catalog_commit::Error),
}

/// One commit as its objects tell it.
struct Found {
    note: CommitNote,
    paths: Vec<String>,
    files: Vec<FileRow>,
    modified_ms: u64,
}

impl Found {
    fn leftover(self) -> Leftover {
        let Found { note, paths, modified_ms, .. } = self;
        Leftover { commit_id: note.commit_id, group: note.group, node: note.node, paths, modified_ms }
    }
}

enum Object {
    File { note: CommitNote, row: Box<FileRow>, modified_ms: u64 },
    Coverage { note: CommitNote, path: String, modified_ms: u64 },
    Unreadable(String),
    Gone,
}

/// Registers every complete commit below `prefix` that the catalog lacks, reading all footers, and reports what does not fit.
pub fn rebuild_from_footers(operator: &Operator, prefix: &str, catalog: &dyn Catalog, runtime: &Handle) -> Result<Report, Error> {
    let options = Options { depth: Depth::Everything, is_rehearsal: false };
    reconcile(operator, prefix, catalog, runtime, options, &Stop::never())
}

/// Brings catalog and object store together as far as that is safe, and reports the rest.
///
/// Synchronous, as the catalog is; reads run on `runtime`, of which the caller must not be a part. A store of a million files needs
/// about a gigabyte of memory here.
pub fn reconcile(
    operator: &Operator,
    prefix: &str,
    catalog: &dyn Catalog,
    runtime: &Handle,
    options: Options,
    stop: &Stop,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let known_files = known_files(catalog)?;
    let listed = stop.or(runtime, list(operator, prefix))?;
    let listed_files: BTreeSet<Ulid> = listed.iter().map(|(id, _)| *id).collect();
    report.objects = listed.len() as u64;
    let mut unread = Vec::new();
    for (id, path) in listed {
        let is_known = options.depth == Depth::Unknown
            && (known_files.contains(&id) || (path.ends_with(".json") && catalog.standing(id)? == Standing::Registered));
        if !is_known {
            unread.push(path);
        }
    }
    let found = stop.or(runtime, read(operator, unread, &mut report))?;
    let read_files = found.values().flat_map(|found| &found.files).map(|file| file.file);
    let seen: BTreeSet<Ulid> = match options.depth {
        Depth::Everything => read_files.collect(),
        Depth::Unknown => read_files.chain(known_files.intersection(&listed_files).copied()).collect(),
    };
    let groups = BTreeMap::new();
    let mut settling = Settling { catalog, options, known_files, seen, offsets: None, groups, lost: vec![], report };
    // By id, so by time: a topic that moved is bound to the group of its latest commit.
    for (commit_id, found) in found {
        settling.settle(commit_id, found)?;
    }
    settling.bind_topics()?;
    let Settling { mut report, lost, .. } = settling;
    report.restored = restore(operator, catalog, runtime, lost, options, stop)?;
    report.missing_objects = missing_objects(operator, catalog, runtime, &listed_files, stop)?;
    Ok(report)
}

/// Decides, commit by commit.
struct Settling<'a> {
    catalog: &'a dyn Catalog,
    options: Options,
    /// Files the catalog had before, retired ones among them.
    known_files: BTreeSet<Ulid>,
    /// Files that lie in the object store and are ours.
    seen: BTreeSet<Ulid>,
    /// What the catalog covers; read when first needed.
    offsets: Option<BTreeMap<PartitionKey, OffsetSet>>,
    groups: BTreeMap<Arc<TopicKey>, Group>,
    /// Files of registered commits that had no row.
    lost: Vec<FileRow>,
    report: Report,
}

impl Settling<'_> {
    fn settle(&mut self, commit_id: Ulid, found: Found) -> Result<(), Error> {
        match self.catalog.standing(commit_id)? {
            Standing::Registered => self.settle_registered(commit_id, found),
            Standing::Abandoned => {
                self.report.abandoned.push(found.leftover());
                Ok(())
            }
            Standing::Unknown if found.note.files.last().is_some_and(|last| !self.seen.contains(last)) => {
                self.report.incomplete.push(found.leftover());
                Ok(())
            }
            Standing::Unknown => self.settle_unknown(commit_id, found),
        }
    }

    fn settle_registered(&mut self, commit_id: Ulid, found: Found) -> Result<(), Error> {
        self.report.known += 1;
        self.note_absent(&found.note);
        if !self.is_covered(&found.note.coverage)? {
            self.report.damaged.push(format!("commit {commit_id} is in the catalog, and its offsets are not covered"));
        }
        self.note_groups(&found.note.coverage, &found.note.group);
        self.lost.extend(found.files.into_iter().filter(|file| !self.known_files.contains(&file.file)));
        Ok(())
    }

    fn settle_unknown(&mut self, commit_id: Ulid, found: Found) -> Result<(), Error> {
        let Found { note, files, .. } = &found;
        if let Some(file) = files.iter().find(|file| self.known_files.contains(&file.file)) {
            self.report.damaged.push(format!("file {} is in the catalog, and its commit {commit_id} is not", file.path));
            return Ok(());
        }
        let (group, node) = (note.group.clone(), note.node.clone());
        let commit = Commit { commit_id, group, node, files: files.clone(), coverage: note.coverage.clone() };
        match self.register(&commit) {
            Ok(Committed::New) => self.report.registered += 1,
            // By its node, since it was looked for.
            Ok(Committed::AlreadyCommitted) => self.report.known += 1,
            Err(catalog_commit::Error::Overlap { .. }) if self.is_covered(&commit.coverage)? => {
                self.report.superseded.push(found.leftover());
                return Ok(());
            }
            Err(error) if error.is_about_the_commit() => {
                self.report.conflicting.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        self.note_absent(note);
        self.note_groups(&commit.coverage, &commit.group);
        if let Some(offsets) = &mut self.offsets {
            for row in &commit.coverage {
                offsets.entry(row.partition.clone()).or_default().insert(row.range.clone());
            }
        }
        Ok(())
    }

    /// Registers a commit, or says what the catalog would.
    fn register(&mut self, commit: &Commit) -> Result<Committed, catalog_commit::Error> {
        if !self.options.is_rehearsal {
            return self.catalog.commit(commit);
        }
        commit.check()?;
        let offsets = self.offsets()?;
        for row in &commit.coverage {
            let Some(known) = offsets.get(&row.partition).filter(|known| known.overlaps(&row.range)) else { continue };
            let known = known.ranges().find(|known| known.end > row.range.start).unwrap_or(row.range.clone());
            let (commit_id, partition) = (commit.commit_id.to_string(), row.partition.clone());
            return Err(catalog_commit::Error::Overlap { commit_id, partition, wanted: row.range.clone(), known });
        }
        Ok(Committed::New)
    }

    fn offsets(&mut self) -> Result<&BTreeMap<PartitionKey, OffsetSet>, catalog_commit::Error> {
        let offsets = match self.offsets.take() {
            Some(offsets) => offsets,
            None => covered(&self.catalog.coverage()?),
        };
        Ok(self.offsets.insert(offsets))
    }

    fn is_covered(&mut self, coverage: &[CoverageRow]) -> Result<bool, Error> {
        fn all(offsets: &BTreeMap<PartitionKey, OffsetSet>, coverage: &[CoverageRow]) -> bool {
            let missing = |row: &CoverageRow| offsets.get(&row.partition).map(|known| known.missing_in(row.range.clone()));
            coverage.iter().all(|row| missing(row).is_some_and(|missing| missing.is_empty()))
        }
        if all(self.offsets()?, coverage) {
            return Ok(true);
        }
        if self.options.is_rehearsal {
            return Ok(false);
        }
        // Nodes have gone on committing since it was read.
        self.offsets = None;
        Ok(all(self.offsets()?, coverage))
    }

    fn note_absent(&mut self, note: &CommitNote) {
        let absent = note.files.iter().filter(|file| !self.seen.contains(file));
        self.report.absent.extend(absent.map(|file| file.to_string()));
    }

    fn note_groups(&mut self, coverage: &[CoverageRow], group: &Group) {
        for row in coverage {
            self.groups.insert(row.partition.topic.clone(), group.clone());
        }
    }

    /// Topics that the catalog already knows keep their group.
    fn bind_topics(&self) -> Result<(), Error> {
        if self.options.is_rehearsal {
            return Ok(());
        }
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

/// All files that have a row. Retention removes a row only after the object, so an object without a row was never taken out on purpose.
fn known_files(catalog: &dyn Catalog) -> Result<BTreeSet<Ulid>, Error> {
    let retired = catalog.retired_files(usize::MAX)?;
    let mut known: BTreeSet<Ulid> = retired.into_iter().map(|file| file.file).collect();
    pages(catalog, |page| {
        known.extend(page.into_iter().map(|file| file.file));
        Ok(())
    })?;
    Ok(known)
}

/// Puts the rows of files back that a registered commit names and the catalog lost. Both are looked at once more, first the row, then the
/// object: nodes have gone on since the listing, and retention removes in the other order.
fn restore(
    operator: &Operator,
    catalog: &dyn Catalog,
    runtime: &Handle,
    mut lost: Vec<FileRow>,
    options: Options,
    stop: &Stop,
) -> Result<Vec<String>, Error> {
    if lost.is_empty() {
        return Ok(vec![]);
    }
    let known = known_files(catalog)?;
    lost.retain(|file| !known.contains(&file.file));
    let mut restored = Vec::new();
    for file in lost {
        if !exists(operator, runtime, &file.path, stop)? {
            continue;
        }
        if !options.is_rehearsal {
            catalog.restore_files(std::slice::from_ref(&file))?;
        }
        restored.push(file.path);
    }
    Ok(restored)
}

fn exists(operator: &Operator, runtime: &Handle, path: &str, stop: &Stop) -> Result<bool, Error> {
    let failed = |source| Error::Object { doing: "look for", path: path.to_owned(), source: Box::new(source) };
    stop.or(runtime, async { operator.exists(path).await.map_err(failed) })
}

/// Rows whose file was not listed are asked for once more: nodes have gone on committing since. And what is not there then has its row
/// asked for once more: retention has gone on, too.
fn missing_objects(
    operator: &Operator,
    catalog: &dyn Catalog,
    runtime: &Handle,
    listed: &BTreeSet<Ulid>,
    stop: &Stop,
) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    pages(catalog, |page| {
        for file in page.into_iter().filter(|file| !listed.contains(&file.file)) {
            if !exists(operator, runtime, &file.path, stop)? {
                missing.push(file);
            }
        }
        Ok(())
    })?;
    if missing.is_empty() {
        return Ok(vec![]);
    }
    let mut published = BTreeSet::new();
    pages(catalog, |page| {
        published.extend(page.into_iter().map(|file| file.file));
        Ok(())
    })?;
    Ok(missing.into_iter().filter(|file| published.contains(&file.file)).map(|file| file.path).collect())
}

/// Objects that look like ours: the id in their name, and their path.
pub(crate) async fn list(operator: &Operator, prefix: &str) -> Result<Vec<(Ulid, String)>, Error> {
    let prefix = prefix.trim_matches('/');
    let folder = if prefix.is_empty() { "/".to_string() } else { format!("{prefix}/") };
    let failed = |source| Error::Object { doing: "list", path: folder.clone(), source: Box::new(source) };
    let mut lister = operator.lister_with(&folder).recursive(true).await.map_err(failed)?;
    let mut listed = Vec::new();
    while let Some(entry) = lister.try_next().await.map_err(failed)? {
        let name = entry.name();
        let stem = name.strip_suffix(".parquet").or_else(|| name.strip_suffix(".json"));
        let id = stem.and_then(|stem| Ulid::from_string(stem).ok());
        if let Some(id) = id.filter(|_| entry.metadata().is_file()) {
            listed.push((id, entry.path().to_string()));
        }
    }
    Ok(listed)
}

/// What objects say about themselves, by commit.
async fn read(operator: &Operator, paths: Vec<String>, report: &mut Report) -> Result<BTreeMap<Ulid, Found>, Error> {
    let looks = futures::stream::iter(paths).map(|path| look(operator, path));
    let mut looks = std::pin::pin!(looks.buffer_unordered(CONCURRENT));
    let mut found: BTreeMap<Ulid, Found> = BTreeMap::new();
    while let Some(object) = looks.try_next().await? {
        let (note, path, file, modified_ms) = match object {
            Object::File { note, row, modified_ms } => (note, row.path.clone(), Some(*row), modified_ms),
            Object::Coverage { note, path, modified_ms } => (note, path, None, modified_ms),
            Object::Unreadable(reason) => {
                report.unreadable.push(reason);
                continue;
            }
            Object::Gone => continue,
        };
        let commit = found.entry(note.commit_id);
        let commit = commit.or_insert_with(|| Found { note, paths: vec![], files: vec![], modified_ms: 0 });
        commit.paths.push(path);
        commit.files.extend(file);
        commit.modified_ms = commit.modified_ms.max(modified_ms);
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

/// Why an object cannot be read as ours.
pub(crate) enum Trouble {
    /// The object store's own failure.
    Store(Box<opendal::Error>),
    /// What is in it.
    Content(String),
}

impl From<opendal::Error> for Trouble {
    fn from(source: opendal::Error) -> Self {
        Trouble::Store(Box::new(source))
    }
}

pub(super) fn content(detail: impl std::fmt::Display) -> Trouble {
    Trouble::Content(detail.to_string())
}

/// The note of a commit without rows, and its object.
pub(super) async fn coverage_note(operator: &Operator, path: &str) -> Result<(CommitNote, opendal::Metadata), Trouble> {
    let metadata = operator.stat(path).await?;
    if metadata.content_length() > FOOTER_BYTES_MAX {
        return Err(content("too large for a commit's coverage"));
    }
    let json = operator.read(path).await?.to_bytes();
    let note = CommitNote::from_json(&json).map_err(content)?;
    if !note.files.is_empty() {
        return Err(content("a commit with files needs no object for its coverage"));
    }
    Ok((note, metadata))
}

async fn look_at_coverage(operator: &Operator, path: &str) -> Result<Object, Trouble> {
    let (note, metadata) = coverage_note(operator, path).await?;
    let modified_ms = modified_ms(&metadata, note.commit_id);
    Ok(Object::Coverage { note, path: path.to_string(), modified_ms })
}

async fn look_at_file(operator: &Operator, path: &str) -> Result<Object, Trouble> {
    let object = operator.stat(path).await?;
    let bytes = object.content_length();
    let metadata = footer::decode(&footer_bytes(operator, path, bytes).await?).map_err(content)?;
    let (note, file) = footer::read(&metadata).map_err(content)?;
    let FileNote { file, day, time_min_ns, time_max_ns, schema_hash, schema_version } = file;
    if !note.files.contains(&file) || !path.ends_with(&format!("/{}.parquet", file.to_string())) {
        return Err(content("the footer is that of another file"));
    }
    let rows = u64::try_from(metadata.file_metadata().num_rows()).map_err(content)?;
    let (commit_id, group, node) = (note.commit_id, note.group.clone(), note.node.clone());
    let (path, modified_ms) = (path.to_string(), modified_ms(&object, file));
    let uri = Some(StoreUri::of(operator).object(&path));
    let row = FileRow {
        file,
        commit_id,
        group,
        node,
        path,
        uri,
        day,
        rows,
        bytes,
        time_min_ns,
        time_max_ns,
        schema_hash,
        schema_version,
    };
    Ok(Object::File { note, row: Box::new(row), modified_ms })
}

/// When an object was written. A store that does not tell leaves the time at which its file was begun.
fn modified_ms(metadata: &opendal::Metadata, id: Ulid) -> u64 {
    let told = metadata.last_modified().map(|time| time.into_inner().as_millisecond());
    told.and_then(|time_ms| u64::try_from(time_ms).ok()).unwrap_or(id.timestamp_ms())
}

/// The Thrift bytes in front of the last eight: four of length, and the magic.
pub(crate) async fn footer_bytes(operator: &Operator, path: &str, bytes: u64) -> Result<Bytes, Trouble> {
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
