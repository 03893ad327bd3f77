//! Question: what do a key's verdict and its memory cost in the window, against a hash map of two generations and the usual map with a queue?
//!
//! All structures answer the same stream in one run, so their ratios can be compared; the figures themselves belong to the machine.
//! The stream is in its steady state: N keys in the window, 5 % duplicates, batches of an epoch (20 ms of a 60 s window).
//! Run with `cargo bench --bench dedup [-- MILLIONS_OF_KEYS..]` (1 and 10 by default). It writes no file.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use hashbrown::HashMap;
use openwit_operators::coverage::{PartitionKey, TopicKey};
use openwit_operators::dedup_window::window::{Config, PartitionIndex, Partitions, Progress, Sighting, Window};

const WINDOW_MS: u64 = 60_000;
const EPOCH_MS: u64 = 20;
const START_MS: u64 = 1_700_000_000_000;

/// A structure under test: decides one epoch's sightings and returns how many were duplicates.
trait Subject {
    fn epoch(&mut self, epoch_ms: u64, sightings: &[Sighting]) -> usize;
}

struct Ours {
    window: Window,
    verdicts: Vec<bool>,
}

impl Subject for Ours {
    fn epoch(&mut self, epoch_ms: u64, sightings: &[Sighting]) -> usize {
        if let Some(progress) = Progress::of(epoch_ms, sightings.iter().map(|sighting| sighting.time_ms)) {
            self.window.advance(progress);
        }
        self.window.observe(sightings, &mut self.verdicts);
        self.verdicts.iter().filter(|&&is_duplicate| is_duplicate).count()
    }
}

/// What a winner needs: its record time and offset; the partition is packed into the time.
type Winner = (u64, i64);

/// Takes the key's own bits for its hash, as our table does.
#[derive(Clone, Copy, Default)]
struct KeyBits;

#[derive(Default)]
struct KeyHasher(u64);

impl BuildHasher for KeyBits {
    type Hasher = KeyHasher;
    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(0)
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, &byte| hash.rotate_left(8) ^ u64::from(byte));
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = (key >> 64) as u64;
    }
}

/// hashbrown, two presized generations of a window each.
struct TwoGenerations {
    previous: HashMap<u128, Winner, KeyBits>,
    current: HashMap<u128, Winner, KeyBits>,
    opened_ms: u64,
}

impl TwoGenerations {
    fn new(keys: usize) -> Self {
        let map = || HashMap::with_capacity_and_hasher(keys + keys / 50, KeyBits);
        TwoGenerations { previous: map(), current: map(), opened_ms: START_MS }
    }
}

impl Subject for TwoGenerations {
    fn epoch(&mut self, epoch_ms: u64, sightings: &[Sighting]) -> usize {
        if epoch_ms >= self.opened_ms + WINDOW_MS {
            std::mem::swap(&mut self.previous, &mut self.current);
            self.current.clear();
            self.opened_ms = epoch_ms;
        }
        let is_near = |winner: &Winner, sighting: &Sighting| winner.0.abs_diff(sighting.time_ms as u64) <= WINDOW_MS;
        let mut duplicates = 0;
        for sighting in sightings {
            let found = self.current.get(&sighting.key).or_else(|| self.previous.get(&sighting.key));
            if found.is_some_and(|winner| is_near(winner, sighting)) {
                duplicates += 1;
            } else {
                self.current.insert(sighting.key, (sighting.time_ms as u64, sighting.offset));
            }
        }
        duplicates
    }
}

/// The usual way: one growing map with std's hash function, and a queue to expire from.
#[derive(Default)]
struct MapAndQueue {
    map: HashMap<u128, Winner, BuildHasherDefault<DefaultHasher>>,
    queue: VecDeque<(u64, u128)>,
}

impl Subject for MapAndQueue {
    fn epoch(&mut self, epoch_ms: u64, sightings: &[Sighting]) -> usize {
        while self.queue.front().is_some_and(|&(time_ms, _)| time_ms + WINDOW_MS < epoch_ms) {
            if let Some((_, key)) = self.queue.pop_front() {
                self.map.remove(&key);
            }
        }
        let mut duplicates = 0;
        for sighting in sightings {
            if self.map.contains_key(&sighting.key) {
                duplicates += 1;
            } else {
                self.map.insert(sighting.key, (sighting.time_ms as u64, sighting.offset));
                self.queue.push_back((sighting.time_ms as u64, sighting.key));
            }
        }
        duplicates
    }
}

fn mix(number: u64) -> u64 {
    let x = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The stream: each epoch the same number of records, one in twenty a repetition from the last half window.
struct Stream {
    per_epoch: u64,
    next: u64,
    offset: i64,
    partition: PartitionIndex,
}

impl Stream {
    fn epoch(&mut self, epoch_ms: u64, sightings: &mut Vec<Sighting>) {
        sightings.clear();
        let half_window = self.per_epoch * WINDOW_MS / EPOCH_MS / 2;
        for _ in 0..self.per_epoch {
            self.offset += 1;
            let dice = mix(self.offset as u64 ^ 0xD1CE);
            let back = 1 + (dice >> 8) % half_window;
            let number = if dice.is_multiple_of(20) && back <= self.next { self.next - back } else { self.next };
            self.next += u64::from(number == self.next);
            let key = u128::from(mix(number)) << 64 | u128::from(mix(number ^ 0xABCD_0000_0000));
            sightings.push(Sighting { key, time_ms: epoch_ms as i64, partition: self.partition, offset: self.offset });
        }
    }
}

struct Outcome {
    fill_ns: f64,
    steady_ns: f64,
    bytes_per_key: f64,
    pause_max_ms: f64,
    duplicates: usize,
}

/// Seconds of processor time of this thread: other processes disturb it less than they do a clock.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0
}

fn run(keys: u64, partition: PartitionIndex, make: impl FnOnce() -> Box<dyn Subject>) -> Outcome {
    let epochs = WINDOW_MS / EPOCH_MS;
    let mut stream = Stream { per_epoch: keys.div_ceil(epochs), next: 0, offset: 0, partition };
    let mut sightings = Vec::with_capacity(stream.per_epoch as usize);
    let resident_before = resident_bytes();
    let mut subject = make();
    let mut outcome = Outcome { fill_ns: 0.0, steady_ns: 0.0, bytes_per_key: 0.0, pause_max_ms: 0.0, duplicates: 0 };
    for (windows, spent) in [(2, &mut outcome.fill_ns), (2, &mut outcome.steady_ns)] {
        let mut records = 0;
        for _ in 0..windows * epochs {
            let epoch_ms = START_MS + stream.offset as u64 / stream.per_epoch * EPOCH_MS;
            stream.epoch(epoch_ms, &mut sightings);
            let (cpu, wall) = (cpu_seconds(), Instant::now());
            outcome.duplicates += subject.epoch(epoch_ms, &sightings);
            *spent += cpu_seconds() - cpu;
            outcome.pause_max_ms = outcome.pause_max_ms.max(wall.elapsed().as_secs_f64() * 1e3);
            records += stream.per_epoch;
        }
        *spent *= 1e9 / records as f64;
    }
    outcome.bytes_per_key = (resident_bytes() - resident_before) / (keys as f64 * 0.95);
    outcome
}

fn main() {
    let millions: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let millions = if millions.is_empty() { vec![1, 10] } else { millions };
    let topic = TopicKey { cluster: "bench".into(), name: "bench".into(), id: "".into() };
    let key = PartitionKey { topic: Arc::new(topic), partition: 0 };
    let partition = Partitions::default().index(&key).expect("one partition fits");
    for keys in millions.into_iter().map(|millions| millions * 1_000_000) {
        println!(
            "{keys} keys in the window; CPU ns per record, resident bytes per key in the window, longest epoch in ms of wall time"
        );
        let config = Config { window_ms: WINDOW_MS, bytes_max: keys as usize * 100 };
        let ours = run(keys, partition, || Box::new(Ours { window: Window::new(config), verdicts: Vec::new() }));
        let presized = run(keys, partition, || Box::new(TwoGenerations::new(keys as usize)));
        let usual = run(keys, partition, || Box::new(MapAndQueue::default()));
        for (name, outcome) in [("window", &ours), ("hashbrown x2", &presized), ("map and queue", &usual)] {
            println!(
                "  {name:<14} fill {:6.1} ns  steady {:6.1} ns ({:4.2} x)  {:6.1} B/key ({:4.2} x)  pause {:7.2} ms  duplicates {}",
                outcome.fill_ns,
                outcome.steady_ns,
                outcome.steady_ns / ours.steady_ns,
                outcome.bytes_per_key,
                outcome.bytes_per_key / ours.bytes_per_key,
                outcome.pause_max_ms,
                outcome.duplicates,
            );
        }
        assert_eq!((ours.duplicates, ours.duplicates), (presized.duplicates, usual.duplicates), "all must decide alike");
    }
}
