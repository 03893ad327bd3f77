//! Finds the commits that account for an offset, and its rows in the object store. Reads only.
//!
//! The catalog knows that an offset is covered, not by which commit: rows of coverage are merged. The footers of a commit's files say it.
//! Where another process has the catalog, the objects of the store are read in its place: they tell the same, but not what is registered.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt};
use opendal::{ErrorKind, Operator};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use tokio::runtime::Handle;
use ulid::Ulid;

use super::rebuild::{Error, Trouble, content, coverage_note, footer_bytes, list};
use crate::batch::Group;
use crate::catalog_commit::{Catalog, FileFilter, Standing};
use crate::coverage::PartitionKey;
use crate::object_upload::StoreUri;
use crate::parquet_roll::CoverageRow;
use crate::parquet_roll::footer::{self, CommitNote};

#[cfg(test)]
mod tests;

/// Footers read in parallel: hides the object store's latency.
const CONCURRENT: usize = 16;
/// Bytes read at once where only the beginning of a page is asked for.
const CHUNK_BYTES: usize = 64 << 10;

/// What is looked for, and where.
pub struct Search<'a> {
    /// The object store.
    pub store: &'a Operator,
    /// The folder in it below which all groups lie.
    pub prefix: &'a str,
    /// The catalog; `None` where it cannot be asked.
    pub catalog: Option<&'a dyn Catalog>,
    /// Where requests run. Not a runtime of one thread.
    pub runtime: &'a Handle,
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Located {
    /// The commits that account for the offset: one for each incarnation of the topic.
    pub commits: Vec<Found>,
    /// Files of the catalog that are not in the object store.
    pub missing: Vec<String>,
    /// Objects that could not be read as ours, with the reason.
    pub unreadable: Vec<String>,
}

/// A commit that accounts for the offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The partition, of this incarnation of the topic.
    pub partition: PartitionKey,
    /// The commit's id.
    pub commit_id: Ulid,
    /// The group of its rows.
    pub group: Group,
    /// The node that wrote it.
    pub node: Arc<str>,
    /// What it says of the offsets around this one.
    pub coverage: CoverageRow,
    /// True if the catalog has it; `None` where it could not be asked.
    pub is_registered: Option<bool>,
    /// Its files that hold rows of the message.
    pub files: Vec<Part>,
    /// Its files that are not published any more, or not yet, or gone from the store.
    pub absent: Vec<Ulid>,
}

/// The rows of the message in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The file in the object store.
    pub path: String,
    /// The same in full.
    pub uri: String,
    /// Rows of the file.
    pub rows: u64,
    /// Their numbers in the message.
    pub ordinals: Vec<i32>,
}

/// Objects by the ids in their names.
type Objects = BTreeMap<Ulid, String>;

impl Search<'_> {
    /// Finds the commits that account for the offset. With a catalog, those of `expected` incarnations: once all are found, no more is
    /// read. Where none is expected, everything is.
    pub fn run(&self, expected: &BTreeSet<PartitionKey>) -> Result<Located, Error> {
        let mut located = Located::default();
        let (first, mut objects) = match self.catalog {
            Some(catalog) => self.of_catalog(catalog, expected)?,
            None => {
                let objects: Objects = self.runtime.block_on(list(self.store, self.prefix))?.into_iter().collect();
                (objects.clone(), objects)
            }
        };
        let mut notes = BTreeMap::new();
        let is_enough = |notes: &BTreeMap<Ulid, CommitNote>| {
            let found: BTreeSet<_> = notes.values().flat_map(|note| self.rows(note)).map(|row| &row.partition).collect();
            self.catalog.is_some() && !expected.is_empty() && expected.iter().all(|partition| found.contains(partition))
        };
        self.runtime.block_on(self.read_notes(&first, &is_enough, &mut notes, &mut located))?;
        if self.catalog.is_some() && !is_enough(&notes) {
            // Commits without rows, and commits whose files the catalog has lost.
            let all = self.runtime.block_on(list(self.store, self.prefix))?.into_iter();
            let others: Objects = all.filter(|(id, _)| !first.contains_key(id)).collect();
            self.runtime.block_on(self.read_notes(&others, &is_enough, &mut notes, &mut located))?;
            // A file that the catalog does not list is not published: retired, if it knows the commit; else it has lost both.
            for note in notes.values() {
                if self.standing(note)? != Some(Standing::Registered) {
                    let files = note.files.iter().filter_map(|file| Some((*file, others.get(file)?.clone())));
                    objects.extend(files);
                }
            }
        }
        for note in notes.into_values() {
            self.add(&note, &objects, &mut located)?;
        }
        located.commits.sort_by(|one, other| (&one.partition, one.commit_id).cmp(&(&other.partition, other.commit_id)));
        located.missing.sort();
        located.missing.dedup();
        located.unreadable.sort();
        Ok(located)
    }

    /// One file of each commit of the topic's groups, and all of their files.
    fn of_catalog(&self, catalog: &dyn Catalog, expected: &BTreeSet<PartitionKey>) -> Result<(Objects, Objects), Error> {
        let (mut first, mut all, mut commits) = (Objects::new(), Objects::new(), BTreeSet::new());
        let topics = catalog.topics()?;
        let groups: BTreeSet<&Group> = expected.iter().filter_map(|partition| topics.get(&partition.topic)).collect();
        let is_known = expected.iter().all(|partition| topics.contains_key(&partition.topic));
        for file in catalog.files(&FileFilter::default())? {
            if is_known && !groups.is_empty() && !groups.contains(&file.group) {
                continue;
            }
            if commits.insert(file.commit_id) {
                first.insert(file.file, file.path.clone());
            }
            all.insert(file.file, file.path);
        }
        Ok((first, all))
    }

    /// Reads what objects say of their commits, the youngest first: those that account for the offset are kept.
    async fn read_notes(
        &self,
        objects: &Objects,
        is_enough: &impl Fn(&BTreeMap<Ulid, CommitNote>) -> bool,
        notes: &mut BTreeMap<Ulid, CommitNote>,
        located: &mut Located,
    ) -> Result<(), Error> {
        let youngest_first = objects.values().rev().cloned();
        let reads = futures::stream::iter(youngest_first).map(|path| async move {
            let note = self.note(&path).await;
            (path, note)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(CONCURRENT).map(Ok::<_, Error>));
        while let Some((path, note)) = reads.try_next().await? {
            match note {
                Ok(note) if self.rows(&note).next().is_some() => {
                    notes.insert(note.commit_id, note);
                    if is_enough(notes) {
                        break;
                    }
                }
                Ok(_) => {}
                Err(Trouble::Store(source)) if source.kind() == ErrorKind::NotFound => located.missing.push(path),
                Err(Trouble::Store(source)) => return Err(Error::Object { doing: "read", path, source }),
                Err(Trouble::Content(detail)) => located.unreadable.push(format!("{path}: {detail}")),
            }
        }
        Ok(())
    }

    async fn note(&self, path: &str) -> Result<CommitNote, Trouble> {
        if path.ends_with(".json") {
            return Ok(coverage_note(self.store, path).await?.0);
        }
        let bytes = self.store.stat(path).await?.content_length();
        let metadata = footer::decode(&footer_bytes(self.store, path, bytes).await?).map_err(content)?;
        Ok(footer::read(&metadata).map_err(content)?.0)
    }

    /// What a commit says of the offset, in each incarnation of the topic.
    fn rows<'n>(&self, note: &'n CommitNote) -> impl Iterator<Item = &'n CoverageRow> + use<'n, '_> {
        note.coverage.iter().filter(|row| {
            let PartitionKey { topic, partition } = &row.partition;
            *topic.name == *self.topic && *partition == self.partition && row.range.contains(&self.offset)
        })
    }

    fn standing(&self, note: &CommitNote) -> Result<Option<Standing>, Error> {
        Ok(self.catalog.map(|catalog| catalog.standing(note.commit_id)).transpose()?)
    }

    fn add(&self, note: &CommitNote, objects: &Objects, located: &mut Located) -> Result<(), Error> {
        let standing = self.standing(note)?;
        let (mut files, mut absent) = (Vec::new(), Vec::new());
        for id in &note.files {
            let Some(path) = objects.get(id) else {
                absent.push(*id);
                continue;
            };
            match self.part(path) {
                Ok(part) if part.ordinals.is_empty() => {}
                Ok(part) => files.push(part),
                Err(Trouble::Store(source)) if source.kind() == ErrorKind::NotFound => {
                    absent.push(*id);
                    located.missing.push(path.clone());
                }
                Err(Trouble::Store(source)) => return Err(Error::Object { doing: "read", path: path.clone(), source }),
                Err(Trouble::Content(detail)) => located.unreadable.push(format!("{path}: {detail}")),
            }
        }
        located.commits.extend(self.rows(note).map(|row| Found {
            partition: row.partition.clone(),
            commit_id: note.commit_id,
            group: note.group.clone(),
            node: note.node.clone(),
            coverage: row.clone(),
            is_registered: standing.map(|standing| standing == Standing::Registered),
            files: files.clone(),
            absent: absent.clone(),
        }));
        Ok(())
    }

    /// The rows of the message in a file: four columns of those row groups that may have them.
    fn part(&self, path: &str) -> Result<Part, Trouble> {
        let (bytes, metadata) = self.runtime.block_on(async {
            let bytes = self.store.stat(path).await?.content_length();
            let metadata = footer::decode(&footer_bytes(self.store, path, bytes).await?).map_err(content)?;
            Ok::<_, Trouble>((bytes, metadata))
        })?;
        let rows = u64::try_from(metadata.file_metadata().num_rows()).map_err(content)?;
        let object = Object { store: self.store.clone(), runtime: self.runtime.clone(), path: path.to_owned(), bytes };
        let ordinals = self.ordinals(object, metadata).map_err(content)?;
        Ok(Part { path: path.to_owned(), uri: StoreUri::of(self.store).object(path), rows, ordinals })
    }

    fn ordinals(&self, object: Object, metadata: ParquetMetaData) -> Result<Vec<i32>, ParquetError> {
        let groups = metadata.row_groups().iter().enumerate();
        let groups = groups.filter(|(_, group)| may_hold(group, "_offset", self.offset)).map(|(number, _)| number).collect();
        let columns = ["_topic", "_partition", "_offset", "_ordinal"];
        let mask = ProjectionMask::columns(metadata.file_metadata().schema_descr(), columns);
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(object, metadata);
        let mut ordinals = Vec::new();
        for batch in builder.with_projection(mask).with_row_groups(groups).build()? {
            let batch = batch?;
            let column = |name: &str, kind: DataType| {
                let column = batch.column_by_name(name).ok_or_else(|| ParquetError::General(format!("no column {name}")))?;
                arrow::compute::cast(column, &kind).map_err(ParquetError::from)
            };
            let (topics, partitions) = (column("_topic", DataType::Utf8)?, column("_partition", DataType::Int32)?);
            let (offsets, numbers) = (column("_offset", DataType::Int64)?, column("_ordinal", DataType::Int32)?);
            let (topics, partitions) = (topics.as_string::<i32>(), partitions.as_primitive::<Int32Type>());
            let (offsets, numbers) = (offsets.as_primitive::<Int64Type>(), numbers.as_primitive::<Int32Type>());
            let is_of_message = |row: &usize| {
                let is_known = topics.is_valid(*row) && partitions.is_valid(*row) && offsets.is_valid(*row);
                let place = (offsets.value(*row), partitions.value(*row));
                is_known && place == (self.offset, self.partition) && topics.value(*row) == self.topic
            };
            ordinals.extend((0..batch.num_rows()).filter(is_of_message).map(|row| numbers.value(row)));
        }
        ordinals.sort_unstable();
        Ok(ordinals)
    }
}

/// False if the statistics of a row group say that a column of integers lacks `value` there.
fn may_hold(group: &RowGroupMetaData, column: &str, value: i64) -> bool {
    let column = group.columns().iter().find(|found| found.column_path().string() == column);
    match column.and_then(|column| column.statistics()) {
        Some(Statistics::Int64(statistics)) => {
            statistics.min_opt().is_none_or(|min| *min <= value) && statistics.max_opt().is_none_or(|max| *max >= value)
        }
        _ => true,
    }
}

/// An object as the Parquet reader wants it.
struct Object {
    store: Operator,
    runtime: Handle,
    path: String,
    bytes: u64,
}

impl Object {
    fn read(&self, start: u64, length: usize) -> Result<Bytes, opendal::Error> {
        let end = self.bytes.min(start.saturating_add(length as u64));
        let read = self.store.read_with(&self.path).range(start.min(end)..end);
        Ok(self.runtime.block_on(async { read.await })?.to_bytes())
    }
}

impl Length for Object {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Object {
    type T = From;

    fn get_read(&self, start: u64) -> Result<From, ParquetError> {
        let Object { store, runtime, path, bytes } = self;
        let object = Object { store: store.clone(), runtime: runtime.clone(), path: path.clone(), bytes: *bytes };
        Ok(From { object, at: start, chunk: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let read = self.read(start, length).map_err(|error| ParquetError::External(Box::new(error)))?;
        match read.len() {
            found if found == length => Ok(read),
            found => Err(ParquetError::EOF(format!("{found} bytes at {start} of {}, not {length}", self.path))),
        }
    }
}

/// An object from some byte on, in chunks.
struct From {
    object: Object,
    at: u64,
    chunk: Bytes,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.chunk.is_empty() {
            self.chunk = self.object.read(self.at, CHUNK_BYTES).map_err(std::io::Error::other)?;
            self.at += self.chunk.len() as u64;
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
