//! Question: what share of throughput does a capture cost at the raw edge?
//!
//! A dataflow `source > normalize > nothing` of OTLP traces, with and without a capture behind the source, in turns in one run; the source
//! holds back as the memory budget tells it. The ratio is the answer for this graph, in which hardly anything else is done: normalizing
//! protobuf is a walk. *CPU* is that of the whole process, and the difference what a capture costs for each byte wherever it is put: set it
//! beside what the graph in question takes. Run with `cargo bench --bench capture [-- MiB_PER_ROUND [LEVEL]]` (512, and zstd's level
//! 1, by default). It writes to a folder beside the sources, which it removes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, TracesData};
use openwit_operators::batch::{RawBatch, RawRecord, Signal, Span};
use openwit_operators::budget::{Budget, Load};
use openwit_operators::capture::{self, Writer, capture};
use openwit_operators::clock::SystemClock;
use openwit_operators::coverage::{PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{self, Format, normalize};
use openwit_operators::place::Place;
use prost::Message;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

const SPANS_PER_MESSAGE: usize = 50;
const MESSAGES_PER_BATCH: usize = 64;
/// Batches that differ: more than a processor caches, and more than one block has.
const BATCHES: usize = 48;
const BATCHES_PER_EPOCH: usize = 4;
const BUDGET_BYTES: usize = 64 << 20;
const ROUNDS: usize = 5;

/// A generator that needs no seed from outside: every run measures the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[(self.next() % from.len() as u64) as usize]
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, key_strindex: 0 }
}

/// One export of spans with five attributes each.
fn traces(random: &mut Random) -> Vec<u8> {
    let routes = ["/api/v1/orders", "/api/v1/orders/{id}", "/api/v2/products/{sku}/reviews", "/healthz"];
    let agents = ["Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0", "okhttp/4.12.0", "python-requests/2.32"];
    let span = |random: &mut Random| OtlpSpan {
        trace_id: [random.next().to_le_bytes(), random.next().to_le_bytes()].concat(),
        span_id: random.next().to_le_bytes().to_vec(),
        parent_span_id: random.next().to_le_bytes().to_vec(),
        name: format!("GET {}", random.pick(&routes)),
        kind: 2,
        start_time_unix_nano: 1_760_000_000_000_000_000 + random.next() % (1 << 40),
        end_time_unix_nano: 1_760_000_000_900_000_000 + random.next() % (1 << 40),
        attributes: vec![
            text("http.request.method", "GET"),
            text("http.route", random.pick(&routes)),
            text("client.address", &format!("10.{}.{}.7", random.next() % 256, random.next() % 256)),
            text("user_agent.original", random.pick(&agents)),
            text("http.response.body.size", &(random.next() % 200_000).to_string()),
        ],
        status: Some(Status::default()),
        ..OtlpSpan::default()
    };
    let spans = (0..SPANS_PER_MESSAGE).map(|_| span(random)).collect();
    let attributes = vec![text("service.name", "checkout"), text("host.name", "ip-10-0-12-17")];
    let resource = Some(Resource { attributes, ..Resource::default() });
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    TracesData { resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }] }.encode_to_vec()
}

fn batch(number: usize, random: &mut Random) -> RawBatch {
    let topic = TopicKey { cluster: "bench".into(), name: "bench".into(), id: "".into() };
    let (mut arena, mut records) = (Vec::new(), Vec::new());
    for offset in 0..MESSAGES_PER_BATCH as i64 {
        let payload = traces(random);
        let span = Span { start: arena.len() as u32, len: payload.len() as u32 };
        arena.extend_from_slice(&payload);
        let headers = Span { start: arena.len() as u32, len: 0 };
        records.push(RawRecord { offset, timestamp_ms: 1_795_435_262_123 + offset, key: None, payload: Some(span), headers });
    }
    RawBatch {
        partition: PartitionKey { topic: Arc::new(topic), partition: number as i32 % 8 },
        start: 0,
        end: MESSAGES_PER_BATCH as i64,
        arena: arena.into(),
        records,
        polled_ms: 1_795_435_262_123,
        charge: Default::default(),
    }
}

/// Emits the batches over and over, until all workers together have emitted `bytes`, as far as the budget has room.
fn source<'s>(
    scope: Scope<'s, Epoch>,
    batches: Arc<Vec<RawBatch>>,
    left: Arc<AtomicU64>,
    budget: Arc<Budget>,
) -> Stream<'s, Epoch, Vec<RawBatch>> {
    let worker = scope.index();
    let mut builder = OperatorBuilder::new("source".into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let (output, stream) = builder.new_output::<Vec<RawBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<RawBatch>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        let mut next = worker;
        move |_frontiers| {
            let Some(open) = &mut capability else { return };
            if budget.is_full() {
                return activator.activate_after(Duration::from_micros(200));
            }
            let mut output = output.activate();
            let mut session = output.session(open);
            for _ in 0..BATCHES_PER_EPOCH {
                let mut batch = batches[next % batches.len()].clone();
                next += 1;
                let load = Load { bytes: batch.arena.len(), messages: batch.records.len() };
                let taken = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(load.bytes as u64));
                if taken.is_err() {
                    session.flush();
                    drop(session);
                    capability = None;
                    return;
                }
                budget.collect(load);
                batch.charge = budget.seal(load);
                session.give(batch);
            }
            session.flush();
            drop(session);
            let after = Epoch(open.time().0 + 1);
            open.downgrade(&after);
            activator.activate();
        }
    });
    stream
}

/// Seconds on the clock, and of all processors.
fn round(workers: usize, batches: &Arc<Vec<RawBatch>>, bytes: u64, level: Option<i32>) -> (f64, f64) {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder beside the sources");
    let health = Health::default();
    let writer = level.map(|compression_level| {
        let config = capture::Config { compression_level, ..capture::Config::new(folder.path()) };
        Writer::<RawBatch>::spawn(config, health.clone(), Arc::new(SystemClock::default())).expect("the folder can be written to")
    });
    let (left, budget) = (Arc::new(AtomicU64::new(bytes)), Budget::new(Load { bytes: BUDGET_BYTES, messages: usize::MAX }));
    let (began, began_cpu) = (Instant::now(), process_cpu_seconds());
    let (batches, of_graph, of_health) = (batches.clone(), writer.clone(), health.clone());
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (batches, left, budget) = (batches.clone(), left.clone(), budget.clone());
        let (writer, health) = (of_graph.clone(), of_health.clone());
        let probe = worker.dataflow::<Epoch, _, _>(|scope| {
            let (raw, place) = (source(scope, batches, left, budget), Place::alone(&scope));
            let raw = match writer {
                Some(writer) => capture(raw, capture::Ports { writer }, place),
                None => raw,
            };
            let topics = IndexRules { default_index_position: Some(0), ..IndexRules::default() };
            let config = normalize::Config {
                format: Format::OtlpProto,
                telemetry_type: Some(Signal::Traces),
                topics,
                ..normalize::Config::default()
            };
            let ports = normalize::Ports { stats: Default::default(), health, quotas: None };
            normalize(raw, config, ports, place).normalized.probe().0
        });
        while !probe.done() {
            worker.step_or_park(Some(Duration::from_millis(1)));
        }
    });
    guards.expect("the workers start").join().into_iter().for_each(|worker| worker.expect("no worker panics"));
    if let Some(writer) = writer {
        writer.shutdown();
    }
    assert_eq!(health.fault(), None);
    (began.elapsed().as_secs_f64(), process_cpu_seconds() - began_cpu)
}

fn process_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which lives until it returns.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<i32>().ok());
    let (mebibytes, level) = (numbers.next().unwrap_or(512).max(1), numbers.next().unwrap_or(1));
    let bytes = (mebibytes as u64) << 20;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let batches: Arc<Vec<RawBatch>> = Arc::new((0..BATCHES).map(|number| batch(number, &mut random)).collect());
    let of_batches: usize = batches.iter().map(|batch| batch.arena.len()).sum();
    println!(
        "{BATCHES} batches, {} bytes a message, {mebibytes} MiB a round, level {level}",
        of_batches / BATCHES / MESSAGES_PER_BATCH
    );
    println!("{:<28}{:>10}{:>14}{:>16}", "what", "MB/s", "messages/s", "CPU ns per KiB");
    for workers in [1, 2] {
        let (mut plain, mut captured) = (Vec::new(), Vec::new());
        for number in 0..=ROUNDS {
            let one = round(workers, &batches, bytes, None);
            let other = round(workers, &batches, bytes, Some(level));
            // The first fills caches.
            if number > 0 {
                plain.push(one);
                captured.push(other);
            }
        }
        for (what, rounds) in [("plain", &plain), ("captured", &captured)] {
            let seconds = median(rounds.iter().map(|round| round.0).collect());
            let cpu = median(rounds.iter().map(|round| round.1).collect());
            let messages = bytes as f64 / (of_batches / BATCHES / MESSAGES_PER_BATCH) as f64;
            println!(
                "{:<28}{:>10.0}{:>14.0}{:>16.0}",
                format!("{what}, {workers} workers"),
                bytes as f64 / 1e6 / seconds,
                messages / seconds,
                cpu * 1e9 / (bytes as f64 / 1024.0)
            );
        }
        let ratio = median(plain.iter().zip(&captured).map(|(plain, captured)| plain.0 / captured.0).collect());
        println!("{workers} workers: with a capture {:.1} % of the throughput without", 100.0 * ratio);
    }
}
