//! Question: how much of what the disk gives does the write-ahead log reach, when every group is synced; and how long does one
//! append wait for its ack at half of the rate that the log can take?
//!
//! In one run, with the same bytes per sync: a bare loop of write (1 MiB at once) and fdatasync over a file whose blocks were written
//! before (all the disk can do), the log's core, the log with its threads and dedup keys, and the core without direct I/O. Compare the
//! ratios; the figures themselves belong to the machine and the hour. *written* is what went to the disk, key files included, for each
//! byte of payload. Run with `cargo bench --bench wal [-- MiB_PER_ROUND]` (512 by default). It writes to a folder beside the
//! sources, which it removes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openwit_operators::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span};
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::wal_commit::{Config, Job, Log, Logged, Sync, Writer};

/// A span as OTLP protobuf, the smallest usual payload and so the dearest for a log.
const PAYLOAD_BYTES: usize = 344;
const BLOCK: usize = 4096;
const ROUNDS: usize = 3;
/// What the bare loop writes from: more than a processor caches.
const SOURCE_BYTES: usize = 64 << 20;
/// A way that is slow on this machine is cut off, its rate being known by then.
const ROUND_MAX: Duration = Duration::from_secs(5);
/// Jobs at the writer at any time, as from a few workers.
const JOBS_IN_FLIGHT: u64 = 4;
/// What a job of the latency part holds: what a few partitions bring in one epoch of 20 ms at 10 MB/s.
const LATENCY_JOB_BYTES: usize = 256 << 10;
/// How long each latency is measured: a few hundred jobs at least.
const LATENCY_ROUND: Duration = Duration::from_secs(4);

fn batch(start: i64, records: usize) -> NormalizedBatch {
    let topic = TopicKey { cluster: "cluster".into(), name: "traces.shop".into(), id: "id".into() };
    let partition = PartitionKey { topic: Arc::new(topic), partition: 3 };
    let record = |index: usize| Record {
        offset: start + index as i64,
        timestamp_ms: 1_790_000_000_000 + index as i64,
        key: (start as u128 + index as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835),
        arena: Arena::Raw,
        payload: Span { start: (index * PAYLOAD_BYTES) as u32, len: PAYLOAD_BYTES as u32 },
        tenant: 0,
    };
    NormalizedBatch {
        group: Group { index: "shop".into(), signal: Signal::Traces },
        coverage: Coverage::stored(partition, start..start + records as i64),
        raw: (0..records * PAYLOAD_BYTES).map(|byte| ((byte * 31) >> 3) as u8).collect::<Vec<_>>().into(),
        written: Vec::new().into(),
        records: (0..records).map(record).collect(),
        schema: None,
        tenants: Vec::new(),
        charge: Default::default(),
    }
}

/// What one way did: bytes of payload (for the bare loop, of the file) and how long it took.
struct Run {
    bytes: u64,
    elapsed: Duration,
}

impl Run {
    fn mb_per_s(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64() / 1e6
    }
}

fn open_raw(path: &Path, direct: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path).expect("the bench's folder is writable")
}

/// Writes and syncs `group` bytes again and again over a file that was written before. The bytes come from ever other memory, as those
/// of a log do: what stays in the processor's cache is written faster than anything real.
fn raw(directory: &Path, direct: bool, group: usize, total: u64) -> Run {
    const FILE_BYTES: u64 = 128 << 20;
    let file = open_raw(&directory.join("raw"), direct);
    let storage: Vec<u8> = (0..SOURCE_BYTES + group + BLOCK).map(|byte| ((byte * 31) >> 3) as u8).collect();
    let start = storage.as_ptr().addr().next_multiple_of(BLOCK) - storage.as_ptr().addr();
    if file.metadata().expect("the file is open").len() < FILE_BYTES {
        for at in 0..FILE_BYTES >> 20 {
            file.write_all_at(&storage[start..start + (1 << 20)], at << 20).expect("there is space");
        }
        file.sync_all().expect("the disk works");
    }
    let (begin, mut bytes, mut at) = (Instant::now(), 0, 0);
    while bytes < total && begin.elapsed() < ROUND_MAX {
        if at + group as u64 > FILE_BYTES {
            at = 0;
        }
        let from = start + bytes as usize % SOURCE_BYTES;
        for (index, part) in storage[from..from + group].chunks(1 << 20).enumerate() {
            file.write_all_at(part, at + ((index as u64) << 20)).expect("there is space");
        }
        file.sync_data().expect("the disk works");
        (bytes, at) = (bytes + group as u64, at + group as u64);
    }
    Run { bytes, elapsed: begin.elapsed() }
}

fn config(directory: &Path, name: &str) -> Config {
    Config { segment_bytes: 64 << 20, bytes_max: 512 << 20, ..Config::new(directory.join(name)) }
}

/// Opens the log with free segments only: what comes is the steady state.
fn warm(config: Config) -> Log {
    let (mut log, _) = Log::open(config, Epoch(1)).expect("the log opens");
    let filler = batch(0, 3_000);
    let mut epoch = 2;
    while log.stats().segments_reused < 2 {
        log.append(Epoch(epoch), &filler).expect("there is space");
        log.save_keys().expect("there is space");
        log.sync().expect("the disk works");
        epoch += 1;
        log.release(Epoch(epoch)).expect("the log works");
    }
    log
}

/// Appends, syncs and releases one batch of about `group` bytes again and again, on this thread, without dedup keys.
fn core(directory: &Path, direct_io: bool, group: usize, total: u64) -> (Run, bool) {
    let name = if direct_io { "core" } else { "buffered" };
    let mut log = warm(Config { direct_io, keys_retention_ms: 0, ..config(directory, name) });
    let batch = batch(0, group / (PAYLOAD_BYTES + 20));
    let (begin, mut bytes, mut epoch) = (Instant::now(), 0, 1_000_000);
    while bytes < total && begin.elapsed() < ROUND_MAX {
        log.append(Epoch(epoch), &batch).expect("there is space");
        log.sync().expect("the disk works");
        log.release(Epoch(epoch)).expect("the log works");
        (bytes, epoch) = (bytes + batch.payload_bytes() as u64, epoch + 1);
    }
    (Run { bytes, elapsed: begin.elapsed() }, log.stats().direct_io)
}

/// How the log with its threads did.
struct Threaded {
    run: Run,
    frames_per_sync: f64,
    /// Bytes written for each byte of payload.
    written: f64,
}

/// The same through the threads, with dedup keys and a few jobs in flight, of which those queued share a sync.
fn threads(directory: &Path, sync: Sync, group: usize, total: u64) -> Threaded {
    let writer = Writer::spawn(warm(Config { sync, ..config(directory, "threads") }), Health::default()).expect("threads start");
    let port = writer.port(|| {});
    let before = writer.stats();
    let batch = batch(0, group / (PAYLOAD_BYTES + 20));
    let (begin, mut bytes, mut ticket) = (Instant::now(), 0, 0u64);
    let mut waiting = 0;
    let mut spare: Vec<Logged> = (0..JOBS_IN_FLIGHT).map(|_| batch.clone().into()).collect();
    while bytes < total && begin.elapsed() < ROUND_MAX {
        while let Some(batch) = spare.pop() {
            port.append(Job { ticket, batches: vec![(Epoch(1_000_000 + ticket), batch)] });
            (ticket, waiting) = (ticket + 1, waiting + 1);
        }
        let ack = port.receiver().recv().expect("the writer runs");
        waiting -= 1;
        writer.release(Epoch(1_000_000 + ack.ticket));
        bytes += ack.appended.iter().map(|appended| appended.batch.by_ref().payload_bytes()).sum::<u64>();
        spare.extend(ack.appended.into_iter().map(|appended| appended.batch));
    }
    let elapsed = begin.elapsed();
    for _ in 0..waiting {
        port.receiver().recv().expect("the writer runs");
    }
    let after = writer.stats();
    let frames_per_sync = (after.frames - before.frames) as f64 / (after.syncs - before.syncs).max(1) as f64;
    let written = after.written_bytes + after.keys_written_bytes - before.written_bytes - before.keys_written_bytes;
    let written = written as f64 / (after.payload_bytes - before.payload_bytes) as f64;
    Threaded { run: Run { bytes, elapsed }, frames_per_sync, written }
}

/// Appends one job at a time at `bytes_per_s`, whether or not earlier ones are acknowledged, and returns how long each took from when it
/// was due to its ack, in milliseconds, sorted. From when it was due: a log that stands still must not slow down its own load.
fn latencies(directory: &Path, sync: Sync, bytes_per_s: f64) -> Vec<f64> {
    let writer = Writer::spawn(warm(Config { sync, ..config(directory, "threads") }), Health::default()).expect("threads start");
    let port = writer.port(|| {});
    let batch = batch(0, LATENCY_JOB_BYTES / (PAYLOAD_BYTES + 20));
    let interval = Duration::from_secs_f64(batch.payload_bytes() as f64 / bytes_per_s);
    let jobs = (LATENCY_ROUND.as_secs_f64() / interval.as_secs_f64()) as u32;
    let begin = Instant::now();
    let (mut sent, mut taken) = (0u32, Vec::new());
    while (taken.len() as u32) < jobs {
        let due = begin + interval * sent;
        if sent < jobs && Instant::now() >= due {
            port.append(Job { ticket: sent.into(), batches: vec![(Epoch(1_000_000 + u64::from(sent)), batch.clone().into())] });
            sent += 1;
            continue;
        }
        let wait = if sent < jobs { due.saturating_duration_since(Instant::now()) } else { ROUND_MAX };
        if let Ok(ack) = port.receiver().recv_timeout(wait) {
            taken.push((begin + interval * ack.ticket as u32).elapsed().as_secs_f64() * 1e3);
            writer.release(Epoch(1_000_000 + ack.ticket));
        }
    }
    taken.sort_by(f64::total_cmp);
    taken
}

fn print_latencies(directory: &Path, mib: u64) {
    println!(
        "\nappend to ack at half of the rate the log takes, jobs of {} KiB, best of {ROUNDS} rounds by p99",
        LATENCY_JOB_BYTES >> 10
    );
    println!("{:>24} {:>10} {:>10} {:>10} {:>10}", "sync_on_write", "MB/s", "p50 ms", "p99 ms", "max ms");
    for (name, sync) in [("true", Sync::OnWrite), ("false, every 100 ms", Sync::Every(Duration::from_millis(100)))] {
        let half = threads(directory, sync, LATENCY_JOB_BYTES, mib << 20).run.mb_per_s() / 2.0;
        let rounds = (0..ROUNDS).map(|_| latencies(directory, sync, half * 1e6));
        let at = |sorted: &[f64], part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
        let best = rounds.min_by(|one, other| at(one, 0.99).total_cmp(&at(other, 0.99))).unwrap_or_default();
        println!("{name:>24} {half:>10.0} {:>10.2} {:>10.2} {:>10.2}", at(&best, 0.5), at(&best, 0.99), at(&best, 1.0));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mib = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(512u64);
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("the sources' folder is writable");
    let directory = directory.path();
    let (_, direct) = core(directory, true, 1 << 20, 16 << 20);
    println!(
        "direct I/O: {direct}; records of {PAYLOAD_BYTES} B; MB/s of payload, median of {ROUNDS} rounds; ratio to the bare loop"
    );
    println!(
        "{:>9} {:>10} {:>16} {:>30} {:>16} {:>8}",
        "per sync", "bare loop", "core", "threads, keys, 4 in flight", "core, buffered", "written"
    );
    for group in [64 << 10, 256 << 10, 1 << 20, 4 << 20] {
        let (mut rates, mut ratios) = (vec![vec![]; 4], vec![vec![]; 4]);
        let (mut shared, mut written) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            let bare = raw(directory, direct, group, mib << 20).mb_per_s();
            let threaded = threads(directory, Sync::OnWrite, group, mib << 20);
            (shared, written) = (threaded.frames_per_sync, threaded.written);
            let threaded = threaded.run;
            let others = [core(directory, true, group, mib << 20).0, threaded, core(directory, false, group, mib << 20).0];
            for (column, rate) in std::iter::once(bare).chain(others.iter().map(Run::mb_per_s)).enumerate() {
                rates[column].push(rate);
                ratios[column].push(rate / bare);
            }
        }
        let cell = |column: usize| {
            let (rate, ratio) = (median(rates[column].clone()), median(ratios[column].clone()));
            format!("{rate:.0} ({ratio:.2}) {:.1} M/s", rate / PAYLOAD_BYTES as f64)
        };
        let per_sync = format!("{} KiB", group >> 10);
        let threaded = format!("{}, {shared:.1}/sync", cell(1 + 1));
        println!(
            "{per_sync:>9} {:>10.0} {:>16} {threaded:>30} {:>16} {written:>8.3}",
            median(rates[0].clone()),
            cell(1),
            cell(3)
        );
    }
    print_latencies(directory, mib);
}
