//! What became of the offsets of which there are no rows.
//!
//! Files of `parquet_files` list them. A commit of storage has counted them: it says how many offsets of a range were duplicates, rejected,
//! skipped or absent, and not which. Then they are told off in the order of their offsets, so that each count stays what it was.

use std::ops::Range;

use crate::coverage::{Coverage, Dispositions};
use crate::parquet_roll::CoverageRow;

/// Offsets of one partition in a row, and what became of those without rows that were not told yet.
#[derive(Clone, Debug)]
pub struct Run {
    /// The offsets.
    pub range: Range<i64>,
    untold: Untold,
}

#[derive(Clone, Debug)]
enum Untold {
    /// Of these numbers; of `stored`, messages without a row are left once `settle` was told those with rows.
    Counted { left: Dispositions, rows: u64 },
    /// At these offsets; of each list, how many were told.
    Listed { lists: Box<Coverage>, told: [usize; 4] },
}

impl Run {
    /// What a commit of storage says.
    pub fn counted(row: &CoverageRow) -> Self {
        Run { range: row.range.clone(), untold: Untold::Counted { left: row.dispositions, rows: row.rows } }
    }

    /// What a file of `parquet_files` says; `None` if it contradicts itself.
    pub fn listed(coverage: &Coverage) -> Option<Self> {
        let single = [&coverage.duplicates, &coverage.rejected, &coverage.skipped];
        let single = single.into_iter().flatten().map(|offset| *offset..offset.saturating_add(1));
        let mut all: Vec<Range<i64>> = single.chain(coverage.absent.iter().cloned()).collect();
        let is_ascending = |offsets: &[i64]| offsets.is_sorted();
        let lists = [&coverage.duplicates, &coverage.rejected, &coverage.skipped];
        let is_sorted =
            lists.into_iter().all(|list| is_ascending(list)) && coverage.absent.is_sorted_by_key(|absent| absent.start);
        all.sort_by_key(|range| range.start);
        let is_disjoint = all.windows(2).all(|pair| pair[0].end <= pair[1].start);
        let is_inside =
            |range: &Range<i64>| range.start < range.end && coverage.start <= range.start && range.end <= coverage.end;
        let is_valid =
            is_sorted && is_disjoint && all.iter().all(is_inside) && 0 <= coverage.start && coverage.start <= coverage.end;
        let untold = Untold::Listed { lists: Box::new(coverage.clone()), told: [0; 4] };
        is_valid.then(|| Run { range: coverage.range(), untold })
    }

    /// Before anything is told: so many messages of the run have rows, and so many rows.
    pub fn settle(&mut self, messages: u64, rows: u64) -> Result<(), String> {
        let Untold::Counted { left, rows: expected } = &mut self.untold else { return Ok(()) };
        if rows != *expected {
            return Err(format!("{rows} rows were found and {expected} were stored"));
        }
        let without_rows = left.stored.checked_sub(messages);
        left.stored = without_rows.ok_or_else(|| format!("{messages} messages have rows and {} were stored", left.stored))?;
        Ok(())
    }

    /// Tells what became of `gap`, of which there are no rows, up to `listed_max` offsets in the lists of `into`. Returns the end of what was
    /// told. Gaps ascend.
    pub fn tell(&mut self, gap: Range<i64>, into: &mut Coverage, listed_max: usize) -> i64 {
        match &mut self.untold {
            Untold::Counted { left, .. } => {
                let mut at = gap.start;
                let lists = [
                    (&mut left.duplicates, &mut into.duplicates),
                    (&mut left.rejected, &mut into.rejected),
                    (&mut left.skipped, &mut into.skipped),
                ];
                let mut room = listed_max as u64;
                for (left, list) in lists {
                    let count = (*left).min((gap.end - at) as u64).min(room);
                    list.extend(at..at + count as i64);
                    (*left, room, at) = (*left - count, room - count, at + count as i64);
                }
                if room == 0 {
                    return at;
                }
                let stored = left.stored.min((gap.end - at) as u64);
                left.stored -= stored;
                at += stored as i64;
                let absent = left.absent.min((gap.end - at) as u64);
                left.absent -= absent;
                if absent > 0 {
                    into.absent.push(at..at + absent as i64);
                }
                assert_eq!(at + absent as i64, gap.end, "the counts of a run add up to its length");
                gap.end
            }
            Untold::Listed { lists, told } => {
                let offsets = [&lists.duplicates, &lists.rejected, &lists.skipped];
                let told_of = [&mut into.duplicates, &mut into.rejected, &mut into.skipped];
                for (position, (offsets, list)) in offsets.into_iter().zip(told_of).enumerate() {
                    let next = offsets[told[position]..].iter().take_while(|offset| **offset < gap.end);
                    let before = list.len();
                    list.extend(next);
                    told[position] += list.len() - before;
                }
                let next = lists.absent[told[3]..].iter().take_while(|absent| absent.start < gap.end);
                let before = into.absent.len();
                into.absent.extend(next.cloned());
                told[3] += into.absent.len() - before;
                gap.end
            }
        }
    }

    /// Passes over `gap` as over what was not asked for.
    pub fn pass(&mut self, gap: Range<i64>) {
        match &mut self.untold {
            Untold::Counted { left, .. } => {
                let mut rest = (gap.end - gap.start) as u64;
                let Dispositions { stored, duplicates, rejected, skipped, absent } = left;
                for left in [duplicates, rejected, skipped, stored, absent] {
                    let count = rest.min(*left);
                    (*left, rest) = (*left - count, rest - count);
                }
            }
            Untold::Listed { lists, told } => {
                let offsets = [&lists.duplicates, &lists.rejected, &lists.skipped];
                for (offsets, told) in offsets.into_iter().zip(told.iter_mut()) {
                    *told += offsets[*told..].iter().take_while(|offset| **offset < gap.end).count();
                }
                told[3] += lists.absent[told[3]..].iter().take_while(|absent| absent.start < gap.end).count();
            }
        }
    }

    /// True if it says of a message with rows that it has none.
    pub fn denies(&self, offset: i64) -> bool {
        let Untold::Listed { lists, told } = &self.untold else { return false };
        let of = |list: &[i64], told: usize| list.get(told) == Some(&offset);
        of(&lists.duplicates, told[0])
            || of(&lists.rejected, told[1])
            || of(&lists.skipped, told[2])
            || lists.absent.get(told[3]).is_some_and(|absent| absent.contains(&offset))
    }
}
