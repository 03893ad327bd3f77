//! What there is: the files in a folder and what their footers say. Of a file only that is kept; it is opened anew to be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use bytes::{Buf, Bytes};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use ulid::Ulid;

use super::accounts::Run;
use super::rows::Shape;
use super::{Config, Error, Selection};
use crate::arrow_encode::schema::{DATASET_HASH_KEY, DATASET_KEY, DATASET_VERSION_KEY, SCHEMA_VERSION, VERSION_KEY, schema_for};
use crate::batch::{Group, Signal};
use crate::coverage::PartitionKey;
use crate::dataset::{Column, Kind, Stamp};
use crate::epoch::Epoch;
use crate::fault::chain;
use crate::parquet_files::note::FileNote;
use crate::parquet_roll::footer::{self, CommitNote};

/// No footer of ours comes near; a larger one is damaged or hostile.
const FOOTER_BYTES_MAX: u64 = 256 << 20;
/// Where a file is read without knowing how much is needed.
const CHUNK_BYTES: usize = 64 << 10;
/// The folder of commits without rows.
const COVERAGE_FOLDER: &str = "_coverage";

/// What accounts for its offsets as one: a commit of storage, or a file of `parquet_files`.
#[derive(Debug)]
pub struct Commit {
    /// What it is called when something is wrong with it.
    pub name: String,
    /// The group of its rows.
    pub group: Group,
    /// Its files.
    pub files: Vec<RowsFile>,
    /// What it accounts for.
    pub runs: Vec<(PartitionKey, Run)>,
    /// No row of it is of an earlier time.
    pub start: Epoch,
    /// And none of a later one, if that is known.
    pub last_ms: Option<i64>,
    /// Its files say which epochs their rows are of.
    pub is_noted: bool,
}

/// A file.
#[derive(Debug)]
pub struct RowsFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// What its columns are.
    pub shape: Shape,
    /// The epochs of its rows, in their order, if it tells.
    pub epochs: Vec<(Epoch, u64)>,
}

/// True if there is a Parquet file in the folder or below, or `path` is one.
pub fn is_there(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return is_rows(path) && path.is_file() };
    let (mut folders, mut found) = (Vec::new(), false);
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => folders.push(entry.path()),
            _ => found |= is_rows(&entry.path()),
        }
    }
    found || folders.iter().any(|folder| is_there(folder))
}

fn is_rows(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "parquet")
}

/// The commits of all files in the folder, of which `config` wants any.
pub fn find(config: &Config) -> Result<Vec<Commit>, Error> {
    let mut paths = Vec::new();
    if config.path.is_dir() {
        list(&config.path, &mut paths)?;
    } else {
        paths.push(config.path.clone());
    }
    paths.sort();
    let mut found = Found::default();
    for path in &paths {
        if is_rows(path) || *path == config.path {
            found.add_file(path, &config.schemas)?;
        } else {
            found.add_coverage(path)?;
        }
    }
    let mut commits = found.commits()?;
    if commits.is_empty() {
        return Err(Error::of(&config.path, "there is no Parquet file in it"));
    }
    let all: BTreeSet<&Group> = commits.iter().map(|commit| &commit.group).collect();
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    commits.retain(|commit| config.selection.has_group(&commit.group));
    // Which of two that begin together is read first must not depend on where they lie.
    let place = |commit: &Commit| commit.runs.first().map(|(partition, run)| (partition.clone(), run.range.start));
    commits.sort_by_cached_key(|commit| (commit.start, commit.group.clone(), place(commit)));
    if commits.is_empty() {
        return Err(Error::of(
            &config.path,
            format!("none of its rows is of an index and signal that are asked for; there are {}", all.join(", ")),
        ));
    }
    Ok(commits)
}

fn list(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::of(folder, format!("it cannot be listed: {error}"));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&path, paths)?;
        } else if is_rows(&path) || is_coverage(&path) {
            paths.push(path);
        }
    }
    Ok(())
}

fn is_coverage(path: &Path) -> bool {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    is_json && path.components().any(|component| component.as_os_str() == COVERAGE_FOLDER)
}

/// A commit of storage whose files are being found.
struct Open {
    note: CommitNote,
    first: PathBuf,
    files: BTreeMap<Ulid, RowsFile>,
    start: Option<Epoch>,
}

#[derive(Default)]
struct Found {
    open: BTreeMap<Ulid, Open>,
    commits: Vec<Commit>,
}

impl Found {
    fn add_file(&mut self, path: &Path, stamps: &[Stamp]) -> Result<(), Error> {
        let wrong = |problem: String| Error::of(path, problem);
        let stored = Stored::open(path)?;
        let metadata = stored.metadata(path)?;
        let rows =
            u64::try_from(metadata.file_metadata().num_rows()).map_err(|_| wrong("its number of rows is negative".into()))?;
        let described = |group: &Group| {
            let options = ArrowReaderMetadata::try_new(metadata.clone(), ArrowReaderOptions::new());
            let schema = options.map_err(|error| wrong(format!("its schema cannot be read: {error}")))?.schema().clone();
            shape_of(&schema, group.signal, stamps).map_err(wrong)
        };
        let file = |shape, epochs| RowsFile { path: path.into(), bytes: stored.bytes, rows, shape, epochs };
        if let Some(note) = FileNote::read(&metadata) {
            let note = note.map_err(wrong)?;
            let told: Option<u64> = note.epochs.iter().try_fold(0u64, |sum, (_, rows)| sum.checked_add(*rows));
            if told != Some(rows) || !note.epochs.is_sorted_by_key(|(epoch, _)| *epoch) {
                return Err(wrong("the epochs in its note are not those of its rows: the file is damaged".into()));
            }
            let run = |coverage| Run::listed(coverage).map(|run| (coverage.partition.clone(), run));
            let runs: Option<Vec<_>> = note.coverage.iter().filter(|coverage| coverage.start != coverage.end).map(run).collect();
            let runs = runs.ok_or_else(|| wrong("the coverage in its note contradicts itself: the file is damaged".into()))?;
            let start = note.epochs.first().map_or(Epoch(0), |(epoch, _)| *epoch);
            let files = vec![file(described(&note.group)?, note.epochs)];
            let name = path.display().to_string();
            self.commits.push(Commit { name, group: note.group, files, runs, start, last_ms: None, is_noted: true });
            return Ok(());
        }
        let notes = footer::read(&metadata);
        let (note, own) = notes.map_err(|error| wrong(format!("this program has not written it: {}", chain(&error))))?;
        if !note.files.contains(&own.file) {
            return Err(wrong("its footer is that of another file".into()));
        }
        let described = described(&note.group)?;
        let (start, id) = (first_timestamp(&metadata), own.file);
        let open = self.commit(note, path)?;
        open.start = if open.files.is_empty() { Some(start) } else { open.start.min(Some(start)) };
        match open.files.insert(id, file(described, Vec::new())) {
            None => Ok(()),
            Some(other) => Err(wrong(format!("it is a copy of {}: read one of them only", other.path.display()))),
        }
    }

    fn add_coverage(&mut self, path: &Path) -> Result<(), Error> {
        let wrong = |problem: String| Error::of(path, problem);
        let bytes = fs::metadata(path).map_err(|error| wrong(format!("it cannot be read: {error}")))?.len();
        if bytes > FOOTER_BYTES_MAX {
            return Err(wrong("it is too large for the coverage of a commit".into()));
        }
        let json = fs::read(path).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        let note = CommitNote::from_json(&json).map_err(|error| wrong(chain(&error)))?;
        if !note.files.is_empty() {
            return Err(wrong("a commit with files needs no object for its coverage".into()));
        }
        if let Some(other) = self.open.get(&note.commit_id) {
            return Err(wrong(format!("it is a copy of {}: read one of them only", other.first.display())));
        }
        self.commit(note, path).map(drop)
    }

    fn commit(&mut self, note: CommitNote, path: &Path) -> Result<&mut Open, Error> {
        let fresh = || Open { note: note.clone(), first: path.into(), files: BTreeMap::new(), start: None };
        let open = self.open.entry(note.commit_id).or_insert_with(fresh);
        if open.note == note {
            return Ok(open);
        }
        Err(Error::of(
            path,
            format!("it says of its commit {} what {} does not say", note.commit_id.to_string(), open.first.display()),
        ))
    }

    fn commits(self) -> Result<Vec<Commit>, Error> {
        let mut commits = self.commits;
        for (id, Open { note, first, files, start }) in self.open {
            let missing: Vec<String> = note.files.iter().filter(|file| !files.contains_key(file)).map(Ulid::to_string).collect();
            if !missing.is_empty() {
                let (all, missing) = (note.files.len(), missing.join(", "));
                let problem = format!(
                    "commit {} of it has {all} files, and these are missing: {missing}; rows of one message may lie in several: \
                     read the folder that has all of them, or leave these out",
                    id.to_string()
                );
                return Err(Error::of(&first, problem));
            }
            commits.push(Commit {
                name: format!("commit {} ({})", id.to_string(), first.display()),
                group: note.group.clone(),
                files: files.into_values().collect(),
                runs: note.coverage.iter().map(|row| (row.partition.clone(), Run::counted(row))).collect(),
                start: start.unwrap_or(Epoch(id.timestamp_ms())),
                last_ms: note.coverage.iter().filter_map(|row| row.kafka_time_max_ms).max(),
                is_noted: false,
            });
        }
        Ok(commits)
    }
}

impl Selection {
    fn has_group(&self, group: &Group) -> bool {
        (self.indexes.is_empty() || self.indexes.iter().any(|index| **index == *group.index))
            && (self.signals.is_empty() || self.signals.contains(&group.signal))
    }
}

/// The least Kafka timestamp of a file's rows; 0 where its footer does not tell.
fn first_timestamp(metadata: &ParquetMetaData) -> Epoch {
    let mut first = u64::MAX;
    for group in metadata.row_groups() {
        let column = group.columns().iter().find(|column| column.column_path().string() == "_kafka_timestamp");
        let least = match column.and_then(|column| column.statistics()) {
            Some(Statistics::Int64(statistics)) => statistics.min_opt().and_then(|least| u64::try_from(*least).ok()),
            _ => None,
        };
        first = first.min(least.unwrap_or(0));
    }
    Epoch(if first == u64::MAX { 0 } else { first })
}

/// What the columns are, if they are those of rows of `signal`, and none would be lost.
fn shape_of(schema: &Schema, signal: Signal, stamps: &[Stamp]) -> Result<Shape, String> {
    let metadata = schema.metadata();
    let version = metadata.get(VERSION_KEY).and_then(|version| version.parse::<u32>().ok()).unwrap_or(0);
    if version > SCHEMA_VERSION {
        return Err(format!(
            "its schema has version {version}, this program reads up to {SCHEMA_VERSION}: read it with a newer one"
        ));
    }
    let fixed = schema_for(signal);
    let is_given = |name: &str| schema.field_with_name(name).is_ok();
    // The first version had no tenants.
    let missing = fixed.fields().iter().find(|field| !is_given(field.name()) && field.name() != "_tenant");
    if let Some(missing) = missing {
        return Err(format!("it has no column {}: these are no rows of {signal}", missing.name()));
    }
    let mut own = Vec::new();
    for field in schema.fields() {
        match fixed.field_with_name(field.name()) {
            Ok(known) if known.data_type() == field.data_type() && known.is_nullable() == field.is_nullable() => {}
            Ok(known) => {
                let types = (field.data_type(), known.data_type());
                return Err(format!("its column {} is of type {}, not {}", field.name(), types.0, types.1));
            }
            Err(_) => own.push((field.name().as_str(), field.data_type())),
        }
    }
    let stamp = stamp_of(schema, &own, stamps)?;
    Ok(Shape { signal, stamp: stamp.map(Arc::new) })
}

/// The dataset's schema that rows obey. Files have the names of its columns; the attributes they are of are known from the configuration,
/// of this version or another, as no version may give a column to another attribute.
fn stamp_of(schema: &Schema, own: &[(&str, &DataType)], stamps: &[Stamp]) -> Result<Option<Stamp>, String> {
    let metadata = schema.metadata();
    let Some(name) = metadata.get(DATASET_KEY) else {
        return match own.first() {
            None => Ok(None),
            Some((column, _)) => Err(format!("it has a column {column}, which no schema of this program has")),
        };
    };
    let version = metadata.get(DATASET_VERSION_KEY).and_then(|version| version.parse().ok());
    let hash = metadata.get(DATASET_HASH_KEY).and_then(|hash| u64::from_str_radix(hash, 16).ok());
    let (Some(version), Some(hash)) = (version, hash) else {
        return Err(format!("it does not say which version of the dataset {name} its rows obey"));
    };
    let known: Vec<&Stamp> = stamps.iter().filter(|stamp| *stamp.name == **name).collect();
    let column_of = |(column, kind): &(&str, &DataType)| {
        let mut columns = known.iter().flat_map(|stamp| &stamp.columns);
        let found = columns.find(|known| known.name == *column);
        let kind = Kind::ALL.into_iter().find(|known| {
            let is_of_type = known.column_type().as_ref() == Some(kind);
            is_of_type && found.is_some_and(|found| found.kind == *known || (found.kind, *known) == (Kind::Double, Kind::Int))
        });
        found.zip(kind).map(|(found, kind)| Column { kind, ..found.clone() }).ok_or_else(|| {
            format!(
                "its rows obey version {version} of the dataset {name}, and which attribute is in their column {column} is not known: \
                 the dataset's schema must be in ingestion.datasets.directory of the configuration"
            )
        })
    };
    let columns = own.iter().map(column_of).collect::<Result<_, _>>()?;
    Ok(Some(Stamp { name: name.as_str().into(), version, hash, columns }))
}

/// A file that is read by parts.
#[derive(Clone)]
pub struct Stored {
    file: Arc<File>,
    bytes: u64,
}

impl Stored {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes, file) = opened.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::of(path, "it is not there, or not any more"),
            _ => Error::of(path, format!("it cannot be opened: {error}")),
        })?;
        Ok(Stored { file: Arc::new(file), bytes })
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let range = range.start.min(self.bytes)..range.end.min(self.bytes);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
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
        let metadata = footer::decode(&thrift).map_err(|error| Error::of(path, format!("its footer is damaged: {error}")))?;
        Ok(Arc::new(metadata))
    }
}

impl Length for Stored {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Stored {
    type T = From;

    fn get_read(&self, start: u64) -> Result<From, ParquetError> {
        Ok(From { stored: self.clone(), at: start, chunk: Bytes::new() })
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
pub struct From {
    stored: Stored,
    at: u64,
    chunk: Bytes,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.chunk.is_empty() {
            self.chunk = self.stored.read(self.at..self.at.saturating_add(CHUNK_BYTES as u64))?;
            self.at += self.chunk.len() as u64;
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
