//! What was produced, message by message, and what was found of it. It holds a few bytes for each message and none for a row.
//!
//! A message's rows are compared by the sum of their digests: each digest has the row's ordinal in it, so a row that is missing,
//! changed or in another's place leaves a difference, short of two 64-bit hashes that collide. A row that comes again is told by
//! the bit of its ordinal, and is not added.

use std::collections::{BTreeMap, BTreeSet};

use openwit_ingest::generate::Kind;
use serde::Serialize;

use crate::rows::Row;

/// Rows of a message at most: each has a bit.
pub const ROWS_MAX: usize = 64;
/// Examples that a report names of each kind of difference.
const EXAMPLES_MAX: usize = 10;

/// One message in Kafka.
#[derive(Clone, Copy)]
struct Message {
    /// Rows: the sum of their digests, less that of rows found. A message to be rejected: the digest of its payload.
    unexplained: u64,
    /// A bit for each row found.
    found: u64,
    /// The message of the load that it is, or repeats.
    original: u32,
    /// When it was sent, in milliseconds since the soak began.
    sent_ms: u32,
    /// How many rows it must become if it is stored.
    rows: u8,
    /// Letters found with its payload; stops counting at 255.
    letters: u8,
    fate: Fate,
}

/// What the pipeline must do with a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// One of all messages with the same original.
    Stored,
    Rejected,
    Skipped,
}

/// A message read back from Kafka.
pub struct Produced<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its number in the load.
    pub index: u64,
    /// What the load says that it is.
    pub kind: Kind,
    /// When it was sent, in milliseconds since the soak began.
    pub sent_ms: u32,
    /// The digests of its rows.
    pub rows: &'a [u64],
    /// The digest of its payload.
    pub payload: u64,
}

/// Differences found, all zero in a run without defects.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Differences {
    /// Rows of distinct messages of which no copy was stored.
    pub lost: u64,
    /// Rows that are there more than once, under one topic, partition, offset and ordinal.
    pub doubled: u64,
    /// Rows whose content is not that of their message, counted by message.
    pub changed: u64,
    /// Rows of messages that must have none, or that were never produced.
    pub invented: u64,
    /// Messages that were stored although a stored one with the same payload was sent at most a dedup window before.
    pub duplicates_passed: u64,
    /// Messages to be rejected that are in no dead letter with their bytes.
    pub letters_missing: u64,
    /// Dead letters of messages that must not be rejected, or with other bytes.
    pub letters_wrong: u64,
}

impl Differences {
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        let Differences { lost, doubled, changed, invented, duplicates_passed, letters_missing, letters_wrong } = self;
        [lost, doubled, changed, invented, duplicates_passed, letters_missing, letters_wrong].into_iter().all(|count| *count == 0)
    }
}

/// What the comparison found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// Messages in Kafka.
    pub messages: u64,
    /// Distinct valid messages.
    pub distinct: u64,
    /// Messages that repeat one.
    pub duplicates: u64,
    /// Messages to be rejected.
    pub invalid: u64,
    /// Messages without payload.
    pub tombstones: u64,
    /// Rows in Parquet.
    pub rows: u64,
    /// Dead letters, repetitions included.
    pub letters: u64,
    /// Letters beyond the first of their message: they are at least once where partitions move.
    pub letters_repeated: u64,
    /// Copies stored that the definition of a duplicate allows, further apart than the window.
    pub duplicates_beyond_window: u64,
    /// What differs.
    pub differences: Differences,
    /// Where, a few of each.
    pub examples: BTreeMap<&'static str, Vec<String>>,
}

/// One topic.
struct Topic {
    name: String,
    partitions: Vec<Vec<Message>>,
}

/// All topics.
pub struct Ledger {
    topics: Vec<Topic>,
    findings: Findings,
}

impl Ledger {
    /// An empty ledger of `topics`, with their numbers of partitions.
    pub fn new(topics: impl Iterator<Item = (String, usize)>) -> Self {
        let topics = topics.map(|(name, partitions)| Topic { name, partitions: vec![Vec::new(); partitions] });
        Ledger { topics: topics.collect(), findings: Findings::default() }
    }

    /// Notes the next message of a partition.
    pub fn produced(&mut self, topic: usize, message: &Produced<'_>) -> anyhow::Result<()> {
        let findings = &mut self.findings;
        findings.messages += 1;
        let (fate, original) = match message.kind {
            Kind::Valid => (Fate::Stored, message.index),
            Kind::Duplicate { of } => (Fate::Stored, of),
            Kind::Invalid(_) => (Fate::Rejected, message.index),
            Kind::Tombstone => (Fate::Skipped, message.index),
        };
        match message.kind {
            Kind::Valid => findings.distinct += 1,
            Kind::Duplicate { .. } => findings.duplicates += 1,
            Kind::Invalid(_) => findings.invalid += 1,
            Kind::Tombstone => findings.tombstones += 1,
        }
        let messages = &mut self.topics[topic].partitions[message.partition as usize];
        anyhow::ensure!(
            messages.len() as i64 == message.offset,
            "Kafka has no offset {} of partition {}",
            messages.len(),
            message.partition
        );
        anyhow::ensure!(message.rows.len() <= ROWS_MAX, "a message of {} rows", message.rows.len());
        let sum = message.rows.iter().fold(0_u64, |sum, digest| sum.wrapping_add(*digest));
        messages.push(Message {
            unexplained: if fate == Fate::Stored { sum } else { message.payload },
            found: 0,
            original: original as u32,
            sent_ms: message.sent_ms,
            rows: message.rows.len() as u8,
            letters: 0,
            fate,
        });
        Ok(())
    }

    /// Notes a row of a file.
    pub fn row(&mut self, row: &Row<'_>, file: &str) {
        self.findings.rows += 1;
        let place = || format!("{}[{}]@{}#{} in {file}", row.topic, row.partition, row.offset, row.ordinal);
        let message = message_of(&mut self.topics, row.topic, row.partition, row.offset);
        let message =
            message.filter(|message| message.fate == Fate::Stored && (0..i32::from(message.rows)).contains(&row.ordinal));
        let Some(message) = message else {
            self.findings.differences.invented += 1;
            return example(&mut self.findings, "invented", place);
        };
        let bit = 1 << row.ordinal;
        if message.found & bit != 0 {
            self.findings.differences.doubled += 1;
            return example(&mut self.findings, "doubled", place);
        }
        message.found |= bit;
        message.unexplained = message.unexplained.wrapping_sub(row.digest);
    }

    /// Notes a dead letter.
    pub fn letter(&mut self, topic: &str, partition: i32, offset: i64, payload: u64) {
        self.findings.letters += 1;
        match message_of(&mut self.topics, topic, partition, offset) {
            Some(message) if message.fate == Fate::Rejected && message.unexplained == payload => {
                self.findings.letters_repeated += u64::from(message.letters > 0);
                message.letters = message.letters.saturating_add(1);
            }
            _ => {
                self.findings.differences.letters_wrong += 1;
                example(&mut self.findings, "letters_wrong", || format!("{topic}[{partition}]@{offset}"));
            }
        }
    }

    /// Judges each message once all rows and letters are noted.
    pub fn judge(mut self, window_ms: u32) -> Findings {
        for topic in &self.topics {
            judge_topic(&mut self.findings, topic, window_ms);
        }
        self.findings
    }
}

fn message_of<'a>(topics: &'a mut [Topic], topic: &str, partition: i32, offset: i64) -> Option<&'a mut Message> {
    let topic = topics.iter_mut().find(|known| known.name == topic)?;
    topic.partitions.get_mut(partition as usize)?.get_mut(usize::try_from(offset).ok()?)
}

fn example(findings: &mut Findings, what: &'static str, place: impl FnOnce() -> String) {
    let examples = findings.examples.entry(what).or_default();
    if examples.len() < EXAMPLES_MAX {
        examples.push(place());
    }
}

/// How many copies of a message are there, and how many of them were stored.
#[derive(Clone, Copy, Default)]
struct Copies {
    sent: u8,
    stored: u8,
}

fn judge_topic(findings: &mut Findings, topic: &Topic, window_ms: u32) {
    let all = || {
        topic.partitions.iter().enumerate().flat_map(|(partition, messages)| {
            messages.iter().enumerate().map(move |(offset, message)| (partition, offset, message))
        })
    };
    let place = |partition: usize, offset: usize| format!("{}[{partition}]@{offset}", topic.name);
    let mut copies: Vec<Copies> = Vec::new();
    for (partition, offset, message) in all() {
        let all_rows = if message.rows == 64 { u64::MAX } else { (1 << message.rows) - 1 };
        match message.fate {
            Fate::Rejected if message.letters == 0 => {
                findings.differences.letters_missing += 1;
                example(findings, "letters_missing", || place(partition, offset));
            }
            Fate::Rejected | Fate::Skipped => {}
            Fate::Stored => {
                let original = message.original as usize;
                copies.resize(copies.len().max(original + 1), Copies::default());
                let copy = &mut copies[original];
                copy.sent = copy.sent.saturating_add(1);
                copy.stored = copy.stored.saturating_add(u8::from(message.found != 0));
                let missing = all_rows.count_ones() - message.found.count_ones();
                if message.found != 0 && missing > 0 {
                    findings.differences.lost += u64::from(missing);
                    example(findings, "lost", || format!("{missing} rows of {}", place(partition, offset)));
                } else if message.found != 0 && message.unexplained != 0 {
                    findings.differences.changed += 1;
                    example(findings, "changed", || place(partition, offset));
                }
            }
        }
    }
    let mut stored_again: BTreeMap<u32, Vec<(u32, String)>> = BTreeMap::new();
    let mut reported = BTreeSet::new();
    for (partition, offset, message) in all().filter(|(_, _, message)| message.fate == Fate::Stored) {
        let copy = copies[message.original as usize];
        if copy.stored == 0 && reported.insert(message.original) {
            findings.differences.lost += u64::from(message.rows);
            example(findings, "lost", || format!("all rows of {} and its {} copies", place(partition, offset), copy.sent - 1));
        }
        if copy.stored > 1 && message.found != 0 {
            stored_again.entry(message.original).or_default().push((message.sent_ms, place(partition, offset)));
        }
    }
    judge_copies(findings, stored_again, window_ms);
}

/// Of copies of one message that are all stored, those that another stored one, sent before, should have kept out.
fn judge_copies(findings: &mut Findings, stored_again: BTreeMap<u32, Vec<(u32, String)>>, window_ms: u32) {
    for mut copies in stored_again.into_values() {
        copies.sort();
        for pair in copies.windows(2) {
            let ((before, _), (after, place)) = (&pair[0], &pair[1]);
            if after - before <= window_ms {
                findings.differences.duplicates_passed += 1;
                let apart = f64::from(after - before) / 1e3;
                example(findings, "duplicates_passed", || format!("{place}, {apart:.1} s after a stored one"));
            } else {
                findings.duplicates_beyond_window += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use openwit_ingest::generate::Invalid;

    use super::*;

    const WINDOW_MS: u32 = 1_000;

    /// A topic of one partition: message 0 of two rows, an invalid one, a copy of message 0, one of one row, a tombstone.
    fn ledger(copied_after_ms: u32) -> Ledger {
        let mut ledger = Ledger::new([("t".to_owned(), 1)].into_iter());
        let messages: [(Kind, u32, &[u64]); 5] = [
            (Kind::Valid, 0, &[10, 11]),
            (Kind::Invalid(Invalid::Random), 1, &[]),
            (Kind::Duplicate { of: 0 }, copied_after_ms, &[20, 21]),
            (Kind::Valid, 3, &[30]),
            (Kind::Tombstone, 4, &[]),
        ];
        for (index, (kind, sent_ms, rows)) in messages.into_iter().enumerate() {
            let index = index as u64;
            let message = Produced { partition: 0, offset: index as i64, index, kind, sent_ms, rows, payload: 7 };
            ledger.produced(0, &message).unwrap();
        }
        ledger
    }

    fn row(offset: i64, ordinal: i32, digest: u64) -> Row<'static> {
        Row { topic: "t", partition: 0, offset, ordinal, digest }
    }

    fn check(copied_after_ms: u32, rows: &[(i64, i32, u64)], letters: &[(i64, u64)], expected: Differences) {
        let mut ledger = ledger(copied_after_ms);
        rows.iter().for_each(|(offset, ordinal, digest)| ledger.row(&row(*offset, *ordinal, *digest), "f"));
        letters.iter().for_each(|(offset, payload)| ledger.letter("t", 0, *offset, *payload));
        let found = ledger.judge(WINDOW_MS).differences;
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{rows:?} {letters:?}");
    }

    #[test]
    fn each_planted_difference_is_found_and_nothing_else() {
        let none = Differences::default;
        let good = [(0, 0, 10), (0, 1, 11), (3, 0, 30)];
        let letter = [(1, 7)];
        check(5, &good, &letter, none());
        // Which copy is stored is not said; a letter may come twice.
        check(5, &[(2, 0, 20), (2, 1, 21), (3, 0, 30)], &[(1, 7), (1, 7)], none());
        // Further apart than the window both may be stored.
        let both = [(0, 0, 10), (0, 1, 11), (2, 0, 20), (2, 1, 21), (3, 0, 30)];
        check(WINDOW_MS + 1, &both, &letter, none());
        check(WINDOW_MS, &both, &letter, Differences { duplicates_passed: 1, ..none() });
        check(5, &good[..2], &letter, Differences { lost: 1, ..none() });
        check(5, &good[1..], &letter, Differences { lost: 1, ..none() });
        check(5, &good[2..], &letter, Differences { lost: 2, ..none() });
        check(5, &[(0, 0, 10), (0, 1, 11), (3, 0, 31)], &letter, Differences { changed: 1, ..none() });
        check(5, &[(0, 1, 11), (0, 0, 10), (3, 0, 30), (0, 1, 11)], &letter, Differences { doubled: 1, ..none() });
        for invented in [(0, 2, 12), (0, -1, 12), (1, 0, 7), (4, 0, 7), (5, 0, 7), (-1, 0, 7)] {
            let rows: Vec<_> = good.into_iter().chain([invented]).collect();
            check(5, &rows, &letter, Differences { invented: 1, ..none() });
        }
        check(5, &good, &[], Differences { letters_missing: 1, ..none() });
        check(5, &good, &[(1, 8)], Differences { letters_missing: 1, letters_wrong: 1, ..none() });
        check(5, &good, &[(1, 7), (0, 7)], Differences { letters_wrong: 1, ..none() });
    }

    #[test]
    fn offsets_that_kafka_does_not_have_are_refused() {
        let message = Produced { partition: 0, offset: 6, index: 5, kind: Kind::Valid, sent_ms: 0, rows: &[1], payload: 0 };
        assert!(ledger(5).produced(0, &message).is_err());
    }
}
