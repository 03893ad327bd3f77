//! From the roller's commits to their rows, with real files and real sled.

use std::collections::BTreeSet;

use super::*;
use crate::catalog_commit::rebuild::tests::Node;
use crate::parquet_roll::tests::partition;

fn search<'a>(node: &'a Node, catalog: Option<&'a dyn Catalog>, topic: &'a str, offset: i64) -> Search<'a> {
    let runtime = node.runtime.handle();
    Search { store: &node.operator, prefix: "lake", catalog, runtime, topic, partition: 0, offset }
}

#[test]
fn every_offset_is_found_in_its_commit_and_its_file_with_and_without_the_catalog() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let mut commits = Vec::new();
    // Offsets 0 to 4 of each have a row, the last is rejected; a commit without days has no row at all.
    for (index, start, days) in [("orders", 0, 1), ("orders", 6, 3), ("orders", 12, 0), ("events", 0, 2), ("orders", 18, 1)] {
        commits.push((index, start, days, node.publish(&catalog, index, start, days)));
    }
    for (index, start, days, commit) in &commits {
        let expected = BTreeSet::from([partition(index, 0)]);
        for offset in *start..start + 6 {
            for catalog in [Some(&catalog as &dyn Catalog), None] {
                let located = search(&node, catalog, index, offset).run(&expected).unwrap();
                let [found] = &located.commits[..] else { panic!("{index} {offset}: {located:?}") };
                assert_eq!(found.commit_id, commit.commit_id);
                assert_eq!((found.is_registered, &found.coverage.range), (catalog.map(|_| true), &(*start..start + 6)));
                let rows: Vec<(&str, &[i32])> = found.files.iter().map(|file| (file.path.as_str(), &file.ordinals[..])).collect();
                match *days > 0 && offset < start + 5 {
                    true => assert!(matches!(rows[..], [(path, [0])] if commit.files.iter().any(|file| file.path == path))),
                    false => assert!(rows.is_empty(), "{rows:?}"),
                }
                assert!(found.absent.is_empty() && located.missing.is_empty() && located.unreadable.is_empty());
            }
        }
    }
    assert!(search(&node, None, "orders", 24).run(&BTreeSet::new()).unwrap().commits.is_empty());
}

#[test]
fn rows_of_a_commit_that_the_catalog_has_lost_are_found_all_the_same() {
    let mut node = Node::new();
    let catalog = node.catalog();
    node.publish(&catalog, "orders", 0, 2);
    drop(catalog);
    std::fs::remove_dir_all(node.catalog_folder()).unwrap();
    let catalog = node.catalog();
    let located = search(&node, Some(&catalog), "orders", 3).run(&BTreeSet::new()).unwrap();
    let [found] = &located.commits[..] else { panic!("{located:?}") };
    assert_eq!((found.is_registered, found.files.len(), &found.absent[..]), (Some(false), 1, &[][..]));
}

#[test]
fn a_file_that_is_gone_is_named_and_one_that_is_retired_is_told_apart() {
    let mut node = Node::new();
    let catalog = node.catalog();
    let commit = node.publish(&catalog, "orders", 0, 2);
    let expected = BTreeSet::from([partition("orders", 0)]);
    let rows: Vec<_> = commit.files.iter().map(|file| (file.file, file.path.clone())).collect();
    let [(first, path), (second, _)] = &rows[..] else { panic!("{rows:?}") };
    std::fs::remove_file(node.store(path)).unwrap();
    let look = |offset| search(&node, Some(&catalog), "orders", offset).run(&expected).unwrap();
    let located: Vec<Located> = (0..5).map(look).collect();
    // The commit is found by its other file, and each row of that one.
    let found = located.iter().filter(|located| !located.commits.is_empty());
    assert!(found.clone().all(|located| located.missing == [path.clone()]), "{located:?}");
    assert!(found.clone().all(|located| located.commits[0].absent == [*first]), "{located:?}");
    catalog.retire_files(&[*first]).unwrap();
    let located = look(0);
    assert_eq!((&located.missing[..], &located.commits[0].absent[..]), (&[][..], &[*first][..]));
    catalog.retire_files(&[*second]).unwrap();
    assert!(look(0).missing.is_empty());
}
