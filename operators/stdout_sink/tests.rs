//! Proves that lines are whole and complete with any number of workers, and what a closed pipe does.

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::batch::{RawRecord, Reason, Span};
use crate::testing::{self, Dice, Passed, Shape, run};

/// Keeps what is written, up to a number of writes; then the pipe is closed.
#[derive(Clone, Default)]
struct Pipe {
    written: Arc<Mutex<Vec<u8>>>,
    writes_max: Option<usize>,
    writes: usize,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.writes_max.is_some_and(|max| self.writes >= max) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.writes += 1;
        // Half at a time: a line must not be torn by another worker's.
        let length = bytes.len().div_ceil(2);
        self.written.lock().unwrap().extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write(pipe: &Pipe, workers: usize, items: &[(Epoch, UniqueBatch)], dice: &mut Dice) -> (Health, Passed, Arc<Stats>) {
    let (health, stats, passed) = (Health::default(), Arc::<Stats>::default(), Passed::default());
    let (ports, thread) = Ports::open(Box::new(pipe.clone()), health.clone(), stats.clone()).unwrap();
    run(Shape::Workers(workers), items, dice, &health, &passed, move |stream, _| stdout_sink(stream, ports.clone()));
    thread.join().unwrap();
    (health, passed, stats)
}

fn items(dice: &mut Dice) -> Vec<(Epoch, UniqueBatch)> {
    testing::batches(40, dice).into_iter().map(|(epoch, batch)| (epoch, UniqueBatch(batch))).collect()
}

#[test]
fn every_record_is_one_whole_line_with_any_number_of_workers() {
    let mut dice = Dice::new(21);
    let items = items(&mut dice);
    let expected: BTreeSet<(i64, i64)> = items
        .iter()
        .flat_map(|(_, batch)| batch.0.records.iter().map(|record| (batch.0.coverage.partition.partition.into(), record.offset)))
        .collect();
    for workers in [1, 2, 4] {
        let pipe = Pipe::default();
        let (health, passed, stats) = write(&pipe, workers, &items, &mut dice);
        assert_eq!((health.fault(), passed.epoch()), (None, u64::MAX));
        let written = pipe.written.lock().unwrap();
        let lines: Vec<Json> =
            written.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
        let found: BTreeSet<(i64, i64)> =
            lines.iter().map(|line| (line["partition"].as_i64().unwrap(), line["offset"].as_i64().unwrap())).collect();
        assert_eq!((lines.len(), &found), (expected.len(), &expected));
        let counted = [&stats.lines, &stats.bytes].map(|counter| counter.load(Ordering::Relaxed));
        assert_eq!(counted, [lines.len() as u64, written.len() as u64]);
    }
}

#[test]
fn a_closed_pipe_is_a_fault_and_its_epoch_is_not_passed() {
    let mut dice = Dice::new(22);
    let pipe = Pipe { writes_max: Some(3), ..Pipe::default() };
    let (health, passed, _) = write(&pipe, 2, &items(&mut dice), &mut dice);
    assert!(health.fault().unwrap().message.contains("closed by its reader"));
    assert!(passed.epoch() < u64::MAX);
}

#[test]
fn a_reject_shows_its_bytes_and_no_header() {
    let shown = |payload: &[u8]| {
        let arena = Bytes::from([b"key", payload, b"secret"].concat());
        let piece = |start: usize, len: usize| Span { start: start as u32, len: len as u32 };
        let record = RawRecord {
            offset: 7,
            timestamp_ms: -1,
            key: Some(piece(0, 3)),
            payload: Some(piece(3, payload.len())),
            headers: piece(3 + payload.len(), 6),
        };
        let (reason, detail, partition) = (Reason::Malformed, "at byte 1".into(), testing::partition("t", 2));
        let mut lines = Vec::new();
        Reject { partition, record, arena, reason, detail, secret_header: None }.lines(&mut |line| lines.push(line));
        lines.remove(0)
    };
    let expected = json!({
        "topic": "t", "partition": 2, "offset": 7, "reason": "malformed", "detail": "at byte 1", "key": "key", "payload": "a\nb",
    });
    assert_eq!(shown(b"a\nb"), expected);
    assert!(!shown(b"a\nb").to_string().contains('\n'));
    assert_eq!(shown(&[0xff, 0])["payloadBase64"], "/wA=");
}
