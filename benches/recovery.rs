//! Question: how fast is a log read at a start, compared with reading the same files in one go?
//!
//! In one run, over the same segments, each time after the page cache has given them up: a bare sequential read, opening the log (every
//! frame walked and verified), replaying it (every frame decoded), and reading its copy in the long-term log. Compare the
//! ratios; the figures themselves belong to the machine and the hour. Run with `cargo bench --bench recovery [-- MiB]` (1024 by
//! default). It writes to a folder beside the sources, which it removes.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openwit_operators::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span};
use openwit_operators::budget::Charge;
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::object_upload::ObjectStore;
use openwit_operators::wal_commit::long_term::read::{Frames, Selection};
use openwit_operators::wal_commit::long_term::shelf::Store;
use openwit_operators::wal_commit::{Config, Log, Writer, long_term};

/// A span as OTLP protobuf, the smallest usual payload and so the dearest for a log.
const PAYLOAD_BYTES: usize = 344;
const RECORDS: usize = 1_000;
const ROUNDS: usize = 5;

/// Payloads that compress about as spans do: ids are random, the rest repeats.
fn batch(start: i64) -> NormalizedBatch {
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
    let mut random = start as u64 | 1;
    let byte = |byte: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if byte % PAYLOAD_BYTES < 32 { random as u8 } else { b'a' + (byte % PAYLOAD_BYTES % 26) as u8 }
    };
    NormalizedBatch {
        group: Group { index: "shop".into(), signal: Signal::Traces },
        coverage: Coverage::stored(partition, start..start + RECORDS as i64),
        raw: (0..RECORDS * PAYLOAD_BYTES).map(byte).collect::<Vec<_>>().into(),
        written: Vec::new().into(),
        records: (0..RECORDS).map(record).collect(),
        schema: None,
        tenants: Vec::new(),
        charge: Charge::default(),
    }
}

fn config(directory: &Path) -> Config {
    let long_term = long_term::Config {
        store: ObjectStore::Fs { root: directory.join("long") },
        node: "bench".into(),
        compression_level: 1,
        cleanup: None,
    };
    Config { bytes_max: 1 << 40, segment_bytes: 64 << 20, long_term: Some(long_term), ..Config::new(directory.join("short")) }
}

/// Fills the log and returns the bytes of payload.
fn fill(directory: &Path, mib: u64) -> u64 {
    let (mut log, _) = Log::open(config(directory), Epoch(1_790_000_000_000)).expect("the log opens");
    let mut number = 0;
    while log.stats().payload_bytes < mib << 20 {
        log.append(Epoch(1_790_000_000_000 + number), &batch(number as i64 * RECORDS as i64)).expect("there is space");
        log.save_keys().expect("there is space");
        number += 1;
    }
    log.sync().expect("the disk works");
    log.stats().payload_bytes
}

/// Lets the log's own thread copy the segments, and returns how long that took.
fn copy(directory: &Path) -> Duration {
    let (log, _) = Log::open(config(directory), Epoch(1_790_000_900_000)).expect("the log opens");
    let begin = Instant::now();
    let writer = Writer::spawn(log, Health::default()).expect("threads start");
    while writer.stats().segments_uncopied > 0 || writer.stats().long_term.copied == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let elapsed = begin.elapsed();
    let stats = writer.stats().long_term;
    println!("copies take {:.3} of the frames' bytes", stats.stored_bytes as f64 / stats.frame_bytes as f64);
    writer.shutdown();
    elapsed
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Has the page cache give the files up: what comes is read from the disk.
fn forget(folder: &Path) {
    for path in files(folder) {
        let file = File::open(path).expect("the file is there");
        file.sync_all().expect("the disk works");
        // SAFETY: the descriptor is open for as long as the call lasts.
        let forgotten = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(forgotten, 0, "the page cache gives the file up");
    }
}

fn read_bare(folder: &Path) -> u64 {
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    for path in files(folder).iter().filter(|path| path.extension().is_some_and(|extension| extension == "wal")) {
        let mut file = File::open(path).expect("the file is there");
        loop {
            match file.read(&mut buffer).expect("the disk works") {
                0 => break,
                read => bytes += read as u64,
            }
        }
    }
    bytes
}

fn measure(folder: &Path, bytes: u64, run: impl Fn()) -> f64 {
    forget(folder);
    let begin = Instant::now();
    run();
    bytes as f64 / begin.elapsed().as_secs_f64() / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mib = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_024u64);
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("the sources' folder is writable");
    let directory = directory.path();
    let (short, long) = (directory.join("short"), directory.join("long"));
    let payload_bytes = fill(directory, mib);
    let copied = copy(directory);
    println!("copying: {:.0} MB/s of payload, on one thread", payload_bytes as f64 / copied.as_secs_f64() / 1e6);
    let bytes = read_bare(&short);
    let open = || Log::open(config(directory), Epoch(1_790_001_000_000)).expect("the log opens");
    let store: Arc<Store> = Arc::new(Store::read_only(&long).expect("the folder opens"));
    let (mut rates, mut ratios) = (vec![vec![]; 4], vec![vec![]; 4]);
    for _ in 0..ROUNDS {
        let bare = measure(&short, bytes, || assert_eq!(read_bare(&short), bytes));
        let opened = measure(&short, bytes, || drop(open()));
        let recovery = open().1;
        let replayed = measure(&short, bytes, || assert!(recovery.frames().map(Result::unwrap).count() > 0));
        let long_term = measure(&long, bytes, || {
            let frames = Frames::open(store.clone(), Selection::default()).expect("the folder is read");
            assert!(frames.map(Result::unwrap).count() > 0);
        });
        for (column, rate) in [bare, opened, replayed, long_term].into_iter().enumerate() {
            rates[column].push(rate);
            ratios[column].push(rate / bare);
        }
    }
    println!("{mib} MiB of payload in segments of 64 MiB; MB/s of segments, median of {ROUNDS} rounds; ratio to the bare read");
    for (column, name) in
        ["bare sequential read", "open: walk and verify", "replay: decode", "long-term: decode"].iter().enumerate()
    {
        println!("{name:>24} {:>8.0} ({:.2})", median(rates[column].clone()), median(ratios[column].clone()));
    }
}
