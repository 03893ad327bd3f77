//! What became of a record, from all that was found of it.

use openwit_operators::coverage::{Disposition, Dispositions};
use openwit_operators::{catalog_commit, dead_letter, dedup_window, kafka_source, normalize, object_upload, wal_commit};
use serde::Serialize;

use super::{CatalogAsked, Commit, Incarnation, Kafka, Message};

/// What became of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its rows are in a file.
    Stored,
    /// It was accounted for; its file was removed by retention.
    Expired,
    /// It is in the dead letter.
    Rejected,
    /// It was a duplicate of another one.
    Duplicate,
    /// It was dropped by policy.
    Skipped,
    /// There is no such message in Kafka.
    Absent,
    /// It was accounted for and has no rows; which of the reasons it was is not known any more.
    WithoutRows,
    /// It is in the log, and not published yet.
    InLog,
    /// Nothing was written at that offset yet.
    NotWritten,
    /// It was not read yet, or not made durable.
    NotRead,
    /// Reading began behind it.
    BeforeStart,
    /// Kafka's retention removed it before it was read.
    Removed,
    /// It has rows in a file, and the catalog does not know of them.
    Uncovered,
    /// It was committed, or published, and is nowhere.
    Lost,
    /// What was asked does not tell.
    #[default]
    Unknown,
}

impl Verdict {
    /// True if somebody has to do something.
    pub fn is_loss(self) -> bool {
        matches!(self, Verdict::Lost | Verdict::Uncovered)
    }

    /// The stage that has the record, or had it last.
    pub fn stage(self) -> &'static str {
        match self {
            Verdict::Stored | Verdict::Expired | Verdict::WithoutRows => catalog_commit::NAME,
            Verdict::Uncovered => object_upload::NAME,
            Verdict::Rejected => dead_letter::NAME,
            Verdict::Duplicate => dedup_window::NAME,
            Verdict::Skipped => normalize::NAME,
            Verdict::InLog => wal_commit::NAME,
            Verdict::Absent | Verdict::NotRead | Verdict::BeforeStart | Verdict::Removed => kafka_source::NAME,
            Verdict::NotWritten | Verdict::Lost | Verdict::Unknown => "none",
        }
    }
}

/// What is known beside what was found.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The offset.
    pub offset: i64,
    /// What Kafka says of this incarnation.
    pub kafka: Option<&'a Kafka>,
    /// Who said what is published.
    pub catalog: CatalogAsked,
    /// The graph ends in a catalog.
    pub has_catalog: bool,
    /// The object store is this configuration's.
    pub has_objects: bool,
    /// A record without a letter was not rejected.
    pub read_all_letters: bool,
    /// Files of the catalog that are not in the object store.
    pub missing_objects: usize,
    /// A group without a commit begins at the end of a topic.
    pub begins_at_the_end: bool,
    /// The first offset that the catalog covers.
    pub first_covered: Option<i64>,
}

/// What became of the record, and that in words.
pub fn verdict(one: &Incarnation, known: &Known<'_>) -> (Verdict, String) {
    if let Some(commit) = one.commits.iter().find(|commit| !commit.files.is_empty()) {
        return stored(one, commit, known.catalog);
    }
    if let Some(letter) = one.letters.last() {
        let says =
            format!("rejected for {}: {}; its letter is {} of {}", letter.reason, letter.detail, letter.place, letter.source);
        return (Verdict::Rejected, says);
    }
    let is_published = one.covered == Some(true) || !one.commits.is_empty();
    match one.frames.last().map(|frame| (frame.says, frame)) {
        Some((Some(Disposition::Duplicate), _)) => return (Verdict::Duplicate, DUPLICATE.to_owned()),
        Some((Some(Disposition::Skipped), _)) => return (Verdict::Skipped, SKIPPED.to_owned()),
        Some((Some(Disposition::Absent), _)) => return (Verdict::Absent, ABSENT.to_owned()),
        Some((Some(Disposition::Rejected), _)) => {
            return (Verdict::Rejected, "rejected; its letter is not in the dead letter any more".to_owned());
        }
        Some((Some(Disposition::Stored) | None, frame)) if !is_published => {
            // What the catalog of another machine covers cannot be seen from here.
            let here = if known.catalog == CatalogAsked::None {
                "; there is no catalog here to tell whether it is published"
            } else {
                ", not published yet"
            };
            return (Verdict::InLog, format!("in the {} log, segment {}{here}", frame.log, frame.segment));
        }
        Some((Some(Disposition::Stored) | None, _)) | None => {}
    }
    if is_published { accounted_for(one, known) } else { nowhere(known) }
}

const DUPLICATE: &str = "dropped as a duplicate: its key was seen inside the dedup window";
const SKIPPED: &str = "skipped by policy: it is a tombstone (ingestion.kafka.tombstones)";
const ABSENT: &str =
    "no message: Kafka does not hand out this offset (compacted away, of an aborted transaction, or a transaction's marker)";

fn stored(one: &Incarnation, commit: &Commit, catalog: CatalogAsked) -> (Verdict, String) {
    let rows: usize = commit.files.iter().map(|file| file.rows).sum();
    let files: Vec<&str> = commit.files.iter().map(|file| file.uri.as_str()).collect();
    let place = format!("{rows} {} in {}", if rows == 1 { "row" } else { "rows" }, files.join(", "));
    let janitor = "run `openwit-ingest janitor`";
    match (one.covered, commit.is_registered) {
        _ if catalog == CatalogAsked::None => (Verdict::Uncovered, format!("{place}, and there is no catalog: {janitor}")),
        (Some(false) | None, Some(_)) => (Verdict::Uncovered, format!("{place}, and the catalog does not cover it: {janitor}")),
        (_, Some(false)) => (Verdict::Uncovered, format!("{place}, whose commit is not registered: {janitor}")),
        _ => (Verdict::Stored, format!("stored: {place}")),
    }
}

/// What the catalog or a commit accounts for, without a row, a letter or a frame that tells more.
fn accounted_for(one: &Incarnation, known: &Known<'_>) -> (Verdict, String) {
    let Some(commit) = one.commits.first() else {
        return match (known.missing_objects, known.has_objects) {
            (_, false) => (
                Verdict::Unknown,
                "published, as the catalog says; this configuration has no object store to look for its rows".to_owned(),
            ),
            (0, true) => (
                Verdict::Expired,
                "published, and the files of its commit are gone: storage.janitor.retention_days has removed them".to_owned(),
            ),
            (missing, true) => (
                Verdict::Lost,
                format!(
                    "LOST: published, and {missing} files of the catalog are missing in the object store; see `openwit-ingest audit`"
                ),
            ),
        };
    };
    let Dispositions { stored, duplicates, rejected, skipped, absent } = commit.dispositions;
    let message = known.kafka.map(|kafka| kafka.message);
    let is_message = matches!(message, Some(Message::There { .. }));
    let is_tombstone = message == Some(Message::Tombstone);
    let is_absent = message == Some(Message::Absent);
    // Files that are gone may have had its rows.
    let may_be_stored = stored > 0 && !commit.absent_files.is_empty() && !is_absent;
    let mut may_be = Vec::new();
    let mut may = |possible: bool, verdict: Verdict, says: &'static str| {
        if possible {
            may_be.push((verdict, says));
        }
    };
    may(absent > 0 && !is_message && !is_tombstone, Verdict::Absent, ABSENT);
    may(skipped > 0 && !is_message && !is_absent, Verdict::Skipped, SKIPPED);
    may(duplicates > 0 && !is_tombstone && !is_absent, Verdict::Duplicate, DUPLICATE);
    may(rejected > 0 && !known.read_all_letters && !is_absent, Verdict::Rejected, "rejected; its letter was not found");
    let lost = "LOST: published, and a file of its commit is missing in the object store; see `openwit-ingest audit`";
    let expired = "stored, and its file is not published any more: storage.janitor.retention_days has removed it";
    let (gone, gone_says) = if known.missing_objects > 0 { (Verdict::Lost, lost) } else { (Verdict::Expired, expired) };
    may(may_be_stored, gone, gone_says);
    match &may_be[..] {
        [(verdict, says)] => (*verdict, (*says).to_owned()),
        [] => (Verdict::WithoutRows, "stored, as a message without rows".to_owned()),
        several => {
            let says: Vec<&str> = several.iter().map(|(_, says)| *says).collect();
            let verdict = if known.missing_objects > 0 && may_be_stored { Verdict::Lost } else { Verdict::WithoutRows };
            (verdict, format!("accounted for without rows; the log, which knew why, is gone. One of: {}", says.join(" | ")))
        }
    }
}

/// What nobody has anything of.
fn nowhere(known: &Known<'_>) -> (Verdict, String) {
    let Some(kafka) = known.kafka else {
        return (Verdict::Unknown, "nowhere; without Kafka it is not known whether it was read".to_owned());
    };
    let Kafka { low, high, committed, message, .. } = kafka;
    // A commit beyond the end is of a former incarnation.
    let committed = committed.filter(|committed| committed <= high);
    let is_committed = committed.is_some_and(|committed| committed > known.offset);
    // Only the catalog knows where reading began: without it, what has expired or is lost looks the same.
    let is_first = known.first_covered.is_none_or(|first| known.offset < first);
    let is_before_start = known.begins_at_the_end && known.catalog == CatalogAsked::Asked && is_first;
    let or_before_start = if known.begins_at_the_end { "It lies before the first message that was read, or it" } else { "It" };
    let group = match committed {
        Some(at) => format!("the group has committed up to {at}"),
        None if known.begins_at_the_end => {
            "the group has committed nothing, and without a commit begins at the topic's end".to_owned()
        }
        None => "the group has committed nothing".to_owned(),
    };
    match known.offset {
        offset if offset >= *high => (
            Verdict::NotWritten,
            format!("not written yet, or in a transaction that is open: the partition ends at {high} for its readers"),
        ),
        // Whether or not Kafka still has it.
        _ if is_committed && is_before_start => {
            (Verdict::BeforeStart, format!("before the first message that was read: {group}, and began at the topic's end"))
        }
        offset if offset < *low => {
            (Verdict::Removed, format!("removed by Kafka's retention, which begins at {low} now, before it was read"))
        }
        // The last of a partition: it is accounted for once a message behind it comes.
        _ if !is_committed && *message == Message::Absent => (Verdict::Absent, ABSENT.to_owned()),
        _ if !is_committed => (Verdict::NotRead, format!("not read yet, or not durable yet: {group}")),
        _ if !known.has_catalog => (Verdict::Unknown, format!("handed to the graph's sinks, which keep no catalog: {group}")),
        _ if known.catalog == CatalogAsked::None && !known.has_objects => (
            Verdict::Unknown,
            format!("neither in the log nor in a catalog here: {group}; ask with the configuration of the storage nodes"),
        ),
        _ if known.catalog == CatalogAsked::InUse || (known.catalog == CatalogAsked::None && known.begins_at_the_end) => {
            let next = match known.catalog {
                CatalogAsked::InUse => "ask again when the process does not run",
                _ => "run `openwit-ingest janitor`, and ask the catalog that it makes",
            };
            let says = format!(
                "neither in the log nor in a file: {group}. {or_before_start} was published and its file has expired, or it is lost: {next}"
            );
            (Verdict::Unknown, says)
        }
        _ => (Verdict::Lost, format!("LOST: {group}, and it is neither in the log nor in the catalog nor in the dead letter")),
    }
}
