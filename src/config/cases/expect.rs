//! What a case expects.

use openwit_operators::batch::Reason;

use crate::config::problem::nearest;
use crate::config::reader::Reader;
use crate::config::yaml::{Content, Entry, Node};

const EXPECT_KEYS: [&str; 9] =
    ["description", "rows", "row_count", "rejects", "duplicates", "skipped", "metrics", "exactly", "error"];
const REJECT_KEYS: [&str; 6] = ["description", "topic", "partition", "offset", "reason", "detail"];
const PLACE_KEYS: [&str; 3] = ["topic", "partition", "offset"];

/// The counters that can be expected, beside `normalize.rejected.` with each reason's code.
pub const METRICS: [&str; 4] = ["normalize.accepted", "normalize.rejected", "normalize.skipped", "dedup_window.duplicates"];

/// What must become of the input. What is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectation {
    /// Rows.
    pub rows: Option<Listed<ExpectedRow>>,
    /// How many rows.
    pub row_count: Option<(usize, u64)>,
    /// Rejects.
    pub rejects: Option<Listed<ExpectedReject>>,
    /// Messages dropped as duplicates.
    pub duplicates: Option<Messages>,
    /// Messages skipped by policy: tombstones.
    pub skipped: Option<Messages>,
    /// Counters.
    pub metrics: Vec<Metric>,
    /// What is in a list is all there is.
    pub exactly: bool,
    /// The configuration is refused, and this is in what is told.
    pub error: Option<String>,
}

/// A list of what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// Its line.
    pub line: usize,
    /// What is in it.
    pub items: Vec<T>,
}

/// A row, by some of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedRow {
    /// Its line.
    pub line: usize,
    /// The columns that matter.
    pub columns: Vec<(String, Wanted)>,
}

/// A value as it is wanted; the column decides its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None, or no such name.
    Null,
    /// A scalar, as it was written.
    Text(String),
    /// All items, in order.
    List(Vec<Wanted>),
    /// Some names of a map.
    Map(Vec<(String, Wanted)>),
}

/// A reject, by some of what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedReject {
    /// Its message.
    pub message: ExpectedMessage,
    /// The code of its reason.
    pub reason: Option<&'static str>,
    /// A part of its detail.
    pub detail: Option<String>,
}

/// A message of the input, by some of where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedMessage {
    /// The line.
    pub line: usize,
    /// Its topic.
    pub topic: Option<String>,
    /// Its partition.
    pub partition: Option<i32>,
    /// Its offset.
    pub offset: Option<i64>,
}

/// Messages of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Messages {
    /// So many.
    Count(usize, u64),
    /// These.
    List(Listed<ExpectedMessage>),
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its line.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// What it must be.
    pub value: u64,
}

impl Reader {
    /// Reads what a case expects.
    pub(super) fn expectation(&mut self, path: &str, node: &Node) -> Option<Expectation> {
        let keys = self.keys(path, node, &EXPECT_KEYS)?;
        let at = |key: &str| format!("{path}.{key}");
        if keys.keys().all(|key| matches!(*key, "description" | "exactly")) {
            let message = format!("expects nothing: give at least one of {}", EXPECT_KEYS[1..].join(", "));
            self.refuse(node.line, path, message);
        }
        let error = keys.get("error").and_then(|node| self.text(&at("error"), node));
        if let Some(node) = keys.get("error")
            && keys.keys().any(|key| !matches!(*key, "description" | "error"))
        {
            self.refuse(node.line, &at("error"), "must be alone: a configuration that is refused does not run");
        }
        let rows = keys.get("rows").map(|node| self.listed(&at("rows"), node, Self::row));
        let rejects = keys.get("rejects").map(|node| self.listed(&at("rejects"), node, Self::reject));
        let row_count = keys.get("row_count").and_then(|node| Some((node.line, self.number(&at("row_count"), node)?)));
        let duplicates = keys.get("duplicates").and_then(|node| self.messages(&at("duplicates"), node));
        let skipped = keys.get("skipped").and_then(|node| self.messages(&at("skipped"), node));
        let metrics = keys.get("metrics").map(|node| self.metrics(&at("metrics"), node)).unwrap_or_default();
        let exactly = keys.get("exactly").and_then(|node| self.flag(&at("exactly"), node)).unwrap_or(true);
        Some(Expectation { rows, row_count, rejects, duplicates, skipped, metrics, exactly, error })
    }

    /// The items of a list with their paths.
    fn elements<'n>(&mut self, path: &str, node: &'n Node) -> Vec<(String, &'n Node)> {
        let Content::List(items) = &node.content else {
            self.refuse(node.line, path, "must be a list; [] for none");
            return Vec::new();
        };
        items.iter().enumerate().map(|(position, item)| (format!("{path}[{position}]"), item)).collect()
    }

    fn listed<T>(&mut self, path: &str, node: &Node, read: impl Fn(&mut Self, &str, &Node) -> Option<T>) -> Listed<T> {
        let elements = self.elements(path, node);
        let items = elements.into_iter().filter_map(|(path, node)| read(self, &path, node)).collect();
        Listed { line: node.line, items }
    }

    fn row(&mut self, path: &str, node: &Node) -> Option<ExpectedRow> {
        match &node.content {
            Content::Map(entries) if !entries.is_empty() => {
                let columns = entries.iter().map(|entry| (entry.key.clone(), wanted(&entry.value))).collect();
                Some(ExpectedRow { line: node.line, columns })
            }
            _ => {
                self.refuse(node.line, path, "must be a map of columns and values, as in docs/schemas.md");
                None
            }
        }
    }

    fn reject(&mut self, path: &str, node: &Node) -> Option<ExpectedReject> {
        let message = self.message_at(path, node, &REJECT_KEYS)?;
        let keys = self.keys(path, node, &REJECT_KEYS)?;
        let reason = keys.get("reason").and_then(|node| self.reason(&format!("{path}.reason"), node));
        let detail = keys.get("detail").and_then(|node| self.text(&format!("{path}.detail"), node));
        Some(ExpectedReject { message, reason, detail })
    }

    fn reason(&mut self, path: &str, node: &Node) -> Option<&'static str> {
        let codes = Reason::ALL.map(Reason::code);
        let near = |text: &str| match nearest(text, codes) {
            Some(near) => format!("a reason: did you mean {near}?"),
            None => format!("a reason, one of {}", codes.join(", ")),
        };
        let says = if let Content::Scalar(text) = &node.content { near(text) } else { "a reason".to_owned() };
        self.read(path, node, &says, |text| codes.into_iter().find(|code| *code == text))
    }

    /// The place of a message in a map that may hold other keys, too.
    fn message_at(&mut self, path: &str, node: &Node, known: &[&'static str]) -> Option<ExpectedMessage> {
        let before = self.problems.list.len();
        let keys = self.keys(path, node, known)?;
        // Whoever reads the other keys names those that are not known.
        if known.len() > PLACE_KEYS.len() {
            self.problems.list.truncate(before);
        }
        let topic = keys.get("topic").and_then(|node| self.text(&format!("{path}.topic"), node));
        let whole = "a whole number from 0";
        let partition = keys.get("partition").and_then(|node| {
            self.read(&format!("{path}.partition"), node, whole, |text| text.parse().ok().filter(|number: &i32| *number >= 0))
        });
        let offset = keys.get("offset").and_then(|node| self.offset(&format!("{path}.offset"), node));
        Some(ExpectedMessage { line: node.line, topic, partition, offset })
    }

    fn offset(&mut self, path: &str, node: &Node) -> Option<i64> {
        let read = |text: &str| text.parse().ok().filter(|number: &i64| *number >= 0);
        self.read(path, node, "a whole number from 0", read)
    }

    fn messages(&mut self, path: &str, node: &Node) -> Option<Messages> {
        if let Content::Scalar(_) = &node.content {
            let says = "a count, or a list of offsets";
            return self.read(path, node, says, |text| text.parse().ok()).map(|count| Messages::Count(node.line, count));
        }
        Some(Messages::List(self.listed(path, node, |reader, path, node| match &node.content {
            Content::Scalar(_) => {
                let offset = reader.offset(path, node)?;
                Some(ExpectedMessage { line: node.line, topic: None, partition: None, offset: Some(offset) })
            }
            _ => reader.message_at(path, node, &PLACE_KEYS),
        })))
    }

    fn metrics(&mut self, path: &str, node: &Node) -> Vec<Metric> {
        let Content::Map(entries) = &node.content else {
            self.refuse(node.line, path, "must be a map of counters and values");
            return Vec::new();
        };
        let by_reason: Vec<String> = Reason::ALL.iter().map(|reason| format!("normalize.rejected.{}", reason.code())).collect();
        let known: Vec<&str> = METRICS.into_iter().chain(by_reason.iter().map(String::as_str)).collect();
        let mut metrics = Vec::new();
        for Entry { key, line, value } in entries {
            let here = format!("{path}.{key}");
            if !known.contains(&key.as_str()) {
                let says = match nearest(key, known.iter().copied()) {
                    Some(near) => format!("unknown counter: did you mean {near}?"),
                    None => format!("unknown counter: there are {} and normalize.rejected.REASON", METRICS.join(", ")),
                };
                self.refuse(*line, &here, says);
            } else if let Some(value) = self.number(&here, value) {
                metrics.push(Metric { line: *line, name: key.clone(), value });
            }
        }
        metrics
    }
}

fn wanted(node: &Node) -> Wanted {
    match &node.content {
        Content::Null => Wanted::Null,
        Content::Scalar(text) => Wanted::Text(text.clone()),
        Content::List(items) => Wanted::List(items.iter().map(wanted).collect()),
        Content::Map(entries) => Wanted::Map(entries.iter().map(|entry| (entry.key.clone(), wanted(&entry.value))).collect()),
    }
}
