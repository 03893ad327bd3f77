//! Columns of dataset schemas: values of their type are moved there, all else stays in the map, and nothing else changes.

use arrow::datatypes::DataType;
use opentelemetry_proto::tonic::common::v1::any_value::Value;

use super::*;
use crate::arrow_encode::schema::{DATASET_HASH_KEY, DATASET_KEY, DATASET_VERSION_KEY, schema_with};
use crate::dataset::{Carrier, Column, Kind, Stamp};

/// The types that can have a column.
fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.column_type().is_some())
}

/// A schema with a column for each type, of rows and of resources, attribute and column named after the type.
fn stamp() -> Arc<Stamp> {
    let column = |carrier: Carrier, kind: Kind| {
        let letter = if carrier == Carrier::Row { 'a' } else { 'r' };
        let (key, name) = (format!("{letter}.{}", kind.name()), format!("{letter}_{}", kind.name()));
        Column { carrier, key, name, kind }
    };
    let columns = kinds().map(|kind| column(Carrier::Row, kind)).chain(kinds().map(|kind| column(Carrier::Resource, kind)));
    Arc::new(Stamp { name: "shop".into(), version: 4, hash: 0xabc, columns: columns.collect() })
}

fn value_of(kind: Kind, row: i64) -> Value {
    match kind {
        Kind::String => Value::StringValue(format!("text {row}")),
        Kind::Int | Kind::Timestamp => Value::IntValue(row),
        Kind::Double => Value::DoubleValue(row as f64 + 0.5),
        Kind::Bool => Value::BoolValue(row % 2 == 0),
        Kind::Bytes => Value::BytesValue(vec![row as u8; row as usize % 5]),
        Kind::List | Kind::Map => unreachable!("has no column"),
    }
}

/// The cell of a value.
fn json_of(value: Value) -> serde_json::Value {
    match value {
        Value::StringValue(text) => text.into(),
        Value::IntValue(number) => number.into(),
        Value::DoubleValue(number) => format!("{number:?}").into(),
        Value::BoolValue(flag) => flag.into(),
        Value::BytesValue(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
        other => panic!("{other:?}"),
    }
}

/// Each third row has no attribute; the others have all, in one order or the other, and one that is unknown.
fn attributes_of(row: i64) -> Vec<KeyValue> {
    if row % 3 == 2 {
        return vec![];
    }
    let pair = |key: String, value| KeyValue { key, value: Some(AnyValue { value: Some(value) }), key_strindex: 0 };
    let mut pairs: Vec<KeyValue> = kinds().map(|kind| pair(format!("a.{}", kind.name()), value_of(kind, row))).collect();
    pairs.push(pair("other".into(), Value::IntValue(row)));
    if row % 2 == 0 {
        pairs.reverse();
    }
    pairs
}

fn payloads(signal: Signal, rows: i64) -> Vec<Vec<u8>> {
    let payload = |row: i64| match signal {
        Signal::Traces => traces(vec![], vec![Span { attributes: attributes_of(row), ..Span::default() }]),
        Signal::Logs => logs(vec![LogRecord { attributes: attributes_of(row), ..LogRecord::default() }]),
        Signal::Metrics => {
            let points = vec![NumberDataPoint { attributes: attributes_of(row), ..NumberDataPoint::default() }];
            let metric = Metric { data: Some(metric::Data::Gauge(Gauge { data_points: points })), ..Metric::default() };
            let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..ScopeMetrics::default() }];
            MetricsData { resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }] }
                .encode_to_vec()
        }
    };
    (0..rows).map(payload).collect()
}

fn ruled(signal: Signal, stamp: &Arc<Stamp>, batch_rows_max: usize, batch_bytes_max: usize) -> Encoder {
    Encoder::new(Config { schema: Some(stamp.clone()), batch_rows_max, batch_bytes_max, ..Config::new(group(signal)) })
}

#[test]
fn attributes_are_moved_to_their_columns_and_all_other_cells_stay() {
    let (stamp, rows) = (stamp(), 100);
    for signal in SIGNALS {
        let plain = batch(signal, 0, &payloads(signal, rows));
        let expected = objects(&encode(&mut encoder(signal, 1_000, 1 << 20), &plain));
        let stamped = NormalizedBatch { schema: Some(stamp.clone()), ..plain };
        // The second is cut by bytes: rows that do not fit are taken back and written again.
        for (rows_max, bytes_max) in [(1_000, 1 << 20), (7, 1 << 20), (1_000, 16 << 10)] {
            let encoded = encode(&mut ruled(signal, &stamp, rows_max, bytes_max), &stamped);
            assert!(encoded.batches.iter().all(|batch| batch.schema() == schema_with(signal, Some(&stamp))));
            assert!(encoded.batches.iter().all(|batch| message_bytes(batch) <= bytes_max));
            let found = objects(&encoded);
            assert_eq!(found.len(), rows as usize);
            for ((row, mut found), mut expected) in (0..).zip(found).zip(expected.clone()) {
                for kind in kinds() {
                    let cell = found.remove(&format!("a_{}", kind.name()));
                    let wanted = (row % 3 != 2).then(|| json_of(value_of(kind, row)));
                    assert_eq!(cell, wanted, "{signal} row {row} {}", kind.name());
                }
                let others = if row % 3 == 2 { serde_json::json!([]) } else { serde_json::json!([["other", row.to_string()]]) };
                assert_eq!(found.remove("attributes"), Some(others), "{signal} row {row}");
                expected.remove("attributes");
                assert_eq!(found, expected, "{signal} row {row}");
            }
        }
    }
}

#[test]
fn attributes_of_resources_are_moved_to_their_columns_and_repeated() {
    let stamp = stamp();
    let pair = |key: String, value| KeyValue { key, value: Some(AnyValue { value: Some(value) }), key_strindex: 0 };
    let group = |number: i64| {
        let pairs = kinds().map(|kind| pair(format!("r.{}", kind.name()), value_of(kind, number)));
        // The second has all in its map, as they are of another type.
        let wrong = kinds().map(|kind| pair(format!("r.{}", kind.name()), Value::ArrayValue(ArrayValue::default())));
        let attributes = if number == 2 { wrong.collect() } else { pairs.collect() };
        traces(attributes, vec![Span::default(); 7])
    };
    let payloads: Vec<Vec<u8>> = (1..4).map(group).chain([traces(vec![], vec![Span::default()])]).collect();
    let stamped = NormalizedBatch { schema: Some(stamp.clone()), ..batch(Signal::Traces, 0, &payloads) };
    for rows_max in [1_000, 3] {
        let rows = objects(&encode(&mut ruled(Signal::Traces, &stamp, rows_max, 1 << 20), &stamped));
        assert_eq!(rows.len(), 3 * 7 + 1);
        for (index, row) in rows.iter().enumerate() {
            let number = (index / 7 + 1) as i64;
            let has_columns = number == 1 || number == 3;
            for kind in kinds() {
                let cell = row.get(&format!("r_{}", kind.name()));
                assert_eq!(cell, has_columns.then(|| json_of(value_of(kind, number))).as_ref(), "row {index} {}", kind.name());
            }
            let mapped = row["resource_attributes"].as_array().map_or(0, Vec::len);
            assert_eq!(mapped, if number == 2 { kinds().count() } else { 0 }, "row {index}");
        }
    }
}

#[test]
fn values_of_another_type_and_empty_ones_leave_the_column_null() {
    let stamp = stamp();
    let pair = |key: &str, value| KeyValue { key: key.to_owned(), value: Some(AnyValue { value }), key_strindex: 0 };
    let text = || Some(Value::StringValue("x".into()));
    let attributes = vec![pair("a.int", text()), pair("a.bool", None), pair("a.int", Some(Value::IntValue(1)))];
    let payload = logs(vec![LogRecord { attributes, ..LogRecord::default() }]);
    let stamped = NormalizedBatch { schema: Some(stamp.clone()), ..batch(Signal::Logs, 0, &[payload]) };
    let row = objects(&encode(&mut ruled(Signal::Logs, &stamp, 10, 1 << 20), &stamped)).remove(0);
    // Of one key the first stays, wherever it went.
    assert_eq!(row["attributes"], serde_json::json!([["a.int", "x"]]));
    assert!(kinds().all(|kind| !row.contains_key(&format!("a_{}", kind.name()))));
}

#[test]
fn a_column_that_every_schema_has_by_now_is_not_there_twice() {
    let column = |key: &str, name: &str| Column { carrier: Carrier::Row, key: key.into(), name: name.into(), kind: Kind::String };
    let columns = vec![column("route", "http_route"), column("own", "own")];
    let stamp = Arc::new(Stamp { name: "old".into(), version: 1, hash: 1, columns });
    let schema = schema_with(Signal::Logs, Some(&stamp));
    assert_eq!(schema.fields().len(), schema_for(Signal::Logs).fields().len() + 1);
    let attributes = vec![attribute("route", "/x"), attribute("own", "y")];
    let payload = logs(vec![LogRecord { attributes, ..LogRecord::default() }]);
    let stamped = NormalizedBatch { schema: Some(stamp.clone()), ..batch(Signal::Logs, 0, &[payload]) };
    let row = objects(&encode(&mut ruled(Signal::Logs, &stamp, 10, 1 << 20), &stamped)).remove(0);
    assert_eq!((&row["own"], &row["attributes"]), (&"y".into(), &serde_json::json!([["route", "/x"]])));
}

#[test]
fn the_schema_says_which_dataset_schema_it_is_of() {
    for signal in SIGNALS {
        let (fixed, own) = (schema_for(signal), schema_with(signal, Some(&stamp())));
        let said = [DATASET_KEY, DATASET_VERSION_KEY, DATASET_HASH_KEY].map(|key| own.metadata()[key].as_str());
        assert_eq!(said, ["shop", "4", "0000000000000abc"]);
        assert_ne!(own.metadata()[HASH_KEY], fixed.metadata()[HASH_KEY]);
        let names: Vec<&str> = own.fields().iter().map(|field| field.name().as_str()).collect();
        let last = ["a_string", "a_int", "a_double", "a_bool", "a_timestamp", "a_bytes", "attributes"];
        assert_eq!(names[names.len() - 7..], last);
        let types = ["Utf8", "Int64", "Float64", "Boolean", "Timestamp(ns, UTC)", "Binary"];
        let found: Vec<String> =
            own.fields()[names.len() - 7..names.len() - 1].iter().map(|field| type_text(field.data_type())).collect();
        assert_eq!(found, types);
        assert!(own.field_with_name("a_bytes").is_ok_and(|field| field.is_nullable() && *field.data_type() == DataType::Binary));
    }
}

#[test]
fn a_batch_of_another_schema_is_an_error_and_not_stored_under_this_one() {
    let mut encoder = ruled(Signal::Logs, &stamp(), 10, 1 << 20);
    let error = encoder.append(&batch(Signal::Logs, 0, &[])).unwrap_err();
    assert_eq!(error.to_string(), "batch that obeys no dataset schema given to the encoder of shop version 4 (0000000000000abc)");
    assert!(!encoder.has_failed());
}
