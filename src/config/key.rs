//! What one key is: its type and range, its default, its meaning. And how text becomes its value.
//!
//! A value is read as its key wants it, never as YAML would guess it: `group_id: 007` is text, `enabled: "true"` (as `${VAR}`
//! gives it) is a bool. So quotes never matter, and a default, a line of the file and a `--set` all pass the same checks.

use std::path::PathBuf;

use openwit_graphs::wiring::Description;

use super::librdkafka::Properties;
use super::secret::Secret;
use super::table::{RawConfig, Table};

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its type and range.
    pub kind: Kind,
    /// Its default as it would be written in a file; `null` for a key that may be absent.
    pub default: &'static str,
    /// What the reference shows instead of the default, for a key that has none.
    pub example: Option<&'static str>,
    /// Its unit, in words.
    pub unit: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What goes wrong when it is too small.
    pub too_small: &'static str,
    /// What goes wrong when it is too large.
    pub too_large: &'static str,
    /// Whether it already has its effect.
    pub status: Status,
    /// True where `null` is a value: nothing given.
    pub optional: bool,
}

/// Whether a key has its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has.
    Active,
    /// Only its default is accepted; the text says what is missing.
    NotYet(&'static str),
}

/// A rule for text.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What the text must be, to stand after "must be".
    pub says: &'static str,
    /// Whether it is.
    pub holds: fn(&str) -> bool,
}

/// The type of a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number in a range, both ends allowed.
    Number {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// A number of bytes, also written like `64MiB`.
    Bytes {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// Text that keeps a rule.
    Text(Rule),
    /// One of a few names; upper and lower case do not matter.
    Choice {
        /// The names.
        names: &'static [&'static str],
        /// Names that are understood but have no effect yet, with the reason.
        not_yet: &'static [(&'static str, &'static str)],
    },
    /// A list of texts; also written as one text with commas.
    List(Rule),
    /// Names and texts, of which the function refuses some by saying why.
    Map(fn(&str, &str) -> Result<(), String>),
    /// A file or folder; `{data_directory}` at its beginning stands for `node.data_directory`.
    Path,
    /// Text that is never shown.
    Secret,
    /// A list of maps, each with the keys of the table.
    Entries(fn() -> Table),
    /// One of the names of the shipped graphs, or a map of stages.
    Graph(&'static [&'static str]),
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing given, where that is allowed.
    Unset,
    /// Of `Kind::Bool`.
    Bool(bool),
    /// Of `Kind::Number` and `Kind::Bytes`.
    Number(u64),
    /// Of `Kind::Text` and `Kind::Choice`, the latter in its canonical form.
    Text(String),
    /// Of `Kind::Path`.
    Path(PathBuf),
    /// Of `Kind::Secret`.
    Secret(Secret),
    /// Of `Kind::List`.
    List(Vec<String>),
    /// Of `Kind::Map`.
    Map(Properties),
    /// Of `Kind::Entries`.
    Entries(Vec<RawConfig>),
    /// Of `Kind::Graph`, where stages are given; a name is a text.
    Graph(Description),
}

impl Key {
    const fn of(kind: Kind, default: &'static str) -> Self {
        Self {
            kind,
            default,
            example: None,
            unit: "",
            meaning: "",
            too_small: "",
            too_large: "",
            status: Status::Active,
            optional: false,
        }
    }

    /// A `true` or `false`.
    pub const fn bool(default: &'static str) -> Self {
        Self::of(Kind::Bool, default)
    }

    /// A number of `unit`.
    pub const fn number(default: &'static str, min: u64, max: u64, unit: &'static str) -> Self {
        Self { unit, ..Self::of(Kind::Number { min, max }, default) }
    }

    /// A number of bytes.
    pub const fn bytes(default: &'static str, min: u64, max: u64) -> Self {
        Self { unit: "bytes", ..Self::of(Kind::Bytes { min, max }, default) }
    }

    /// Text that keeps `rule`.
    pub const fn text(default: &'static str, rule: Rule) -> Self {
        Self::of(Kind::Text(rule), default)
    }

    /// One of `names`.
    pub const fn choice(default: &'static str, names: &'static [&'static str]) -> Self {
        Self::of(Kind::Choice { names, not_yet: &[] }, default)
    }

    /// One of `names`, or one that is not supported yet.
    pub const fn choice_with(
        default: &'static str,
        names: &'static [&'static str],
        not_yet: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self::of(Kind::Choice { names, not_yet }, default)
    }

    /// A list of texts that keep `rule`.
    pub const fn list(default: &'static str, rule: Rule) -> Self {
        Self::of(Kind::List(rule), default)
    }

    /// Names and texts.
    pub const fn map(check: fn(&str, &str) -> Result<(), String>) -> Self {
        Self::of(Kind::Map(check), "{}")
    }

    /// A file or folder.
    pub const fn path(default: &'static str) -> Self {
        Self::of(Kind::Path, default)
    }

    /// Text that is never shown; absent by default.
    pub const fn secret() -> Self {
        Self::of(Kind::Secret, "null").or_null()
    }

    /// A list of maps.
    pub const fn entries(table: fn() -> Table) -> Self {
        Self::of(Kind::Entries(table), "[]")
    }

    /// One of the shipped graphs, or stages.
    pub const fn graph(default: &'static str, names: &'static [&'static str]) -> Self {
        Self::of(Kind::Graph(names), default)
    }

    /// May be absent, written `null`.
    pub const fn or_null(mut self) -> Self {
        self.optional = true;
        self
    }

    /// What the reference shows in place of the default.
    pub const fn example(mut self, example: &'static str) -> Self {
        self.example = Some(example);
        self
    }

    /// What goes wrong when it is too small.
    pub const fn too_small(mut self, effect: &'static str) -> Self {
        self.too_small = effect;
        self
    }

    /// What goes wrong when it is too large.
    pub const fn too_large(mut self, effect: &'static str) -> Self {
        self.too_large = effect;
        self
    }

    /// Only the default is accepted until `what` is there.
    pub const fn not_yet(mut self, what: &'static str) -> Self {
        self.status = Status::NotYet(what);
        self
    }

    /// True where a value must never be shown.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }

    /// What is allowed, to stand after "must be".
    pub fn allowed(&self) -> String {
        let allowed = match self.kind {
            Kind::Bool => "true or false".to_owned(),
            Kind::Number { min, max } => format!("a whole number, {min} to {max} {}", self.unit).trim_end().to_owned(),
            Kind::Bytes { min, max } => format!("a size like 64MiB, {} to {}", bytes_text(min), bytes_text(max)),
            Kind::Text(rule) => rule.says.to_owned(),
            Kind::Choice { names, .. } => format!("one of {}", names.join(", ")),
            Kind::List(rule) => format!("a list, each {}", rule.says),
            Kind::Map(_) => "a map of names and texts".to_owned(),
            Kind::Path => "a path".to_owned(),
            Kind::Secret => "text".to_owned(),
            Kind::Entries(_) => "a list of maps".to_owned(),
            Kind::Graph(names) => format!("one of {}, or a map of stages (docs/graphs.md)", names.join(", ")),
        };
        if self.optional { format!("{allowed}, or null") } else { allowed }
    }

    /// The value that one scalar stands for, or why it is none.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let refused = || format!("must be {}", self.allowed());
        let in_range = |number: Option<u64>, min, max| number.filter(|number| (min..=max).contains(number)).map(Value::Number);
        match self.kind {
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(refused()),
            },
            Kind::Number { min, max } => in_range(whole_number(text), min, max).ok_or_else(refused),
            Kind::Bytes { min, max } => in_range(bytes_number(text), min, max).ok_or_else(refused),
            Kind::Text(rule) if (rule.holds)(text) => Ok(Value::Text(text.to_owned())),
            Kind::Choice { names, not_yet } => choose(text, names, not_yet).unwrap_or_else(|| Err(refused())),
            Kind::Graph(names) => choose(text, names, &[]).unwrap_or_else(|| Err(refused())),
            Kind::List(rule) => {
                let items: Vec<String> =
                    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect();
                if items.iter().all(|item| (rule.holds)(item)) { Ok(Value::List(items)) } else { Err(refused()) }
            }
            Kind::Path if !text.is_empty() => Ok(Value::Path(PathBuf::from(text))),
            Kind::Secret => Ok(Value::Secret(Secret::new(text))),
            Kind::Text(_) | Kind::Path | Kind::Map(_) | Kind::Entries(_) => Err(refused()),
        }
    }
}

fn choose(text: &str, names: &[&str], not_yet: &[(&str, &str)]) -> Option<Result<Value, String>> {
    let named = names.iter().find(|name| name.eq_ignore_ascii_case(text)).map(|name| Ok(Value::Text((*name).to_owned())));
    let pending = || not_yet.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    named.or_else(|| pending().map(|(_, why)| Err(format!("not supported yet: {why}; use one of {}", names.join(", ")))))
}

/// Digits only: `1_000`, `1e3`, `0x10`, `+1` each mean something else in some dialect of YAML.
fn whole_number(text: &str) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_digits { text.parse().ok() } else { None }
}

const BYTE_UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// `64MiB`, `64 MiB`, `65536`. Not `64MB`: half of its readers take it for 64,000,000, the other half for 67,108,864.
pub(super) fn bytes_number(text: &str) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit = unit.trim();
    let shift = if unit.is_empty() { 0 } else { BYTE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1 };
    whole_number(digits)?.checked_mul(1 << shift)
}

/// `number` of bytes in the largest unit that needs no fraction.
pub(super) fn bytes_text(number: u64) -> String {
    let unit = BYTE_UNITS.iter().find(|(_, shift)| *shift > 0 && number > 0 && number.is_multiple_of(1 << shift));
    unit.map_or(number.to_string(), |(name, shift)| format!("{}{name}", number >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_binary_units_only() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("64MiB", Some(64 << 20)),
            ("64 mib", Some(64 << 20)),
            ("3KiB", Some(3 << 10)),
            ("7B", Some(7)),
            ("2TiB", Some(2 << 40)),
            ("64MB", None),
            ("1.5GiB", None),
            ("-1", None),
            ("MiB", None),
            ("", None),
            ("99999999TiB", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(bytes_number(text), expected, "{text}");
        }
        for number in [0, 1, 1023, 1024, 1536, 64 << 20, u64::MAX, 1 << 63] {
            assert_eq!(bytes_number(&bytes_text(number)), Some(number));
        }
    }

    #[test]
    fn numbers_are_digits_within_their_range() {
        let key = Key::number("5", 1, 10, "ms");
        assert_eq!(key.read("10"), Ok(Value::Number(10)));
        for text in ["0", "11", "1e1", "0x1", "+1", "-1", "5ms", "1_0", "", " 5", "٣"] {
            assert_eq!(key.read(text), Err("must be a whole number, 1 to 10 ms".to_owned()), "{text}");
        }
    }
}
