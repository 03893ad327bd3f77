//! Each on sled and, where there is one, on PostgreSQL; objects are files of real rollers in a folder.

use super::*;
use crate::catalog_commit::conformance::TestSchema;
use crate::catalog_commit::rebuild::tests::{Node, everything};
use crate::catalog_commit::{Commit, Committed, Error as CatalogError};
use crate::object_upload::upload_commit;

const GRACE_MS: u64 = 3_600_000;
/// Far behind everything that the tests write.
const LATER_MS: u64 = 4_000_000_000_000;

fn on_each_catalog(check: impl Fn(Node, &dyn Catalog)) {
    let node = Node::new();
    let sled = node.catalog();
    check(node, &sled);
    let Some(schema) = TestSchema::new() else { return };
    check(Node::new(), &schema.open());
}

struct Settings {
    now_ms: u64,
    retention_days: Option<u32>,
    is_rehearsal: bool,
}

const NOW: Settings = Settings { now_ms: LATER_MS, retention_days: None, is_rehearsal: false };

fn pass(node: &Node, catalog: &dyn Catalog, settings: Settings) -> Report {
    let Settings { now_ms, retention_days, is_rehearsal } = settings;
    let config = Config { prefix: "lake".into(), grace_ms: GRACE_MS, retention_days };
    let (stop, options) = (Stop::never(), Options { is_rehearsal, ..ROUTINE });
    let (store, runtime) = (&node.operator, node.runtime.handle());
    Pass { store, catalog, runtime, config: &config, options, now_ms, stop: &stop }.run().unwrap()
}

fn objects(node: &Node) -> Vec<String> {
    let listed = node
        .runtime
        .block_on(node.operator.list_options("lake/", opendal::options::ListOptions { recursive: true, ..Default::default() }));
    let mut paths: Vec<String> = listed.unwrap().into_iter().map(|entry| entry.path().to_owned()).collect();
    paths.retain(|path| !path.ends_with('/'));
    paths.sort();
    paths
}

#[test]
fn a_commit_never_finished_is_removed_after_the_grace_period_and_its_node_refused() {
    on_each_catalog(|mut node, catalog| {
        node.publish(catalog, "events", 0, 2);
        let kept = objects(&node);
        let closed = node.close("orders", 0, 3);
        let mut part = closed.clone();
        part.files.truncate(2);
        node.upload(&part);
        let paths: Vec<String> = part.files.iter().map(|file| file.path.clone()).collect();
        let written_ms = pass(&node, catalog, Settings { now_ms: 0, ..NOW }).found.incomplete[0].modified_ms;

        let early = pass(&node, catalog, Settings { now_ms: written_ms + GRACE_MS - 1, ..NOW });
        assert_eq!((early.removed.len(), early.found.incomplete.len()), (0, 1));
        let late = pass(&node, catalog, Settings { now_ms: written_ms + GRACE_MS, ..NOW });
        assert_eq!((late.removed, objects(&node)), (paths, kept.clone()));

        // The node comes back and goes on where it was: only its last file was still to be sent.
        let mut rest = closed.clone();
        rest.files.drain(..2);
        node.upload(&rest);
        let refused = catalog.commit(&node.commit_of(&closed));
        assert!(matches!(refused, Err(CatalogError::Abandoned { .. })), "{refused:?}");
        let again = pass(&node, catalog, Settings { now_ms: 0, ..NOW });
        assert_eq!((again.removed.len(), again.found.registered, objects(&node)), (1, 0, kept.clone()));
        // Its rows come again, under another commit.
        let again = Commit { commit_id: ulid::Ulid::from_parts(9, 9), files: vec![], ..node.commit_of(&closed) };
        assert_eq!(catalog.commit(&again).unwrap(), Committed::New);
    });
}

#[test]
fn a_finished_commit_that_its_node_did_not_register_is_registered_and_a_superseded_one_removed() {
    on_each_catalog(|mut node, catalog| {
        let superseded = node.close("events", 0, 1);
        let other = Commit { commit_id: ulid::Ulid::from_parts(1, 1), files: vec![], ..node.commit_of(&superseded) };
        catalog.commit(&other).unwrap();
        let closed = node.close("orders", 0, 3);
        node.upload(&closed);
        node.upload(&superseded);
        let report = pass(&node, catalog, NOW);
        assert_eq!((report.found.registered, report.removed), (1, vec![superseded.files[0].path.clone()]));
        assert_eq!(catalog.files(&FileFilter::default()).unwrap(), node.commit_of(&closed).files);
        assert_eq!(catalog.commit(&node.commit_of(&closed)).unwrap(), Committed::AlreadyCommitted);
        let quiet = pass(&node, catalog, NOW);
        let expected = Report { found: rebuild::Report { objects: 3, ..Default::default() }, ..Default::default() };
        assert_eq!(quiet, expected, "the second pass finds nothing to do, and reads nothing");
    });
}

#[test]
fn retention_removes_objects_then_rows_and_completes_what_a_crash_began() {
    on_each_catalog(|mut node, catalog| {
        let closed = node.publish(catalog, "orders", 0, 3);
        let kept = node.publish(catalog, "events", 0, 1);
        let latest = closed.files[2].day;
        let now_ms = (latest.0 as u64 + 10) * DAY_MS;
        let before = everything(catalog);
        assert_eq!(pass(&node, catalog, Settings { now_ms, ..NOW }).expired, [""; 0]);
        assert_eq!(everything(catalog), before, "off by default");

        // A crash after the row was retired and before the object is gone.
        catalog.retire_files(&[closed.files[0].file]).unwrap();
        assert_eq!(pass(&node, catalog, Settings { now_ms, ..NOW }).expired, [closed.files[0].path.clone()]);
        assert!(catalog.retired_files(9).unwrap().is_empty() && !objects(&node).contains(&closed.files[0].path));
        // And one after the object is gone.
        catalog.retire_files(&[closed.files[1].file]).unwrap();
        std::fs::remove_file(node.store(&closed.files[1].path)).unwrap();
        let report = pass(&node, catalog, Settings { now_ms, ..NOW });
        assert_eq!((report.expired, report.found.missing_objects.len()), (vec![closed.files[1].path.clone()], 0));

        let report = pass(&node, catalog, Settings { now_ms, retention_days: Some(10), ..NOW });
        assert_eq!((report.expired.len(), everything(catalog).0.len()), (0, 2), "the tenth day is kept");
        let report = pass(&node, catalog, Settings { now_ms, retention_days: Some(9), ..NOW });
        assert_eq!((report.expired.len(), everything(catalog).0.len(), objects(&node).len()), (2, 0, 0));
        assert_eq!(everything(catalog).1, before.1, "offsets stay accounted for");
        assert_eq!(catalog.commit(&node.commit_of(&kept)).unwrap(), Committed::AlreadyCommitted);
    });
}

#[test]
fn a_rehearsal_says_what_a_pass_does_and_changes_nothing() {
    on_each_catalog(|mut node, catalog| {
        let expired = node.publish(catalog, "events", 0, 1);
        let now_ms = (expired.files[0].day.0 as u64 + 9) * DAY_MS;
        let complete = node.close("orders", 0, 1);
        node.upload(&complete);
        let mut part = node.close("orders", 6, 2);
        part.files.truncate(1);
        node.upload(&part);
        std::fs::write(node.store("lake/01ARZ3NDEKTSV4RRFFQ69G5FAV.parquet"), b"not one of ours").unwrap();
        let settings = |is_rehearsal| Settings { now_ms: now_ms.max(LATER_MS), retention_days: Some(8), is_rehearsal };
        let (before, lying) = (everything(catalog), objects(&node));
        let rehearsed = pass(&node, catalog, settings(true));
        assert_eq!((everything(catalog), objects(&node)), (before, lying), "nothing was changed");
        assert_eq!((rehearsed.expired.len(), rehearsed.found.registered, rehearsed.removed.len()), (1, 1, 1));
        let done = pass(&node, catalog, settings(false));
        let normal = |mut report: Report| {
            // Retention comes first, so the pass lists less.
            report.found.objects = 0;
            report
        };
        assert_eq!(normal(done), normal(rehearsed));
    });
}

#[test]
fn rows_without_an_object_are_reported() {
    on_each_catalog(|mut node, catalog| {
        let closed = node.publish(catalog, "orders", 0, 2);
        std::fs::remove_file(node.store(&closed.files[0].path)).unwrap();
        let report = pass(&node, catalog, NOW);
        assert_eq!(report.found.missing_objects, [closed.files[0].path.clone()]);
        let findings: Vec<String> = report.found.findings().collect();
        assert_eq!(findings, [format!("missing in the object store: {}", closed.files[0].path)]);
        assert_eq!(catalog.files(&FileFilter::default()).unwrap().len(), 2, "a person decides");
    });
}

#[test]
fn a_stopped_pass_ends_between_two_requests() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let closed = node.close("orders", 0, 1);
    node.runtime.block_on(upload_commit(&node.operator, &closed, &Default::default())).unwrap();
    let (sender, stop) = Stop::pair();
    sender.send_replace(true);
    let config = Config { prefix: "lake".into(), grace_ms: 0, retention_days: Some(1) };
    let (store, runtime, now_ms) = (&node.operator, node.runtime.handle(), LATER_MS);
    let stopped = Pass { store, catalog: &catalog, runtime, config: &config, options: ROUTINE, now_ms, stop: &stop }.run();
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert!(catalog.coverage().unwrap().is_empty() && objects(&node).len() == 1);
}
