//! What of a delivery is new: pure checks and selections, nothing kept.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::compute::{cast, filter_record_batch, max, min};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimeUnit};
use arrow::error::ArrowError;

use crate::batch::Group;
use crate::coverage::Coverage;
use crate::parquet_roll::{KAFKA_TIMESTAMP, OFFSET, PARTITION, TOPIC, time_column};

/// Refuses a delivery that contradicts itself, before anything is done with it. What it says comes from the network.
pub fn check(group: &Group, batches: &[RecordBatch], coverages: &[Coverage]) -> Result<(), String> {
    let mut sorted: Vec<&Coverage> = coverages.iter().collect();
    sorted.sort_by_key(|coverage| sort_key(coverage));
    for coverage in &sorted {
        check_coverage(coverage)?;
    }
    for pair in sorted.windows(2) {
        let same = name_of(pair[0]) == name_of(pair[1]);
        // Rows name their topic, not its id: with two ids of one name it would be unclear whose they are.
        if same && pair[0].partition != pair[1].partition {
            return Err(format!("{} is covered for two topics of one name", pair[0].partition));
        }
        if same && pair[0].end > pair[1].start {
            return Err(format!("offset {} of {} is covered twice", pair[1].start, pair[1].partition));
        }
    }
    let utc = |unit| DataType::Timestamp(unit, Some("UTC".into()));
    let needed = [
        (PARTITION, DataType::Int32),
        (OFFSET, DataType::Int64),
        (KAFKA_TIMESTAMP, utc(TimeUnit::Millisecond)),
        (time_column(group.signal), utc(TimeUnit::Nanosecond)),
    ];
    for rows in batches.iter().filter(|rows| rows.num_rows() > 0) {
        for (name, expected) in &needed {
            let found = rows.column_by_name(name).ok_or_else(|| format!("column {name:?} is missing"))?.data_type();
            let same = match (found, expected) {
                (DataType::Timestamp(found, _), DataType::Timestamp(expected, _)) => found == expected,
                (found, expected) => found == expected,
            };
            if !same {
                return Err(format!("column {name:?} is {found}, it must be {expected}"));
            }
        }
    }
    Ok(())
}

fn name_of(coverage: &Coverage) -> (&str, i32) {
    (&coverage.partition.topic.name, coverage.partition.partition)
}

/// The order in which `select` wants coverage: what rows can be looked up by.
pub fn sort_key(coverage: &Coverage) -> (&str, i32, i64, i64) {
    let (topic, partition) = name_of(coverage);
    (topic, partition, coverage.start, coverage.end)
}

/// All lists ascending, inside the range and without a common offset.
fn check_coverage(coverage: &Coverage) -> Result<(), String> {
    let Range { start, end } = coverage.range();
    if start < 0 || end < start {
        return Err(format!("coverage {start}..{end} of {} is not a range of offsets", coverage.partition));
    }
    let mut listed: Vec<Range<i64>> = coverage.absent.clone();
    for offsets in [&coverage.duplicates, &coverage.rejected, &coverage.skipped] {
        listed.extend(offsets.iter().map(|&offset| offset..offset.saturating_add(1)));
    }
    listed.sort_by_key(|range| range.start);
    let mut next = start;
    for range in listed {
        if range.start < next || range.end <= range.start || range.end > end {
            return Err(format!(
                "coverage {start}..{end} of {} lists {}..{} twice or outside",
                coverage.partition, range.start, range.end
            ));
        }
        next = range.end;
    }
    Ok(())
}

/// One coverage of a delivery and those of its offsets that are in no commit yet.
#[derive(Debug)]
pub struct Missing<'a> {
    /// The coverage as delivered.
    pub coverage: &'a Coverage,
    /// The missing ranges, ascending.
    pub ranges: Vec<Range<i64>>,
}

impl Missing<'_> {
    /// True if all of the coverage is missing: the usual case.
    pub fn is_whole(&self) -> bool {
        self.coverage.start == self.coverage.end || self.ranges == [self.coverage.range()]
    }
}

/// What rows a range of offsets has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many.
    pub rows: u64,
    /// Their greatest Kafka timestamp in Unix milliseconds, if any has one.
    pub kafka_time_max_ms: Option<i64>,
}

/// The new rows of a delivery.
#[derive(Debug)]
pub struct News {
    /// For each `Missing`, for each of its ranges: what was found.
    pub ranges: Vec<Vec<Found>>,
    /// The rows themselves.
    pub batches: Vec<RecordBatch>,
}

/// Why rows could not be selected.
#[derive(Debug)]
pub enum Fault {
    /// The rows contradict the coverage.
    Malformed(String),
    /// A kernel failed.
    Arrow(ArrowError),
}

impl From<ArrowError> for Fault {
    fn from(error: ArrowError) -> Self {
        Fault::Arrow(error)
    }
}

/// Counts and selects the rows whose offsets are missing; rows outside of the coverage make the delivery malformed. `missing` is in the
/// order of `sort_key`.
///
/// One partition of which everything is new, the usual case, costs five vectorized minima and maxima (below 1 ns a row).
pub fn select(batches: Vec<RecordBatch>, missing: &[Missing<'_>]) -> Result<News, Fault> {
    let batches: Vec<RecordBatch> = batches.into_iter().filter(|batch| batch.num_rows() > 0).collect();
    if let [only] = missing
        && only.is_whole()
    {
        let mut found = Found::default();
        for batch in &batches {
            let columns = Columns::of(batch)?;
            check_bounds(&columns, only.coverage)?;
            found.rows += batch.num_rows() as u64;
            found.kafka_time_max_ms = found.kafka_time_max_ms.max(max(columns.kafka_times));
        }
        return Ok(News { ranges: vec![if only.ranges.is_empty() { vec![] } else { vec![found] }], batches });
    }
    let mut by_name: BTreeMap<(&str, i32), Range<usize>> = BTreeMap::new();
    for (position, one) in missing.iter().enumerate() {
        by_name.entry(name_of(one.coverage)).or_insert(position..position).end = position + 1;
    }
    let mut ranges: Vec<Vec<Found>> = missing.iter().map(|one| vec![Found::default(); one.ranges.len()]).collect();
    let whole = missing.iter().all(Missing::is_whole);
    let mut selected = Vec::with_capacity(batches.len());
    for batch in batches {
        let keep = count(&Columns::of(&batch)?, missing, &by_name, &mut ranges)?;
        if whole {
            selected.push(batch);
            continue;
        }
        let kept = filter_record_batch(&batch, &BooleanArray::from(keep))?;
        if kept.num_rows() > 0 {
            selected.push(kept);
        }
    }
    Ok(News { ranges, batches: selected })
}

struct Columns<'a> {
    topics: StringArray,
    partitions: &'a Int32Array,
    offsets: &'a Int64Array,
    kafka_times: &'a TimestampMillisecondArray,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, Fault> {
        let column = |name: &str| -> Result<&'a ArrayRef, Fault> {
            let column = batch.column_by_name(name).ok_or_else(|| Fault::Malformed(format!("column {name:?} is missing")))?;
            if column.null_count() > 0 {
                return Err(Fault::Malformed(format!("column {name:?} holds nulls")));
            }
            Ok(column)
        };
        let wrong = |name: &str| Fault::Malformed(format!("column {name:?} has the wrong type"));
        // A copy only where the topic came as a dictionary or view; a plain column is shared.
        let topics = match column(TOPIC)? {
            plain if plain.data_type() == &DataType::Utf8 => plain.as_string::<i32>().clone(),
            other => {
                let plain = cast(other, &DataType::Utf8).map_err(|_| wrong(TOPIC))?;
                if plain.null_count() > 0 {
                    return Err(Fault::Malformed(format!("column {TOPIC:?} holds nulls")));
                }
                plain.as_string::<i32>().clone()
            }
        };
        let partitions = column(PARTITION)?.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong(PARTITION))?;
        let offsets = column(OFFSET)?.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong(OFFSET))?;
        // The one column that may hold nulls: the broker gave no time.
        let kafka_times = batch.column_by_name(KAFKA_TIMESTAMP).and_then(|times| times.as_primitive_opt());
        let kafka_times = kafka_times.ok_or_else(|| wrong(KAFKA_TIMESTAMP))?;
        Ok(Columns { topics, partitions, offsets, kafka_times })
    }

    fn len(&self) -> usize {
        self.offsets.len()
    }
}

/// All rows are of the partition, their offsets inside the coverage. Of the topic only both ends are looked at.
fn check_bounds(columns: &Columns<'_>, coverage: &Coverage) -> Result<(), Fault> {
    let inside = |offset: Option<i64>| offset.is_some_and(|offset| coverage.range().contains(&offset));
    let partition = Some(coverage.partition.partition);
    let topic = &*coverage.partition.topic.name;
    let ends_agree = columns.topics.value(0) == topic && columns.topics.value(columns.len() - 1) == topic;
    let partitions_agree = min(columns.partitions) == partition && max(columns.partitions) == partition;
    if ends_agree && partitions_agree && inside(min(columns.offsets)) && inside(max(columns.offsets)) {
        return Ok(());
    }
    let Range { start, end } = coverage.range();
    Err(Fault::Malformed(format!("rows lie outside of the coverage {start}..{end} of {}", coverage.partition)))
}

fn kafka_time(columns: &Columns<'_>, row: usize) -> Option<i64> {
    columns.kafka_times.is_valid(row).then(|| columns.kafka_times.value(row))
}

/// Marks the rows whose offsets are missing and counts them per range. Rows of one partition follow each other, so the partition is
/// looked up where it changes.
fn count(
    columns: &Columns<'_>,
    missing: &[Missing<'_>],
    by_name: &BTreeMap<(&str, i32), Range<usize>>,
    ranges: &mut [Vec<Found>],
) -> Result<Vec<bool>, Fault> {
    let mut keep = Vec::with_capacity(columns.len());
    let mut current: Option<(&str, i32, Range<usize>)> = None;
    for row in 0..columns.len() {
        let (topic, partition, offset) = (columns.topics.value(row), columns.partitions.value(row), columns.offsets.value(row));
        let outside = || Fault::Malformed(format!("a row of {topic}[{partition}] has offset {offset}, which is not covered"));
        let positions = match current.take() {
            Some((same_topic, same_partition, positions)) if same_partition == partition && same_topic == topic => positions,
            _ => by_name.get(&(topic, partition)).cloned().ok_or_else(outside)?,
        };
        let position = positions.start + missing[positions.clone()].partition_point(|one| one.coverage.end <= offset);
        current = Some((topic, partition, positions.clone()));
        let one = missing.get(position).filter(|one| position < positions.end && one.coverage.start <= offset);
        let one = one.ok_or_else(outside)?;
        let range = one.ranges.partition_point(|range| range.end <= offset);
        let new = one.ranges.get(range).is_some_and(|range| range.start <= offset);
        if new {
            let found = &mut ranges[position][range];
            found.rows += 1;
            found.kafka_time_max_ms = found.kafka_time_max_ms.max(kafka_time(columns, row));
        }
        keep.push(new);
    }
    Ok(keep)
}
