//! Where copies are kept, as a port; and the real one, a folder or an object store through OpenDAL.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use opendal::Operator;
use tokio::sync::watch;

use super::Name;
use super::cleanup::Found;
use crate::backoff::Backoff;
use crate::object_upload::{self, ObjectStore};
use crate::wal_commit::Error;

/// Bytes of one part of an upload; S3 wants at least 5 MiB, and at most 10,000 parts.
const PART_BYTES: usize = 8 << 20;
/// Attempts to read, with up to 0.1 to 3.2 seconds between them.
const READ_ATTEMPTS_MAX: u32 = 6;

/// Keeps copies. Its calls block.
pub trait Shelf: Send + Sync {
    /// Where `path` is, for messages.
    fn place(&self, path: &str) -> String;
    /// All copies, in no order. Other files are left alone.
    fn list(&self) -> io::Result<Vec<Found>>;
    /// The length of a copy; `None` if there is none.
    fn bytes(&self, path: &str) -> io::Result<Option<u64>>;
    /// Begins a copy, which is not there before it is finished.
    fn create(&self, path: &str) -> io::Result<Box<dyn Draft + '_>>;
    /// Bytes of a copy; fewer than asked for only at its end.
    fn read(&self, path: &str, range: Range<u64>) -> io::Result<Bytes>;
    /// Removes a copy. One that is gone is no error.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Lets all calls fail from now on, also those that run: the process ends.
    fn cancel(&self);
}

/// A copy that is being written.
pub trait Draft {
    /// Appends.
    fn write(&mut self, bytes: Vec<u8>) -> io::Result<()>;
    /// Makes it durable, whole and visible.
    fn finish(&mut self) -> io::Result<()>;
    /// Gives it up. What cannot be cleaned up stays invisible.
    fn abandon(&mut self);
}

/// A folder or an object store.
pub struct Store {
    operator: Operator,
    /// Its own, so that the thread that copies depends on no other.
    runtime: tokio::runtime::Runtime,
    cancelled: watch::Sender<bool>,
}

impl Store {
    /// Opens the store for writing. No request is made yet.
    pub fn open(store: &ObjectStore) -> Result<Store, Error> {
        let failed = |source| Error::from(("set up the long-term log in", place(store).into(), source));
        let operator = object_upload::build_operator(store).map_err(|error| failed(io::Error::other(error)))?;
        Store::new(operator).map_err(failed)
    }

    /// Opens a local folder, which must exist, only to look at it. It may also be the folder of one day.
    pub fn read_only(root: &Path) -> Result<Store, Error> {
        let failed = |source| Error::from(("open", root.to_owned(), source));
        if !root.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        // OpenDAL takes a relative root as relative to `/`.
        let absolute = std::path::absolute(root).map_err(failed)?;
        let operator = Operator::new(opendal::services::Fs::default().root(&absolute.to_string_lossy()));
        Store::new(operator.map_err(|error| failed(error.into()))?).map_err(failed)
    }

    fn new(operator: Operator) -> io::Result<Store> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Store { operator, runtime, cancelled: watch::Sender::new(false) })
    }

    /// Waits for `task`, unless all is cancelled first.
    fn run<T>(&self, task: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut cancelled = self.cancelled.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = cancelled.wait_for(|cancelled| *cancelled) => Err(io::ErrorKind::Interrupted.into()),
                done = task => done,
            }
        })
    }
}

fn place(store: &ObjectStore) -> String {
    match store {
        ObjectStore::Fs { root } => root.display().to_string(),
        other => format!("{other:?}"),
    }
}

impl Shelf for Store {
    fn place(&self, path: &str) -> String {
        let info = self.operator.info();
        match info.scheme() {
            "fs" => format!("{}/{path}", info.root().trim_end_matches('/')),
            scheme => format!("{scheme}://{}{}{path}", info.name(), info.root()),
        }
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        self.run(async {
            let mut found = Vec::new();
            let mut entries = self.operator.lister_with("").recursive(true).await?;
            while let Some(entry) = entries.try_next().await? {
                let (path, Some(name)) = (entry.path().to_owned(), Name::parse(entry.name())) else { continue };
                // Half-made files of a local folder lie apart.
                if path.starts_with('.') {
                    continue;
                }
                let listed = entry.metadata().content_length();
                // Not every store lists lengths.
                let bytes = if listed > 0 { listed } else { self.operator.stat(&path).await?.content_length() };
                found.push(Found { name, path, bytes });
            }
            Ok(found)
        })
    }

    fn bytes(&self, path: &str) -> io::Result<Option<u64>> {
        self.run(async {
            match self.operator.stat(path).await {
                Ok(metadata) => Ok(Some(metadata.content_length())),
                Err(error) if error.kind() == opendal::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn Draft + '_>> {
        let writer = self.run(async { Ok(self.operator.writer_with(path).chunk(PART_BYTES).await?) })?;
        Ok(Box::new(Upload { store: self, path: path.to_owned(), writer }))
    }

    fn read(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        let mut backoff = Backoff::new(100, 3_200, range.start);
        let mut attempts = 0;
        loop {
            match self.run(async { Ok(self.operator.read_with(path).range(range.clone()).await?.to_bytes()) }) {
                Err(error) if is_passing(&error) && attempts < READ_ATTEMPTS_MAX => {
                    attempts += 1;
                    let wait = backoff.next_wait();
                    self.run(async {
                        tokio::time::sleep(wait).await;
                        Ok(())
                    })?;
                }
                read => return read,
            }
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.run(async { Ok(self.operator.delete(path).await?) })
    }

    fn cancel(&self) {
        self.cancelled.send_replace(true);
    }
}

fn is_passing(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::Interrupted)
}

struct Upload<'a> {
    store: &'a Store,
    path: String,
    writer: opendal::Writer,
}

impl Draft for Upload<'_> {
    fn write(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let Upload { store, writer, .. } = self;
        store.run(async { Ok(writer.write(bytes).await?) })
    }

    fn finish(&mut self) -> io::Result<()> {
        let Upload { store, path, writer } = self;
        store.run(async {
            writer.close().await?;
            object_upload::sync_folders(&store.operator, path).await.map_err(io::Error::other)
        })
    }

    fn abandon(&mut self) {
        /// A store that does not answer shall not hold the next attempt.
        const ABORT_WAIT: Duration = Duration::from_secs(5);
        let Upload { store, writer, .. } = self;
        // Best effort: what stays is a half-made file apart, or parts that a bucket's lifecycle rule removes.
        let _ = store.run(async { Ok(tokio::time::timeout(ABORT_WAIT, writer.abort()).await) });
    }
}
