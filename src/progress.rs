//! Live progress of `demo`, `run --until-end` and `replay`, on stderr: a bar on a terminal, else one plain line every few seconds.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar moves: smooth to the eye, unnoticeable in load.
const BAR_INTERVAL: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal: a log stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is counted in `consumed` and `total`.
    pub unit: Unit,
    /// Messages read from Kafka.
    pub consumed: u64,
    /// Messages to be read until the end; 0 while unknown.
    pub total: u64,
    /// Bytes read from Kafka.
    pub bytes: u64,
    /// Records decoded (spans, log records, data points).
    pub records: u64,
    /// Rows in published files.
    pub rows_published: u64,
    /// Messages in Kafka not yet read.
    pub lag: u64,
    /// Partitions that are paused alone.
    pub paused: usize,
    /// How far stages that keep something are behind the source, in graph order.
    pub stage_lag_ms: Vec<(String, u64)>,
}

/// What a run goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Messages of Kafka.
    #[default]
    Messages,
    /// MiB of a log or a capture.
    Mebibytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Messages => "messages",
            Unit::Mebibytes => "MiB",
        }
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A bar that redraws itself.
    Bar,
    /// A line every few seconds.
    Lines,
    /// Nothing.
    Silent,
}

impl Mode {
    /// A bar on a terminal, else lines.
    pub fn of_stderr() -> Self {
        if std::io::stderr().is_terminal() { Mode::Bar } else { Mode::Lines }
    }
}

/// Progress being shown by a thread of its own, until finished or dropped.
pub struct Progress {
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows what `read` tells, until `finish`. Where no thread can be started nothing is shown: a run does not fail for that.
    pub fn start(mode: Mode, read: impl FnMut() -> Reading + Send + 'static) -> Self {
        let (stop, stopped) = channel::<()>();
        let show = move || {
            let mut read = read;
            let mut display = Display::new(mode);
            let interval = if mode == Mode::Bar { BAR_INTERVAL } else { LINE_INTERVAL };
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                display.show(read());
            }
            display.finish(read());
        };
        let thread = match mode {
            Mode::Silent => None,
            Mode::Bar | Mode::Lines => std::thread::Builder::new().name("progress".to_owned()).spawn(show).ok(),
        };
        Progress { stop: Some(stop), thread }
    }

    /// Shows the last reading and ends.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // If that thread panicked it has said so; the run itself is unharmed.
            let _ = thread.join();
        }
    }
}

/// What is on the screen, and what is needed to compute rates.
struct Display {
    bar: Option<ProgressBar>,
    rates: Rates,
}

impl Display {
    fn new(mode: Mode) -> Self {
        let bar = (mode == Mode::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is a constant that a test renders; a plain bar would do as well.
            bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Display { bar, rates: Rates::new(Instant::now()) }
    }

    fn show(&mut self, reading: Reading) {
        let text = describe(&reading, self.rates.advance(&reading, Instant::now()));
        match &self.bar {
            Some(bar) => {
                if reading.total > 0 {
                    bar.set_length(reading.total);
                }
                bar.set_prefix(reading.unit.name());
                bar.set_position(reading.consumed);
                bar.set_message(text);
            }
            None => line(&reading, &text),
        }
    }

    /// The last reading, with the rates of the whole run.
    fn finish(&mut self, reading: Reading) {
        self.rates.rewind();
        self.show(reading);
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

const TEMPLATE: &str = "{elapsed_precise} [{bar:24}] {human_pos}/{human_len} {prefix}  {wide_msg}";

fn line(reading: &Reading, text: &str) {
    let of = if reading.total > 0 { format!("/{}", grouped(reading.total)) } else { String::new() };
    // Whoever closed stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "{}{of} {}  {text}", grouped(reading.consumed), reading.unit.name());
}

/// Records and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    records_per_second: f64,
    mb_per_second: f64,
}

/// Turns counters into rates, over the time between two readings.
struct Rates {
    started: Instant,
    last: Instant,
    records: u64,
    bytes: u64,
}

impl Rates {
    fn new(now: Instant) -> Self {
        Rates { started: now, last: now, records: 0, bytes: 0 }
    }

    /// The rate since the last call.
    fn advance(&mut self, reading: &Reading, now: Instant) -> Rate {
        let seconds = now.saturating_duration_since(self.last).as_secs_f64();
        let per_second = |grown: u64| if seconds > 0.0 { grown as f64 / seconds } else { 0.0 };
        let rate = Rate {
            records_per_second: per_second(reading.records.saturating_sub(self.records)),
            mb_per_second: per_second(reading.bytes.saturating_sub(self.bytes)) / 1e6,
        };
        (self.last, self.records, self.bytes) = (now, reading.records, reading.bytes);
        rate
    }

    /// Makes the next rate one over the whole run.
    fn rewind(&mut self) {
        (self.last, self.records, self.bytes) = (self.started, 0, 0);
    }
}

/// A reading in words, without the position, which the bar shows.
fn describe(reading: &Reading, rate: Rate) -> String {
    let rows = grouped(reading.rows_published);
    let stored = match reading.unit {
        Unit::Messages => format!("{rows} rows published, lag {}", grouped(reading.lag)),
        // A file has an end, and who reads it is not late.
        Unit::Mebibytes => format!("{rows} rows"),
    };
    let per_second = grouped(rate.records_per_second as u64);
    let mut text = format!("{per_second} records/s, {:.1} MB/s, {stored}", rate.mb_per_second);
    if reading.paused > 0 {
        text.push_str(&format!(", {} partitions paused", grouped(reading.paused as u64)));
    }
    for (stage, lag_ms) in &reading.stage_lag_ms {
        let lag = if *lag_ms < 10_000 { format!("{lag_ms} ms") } else { format!("{} s", lag_ms / 1_000) };
        text.push_str(&format!(", {stage} {lag}"));
    }
    text
}

/// A number with a comma at every third digit.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn rates_are_those_since_the_last_reading_and_at_the_end_of_the_whole_run() {
        let start = Instant::now();
        let mut rates = Rates::new(start);
        let reading = |records, bytes| Reading { records, bytes, ..Reading::default() };
        let second = |n| start + Duration::from_secs(n);
        let expected = |records_per_second, mb_per_second| Rate { records_per_second, mb_per_second };
        assert_eq!(rates.advance(&reading(1_000, 4_000_000), second(2)), expected(500.0, 2.0));
        assert_eq!(rates.advance(&reading(1_000, 4_000_000), second(3)), expected(0.0, 0.0));
        assert_eq!(rates.advance(&reading(2_000, 8_000_000), second(3)), expected(0.0, 0.0), "no time passed");
        rates.rewind();
        assert_eq!(rates.advance(&reading(2_000, 8_000_000), second(4)), expected(500.0, 2.0));
    }

    #[test]
    fn reading_is_described_with_rates_rows_and_the_lag_of_each_stage() {
        let stage_lag_ms = vec![("wal_commit".to_owned(), 40), ("flight_sink".to_owned(), 12_345)];
        let reading = Reading { rows_published: 1_234_567, lag: 9, paused: 2, stage_lag_ms, ..Reading::default() };
        let text = describe(&reading, Rate { records_per_second: 10_000.0, mb_per_second: 3.44 });
        assert_eq!(
            text,
            "10,000 records/s, 3.4 MB/s, 1,234,567 rows published, lag 9, 2 partitions paused, wal_commit 40 ms, flight_sink 12 s"
        );
    }

    #[test]
    fn numbers_are_grouped_by_three_digits() {
        let cases =
            [(0, "0"), (999, "999"), (1_000, "1,000"), (123_456_789, "123,456,789"), (u64::MAX, "18,446,744,073,709,551,615")];
        for (number, expected) in cases {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn bar_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn silent_progress_never_reads_and_lines_read_a_last_time() {
        for (mode, expected) in [(Mode::Silent, 0), (Mode::Lines, 1)] {
            let reads = Arc::new(AtomicU64::new(0));
            let counter = reads.clone();
            let progress = Progress::start(mode, move || {
                counter.fetch_add(1, Ordering::Relaxed);
                Reading::default()
            });
            progress.finish();
            assert_eq!(reads.load(Ordering::Relaxed), expected, "{mode:?}");
        }
    }
}
