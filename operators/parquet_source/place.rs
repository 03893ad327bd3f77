//! Where files lie, a folder or an object store, and how they are read by parts.
//!
//! Of an object the compressed bytes of a row group are fetched at once, or those of its columns one by one where only a few are read: a request
//! for each page would take hours. What is larger than `PART_BYTES_MAX` is fetched page by page.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use opendal::Operator;
use opendal::layers::RetryLayer;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::Runtime;

use super::Error;
use super::lake::Lake;
use crate::catalog_commit::rebuild::{Trouble, footer_bytes};
use crate::fault::chain;
use crate::object_upload::build_operator;
use crate::parquet_roll::footer;

/// No footer of ours comes near; a larger one is damaged or hostile.
const FOOTER_BYTES_MAX: u64 = 256 << 20;
/// Where a file is read without knowing how much is needed.
const CHUNK_BYTES: u64 = 64 << 10;
/// Bytes of an object that are fetched at once: a row group has few MiB.
const PART_BYTES_MAX: u64 = 64 << 20;
/// Footers asked for at once: hides the object store's latency.
const CONCURRENT: usize = 16;
/// Attempts at a request that may succeed later.
const ATTEMPTS: usize = 6;

/// Where files lie.
#[derive(Clone)]
pub enum Place {
    /// On a disk of this machine.
    Disk,
    /// In an object store.
    Store(Store),
}

/// An object store, and what its requests run on: this thread.
#[derive(Clone)]
pub struct Store {
    operator: Operator,
    runtime: Arc<Runtime>,
}

impl Place {
    /// The store of `lake`.
    pub fn of(lake: &Lake) -> Result<Self, Error> {
        let wrong = |problem: String| Error::at("the object store", problem);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| wrong(format!("the I/O runtime does not start: {error}")))?;
        let operator = build_operator(&lake.store).map_err(|error| wrong(chain(&error)))?;
        let operator = operator.layer(RetryLayer::new().with_max_times(ATTEMPTS));
        Ok(Place::Store(Store { operator, runtime: Arc::new(runtime) }))
    }

    /// A file by its path. The size of an object is asked for where it is not known.
    pub fn open(&self, path: &Path, bytes: Option<u64>) -> Result<Stored, Error> {
        let absent = || Error::of(path, "it is not there, or not any more");
        match self {
            Place::Disk => {
                let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
                let (bytes, file) = opened.map_err(|error| match error.kind() {
                    ErrorKind::NotFound => absent(),
                    _ => Error::of(path, format!("it cannot be opened: {error}")),
                })?;
                Ok(Stored { source: Source::File(Arc::new(file)), bytes })
            }
            Place::Store(store) => {
                let name = path.to_string_lossy().into_owned();
                let size = async || Ok(store.operator.stat(&name).await?.content_length());
                let bytes = bytes.map_or_else(|| store.runtime.block_on(size()), Ok);
                let bytes = bytes.map_err(|error: opendal::Error| match error.kind() {
                    opendal::ErrorKind::NotFound => absent(),
                    _ => Error::of(path, format!("it cannot be opened: {error}")),
                })?;
                let fetched = Fetched { store: store.clone(), name, parts: Vec::new(), kept_max: 0, kept: Mutex::default() };
                Ok(Stored { source: Source::Object(Arc::new(fetched)), bytes })
            }
        }
    }

    /// All of a small file.
    pub fn read(&self, path: &Path) -> Result<Bytes, Error> {
        let stored = self.open(path, None)?;
        if stored.bytes > FOOTER_BYTES_MAX {
            return Err(Error::of(path, "it is too large for the coverage of a commit"));
        }
        stored.read(0..stored.bytes).map_err(|error| Error::of(path, format!("it cannot be read: {error}")))
    }

    /// Shows the footers of these files, which have these sizes, in their order.
    pub fn footers(
        &self,
        files: &[(std::path::PathBuf, u64)],
        mut visit: impl FnMut(&Path, u64, Arc<ParquetMetaData>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Place::Store(store) = self else {
            return files.iter().try_for_each(|(path, _)| {
                let stored = self.open(path, None)?;
                visit(path, stored.bytes, stored.metadata(path)?)
            });
        };
        let reads = futures::stream::iter(files).map(|(path, bytes)| async move {
            let thrift = footer_bytes(&store.operator, &path.to_string_lossy(), *bytes).await;
            (path, *bytes, thrift)
        });
        let mut reads = std::pin::pin!(reads.buffered(CONCURRENT));
        while let Some((path, bytes, thrift)) = store.runtime.block_on(reads.next()) {
            let thrift = thrift.map_err(|trouble| match trouble {
                Trouble::Store(error) => Error::of(path, format!("it cannot be read: {error}")),
                Trouble::Content(detail) => Error::of(path, detail),
            })?;
            visit(path, bytes, decoded(path, &thrift)?)?;
        }
        Ok(())
    }
}

fn decoded(path: &Path, thrift: &[u8]) -> Result<Arc<ParquetMetaData>, Error> {
    let metadata = footer::decode(thrift).map_err(|error| Error::of(path, format!("its footer is damaged: {error}")))?;
    Ok(Arc::new(metadata))
}

/// A file that is read by parts.
#[derive(Clone)]
pub struct Stored {
    source: Source,
    /// Its size.
    pub bytes: u64,
}

#[derive(Clone)]
enum Source {
    File(Arc<File>),
    Object(Arc<Fetched>),
}

/// An object, and the parts of it that were fetched last.
struct Fetched {
    store: Store,
    name: String,
    /// What is fetched at once, in the order of the file.
    parts: Vec<Range<u64>>,
    kept_max: usize,
    kept: Mutex<VecDeque<(Range<u64>, Bytes)>>,
}

impl Fetched {
    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let holds = |part: &Range<u64>| part.start <= range.start && range.end <= part.end;
        let inside = |part: &Range<u64>, bytes: &Bytes| {
            bytes.slice((range.start - part.start) as usize..(range.end - part.start) as usize)
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((part, bytes)) = kept.iter().find(|(part, _)| holds(part)) {
            return Ok(inside(part, bytes));
        }
        let at = self.parts.partition_point(|part| part.end <= range.start);
        let Some(part) = self.parts.get(at).filter(|part| holds(part)) else { return self.fetch(range) };
        let bytes = self.fetch(part.clone())?;
        if kept.len() >= self.kept_max {
            kept.pop_front();
        }
        kept.push_back((part.clone(), bytes.clone()));
        Ok(inside(part, &bytes))
    }

    fn fetch(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let Store { operator, runtime } = &self.store;
        let wanted = range.end - range.start;
        let read = runtime.block_on(async { operator.read_with(&self.name).range(range).await });
        let bytes = read.map_err(std::io::Error::other)?.to_bytes();
        let is_whole = bytes.len() as u64 == wanted;
        is_whole.then_some(bytes).ok_or_else(|| std::io::Error::new(ErrorKind::UnexpectedEof, "it is shorter than it was"))
    }
}

impl Stored {
    /// The same, of which what is needed together is fetched together: of row groups, or of these columns of each.
    pub fn fetched_by(self, metadata: &ParquetMetaData, columns: &[&str]) -> Self {
        let Source::Object(fetched) = &self.source else { return self };
        let mut parts = Vec::new();
        for group in metadata.row_groups() {
            let chunks = group.columns().iter();
            let chunks = chunks.filter(|chunk| columns.is_empty() || columns.contains(&chunk.column_path().string().as_str()));
            let mut ranges: Vec<Range<u64>> =
                chunks.map(|chunk| chunk.byte_range()).map(|(start, length)| start..start.saturating_add(length)).collect();
            ranges.sort_by_key(|range| range.start);
            match (ranges.first(), ranges.iter().map(|range| range.end).max()) {
                (Some(first), Some(end)) if columns.is_empty() => parts.push(first.start..end),
                _ => parts.append(&mut ranges),
            }
        }
        parts.sort_by_key(|range| range.start);
        parts.retain(|part| part.end <= self.bytes && part.end - part.start <= PART_BYTES_MAX);
        let (store, name, kept_max) = (fetched.store.clone(), fetched.name.clone(), columns.len().max(1));
        let fetched = Fetched { store, name, parts, kept_max, kept: Mutex::default() };
        Stored { source: Source::Object(Arc::new(fetched)), bytes: self.bytes }
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let range = range.start.min(self.bytes)..range.end.min(self.bytes);
        match &self.source {
            Source::Object(fetched) => fetched.read(range),
            Source::File(file) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes.into())
            }
        }
    }

    /// Its footer.
    pub fn metadata(&self, path: &Path) -> Result<Arc<ParquetMetaData>, Error> {
        let failed = |error: std::io::Error| Error::of(path, format!("it cannot be read: {error}"));
        let unsound = |problem: &str| Error::of(path, format!("{problem}: it is no Parquet file, or was cut short"));
        if self.bytes < 12 {
            return Err(unsound("it has not even a footer"));
        }
        let tail = self.read(self.bytes - 8..self.bytes).map_err(failed)?;
        let length = u64::from((&tail[..4]).get_u32_le());
        if &tail[4..] != b"PAR1" || length > FOOTER_BYTES_MAX || length + 12 > self.bytes {
            return Err(unsound("it has no footer"));
        }
        let thrift = self.read(self.bytes - 8 - length..self.bytes - 8).map_err(failed)?;
        decoded(path, &thrift)
    }
}

impl Length for Stored {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Stored {
    type T = Rest;

    fn get_read(&self, start: u64) -> Result<Rest, ParquetError> {
        Ok(Rest { stored: self.clone(), at: start, chunk: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let read = self.read(start..start.saturating_add(length as u64))?;
        match read.len() {
            found if found == length => Ok(read),
            found => Err(ParquetError::EOF(format!("there are {found} bytes at {start}, not {length}"))),
        }
    }
}

/// A file from some byte on.
pub struct Rest {
    stored: Stored,
    at: u64,
    chunk: Bytes,
}

impl Read for Rest {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.chunk.is_empty() {
            let end = self.at.saturating_add(CHUNK_BYTES);
            // What was fetched may end before: it is taken to its end.
            let end = match &self.stored.source {
                Source::Object(fetched) => {
                    fetched.parts.iter().find(|part| part.contains(&self.at)).map_or(end, |part| part.end.min(end))
                }
                Source::File(_) => end,
            };
            self.chunk = self.stored.read(self.at..end)?;
            self.at += self.chunk.len() as u64;
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
