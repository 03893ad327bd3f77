//! What is expected against what was found. No graph, no file.
//!
//! Items of a list are held against what was found whatever the order: each expected one takes one that fits, such that as many as can be
//! have one. The others are told beside the one that is nearest.

use openwit_operators::row_values::{Row, Value};
use serde::Serialize;

use super::outcome::{Outcome, Place, Rejected};
use super::shown::{differences, is_blank, value_text};
use crate::config::cases::{Expectation, ExpectedMessage, ExpectedReject, ExpectedRow, Listed, Messages};
use crate::config::nearest;

/// Columns by which rows are told apart, beside those of docs/schemas.md.
const INDEX: &str = "_index";
const SIGNAL: &str = "_signal";

/// Unexpected items that are shown; all are counted.
const SHOWN_MAX: usize = 10;

/// One thing that is not as expected.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The line of the expectation.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// More of it, line by line.
    pub details: Vec<String>,
}

impl Finding {
    /// Something wrong with what stands at `line`.
    pub fn new(line: usize, what: impl Into<String>) -> Self {
        Finding { line, what: what.into(), details: Vec::new() }
    }

    /// The same with details.
    pub fn with(self, details: Vec<String>) -> Self {
        Finding { details, ..self }
    }
}

/// All that is not as expected.
pub fn judge(expect: &Expectation, outcome: &Outcome) -> Vec<Finding> {
    let mut findings = Vec::new();
    let exactly = expect.exactly;
    if let Some(rows) = &expect.rows {
        findings.extend(ROWS.compare(rows, &outcome.rows, exactly, |row| row.line));
    }
    if let Some((line, count)) = expect.row_count
        && count != outcome.rows.len() as u64
    {
        findings.push(Finding::new(line, format!("row_count: expected {count}, found {}", outcome.rows.len())));
    }
    if let Some(rejects) = &expect.rejects {
        findings.extend(REJECTS.compare(rejects, &outcome.rejects, exactly, |reject| reject.message.line));
    }
    for (what, expected, found) in
        [("duplicates", &expect.duplicates, &outcome.duplicates), ("skipped", &expect.skipped, &outcome.skipped)]
    {
        match expected {
            Some(Messages::Count(line, count)) if *count != found.len() as u64 => {
                let places = found.iter().take(SHOWN_MAX).map(place_name).collect();
                findings.push(Finding::new(*line, format!("{what}: expected {count}, found {}", found.len())).with(places));
            }
            None | Some(Messages::Count(..)) => {}
            Some(Messages::List(list)) => {
                let places = Items { what, differences: message_differences, name: place_name, show: |_: &Place| Vec::new() };
                findings.extend(places.compare(list, found, exactly, |message| message.line));
            }
        }
    }
    for metric in &expect.metrics {
        let found = outcome.metrics.get(&metric.name).copied().unwrap_or(0);
        if found != metric.value {
            findings
                .push(Finding::new(metric.line, format!("metrics.{}: expected {}, found {found}", metric.name, metric.value)));
        }
    }
    // Mostly the reason for all the rest.
    if !findings.is_empty() && expect.rejects.is_none() && !outcome.rejects.is_empty() {
        let shown = outcome.rejects.iter().take(SHOWN_MAX);
        let details = shown.flat_map(|reject| [vec![reject_name(reject)], reject_lines(reject)].concat()).collect();
        let line = findings[0].line;
        findings.push(Finding::new(line, format!("by the way, rejected: {}", outcome.rejects.len())).with(details));
    }
    findings
}

/// Which expected item has which that was found, by positions.
struct Pairs {
    /// Expected, found, and how they differ.
    differing: Vec<(usize, usize, Vec<String>)>,
    missing: Vec<usize>,
    unexpected: Vec<usize>,
}

/// Pairs as many as fit; of the rest the nearest, in the order expected.
fn pair<W, F>(wanted: &[W], found: &[F], differences: impl Fn(&W, &F) -> Vec<String>) -> Pairs {
    let fits: Vec<Vec<usize>> =
        wanted.iter().map(|wanted| (0..found.len()).filter(|at| differences(wanted, &found[*at]).is_empty()).collect()).collect();
    let mut taken: Vec<Option<usize>> = vec![None; found.len()];
    let mut rest = Vec::new();
    for position in 0..wanted.len() {
        if !take(position, &fits, &mut taken, &mut vec![false; found.len()]) {
            rest.push(position);
        }
    }
    let mut left: Vec<usize> = (0..found.len()).filter(|at| taken[*at].is_none()).collect();
    let (mut differing, mut missing) = (Vec::new(), Vec::new());
    for position in rest {
        let ranked = left.iter().enumerate().map(|(nth, at)| (differences(&wanted[position], &found[*at]), nth));
        match ranked.min_by_key(|(told, _)| told.len()) {
            Some((told, nth)) => differing.push((position, left.remove(nth), told)),
            None => missing.push(position),
        }
    }
    Pairs { differing, missing, unexpected: left }
}

/// Finds something for `wanted`, if need be by moving others to what fits them as well.
fn take(wanted: usize, fits: &[Vec<usize>], taken: &mut [Option<usize>], asked: &mut [bool]) -> bool {
    for &at in &fits[wanted] {
        if std::mem::replace(&mut asked[at], true) {
            continue;
        }
        let is_free = match taken[at] {
            None => true,
            Some(other) => take(other, fits, taken, asked),
        };
        if is_free {
            taken[at] = Some(wanted);
            return true;
        }
    }
    false
}

/// How items of one kind are held against one another, named and shown.
struct Items<W, F> {
    what: &'static str,
    differences: fn(&W, &F) -> Vec<String>,
    name: fn(&F) -> String,
    show: fn(&F) -> Vec<String>,
}

const ROWS: Items<ExpectedRow, Row> = Items { what: "rows", differences: row_differences, name: row_name, show: row_lines };
const REJECTS: Items<ExpectedReject, Rejected> =
    Items { what: "rejects", differences: reject_differences, name: reject_name, show: reject_lines };

impl<W, F> Items<W, F> {
    fn compare(&self, wanted: &Listed<W>, found: &[F], exactly: bool, line: impl Fn(&W) -> usize) -> Vec<Finding> {
        let what = self.what;
        let Pairs { differing, missing, unexpected } = pair(&wanted.items, found, self.differences);
        let mut findings = Vec::new();
        for (position, at, told) in differing {
            let says = format!("{what}[{position}]: nothing is like it; nearest is {}", (self.name)(&found[at]));
            findings.push(Finding::new(line(&wanted.items[position]), says).with(told));
        }
        for position in missing {
            findings
                .push(Finding::new(line(&wanted.items[position]), format!("{what}[{position}]: missing, nothing else is left")));
        }
        if exactly && !unexpected.is_empty() {
            let count = unexpected.len();
            let shown = unexpected.into_iter().take(SHOWN_MAX).map(|at| &found[at]);
            let mut details: Vec<String> = shown.flat_map(|item| [vec![(self.name)(item)], (self.show)(item)].concat()).collect();
            if count > SHOWN_MAX {
                details.push(format!("and {} more", count - SHOWN_MAX));
            }
            findings.push(Finding::new(wanted.line, format!("{what}: {count} not expected")).with(details));
        }
        findings
    }
}

fn row_differences(wanted: &ExpectedRow, found: &Row) -> Vec<String> {
    let mut told = Vec::new();
    for (name, value) in &wanted.columns {
        let group = match name.as_str() {
            INDEX => Some(Value::Text(found.group.index.to_string())),
            SIGNAL => Some(Value::Text(found.group.signal.name().to_owned())),
            _ => None,
        };
        match group.as_ref().or_else(|| found.column(name)) {
            Some(column) => differences(name, value, Some(column), &mut told),
            None => {
                let known = found.columns.iter().map(|(column, _)| column.as_str()).chain([INDEX, SIGNAL]);
                let hint = match nearest(name, known) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "attributes without one are in `attributes` and `resource_attributes`".to_owned(),
                };
                told.push(format!("{name}: rows of {} have no such column: {hint}", found.group));
            }
        }
    }
    told
}

fn row_name(row: &Row) -> String {
    let text = |name: &str| match row.column(name) {
        Some(Value::Text(text)) => text.clone(),
        Some(value) => value_text(value),
        None => String::new(),
    };
    format!("{} {}/{} offset {} row {}", row.group, text("_topic"), text("_partition"), text("_offset"), text("_ordinal"))
}

/// What a row says, but for where it came from.
fn row_lines(row: &Row) -> Vec<String> {
    let columns = row.columns.iter().filter(|(name, value)| !name.starts_with('_') && !is_blank(value));
    columns.map(|(name, value)| format!("  {name}: {}", value_text(value))).collect()
}

fn reject_differences(wanted: &ExpectedReject, found: &Rejected) -> Vec<String> {
    let mut told = message_differences(&wanted.message, &found.place);
    if let Some(reason) = wanted.reason.filter(|reason| *reason != found.reason.code()) {
        told.push(format!("reason: expected {reason}, found {}", found.reason.code()));
    }
    if let Some(detail) = wanted.detail.as_ref().filter(|detail| !found.detail.contains(detail.as_str())) {
        told.push(format!("detail: expected a text with {detail:?}, found {:?}", found.detail));
    }
    told
}

fn reject_name(reject: &Rejected) -> String {
    place_name(&reject.place)
}

fn reject_lines(reject: &Rejected) -> Vec<String> {
    vec![format!("  {}: {}", reject.reason.code(), reject.detail)]
}

fn message_differences(wanted: &ExpectedMessage, found: &Place) -> Vec<String> {
    let mut told = Vec::new();
    if let Some(topic) = wanted.topic.as_ref().filter(|topic| **topic != found.topic) {
        told.push(format!("topic: expected {topic}, found {}", found.topic));
    }
    if let Some(partition) = wanted.partition.filter(|partition| *partition != found.partition) {
        told.push(format!("partition: expected {partition}, found {}", found.partition));
    }
    if let Some(offset) = wanted.offset.filter(|offset| *offset != found.offset) {
        told.push(format!("offset: expected {offset}, found {}", found.offset));
    }
    told
}

fn place_name(place: &Place) -> String {
    format!("{}/{} offset {}", place.topic, place.partition, place.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(wanted: &&[u32], found: &u32) -> Vec<String> {
        if wanted.contains(found) { Vec::new() } else { vec![format!("{found}")] }
    }

    #[test]
    fn as_many_have_one_that_fits_as_can_whatever_the_order() {
        // Each wants any of its numbers: taken in order, the first would take what only the second can have.
        let wanted: [&[u32]; 3] = [&[1, 2, 3], &[1], &[1, 2]];
        for found in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
            let pairs = pair(&wanted, &found, agrees);
            assert!(pairs.differing.is_empty() && pairs.missing.is_empty() && pairs.unexpected.is_empty(), "{found:?}");
        }
        let pairs = pair(&wanted, &[1, 7, 2, 9], agrees);
        assert_eq!(pairs.differing, [(2, 1, vec!["7".to_owned()])]);
        assert_eq!((pairs.missing, pairs.unexpected), (vec![], vec![3]));
        let pairs = pair(&wanted, &[1], agrees);
        assert_eq!((pairs.differing, pairs.missing, pairs.unexpected), (vec![], vec![1, 2], vec![]));
    }
}
