//! The tree of keys, the values given to them, and the macro that declares both together with the typed structs.
//!
//! ```text
//! section! { Wal { /// meaning
//!                  sync_on_write: bool = Key::bool("true"); } }
//!        |
//!        +-- struct Wal { pub sync_on_write: bool }      what the program reads
//!        +-- Table        processing.wal.sync_on_write   what files are checked against, and the reference
//!        +-- RawConfig -> Wal -> RawConfig               filling the struct, and printing it
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::key::{Key, Value};
use super::librdkafka::Properties;
use super::problem::Place;
use super::secret::Secret;

/// All keys, in the order in which they are documented.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    index: BTreeMap<String, usize>,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Dotted path.
    pub path: String,
    /// What it is.
    pub item: Item,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub enum Item {
    /// A map of further keys, with what it is about.
    Section(&'static str),
    /// A key.
    Key(Key),
}

impl Table {
    /// All rows; a section stands before its keys.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What `path` leads to.
    pub fn find(&self, path: &str) -> Option<&Item> {
        self.index.get(path).map(|row| &self.rows[*row].item)
    }

    /// The key at `path`.
    pub fn key(&self, path: &str) -> Option<&Key> {
        match self.find(path) {
            Some(Item::Key(key)) => Some(key),
            _ => None,
        }
    }

    /// The keys with their paths.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.rows.iter().filter_map(|row| match &row.item {
            Item::Key(key) => Some((row.path.as_str(), key)),
            Item::Section(_) => None,
        })
    }

    pub(super) fn add(&mut self, path: String, item: Item) {
        let earlier = self.index.insert(path.clone(), self.rows.len());
        debug_assert!(earlier.is_none(), "{path} is declared twice");
        self.rows.push(Row { path, item });
    }
}

/// The values of all keys before they become the typed configuration, each with its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawConfig {
    values: BTreeMap<String, Given>,
}

/// A value and where it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The value.
    pub value: Value,
    /// Where it was given.
    pub place: Place,
}

impl RawConfig {
    /// Sets a value over whatever was there.
    pub fn set(&mut self, path: impl Into<String>, value: Value, place: Place) {
        self.values.insert(path.into(), Given { value, place });
    }

    /// The value of `path`.
    pub fn get(&self, path: &str) -> Option<&Given> {
        self.values.get(path)
    }

    /// Puts `directory` in the place of `{data_directory}` in every path.
    pub(super) fn resolve_paths(&mut self, directory: &std::path::Path) {
        let resolve = |path: &mut PathBuf| {
            if let Ok(rest) = path.strip_prefix(DATA_DIRECTORY) {
                *path = directory.join(rest);
            }
        };
        for given in self.values.values_mut() {
            match &mut given.value {
                Value::Path(path) => resolve(path),
                Value::Entries(entries) => entries.iter_mut().for_each(|entry| entry.resolve_paths(directory)),
                Value::Graph(graph) => graph.stages.iter_mut().flat_map(|stage| stage.options.paths_mut()).for_each(resolve),
                _ => {}
            }
        }
    }
}

/// Stands for `node.data_directory` as the first part of a path.
pub(super) const DATA_DIRECTORY: &str = "{data_directory}";

/// A struct that `section!` declared.
pub trait Section: Sized {
    /// What the section is about.
    const ABOUT: &'static str;
    /// Adds the section's keys under `path` to the table.
    fn describe(path: &str, table: &mut Table);
    /// Takes the section's values out of a complete `RawConfig`.
    fn fill(path: &str, raw: &RawConfig) -> Self;
    /// Puts the section's values back.
    fn spill(&self, path: &str, raw: &mut RawConfig);
}

/// The type of a field that holds a key's value.
pub trait Field: Sized {
    /// The field of a value; `None` where the key's kind is not this field's.
    fn from_value(value: &Value) -> Option<Self>;
    /// The value of a field.
    fn to_value(&self) -> Value;
}

/// The field for the value of `path`.
///
/// # Panics
/// Where the table gives a key a kind or range that its field cannot hold. A test reads every key's default and both ends of its
/// range.
pub(super) fn field<T: Field>(path: &str, raw: &RawConfig) -> T {
    let value = raw.get(path).and_then(|given| T::from_value(&given.value));
    value.unwrap_or_else(|| panic!("{path}: the table and the struct disagree about its type"))
}

/// The table of one section alone, as the entries of a list need it.
pub(super) fn table_of<S: Section>() -> Table {
    let mut table = Table::default();
    S::describe("", &mut table);
    table
}

/// `name` under `path`; a raw identifier without its prefix, as keys may be words of Rust.
pub(super) fn join(path: &str, name: &str) -> String {
    let name = name.strip_prefix("r#").unwrap_or(name);
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Declares a section: `name: Type = Key` for a key, `name: Type` for a section inside.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $meaning:literal])+ $field:ident : $type:ty $(= $key:expr)? ;)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[doc = $meaning])+ pub $field: $type,)+ }

        impl $crate::config::table::Section for $name {
            const ABOUT: &'static str = concat!($($about),+);

            fn describe(path: &str, table: &mut $crate::config::table::Table) {
                $(
                    let here = $crate::config::table::join(path, stringify!($field));
                    section!(@describe here, table, concat!($($meaning),+), $type $(, $key)?);
                )+
            }

            fn fill(path: &str, raw: &$crate::config::table::RawConfig) -> Self {
                Self { $($field: {
                    let here = $crate::config::table::join(path, stringify!($field));
                    section!(@fill here, raw, $type $(, $key)?)
                },)+ }
            }

            fn spill(&self, path: &str, raw: &mut $crate::config::table::RawConfig) {
                $(
                    let here = $crate::config::table::join(path, stringify!($field));
                    section!(@spill here, raw, self.$field, $type $(, $key)?);
                )+
            }
        }
    };
    (@describe $path:ident, $table:ident, $meaning:expr, $type:ty, $key:expr) => {
        let mut key: $crate::config::key::Key = $key;
        key.meaning = $meaning.trim();
        $table.add($path, $crate::config::table::Item::Key(key));
    };
    (@describe $path:ident, $table:ident, $meaning:expr, $type:ty) => {
        let about = <$type as $crate::config::table::Section>::ABOUT.trim();
        $table.add($path.clone(), $crate::config::table::Item::Section(about));
        <$type as $crate::config::table::Section>::describe(&$path, $table);
    };
    (@fill $path:ident, $raw:ident, $type:ty, $key:expr) => { $crate::config::table::field::<$type>(&$path, $raw) };
    (@fill $path:ident, $raw:ident, $type:ty) => { <$type as $crate::config::table::Section>::fill(&$path, $raw) };
    (@spill $path:ident, $raw:ident, $value:expr, $type:ty, $key:expr) => {
        $raw.set($path, $crate::config::table::Field::to_value(&$value), $crate::config::problem::Place::Default);
    };
    (@spill $path:ident, $raw:ident, $value:expr, $type:ty) => {
        $crate::config::table::Section::spill(&$value, &$path, $raw);
    };
}

/// Declares a field of a few names: `Variant = "name"`.
macro_rules! choices {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $meaning:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $meaning])+ $variant,)+ }

        impl $name {
            /// All names, as they stand in a file.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The name as it stands in a file.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl $crate::config::table::Field for $name {
            fn from_value(value: &$crate::config::key::Value) -> Option<Self> {
                let $crate::config::key::Value::Text(text) = value else { return None };
                match text.as_str() { $($text => Some(Self::$variant),)+ _ => None }
            }

            fn to_value(&self) -> $crate::config::key::Value {
                $crate::config::key::Value::Text(self.name().to_owned())
            }
        }
    };
}

pub(super) use {choices, section};

/// Fields that are the inside of one variant.
macro_rules! fields {
    ($($type:ty = $variant:ident;)+) => { $(
        impl Field for $type {
            fn from_value(value: &Value) -> Option<Self> {
                if let Value::$variant(inside) = value { Some(inside.clone()) } else { None }
            }

            fn to_value(&self) -> Value {
                Value::$variant(self.clone())
            }
        }
    )+ };
}

/// Fields that are narrower than `u64`.
macro_rules! numbers {
    ($($type:ty)+) => { $(
        impl Field for $type {
            fn from_value(value: &Value) -> Option<Self> {
                if let Value::Number(number) = value { <$type>::try_from(*number).ok() } else { None }
            }

            fn to_value(&self) -> Value {
                Value::Number(*self as u64)
            }
        }
    )+ };
}

fields! {
    bool = Bool;
    u64 = Number;
    String = Text;
    PathBuf = Path;
    Secret = Secret;
    Vec<String> = List;
    Properties = Map;
}

numbers! { u16 u32 usize }

impl<T: Field> Field for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        if *value == Value::Unset { Some(None) } else { T::from_value(value).map(Some) }
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Unset, T::to_value)
    }
}

impl<S: Section> Field for Vec<S> {
    fn from_value(value: &Value) -> Option<Self> {
        let Value::Entries(entries) = value else { return None };
        Some(entries.iter().map(|entry| S::fill("", entry)).collect())
    }

    fn to_value(&self) -> Value {
        let spilled = self.iter().map(|section| {
            let mut raw = RawConfig::default();
            section.spill("", &mut raw);
            raw
        });
        Value::Entries(spilled.collect())
    }
}
