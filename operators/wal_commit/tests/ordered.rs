//! Messages as they came are read in the order of their epochs, whoever logged them, and kept for as long as the window needs them.

use proptest::prelude::*;

use super::*;
use crate::batch::{RawBatch, RawRecord};

/// A batch of one message of `bytes`, told by its offset.
fn raw(offset: i64, timestamp_ms: i64, bytes: usize) -> Logged {
    let payload = Some(Span { start: 0, len: bytes as u32 });
    let records = vec![RawRecord { offset, timestamp_ms, key: None, payload, headers: Span::default() }];
    let (arena, charge) = (vec![7; bytes].into(), Default::default());
    Logged::Raw(RawBatch { partition: partition(0), start: offset, end: offset + 1, arena, records, polled_ms: 1, charge })
}

/// Epoch and offset of all frames, as they are read.
fn read(recovery: &Recovery, before: u64) -> Vec<(u64, i64)> {
    recovery
        .raw_frames(Epoch(before))
        .map(|frame| frame.map(|frame| (frame.epoch.0, frame.batch.batch().start)).unwrap())
        .collect()
}

proptest! {
    /// Each worker's epochs ascend; how their jobs are interleaved is chance.
    #[test]
    fn frames_of_any_number_of_workers_come_in_the_order_of_their_epochs(
        jobs in proptest::collection::vec((0usize..4, 0u64..3, 1usize..900), 1..120), runs in 1usize..4,
    ) {
        let (disk, mut expected) = (Memory::aligned(), Vec::new());
        let config = Config { bytes_max: 64 * segment::BYTES_MIN, ..small_config() };
        for (run, jobs) in jobs.chunks(jobs.len().div_ceil(runs)).enumerate() {
            let started = 1_000 + 1_000 * run as u64;
            let (mut log, _) = open(&disk, &config, started);
            let mut epochs = [started; 4];
            let mut logged = Vec::new();
            for (worker, step, bytes) in jobs {
                epochs[*worker] += step;
                let offset = (expected.len() + logged.len()) as i64;
                log.append(Epoch(epochs[*worker]), &raw(offset, -1, *bytes)).unwrap();
                logged.push((epochs[*worker], offset));
            }
            log.sync().unwrap();
            // In the order of the log where epochs are the same.
            logged.sort();
            expected.extend(logged);
        }
        let (_, recovery) = open(&disk, &config, 9_000);
        prop_assert_eq!(read(&recovery, 9_000), expected);
    }
}

#[test]
fn frames_all_of_whose_offsets_are_left_out_are_not_read() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1_000);
    for offset in 0..6 {
        log.append(Epoch(1_001 + offset as u64 % 2), &raw(offset, -1, 10)).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    let (_, recovery) = open(&disk, &small_config(), 9_000);
    let mut stored = crate::coverage::OffsetSet::default();
    stored.insert(1..4);
    let stored = Arc::new([(partition(0), stored)].into_iter().collect());
    let left: Vec<_> =
        recovery.raw_frames(Epoch(9_000)).leaving_out(stored).map(|frame| frame.unwrap().batch.batch().start).collect();
    assert_eq!(left, [0, 4, 5]);
}

#[test]
fn what_was_logged_before_the_clock_was_set_back_comes_first_and_all_of_it_before_what_is_read_now() {
    let disk = Memory::aligned();
    for (started, epochs) in [(5_000, [5_010, 5_020]), (2_000, [2_005, 2_105])] {
        let (mut log, _) = open(&disk, &small_config(), started);
        for epoch in epochs {
            log.append(Epoch(epoch), &raw(epoch as i64, -1, 10)).unwrap();
        }
        log.sync().unwrap();
    }
    let (_, recovery) = open(&disk, &small_config(), 2_100);
    let found = read(&recovery, 2_100);
    assert_eq!(found.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [5_010, 5_020, 2_005, 2_105]);
    assert!(found.is_sorted_by(|one, next| one.0 < next.0) && found.iter().all(|(epoch, _)| *epoch < 2_100), "{found:?}");
    // Where no clock was set back the epochs are those that were logged.
    assert_eq!(read(&recovery, 9_000)[2..], [(2_005, 2_005), (2_105, 2_105)]);
}

#[test]
fn segments_are_kept_while_the_window_is_to_be_warmed_up_from_them_unless_room_is_needed() {
    let config = Config { keys_retention_ms: 1_000, bytes_max: 6 * segment::BYTES_MIN, ..small_config() };
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &config, 1_000);
    let append = |log: &mut Log, epoch: u64, timestamp_ms: i64| {
        // Each fills a segment.
        log.append(Epoch(epoch), &raw(epoch as i64, timestamp_ms, 11_000)).unwrap();
        log.sync().unwrap();
        log.release(Epoch(epoch)).unwrap();
    };
    for epoch in [2_000, 2_100, 2_200] {
        append(&mut log, epoch, epoch as i64);
    }
    assert_eq!(segments(&disk).len(), 3, "published, and of the last second");
    // By the clock they are old, by their own time they are not: they come from a backlog.
    append(&mut log, 9_000, 2_300);
    assert_eq!(segments(&disk).len(), 4);
    append(&mut log, 9_100, 9_100);
    assert_eq!(segments(&disk).len(), 2, "both times have passed; the last one of the old time is not published by its epoch");
    for epoch in [9_200, 9_300, 9_400, 9_500, 9_600] {
        append(&mut log, epoch, epoch as i64);
    }
    assert_eq!(segments(&disk).len(), 6);
    assert!(log.stats().keys_dropped > 0, "room was needed");
    drop(log);
    let (log, recovery) = open(&disk, &config, 20_000);
    assert_eq!(read(&recovery, 20_000).len(), 6);
    drop(log);
}
