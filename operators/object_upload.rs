//! `object_upload`: brings the files of a closed commit into the object store.
//!
//! # In
//! `ClosedCommit` with its files in the local `stable/` folder.
//!
//! # Out
//! The same commit, once every file lies in the object store with the size it has locally.
//!
//! # Holds
//! Per file in flight `chunk_bytes` x `chunks_concurrent` of memory; nothing between commits. Local files stay until the catalog has
//! the commit: `remove_local` is called after that, never before.
//!
//! # Closes when
//! Each commit by itself, in the order of closing within a group (see `parquet_roll`).
//!
//! # Fails when
//! An error is not worth repeating (wrong credentials, no such bucket, local file gone). All others are repeated for ever: `attempts_max`
//! attempts in a row, then a longer wait.
//!
//! # Invariants
//! - Every commit is handed on, also one that will be refused: `catalog_commit` settles it and removes its files.
//! - The last file of a commit is uploaded after all others are verified: where it is, the commit is complete (`rebuild` rests on it).
//! - Uploading again is harmless: same path, same bytes. An interrupted upload leaves no object, at worst parts of a multipart
//!   upload; a bucket's lifecycle rule for incomplete uploads removes them.
//! - In a local folder (`fs`) an object appears whole, and it and its folders are synced before the upload counts as done.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use opendal::layers::TimeoutLayer;
use opendal::{ErrorKind, Operator, services};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;
use tokio::sync::Semaphore;
use tracing::warn;
use ulid::Ulid;

use crate::backoff::Backoff;
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::parquet_roll::{ClosedCommit, StableFile};

mod uri;

#[cfg(test)]
mod tests;

pub use uri::StoreUri;

/// The operator's name in config, metrics and faults.
pub const NAME: &str = "object_upload";

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectStore {
    /// A local or mounted folder.
    Fs {
        /// The folder; created when missing.
        root: PathBuf,
    },
    /// Memory of this process, for tests.
    Memory,
    /// Amazon S3 or a compatible service.
    S3(S3),
    /// Google Cloud Storage.
    Gcs(Gcs),
    /// Azure Blob Storage.
    Azblob(Azblob),
}

/// A bucket of Google Cloud Storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gcs {
    /// The bucket.
    pub bucket: String,
    /// Address of an emulator; `None` for Google's. Without credentials such an address is spoken to unsigned.
    pub endpoint: Option<String>,
    /// A service account's JSON file; `None` takes the credentials of the environment or the machine.
    pub credential_path: Option<PathBuf>,
}

/// A container of Azure Blob Storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Azblob {
    /// The container.
    pub container: String,
    /// Address of the account, `https://ACCOUNT.blob.core.windows.net`, or of an emulator.
    pub endpoint: String,
    /// The account's name.
    pub account_name: Option<String>,
    /// Its key; `None` takes the credentials of the environment or the machine.
    pub account_key: Option<Secret>,
}

/// An S3 bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// Folder in the bucket; empty for its root.
    pub root: String,
    /// Address of a compatible service; `None` for Amazon's.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` where a compatible service does not care.
    pub region: Option<String>,
    /// Access key; `None` takes credentials from the environment, profile or instance.
    pub access_key_id: Option<Secret>,
    /// Secret key.
    pub secret_access_key: Option<Secret>,
    /// Put the bucket into the host name, not into the path.
    pub virtual_host_style: bool,
}

/// Text that no log or error may show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    /// The secret itself, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// How files are uploaded.
#[derive(Clone, Debug)]
pub struct Config {
    /// Size of a part. S3 wants at least 5 MiB and at most 10,000 parts.
    pub chunk_bytes: usize,
    /// Parts of one file in flight.
    pub chunks_concurrent: usize,
    /// Files of one commit in flight.
    pub files_concurrent: usize,
    /// Attempts per file in a row; then a longer wait, and the same again.
    pub attempts_max: u32,
    /// First wait between attempts; doubles, with jitter.
    pub backoff_ms: u64,
    /// Longest wait between attempts.
    pub backoff_max_ms: u64,
    /// A request that brings nothing for this long has failed: a store that hangs is told from a slow one.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            chunk_bytes: 8 << 20,
            chunks_concurrent: 4,
            files_concurrent: 4,
            // About four minutes in all.
            attempts_max: 12,
            backoff_ms: 200,
            backoff_max_ms: 30_000,
            timeout: IO_TIMEOUT,
        }
    }
}

/// Why a file is not in the object store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings of the store are refused.
    #[error("cannot set up object store {scheme}")]
    Setup {
        /// The scheme.
        scheme: &'static str,
        /// Why.
        source: Box<opendal::Error>,
    },
    /// The object store refuses or cannot be reached.
    #[error("cannot {doing} object {path}")]
    Object {
        /// What was being done.
        doing: &'static str,
        /// To which object.
        path: String,
        /// Why it failed.
        source: Box<opendal::Error>,
    },
    /// A local file operation failed.
    #[error("cannot {doing} {}", path.display())]
    Local {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The object has not the size of its file.
    #[error("object {path} has {found} bytes, its file has {expected}")]
    Size {
        /// The object.
        path: String,
        /// Its size.
        found: u64,
        /// The file's size.
        expected: u64,
    },
}

impl Error {
    /// True if the same call may succeed later. What OpenDAL cannot classify is repeated: a network fails in many ways.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Object { source, .. } => {
                let worth = matches!(source.kind(), ErrorKind::Unexpected | ErrorKind::RateLimited | ErrorKind::Conflict);
                source.is_temporary() || worth
            }
            Error::Size { .. } => true,
            Error::Setup { .. } | Error::Local { .. } => false,
        }
    }
}

/// What an upload took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Files uploaded.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Attempts that failed on the way.
    pub failures: u64,
}

impl std::ops::AddAssign for Uploaded {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.failures += other.failures;
    }
}

/// Folder of half-written objects in a local store: outside of every index, whose names cannot start with a dot and a bracket.
const TEMPORARY_FOLDER: &str = ".[openwit-uploads]";
/// Older leftovers there are of dead processes: no upload takes a day.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// A request without progress for this long has failed.
const IO_TIMEOUT: Duration = Duration::from_secs(60);

/// Connects to an object store. No request is made yet.
pub fn build_operator(store: &ObjectStore) -> Result<Operator, Error> {
    build_patient_operator(store, IO_TIMEOUT)
}

/// As `build_operator`; requests without progress for as long as `timeout` fail.
pub fn build_patient_operator(store: &ObjectStore, timeout: Duration) -> Result<Operator, Error> {
    let setup = |scheme| move |source| Error::Setup { scheme, source: Box::new(source) };
    let operator = match store {
        ObjectStore::Memory => Operator::new(services::Memory::default()).map_err(setup("memory"))?,
        ObjectStore::Fs { root } => {
            let temporary = root.join(TEMPORARY_FOLDER);
            remove_stale(&temporary);
            let builder = services::Fs::default().root(&root.to_string_lossy()).atomic_write_dir(&temporary.to_string_lossy());
            Operator::new(builder).map_err(setup("fs"))?
        }
        ObjectStore::S3(s3) => Operator::new(s3_builder(s3)).map_err(setup("s3"))?,
        ObjectStore::Gcs(gcs) => Operator::new(gcs_builder(gcs)).map_err(setup("gcs"))?,
        ObjectStore::Azblob(azblob) => Operator::new(azblob_builder(azblob)).map_err(setup("azblob"))?,
    };
    Ok(operator.layer(TimeoutLayer::new().with_timeout(timeout).with_io_timeout(timeout)))
}

fn gcs_builder(gcs: &Gcs) -> services::Gcs {
    let mut builder = services::Gcs::default().bucket(&gcs.bucket);
    if let Some(path) = &gcs.credential_path {
        // Given credentials are meant: without this a wrong file would be hidden by the machine's.
        builder = builder.credential_path(&path.to_string_lossy()).disable_config_load().disable_vm_metadata();
    }
    match &gcs.endpoint {
        Some(endpoint) if gcs.credential_path.is_none() => builder.endpoint(endpoint).skip_signature(),
        Some(endpoint) => builder.endpoint(endpoint),
        None => builder,
    }
}

fn azblob_builder(azblob: &Azblob) -> services::Azblob {
    let mut builder = services::Azblob::default().container(&azblob.container).endpoint(&azblob.endpoint);
    if let Some(name) = &azblob.account_name {
        builder = builder.account_name(name);
    }
    match &azblob.account_key {
        Some(key) => builder.account_key(key.reveal()),
        None => builder,
    }
}

fn s3_builder(s3: &S3) -> services::S3 {
    let mut builder = services::S3::default().bucket(&s3.bucket).root(&s3.root);
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.endpoint(endpoint).region(s3.region.as_deref().unwrap_or("us-east-1"));
    } else if let Some(region) = &s3.region {
        builder = builder.region(region);
    }
    if let (Some(id), Some(secret)) = (&s3.access_key_id, &s3.secret_access_key) {
        // Given keys are meant: without this a wrong one would be hidden by the environment's, or by a slow search for it.
        builder =
            builder.access_key_id(id.reveal()).secret_access_key(secret.reveal()).disable_config_load().disable_ec2_metadata();
    }
    if s3.virtual_host_style { builder.enable_virtual_host_style() } else { builder }
}

/// Best effort: leftovers take room, nothing else.
fn remove_stale(temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else { return };
    for entry in entries.flatten() {
        let age =
            entry.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > TEMPORARY_AGE_MAX) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Uploads all files of a commit, the last one after all others.
pub async fn upload_commit(operator: &Operator, commit: &ClosedCommit, config: &Config) -> Result<Uploaded, Error> {
    let mut uploaded = Uploaded::default();
    let Some((last, others)) = commit.files.split_last() else { return Ok(uploaded) };
    let uploads: Vec<_> = others.iter().map(|file| upload_file(operator, file, config)).collect();
    let uploads = futures::stream::iter(uploads);
    // All are waited for, also after a failure: an upload dropped half-way cannot clean up behind itself.
    let done: Vec<Result<Uploaded, Error>> = uploads.buffer_unordered(config.files_concurrent.max(1)).collect().await;
    for one in done {
        uploaded += one?;
    }
    uploaded += upload_file(operator, last, config).await?;
    Ok(uploaded)
}

/// Uploads one file and verifies its size, trying again after errors worth it.
pub async fn upload_file(operator: &Operator, file: &StableFile, config: &Config) -> Result<Uploaded, Error> {
    // Seeded by the file: repeatable, and different for files that failed together.
    let mut backoff = Backoff::new(config.backoff_ms, config.backoff_max_ms, file.file.random() as u64);
    let mut failures = 0;
    loop {
        let error = match attempt(operator, file, config).await {
            Ok(()) => return Ok(Uploaded { files: 1, bytes: file.bytes, failures }),
            Err(error) => error,
        };
        failures += 1;
        if !error.is_retriable() || failures >= u64::from(config.attempts_max) {
            return Err(error);
        }
        let wait = backoff.next_wait();
        tracing::warn!(
            path = file.path,
            failures,
            wait_ms = wait.as_millis() as u64,
            error = chain(&error),
            "upload failed, trying again"
        );
        tokio::time::sleep(wait).await;
    }
}

async fn attempt(operator: &Operator, file: &StableFile, config: &Config) -> Result<(), Error> {
    let object = |doing| move |source| Error::Object { doing, path: file.path.clone(), source: Box::new(source) };
    let writer = operator.writer_with(&file.path).chunk(config.chunk_bytes).concurrent(config.chunks_concurrent.max(1));
    let mut writer = writer.await.map_err(object("start"))?;
    let written = match copy(file, &mut writer, config.chunk_bytes).await {
        Ok(()) => writer.close().await.map_err(object("complete")),
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        // The error that matters is the first; what the abort leaves behind, the next attempt or a lifecycle rule replaces.
        let _ = writer.abort().await;
        return Err(error);
    }
    let found = operator.stat(&file.path).await.map_err(object("stat"))?.content_length();
    if found != file.bytes {
        return Err(Error::Size { path: file.path.clone(), found, expected: file.bytes });
    }
    sync_folders(operator, &file.path).await
}

async fn copy(file: &StableFile, writer: &mut opendal::Writer, chunk_bytes: usize) -> Result<(), Error> {
    use tokio::io::AsyncReadExt;
    let local = |doing| move |source| Error::Local { doing, path: file.local.clone(), source };
    let mut source = tokio::fs::File::open(&file.local).await.map_err(local("open"))?;
    let mut left = file.bytes;
    while left > 0 {
        let size = left.min(chunk_bytes.max(1) as u64);
        // Owned by the part in flight, so it cannot be reused.
        let mut chunk = vec![0; size as usize];
        source.read_exact(&mut chunk).await.map_err(local("read"))?;
        let written = writer.write(chunk).await;
        written.map_err(|source| Error::Object { doing: "write", path: file.path.clone(), source: Box::new(source) })?;
        left -= size;
    }
    Ok(())
}

/// OpenDAL syncs a local object, but not the folders that lead to it: after a power failure the catalog would name a file that is gone.
pub(crate) async fn sync_folders(operator: &Operator, path: &str) -> Result<(), Error> {
    let info = operator.info();
    if info.scheme() != "fs" {
        return Ok(());
    }
    let root = PathBuf::from(info.root());
    for folder in Path::new(path).ancestors().skip(1) {
        let folder = root.join(folder);
        let synced = async { tokio::fs::File::open(&folder).await?.sync_all().await };
        synced.await.map_err(|source| Error::Local { doing: "sync", path: folder.clone(), source })?;
    }
    Ok(())
}

/// Removes the local files of a commit that is in the catalog, or that was refused.
pub fn remove_local(commit: &ClosedCommit) -> Result<(), Error> {
    for file in &commit.files {
        match std::fs::remove_file(&file.local) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done.map_err(|source| Error::Local { doing: "remove", path: file.local.clone(), source })?,
        }
    }
    Ok(())
}

/// Removes the objects of a refused commit; the last file first, so that the rest no longer looks complete.
pub async fn remove_objects(operator: &Operator, commit: &ClosedCommit) -> Result<(), Error> {
    for file in commit.files.iter().rev() {
        let removed = operator.delete(&file.path).await;
        removed.map_err(|source| Error::Object { doing: "remove", path: file.path.clone(), source: Box::new(source) })?;
    }
    Ok(())
}

/// Commits of one worker in flight; their files multiply with `files_concurrent`.
const COMMITS_CONCURRENT: usize = 2;
/// Waits between rounds of attempts: an object store that is away holds the frontier, it does not stop the graph.
const RETRY_WAIT_MIN: Duration = Duration::from_secs(1);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where uploads run.
    pub runtime: tokio::runtime::Handle,
    /// The object store.
    pub store: Operator,
    /// Where faults go.
    pub health: Health,
}

/// Uploads the files of commits; several at once, handed on in the order in which they came.
pub fn object_upload<'s>(
    stream: Stream<'s, Epoch, Vec<Arc<ClosedCommit>>>,
    config: Config,
    ports: Ports,
) -> Stream<'s, Epoch, Vec<Arc<ClosedCommit>>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.worker().sync_activator_for(address.to_vec());
    let mut input = builder.new_input(stream, Pipeline);
    let (output, uploaded) = builder.new_output::<Vec<Arc<ClosedCommit>>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Arc<ClosedCommit>>>>::from(output);
    builder.build(move |_capabilities| {
        let (reporter, reports) = std::sync::mpsc::channel::<Ulid>();
        // In order of arrival: commits of a group must reach the catalog in the order in which they closed.
        let mut queue: VecDeque<(Capability<Epoch>, Arc<ClosedCommit>)> = VecDeque::new();
        let mut done: BTreeSet<Ulid> = BTreeSet::new();
        let uploads = Arc::new(Semaphore::new(COMMITS_CONCURRENT));
        move |_frontiers| {
            // 1. Start uploads.
            input.for_each(|capability, commits| {
                let capability = capability.retain_least(0).expect("every commit is sent under a capability");
                for commit in commits.drain(..) {
                    queue.push_back((capability.clone(), commit.clone()));
                    let job = Job { commit, config: config.clone(), ports: ports.clone(), reporter: reporter.clone() };
                    ports.runtime.spawn(ports.health.clone().watch(NAME, job.run(uploads.clone(), activator.clone())));
                }
            });
            // 2. Hand on what is uploaded, in order.
            done.extend(reports.try_iter());
            let mut output = output.activate();
            while queue.front().is_some_and(|(_, commit)| done.remove(&commit.commit_id)) {
                let Some((capability, commit)) = queue.pop_front() else { break };
                let mut session = output.session(&capability);
                session.give(commit);
                session.flush();
            }
        }
    });
    uploaded
}

/// One commit on its way.
struct Job {
    commit: Arc<ClosedCommit>,
    config: Config,
    ports: Ports,
    reporter: std::sync::mpsc::Sender<Ulid>,
}

impl Job {
    async fn run(self, uploads: Arc<Semaphore>, activator: SyncActivator) {
        // The semaphore is never closed.
        let _turn = uploads.acquire_owned().await;
        let mut wait = RETRY_WAIT_MIN;
        while !self.ports.health.failed() {
            match upload_commit(&self.ports.store, &self.commit, &self.config).await {
                Ok(_) => {
                    // The operator is gone only when the process ends.
                    let _ = self.reporter.send(self.commit.commit_id);
                    let _ = activator.activate();
                    return;
                }
                Err(error) if error.is_retriable() => {
                    warn!(commit = %self.commit.commit_id, error = chain(&error), "upload failed, trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_WAIT_MAX);
                }
                Err(error) => {
                    self.ports.health.fail(NAME, format!("commit {}: {}", self.commit.commit_id, chain(&error)));
                    return;
                }
            }
        }
    }
}
