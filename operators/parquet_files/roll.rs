//! The core: batches of one group, epoch by epoch, become files. No timely, no clock, no disk.
//!
//! What comes out is a function of the epochs, the batches in each and the limits; not of their order within an epoch, and not of how
//! many epochs were closed at once.

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;

use super::Limits;
use super::note::FileNote;
use crate::arrow_encode::{self, Encoder};
use crate::batch::{Group, NormalizedBatch};
use crate::coverage::{Coverage, PartitionKey};
use crate::epoch::Epoch;
use crate::parquet_roll::writer::Layout;

/// Encoded rows are written at this size, so that an epoch of any size needs no more memory than a row group.
const DRAIN_BYTES: usize = 8 << 20;
/// What an offset that is listed in the footer counts beside the rows: files of nothing but duplicates are cut, too.
const LISTED_OFFSET_BYTES: u64 = 16;

/// Why rows do not become a file. None can be retried: the same bytes fail the same way.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The encoder refused a batch.
    #[error("cannot encode rows of {group}")]
    Encode {
        /// Their group.
        group: Group,
        /// Why.
        #[source]
        source: arrow_encode::Error,
    },
    /// Parquet refused rows.
    #[error("cannot write rows of {group} as parquet")]
    Parquet {
        /// Their group.
        group: Group,
        /// Why.
        #[source]
        source: ParquetError,
    },
    /// The note could not be written.
    #[error("cannot write the note of a file of {group}")]
    Note {
        /// The file's group.
        group: Group,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A file that is whole in memory.
#[derive(Debug)]
pub struct Finished {
    /// Its name inside the directory.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Its rows.
    pub rows: u64,
}

/// The files of one group that are open: one for each dataset schema. They close together.
pub struct Roll {
    group: Group,
    limits: Limits,
    /// The first epoch of the open files.
    first: Option<Epoch>,
    /// The last epoch that was taken.
    last: Option<Epoch>,
    /// By the hash of the schema: no file holds rows of two (I-18).
    open: BTreeMap<Option<u64>, Open>,
    next_sequence: u64,
}

impl Roll {
    /// Without files.
    pub fn new(group: Group, limits: Limits) -> Self {
        Roll { group, limits, first: None, last: None, open: BTreeMap::new(), next_sequence: 0 }
    }

    /// The first epoch of the open files, if there are any.
    pub fn first(&self) -> Option<Epoch> {
        self.first
    }

    /// Takes all batches of `epoch`, which is after all epochs before. Gives the files that its begin or its end closes.
    pub fn append(&mut self, epoch: Epoch, mut batches: Vec<NormalizedBatch>) -> Result<Vec<Finished>, Error> {
        assert!(self.last.is_none_or(|last| last < epoch), "epoch {epoch} of {} comes after a later one", self.group);
        let mut finished = self.pass(epoch)?;
        self.last = Some(epoch);
        self.first.get_or_insert(epoch);
        // Two batches of one place, as they come where offsets are read twice, are alike: which is first does not matter.
        batches.sort_by(|one, other| {
            let place = |batch: &NormalizedBatch| (batch.coverage.start, batch.coverage.end, batch.records.len());
            one.coverage.partition.cmp(&other.coverage.partition).then_with(|| place(one).cmp(&place(other)))
        });
        for batch in &batches {
            let key = batch.schema.as_ref().map(|schema| schema.hash);
            if !self.open.contains_key(&key) {
                self.open.insert(key, Open::new(batch, &self.limits)?);
            }
            self.open.get_mut(&key).expect("it was just inserted").append(batch)?;
        }
        for open in self.open.values_mut() {
            open.end_epoch(epoch)?;
        }
        let bytes: u64 = self.open.values().map(|open| open.bytes).sum();
        if bytes >= self.limits.file_bytes_max {
            finished.extend(self.close()?);
        }
        Ok(finished)
    }

    /// No batch of an epoch before `frontier` comes any more: the files that this closes.
    pub fn pass(&mut self, frontier: Epoch) -> Result<Vec<Finished>, Error> {
        let is_full = self.first.is_some_and(|first| frontier.0 >= first.0.saturating_add(self.limits.epoch_span_max.max(1)));
        if is_full { self.close() } else { Ok(Vec::new()) }
    }

    /// The files that are open.
    pub fn close(&mut self) -> Result<Vec<Finished>, Error> {
        let mut finished = Vec::with_capacity(self.open.len());
        let Some(first) = self.first.take() else { return Ok(finished) };
        for open in std::mem::take(&mut self.open).into_values() {
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            let Group { index, signal } = &self.group;
            // Padded, so that names sort as epochs do.
            let name = format!("{index}/{signal}/{:013}-{sequence:06}.parquet", first.0);
            finished.push(open.finish(name, sequence)?);
        }
        Ok(finished)
    }
}

/// An open file.
struct Open {
    encoder: Encoder,
    writer: ArrowWriter<Vec<u8>>,
    note: FileNote,
    /// What it accounts for, the runs of a partition in the order in which they came.
    coverage: BTreeMap<PartitionKey, Vec<Coverage>>,
    /// Arrow bytes of the rows and what the footer lists: the same however the rows compress.
    bytes: u64,
    rows: u64,
    /// Rows of the epoch that is being taken, if it has a batch for this file.
    epoch_rows: Option<u64>,
}

impl Open {
    fn new(batch: &NormalizedBatch, limits: &Limits) -> Result<Self, Error> {
        let group = batch.group.clone();
        let config = arrow_encode::Config { schema: batch.schema.clone(), ..arrow_encode::Config::new(group.clone()) };
        let encoder = Encoder::new(config);
        let parquet = |source| Error::Parquet { group: group.clone(), source };
        let layout = Layout::new(encoder.schema(), limits.shape).map_err(parquet)?;
        let writer =
            ArrowWriter::try_new(Vec::new(), layout.schema.clone(), Some(layout.properties().clone())).map_err(parquet)?;
        let note = FileNote::new(group.clone(), layout.hash);
        Ok(Open { encoder, writer, note, coverage: BTreeMap::new(), bytes: 0, rows: 0, epoch_rows: None })
    }

    fn append(&mut self, batch: &NormalizedBatch) -> Result<(), Error> {
        if self.encoder.contradicts(&batch.coverage) || self.encoder.bytes() >= DRAIN_BYTES {
            self.drain()?;
        }
        self.epoch_rows.get_or_insert(0);
        self.encoder.append(batch).map_err(|source| Error::Encode { group: self.note.group.clone(), source })
    }

    fn end_epoch(&mut self, epoch: Epoch) -> Result<(), Error> {
        self.drain()?;
        self.note.epochs.extend(self.epoch_rows.take().map(|rows| (epoch, rows)));
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Error> {
        self.bytes += self.encoder.bytes() as u64;
        let Some(encoded) = self.encoder.finish() else { return Ok(()) };
        for rows in &encoded.batches {
            self.write(rows)?;
        }
        for coverage in encoded.coverage {
            let listed = coverage.duplicates.len() + coverage.rejected.len() + coverage.skipped.len() + 2 * coverage.absent.len();
            self.bytes += listed as u64 * LISTED_OFFSET_BYTES;
            self.account(coverage);
        }
        Ok(())
    }

    fn write(&mut self, rows: &RecordBatch) -> Result<(), Error> {
        self.writer.write(rows).map_err(|source| Error::Parquet { group: self.note.group.clone(), source })?;
        self.rows += rows.num_rows() as u64;
        self.epoch_rows = self.epoch_rows.map(|epoch_rows| epoch_rows + rows.num_rows() as u64);
        Ok(())
    }

    /// Continues the last run of the partition, or begins another one.
    fn account(&mut self, coverage: Coverage) {
        let runs = self.coverage.entry(coverage.partition.clone()).or_default();
        match runs.last_mut().filter(|run| run.end == coverage.start) {
            Some(run) => {
                run.end = coverage.end;
                run.duplicates.extend(coverage.duplicates);
                run.rejected.extend(coverage.rejected);
                run.skipped.extend(coverage.skipped);
                run.absent.extend(coverage.absent);
            }
            None => runs.push(coverage),
        }
    }

    fn finish(mut self, name: String, sequence: u64) -> Result<Finished, Error> {
        self.note.sequence = sequence;
        self.note.coverage = std::mem::take(&mut self.coverage).into_values().flatten().collect();
        let group = self.note.group.clone();
        let pairs = self.note.pairs().map_err(|source| Error::Note { group: group.clone(), source })?;
        for pair in pairs {
            self.writer.append_key_value_metadata(pair);
        }
        let bytes = self.writer.into_inner().map_err(|source| Error::Parquet { group, source })?;
        Ok(Finished { name, bytes, rows: self.rows })
    }
}
