//! What the roller guarantees, against real files in a temporary folder. Delivery, restarts and commits are simulated; what happens
//! to files after a commit is tested with the upload and the catalogs.

#![allow(clippy::single_range_in_vec_init, clippy::reversed_empty_ranges, reason = "lists of one range of offsets are meant")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
    TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

use super::*;
use crate::arrow_encode::schema::{DATASET_HASH_KEY, DATASET_VERSION_KEY};
use crate::catalog_commit::covered;
use crate::coverage::{Coverage, OffsetSet, TopicKey};

pub(crate) const DAY_MS: i64 = 86_400_000;
/// 2026-11-23, noon.
pub(crate) const NOON_MS: i64 = 20_780 * DAY_MS + DAY_MS / 2;

/// One row as the tests think of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestRow {
    pub partition: PartitionKey,
    pub offset: i64,
    pub ordinal: i32,
    pub kafka_ms: Option<i64>,
    pub time_ns: Option<i64>,
}

pub(crate) fn group(index: &str) -> Group {
    Group { index: index.into(), signal: Signal::Traces }
}

pub(crate) fn partition(topic: &str, number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "test".into(), name: topic.into(), id: "id".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

/// Rows of a partition, one per offset, all at noon.
pub(crate) fn noon_rows(partition: &PartitionKey, offsets: Range<i64>) -> Vec<TestRow> {
    let row = |offset| TestRow {
        partition: partition.clone(),
        offset,
        ordinal: 0,
        kafka_ms: Some(NOON_MS),
        time_ns: Some(NOON_MS * 1_000_000),
    };
    offsets.map(row).collect()
}

fn schema() -> SchemaRef {
    let utc = |unit| DataType::Timestamp(unit, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new(TOPIC, DataType::Utf8, false),
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
        Field::new("_ordinal", DataType::Int32, false),
        Field::new(KAFKA_TIMESTAMP, utc(TimeUnit::Millisecond), true),
        Field::new("start_time", utc(TimeUnit::Nanosecond), true),
        Field::new("trace_id", DataType::FixedSizeBinary(16), true),
    ]))
}

pub(crate) fn record_batch(rows: &[TestRow]) -> RecordBatch {
    let trace_ids = rows.iter().map(|row| Some((row.offset as u128).to_be_bytes()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.partition.topic.name.to_string()))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.partition.partition))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.offset))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.ordinal))),
        Arc::new(rows.iter().map(|row| row.kafka_ms).collect::<TimestampMillisecondArray>().with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| row.time_ns).collect::<TimestampNanosecondArray>().with_timezone("UTC")),
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(trace_ids, 16).unwrap()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub(crate) fn received(sequence: u64, group: &Group, rows: &[TestRow], coverage: Vec<Coverage>) -> Received {
    let batches = if rows.is_empty() { vec![] } else { vec![record_batch(rows)] };
    Received { id: DeliveryId { session: 1, sequence }, batch: EncodedBatch { group: group.clone(), batches, coverage } }
}

/// A delivery of one row per offset, all stored.
pub(crate) fn delivery(sequence: u64, group: &Group, partition: &PartitionKey, offsets: Range<i64>) -> Received {
    received(sequence, group, &noon_rows(partition, offsets.clone()), vec![Coverage::stored(partition.clone(), offsets)])
}

pub(crate) fn config(directory: &Path) -> Config {
    Config { prefix: "lake".into(), ..Config::new(directory.to_path_buf(), "node-1".into(), 7) }
}

/// Topic, partition, offset and ordinal of every row of a commit's files, in the files' order.
pub(crate) fn read_rows(commit: &ClosedCommit) -> Vec<(String, i32, i64, i32)> {
    let mut rows = Vec::new();
    for file in commit.files.iter().filter(|file| file.kind == FileKind::Rows) {
        let before = rows.len();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file.local).unwrap()).unwrap().build().unwrap();
        for batch in reader {
            let batch = batch.unwrap();
            let topics = cast(&batch[TOPIC], &DataType::Utf8).unwrap();
            let (partitions, offsets) = (batch[PARTITION].as_primitive::<Int32Type>(), batch[OFFSET].as_primitive::<Int64Type>());
            let ordinals = batch["_ordinal"].as_primitive::<Int32Type>();
            let row = |row| {
                (topics.as_string::<i32>().value(row).to_string(), partitions.value(row), offsets.value(row), ordinals.value(row))
            };
            rows.extend((0..batch.num_rows()).map(row));
        }
        assert_eq!((rows.len() - before) as u64, file.rows, "{}", file.path);
        assert_eq!(std::fs::metadata(&file.local).unwrap().len(), file.bytes);
    }
    rows
}

fn offsets(commit: &ClosedCommit) -> Vec<i64> {
    read_rows(commit).into_iter().map(|row| row.2).collect()
}

fn days(commit: &ClosedCommit) -> Vec<(String, u64)> {
    commit.files.iter().map(|file| (file.day.to_string(), file.rows)).collect()
}

#[test]
fn a_group_closes_by_bytes_by_age_and_by_idleness() {
    let folder = tempfile::tempdir().unwrap();
    let (traces, events) = (partition("orders.traces", 0), partition("events.traces", 0));
    let small = Config { file_bytes_max: 1, ..config(folder.path()) };
    let mut roller = Roller::open(small, BTreeMap::new()).unwrap();
    let closed = roller.admit(delivery(1, &group("orders"), &traces, 0..5), 1_000).unwrap().closed;
    assert_eq!((closed.len(), offsets(&closed[0])), (1, vec![0, 1, 2, 3, 4]), "by bytes");
    drop(roller);

    let mut roller = Roller::open(Config { age_max_ms: 60, idle_ms: 25, ..config(folder.path()) }, BTreeMap::new()).unwrap();
    assert_eq!(roller.next_deadline_ms(), None);
    for (sequence, now_ms) in [(1, 1_000), (2, 1_020), (3, 1_040)] {
        roller.admit(delivery(sequence, &group("orders"), &traces, now_ms..now_ms + 2), now_ms as u64).unwrap();
    }
    roller.admit(delivery(4, &group("events"), &events, 0..3), 1_041).unwrap();
    assert_eq!(roller.next_deadline_ms(), Some(1_060));
    assert!(roller.tick(1_059).unwrap().is_empty());
    let aged = roller.tick(1_060).unwrap();
    assert_eq!((aged.len(), offsets(&aged[0]).len(), aged[0].deliveries.len()), (1, 6, 3), "by age");
    assert_eq!(roller.next_deadline_ms(), Some(1_066));
    let idle = roller.tick(1_066).unwrap();
    assert_eq!((idle.len(), &idle[0].group), (1, &group("events")), "by idleness");
    assert_eq!((roller.next_deadline_ms(), roller.flush().unwrap().len()), (None, 0));
}

#[test]
fn the_group_least_recently_used_closes_early_when_too_many_files_are_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(Config { open_writers_max: 2, ..config(folder.path()) }, BTreeMap::new()).unwrap();
    let mut closed = Vec::new();
    for (sequence, index) in ["a", "b", "a", "c", "d"].into_iter().enumerate() {
        let sequence = sequence as i64;
        let delivery = delivery(sequence as u64, &group(index), &partition(index, 0), sequence * 10..sequence * 10 + 3);
        closed.extend(roller.admit(delivery, 1_000 + sequence as u64).unwrap().closed);
        assert!(roller.stats().open_writers <= 2);
    }
    let order: Vec<&str> = closed.iter().map(|commit| &*commit.group.index).collect();
    assert_eq!((order, roller.stats().early_rotations), (vec!["b", "a"], 2));
}

#[test]
fn row_groups_end_early_when_memory_runs_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(Config { memory_bytes_max: 1, ..config(folder.path()) }, BTreeMap::new()).unwrap();
    for sequence in 0..3 {
        roller
            .admit(delivery(sequence, &group("a"), &partition("a", 0), sequence as i64 * 10..sequence as i64 * 10 + 10), 1_000)
            .unwrap();
    }
    let stats = roller.stats();
    assert_eq!((stats.early_row_groups, stats.memory_bytes), (3, 0));
    assert_eq!(offsets(&roller.flush().unwrap()[0]), (0..30).collect::<Vec<_>>());
}

#[test]
fn rows_go_to_the_day_of_their_event_time_and_implausible_times_to_the_day_kafka_saw_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let orders = partition("orders", 0);
    let at = |ms: i64| Some(ms * 1_000_000);
    let cases: Vec<(Option<i64>, Option<i64>, &str)> = vec![
        (Some(NOON_MS), at(NOON_MS), "2026-11-23"),
        (Some(NOON_MS), at(NOON_MS - DAY_MS), "2026-11-22"),
        (Some(NOON_MS), at(NOON_MS + 29 * DAY_MS), "2026-12-22"),
        (Some(NOON_MS), at(NOON_MS - 31 * DAY_MS), "2026-11-23"),
        (Some(NOON_MS), Some(i64::MAX), "2026-11-23"),
        (Some(NOON_MS), Some(i64::MIN), "2026-11-23"),
        (Some(NOON_MS), Some(0), "2026-11-23"),
        (Some(NOON_MS), Some(-1), "2026-11-23"),
        (Some(NOON_MS), None, "2026-11-23"),
        (Some(i64::MAX), at(NOON_MS), "1970-01-01"),
        (Some(i64::MIN), at(NOON_MS), "2026-11-23"),
        (Some(-1), None, "1970-01-01"),
        (None, None, "1970-01-01"),
        (None, at(NOON_MS), "2026-11-23"),
        (Some(253_402_300_799_999), None, "9999-12-31"),
        (Some(253_402_300_800_000), None, "1970-01-01"),
    ];
    let row = |(offset, case): (usize, &(Option<i64>, Option<i64>, &str))| TestRow {
        partition: orders.clone(),
        offset: offset as i64,
        ordinal: 0,
        kafka_ms: case.0,
        time_ns: case.1,
    };
    let rows: Vec<TestRow> = cases.iter().enumerate().map(row).collect();
    // Together, as one batch that must be split, and alone, where minima and maxima decide.
    let whole = Coverage::stored(orders.clone(), 0..rows.len() as i64);
    roller.admit(received(1, &group("orders"), &rows, vec![whole]), 1).unwrap();
    let commit = roller.flush().unwrap().remove(0);
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    cases.iter().for_each(|case| *expected.entry(case.2.to_string()).or_default() += 1);
    assert_eq!(days(&commit), expected.into_iter().collect::<Vec<_>>());
    assert_eq!(read_rows(&commit).len(), cases.len());
    for (case, row) in cases.iter().zip(&rows) {
        let alone = TestRow { partition: partition("alone", 0), ..row.clone() };
        let coverage = Coverage::stored(alone.partition.clone(), row.offset..row.offset + 1);
        roller.admit(received(2, &group("alone"), &[alone], vec![coverage]), 1).unwrap();
        assert_eq!(days(&roller.flush().unwrap()[0]), [(case.2.to_string(), 1)], "{case:?}");
    }
}

#[test]
fn a_delivery_over_thousands_of_days_opens_a_bounded_number_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let orders = partition("orders", 0);
    let row = |offset: i64| TestRow {
        partition: orders.clone(),
        offset,
        ordinal: 0,
        kafka_ms: Some(NOON_MS + offset * DAY_MS),
        time_ns: Some((NOON_MS + offset * DAY_MS) * 1_000_000),
    };
    let rows: Vec<TestRow> = (0..3_000).map(row).collect();
    let closed =
        roller.admit(received(1, &group("orders"), &rows, vec![Coverage::stored(orders.clone(), 0..3_000)]), 1).unwrap().closed;
    let mut found = offsets(&closed[0]);
    found.sort();
    assert_eq!(found, (0..3_000).collect::<Vec<_>>());
    assert!(closed[0].files.len() <= 129 && roller.stats().open_writers <= 64, "{}", closed[0].files.len());
}

#[test]
fn malformed_deliveries_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let (orders, other) = (partition("orders", 0), partition("orders", 1));
    let rows = noon_rows(&orders, 0..5);
    let stored = |partition: &PartitionKey, range| Coverage::stored(partition.clone(), range);
    let with = |change: &dyn Fn(&mut Coverage)| {
        let mut coverage = stored(&orders, 0..5);
        change(&mut coverage);
        vec![coverage]
    };
    let recreated = PartitionKey { topic: Arc::new(TopicKey { id: "other id".into(), ..(*orders.topic).clone() }), partition: 0 };
    let cases: Vec<(&str, Vec<Coverage>)> = vec![
        ("no coverage", vec![]),
        ("row after the coverage", vec![stored(&orders, 0..4)]),
        ("row before the coverage", vec![stored(&orders, 1..5)]),
        ("another partition", vec![stored(&other, 0..5)]),
        ("another topic", vec![stored(&partition("events", 0), 0..5)]),
        ("rows of one of two partitions outside", vec![stored(&orders, 0..4), stored(&other, 0..5)]),
        ("an offset twice", vec![stored(&orders, 0..3), stored(&orders, 2..5)]),
        ("a row between two ranges", vec![stored(&orders, 3..5), stored(&orders, 0..2)]),
        ("a row before two ranges", vec![stored(&orders, 1..3), stored(&orders, 3..5)]),
        ("a row after two ranges", vec![stored(&orders, 0..3), stored(&orders, 3..4), stored(&other, 0..5)]),
        ("two topics of one name", vec![stored(&orders, 0..5), stored(&recreated, 0..5)]),
        ("negative range", with(&|coverage| coverage.end = -1)),
        ("negative offsets", with(&|coverage| coverage.start = -5)),
        ("duplicate outside", with(&|coverage| coverage.duplicates = vec![5])),
        ("listed twice", with(&|coverage| (coverage.duplicates, coverage.rejected) = (vec![2], vec![2]))),
        ("absent overlapping", with(&|coverage| coverage.absent = vec![0..3, 2..4])),
        ("endless absent", with(&|coverage| coverage.absent = vec![1..i64::MAX])),
        ("backward absent", with(&|coverage| coverage.absent = vec![Range { start: 3, end: 1 }])),
        ("offset at the end of numbers", with(&|coverage| coverage.skipped = vec![i64::MAX])),
    ];
    for (name, coverage) in cases {
        let error = roller.admit(received(1, &group("orders"), &rows, coverage), 1).expect_err(name);
        assert!(error.is_refusal() && !error.is_retriable(), "{name}: {error}");
    }
    let batch = record_batch(&rows);
    for column in [TOPIC, PARTITION, OFFSET, KAFKA_TIMESTAMP, "start_time"] {
        let keep: Vec<usize> =
            (0..batch.num_columns()).filter(|&position| batch.schema().field(position).name() != column).collect();
        let mut delivery = delivery(1, &group("orders"), &orders, 0..5);
        delivery.batch.batches = vec![batch.project(&keep).unwrap()];
        assert!(roller.admit(delivery, 1).expect_err(column).is_refusal());
    }
    assert_eq!((roller.stats().open_groups, roller.flush().unwrap().len()), (0, 0));
    roller.admit(delivery(2, &group("orders"), &orders, 0..5), 1).unwrap();
    assert_eq!(offsets(&roller.flush().unwrap()[0]), [0, 1, 2, 3, 4]);
}

#[test]
fn dictionary_topics_and_a_changed_schema_are_written_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let (orders, other) = (partition("orders", 0), partition("orders", 1));
    roller.admit(delivery(1, &group("orders"), &orders, 0..5), 1).unwrap();
    let mut changed = received(
        2,
        &group("orders"),
        &[noon_rows(&orders, 3..8), noon_rows(&other, 0..2)].concat(),
        vec![Coverage::stored(orders.clone(), 3..8), Coverage::stored(other.clone(), 0..2)],
    );
    let batch = &changed.batch.batches[0];
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let mut columns = batch.columns().to_vec();
    columns[0] = cast(&columns[0], &dictionary).unwrap();
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields[0] = Arc::new(Field::new(TOPIC, dictionary, false));
    changed.batch.batches = vec![RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()];
    roller.admit(changed, 1).unwrap();
    let commit = roller.flush().unwrap().remove(0);
    assert_eq!(commit.files.len(), 2);
    assert_ne!(commit.files[0].schema_hash, commit.files[1].schema_hash);
    let found: BTreeSet<(i32, i64)> = read_rows(&commit).into_iter().map(|row| (row.1, row.2)).collect();
    assert_eq!(found, (0..8).map(|offset| (0, offset)).chain([(1, 0), (1, 1)]).collect());
    assert_eq!(commit.coverage.iter().map(|row| (row.range.clone(), row.rows)).collect::<Vec<_>>(), [(0..8, 8), (0..2, 2)]);
}

#[test]
fn rows_of_two_versions_of_a_dataset_schema_share_a_commit_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let orders = partition("orders", 0);
    for (id, version, range) in [(1, 7u32, 0..5), (2, 8, 5..9), (3, 7, 9..12)] {
        let mut ruled = delivery(id, &group("orders"), &orders, range);
        let metadata = [(DATASET_VERSION_KEY, version.to_string()), (DATASET_HASH_KEY, format!("{version:016x}"))];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let stamped = |batch: &RecordBatch| {
            let schema = Schema::new(batch.schema().fields().clone()).with_metadata(metadata.clone());
            RecordBatch::try_new(Arc::new(schema), batch.columns().to_vec()).unwrap()
        };
        ruled.batch.batches = ruled.batch.batches.iter().map(stamped).collect();
        roller.admit(ruled, 1).unwrap();
    }
    let commit = roller.flush().unwrap().remove(0);
    let files: BTreeSet<_> = commit.files.iter().map(|file| (file.schema_version, file.rows, &file.schema_hash[..17])).collect();
    assert_eq!(files, BTreeSet::from([(7, 8, "0000000000000007-"), (8, 4, "0000000000000008-")]));
}

#[test]
fn several_ranges_of_a_partition_in_any_order_are_one_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let (orders, other) = (partition("orders", 0), partition("orders", 1));
    let rows = [noon_rows(&orders, 20..25), noon_rows(&other, 0..2), noon_rows(&orders, 0..5), noon_rows(&orders, 8..9)].concat();
    let stored = |partition: &PartitionKey, range| Coverage::stored(partition.clone(), range);
    let coverage = vec![stored(&orders, 20..25), stored(&other, 0..2), stored(&orders, 0..5), stored(&orders, 5..9)];
    roller.admit(delivery(1, &group("orders"), &orders, 3..6), 1).unwrap();
    roller.admit(received(2, &group("orders"), &rows, coverage), 1).unwrap();
    let commit = roller.flush().unwrap().remove(0);
    let expected = [(0, 0..9, 7), (0, 20..25, 5), (1, 0..2, 2)];
    let found: Vec<_> = commit.coverage.iter().map(|row| (row.partition.partition, row.range.clone(), row.rows)).collect();
    assert_eq!(found, expected);
    let mut found: Vec<(i32, i64)> = read_rows(&commit).into_iter().map(|row| (row.1, row.2)).collect();
    found.sort();
    let offsets = (0..6).chain([8]).chain(20..25).map(|offset| (0, offset));
    assert_eq!(found, offsets.chain([(1, 0), (1, 1)]).collect::<Vec<_>>());
}

#[test]
fn a_redelivery_is_acknowledged_only_with_what_it_rests_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let (orders, name) = (partition("orders", 0), group("orders"));
    let id = |sequence| DeliveryId { session: 1, sequence };
    roller.admit(delivery(1, &name, &orders, 0..5), 1).unwrap();
    assert_eq!(roller.admit(delivery(2, &name, &orders, 1..4), 1).unwrap().published, None, "rests on the open commit");
    let first = roller.flush().unwrap().remove(0);
    assert_eq!(first.deliveries, [id(1), id(2)]);
    let empty = roller.admit(delivery(3, &name, &orders, 0..5), 2).unwrap();
    assert_eq!((empty.published, empty.closed.len()), (None, 1), "rests on a closing commit");
    assert_eq!((empty.closed[0].files.len(), &empty.closed[0].deliveries[..]), (0, &[id(3)][..]));
    assert!(empty.closed[0].commit_id > first.commit_id);
    roller.committed(&first);
    roller.committed(&empty.closed[0]);
    assert_eq!(roller.admit(delivery(4, &name, &orders, 0..5), 3).unwrap().published, Some(id(4)), "the catalog has it");
    assert_eq!(roller.admit(received(5, &name, &[], vec![]), 3).unwrap().published, Some(id(5)), "it says nothing");
    assert!(roller.flush().unwrap().is_empty());
    assert_eq!((roller.stats().redelivered, roller.stats().rows_known, roller.stats().rows), (4, 13, 5));
}

#[test]
fn an_abandoned_commit_takes_with_it_whatever_rests_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let (orders, name) = (partition("orders", 0), group("orders"));
    let id = |sequence| DeliveryId { session: 1, sequence };
    roller.admit(delivery(1, &name, &orders, 0..5), 1).unwrap();
    roller.admit(delivery(2, &group("events"), &partition("events", 0), 0..2), 1).unwrap();
    let closed = roller.flush().unwrap();
    let [events, first] = &closed[..] else { panic!("two groups") };
    roller.admit(delivery(3, &name, &orders, 4..7), 2).unwrap();
    let second = roller.flush().unwrap().remove(0);
    roller.admit(delivery(4, &name, &orders, 2..9), 3).unwrap();
    // Another node was faster with a part of the first.
    let mut covered = OffsetSet::default();
    covered.insert(0..3);
    let abandoned = roller.abandon(first.commit_id, BTreeMap::from([(orders.clone(), covered)])).unwrap();
    assert_eq!(abandoned, Abandoned { commits: vec![first.commit_id, second.commit_id], refused: vec![id(1), id(3), id(4)] });
    assert!(first.files[0].local.exists() && second.files[0].local.exists(), "they may be on their way to the catalog");
    assert_eq!(std::fs::read_dir(folder.path().join("active")).unwrap().count(), 0, "what was open is gone");
    assert_eq!((first.generation, second.generation), (0, 0));
    assert_eq!((roller.stats().open_groups, roller.stats().closing), (0, 1), "the other group goes on");
    roller.committed(events);
    roller.committed(first);
    for (sequence, range) in [(1, 0..5), (3, 4..7), (4, 2..9)] {
        roller.admit(delivery(sequence, &name, &orders, range), 4).unwrap();
    }
    let again = roller.flush().unwrap().remove(0);
    assert_eq!((offsets(&again), again.generation), (vec![3, 4, 5, 6, 7, 8], 1));
    assert_eq!(roller.abandon(first.commit_id, BTreeMap::new()).unwrap(), Abandoned::default(), "once is enough");
}

#[test]
#[should_panic(expected = "was committed before")]
fn committing_out_of_order_within_a_group_panics() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    roller.admit(delivery(1, &group("orders"), &partition("orders", 0), 0..5), 1).unwrap();
    roller.flush().unwrap();
    roller.admit(delivery(2, &group("orders"), &partition("orders", 0), 5..9), 1).unwrap();
    let second = roller.flush().unwrap().remove(0);
    roller.committed(&second);
}

#[test]
fn a_partition_that_waits_in_one_group_is_refused_for_another_until_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let orders = partition("orders", 0);
    roller.admit(delivery(1, &group("old"), &orders, 0..5), 1).unwrap();
    let error = roller.admit(delivery(2, &group("new"), &orders, 3..8), 1).expect_err("offsets of another group");
    assert!(error.is_refusal() && error.is_retriable(), "{error}");
    let old = roller.flush().unwrap().remove(0);
    roller.committed(&old);
    roller.admit(delivery(2, &group("new"), &orders, 3..8), 1).unwrap();
    assert_eq!(offsets(&roller.flush().unwrap()[0]), [5, 6, 7]);
}

#[test]
fn killed_between_close_and_commit_the_rows_come_back_exactly_once() {
    let folder = tempfile::tempdir().unwrap();
    let (orders, name) = (partition("orders", 0), group("orders"));
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    roller.admit(delivery(1, &name, &orders, 0..5), 1).unwrap();
    let committed = roller.flush().unwrap().remove(0);
    roller.admit(delivery(2, &name, &orders, 5..9), 1).unwrap();
    let lost = roller.flush().unwrap().remove(0);
    roller.admit(delivery(3, &name, &orders, 9..12), 1).unwrap();
    let second = Roller::open(config(folder.path()), BTreeMap::new());
    assert!(matches!(second, Err(Error::Locked { .. })), "two rollers in one folder");
    let rows = read_rows(&committed);
    drop(roller);

    let known = covered(&BTreeMap::from([(orders.clone(), committed.coverage.clone())]));
    let mut roller = Roller::open(config(folder.path()), known).unwrap();
    assert!(roller.stats().discarded >= 3 && !lost.files[0].local.exists());
    for (sequence, range) in [(1, 0..5), (2, 5..9), (3, 9..12)] {
        roller.admit(delivery(sequence, &name, &orders, range), 1).unwrap();
    }
    let again = roller.flush().unwrap().remove(0);
    let mut all: Vec<i64> = rows.into_iter().map(|row| row.2).chain(offsets(&again)).collect();
    all.sort();
    assert_eq!(all, (0..12).collect::<Vec<_>>());
}

#[test]
fn footers_tell_all_about_their_commit_and_coverage_without_rows_is_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    let (orders, name) = (partition("orders", 3), group("team/../orders"));
    let mut coverage = Coverage::stored(orders.clone(), 0..10);
    (coverage.duplicates, coverage.rejected, coverage.absent) = (vec![7], vec![5, 6], vec![8..10]);
    roller.admit(received(1, &name, &noon_rows(&orders, 0..5), vec![coverage]), 1_764_000_000_000).unwrap();
    let commit = roller.flush().unwrap().remove(0);
    let [file] = &commit.files[..] else { panic!("one file") };
    let expected = format!("lake/team%2F..%2Forders/traces/year=2026/month=11/day=23/node-1/{}.parquet", file.file.to_string());
    assert_eq!(file.path, expected);
    let metadata =
        parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&File::open(&file.local).unwrap()).unwrap();
    let (note, own) = footer::read(&metadata).unwrap();
    assert_eq!(
        (note.commit_id, &note.group, &note.files, &note.coverage),
        (commit.commit_id, &name, &vec![file.file], &commit.coverage)
    );
    assert_eq!(
        (own.file, own.day, own.time_min_ns, &own.schema_hash),
        (file.file, file.day, file.time_min_ns, &file.schema_hash)
    );
    let dispositions = note.coverage[0].dispositions;
    assert_eq!((dispositions.stored, dispositions.duplicates, dispositions.rejected, dispositions.absent), (5, 1, 2, 2));

    let mut rejected = Coverage::stored(orders.clone(), 10..12);
    rejected.rejected = vec![10, 11];
    roller.admit(received(2, &name, &[], vec![rejected]), 1_764_000_000_000).unwrap();
    let commit = roller.flush().unwrap().remove(0);
    let [file] = &commit.files[..] else { panic!("one file") };
    assert_eq!(
        (file.kind, file.rows, &commit.deliveries[..]),
        (FileKind::Coverage, 0, &[DeliveryId { session: 1, sequence: 2 }][..])
    );
    assert_eq!(file.path, format!("lake/team%2F..%2Forders/traces/_coverage/node-1/{}.json", commit.commit_id.to_string()));
    let note = footer::CommitNote::from_json(&std::fs::read(&file.local).unwrap()).unwrap();
    assert_eq!((note.commit_id, note.files.len(), &note.coverage), (commit.commit_id, 0, &commit.coverage));
}

#[test]
fn an_error_while_writing_stops_the_roller_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let mut roller = Roller::open(config(folder.path()), BTreeMap::new()).unwrap();
    std::fs::remove_dir_all(folder.path().join("active")).unwrap();
    let error = roller.admit(delivery(1, &group("orders"), &partition("orders", 0), 0..5), 1).expect_err("no folder");
    assert!(!error.is_refusal(), "{error}");
    std::fs::create_dir_all(folder.path().join("active")).unwrap();
    let again = roller.admit(delivery(1, &group("orders"), &partition("orders", 0), 0..5), 1);
    assert!(matches!(again, Err(Error::Poisoned { .. })) && matches!(roller.flush(), Err(Error::Poisoned { .. })));
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let batch = record_batch(&noon_rows(&partition("orders", 0), 0..9));
    let mut writer = parquet::arrow::ArrowWriter::try_new(full(), batch.schema(), None).unwrap();
    let source = writer.write(&batch).and_then(|()| writer.finish().map(|_| ())).expect_err("the device is full");
    let error = Error::Parquet { doing: "write the footer of", path: "/dev/full".into(), source };
    assert!(error.is_full() && !error.is_refusal(), "{error:?}");
    let io = |source| Error::Io { doing: "write", path: "/dev/full".into(), source };
    assert!(io(std::io::Write::write_all(&mut full(), b"x").expect_err("full")).is_full());
    assert!(!io(std::io::Error::other("broken")).is_full());
}

mod days {
    use super::*;
    use crate::parquet_roll::day::Civil;

    #[test]
    fn days_agree_with_the_gregorian_calendar() {
        let mut civil = Civil { year: 1600, month: 1, day: 1 };
        let leap = |year: i32| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        // 1600-01-01 is 135,140 days before 1970-01-01.
        for day in -135_140..=2_932_896 {
            assert_eq!(Day(day).civil(), civil, "{day}");
            let length = match civil.month {
                2 => 28 + u8::from(leap(civil.year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            civil.day += 1;
            if civil.day > length {
                (civil.day, civil.month) = (1, civil.month + 1);
            }
            if civil.month > 12 {
                (civil.month, civil.year) = (1, civil.year + 1);
            }
        }
        assert_eq!(civil, Civil { year: 10_000, month: 1, day: 1 });
    }
}

mod model;
