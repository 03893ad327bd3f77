//! The core of `arrow_encode`: walks OTLP protobuf, writes rows into columns, cuts record batches, keeps coverage.
//!
//! The three signals share their outer form, so one walk serves them all:
//! ```text
//! TracesData, LogsData, MetricsData   1: repeated group of a resource
//!   group of a resource               1: resource   2: repeated group of a scope   3: schema url
//!     group of a scope                1: scope      2: repeated span, log record or metric   3: schema url
//! ```
//! Protobuf lets fields come in any order and singular messages come in pieces, so each group is walked twice: first for what holds
//! for all its rows, then for the rows. The first walk skips the rows by their lengths and costs a few nanoseconds for each.
//!
//! # How a record batch is kept below its size
//! Its size is known exactly but takes a microsecond to sum up over all columns. So the encoder keeps `room_bytes`, a lower bound of
//! what is left, and takes an upper bound of each row from it; only when that runs out does it sum up anew. A row that turns out not
//! to fit is taken back, which is a truncation of every column, and written again as the first of the next record batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::buffers::Zeros;
use super::columns::{Columns, Size};
use super::common::Common;
use super::logs::Records;
use super::metrics::{Kind, Metrics};
use super::schema::schema_with;
use super::traces::Spans;
use crate::batch::{EncodedBatch, Group, NormalizedBatch, Record, Signal};
use crate::coverage::{Coverage, PartitionKey, TopicKey};
use crate::dataset::Stamp;
use crate::otlp::wire::{Value, WireError, fields};

/// Most bytes that one span, log record, data point, resource, scope or metric may have on the wire. `normalize` rejects far smaller
/// ones, as they would not fit into a message; this bound keeps every column below 2 GiB: 1 GiB of batch and one row, whose text can
/// grow sixfold by JSON escapes.
pub const ROW_WIRE_BYTES_MAX: usize = 128 << 20;

/// Largest `batch_bytes_max` that is obeyed; see `ROW_WIRE_BYTES_MAX`.
const BATCH_BYTES_LIMIT: usize = 1 << 30;

/// Most bytes that one message may become. A resource is repeated on each of its rows, so a small message with a large resource and
/// many empty rows would otherwise fill any memory. `expanded_bytes` lets `normalize` reject such messages by the same measure.
pub const MESSAGE_EXPANDED_BYTES_MAX: u64 = 512 << 20;

/// What a row counts in `expanded_bytes` beside its own bytes and those repeated on it: about the fixed widths of a row.
const EXPANDED_ROW_BYTES: u64 = 512;

/// At most how many bytes one byte on the wire becomes. The worst is an exemplar without fields: two bytes become 54.
const WIRE_GROWTH_MAX: usize = 32;

/// How the rows of one group are cut into record batches.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group all batches must be of.
    pub group: Group,
    /// The dataset schema all batches must obey, if there is one.
    pub schema: Option<Arc<Stamp>>,
    /// Rows of one record batch at most; `pipeline.batch_size`, default 10,000.
    pub batch_rows_max: usize,
    /// Bytes of one record batch as an Arrow IPC message at most, unless it is a single row; default 3.5 MiB for a limit of 4 MiB.
    pub batch_bytes_max: usize,
}

impl Config {
    /// The defaults for `group`, without a dataset schema.
    pub fn new(group: Group) -> Self {
        Config { group, schema: None, batch_rows_max: 10_000, batch_bytes_max: 3_670_016 }
    }
}

/// Why a batch cannot be encoded. None can be retried: the same bytes fail the same way.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A payload that `normalize` accepted is not what it promises.
    #[error("message at offset {offset} of {partition} cannot be encoded as {signal}")]
    Message {
        /// The message's partition.
        partition: PartitionKey,
        /// The message's offset.
        offset: i64,
        /// The signal it should be of.
        signal: Signal,
        /// What is wrong.
        #[source]
        problem: Problem,
    },
    /// A batch came to the encoder of another group.
    #[error("batch of {found} given to the encoder of {expected}")]
    Group {
        /// The batch's group.
        found: Group,
        /// The encoder's group.
        expected: Group,
    },
    /// A batch came to the encoder of another dataset schema.
    #[error("batch that obeys {found} given to the encoder of {expected}")]
    Schema {
        /// The batch's schema.
        found: String,
        /// The encoder's schema.
        expected: String,
    },
    /// An earlier batch failed; nothing more comes out of this encoder.
    #[error("encoder of {group} failed before")]
    Failed {
        /// The encoder's group.
        group: Group,
    },
}

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not protobuf.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A string is not UTF-8.
    #[error("text for column {column} is not utf-8")]
    NotUtf8 {
        /// The column the string was for.
        column: String,
    },
    /// A value nests too deeply.
    #[error("value nests deeper than {levels} levels")]
    TooDeep {
        /// The bound.
        levels: usize,
    },
    /// An identifier has the wrong length.
    #[error("{field} has {found} bytes")]
    Id {
        /// The column of the identifier.
        field: &'static str,
        /// Its length.
        found: usize,
    },
    /// A time is past the year 2262.
    #[error("{field} of {nanos} ns does not fit into 63 bits")]
    Time {
        /// The column of the time.
        field: &'static str,
        /// Its value.
        nanos: u64,
    },
    /// It is, or becomes, too large.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Arrow refused the columns.
    #[error("arrow refused the columns")]
    Arrow(#[from] ArrowError),
}

/// A problem, and the offset of its message where that is not the message being read.
struct Failure {
    offset: Option<i64>,
    problem: Problem,
}

impl<P: Into<Problem>> From<P> for Failure {
    fn from(problem: P) -> Self {
        Failure { offset: None, problem: problem.into() }
    }
}

/// The row being written.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its position in the record batch.
    pub index: usize,
    /// When its message came to Kafka, in Unix nanoseconds: the event time of rows that have none. 0 where that is unknown, too.
    pub arrival_ns: i64,
}

/// The columns of the signal.
enum Rows {
    Traces(Box<Spans>),
    Logs(Box<Records>),
    Metrics(Box<Metrics>),
}

impl Columns for Rows {
    fn each(&self, visit: &mut dyn FnMut(&dyn super::columns::Column)) {
        match self {
            Rows::Traces(columns) => columns.each(visit),
            Rows::Logs(columns) => columns.each(visit),
            Rows::Metrics(columns) => columns.each(visit),
        }
    }

    fn each_mut(&mut self, visit: &mut dyn FnMut(&mut dyn super::columns::Column)) {
        match self {
            Rows::Traces(columns) => columns.each_mut(visit),
            Rows::Logs(columns) => columns.each_mut(visit),
            Rows::Metrics(columns) => columns.each_mut(visit),
        }
    }
}

/// The record batch being written.
struct Table {
    common: Common,
    rows: Rows,
}

super::columns::columns_in_order!(Table: common, rows);

/// Encodes the batches of one group.
///
/// Invariants: rows before the last `cut` are in `done`; all texts are checked when `append` returns; `room_bytes` is at most what the
/// open record batch may still grow.
pub struct Encoder {
    config: Config,
    schema: SchemaRef,
    table: Table,
    zeros: Zeros,
    /// Rows of the open record batch.
    open_rows: usize,
    /// Its bytes when `append` returned.
    open_bytes: usize,
    room_bytes: usize,
    /// Fixed widths of a row in all columns.
    fixed_row_bytes: usize,
    /// At most what the values repeated on each row take.
    repeated_row_bytes: usize,
    /// What the message being read repeats on each row, in bytes on the wire.
    repeated_wire_bytes: Repeated,
    /// What the message being read became so far, in the measure of `expanded_bytes`.
    expanded_bytes: u64,
    arrival_ns: i64,
    done: Vec<RecordBatch>,
    done_rows: usize,
    done_bytes: usize,
    coverage: BTreeMap<PartitionKey, Vec<Coverage>>,
    failed: bool,
}

impl Encoder {
    /// An encoder without rows. `batch_rows_max` and `batch_bytes_max` of 0 count as 1.
    pub fn new(config: Config) -> Encoder {
        let stamp = config.schema.as_deref();
        let schema = schema_with(config.group.signal, stamp);
        let rows = match config.group.signal {
            Signal::Traces => Rows::Traces(Box::new(Spans::new(stamp))),
            Signal::Logs => Rows::Logs(Box::new(Records::new(stamp))),
            Signal::Metrics => Rows::Metrics(Box::new(Metrics::new(stamp))),
        };
        let common = Common::new(config.group.signal, stamp);
        let config = Config {
            batch_rows_max: config.batch_rows_max.clamp(1, 1 << 24),
            batch_bytes_max: config.batch_bytes_max.clamp(1, BATCH_BYTES_LIMIT),
            ..config
        };
        Encoder {
            fixed_row_bytes: schema.fields().iter().map(|field| fixed_width(field.data_type())).sum(),
            config,
            schema,
            table: Table { common, rows },
            zeros: Zeros::default(),
            open_rows: 0,
            open_bytes: 0,
            room_bytes: 0,
            repeated_row_bytes: 0,
            repeated_wire_bytes: Repeated::default(),
            expanded_bytes: 0,
            arrival_ns: 0,
            done: Vec::new(),
            done_rows: 0,
            done_bytes: 0,
            coverage: BTreeMap::new(),
            failed: false,
        }
    }

    /// The schema of all record batches.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Rows since the last `finish`.
    pub fn rows(&self) -> usize {
        self.done_rows + self.open_rows
    }

    /// Bytes of the rows since the last `finish`, as Arrow IPC messages.
    pub fn bytes(&self) -> usize {
        self.done_bytes + self.open_bytes
    }

    /// Adds the rows of all records of `batch`, and takes over its coverage. After an error nothing more comes out.
    pub fn append(&mut self, batch: &NormalizedBatch) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed { group: self.config.group.clone() });
        }
        if batch.group != self.config.group {
            return Err(Error::Group { found: batch.group.clone(), expected: self.config.group.clone() });
        }
        if batch.schema != self.config.schema {
            return Err(Error::Schema { found: name_of(&batch.schema), expected: name_of(&self.config.schema) });
        }
        let mut last_offset = batch.coverage.start;
        let result = self.append_records(batch, &mut last_offset);
        self.failed = result.is_err();
        result.map_err(|failure| Error::Message {
            partition: batch.coverage.partition.clone(),
            offset: failure.offset.unwrap_or(last_offset),
            signal: batch.group.signal,
            problem: failure.problem,
        })?;
        self.add_coverage(&batch.coverage);
        Ok(())
    }

    /// True once an append failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// True if `coverage` cannot go into one `EncodedBatch` with what was appended since the last `finish`: it has an offset of that, as a
    /// partition that was lost and gained again is read from its committed offset, or it is of a topic that was created anew under the
    /// name of another, for rows name their topic and not its id.
    pub fn contradicts(&self, coverage: &Coverage) -> bool {
        let (partition, range) = (&coverage.partition, coverage.range());
        let known = self.coverage.get(partition);
        let overlaps = known.is_some_and(|known| known.iter().any(|known| known.start < range.end && range.start < known.end));
        // All that was appended of this name is of one topic, so any of it tells which.
        let first = TopicKey { id: "".into(), ..(*partition.topic).clone() };
        let first = PartitionKey { topic: first.into(), partition: i32::MIN };
        let same_name = |topic: &TopicKey| topic.cluster == partition.topic.cluster && topic.name == partition.topic.name;
        let appended = self.coverage.range(first..).next().filter(|(appended, _)| same_name(&appended.topic));
        overlaps || appended.is_some_and(|(appended, _)| appended.topic.id != partition.topic.id)
    }

    /// Everything since the last `finish`; `None` if nothing was appended, or an append failed.
    pub fn finish(&mut self) -> Option<EncodedBatch> {
        if self.failed || (self.coverage.is_empty() && self.rows() == 0) {
            return None;
        }
        if self.open_rows > 0 && self.cut().is_err() {
            // `append` checked the texts and every row has a value in every column, so Arrow has no reason to refuse. To go on would
            // lose rows whose coverage is known.
            panic!("{NAME}: columns of {} do not make a record batch", self.config.group, NAME = super::NAME);
        }
        self.done_rows = 0;
        self.done_bytes = 0;
        self.open_bytes = 0;
        Some(EncodedBatch {
            group: self.config.group.clone(),
            batches: std::mem::take(&mut self.done),
            coverage: std::mem::take(&mut self.coverage).into_values().flatten().collect(),
        })
    }

    /// What the message read last became, in the measure of the function `expanded_bytes`.
    #[cfg(test)]
    pub(super) fn expanded_bytes(&self) -> u64 {
        self.expanded_bytes
    }

    fn append_records(&mut self, batch: &NormalizedBatch, last_offset: &mut i64) -> Result<(), Failure> {
        for record in &batch.records {
            *last_offset = record.offset;
            self.begin_message(batch, record);
            self.walk_message(batch.payload(record))?;
        }
        self.flush();
        self.check()?;
        self.open_bytes = if self.open_rows == 0 { 0 } else { self.measure().message_bytes() };
        Ok(())
    }

    fn begin_message(&mut self, batch: &NormalizedBatch, record: &Record) {
        self.table.common.origin.set(batch, record, self.open_rows);
        let arrival_ms = record.timestamp_ms.max(0);
        self.arrival_ns = arrival_ms.checked_mul(1_000_000).unwrap_or(0);
        self.expanded_bytes = 0;
    }

    fn walk_message(&mut self, message: &[u8]) -> Result<(), Failure> {
        for field in fields(message) {
            if let (1, Value::Bytes(group)) = field? {
                self.walk_resource_group(group)?;
            }
        }
        Ok(())
    }

    fn walk_resource_group(&mut self, message: &[u8]) -> Result<(), Failure> {
        let resource = &mut self.table.common.resource;
        let (mut schema_url, mut wire_bytes): (&[u8], usize) = (b"", 0);
        resource.begin(self.open_rows);
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(occurrence)) => {
                    wire_bytes += occurrence.len();
                    resource.merge(occurrence)?;
                }
                (3, Value::Bytes(url)) => schema_url = url,
                _ => {}
            }
        }
        self.repeated_wire_bytes.resource = bounded("resource", wire_bytes + schema_url.len())?;
        resource.ready(schema_url)?;
        for field in fields(message) {
            if let (2, Value::Bytes(group)) = field? {
                self.walk_scope_group(group)?;
            }
        }
        Ok(())
    }

    fn walk_scope_group(&mut self, message: &[u8]) -> Result<(), Failure> {
        warm(message);
        let scope = &mut self.table.common.scope;
        let (mut schema_url, mut wire_bytes): (&[u8], usize) = (b"", 0);
        scope.begin(self.open_rows);
        for field in fields(message) {
            match field? {
                (1, Value::Bytes(occurrence)) => {
                    wire_bytes += occurrence.len();
                    scope.merge(occurrence)?;
                }
                (3, Value::Bytes(url)) => schema_url = url,
                _ => {}
            }
        }
        self.repeated_wire_bytes.scope = bounded("scope", wire_bytes + schema_url.len())?;
        self.repeated_wire_bytes.metric = 0;
        scope.ready(schema_url)?;
        self.repeated_row_bytes = self.table.common.row_bytes();
        for field in fields(message) {
            if let (2, Value::Bytes(record)) = field? {
                match &self.table.rows {
                    Rows::Traces(_) | Rows::Logs(_) => self.push_row(record)?,
                    Rows::Metrics(_) => self.walk_metric(record)?,
                }
            }
        }
        Ok(())
    }

    fn walk_metric(&mut self, message: &[u8]) -> Result<(), Failure> {
        let Rows::Metrics(metrics) = &mut self.table.rows else { return Ok(()) };
        let data = metrics.metric.set(message, self.open_rows)?;
        self.repeated_wire_bytes.metric = bounded("metric", message.len() - data.len().min(message.len()))?;
        self.repeated_row_bytes = self.table.common.row_bytes() + metrics.metric.row_bytes();
        for field in fields(&data) {
            if let (1, Value::Bytes(point)) = field? {
                self.push_row(point)?;
            }
        }
        Ok(())
    }

    /// Writes one row and cuts the record batch where it is full.
    fn push_row(&mut self, message: &[u8]) -> Result<(), Failure> {
        let wire_bytes = bounded("row", message.len())?;
        self.expanded_bytes += self.repeated_wire_bytes.row(wire_bytes);
        if self.expanded_bytes > MESSAGE_EXPANDED_BYTES_MAX {
            let (bytes, limit) = (self.expanded_bytes, MESSAGE_EXPANDED_BYTES_MAX);
            return Err(Problem::TooLarge { what: "expanded message", bytes, limit }.into());
        }
        let row_bytes_max = self.fixed_row_bytes + self.repeated_row_bytes + WIRE_GROWTH_MAX * message.len();
        if row_bytes_max > self.room_bytes {
            self.room_bytes = self.measure_room();
        }
        self.write_row(message)?;
        if row_bytes_max <= self.room_bytes {
            self.room_bytes -= row_bytes_max;
        } else {
            self.room_bytes = 0;
            self.fit_row(message)?;
        }
        if self.open_rows >= self.config.batch_rows_max {
            self.cut()?;
        }
        Ok(())
    }

    #[inline]
    fn write_row(&mut self, message: &[u8]) -> Result<(), Problem> {
        let row = Row { index: self.open_rows, arrival_ns: self.arrival_ns };
        match &mut self.table.rows {
            Rows::Traces(spans) => spans.push(message, row)?,
            Rows::Logs(records) => records.push(message, row)?,
            Rows::Metrics(metrics) => metrics.push(message, row)?,
        }
        self.open_rows += 1;
        Ok(())
    }

    /// The row just written may not have fitted: if so, it begins the next record batch.
    fn fit_row(&mut self, message: &[u8]) -> Result<(), Failure> {
        if self.open_size() <= self.config.batch_bytes_max {
            return Ok(());
        }
        if self.open_rows > 1 {
            self.open_rows -= 1;
            let rows = self.open_rows;
            self.table.each_mut(&mut |column| column.truncate(rows));
            self.cut()?;
            self.write_row(message)?;
            if self.open_size() <= self.config.batch_bytes_max {
                return Ok(());
            }
        }
        // A single row over the limit goes alone.
        self.cut()
    }

    /// Bytes of the open record batch, with all repeated columns brought up to its rows.
    fn open_size(&mut self) -> usize {
        self.flush();
        self.measure().message_bytes()
    }

    fn flush(&mut self) {
        self.table.common.flush(self.open_rows);
        if let Rows::Metrics(metrics) = &mut self.table.rows {
            metrics.metric.flush(self.open_rows);
        }
    }

    fn measure(&self) -> Size {
        let mut size = Size::default();
        self.table.each(&mut |column| column.size(self.open_rows, &mut size));
        size
    }

    /// What the open record batch may still grow: each buffer may take up to 63 bytes of padding on top.
    fn measure_room(&mut self) -> usize {
        self.flush();
        let size = self.measure();
        self.config.batch_bytes_max.saturating_sub(size.message_bytes() + 64 * size.buffers)
    }

    /// Checks all texts that came since the last check.
    fn check(&mut self) -> Result<(), Failure> {
        let mut bad: Option<(usize, usize)> = None;
        let mut index = 0;
        self.table.each_mut(&mut |column| {
            if let Err(row) = column.check() {
                bad.get_or_insert((index, row));
            }
            index += 1;
        });
        let Some((column, row)) = bad else { return Ok(()) };
        let problem = Problem::NotUtf8 { column: self.schema.field(column).name().clone() };
        Err(Failure { offset: Some(self.table.common.origin.offset_of(row)), problem })
    }

    /// Ends the open record batch, which has rows.
    fn cut(&mut self) -> Result<(), Failure> {
        self.flush();
        self.check()?;
        let bytes = self.measure().message_bytes();
        let rows = std::mem::take(&mut self.open_rows);
        debug_assert!(rows == 1 || bytes <= self.config.batch_bytes_max, "{rows} rows take {bytes} bytes");
        let mut arrays: Vec<Result<ArrayRef, ArrowError>> = Vec::with_capacity(self.schema.fields().len());
        self.table.each_mut(&mut |column| arrays.push(column.take(rows, &mut self.zeros)));
        let arrays = arrays.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.done.push(RecordBatch::try_new(self.schema.clone(), arrays)?);
        self.done_rows += rows;
        self.done_bytes += bytes;
        self.room_bytes = 0;
        self.table.common.origin.cut(rows);
        Ok(())
    }

    fn add_coverage(&mut self, coverage: &Coverage) {
        if coverage.range().is_empty() {
            return;
        }
        let known = match self.coverage.get_mut(&coverage.partition) {
            Some(known) => known,
            None => self.coverage.entry(coverage.partition.clone()).or_default(),
        };
        match known.last_mut().filter(|last| last.end == coverage.start) {
            Some(last) => {
                last.end = coverage.end;
                last.duplicates.extend_from_slice(&coverage.duplicates);
                last.rejected.extend_from_slice(&coverage.rejected);
                last.skipped.extend_from_slice(&coverage.skipped);
                last.absent.extend_from_slice(&coverage.absent);
            }
            None => known.push(coverage.clone()),
        }
        known.sort_by_key(|coverage| coverage.start);
    }
}

fn name_of(schema: &Option<Arc<Stamp>>) -> String {
    schema.as_ref().map_or("no dataset schema".to_owned(), |schema| schema.to_string())
}

/// What a message repeats on each of its rows, in bytes on the wire.
#[derive(Clone, Copy, Debug, Default)]
struct Repeated {
    resource: u64,
    scope: u64,
    metric: u64,
}

impl Repeated {
    /// What a row of `wire_bytes` counts.
    fn row(self, wire_bytes: u64) -> u64 {
        self.resource + self.scope + self.metric + wire_bytes + EXPANDED_ROW_BYTES
    }
}

/// An upper bound of what `payload` becomes when its resources, scopes and metrics are repeated on each row; before it grows by JSON
/// escapes. A message over `MESSAGE_EXPANDED_BYTES_MAX` is to be rejected before it comes here.
pub fn expanded_bytes(signal: Signal, payload: &[u8]) -> Result<u64, WireError> {
    let mut total = 0u64;
    for resource_group in messages(payload, 1) {
        let resource_group = resource_group?;
        let mut repeated = Repeated { resource: bytes_beside(resource_group, 2)?, ..Repeated::default() };
        for scope_group in messages(resource_group, 2) {
            let scope_group = scope_group?;
            repeated.scope = bytes_beside(scope_group, 2)?;
            for record in messages(scope_group, 2) {
                let record = record?;
                let expanded = if signal == Signal::Metrics {
                    expanded_metric(record, repeated)?
                } else {
                    repeated.row(record.len() as u64)
                };
                total = total.saturating_add(expanded);
            }
        }
    }
    Ok(total)
}

/// The same for one metric. Where it has data of several kinds, only one becomes rows; all are counted, as this is an upper bound.
fn expanded_metric(metric: &[u8], mut repeated: Repeated) -> Result<u64, WireError> {
    let mut data: Vec<&[u8]> = Vec::new();
    for field in fields(metric) {
        match field? {
            (number, Value::Bytes(message)) if Kind::of_field(number).is_some() => data.push(message),
            _ => {}
        }
    }
    let beside = if let [only] = data[..] { metric.len() - only.len() } else { metric.len() };
    repeated.metric = beside as u64;
    let mut total = 0u64;
    for message in data {
        for point in messages(message, 1) {
            total = total.saturating_add(repeated.row(point?.len() as u64));
        }
    }
    Ok(total)
}

/// The embedded messages of field `number`.
fn messages(message: &[u8], number: u32) -> impl Iterator<Item = Result<&[u8], WireError>> {
    fields(message).filter_map(move |field| match field {
        Ok((found, Value::Bytes(bytes))) if found == number => Some(Ok(bytes)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Bytes of all fields of wire type 2 but `number`.
fn bytes_beside(message: &[u8], number: u32) -> Result<u64, WireError> {
    let mut total = 0;
    for field in fields(message) {
        match field? {
            (found, Value::Bytes(bytes)) if found != number => total += bytes.len() as u64,
            _ => {}
        }
    }
    Ok(total)
}

/// Brings the first part of a message into the cache. The walk that skips rows jumps from row to row, and each jump depends on the one
/// before: on cold memory that is 80 ns for each span. Reads at a steady stride overlap and cost a quarter of that.
fn warm(message: &[u8]) {
    /// Half of a usual second-level cache; the rest of a larger message would push out its beginning.
    const WARM_BYTES_MAX: usize = 256 << 10;
    const CACHE_LINE_BYTES: usize = 64;
    let lines = message[..message.len().min(WARM_BYTES_MAX)].iter().step_by(CACHE_LINE_BYTES);
    std::hint::black_box(lines.fold(0, |sum, byte| sum ^ byte));
}

fn bounded(what: &'static str, bytes: usize) -> Result<u64, Problem> {
    let (bytes, limit) = (bytes as u64, ROW_WIRE_BYTES_MAX as u64);
    if bytes > limit { Err(Problem::TooLarge { what, bytes, limit }) } else { Ok(bytes) }
}

/// What every row takes in a column of this type, whatever its value: a width or an offset, and a byte for the bit of its validity.
fn fixed_width(data_type: &DataType) -> usize {
    1 + match data_type {
        DataType::FixedSizeBinary(width) => *width as usize,
        DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(_, _) => 4,
        other => other.primitive_width().unwrap_or(1),
    }
}

/// A required identifier. OpenTelemetry writes an unknown one as zeros, which is what an absent one becomes.
#[inline]
pub(super) fn id<'a, const N: usize>(bytes: &'a [u8], field: &'static str) -> Result<&'a [u8; N], Problem> {
    Ok(optional_id(bytes, field)?.unwrap_or(&[0; N]))
}

/// An optional identifier; absent when empty.
#[inline]
pub(super) fn optional_id<'a, const N: usize>(bytes: &'a [u8], field: &'static str) -> Result<Option<&'a [u8; N]>, Problem> {
    match bytes.try_into() {
        Ok(id) => Ok(Some(id)),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => Err(Problem::Id { field, found: bytes.len() }),
    }
}

/// A time in Unix nanoseconds; 0 means unknown.
#[inline]
pub(super) fn optional_time(nanos: u64, field: &'static str) -> Result<Option<i64>, Problem> {
    match i64::try_from(nanos) {
        Ok(0) => Ok(None),
        Ok(nanos) => Ok(Some(nanos)),
        Err(_) => Err(Problem::Time { field, nanos }),
    }
}

/// An enumeration's number. All that OTLP defines fit; one that does not is 0, which OTLP reserves for "unspecified".
#[inline]
pub(super) fn enumeration(value: u64) -> i8 {
    i8::try_from(value as i32).unwrap_or(0)
}
