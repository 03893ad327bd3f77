//! What every catalog must do, run against each. A test that depends on which catalog it is belongs to that catalog.
//!
//! sled runs always. PostgreSQL runs when `OPENWIT_TEST_POSTGRES` names a database; without it the tests say so loudly, and under CI
//! they fail.

#![allow(clippy::single_range_in_vec_init, clippy::reversed_empty_ranges, reason = "lists of one range of offsets are meant")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use ulid::Ulid;

use crate::batch::{Group, Signal};
use crate::catalog_commit::postgres_catalog::{self, INDEX_CHANNEL, PostgresCatalog, Tls};
use crate::catalog_commit::sled_catalog::{SledCatalog, State};
use crate::catalog_commit::{
    Binding, Catalog, Commit, Committed, CompleteThrough, Error, FileFilter, FileRow, Standing, complete_through, covered,
};
use crate::coverage::{Dispositions, PartitionKey, TopicKey};
use crate::object_upload::{ObjectStore, Secret, StoreUri, build_operator};
use crate::parquet_roll::{CoverageRow, Day};

pub(super) fn partition(topic: &str, number: i32) -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: topic.into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition: number }
}

pub(super) fn group(index: &str, signal: Signal) -> Group {
    Group { index: index.into(), signal }
}

pub(super) fn row(partition: &PartitionKey, range: Range<i64>) -> CoverageRow {
    let length = (range.end - range.start) as u64;
    let dispositions = Dispositions { stored: length - length / 3, duplicates: length / 3, ..Dispositions::default() };
    let kafka_time_max_ms = Some(10 * range.end);
    CoverageRow { partition: partition.clone(), rows: 5 * dispositions.stored, range, dispositions, kafka_time_max_ms }
}

/// A commit of one file per day; ids follow from `number`.
pub(super) fn commit(number: u64, group: &Group, days: &[i32], coverage: Vec<CoverageRow>) -> Commit {
    let commit_id = Ulid::from_parts(1_000 + number, 0);
    let file = |(position, day): (usize, &i32)| FileRow {
        file: Ulid::from_parts(1_000 + number, 1 + position as u128),
        commit_id,
        group: group.clone(),
        node: "node-1".into(),
        path: format!("lake/{group}/{number}-{position}.parquet"),
        uri: Some(format!("s3://bucket/lake/{group}/{number}-{position}.parquet")),
        day: Day(*day),
        rows: 10 + number,
        bytes: 1_000 * number,
        time_min_ns: (*day > 0).then(|| i64::from(*day) * 100),
        time_max_ns: (*day > 0).then(|| i64::from(*day) * 100 + 99),
        schema_hash: "5ca1ab1e".into(),
        schema_version: 3,
    };
    Commit {
        commit_id,
        group: group.clone(),
        node: "node-1".into(),
        files: days.iter().enumerate().map(file).collect(),
        coverage,
    }
}

pub(super) fn ranges(catalog: &dyn Catalog, partition: &PartitionKey) -> Vec<Range<i64>> {
    catalog.coverage().unwrap().get(partition).map_or(vec![], |rows| rows.iter().map(|row| row.range.clone()).collect())
}

/// The whole suite. `reopen` closes and opens the same catalog; it starts empty.
pub(super) fn conforms(reopen: &mut dyn FnMut(Option<Box<dyn Catalog>>) -> Box<dyn Catalog>) {
    let catalog = reopen(None);
    commits_are_idempotent_and_whole(&*catalog);
    overlaps_are_refused_and_leave_nothing(&*catalog);
    files_are_listed_by_filter(&*catalog);
    files_without_a_uri_are_given_one_once(&*catalog);
    index_work_is_queued_with_the_commit(&*catalog);
    topics_keep_their_group(&*catalog);
    invalid_commits_are_refused(&*catalog);
    commits_given_up_can_never_be_registered(&*catalog);
    partitions_are_complete_through_their_first_unbroken_run(&*catalog);
    let everything = |catalog: &dyn Catalog| {
        let all = FileFilter::default();
        (
            catalog.files(&all).unwrap(),
            catalog.coverage().unwrap(),
            catalog.index_pending(1_000).unwrap(),
            catalog.topics().unwrap(),
            catalog.retired_files(1_000).unwrap(),
            catalog.complete_through().unwrap(),
        )
    };
    let before = everything(&*catalog);
    assert!(!before.0.is_empty() && !before.1.is_empty() && !before.2.is_empty() && !before.3.is_empty() && !before.4.is_empty());
    let catalog = reopen(Some(catalog));
    assert_eq!(everything(&*catalog), before, "what was committed survives");
}

fn commits_are_idempotent_and_whole(catalog: &dyn Catalog) {
    let (orders, traces) = (partition("orders", 0), group("orders", Signal::Traces));
    let first = commit(1, &traces, &[3, 4], vec![row(&orders, 0..30), row(&partition("orders", 1), 7..9)]);
    assert_eq!(catalog.commit(&first).unwrap(), Committed::New);
    assert_eq!(catalog.commit(&first).unwrap(), Committed::AlreadyCommitted);
    assert_eq!(catalog.files(&FileFilter::default()).unwrap(), first.files);
    let expected: BTreeMap<_, _> = first.coverage.iter().map(|row| (row.partition.clone(), vec![row.clone()])).collect();
    assert_eq!(catalog.coverage().unwrap(), expected);
    let clash = Commit { coverage: vec![row(&orders, 50..60)], ..first.clone() };
    assert!(
        matches!(catalog.commit(&clash), Err(error @ Error::Clash { .. }) if error.is_about_the_commit() && !error.is_retriable())
    );
    let empty = Commit { commit_id: Ulid::from_parts(9, 9), files: vec![], coverage: vec![], ..first };
    assert_eq!(catalog.commit(&empty).unwrap(), Committed::New);
}

fn overlaps_are_refused_and_leave_nothing(catalog: &dyn Catalog) {
    let (orders, traces) = (partition("orders", 0), group("orders", Signal::Traces));
    let before = (catalog.coverage().unwrap(), catalog.files(&FileFilter::default()).unwrap());
    for (number, range) in [(100, 29..40), (101, 0..1), (102, 5..6), (103, 0..99)] {
        // The first row is fine: it must not remain.
        let refused = commit(number, &traces, &[5], vec![row(&partition("alone", 0), 0..5), row(&orders, range.clone())]);
        match catalog.commit(&refused) {
            Err(Error::Overlap { commit_id, partition, wanted, known }) => {
                assert_eq!((commit_id, partition, wanted, known), (refused.commit_id.to_string(), orders.clone(), range, 0..30));
            }
            other => panic!("overlap was not refused: {other:?}"),
        }
    }
    let twice = commit(104, &traces, &[5], vec![row(&orders, 90..95), row(&orders, 94..99)]);
    assert!(matches!(catalog.commit(&twice), Err(Error::Overlap { .. })));
    assert_eq!((catalog.coverage().unwrap(), catalog.files(&FileFilter::default()).unwrap()), before);
    // Another topic id is another partition, and what touches is merged.
    let recreated = PartitionKey { topic: Arc::new(TopicKey { id: "new".into(), ..(*orders.topic).clone() }), partition: 0 };
    catalog.commit(&commit(2, &traces, &[4], vec![row(&orders, 40..60), row(&recreated, 0..5)])).unwrap();
    catalog.commit(&commit(3, &traces, &[4], vec![row(&orders, 30..40)])).unwrap();
    assert_eq!((ranges(catalog, &orders), ranges(catalog, &recreated)), (vec![0..60], vec![0..5]));
    let merged = &catalog.coverage().unwrap()[&orders][0];
    assert_eq!((merged.dispositions.duplicates, merged.dispositions.stored, merged.rows), (10 + 6 + 3, 20 + 14 + 7, 5 * 41));
    assert_eq!(covered(&catalog.coverage().unwrap())[&orders].ranges().collect::<Vec<_>>(), [0..60]);
}

fn files_are_listed_by_filter(catalog: &dyn Catalog) {
    let logs = group("orders", Signal::Logs);
    catalog.commit(&commit(4, &logs, &[0, 4, 9], vec![row(&partition("logs", 0), 0..5)])).unwrap();
    let all = catalog.files(&FileFilter::default()).unwrap();
    assert!(all.is_sorted_by_key(|file| file.file) && all.len() == 7);
    let list = |filter: FileFilter| -> BTreeSet<Ulid> {
        let listed = catalog.files(&filter).unwrap();
        assert_eq!(listed, all.iter().filter(|file| filter.admits(file)).cloned().collect::<Vec<_>>(), "{filter:?}");
        listed.into_iter().map(|file| file.file).collect()
    };
    assert_eq!(list(FileFilter { group: Some(logs.clone()), ..FileFilter::default() }).len(), 3);
    assert_eq!(list(FileFilter { group: Some(group("none", Signal::Logs)), ..FileFilter::default() }).len(), 0);
    assert_eq!(list(FileFilter { before: Some(Day(4)), ..FileFilter::default() }).len(), 2);
    for (time_ns, expected) in [(400..500, 5), (499..500, 5), (500..900, 1), (500..901, 2), (0..10, 1), (i64::MIN..i64::MAX, 7)] {
        assert_eq!(list(FileFilter { time_ns: Some(time_ns.clone()), ..FileFilter::default() }).len(), expected, "{time_ns:?}");
    }
    let mut paged = Vec::new();
    let mut filter = FileFilter { limit: Some(3), ..FileFilter::default() };
    loop {
        let page = catalog.files(&filter).unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 3);
        filter.after = Some(last.file);
        paged.extend(page);
    }
    assert_eq!(paged, all);
    let gone: Vec<Ulid> = all[5..].iter().map(|file| file.file).collect();
    assert_eq!(catalog.remove_files(&gone).unwrap(), 0, "what is published is not forgotten");
    assert_eq!((catalog.retire_files(&gone).unwrap(), catalog.retire_files(&gone).unwrap()), (2, 0));
    assert_eq!(catalog.files(&FileFilter::default()).unwrap(), all[..5]);
    assert_eq!((catalog.retired_files(9).unwrap(), catalog.retired_files(1).unwrap()), (all[5..].to_vec(), all[5..6].to_vec()));
    assert_eq!(catalog.restore_files(&all).unwrap(), 0, "retired and published files are known");
    assert_eq!((catalog.remove_files(&gone[1..]).unwrap(), catalog.remove_files(&gone[1..]).unwrap()), (1, 0));
    assert_eq!(catalog.retired_files(9).unwrap(), all[5..6]);
    assert_eq!(catalog.restore_files(&all).unwrap(), 1, "what is forgotten can be published again");
    assert_eq!(catalog.files(&FileFilter::default()).unwrap(), [&all[..5], &all[6..]].concat());
    assert_eq!((catalog.retire_files(&gone[1..]).unwrap(), catalog.remove_files(&gone[1..]).unwrap()), (1, 1));
    assert_eq!(catalog.files(&FileFilter::default()).unwrap(), all[..5]);
    assert_eq!(ranges(catalog, &partition("logs", 0)), [0..5], "coverage outlives files");
}

fn files_without_a_uri_are_given_one_once(catalog: &dyn Catalog) {
    let store = StoreUri::of(&build_operator(&ObjectStore::Memory).unwrap());
    let before = catalog.files(&FileFilter::default()).unwrap();
    assert_eq!(catalog.locate_files(&store).unwrap(), 0);
    let mut former = commit(5, &group("orders", Signal::Logs), &[1, 2, 3], vec![row(&partition("former", 0), 0..5)]);
    former.files[..2].iter_mut().for_each(|file| file.uri = None);
    catalog.commit(&former).unwrap();
    catalog.retire_files(&[former.files[1].file]).unwrap();
    assert_eq!((catalog.locate_files(&store).unwrap(), catalog.locate_files(&store).unwrap()), (1, 0));
    former.files[0].uri = Some(format!("memory:///{}", former.files[0].path));
    let [located, retired, other] = &former.files[..] else { unreachable!() };
    assert_eq!(catalog.files(&FileFilter::default()).unwrap(), [&before[..], &[located.clone(), other.clone()]].concat());
    assert_eq!(catalog.retired_files(9).unwrap().last(), Some(retired), "nobody is to read what is about to be removed");
    let ids = former.files.iter().map(|file| file.file).collect::<Vec<_>>();
    assert_eq!((catalog.retire_files(&ids).unwrap(), catalog.remove_files(&ids).unwrap()), (2, 3));
}

fn index_work_is_queued_with_the_commit(catalog: &dyn Catalog) {
    let all = catalog.files(&FileFilter::default()).unwrap();
    let pending = catalog.index_pending(100).unwrap();
    let expected: Vec<_> = all.iter().map(|file| (file.file, &file.group, &file.path)).collect();
    assert_eq!(pending.iter().map(|work| (work.file, &work.group, &work.path)).collect::<Vec<_>>(), expected);
    assert_eq!(catalog.index_pending(2).unwrap(), pending[..2]);
    let backlog = catalog.index_backlog().unwrap();
    assert_eq!((backlog.files, backlog.oldest_ms), (pending.len() as u64, Some(1_001)));
    let first = pending[0].file;
    assert_eq!((catalog.index_done(first).unwrap(), catalog.index_done(first).unwrap()), (true, false));
    assert_eq!(catalog.index_pending(100).unwrap(), pending[1..]);
}

fn topics_keep_their_group(catalog: &dyn Catalog) {
    let topic = TopicKey { cluster: "c".into(), name: "orders.traces".into(), id: "i".into() };
    let (first, second) = (group("orders", Signal::Traces), group("orders", Signal::Logs));
    assert_eq!(catalog.bind_topic(&topic, &first).unwrap(), Binding::New);
    assert_eq!(catalog.bind_topic(&topic, &first).unwrap(), Binding::Same);
    assert!(
        matches!(catalog.bind_topic(&topic, &second), Err(Error::Bound { bound, wanted, .. }) if bound == first && wanted == second)
    );
    assert_eq!(catalog.topics().unwrap(), BTreeMap::from([(topic.clone(), first)]));
    catalog.rebind_topic(&topic, &second).unwrap();
    assert_eq!(catalog.topics().unwrap(), BTreeMap::from([(topic, second)]));
}

fn commits_given_up_can_never_be_registered(catalog: &dyn Catalog) {
    let (partition, traces) = (partition("given-up", 0), group("orders", Signal::Traces));
    let given_up = commit(300, &traces, &[1], vec![row(&partition, 0..10)]);
    assert_eq!(catalog.standing(given_up.commit_id).unwrap(), Standing::Unknown);
    for _ in 0..2 {
        assert_eq!(catalog.abandon(given_up.commit_id, &traces, "node-1").unwrap(), Standing::Abandoned);
    }
    assert_eq!(catalog.standing(given_up.commit_id).unwrap(), Standing::Abandoned);
    let refused = catalog.commit(&given_up);
    assert!(matches!(&refused, Err(error @ Error::Abandoned { .. }) if error.is_about_the_commit() && !error.is_retriable()));
    assert_eq!(ranges(catalog, &partition), []);
    // Its offsets are free, and what is registered stays.
    let other = commit(301, &traces, &[1], vec![row(&partition, 0..10)]);
    assert_eq!(catalog.commit(&other).unwrap(), Committed::New);
    assert_eq!(catalog.abandon(other.commit_id, &traces, "node-1").unwrap(), Standing::Registered);
    assert_eq!((ranges(catalog, &partition), catalog.commit(&other).unwrap()), (vec![0..10], Committed::AlreadyCommitted));
}

fn partitions_are_complete_through_their_first_unbroken_run(catalog: &dyn Catalog) {
    let (partition, logs) = (partition("complete", 7), group("orders", Signal::Logs));
    let complete = |catalog: &dyn Catalog| catalog.complete_through().unwrap().get(&partition).copied();
    let through = |start, offset, time| Some(CompleteThrough { start, offset, kafka_time_max_ms: time });
    assert_eq!(complete(catalog), None);
    catalog.commit(&commit(310, &logs, &[1], vec![row(&partition, 20..30)])).unwrap();
    assert_eq!(complete(catalog), through(20, 30, Some(300)));
    // Behind a hole nothing counts, whatever its time.
    catalog.commit(&commit(311, &logs, &[1], vec![row(&partition, 35..40)])).unwrap();
    assert_eq!(complete(catalog), through(20, 30, Some(300)));
    let untimed = CoverageRow { kafka_time_max_ms: None, ..row(&partition, 30..35) };
    catalog.commit(&commit(312, &logs, &[], vec![untimed])).unwrap();
    assert_eq!(complete(catalog), through(20, 40, Some(400)));
    catalog.commit(&commit(313, &logs, &[], vec![CoverageRow { kafka_time_max_ms: None, ..row(&partition, 0..9) }])).unwrap();
    assert_eq!(complete(catalog), through(0, 9, None));
    assert_eq!(catalog.complete_through().unwrap(), complete_through(&catalog.coverage().unwrap()));
}

fn invalid_commits_are_refused(catalog: &dyn Catalog) {
    let (orders, traces) = (partition("invalid", 0), group("orders", Signal::Traces));
    let mut unbalanced = row(&orders, 0..10);
    unbalanced.dispositions.stored += 1;
    let mut huge = row(&orders, 0..10);
    (huge.dispositions.stored, huge.dispositions.duplicates) = (u64::MAX, 11);
    let mut backward = row(&orders, 0..10);
    backward.range = std::ops::Range { start: 10, end: 0 };
    let foreign = Commit { group: group("other", Signal::Traces), ..commit(200, &traces, &[1], vec![row(&orders, 0..10)]) };
    let invalid = [
        commit(201, &traces, &[1], vec![unbalanced]),
        commit(202, &traces, &[1], vec![huge]),
        commit(203, &traces, &[1], vec![backward]),
        commit(204, &traces, &[1], vec![]),
        foreign,
    ];
    for commit in invalid {
        assert!(matches!(catalog.commit(&commit), Err(Error::Invalid { .. })), "{commit:?}");
    }
    assert_eq!(ranges(catalog, &orders), []);
}

/// Any order of commits, repeated and overlapping, against a set of offsets.
fn agrees_with_the_model(catalog: &dyn Catalog, topic: &str, steps: &[(i32, i64, i64, bool)]) {
    let traces = group("model", Signal::Traces);
    let base: u64 = 1 << 32 | u64::from(SCHEMAS.fetch_add(1_000, Ordering::Relaxed));
    let mut model: BTreeMap<i32, BTreeSet<i64>> = BTreeMap::new();
    for (number, (partition_number, start, length, repeat)) in steps.iter().enumerate() {
        let (range, key) = (*start..start + length, partition(topic, *partition_number));
        let commit = commit(base + number as u64, &traces, &[1], vec![row(&key, range.clone())]);
        let known = model.entry(*partition_number).or_default();
        let overlaps = range.clone().any(|offset| known.contains(&offset));
        match catalog.commit(&commit) {
            Ok(Committed::New) => assert!(!overlaps, "{range:?} was committed twice"),
            Err(Error::Overlap { known, .. }) => assert!(overlaps && known.start < range.end && range.start < known.end),
            other => panic!("{other:?}"),
        }
        if overlaps {
            continue;
        }
        known.extend(range);
        if *repeat {
            assert_eq!(catalog.commit(&commit).unwrap(), Committed::AlreadyCommitted);
        }
    }
    let coverage = catalog.coverage().unwrap();
    for (number, offsets) in model {
        let rows = &coverage[&partition(topic, number)];
        assert!(rows.windows(2).all(|pair| pair[0].range.end < pair[1].range.start), "not merged: {rows:?}");
        assert!(rows.iter().all(CoverageRow::is_valid));
        assert_eq!(rows.iter().flat_map(|row| row.range.clone()).collect::<Vec<_>>(), offsets.into_iter().collect::<Vec<_>>());
    }
}

fn steps() -> impl Strategy<Value = Vec<(i32, i64, i64, bool)>> {
    proptest::collection::vec((0..2i32, 0..60i64, 1..9i64, any::<bool>()), 1..25)
}

// ------------------------------------------------------------------------------------------------------------------ sled

#[test]
fn sled_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&mut |open| {
        drop(open);
        Box::new(SledCatalog::open(folder.path()).unwrap())
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn sled_agrees_with_the_model(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        agrees_with_the_model(&SledCatalog::open(folder.path()).unwrap(), "t", &steps);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).map(|_| ()).unwrap()
        }
    }
}

#[test]
fn sled_holds_every_returned_commit_when_its_process_is_killed() {
    let (folder, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let catalog = SledCatalog::open(&folder.path().join("catalog")).unwrap();
    let (orders, traces) = (partition("orders", 0), group("orders", Signal::Traces));
    assert_eq!(catalog.state(), State::New);
    for number in 0..6 {
        let start = number as i64 * 10;
        catalog.commit(&commit(number, &traces, &[1], vec![row(&orders, start..start + 10)])).unwrap();
        // The folder as a kill leaves it: the catalog is open, nothing is closed or dropped.
        let image = images.path().join(number.to_string());
        copy_folder(&folder.path().join("catalog"), &image);
        let found = SledCatalog::open(&image).unwrap();
        assert_eq!(found.state(), State::Unclean);
        assert_eq!(ranges(&found, &orders), [0..start + 10]);
        assert_eq!(found.files(&FileFilter::default()).unwrap().len() as u64, number + 1);
    }
    drop(catalog);
    assert_eq!(SledCatalog::open(&folder.path().join("catalog")).unwrap().state(), State::Clean);
}

#[test]
fn sled_in_use_damaged_or_of_another_version_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let catalog = SledCatalog::open(&path("catalog")).unwrap();
    catalog.commit(&commit(1, &group("orders", Signal::Traces), &[1], vec![row(&partition("orders", 0), 0..10)])).unwrap();
    assert!(matches!(SledCatalog::open(&path("catalog")), Err(Error::Locked { .. })));
    drop(catalog);

    copy_folder(&path("catalog"), &path("newer"));
    {
        let db = sled::open(path("newer")).unwrap();
        db.open_tree("meta").unwrap().insert("schema", &7u32.to_be_bytes()).unwrap();
        db.flush().unwrap();
    }
    std::fs::write(path("file"), b"not a folder").unwrap();
    let error = SledCatalog::open(&path("file")).err().expect("no folder");
    assert!(
        matches!(&error, Error::Damaged { .. }) && error.to_string().contains("`openwit-ingest janitor` moves it aside"),
        "{error}"
    );
    assert!(matches!(SledCatalog::open(&path("newer")), Err(Error::Version { .. })));
}

/// sled 0.34 opens most damaged files without complaint and with entries missing.
#[test]
fn sled_that_lost_entries_is_never_taken_for_a_clean_catalog() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let everything = |catalog: &SledCatalog| (catalog.files(&FileFilter::default()).unwrap(), catalog.coverage().unwrap());
    let catalog = SledCatalog::open(&path("catalog")).unwrap();
    for number in 0..120 {
        let coverage = (0..8).map(|topic| row(&partition(&format!("topic-{topic}"), 0), number * 10..number * 10 + 10)).collect();
        catalog.commit(&commit(number as u64, &group("orders", Signal::Traces), &[1, 2, 3, 4], coverage)).unwrap();
    }
    let before = everything(&catalog);
    drop(catalog);
    let bytes = std::fs::read(path("catalog").join("db")).unwrap();
    let mut seen = BTreeMap::new();
    for (number, position) in (0..bytes.len()).step_by(bytes.len().div_ceil(25)).enumerate() {
        let name = format!("damaged-{number}");
        copy_folder(&path("catalog"), &path(&name));
        let mut damaged = bytes.clone();
        damaged[position..].iter_mut().take(3_000).for_each(|byte| *byte ^= 0x5a);
        std::fs::write(path(&name).join("db"), damaged).unwrap();
        let found = match SledCatalog::open(&path(&name)) {
            Err(Error::Damaged { .. }) => "damaged",
            Err(other) => panic!("{position}: {other}"),
            Ok(catalog) if catalog.state().needs_rebuild() => "needs rebuild",
            Ok(catalog) => {
                assert_eq!(everything(&catalog), before, "{position}");
                "clean and whole"
            }
        };
        *seen.entry(found).or_insert(0) += 1;
    }
    assert!(seen.keys().any(|found| *found != "clean and whole"), "{seen:?}");
}

// ------------------------------------------------------------------------------------------------------------ PostgreSQL

static SCHEMAS: AtomicU32 = AtomicU32::new(0);

/// A schema of its own in the test database, dropped at the end.
pub(super) struct TestSchema {
    pub(super) config: postgres_catalog::Config,
}

impl TestSchema {
    /// `None` where there is no database, after saying so.
    pub(super) fn new() -> Option<TestSchema> {
        let Ok(url) = std::env::var("OPENWIT_TEST_POSTGRES") else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "OPENWIT_TEST_POSTGRES must be set under CI");
            eprintln!("\n*** NOT RUN: set OPENWIT_TEST_POSTGRES=postgres://.. to test the PostgreSQL catalog ***\n");
            return None;
        };
        let number = SCHEMAS.fetch_add(1, Ordering::Relaxed);
        let config = postgres_catalog::Config {
            url: Secret::new(url),
            schema: format!("openwit_test_{}_{number}", std::process::id()),
            tls: Tls::default(),
        };
        Some(TestSchema { config })
    }

    pub(super) fn open(&self) -> PostgresCatalog {
        PostgresCatalog::open(&self.config).unwrap()
    }

    /// Cuts every connection whose session uses this schema, except the asker's.
    fn cut_connections(&self) -> i64 {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()";
        self.client().query_one(cut, &[&self.config.schema]).unwrap().get(0)
    }

    pub(super) fn client(&self) -> postgres::Client {
        let mut client = postgres::Client::connect(self.config.url.reveal(), postgres::NoTls).unwrap();
        client.batch_execute(&format!("SET search_path = {}", self.config.schema)).unwrap();
        client
    }
}

impl Drop for TestSchema {
    fn drop(&mut self) {
        let _ = self.client().batch_execute(&format!("DROP SCHEMA IF EXISTS {} CASCADE", self.config.schema));
    }
}

#[test]
fn postgres_conforms() {
    let Some(schema) = TestSchema::new() else { return };
    conforms(&mut |_| Box::new(schema.open()));
}

#[test]
fn postgres_agrees_with_the_model() {
    let Some(schema) = TestSchema::new() else { return };
    let (catalog, topics) = (schema.open(), AtomicU32::new(0));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 12, ..ProptestConfig::default() });
    let checked = runner.run(&steps(), |steps| {
        let topic = format!("t{}", topics.fetch_add(1, Ordering::Relaxed));
        agrees_with_the_model(&catalog, &topic, &steps);
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn postgres_nodes_that_commit_at_once_neither_overlap_nor_deadlock() {
    let Some(schema) = TestSchema::new() else { return };
    let traces = group("orders", Signal::Traces);
    let run = |node: u64| {
        let (catalog, traces) = (schema.open(), traces.clone());
        // Every node tries every range; both partitions in opposite orders.
        move || {
            let mut committed = 0;
            for step in 0..20i64 {
                let mut coverage = vec![
                    row(&partition("orders", 0), step * 5..step * 5 + 5),
                    row(&partition("orders", 1), step * 5..step * 5 + 5),
                ];
                if node % 2 == 1 {
                    coverage.reverse();
                }
                match catalog.commit(&commit(node * 1_000 + step as u64, &traces, &[1], coverage)) {
                    Ok(Committed::New) => committed += 1,
                    Err(Error::Overlap { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
            committed
        }
    };
    let nodes: Vec<_> = (0..4).map(|node| std::thread::spawn(run(node))).collect();
    let committed: i32 = nodes.into_iter().map(|node| node.join().unwrap()).sum();
    let catalog = schema.open();
    assert_eq!((committed, catalog.files(&FileFilter::default()).unwrap().len()), (20, 20));
    assert_eq!(
        (ranges(&catalog, &partition("orders", 0)), ranges(&catalog, &partition("orders", 1))),
        (vec![0..100], vec![0..100])
    );
}

#[test]
fn postgres_itself_refuses_overlapping_and_unbalanced_coverage() {
    let Some(schema) = TestSchema::new() else { return };
    let catalog = schema.open();
    catalog.commit(&commit(1, &group("orders", Signal::Traces), &[1], vec![row(&partition("orders", 0), 0..10)])).unwrap();
    let mut client = schema.client();
    for (offsets, stored, code) in [("[9,12)", 3, "23P01"), ("[20,30)", 9, "23514"), ("[20,)", 9, "23514"), ("empty", 0, "23514")]
    {
        let insert = format!("INSERT INTO coverage SELECT id, '{offsets}', {stored}, 0, 0, 0, 0, 0 FROM partitions");
        let error = client.batch_execute(&insert).expect_err(offsets);
        assert_eq!(error.code().map(|code| code.code()), Some(code), "{offsets}: {error:?}");
    }
}

#[test]
fn postgres_notifies_indexers_when_and_only_when_a_commit_succeeds() {
    use postgres::fallible_iterator::FallibleIterator;
    let Some(schema) = TestSchema::new() else { return };
    let catalog = schema.open();
    let mut listener = schema.client();
    listener.batch_execute(&format!("LISTEN {INDEX_CHANNEL}")).unwrap();
    let (orders, traces) = (partition("orders", 0), group(&schema.config.schema, Signal::Traces));
    catalog.commit(&commit(1, &traces, &[1, 2], vec![row(&orders, 0..10)])).unwrap();
    catalog.commit(&commit(2, &traces, &[1], vec![row(&orders, 5..15)])).expect_err("overlap");
    catalog.commit(&commit(3, &traces, &[], vec![row(&orders, 10..15)])).unwrap();
    catalog.commit(&commit(4, &traces, &[1], vec![row(&orders, 15..20)])).unwrap();
    let mut notified = Vec::new();
    let mut notifications = listener.notifications();
    let mut iterator = notifications.timeout_iter(std::time::Duration::from_secs(20));
    while notified.len() < 2 {
        let payload = iterator.next().unwrap().expect("notified within 20 s").payload().to_string();
        let payload: serde_json::Value = serde_json::from_str(&payload).unwrap();
        // Other tests use the same channel.
        if payload["index"] == schema.config.schema {
            notified.push((payload["commit"].as_str().unwrap().to_string(), payload["files"].as_u64().unwrap()));
        }
    }
    assert_eq!(notified, [(Ulid::from_parts(1_001, 0).to_string(), 2), (Ulid::from_parts(1_004, 0).to_string(), 1)]);
}

#[test]
fn postgres_connections_cut_by_the_server_are_opened_again() {
    let Some(schema) = TestSchema::new() else { return };
    let named = format!("{}?application_name={}", schema.config.url.reveal(), schema.config.schema);
    let catalog = PostgresCatalog::open(&postgres_catalog::Config { url: Secret::new(named), ..schema.config.clone() }).unwrap();
    let (orders, traces) = (partition("orders", 0), group("orders", Signal::Traces));
    for number in 0..3 {
        assert_eq!(schema.cut_connections(), 1);
        let commit = commit(number, &traces, &[1], vec![row(&orders, number as i64 * 10..number as i64 * 10 + 10)]);
        let mut attempts = 0;
        loop {
            match catalog.commit(&commit) {
                Ok(_) => break,
                Err(error) => assert!(error.is_retriable() && attempts < 3, "{error:?}"),
            }
            attempts += 1;
        }
    }
    assert_eq!(ranges(&catalog, &orders), [0..30]);
}

#[test]
fn postgres_refuses_bad_settings_and_newer_tables_without_showing_the_password() {
    let bad = |url: &str, schema: &str| {
        let config = postgres_catalog::Config { url: Secret::new(url), schema: schema.into(), tls: Tls::default() };
        let shown = format!("{config:?}");
        let error = PostgresCatalog::open(&config).err().expect("refused");
        assert!(!format!("{shown} {error:?} {error}").contains("hunter2"), "{error:?}");
        error
    };
    for schema in ["", "a b", "a\"b", "Upper", "1st", "pg_mine", &"x".repeat(64)] {
        assert!(matches!(bad("host=127.0.0.1", schema), Error::Config { key: "schema", .. }), "{schema}");
    }
    assert!(matches!(bad("postgres://me:hunter2@host:port:7/x", "a"), Error::Config { key: "url", .. }));
    // Nothing listens on port 1.
    let unreachable = bad("postgres://me:hunter2@127.0.0.1:1/x", "a");
    assert!(unreachable.is_retriable(), "{unreachable}");
    let Some(schema) = TestSchema::new() else { return };
    drop(schema.open());
    schema.client().batch_execute("INSERT INTO migrations VALUES (999)").unwrap();
    assert!(matches!(PostgresCatalog::open(&schema.config), Err(Error::Version { .. })));
}
