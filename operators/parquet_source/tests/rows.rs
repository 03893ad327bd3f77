//! Rows > message > rows, of random messages with every oddity that the encoder's own tests know.

use std::sync::Arc;

use arrow::array::RecordBatch;
use proptest::prelude::*;
use prost::Message as _;

use crate::arrow_encode::tests::generate::{Dice, Type};
use crate::arrow_encode::{Config, Encoder};
use crate::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span};
use crate::coverage::Coverage;
use crate::dataset::{Carrier, Column, Kind, Stamp};
use crate::otlp::wire::fields;
use crate::parquet_source::Problem;
use crate::parquet_source::message::Pieces;
use crate::parquet_source::rows::{Rows, Shape};
use crate::tenant::Tenant;
use crate::testing::partition;

const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

fn group(signal: Signal) -> Group {
    Group { index: "shop".into(), signal }
}

/// A batch of these messages, with the offsets 7, 8, .. and times of which some are missing.
fn batch(
    signal: Signal,
    stamp: Option<&Arc<Stamp>>,
    payloads: &[Vec<u8>],
    times: &[i64],
    tenant: Option<&str>,
) -> NormalizedBatch {
    let (mut written, mut records) = (Vec::new(), Vec::new());
    for ((offset, payload), timestamp_ms) in (7..).zip(payloads).zip(times) {
        let payload_at = Span { start: written.len() as u32, len: payload.len() as u32 };
        written.extend_from_slice(payload);
        let timestamp_ms = *timestamp_ms;
        records.push(Record { offset, timestamp_ms, key: 0, arena: Arena::Written, payload: payload_at, tenant: 0 });
    }
    NormalizedBatch {
        group: group(signal),
        coverage: Coverage::stored(partition("t", 3), 7..7 + payloads.len() as i64),
        raw: Default::default(),
        written: written.into(),
        records,
        schema: stamp.cloned(),
        tenants: tenant.into_iter().map(|name| Tenant::new(name).unwrap()).collect(),
        charge: Default::default(),
    }
}

fn encoded(signal: Signal, stamp: Option<&Arc<Stamp>>, batch: &NormalizedBatch, rows_max: usize) -> Vec<RecordBatch> {
    let mut encoder = Encoder::new(Config { schema: stamp.cloned(), batch_rows_max: rows_max, ..Config::new(group(signal)) });
    encoder.append(batch).unwrap();
    encoder.finish().map_or_else(Vec::new, |encoded| encoded.batches)
}

/// The messages that the rows were of, by offset.
fn decoded(shape: &Shape, batches: &[RecordBatch]) -> Result<Vec<(i64, Vec<u8>)>, Problem> {
    let mut messages: Vec<(i64, Pieces)> = Vec::new();
    for batch in batches {
        let rows = Rows::of(batch, shape)?;
        for row in 0..rows.len() {
            let (_, _, offset) = rows.origin.place(row);
            if messages.last().is_none_or(|(last, _)| *last != offset) {
                messages.push((offset, Pieces::default()));
            }
            rows.put(row, &mut messages.last_mut().unwrap().1)?;
        }
    }
    let write = |(offset, mut pieces): (i64, Pieces)| {
        let mut out = Vec::new();
        pieces.write(shape.signal, &mut out).map(|()| (offset, out))
    };
    messages.into_iter().map(write).collect()
}

fn one(batches: &[RecordBatch]) -> Option<RecordBatch> {
    batches.first().map(|first| arrow::compute::concat_batches(&first.schema(), batches).unwrap())
}

fn check(signal: Signal, stamp: Option<&Arc<Stamp>>, payloads: &[Vec<u8>], times: &[i64], tenant: Option<&str>, rows_max: usize) {
    let before = encoded(signal, stamp, &batch(signal, stamp, payloads, times, tenant), rows_max);
    let shape = Shape { signal, stamp: stamp.cloned() };
    let messages = decoded(&shape, &before).unwrap();
    // Messages without rows are none of the files' business.
    let (mut again, mut after) = (payloads.to_vec(), Vec::new());
    again.iter_mut().for_each(Vec::clear);
    for (offset, message) in messages {
        assert!(fields(&message).all(|field| field.is_ok()));
        again[offset as usize - 7] = message;
    }
    after.extend(encoded(signal, stamp, &batch(signal, stamp, &again, times, tenant), 10_000));
    let (before, after) = (one(&before), one(&after));
    if let (Some(before), Some(after)) = (&before, &after) {
        for (number, field) in before.schema().fields().iter().enumerate() {
            assert_eq!(before.column(number), after.column(number), "{signal}, column {}", field.name());
        }
    }
    assert_eq!(before, after);
}

/// A schema whose columns are of attributes that the generator makes often, of rows and of resources.
fn stamp() -> Arc<Stamp> {
    let kinds = [Kind::String, Kind::Int, Kind::Double, Kind::Bool, Kind::Timestamp, Kind::Bytes];
    let column = |carrier: Carrier, number: usize, kind: Kind| {
        let letter = if carrier == Carrier::Row { 'a' } else { 'r' };
        Column { carrier, key: format!("key.{number}"), name: format!("{letter}_{number}"), kind }
    };
    let of = |carrier: Carrier| (0..60).map(move |number| column(carrier, number, kinds[number % kinds.len()]));
    Arc::new(Stamp {
        name: "shop".into(),
        version: 4,
        hash: 0xabc,
        columns: of(Carrier::Row).chain(of(Carrier::Resource)).collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn messages_made_of_rows_give_the_same_rows(
        seed: u64, signal in prop::sample::select(SIGNALS.to_vec()), has_schema: bool, rows_max in 1usize..40,
    ) {
        let mut dice = Dice(seed);
        let plain: Vec<Vec<u8>> = (0..dice.below(5)).map(|_| dice.message(signal)).collect();
        let scrambled: Vec<Vec<u8>> = plain.iter().map(|message| dice.scramble(message, Type::Data(signal))).collect();
        let times: Vec<i64> = plain.iter().map(|_| [-1, 0, 1_700_000_000_123, i64::MAX][dice.below(4)]).collect();
        let (stamp, tenant) = (stamp(), if dice.one_in(2) { Some("eu.1") } else { None });
        let stamp = has_schema.then_some(&stamp);
        check(signal, stamp, &plain, &times, tenant, rows_max);
        check(signal, stamp, &scrambled, &times, tenant, rows_max);
    }
}

#[test]
fn equal_resources_scopes_and_metrics_side_by_side_are_written_once() {
    use opentelemetry_proto::tonic::metrics::v1::{
        Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric,
    };
    let point = |time| NumberDataPoint { time_unix_nano: time, ..NumberDataPoint::default() };
    let metric = |name: &str, times: &[u64]| Metric {
        name: name.into(),
        data: Some(metric::Data::Gauge(Gauge { data_points: times.iter().map(|time| point(*time)).collect() })),
        ..Metric::default()
    };
    let scope = |metrics| ScopeMetrics { metrics, ..ScopeMetrics::default() };
    let group = |scope_metrics| ResourceMetrics { scope_metrics, ..ResourceMetrics::default() };
    let data = |resource_metrics| MetricsData { resource_metrics };
    let apart = data(vec![
        group(vec![scope(vec![metric("a", &[1]), metric("a", &[2, 3])]), scope(vec![metric("a", &[4]), metric("b", &[5])])]),
        group(vec![scope(vec![metric("b", &[6])])]),
    ]);
    let rows = encoded(Signal::Metrics, None, &batch(Signal::Metrics, None, &[apart.encode_to_vec()], &[5], None), 100);
    let messages = decoded(&Shape { signal: Signal::Metrics, stamp: None }, &rows).unwrap();
    let expected = data(vec![group(vec![scope(vec![metric("a", &[1, 2, 3, 4]), metric("b", &[5, 6])])])]);
    let mut read = MetricsData::decode(&*messages[0].1).unwrap();
    // An empty resource and scope are written, which is the same as none.
    for group in &mut read.resource_metrics {
        assert_eq!(group.resource.take().unwrap_or_default(), Default::default());
        group.scope_metrics.iter_mut().for_each(|scope| assert_eq!(scope.scope.take().unwrap_or_default(), Default::default()));
    }
    assert_eq!(read, expected);
}

#[test]
fn a_row_that_is_missing_or_contradicts_itself_is_refused() {
    use crate::testing::{Dice, payload};
    let payload = payload(Signal::Traces, 3, &mut Dice::new(5));
    let rows = one(&encoded(Signal::Traces, None, &batch(Signal::Traces, None, &[payload], &[5], None), 100)).unwrap();
    let shape = Shape { signal: Signal::Traces, stamp: None };
    let refused = |rows: &[RecordBatch]| decoded(&shape, rows).unwrap_err().to_string();
    assert_eq!(refused(&[rows.slice(0, 1), rows.slice(2, 1)]), "column _ordinal: row 1 of it is missing");
    assert_eq!(refused(&[rows.slice(0, 2), rows.slice(1, 2)]), "column _ordinal: row 1 of it is there twice");
    assert!(decoded(&shape, &[rows.slice(2, 1), rows.slice(0, 2)]).is_ok(), "in any order");
    let replaced = |name: &str, array: arrow::array::ArrayRef| {
        let mut columns = rows.columns().to_vec();
        columns[rows.schema().index_of(name).unwrap()] = array;
        RecordBatch::try_new(rows.schema(), columns).unwrap()
    };
    let wrong = replaced("duration_ns", Arc::new(arrow::array::Int64Array::from(vec![1, 1, 1])));
    assert!(refused(&[wrong]).starts_with("column duration_ns: "));
    let other = Shape { signal: Signal::Logs, stamp: None };
    assert!(decoded(&other, &[rows]).is_err());
}
