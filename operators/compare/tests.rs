//! Proves that planted differences are found, all of them and nothing else, however rows are cut into files.

use std::path::Path;

use super::*;
use crate::arrow_encode::{Config, Encoder};
use crate::batch::NormalizedBatch;
use crate::parquet_files::Limits as FileLimits;
use crate::parquet_files::disk::{Disk, LocalDisk};
use crate::parquet_files::roll::Roll;
use crate::parquet_roll::Compression;
use crate::parquet_roll::writer::Shape;
use crate::testing::{self, Dice};

type Batches = Vec<(Epoch, NormalizedBatch)>;

/// Writes `batches` into `folder` in files of about `file_bytes_max`.
fn write(batches: &Batches, file_bytes_max: u64, folder: &Path) {
    let shape = Shape { row_group_rows_max: 20, compression: Compression::None, bloom_filters: false };
    let limits = FileLimits { file_bytes_max, epoch_span_max: u64::MAX, shape };
    let mut epochs: BTreeMap<(Group, Epoch), Vec<NormalizedBatch>> = BTreeMap::new();
    for (epoch, batch) in batches {
        epochs.entry((batch.group.clone(), *epoch)).or_default().push(batch.clone());
    }
    let mut rolls: BTreeMap<Group, Roll> = BTreeMap::new();
    let store = |finished: Vec<crate::parquet_files::roll::Finished>| {
        finished.iter().for_each(|file| LocalDisk.store(&folder.join(&file.name), &file.bytes).unwrap());
    };
    for ((group, epoch), batches) in epochs {
        let roll = rolls.entry(group.clone()).or_insert_with(|| Roll::new(group, limits));
        store(roll.append(epoch, batches).unwrap());
    }
    rolls.values_mut().for_each(|roll| store(roll.close().unwrap()));
}

fn folder_of(batches: &Batches, file_bytes_max: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(batches, file_bytes_max, folder.path());
    folder
}

/// Rows of the record at `place` of a batch.
fn rows_of(batch: &NormalizedBatch, place: usize) -> u64 {
    let mut encoder = Encoder::new(Config::new(batch.group.clone()));
    let only = NormalizedBatch { records: vec![batch.records[place]], ..batch.clone() };
    encoder.append(&only).unwrap();
    encoder.rows() as u64
}

/// What was planted: rows only in A, only in B, differing.
type Planted = (u64, u64, u64);

fn totals(comparison: &Comparison) -> Planted {
    let sum = |of: fn(&GroupComparison) -> u64| comparison.groups.iter().map(of).sum();
    (sum(|group| group.only_a), sum(|group| group.only_b), sum(|group| group.differing))
}

/// Drops the record at `place`: its offset becomes a duplicate's.
fn drop_record(batch: &mut NormalizedBatch, place: usize) {
    let record = batch.records.remove(place);
    batch.coverage.duplicates.push(record.offset);
    batch.coverage.duplicates.sort_unstable();
}

#[test]
fn planted_differences_are_found_and_nothing_else() {
    let mut dice = Dice::new(11);
    for round in 0..8 {
        let mut a = testing::batches(30, &mut dice);
        let mut b = a.clone();
        let mut planted: Planted = (0, 0, 0);
        let mut columns = 0;
        for number in 0..a.len() {
            if a[number].1.records.is_empty() || dice.below(8) > round {
                continue;
            }
            let place = dice.below(a[number].1.records.len() as u64) as usize;
            let rows = rows_of(&a[number].1, place);
            match dice.below(3) {
                0 => {
                    drop_record(&mut b[number].1, place);
                    planted.0 += rows;
                }
                1 => {
                    drop_record(&mut a[number].1, place);
                    planted.1 += rows;
                }
                _ => {
                    b[number].1.records[place].timestamp_ms += 1;
                    planted.2 += rows;
                    columns += rows;
                }
            }
        }
        let one = folder_of(&a, 1 << 30);
        let other = folder_of(&b, 1 + dice.below(40_000));
        let few = Limits { memory_bytes_max: 8_000, listed_max: usize::MAX, ..Limits::default() };
        let all = compare(one.path(), other.path(), &few).unwrap();
        assert_eq!(totals(&all), planted, "round {round}");
        assert_eq!(all.is_equal(), planted == (0, 0, 0));
        let listed: Vec<&ColumnDifference> =
            all.groups.iter().flat_map(|group| &group.listed_differing).flat_map(|row| &row.columns).collect();
        assert_eq!(listed.len() as u64, columns);
        assert!(listed.iter().all(|difference| difference.column == "_kafka_timestamp" && difference.a != difference.b));
        let names =
            |of: fn(&GroupComparison) -> &Vec<RowName>| all.groups.iter().map(|group| of(group).len() as u64).sum::<u64>();
        assert_eq!((names(|group| &group.listed_only_a), names(|group| &group.listed_only_b)), (planted.0, planted.1));
        // In one pass the same comes out, and a shorter list is the beginning of the longer one.
        let short = compare(one.path(), other.path(), &Limits { listed_max: 2, ..Limits::default() }).unwrap();
        assert_eq!(totals(&short), planted);
        for (short, all) in short.groups.iter().zip(&all.groups) {
            assert_eq!(short.listed_only_a[..], all.listed_only_a[..all.listed_only_a.len().min(2)]);
            assert_eq!(short.listed_differing[..], all.listed_differing[..all.listed_differing.len().min(2)]);
        }
        let json = serde_json::to_string(&short).unwrap();
        assert_eq!(serde_json::from_str::<Comparison>(&json).unwrap(), short);
    }
}

#[test]
fn the_same_rows_are_equal_and_have_one_digest_however_they_are_cut() {
    let mut dice = Dice::new(12);
    let batches = testing::batches(60, &mut dice);
    let (one, other, again) = (folder_of(&batches, 1 << 30), folder_of(&batches, 20_000), folder_of(&batches, 20_000));
    let comparison = compare(one.path(), other.path(), &Limits::default()).unwrap();
    assert!(comparison.is_equal() && comparison.to_string().contains("equal: "), "{comparison}");
    assert!(comparison.groups.iter().all(|group| group.epochs_differing == 0 && group.epochs.is_some()));
    let [one, other, again] = [one, other, again].map(|folder| digest(folder.path()).unwrap());
    assert_eq!((one.rows, &one.content, &one.coverage), (other.rows, &other.content, &other.coverage));
    assert!(one.files.len() < other.files.len() && one.files_digest != other.files_digest);
    assert_eq!((&other, other.to_string()), (&again, again.to_string()));
    // One row less is another digest.
    let mut less = batches;
    let (_, batch) = less.iter_mut().find(|(_, batch)| !batch.records.is_empty() && rows_of(batch, 0) > 0).unwrap();
    drop_record(batch, 0);
    let less = digest(folder_of(&less, 20_000).path()).unwrap();
    assert!(less.content != one.content && less.coverage != one.coverage);
}

#[test]
fn rows_that_come_twice_are_told_from_rows_that_differ() {
    let mut dice = Dice::new(13);
    let group = Group { index: "a".into(), signal: crate::batch::Signal::Logs };
    let batch = testing::batch(&group, testing::partition("t", 0), 5, &[testing::payload(group.signal, 2, &mut dice)]);
    let once = vec![(Epoch(20), batch.clone())];
    let twice = vec![(Epoch(20), batch.clone()), (Epoch(40), batch)];
    let (one, other) = (folder_of(&once, 1), folder_of(&twice, 1));
    let comparison = compare(one.path(), other.path(), &Limits::default()).unwrap();
    let found = &comparison.groups[0];
    assert_eq!((found.only_a, found.only_b, found.differing, found.repeated_a, found.repeated_b), (0, 2, 0, 0, 2));
    assert_eq!(found.listed_epochs, [EpochCounts { epoch: Epoch(40), rows_a: 0, rows_b: 2 }]);
    let text = comparison.to_string();
    assert!(text.contains("+ only in B: t[0] offset 5 row 0") && text.contains("different: 1 of 1 groups"), "{text}");
}

#[test]
fn what_became_of_offsets_is_compared_too() {
    let mut dice = Dice::new(14);
    let group = Group { index: "a".into(), signal: crate::batch::Signal::Traces };
    let payloads: Vec<Vec<u8>> = (0..3).map(|_| testing::payload(group.signal, 0, &mut dice)).collect();
    let batch = testing::batch(&group, testing::partition("t", 0), 5, &payloads);
    let mut rejected = batch.clone();
    rejected.records.remove(1);
    rejected.coverage.rejected.push(6);
    let (one, other) = (folder_of(&vec![(Epoch(20), batch)], 1), folder_of(&vec![(Epoch(20), rejected)], 1));
    let comparison = compare(one.path(), other.path(), &Limits::default()).unwrap();
    assert_eq!(totals(&comparison), (0, 0, 0));
    assert!(!comparison.is_equal());
    let told: Vec<_> = comparison.groups[0]
        .listed_coverage
        .iter()
        .map(|found| (&*found.disposition, &found.only_a[..], &found.only_b[..]))
        .collect();
    assert_eq!(told, [("stored", &[6..7][..], &[][..]), ("rejected", &[][..], &[6..7][..])]);
}

#[test]
fn a_parquet_file_of_others_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.parquet"), "no").unwrap();
    let error = digest(folder.path()).unwrap_err();
    assert!(error.to_string().contains("x.parquet"), "{error}");
}
