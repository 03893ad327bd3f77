//! What a comparison tells: for programs by serde, for people by `Display`.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::batch::Group;
use crate::coverage::PartitionKey;
use crate::epoch::Epoch;

/// What two folders have and have not in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// One folder.
    pub a: PathBuf,
    /// The other.
    pub b: PathBuf,
    /// The groups that either has.
    pub groups: Vec<GroupComparison>,
}

/// The same of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupComparison {
    /// The group.
    pub group: Group,
    /// Rows in A.
    pub rows_a: u64,
    /// Rows in B.
    pub rows_b: u64,
    /// Rows that only A has.
    pub only_a: u64,
    /// Rows that only B has.
    pub only_b: u64,
    /// Rows that both have with other values.
    pub differing: u64,
    /// Rows of A whose identity another row of A has, too.
    pub repeated_a: u64,
    /// The same of B.
    pub repeated_b: u64,
    /// Epochs that either has; none where not all files tell.
    pub epochs: Option<u64>,
    /// Those in which the numbers of rows differ. That is no difference of content: the same rows may come in other epochs.
    pub epochs_differing: u64,
    /// Partitions times dispositions whose offsets differ.
    pub coverage_differing: u64,
    /// The first rows that only A has.
    pub listed_only_a: Vec<RowName>,
    /// The first rows that only B has.
    pub listed_only_b: Vec<RowName>,
    /// The first rows that differ.
    pub listed_differing: Vec<RowDifference>,
    /// The first epochs that differ.
    pub listed_epochs: Vec<EpochCounts>,
    /// The first differences of coverage.
    pub listed_coverage: Vec<CoverageDifference>,
}

/// A row, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowName {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The offset of its message.
    pub offset: i64,
    /// Its position within the message.
    pub ordinal: i32,
    /// Its epoch, if the file tells.
    pub epoch: Option<Epoch>,
    /// The file, by its name inside the folder.
    pub file: String,
    /// Its position in the file, from 0.
    pub row: u64,
}

/// A row that both sides have with other values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowDifference {
    /// The row in A.
    pub a: RowName,
    /// The row in B.
    pub b: RowName,
    /// The columns that differ.
    pub columns: Vec<ColumnDifference>,
}

/// Two values of a column, shortened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDifference {
    /// Its name.
    pub column: String,
    /// The value in A.
    pub a: String,
    /// The value in B.
    pub b: String,
}

/// Rows of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochCounts {
    /// The epoch.
    pub epoch: Epoch,
    /// Its rows in A.
    pub rows_a: u64,
    /// Its rows in B.
    pub rows_b: u64,
}

/// Offsets of which only one side says this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageDifference {
    /// Their partition.
    pub partition: PartitionKey,
    /// What became of them: stored, duplicate, rejected, skipped, absent.
    pub disposition: String,
    /// The first ranges that only A has.
    pub only_a: Vec<Range<i64>>,
    /// The first ranges that only B has.
    pub only_b: Vec<Range<i64>>,
}

impl Comparison {
    /// True if both have the same rows, and tell the same of every offset.
    pub fn is_equal(&self) -> bool {
        self.groups.iter().all(GroupComparison::is_equal)
    }
}

impl GroupComparison {
    pub(super) fn new(group: Group) -> Self {
        GroupComparison {
            group,
            rows_a: 0,
            rows_b: 0,
            only_a: 0,
            only_b: 0,
            differing: 0,
            repeated_a: 0,
            repeated_b: 0,
            epochs: None,
            epochs_differing: 0,
            coverage_differing: 0,
            listed_only_a: Vec::new(),
            listed_only_b: Vec::new(),
            listed_differing: Vec::new(),
            listed_epochs: Vec::new(),
            listed_coverage: Vec::new(),
        }
    }

    /// True if both sides have the same rows of the group, and tell the same of every offset.
    pub fn is_equal(&self) -> bool {
        self.only_a + self.only_b + self.differing + self.coverage_differing == 0
    }
}

impl fmt::Display for RowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] offset {} row {}", self.topic, self.partition, self.offset, self.ordinal)?;
        if let Some(epoch) = self.epoch {
            write!(f, ", epoch {epoch}")?;
        }
        write!(f, " ({}, row {})", self.file, self.row)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A: {}", self.a.display())?;
        writeln!(f, "B: {}", self.b.display())?;
        self.groups.iter().try_for_each(|group| group.fmt(f))?;
        let rows: u64 = self.groups.iter().map(|group| group.rows_a).sum();
        match self.groups.iter().filter(|group| !group.is_equal()).count() {
            0 => writeln!(f, "equal: {rows} rows in {} groups", self.groups.len()),
            groups => writeln!(f, "different: {groups} of {} groups", self.groups.len()),
        }
    }
}

impl fmt::Display for GroupComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GroupComparison { group, rows_a, rows_b, only_a, only_b, differing, .. } = self;
        writeln!(f, "{group}: {rows_a} rows in A, {rows_b} in B; {only_a} only in A, {only_b} only in B, {differing} differ")?;
        if self.repeated_a + self.repeated_b > 0 {
            writeln!(f, "  stored more than once: {} rows in A, {} in B", self.repeated_a, self.repeated_b)?;
        }
        list(f, "- only in A: ", &self.listed_only_a, *only_a)?;
        list(f, "+ only in B: ", &self.listed_only_b, *only_b)?;
        for RowDifference { a, columns, .. } in &self.listed_differing {
            writeln!(f, "  ~ {a}")?;
            for ColumnDifference { column, a, b } in columns {
                writeln!(f, "      {column}")?;
                writeln!(f, "        A: {a}")?;
                writeln!(f, "        B: {b}")?;
            }
        }
        left_out(f, self.listed_differing.len(), *differing)?;
        for CoverageDifference { partition, disposition, only_a, only_b } in &self.listed_coverage {
            let (only_a, only_b) = (ranges(only_a), ranges(only_b));
            writeln!(f, "  offsets of {partition} {disposition}: only in A {only_a}; only in B {only_b}")?;
        }
        left_out(f, self.listed_coverage.len(), self.coverage_differing)?;
        for EpochCounts { epoch, rows_a, rows_b } in &self.listed_epochs {
            writeln!(f, "  epoch {epoch}: {rows_a} rows in A, {rows_b} in B")?;
        }
        left_out(f, self.listed_epochs.len(), self.epochs_differing)
    }
}

fn list(f: &mut fmt::Formatter<'_>, what: &str, rows: &[RowName], count: u64) -> fmt::Result {
    rows.iter().try_for_each(|row| writeln!(f, "  {what}{row}"))?;
    left_out(f, rows.len(), count)
}

fn left_out(f: &mut fmt::Formatter<'_>, listed: usize, count: u64) -> fmt::Result {
    match count.saturating_sub(listed as u64) {
        0 => Ok(()),
        more => writeln!(f, "    and {more} more"),
    }
}

fn ranges(ranges: &[Range<i64>]) -> String {
    if ranges.is_empty() {
        return "none".into();
    }
    let texts = ranges.iter().map(|range| format!("{}..{}", range.start, range.end));
    texts.collect::<Vec<_>>().join(" ")
}
