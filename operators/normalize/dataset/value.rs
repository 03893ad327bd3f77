//! The rules for one value: its type, and what may become it.
//!
//! The table is that of `docs/datasets.md`, which a test holds against it cell by cell. A value is coerced only if it means the same in
//! the other type; all else is refused, never guessed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::batch::Reason;
use crate::dataset::{Field, Kind, Scalar, TimeFormat};
use crate::normalize::failure::{Checked, Failure, quote};
use crate::normalize::json::time::{nanos_of_rfc3339, nanos_of_units};
use crate::otlp::value::Any;
use crate::otlp::wire::{Value, fields};

/// The largest number up to which every int is a double, and every whole double the int it was meant as.
const EXACT_MAX: i64 = 1 << 53;

/// What a value becomes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Judged {
    /// It stays.
    Same,
    Text(String),
    Int(i64),
    Double(f64),
    Bool(bool),
    Bytes(Vec<u8>),
}

/// The rules for one field, compiled.
pub(super) struct Rule {
    pub name: String,
    pub required: bool,
    pub default: Option<Scalar>,
    kind: Kind,
    /// A bit for each type that is brought into this one.
    coerced: u8,
    bytes_max: usize,
    items_max: usize,
    allowed_texts: Vec<Box<[u8]>>,
    allowed_ints: Vec<i64>,
    /// A timestamp may be a text in RFC 3339.
    rfc3339: bool,
    /// What a timestamp's number counts, in nanoseconds.
    unit_nanos: Option<u64>,
    formats: Vec<TimeFormat>,
}

impl Rule {
    pub fn new(field: &Field) -> Self {
        let bounded = |limit: Option<u64>| limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let texts = field.allowed.iter().filter_map(|value| match value {
            Scalar::Text(text) => Some(text.as_bytes().into()),
            _ => None,
        });
        let ints = field.allowed.iter().filter_map(|value| if let Scalar::Int(number) = value { Some(*number) } else { None });
        Rule {
            name: field.name.clone(),
            required: field.required,
            default: field.default.clone(),
            kind: field.kind,
            coerced: field.coerce.iter().fold(0, |mask, kind| mask | 1 << kind.code()),
            bytes_max: bounded(field.bytes_max),
            items_max: bounded(field.items_max),
            allowed_texts: texts.collect(),
            allowed_ints: ints.collect(),
            rfc3339: field.formats.contains(&TimeFormat::Rfc3339),
            unit_nanos: field.formats.iter().find_map(|format| format.unit_nanos()),
            formats: field.formats.clone(),
        }
    }

    /// True if `value` stays as it is. Asked of every value; all else is only asked of messages that are written anew.
    #[inline]
    pub fn conforms(&self, value: &Any<'_>) -> bool {
        match (self.kind, value) {
            (Kind::String, Any::Text(text)) => text.len() <= self.bytes_max && self.allows_text(text),
            (Kind::Int, Any::Int(number)) => self.allows_int(*number),
            (Kind::Double, Any::Double(_)) | (Kind::Bool, Any::Bool(_)) => true,
            (Kind::Timestamp, Any::Int(number)) => self.unit_nanos == Some(1) && *number >= 0,
            (Kind::Bytes, Any::Bytes(bytes)) => bytes.len() <= self.bytes_max,
            (Kind::List, Any::Array(content)) | (Kind::Map, Any::List(content)) => {
                self.items_max == usize::MAX || items(content) <= self.items_max
            }
            _ => false,
        }
    }

    /// What `value`, which is not empty, becomes; or why it cannot be.
    pub fn judge(&self, value: &Any<'_>) -> Checked<Judged> {
        if self.conforms(value) {
            return Ok(Judged::Same);
        }
        match (self.kind, value) {
            (Kind::String, Any::Text(text)) => self.check_text(text).map(|()| Judged::Same),
            (Kind::Int, Any::Int(number)) => self.check_int(*number).map(|()| Judged::Same),
            (Kind::Bytes, Any::Bytes(bytes)) => self.check_bytes(bytes.len()).map(|()| Judged::Same),
            (Kind::List, Any::Array(content)) | (Kind::Map, Any::List(content)) => {
                self.check_items(content).map(|()| Judged::Same)
            }
            (Kind::Timestamp, _) => self.time(value),
            _ => self.coerce(value),
        }
    }

    /// The type the field should have, to stand after "should be".
    pub fn expected(&self) -> String {
        let formats: Vec<&str> = self.formats.iter().map(|format| format.name()).collect();
        match self.kind {
            Kind::Int => "an int".to_owned(),
            Kind::Bytes => "bytes".to_owned(),
            Kind::Timestamp => format!("a timestamp ({})", formats.join(", ")),
            kind => format!("a {}", kind.name()),
        }
    }

    fn coerce(&self, value: &Any<'_>) -> Checked<Judged> {
        let from = kind_of(value).filter(|from| self.kind.coercible().contains(from));
        let Some(from) = from else { return Err(self.wrong_type(value, "")) };
        if self.coerced & 1 << from.code() == 0 {
            return Err(self.wrong_type(value, ", which may not be coerced"));
        }
        match coerced(self.kind, value) {
            Some(Judged::Text(text)) => self.check_text(text.as_bytes()).map(|()| Judged::Text(text)),
            Some(Judged::Int(number)) => self.check_int(number).map(|()| Judged::Int(number)),
            Some(Judged::Bytes(bytes)) => self.check_bytes(bytes.len()).map(|()| Judged::Bytes(bytes)),
            Some(other) => Ok(other),
            None => Err(self.wrong_type(value, "")),
        }
    }

    fn time(&self, value: &Any<'_>) -> Checked<Judged> {
        let nanos = match (value, self.unit_nanos) {
            (Any::Int(number), Some(unit)) => nanos_of_int(*number, unit),
            // A double of nanoseconds is not exact to a quarter of a microsecond: nobody means that.
            (Any::Double(number), Some(unit)) if unit > 1 => {
                nanos_of_units(*number, unit).and_then(|nanos| i64::try_from(nanos).ok())
            }
            (Any::Text(text), unit) => self.time_of_text(text, unit),
            _ => None,
        };
        nanos.map(Judged::Int).ok_or_else(|| self.wrong_type(value, ""))
    }

    fn time_of_text(&self, text: &[u8], unit: Option<u64>) -> Option<i64> {
        let named = if self.rfc3339 { nanos_of_rfc3339(text) } else { None };
        if let Some(nanos) = named {
            return i64::try_from(nanos).ok();
        }
        nanos_of_int(int_of_text(text)?, unit?)
    }

    #[inline]
    fn allows_text(&self, text: &[u8]) -> bool {
        self.allowed_texts.is_empty() || self.allowed_texts.iter().any(|allowed| **allowed == *text)
    }

    #[inline]
    fn allows_int(&self, number: i64) -> bool {
        self.allowed_ints.is_empty() || self.allowed_ints.contains(&number)
    }

    fn check_text(&self, text: &[u8]) -> Checked<()> {
        self.check_bytes(text.len())?;
        if self.allows_text(text) { Ok(()) } else { Err(self.not_allowed(&Any::Text(text))) }
    }

    fn check_int(&self, number: i64) -> Checked<()> {
        if self.allows_int(number) { Ok(()) } else { Err(self.not_allowed(&Any::Int(number))) }
    }

    fn check_bytes(&self, bytes: usize) -> Checked<()> {
        if bytes <= self.bytes_max { Ok(()) } else { Err(self.too_large(bytes, self.bytes_max, "bytes")) }
    }

    fn check_items(&self, content: &[u8]) -> Checked<()> {
        let items = items(content);
        if items <= self.items_max { Ok(()) } else { Err(self.too_large(items, self.items_max, "items")) }
    }

    #[cold]
    fn wrong_type(&self, value: &Any<'_>, why: &str) -> Box<Failure> {
        let message = format_args!("{} should be {}, found {}{why}", self.name, self.expected(), found(value));
        Failure::new(Reason::WrongType, message)
    }

    #[cold]
    fn not_allowed(&self, value: &Any<'_>) -> Box<Failure> {
        Failure::new(Reason::NotAllowed, format_args!("{} has none of its allowed values, found {}", self.name, found(value)))
    }

    #[cold]
    fn too_large(&self, found: usize, limit: usize, unit: &str) -> Box<Failure> {
        Failure::new(Reason::FieldTooLarge, format_args!("{} has {found} {unit}, over its limit of {limit}", self.name))
    }
}

/// The cells of the table that are not the type itself. `None`: the value has no equal in the other type.
fn coerced(kind: Kind, value: &Any<'_>) -> Option<Judged> {
    Some(match (kind, value) {
        (Kind::String, Any::Int(number)) => Judged::Text(number.to_string()),
        // The shortest text that reads back equal. NaN and the infinities have no text that all readers share.
        (Kind::String, Any::Double(number)) if number.is_finite() => {
            Judged::Text(ryu::Buffer::new().format_finite(*number).to_owned())
        }
        (Kind::String, Any::Bool(flag)) => Judged::Text(flag.to_string()),
        (Kind::Int, Any::Text(text)) => Judged::Int(int_of_text(text)?),
        (Kind::Int, Any::Double(number)) if number.fract() == 0.0 && number.abs() <= EXACT_MAX as f64 => {
            Judged::Int(*number as i64)
        }
        (Kind::Int, Any::Bool(flag)) => Judged::Int(i64::from(*flag)),
        (Kind::Double, Any::Text(text)) => Judged::Double(double_of_text(text)?),
        (Kind::Double, Any::Int(number)) if number.unsigned_abs() <= EXACT_MAX as u64 => Judged::Double(*number as f64),
        (Kind::Double, Any::Bool(flag)) => Judged::Double(f64::from(u8::from(*flag))),
        (Kind::Bool, Any::Text(text)) if text.eq_ignore_ascii_case(b"true") => Judged::Bool(true),
        (Kind::Bool, Any::Text(text)) if text.eq_ignore_ascii_case(b"false") => Judged::Bool(false),
        (Kind::Bool, Any::Int(number @ 0..=1)) => Judged::Bool(*number == 1),
        (Kind::Bytes, Any::Text(text)) => Judged::Bytes(STANDARD.decode(text).ok()?),
        _ => return None,
    })
}

/// Digits, perhaps after a minus, without leading zeros: `007` is a name, not a number.
fn int_of_text(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A number as JSON writes it: that leaves out `NaN`, `inf`, `+1`, `.5` and `0x1p3`, each of which some parser takes for a number.
fn double_of_text(text: &[u8]) -> Option<f64> {
    let is_number = matches!(text, [b'-' | b'0'..=b'9', ..]) && matches!(text.last(), Some(b'0'..=b'9'));
    if !is_number {
        return None;
    }
    serde_json::from_slice(text).ok().filter(|number: &f64| number.is_finite())
}

fn nanos_of_int(number: i64, unit: u64) -> Option<i64> {
    if number < 0 { None } else { number.checked_mul(i64::try_from(unit).ok()?) }
}

/// Elements of a list, entries of a map.
fn items(content: &[u8]) -> usize {
    fields(content).flatten().filter(|field| matches!(field, (1, Value::Bytes(_)))).count()
}

fn kind_of(value: &Any<'_>) -> Option<Kind> {
    Some(match value {
        Any::Empty => return None,
        Any::Text(_) => Kind::String,
        Any::Bool(_) => Kind::Bool,
        Any::Int(_) => Kind::Int,
        Any::Double(_) => Kind::Double,
        Any::Bytes(_) => Kind::Bytes,
        Any::Array(_) => Kind::List,
        Any::List(_) => Kind::Map,
    })
}

/// What was found, as type and value, shortened.
#[cold]
pub(super) fn found(value: &Any<'_>) -> String {
    match value {
        Any::Empty => "an empty value".to_owned(),
        Any::Text(text) => format!("the string {}", quote(&String::from_utf8_lossy(text))),
        Any::Bool(flag) => format!("the bool {flag}"),
        Any::Int(number) => format!("the int {number}"),
        Any::Double(number) => format!("the double {number:?}"),
        Any::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Any::Array(_) => "a list".to_owned(),
        Any::List(_) => "a map".to_owned(),
    }
}
