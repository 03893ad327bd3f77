//! Proof of completeness: everything Kafka handed out is accounted for, once.
//!
//! Pure: it compares what the catalog covers with what the broker says there is, and with what is really in the files, if somebody
//! counted.
//!
//! ```text
//! in = stored + duplicates + rejected + skipped + absent      per partition, and for each row of coverage by itself
//! gap                an offset the broker has (or had, between two covered ones) that nothing accounts for
//! overlap            an offset accounted for twice; the catalogs make it impossible, the audit does not take their word
//! rows               rows the catalog counts against rows found in the files
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Serialize;

use crate::coverage::{Dispositions, OffsetSet, PartitionKey};
use crate::parquet_roll::CoverageRow;

/// What is expected of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// First offset that should be accounted for: where the broker's log starts, or where consumption began if that is later.
    pub start: i64,
    /// One past the last offset that should be: the log's end, or the committed offset while the pipeline is running.
    pub end: i64,
    /// Rows found by reading the files, if somebody counted.
    pub rows_found: Option<u64>,
}

/// One partition's balance.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionAudit {
    /// Kafka's cluster id.
    pub cluster: String,
    /// The topic's name.
    pub topic: String,
    /// The topic's id.
    pub topic_id: String,
    /// The partition's number.
    pub partition: i32,
    /// What was expected; `None` for a partition that only the catalog knows: its topic is gone, or not asked for.
    pub expected: Option<Expected>,
    /// Offsets accounted for.
    pub covered: u64,
    /// What became of them.
    pub dispositions: Dispositions,
    /// Rows the catalog counts.
    pub rows: u64,
    /// Ranges that nothing accounts for.
    pub gaps: Vec<Range<i64>>,
    /// Ranges accounted for more than once.
    pub overlaps: Vec<Range<i64>>,
    /// Rows of coverage whose dispositions do not add up to their length.
    pub unbalanced: Vec<Range<i64>>,
}

impl PartitionAudit {
    /// True if the rows were counted and differ.
    pub fn rows_differ(&self) -> bool {
        self.expected.and_then(|expected| expected.rows_found).is_some_and(|found| found != self.rows)
    }

    /// True if nothing is lost, doubled or miscounted.
    pub fn is_clean(&self) -> bool {
        self.gaps.is_empty() && self.overlaps.is_empty() && self.unbalanced.is_empty() && !self.rows_differ()
    }

    /// What is wrong, with offsets, in words.
    pub fn findings(&self) -> Option<String> {
        /// A broken partition may have thousands; the JSON has them all.
        const SHOWN_MAX: usize = 4;
        let list = |what: &str, ranges: &[Range<i64>]| {
            let shown: Vec<String> =
                ranges.iter().take(SHOWN_MAX).map(|range| format!("{}..{}", range.start, range.end)).collect();
            let more = ranges.len().saturating_sub(SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (!ranges.is_empty()).then(|| format!("{what} {}{more}", shown.join(" ")))
        };
        let rows_found = self.expected.and_then(|expected| expected.rows_found).filter(|_| self.rows_differ());
        let found = [
            list("gap", &self.gaps),
            list("overlap", &self.overlaps),
            list("unbalanced", &self.unbalanced),
            rows_found.map(|found| format!("{found} rows found in the files")),
        ];
        let found: Vec<String> = found.into_iter().flatten().collect();
        (!found.is_empty()).then(|| found.join("; "))
    }

    /// The partition's name, as people write it.
    pub fn name(&self) -> String {
        format!("{}[{}]", self.topic, self.partition)
    }
}

/// The balance of all partitions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Audit {
    /// True if every partition is clean.
    pub clean: bool,
    /// Offsets accounted for.
    pub covered: u64,
    /// What became of them.
    pub dispositions: Dispositions,
    /// Rows the catalog counts.
    pub rows: u64,
    /// Offsets in gaps.
    pub missing: u64,
    /// Offsets in overlaps.
    pub doubled: u64,
    /// The partitions, by cluster, topic and number.
    pub partitions: Vec<PartitionAudit>,
}

/// Balances what the catalog covers against what is expected. A partition may be in either alone.
pub fn audit(coverage: &BTreeMap<PartitionKey, Vec<CoverageRow>>, expected: &BTreeMap<PartitionKey, Expected>) -> Audit {
    let mut audit = Audit { clean: true, ..Audit::default() };
    let only_expected = expected.keys().filter(|partition| !coverage.contains_key(partition));
    let mut partitions: Vec<&PartitionKey> = coverage.keys().chain(only_expected).collect();
    partitions.sort();
    for partition in partitions {
        let rows = coverage.get(partition).map_or(&[][..], Vec::as_slice);
        let balance = balance(partition, rows, expected.get(partition).copied());
        let length = |ranges: &[Range<i64>]| ranges.iter().map(|range| range.end.abs_diff(range.start)).sum::<u64>();
        audit.clean &= balance.is_clean();
        audit.covered += balance.covered;
        audit.dispositions += balance.dispositions;
        audit.rows += balance.rows;
        audit.missing += length(&balance.gaps);
        audit.doubled += length(&balance.overlaps);
        audit.partitions.push(balance);
    }
    audit
}

fn balance(partition: &PartitionKey, rows: &[CoverageRow], expected: Option<Expected>) -> PartitionAudit {
    let PartitionKey { topic, partition } = partition;
    let mut balance = PartitionAudit {
        cluster: topic.cluster.to_string(),
        topic: topic.name.to_string(),
        topic_id: topic.id.to_string(),
        partition: *partition,
        expected,
        covered: 0,
        dispositions: Dispositions::default(),
        rows: 0,
        gaps: vec![],
        overlaps: vec![],
        unbalanced: vec![],
    };
    let mut seen = OffsetSet::default();
    let mut twice = OffsetSet::default();
    for row in rows {
        // What of the row was seen before is what is missing in "what of the row was not seen before".
        let mut new = OffsetSet::default();
        seen.missing_in(row.range.clone()).into_iter().for_each(|range| new.insert(range));
        new.missing_in(row.range.clone()).into_iter().for_each(|range| twice.insert(range));
        seen.insert(row.range.clone());
        balance.dispositions += row.dispositions;
        balance.rows += row.rows;
        if !row.is_valid() {
            balance.unbalanced.push(row.range.clone());
        }
    }
    balance.covered = seen.ranges().map(|range| range.end.abs_diff(range.start)).sum();
    balance.overlaps = twice.ranges().collect();
    // Holes between covered offsets count even where retention has since moved the log's start past them.
    let inner = seen.ranges().next().zip(seen.ranges().next_back()).map(|(first, last)| first.start..last.end);
    let asked = expected.map(|expected| expected.start..expected.end).filter(|range| !range.is_empty());
    let mut gaps = OffsetSet::default();
    for range in [inner, asked].into_iter().flatten() {
        seen.missing_in(range).into_iter().for_each(|gap| gaps.insert(gap));
    }
    balance.gaps = gaps.ranges().collect();
    balance
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.partitions.iter().map(|one| one.name().len()).max().unwrap_or(0).max("partition".len());
        writeln!(
            f,
            "{:width$} {:>14} {:>14} {:>11} {:>10} {:>9} {:>9} {:>14}  findings",
            "partition", "in", "stored", "duplicates", "rejected", "skipped", "absent", "rows"
        )?;
        for one in &self.partitions {
            line(f, width, &one.name(), one.covered, &one.dispositions, one.rows)?;
            writeln!(f, "  {}", one.findings().unwrap_or("ok".into()))?;
        }
        line(f, width, "total", self.covered, &self.dispositions, self.rows)?;
        let verdict = if self.clean {
            "in = stored + duplicates + rejected + skipped + absent".to_string()
        } else {
            "NOT CLEAN".to_string()
        };
        writeln!(f, "  {verdict}; {} missing, {} doubled", self.missing, self.doubled)
    }
}

fn line(
    f: &mut fmt::Formatter<'_>,
    width: usize,
    name: &str,
    covered: u64,
    dispositions: &Dispositions,
    rows: u64,
) -> fmt::Result {
    let Dispositions { stored, duplicates, rejected, skipped, absent } = dispositions;
    write!(f, "{name:width$} {covered:>14} {stored:>14} {duplicates:>11} {rejected:>10} {skipped:>9} {absent:>9} {rows:>14}")
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of one range of offsets are meant")]
mod tests {
    use super::*;
    use crate::coverage::TopicKey;
    use std::sync::Arc;

    fn partition(number: i32) -> PartitionKey {
        let topic = TopicKey { cluster: "c".into(), name: "orders".into(), id: "".into() };
        PartitionKey { topic: Arc::new(topic), partition: number }
    }

    fn row(number: i32, range: Range<i64>) -> CoverageRow {
        let dispositions = Dispositions { stored: (range.end - range.start) as u64, ..Dispositions::default() };
        CoverageRow { partition: partition(number), rows: dispositions.stored, range, dispositions, kafka_time_max_ms: None }
    }

    /// (covered ranges, expected range, gaps, overlaps)
    type Case = (Vec<Range<i64>>, Option<Range<i64>>, Vec<Range<i64>>, Vec<Range<i64>>);

    #[test]
    fn every_gap_and_overlap_is_found() {
        let cases: Vec<Case> = vec![
            (vec![0..10], Some(0..10), vec![], vec![]),
            (vec![0..10], Some(0..12), vec![10..12], vec![]),
            (vec![5..10], Some(0..10), vec![0..5], vec![]),
            (vec![0..4, 6..10], Some(0..10), vec![4..6], vec![]),
            (vec![0..6, 4..10], Some(0..10), vec![], vec![4..6]),
            (vec![0..4, 6..10], Some(8..10), vec![4..6], vec![]),
            (vec![0..4, 6..10], None, vec![4..6], vec![]),
            (vec![0..10, 0..10, 2..3], Some(0..10), vec![], vec![0..10]),
            (vec![], Some(0..3), vec![0..3], vec![]),
            (vec![], Some(7..7), vec![], vec![]),
        ];
        for (covered, asked, gaps, overlaps) in cases {
            let rows: Vec<CoverageRow> = covered.iter().map(|range| row(0, range.clone())).collect();
            let coverage = if rows.is_empty() { BTreeMap::new() } else { BTreeMap::from([(partition(0), rows)]) };
            let expected = asked.clone().map(|asked| Expected { start: asked.start, end: asked.end, rows_found: None });
            let expected = expected.map(|expected| (partition(0), expected)).into_iter().collect();
            let audit = audit(&coverage, &expected);
            let [one] = &audit.partitions[..] else { panic!("one partition: {audit:?}") };
            assert_eq!((&one.gaps, &one.overlaps), (&gaps, &overlaps), "{covered:?} {asked:?}");
            assert_eq!(audit.clean, gaps.is_empty() && overlaps.is_empty());
        }
    }

    #[test]
    fn miscounted_rows_and_unbalanced_dispositions_are_found_and_totals_add_up() {
        let mut wrong = row(1, 0..10);
        wrong.dispositions.stored = 9;
        let coverage = BTreeMap::from([
            (partition(0), vec![row(0, 0..10)]),
            (partition(1), vec![wrong]),
            (partition(2), vec![row(2, 3..5)]),
        ]);
        let counted = Expected { start: 0, end: 10, rows_found: Some(11) };
        let audit = audit(&coverage, &BTreeMap::from([(partition(0), counted)]));
        assert!(audit.partitions[0].rows_differ() && audit.partitions[1].unbalanced == [0..10] && audit.partitions[2].is_clean());
        assert_eq!((audit.clean, audit.covered, audit.dispositions.stored, audit.rows), (false, 22, 21, 22));
        let text = audit.to_string();
        assert!(
            text.contains("11 rows found in the files") && text.contains("unbalanced 0..10") && text.contains("NOT CLEAN"),
            "{text}"
        );
        assert!(serde_json::to_value(&audit).unwrap()["partitions"][0]["topic"] == "orders");
    }
}
