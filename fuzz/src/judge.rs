//! What no input may do, whatever the decoder: take memory without bound, or far longer than a normal message of its length.
//!
//! ```text
//! memory   most bytes held during a stage <= what the stage holds anyway + its factor x the size of what it is given
//! time     processor time of a stage <= 100 x that of a normal message of that size, the least of several tries
//! ```
//! Time is that of this process on its processors, so that a loaded machine makes nothing slower; threads that a decoder starts count.
//! An input that seems slow is tried again and again: once is a page fault, or a neighbour on the same core.

use std::collections::BTreeMap;
use std::time::Duration;

use super::memory::peak_of;
use super::{Body, Target};

/// How much longer than a normal message one may take.
const SLOWER_MAX: f64 = 100.0;
/// Times a normal message is measured; the median counts.
const NORMAL_RUNS: usize = 15;
/// Times an input is tried again before it counts as slow.
const SLOW_RUNS: usize = 5;

/// Part of a decoder's work that is measured by itself.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// Bytes it may hold whatever it is given.
    pub bytes: usize,
    /// Bytes it may hold for each byte it is given.
    pub bytes_per_byte: usize,
}

/// One stage of one run.
#[derive(Clone, Copy, Debug)]
struct Measured {
    stage: &'static Stage,
    size: usize,
    time: Duration,
    peak_bytes: usize,
}

/// Measures the stages of one run.
#[derive(Default)]
pub struct Meter(Vec<Measured>);

impl Meter {
    /// Runs `work`, which is given `size` bytes, as `stage`.
    pub fn measure<T>(&mut self, stage: &'static Stage, size: usize, work: impl FnOnce() -> T) -> T {
        let ((result, time), peak_bytes) = peak_of(|| {
            let start = processor_time();
            let result = work();
            (result, processor_time().saturating_sub(start))
        });
        self.0.push(Measured { stage, size, time, peak_bytes });
        result
    }
}

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time`, which outlives it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "the system has a clock for processor time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What normal messages of some size cost in a stage, by size.
#[derive(Default)]
struct Normal(BTreeMap<usize, Duration>);

impl Normal {
    /// What one of `size` bytes costs: as the smallest, in proportion between two, in proportion to the largest.
    fn time(&self, size: usize) -> Duration {
        let below = self.0.range(..=size).next_back();
        let above = self.0.range(size..).next();
        match (below, above) {
            (None, None) => Duration::MAX,
            (None, Some((_, time))) => *time,
            (Some((known, time)), None) => time.mul_f64(size as f64 / (*known).max(1) as f64),
            (Some((low, low_time)), Some((high, high_time))) if low < high => {
                let share = (size - low) as f64 / (high - low) as f64;
                low_time.mul_f64(1.0 - share) + high_time.mul_f64(share)
            }
            (Some((_, time)), Some(_)) => *time,
        }
    }
}

/// The worst there was of a stage.
#[derive(Default)]
struct Worst {
    slower: f64,
    peak_bytes: usize,
}

/// Gives inputs to a target and judges what they do.
pub struct Judge {
    target: &'static Target,
    body: Box<dyn Body>,
    normal: BTreeMap<&'static Stage, Normal>,
    worst: BTreeMap<&'static Stage, Worst>,
    /// True if the worst is told as it comes.
    is_telling: bool,
}

impl Judge {
    /// A judge of `target`, which has seen what normal messages cost.
    pub fn new(target: &'static Target, is_telling: bool) -> Self {
        let mut judge = Judge { target, body: (target.open)(), normal: BTreeMap::new(), worst: BTreeMap::new(), is_telling };
        let inputs = (target.normal)();
        let mut times: BTreeMap<(&'static Stage, usize), Vec<Duration>> = BTreeMap::new();
        for _ in 0..NORMAL_RUNS {
            for measured in inputs.iter().flat_map(|input| judge.run(input)) {
                times.entry((measured.stage, measured.size)).or_default().push(measured.time);
            }
        }
        for ((stage, size), mut times) in times {
            times.sort();
            judge.normal.entry(stage).or_default().0.insert(size, times[times.len() / 2].max(Duration::from_micros(1)));
        }
        judge
    }

    fn run(&mut self, input: &[u8]) -> Vec<Measured> {
        let mut meter = Meter::default();
        self.body.run(input, &mut meter);
        meter.0
    }

    /// Runs the target on `input`.
    ///
    /// # Panics
    /// If the target does, or if the input takes too much memory or time.
    pub fn judge(&mut self, input: &[u8]) {
        if input.len() > self.target.len_max {
            return;
        }
        let measured = self.run(input);
        for (position, measured) in measured.iter().enumerate() {
            let Measured { stage, size, time, peak_bytes } = *measured;
            let bytes_max = stage.bytes + stage.bytes_per_byte * size;
            let name = stage.name;
            assert!(
                peak_bytes <= bytes_max,
                "{name}: {peak_bytes} bytes of memory for {size} bytes, at most {bytes_max} are allowed"
            );
            let normal = self.normal.get(stage).map_or(Duration::MAX, |normal| normal.time(size));
            let slower = |time: Duration| time.as_secs_f64() / normal.as_secs_f64();
            let worst = self.worst.entry(stage).or_default();
            let (is_slow, is_large) = (slower(time) > worst.slower * 1.1, peak_bytes > worst.peak_bytes + worst.peak_bytes / 10);
            if !is_slow && !is_large {
                continue;
            }
            let mut least = time;
            for _ in 0..if is_slow { SLOW_RUNS } else { 0 } {
                least = self.run(input).get(position).map_or(least, |again| again.time.min(least));
            }
            let ratio = slower(least);
            assert!(
                ratio <= SLOWER_MAX,
                "{name}: {least:?} for {size} bytes, {ratio:.0} times as long as a normal message ({normal:?})"
            );
            let worst = self.worst.entry(stage).or_default();
            worst.slower = worst.slower.max(ratio);
            worst.peak_bytes = worst.peak_bytes.max(peak_bytes);
            if self.is_telling {
                eprintln!("worst of {name}: {:.1} times a normal message, {} bytes of memory", worst.slower, worst.peak_bytes);
            }
        }
    }
}
