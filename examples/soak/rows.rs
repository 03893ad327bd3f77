//! Rows as Parquet holds them: which message each is of, and the digest of its content.

use anyhow::Context as _;
use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::datatypes::{
    DataType, Float64Type, Int8Type, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType, TimestampNanosecondType,
    UInt32Type, UInt64Type,
};
use bytes::Bytes;
use openwit_operators::batch::Signal;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::digest::{ATTRIBUTES, Digest, LOGS, METRICS, ORIGIN, PROMOTED, RESOURCE, SCOPE, TRACES};

/// One row of a file.
pub struct Row<'a> {
    /// The topic of its message.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Its number in the message.
    pub ordinal: i32,
    /// What it holds.
    pub digest: u64,
}

/// Calls `take` with each row of a Parquet file; returns how many there are.
pub fn read(file: Bytes, signal: Signal, mut take: impl FnMut(Row<'_>) -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let mut rows = 0;
    for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        let columns = Columns::of(&batch, signal)?;
        let topics = arrow::compute::cast(column(&batch, "_topic")?, &DataType::Utf8)?;
        let (partitions, offsets) = (column(&batch, "_partition")?, column(&batch, "_offset")?);
        let ordinals = column(&batch, "_ordinal")?;
        for row in 0..batch.num_rows() {
            take(Row {
                topic: topics.as_string::<i32>().value(row),
                partition: partitions.as_primitive::<Int32Type>().value(row),
                offset: offsets.as_primitive::<Int64Type>().value(row),
                ordinal: ordinals.as_primitive::<Int32Type>().value(row),
                digest: columns.digest(row)?,
            })?;
        }
    }
    Ok(rows)
}

/// The columns of a batch, in the order in which they are put into a digest.
struct Columns {
    origin: Vec<ArrayRef>,
    resource: Vec<ArrayRef>,
    scope: Vec<ArrayRef>,
    own: Vec<ArrayRef>,
}

/// Of `SCOPE`, so many are of the resource.
const OF_RESOURCE: usize = 3;

impl Columns {
    fn of(batch: &RecordBatch, signal: Signal) -> anyhow::Result<Self> {
        let all = |names: &mut dyn Iterator<Item = &str>| names.map(|name| column(batch, name).cloned()).collect();
        let promoted = PROMOTED.iter().map(|(_, column, _)| *column);
        let last = std::iter::once(ATTRIBUTES);
        let resource = RESOURCE.iter().map(|(_, column)| *column);
        let own: anyhow::Result<Vec<ArrayRef>> = match signal {
            Signal::Traces => all(&mut TRACES.into_iter().chain(promoted).chain(last)),
            Signal::Logs => all(&mut LOGS.into_iter().chain(promoted).chain(last)),
            Signal::Metrics => all(&mut METRICS.into_iter().chain(last)),
        };
        Ok(Columns {
            origin: all(&mut ORIGIN.into_iter())?,
            resource: all(&mut resource.chain(SCOPE.into_iter().take(OF_RESOURCE)))?,
            scope: all(&mut SCOPE.into_iter().skip(OF_RESOURCE))?,
            own: own?,
        })
    }

    fn digest(&self, row: usize) -> anyhow::Result<u64> {
        let part = |columns: &[ArrayRef]| {
            let mut digest = Digest::default();
            columns.iter().try_for_each(|column| put(&mut digest, column, row)).map(|()| digest.finish() as i64)
        };
        let mut digest = Digest::default();
        self.origin.iter().try_for_each(|column| put(&mut digest, column, row))?;
        digest.number(Some(part(&self.resource)?));
        digest.number(Some(part(&self.scope)?));
        self.own.iter().try_for_each(|column| put(&mut digest, column, row))?;
        Ok(digest.finish())
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<&'a ArrayRef> {
    batch.column_by_name(name).with_context(|| format!("a file has no column {name}"))
}

/// Puts the value of a column, whatever its type.
fn put(digest: &mut Digest, column: &dyn Array, row: usize) -> anyhow::Result<()> {
    let is_there = column.is_valid(row);
    match column.data_type() {
        DataType::Utf8 => digest.text(is_there.then(|| column.as_string::<i32>().value(row))),
        DataType::FixedSizeBinary(_) => digest.bytes(is_there.then(|| column.as_fixed_size_binary().value(row))),
        DataType::Float64 => digest.double(is_there.then(|| column.as_primitive::<Float64Type>().value(row))),
        DataType::Map(..) => put_map(digest, column, row)?,
        DataType::List(_) => {
            let list = column.as_list::<i32>().value(row);
            digest.length(list.len());
            (0..list.len()).try_for_each(|item| put(digest, &list, item))?;
        }
        DataType::Struct(_) => column.as_struct().columns().iter().try_for_each(|field| put(digest, field, row))?,
        _ => digest.number(if is_there { Some(number(column, row)?) } else { None }),
    }
    Ok(())
}

fn number(column: &dyn Array, row: usize) -> anyhow::Result<i64> {
    Ok(match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row) as i64,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => column.as_primitive::<TimestampNanosecondType>().value(row),
        DataType::Timestamp(TimeUnit::Millisecond, _) => column.as_primitive::<TimestampMillisecondType>().value(row),
        other => anyhow::bail!("a file has a column of type {other}, which docs/schemas.md does not know"),
    })
}

fn put_map(digest: &mut Digest, column: &dyn Array, row: usize) -> anyhow::Result<()> {
    let map = column.as_map();
    let (start, end) = (map.value_offsets()[row] as usize, map.value_offsets()[row + 1] as usize);
    let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
    digest.map((start..end).map(|entry| (keys.value(entry), values.is_valid(entry).then(|| values.value(entry)))));
    Ok(())
}
