//! Proves that the encoder's rows are those of prost's structs, however a message is written and however rows are cut, and that
//! hostile bytes give an error at worst. It cannot prove that `normalize` rejects what is an error here.

mod datasets;
pub(crate) mod generate;
mod reference;

use std::sync::Arc;

use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use proptest::prelude::*;
use prost::Message;

use super::encoder::{MESSAGE_EXPANDED_BYTES_MAX, Problem, expanded_bytes};
use super::schema::{HASH_KEY, event_time_column, schema_for, schema_hash, type_text};
use super::{Config, Encoder, Error};
use crate::batch::{Arena, EncodedBatch, Group, NormalizedBatch, Record, Signal, Span as Piece};
use crate::coverage::{Coverage, PartitionKey, TopicKey};
use crate::tenant::Tenant;
use generate::{Dice, Type, field_bytes};
use reference::{Object, Origin};

const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

fn group(signal: Signal) -> Group {
    Group { index: "shop".into(), signal }
}

fn partition(number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: "shop.otlp".into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

/// A batch of partition 3 whose messages have the offsets from `start` on and the timestamps 1,000 + offset ms.
fn batch(signal: Signal, start: i64, payloads: &[Vec<u8>]) -> NormalizedBatch {
    let mut arena = Vec::new();
    let mut records = Vec::new();
    for (offset, payload) in (start..).zip(payloads) {
        let piece = Piece { start: arena.len() as u32, len: payload.len() as u32 };
        arena.extend_from_slice(payload);
        records.push(Record { offset, timestamp_ms: 1_000 + offset, key: 0, arena: Arena::Written, payload: piece, tenant: 0 });
    }
    let coverage = Coverage::stored(partition(3), start..start + payloads.len() as i64);
    NormalizedBatch {
        group: group(signal),
        coverage,
        raw: Bytes::new(),
        written: arena.into(),
        records,
        schema: None,
        tenants: Vec::new(),
        charge: Default::default(),
    }
}

fn expected(batch: &NormalizedBatch) -> Vec<Object> {
    let (topic, partition) = (&*batch.coverage.partition.topic.name, batch.coverage.partition.partition);
    let origin = |record: &Record| {
        let tenant = batch.tenant(record).map(Tenant::name);
        Origin { topic, partition, offset: record.offset, timestamp_ms: record.timestamp_ms, tenant }
    };
    batch.records.iter().flat_map(|record| reference::rows(batch.group.signal, batch.payload(record), origin(record))).collect()
}

fn encoder(signal: Signal, batch_rows_max: usize, batch_bytes_max: usize) -> Encoder {
    Encoder::new(Config { batch_rows_max, batch_bytes_max, ..Config::new(group(signal)) })
}

fn encode(encoder: &mut Encoder, batch: &NormalizedBatch) -> EncodedBatch {
    encoder.append(batch).unwrap();
    encoder.finish().unwrap()
}

fn objects(encoded: &EncodedBatch) -> Vec<Object> {
    encoded.batches.iter().flat_map(reference::objects).collect()
}

/// What a record batch takes in an Arrow IPC stream.
fn message_bytes(batch: &RecordBatch) -> usize {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    let before = writer.get_ref().len();
    writer.write(batch).unwrap();
    writer.get_ref().len() - before
}

fn traces(resource: Vec<KeyValue>, spans: Vec<Span>) -> Vec<u8> {
    let resource = Some(Resource { attributes: resource, ..Resource::default() });
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    TracesData { resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }] }.encode_to_vec()
}

fn logs(log_records: Vec<LogRecord>) -> Vec<u8> {
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    LogsData { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }.encode_to_vec()
}

fn attribute(key: &str, text: &str) -> KeyValue {
    let value = Some(any_value::Value::StringValue(text.to_owned()));
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value }), ..KeyValue::default() }
}

fn named(name: &str) -> Span {
    Span { trace_id: vec![7; 16], span_id: vec![8; 8], name: name.to_owned(), ..Span::default() }
}

/// The batch with tenants, of whom the dice choose for each message.
fn owned(batch: NormalizedBatch, dice: &mut Dice) -> NormalizedBatch {
    let tenants: Vec<Tenant> =
        ["shop", "cart", "eu.2"].iter().take(dice.below(4)).map(|name| Tenant::new(name).unwrap()).collect();
    let of = |record: Record| Record { tenant: dice.below(tenants.len().max(1)) as u32, ..record };
    NormalizedBatch { records: batch.records.iter().copied().map(of).collect(), tenants, ..batch }
}

fn check_against_prost(signal: Signal, seed: u64, batch_rows_max: usize, batch_bytes_max: usize) {
    let mut dice = Dice(seed);
    let mut encoder = encoder(signal, batch_rows_max, batch_bytes_max);
    // Twice into the same encoder: its buffers come back from the first round.
    for round in 0..2 {
        let plain: Vec<Vec<u8>> = (0..dice.below(4)).map(|_| dice.message(signal)).collect();
        let scrambled: Vec<Vec<u8>> = plain.iter().map(|message| dice.scramble(message, Type::Data(signal))).collect();
        for payloads in [plain, scrambled] {
            let batch = owned(batch(signal, 40 + round, &payloads), &mut dice);
            encoder.append(&batch).unwrap();
            let expected = expected(&batch);
            assert_eq!(encoder.rows(), expected.len());
            let bytes = encoder.bytes();
            let encoded = encoder.finish();
            assert_eq!(encoded.is_some(), !payloads.is_empty());
            let Some(encoded) = encoded else { continue };
            let actual = objects(&encoded);
            assert_eq!(actual.len(), expected.len());
            for (actual, expected) in actual.iter().zip(&expected) {
                assert_eq!(actual, expected);
            }
            check_sizes(&encoded, bytes, batch_rows_max, batch_bytes_max);
        }
    }
}

fn check_sizes(encoded: &EncodedBatch, bytes: usize, rows_max: usize, bytes_max: usize) {
    let sizes: Vec<usize> = encoded.batches.iter().map(message_bytes).collect();
    for (batch, &size) in encoded.batches.iter().zip(&sizes) {
        assert!(batch.num_rows() <= rows_max);
        assert!(size <= bytes_max || batch.num_rows() == 1, "{} rows take {size} bytes", batch.num_rows());
    }
    assert!(sizes.iter().sum::<usize>() <= bytes, "counted {bytes} for {sizes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_those_of_the_decoded_structs_however_written_and_cut(
        seed: u64, signal in prop::sample::select(SIGNALS.to_vec()), rows_max in 1usize..40, bytes_max in 1usize..200_000,
    ) {
        check_against_prost(signal, seed, rows_max, bytes_max);
    }

    #[test]
    fn broken_messages_give_errors_and_never_panic(
        seed: u64, signal in prop::sample::select(SIGNALS.to_vec()), flips in prop::collection::vec((any::<u32>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<u32>()),
    ) {
        let mut dice = Dice(seed);
        let mut message = dice.message(signal);
        if !message.is_empty() {
            for (at, byte) in flips {
                let at = at as usize % message.len();
                message[at] = byte;
            }
            message.truncate(cut.map_or(message.len(), |cut| cut as usize % (message.len() + 1)));
        }
        let mut encoder = encoder(signal, 1 + dice.below(20), 1 + dice.below(50_000));
        match encoder.append(&batch(signal, 5, &[message])) {
            Ok(()) => prop_assert!(encoder.finish().is_some()),
            Err(Error::Message { offset, .. }) => {
                prop_assert_eq!(offset, 5);
                prop_assert!(encoder.finish().is_none());
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_message_is_within_the_bound_that_is_told_beforehand(seed: u64, signal in prop::sample::select(SIGNALS.to_vec())) {
        let mut dice = Dice(seed);
        let message = dice.message(signal);
        let message = dice.scramble(&message, Type::Data(signal));
        let mut encoder = encoder(signal, 1_000, 1 << 30);
        encoder.append(&batch(signal, 0, std::slice::from_ref(&message))).unwrap();
        prop_assert!(encoder.expanded_bytes() <= expanded_bytes(signal, &message).unwrap());
    }
}

#[test]
fn a_large_message_becomes_full_record_batches_of_one_delivery() {
    let spans = (0..40_000).map(|number| named(&format!("operation {number}"))).collect();
    let payload = traces(vec![attribute("service.name", "cart"), attribute("tenant", "blue")], spans);
    let batch = batch(Signal::Traces, 9, &[payload]);
    let limit = 3_670_016;
    let encoded = encode(&mut encoder(Signal::Traces, 12_000, limit), &batch);
    assert!(encoded.batches.len() > 3);
    let (last, full) = encoded.batches.split_last().unwrap();
    for batch in full {
        let size = message_bytes(batch);
        assert!(size <= limit && (size > limit - limit / 50), "{size} bytes, {} rows", batch.num_rows());
    }
    assert!(last.num_rows() > 0);
    assert_eq!(objects(&encoded), expected(&batch));
    assert_eq!(encoded.coverage, vec![batch.coverage]);
}

#[test]
fn sizes_are_counted_closely() {
    let spans =
        (0..5_000).map(|number| Span { attributes: vec![attribute("k", "value")], ..named(&number.to_string()) }).collect();
    let batch = batch(Signal::Traces, 0, &[traces(vec![attribute("service.name", "cart")], spans)]);
    let mut encoder = encoder(Signal::Traces, 10_000, 1 << 30);
    encoder.append(&batch).unwrap();
    let counted = encoder.bytes();
    let actual = message_bytes(&encoder.finish().unwrap().batches[0]);
    assert!(actual <= counted && counted < actual + actual / 50, "counted {counted}, actually {actual}");
}

#[test]
fn a_row_over_the_limit_goes_alone_and_its_neighbours_do_not() {
    let long = "x".repeat(100_000);
    let batch = batch(Signal::Traces, 0, &[traces(vec![], vec![named("a"), named("b"), named(&long), named("c"), named("d")])]);
    let encoded = encode(&mut encoder(Signal::Traces, 10_000, 60_000), &batch);
    let rows: Vec<usize> = encoded.batches.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(rows, vec![2, 1, 2]);
    assert_eq!(objects(&encoded), expected(&batch));
}

#[test]
fn rows_that_grow_most_from_the_wire_stay_within_the_limit() {
    // Two bytes on the wire become 54 in an exemplar without fields, one becomes six in an escaped control character.
    let exemplars = vec![Exemplar::default(); 40];
    let data_points = vec![NumberDataPoint { exemplars, ..NumberDataPoint::default() }; 2_000];
    let metrics = vec![Metric { data: Some(metric::Data::Gauge(Gauge { data_points })), ..Metric::default() }];
    let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
    let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
    let metrics = MetricsData { resource_metrics }.encode_to_vec();
    let text = AnyValue { value: Some(any_value::Value::StringValue("\u{1}".repeat(300))) };
    let array = any_value::Value::ArrayValue(ArrayValue { values: vec![text] });
    let record = LogRecord { body: Some(AnyValue { value: Some(array) }), ..LogRecord::default() };
    let logs = logs(vec![record; 2_000]);
    for (signal, payload) in [(Signal::Metrics, metrics), (Signal::Logs, logs)] {
        let limit = 300_000;
        let encoded = encode(&mut encoder(signal, 10_000, limit), &batch(signal, 0, &[payload]));
        assert_eq!(encoded.rows(), 2_000);
        let sizes: Vec<usize> = encoded.batches.iter().map(message_bytes).collect();
        let (_, full) = sizes.split_last().unwrap();
        assert!(full.iter().all(|&size| size <= limit && size > limit - limit / 20), "{sizes:?}");
    }
}

#[test]
fn adjacent_coverage_of_a_partition_is_merged_and_an_empty_batch_still_counts() {
    let mut encoder = encoder(Signal::Logs, 10, 1 << 20);
    assert!(encoder.finish().is_none());
    let mut first = batch(Signal::Logs, 10, &[logs(vec![LogRecord::default()])]);
    first.coverage.end = 13;
    first.coverage.duplicates = vec![11];
    first.coverage.absent = std::iter::once(12..13).collect();
    let mut other = batch(Signal::Logs, 0, &[]);
    other.coverage = Coverage { rejected: vec![0], ..Coverage::stored(partition(1), 0..1) };
    let mut second = batch(Signal::Logs, 13, &[]);
    second.coverage = Coverage { skipped: vec![13], ..Coverage::stored(partition(3), 13..14) };
    let mut apart = batch(Signal::Logs, 20, &[]);
    apart.coverage = Coverage { rejected: vec![20], ..Coverage::stored(partition(3), 20..21) };
    for batch in [&first, &other, &second, &apart] {
        encoder.append(batch).unwrap();
    }
    let encoded = encoder.finish().unwrap();
    assert_eq!(encoded.rows(), 1);
    let merged = Coverage { end: 14, skipped: vec![13], ..first.coverage.clone() };
    assert_eq!(encoded.coverage, vec![other.coverage, merged, apart.coverage]);
    assert!(encoder.finish().is_none());
}

#[test]
fn no_delivery_holds_an_offset_twice_nor_two_topics_of_one_name() {
    let mut encoder = encoder(Signal::Logs, 10, 1 << 20);
    let first = batch(Signal::Logs, 5, &[logs(vec![]), logs(vec![])]);
    assert!(!encoder.contradicts(&first.coverage));
    encoder.append(&first).unwrap();
    let of = |partition: PartitionKey, range| Coverage::stored(partition, range);
    assert!(!encoder.contradicts(&of(partition(3), 7..9)) && !encoder.contradicts(&of(partition(2), 5..7)));
    assert!(encoder.contradicts(&of(partition(3), 6..9)));
    let named = |name: &str, id: &str, number| {
        let topic = TopicKey { name: name.into(), id: id.into(), ..(*partition(0).topic).clone() };
        of(PartitionKey { topic: topic.into(), partition: number }, 0..1)
    };
    let (name, id) = (partition(0).topic.name.clone(), partition(0).topic.id.clone());
    for number in [-1, 3, 7] {
        assert!(encoder.contradicts(&named(&name, "~7", number)), "created anew, partition {number}");
        assert!(!encoder.contradicts(&named(&name, &id, number + 10)));
        assert!(!encoder.contradicts(&named("another", "~7", number)));
    }
    drop(encoder.finish());
    assert!(!encoder.contradicts(&named(&name, "~7", 0)));
}

fn problem(signal: Signal, payload: Vec<u8>) -> (i64, Problem) {
    let good = logs(vec![LogRecord::default()]);
    let payloads = if signal == Signal::Logs { vec![good.clone(), payload, good] } else { vec![payload] };
    let mut encoder = encoder(signal, 10, 1 << 20);
    let Err(Error::Message { offset, problem, .. }) = encoder.append(&batch(signal, 70, &payloads)) else {
        panic!("the message is accepted");
    };
    assert!(encoder.finish().is_none());
    assert!(matches!(encoder.append(&batch(signal, 90, &[])), Err(Error::Failed { .. })));
    (offset, problem)
}

#[test]
fn text_that_is_not_utf8_is_an_error_naming_column_and_offset_even_where_the_joined_bytes_are_valid() {
    // One character split over two texts of a column: their joined bytes are valid, neither alone is.
    let mut log = field_bytes(3, &[0xc3]);
    let mut scope = field_bytes(2, &log);
    log = field_bytes(3, &[0xa4]);
    scope.extend(field_bytes(2, &log));
    let payload = field_bytes(1, &field_bytes(2, &scope));
    let (offset, problem) = problem(Signal::Logs, payload);
    assert_eq!((offset, problem.to_string()), (71, "text for column severity_text is not utf-8".to_owned()));
}

#[test]
fn broken_invariants_are_errors_that_say_what_is_wrong() {
    let log = |fields: Vec<u8>| field_bytes(1, &field_bytes(2, &field_bytes(2, &fields)));
    let nested = (0..200).fold(Vec::new(), |inner, _| field_bytes(5, &field_bytes(1, &inner)));
    let late = LogRecord { time_unix_nano: u64::MAX, ..LogRecord::default() };
    let cases = [
        (log(field_bytes(9, b"short")), "trace_id has 5 bytes"),
        (logs(vec![late]), "time of 18446744073709551615 ns does not fit into 63 bits"),
        (log(field_bytes(5, &nested)), "value nests deeper than 96 levels"),
        (log(vec![0x0a, 0x7f]), "protobuf message ends inside a field"),
    ];
    for (payload, expected) in cases {
        let (offset, problem) = problem(Signal::Logs, payload);
        assert_eq!((offset, problem.to_string()), (71, expected.to_owned()));
    }
    let mut encoder = encoder(Signal::Logs, 10, 1 << 20);
    assert!(matches!(encoder.append(&batch(Signal::Traces, 0, &[])), Err(Error::Group { .. })));
}

#[test]
fn a_small_message_that_would_fill_memory_is_refused() {
    let payload = traces(vec![attribute("blob", &"x".repeat(1 << 20))], vec![Span::default(); 2_000]);
    assert!(expanded_bytes(Signal::Traces, &payload).unwrap() > MESSAGE_EXPANDED_BYTES_MAX);
    let (_, problem) = problem(Signal::Traces, payload);
    assert!(matches!(problem, Problem::TooLarge { what: "expanded message", .. }), "{problem}");
}

#[test]
fn schemas_are_fixed() {
    // A change here is a new schema version, a note in docs/schemas.md, and a reader for old files.
    let hashes = SIGNALS.map(|signal| format!("{:016x}", schema_hash(signal)));
    assert_eq!(hashes, ["6974065a39fdf9b2", "c6ae4a8c4ff35ff6", "ff2bcf65ba0d3f4d"].map(str::to_owned));
    for signal in SIGNALS {
        let schema = schema_for(signal);
        assert_eq!(schema.metadata()[HASH_KEY], format!("{:016x}", schema_hash(signal)));
        assert!(!schema.field_with_name(event_time_column(signal)).unwrap().is_nullable());
    }
}

/// The rows of the tables under the heading `## heading`, as (column, type, null).
fn documented(heading: &str) -> Vec<[String; 3]> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schemas.md"));
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        [cells[1], cells[2], cells[3]].map(|cell| cell.trim_matches('`').to_owned())
    })
    .collect()
}

#[test]
fn documentation_and_code_agree_on_every_column() {
    let common = [documented("Origin"), documented("Resource and scope")].concat();
    let promoted = documented("Promoted attributes");
    for (signal, heading) in SIGNALS.into_iter().zip(["Traces", "Logs", "Metrics"]) {
        let mut expected = [common.clone(), documented(heading)].concat();
        if signal != Signal::Metrics {
            let attributes = expected.pop().unwrap();
            expected.extend(promoted.clone());
            expected.push(attributes);
        }
        let null = |nullable: bool| if nullable { "yes" } else { "no" };
        let schema = schema_for(signal);
        let actual: Vec<[String; 3]> = schema
            .fields()
            .iter()
            .map(|field| [field.name().clone(), type_text(field.data_type()), null(field.is_nullable()).to_owned()])
            .collect();
        assert_eq!(actual, expected, "{signal}");
    }
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schemas.md"));
    for promoted in super::promoted::RESOURCE.iter().chain(&super::promoted::ROW) {
        assert!(text.contains(&format!("`{}`", promoted.key)), "{} is not documented", promoted.key);
    }
}

#[test]
fn rows_have_the_tenant_of_their_message_and_none_of_a_batch_without() {
    let payloads = vec![traces(vec![], vec![named("a"), named("b")]); 4];
    let mut of_two = batch(Signal::Traces, 10, &payloads);
    of_two.tenants = ["shop", "cart"].map(|name| Tenant::new(name).unwrap()).to_vec();
    of_two.records.iter_mut().zip([1, 0, 0, 1]).for_each(|(record, tenant)| record.tenant = tenant);
    // Nobody's messages before and behind; record batches end within a message and beside one.
    let mut encoder = encoder(Signal::Traces, 5, 1 << 20);
    for batch in [batch(Signal::Traces, 0, &payloads[..1]), of_two, batch(Signal::Traces, 20, &payloads[..2])] {
        encoder.append(&batch).unwrap();
    }
    let rows = objects(&encoder.finish().unwrap());
    let found: Vec<_> =
        rows.iter().map(|row| (row["_offset"].as_i64(), row.get("_tenant").and_then(|tenant| tenant.as_str()))).collect();
    let (shop, cart) = (Some("shop"), Some("cart"));
    let messages = [(0, None), (10, cart), (11, shop), (12, shop), (13, cart), (20, None), (21, None)];
    let expected: Vec<_> = messages.iter().flat_map(|&(offset, tenant)| [(Some(offset), tenant); 2]).collect();
    assert_eq!(found, expected);
}
