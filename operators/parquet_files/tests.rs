//! Proves that the files depend on nothing but what is in them, that a disk which refuses them holds the frontier, and that no folder of
//! somebody else is touched. It cannot prove anything about a disk that loses power.

use std::io::ErrorKind;
use std::sync::atomic::AtomicUsize;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::clock::SystemClock;
use crate::coverage::{Coverage, Dispositions};
use crate::parquet_files::note::FileNote;
use crate::parquet_roll::Compression;
use crate::testing::{self, Dice, Passed, Shape as Run, run};

fn limits(file_bytes_max: u64, epoch_span_max: u64) -> Limits {
    let shape = Shape { row_group_rows_max: 50, compression: Compression::Zstd(1), bloom_filters: true };
    Limits { file_bytes_max, epoch_span_max, shape }
}

fn config(directory: &Path) -> Config {
    Config { directory: directory.into(), existing: Existing::Refuse, limits: limits(200_000, 1_000) }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

type Items = Vec<(Epoch, UniqueBatch)>;

fn items(epochs: u64, dice: &mut Dice) -> Items {
    testing::batches(epochs, dice).into_iter().map(|(epoch, batch)| (epoch, UniqueBatch(batch))).collect()
}

fn write(shape: Run, items: &Items, config: &Config, dice: &mut Dice) -> Arc<Stats> {
    let (health, stats) = (Health::default(), Arc::<Stats>::default());
    let (ports, thread) = Ports::open(config, clock(), health.clone(), stats.clone()).unwrap();
    write_with(shape, items, config, dice, ports, &health, &Passed::default());
    assert_eq!(health.fault(), None);
    thread.join().unwrap();
    stats
}

fn write_with(shape: Run, items: &Items, config: &Config, dice: &mut Dice, ports: Ports, health: &Health, passed: &Passed) {
    let config = config.clone();
    run(shape, items, dice, health, passed, move |stream, _process| parquet_files(stream, config.clone(), ports.clone()));
}

/// All files by name inside `directory`, the marker apart.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for index in entries(directory).unwrap().iter().filter(|path| path.is_dir()) {
        for signal in entries(index).unwrap() {
            for file in entries(&signal).unwrap() {
                let name = file.strip_prefix(directory).unwrap().to_string_lossy().into_owned();
                found.insert(name, fs::read(file).unwrap());
            }
        }
    }
    found
}

fn read(bytes: &[u8]) -> (FileNote, Vec<RecordBatch>) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
    let note = FileNote::read(builder.metadata()).unwrap().unwrap();
    (note, builder.build().unwrap().map(Result::unwrap).collect())
}

#[test]
fn files_are_the_same_for_every_number_of_workers_and_processes() {
    let mut dice = Dice::new(1);
    let items = items(150, &mut dice);
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for shape in [Run::Workers(1), Run::Workers(2), Run::Workers(4), Run::Workers(7), Run::Workers(2), Run::Processes(2, 2)] {
        let folder = tempfile::tempdir().unwrap();
        write(shape, &items, &config(folder.path()), &mut dice);
        let found = files(folder.path());
        let expected = first.get_or_insert_with(|| found.clone());
        assert!(found.len() > 8, "{} files are too few to prove anything", found.len());
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{shape:?}");
        assert!(found == *expected, "bytes differ with {shape:?}");
    }
}

#[test]
fn files_hold_every_row_and_disposition_once_and_in_order() {
    let mut dice = Dice::new(2);
    let items = items(120, &mut dice);
    let folder = tempfile::tempdir().unwrap();
    let stats = write(Run::Workers(3), &items, &config(folder.path()), &mut dice);
    let (mut rows, mut dispositions) = (0, Dispositions::default());
    for (name, bytes) in files(folder.path()) {
        let (note, batches) = read(&bytes);
        assert!(name.starts_with(&format!("{}/", note.group)), "{name} holds {}", note.group);
        let first = note.epochs[0].0;
        assert!(name.contains(&format!("/{:013}-{:06}.", first.0, note.sequence)), "{name}: {first}");
        assert!(note.epochs.iter().all(|(epoch, _)| epoch.0 < first.0 + 1_000));
        // Each epoch's rows, in the order of partition and offset; the topic's number is the partition's.
        let mut places: Vec<(i32, i64)> = Vec::new();
        for batch in &batches {
            let partitions = batch.column_by_name("_partition").unwrap().as_primitive::<Int32Type>().values();
            let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().values();
            places.extend(partitions.iter().copied().zip(offsets.iter().copied()));
        }
        let mut rest = places.as_slice();
        for (_, count) in &note.epochs {
            let (epoch, after) = rest.split_at(*count as usize);
            let place =
                |&(partition, offset): &(i32, i64)| (testing::partition(&format!("t{}", partition % 4), partition), offset);
            assert!(epoch.is_sorted_by_key(place), "{name}");
            rest = after;
        }
        assert!(rest.is_empty());
        rows += places.len();
        note.coverage.iter().for_each(|coverage| dispositions += coverage.dispositions());
    }
    let mut expected = Dispositions::default();
    items.iter().for_each(|(_, batch)| expected += batch.0.coverage.dispositions());
    assert_eq!(dispositions, expected);
    assert_eq!(stats.rows.load(Ordering::Relaxed), rows as u64);
    assert_eq!(stats.batches.load(Ordering::Relaxed), items.len() as u64);
}

#[test]
fn offsets_that_come_twice_are_in_the_files_twice() {
    let mut dice = Dice::new(3);
    let group = Group { index: "a".into(), signal: crate::batch::Signal::Logs };
    let batch = testing::batch(&group, testing::partition("t", 0), 5, &[testing::payload(group.signal, 2, &mut dice)]);
    let items =
        vec![(Epoch(20), UniqueBatch(batch.clone())), (Epoch(20), UniqueBatch(batch.clone())), (Epoch(40), UniqueBatch(batch))];
    let folder = tempfile::tempdir().unwrap();
    write(Run::Workers(2), &items, &config(folder.path()), &mut dice);
    let found = files(folder.path());
    let (note, batches) = read(&found["a/logs/0000000000020-000000.parquet"]);
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 6);
    assert_eq!(note.epochs, [(Epoch(20), 4), (Epoch(40), 2)]);
    assert_eq!(note.coverage, vec![Coverage::stored(testing::partition("t", 0), 5..6); 3]);
}

#[test]
fn a_schema_that_changes_begins_a_file_of_the_same_roll() {
    let mut dice = Dice::new(4);
    let group = Group { index: "a".into(), signal: crate::batch::Signal::Logs };
    let plain = testing::batch(&group, testing::partition("t", 0), 5, &[testing::payload(group.signal, 2, &mut dice)]);
    let mut stamped = testing::batch(&group, testing::partition("t", 1), 5, &[testing::payload(group.signal, 1, &mut dice)]);
    stamped.schema = Some(Arc::new(crate::dataset::Stamp { name: "a".into(), version: 1, hash: 7, columns: Vec::new() }));
    let mut roll = Roll::new(group, limits(1 << 20, 100));
    assert!(roll.append(Epoch(20), vec![stamped, plain]).unwrap().is_empty());
    assert!(roll.pass(Epoch(119)).unwrap().is_empty());
    let finished = roll.pass(Epoch(120)).unwrap();
    let names: Vec<(&str, u64)> = finished.iter().map(|file| (file.name.as_str(), file.rows)).collect();
    assert_eq!(names, [("a/logs/0000000000020-000000.parquet", 2), ("a/logs/0000000000020-000001.parquet", 1)]);
}

/// Refuses the first attempts, then stores as the local disk does.
struct FaultyDisk {
    refusals: Arc<AtomicUsize>,
    kind: ErrorKind,
}

impl Disk for FaultyDisk {
    fn store(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let refused = self.refusals.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        if refused.is_ok() { Err(self.kind.into()) } else { disk::LocalDisk.store(path, bytes) }
    }
}

fn write_on_faulty_disk(refusals: usize, kind: ErrorKind, folder: &Path) -> (Arc<AtomicUsize>, Health, Passed, Arc<Stats>) {
    let mut dice = Dice::new(5);
    let items = items(60, &mut dice);
    let (health, stats, passed) = (Health::default(), Arc::<Stats>::default(), Passed::default());
    let refusals = Arc::new(AtomicUsize::new(refusals));
    let disk = Box::new(FaultyDisk { refusals: refusals.clone(), kind });
    let (ports, thread) = Ports::with_disk(disk, None, clock(), health.clone(), stats.clone()).unwrap();
    write_with(Run::Workers(2), &items, &config(folder), &mut dice, ports, &health, &passed);
    thread.join().unwrap();
    (refusals, health, passed, stats)
}

#[test]
fn a_full_disk_delays_files_and_loses_none() {
    let (faulty, healthy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, health, passed, stats) = write_on_faulty_disk(5, ErrorKind::StorageFull, faulty.path());
    assert_eq!((health.fault(), passed.epoch(), stats.retries.load(Ordering::Relaxed)), (None, u64::MAX, 5));
    write_on_faulty_disk(0, ErrorKind::StorageFull, healthy.path());
    assert!(files(faulty.path()) == files(healthy.path()));
}

#[test]
fn a_disk_that_may_not_be_written_raises_a_fault_and_no_epoch_is_passed() {
    let folder = tempfile::tempdir().unwrap();
    let (refusals, health, passed, stats) = write_on_faulty_disk(usize::MAX, ErrorKind::PermissionDenied, folder.path());
    assert!(refusals.load(Ordering::Relaxed) < usize::MAX);
    let fault = health.fault().unwrap();
    assert!(fault.message.contains("make the folder writable"), "{fault}");
    let first = items(60, &mut Dice::new(5))[0].0;
    assert!(passed.epoch() <= first.0, "passed {} and nothing is stored", passed.epoch());
    assert_eq!(stats.files.load(Ordering::Relaxed), 0);
}

#[test]
fn only_a_folder_of_its_own_is_replaced_and_only_when_asked() {
    let mut dice = Dice::new(6);
    let items = items(20, &mut dice);
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("deep/er"));
    write(Run::Workers(1), &items, &config, &mut dice);
    let before = files(&config.directory);
    let open = |config: &Config| Ports::open(config, clock(), Health::default(), Arc::default());
    assert!(matches!(open(&config), Err(Error::NotEmpty { .. })));
    assert!(files(&config.directory) == before);
    config.existing = Existing::Replace;
    let opened = open(&config).unwrap();
    assert!(files(&config.directory).is_empty());
    assert!(matches!(open(&config), Err(Error::Locked { .. })));
    config.existing = Existing::Join;
    drop(open(&config).unwrap());
    drop(opened.0);
    opened.1.join().unwrap();
    // A folder with nothing but the marker is empty.
    config.existing = Existing::Refuse;
    let (ports, thread) = open(&config).unwrap();
    drop(ports);
    thread.join().unwrap();
    // What is not ours stays, with or without our marker beside it.
    config.existing = Existing::Replace;
    fs::write(config.directory.join("notes.txt"), "mine").unwrap();
    assert!(matches!(open(&config), Err(Error::Foreign { .. })));
    let foreign = folder.path().to_path_buf();
    for existing in [Existing::Refuse, Existing::Replace] {
        let config = Config { directory: foreign.clone(), existing, limits: config.limits };
        assert!(matches!(
            (existing, open(&config)),
            (Existing::Refuse, Err(Error::NotEmpty { .. })) | (_, Err(Error::Foreign { .. }))
        ));
    }
}

#[test]
fn a_batch_that_crosses_processes_comes_out_as_it_went_in() {
    let mut dice = Dice::new(7);
    for (_, batch) in testing::batches(40, &mut dice) {
        let json = serde_json::to_vec(&Carried(UniqueBatch(batch.clone()))).unwrap();
        let Carried(UniqueBatch(read)) = serde_json::from_slice(&json).unwrap();
        assert_eq!((&read.group, &read.coverage, &read.records), (&batch.group, &batch.coverage, &batch.records));
        assert!(read.records.iter().all(|record| read.payload(record) == batch.payload(record)));
    }
}
