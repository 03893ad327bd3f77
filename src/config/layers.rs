//! The layers of a configuration: the defaults, under the file, under each `--set`.
//!
//! Every layer is a tree of text that is read against the table. What does not fit is a problem, and the layer below shows
//! through, so that one mistake neither hides another nor brings forth a false one.

use std::path::Path;

use super::key::{Key, Kind, Status, Value};
use super::librdkafka::Properties;
use super::problem::{Place, Problem, Problems, nearest};
use super::secret::REDACTED;
use super::table::{Item, RawConfig, Table, join};
use super::yaml::{self, Content, Entry, Node};

mod graph;

/// Gives the value of an environment variable.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Layers on their way to a complete `RawConfig`.
pub(super) struct Layers<'a> {
    table: Table,
    environment: Environment<'a>,
    raw: RawConfig,
    problems: Problems,
    layer: Layer,
}

/// The layer that is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// A file.
    File,
    /// A `--set`.
    Override(usize),
    /// What a test case lays over it. Places are told as overrides, by their lines.
    Case,
}

impl<'a> Layers<'a> {
    /// The defaults alone.
    pub(super) fn new(table: Table, file: &str, environment: Environment<'a>) -> Self {
        let raw = defaults(&table);
        Self { table, environment, raw, problems: Problems::new(file), layer: Layer::File }
    }

    /// Lays a file's text over what is there.
    pub(super) fn add_file(&mut self, text: &str) {
        let root = yaml::parse(text, &mut self.problems.list);
        self.layer = Layer::File;
        if let Some(root) = root {
            self.section("", &root);
        }
    }

    /// Lays one `--set key=value` over what is there.
    pub(super) fn add_override(&mut self, number: usize, text: &str) {
        self.layer = Layer::Override(number);
        let place = Place::Override(number);
        let Some((path, value)) = text.split_once('=') else {
            let problem = Problem::error(place, "", "must be key=value, like ingestion.kafka.group_id=test").with_value(text);
            self.problems.push(problem);
            return;
        };
        let mut found = Vec::new();
        let node = yaml::parse(value, &mut found);
        let is_readable = found.is_empty();
        for problem in found {
            self.problems.push(Problem { place: place.clone(), key: path.to_owned(), ..problem });
        }
        if let Some(node) = node.filter(|_| is_readable) {
            self.section("", &self.nested(path, 0, node));
        }
    }

    /// Lays the keys of a test case over what is there; a name may be a path with dots.
    pub(super) fn add_case(&mut self, entries: &[Entry]) {
        self.layer = Layer::Case;
        for Entry { key, line, value } in entries {
            let nested = self.nested(key, *line, value.clone());
            self.section("", &nested);
        }
    }

    /// Lays one value of the program itself over what is there.
    pub(super) fn set(&mut self, path: &str, value: Value) {
        self.raw.set(path, value, Place::Default);
    }

    /// The values of all keys, their paths resolved, and the problems met so far.
    pub(super) fn finish(mut self) -> (RawConfig, Problems) {
        if let Some(Value::Path(directory)) = self.raw.get("node.data_directory").map(|given| given.value.clone()) {
            self.raw.resolve_paths(Path::new(&directory));
        }
        (self.raw, self.problems)
    }

    /// `a.b.c` and a value as the tree `a: {b: {c: value}}`. The name of a map's item keeps its dots, as librdkafka's names have
    /// them.
    fn nested(&self, path: &str, line: usize, value: Node) -> Node {
        let is_map = |path: &str| self.table.key(path).is_some_and(|key| matches!(key.kind, Kind::Map(_)));
        let ends = path.match_indices('.').map(|(end, _)| end);
        let names: Vec<&str> = match ends.map(|end| path.split_at(end)).find(|(front, _)| is_map(front)) {
            Some((front, item)) => front.split('.').chain([&item[1..]]).collect(),
            None => path.split('.').collect(),
        };
        names.into_iter().rev().fold(value, |value, name| {
            let entry = Entry { key: name.to_owned(), line, value };
            Node { line, content: Content::Map(vec![entry]), is_plain: false }
        })
    }

    fn place(&self, line: usize) -> Place {
        match self.layer {
            Layer::File => Place::File(line),
            Layer::Override(number) => Place::Override(number),
            Layer::Case => Place::Override(line),
        }
    }

    fn error(&mut self, line: usize, path: &str, message: impl Into<String>) {
        let problem = Problem::error(self.place(line), path, message);
        self.problems.push(problem);
    }

    /// Reads a map whose keys the table knows.
    fn section(&mut self, path: &str, node: &Node) {
        let entries = match &node.content {
            Content::Map(entries) => entries,
            Content::Null => return,
            Content::Scalar(_) | Content::List(_) => {
                let what = if path.is_empty() { "the configuration" } else { "this" };
                return self.error(
                    node.line,
                    path,
                    format!("{what} must be a map of keys, of which there are {}", self.children(path).join(", ")),
                );
            }
        };
        for entry in entries {
            let here = join(path, &entry.key);
            match self.table.find(&here) {
                Some(Item::Section(_)) => self.section(&here, &entry.value),
                Some(Item::Key(key)) => {
                    let key = *key;
                    self.key(&here, &key, entry);
                }
                None => {
                    let hint = unknown(&self.table, path, &entry.key);
                    self.error(entry.line, &here, hint);
                }
            }
        }
    }

    fn children(&self, path: &str) -> Vec<&str> {
        children(&self.table, path).collect()
    }

    /// Reads the value of one key into its place.
    fn key(&mut self, path: &str, key: &Key, entry: &Entry) {
        let problems_before = self.problems.list.len();
        let value = self.value(path, key, &entry.value);
        if self.problems.list.len() > problems_before {
            return;
        }
        let Some(value) = value else { return };
        if let Status::NotYet(what) = key.status
            && Ok(&value) != default_of(key).as_ref()
        {
            let problem = Problem::error(self.place(entry.line), path, format!("not supported yet: {what}"));
            self.problems.push(problem.with_value(shown(key, &entry.value)));
            return;
        }
        self.raw.set(path, value, self.place(entry.line));
    }

    /// The value that a node stands for; `None` where a problem was reported.
    fn value(&mut self, path: &str, key: &Key, node: &Node) -> Option<Value> {
        match (&node.content, key.kind) {
            (Content::Null, _) if key.optional => Some(Value::Unset),
            (Content::Null, Kind::Map(_)) => Some(Value::Map(Properties::default())),
            (Content::Null, Kind::Entries(_)) => Some(Value::Entries(Vec::new())),
            (Content::Null, Kind::List(_)) => Some(Value::List(Vec::new())),
            (Content::Scalar(text), _) => self.scalar(path, key, text, node.line),
            (Content::List(items), Kind::List(_)) => self.list(path, key, items),
            (Content::List(items), Kind::Entries(table)) => self.entries(path, &table(), items),
            (Content::Map(items), Kind::Map(check)) => self.map(path, check, items),
            (Content::Map(items), Kind::Graph(_)) => self.graph(path, items, node.line),
            _ => {
                let problem = Problem::error(self.place(node.line), path, format!("must be {}", key.allowed()));
                self.problems.push(problem.with_value(shown(key, node)));
                None
            }
        }
    }

    fn scalar(&mut self, path: &str, key: &Key, text: &str, line: usize) -> Option<Value> {
        let text = self.expanded(path, text, line)?;
        match key.read(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                let value = if key.is_secret() { REDACTED } else { &text };
                let problem = Problem::error(self.place(line), path, message).with_value(value);
                self.problems.push(problem);
                None
            }
        }
    }

    fn list(&mut self, path: &str, key: &Key, items: &[Node]) -> Option<Value> {
        let mut all = Vec::new();
        for (position, item) in items.iter().enumerate() {
            let here = format!("{path}[{position}]");
            match &item.content {
                Content::Scalar(text) => {
                    if let Some(Value::List(texts)) = self.scalar(&here, key, text, item.line) {
                        all.extend(texts);
                    }
                }
                _ => self.error(item.line, &here, format!("must be {}", key.allowed())),
            }
        }
        Some(Value::List(all))
    }

    fn map(&mut self, path: &str, check: fn(&str, &str) -> Result<(), String>, items: &[Entry]) -> Option<Value> {
        let mut all = Properties::default();
        for entry in items {
            let here = format!("{path}.{}", entry.key);
            let Content::Scalar(text) = &entry.value.content else {
                self.error(entry.line, &here, "must be text");
                continue;
            };
            let Some(text) = self.expanded(&here, text, entry.line) else { continue };
            let checked = check(&entry.key, &text);
            all.set(&entry.key, text);
            if let Err(message) = checked {
                let problem = Problem::error(self.place(entry.line), here, message);
                self.problems.push(problem.with_value(all.shown(&entry.key)));
            }
        }
        // A `--set` adds to the map of the file; a list it replaces.
        if self.layer != Layer::File
            && let Some(Value::Map(below)) = self.raw.get(path).map(|given| given.value.clone())
        {
            all = below.overlaid_by(all);
        }
        Some(Value::Map(all))
    }

    fn entries(&mut self, path: &str, table: &Table, items: &[Node]) -> Option<Value> {
        let mut all = Vec::new();
        for (position, item) in items.iter().enumerate() {
            let here = format!("{path}[{position}]");
            let Content::Map(entries) = &item.content else {
                let names: Vec<&str> = children(table, "").collect();
                self.error(item.line, &here, format!("must be a map of {}", names.join(", ")));
                continue;
            };
            let mut raw = defaults(table);
            for entry in entries {
                let inner = join(&here, &entry.key);
                match table.key(&entry.key) {
                    Some(key) => {
                        if let Some(value) = self.value(&inner, key, &entry.value) {
                            raw.set(&entry.key, value, self.place(entry.line));
                        }
                    }
                    None => self.error(entry.line, &inner, unknown(table, "", &entry.key)),
                }
            }
            for (name, key) in table.keys() {
                if raw.get(name).is_none() {
                    let inner = join(&here, name);
                    let is_reported = self.problems.blames(&inner);
                    if !is_reported {
                        self.error(item.line, &inner, format!("must be given: {}", key.allowed()));
                    }
                }
            }
            all.push(raw);
        }
        Some(Value::Entries(all))
    }

    /// `text` with `${NAME}` and `${NAME:-default}` replaced, and `$${` as a plain `${`.
    fn expanded(&mut self, path: &str, text: &str, line: usize) -> Option<String> {
        match expand(text, self.environment) {
            Ok(text) => Some(text),
            Err(message) => {
                self.error(line, path, message);
                None
            }
        }
    }
}

/// All defaults of a table. A key that must be given has none.
fn defaults(table: &Table) -> RawConfig {
    let mut raw = RawConfig::default();
    for (path, key) in table.keys() {
        if let Ok(value) = default_of(key) {
            raw.set(path, value, Place::Default);
        }
    }
    raw
}

/// The value that a key's default stands for; an error where it must be given.
pub(super) fn default_of(key: &Key) -> Result<Value, String> {
    match (key.kind, key.default) {
        (_, "null") if key.optional => Ok(Value::Unset),
        (_, "null") => Err("must be given".to_owned()),
        (Kind::Entries(_), _) => Ok(Value::Entries(Vec::new())),
        (Kind::Map(_), _) => Ok(Value::Map(Properties::default())),
        (Kind::List(_), list) => key.read(&list.replace(['[', ']', '"'], "")),
        (_, text) => key.read(text),
    }
}

/// A node as a problem shows it.
fn shown(key: &Key, node: &Node) -> String {
    match &node.content {
        _ if key.is_secret() => REDACTED.to_owned(),
        Content::Scalar(text) => text.clone(),
        Content::Null => "null".to_owned(),
        Content::List(items) => format!("a list of {}", items.len()),
        Content::Map(entries) => {
            format!("a map of {}", entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>().join(", "))
        }
    }
}

/// The names directly under `path`.
fn children<'a>(table: &'a Table, path: &str) -> impl Iterator<Item = &'a str> {
    table.rows().iter().filter_map(move |row| {
        let name = if path.is_empty() { &row.path } else { row.path.strip_prefix(path)?.strip_prefix('.')? };
        if name.contains('.') { None } else { Some(name) }
    })
}

/// Names of OpenWit, and of other places people look, with ours.
const ELSEWHERE: &[(&str, &str)] = &[
    ("kafka", "ingestion.kafka"),
    ("file_rotation", "storage.rotation"),
    ("file_size_mb", "storage.rotation.file_bytes_max"),
    ("file_duration_minutes", "storage.rotation.age_max_seconds"),
    ("idle_timeout_minutes", "storage.rotation.idle_seconds"),
    ("timeouts", "ingestion.kafka.consumer"),
    ("bootstrap_servers", "ingestion.kafka.brokers"),
    ("max_batch_bytes", "ingestion.batching.batch_bytes_max"),
    ("data_dir", "node.data_directory"),
    ("postgres_url", "metastore.url"),
    ("row_group_size", "storage.parquet.row_group_rows"),
];

/// What to say of a key that is not in the table: the nearest name beside it, else the same name elsewhere. Its value is not
/// shown, as it may be a password under a mistyped name.
fn unknown(table: &Table, path: &str, name: &str) -> String {
    let leaf = |row: &str| row.rsplit('.').next().unwrap_or(row).to_owned();
    let is_named_so = |row: &&super::table::Row| leaf(&row.path) == name;
    if let Some(near) = nearest(name, children(table, path)) {
        return format!("unknown key: did you mean {}?", join(path, near));
    }
    if let Some((_, ours)) = ELSEWHERE.iter().find(|(theirs, ours)| *theirs == name && table.find(ours).is_some()) {
        return format!("unknown key: it is {ours} here");
    }
    if let Some(row) = table.rows().iter().find(is_named_so) {
        return format!("unknown key here: did you mean {}?", row.path);
    }
    let known: Vec<&str> = children(table, path).collect();
    format!("unknown key: known here are {}", known.join(", "))
}

/// `text` with the variables of the environment in it.
fn expand(text: &str, environment: Environment<'_>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            // `$${` stands for a plain `${`.
            expanded.push_str(&rest[..start - 1]);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let end = inside.find('}').ok_or("has ${ without its }")?;
        let (name, default) = match inside[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inside[..end], None),
        };
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            return Err("must have the name of a variable between ${ and }, as in ${NAME} or ${NAME:-default}".to_owned());
        }
        let value = environment(name).filter(|value| default.is_none() || !value.is_empty());
        match value.as_deref().or(default) {
            Some(value) => expanded.push_str(value),
            None => return Err(format!("the environment has no variable {name}; set it, or write ${{{name}:-default}}")),
        }
        rest = &inside[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_a_shell() {
        let environment = |name: &str| match name {
            "HOST" => Some("kafka".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("plain $ {} $HOST", Ok("plain $ {} $HOST")),
            ("${HOST}:9092,${HOST}", Ok("kafka:9092,kafka")),
            ("${NONE:-a:-b}", Ok("a:-b")),
            ("${EMPTY:-x}|${EMPTY}|${NONE:-}", Ok("x||")),
            ("$${HOST} pa$$w", Ok("${HOST} pa$$w")),
        ] {
            assert_eq!(expand(text, &environment).as_deref(), expected, "{text}");
        }
        for (text, says) in [
            ("${NONE}", "no variable NONE"),
            ("${HOST", "without its }"),
            ("${}", "name of a variable"),
            ("${A B}", "name of a variable"),
        ] {
            assert!(expand(text, &environment).unwrap_err().contains(says), "{text}");
        }
    }
}
