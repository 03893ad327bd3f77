//! Files of dataset schemas, of the first version of the schema, and of columns that nobody knows.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use parquet::arrow::ArrowWriter;
use prost::Message;
use tempfile::TempDir;
use ulid::Ulid;

use super::files::{config, read, write};
use crate::arrow_encode::{self, Encoder};
use crate::batch::{Group, NormalizedBatch, Signal, UniqueBatch};
use crate::capture::Recorded;
use crate::dataset::{Carrier, Column, Kind, Stamp};
use crate::epoch::Epoch;
use crate::otlp::value::{Any, any, key_value};
use crate::otlp::wire;
use crate::parquet_roll::footer::{CommitNote, FileNote, pairs};
use crate::parquet_roll::{CoverageRow, Day};
use crate::parquet_source::Config;
use crate::testing::{Dice, batch, partition, payload};

fn stamp(version: u32, size: Kind) -> Stamp {
    let column = |key: &str, name: &str, kind| Column { carrier: Carrier::Row, key: key.into(), name: name.into(), kind };
    let columns = vec![column("order.id", "order_id", Kind::String), column("order.size", "size", size)];
    Stamp { name: "shop".into(), version, hash: u64::from(version) << 8 | 0xf, columns }
}

/// Orders, each a log record with its attributes and one of the column's name.
fn orders(stamp: &Stamp) -> NormalizedBatch {
    let attribute =
        |key: &str, value| KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 };
    let order = |number: i64| {
        let attributes = vec![
            attribute("order.id", Value::StringValue(format!("A{number}"))),
            attribute("order_id", Value::StringValue("not this one".into())),
            attribute("order.size", Value::IntValue(number)),
        ];
        let scope_logs =
            vec![ScopeLogs { log_records: vec![LogRecord { attributes, ..LogRecord::default() }], ..ScopeLogs::default() }];
        LogsData { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }.encode_to_vec()
    };
    let group = Group { index: "shop".into(), signal: Signal::Logs };
    let payloads: Vec<Vec<u8>> = (0..9).map(order).collect();
    NormalizedBatch { schema: Some(Arc::new(stamp.clone())), ..batch(&group, partition("t", 0), 100, &payloads) }
}

fn keys(read: &[Recorded<UniqueBatch>]) -> Vec<String> {
    let mut keys = Vec::new();
    for Recorded { batch: UniqueBatch(batch), .. } in read {
        for record in &batch.records {
            let field = |message: &[u8], number: u32| {
                let found = wire::fields(message).flatten().filter_map(move |(found, value)| match value {
                    wire::Value::Bytes(bytes) if found == number => Some(bytes.to_vec()),
                    _ => None,
                });
                found.collect::<Vec<_>>()
            };
            let resource = field(batch.payload(record), 1).remove(0);
            let row = field(&field(&resource, 2)[0], 2).remove(0);
            for entry in field(&row, 6) {
                let entry = key_value(&entry).unwrap();
                let kind = matches!(any(&entry.value).unwrap(), Any::Int(_));
                keys.push(format!("{}{}", String::from_utf8_lossy(entry.key), if kind { ": int" } else { "" }));
            }
        }
    }
    keys.truncate(3);
    keys
}

#[test]
fn rows_of_a_dataset_are_read_by_its_schema_of_any_version_and_refused_without_it() {
    let mut dice = Dice::new(61);
    let (folder, again) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let written = stamp(4, Kind::Int);
    write(folder.path(), &[(Epoch(5), UniqueBatch(orders(&written)))], &mut dice);
    let by = |schemas: Vec<Stamp>| read(&Config { schemas, ..config(folder.path()) });
    let refused = by(vec![]).unwrap_err();
    assert!(refused.contains("version 4 of the dataset shop") && refused.contains("ingestion.datasets.directory"), "{refused}");
    // A column that became another attribute's, or of another type, which no evolution allows.
    assert!(by(vec![stamp(5, Kind::Bool)]).unwrap_err().contains("column size"));
    for known in [stamp(4, Kind::Int), stamp(5, Kind::Double)] {
        let found = by(vec![known]).unwrap();
        assert_eq!(keys(&found), ["order.id", "order.size: int", "order_id"]);
        // Whatever the configuration has become meanwhile, they obey what they obeyed.
        assert!(found.iter().all(|recorded| recorded.batch.0.schema.as_deref() == Some(&written)));
        let items: Vec<(Epoch, UniqueBatch)> = found.into_iter().map(|Recorded { epoch, batch }| (epoch, batch)).collect();
        let again = again.path().join(items.len().to_string());
        let _ = fs::remove_dir_all(&again);
        write(&again, &items, &mut dice);
        assert!(crate::compare::compare(folder.path(), &again, &Default::default()).unwrap().is_equal());
    }
}

/// A commit of one file with these rows, whose note says `coverage`.
fn commit(folder: &Path, rows: &RecordBatch, coverage: Vec<CoverageRow>) {
    let (id, file) = (Ulid::from_parts(7, 7), Ulid::from_parts(8, 8));
    let group = Group { index: "shop".into(), signal: Signal::Logs };
    let note = CommitNote::new(id, group, "n".into(), vec![file], coverage).to_json().unwrap();
    let own = FileNote { file, day: Day(1), time_min_ns: None, time_max_ns: None, schema_hash: "x".into(), schema_version: 1 };
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    for pair in pairs(&note, &own).unwrap() {
        writer.append_key_value_metadata(pair);
    }
    fs::write(folder.join("rows.parquet"), writer.into_inner().unwrap()).unwrap();
}

fn some_rows(messages: usize) -> RecordBatch {
    let mut dice = Dice::new(71);
    let group = Group { index: "shop".into(), signal: Signal::Logs };
    let payloads: Vec<Vec<u8>> = (0..messages).map(|_| payload(Signal::Logs, 2, &mut dice)).collect();
    let mut encoder = Encoder::new(arrow_encode::Config::new(group.clone()));
    encoder.append(&batch(&group, partition("t", 0), 100, &payloads)).unwrap();
    encoder.finish().unwrap().batches.remove(0)
}

fn row(range: std::ops::Range<i64>, stored: u64, duplicates: u64, rows: u64) -> CoverageRow {
    let absent = (range.end - range.start) as u64 - stored - duplicates;
    let dispositions = crate::coverage::Dispositions { stored, duplicates, absent, ..Default::default() };
    CoverageRow { partition: partition("t", 0), range, dispositions, rows, kafka_time_max_ms: None }
}

#[test]
fn a_file_of_the_first_version_has_no_tenants_and_is_read() {
    let rows = some_rows(3);
    let at = rows.schema().index_of("_tenant").unwrap();
    let kept: Vec<usize> = (0..rows.num_columns()).filter(|column| *column != at).collect();
    let folder = TempDir::new().unwrap();
    commit(folder.path(), &rows.project(&kept).unwrap(), vec![row(100..103, 3, 0, 6)]);
    let found = read(&config(folder.path())).unwrap();
    assert_eq!(found.iter().map(|recorded| recorded.batch.0.records.len()).sum::<usize>(), 3);
    assert!(found.iter().all(|recorded| recorded.batch.0.tenants.is_empty()));
    let kept: Vec<usize> = (0..rows.num_columns()).filter(|column| *column != at - 1).collect();
    commit(folder.path(), &rows.project(&kept).unwrap(), vec![row(100..103, 3, 0, 6)]);
    assert!(read(&config(folder.path())).unwrap_err().contains("no column _kafka_timestamp"));
}

#[test]
fn a_footer_that_says_another_thing_than_the_rows_is_refused_and_one_that_says_much_takes_no_memory() {
    let (rows, folder) = (some_rows(3), TempDir::new().unwrap());
    let refused = |coverage: Vec<CoverageRow>, says: &str| {
        commit(folder.path(), &rows, coverage);
        let told = read(&config(folder.path())).unwrap_err();
        assert!(told.contains("rows.parquet") && told.contains(says), "{says}: {told}");
    };
    refused(vec![row(100..102, 2, 0, 4)], "offset 102 of t[0] has rows in it");
    refused(vec![row(100..103, 2, 1, 6)], "3 messages have rows and 2 were stored");
    refused(vec![row(100..103, 3, 0, 7)], "6 rows were found and 7 were stored");
    let mut other = row(100..103, 3, 0, 6);
    other.partition = partition("other", 0);
    refused(vec![other], "does not account for it");
    refused(vec![row(100..103, 3, 0, 6), row(102..104, 2, 0, 6)], "accounted for twice");
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("mine", DataType::Int64, true)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(vec![1; rows.num_rows()])));
    let more = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    commit(folder.path(), &more, vec![row(100..103, 3, 0, 6)]);
    assert!(read(&config(folder.path())).unwrap_err().contains("a column mine"));

    // Two million duplicates between two messages, and more offsets than there are anywhere.
    commit(folder.path(), &rows, vec![row(100..i64::MAX - 1, 3, 2_000_000, 6)]);
    let found = read(&config(folder.path())).unwrap();
    let listed: Vec<usize> = found.iter().map(|recorded| recorded.batch.0.coverage.duplicates.len()).collect();
    assert_eq!(listed.iter().sum::<usize>(), 2_000_000);
    assert!(listed.len() > 50 && listed.iter().all(|listed| *listed <= 20_000), "{listed:?}");
    assert_eq!(found.last().unwrap().batch.0.coverage.end, i64::MAX - 1);
}
