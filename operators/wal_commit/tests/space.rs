//! Reuse, bounds and full disks.

use super::*;

/// Appends batches of one record of `bytes` until it says that the log is full. Returns how many it took.
fn fill(log: &mut Log, epoch: u64, bytes: usize) -> i64 {
    for number in 0..10_000 {
        match log.append(Epoch(epoch), &batch(0, epoch as i64 * 10_000 + number, 1, bytes)) {
            Ok(_) => log.save_keys().unwrap(),
            Err(error) if error.is_full() => return number,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the log is never full");
}

#[test]
fn log_stops_at_its_bound_and_goes_on_after_a_release() {
    let disk = Memory::aligned();
    let config = small_config();
    let (mut log, _) = open(&disk, &config, 1);
    let first = fill(&mut log, 2, 3_000);
    assert!(log.stats().total_bytes <= config.bytes_max);
    assert!(first > 30, "{first}");
    log.release(Epoch(2)).unwrap();
    assert_eq!(fill(&mut log, 3, 3_000), 0, "epoch 2 is not released by releasing what is before it");
    log.release(Epoch(3)).unwrap();
    assert!(fill(&mut log, 4, 3_000) > 30);
    assert!(log.stats().total_bytes <= config.bytes_max);
    assert!(log.stats().segments_reused > 0);
}

#[test]
fn reused_segments_never_bring_back_former_frames() {
    let disk = Memory::aligned();
    let config = Config { bytes_max: 3 * segment::BYTES_MIN, ..small_config() };
    let (mut log, _) = open(&disk, &config, 1);
    let mut expected = Vec::new();
    for epoch in 2..60u64 {
        let frame = batch(0, epoch as i64 * 10, 3, 700);
        log.append(Epoch(epoch), &frame).unwrap();
        log.sync().unwrap();
        log.save_keys().unwrap();
        log.release(Epoch(epoch)).unwrap();
        expected.push(content(Epoch(epoch), &frame));
        // After every append: a crash that loses nothing, and one that loses all that was not synced.
        for choice in [0, 1] {
            let crashed = disk.crash(&mut |below| choice.min(below - 1));
            let (_, recovery) = open(&crashed, &config, 1_000);
            let found = recovered(&recovery);
            assert!(expected.ends_with(&found) && !found.is_empty(), "epoch {epoch}");
            assert!(!recovery.report.is_loss() && recovery.report.torn.is_none(), "{:?}", recovery.report);
        }
    }
    assert!(log.stats().segments_reused > 5);
    assert!(disk.list().unwrap().iter().filter(|entry| entry.name.ends_with(".wal")).count() <= 3);
}

#[test]
fn numbers_are_never_used_twice_even_if_nothing_is_live() {
    let disk = Memory::aligned();
    for run in 1..5u64 {
        let (mut log, recovery) = open(&disk, &small_config(), run * 100);
        assert!(recovered(&recovery).len() <= 1);
        let position = log.append(Epoch(run * 100 + 1), &batch(0, run as i64, 1, 10)).unwrap();
        assert_eq!(position.segment, run);
        log.sync().unwrap();
        log.release(Epoch(run * 100 + 50)).unwrap();
    }
}

#[test]
fn frame_larger_than_a_segment_gets_its_own() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    let frames = [batch(0, 0, 2, 100), batch(0, 2, 5, 9_000), batch(0, 7, 2, 3_000)];
    for frame in &frames {
        log.append(Epoch(2), frame).unwrap();
    }
    log.sync().unwrap();
    log.save_keys().unwrap();
    drop(log);
    let (mut log, recovery) = open(&disk, &small_config(), 100);
    assert_eq!(recovered(&recovery), frames.map(|frame| content(Epoch(2), &frame)));
    log.release(Epoch(101)).unwrap();
    assert_eq!(log.stats().segments_free, 2, "the large one is removed, the others are kept");
    let huge = batch(0, 9, 10, 60_000);
    assert!(matches!(log.append(Epoch(101), &huge), Err(Error::FrameTooLarge { .. })));
}

#[test]
fn large_frame_finds_room_although_the_active_segment_takes_some() {
    let disk = Memory::aligned();
    let config = Config { bytes_max: 3 * segment::BYTES_MIN, ..small_config() };
    let (mut log, _) = open(&disk, &config, 1);
    log.append(Epoch(2), &batch(0, 0, 1, 10)).unwrap();
    let large = batch(0, 1, 4, 10_000);
    assert!(log.append(Epoch(3), &large).unwrap_err().is_full());
    log.save_keys().unwrap();
    log.release(Epoch(3)).unwrap();
    log.append(Epoch(3), &large).unwrap();
    log.sync().unwrap();
}

#[test]
fn write_cut_short_by_a_full_disk_is_written_whole_later() {
    for reached in (0..12_288).step_by(301) {
        let disk = Memory::aligned();
        let (mut log, _) = open(&disk, &small_config(), 1);
        let frames = [batch(0, 0, 2, 100), batch(0, 2, 3, 2_000)];
        log.append(Epoch(2), &frames[0]).unwrap();
        log.sync().unwrap();
        log.append(Epoch(3), &frames[1]).unwrap();
        disk.fail(0, memory::Fault::Full(reached));
        assert!(log.sync().unwrap_err().is_full());
        let meanwhile = disk.crash(&mut |below| 1.min(below - 1));
        assert_eq!(recovered(&open(&meanwhile, &small_config(), 90).1)[0], content(Epoch(2), &frames[0]));
        log.sync().unwrap();
        drop(log);
        let expected = [content(Epoch(2), &frames[0]), content(Epoch(3), &frames[1])];
        assert_eq!(recovered(&open(&disk, &small_config(), 100).1), expected);
    }
}

#[test]
fn failed_sync_closes_the_log() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    log.append(Epoch(2), &batch(0, 0, 1, 10)).unwrap();
    log.write().unwrap();
    disk.fail(0, memory::Fault::Io);
    assert!(matches!(log.sync(), Err(Error::Io { action: "sync", .. })));
    assert!(matches!(log.sync(), Err(Error::Poisoned)));
    assert!(matches!(log.append(Epoch(3), &batch(0, 1, 1, 10)), Err(Error::Poisoned)));
    assert!(matches!(log.release(Epoch(9)), Err(Error::Poisoned)));
}

#[test]
fn after_a_failed_sync_a_write_that_ran_beside_it_does_not_count_as_done() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    log.append(Epoch(2), &batch(0, 0, 1, 10)).unwrap();
    log.write().unwrap();
    log.append(Epoch(3), &batch(0, 1, 1, 10)).unwrap();
    let (mut sync, mut write) = (log.begin_sync().unwrap(), log.begin(false).unwrap());
    write.run();
    disk.fail(0, memory::Fault::Io);
    sync.run();
    assert!(matches!(log.finish(sync), Err(Error::Io { action: "sync", .. })));
    assert!(matches!(log.finish(write), Err(Error::Poisoned)));
}

#[test]
fn keys_outlive_their_segment_for_the_retention_and_no_longer() {
    let disk = Memory::aligned();
    let config = Config { keys_retention_ms: 1_000, bytes_max: 3 * segment::BYTES_MIN, ..small_config() };
    let (mut log, _) = open(&disk, &config, 0);
    for second in 1..40u64 {
        // Ten records, each with the time of its epoch, fill most of a segment.
        let mut frame = batch(0, second as i64 * 10, 10, 1_000);
        frame.records.iter_mut().for_each(|record| record.timestamp_ms = second as i64 * 100);
        log.append(Epoch(second * 100), &frame).unwrap();
        log.sync().unwrap();
        log.save_keys().unwrap();
        log.release(Epoch(second * 100)).unwrap();
    }
    drop(log);
    let (_, recovery) = open(&disk, &config, 4_000);
    let mut oldest = i64::MAX;
    let mut newest = 0;
    for key in recovery.keys().map(Result::unwrap) {
        assert_eq!(key.key, key_of(&partition(0), key.offset));
        oldest = oldest.min(key.timestamp_ms);
        newest = newest.max(key.timestamp_ms);
    }
    assert_eq!(newest, 3_900);
    assert!((2_500..=2_900).contains(&oldest), "{oldest}");
}

#[test]
fn quiet_record_time_keeps_keys_and_their_bound_drops_them() {
    let disk = Memory::aligned();
    let config = Config { keys_retention_ms: 1_000, keys_bytes_max: 4_000, bytes_max: 3 * segment::BYTES_MIN, ..small_config() };
    let (mut log, _) = open(&disk, &config, 0);
    for second in 1..40u64 {
        let mut frame = batch(0, second as i64 * 10, 10, 1_000);
        frame.records.iter_mut().for_each(|record| record.timestamp_ms = 7);
        log.append(Epoch(second * 10_000), &frame).unwrap();
        log.sync().unwrap();
        log.save_keys().unwrap();
        log.release(Epoch(second * 10_000)).unwrap();
    }
    let stats = log.stats();
    assert!(stats.key_files > 5 && stats.keys_bytes <= 4_000 && stats.keys_dropped > 0, "{stats:?}");
}

#[test]
fn two_processes_never_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { directory: directory.path().join("a/b"), ..small_config() };
    let (log, _) = Log::open(config.clone(), Epoch(1)).unwrap();
    assert!(matches!(Log::open(config.clone(), Epoch(1)), Err(Error::Locked { .. })));
    drop(log);
    assert!(Log::open(config, Epoch(1)).is_ok());
}

#[test]
fn impossible_configurations_are_refused() {
    let refused = |change: fn(&mut Config)| {
        let mut config = small_config();
        change(&mut config);
        matches!(config.check(), Err(Error::Config { .. }))
    };
    assert!(!refused(|_| {}));
    assert!(refused(|config| config.segment_bytes = 100_000));
    assert!(refused(|config| config.segment_bytes = 4_096));
    assert!(refused(|config| config.bytes_max = 2 * config.segment_bytes - 1));
}

#[test]
fn log_on_the_real_disk_comes_back_and_is_listed_and_verified() {
    for direct_io in [true, false] {
        // Beside the sources: the system's folder for temporary files may be in memory.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let config = Config { directory: directory.path().into(), direct_io, ..small_config() };
        let (mut log, _) = Log::open(config.clone(), Epoch(1)).unwrap();
        let mut expected = Vec::new();
        for epoch in 2..40u64 {
            let frame = batch((epoch % 3) as i32, epoch as i64 * 4, 4, 900);
            let position = log.append(Epoch(epoch), &frame).unwrap();
            log.sync().unwrap();
            log.save_keys().unwrap();
            log.release(Epoch(epoch / 2)).unwrap();
            expected.push(content(Epoch(epoch), &frame));
            let read = log.reader().read(position).unwrap();
            assert_eq!(content(read.epoch, &read.batch), expected[expected.len() - 1]);
        }
        drop(log);
        let (_, recovery) = Log::open(config.clone(), Epoch(100)).unwrap();
        let found = recovered(&recovery);
        assert!(expected.ends_with(&found) && found.len() >= 20);
        let (problems, report) = inspect::Source::find(&config.directory).unwrap().verify().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(report.frames as usize, found.len());
        let listed = inspect::Source::find(&config.directory).unwrap().list().unwrap();
        let frames = listed.iter().map(|summary| summary.frames).sum::<u64>();
        assert_eq!(frames as usize, found.len());
        assert!(listed.iter().any(|summary| summary.state == inspect::State::Keys && summary.records > 0));
        assert_eq!(inspect::Source::find(&config.directory).unwrap().frames().unwrap().count(), found.len());
    }
}
