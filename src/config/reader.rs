//! Reads a document with a form of its own, beside the configuration: keys and types, every problem with line and path.

use std::collections::BTreeMap;

use super::problem::{Place, Problem, Problems, nearest};
use super::yaml::{Content, Node};

/// Reads a tree, and remembers where each key was.
pub(super) struct Reader {
    pub(super) problems: Problems,
    pub(super) lines: BTreeMap<String, usize>,
}

impl Reader {
    /// Of a file of this name.
    pub(super) fn new(file: &str) -> Self {
        Reader { problems: Problems::new(file), lines: BTreeMap::new() }
    }

    pub(super) fn refuse(&mut self, line: usize, path: &str, message: impl Into<String>) {
        self.problems.push(Problem::error(Place::File(line), path, message));
    }

    /// The line of the key at `path`, or of the nearest one around it.
    pub(super) fn line_of(&self, path: &str) -> usize {
        let around = self.lines.iter().filter(|(known, _)| path.starts_with(known.as_str()));
        around.max_by_key(|(known, _)| known.len()).map_or(0, |(_, line)| *line)
    }

    /// The members of a map, of which all must be known; notes their lines.
    pub(super) fn keys<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
        known: &[&'static str],
    ) -> Option<BTreeMap<&'static str, &'n Node>> {
        let entries = match &node.content {
            Content::Map(entries) => &entries[..],
            Content::Null if !path.is_empty() => &[],
            _ => {
                self.refuse(node.line, path, "must be a map");
                return None;
            }
        };
        let mut keys = BTreeMap::new();
        for entry in entries {
            let here = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
            match known.iter().find(|known| **known == entry.key) {
                Some(known) => {
                    self.lines.insert(here, entry.line);
                    if *known == "description" {
                        self.text("description", &entry.value);
                    }
                    keys.insert(*known, &entry.value);
                }
                None => {
                    let says = match nearest(&entry.key, known.iter().copied()) {
                        Some(near) => format!("unknown key: did you mean {near}?"),
                        None => format!("unknown key: known here are {}", known.join(", ")),
                    };
                    self.refuse(entry.line, &here, says);
                }
            }
        }
        Some(keys)
    }

    pub(super) fn required<T>(
        &mut self,
        keys: &BTreeMap<&str, &Node>,
        key: &str,
        line: usize,
        read: impl FnOnce(&mut Self, &str, &Node) -> Option<T>,
    ) -> Option<T> {
        match keys.get(key) {
            Some(node) => read(self, key, node),
            None => {
                self.refuse(line, key, "must be given");
                None
            }
        }
    }

    /// The scalar `node` is, if `read` takes it; else it must be what `wanted` says.
    pub(super) fn read<T>(&mut self, path: &str, node: &Node, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = if let Content::Scalar(text) = &node.content { Some(text) } else { None };
        let taken = value.and_then(|text| read(text));
        if taken.is_none() {
            let problem = Problem::error(Place::File(node.line), path, format!("must be {wanted}"));
            self.problems.push(Problem { value: value.cloned(), ..problem });
        }
        taken
    }

    pub(super) fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        self.read(path, node, "text", |text| Some(text.to_owned()))
    }

    pub(super) fn flag(&mut self, path: &str, node: &Node) -> Option<bool> {
        self.choice(path, node, &[("true", true), ("false", false)])
    }

    pub(super) fn number(&mut self, path: &str, node: &Node) -> Option<u64> {
        self.read(path, node, "a whole number", |text| text.parse().ok())
    }

    pub(super) fn choice<T: Copy>(&mut self, path: &str, node: &Node, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let found = |text: &str| choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
        self.read(path, node, &format!("one of {}", names.join(", ")), found)
    }

    pub(super) fn choices<T: Copy>(&mut self, path: &str, node: &Node, choices: &[(&str, T)]) -> Vec<T> {
        self.items(path, node).into_iter().filter_map(|node| self.choice(path, node, choices)).collect()
    }

    pub(super) fn texts(&mut self, path: &str, node: &Node) -> Option<Vec<String>> {
        Some(self.items(path, node).into_iter().filter_map(|node| self.text(path, node)).collect())
    }

    /// The values of a list; a scalar is a list of one.
    pub(super) fn items<'n>(&mut self, path: &str, node: &'n Node) -> Vec<&'n Node> {
        match &node.content {
            Content::List(items) => items.iter().collect(),
            Content::Scalar(_) => vec![node],
            Content::Null | Content::Map(_) => {
                self.refuse(node.line, path, "must be a list");
                Vec::new()
            }
        }
    }
}
