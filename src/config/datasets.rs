//! Dataset schemas from their files: one YAML document each, all problems of all files at once.
//!
//! ```text
//! folder > *.yaml, by name > tree with lines > keys and types (here) > rules (`openwit_operators::dataset::rules`) > Schema
//! ```
//! What is wrong by itself is found here; what a schema must be as a whole, and to what has a column in every schema, is the operators'
//! to say. Either way a problem has file, line and path of the key. `docs/datasets.md` explains every key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use openwit_operators::batch::Signal;
use openwit_operators::dataset::rules::{self, field_path};
use openwit_operators::dataset::{Case, Field, Kind, Level, Names, Scalar, Schema, Separators, TimeFormat, Unknown};

use super::key::bytes_number;
use super::problem::{Place, Problem, Problems};
use super::read_text;
use super::reader::Reader;
use super::yaml::{self, Content, Node};

#[cfg(test)]
mod tests;

/// Schemas of one folder. Each is asked for every new topic, so there is a bound; nobody has so many datasets by hand.
const FILES_MAX: usize = 1_000;

const SCHEMA_KEYS: [&str; 8] = ["dataset", "version", "description", "index", "signal", "names", "attributes", "resource"];
const NAMES_KEYS: [&str; 3] = ["case", "separators", "semantic_conventions"];
const LEVEL_KEYS: [&str; 2] = ["unknown", "fields"];
const FIELD_KEYS: [&str; 12] = [
    "type",
    "description",
    "required",
    "aliases",
    "default",
    "allowed",
    "bytes_max",
    "items_max",
    "coerce",
    "formats",
    "promote",
    "column",
];

/// Why schemas cannot be used: the problems of each file that has any.
#[derive(Debug)]
pub struct Refused(pub Vec<Problems>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problems) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problems}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// The schemas of `path`: of a folder all `*.yaml` and `*.yml` files, in the order of their names; else of the one file.
pub fn load(path: &Path) -> Result<Vec<Schema>, Refused> {
    let files = files(path).map_err(|message| {
        let mut problems = Problems::new(path.display().to_string());
        problems.push(Problem::error(Place::File(0), "", message));
        Refused(vec![problems])
    })?;
    let (mut schemas, mut refused) = (Vec::new(), Vec::new());
    for file in files {
        let name = file.display().to_string();
        let parsed = match read_text(&file) {
            Ok(text) => parse(&name, &text).and_then(|schema| told_apart(&name, schema, &schemas)),
            Err(message) => {
                let mut problems = Problems::new(name);
                problems.push(Problem::error(Place::File(0), "", message));
                Err(problems)
            }
        };
        match parsed {
            Ok(schema) => schemas.push(schema),
            Err(problems) => refused.push(problems),
        }
    }
    if refused.is_empty() { Ok(schemas) } else { Err(Refused(refused)) }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let is_schema = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // Mounted configurations have folders and links beside their files that begin with dots.
        let is_hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if is_schema && !is_hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    match files.len() {
        0 => Err("holds no dataset schema: no *.yaml file is in it".to_owned()),
        1..=FILES_MAX => Ok(files),
        many => Err(format!("holds {many} dataset schemas, at most {FILES_MAX} are possible")),
    }
}

/// `schema`, if neither its name nor one of its indexes is that of an earlier one.
fn told_apart(file: &str, schema: Schema, earlier: &[Schema]) -> Result<Schema, Problems> {
    let mut problems = Problems::new(file);
    for other in earlier {
        if other.name == schema.name {
            problems.push(Problem::error(
                Place::File(0),
                "dataset",
                format!("'{}' is the name of another file's dataset", other.name),
            ));
        }
        for index in schema.indexes.iter().filter(|index| other.signal == schema.signal && other.indexes.contains(index)) {
            let message = format!("'{index}' of {} is of the dataset {} already, which comes first", other.signal, other.name);
            problems.push(Problem::error(Place::File(0), "index", message));
        }
    }
    if problems.is_empty() { Ok(schema) } else { Err(problems) }
}

/// The schema that `text` says.
pub fn parse(file: &str, text: &str) -> Result<Schema, Problems> {
    let mut reader = Reader::new(file);
    let root = yaml::parse(text, &mut reader.problems.list);
    let schema = root.and_then(|root| reader.schema(&root));
    let is_read = reader.problems.is_empty();
    if let Some(schema) = &schema {
        for rules::Problem { path, message } in rules::problems(schema) {
            // What could not be read has a problem already; a second one about what stands in for it would mislead.
            if is_read || !reader.problems.blames(&path) {
                let place = Place::File(reader.line_of(&path));
                reader.problems.push(Problem::error(place, path, message));
            }
        }
    }
    match schema {
        Some(schema) if reader.problems.is_empty() => Ok(schema),
        _ => Err(reader.problems.sorted()),
    }
}

impl Reader {
    /// `None` where what makes a schema one is missing.
    fn schema(&mut self, root: &Node) -> Option<Schema> {
        let keys = self.keys("", root, &SCHEMA_KEYS)?;
        let name = self.required(&keys, "dataset", root.line, Self::text);
        let version = self.required(&keys, "version", root.line, Self::number);
        let indexes = self.required(&keys, "index", root.line, Self::texts);
        let signals = [Signal::Traces, Signal::Logs, Signal::Metrics].map(|signal| (signal.name(), signal));
        let signal = self.required(&keys, "signal", root.line, |reader, path, node| reader.choice(path, node, &signals));
        let names = keys.get("names").map(|node| self.names(node)).unwrap_or_default();
        let attributes = keys.get("attributes").map(|node| self.level("attributes", node)).unwrap_or_default();
        let resource = keys.get("resource").map(|node| self.level("resource", node)).unwrap_or_default();
        let version = u32::try_from(version?).ok().or_else(|| {
            self.refuse(self.line_of("version"), "version", "is too large");
            None
        });
        Some(Schema { name: name?.into(), version: version?, indexes: indexes?, signal: signal?, names, attributes, resource })
    }

    fn names(&mut self, node: &Node) -> Names {
        let Some(keys) = self.keys("names", node, &NAMES_KEYS) else { return Names::default() };
        let cases = [("keep", Case::Keep), ("lower", Case::Lower), ("snake", Case::Snake)];
        let separators = [("keep", Separators::Keep), ("dot", Separators::Dot), ("underscore", Separators::Underscore)];
        Names {
            case: keys.get("case").and_then(|node| self.choice("names.case", node, &cases)).unwrap_or_default(),
            separators: keys
                .get("separators")
                .and_then(|node| self.choice("names.separators", node, &separators))
                .unwrap_or_default(),
            semantic_conventions: keys
                .get("semantic_conventions")
                .and_then(|node| self.flag("names.semantic_conventions", node))
                .unwrap_or_default(),
        }
    }

    fn level(&mut self, level: &str, node: &Node) -> Level {
        let Some(keys) = self.keys(level, node, &LEVEL_KEYS) else { return Level::default() };
        let policies = [Unknown::Keep, Unknown::Drop, Unknown::Reject].map(|policy| (policy.name(), policy));
        let unknown = keys.get("unknown").and_then(|node| self.choice(&format!("{level}.unknown"), node, &policies));
        let mut fields = Vec::new();
        let path = format!("{level}.fields");
        if let Some(node) = keys.get("fields") {
            match &node.content {
                Content::Null => {}
                Content::Map(entries) => {
                    for entry in entries {
                        self.lines.insert(field_path(level, &entry.key, ""), entry.line);
                        fields.extend(self.field(level, &entry.key, &entry.value));
                    }
                }
                _ => self.refuse(node.line, &path, "must be a map of names and rules"),
            }
        }
        Level { unknown: unknown.unwrap_or_default(), fields }
    }

    fn field(&mut self, level: &str, name: &str, node: &Node) -> Option<Field> {
        let path = |key: &str| field_path(level, name, key);
        let keys = self.keys(&path(""), node, &FIELD_KEYS)?;
        let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
        let kind = match keys.get("type") {
            Some(node) => self.choice(&path("type"), node, &kinds)?,
            None => {
                self.refuse(node.line, &path(""), "must have a type");
                return None;
            }
        };
        let mut field = Field::new(name, kind);
        if let Some(node) = keys.get("required") {
            field.required = self.flag(&path("required"), node).unwrap_or_default();
        }
        if let Some(node) = keys.get("aliases") {
            field.aliases = self.texts(&path("aliases"), node).unwrap_or_default();
        }
        if let Some(node) = keys.get("default") {
            field.default = self.scalar(&path("default"), node, kind);
        }
        if let Some(node) = keys.get("allowed") {
            let path = path("allowed");
            field.allowed = self.items(&path, node).into_iter().filter_map(|node| self.scalar(&path, node, kind)).collect();
            if field.allowed.is_empty() {
                self.refuse(node.line, &path, "must have at least one value; leave the key out to allow any");
            }
        }
        if let Some(node) = keys.get("bytes_max") {
            field.bytes_max = self.bytes(&path("bytes_max"), node);
        }
        if let Some(node) = keys.get("items_max") {
            field.items_max = self.number(&path("items_max"), node);
        }
        if let Some(node) = keys.get("coerce") {
            field.coerce = self.choices(&path("coerce"), node, &kinds);
        }
        if let Some(node) = keys.get("formats") {
            let formats = TimeFormat::ALL.map(|format| (format.name(), format));
            field.formats = self.choices(&path("formats"), node, &formats);
        }
        self.promotion(level, &keys, &mut field);
        Some(field)
    }

    fn promotion(&mut self, level: &str, keys: &BTreeMap<&str, &Node>, field: &mut Field) {
        let promoted = keys.get("promote").and_then(|node| self.flag(&field_path(level, &field.name, "promote"), node));
        let path = field_path(level, &field.name, "column");
        let named = keys.get("column").and_then(|node| self.text(&path, node));
        match (promoted, named) {
            (Some(true), named) => field.column = Some(named.unwrap_or_else(|| column_of(&field.name))),
            // One that could not be read is told of already.
            (None, Some(_)) if keys.contains_key("promote") => {}
            (_, Some(_)) => {
                self.refuse(self.line_of(&path), &path, "names a column, which only a field with `promote: true` has")
            }
            _ => {}
        }
    }

    fn bytes(&mut self, path: &str, node: &Node) -> Option<u64> {
        self.read(path, node, "a size like 4KiB", bytes_number)
    }

    /// A value of `kind`.
    fn scalar(&mut self, path: &str, node: &Node, kind: Kind) -> Option<Scalar> {
        match kind {
            Kind::String => self.read(path, node, "a string", |text| Some(Scalar::Text(text.to_owned()))),
            Kind::Int => self.read(path, node, "an int", |text| text.parse().ok().map(Scalar::Int)),
            Kind::Double => {
                let double = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite()).map(Scalar::Double);
                self.read(path, node, "a double", double)
            }
            Kind::Bool => self.flag(path, node).map(Scalar::Bool),
            Kind::Timestamp | Kind::Bytes | Kind::List | Kind::Map => {
                self.refuse(node.line, path, format!("not supported for {}", kind.name()));
                None
            }
        }
    }
}

/// The column of a field that does not name one.
fn column_of(field: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    field.chars().map(legal).collect()
}
