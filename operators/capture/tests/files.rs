//! The files: their bytes, their bounds, and what is left of them when they are cut or damaged, or the disk fails.

use super::*;
use crate::batch::{NormalizedBatch, UniqueBatch};
use crate::capture::format::{MARK_BYTES, VERSION};
use crate::capture::read::State;
use crate::wal_commit::memory::Fault;

/// A file of several blocks: each epoch is flushed, as when the next one is late.
fn blocks(disk: &Memory, config: Config, batches: &[(Epoch, RawBatch)]) -> Vec<u64> {
    let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config).unwrap();
    let mut ends = Vec::new();
    for of_epoch in batches.chunk_by(|(one, _), (next, _)| one == next) {
        of_epoch.iter().for_each(|(epoch, batch)| recorder.push(*epoch, batch).unwrap());
        recorder.flush().unwrap();
        ends.push(recorder.progress().total_bytes);
    }
    recorder.finish().unwrap();
    ends
}

fn only_name(disk: &Memory) -> String {
    let mut entries = disk.list().unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0).name
}

fn golden(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("capture/golden").join(name)
}

/// A disk with one file of these bytes.
fn disk_with(name: &str, bytes: Vec<u8>) -> Memory {
    let disk = Memory::default();
    disk.create(name, 0, crate::wal_commit::disk::Access::Bytes).unwrap();
    disk.edit(name, |file| *file = bytes);
    disk
}

fn check_golden(name: &str, disk: &Memory) {
    let written = disk.contents(&only_name(disk)).unwrap();
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        std::fs::write(golden(name), &written).unwrap();
    }
    assert!(written == std::fs::read(golden(name)).unwrap(), "{name} differs: a change needs a new format version");
}

#[test]
fn captures_equal_their_golden_files() {
    let (disk, batches) = (Memory::default(), recorded(2, 6));
    blocks(&disk, config(), &batches);
    assert_eq!(only_name(&disk), "capture-00000000000000001000-00000000.owcap");
    check_golden("raw-v1.owcap", &disk);
    assert_eq!(read_whole(&disk), contents_of(&batches));
    let disk = Memory::default();
    let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config()).unwrap();
    recorder.push(Epoch(5), &round_trip::normalized()).unwrap();
    recorder.finish().unwrap();
    check_golden("normalized-v1.owcap", &disk);
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_says_so() {
    let mut bytes = std::fs::read(golden("raw-v1.owcap")).unwrap();
    bytes[20..24].copy_from_slice(&(VERSION + 1).to_le_bytes());
    let crc = crc32c::crc32c(&bytes[20..MARK_BYTES]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    let (contents, errors) = read_all(&disk_with("capture-1-1.owcap", bytes.clone()), Selection::default());
    assert!(contents.is_empty());
    let expected = "capture memory/capture-1-1.owcap has format version 2, this program reads up to 1; read it with the program that wrote it";
    assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    // Nor is one that its writer has not ended taken over.
    let disk = disk_with("capture-1-1.owcap.part", bytes.clone());
    let opened = Recorder::<RawBatch>::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config());
    assert!(matches!(opened.err(), Some(Error::Version { .. })));
    assert_eq!(disk.contents("capture-1-1.owcap.part"), Some(bytes));
}

#[test]
fn a_file_is_a_legal_zstd_file() {
    let bytes = std::fs::read(golden("raw-v1.owcap")).unwrap();
    let unpacked = zstd::stream::decode_all(&bytes[..]).unwrap();
    let disk = disk_with("capture-1-1.owcap", bytes);
    let summary = Files::on(Arc::new(disk)).unwrap().summaries().unwrap().remove(0);
    // The entries, and the marks of the blocks in the index.
    assert_eq!(unpacked.len() as u64, summary.contents.bytes + summary.blocks * MARK_BYTES as u64);
}

#[test]
fn a_file_cut_at_any_byte_is_read_up_to_its_last_whole_block_and_made_whole_by_the_next_start() {
    let (disk, batches) = (Memory::default(), recorded(4, 3));
    let ends = blocks(&disk, config(), &batches);
    let (name, whole) = (only_name(&disk), contents_of(&batches));
    let bytes = disk.contents(&name).unwrap();
    for cut in 0..bytes.len() {
        let part = format!("{name}.part");
        let disk = disk_with(&part, bytes[..cut].to_vec());
        let kept = &whole[..3 * ends.iter().filter(|&&end| end <= cut as u64).count()];
        let (contents, errors) = read_all(&disk, Selection::default());
        assert_eq!(contents, kept, "cut at {cut}");
        assert!(matches!(errors[..], [Error::Torn { .. }]), "cut at {cut}: {errors:?}");
        let summary = Files::on(Arc::new(disk.clone())).unwrap().summaries().unwrap().remove(0);
        assert_eq!((summary.state, summary.contents.batches), (State::Unfinished, kept.len() as u64), "cut at {cut}");
        drop(Recorder::<RawBatch>::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config()).unwrap());
        assert_eq!(read_whole(&disk), kept, "cut at {cut}");
        assert_eq!(disk.list().unwrap().len(), usize::from(!kept.is_empty()), "cut at {cut}");
        assert!(disk.contents(&part).is_none(), "cut at {cut}");
    }
}

#[test]
fn damage_anywhere_hides_its_own_block_and_is_told_with_what_is_lost() {
    let (disk, batches) = (Memory::default(), recorded(4, 3));
    let ends = blocks(&disk, config(), &batches);
    let (name, whole) = (only_name(&disk), contents_of(&batches));
    let bytes = disk.contents(&name).unwrap();
    let last = *ends.last().unwrap() as usize;
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let (contents, errors) = read_all(&disk_with(&name, damaged), Selection::default());
        let hit = ends.iter().position(|&end| (at as u64) < end).filter(|_| at >= MARK_BYTES);
        let expected: Vec<_> =
            whole.chunks(3).enumerate().filter(|(block, _)| Some(*block) != hit).flat_map(|(_, of)| of).collect();
        assert_eq!(contents.iter().collect::<Vec<_>>(), expected, "damage at {at}");
        let lost = match &errors[..] {
            [Error::Damaged { lost_contents: Some(Lost(contents)), bytes, .. }] => {
                assert!(bytes.contains(&(at as u64)), "damage at {at} told as {bytes:?}");
                contents.batches
            }
            // The head holds no batch; of the end nothing is needed but by those who ask for the index.
            [] | [Error::Damaged { lost_contents: None, .. }] | [Error::Torn { .. }] if at < MARK_BYTES || at >= last => 0,
            errors => panic!("damage at {at}: {errors:?}"),
        };
        assert_eq!(lost, if hit.is_some() { 3 } else { 0 }, "damage at {at}");
    }
}

#[test]
fn files_are_rotated_and_the_oldest_removed_at_the_bound() {
    let (disk, batches) = (Memory::default(), recorded(60, 100));
    let config = Config { file_bytes_max: 10_000, total_bytes_max: 30_000, ..config() };
    let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config).unwrap();
    for of_epoch in batches.chunks(3) {
        of_epoch.iter().for_each(|(epoch, batch)| recorder.push(*epoch, batch).unwrap());
        recorder.flush().unwrap();
        let bytes: u64 = disk.list().unwrap().iter().map(|entry| entry.bytes).sum();
        assert!(bytes <= 30_000, "{bytes} bytes");
        assert_eq!(bytes, recorder.progress().total_bytes);
    }
    recorder.finish().unwrap();
    let progress = recorder.progress();
    let files = Files::on(Arc::new(disk.clone())).unwrap();
    assert!(progress.removed >= 3 && progress.files == progress.removed + files.files().len() as u64, "{progress:?}");
    assert!(files.files().is_sorted_by_key(|file| file.number));
    let left = read_whole(&disk);
    assert!(!left.is_empty() && contents_of(&batches).ends_with(&left), "the newest are kept, without a gap");
    // A restart goes on where it was, with the same bound.
    drop(recorder);
    let recorder = Recorder::<RawBatch>::open(Arc::new(disk.clone()) as Arc<dyn Disk>, self::config()).unwrap();
    assert_eq!(recorder.progress().total_bytes, progress.total_bytes);
}

#[test]
fn whatever_operation_fails_nothing_is_lost_or_doubled_once_it_succeeds() {
    let batches = recorded(8, 60);
    let config = Config { file_bytes_max: 4_000, ..config() };
    let run = |disk: &Memory| {
        let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config.clone()).unwrap();
        let mut failed = 0;
        let mut until_done = |attempt: &mut dyn FnMut() -> Result<(), Error>| -> Result<(), Error> {
            while let Err(error) = attempt() {
                failed += 1;
                if !error.is_retriable() {
                    return Err(error);
                }
            }
            Ok(())
        };
        for (epoch, batch) in &batches {
            until_done(&mut || recorder.push(*epoch, batch))?;
            until_done(&mut || recorder.flush())?;
        }
        until_done(&mut || recorder.finish())?;
        Ok::<u32, Error>(failed)
    };
    let disk = Memory::default();
    run(&disk).unwrap();
    let (operations, expected) = (disk.operations(), contents_of(&batches));
    let mut refused = 0;
    for operation in 0..operations {
        for fault in [Fault::Io, Fault::Full(0), Fault::Full(50)] {
            let disk = Memory::default();
            disk.fail(operation, fault);
            match run(&disk) {
                Ok(failed) => {
                    assert_eq!(failed, 1, "{fault:?} at {operation}");
                    assert_eq!(read_whole(&disk), expected, "{fault:?} at {operation}");
                }
                // A sync.
                Err(Error::Sync { .. }) => refused += 1,
                Err(error) => panic!("{fault:?} at {operation}: {error}"),
            }
        }
    }
    assert!(refused > 0 && refused < operations * 3 / 2);
}

#[test]
fn batches_that_come_while_the_disk_is_full_are_all_there_once_it_is_not() {
    let batches = recorded(4, 40_000);
    for patience in 1..8 {
        let disk = Memory::default();
        let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config()).unwrap();
        disk.limit(Some(0));
        let mut failed = 0;
        for (epoch, batch) in &batches {
            while let Err(error) = recorder.push(*epoch, batch) {
                assert!(error.is_full(), "{error}");
                failed += 1;
                if failed == patience {
                    disk.limit(None);
                }
            }
        }
        recorder.finish().unwrap();
        assert!(failed >= patience && read_whole(&disk) == contents_of(&batches), "after {failed} failures");
    }
}

#[test]
fn a_machine_that_dies_takes_nothing_of_a_file_that_was_ended() {
    let batches = recorded(12, 300);
    for seed in 0..60u64 {
        let disk = Memory::default();
        let config = Config { file_bytes_max: 9_000, ..config() };
        let mut recorder = Recorder::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config.clone()).unwrap();
        let dies_after = 3 + (seed as usize * 5) % (batches.len() - 3);
        for (epoch, batch) in &batches[..dies_after] {
            recorder.push(*epoch, batch).unwrap();
            recorder.flush().unwrap();
        }
        let ended = Files::on(Arc::new(disk.clone())).unwrap().files().iter().filter(|file| !file.is_part()).count();
        let mut state = seed * 2 + 1;
        let left = disk.crash(&mut |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        });
        // Blocks in the file that was being written may be missing in the middle; none is of other bytes than were written.
        let mut whole = contents_of(&batches).into_iter();
        let (contents, errors) = read_all(&left, Selection::default());
        assert!(errors.iter().all(Error::is_damage), "seed {seed}: {errors:?}");
        assert!(contents.iter().all(|content| whole.any(|written| written == *content)), "seed {seed}");
        drop(Recorder::<RawBatch>::open(Arc::new(left.clone()) as Arc<dyn Disk>, config).unwrap());
        assert_eq!(read_all(&left, Selection::default()).0, contents, "seed {seed}: made whole, it holds what it held");
        let summaries = Files::on(Arc::new(left)).unwrap().summaries().unwrap();
        assert!(summaries.len() >= ended && summaries.iter().all(|file| file.state == State::Whole), "seed {seed}");
    }
}

#[test]
fn what_is_selected_by_epoch_time_or_topic_is_read_and_nothing_else() {
    let (disk, batches) = (Memory::default(), recorded(30, 40));
    blocks(&disk, Config { file_bytes_max: 3_000, ..config() }, &batches);
    assert!(disk.list().unwrap().len() > 2);
    let check = |selection: Selection, is_selected: &dyn Fn(&Content) -> bool| {
        let (contents, errors) = read_all(&disk, selection.clone());
        let expected: Vec<_> = contents_of(&batches).into_iter().filter(|content| is_selected(content)).collect();
        assert!(errors.is_empty() && contents == expected && !expected.is_empty(), "{selection:?}: {errors:?}");
    };
    let (from, until) = (Some(Epoch(1_055)), Some(Epoch(1_200)));
    check(Selection { from, until, ..Selection::default() }, &|content| (1_060..1_200).contains(&content.epoch.0));
    let (from_ms, until_ms) = (1_790_000_000_505, 1_790_000_000_900);
    check(Selection { from_ms: Some(from_ms), until_ms: Some(until_ms), ..Selection::default() }, &|content| {
        let times: Vec<i64> = content.records.iter().map(|record| record.1).filter(|&time| time != -1).collect();
        times.iter().any(|&time| time >= from_ms) && times.iter().any(|&time| time < until_ms)
    });
    check(Selection { topics: vec!["carts".into()], ..Selection::default() }, &|content| {
        *content.partition.topic.name == *"carts"
    });
}

#[test]
fn a_summary_tells_what_a_file_holds_without_reading_it() {
    let (disk, batches) = (Memory::default(), recorded(5, 20));
    write_all(&disk, config(), &batches);
    let summary = Files::on(Arc::new(disk.clone())).unwrap().summaries().unwrap().remove(0);
    let records: usize = batches.iter().map(|(_, batch)| batch.records.len()).sum();
    assert_eq!((summary.kind, summary.state, summary.blocks, summary.damaged), (Some(Kind::Raw), State::Whole, 1, 0));
    assert_eq!((summary.contents.first, summary.contents.last), (Epoch(1_000), Epoch(1_040)));
    assert_eq!((summary.contents.batches, summary.contents.records), (15, records as u64));
    assert_eq!(summary.contents.times.range(), Some((1_790_000_000_000, 1_790_000_000_490)));
    assert_eq!(Files::on(Arc::new(disk)).unwrap().kind().unwrap(), Some(Kind::Raw));
}

#[test]
fn a_capture_of_another_edge_is_refused() {
    let disk = Memory::default();
    write_all(&disk, config(), &recorded(1, 5));
    let files = Files::on(Arc::new(disk)).unwrap();
    let mut batches = files.batches::<UniqueBatch>(Selection::default());
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Kind { found: Kind::Raw, wanted: Kind::Unique, .. }) && !error.is_damage(), "{error}");
    assert!(batches.next().is_none());
    assert!(files.batches::<NormalizedBatch>(Selection::default()).next().unwrap().is_err());
}

#[test]
fn a_directory_and_a_single_file_of_any_name_are_read_alike_and_locked_against_a_second_writer() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("deep/down");
    let config = Config { flush_ms: 1, ..Config::new(&directory) };
    let open = || Writer::<RawBatch>::spawn(config.clone(), Health::default(), Arc::new(ManualClock::default()));
    let writer = open().unwrap();
    let error = open().err().unwrap();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    let mut port = writer.port(0, 1, || {});
    let batches = recorded(3, 50);
    batches.iter().for_each(|(epoch, batch)| port.append(*epoch, std::slice::from_ref(batch)));
    port.advance(None);
    drop((port, writer));
    let read = |path: &std::path::Path| {
        let batches = Files::open(path).unwrap().batches::<RawBatch>(Selection::default());
        batches.map(|read| read.map(|Recorded { epoch, batch }| content(epoch, &batch)).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(read(&directory), contents_of(&batches));
    let file = directory.join(&Files::open(&directory).unwrap().files()[0].name);
    let renamed = folder.path().join("yesterday");
    std::fs::rename(file, &renamed).unwrap();
    assert_eq!(read(&renamed), contents_of(&batches));
}

#[test]
fn values_that_cannot_work_are_refused() {
    assert!(Config::new("x").check().is_ok());
    assert!(Config { total_bytes_max: 300 << 20, ..Config::new("x") }.check().is_err());
    assert!(Config { file_bytes_max: 0, ..Config::new("x") }.check().is_err());
    assert!(Config { compression_level: 99, ..Config::new("x") }.check().is_err());
}
