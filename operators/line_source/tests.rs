//! Proves that every line is one message with its number, however the input comes in pieces, and that no line takes memory without a bound.

use std::io::Cursor;

use timely::dataflow::ProbeHandle;
use timely::dataflow::operators::{Inspect, Probe};

use super::*;
use crate::clock::SystemClock;
use crate::testing::Dice;

/// Gives what it has in pieces of any size; then ends, or fails.
struct Pieces {
    rest: Cursor<Vec<u8>>,
    dice: Dice,
    error: Option<ErrorKind>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = (self.dice.below(40) as usize + 1).min(buffer.len());
        let read = self.rest.read(&mut buffer[..length])?;
        match self.error {
            Some(error) if read == 0 => Err(error.into()),
            _ => Ok(read),
        }
    }
}

struct Ran {
    health: Health,
    stats: Arc<Stats>,
    batches: Vec<RawBatch>,
    is_over: bool,
}

fn read(input: Box<dyn Read + Send>, config: &Config, workers: usize) -> Ran {
    let (health, stats) = (Health::default(), Arc::<Stats>::default());
    let feed = Feed::start(input, config.line_bytes_max, health.clone(), stats.clone()).unwrap();
    let budget = Budget::new(Load { bytes: 1 << 30, messages: 1 << 30 });
    let ports = Ports { feed, clock: Arc::new(SystemClock::default()), budget, health: health.clone(), stats: stats.clone() };
    let batches = Arc::new(Mutex::new(Vec::new()));
    let (seen, config, failed) = (batches.clone(), config.clone(), health.clone());
    let communication =
        if workers == 1 { timely::CommunicationConfig::Thread } else { timely::CommunicationConfig::Process(workers) };
    let run = timely::Config { communication, worker: timely::WorkerConfig::default() };
    let guards = timely::execute(run, move |worker| {
        let (config, ports, seen) = (config.clone(), ports.clone(), seen.clone());
        let probe = ProbeHandle::new();
        worker.dataflow::<Epoch, _, _>(|scope| {
            let stream = line_source(scope, config, ports);
            stream.inspect(move |batch: &RawBatch| seen.lock().unwrap().push(batch.clone())).probe_with(&probe);
        });
        while worker.has_dataflows() && !failed.failed() {
            worker.step_or_park(Some(Duration::from_millis(1)));
        }
        let is_over = probe.done();
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
        is_over
    });
    let is_over = guards.unwrap().join().into_iter().all(Result::unwrap);
    let batches = std::mem::take(&mut *batches.lock().unwrap());
    Ran { health, stats, batches, is_over }
}

fn small(line_bytes_max: usize) -> Config {
    Config { batch_records_max: 3, batch_bytes_max: 60, line_bytes_max, ..Config::new("shop.logs") }
}

#[test]
fn every_line_is_one_message_with_its_number() {
    let mut dice = Dice::new(51);
    for workers in [1, 3] {
        let lines: Vec<String> = (0..200).map(|number| format!("{{\"n\":{number}}}").repeat(dice.below(4) as usize)).collect();
        let ends = ["\n", "\r\n"];
        let mut text: String = lines.iter().map(|line| format!("{line}{}", ends[dice.below(2) as usize])).collect();
        // The last line is one without an end, too.
        text.push_str("{}");
        let input = Pieces { rest: Cursor::new(text.into_bytes()), dice: dice.clone(), error: None };
        let ran = read(Box::new(input), &small(100), workers);
        assert_eq!((ran.health.fault(), ran.is_over), (None, true));
        let mut expected: Vec<(i64, String)> = (1..).zip(lines).filter(|(_, line)| !line.is_empty()).collect();
        expected.push((201, "{}".into()));
        let (mut found, mut next) = (Vec::new(), 1);
        for batch in &ran.batches {
            assert!(batch.records.len() <= 3);
            assert_eq!((batch.start, &*batch.partition.topic.name), (next, "shop.logs"));
            next = batch.end;
            for record in &batch.records {
                assert!(record.timestamp_ms > 0 && (batch.start..batch.end).contains(&record.offset));
                let text = String::from_utf8(record.payload.unwrap().of(&batch.arena).to_vec()).unwrap();
                found.push((record.offset, text));
            }
        }
        assert_eq!((&found, next), (&expected, 202));
        let counted = [&ran.stats.lines, &ran.stats.records].map(|counter| counter.load(Ordering::Relaxed));
        assert_eq!(counted, [201, expected.len() as u64]);
    }
}

#[test]
fn a_line_over_the_bound_is_a_fault_that_names_it_and_takes_no_memory() {
    let mut splitter = Splitter::new(10);
    splitter.push(b"0123456789\r\n\n01234").unwrap();
    let error = splitter.push(&[b'x'; 1 << 20]).unwrap_err();
    assert!(error.to_string().contains("line 3 is longer than line_bytes_max of 10"), "{error}");
    assert!(splitter.begun.capacity() < 1_000);
    let input = Cursor::new(b"{}\n{}\n0123456789x\n{}\n".to_vec());
    let ran = read(Box::new(input), &small(10), 2);
    assert!(ran.health.fault().unwrap().message.contains("line 3 "));
    assert!(!ran.is_over, "the frontier passed lines that were not read");
}

#[test]
fn an_input_that_fails_is_a_fault_and_not_its_end() {
    let input =
        Pieces { rest: Cursor::new(b"{}\n{}\n{}".to_vec()), dice: Dice::new(52), error: Some(ErrorKind::ConnectionReset) };
    let ran = read(Box::new(input), &small(100), 1);
    assert!(ran.health.fault().unwrap().message.contains("cannot read line 3"));
    assert!(!ran.is_over);
}

#[test]
fn a_batch_waits_for_more_only_so_long() {
    let mut collector = Collector::new(&Config::new("t"));
    let chunk = Splitter::new(100).push(b"a\nb\n\n").unwrap();
    assert!(collector.push(&chunk, 1_000).is_empty());
    assert!(collector.due(1_099, 100).is_none());
    let batch = collector.due(1_100, 100).unwrap();
    assert_eq!((batch.start, batch.end, batch.records.len()), (1, 4, 2));
    assert!(collector.due(9_999, 100).is_none() && collector.take().is_none());
}
