//! Reads a graph of stages: each key, each option of an operator, and then whether it can be wired so.

use std::collections::BTreeMap;

use openwit_graphs::registry::Operator;
use openwit_graphs::wiring::{self, Description, Flaw, Part, Stage};
use openwit_operators::options::Options;

use super::{Layers, children, unknown};
use crate::config::graph::{operator, option_of, options_table, part, stage_table};
use crate::config::key::Value;
use crate::config::problem::{Place, Problem, nearest};
use crate::config::table::{RawConfig, Table, join};
use crate::config::yaml::{Content, Entry, Node};

/// Where the parts of a stage were given.
#[derive(Default)]
struct Lines {
    stage: usize,
    parts: BTreeMap<&'static str, usize>,
}

impl Layers<'_> {
    /// Reads `graph: {stages: .., storage: ..}`.
    pub(super) fn graph(&mut self, path: &str, entries: &[Entry], line: usize) -> Option<Value> {
        let problems_before = self.problems.list.len();
        let mut description = Description::default();
        let mut lines = Vec::new();
        for entry in entries {
            let here = join(path, &entry.key);
            match (entry.key.as_str(), &entry.value.content) {
                ("stages", Content::List(items)) => {
                    for (position, item) in items.iter().enumerate() {
                        if let Some((stage, given)) = self.stage(&format!("{here}[{position}]"), item) {
                            description.stages.push(stage);
                            lines.push(given);
                        }
                    }
                }
                ("stages", _) => self.error(entry.line, &here, "must be a list of stages, each a map with at least its operator"),
                ("storage", Content::Scalar(text)) if text == "true" || text == "false" => description.storage = text == "true",
                ("storage", _) => self.error(entry.line, &here, "must be true or false"),
                (name, _) => {
                    let hint = nearest(name, ["stages", "storage"]).map(|near| format!(": did you mean {path}.{near}?"));
                    self.error(
                        entry.line,
                        &here,
                        format!("unknown key{}", hint.unwrap_or(": known here are stages, storage".into())),
                    );
                }
            }
        }
        if self.problems.list.len() == problems_before {
            self.wire(path, line, &description, &lines);
        }
        (self.problems.list.len() == problems_before).then_some(Value::Graph(description))
    }

    fn wire(&mut self, path: &str, line: usize, description: &Description, lines: &[Lines]) {
        if description.stages.is_empty() {
            if !description.storage {
                self.error(line, path, "has no stages, and is no storage node: nothing would run");
            }
            return;
        }
        let mut flaws: Vec<Flaw> = description.stages.iter().enumerate().filter_map(internal).collect();
        flaws.extend(wiring::check(description).err().unwrap_or_default());
        for Flaw { stage, part: at, message } in flaws {
            let (key, line) = match stage.map(|stage| (stage, &lines[stage])) {
                Some((stage, given)) => {
                    let name = part(at);
                    let line = given.parts.get(name).copied().unwrap_or(given.stage);
                    (format!("{path}.stages[{stage}].{name}"), line)
                }
                None => (format!("{path}.stages"), line),
            };
            let given = stage.and_then(|stage| shown(&description.stages[stage], at));
            let problem = Problem::error(self.place(line), key, message);
            self.problems.push(given.map_or(problem.clone(), |given| problem.with_value(given)));
        }
    }

    fn stage(&mut self, path: &str, node: &Node) -> Option<(Stage, Lines)> {
        let table = stage_table();
        let entries = match &node.content {
            Content::Map(entries) => entries.as_slice(),
            // An operator's name alone.
            Content::Scalar(text) => {
                let stage = Stage::of(text);
                let given = Lines { stage: node.line, parts: BTreeMap::new() };
                let options = self.options(&format!("{path}.options"), operator(&stage), None, node.line);
                return Some((stage.with(options), given));
            }
            _ => {
                let names: Vec<&str> = children(&table, "").chain(["options"]).collect();
                self.error(node.line, path, format!("must be an operator's name, or a map of {}", names.join(", ")));
                return None;
            }
        };
        let mut raw = super::defaults(&table);
        let mut given = Lines { stage: node.line, parts: BTreeMap::new() };
        let mut options = None;
        for entry in entries {
            let here = join(path, &entry.key);
            if entry.key == "options" {
                options = Some(entry);
            } else if let Some(key) = table.key(&entry.key) {
                let part = [Part::Name, Part::Operator, Part::From, Part::AcceptLoss].map(part);
                if let Some(name) = part.into_iter().find(|name| *name == entry.key) {
                    given.parts.insert(name, entry.line);
                }
                if let Some(value) = self.value(&here, key, &entry.value) {
                    raw.set(&entry.key, value, self.place(entry.line));
                }
            } else {
                let hint = match nearest(&entry.key, ["options"]) {
                    Some(near) => format!("unknown key: did you mean {path}.{near}?"),
                    None => unknown(&table, "", &entry.key),
                };
                self.error(entry.line, &here, hint);
            }
        }
        let Some(Value::Text(operator_name)) = raw.get("operator").map(|given| given.value.clone()) else {
            if !self.problems.blames(&format!("{path}.operator")) {
                self.error(node.line, &format!("{path}.operator"), "must be given: what the stage does");
            }
            return None;
        };
        let text = |name: &str| {
            raw.get(name).and_then(|given| if let Value::Text(text) = &given.value { Some(text.clone()) } else { None })
        };
        let from = match raw.get("from").map(|given| given.value.clone()) {
            Some(Value::List(from)) => from,
            _ => Vec::new(),
        };
        let accept_loss = raw.get("accept_loss").is_some_and(|given| given.value == Value::Bool(true));
        let stage = Stage {
            name: text("name").unwrap_or(operator_name.clone()),
            operator: operator_name,
            from,
            accept_loss,
            options: Options::default(),
        };
        let options = self.options(&format!("{path}.options"), operator(&stage), options, node.line);
        Some((stage.with(options), given))
    }

    /// The options of a stage: those given, and the defaults of the others.
    fn options(&mut self, path: &str, operator: Option<&'static Operator>, given: Option<&Entry>, line: usize) -> Options {
        // What is told of an unknown operator's options would be of no use.
        let Some(operator) = operator else { return Options::default() };
        let problems_before = self.problems.list.len();
        let table = options_table(operator);
        let mut raw = super::defaults(&table);
        match given.map(|entry| (&entry.value.content, entry.line)) {
            None | Some((Content::Null, _)) => {}
            Some((Content::Map(entries), _)) => {
                entries.iter().for_each(|entry| self.option(path, operator, &table, entry, &mut raw))
            }
            Some((Content::Scalar(_) | Content::List(_), line)) => self.error(line, path, "must be a map of options"),
        }
        for (name, key) in table.keys() {
            let here = join(path, name);
            if raw.get(name).is_none() && !self.problems.blames(&here) {
                self.error(line, &here, format!("must be given: {}. {}", key.allowed(), key.meaning));
            }
        }
        let values = table.keys().filter_map(|(name, _)| Some((name.to_owned(), option_of(&raw.get(name)?.value)?)));
        let options: Options = values.collect();
        if self.problems.list.len() == problems_before
            && let Err(message) = (operator.check)(&options)
        {
            self.error(given.map_or(line, |entry| entry.line), path, message);
        }
        options
    }

    fn option(&mut self, path: &str, operator: &Operator, table: &Table, entry: &Entry, raw: &mut RawConfig) {
        let here = join(path, &entry.key);
        match table.key(&entry.key) {
            Some(key) => {
                if let Some(value) = self.value(&here, key, &entry.value) {
                    raw.set(&entry.key, value, Place::Default);
                }
            }
            None if operator.options.is_empty() => {
                self.error(
                    entry.line,
                    &here,
                    format!("{} has no options: its settings are in a section of their own", operator.name),
                );
            }
            None => self.error(entry.line, &here, unknown(table, "", &entry.key)),
        }
    }
}

/// What is wrong with a stage whose operator is not for configurations.
fn internal((position, stage): (usize, &Stage)) -> Option<Flaw> {
    operator(stage).filter(|operator| operator.is_internal)?;
    let message = "is put into graphs by commands alone: no configuration can name it".to_owned();
    Some(Flaw { stage: Some(position), part: Part::Operator, message })
}

/// A part of a stage as a problem shows it.
fn shown(stage: &Stage, part: Part) -> Option<String> {
    match part {
        Part::Name => Some(stage.name.clone()),
        Part::Operator => Some(stage.operator.clone()),
        Part::From => Some(stage.from.join(", ")).filter(|from| !from.is_empty()),
        Part::AcceptLoss => stage.accept_loss.then(|| "true".to_owned()),
    }
}
