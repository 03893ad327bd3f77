//! What an operator can be told where a graph names it: declared by the operator, read and checked by the configuration.
//!
//! The operators of the shipped graphs have sections of the configuration to themselves and declare nothing here.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// One option of an operator.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// Its name, in snake_case.
    pub name: &'static str,
    /// Its type and range.
    pub kind: Kind,
    /// Its default as it would be written in a file; `None` where it must be given.
    pub default: Option<&'static str>,
    /// What it means, as a sentence.
    pub meaning: &'static str,
}

/// The type of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number in a range, both ends allowed, and its unit.
    Number(u64, u64, &'static str),
    /// A number of bytes in a range, also written like `64MiB`.
    Bytes(u64, u64),
    /// Any text that is not empty.
    Text,
    /// One of a few names.
    Choice(&'static [&'static str]),
    /// A list of texts that are not empty.
    List,
    /// A file or folder.
    Path,
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of `Kind::Bool`.
    Bool(bool),
    /// Of `Kind::Number` and `Kind::Bytes`.
    Number(u64),
    /// Of `Kind::Text` and `Kind::Choice`.
    Text(String),
    /// Of `Kind::List`.
    List(Vec<String>),
    /// Of `Kind::Path`.
    Path(PathBuf),
}

/// The values of all options that an operator declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    values: BTreeMap<String, Value>,
}

/// Readers of one type of option each.
///
/// # Panics
/// Where the operator has not declared an option of this name and type: the configuration has filled in and checked all that are declared.
impl Options {
    /// A flag.
    pub fn flag(&self, name: &str) -> bool {
        self.of(name, |value| if let Value::Bool(value) = value { Some(*value) } else { None })
    }

    /// A number, or a number of bytes.
    pub fn number(&self, name: &str) -> u64 {
        self.of(name, |value| if let Value::Number(value) = value { Some(*value) } else { None })
    }

    /// A text, or one of a few names.
    pub fn text(&self, name: &str) -> String {
        self.of(name, |value| if let Value::Text(value) = value { Some(value.clone()) } else { None })
    }

    /// A list.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.of(name, |value| if let Value::List(value) = value { Some(value.clone()) } else { None })
    }

    /// A path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.of(name, |value| if let Value::Path(value) = value { Some(value.clone()) } else { None })
    }

    fn of<T>(&self, name: &str, inside: impl Fn(&Value) -> Option<T>) -> T {
        self.values.get(name).and_then(inside).unwrap_or_else(|| panic!("option {name} is not declared, or of another type"))
    }
}

impl FromIterator<(String, Value)> for Options {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(values: I) -> Self {
        Options { values: values.into_iter().collect() }
    }
}

impl Options {
    /// All values with their names, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Gives an option another value.
    pub fn set(&mut self, name: &str, value: Value) {
        self.values.insert(name.to_owned(), value);
    }

    /// All paths among them.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.values.values_mut().filter_map(|value| if let Value::Path(path) = value { Some(path) } else { None })
    }
}
