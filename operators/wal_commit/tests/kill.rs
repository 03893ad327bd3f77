//! A process that is killed while it writes to the real disk. What was acknowledged is found by the next one.
//!
//! It cannot prove that a disk keeps what it synced when the power fails: the operating system outlives the process.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;
use crate::fault::Health;

const DIRECTORY: &str = "WAL_KILL_DIRECTORY";

/// Appends until it is killed, and prints the offsets that are durable.
fn write_for_ever(directory: std::ffi::OsString, run: u64) {
    let config = Config { directory: directory.into(), segment_bytes: 256 << 10, bytes_max: 64 << 20, ..small_config() };
    let (log, recovery) = Log::open(config, Epoch(run * 1_000_000)).unwrap();
    assert!(!recovery.report.is_loss(), "{:?}", recovery.report);
    let mut next = recovery.coverage.values().flat_map(|offsets| offsets.ranges()).map(|range| range.end).max().unwrap_or(0);
    let writer = Writer::spawn(log, Health::default()).unwrap();
    let port = writer.port(|| {});
    for ticket in 0.. {
        let epoch = Epoch(run * 1_000_000 + 1 + ticket);
        port.append(Job { ticket, batches: vec![(epoch, batch(0, next, 20, 300).into())] });
        next += 20;
        if ticket > 20 {
            let ack = port.receiver().recv().unwrap();
            println!("durable {}", ack.appended[0].batch.by_ref().range().end);
        }
    }
}

#[test]
fn killed_process_loses_nothing_acknowledged() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let run = std::env::var("WAL_KILL_RUN").unwrap().parse().unwrap();
        return write_for_ever(directory, run);
    }
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    for run in 1..4u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wal_commit::tests::kill::killed_process_loses_nothing_acknowledged", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .env("WAL_KILL_RUN", run.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut durable = 0;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The test harness may begin the first line with words of its own.
        let ends = lines.map_while(Result::ok).filter_map(|line| line.rsplit_once("durable ")?.1.parse::<i64>().ok());
        for (number, end) in ends.enumerate() {
            durable = end;
            if number as u64 == run * 40 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(durable > 20 * 40, "the child did not get far: {durable}");
        let config = Config { directory: directory.path().into(), ..small_config() };
        let (problems, _) = inspect::Source::find(&config.directory).unwrap().verify().unwrap();
        assert!(problems.iter().all(|problem| !problem.is_loss()), "{problems:?}");
        let mut next = 0;
        for frame in inspect::Source::find(&config.directory).unwrap().frames().unwrap().map(Result::unwrap) {
            assert_eq!(content(frame.epoch, &frame.batch), content(frame.epoch, &batch(0, next, 20, 300)));
            next = frame.batch.by_ref().range().end;
        }
        assert!(next >= durable, "offsets up to {durable} were acknowledged, those up to {next} were found");
    }
}
