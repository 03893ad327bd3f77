//! The catalog can be lost: the object store brings it back. From the roller to the rebuilt catalog, with real files and real sled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::catalog_commit::IndexWork;
use crate::catalog_commit::sled_catalog::{SledCatalog, State};
use crate::coverage::Coverage;
use crate::object_upload::{self, ObjectStore, build_operator, remove_local, upload_commit};
use crate::parquet_roll::tests::{DAY_MS, NOON_MS, config, delivery, group, noon_rows, partition, received};
use crate::parquet_roll::{ClosedCommit, Roller};

pub(in crate::catalog_commit) type Everything = (Vec<FileRow>, BTreeMap<PartitionKey, Vec<CoverageRow>>, Vec<IndexWork>);

pub(in crate::catalog_commit) struct Node {
    pub(in crate::catalog_commit) folder: tempfile::TempDir,
    pub(in crate::catalog_commit) runtime: tokio::runtime::Runtime,
    pub(in crate::catalog_commit) operator: Operator,
    pub(in crate::catalog_commit) roller: Roller,
    pub(in crate::catalog_commit) sequence: u64,
}

impl Node {
    pub(in crate::catalog_commit) fn new() -> Node {
        let folder = tempfile::tempdir().unwrap();
        let operator = build_operator(&ObjectStore::Fs { root: folder.path().join("store") }).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let roller = Roller::open(config(&folder.path().join("roll")), BTreeMap::new()).unwrap();
        Node { folder, runtime, operator, roller, sequence: 0 }
    }

    pub(in crate::catalog_commit) fn catalog_folder(&self) -> PathBuf {
        self.folder.path().join("catalog")
    }

    pub(in crate::catalog_commit) fn catalog(&self) -> SledCatalog {
        SledCatalog::open(&self.catalog_folder()).unwrap()
    }

    /// One commit of `group`: a partition's rows over as many days, or with no day a commit without rows.
    pub(in crate::catalog_commit) fn close(&mut self, index: &str, start: i64, days: i64) -> ClosedCommit {
        let partition = partition(index, 0);
        self.sequence += 1;
        let mut rows = noon_rows(&partition, start..start + 5 * days.min(1));
        rows.iter_mut()
            .enumerate()
            .for_each(|(number, row)| row.time_ns = Some((NOON_MS - (number as i64 % days) * DAY_MS) * 1_000_000));
        let mut coverage = Coverage::stored(partition.clone(), start..start + 6);
        coverage.rejected = if days == 0 { (start..start + 6).collect() } else { vec![start + 5] };
        let now_ms = 1_764_000_000_000 + self.sequence;
        self.roller.admit(received(self.sequence, &group(index), &rows, vec![coverage]), now_ms).unwrap();
        self.roller.flush().unwrap().remove(0)
    }

    pub(in crate::catalog_commit) fn upload(&self, commit: &ClosedCommit) {
        self.runtime.block_on(upload_commit(&self.operator, commit, &object_upload::Config::default())).unwrap();
    }

    /// What the catalog is told of a commit.
    pub(in crate::catalog_commit) fn commit_of(&self, closed: &ClosedCommit) -> Commit {
        Commit::of(closed, Some(&StoreUri::of(&self.operator)))
    }

    /// The whole way of a commit.
    pub(in crate::catalog_commit) fn publish(
        &mut self,
        catalog: &dyn Catalog,
        index: &str,
        start: i64,
        days: i64,
    ) -> ClosedCommit {
        let closed = self.close(index, start, days);
        self.upload(&closed);
        assert_eq!(catalog.commit(&self.commit_of(&closed)).unwrap(), Committed::New);
        self.roller.committed(&closed);
        remove_local(&closed).unwrap();
        closed
    }

    pub(in crate::catalog_commit) fn rebuild(&self, catalog: &dyn Catalog) -> Report {
        rebuild_from_footers(&self.operator, "lake", catalog, self.runtime.handle()).unwrap()
    }

    pub(in crate::catalog_commit) fn store(&self, path: &str) -> PathBuf {
        self.folder.path().join("store").join(path)
    }
}

pub(in crate::catalog_commit) fn everything(catalog: &dyn Catalog) -> Everything {
    (catalog.files(&FileFilter::default()).unwrap(), catalog.coverage().unwrap(), catalog.index_pending(10_000).unwrap())
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() { copy_folder(&entry, &target) } else { std::fs::copy(entry, target).map(|_| ()).unwrap() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn a_deleted_catalog_is_rebuilt_with_equal_content(
        commits in proptest::collection::vec((0..2usize, 0..4i64, any::<bool>()), 1..8), killed_after in 0..8usize,
    ) {
        let mut node = Node::new();
        let catalog = node.catalog();
        let image = node.folder.path().join("image");
        let mut next = [0i64; 2];
        for (number, (index, days, gap)) in commits.into_iter().enumerate() {
            next[index] += if gap { 20 } else { 0 };
            node.publish(&catalog, ["orders", "events"][index], next[index], days);
            next[index] += 6;
            if number == killed_after {
                copy_folder(&node.catalog_folder(), &image);
            }
        }
        let before = everything(&catalog);
        drop(catalog);

        // Deleted.
        std::fs::remove_dir_all(node.catalog_folder()).unwrap();
        let catalog = node.catalog();
        prop_assert!(catalog.state() == State::New && everything(&catalog).1.is_empty());
        let report = node.rebuild(&catalog);
        prop_assert_eq!(everything(&catalog), before.clone());
        prop_assert_eq!(report.registered, node.sequence);
        let findings = Report { objects: report.objects, registered: report.registered, ..Report::default() };
        prop_assert_eq!(&report, &findings, "nothing else was found");
        let bound: BTreeMap<_, _> = before.1.keys().map(|key| ((*key.topic).clone(), group(&key.topic.name))).collect();
        prop_assert_eq!(catalog.topics().unwrap(), bound);

        // Again: nothing to do.
        let again = node.rebuild(&catalog);
        prop_assert_eq!(again, Report { registered: 0, known: node.sequence, ..report });
        prop_assert_eq!(everything(&catalog), before.clone());
        drop(catalog);

        // Killed in the middle, and so behind the object store.
        if image.exists() {
            let catalog = SledCatalog::open(&image).unwrap();
            prop_assert_eq!(catalog.state(), State::Unclean);
            let report = node.rebuild(&catalog);
            prop_assert_eq!(report.registered, node.sequence - 1 - killed_after as u64);
            prop_assert_eq!(everything(&catalog), before);
        }
    }
}

#[test]
fn a_commit_whose_upload_died_is_not_registered() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let closed = node.close("orders", 0, 3);
    assert_eq!(closed.files.len(), 3);
    let mut part = closed.clone();
    part.files.truncate(2);
    node.upload(&part);
    let report = node.rebuild(&catalog);
    let paths: Vec<String> = part.files.iter().map(|file| file.path.clone()).collect();
    let [incomplete] = &report.incomplete[..] else { panic!("{report:?}") };
    assert_eq!((report.registered, incomplete.commit_id, &incomplete.paths), (0, closed.commit_id, &paths));
    assert!(incomplete.modified_ms > 1_700_000_000_000, "the store tells when: {}", incomplete.modified_ms);
    assert!(catalog.coverage().unwrap().is_empty());
    // The node lives on: whoever comes first, the commit is there once.
    node.upload(&closed);
    assert_eq!(node.rebuild(&catalog).registered, 1);
    assert_eq!(catalog.commit(&node.commit_of(&closed)).unwrap(), Committed::AlreadyCommitted);
    assert_eq!(catalog.files(&FileFilter::default()).unwrap(), node.commit_of(&closed).files);
}

#[test]
fn objects_whose_rows_are_stored_elsewhere_are_reported_and_not_registered() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let abandoned = node.close("orders", 0, 1);
    node.upload(&abandoned);
    // Another node committed the same offsets, here under other commits of wider reach.
    let other = Commit {
        commit_id: Ulid::from_parts(1, 1),
        coverage: vec![wide(&abandoned, 0..4)],
        files: vec![],
        ..node.commit_of(&abandoned)
    };
    catalog.commit(&other).unwrap();
    let report = node.rebuild(&catalog);
    assert_eq!((report.registered, report.conflicting.len(), report.superseded.len()), (0, 1, 0), "covered in part");
    let rest = Commit { commit_id: Ulid::from_parts(1, 2), coverage: vec![wide(&abandoned, 4..9)], ..other };
    catalog.commit(&rest).unwrap();
    let report = node.rebuild(&catalog);
    let [superseded] = &report.superseded[..] else { panic!("{report:?}") };
    assert_eq!((report.registered, report.conflicting.len()), (0, 0));
    assert_eq!(superseded.paths, [abandoned.files[0].path.clone()]);
    node.runtime.block_on(object_upload::remove_objects(&node.operator, &abandoned)).unwrap();
    assert_eq!(node.rebuild(&catalog).objects, 0);
}

fn wide(commit: &ClosedCommit, range: std::ops::Range<i64>) -> CoverageRow {
    let stored = (range.end - range.start) as u64;
    let dispositions = crate::coverage::Dispositions { stored, ..Default::default() };
    CoverageRow { partition: commit.coverage[0].partition.clone(), range, dispositions, rows: stored, kafka_time_max_ms: None }
}

#[test]
fn a_catalog_that_lost_entries_is_restored_or_said_to_be_damaged() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let closed = node.publish(&catalog, "orders", 0, 3);
    let before = everything(&catalog);
    drop(catalog);
    let lose = |tree: &str, key: &[u8]| {
        let db = sled::open(node.catalog_folder()).unwrap();
        assert!(db.open_tree(tree).unwrap().remove(key).unwrap().is_some());
        db.flush().unwrap();
    };
    // A file's row and work: put back.
    lose("files", &closed.files[1].file.to_bytes());
    lose("index", &closed.files[1].file.to_bytes());
    let catalog = node.catalog();
    let report = node.rebuild(&catalog);
    assert_eq!((&report.restored, report.damaged.len()), (&vec![closed.files[1].path.clone()], 0));
    assert_eq!(everything(&catalog), before);
    drop(catalog);
    // The commit itself: its files are no leftovers.
    lose("commits", &closed.commit_id.to_bytes());
    let catalog = node.catalog();
    let report = node.rebuild(&catalog);
    assert!(report.superseded.is_empty() && report.damaged[0].contains("its commit"), "{report:?}");
    drop(catalog);
    // Its coverage.
    let db = sled::open(node.catalog_folder()).unwrap();
    db.open_tree("commits").unwrap().insert(closed.commit_id.to_bytes(), b"sixteen bytes...").unwrap();
    db.open_tree("coverage").unwrap().clear().unwrap();
    drop(db);
    let report = node.rebuild(&node.catalog());
    assert!(report.restored.is_empty() && report.damaged[0].contains("not covered"), "{report:?}");
}

#[test]
fn damaged_and_hostile_objects_are_reported_with_their_reason() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let closed = node.publish(&catalog, "orders", 0, 1);
    let good = std::fs::read(node.store(&closed.files[0].path)).unwrap();
    let id = |number: u64| Ulid::from_parts(number, 7).to_string();
    let with_length = |length: u32| [b"PAR1....", &length.to_le_bytes()[..], b"PAR1"].concat();
    let note = |change: &dyn Fn(&mut serde_json::Value)| {
        let note = footer::CommitNote::new(Ulid::from_parts(5, 5), group("x"), "n".into(), vec![], closed.coverage.clone());
        let mut note: serde_json::Value = serde_json::from_str(&note.to_json().unwrap()).unwrap();
        change(&mut note);
        note.to_string().into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("parquet", vec![]),
        ("parquet", b"PAR1".to_vec()),
        ("parquet", vec![0xff; 100]),
        ("parquet", with_length(u32::MAX)),
        ("parquet", with_length(9)),
        ("parquet", good[..good.len() - 1].to_vec()),
        ("parquet", good[good.len() / 2..].to_vec()),
        // A whole file of ours under another's name.
        ("parquet", good.clone()),
        ("json", b"{".to_vec()),
        ("json", vec![b'['; 100_000]),
        ("json", note(&|note| note["format"] = 2.into())),
        ("json", note(&|note| note["coverage"][0]["range"]["end"] = (-5).into())),
        ("json", note(&|note| note["coverage"][0]["dispositions"]["stored"] = u64::MAX.into())),
        ("json", note(&|note| note["files"] = serde_json::json!([id(1)]))),
        ("json", note(&|note| note["commit_id"] = "no ulid".into())),
    ];
    for (number, (kind, content)) in cases.iter().enumerate() {
        std::fs::write(node.store(&format!("lake/{}.{kind}", id(number as u64))), content).unwrap();
    }
    std::fs::write(node.store("lake/somebody else's.parquet"), b"not ours").unwrap();
    let report = node.rebuild(&catalog);
    assert_eq!((report.unreadable.len(), report.known, report.registered), (cases.len(), 1, 0), "{:#?}", report.unreadable);
}

#[test]
fn rows_offered_again_after_a_rebuild_are_known() {
    let mut node = Node::new();
    let catalog = node.catalog();
    node.publish(&catalog, "orders", 0, 2);
    drop(catalog);
    let aside = SledCatalog::set_aside(&node.catalog_folder(), 77).unwrap();
    assert!(aside.to_string_lossy().ends_with("catalog.damaged-77") && aside.exists());
    let catalog = node.catalog();
    node.rebuild(&catalog);
    let second = config(&node.folder.path().join("roll-2"));
    let mut roller = Roller::open(second, covered(&catalog.coverage().unwrap())).unwrap();
    let again = delivery(9, &group("orders"), &partition("orders", 0), 0..6);
    assert!(roller.admit(again, 1).unwrap().published.is_some());
}

/// Whatever lies in a footer, reading it ends with a note or a reason.
#[test]
fn footers_with_flipped_bytes_never_panic() {
    let mut node = Node::new();
    let closed = node.close("orders", 0, 2);
    let good = std::fs::read(&closed.files[0].local).unwrap();
    let length = u32::from_le_bytes(good[good.len() - 8..good.len() - 4].try_into().unwrap()) as usize;
    let footer = &good[good.len() - 8 - length..good.len() - 8];
    let mut readable = 0;
    for position in 0..footer.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = footer.to_vec();
            damaged[position] ^= flip;
            let metadata = footer::decode(&damaged);
            readable += usize::from(metadata.is_ok_and(|metadata| footer::read(&metadata).is_ok()));
        }
    }
    assert!(readable < 3 * footer.len(), "some damage is noticed");
}
