//! Dataset schemas: what the rows of an index must be like, and what of a schema travels with them.
//!
//! ```text
//! Schema    what a file of the configuration says   -> `normalize` compiles it to a plan and applies it
//!   Stamp   its name, version, hash and columns     -> travels with every batch: log, encoder, Flight, footer, catalog
//! ```
//! Only attributes are ruled: those of rows (spans, log records, data points) and those of resources. All else of OTLP has a fixed
//! schema. `docs/datasets.md` says what each rule means.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use twox_hash::XxHash3_64;

use crate::batch::Signal;

pub mod evolution;
pub mod keys;
pub mod names;
pub mod rules;

/// Fields of one level. One bit each in a mask, and far more than anybody writes by hand.
pub const FIELDS_MAX: usize = 128;

/// A dataset schema. `rules::problems` says whether it can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// The dataset's name, for people, messages and metadata.
    pub name: Arc<str>,
    /// Rises with every change.
    pub version: u32,
    /// Globs over names of indexes, of the form that `kafka_source::topics` reads.
    pub indexes: Vec<String>,
    /// The signal of the rows.
    pub signal: Signal,
    /// How names of attributes are brought into one form.
    pub names: Names,
    /// Rules for attributes of spans, log records and data points.
    pub attributes: Level,
    /// Rules for attributes of resources.
    pub resource: Level,
}

/// How names of attributes are brought into one form. Declared names, and those that have a fixed column, are left as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Upper and lower case.
    pub case: Case,
    /// What stands between words.
    pub separators: Separators,
    /// Names of former semantic conventions become those of the present ones.
    pub semantic_conventions: bool,
}

impl Names {
    /// True where names are changed at all.
    pub fn is_active(&self) -> bool {
        *self != Names::default()
    }
}

/// Upper and lower case of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Case {
    /// As they came.
    #[default]
    Keep,
    /// `OrderID` becomes `orderid`.
    Lower,
    /// `orderId` becomes `order_id`.
    Snake,
}

/// What stands between words of names: each of `.`, `_`, `-`, `/`, `:` and white space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Separators {
    /// As they came.
    #[default]
    Keep,
    /// A dot.
    Dot,
    /// An underscore.
    Underscore,
}

/// The rules for one list of attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// What happens to attributes that no field names.
    pub unknown: Unknown,
    /// The fields.
    pub fields: Vec<Field>,
}

/// What happens to attributes that no field names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unknown {
    /// The message is rejected.
    Reject,
    /// They are dropped.
    Drop,
    /// They are kept.
    #[default]
    Keep,
}

/// The rules for one attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// The type its value has.
    pub kind: Kind,
    /// A row without it is rejected, with its message.
    pub required: bool,
    /// Other names it comes under, best first.
    pub aliases: Vec<String>,
    /// What a row gets that does not have it.
    pub default: Option<Scalar>,
    /// The only values it may have; empty: any.
    pub allowed: Vec<Scalar>,
    /// Bytes of a string or of bytes, at most.
    pub bytes_max: Option<u64>,
    /// Elements of a list or entries of a map, at most.
    pub items_max: Option<u64>,
    /// Which other types of a value are brought into this one.
    pub coerce: Vec<Kind>,
    /// How a timestamp is written.
    pub formats: Vec<TimeFormat>,
    /// The column of its own it has, if it has one.
    pub column: Option<String>,
}

impl Field {
    /// A field without rules but its type.
    pub fn new(name: &str, kind: Kind) -> Self {
        Field {
            name: name.to_owned(),
            kind,
            required: false,
            aliases: Vec::new(),
            default: None,
            allowed: Vec::new(),
            bytes_max: None,
            items_max: None,
            coerce: kind.coercible().to_vec(),
            formats: if kind == Kind::Timestamp { vec![TimeFormat::Rfc3339, TimeFormat::UnixNanos] } else { Vec::new() },
            column: None,
        }
    }
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// UTF-8.
    String,
    /// 64 bits, signed.
    Int,
    /// 64 bits.
    Double,
    /// True or false.
    Bool,
    /// Unix nanoseconds from 1970 to 2262, an int in OTLP.
    Timestamp,
    /// Any bytes.
    Bytes,
    /// Values in order.
    List,
    /// Values by name.
    Map,
}

impl Kind {
    /// All types.
    pub const ALL: [Kind; 8] =
        [Kind::String, Kind::Int, Kind::Double, Kind::Bool, Kind::Timestamp, Kind::Bytes, Kind::List, Kind::Map];

    /// The name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::String => "string",
            Kind::Int => "int",
            Kind::Double => "double",
            Kind::Bool => "bool",
            Kind::Timestamp => "timestamp",
            Kind::Bytes => "bytes",
            Kind::List => "list",
            Kind::Map => "map",
        }
    }

    /// The type of this name.
    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Which other types can be brought into this one at all. Timestamps have formats instead.
    pub const fn coercible(self) -> &'static [Kind] {
        match self {
            Kind::String => &[Kind::Int, Kind::Double, Kind::Bool],
            Kind::Int => &[Kind::String, Kind::Double, Kind::Bool],
            Kind::Double => &[Kind::String, Kind::Int, Kind::Bool],
            Kind::Bool => &[Kind::String, Kind::Int],
            Kind::Bytes => &[Kind::String],
            Kind::Timestamp | Kind::List | Kind::Map => &[],
        }
    }

    /// The code by which the write-ahead log knows the type of a column, and the type of a code. Codes are for ever.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn of_code(code: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(code)).copied()
    }

    /// The type of a column of this; `None` where it can have none.
    pub fn column_type(self) -> Option<DataType> {
        match self {
            Kind::String => Some(DataType::Utf8),
            Kind::Int => Some(DataType::Int64),
            Kind::Double => Some(DataType::Float64),
            Kind::Bool => Some(DataType::Boolean),
            Kind::Timestamp => Some(DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))),
            Kind::Bytes => Some(DataType::Binary),
            Kind::List | Kind::Map => None,
        }
    }
}

/// How a timestamp is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeFormat {
    /// A text like `2026-11-23T12:01:02.5+01:00`, and what common loggers make of it.
    Rfc3339,
    /// A number of seconds since 1970, or its text.
    UnixSeconds,
    /// A number of milliseconds since 1970, or its text.
    UnixMillis,
    /// A number of microseconds since 1970, or its text.
    UnixMicros,
    /// A number of nanoseconds since 1970, or its text.
    UnixNanos,
}

impl TimeFormat {
    /// All formats.
    pub const ALL: [TimeFormat; 5] =
        [TimeFormat::Rfc3339, TimeFormat::UnixSeconds, TimeFormat::UnixMillis, TimeFormat::UnixMicros, TimeFormat::UnixNanos];

    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            TimeFormat::Rfc3339 => "rfc3339",
            TimeFormat::UnixSeconds => "unix_s",
            TimeFormat::UnixMillis => "unix_ms",
            TimeFormat::UnixMicros => "unix_us",
            TimeFormat::UnixNanos => "unix_ns",
        }
    }

    /// Nanoseconds of one unit; `None` for a text.
    pub const fn unit_nanos(self) -> Option<u64> {
        match self {
            TimeFormat::Rfc3339 => None,
            TimeFormat::UnixSeconds => Some(1_000_000_000),
            TimeFormat::UnixMillis => Some(1_000_000),
            TimeFormat::UnixMicros => Some(1_000),
            TimeFormat::UnixNanos => Some(1),
        }
    }
}

/// A value that a schema names.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// A string.
    Text(String),
    /// An int.
    Int(i64),
    /// A double.
    Double(f64),
    /// A bool.
    Bool(bool),
}

/// What of a schema travels with its rows: enough to tell which one they obey, and to give them their columns without the schema's
/// file. So rows from the log look alike whatever the configuration has become meanwhile (ADR 0015).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The dataset's name.
    pub name: Arc<str>,
    /// The schema's version.
    pub version: u32,
    /// The schema's hash.
    pub hash: u64,
    /// The attributes that have a column of their own.
    pub columns: Vec<Column>,
}

/// What attributes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// With spans, log records and data points.
    Row,
    /// With resources.
    Resource,
}

impl Carrier {
    /// The key in files.
    pub const fn name(self) -> &'static str {
        match self {
            Carrier::Row => "attributes",
            Carrier::Resource => "resource",
        }
    }
}

/// An attribute with a column of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Where the attribute is.
    pub carrier: Carrier,
    /// The attribute.
    pub key: String,
    /// The column.
    pub name: String,
    /// The type of both.
    pub kind: Kind,
}

impl Stamp {
    /// The hash as everybody writes it: 16 hexadecimal digits.
    pub fn hash_text(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} version {} ({:016x})", self.name, self.version, self.hash)
    }
}

impl Schema {
    /// What of it travels with its rows.
    pub fn stamp(&self) -> Stamp {
        let column = |carrier: Carrier, field: &Field| {
            let name = field.column.clone()?;
            field.kind.column_type().is_some().then(|| Column { carrier, key: field.name.clone(), name, kind: field.kind })
        };
        let rows = self.attributes.fields.iter().filter_map(|field| column(Carrier::Row, field));
        let resources = self.resource.fields.iter().filter_map(|field| column(Carrier::Resource, field));
        Stamp { name: self.name.clone(), version: self.version, hash: self.hash(), columns: rows.chain(resources).collect() }
    }

    /// xxh3 over `canonical_text`: equal for two files that say the same, whatever their layout.
    pub fn hash(&self) -> u64 {
        XxHash3_64::oneshot(self.canonical_text().as_bytes())
    }

    /// Everything the schema says, in one form: fields in the order of their names, since their order means nothing.
    pub fn canonical_text(&self) -> String {
        let Names { case, separators, semantic_conventions } = self.names;
        let case = match case {
            Case::Keep => "keep",
            Case::Lower => "lower",
            Case::Snake => "snake",
        };
        let separators = match separators {
            Separators::Keep => "keep",
            Separators::Dot => "dot",
            Separators::Underscore => "underscore",
        };
        let mut text = format!("dataset {:?} {} {:?} {}\n", self.name, self.version, self.indexes, self.signal);
        text.push_str(&format!("names {case} {separators} {semantic_conventions}\n"));
        for (place, level) in [("attributes", &self.attributes), ("resource", &self.resource)] {
            text.push_str(&format!("{place} {}\n", level.unknown.name()));
            let mut fields: Vec<&Field> = level.fields.iter().collect();
            fields.sort_by(|left, right| left.name.cmp(&right.name));
            fields.into_iter().for_each(|field| text.push_str(&field.canonical_text()));
        }
        text
    }
}

impl Unknown {
    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Unknown::Keep => "keep",
            Unknown::Drop => "drop",
            Unknown::Reject => "reject",
        }
    }
}

impl Field {
    fn canonical_text(&self) -> String {
        let Field { name, kind, required, aliases, default, allowed, bytes_max, items_max, coerce, formats, column } = self;
        let names = |list: &mut dyn Iterator<Item = &'static str>| {
            let mut names: Vec<&str> = list.collect();
            names.sort_unstable();
            names.join(",")
        };
        let (coerce, formats) =
            (names(&mut coerce.iter().map(|kind| kind.name())), names(&mut formats.iter().map(|format| format.name())));
        let limits = [bytes_max, items_max].map(|limit| limit.map_or("none".to_owned(), |limit| limit.to_string())).join(" ");
        let default = default.as_ref().map_or("none".to_owned(), Scalar::canonical_text);
        let allowed: Vec<String> = allowed.iter().map(Scalar::canonical_text).collect();
        format!(
            "{name:?} {} {required} {aliases:?} {default} [{}] {limits} [{coerce}] [{formats}] {column:?}\n",
            kind.name(),
            allowed.join(", ")
        )
    }
}

impl Scalar {
    /// The type of the value.
    pub fn kind(&self) -> Kind {
        match self {
            Scalar::Text(_) => Kind::String,
            Scalar::Int(_) => Kind::Int,
            Scalar::Double(_) => Kind::Double,
            Scalar::Bool(_) => Kind::Bool,
        }
    }

    /// The value as the hash and messages write it.
    pub fn canonical_text(&self) -> String {
        match self {
            Scalar::Text(text) => format!("{text:?}"),
            Scalar::Int(number) => number.to_string(),
            Scalar::Double(number) => format!("{number:?}"),
            Scalar::Bool(flag) => flag.to_string(),
        }
    }
}
