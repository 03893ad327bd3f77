//! Which changes of a schema leave what was written and what is sent usable: add an optional field or a column, widen, loosen.
//!
//! The old rows stay as they are, and producers change later than schemas. So a change is allowed if whatever the old version accepted
//! the new one accepts, under the same names, with types that hold the old values.

use std::collections::BTreeMap;

use super::{Field, Kind, Level, Scalar, Schema};

#[cfg(test)]
mod tests;

/// A change that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The dataset.
    pub dataset: String,
    /// Where the change lies, as the path of a key; empty for the dataset as a whole.
    pub path: String,
    /// What was changed and why that is not allowed.
    pub message: String,
}

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dot = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{dot}{}: {}", self.dataset, self.path, self.message)
    }
}

/// All changes from `old` to `new` that are not allowed. Datasets are told by their names.
pub fn forbidden(old: &[Schema], new: &[Schema]) -> Vec<Forbidden> {
    let mut found = Vec::new();
    for before in old {
        match new.iter().find(|after| after.name == before.name) {
            Some(after) => Comparison { dataset: before.name.to_string(), found: &mut found }.compare(before, after),
            None => found.push(Forbidden {
                dataset: before.name.to_string(),
                path: String::new(),
                message: "the dataset was removed: its rows would lose their columns and rules".to_owned(),
            }),
        }
    }
    found
}

struct Comparison<'f> {
    dataset: String,
    found: &'f mut Vec<Forbidden>,
}

impl Comparison<'_> {
    fn forbid(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.found.push(Forbidden { dataset: self.dataset.clone(), path: path.into(), message: message.into() });
    }

    fn compare(&mut self, old: &Schema, new: &Schema) {
        if new.version < old.version {
            self.forbid("version", format!("went back from {} to {}", old.version, new.version));
        } else if new.version == old.version && new.hash() != old.hash() {
            self.forbid("version", format!("is {} still, but the schema was changed: raise it", old.version));
        }
        if new.signal != old.signal {
            self.forbid("signal", format!("was changed from {} to {}", old.signal, new.signal));
        }
        for index in old.indexes.iter().filter(|index| !new.indexes.contains(index)) {
            self.forbid("index", format!("'{index}' was removed: its rows would lose their columns and rules"));
        }
        if new.names != old.names {
            self.forbid("names", "was changed: attributes would go on under other names");
        }
        self.compare_levels("attributes", &old.attributes, &new.attributes);
        self.compare_levels("resource", &old.resource, &new.resource);
    }

    fn compare_levels(&mut self, place: &str, old: &Level, new: &Level) {
        if new.unknown < old.unknown {
            let message = format!("was tightened from {} to {}", old.unknown.name(), new.unknown.name());
            self.forbid(format!("{place}.unknown"), message);
        }
        let after: BTreeMap<&str, &Field> = new.fields.iter().map(|field| (field.name.as_str(), field)).collect();
        for before in &old.fields {
            match after.get(before.name.as_str()) {
                Some(after) => self.compare_fields(place, before, after),
                None => self.forbid(super::rules::field_path(place, &before.name, ""), "the field was removed"),
            }
        }
        for added in new.fields.iter().filter(|field| old.fields.iter().all(|before| before.name != field.name)) {
            if added.required {
                let path = super::rules::field_path(place, &added.name, "required");
                self.forbid(path, "a new field cannot be required: what producers send today lacks it");
            }
        }
    }

    fn compare_fields(&mut self, place: &str, old: &Field, new: &Field) {
        let path = |key: &str| super::rules::field_path(place, &old.name, key);
        let is_widened = old.kind == Kind::Int && new.kind == Kind::Double;
        if new.kind != old.kind && !is_widened {
            let message = format!("{} was changed to {}; only int may become double", old.kind.name(), new.kind.name());
            self.forbid(path("type"), message);
        }
        if new.required && !old.required {
            self.forbid(path("required"), "was added: rows without the field are accepted today");
        }
        for alias in old.aliases.iter().filter(|alias| !new.aliases.contains(alias) && **alias != new.name) {
            self.forbid(path("aliases"), format!("'{alias}' was removed"));
        }
        let is_same_default = match (&old.default, &new.default) {
            (Some(Scalar::Int(old)), Some(Scalar::Double(new))) if is_widened => *old as f64 == *new,
            (None, _) => true,
            (old, new) => old == new,
        };
        if !is_same_default {
            self.forbid(path("default"), "was changed: rows without the field would mean something else than before");
        }
        if old.allowed.is_empty() && !new.allowed.is_empty() {
            self.forbid(path("allowed"), "was added: other values are accepted today");
        }
        for value in old.allowed.iter().filter(|value| !new.allowed.is_empty() && !new.allowed.contains(value)) {
            self.forbid(path("allowed"), format!("{} was removed", value.canonical_text()));
        }
        for (key, old, new) in [("bytes_max", old.bytes_max, new.bytes_max), ("items_max", old.items_max, new.items_max)] {
            if new.is_some_and(|new| old.is_none_or(|old| new < old)) {
                self.forbid(path(key), "was lowered");
            }
        }
        // What the new type is need not be brought into it.
        for from in old.coerce.iter().filter(|from| !new.coerce.contains(from) && **from != new.kind) {
            self.forbid(path("coerce"), format!("{} was removed", from.name()));
        }
        if is_widened && !new.coerce.contains(&Kind::Int) {
            self.forbid(path("coerce"), "must have int: producers go on sending it");
        }
        for format in old.formats.iter().filter(|format| !new.formats.contains(format)) {
            self.forbid(path("formats"), format!("{} was removed", format.name()));
        }
        if old.column.is_some() && new.column != old.column {
            self.forbid(path("promote"), "the column was removed or renamed");
        }
    }
}
