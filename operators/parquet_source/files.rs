//! What there is, and what footers say of it. Of a file only that is kept; it is opened anew to be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use ulid::Ulid;

use super::accounts::Run;
use super::file::guarded;
use super::place::Place;
use super::rows::Shape;
use super::{Config, Error, From, Selection};
use crate::arrow_encode::schema::{DATASET_HASH_KEY, DATASET_KEY, DATASET_VERSION_KEY, SCHEMA_VERSION, VERSION_KEY, schema_for};
use crate::batch::{Group, Signal};
use crate::coverage::PartitionKey;
use crate::dataset::{Column, Kind, Stamp};
use crate::epoch::Epoch;
use crate::fault::chain;
use crate::parquet_files::note::FileNote;
use crate::parquet_roll::footer::{self, CommitNote};

/// The folder of commits without rows.
const COVERAGE_FOLDER: &str = "_coverage";

/// What accounts for its offsets as one: a commit of storage, or a file of `parquet_files`.
#[derive(Debug)]
pub struct Commit {
    /// What it is called when something is wrong with it.
    pub name: String,
    /// The group of its rows.
    pub group: Group,
    /// Its files that are there.
    pub files: Vec<RowsFile>,
    /// The ids of those that are not.
    pub missing: Vec<String>,
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

/// The commits of all files, of which `config` wants any.
pub fn find(config: &Config, place: &Place) -> Result<Vec<Commit>, Error> {
    let (mut rows, mut coverage) = (Vec::new(), Vec::new());
    let told = match &config.from {
        From::Folder(root) if root.is_dir() => {
            list(root, &mut rows, &mut coverage)?;
            root.display().to_string()
        }
        From::Folder(file) => {
            rows.push((file.clone(), 0));
            file.display().to_string()
        }
        From::Lake(lake) => {
            (rows, coverage) = (lake.files.clone(), lake.coverage.clone());
            "the catalog".to_owned()
        }
    };
    rows.sort();
    coverage.sort();
    let mut found = Found::default();
    place.footers(&rows, |path, bytes, metadata| found.add_file(path, bytes, &metadata, &config.schemas))?;
    coverage.iter().try_for_each(|path| found.add_coverage(path, place))?;
    let mut commits = found.commits();
    if commits.is_empty() {
        return Err(Error::at(told, "there is no Parquet file in it"));
    }
    let all: BTreeSet<&Group> = commits.iter().map(|commit| &commit.group).collect();
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    commits.retain(|commit| config.selection.has_group(&commit.group));
    if commits.is_empty() {
        let problem = format!("none of its rows is of an index and signal that are asked for; there are {}", all.join(", "));
        return Err(Error::at(told, problem));
    }
    // Said before anything is read; those that are passed over may have lost files to retention.
    let may_be_asked_for =
        |commit: &&Commit| config.selection.since_ms.is_none_or(|since| commit.last_ms.is_none_or(|last| since <= last));
    commits.iter().filter(may_be_asked_for).try_for_each(Commit::check_whole)?;
    // Which of two that begin together is read first must not depend on where they lie.
    let place = |commit: &Commit| commit.runs.first().map(|(partition, run)| (partition.clone(), run.range.start));
    commits.sort_by_cached_key(|commit| (commit.start, commit.group.clone(), place(commit)));
    Ok(commits)
}

impl Commit {
    /// Refuses a commit of which a file is missing.
    pub fn check_whole(&self) -> Result<(), Error> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let (all, missing) = (self.files.len() + self.missing.len(), self.missing.join(", "));
        let problem = format!(
            "it has {all} files, and these are missing: {missing}; rows of one message may lie in several, so all are needed. \
             Where retention has removed them, read from a later time on"
        );
        Err(Error::at(&*self.name, problem))
    }
}

fn list(folder: &Path, rows: &mut Vec<(PathBuf, u64)>, coverage: &mut Vec<PathBuf>) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::of(folder, format!("it cannot be listed: {error}"));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&path, rows, coverage)?;
        } else if is_rows(&path) {
            rows.push((path, 0));
        } else if is_coverage(&path) {
            coverage.push(path);
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
    fn add_file(&mut self, path: &Path, bytes: u64, metadata: &Arc<ParquetMetaData>, stamps: &[Stamp]) -> Result<(), Error> {
        let wrong = |problem: String| Error::of(path, problem);
        let rows =
            u64::try_from(metadata.file_metadata().num_rows()).map_err(|_| wrong("its number of rows is negative".into()))?;
        let described = |group: &Group| {
            let read = guarded(|| ArrowReaderMetadata::try_new(metadata.clone(), ArrowReaderOptions::new()));
            let read = read.and_then(|read| read.map_err(|error| error.to_string()));
            let schema = read.map_err(|problem| wrong(format!("its schema cannot be read: {problem}")))?.schema().clone();
            shape_of(&schema, group.signal, stamps).map_err(wrong)
        };
        let file = |shape, epochs| RowsFile { path: path.into(), bytes, rows, shape, epochs };
        if let Some(note) = FileNote::read(metadata) {
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
            let missing = Vec::new();
            self.commits.push(Commit { name, group: note.group, files, missing, runs, start, last_ms: None, is_noted: true });
            return Ok(());
        }
        let notes = footer::read(metadata);
        let (note, own) = notes.map_err(|error| wrong(format!("this program has not written it: {}", chain(&error))))?;
        if !note.files.contains(&own.file) {
            return Err(wrong("its footer is that of another file".into()));
        }
        let described = described(&note.group)?;
        let (start, id) = (first_timestamp(metadata), own.file);
        let open = self.commit(note, path)?;
        open.start = if open.files.is_empty() { Some(start) } else { open.start.min(Some(start)) };
        match open.files.insert(id, file(described, Vec::new())) {
            None => Ok(()),
            Some(other) => Err(wrong(format!("it is a copy of {}: read one of them only", other.path.display()))),
        }
    }

    fn add_coverage(&mut self, path: &Path, place: &Place) -> Result<(), Error> {
        let wrong = |problem: String| Error::of(path, problem);
        let json = place.read(path)?;
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

    fn commits(self) -> Vec<Commit> {
        let mut commits = self.commits;
        for (id, Open { note, first, files, start }) in self.open {
            let missing = note.files.iter().filter(|file| !files.contains_key(file)).map(Ulid::to_string).collect();
            commits.push(Commit {
                name: format!("commit {} ({})", id.to_string(), first.display()),
                group: note.group.clone(),
                files: files.into_values().collect(),
                missing,
                runs: note.coverage.iter().map(|row| (row.partition.clone(), Run::counted(row))).collect(),
                start: start.unwrap_or(Epoch(id.timestamp_ms())),
                last_ms: note.coverage.iter().filter_map(|row| row.kafka_time_max_ms).max(),
                is_noted: false,
            });
        }
        commits
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
