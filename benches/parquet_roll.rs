//! What does a row cost from its delivery to a synced, verified file, and what do redelivery and rows of many days add to it?
//!
//! `cargo bench --bench parquet_roll`, or with another number of rows per case: `cargo bench --bench parquet_roll -- 1000000`. The rows
//! are those of the generator, encoded as in the pipeline; the files lie in the build folder. CPU is that of the whole process, the
//! least of three runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::TimestampNanosecondType;
use openwit_ingest::generate::{Format, Generator, Message, Plan, Ppm, Topic};
use openwit_ingest::summary::Usage;
use openwit_operators::arrow_encode::encoder::{Config as EncoderConfig, Encoder};
use openwit_operators::batch::{Arena, EncodedBatch, Group, NormalizedBatch, Record, Signal, Span};
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::parquet_roll::{Config, DeliveryId, Received, Roller, time_column};
use prost::bytes::Bytes;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const START_NS: u64 = 1_764_000_000_000_000_000;
const DAY_NS: i64 = 86_400_000_000_000;
const RUNS: usize = 3;

/// Deliveries of at least `rows` rows in all, one per record batch limit of the encoder.
fn deliveries(signal: Signal, rows: usize) -> Vec<EncodedBatch> {
    let plan = Plan {
        topics: vec![Topic { name: "orders.telemetry".to_owned(), partitions: 1 }],
        format: Format::Otlp,
        signal,
        count: None,
        records_per_message: 50,
        message_bytes_min: 0,
        duplicates: Ppm(0),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed: 1,
        keyed: false,
        start_time_ns: START_NS,
        time_step_ns: 10_000,
    };
    let mut generator = Generator::new(plan).expect("the plan is fine");
    let group = Group { index: "orders".into(), signal };
    let topic = TopicKey { cluster: "bench".into(), name: "orders.telemetry".into(), id: "".into() };
    let partition = PartitionKey { topic: Arc::new(topic), partition: 0 };
    let mut encoder = Encoder::new(EncoderConfig::new(group.clone()));
    let (mut made, mut offset, mut message) = (Vec::new(), 0, Message::empty());
    let mut total = 0;
    while total < rows {
        while encoder.rows() < 10_000 && generator.advance(&mut message) {
            let payload = Bytes::copy_from_slice(message.payload().unwrap_or_default());
            let span = Span { start: 0, len: payload.len() as u32 };
            let record = Record {
                offset,
                timestamp_ms: (START_NS / 1_000_000) as i64,
                key: 0,
                arena: Arena::Raw,
                payload: span,
                tenant: 0,
            };
            let coverage = Coverage::stored(partition.clone(), offset..offset + 1);
            let batch = NormalizedBatch {
                group: group.clone(),
                coverage,
                raw: payload,
                written: Bytes::new(),
                records: vec![record],
                schema: None,
                tenants: Vec::new(),
                charge: Default::default(),
            };
            encoder.append(&batch).expect("the generator makes valid messages");
            offset += 1;
        }
        let delivery = encoder.finish().expect("there are rows");
        total += delivery.rows();
        made.push(delivery);
    }
    made
}

/// The same rows, their event times spread over `days` days in turn.
fn spread(deliveries: &[EncodedBatch], days: i64) -> Vec<EncodedBatch> {
    let spread_batch = |batch: &RecordBatch, signal: Signal| {
        let position = batch.schema().index_of(time_column(signal)).expect("the schema has it");
        let times = batch.column(position).as_primitive::<TimestampNanosecondType>();
        let moved = (0..times.len()).map(|row| times.value(row) - (row as i64 % days) * DAY_NS);
        let mut columns = batch.columns().to_vec();
        columns[position] = Arc::new(TimestampNanosecondArray::from_iter_values(moved).with_timezone("UTC"));
        RecordBatch::try_new(batch.schema(), columns).expect("same types")
    };
    let one = |delivery: &EncodedBatch| EncodedBatch {
        batches: delivery.batches.iter().map(|batch| spread_batch(batch, delivery.group.signal)).collect(),
        ..delivery.clone()
    };
    deliveries.iter().map(one).collect()
}

struct Case<'a> {
    name: &'a str,
    deliveries: &'a [EncodedBatch],
    /// Each delivery comes again, half of it together with the next ones: every row must be looked at.
    redeliver: bool,
    config: fn(&mut Config),
}

struct Measured {
    cpu_ns_per_row: f64,
    rows_per_second: f64,
    file_bytes_per_row: f64,
    files: u64,
}

fn run(case: &Case<'_>) -> Measured {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder is writable");
    let mut config = Config::new(folder.path().to_path_buf(), "bench".to_owned(), 1);
    (case.config)(&mut config);
    let mut roller = Roller::open(config, BTreeMap::new()).expect("an empty folder");
    let (started, before) = (Instant::now(), Usage::now().cpu_seconds);
    let mut closed = Vec::new();
    for (sequence, batch) in case.deliveries.iter().enumerate() {
        let mut batches = vec![batch.clone()];
        if case.redeliver && sequence > 0 {
            let previous = &case.deliveries[sequence - 1];
            let coverage = [previous.coverage.clone(), batch.coverage.clone()].concat();
            batches = vec![EncodedBatch {
                batches: [previous.batches.clone(), batch.batches.clone()].concat(),
                coverage,
                ..batch.clone()
            }];
        }
        for batch in batches {
            let id = DeliveryId { session: 1, sequence: sequence as u64 };
            closed.extend(roller.admit(Received { id, batch }, 1).expect("accepted").closed);
        }
    }
    closed.extend(roller.flush().expect("flushed"));
    let (elapsed, cpu_seconds) = (started.elapsed(), Usage::now().cpu_seconds - before);
    let stats = roller.stats();
    let rows = stats.rows as f64;
    Measured {
        cpu_ns_per_row: cpu_seconds * 1e9 / rows,
        rows_per_second: rows / elapsed.as_secs_f64(),
        file_bytes_per_row: stats.file_bytes as f64 / rows,
        files: stats.files,
    }
}

fn main() {
    let rows = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(300_000);
    println!(
        "{:<34} {:>9} {:>10} {:>9} {:>9} {:>11} {:>6}",
        "case", "Arrow B", "CPU ns/row", "rows/s", "MB/s", "file B/row", "files"
    );
    for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
        let plain = deliveries(signal, rows);
        let (three_days, thirty_days) = (spread(&plain, 3), spread(&plain, 30));
        let case = |name, deliveries| Case { name, deliveries, redeliver: false, config: |_| {} };
        let mut cases = vec![case("plain", &plain[..])];
        if signal == Signal::Traces {
            cases.push(case("3 days, interleaved", &three_days));
            cases.push(case("30 days, interleaved", &thirty_days));
            cases.push(Case { redeliver: true, ..case("every row delivered twice", &plain) });
            cases.push(Case { config: |config| config.bloom_filters = false, ..case("no bloom filter", &plain) });
            cases.push(Case { config: |config| config.row_group_rows_max = 10_000, ..case("row groups of 10,000", &plain) });
            cases.push(Case { config: |config| config.file_bytes_max = 1 << 20, ..case("files of 1 MiB", &plain) });
        }
        let arrow_bytes: usize =
            plain.iter().flat_map(|delivery| &delivery.batches).map(|batch| batch.get_array_memory_size()).sum();
        let arrow_bytes = arrow_bytes as f64 / plain.iter().map(EncodedBatch::rows).sum::<usize>() as f64;
        for case in cases {
            let runs: Vec<Measured> = (0..RUNS).map(|_| run(&case)).collect();
            let best = runs
                .into_iter()
                .min_by(|left, right| left.cpu_ns_per_row.total_cmp(&right.cpu_ns_per_row))
                .expect("at least one run");
            println!(
                "{:<34} {:>9.0} {:>10.0} {:>9.0} {:>9.0} {:>11.1} {:>6}",
                format!("{signal}: {}", case.name),
                arrow_bytes,
                best.cpu_ns_per_row,
                best.rows_per_second,
                best.rows_per_second * arrow_bytes / 1e6,
                best.file_bytes_per_row,
                best.files,
            );
        }
    }
}
