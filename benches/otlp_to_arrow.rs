//! How many times cheaper is our OTLP-to-Arrow walk than only decoding the same messages into prost's structs?
//!
//! Both run in turns in this process, so noise of the machine hits both; the ratio is the result, the absolute figures are not.
//! Input: 50 records a message, 7 attributes each, 7 resource attributes (see `message`). The encoder hands its record batches to
//! a reader that drops them, as the Flight sink does after sending.

use std::time::Instant;

use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Histogram, HistogramDataPoint, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};
use openwit_operators::arrow_encode::{Config, Encoder};
use openwit_operators::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span as Piece};
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use prost::Message;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Messages of one signal; as large as the queue of a busy partition, larger than the caches.
const MESSAGES: usize = 2_000;
/// Rounds, each with both sides; the median is reported.
const ROUNDS: usize = 9;
/// Messages per batch that `append` gets, as the source makes them.
const BATCH_MESSAGES: usize = 100;

fn main() {
    for (signal, per_message) in [(Signal::Traces, 50), (Signal::Traces, 1), (Signal::Logs, 50), (Signal::Metrics, 50)] {
        let messages: Vec<Vec<u8>> =
            (0..MESSAGES * 50 / per_message).map(|seed| message(signal, seed as u64, per_message)).collect();
        compare(signal, per_message, &messages);
    }
}

fn compare(signal: Signal, per_message: usize, messages: &[Vec<u8>]) {
    let batches: Vec<NormalizedBatch> = messages.chunks(BATCH_MESSAGES).map(|chunk| batch(signal, chunk)).collect();
    let bytes: usize = messages.iter().map(Vec::len).sum();
    let rows = messages.len() * per_message;
    println!("{signal}, {per_message} a message: {rows} rows, {} B each", bytes / rows);
    let group = Group { index: "bench".into(), signal };
    let mut encoder = Encoder::new(Config::new(group));
    let (mut ours, mut prosts) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (own, prost) = (measure(|| encode(&mut encoder, &batches)), measure(|| decode(signal, messages)));
        assert_eq!((own.rows, prost.rows), (rows, rows));
        // The first round warms up.
        if round > 0 {
            ours.push(own);
            prosts.push(prost);
        }
    }
    let (own, prost) = (median(ours), median(prosts));
    report("encode to record batches", &own, rows, bytes);
    report("prost, decode and drop", &prost, rows, bytes);
    println!("  ratio {:.2}", prost.cpu_ns as f64 / own.cpu_ns as f64);
}

#[derive(Clone, Copy)]
struct Measured {
    rows: usize,
    cpu_ns: u64,
    wall_ns: u64,
}

fn measure(run: impl FnOnce() -> usize) -> Measured {
    let (start, cpu) = (Instant::now(), cpu_ns());
    let rows = run();
    Measured { rows, cpu_ns: cpu_ns() - cpu, wall_ns: start.elapsed().as_nanos() as u64 }
}

fn median(mut rounds: Vec<Measured>) -> Measured {
    rounds.sort_by_key(|round| round.cpu_ns);
    rounds[rounds.len() / 2]
}

fn report(name: &str, measured: &Measured, rows: usize, bytes: usize) {
    let (cpu, wall) = (measured.cpu_ns as f64 / rows as f64, measured.wall_ns as f64 / 1e9);
    println!("  {name:26} {cpu:7.0} CPU ns/row {:10.0} rows/s {:8.1} MB/s", rows as f64 / wall, bytes as f64 / wall / 1e6);
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call only writes to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn encode(encoder: &mut Encoder, batches: &[NormalizedBatch]) -> usize {
    let mut rows = 0;
    for batch in batches {
        encoder.append(batch).expect("the messages are valid");
        if encoder.rows() >= 10_000 {
            rows += encoder.finish().map_or(0, |encoded| encoded.rows());
        }
    }
    rows + encoder.finish().map_or(0, |encoded| encoded.rows())
}

fn decode(signal: Signal, messages: &[Vec<u8>]) -> usize {
    let mut rows = 0;
    for message in messages {
        rows += match signal {
            Signal::Traces => TracesData::decode(&message[..]).expect("valid").resource_spans[0].scope_spans[0].spans.len(),
            Signal::Logs => LogsData::decode(&message[..]).expect("valid").resource_logs[0].scope_logs[0].log_records.len(),
            Signal::Metrics => {
                let data = MetricsData::decode(&message[..]).expect("valid");
                data.resource_metrics[0].scope_metrics[0].metrics.iter().map(points).sum()
            }
        };
    }
    rows
}

fn points(metric: &Metric) -> usize {
    match metric.data.as_ref() {
        Some(metric::Data::Sum(sum)) => sum.data_points.len(),
        Some(metric::Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    }
}

fn batch(signal: Signal, messages: &[Vec<u8>]) -> NormalizedBatch {
    let topic = TopicKey { cluster: "c".into(), name: "otlp.bench.topic".into(), id: "".into() };
    let partition = PartitionKey { topic: topic.into(), partition: 0 };
    let mut raw = Vec::new();
    let mut records = Vec::new();
    for (offset, message) in messages.iter().enumerate() {
        let payload = Piece { start: raw.len() as u32, len: message.len() as u32 };
        raw.extend_from_slice(message);
        records.push(Record {
            offset: offset as i64,
            timestamp_ms: 1_700_000_000_000,
            key: 0,
            arena: Arena::Raw,
            payload,
            tenant: 0,
        });
    }
    let coverage = Coverage::stored(partition, 0..messages.len() as i64);
    let group = Group { index: "bench".into(), signal };
    NormalizedBatch {
        group,
        coverage,
        raw: raw.into(),
        written: Default::default(),
        records,
        schema: None,
        tenants: Vec::new(),
        charge: Default::default(),
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn resource(seed: u64) -> Option<Resource> {
    let attributes = vec![
        text("service.name", ["cart", "checkout", "payment", "search"][seed as usize % 4]),
        text("service.version", "1.14.2"),
        text("host.name", &format!("ip-10-0-{}-17", seed % 200)),
        text("deployment.environment.name", "prod"),
        text("tenant", &format!("tenant-{}", seed % 50)),
        text("telemetry.sdk.language", "rust"),
        text("telemetry.sdk.version", "0.33.0"),
    ];
    Some(Resource { attributes, ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: "io.opentelemetry.http".to_owned(), version: "1.2".to_owned(), ..Default::default() })
}

/// Seven attributes, five of them promoted.
fn attributes(seed: u64) -> Vec<KeyValue> {
    vec![
        text("http.request.method", ["GET", "POST", "PUT"][seed as usize % 3]),
        text("http.route", ["/cart/{id}", "/checkout", "/search", "/api/v1/items/{id}/reviews"][seed as usize % 4]),
        attribute("http.response.status_code", Value::IntValue(200 + seed as i64 % 4)),
        text("client.address", &format!("10.{}.{}.{}", seed % 256, seed / 7 % 256, seed / 3 % 256)),
        text("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
        attribute("http.response.body.size", Value::IntValue(seed as i64 * 37 % 100_000)),
        attribute("thread.id", Value::IntValue(seed as i64 % 64)),
    ]
}

fn id(seed: u64, length: usize) -> Vec<u8> {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    mixed.iter().copied().cycle().take(length).collect()
}

fn message(signal: Signal, seed: u64, records: usize) -> Vec<u8> {
    let time = 1_700_000_000_000_000_000 + seed * 1_000_000;
    let seeds = (0..records as u64).map(|record| seed * records as u64 + record);
    let scope = scope();
    match signal {
        Signal::Traces => {
            let span = |seed: u64| Span {
                trace_id: id(seed, 16),
                span_id: id(seed, 8),
                parent_span_id: if seed.is_multiple_of(5) { vec![] } else { id(seed + 1, 8) },
                name: format!("GET /operation/{}", seed % 40),
                kind: 2,
                start_time_unix_nano: time,
                end_time_unix_nano: time + seed % 1_000_000,
                attributes: attributes(seed),
                status: Some(Status::default()),
                flags: 1,
                ..Span::default()
            };
            let scope_spans = vec![ScopeSpans { scope, spans: seeds.map(span).collect(), ..ScopeSpans::default() }];
            let group = ResourceSpans { resource: resource(seed), scope_spans, ..ResourceSpans::default() };
            TracesData { resource_spans: vec![group] }.encode_to_vec()
        }
        Signal::Logs => {
            let log = |seed: u64| LogRecord {
                time_unix_nano: time,
                observed_time_unix_nano: time + 1_000,
                severity_number: 9,
                severity_text: "INFO".to_owned(),
                body: Some(AnyValue { value: Some(Value::StringValue(format!("request {seed} served in {} ms", seed % 900))) }),
                attributes: attributes(seed),
                trace_id: id(seed, 16),
                span_id: id(seed, 8),
                ..LogRecord::default()
            };
            let scope_logs = vec![ScopeLogs { scope, log_records: seeds.map(log).collect(), ..ScopeLogs::default() }];
            let group = ResourceLogs { resource: resource(seed), scope_logs, ..ResourceLogs::default() };
            LogsData { resource_logs: vec![group] }.encode_to_vec()
        }
        Signal::Metrics => {
            let seeds: Vec<u64> = seeds.collect();
            let metrics = seeds.chunks(5).map(|seeds| metric(seeds, time)).collect();
            let scope_metrics = vec![ScopeMetrics { scope, metrics, ..ScopeMetrics::default() }];
            let group = ResourceMetrics { resource: resource(seed), scope_metrics, ..ResourceMetrics::default() };
            MetricsData { resource_metrics: vec![group] }.encode_to_vec()
        }
    }
}

/// A metric of five points; every second one is a histogram of ten buckets.
fn metric(seeds: &[u64], time: u64) -> Metric {
    let point_attributes = |seed: u64| attributes(seed)[..4].to_vec();
    let number = |&seed: &u64| NumberDataPoint {
        attributes: point_attributes(seed),
        start_time_unix_nano: time - 1_000,
        time_unix_nano: time,
        value: Some(number_data_point::Value::AsInt(seed as i64)),
        ..NumberDataPoint::default()
    };
    let histogram = |&seed: &u64| HistogramDataPoint {
        attributes: point_attributes(seed),
        start_time_unix_nano: time - 1_000,
        time_unix_nano: time,
        count: seed % 1_000,
        sum: Some(seed as f64 / 3.0),
        bucket_counts: (0..10).map(|bucket| seed % (bucket + 1)).collect(),
        explicit_bounds: (1..10).map(f64::from).collect(),
        ..HistogramDataPoint::default()
    };
    let data = if seeds[0] % 10 < 5 {
        let data_points = seeds.iter().map(number).collect();
        metric::Data::Sum(Sum { data_points, aggregation_temporality: 2, is_monotonic: true })
    } else {
        metric::Data::Histogram(Histogram { data_points: seeds.iter().map(histogram).collect(), aggregation_temporality: 2 })
    };
    let name = if seeds[0] % 10 < 5 { "http.server.requests" } else { "http.server.request.duration" };
    Metric {
        name: name.to_owned(),
        description: "Requests served".to_owned(),
        unit: "s".to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}
