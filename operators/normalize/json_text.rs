//! What both JSON formats share: the text, its errors, and JSON values as OTLP values.
//!
//! Parsing streams through serde_json into protobuf: no tree is built. serde_json ends recursion at 128 levels, so the stack is bounded.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::batch::Reason;
use crate::otlp::wire::{Value, fields};

use super::failure::{Checked, Failure};
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_header, put_number, varint_len};

/// The text of a payload, less a byte order mark and the white space around it.
pub(super) fn text_of(payload: &[u8]) -> Checked<&str> {
    let payload = without_mark(payload);
    let text = simdutf8::basic::from_utf8(payload).map_err(|_| Failure::new(Reason::InvalidUtf8, "JSON is not UTF-8"))?;
    match text.trim_ascii() {
        "" => Err(Failure::new(Reason::Empty, "payload has nothing but white space")),
        text => Ok(text),
    }
}

/// `text` if it may be a JSON object.
#[inline]
pub(super) fn object(text: &str) -> Checked<&str> {
    if text.starts_with('{') { Ok(text) } else { Err(Failure::new(Reason::Malformed, "JSON is not an object")) }
}

/// RFC 8259 lets a reader pass over a byte order mark; some producers on Windows write one.
pub(super) fn without_mark(payload: &[u8]) -> &[u8] {
    payload.strip_prefix(b"\xef\xbb\xbf").unwrap_or(payload)
}

/// Where a visitor leaves its failure: serde's errors carry text only.
pub(super) type Left = Option<Box<Failure>>;

/// Leaves `failure` and gives the error that ends the parse.
#[cold]
pub(super) fn leave<E: serde::de::Error>(left: &mut Left, failure: Box<Failure>) -> E {
    left.get_or_insert(failure);
    E::custom("refused")
}

/// The failure behind a parse that ended: the one left, else what serde_json says.
#[cold]
pub(super) fn failure_of(error: &serde_json::Error, left: Left) -> Box<Failure> {
    if let Some(failure) = left {
        return failure;
    }
    let text = error.to_string();
    let reason = match error.classify() {
        serde_json::error::Category::Data => Reason::InvalidField,
        // serde_json has no kind for it.
        _ if text.contains("recursion limit") => Reason::TooDeep,
        _ => Reason::Malformed,
    };
    Failure::new(reason, format_args!("JSON: {text}"))
}

/// A key, borrowed unless it has escapes.
pub(super) struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// A value that is kept until its meaning is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Held<'de> {
    Bool(bool),
    Integer(i64),
    /// Over `i64::MAX`: OTLP wants such an integer as its digits.
    Unsigned(u64),
    Double(f64),
    Text(Cow<'de, str>),
    /// An array or an object, as the content of an `AnyValue`.
    Nested(Vec<u8>),
}

impl<'a> Held<'a> {
    /// Reads back what `put` or `AnyValue` wrote; `None` for an empty value.
    pub fn of_any_value(content: &'a [u8]) -> Option<Self> {
        let (number, value) = fields(content).next()?.ok()?;
        Some(match (number, value) {
            (1, Value::Bytes(text)) => Held::Text(String::from_utf8_lossy(text)),
            (2, Value::Varint(value)) => Held::Bool(value != 0),
            (3, Value::Varint(value)) => Held::Integer(value as i64),
            (4, Value::Fixed64(bits)) => Held::Double(f64::from_bits(bits)),
            _ => Held::Nested(content.to_vec()),
        })
    }

    /// The members of an object, as key and content of its value; none for anything else.
    pub fn members(&self) -> impl Iterator<Item = (Cow<'_, str>, &[u8])> {
        self.listed(6).map(|member| {
            let field = |wanted: u32| fields(member).flatten().find_map(|field| bytes_of(field, wanted)).unwrap_or_default();
            (String::from_utf8_lossy(field(1)), field(2))
        })
    }

    /// The contents of an array's values; none for anything else.
    pub fn elements(&self) -> impl Iterator<Item = &[u8]> {
        self.listed(5)
    }

    fn listed(&self, kind: u32) -> impl Iterator<Item = &[u8]> {
        let nested: &[u8] = if let Held::Nested(bytes) = self { bytes } else { &[] };
        let lists = fields(nested).flatten().filter_map(move |field| bytes_of(field, kind));
        lists.flat_map(|list| fields(list).flatten().filter_map(|field| bytes_of(field, 1)))
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Held::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Appends the content of an `AnyValue`.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Held::Bool(value) => put_number(out, 2, u64::from(*value)),
            Held::Integer(value) => put_number(out, 3, *value as u64),
            Held::Unsigned(value) => put_bytes(out, 1, itoa::Buffer::new().format(*value).as_bytes()),
            Held::Double(value) => put_fixed64(out, 4, value.to_bits()),
            Held::Text(text) => put_bytes(out, 1, text.as_bytes()),
            Held::Nested(bytes) => out.extend_from_slice(bytes),
        }
    }
}

fn bytes_of((number, value): (u32, Value<'_>), wanted: u32) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) if number == wanted => Some(bytes),
        _ => None,
    }
}

/// Appends a `KeyValue` as `field`.
pub(super) fn put_attribute(out: &mut Vec<u8>, field: u32, key: &str, value: &Held<'_>) {
    if let Held::Text(text) = value {
        return put_text_attribute(out, field, key, text);
    }
    let attribute = open(out, field);
    put_bytes(out, 1, key.as_bytes());
    let any_value = open(out, 2);
    value.put(out);
    close(out, any_value);
    close(out, attribute);
}

/// As `put_attribute` for text: the lengths are known, so nothing moves.
pub(super) fn put_text_attribute(out: &mut Vec<u8>, field: u32, key: &str, text: &str) {
    let field_len = |len: usize| 1 + varint_len(len as u64) + len;
    let any_value = field_len(text.len());
    put_header(out, field, field_len(key.len()) + field_len(any_value));
    put_bytes(out, 1, key.as_bytes());
    put_header(out, 2, any_value);
    put_bytes(out, 1, text.as_bytes());
}

/// Reads any value as a `Held`; `None` for null.
pub(super) struct Hold<'w> {
    pub depth_max: u32,
    pub left: &'w mut Left,
    /// Where the members of an object go, and as which field, instead of being held: then the result is `None` too.
    pub lift: Option<(&'w mut Vec<u8>, u32)>,
}

impl<'de> DeserializeSeed<'de> for Hold<'_> {
    type Value = Option<Held<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Hold<'_> {
    type Value = Option<Held<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(Held::Bool(value)))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(Held::Integer(value)))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(i64::try_from(value).map_or(Held::Unsigned(value), Held::Integer)))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(Held::Double(value)))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Held::Text(Cow::Borrowed(text))))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Held::Text(Cow::Owned(text.to_owned()))))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        let mut out = Vec::new();
        AnyValue { out: &mut out, depth_left: self.depth_max, left: self.left }.visit_seq(seq)?;
        Ok(Some(Held::Nested(out)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if let Some((out, field)) = self.lift {
            while let Some(key) = map.next_key_seed(Key)? {
                let value = AnyValue { out: &mut *out, depth_left: self.depth_max, left: &mut *self.left };
                put_member(&mut map, field, &key, value)?;
            }
            return Ok(None);
        }
        let mut out = Vec::new();
        AnyValue { out: &mut out, depth_left: self.depth_max, left: self.left }.visit_map(map)?;
        Ok(Some(Held::Nested(out)))
    }
}

/// Appends any JSON value as the content of an `AnyValue`; false for null, which is an empty one.
///
/// Types are kept. An integer over `i64::MAX` becomes its digits, as OpenTelemetry's mapping of arbitrary data asks; one over
/// `u64::MAX` reaches us as the nearest double. A member of an object that is null is left out; in an array it keeps its place.
pub(super) struct AnyValue<'w> {
    pub out: &'w mut Vec<u8>,
    /// Levels that values may still take, this one included.
    pub depth_left: u32,
    pub left: &'w mut Left,
}

impl<'de> DeserializeSeed<'de> for AnyValue<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        if self.depth_left == 0 {
            let failure = Failure::new(Reason::TooDeep, "a value is nested deeper than the limit");
            return Err(leave(self.left, failure));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }
    fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
        put_number(self.out, 2, u64::from(value));
        Ok(true)
    }
    fn visit_i64<E>(self, value: i64) -> Result<bool, E> {
        put_number(self.out, 3, value as u64);
        Ok(true)
    }
    fn visit_u64<E>(self, value: u64) -> Result<bool, E> {
        i64::try_from(value).map_or(Held::Unsigned(value), Held::Integer).put(self.out);
        Ok(true)
    }
    fn visit_f64<E>(self, value: f64) -> Result<bool, E> {
        put_fixed64(self.out, 4, value.to_bits());
        Ok(true)
    }
    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        put_bytes(self.out, 1, text.as_bytes());
        Ok(true)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        let array = open(self.out, 5);
        loop {
            let start = self.out.len();
            let element = open(self.out, 1);
            let seed = AnyValue { out: &mut *self.out, depth_left: self.depth_left - 1, left: &mut *self.left };
            if seq.next_element_seed(seed)?.is_none() {
                self.out.truncate(start);
                break;
            }
            close(self.out, element);
        }
        close(self.out, array);
        Ok(true)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let list = open(self.out, 6);
        while let Some(key) = map.next_key_seed(Key)? {
            let value = AnyValue { out: &mut *self.out, depth_left: self.depth_left - 1, left: &mut *self.left };
            put_member(&mut map, 1, &key, value)?;
        }
        close(self.out, list);
        Ok(true)
    }
}

/// Appends the member whose `key` was read as a `KeyValue` field, unless it is null.
pub(super) fn put_member<'de, A>(map: &mut A, field: u32, key: &str, value: AnyValue<'_>) -> Result<(), A::Error>
where
    A: MapAccess<'de>,
{
    let AnyValue { out, depth_left, left } = value;
    let start = out.len();
    let member = open(out, field);
    put_bytes(out, 1, key.as_bytes());
    let any_value = open(out, 2);
    if map.next_value_seed(AnyValue { out: &mut *out, depth_left, left })? {
        close(out, any_value);
        close(out, member);
    } else {
        out.truncate(start);
    }
    Ok(())
}
