//! Files of test cases, for `openwit-ingest test`: messages, and what must become of them. All problems at once, each with file, line
//! and path. `docs/testing-with-cases.md` explains every key.
//!
//! ```text
//! version: 1
//! config: ingest.yaml | {keys}      none: the defaults
//! set: {key: value}                 laid over it
//! cases:
//!   - {name, topic, set: {key: value}, input: [message], expect: {rows, rejects, duplicates, skipped, metrics, .. | error}}
//! ```

mod expect;
mod input;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::datasets::Refused;
use super::key::Value;
use super::layers::Layers;
use super::problem::{Place, Problem, Problems};
use super::reader::Reader;
use super::yaml::{self, Content, Entry, Node};
use super::{Config, Loaded, read_text, table};

pub use expect::{Expectation, ExpectedMessage, ExpectedReject, ExpectedRow, Listed, METRICS, Messages, Metric, Wanted};
pub use input::Message;

#[cfg(test)]
mod tests;

/// The version of the file's form.
const VERSION: u64 = 1;
/// Cases of one file.
const CASES_MAX: usize = 10_000;
/// Stands for the folder of the file in values of the configuration.
const FOLDER_VARIABLE: &str = "CASES";

const FILE_KEYS: [&str; 5] = ["version", "description", "config", "set", "cases"];
const CASE_KEYS: [&str; 6] = ["name", "description", "topic", "set", "input", "expect"];

/// A file that can be run.
#[derive(Debug)]
pub struct CaseFile {
    /// Its name, as it was given.
    pub file: String,
    /// Its cases.
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Debug)]
pub struct Case {
    /// Its name, unique in the file.
    pub name: String,
    /// The line at which it begins.
    pub line: usize,
    /// The configuration, or why it is refused: that is an error unless the case expects it.
    pub config: Result<Box<Config>, Vec<Problems>>,
    /// The messages, in the order in which they are read.
    pub input: Vec<Message>,
    /// What must become of them.
    pub expect: Expectation,
}

/// The cases of `path`: of a folder those of all its `*.yaml` and `*.yml` files, in the order of their names.
pub fn load(path: &Path) -> Result<Vec<CaseFile>, Refused> {
    let (mut read, mut refused) = (Vec::new(), Vec::new());
    for file in files(path).map_err(|message| Refused(vec![of_file(path, message)]))? {
        let parsed = read_text(&file).map_err(|message| vec![of_file(&file, message)]);
        match parsed.and_then(|text| parse(&file, &text, &|name| std::env::var(name).ok())) {
            Ok(cases) => read.push(cases),
            Err(problems) => refused.extend(problems),
        }
    }
    if refused.is_empty() { Ok(read) } else { Err(Refused(refused)) }
}

fn of_file(file: &Path, message: String) -> Problems {
    let mut problems = Problems::new(file.display().to_string());
    problems.push(Problem::error(Place::File(0), "", message));
    problems
}

fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err("holds no cases: no *.yaml file is in it".to_owned()) } else { Ok(files) }
}

/// The cases that `text` says. Paths are relative to the folder of `file`.
pub fn parse(file: &Path, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<CaseFile, Vec<Problems>> {
    let name = file.display().to_string();
    let mut reader = Reader::new(&name);
    let root = yaml::parse_data(text, &mut reader.problems.list);
    let mut others = Vec::new();
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let cases = root.map(|root| {
        let mut cases = Cases { reader: &mut reader, folder, environment, others: &mut others };
        cases.file(&root)
    });
    let mut problems = reader.problems;
    // What is wrong with the file's own keys of the configuration is found by every case.
    let mut distinct = Vec::new();
    problems.list.retain(|problem| {
        !distinct.contains(problem) && {
            distinct.push(problem.clone());
            true
        }
    });
    match cases {
        Some(cases) if problems.is_empty() && others.is_empty() => Ok(CaseFile { file: name, cases }),
        _ => {
            let mut all = others;
            all.extend((!problems.is_empty()).then(|| problems.sorted()));
            Err(all)
        }
    }
}

/// Reads a file's cases.
struct Cases<'a> {
    reader: &'a mut Reader,
    folder: PathBuf,
    environment: &'a dyn Fn(&str) -> Option<String>,
    /// Problems of configuration files.
    others: &'a mut Vec<Problems>,
}

/// The layers of a case's configuration.
#[derive(Clone, Default)]
struct Layered<'n> {
    /// A configuration's file: name and text.
    file: Option<(String, String)>,
    /// Keys over it, in order.
    over: Vec<&'n [Entry]>,
}

impl Cases<'_> {
    fn file(&mut self, root: &Node) -> Vec<Case> {
        let Some(keys) = self.reader.keys("", root, &FILE_KEYS) else { return Vec::new() };
        let is_known = |text: &str| text.parse().ok().filter(|version: &u64| *version == VERSION);
        self.reader.required(&keys, "version", root.line, |reader, path, node| reader.read(path, node, "1", is_known));
        let mut layered = Layered::default();
        match keys.get("config").map(|node| (node.line, &node.content)) {
            None | Some((_, Content::Null)) => {}
            Some((_, Content::Map(entries))) => layered.over.push(entries),
            Some((line, Content::Scalar(path))) => {
                let path = self.folder.join(path);
                match read_text(&path) {
                    Ok(text) => layered.file = Some((path.display().to_string(), text)),
                    Err(message) => self.reader.refuse(line, "config", format!("{}: {message}", path.display())),
                }
            }
            Some((line, Content::List(_))) => {
                self.reader.refuse(line, "config", "must be the path of a configuration, or a map of its keys");
            }
        }
        layered.over.extend(self.values("set", &keys));
        let items = match keys.get("cases").map(|node| (node.line, &node.content)) {
            Some((_, Content::List(items))) if !items.is_empty() => &items[..],
            Some((line, _)) => {
                self.reader.refuse(line, "cases", "must be a list of at least one case");
                &[]
            }
            None => {
                self.reader.refuse(root.line, "cases", "must be given: a list of cases");
                &[]
            }
        };
        if items.len() > CASES_MAX {
            self.reader.refuse(root.line, "cases", format!("are {}, at most {CASES_MAX} are possible", items.len()));
            return Vec::new();
        }
        let mut names = BTreeMap::new();
        let mut cases = Vec::new();
        for (position, node) in items.iter().enumerate() {
            let path = format!("cases[{position}]");
            let Some(case) = self.case(&path, node, &layered) else { continue };
            if let Some(earlier) = names.insert(case.name.clone(), position) {
                self.reader.refuse(node.line, &format!("{path}.name"), format!("is that of cases[{earlier}], too"));
            }
            cases.push(case);
        }
        cases
    }

    /// A map of keys of the configuration.
    fn values<'n>(&mut self, path: &str, keys: &BTreeMap<&str, &'n Node>) -> Option<&'n [Entry]> {
        let node = keys.get("set")?;
        match &node.content {
            Content::Map(entries) => Some(entries),
            Content::Null => None,
            Content::Scalar(_) | Content::List(_) => {
                self.reader.refuse(node.line, path, "must be a map of keys of the configuration and their values");
                None
            }
        }
    }

    fn case(&mut self, path: &str, node: &Node, layered: &Layered<'_>) -> Option<Case> {
        let keys = self.reader.keys(path, node, &CASE_KEYS)?;
        let at = |key: &str| format!("{path}.{key}");
        let name = match keys.get("name") {
            Some(node) => self.reader.read(&at("name"), node, "text on one line", one_line),
            None => {
                self.reader.refuse(node.line, &at("name"), "must be given");
                None
            }
        };
        let topic = keys.get("topic").and_then(|node| self.reader.text(&at("topic"), node));
        let expect = match keys.get("expect") {
            Some(node) => self.reader.expectation(&at("expect"), node),
            None => {
                self.reader.refuse(node.line, &at("expect"), "must be given: what must become of the input");
                None
            }
        };
        let is_refused = expect.as_ref().is_some_and(|expect| expect.error.is_some());
        let input = match keys.get("input") {
            Some(node) => self.reader.input(&at("input"), node, &input::Defaults { topic, folder: &self.folder }),
            None if is_refused => Some(Vec::new()),
            None => {
                self.reader.refuse(node.line, &at("input"), "must be given: a list of messages");
                None
            }
        };
        let mut layered = layered.clone();
        layered.over.extend(self.values(&at("set"), &keys));
        let config = self.config(&layered);
        if let (Err(problems), false) = (&config, is_refused) {
            self.blame(problems);
        }
        Some(Case { name: name?, line: node.line, config, input: input?, expect: expect? })
    }

    /// Tells problems of a configuration: those of the file of cases with its own, those of others with theirs.
    fn blame(&mut self, problems: &[Problems]) {
        for problems in problems {
            if problems.file == self.reader.problems.file {
                self.reader.problems.list.extend(problems.list.iter().cloned());
            } else if !self.others.contains(problems) {
                self.others.push(problems.clone());
            }
        }
    }

    fn config(&self, layered: &Layered<'_>) -> Result<Box<Config>, Vec<Problems>> {
        let folder = std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let environment = |name: &str| match name {
            FOLDER_VARIABLE => Some(folder.display().to_string()),
            _ => (self.environment)(name),
        };
        let own = &self.reader.problems.file;
        let table = table();
        let file = layered.file.as_ref().map_or(own, |(file, _)| file);
        let mut layers = Layers::new(table.clone(), file, &environment);
        match &layered.file {
            Some((_, text)) => layers.add_file(text),
            // What has no default: nothing is read from Kafka.
            None => layers.set("ingestion.kafka.topics", Value::List(vec!["**".to_owned()])),
        }
        layered.over.iter().for_each(|entries| layers.add_case(entries));
        match Config::checked(layers, &table) {
            Ok(Loaded { config, .. }) => Ok(Box::new(config)),
            Err(problems) => Err(by_file(problems, own)),
        }
    }
}

/// Errors at the file of cases apart from those of the configuration's file.
fn by_file(problems: Problems, own: &str) -> Vec<Problems> {
    let (mut theirs, mut ours) = (Problems::new(problems.file), Problems::new(own));
    for problem in problems.list.into_iter().filter(|problem| problem.severity == super::Severity::Error) {
        match problem.place {
            Place::Override(line) => ours.push(Problem { place: Place::File(line), ..problem }),
            Place::File(_) | Place::Default => theirs.push(problem),
        }
    }
    [theirs, ours].into_iter().filter(|problems| !problems.is_empty()).collect()
}

fn one_line(text: &str) -> Option<String> {
    let is_name = !text.trim().is_empty() && !text.contains(['\n', '\r']);
    is_name.then(|| text.trim().to_owned())
}
