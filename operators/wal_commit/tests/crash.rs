//! Cuts and flipped bits, one at every byte.

use super::*;
use crate::wal_commit::inspect::ProblemKind;
use crate::wal_commit::memory::Fault;

/// A log of three synced groups in one segment, and the name of that segment.
fn three_groups() -> (Memory, String, Vec<Content>, Vec<u64>) {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    let (mut contents, mut ends) = (vec![], vec![]);
    for number in 0..3u64 {
        let batch = batch(number as i32, 10 * number as i64, 3, 40);
        let position = log.append(Epoch(2 + number), &batch).unwrap();
        log.sync().unwrap();
        contents.push(content(Epoch(2 + number), &batch));
        ends.push(position.at + u64::from(position.bytes));
    }
    let name = segments(&disk)[0].clone();
    (disk, name, contents, ends)
}

#[test]
fn torn_tail_at_every_byte_drops_the_last_frame_only() {
    let (disk, name, contents, ends) = three_groups();
    for cut in ends[1]..ends[2] {
        let torn = disk.crash(&mut |_| 0);
        assert!(torn.edit(&name, |bytes| bytes[cut as usize..].fill(0)));
        let (mut log, recovery) = open(&torn, &small_config(), 100);
        // The frame's last bytes may be zeros: then nothing is torn.
        let whole = disk.contents(&name).unwrap()[cut as usize..ends[2] as usize].iter().all(|&byte| byte == 0);
        assert_eq!(recovered(&recovery), contents[..if whole { 3 } else { 2 }], "cut at byte {cut}");
        assert!(!recovery.report.is_loss(), "a torn tail is no loss");
        let torn_bytes = recovery.report.torn.as_ref().map(|torn| torn.bytes.clone());
        assert_eq!(torn_bytes.is_some(), cut > ends[1] && !whole, "cut at byte {cut}: {torn_bytes:?}");
        // Writing goes on in a fresh segment, and the torn tail stays what it is.
        let more = batch(7, 0, 2, 10);
        log.append(Epoch(101), &more).unwrap();
        log.sync().unwrap();
        drop(log);
        let (_, again) = open(&torn, &small_config(), 200);
        assert_eq!(recovered(&again).len(), recovered(&recovery).len() + 1);
        assert!(!again.report.is_loss() && again.report.torn.is_none());
    }
}

#[test]
fn file_cut_at_every_byte_opens_and_yields_a_prefix() {
    let (disk, name, contents, ends) = three_groups();
    for cut in (0..ends[2]).rev() {
        let torn = disk.crash(&mut |_| 0);
        assert!(torn.edit(&name, |bytes| bytes.truncate(cut as usize)));
        let (_, recovery) = open(&torn, &small_config(), 100);
        let whole = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!(recovered(&recovery), contents[..whole], "cut at byte {cut}");
    }
}

#[test]
fn flipped_bits_never_panic_never_yield_a_wrong_record_and_are_reported_where_provable() {
    let (disk, name, contents, ends) = three_groups();
    let length = disk.contents(&name).unwrap().len();
    for at in 0..length {
        let flipped = disk.copy();
        assert!(flipped.edit(&name, |bytes| bytes[at] ^= 1 << (at % 8)));
        let (_, recovery) = open(&flipped, &small_config(), 100);
        let found = recovered(&recovery);
        let at = at as u64;
        let hit = (at >= segment::FRAMES_START).then(|| ends.iter().position(|&end| at < end)).flatten();
        let expected: Vec<_> = (0..3).filter(|&frame| Some(frame) != hit).map(|frame| contents[frame].clone()).collect();
        assert_eq!(found, expected, "bit flipped in byte {at}");
        let provable = hit.is_some() || at < 64;
        assert_eq!(recovery.report.is_loss(), provable, "bit flipped in byte {at}: {:?}", recovery.report);
    }
}

#[test]
fn damaged_payload_tells_exactly_which_offsets_are_lost() {
    let (disk, name, contents, ends) = three_groups();
    assert!(disk.edit(&name, |bytes| bytes[ends[1] as usize - 20] ^= 0x40));
    let (problems, _) = inspect::Source::Short(Arc::new(disk.clone()), None).verify().unwrap();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].bytes, ends[0]..ends[1]);
    assert_eq!(problems[0].kind, ProblemKind::Damaged(Some(contents[1].coverage.clone())));
    assert!(problems[0].to_string().contains("it accounted for traces.shop[1] offsets 10 to 12"), "{}", problems[0]);
}

#[test]
fn damage_in_the_last_group_that_was_acknowledged_is_no_torn_tail() {
    let (disk, name, contents, ends) = three_groups();
    // What the mark proves is damage, whatever is left of the group; what was only being written behind it is torn.
    for (keep, lost) in [(ends[1], None), (ends[2] - 10, Some(contents[2].coverage.clone()))] {
        let damaged = disk.copy();
        assert!(damaged.edit(&name, |bytes| bytes[keep as usize..].fill(0x5a)));
        for run in [100, 200] {
            let (_, recovery) = open(&damaged, &small_config(), run);
            assert_eq!(recovered(&recovery), contents[..2], "kept up to {keep}");
            let holes: Vec<_> =
                recovery.report.damaged.iter().map(|damage| (damage.bytes.clone(), damage.lost.clone())).collect();
            assert_eq!(holes, [(ends[1]..ends[2], lost.clone())], "kept up to {keep}");
            assert!(recovery.report.torn.is_some() && recovery.report.lost_records());
        }
    }
}

#[test]
fn a_mark_that_cannot_be_written_costs_its_proof_only() {
    for fault in 0..60 {
        let disk = Memory::aligned();
        let (mut log, _) = open(&disk, &small_config(), 1);
        let batch = batch(0, 0, 3, 40);
        log.append(Epoch(2), &batch).unwrap();
        // Write and sync of the frame, then the mark.
        disk.fail(2, if fault % 2 == 0 { Fault::Io } else { Fault::Full(fault) });
        log.sync().unwrap();
        log.append(Epoch(3), &batch).unwrap();
        log.sync().unwrap();
        drop(log);
        let (_, recovery) = open(&disk.copy(), &small_config(), 100);
        assert_eq!(recovered(&recovery).len(), 2);
        assert!(!recovery.report.is_loss());
    }
}

#[test]
fn damage_in_the_last_group_of_a_sealed_segment_is_no_torn_tail() {
    let (disk, name, contents, ends) = three_groups();
    let (mut log, _) = open(&disk.crash(&mut |_| 0), &small_config(), 100);
    drop(log.append(Epoch(101), &batch(0, 90, 1, 10)));
    let disk = disk.crash(&mut |_| 0);
    let (mut log, _) = open(&disk, &small_config(), 100);
    log.append(Epoch(101), &batch(0, 90, 1, 10)).unwrap();
    log.sync().unwrap();
    drop(log);
    assert!(disk.edit(&name, |bytes| bytes[ends[1] as usize..].fill(0)));
    let (_, recovery) = open(&disk, &small_config(), 200);
    assert_eq!(recovery.report.damaged.len(), 1);
    assert_eq!(recovery.report.damaged[0].bytes, ends[1]..ends[2]);
    assert_eq!(recovered(&recovery)[..2], contents[..2]);
}

#[test]
fn damaged_segment_is_moved_aside_when_released_and_never_reused() {
    let (disk, name, _, ends) = three_groups();
    assert!(disk.edit(&name, |bytes| bytes[ends[0] as usize - 12] ^= 1));
    let (mut log, recovery) = open(&disk, &small_config(), 100);
    assert_eq!(recovery.report.lost().0, 1);
    log.release(Epoch(100)).unwrap();
    assert_eq!(segments(&disk).len(), 1, "recovered frames are released with the epoch after the run's");
    log.release(Epoch(101)).unwrap();
    assert!(segments(&disk).is_empty());
    assert!(disk.contents(&segment::corrupt_name(&name)).is_some());
    assert_eq!(log.stats().segments_free, 0);
}

#[test]
fn whole_frames_behind_an_unsynced_hole_are_dropped() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    log.append(Epoch(2), &batch(0, 0, 2, 50)).unwrap();
    log.sync().unwrap();
    let torn = log.append(Epoch(3), &batch(0, 2, 2, 50)).unwrap();
    log.append(Epoch(3), &batch(0, 4, 2, 50)).unwrap();
    log.write().unwrap();
    drop(log);
    assert!(disk.edit(&segments(&disk)[0], |bytes| bytes[torn.at as usize + 70] ^= 1));
    let (_, recovery) = open(&disk, &small_config(), 100);
    let covered: Vec<_> = recovery.coverage.values().flat_map(|offsets| offsets.ranges()).flatten().collect();
    assert_eq!(covered, [0, 1], "the coverage must not end beyond offsets that are missing");
    assert_eq!(recovery.report.torn.as_ref().map(|torn| torn.frames), Some(1));
    assert!(!recovery.report.is_loss());
}

#[test]
fn unreadable_sector_costs_only_the_frames_in_its_block() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    let mut contents = Vec::new();
    for number in 0..4 {
        let frame = batch(0, number * 2, 2, 1_200);
        log.append(Epoch(2), &frame).unwrap();
        log.sync().unwrap();
        contents.push(content(Epoch(2), &frame));
    }
    drop(log);
    // The first frame lies in the first block of frames, the second crosses into the next.
    assert!(disk.make_unreadable(&segments(&disk)[0], 4_200..4_300));
    let (_, recovery) = open(&disk, &small_config(), 100);
    assert_eq!(recovered(&recovery), contents[2..]);
    assert_eq!(recovery.report.damaged.len(), 1);
    assert!(recovery.report.damaged[0].bytes.contains(&4_250));
}

#[test]
fn missing_segment_is_reported_and_survived() {
    let disk = Memory::aligned();
    let (mut log, _) = open(&disk, &small_config(), 1);
    for number in 0..30 {
        log.append(Epoch(2), &batch(0, number * 4, 4, 400)).unwrap();
        log.sync().unwrap();
        log.save_keys().unwrap();
    }
    drop(log);
    let names = segments(&disk);
    assert!(names.len() > 3);
    disk.remove(&names[1]).unwrap();
    let (_, recovery) = open(&disk, &small_config(), 100);
    assert_eq!(recovery.report.missing_segments, vec![std::ops::Range { start: 2, end: 3 }]);
    assert!(!recovered(&recovery).is_empty());
}

#[test]
fn garbage_in_every_file_is_survived() {
    for seed in 0..40u64 {
        let (disk, name, _, _) = three_groups();
        let (mut log, _) = open(&disk, &small_config(), 5);
        log.append(Epoch(6), &batch(0, 50, 2, 10)).unwrap();
        log.sync().unwrap();
        drop(log);
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut garble = |bytes: &mut Vec<u8>| {
            for byte in bytes.iter_mut().skip(seed as usize * 100) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
        };
        for name in [name, segment::keys_name(1), segment::free_name(9)] {
            disk.edit(&name, &mut garble);
        }
        let (mut log, recovery) = open(&disk, &small_config(), 100);
        assert!(!recovered(&recovery).is_empty());
        assert!(recovery.keys().all(|key| key.is_ok()));
        log.append(Epoch(101), &batch(0, 99, 1, 1)).unwrap();
        log.release(Epoch(200)).unwrap();
    }
}

#[test]
fn newer_format_is_refused_not_destroyed() {
    let (disk, name, _, _) = three_groups();
    assert!(disk.edit(&name, |bytes| {
        bytes[12] = 5;
        let crc = crc32c::crc32c(&bytes[12..64]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    }));
    let refused = Log::open_on(Arc::new(disk.clone()), small_config(), Epoch(9)).err().unwrap();
    assert!(matches!(refused, Error::Version { found: 5, known: 4, .. }), "{refused}");
}
