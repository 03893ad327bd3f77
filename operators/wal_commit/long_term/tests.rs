//! What the long-term log promises, on disks and shelves in memory that fail at will, and on a real folder.
//!
//! Proved here: a segment is reused only when its copy is there, a store that fails costs no acknowledgement and no frame, half a copy
//! is never taken for a whole one, what is damaged hides only itself. Not proved here: that an object store keeps what it
//! confirmed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cleanup::{Found, Horizon, expired};
use super::copier::{Copied, copy};
use super::memory::MemoryShelf;
use super::read::{Frames, Piece, Pieces, Selection};
use super::shelf::{Shelf, Store};
use super::*;
use crate::fault::Health;
use crate::wal_commit::memory::Memory;
use crate::wal_commit::tests::{Content, batch, content, open, recovered, small_config};
use crate::wal_commit::{Config as LogConfig, Error, Job as AppendJob, Log, Writer, segment};

/// Longer than anything here takes on a loaded machine: a test that would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> Config {
    Config { store: ObjectStore::Memory, node: "node-1".into(), compression_level: 1, cleanup: None }
}

fn log_config() -> LogConfig {
    LogConfig { long_term: Some(config()), ..small_config() }
}

/// All frames on the shelf, and the errors between them.
fn frames_on(shelf: &MemoryShelf) -> (Vec<Content>, Vec<Error>) {
    let frames = Frames::open(Arc::new(shelf.clone()), Selection::default()).unwrap();
    let (mut found, mut errors) = (vec![], vec![]);
    for frame in frames {
        match frame {
            Ok(frame) => found.push(content(frame.epoch, &frame.batch)),
            Err(error) => errors.push(error),
        }
    }
    (found, errors)
}

/// A log whose first segment holds `sizes` records of so many bytes, one in each frame, and is sealed; and that segment's job.
fn sealed(disk: &Memory, sizes: &[usize]) -> (Log, Job, Vec<Content>) {
    let segment_bytes = (sizes.iter().sum::<usize>() as u64 + sizes.len() as u64 * 256 + 8_192).next_multiple_of(4_096);
    let config = LogConfig { segment_bytes, bytes_max: 4 * segment_bytes, ..log_config() };
    let (mut log, _) = open(disk, &config, 1_000);
    let mut expected = Vec::new();
    for (number, &bytes) in sizes.iter().enumerate() {
        let (epoch, batch) = (Epoch(1_790_000_000_000 + number as u64), batch(0, number as i64, 1, bytes));
        log.append(epoch, &batch).unwrap();
        expected.push(content(epoch, &batch));
    }
    // One that does not fit any more ends the segment.
    log.append(Epoch(1_790_000_100_000), &batch(0, 10_000, 1, segment_bytes as usize - 8_192)).unwrap();
    log.sync().unwrap();
    let job = log.take_uncopied().unwrap();
    (log, job, expected)
}

fn copy_whole(disk: &Memory, shelf: &MemoryShelf, job: Job) -> Copied {
    copy(disk, shelf, &config(), job, &|| false).unwrap()
}

/// A shelf with one copy of several blocks, its path, and its frames.
fn shelf_with_blocks() -> (MemoryShelf, String, Vec<Content>) {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (_log, job, expected) = sealed(&disk, &[400_000; 6]);
    copy_whole(&disk, &shelf, job);
    let path = shelf.paths().remove(0);
    (shelf, path, expected)
}

#[test]
fn copy_gives_back_the_frames_of_its_segment_and_nothing_else() {
    // Small frames, one larger than a block, one of no bytes.
    let sizes = [10, 700, 300_000, 2_500_000, 0, 900_000, 40_000, 1_048_576, 8];
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (_log, job, expected) = sealed(&disk, &sizes);
    let copied = copy_whole(&disk, &shelf, job);
    assert!(copied.damaged.is_empty() && copied.frame_bytes > 4_700_000 && copied.stored_bytes < copied.frame_bytes);
    assert_eq!(shelf.paths(), [Name::new("node-1", &job).path()]);
    let (found, errors) = frames_on(&shelf);
    assert!(found == expected && errors.is_empty(), "{errors:?}");
}

#[test]
fn any_zstd_reader_gives_the_frames_of_a_copy() {
    let (shelf, path, _) = shelf_with_blocks();
    let bytes = shelf.contents(&path);
    let plain = zstd::stream::decode_all(&bytes[..]).unwrap();
    let found = Found { name: Name::parse(&path).unwrap(), path, bytes: bytes.len() as u64 };
    let mut blocks = Vec::new();
    for piece in Pieces::new(Arc::new(shelf), found) {
        match piece.unwrap() {
            Piece::Block(frames) => blocks.extend_from_slice(&frames),
            Piece::Tail(tail) => assert_eq!((tail.frames, tail.records, tail.frame_bytes), (6, 6, plain.len() as u64)),
            Piece::Damaged(bytes, _) => panic!("{bytes:?} is damaged"),
        }
    }
    assert!(blocks == plain);
}

#[test]
fn golden_copies_of_every_version_are_still_read() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (_log, job, expected) = sealed(&disk, &[1, 200, 9_000]);
    let path = Name::new("node-1", &job).path();
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        copy_whole(&disk, &shelf, job);
        std::fs::write(crate::wal_commit::tests::golden("long-term-v4.owl"), shelf.contents(&path)).unwrap();
    }
    // Read only: another version of zstd may compress the same frames into other bytes.
    for name in ["long-term-v1.owl", "long-term-v2.owl", "long-term-v3.owl", "long-term-v4.owl"] {
        shelf.put(&path, std::fs::read(crate::wal_commit::tests::golden(name)).unwrap());
        let (found, errors) = frames_on(&shelf);
        assert!(found == expected && errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn damaged_bytes_hide_the_frames_of_their_block_only_and_are_reported() {
    let (shelf, path, expected) = shelf_with_blocks();
    let bytes = shelf.contents(&path);
    for at in (0..bytes.len()).step_by(bytes.len() / 50).chain(0..150).chain(bytes.len() - 150..bytes.len()) {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 0x10;
        shelf.put(&path, damaged);
        let (found, errors) = frames_on(&shelf);
        // Two frames make a block here.
        assert!(found.len() + 2 >= expected.len(), "byte {at}: {} frames", found.len());
        assert!(found.iter().all(|frame| expected.contains(frame)), "byte {at}: a frame that was never written");
        assert_eq!(errors.len(), 1, "byte {at}: {errors:?}");
        assert!(matches!(errors[0], Error::Copy { .. }), "byte {at}: {:?}", errors[0]);
    }
}

#[test]
fn forged_lengths_of_a_block_are_damage_and_take_no_memory() {
    let (shelf, path, _) = shelf_with_blocks();
    let copy = shelf.contents(&path);
    let block = format::Block::decode(&copy[format::MARK_BYTES..], 1, format::MARK_BYTES as u64).unwrap();
    let stored = &copy[2 * format::MARK_BYTES..][..block.stored_bytes as usize];
    assert_eq!(block.decompress(stored).map(|frames| frames.len()), Some(block.frame_bytes as usize));
    for frame_bytes in [0, block.frame_bytes - 1, block.frame_bytes + 1, u32::MAX] {
        for frames in [1, 2] {
            assert_eq!(format::Block { frame_bytes, frames, ..block }.decompress(stored), None, "{frame_bytes}");
        }
    }
}

#[test]
fn copy_cut_at_any_length_is_reported_and_read_as_far_as_it_goes() {
    let (shelf, path, expected) = shelf_with_blocks();
    let bytes = shelf.contents(&path);
    let mut most = 0;
    for length in (0..bytes.len()).step_by(bytes.len() / 50).chain(bytes.len() - 70..bytes.len()) {
        shelf.put(&path, bytes.slice(..length));
        let (found, errors) = frames_on(&shelf);
        assert!(expected.starts_with(&found), "{length}");
        assert_eq!(errors.len(), 1, "{length}: {errors:?}");
        most = most.max(found.len());
    }
    assert_eq!(most, expected.len());
}

#[test]
fn newer_copy_is_refused_and_named() {
    let (shelf, path, _) = shelf_with_blocks();
    let mut bytes = shelf.contents(&path).to_vec();
    bytes[20] = 5;
    let crc = crc32c::crc32c(&bytes[20..64]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    shelf.put(&path, bytes);
    let (found, errors) = frames_on(&shelf);
    assert!(found.is_empty() && matches!(errors[..], [Error::Version { found: 5, known: 4, .. }]), "{errors:?}");
}

#[test]
fn former_life_of_a_reused_segment_is_never_copied() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let config = LogConfig { bytes_max: 3 * segment::BYTES_MIN, ..log_config() };
    let (mut log, _) = open(&disk, &config, 1_000);
    let mut expected = Vec::new();
    for epoch in 2_000..2_200u64 {
        // Of many lengths, so that frames of former lives lie behind every end.
        let frame = batch(0, epoch as i64 * 10, 1, 100 + (epoch as usize * 577) % 7_000);
        log.append(Epoch(epoch), &frame).unwrap();
        log.sync().unwrap();
        log.save_keys().unwrap();
        expected.push(content(Epoch(epoch), &frame));
        while let Some(job) = log.take_uncopied() {
            copy_whole(&disk, &shelf, job);
            log.copied(job.segment).unwrap();
        }
        log.release(Epoch(epoch)).unwrap();
    }
    assert!(log.stats().segments_reused > 20, "{:?}", log.stats());
    let (found, errors) = frames_on(&shelf);
    // All but those of the active segment.
    assert!(expected.starts_with(&found) && found.len() > 190 && errors.is_empty(), "{} {errors:?}", found.len());
}

#[test]
fn torn_tail_of_the_last_run_is_not_copied() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (mut log, _) = open(&disk, &log_config(), 1_000);
    let frames = [batch(0, 0, 2, 100), batch(0, 2, 3, 2_000), batch(0, 5, 3, 100)];
    log.append(Epoch(2_000), &frames[0]).unwrap();
    log.sync().unwrap();
    log.append(Epoch(2_001), &frames[1]).unwrap();
    log.append(Epoch(2_002), &frames[2]).unwrap();
    log.write().unwrap();
    // The first of the two torn frames loses a sector, the one behind it is whole.
    assert!(disk.edit(&segment::segment_name(1), |bytes| bytes[4_096 + 1_024..4_096 + 1_536].fill(0)));
    let crashed = disk.crash(&mut |_| 0);
    drop(log);
    let (mut log, recovery) = open(&crashed, &log_config(), 3_000);
    let job = log.take_uncopied().unwrap();
    copy_whole(&crashed, &shelf, job);
    let (found, errors) = frames_on(&shelf);
    assert_eq!(found, [content(Epoch(2_000), &frames[0])]);
    assert!(found == recovered(&recovery) && errors.is_empty());
}

#[test]
fn damaged_frame_of_a_segment_is_left_out_and_reported() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (_log, job, mut expected) = sealed(&disk, &[3_000, 3_000, 3_000]);
    assert!(disk.edit(&segment::segment_name(1), |bytes| bytes[segment::FRAMES_START as usize + 5_000] ^= 1));
    let copied = copy_whole(&disk, &shelf, job);
    assert_eq!(copied.damaged.len(), 1);
    expected.remove(1);
    assert_eq!(frames_on(&shelf).0, expected);
}

#[test]
fn copy_that_fails_anywhere_is_not_there_and_the_next_attempt_makes_it() {
    let disk = Memory::aligned();
    let (_log, job, expected) = sealed(&disk, &[1_000_000; 6]);
    let whole = MemoryShelf::default();
    copy_whole(&disk, &whole, job);
    for after in 0..whole.calls() {
        let shelf = MemoryShelf::default();
        shelf.fail(after);
        assert!(copy(&disk, &shelf, &config(), job, &|| false).is_err(), "call {after}");
        // Only the look that verifies comes after the copy is there.
        assert_eq!(shelf.paths().len(), usize::from(after == whole.calls() - 1), "call {after}");
        copy_whole(&disk, &shelf, job);
        assert!(frames_on(&shelf).0 == expected, "call {after}");
    }
}

#[test]
fn copy_without_its_end_is_made_anew_and_a_whole_one_is_left_alone() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (_log, job, expected) = sealed(&disk, &[3_000, 3_000]);
    copy_whole(&disk, &shelf, job);
    assert_eq!(copy_whole(&disk, &shelf, job).frame_bytes, 0);
    assert_eq!(shelf.drafts(), 1);
    let path = shelf.paths().remove(0);
    let bytes = shelf.contents(&path);
    shelf.put(&path, bytes.slice(..bytes.len() - 1));
    copy_whole(&disk, &shelf, job);
    assert_eq!((shelf.drafts(), frames_on(&shelf).0), (2, expected));
}

#[test]
fn names_come_back_as_they_were_made_and_sort_by_time() {
    let job = |segment, first| Job { segment, end: 9_000, first: Epoch(first), last: Epoch(first + 5) };
    let names = [
        Name::new("b-2-x", &job(7, 1_790_000_000_000)),
        Name::new("a", &job(8, 1_790_000_000_001)),
        Name::new("a", &job(9, 1_790_000_000_001)),
        Name::new("a", &job(1, 1_790_086_400_000)),
    ];
    assert!(names.is_sorted());
    assert_eq!(names[0].path(), "2026-09-21/b-2-x-00000000000000000007-1790000000000-1790000000005.owl");
    for name in names {
        assert_eq!(Name::parse(&name.path()), Some(name));
    }
    for other in ["", "lock", "segment-00000000000000000001.wal", "a-1-2.owl", "x-a-1-2.owl", "2026-09-21/"] {
        assert_eq!(Name::parse(other), None, "{other}");
    }
}

#[test]
fn cleanup_removes_the_oldest_published_copies_past_their_time_or_beyond_the_bound() {
    let found = |first: u64, last: u64, bytes: u64| {
        let name = Name { first: Epoch(first), node: "a".into(), segment: first, last: Epoch(last) };
        Found { path: name.path(), name, bytes }
    };
    let copies = vec![found(300, 400, 10), found(100, 200, 10), found(200, 300, 10), found(400, 500, 10)];
    let check = |retention_ms, bytes_max, published, newest, expected: &[u64]| {
        let cleanup = Cleanup { interval: Duration::ZERO, retention_ms, bytes_max };
        let horizon = Horizon { published: Epoch(published), newest: Epoch(newest) };
        let removed: Vec<u64> = expired(copies.clone(), &cleanup, horizon).iter().map(|copy| copy.name.first.0).collect();
        assert_eq!(removed, expected, "{cleanup:?} {horizon:?}");
    };
    check(1_000, 100, 600, 600, &[]);
    check(250, 100, 600, 600, &[100, 200]);
    check(0, 100, 600, 600, &[100, 200, 300, 400]);
    check(1_000, 25, 600, 600, &[100, 200]);
    check(1_000, 0, 600, 600, &[100, 200, 300, 400]);
    // What is not published stays, whatever its age and size.
    check(0, 0, 300, 10_000, &[100]);
    check(0, 0, 5, 10_000, &[]);
}

fn writer(disk: &Memory, shelf: &MemoryShelf, config: &LogConfig, run_epoch: u64) -> (Writer, Health) {
    let health = Health::default();
    let log = open(disk, config, run_epoch).0;
    (Writer::spawn_on(Some(Arc::new(shelf.clone())), log, health.clone()).unwrap(), health)
}

fn append(writer_port: &crate::wal_commit::Port, epoch: u64, bytes: usize) -> Content {
    let batch = batch(0, epoch as i64, 1, bytes);
    let expected = content(Epoch(epoch), &batch);
    writer_port.append(AppendJob { ticket: epoch, batches: vec![(Epoch(epoch), batch.into())] });
    assert_eq!(writer_port.receiver().recv_timeout(PATIENCE).unwrap().ticket, epoch);
    expected
}

fn wait_for(writer: &Writer, reached: impl Fn(&crate::wal_commit::log::Stats) -> bool) -> crate::wal_commit::log::Stats {
    let start = Instant::now();
    loop {
        let stats = writer.stats();
        if reached(&stats) {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "{stats:?}");
        std::thread::yield_now();
    }
}

#[test]
fn store_that_is_away_holds_segments_and_no_acknowledgement_and_loses_nothing() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    shelf.set_away(true);
    let (writer, health) = writer(&disk, &shelf, &log_config(), 1_000);
    let port = writer.port(|| {});
    let mut expected = Vec::new();
    // Twelve segments of sixteen: each job is acknowledged and published at once, none may be reused.
    for epoch in 2_000..2_036 {
        expected.push(append(&port, epoch, 3_900));
        writer.release(Epoch(epoch + 1));
    }
    let stats = wait_for(&writer, |stats| stats.long_term.failures > 0);
    assert!(stats.segments_reused == 0 && stats.segments_free == 0 && !stats.stalled, "{stats:?}");
    assert!(stats.segments_uncopied >= 10 && stats.long_term.failing && stats.long_term.copied == 0, "{stats:?}");
    shelf.set_away(false);
    let stats = wait_for(&writer, |stats| stats.segments_uncopied == 0);
    assert!(stats.segments_free > 0 && !stats.long_term.failing, "{stats:?}");
    for epoch in 2_036..2_100 {
        expected.push(append(&port, epoch, 3_900));
        writer.release(Epoch(epoch + 1));
    }
    let stats = wait_for(&writer, |stats| stats.segments_uncopied == 0);
    assert!(stats.segments_reused > 10, "{stats:?}");
    writer.shutdown();
    assert!(!health.failed());
    let (found, errors) = frames_on(&shelf.healed());
    assert!(expected.starts_with(&found) && found.len() > 90 && errors.is_empty(), "{}", found.len());
}

#[test]
fn full_log_waits_for_a_store_that_is_away_and_goes_on_when_it_is_back() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    shelf.set_away(true);
    let config = LogConfig { bytes_max: 3 * segment::BYTES_MIN, ..log_config() };
    let (writer, health) = writer(&disk, &shelf, &config, 1_000);
    let port = writer.port(|| {});
    for ticket in 0..20u64 {
        port.append(AppendJob { ticket, batches: vec![(Epoch(2_000 + ticket), batch(0, ticket as i64, 1, 3_900).into())] });
    }
    writer.release(Epoch(3_000));
    let stats = wait_for(&writer, |stats| stats.stalled);
    assert!(stats.total_bytes <= config.bytes_max && stats.segments_reused == 0);
    shelf.set_away(false);
    for ticket in 0..20 {
        assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
    }
    writer.shutdown();
    assert!(!health.failed());
}

#[test]
fn segments_a_run_left_uncopied_are_copied_by_the_next_under_the_same_names() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let (first, _) = writer(&disk, &shelf, &log_config(), 1_000);
    let port = first.port(|| {});
    let mut expected: Vec<_> = (2_000..2_010).map(|epoch| append(&port, epoch, 3_900)).collect();
    wait_for(&first, |stats| stats.segments_uncopied == 0 && stats.long_term.copied > 0);
    shelf.set_away(true);
    expected.extend((2_010..2_020).map(|epoch| append(&port, epoch, 3_900)));
    first.shutdown();
    drop((port, first));
    let (copies, shelf) = (shelf.paths(), shelf.healed());
    // Nothing was published: all of it enters the dataflow again, what is there already is not copied again.
    let (second, health) = writer(&disk, &shelf, &log_config(), 5_000);
    wait_for(&second, |stats| stats.segments_uncopied == 0 && stats.long_term.copied > 0);
    second.shutdown();
    assert!(!health.failed());
    assert_eq!(shelf.drafts() as usize, shelf.paths().len() - copies.len());
    assert!(shelf.paths().starts_with(&copies) && shelf.paths().len() > copies.len());
    let (found, errors) = frames_on(&shelf.healed());
    assert!(found == expected && errors.is_empty());
}

#[test]
fn cleanup_keeps_what_is_unpublished_and_what_is_others() {
    let (disk, shelf) = (Memory::aligned(), MemoryShelf::default());
    let other = Name { first: Epoch(5), node: "node-2".into(), segment: 1, last: Epoch(6) };
    shelf.put(&other.path(), vec![0; 10]);
    let cleanup = Cleanup { interval: Duration::from_millis(1), retention_ms: 500, bytes_max: 1 << 30 };
    let long_term = Config { cleanup: Some(cleanup), ..config() };
    let (writer, health) = writer(&disk, &shelf, &LogConfig { long_term: Some(long_term), ..log_config() }, 1_000);
    let port = writer.port(|| {});
    for epoch in (2_000..4_000).step_by(100) {
        append(&port, epoch, 3_900);
    }
    let stats = wait_for(&writer, |stats| stats.segments_uncopied == 0 && stats.long_term.copied > 0 && stats.long_term.kept > 0);
    assert_eq!(stats.long_term.removed, 0, "nothing is published");
    let copies = shelf.paths().len();
    writer.release(Epoch(3_001));
    let stats = wait_for(&writer, |stats| stats.long_term.removed > 0 && stats.long_term.kept as usize + 1 < copies);
    assert!(stats.long_term.kept > 0 && stats.long_term.kept_bytes > 0);
    writer.shutdown();
    assert!(!health.failed());
    let left: Vec<Name> = shelf.paths().iter().filter_map(|path| Name::parse(path)).collect();
    assert!(left.contains(&other));
    assert!(left.iter().filter(|name| name.node == "node-1").all(|name| name.last >= Epoch(3_001)), "{left:?}");
}

#[test]
fn published_segments_are_kept_for_their_retention_and_given_up_for_room() {
    let disk = Memory::aligned();
    let config = LogConfig { retention_ms: 1_000, bytes_max: 8 * segment::BYTES_MIN, ..small_config() };
    let (mut log, _) = open(&disk, &config, 1_000);
    let append = |log: &mut Log, epoch: u64| {
        log.append(Epoch(epoch), &batch(0, epoch as i64, 1, 3_900)).unwrap();
        log.sync().unwrap();
        log.save_keys().unwrap();
        log.release(Epoch(epoch)).unwrap();
        log.stats()
    };
    for epoch in (2_000..2_900).step_by(100) {
        let stats = append(&mut log, epoch);
        assert_eq!((stats.segments_free, stats.segments_reused), (0, 0), "epoch {epoch}");
    }
    assert!(append(&mut log, 5_000).segments_free > 0, "a second later they are free");
    // All in one second: the bound comes first, and never stops the log.
    for epoch in 5_001..5_060 {
        assert!(append(&mut log, epoch).total_bytes <= config.bytes_max);
    }
    assert!(log.stats().segments_reused > 10);
    log.release(Epoch(u64::MAX)).unwrap();
    assert!(log.stats().segments > 2, "the end of the run is no reason to forget");
}

#[test]
fn folder_on_the_real_disk_holds_whole_copies_by_day_and_is_read_back() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let store = ObjectStore::Fs { root: directory.path().join("long") };
    let long_term = Config { store: store.clone(), ..config() };
    let log = LogConfig { directory: directory.path().join("short"), long_term: Some(long_term), ..small_config() };
    let health = Health::default();
    let writer = Writer::spawn(Log::open(log, Epoch(1_000)).unwrap().0, health.clone()).unwrap();
    let port = writer.port(|| {});
    // Two days, the second beginning in the middle.
    let expected: Vec<_> = (0..40).map(|number| append(&port, 1_790_035_180_000 + number * 1_000, 3_900)).collect();
    wait_for(&writer, |stats| stats.segments_uncopied == 0 && stats.long_term.copied > 0);
    writer.shutdown();
    assert!(!health.failed());
    let shelf: Arc<dyn Shelf> = Arc::new(Store::open(&store).unwrap());
    let read = |selection| -> Vec<Content> {
        let frames = Frames::open(shelf.clone(), selection).unwrap().map(Result::unwrap);
        frames.map(|frame| content(frame.epoch, &frame.batch)).collect()
    };
    let found = read(Selection::default());
    assert!(expected.starts_with(&found) && found.len() > 35, "{}", found.len());
    let days: std::collections::BTreeSet<_> = shelf.list().unwrap().iter().map(|copy| copy.name.day().to_string()).collect();
    assert_eq!(days.into_iter().collect::<Vec<_>>(), ["2026-09-21", "2026-09-22"]);
    // Midnight is inside a copy: a selection is by frame.
    let midnight = Epoch(1_790_035_200_000);
    let from = read(Selection { from: Some(midnight), ..Selection::default() });
    let until = read(Selection { until: Some(midnight), ..Selection::default() });
    assert_eq!((until.len(), [until, from].concat()), (20, found));
    assert!(read(Selection { topics: vec!["other".into()], ..Selection::default() }).is_empty());
    // A half-made file, as a crash leaves it, is no copy.
    let folder = directory.path().join("long/.[openwit-uploads]");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("node-1-00000000000000000099-1790000000000-1790000000005.owl.x"), [1; 99]).unwrap();
    std::fs::write(folder.join("node-1-00000000000000000099-1790000000000-1790000000005.owl"), [1; 99]).unwrap();
    assert!(shelf.list().unwrap().iter().all(|copy| copy.name.segment < 99));
}
