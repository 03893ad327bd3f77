//! In which order commits are read.
//!
//! Within a partition by offset: a commit waits for those that have lower offsets of any of its partitions. Two commits may wait for each
//! other, as where two storage nodes were open while partitions moved between them: these are read together, as one unit.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::Error;
use super::files::Commit;
use crate::coverage::PartitionKey;

/// Commits that are read together, by their positions, and the units that wait for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// The commits.
    pub commits: Vec<usize>,
    /// How many units it waits for.
    pub waits_for: usize,
    /// Which units wait for it.
    pub followed_by: BTreeSet<usize>,
}

/// Orders `commits`, of which no two may account for one offset.
pub fn units(commits: &[Commit]) -> Result<Vec<Unit>, Error> {
    let mut partitions: BTreeMap<&PartitionKey, Vec<(i64, i64, usize)>> = BTreeMap::new();
    for (position, commit) in commits.iter().enumerate() {
        for (partition, run) in &commit.runs {
            partitions.entry(partition).or_default().push((run.range.start, run.range.end, position));
        }
    }
    let mut next = vec![BTreeSet::new(); commits.len()];
    for (partition, runs) in &mut partitions {
        runs.sort_unstable();
        for pair in runs.windows(2) {
            let [(_, end, one), (start, _, other)] = *pair else { continue };
            if start < end {
                return Err(twice(partition, start, &commits[one], &commits[other]));
            }
            if end < start {
                let to = start - 1;
                warn!(%partition, from = end, to, "no file accounts for these offsets: their commits are not there, or not asked for");
            }
            if one != other {
                next[one].insert(other);
            }
        }
    }
    Ok(joined(&next))
}

fn twice(partition: &PartitionKey, offset: i64, one: &Commit, other: &Commit) -> Error {
    let (one, other) = (&one.name, &other.name);
    let problem = match one == other {
        true => format!(
            "offset {offset} of {partition} is accounted for twice: a replay has kept twice what was captured twice, or the file is damaged"
        ),
        false => format!("offset {offset} of {partition} is accounted for by {other}, too: read one of them only"),
    };
    Error::at(one, problem)
}

/// The strongly connected parts of a graph, after Kosaraju: an order in which each node comes after all that it leads to, then from the last
/// of that order on what leads there.
fn joined(next: &[BTreeSet<usize>]) -> Vec<Unit> {
    let mut before = vec![BTreeSet::new(); next.len()];
    for (one, others) in next.iter().enumerate() {
        others.iter().for_each(|other| _ = before[*other].insert(one));
    }
    let (mut seen, mut order) = (vec![false; next.len()], Vec::with_capacity(next.len()));
    for node in 0..next.len() {
        walk(node, next, &mut seen, &mut order);
    }
    let (mut seen, mut unit_of, mut units) = (vec![false; next.len()], vec![0; next.len()], Vec::new());
    for node in order.into_iter().rev() {
        let mut commits = Vec::new();
        walk(node, &before, &mut seen, &mut commits);
        if commits.is_empty() {
            continue;
        }
        commits.sort_unstable();
        commits.iter().for_each(|commit| unit_of[*commit] = units.len());
        units.push(Unit { commits, ..Unit::default() });
    }
    for (one, others) in next.iter().enumerate() {
        for other in others.iter().filter(|other| unit_of[**other] != unit_of[one]) {
            units[unit_of[one]].followed_by.insert(unit_of[*other]);
        }
    }
    let followers: Vec<usize> = units.iter().flat_map(|unit| unit.followed_by.iter().copied()).collect();
    followers.into_iter().for_each(|unit| units[unit].waits_for += 1);
    units
}

/// Adds `node` and what it leads to and was not seen, each after all that it leads to.
fn walk(node: usize, next: &[BTreeSet<usize>], seen: &mut [bool], order: &mut Vec<usize>) {
    if std::mem::replace(&mut seen[node], true) {
        return;
    }
    // By hand: a store's chain of commits is longer than a stack is deep.
    let mut path = vec![(node, next[node].iter())];
    while let Some((node, others)) = path.last_mut() {
        match others.find(|other| !seen[**other]) {
            Some(other) => {
                seen[*other] = true;
                path.push((*other, next[*other].iter()));
            }
            None => {
                order.push(*node);
                path.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_each_other_is_one_unit_and_units_wait_in_a_line() {
        // 0 > 1 > 2 > 1, 2 > 3, 4 > 3, 5 alone.
        let next = [vec![1], vec![2], vec![1, 3], vec![], vec![3], vec![]].map(BTreeSet::from_iter);
        let units = joined(&next);
        let at = |commit: usize| units.iter().position(|unit| unit.commits.contains(&commit)).unwrap();
        assert_eq!(units[at(1)].commits, [1, 2]);
        assert_eq!(units.iter().map(|unit| unit.commits.len()).sum::<usize>(), 6);
        assert_eq!(units[at(0)].followed_by, BTreeSet::from([at(1)]));
        assert_eq!(units[at(1)].followed_by, BTreeSet::from([at(3)]));
        let waits: Vec<usize> = (0..6).map(|commit| units[at(commit)].waits_for).collect();
        assert_eq!(waits, [0, 1, 1, 2, 0, 0]);
        let line: Vec<BTreeSet<usize>> = (1..=100_000).map(|next| BTreeSet::from([next % 100_000])).collect();
        assert_eq!(joined(&line).len(), 1, "a circle of any length");
    }
}
