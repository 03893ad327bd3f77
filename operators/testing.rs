//! What tests of operators share: batches from a seed, and dataflows on any number of workers and processes that are fed with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, MetricsData, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric, number_data_point,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use prost::Message;
use timely::dataflow::operators::{Input, Probe};
use timely::dataflow::{ProbeHandle, Stream};
use timely::{CommunicationConfig, WorkerConfig};

use crate::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span as Piece};
use crate::coverage::{Coverage, PartitionKey, TopicKey};
use crate::epoch::Epoch;
use crate::fault::Health;

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The seed, or what `TEST_SEED` says; printed, so that a failure can be repeated.
    pub fn new(seed: u64) -> Self {
        let seed = std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
        println!("TEST_SEED={seed}");
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }

    /// In another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// The partition `number` of `topic`.
pub fn partition(topic: &str, number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: topic.into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

fn attribute(key: &str, text: String) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(Value::StringValue(text)) }), ..KeyValue::default() }
}

/// A payload of `signal` with `rows` rows.
pub fn payload(signal: Signal, rows: u64, dice: &mut Dice) -> Vec<u8> {
    let time = 1_700_000_000_000_000_000 + dice.below(1 << 40);
    let attributes =
        vec![attribute("http.route", format!("/r/{}", dice.below(9))), attribute("n", dice.below(1 << 50).to_string())];
    match signal {
        Signal::Traces => {
            let span = |number: u64| Span {
                trace_id: vec![number as u8 + 1; 16],
                span_id: vec![number as u8 + 1; 8],
                name: format!("span {number}"),
                start_time_unix_nano: time + number,
                end_time_unix_nano: time + 2 * number,
                attributes: attributes.clone(),
                ..Span::default()
            };
            let scope_spans = vec![ScopeSpans { spans: (0..rows).map(span).collect(), ..ScopeSpans::default() }];
            TracesData { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }.encode_to_vec()
        }
        Signal::Logs => {
            let record = |number: u64| LogRecord {
                time_unix_nano: time + number,
                body: attribute("", format!("line {number} of {time}")).value,
                attributes: attributes.clone(),
                ..LogRecord::default()
            };
            let scope_logs = vec![ScopeLogs { log_records: (0..rows).map(record).collect(), ..ScopeLogs::default() }];
            LogsData { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }.encode_to_vec()
        }
        Signal::Metrics => {
            let point = |number: u64| NumberDataPoint {
                time_unix_nano: time + number,
                value: Some(number_data_point::Value::AsDouble(number as f64 / 3.0)),
                attributes: attributes.clone(),
                ..NumberDataPoint::default()
            };
            let data = Some(metric::Data::Gauge(Gauge { data_points: (0..rows).map(point).collect() }));
            let metrics = vec![Metric { name: "load".into(), data, ..Metric::default() }];
            let scope_metrics = vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }];
            MetricsData { resource_metrics: vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }] }
                .encode_to_vec()
        }
    }
}

/// A batch whose messages have the offsets from `start` on.
pub fn batch(group: &Group, partition: PartitionKey, start: i64, payloads: &[Vec<u8>]) -> NormalizedBatch {
    let mut arena = Vec::new();
    let mut records = Vec::new();
    for (offset, payload) in (start..).zip(payloads) {
        let piece = Piece { start: arena.len() as u32, len: payload.len() as u32 };
        arena.extend_from_slice(payload);
        let key = u128::from(offset as u64) << 3;
        records.push(Record { offset, timestamp_ms: 1_000 + offset, key, arena: Arena::Raw, payload: piece, tenant: 0 });
    }
    NormalizedBatch {
        group: group.clone(),
        coverage: Coverage::stored(partition, start..start + payloads.len() as i64),
        raw: Bytes::from(arena),
        written: Bytes::new(),
        records,
        schema: None,
        tenants: Vec::new(),
        charge: Default::default(),
    }
}

/// Batches of a few groups over `epochs` epochs of 20 ms, each partition in order of offsets, some messages duplicates, rejected or skipped.
pub fn batches(epochs: u64, dice: &mut Dice) -> Vec<(Epoch, NormalizedBatch)> {
    let signals = [Signal::Traces, Signal::Logs, Signal::Metrics];
    let groups: Vec<Group> =
        (0..4).map(|number| Group { index: format!("index{}", number / 3).into(), signal: signals[number % 3] }).collect();
    let mut next = [100i64; 12];
    let mut made = Vec::new();
    for tick in 0..epochs {
        for _ in 0..dice.below(8) {
            let number = dice.below(12) as usize;
            let group = &groups[number % groups.len()];
            let count = dice.below(5);
            let payloads: Vec<Vec<u8>> = (0..count).map(|_| payload(group.signal, dice.below(4), dice)).collect();
            let mut batch = batch(group, partition(&format!("t{}", number % 4), number as i32), next[number], &payloads);
            next[number] += count as i64 + 1;
            batch.coverage.end += 1;
            let last = batch.coverage.end - 1;
            match dice.below(4) {
                0 => batch.coverage.rejected.push(last),
                1 => batch.coverage.skipped.push(last),
                2 => batch.coverage.absent.push(last..last + 1),
                _ => batch.coverage.duplicates.push(last),
            }
            made.push((Epoch(1_700_000_000_000 + tick * 20), batch));
        }
    }
    made
}

/// The ways in which a dataflow is run that must not matter: threads of one process, and processes.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// So many workers in one process.
    Workers(usize),
    /// So many processes on loopback, with so many workers each.
    Processes(usize, usize),
}

impl Shape {
    fn communications(self) -> Vec<CommunicationConfig> {
        match self {
            Shape::Workers(1) => vec![CommunicationConfig::Thread],
            Shape::Workers(workers) => vec![CommunicationConfig::Process(workers)],
            Shape::Processes(processes, threads) => {
                // Free ports, kept until all are known; they are bound anew at once.
                let bound: Vec<_> = (0..processes).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
                let addresses: Vec<String> = bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
                let cluster = |process| CommunicationConfig::Cluster {
                    threads,
                    process,
                    addresses: addresses.clone(),
                    report: false,
                    zerocopy: false,
                };
                (0..processes).map(cluster).collect()
            }
        }
    }

    fn peers(self) -> usize {
        match self {
            Shape::Workers(workers) => workers,
            Shape::Processes(processes, threads) => processes * threads,
        }
    }
}

/// How far a dataflow of [`run`] came: every epoch before it was passed.
#[derive(Clone, Debug, Default)]
pub struct Passed(Arc<AtomicU64>);

impl Passed {
    /// The frontier of worker 0; `u64::MAX` at the end.
    pub fn epoch(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Runs what `build` makes of `items`, which are dealt to the workers at random, until it is over or failed.
pub fn run<D: Clone + Send + Sync + 'static>(
    shape: Shape,
    items: &[(Epoch, D)],
    dice: &mut Dice,
    health: &Health,
    passed: &Passed,
    build: impl for<'s> Fn(Stream<'s, Epoch, Vec<D>>, usize) -> Stream<'s, Epoch, Vec<()>> + Clone + Send + Sync + 'static,
) {
    let mut items: Vec<(Epoch, usize, D)> =
        items.iter().map(|(epoch, item)| (*epoch, dice.below(shape.peers() as u64) as usize, item.clone())).collect();
    dice.shuffle(&mut items);
    items.sort_by_key(|(epoch, ..)| *epoch);
    let items = Arc::new(items);
    let mut threads = Vec::new();
    for (process, communication) in shape.communications().into_iter().enumerate() {
        let (items, health, passed, build) = (items.clone(), health.clone(), passed.clone(), build.clone());
        threads.push(std::thread::spawn(move || {
            let config = timely::Config { communication, worker: WorkerConfig::default() };
            let guards = timely::execute(config, move |worker| {
                health.register_worker();
                let probe = ProbeHandle::new();
                let mut input = worker.dataflow::<Epoch, _, _>(|scope| {
                    let (input, stream) = scope.new_input();
                    build(stream, process).probe_with(&probe);
                    input
                });
                let index = worker.index();
                for (epoch, _, item) in items.iter().filter(|(_, owner, _)| *owner == index) {
                    input.advance_to(*epoch);
                    input.send(item.clone());
                    worker.step();
                }
                drop(input);
                while worker.has_dataflows() && !health.failed() {
                    worker.step_or_park(Some(Duration::from_millis(1)));
                    if index == 0 {
                        let frontier = probe.with_frontier(|frontier| frontier.first().map_or(u64::MAX, |epoch| epoch.0));
                        passed.0.store(frontier, Ordering::Release);
                    }
                }
                for dataflow in worker.installed_dataflows() {
                    worker.drop_dataflow(dataflow);
                }
            });
            for result in guards.unwrap().join() {
                result.unwrap();
            }
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}
