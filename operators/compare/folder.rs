//! The files of a folder, what their footers say, and their rows one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection};
use twox_hash::xxhash3_128::Hasher;

use super::Error;
use super::values::Encoded;
use crate::batch::Group;
use crate::epoch::Epoch;
use crate::parquet_files::note::FileNote;
use crate::parquet_roll::footer;

/// Rows decoded at once.
const BATCH_ROWS: usize = 1_024;

/// The Parquet files in a folder and those below it.
pub(super) struct Folder {
    pub groups: BTreeMap<Group, Vec<RowsFile>>,
}

/// One of them.
pub(super) struct RowsFile {
    pub path: PathBuf,
    /// Inside the folder.
    pub name: String,
    pub rows: u64,
    /// Epochs and coverage, if `parquet_files` wrote it.
    pub note: Option<FileNote>,
    /// Makes equal rows of two groups differ.
    seed: u64,
}

/// What a row is known by within its group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub ordinal: i32,
}

/// A row of a file.
pub(super) struct Row<'a, 'b> {
    pub identity: Identity<'a>,
    /// Its place in the file.
    pub number: u64,
    encoded: &'b mut Encoded<'a>,
    index: usize,
    seed: u64,
}

impl Row<'_, '_> {
    /// Of all its values.
    pub fn digest(&mut self) -> u128 {
        self.encoded.digest(self.index, self.seed)
    }
}

impl Folder {
    pub fn open(root: &Path) -> Result<Folder, Error> {
        let mut paths = Vec::new();
        list(root, &mut paths)?;
        paths.sort();
        let mut groups: BTreeMap<Group, Vec<RowsFile>> = BTreeMap::new();
        for path in paths {
            let (group, file) = open_file(root, path)?;
            groups.entry(group).or_default().push(file);
        }
        Ok(Folder { groups })
    }

    pub fn files_of(&self, group: &Group) -> &[RowsFile] {
        self.groups.get(group).map_or(&[], Vec::as_slice)
    }
}

fn list(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    let io = |source| Error::Io { path: folder.to_path_buf(), source };
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        if entry.file_type().map_err(io)?.is_dir() {
            list(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            paths.push(path);
        }
    }
    Ok(())
}

fn open_file(root: &Path, path: PathBuf) -> Result<(Group, RowsFile), Error> {
    let builder = reader(&path)?;
    let metadata = builder.metadata();
    let foreign = |detail: String| Error::Foreign { path: path.clone(), detail };
    let note = FileNote::read(metadata).transpose().map_err(foreign)?;
    let group = match &note {
        Some(note) => note.group.clone(),
        None => footer::read(metadata).map_err(|error| foreign(error.to_string()))?.0.group,
    };
    let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
    if rows > u64::from(u32::MAX) {
        return Err(foreign("it has more than 2^32 rows".into()));
    }
    let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
    let seed = twox_hash::XxHash3_64::oneshot(group.to_string().as_bytes());
    Ok((group, RowsFile { path, name, rows, note, seed }))
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, Error> {
    let file = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file);
    builder.map_err(|source| Error::Parquet { path: path.into(), source })
}

impl RowsFile {
    /// Shows every row in the order of the file.
    pub fn scan(&self, mut visit: impl FnMut(Row<'_, '_>)) -> Result<(), Error> {
        let parquet = |source| Error::Parquet { path: self.path.clone(), source };
        let batches = reader(&self.path)?.with_batch_size(BATCH_ROWS).build().map_err(parquet)?;
        let mut number = 0;
        for batch in batches {
            let batch = batch.map_err(|error| parquet(error.into()))?;
            let identities = Identities::of(&batch).map_err(|detail| Error::Foreign { path: self.path.clone(), detail })?;
            let mut encoded = Encoded::new(&batch);
            for index in 0..batch.num_rows() {
                let identity = identities.at(index);
                visit(Row { identity, number, encoded: &mut encoded, index, seed: self.seed });
                number += 1;
            }
        }
        Ok(())
    }

    /// The rows at these places, which ascend: all in one pass.
    pub fn rows_at(&self, numbers: &BTreeSet<u32>) -> Result<Vec<RecordBatch>, Error> {
        let parquet = |source| Error::Parquet { path: self.path.clone(), source };
        let ranges = numbers.iter().map(|&number| number as usize..number as usize + 1);
        let selection = RowSelection::from_consecutive_ranges(ranges, self.rows as usize);
        let batches = reader(&self.path)?.with_row_selection(selection).with_batch_size(BATCH_ROWS).build().map_err(parquet)?;
        let mut rows = Vec::with_capacity(numbers.len());
        for batch in batches {
            let batch = batch.map_err(|error| parquet(error.into()))?;
            rows.extend((0..batch.num_rows()).map(|row| batch.slice(row, 1)));
        }
        let (found, wanted) = (rows.len(), numbers.len());
        let missing = || Error::Foreign { path: self.path.clone(), detail: format!("it has {found} of {wanted} rows now") };
        (found == wanted).then_some(rows).ok_or_else(missing)
    }

    /// The epoch of the row at a place, if the file tells.
    pub fn epoch_of(&self, number: u64) -> Option<Epoch> {
        let mut end = 0;
        let epochs = self.note.as_ref()?.epochs.iter();
        epochs
            .map(|(epoch, rows)| {
                (epoch, {
                    end += rows;
                    end
                })
            })
            .find(|(_, end)| number < *end)
            .map(|(epoch, _)| *epoch)
    }

    /// Of all its bytes.
    pub fn bytes_digest(&self) -> Result<u128, Error> {
        let io = |source| Error::Io { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(io)?;
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 64 << 10]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish_128()),
                Ok(read) => hasher.write(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
    }
}

/// The columns that name a row.
struct Identities<'a> {
    topic: &'a arrow::array::StringArray,
    partition: &'a [i32],
    offset: &'a [i64],
    ordinal: &'a [i32],
}

impl<'a> Identities<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, String> {
        let column = |name: &str| batch.column_by_name(name).ok_or(format!("it has no column {name}"));
        let numbers = |name: &str| {
            let column = column(name)?.as_primitive_opt::<Int32Type>();
            column.map(|column| &**column.values()).ok_or(format!("its column {name} is not of 32 bits"))
        };
        let topic = column("_topic")?.as_string_opt::<i32>().ok_or("its column _topic is not text")?;
        let offset = column("_offset")?.as_primitive_opt::<Int64Type>().ok_or("its column _offset is not of 64 bits")?;
        if topic.null_count() + offset.null_count() > 0 {
            return Err("its columns of identity have nulls".into());
        }
        Ok(Identities { topic, partition: numbers("_partition")?, offset: offset.values(), ordinal: numbers("_ordinal")? })
    }

    fn at(&self, index: usize) -> Identity<'a> {
        Identity {
            topic: self.topic.value(index),
            partition: self.partition[index],
            offset: self.offset[index],
            ordinal: self.ordinal[index],
        }
    }
}
