//! Rows of the coverage table: a range of offsets of one partition and what became of them.
//!
//! The same rows are collected by an open commit, written into the footers of its files and kept by the catalog. Adjacent rows are
//! merged wherever they meet, so the number of rows grows with partitions and gaps, never with time. Merging forgets which commit
//! brought which offsets; the table proves completeness, not history.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::coverage::{Dispositions, PartitionKey};

/// What became of a range of offsets of one partition.
///
/// Invariant: the range is not empty, and the dispositions add up to its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageRow {
    /// The partition.
    pub partition: PartitionKey,
    /// The offsets accounted for.
    pub range: Range<i64>,
    /// How many of them had which disposition.
    pub dispositions: Dispositions,
    /// Rows that the stored ones became: a message may hold none, one or thousands.
    pub rows: u64,
    /// The greatest Kafka timestamp of those rows, in Unix milliseconds, if any has one. Where the broker stamps messages
    /// (`LogAppendTime`), all that was appended before it lies below the range's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka_time_max_ms: Option<i64>,
}

impl CoverageRow {
    /// True if the range is not empty and the dispositions add up to its length.
    pub fn is_valid(&self) -> bool {
        let Dispositions { stored, duplicates, rejected, skipped, absent } = self.dispositions;
        let sum = [stored, duplicates, rejected, skipped, absent].iter().try_fold(0u64, |sum, part| sum.checked_add(*part));
        self.range.start >= 0 && self.range.start < self.range.end && sum == Some((self.range.end - self.range.start) as u64)
    }
}

/// Adds `row` to `rows`, which are of its partition, ascending and disjoint, and merges it with the rows it touches.
///
/// Where it overlaps a row nothing is changed and that row's range is the error.
pub fn add(rows: &mut Vec<CoverageRow>, row: CoverageRow) -> Result<(), Range<i64>> {
    debug_assert!(row.is_valid(), "invalid coverage row {row:?}");
    let position = rows.partition_point(|known| known.range.end <= row.range.start);
    if let Some(next) = rows.get(position)
        && next.range.start < row.range.end
    {
        return Err(next.range.clone());
    }
    rows.insert(position, row);
    merge_with_next(rows, position);
    if position > 0 {
        merge_with_next(rows, position - 1);
    }
    Ok(())
}

fn merge_with_next(rows: &mut Vec<CoverageRow>, position: usize) {
    let touches = rows.get(position + 1).is_some_and(|next| next.range.start == rows[position].range.end);
    if touches {
        let next = rows.remove(position + 1);
        let row = &mut rows[position];
        row.range.end = next.range.end;
        row.dispositions += next.dispositions;
        row.rows += next.rows;
        row.kafka_time_max_ms = row.kafka_time_max_ms.max(next.kafka_time_max_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::TopicKey;
    use std::sync::Arc;

    fn row(range: Range<i64>) -> CoverageRow {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        let dispositions = Dispositions { stored: (range.end - range.start) as u64, ..Dispositions::default() };
        CoverageRow {
            partition: PartitionKey { topic: Arc::new(topic), partition: 0 },
            rows: 2 * dispositions.stored,
            kafka_time_max_ms: Some(range.end),
            range,
            dispositions,
        }
    }

    proptest::proptest! {
        #[test]
        fn rows_stay_disjoint_maximal_and_complete(ranges in proptest::collection::vec((0i64..80, 1i64..12), 0..30)) {
            let mut rows = Vec::new();
            let mut model = std::collections::BTreeSet::new();
            for (start, length) in ranges {
                let range = start..start + length;
                let overlaps = range.clone().any(|offset| model.contains(&offset));
                proptest::prop_assert_eq!(add(&mut rows, row(range.clone())).is_err(), overlaps);
                if !overlaps {
                    model.extend(range);
                }
            }
            let offsets: Vec<i64> = rows.iter().flat_map(|row| row.range.clone()).collect();
            proptest::prop_assert_eq!(offsets, model.iter().copied().collect::<Vec<_>>());
            proptest::prop_assert!(rows.windows(2).all(|pair| pair[0].range.end < pair[1].range.start));
            proptest::prop_assert!(rows.iter().all(|row| row.is_valid() && row.rows == 2 * row.dispositions.stored));
            proptest::prop_assert!(rows.iter().all(|row| row.kafka_time_max_ms == Some(row.range.end)));
        }
    }
}
