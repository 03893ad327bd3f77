//! What a replay left in a folder, and how two of them differ.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use openwit_operators::compare::{Comparison, Limits, compare};
use openwit_operators::dead_letter::read::Source;
use openwit_operators::fault::chain;
use openwit_operators::parquet_files;
use serde::Serialize;

use super::super::Failure;
use crate::plan::{REJECTS, ROWS};

/// How two results differ.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// In rows, and in what became of offsets.
    pub rows: Comparison,
    /// In rejects: how many are told here that only one side has, or that have another reason.
    pub rejects: Vec<RejectDifference>,
    /// Rejects that differ, listed or not.
    pub rejects_differing: usize,
}

/// A message that is rejected on one side only, or for different reasons.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RejectDifference {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Why the first side rejected it.
    pub a: Option<String>,
    /// Why the other side did.
    pub b: Option<String>,
}

impl Difference {
    /// True if nothing differs.
    pub fn is_equal(&self) -> bool {
        self.rows.is_equal() && self.rejects_differing == 0
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rows)?;
        for RejectDifference { topic, partition, offset, a, b } in &self.rejects {
            let why = |reason: &Option<String>| reason.clone().unwrap_or("not rejected".to_owned());
            writeln!(f, "reject {topic}[{partition}]@{offset}: {} | {}", why(a), why(b))?;
        }
        match self.rejects_differing - self.rejects.len() {
            0 => Ok(()),
            more => writeln!(f, "and {more} rejects more"),
        }
    }
}

/// Compares the results in two folders.
pub fn compared(a: &Path, b: &Path, listed_max: usize) -> Result<Difference, Failure> {
    for side in [a, b] {
        if !side.join(ROWS).is_dir() {
            let message = format!("{}: no result of a replay: it has no folder {ROWS}", side.display());
            return Err(Failure::usage(message));
        }
    }
    let limits = Limits { listed_max, ..Limits::default() };
    let rows = compare(&a.join(ROWS), &b.join(ROWS), &limits).map_err(|error| Failure::fault(chain(&error)))?;
    let (of_a, of_b) = (rejects(&a.join(REJECTS))?, rejects(&b.join(REJECTS))?);
    let places = of_a.keys().chain(of_b.keys().filter(|place| !of_a.contains_key(*place)));
    let mut differing: Vec<RejectDifference> = places
        .map(|place| (place, of_a.get(place), of_b.get(place)))
        .filter(|(_, a, b)| a != b)
        .map(|((topic, partition, offset), a, b)| RejectDifference {
            topic: topic.clone(),
            partition: *partition,
            offset: *offset,
            a: a.cloned(),
            b: b.cloned(),
        })
        .collect();
    let rejects_differing = differing.len();
    differing.truncate(listed_max);
    Ok(Difference { rows, rejects: differing, rejects_differing })
}

/// Where a message lay.
type Place = (String, i32, i64);

/// The reasons of all rejects in a folder: a number and no more for each of them.
fn rejects(directory: &Path) -> Result<BTreeMap<Place, String>, Failure> {
    if !directory.is_dir() {
        return Ok(BTreeMap::new());
    }
    let failed = |error: openwit_operators::dead_letter::read::Error| Failure::fault(chain(&error));
    let source = Source::folder(directory).map_err(failed)?;
    let mut rejects = BTreeMap::new();
    for found in source.letters(None) {
        let letter = found.map_err(failed)?.letter;
        let partition = letter.partition;
        rejects.insert((partition.topic.name.to_string(), partition.partition, letter.offset), letter.reason);
    }
    Ok(rejects)
}

/// Removes the rejects of an earlier replay, as the sink removes its rows.
pub fn make_room(directory: &Path, replace: bool) -> Result<(), Failure> {
    let rejects = directory.join(REJECTS);
    let is_result = directory.join(ROWS).join(parquet_files::MARKER).exists();
    if replace && is_result && rejects.is_dir() {
        let removed = std::fs::remove_dir_all(&rejects);
        removed.map_err(|error| Failure::fault(format!("removing {}: {error}", rejects.display())))?;
    }
    Ok(())
}
