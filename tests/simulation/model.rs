//! What is outside of the cores: Kafka and the catalog, as lists; and all that is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use openwit_operators::batch::{Group, Signal};
use openwit_operators::coverage::{Coverage, Dispositions, OffsetSet, PartitionKey, TopicKey};
use openwit_operators::parquet_roll::{ClosedCommit, FileKind};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use prost::Message as _;

/// Partitions, two of each topic.
pub const PARTITIONS: usize = 4;

/// The partition with this index, over all topics.
pub fn partition(index: usize) -> PartitionKey {
    let name = ["app.orders", "app.events"][index / 2];
    let topic = TopicKey { cluster: "c".into(), name: name.into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition: (index % 2) as i32 }
}

/// The index of a partition.
pub fn index_of(partition: &PartitionKey) -> usize {
    (0..PARTITIONS).find(|&index| self::partition(index) == *partition).unwrap()
}

/// The group of a partition's topic.
pub fn group(index: usize) -> Group {
    Group { index: ["orders", "events"][index / 2].into(), signal: Signal::Logs }
}

/// One message in Kafka.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Equal for equal payloads.
    pub content: u64,
    /// False if it will be rejected.
    pub is_valid: bool,
}

impl Message {
    /// Its rows, if it is stored.
    pub fn rows(&self) -> usize {
        1 + (self.content % 3) as usize
    }

    /// Its payload: OTLP protobuf of so many log records.
    pub fn payload(&self) -> Vec<u8> {
        let body = |row| Some(AnyValue { value: Some(Value::StringValue(format!("{} of {}", row, self.content))) });
        let record = |row| LogRecord { time_unix_nano: 1_767_225_600_000_000_000, body: body(row), ..LogRecord::default() };
        let scope_logs = vec![ScopeLogs { log_records: (0..self.rows()).map(record).collect(), ..ScopeLogs::default() }];
        LogsData { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }.encode_to_vec()
    }
}

/// Kafka: what was sent, what was committed, who owns which partition.
#[derive(Default)]
pub struct Kafka {
    /// By partition, by offset.
    pub messages: [Vec<Message>; PARTITIONS],
    /// By partition.
    pub committed: [Option<i64>; PARTITIONS],
    /// The ingest node that each partition is assigned to.
    pub owner: [usize; PARTITIONS],
}

/// The catalog and the rows of all files in it.
#[derive(Default)]
pub struct Lake {
    /// What is covered.
    pub covered: BTreeMap<PartitionKey, OffsetSet>,
    /// Offsets with rows, by partition.
    stored: [BTreeSet<i64>; PARTITIONS],
    dispositions: Dispositions,
    /// Commits registered and refused.
    pub commits: u64,
    /// Commits that some other had forestalled.
    pub overlaps: u64,
}

impl Lake {
    /// True if all of a coverage is in the catalog.
    pub fn holds(&self, coverage: &Coverage) -> bool {
        coverage.start == coverage.end || self.missing(&coverage.partition, coverage.range()).is_empty()
    }

    fn missing(&self, partition: &PartitionKey, range: Range<i64>) -> Vec<Range<i64>> {
        self.covered.get(partition).map_or(vec![range.clone()], |covered| covered.missing_in(range))
    }

    /// True if another commit has some of this one's offsets.
    pub fn overlaps(&self, commit: &ClosedCommit) -> bool {
        let overlaps = |partition, range| self.covered.get(partition).is_some_and(|covered: &OffsetSet| covered.overlaps(range));
        commit.coverage.iter().any(|row| overlaps(&row.partition, &row.range))
    }

    /// Registers a commit; its rows must be those of the messages it covers, each once.
    pub fn register(&mut self, commit: &ClosedCommit, kafka: &Kafka) {
        let rows = read_rows(commit);
        let mut by_offset: BTreeMap<(usize, i64), BTreeSet<i32>> = BTreeMap::new();
        for (partition, offset, ordinal) in rows {
            let is_new = by_offset.entry((partition, offset)).or_default().insert(ordinal);
            assert!(is_new, "row {ordinal} of {partition}@{offset} twice in commit {}", commit.commit_id);
        }
        let mut found = Dispositions::default();
        for row in &commit.coverage {
            let index = index_of(&row.partition);
            self.covered.entry(row.partition.clone()).or_default().insert(row.range.clone());
            self.dispositions += row.dispositions;
            for offset in row.range.clone() {
                let message = kafka.messages[index][offset as usize];
                match by_offset.remove(&(index, offset)) {
                    Some(ordinals) => {
                        assert!(message.is_valid, "{index}@{offset} is invalid and has rows");
                        assert_eq!(ordinals.len(), message.rows(), "rows of {index}@{offset}");
                        assert!(self.stored[index].insert(offset), "{index}@{offset} is stored twice");
                        found.stored += 1;
                    }
                    None if message.is_valid => found.duplicates += 1,
                    None => found.rejected += 1,
                }
            }
        }
        let mut said = Dispositions::default();
        commit.coverage.iter().for_each(|row| said += row.dispositions);
        assert_eq!(said, found, "what commit {} says of its offsets", commit.commit_id);
        assert!(by_offset.is_empty(), "rows outside of the coverage: {by_offset:?}");
        self.commits += 1;
    }

    /// Everything up to the end of each partition is accounted for.
    pub fn is_complete(&self, kafka: &Kafka) -> bool {
        (0..PARTITIONS).all(|index| {
            let end = kafka.messages[index].len() as i64;
            end == 0 || self.missing(&partition(index), 0..end).is_empty()
        })
    }

    /// Each content is stored, and only once where `copies_max` is one.
    pub fn check_contents(&self, kafka: &Kafka, copies_max: usize) {
        for topic in 0..PARTITIONS / 2 {
            let mut copies: BTreeMap<u64, usize> = BTreeMap::new();
            for index in [2 * topic, 2 * topic + 1] {
                for (offset, message) in kafka.messages[index].iter().enumerate().filter(|(_, message)| message.is_valid) {
                    *copies.entry(message.content).or_default() += usize::from(self.stored[index].contains(&(offset as i64)));
                }
            }
            let wrong: Vec<_> = copies.iter().filter(|(_, copies)| **copies == 0 || **copies > copies_max).collect();
            assert!(wrong.is_empty(), "contents of topic {topic} that are lost or doubled, with their copies: {wrong:?}");
        }
    }
}

/// Partition, offset and ordinal of every row of a commit's files.
fn read_rows(commit: &ClosedCommit) -> Vec<(usize, i64, i32)> {
    let mut rows = Vec::new();
    for file in commit.files.iter().filter(|file| file.kind == FileKind::Rows) {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file.local).unwrap()).unwrap().build().unwrap();
        reader.for_each(|batch| rows.extend(rows_of(&batch.unwrap())));
    }
    rows
}

/// Partition, offset and ordinal of every row.
pub fn rows_of(batch: &RecordBatch) -> Vec<(usize, i64, i32)> {
    let topics = arrow::compute::cast(&batch["_topic"], &DataType::Utf8).unwrap();
    let (partitions, offsets) = (batch["_partition"].as_primitive::<Int32Type>(), batch["_offset"].as_primitive::<Int64Type>());
    let ordinals = batch["_ordinal"].as_primitive::<Int32Type>();
    let row = |row| {
        let topic = usize::from(topics.as_string::<i32>().value(row) == "app.events");
        (2 * topic + partitions.value(row) as usize, offsets.value(row), ordinals.value(row))
    };
    (0..batch.num_rows()).map(row).collect()
}
