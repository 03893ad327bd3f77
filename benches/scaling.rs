//! Question: what do more workers give, and what do timely, its progress and the exchange of dedup keys cost?
//!
//! The same messages, in memory, go through `normalize > dedup_window > arrow_encode` on 1, 2, .. workers as a dataflow, and through the cores of
//! these operators in a plain loop on one thread: without timely, without an exchange, without progress. In turns in one run, medians of rounds.
//!
//! *records/s* by the clock; *CPU* of all threads. `plain` is what the work itself takes; what the dataflow takes beyond that on one worker is
//! the price of the machinery, and on several what they cost each other on top. An epoch is what comes in `EPOCH_MS` at `LOAD_MB_PER_S`, over
//! 8 partitions. *Progress* is what workers tell each other of epochs, in a run that is not timed: batches that a worker sends to every worker, itself
//! included, and the changes of counts in them. Run with `cargo bench --bench scaling [-- MEGABYTES [WORKERS..]]` (400, and 1 2, by default). It writes no file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use openwit_graphs::dataflow::mapped;
use openwit_ingest::generate::{Format, Generator, Kind, Message, Plan, Ppm, Topic};
use openwit_ingest::summary::Usage;
use openwit_operators::arrow_encode::{self, Encoder, Limits, Route, arrow_encode};
use openwit_operators::batch::{DurableBatch, Group, RawBatch, RawRecord, Signal, Span, UniqueBatch};
use openwit_operators::coverage::PartitionKey;
use openwit_operators::dedup_window::window::{Config, Partitions, Progress, Sighting, Window};
use openwit_operators::dedup_window::{self, dedup_window, remember};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{self, Normalizer, normalize};
use openwit_operators::place::Place;
use openwit_operators::wal_commit::read::Position;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::operators::generic::operator::empty;
use timely::dataflow::operators::vec::Input;
use timely::logging::TimelyProgressEventBuilder;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;
const PARTITIONS: i32 = 8;
const EPOCH_MS: u64 = 20;
/// What the epochs are cut by: about what two cores take from Kafka to Parquet.
const LOAD_MB_PER_S: usize = 120;
/// Epochs under way at a time.
const EPOCHS_AHEAD: u64 = 8;
const START_MS: u64 = 1_795_435_262_000;

/// Batches by epoch, and the messages in all.
struct Load {
    batches: Vec<(Epoch, RawBatch)>,
    messages: usize,
    bytes: usize,
}

fn load(format: Format, signal: Signal, bytes: usize) -> Load {
    let plan = Plan {
        topics: vec![Topic { name: "bench".to_owned(), partitions: PARTITIONS }],
        format,
        signal,
        count: None,
        records_per_message: if format.batches_records() { 50 } else { 1 },
        message_bytes_min: 0,
        duplicates: Ppm(20_000),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed: 1,
        keyed: false,
        start_time_ns: START_MS * 1_000_000,
        time_step_ns: 10_000,
    };
    let mut generator = Generator::new(plan).expect("the plan is valid");
    let (mut message, mut load) = (Message::empty(), Load { batches: Vec::new(), messages: 0, bytes: 0 });
    let (mut open, mut in_epoch, mut epoch): (BTreeMap<i32, (Vec<u8>, Vec<RawRecord>)>, usize, u64) = (BTreeMap::new(), 0, 0);
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    let cluster = "bench".into();
    let close = |open: &mut BTreeMap<i32, (Vec<u8>, Vec<RawRecord>)>, epoch: u64, batches: &mut Vec<(Epoch, RawBatch)>| {
        for (partition, (arena, records)) in std::mem::take(open) {
            let (start, end) = (records[0].offset, records[records.len() - 1].offset + 1);
            let partition = PartitionKey::of_incarnation(&cluster, &"bench".into(), partition, 0);
            let (arena, charge) = (arena.into(), Default::default());
            batches.push((Epoch(epoch), RawBatch { partition, start, end, arena, records, polled_ms: epoch, charge }));
        }
    };
    while load.bytes < bytes && generator.advance(&mut message) {
        let payload = message.payload().expect("no tombstones are asked for");
        assert_ne!(message.kind, Kind::Tombstone);
        let (arena, records) = open.entry(message.partition).or_default();
        let offset = next.entry(message.partition).or_default();
        let span = Span { start: arena.len() as u32, len: payload.len() as u32 };
        arena.extend_from_slice(payload);
        let headers = Span { start: arena.len() as u32, len: 0 };
        let timestamp_ms = (START_MS + epoch) as i64;
        records.push(RawRecord { offset: *offset, timestamp_ms, key: None, payload: Some(span), headers });
        *offset += 1;
        load.messages += 1;
        load.bytes += payload.len();
        in_epoch += payload.len();
        if in_epoch >= LOAD_MB_PER_S * 1_000 * EPOCH_MS as usize {
            close(&mut open, START_MS + epoch, &mut load.batches);
            (in_epoch, epoch) = (0, epoch + EPOCH_MS);
        }
    }
    close(&mut open, START_MS + epoch, &mut load.batches);
    load
}

fn normalize_config(signal: Signal) -> normalize::Config {
    let topics = IndexRules { default_index_position: Some(0), ..IndexRules::default() };
    normalize::Config { telemetry_type: Some(signal), topics, ..normalize::Config::default() }
}

fn limits() -> Limits {
    Limits {
        batch_rows_max: 8_192,
        batch_bytes_max: 4 << 20,
        delivery_bytes_max: 8 << 20,
        delivery_messages_max: 100_000,
        delivery_wait: std::time::Duration::from_secs(1),
    }
}

struct OneEndpoint;

impl Route for OneEndpoint {
    fn endpoint(&self, _partition: &PartitionKey) -> usize {
        0
    }
}

/// What a round took.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    cpu_seconds: f64,
}

fn took(run: impl FnOnce() -> usize, rows: &mut Option<usize>) -> Took {
    let (began, before) = (Instant::now(), Usage::now().cpu_seconds);
    let made = run();
    assert_eq!(*rows.get_or_insert(made), made, "all ways make the same rows");
    Took { seconds: began.elapsed().as_secs_f64(), cpu_seconds: Usage::now().cpu_seconds - before }
}

/// The cores alone.
fn plain(load: &Load, signal: Signal) -> usize {
    let mut normalizer = Normalizer::new(normalize_config(signal)).expect("the settings are valid");
    let (mut window, mut partitions) = (Window::new(Config::default()), Partitions::default());
    let mut encoder: Option<(Group, Encoder)> = None;
    let (mut rows, mut verdicts) = (0, Vec::new());
    for of_epoch in load.batches.chunk_by(|one, other| one.0 == other.0) {
        let mut normalized = Vec::with_capacity(of_epoch.len());
        let mut sightings = Vec::new();
        for (_, raw) in of_epoch {
            let batch = normalizer.normalize(raw.clone()).batch;
            let partition = partitions.index(&batch.coverage.partition).expect("few partitions");
            let sighting = |record: &openwit_operators::batch::Record| Sighting {
                key: record.key,
                time_ms: record.timestamp_ms,
                partition,
                offset: record.offset,
            };
            sightings.extend(batch.records.iter().map(sighting));
            normalized.push(batch);
        }
        if let Some(progress) = Progress::of(of_epoch[0].0.0, sightings.iter().map(|sighting| sighting.time_ms)) {
            window.advance(progress);
        }
        window.observe(&sightings, &mut verdicts);
        let mut verdicts = verdicts.iter();
        for mut batch in normalized {
            let duplicates: Vec<bool> = verdicts.by_ref().take(batch.records.len()).copied().collect();
            let mut of_batch = duplicates.iter();
            batch.records.retain(|record| {
                let is_duplicate = *of_batch.next().expect("a verdict for each record");
                if is_duplicate {
                    batch.coverage.duplicates.push(record.offset);
                }
                !is_duplicate
            });
            let (_, encoder) = encoder.get_or_insert_with(|| (batch.group.clone(), Encoder::new(limits().config(&batch))));
            encoder.append(&batch).expect("the messages are valid");
            if encoder.bytes() >= limits().delivery_bytes_max {
                rows += encoder.finish().map_or(0, |encoded| encoded.rows());
            }
        }
    }
    rows + encoder.and_then(|(_, mut encoder)| encoder.finish()).map_or(0, |encoded| encoded.rows())
}

/// What workers tell each other of progress.
#[derive(Default)]
struct Traffic {
    batches: AtomicUsize,
    changes: AtomicUsize,
}

/// The same as a dataflow. What its workers tell each other is counted where that is wanted, which takes time.
fn dataflow(load: &Arc<Load>, signal: Signal, workers: usize, traffic: Option<&Arc<Traffic>>) -> usize {
    let (rows, health) = (Arc::new(AtomicUsize::new(0)), Health::default());
    let dedup = dedup_window::Ports { remembered: remember::Feed::default(), stats: Default::default(), health: health.clone() };
    let (of_rows, of_health, load, traffic) = (rows.clone(), health.clone(), load.clone(), traffic.cloned());
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (rows, health, dedup) = (of_rows.clone(), of_health.clone(), dedup.clone());
        let (index, peers) = (worker.index(), worker.peers());
        if let Some((traffic, mut log)) = traffic.clone().zip(worker.log_register()) {
            let name = format!("timely/progress/{}", std::any::type_name::<Epoch>());
            log.insert::<TimelyProgressEventBuilder<Epoch>, _>(&name, move |_, events| {
                for (_, event) in events.iter().flat_map(|events| events.iter()).filter(|(_, event)| event.is_send) {
                    traffic.batches.fetch_add(1, Ordering::Relaxed);
                    traffic.changes.fetch_add(event.messages.len() + event.internal.len(), Ordering::Relaxed);
                }
            });
        }
        let (mut input, decided, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
            let (input, raw) = scope.new_input::<RawBatch>();
            let ports = normalize::Ports { stats: Default::default(), health: health.clone(), quotas: None };
            let place = Place::alone(&scope);
            let normalized = normalize(raw, normalize_config(signal), ports, place).normalized;
            let unique = dedup_window(normalized, empty(scope), dedup_window::Config::default(), dedup, place);
            let durable = mapped(unique, "durable", |UniqueBatch(batch)| DurableBatch {
                batch,
                position: Some(Position { segment: 0, at: 0, bytes: 0 }),
                charge: Default::default(),
            });
            // Behind the encoder an epoch is held until a delivery is large enough.
            let decided = durable.clone().probe().0;
            let deliveries = arrow_encode(durable, limits(), arrow_encode::Ports { route: Arc::new(OneEndpoint), health });
            let counted = deliveries.unary::<timely::container::CapacityContainerBuilder<Vec<()>>, _, _, _>(
                Pipeline,
                "count",
                |_capability, _info| {
                    move |input, _output| {
                        input.for_each(|_capability, deliveries| {
                            let made = deliveries.drain(..).map(|delivery| delivery.batch.rows()).sum();
                            rows.fetch_add(made, Ordering::Relaxed);
                        });
                    }
                },
            );
            (input, decided, counted.probe().0)
        });
        // As consumers have partitions: `normalize` routes them to its own workers.
        let mine = load.batches.iter().filter(|(_, batch)| batch.partition.partition as usize % peers == index);
        for (epoch, batch) in mine {
            if epoch > input.time() {
                input.advance_to(*epoch);
                worker.step();
                // As the memory budget has it.
                while decided.less_than(&Epoch(epoch.0.saturating_sub(EPOCHS_AHEAD * EPOCH_MS))) {
                    worker.step_or_park(None);
                }
            }
            input.send(batch.clone());
        }
        input.close();
        while !probe.done() {
            worker.step_or_park(None);
        }
    });
    guards.expect("the workers start").join().into_iter().for_each(|worker| worker.expect("no worker panics"));
    assert_eq!(health.fault(), None);
    rows.load(Ordering::Relaxed)
}

fn median(rounds: &[Took], of: impl Fn(&Took) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(what: &str, format: Format, signal: Signal, bytes: usize, workers: &[usize]) {
    let load = Arc::new(load(format, signal, bytes));
    let mut rows = None;
    let (mut plains, mut dataflows) = (Vec::new(), vec![Vec::new(); workers.len()]);
    for round in 0..=ROUNDS {
        let alone = took(|| plain(&load, signal), &mut rows);
        let together: Vec<Took> =
            workers.iter().map(|workers| took(|| dataflow(&load, signal, *workers, None), &mut rows)).collect();
        // The first fills caches.
        if round > 0 {
            plains.push(alone);
            dataflows.iter_mut().zip(together).for_each(|(rounds, took)| rounds.push(took));
        }
    }
    let (rows, batches) = (rows.unwrap_or(0) as f64, load.batches.len());
    println!("{what}: {} messages, {} MB, {rows} rows, {batches} batches", load.messages, load.bytes / 1_000_000);
    println!("{:<14}{:>12}{:>10}{:>12}{:>16}{:>18}", "", "records/s", "MB/s", "CPU ns/row", "CPU of plain", "speed-up");
    let one = median(&dataflows[0], |took| took.seconds);
    let work = median(&plains, |took| took.cpu_seconds);
    let line = |name: String, rounds: &[Took], speed_up: Option<f64>| {
        let (seconds, cpu) = (median(rounds, |took| took.seconds), median(rounds, |took| took.cpu_seconds));
        println!(
            "{name:<14}{:>12.0}{:>10.0}{:>12.0}{:>16.3}{:>18}",
            rows / seconds,
            load.bytes as f64 / 1e6 / seconds,
            cpu * 1e9 / rows,
            cpu / work,
            speed_up.map_or_else(|| "-".to_owned(), |speed_up| format!("{speed_up:.2}")),
        );
    };
    line("plain".to_owned(), &plains, None);
    for (workers, rounds) in workers.iter().zip(&dataflows) {
        line(format!("{workers} workers"), rounds, Some(one / median(rounds, |took| took.seconds)));
    }
    let epochs = load.batches.chunk_by(|one, other| one.0 == other.0).count();
    for workers in workers {
        let traffic = Arc::new(Traffic::default());
        dataflow(&load, signal, *workers, Some(&traffic));
        let of_epoch = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as f64 / epochs as f64;
        let (batches, changes) = (of_epoch(&traffic.batches), of_epoch(&traffic.changes));
        println!("progress of {workers} workers, for each of {epochs} epochs: {batches:.1} batches with {changes:.1} changes");
    }
}

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let bytes = numbers.next().unwrap_or(400).max(1) * 1_000_000;
    let workers: Vec<usize> = numbers.filter(|workers| *workers > 0).collect();
    let workers = if workers.is_empty() { vec![1, 2] } else { workers };
    measure("OTLP protobuf traces", Format::Otlp, Signal::Traces, bytes, &workers);
    measure("JSON logs", Format::Json, Signal::Logs, bytes / 4, &workers);
}
