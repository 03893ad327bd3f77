//! The rows of one group of both sides, side by side.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use twox_hash::XxHash3_64;

use super::folder::{Identity, RowsFile};
use super::report::{ColumnDifference, GroupComparison, RowDifference, RowName};
use super::{Error, Limits, values};
use crate::batch::Group;

/// A row's identity, its topic by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    topic: u32,
    partition: i32,
    offset: i64,
    ordinal: i32,
}

/// Where a row lies: which file of its side, which row of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: u32,
    row: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: Key,
    /// The two halves of a digest: as one number it would be aligned to 16 bytes, and the entry be larger by a third.
    digest: [u64; 2],
    place: Place,
}

/// The topics of both sides, numbered as they come.
#[derive(Default)]
struct Topics {
    numbers: BTreeMap<String, u32>,
    names: Vec<String>,
}

impl Topics {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.numbers.insert(name.into(), number);
        self.names.push(name.into());
        number
    }
}

/// What differs so far.
struct Found {
    listed_max: usize,
    only: [Vec<(Key, Place)>; 2],
    differing: Vec<(Key, [Place; 2])>,
    only_count: [u64; 2],
    differing_count: u64,
    repeated: [u64; 2],
}

/// Compares the rows of `group`.
pub(super) fn compare(group: &Group, sides: [&[RowsFile]; 2], limits: &Limits) -> Result<GroupComparison, Error> {
    let rows = sides.map(|files| files.iter().map(|file| file.rows).sum::<u64>());
    let bytes = (rows[0] + rows[1]).saturating_mul(size_of::<Entry>() as u64);
    let passes = bytes.div_ceil(limits.memory_bytes_max.max(1) as u64).max(1);
    let mut topics = Topics::default();
    let mut found = Found {
        listed_max: limits.listed_max,
        only: [Vec::new(), Vec::new()],
        differing: Vec::new(),
        only_count: [0; 2],
        differing_count: 0,
        repeated: [0; 2],
    };
    for pass in 0..passes {
        let a = entries(sides[0], &mut topics, passes, pass)?;
        let b = entries(sides[1], &mut topics, passes, pass)?;
        found.merge(&a, &b);
    }
    found.shorten();
    let name = |side: usize, key: Key, place: Place| {
        let file = &sides[side][place.file as usize];
        RowName {
            topic: topics.names[key.topic as usize].clone(),
            partition: key.partition,
            offset: key.offset,
            ordinal: key.ordinal,
            epoch: file.epoch_of(place.row.into()),
            file: file.name.clone(),
            row: place.row.into(),
        }
    };
    let of_side = |side: usize| read(sides[side], found.differing.iter().map(|(_, places)| places[side]));
    let (of_a, of_b) = (of_side(0)?, of_side(1)?);
    let mut listed_differing = Vec::with_capacity(found.differing.len());
    for &(key, places) in &found.differing {
        let columns = differing_columns(&of_a[&places[0]], &of_b[&places[1]], limits);
        listed_differing.push(RowDifference { a: name(0, key, places[0]), b: name(1, key, places[1]), columns });
    }
    let listed = |side: usize| found.only[side].iter().map(|&(key, place)| name(side, key, place)).collect();
    Ok(GroupComparison {
        rows_a: rows[0],
        rows_b: rows[1],
        only_a: found.only_count[0],
        only_b: found.only_count[1],
        differing: found.differing_count,
        repeated_a: found.repeated[0],
        repeated_b: found.repeated[1],
        listed_only_a: listed(0),
        listed_only_b: listed(1),
        listed_differing,
        ..GroupComparison::new(group.clone())
    })
}

/// The rows at these places, each file read once.
fn read(files: &[RowsFile], places: impl Iterator<Item = Place>) -> Result<BTreeMap<Place, RecordBatch>, Error> {
    let mut wanted: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for Place { file, row } in places {
        wanted.entry(file).or_default().insert(row);
    }
    let mut found = BTreeMap::new();
    for (file, numbers) in wanted {
        let rows = files[file as usize].rows_at(&numbers)?;
        found.extend(numbers.into_iter().map(|row| Place { file, row }).zip(rows));
    }
    Ok(found)
}

/// The rows whose keys belong to `pass`, in order.
fn entries(files: &[RowsFile], topics: &mut Topics, passes: u64, pass: u64) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for (file, number) in files.iter().zip(0..) {
        file.scan(|mut row| {
            if passes > 1 && hash(&row.identity) % passes != pass {
                return;
            }
            let Identity { topic, partition, offset, ordinal } = row.identity;
            let key = Key { topic: topics.number(topic), partition, offset, ordinal };
            let digest = row.digest();
            let digest = [(digest >> 64) as u64, digest as u64];
            entries.push(Entry { key, digest, place: Place { file: number, row: row.number as u32 } });
        })?;
    }
    entries.sort_unstable();
    Ok(entries)
}

fn hash(identity: &Identity<'_>) -> u64 {
    let mut number = [0; 16];
    number[..4].copy_from_slice(&identity.partition.to_le_bytes());
    number[4..12].copy_from_slice(&identity.offset.to_le_bytes());
    number[12..].copy_from_slice(&identity.ordinal.to_le_bytes());
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(identity.topic.as_bytes()), &number)
}

impl Found {
    fn merge(&mut self, a: &[Entry], b: &[Entry]) {
        let (mut a, mut b) = (a, b);
        while let Some(key) = a.first().map(|entry| entry.key).into_iter().chain(b.first().map(|entry| entry.key)).min() {
            let (of_a, of_b) = (take_run(&mut a, key), take_run(&mut b, key));
            self.repeated[0] += (of_a.len() as u64).saturating_sub(1);
            self.repeated[1] += (of_b.len() as u64).saturating_sub(1);
            self.compare_run(key, of_a, of_b);
            // Sorted now and then, not for each row.
            let kept_max = self.listed_max.saturating_mul(6).saturating_add(1_000);
            if self.differing.len() + self.only[0].len() + self.only[1].len() > kept_max {
                self.shorten();
            }
        }
    }

    /// Rows of one key, mostly one of each side. Equal ones go together; of the rest, the first with the first.
    fn compare_run(&mut self, key: Key, of_a: &[Entry], of_b: &[Entry]) {
        let (mut rest_a, mut rest_b) = (Vec::<&Entry>::new(), Vec::<&Entry>::new());
        let (mut a, mut b) = (of_a.iter().peekable(), of_b.iter().peekable());
        loop {
            match (a.peek(), b.peek()) {
                (Some(one), Some(other)) => match one.digest.cmp(&other.digest) {
                    Ordering::Less => rest_a.extend(a.next()),
                    Ordering::Greater => rest_b.extend(b.next()),
                    Ordering::Equal => _ = (a.next(), b.next()),
                },
                (Some(_), None) => rest_a.extend(a.next()),
                (None, Some(_)) => rest_b.extend(b.next()),
                (None, None) => break,
            }
        }
        let pairs = rest_a.len().min(rest_b.len());
        self.differing_count += pairs as u64;
        self.differing.extend(rest_a.iter().zip(&rest_b).map(|(one, other)| (key, [one.place, other.place])));
        for (side, rest) in [rest_a, rest_b].into_iter().enumerate() {
            self.only_count[side] += (rest.len() - pairs) as u64;
            self.only[side].extend(rest[pairs..].iter().map(|entry| (key, entry.place)));
        }
    }

    /// Keeps the first of each kind, in the order of keys: what is listed does not depend on the number of passes.
    fn shorten(&mut self) {
        for only in &mut self.only {
            only.sort_unstable();
            only.truncate(self.listed_max);
        }
        self.differing.sort_unstable();
        self.differing.truncate(self.listed_max);
    }
}

/// Takes the entries of `key` from the front.
fn take_run<'a>(entries: &mut &'a [Entry], key: Key) -> &'a [Entry] {
    let end = entries.iter().position(|entry| entry.key != key).unwrap_or(entries.len());
    let (run, rest) = entries.split_at(end);
    *entries = rest;
    run
}

/// The columns in which two rows differ. A column that one side does not have counts as one without a value.
fn differing_columns(a: &RecordBatch, b: &RecordBatch, limits: &Limits) -> Vec<ColumnDifference> {
    let names: BTreeSet<&String> =
        [a, b].into_iter().flat_map(|batch| batch.schema_ref().fields().iter()).map(|field| field.name()).collect();
    let mut differing = Vec::new();
    for name in names {
        let (one, other) = (a.column_by_name(name), b.column_by_name(name));
        let value = |column: Option<&arrow::array::ArrayRef>| column.and_then(|column| values::bytes(column, 0));
        if value(one) == value(other) {
            continue;
        }
        let text = |column: Option<&arrow::array::ArrayRef>| {
            column.map_or("(no such column)".to_owned(), |column| values::text(column, 0, limits.value_chars_max))
        };
        differing.push(ColumnDifference { column: name.clone(), a: text(one), b: text(other) });
    }
    differing
}
