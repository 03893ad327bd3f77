//! One file while it is read: its rows in their order, as runs of rows of one message.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};

use super::columns::Table;
use super::files::RowsFile;
use super::place;
use super::rows::{Rows, Shape};
use super::unit::Context;
use super::{Error, Stats};
use crate::epoch::Epoch;
use crate::fault::panic_text;

/// Rows decoded at once.
const BATCH_ROWS: usize = 1_024;

/// A file that is open.
pub struct OpenFile<'a> {
    /// What it is.
    pub file: &'a RowsFile,
    /// Which commit of its unit it is of.
    pub commit: usize,
    reader: Guarded,
    rows: Option<Rows>,
    /// The next row of `rows`.
    at: usize,
    /// Rows of the record batches before.
    before: u64,
    epochs: std::slice::Iter<'a, (Epoch, u64)>,
    /// The epoch of the next row, and where that epoch ends.
    epoch: (Epoch, u64),
    told_bytes: u64,
}

/// The rows of one message that lie next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'r> {
    /// The topic's name.
    pub topic: &'r str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl<'a> OpenFile<'a> {
    /// Opens it.
    pub fn open(file: &'a RowsFile, commit: usize, place: &place::Place) -> Result<Self, Error> {
        let reader = Guarded::open(file, place, &[])?;
        let (epochs, epoch) = (file.epochs.iter(), (Epoch(0), 0));
        Ok(OpenFile { file, commit, reader, rows: None, at: 0, before: 0, epochs, epoch, told_bytes: 0 })
    }

    /// Where the next row is of; `None` at the end.
    pub fn place(&mut self, stats: &Stats) -> Result<Option<Place<'_>>, Error> {
        while self.rows.as_ref().is_none_or(|rows| self.at >= rows.len()) {
            self.before += self.rows.take().map_or(0, |rows| rows.len() as u64);
            self.at = 0;
            self.tell(stats);
            match self.reader.next()? {
                Some(batch) => self.rows = Some(self.rows_of(&batch)?),
                None if self.before == self.file.rows => return Ok(None),
                None => return Err(self.wrong(format!("it has {} rows, and its footer says {}", self.before, self.file.rows))),
            }
        }
        let rows = self.rows.as_ref().expect("the loop ends with some");
        let (topic, partition, offset) = rows.origin.place(self.at);
        Ok(Some(Place { topic, partition, offset }))
    }

    fn rows_of(&self, batch: &RecordBatch) -> Result<Rows, Error> {
        Rows::of(batch, &self.file.shape).map_err(|problem| self.wrong(problem.to_string()))
    }

    fn tell(&mut self, stats: &Stats) {
        let share = u128::from(self.file.bytes) * u128::from(self.before) / u128::from(self.file.rows.max(1));
        let share = (share as u64).min(self.file.bytes);
        stats.read_bytes.fetch_add(share - self.told_bytes, Ordering::Relaxed);
        self.told_bytes = share;
    }

    /// The rows decoded last, the positions of those that are of the same message as the next one, and their epoch, if the file tells.
    pub fn take(&mut self) -> (&Rows, std::ops::Range<usize>, Option<Epoch>) {
        let rows = self.rows.as_ref().expect("`place` has looked");
        let (start, place) = (self.at, rows.origin.place(self.at));
        let mut end = start + 1;
        while end < rows.len() && rows.origin.place(end) == place {
            end += 1;
        }
        self.at = end;
        let number = self.before + start as u64;
        while number >= self.epoch.1 {
            let Some((epoch, rows)) = self.epochs.next() else { break };
            self.epoch = (*epoch, self.epoch.1.saturating_add(*rows));
        }
        let epoch = (!self.file.epochs.is_empty()).then_some(self.epoch.0);
        (rows, start..end, epoch)
    }

    /// How much of it was read, in thousandths.
    pub fn progress(&self) -> u64 {
        (self.before + self.at as u64).saturating_mul(1_000) / self.file.rows.max(1)
    }

    /// What is wrong with it.
    pub fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::of(&self.file.path, problem.into())
    }
}

/// Shows the places of all rows of a file, in their order: three columns are read.
pub fn places(
    file: &RowsFile,
    context: &Context<'_>,
    mut visit: impl FnMut(Place<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reader = Guarded::open(file, &context.place, &["_topic", "_partition", "_offset"])?;
    let wrong = |problem: super::Problem| Error::of(&file.path, problem.to_string());
    while let Some(batch) = reader.next()? {
        if (context.is_over)() {
            return Err(Error::Stopped);
        }
        let table = Table::of(&batch);
        let topics = table.texts("_topic").map_err(wrong)?;
        let partitions = table.numbers::<arrow::datatypes::Int32Type>("_partition").map_err(wrong)?;
        let offsets = table.numbers::<arrow::datatypes::Int64Type>("_offset").map_err(wrong)?;
        for row in 0..batch.num_rows() {
            visit(Place { topic: topics.value(row), partition: partitions.value(row), offset: offsets.value(row) })?;
        }
    }
    Ok(())
}

/// A reader of a file that comes from anybody.
struct Guarded {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
}

impl Guarded {
    /// Reads these columns, or all.
    fn open(file: &RowsFile, place: &place::Place, columns: &[&str]) -> Result<Self, Error> {
        let stored = place.open(&file.path, Some(file.bytes))?;
        let metadata = stored.metadata(&file.path)?;
        let mask = match columns {
            [] => ProjectionMask::all(),
            columns => ProjectionMask::columns(metadata.file_metadata().schema_descr(), columns.iter().copied()),
        };
        let built = guarded(|| {
            let stored = stored.fetched_by(&metadata, columns);
            let metadata = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new())?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(stored, metadata);
            builder.with_projection(mask).with_batch_size(BATCH_ROWS).build()
        });
        let reader = built.and_then(|built| built.map_err(|error| error.to_string()));
        let reader = reader.map_err(|problem| Error::of(&file.path, format!("it cannot be read: {problem}")))?;
        Ok(Guarded { path: file.path.clone(), reader })
    }

    fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        let read: Result<Option<Result<RecordBatch, ArrowError>>, String> = guarded(|| self.reader.next());
        let read = read.and_then(|read| read.transpose().map_err(|error| error.to_string()));
        read.map_err(|problem| {
            Error::of(&self.path, format!("it is damaged: {problem}; take it from a copy, or leave its commit out"))
        })
    }
}

/// The decoder of Parquet has its own checks, and panics where those are not enough.
pub fn guarded<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|panic| panic_text(panic.as_ref()))
}

impl RowsFile {
    /// What its columns are.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
}
