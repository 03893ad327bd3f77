//! Files that storage and `parquet_files` write, read back: every message once and as it was, every offset accounted for, in an order that is
//! theirs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use crate::arrow_encode::tests::generate;
use crate::arrow_encode::{self, Encoder};
use crate::batch::{Arena, Group, NormalizedBatch, Record, Signal, Span, UniqueBatch};
use crate::capture::Recorded;
use crate::capture_source::Speed;
use crate::clock::SystemClock;
use crate::coverage::{Coverage, Dispositions, OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use crate::fault::Health;
use crate::kafka_source::topics::TopicPatterns;
use crate::object_upload::ObjectStore;
use crate::parquet_files::{self, Existing, parquet_files};
use crate::parquet_roll::writer::Shape;
use crate::parquet_roll::{Compression, DeliveryId, Received, Roller};
use crate::parquet_source::{self, Config, EPOCH_BYTES, From, Selection, Stats, is_there, reader};
use crate::tenant::Tenant;
use crate::testing::{self, Dice, Passed, partition, payload};

const INTERVAL_MS: u64 = 100;
const START_MS: i64 = 1_700_000_000_000;

pub(super) fn config(path: &Path) -> Config {
    Config {
        from: From::Folder(path.into()),
        selection: Selection::default(),
        schemas: Vec::new(),
        epoch_interval_ms: INTERVAL_MS,
        speed: Speed::Full,
    }
}

pub(super) fn read(config: &Config) -> Result<Vec<Recorded<UniqueBatch>>, String> {
    let (stats, mut read) = (Stats::default(), Vec::new());
    let mut put = |recorded| {
        read.push(recorded);
        true
    };
    reader::read(config, &stats, &|| false, &mut put).map_err(|error| error.to_string())?;
    let bytes = [&stats.read_bytes, &stats.total_bytes].map(|bytes| bytes.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(bytes[0], bytes[1], "all of it was read in the end");
    Ok(read)
}

type Place = (PartitionKey, i64);

/// The rows of each message that has any.
fn rows<'b>(batches: impl IntoIterator<Item = &'b NormalizedBatch>) -> BTreeMap<Place, (Group, RecordBatch)> {
    let mut found = BTreeMap::new();
    for batch in batches {
        for record in &batch.records {
            let place = (batch.coverage.partition.clone(), record.offset);
            let coverage = Coverage::stored(place.0.clone(), record.offset..record.offset + 1);
            let mut encoder = Encoder::new(arrow_encode::Config::new(batch.group.clone()));
            encoder.append(&NormalizedBatch { records: vec![*record], coverage, ..batch.clone() }).unwrap();
            if let Some(first) = encoder.finish().unwrap().batches.first() {
                assert_eq!(found.insert(place, (batch.group.clone(), first.clone())), None, "given once");
            }
        }
    }
    found
}

fn dispositions<'b>(batches: impl IntoIterator<Item = &'b NormalizedBatch>) -> BTreeMap<PartitionKey, Dispositions> {
    let mut found: BTreeMap<PartitionKey, (Dispositions, OffsetSet)> = BTreeMap::new();
    for batch in batches {
        let (sum, seen) = found.entry(batch.coverage.partition.clone()).or_default();
        assert!(!seen.overlaps(&batch.coverage.range()), "accounted for once");
        seen.insert(batch.coverage.range());
        *sum += batch.coverage.dispositions();
    }
    found.into_iter().map(|(partition, (sum, _))| (partition, sum)).collect()
}

fn batches(read: &[Recorded<UniqueBatch>]) -> impl Iterator<Item = &NormalizedBatch> {
    read.iter().map(|recorded| &recorded.batch.0)
}

/// What must be true of whatever is read.
fn check_order(read: &[Recorded<UniqueBatch>]) {
    assert!(read.is_sorted_by_key(|recorded| recorded.epoch));
    let mut ends: BTreeMap<&PartitionKey, i64> = BTreeMap::new();
    for batch in batches(read) {
        let Coverage { partition, start, end, .. } = &batch.coverage;
        assert!(start < end && ends.get(partition).is_none_or(|before| before <= start), "{partition} goes back to {start}");
        assert!(batch.records.is_sorted_by_key(|record| record.offset));
        assert!(batch.records.iter().all(|record| batch.coverage.range().contains(&record.offset)));
        ends.insert(partition, *end);
    }
    let bytes = |epoch: Epoch| read.iter().filter(|one| one.epoch == epoch).map(|one| one.batch.0.payload_bytes()).sum::<usize>();
    assert!(read.iter().all(|recorded| bytes(recorded.epoch) <= EPOCH_BYTES));
}

/// Storage nodes that share the partitions of some groups, and what was delivered to them.
struct Lake {
    folder: TempDir,
    delivered: Vec<NormalizedBatch>,
}

impl Lake {
    fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// Fills it. Rows are of any day; deliveries come out of order, to either node.
    fn new(dice: &mut Dice, deliveries: u64) -> Self {
        Lake::of(dice, deliveries, 2)
    }

    fn of(dice: &mut Dice, deliveries: u64, nodes: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let mut odd = generate::Dice(dice.below(1 << 40));
        let signals = [Signal::Traces, Signal::Logs, Signal::Metrics];
        let (mut next, mut time_ms, mut delivered) = ([0i64; 6], START_MS, Vec::new());
        for _ in 0..deliveries {
            let number = dice.below(6) as usize;
            let group = Group { index: format!("index{}", number % 2).into(), signal: signals[number % 3] };
            let messages: Vec<(i64, Vec<u8>)> = (0..dice.below(6))
                .map(|_| {
                    time_ms += dice.below(300) as i64 - 50;
                    // A commit of nothing but such messages is at no time: with one node there are none.
                    let time_ms = if nodes > 1 && dice.below(9) == 0 { -1 } else { time_ms };
                    let days = (START_MS as u64 / 86_400_000 + dice.below(3)) * 86_400_000_000_000;
                    let payload = match dice.below(3) {
                        0 => odd.message(group.signal),
                        _ => spread(group.signal, days, dice),
                    };
                    (time_ms, payload)
                })
                .collect();
            let mut batch = delivery(&group, partition(&format!("t{number}"), number as i32 % 2), next[number], &messages, dice);
            next[number] = batch.coverage.end;
            if dice.below(3) == 0 {
                batch.tenants = vec![Tenant::new("eu").unwrap()];
            }
            delivered.push(batch);
        }
        let lake = Lake { folder, delivered };
        lake.store(&lake.delivered, dice, nodes);
        lake
    }

    fn store(&self, delivered: &[NormalizedBatch], dice: &mut Dice, nodes: u64) {
        let mut nodes: Vec<Roller> = (0..nodes)
            .map(|node| {
                let config = crate::parquet_roll::Config {
                    prefix: "lake".into(),
                    row_group_rows_max: 40,
                    // A context of zstd for each of 65 columns would be most of the time.
                    compression: Compression::None,
                    ..crate::parquet_roll::Config::new(
                        self.folder.path().join(format!("node{node}")),
                        format!("node-{node}"),
                        dice.below(1 << 40),
                    )
                };
                Roller::open(config, BTreeMap::new()).unwrap()
            })
            .collect();
        let mut order: Vec<usize> = (0..delivered.len()).collect();
        for at in 1..order.len() {
            if dice.below(3) == 0 {
                order.swap(at - 1, at);
            }
        }
        for (sequence, at) in order.into_iter().enumerate() {
            let batch = &delivered[at];
            let mut encoder = Encoder::new(arrow_encode::Config::new(batch.group.clone()));
            encoder.append(batch).unwrap();
            let received =
                Received { id: DeliveryId { session: 1, sequence: sequence as u64 }, batch: encoder.finish().unwrap() };
            let node = dice.below(nodes.len() as u64) as usize;
            let admitted = nodes[node].admit(received, START_MS as u64 + sequence as u64).unwrap();
            let mut closed = admitted.closed;
            if dice.below(12) == 0 {
                closed.extend(nodes[node].flush().unwrap());
            }
            self.upload(closed);
        }
        for mut node in nodes {
            self.upload(node.flush().unwrap());
        }
    }

    fn upload(&self, closed: Vec<crate::parquet_roll::ClosedCommit>) {
        for file in closed.iter().flat_map(|commit| &commit.files) {
            let path = self.objects().join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(&file.local, path).unwrap();
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.objects()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

/// A message whose rows are of several days.
fn spread(signal: Signal, days_ns: u64, dice: &mut Dice) -> Vec<u8> {
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};
    use prost::Message;
    if signal != Signal::Logs {
        return payload(signal, dice.below(4), dice);
    }
    let record = |number: u64| LogRecord {
        time_unix_nano: days_ns + number % 3 * 86_400_000_000_000,
        severity_text: number.to_string(),
        ..LogRecord::default()
    };
    let log_records = (0..dice.below(9)).map(|_| record(dice.below(9))).collect();
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    LogsData { resource_logs: vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }] }.encode_to_vec()
}

/// Messages with what became of some offsets between them.
fn delivery(group: &Group, partition: PartitionKey, start: i64, messages: &[(i64, Vec<u8>)], dice: &mut Dice) -> NormalizedBatch {
    let (mut written, mut records) = (Vec::new(), Vec::new());
    let mut coverage = Coverage::stored(partition, start..start);
    let mut other = |coverage: &mut Coverage| {
        let at = coverage.end;
        coverage.end += 1;
        match dice.below(8) {
            0 => coverage.duplicates.push(at),
            1 => coverage.rejected.push(at),
            2 => coverage.skipped.push(at),
            3 => {
                coverage.end += 20;
                coverage.absent.push(at..at + 21);
            }
            4 => {}
            _ => coverage.end -= 1,
        }
    };
    for (timestamp_ms, payload) in messages {
        other(&mut coverage);
        let span = Span { start: written.len() as u32, len: payload.len() as u32 };
        written.extend_from_slice(payload);
        records.push(Record {
            offset: coverage.end,
            timestamp_ms: *timestamp_ms,
            key: 0,
            arena: Arena::Written,
            payload: span,
            tenant: 0,
        });
        coverage.end += 1;
    }
    other(&mut coverage);
    // A delivery accounts for something.
    if coverage.end == start {
        coverage.end += 1;
        coverage.skipped.push(start);
    }
    NormalizedBatch {
        group: group.clone(),
        coverage,
        raw: Default::default(),
        written: written.into(),
        records,
        schema: None,
        tenants: Vec::new(),
        charge: Default::default(),
    }
}

#[test]
fn what_storage_nodes_have_written_is_read_back_message_by_message_and_every_offset_is_accounted_for() {
    for seed in 1..=4 {
        let mut dice = Dice::new(seed);
        // Of two nodes nearly all commits wait for each other.
        let lake = Lake::of(&mut dice, 120, 1 + seed % 2);
        let found = read(&config(&lake.objects())).unwrap();
        check_order(&found);
        let (given, delivered) = (rows(batches(&found)), rows(&lake.delivered));
        assert_eq!(given.keys().collect::<Vec<_>>(), delivered.keys().collect::<Vec<_>>());
        for (place, rows) in &delivered {
            assert_eq!(given[place], *rows, "{place:?}");
        }
        assert_eq!(dispositions(batches(&found)), dispositions(&lake.delivered));
        let tenants = |batches: Vec<&NormalizedBatch>| -> BTreeMap<Place, Option<Tenant>> {
            let records = batches.into_iter().flat_map(|batch| batch.records.iter().map(move |record| (batch, record)));
            records
                .map(|(batch, record)| ((batch.coverage.partition.clone(), record.offset), batch.tenant(record).cloned()))
                .collect()
        };
        let (given, delivered) = (tenants(batches(&found).collect()), tenants(lake.delivered.iter().collect()));
        assert!(given.iter().all(|(place, tenant)| delivered[place] == *tenant));
        // Neither names nor folders matter.
        let other = TempDir::new().unwrap();
        for (number, path) in lake.files().iter().enumerate() {
            let extension = path.extension().unwrap().to_string_lossy();
            let folder = other.path().join(if extension == "json" { "_coverage" } else { "a" });
            fs::create_dir_all(&folder).unwrap();
            fs::copy(path, folder.join(format!("{}.{extension}", 1_000 - number))).unwrap();
        }
        assert_eq!(shown(&read(&config(other.path())).unwrap()), shown(&found));
    }
}

/// All that is in batches.
fn shown(read: &[Recorded<UniqueBatch>]) -> Vec<String> {
    read.iter().map(|Recorded { epoch, batch }| format!("{epoch} {:?}", batch.0)).collect()
}

#[test]
fn an_object_store_is_read_as_the_folder_is() {
    let mut dice = Dice::new(51);
    let lake = Lake::new(&mut dice, 80);
    let of_rows = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    let (rows, coverage): (Vec<PathBuf>, Vec<PathBuf>) = lake.files().into_iter().partition(of_rows);
    assert!(!coverage.is_empty(), "there are commits without rows");
    let name = |path: &PathBuf| path.strip_prefix(lake.objects()).unwrap().to_path_buf();
    let stored = parquet_source::Lake {
        store: ObjectStore::Fs { root: lake.objects() },
        files: rows.iter().map(|path| (name(path), fs::metadata(path).unwrap().len())).collect(),
        coverage: coverage.iter().map(name).collect(),
    };
    let expected = shown(&read(&config(&lake.objects())).unwrap());
    let of =
        |stored: &parquet_source::Lake| read(&Config { from: From::Lake(Arc::new(stored.clone())), ..config(Path::new("")) });
    assert_eq!(shown(&of(&stored).unwrap()), expected);
    fs::remove_file(&rows[0]).unwrap();
    let told = of(&stored).unwrap_err();
    assert!(told.contains(&*name(&rows[0]).to_string_lossy()), "{told}");
}

#[test]
fn what_retention_has_left_of_a_commit_is_refused_unless_it_is_before_what_is_asked_for() {
    let mut dice = Dice::new(52);
    let lake = Lake::of(&mut dice, 150, 1);
    // A commit of its own, an hour later.
    let (group, later) = (Group { index: "index0".into(), signal: Signal::Logs }, START_MS + 3_600_000);
    let message = payload(Signal::Logs, 2, &mut dice);
    lake.store(&[delivery(&group, partition("later", 0), 0, &[(later, message)], &mut dice)], &mut dice, 1);
    let of_rows = |path: &&PathBuf| {
        path.extension().is_some_and(|extension| extension == "parquet")
            && !fs::read(path).unwrap().windows(5).any(|name| name == b"later")
    };
    let whole = |path: &Path| -> Vec<String> {
        let told = read(&config(path)).map(|_| Vec::new()).unwrap_or_else(|told| vec![told]);
        told.into_iter().filter(|told| told.contains("these are missing")).collect()
    };
    // Files of the first commit that has several, but for one.
    let files: Vec<PathBuf> = lake.files().iter().filter(of_rows).cloned().collect();
    let mut removed = 0;
    for path in files {
        fs::remove_file(&path).unwrap();
        removed = whole(&lake.objects()).len();
        if removed > 0 {
            break;
        }
    }
    assert_eq!(removed, 1, "some commit has several files");
    let told = read(&config(&lake.objects())).unwrap_err();
    assert!(told.contains("retention") && told.contains("a later time"), "{told}");
    let selection = Selection { since_ms: Some(later), ..Selection::default() };
    let some = read(&Config { selection, ..config(&lake.objects()) }).unwrap();
    let times: Vec<i64> = batches(&some).flat_map(|batch| &batch.records).map(|record| record.timestamp_ms).collect();
    assert_eq!(times, [later]);
}

#[test]
fn a_part_is_read_by_topic_index_signal_and_the_times_of_messages() {
    let mut dice = Dice::new(11);
    let lake = Lake::new(&mut dice, 200);
    let all = read(&config(&lake.objects())).unwrap();
    let chosen = |selection: Selection| read(&Config { selection, ..config(&lake.objects()) });
    let topics = Some(TopicPatterns::new(&["t1".into(), "t4".into()], &[]).unwrap());
    let some = chosen(Selection { topics, ..Selection::default() }).unwrap();
    let names: BTreeSet<&str> = batches(&some).map(|batch| &*batch.coverage.partition.topic.name).collect();
    assert_eq!(names, BTreeSet::from(["t1", "t4"]));
    let (indexes, signals) = (vec!["index1".to_owned()], vec![Signal::Traces, Signal::Logs]);
    let some = chosen(Selection { indexes, signals, ..Selection::default() }).unwrap();
    assert!(batches(&some).all(|batch| &*batch.group.index == "index1" && batch.group.signal != Signal::Metrics));
    let expected = batches(&all).filter(|batch| &*batch.group.index == "index1" && batch.group.signal != Signal::Metrics);
    assert_eq!(rows(batches(&some)), rows(expected));
    let none = chosen(Selection { indexes: vec!["other".into()], ..Selection::default() }).unwrap_err();
    assert!(none.contains("there are index0/") && none.contains("index1/logs"), "{none}");

    // By times: what Kafka would answer for the offsets of these times.
    let (since, until) = (START_MS + 8_000, START_MS + 20_000);
    let some = chosen(Selection { since_ms: Some(since), until_ms: Some(until), ..Selection::default() }).unwrap();
    check_order(&some);
    let mut expected = BTreeSet::new();
    let partitions: BTreeSet<&PartitionKey> = batches(&all).map(|batch| &batch.coverage.partition).collect();
    for partition in partitions {
        let of = batches(&all).filter(|batch| batch.coverage.partition == *partition).flat_map(|batch| &batch.records);
        let from = of.skip_while(|record| record.timestamp_ms < since);
        expected.extend(from.take_while(|record| record.timestamp_ms < until).map(|record| (partition.clone(), record.offset)));
    }
    let found: BTreeSet<Place> = batches(&some)
        .flat_map(|batch| batch.records.iter().map(|record| (batch.coverage.partition.clone(), record.offset)))
        .collect();
    assert!(found.len() > 20 && found.len() < rows(batches(&all)).len());
    assert_eq!(found, expected);
}

pub(super) fn write(folder: &Path, items: &[(Epoch, UniqueBatch)], dice: &mut Dice) {
    let limits = parquet_files::Limits {
        file_bytes_max: 200_000,
        epoch_span_max: 1_000,
        shape: Shape { row_group_rows_max: 50, compression: Compression::Zstd(1), bloom_filters: true },
    };
    let config = parquet_files::Config { directory: folder.into(), existing: Existing::Refuse, limits };
    let health = Health::default();
    let (ports, thread) =
        parquet_files::Ports::open(&config, Arc::new(SystemClock::default()), health.clone(), Arc::default()).unwrap();
    testing::run(testing::Shape::Workers(2), items, dice, &health, &Passed::default(), move |stream, _process| {
        parquet_files(stream, config.clone(), ports.clone())
    });
    assert_eq!(health.fault(), None);
    thread.join().unwrap();
}

#[test]
fn what_parquet_files_has_written_is_read_in_its_epochs_and_written_again_it_is_the_same_files() {
    let mut dice = Dice::new(21);
    let items: Vec<(Epoch, UniqueBatch)> =
        testing::batches(150, &mut dice).into_iter().map(|(epoch, batch)| (epoch, UniqueBatch(batch))).collect();
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(one.path(), &items, &mut dice);
    let found = read(&config(one.path())).unwrap();
    check_order(&found);
    let written = || items.iter().map(|(_, batch)| &batch.0);
    assert_eq!(rows(batches(&found)), rows(written()));
    assert_eq!(dispositions(batches(&found)), dispositions(written()));
    let again: Vec<(Epoch, UniqueBatch)> = found.into_iter().map(|Recorded { epoch, batch }| (epoch, batch)).collect();
    write(other.path(), &again, &mut dice);
    let comparison = crate::compare::compare(one.path(), other.path(), &Default::default()).unwrap();
    assert!(comparison.is_equal(), "{comparison}");
    assert!(comparison.groups.iter().all(|group| group.epochs.is_some_and(|epochs| epochs > 20)));
}

#[test]
fn what_is_not_whole_or_there_twice_is_refused_with_its_name() {
    let mut dice = Dice::new(31);
    let lake = Lake::new(&mut dice, 30);
    let objects = lake.objects();
    let of_rows = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    let files: Vec<PathBuf> = lake.files().iter().filter(of_rows).cloned().collect();
    let refused = |what: &str, says: &[&str]| {
        let told = read(&config(&objects)).unwrap_err();
        assert!(says.iter().all(|says| told.contains(says)), "{what}: {told}");
    };
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let victim = files.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let whole = fs::read(victim).unwrap();

    fs::write(victim, &whole[..whole.len() / 2]).unwrap();
    refused("cut short", &[&name(victim), "cut short"]);
    fs::write(victim, b"PAR1").unwrap();
    refused("empty", &[&name(victim), "no Parquet file"]);
    // Whatever bytes are damaged: an error by name, or the same rows where they did not matter.
    for _ in 0..25 {
        let mut damaged = whole.clone();
        for _ in 0..=dice.below(3) {
            let at = dice.below(damaged.len() as u64) as usize;
            damaged[at] ^= 1 << dice.below(8);
        }
        fs::write(victim, &damaged).unwrap();
        if let Err(told) = read(&config(&objects)) {
            assert!(told.contains(".parquet"), "{told}");
        }
    }
    fs::write(victim, &whole).unwrap();
    let copy = objects.join("copy.parquet");
    fs::copy(victim, &copy).unwrap();
    refused("a copy", &["copy.parquet", &name(victim), "copy of"]);
    fs::remove_file(&copy).unwrap();

    let foreign = |batch: &RecordBatch| {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        fs::write(&copy, writer.into_inner().unwrap()).unwrap();
    };
    foreign(&RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1])) as _)]).unwrap());
    refused("another program's", &["copy.parquet", "this program has not written it"]);
    fs::remove_file(&copy).unwrap();

    // A commit of several files, one of which is gone.
    let mut missing = 0;
    for path in files.iter().step_by(3) {
        let bytes = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        match read(&config(&objects)) {
            Ok(_) => {}
            Err(told) => {
                missing += 1;
                let id = name(path).replace(".parquet", "");
                assert!(told.contains("these are missing") && told.contains(&id), "{told}");
            }
        }
        fs::write(path, bytes).unwrap();
    }
    assert!(missing > 1, "{missing}");
    let empty = TempDir::new().unwrap();
    assert!(!is_there(empty.path()) && is_there(&objects) && is_there(victim));
    assert!(read(&config(empty.path())).unwrap_err().contains("no Parquet file"));
}

#[test]
fn offsets_that_two_results_account_for_are_refused_with_both_names() {
    let mut dice = Dice::new(41);
    let items: Vec<(Epoch, UniqueBatch)> =
        testing::batches(20, &mut dice).into_iter().map(|(epoch, batch)| (epoch, UniqueBatch(batch))).collect();
    let folder = TempDir::new().unwrap();
    for name in ["one", "two"] {
        write(&folder.path().join(name), &items, &mut dice);
    }
    let told = read(&config(folder.path())).unwrap_err();
    assert!(told.contains("/one/") && told.contains("/two/") && told.contains("accounted for by"), "{told}");
}
