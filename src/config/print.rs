//! Configurations as YAML: the effective one, and the reference of all keys.

use super::graph;
use super::key::{Key, Kind, Status, Value, bytes_text};
use super::layers::default_of;
use super::secret::REDACTED;
use super::table::{Item, RawConfig, Row, Table};
use super::yaml;

/// Width of a line of comments.
const COLUMNS: usize = 118;

const HEAD: &str = "\
# Every key of openwit-ingest with its default.
#
# Written by the code, and held equal to it by a test. A configuration needs only the keys
# in which it differs. ${NAME} and ${NAME:-default} take variables of the environment, $${ is a plain ${.
# {data_directory} at the beginning of a path stands for node.data_directory.
";

/// Every key with its default and documentation.
pub(super) fn reference(table: &Table) -> String {
    let mut text = HEAD.to_owned();
    let mut depth_before = 0;
    for row in table.rows() {
        let (depth, name) = place_of(row);
        let indent = "  ".repeat(depth);
        match &row.item {
            Item::Section(about) => {
                text.push('\n');
                comment(&mut text, &indent, about);
                text.push_str(&format!("{indent}{name}:\n"));
            }
            Item::Key(key) => {
                // So that the eye does not take it for a key of the section that ended above.
                if depth == 0 || depth < depth_before {
                    text.push('\n');
                }
                key_comment(&mut text, &indent, key);
                let value = key.example.unwrap_or(key.default);
                let value = if value.is_empty() { "\"\"" } else { value };
                let value = if value.starts_with('{') && value != "{}" { yaml::scalar(value) } else { value.to_owned() };
                text.push_str(&format!("{indent}{name}: {value}\n"));
            }
        }
        depth_before = depth;
    }
    text
}

/// The values of `raw` without documentation; secrets are redacted.
pub(super) fn effective(table: &Table, raw: &RawConfig) -> String {
    let mut text = String::new();
    for row in table.rows() {
        let (depth, name) = place_of(row);
        let indent = "  ".repeat(depth);
        match &row.item {
            Item::Section(_) => text.push_str(&format!("{indent}{name}:\n")),
            Item::Key(key) => {
                let value = raw.get(&row.path).map(|given| value(key, &given.value, depth));
                text.push_str(&format!("{indent}{name}:{}\n", value.unwrap_or_default()));
            }
        }
    }
    text
}

/// A value as a problem shows it.
pub(super) fn shown(key: &Key, given: &Value) -> String {
    match given {
        Value::Text(text) => text.clone(),
        Value::List(items) => items.join(", "),
        Value::Path(path) => path.display().to_string(),
        Value::Secret(_) => REDACTED.to_owned(),
        Value::Map(_) | Value::Entries(_) | Value::Graph(_) => "as given".to_owned(),
        other => value(key, other, 0).trim().to_owned(),
    }
}

fn place_of(row: &Row) -> (usize, &str) {
    let name = row.path.rsplit('.').next().unwrap_or(&row.path);
    (row.path.matches('.').count(), name)
}

/// A value as it stands behind the colon of its key, with the space or the line break before it.
fn value(key: &Key, value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth + 1);
    match value {
        Value::Unset => " null".to_owned(),
        Value::Bool(value) => format!(" {value}"),
        Value::Number(number) if matches!(key.kind, Kind::Bytes { .. }) => format!(" {}", bytes_text(*number)),
        Value::Number(number) => format!(" {number}"),
        Value::Text(text) => format!(" {}", scalar(text)),
        Value::Path(path) => format!(" {}", scalar(&path.to_string_lossy())),
        Value::Secret(_) => format!(" {}", scalar(REDACTED)),
        Value::List(items) => format!(" [{}]", items.iter().map(|item| scalar(item)).collect::<Vec<_>>().join(", ")),
        Value::Map(items) if items.is_empty() => " {}".to_owned(),
        Value::Map(items) => {
            let names = items.iter().map(|(name, _)| name);
            names.map(|name| format!("\n{indent}{}: {}", yaml::scalar(name), scalar(items.shown(name)))).collect()
        }
        Value::Graph(stages) => graph::to_yaml(stages),
        Value::Entries(entries) if entries.is_empty() => " []".to_owned(),
        Value::Entries(entries) => {
            let Kind::Entries(table) = key.kind else { return " []".to_owned() };
            entries.iter().map(|entry| entry_text(&table(), entry, &indent)).collect()
        }
    }
}

/// One map of a list of maps.
fn entry_text(table: &Table, entry: &RawConfig, indent: &str) -> String {
    let depth = indent.len() / 2;
    let given = table.keys().filter_map(|(name, key)| Some((name, key, &entry.get(name)?.value)));
    let lines = given.enumerate().map(|(position, (name, key, inner))| {
        let mark = if position == 0 { "- " } else { "  " };
        format!("\n{indent}{mark}{name}:{}", value(key, inner, depth))
    });
    lines.collect()
}

/// Text as a scalar that reads back as the same text, variables included.
fn scalar(text: &str) -> String {
    yaml::scalar(&text.replace("${", "$${"))
}

fn key_comment(text: &mut String, indent: &str, key: &Key) {
    comment(text, indent, key.meaning);
    comment(text, indent, &properties(key));
    if let Kind::Entries(table) = key.kind {
        comment(text, indent, "Each entry has:");
        for (name, key) in table().keys() {
            comment(text, indent, &format!("- {name}: {} {}", key.meaning, properties(key)));
        }
    }
}

/// Type, range and what goes wrong outside of it.
fn properties(key: &Key) -> String {
    let mut sentences = Vec::new();
    let mut allowed = key.allowed();
    if let Some(first) = allowed.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    sentences.push(format!("{allowed}."));
    let is_required = default_of(key).is_err() || (key.example.is_some() && key.default == "[]");
    if is_required {
        sentences.push("Must be given.".to_owned());
    }
    if !key.too_small.is_empty() {
        sentences.push(format!("Too small: {}.", key.too_small));
    }
    if !key.too_large.is_empty() {
        sentences.push(format!("Too large: {}.", key.too_large));
    }
    if let Status::NotYet(what) = key.status {
        sentences.push(format!("Not supported yet: {what}."));
    }
    if let Kind::Choice { not_yet, .. } = key.kind {
        sentences.extend(not_yet.iter().map(|(name, why)| format!("Not supported yet: {name} ({why}).")));
    }
    sentences.join(" ")
}

/// `sentence` as comment lines of bounded width.
fn comment(text: &mut String, indent: &str, sentence: &str) {
    let mut line = String::new();
    for word in sentence.split_whitespace() {
        let is_full = indent.len() + 2 + line.len() + 1 + word.len() > COLUMNS;
        if is_full && !line.is_empty() {
            text.push_str(&format!("{indent}# {line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.push_str(&format!("{indent}# {line}\n"));
}
