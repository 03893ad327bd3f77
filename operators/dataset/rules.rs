//! What a schema must be to be used: every problem at once, each with the path of the key it lies at.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;

use super::{Carrier, FIELDS_MAX, Field, Kind, Level, Scalar, Schema};
use crate::arrow_encode::schema::{fixed_resource_column, fixed_row_column, schema_for};
use crate::kafka_source::topics::Glob;

/// Characters of a field's name; longer ones are mistakes.
const NAME_CHARS_MAX: usize = 256;

/// What is wrong with a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the key in the schema's file.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// The path of a field's key in a file; `key` may be empty.
pub fn field_path(level: &str, field: &str, key: &str) -> String {
    let dot = if key.is_empty() { "" } else { "." };
    format!("{level}.fields.\"{field}\"{dot}{key}")
}

/// Everything that is wrong with `schema`.
pub fn problems(schema: &Schema) -> Vec<Problem> {
    let mut found = Finder { schema, problems: Vec::new() };
    found.check_head();
    found.check_level(Carrier::Row, &schema.attributes);
    found.check_level(Carrier::Resource, &schema.resource);
    found.check_columns();
    found.problems
}

struct Finder<'s> {
    schema: &'s Schema,
    problems: Vec<Problem>,
}

impl Finder<'_> {
    fn refuse(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), message: message.into() });
    }

    fn check_head(&mut self) {
        let name = &*self.schema.name;
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_name = name.bytes().next().is_some_and(legal) && name.bytes().all(|byte| legal(byte) || b"._-".contains(&byte));
        if !is_name || name.len() > 128 {
            self.refuse("dataset", "must match [a-z0-9][a-z0-9._-]{0,127}");
        }
        if self.schema.version == 0 {
            self.refuse("version", "must be at least 1");
        }
        if self.schema.indexes.is_empty() {
            self.refuse("index", "must name at least one index, or a glob over their names");
        }
        for pattern in &self.schema.indexes {
            if let Err(error) = Glob::new(pattern) {
                self.refuse("index", format!("'{pattern}' is no glob over names of indexes: {error}"));
            }
        }
    }

    fn check_level(&mut self, carrier: Carrier, level: &Level) {
        if level.fields.len() > FIELDS_MAX {
            self.refuse(
                format!("{}.fields", carrier.name()),
                format!("has {} fields, at most {FIELDS_MAX} are possible", level.fields.len()),
            );
        }
        for field in &level.fields {
            self.check_field(carrier, field);
        }
        self.check_names(carrier, level);
    }

    /// No two fields may claim one name, as it is or in its normal form.
    fn check_names(&mut self, carrier: Carrier, level: &Level) {
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        let mut normals: BTreeMap<String, &str> = BTreeMap::new();
        let names = level.fields.iter().map(|field| (field, &field.name, "")).collect::<Vec<_>>();
        let aliases = level.fields.iter().flat_map(|field| field.aliases.iter().map(move |alias| (field, alias, "aliases")));
        for (field, name, key) in names.into_iter().chain(aliases) {
            let path = field_path(carrier.name(), &field.name, key);
            if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
                self.refuse(path, format!("a name has 1 to {NAME_CHARS_MAX} characters"));
                continue;
            }
            if let Some(owner) = owners.insert(name, &field.name) {
                self.refuse(path, format!("'{name}' is a name of '{owner}' already"));
                continue;
            }
            let normal = self.schema.names.normal(name).into_owned();
            if let Some(owner) = normals.insert(normal.clone(), &field.name).filter(|owner| *owner != field.name) {
                self.refuse(path, format!("'{name}' and a name of '{owner}' are both '{normal}' once names are in one form"));
            }
        }
    }

    fn check_field(&mut self, carrier: Carrier, field: &Field) {
        let path = |key: &str| field_path(carrier.name(), &field.name, key);
        let kind = field.kind;
        if !matches!(kind, Kind::String | Kind::Bytes) && field.bytes_max.is_some() {
            self.refuse(path("bytes_max"), format!("is for string and bytes, the type is {}", kind.name()));
        }
        if !matches!(kind, Kind::List | Kind::Map) && field.items_max.is_some() {
            self.refuse(path("items_max"), format!("is for list and map, the type is {}", kind.name()));
        }
        for from in field.coerce.iter().filter(|from| !kind.coercible().contains(from)) {
            let possible: Vec<&str> = kind.coercible().iter().map(|kind| kind.name()).collect();
            let possible = if kind == Kind::Timestamp {
                "`formats` says what is read as a timestamp".to_owned()
            } else if possible.is_empty() {
                "nothing can".to_owned()
            } else {
                format!("possible are {}", possible.join(", "))
            };
            self.refuse(path("coerce"), format!("{} cannot become {}: {possible}", from.name(), kind.name()));
        }
        self.check_formats(carrier, field);
        self.check_values(carrier, field);
        self.check_fixed_column(carrier, field);
    }

    fn check_formats(&mut self, carrier: Carrier, field: &Field) {
        let path = field_path(carrier.name(), &field.name, "formats");
        let units = field.formats.iter().filter(|format| format.unit_nanos().is_some()).count();
        if field.kind != Kind::Timestamp && !field.formats.is_empty() {
            self.refuse(path, format!("is for timestamp, the type is {}", field.kind.name()));
        } else if field.kind == Kind::Timestamp && field.formats.is_empty() {
            self.refuse(path, "must have at least one format");
        } else if units > 1 {
            self.refuse(path, "a number cannot be told apart by its unit: give one of unix_s, unix_ms, unix_us, unix_ns");
        }
    }

    fn check_values(&mut self, carrier: Carrier, field: &Field) {
        let path = |key: &str| field_path(carrier.name(), &field.name, key);
        if !field.allowed.is_empty() && !matches!(field.kind, Kind::String | Kind::Int) {
            self.refuse(path("allowed"), format!("is supported for string and int, the type is {}", field.kind.name()));
        }
        for value in field.allowed.iter().filter(|value| value.kind() != field.kind) {
            self.refuse(path("allowed"), format!("{} is no {}", value.canonical_text(), field.kind.name()));
        }
        let Some(default) = &field.default else { return };
        if field.required {
            self.refuse(path("default"), "a field that is required needs no default");
        }
        if default.kind() != field.kind {
            self.refuse(path("default"), format!("{} is no {}", default.canonical_text(), field.kind.name()));
        } else if !field.allowed.is_empty() && !field.allowed.contains(default) {
            self.refuse(path("default"), "is none of the allowed values");
        }
        let bytes = if let Scalar::Text(text) = default { text.len() as u64 } else { 0 };
        if field.bytes_max.is_some_and(|bytes_max| bytes > bytes_max) {
            self.refuse(path("default"), "is longer than bytes_max");
        }
    }

    /// What has a column in every schema must fit it.
    fn check_fixed_column(&mut self, carrier: Carrier, field: &Field) {
        let path = |key: &str| field_path(carrier.name(), &field.name, key);
        let Some((column, data_type)) = self.fixed_column(carrier, &field.name) else { return };
        let kind = if data_type == DataType::Int32 { Kind::Int } else { Kind::String };
        if field.kind != kind {
            self.refuse(path("type"), format!("must be {}: the attribute has the column {column} in every schema", kind.name()));
        }
        if field.column.is_some() {
            self.refuse(path("promote"), format!("the attribute has the column {column} in every schema"));
        }
    }

    fn check_columns(&mut self) {
        let fixed = schema_for(self.schema.signal);
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        let rows = self.schema.attributes.fields.iter().map(|field| (Carrier::Row, field));
        for (carrier, field) in rows.chain(self.schema.resource.fields.iter().map(|field| (Carrier::Resource, field))) {
            let Some(column) = &field.column else { continue };
            if self.fixed_column(carrier, &field.name).is_some() {
                // Told of by `check_fixed_column`.
                continue;
            }
            let path = field_path(carrier.name(), &field.name, "column");
            if field.kind.column_type().is_none() {
                let path = field_path(carrier.name(), &field.name, "promote");
                self.refuse(path, format!("not supported: a {} has no column of its own", field.kind.name()));
            }
            let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if !column.starts_with(|first: char| first.is_ascii_lowercase()) || !column.bytes().all(legal) || column.len() > 63 {
                self.refuse(&path, format!("'{column}' must match [a-z][a-z0-9_]{{0,62}}"));
            }
            if fixed.field_with_name(column).is_ok() {
                self.refuse(&path, format!("{} have a column {column} already", self.schema.signal));
            }
            if let Some(owner) = owners.insert(column, &field.name) {
                self.refuse(&path, format!("'{column}' is the column of '{owner}' already"));
            }
        }
    }

    /// The column that an attribute has in every schema.
    fn fixed_column(&self, carrier: Carrier, name: &str) -> Option<(&'static str, DataType)> {
        match carrier {
            Carrier::Row => fixed_row_column(self.schema.signal, name),
            Carrier::Resource => fixed_resource_column(name),
        }
    }
}
