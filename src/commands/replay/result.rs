//! What a replay leaves in a folder, and how two of them differ.
//!
//! ```text
//! {folder}/rows/         Parquet files of `parquet_files`
//! {folder}/rejects/      dead letters
//! {folder}/replay.json   written last, with what the replay counted: without it the result is a part
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use openwit_operators::compare::{Comparison, Limits, compare};
use openwit_operators::dead_letter::read::Source;
use openwit_operators::fault::chain;
use openwit_operators::parquet_files;
use serde::{Deserialize, Serialize};

use super::super::Failure;
use super::Replayed;
use crate::plan::{REJECTS, ROWS};

/// The file by which a whole result is known.
const ENDED: &str = "replay.json";
/// Of that file.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Ended {
    format: u32,
    from: PathBuf,
    replayed: Replayed,
}

/// How two results differ.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// True if nothing differs.
    pub equal: bool,
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

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rows)?;
        for RejectDifference { topic, partition, offset, a, b } in &self.rejects {
            let why = |reason: &Option<String>| match reason {
                Some(reason) => format!("rejected as {reason}"),
                None => "not rejected".to_owned(),
            };
            writeln!(f, "{topic}[{partition}] offset {offset}: in A {}, in B {}", why(a), why(b))?;
        }
        match (self.rejects_differing, self.rejects_differing - self.rejects.len()) {
            (0, _) => write!(f, "rejects are equal"),
            (all, 0) => write!(f, "{all} rejects differ"),
            (all, more) => write!(f, "{all} rejects differ, {more} of them not listed"),
        }
    }
}

/// Two results: the folder of each, and what it is called.
#[derive(Clone, Copy)]
pub struct Sides<'a> {
    /// One.
    pub a: (&'a Path, &'a Path),
    /// The other.
    pub b: (&'a Path, &'a Path),
}

/// Compares two results.
pub fn compared(sides: Sides<'_>, listed_max: usize) -> Result<Difference, Failure> {
    let Sides { a: (a, called_a), b: (b, called_b) } = sides;
    let limits = Limits { listed_max, ..Limits::default() };
    let rows = compare(&a.join(ROWS), &b.join(ROWS), &limits).map_err(|error| Failure::fault(chain(&error)))?;
    let rows = Comparison { a: called_a.into(), b: called_b.into(), ..rows };
    let (of_a, of_b) = (rejects(&a.join(REJECTS))?, rejects(&b.join(REJECTS))?);
    let mut places: Vec<&Place> = of_a.keys().chain(of_b.keys()).collect();
    places.sort_unstable();
    places.dedup();
    let mut differing: Vec<RejectDifference> = places
        .into_iter()
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
    Ok(Difference { equal: rows.is_equal() && rejects_differing == 0, rows, rejects: differing, rejects_differing })
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

/// Refuses what is no whole result.
pub fn is_whole(directory: &Path) -> Result<(), Failure> {
    let path = directory.join(ENDED);
    let told = |problem: String| Failure::usage(format!("--expect {}: {problem}", directory.display()));
    let text = fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            told(format!("no result of a replay that came to its end: it has no {ENDED}; make one with --to"))
        }
        _ => Failure::fault(format!("reading {}: {error}", path.display())),
    })?;
    let ended: Ended = serde_json::from_slice(&text).map_err(|error| told(format!("{ENDED} cannot be read: {error}")))?;
    match ended.format {
        FORMAT => Ok(()),
        format => Err(told(format!("{ENDED} is of format {format}, and this version knows {FORMAT}"))),
    }
}

/// Makes `directory` ready for a result: it holds nothing, or an earlier result that is to be replaced. The sink removes its rows itself.
pub fn make_room(directory: &Path, replace: bool) -> Result<(), Failure> {
    let (rows, rejects, ended) = (directory.join(ROWS), directory.join(REJECTS), directory.join(ENDED));
    // A replay that ended before its first file leaves the sink's marker alone.
    let nothing_but_marker = entries(&rows)?.iter().all(|name| name == parquet_files::MARKER);
    if nothing_but_marker && entries(directory)?.iter().all(|name| name == ROWS) {
        return Ok(());
    }
    let is_result = ended.exists() || rows.join(parquet_files::MARKER).exists();
    if !is_result {
        return Err(Failure::usage(format!(
            "--to {}: is not empty, and holds no result of a replay: choose another folder",
            directory.display()
        )));
    }
    if !replace {
        return Err(Failure::usage(format!(
            "--to {}: holds the result of a replay: choose another folder, or have it replaced with --replace",
            directory.display()
        )));
    }
    let failed = |path: &Path, error| Failure::fault(format!("removing {}: {error}", path.display()));
    // First what says that the result is whole.
    if ended.exists() {
        fs::remove_file(&ended).map_err(|error| failed(&ended, error))?;
    }
    if rejects.is_dir() {
        fs::remove_dir_all(&rejects).map_err(|error| failed(&rejects, error))?;
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<std::ffi::OsString>, Failure> {
    let failed = |error| Failure::fault(format!("listing {}: {error}", directory.display()));
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>().map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// States that the result in `directory` is whole.
pub fn end(directory: &Path, from: &Path, replayed: &Replayed) -> Result<(), Failure> {
    let (path, part) = (directory.join(ENDED), directory.join("replay.json.part"));
    let ended = Ended { format: FORMAT, from: from.into(), replayed: replayed.clone() };
    let failed = |error: &dyn fmt::Display| Failure::fault(format!("writing {}: {error}", path.display()));
    let text = serde_json::to_string_pretty(&ended).map_err(|error| failed(&error))?;
    let write = || {
        let mut file = fs::File::create(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    write().map_err(|error: std::io::Error| failed(&error))
}
