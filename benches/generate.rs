//! How fast are messages made, without a broker? A generator slower than the pipeline would measure itself.
//!
//! `cargo bench --bench generate`, or with a number to change how many megabytes are made of each: `cargo bench --bench generate -- 2000`.

use std::time::{Duration, Instant};

use openwit_ingest::generate::{Format, Generator, Message, Plan, Ppm, Tally, Topic};
use openwit_ingest::summary::Usage;
use openwit_operators::batch::Signal;

fn plan(format: Format, signal: Signal) -> Plan {
    Plan {
        topics: vec![Topic { name: "t".to_owned(), partitions: 32 }],
        format,
        signal,
        count: None,
        records_per_message: if format.batches_records() { 50 } else { 1 },
        message_bytes_min: 0,
        duplicates: Ppm(50_000),
        invalid: Ppm(0),
        tombstones: Ppm(0),
        seed: 1,
        keyed: false,
        start_time_ns: 1_700_000_000_000_000_000,
        time_step_ns: 10_000,
    }
}

/// Makes about `bytes` of messages; returns what they were, and the seconds by clock and processor.
fn measure(format: Format, signal: Signal, bytes: u64) -> Option<(Tally, Duration, f64)> {
    let mut generator = Generator::new(plan(format, signal)).ok()?;
    let mut message = Message::empty();
    let mut tally = Tally::default();
    let (started, before) = (Instant::now(), Usage::now());
    while tally.bytes < bytes && generator.advance(&mut message) {
        tally.add(std::hint::black_box(&message));
    }
    Some((tally, started.elapsed(), Usage::now().cpu_seconds - before.cpu_seconds))
}

fn main() {
    let megabytes = std::env::args().skip(1).find_map(|argument| argument.parse::<u64>().ok()).unwrap_or(300);
    println!("{:<10} {:<8} {:>12} {:>14} {:>10} {:>12}", "format", "signal", "bytes/record", "records/s", "MB/s", "CPU ns/rec");
    for format in [Format::Otlp, Format::OtlpJson, Format::Json, Format::Raw] {
        for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
            // Raw text of traces or metrics is refused: nothing to measure.
            let Some((tally, elapsed, cpu_seconds)) = measure(format, signal, megabytes * 1_000_000) else { continue };
            let records = (tally.valid + tally.duplicates) as f64 * if format.batches_records() { 50.0 } else { 1.0 };
            println!(
                "{:<10} {:<8} {:>12.0} {:>14.0} {:>10.0} {:>12.0}",
                format!("{format:?}"),
                signal.name(),
                tally.bytes as f64 / records,
                records / elapsed.as_secs_f64(),
                tally.bytes as f64 / 1e6 / elapsed.as_secs_f64(),
                cpu_seconds * 1e9 / records,
            );
        }
    }
}
