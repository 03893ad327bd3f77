//! Compares what two runs wrote: which rows only one of them has, which differ, and in which columns. No dataflow, no operator.
//!
//! Takes two folders of Parquet files that this program wrote, by `parquet_files` or as a copy of an object store. Where rows lie does not
//! matter: a row is known by (`_topic`, `_partition`, `_offset`, `_ordinal`) within its group, as docs/schemas.md has it. Files of
//! `parquet_files` also tell epochs and what became of every offset; both are compared where both sides have them.
//!
//! ```text
//! folder   files, what their footers say
//! values   a row as bytes, for its digest; a value as text, for people
//! rows     rows of one group of both sides, side by side
//! report   what is told
//! ```
//!
//! # Memory
//! A row is 48 bytes while it is compared. Where the rows of a group take more than `memory_bytes_max`, its files are read several times, each time
//! for another part of the keys: slower, and neither temporary files nor an order of rows is needed.

mod folder;
mod report;
mod rows;
mod values;

#[cfg(test)]
mod tests;

pub use report::{ColumnDifference, Comparison, CoverageDifference, EpochCounts, GroupComparison, RowDifference, RowName};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::batch::Group;
use crate::coverage::{Coverage, OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use folder::{Folder, RowsFile};

/// How much is compared at once, and how much is told.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows that are listed of each kind of difference in each group; epochs and partitions likewise. All are counted.
    pub listed_max: usize,
    /// Characters of a value that are shown.
    pub value_chars_max: usize,
    /// Memory for the rows of a group; beyond it files are read several times.
    pub memory_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { listed_max: 20, value_chars_max: 200, memory_bytes_max: 256 << 20 }
    }
}

/// Why folders cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is damaged.
    #[error("cannot read rows of {}", path.display())]
    Parquet {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ParquetError,
    },
    /// A Parquet file that this program did not write, or a newer version of it.
    #[error("{} cannot be compared: {detail}", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What is missing.
        detail: String,
    },
}

/// What is in a folder, as few numbers: equal for equal content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Rows of all files.
    pub rows: u64,
    /// Of all rows with their groups, whatever their order and files.
    pub content: String,
    /// Of what became of every offset, whatever the files; none where not all files tell.
    pub coverage: Option<String>,
    /// Of the names and bytes of all files.
    pub files_digest: String,
    /// The files, by name.
    pub files: Vec<FileDigest>,
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows      {}", self.rows)?;
        writeln!(f, "content   {}", self.content)?;
        writeln!(f, "coverage  {}", self.coverage.as_deref().unwrap_or("not told by all files"))?;
        writeln!(f, "files     {} ({})", self.files_digest, self.files.len())
    }
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Its name inside the folder.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Of its rows in their order.
    pub content: String,
    /// Of its bytes.
    pub bytes: String,
}

/// Compares the files in the folders `a` and `b`.
pub fn compare(a: &Path, b: &Path, limits: &Limits) -> Result<Comparison, Error> {
    let (one, other) = (Folder::open(a)?, Folder::open(b)?);
    let groups: BTreeSet<&Group> = one.groups.keys().chain(other.groups.keys()).collect();
    let mut compared = Vec::with_capacity(groups.len());
    for group in groups {
        let sides = [one.files_of(group), other.files_of(group)];
        let mut found = rows::compare(group, sides, limits)?;
        compare_epochs(sides, limits, &mut found);
        compare_coverage(sides, limits, &mut found);
        compared.push(found);
    }
    Ok(Comparison { a: a.into(), b: b.into(), groups: compared })
}

/// The digest of the files in `directory`.
pub fn digest(directory: &Path) -> Result<Digest, Error> {
    let folder = Folder::open(directory)?;
    let (mut rows, mut total, mut names, mut files) = (0, 0u128, Vec::new(), Vec::new());
    for file in folder.groups.values().flatten() {
        let mut in_order = Vec::new();
        let mut content = 0u128;
        file.scan(|mut row| {
            let digest = row.digest();
            // Folded, so that a file of any size needs no memory.
            in_order.clear();
            in_order.extend_from_slice(&content.to_le_bytes());
            in_order.extend_from_slice(&digest.to_le_bytes());
            content = XxHash3_128::oneshot(&in_order);
            total = total.wrapping_add(digest);
        })?;
        let bytes = file.bytes_digest()?;
        rows += file.rows;
        names.push((file.name.clone(), bytes));
        files.push(FileDigest { name: file.name.clone(), rows: file.rows, content: hex(content), bytes: hex(bytes) });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    names.sort();
    let names: Vec<u8> = names.iter().flat_map(|(name, bytes)| format!("{name}\0{bytes:032x}\n").into_bytes()).collect();
    let coverage = folder.groups.iter().map(|(group, files)| Some((group, accounts(files)?))).collect::<Option<Vec<_>>>();
    let coverage = coverage.map(|coverage| hex(XxHash3_128::oneshot(format!("{coverage:?}").as_bytes())));
    Ok(Digest { rows, content: hex(total), coverage, files_digest: hex(XxHash3_128::oneshot(&names)), files })
}

fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

/// Rows by epoch; `None` where a file does not tell.
fn epochs(files: &[RowsFile]) -> Option<BTreeMap<Epoch, u64>> {
    let mut epochs = BTreeMap::new();
    for file in files {
        for (epoch, rows) in &file.note.as_ref()?.epochs {
            *epochs.entry(*epoch).or_default() += rows;
        }
    }
    Some(epochs)
}

fn compare_epochs(sides: [&[RowsFile]; 2], limits: &Limits, found: &mut GroupComparison) {
    let (Some(a), Some(b)) = (epochs(sides[0]), epochs(sides[1])) else { return };
    let all: BTreeSet<Epoch> = a.keys().chain(b.keys()).copied().collect();
    let rows = |side: &BTreeMap<Epoch, u64>, epoch: &Epoch| side.get(epoch).copied().unwrap_or(0);
    let counts = all.iter().map(|epoch| EpochCounts { epoch: *epoch, rows_a: rows(&a, epoch), rows_b: rows(&b, epoch) });
    let differing: Vec<EpochCounts> = counts.filter(|counts| counts.rows_a != counts.rows_b).collect();
    found.epochs = Some(all.len() as u64);
    found.epochs_differing = differing.len() as u64;
    found.listed_epochs = differing.into_iter().take(limits.listed_max).collect();
}

/// What became of the offsets of a partition, by the disposition's name.
type Account = BTreeMap<&'static str, OffsetSet>;

/// The same of all partitions; `None` where a file does not tell.
fn accounts(files: &[RowsFile]) -> Option<BTreeMap<PartitionKey, Account>> {
    let mut accounts: BTreeMap<PartitionKey, Account> = BTreeMap::new();
    for file in files {
        for coverage in &file.note.as_ref()?.coverage {
            let account = accounts.entry(coverage.partition.clone()).or_default();
            for (disposition, range) in dispositions(coverage) {
                account.entry(disposition).or_default().insert(range);
            }
        }
    }
    Some(accounts)
}

/// Every offset of `coverage` with its disposition, as ranges.
fn dispositions(coverage: &Coverage) -> Vec<(&'static str, Range<i64>)> {
    let mut listed = OffsetSet::default();
    let mut found = Vec::new();
    let named = [("duplicate", &coverage.duplicates), ("rejected", &coverage.rejected), ("skipped", &coverage.skipped)];
    for (disposition, offsets) in named {
        found.extend(offsets.iter().map(|&offset| (disposition, offset..offset + 1)));
    }
    found.extend(coverage.absent.iter().map(|range| ("absent", range.clone())));
    found.iter().for_each(|(_, range)| listed.insert(range.clone()));
    found.extend(listed.missing_in(coverage.range()).into_iter().map(|range| ("stored", range)));
    found
}

fn compare_coverage(sides: [&[RowsFile]; 2], limits: &Limits, found: &mut GroupComparison) {
    let (Some(a), Some(b)) = (accounts(sides[0]), accounts(sides[1])) else { return };
    let partitions: BTreeSet<&PartitionKey> = a.keys().chain(b.keys()).collect();
    let none = (Account::new(), OffsetSet::default());
    for partition in partitions {
        let (one, other) = (a.get(partition).unwrap_or(&none.0), b.get(partition).unwrap_or(&none.0));
        for disposition in ["stored", "duplicate", "rejected", "skipped", "absent"] {
            let (one, other) = (one.get(disposition).unwrap_or(&none.1), other.get(disposition).unwrap_or(&none.1));
            let (only_a, only_b) = (minus(one, other), minus(other, one));
            if only_a.is_empty() && only_b.is_empty() {
                continue;
            }
            found.coverage_differing += 1;
            if found.listed_coverage.len() < limits.listed_max {
                let shown = |ranges: Vec<Range<i64>>| ranges.into_iter().take(limits.listed_max).collect();
                let (partition, disposition) = (partition.clone(), disposition.to_owned());
                let (only_a, only_b) = (shown(only_a), shown(only_b));
                found.listed_coverage.push(CoverageDifference { partition, disposition, only_a, only_b });
            }
        }
    }
}

fn minus(one: &OffsetSet, other: &OffsetSet) -> Vec<Range<i64>> {
    one.ranges().flat_map(|range| other.missing_in(range)).collect()
}
