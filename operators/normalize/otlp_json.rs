//! Format `otlp_json`: OTLP/JSON of one signal, as SDKs send it and the collector's file exporter writes it, into OTLP protobuf.
//!
//! One visitor reads all messages by the tables of `schema`, writing protobuf as it goes. Of protobuf's JSON mapping it takes: both
//! names of a field, unknown fields, null for an absent field, enums as numbers or names, 64-bit integers as numbers or texts, doubles
//! as numbers or texts (`NaN`, `Infinity`), bytes as base64. Ids are hex, as OTLP asks. A field that comes twice is refused: merging
//! the two, as protobuf would, is never what was meant.

use std::fmt;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::batch::{Reason, Signal};

use super::failure::{Checked, Failure, quote};
use super::json_text::{Key, Left, failure_of, leave};
use super::otlp_proto::wrong_signal;
use crate::otlp::write::{close, open, put_bytes, put_fixed32, put_fixed64, put_number, put_varint};

pub(crate) mod render;
mod schema;

use schema::{DATA, Field, Kind, Message};

/// Protobuf's JSON mapping takes both alphabets, padded or not.
const BASE64: [GeneralPurpose; 2] = {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    [GeneralPurpose::new(&base64::alphabet::STANDARD, config), GeneralPurpose::new(&base64::alphabet::URL_SAFE, config)]
};

/// The keys that tell OTLP JSON from any other object.
pub(super) fn data_keys() -> impl Iterator<Item = &'static str> {
    DATA.iter().flat_map(|(_, field)| [field.json, field.proto])
}

/// Appends `text` as OTLP protobuf of `signal`. What is written still has to pass the walk, which knows the rules of fields.
pub(super) fn write(text: &str, signal: Signal, out: &mut Vec<u8>) -> Checked<()> {
    let start = out.len();
    let mut state = State { out, left: None, place: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let known = deserializer.deserialize_map(Data { state: &mut state, signal });
    let known = known.and_then(|known| deserializer.end().map(|()| known));
    let State { out, left, place } = state;
    let key = known.map_err(|error| place.into_iter().fold(failure_of(&error, left), Failure::within))?;
    match key {
        Some(key) if out.len() == start => Err(Failure::new(Reason::Empty, format_args!("{key} is empty"))),
        Some(_) => Ok(()),
        None => {
            let expected = DATA.iter().find(|(of, _)| *of == signal).map_or("", |(_, field)| field.json);
            Err(Failure::new(Reason::Undecodable, format_args!("JSON object without {expected}")))
        }
    }
}

struct State<'w> {
    out: &'w mut Vec<u8>,
    left: Left,
    /// The fields around a failure, innermost first.
    place: Vec<&'static str>,
}

/// The outermost object. Gives the signal's key if it was there.
struct Data<'s, 'w> {
    state: &'s mut State<'w>,
    signal: Signal,
}

impl<'de> Visitor<'de> for Data<'_, '_> {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Data { state, signal } = self;
        let mut known = None;
        while let Some(key) = map.next_key_seed(Key)? {
            let Some((found, field)) = DATA.iter().find(|(_, field)| field.json == key || field.proto == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if *found != signal {
                return Err(leave(&mut state.left, wrong_signal(signal, *found)));
            }
            if known.replace(field.json).is_some() {
                return Err(leave(&mut state.left, twice(field.json)));
            }
            read_field(&mut map, field, state)?;
        }
        Ok(known)
    }
}

#[cold]
fn twice(name: &str) -> Box<Failure> {
    Failure::new(Reason::Malformed, format_args!("{name} comes twice in one object"))
}

/// Reads the members of one message's object.
fn read_message<'de, A: MapAccess<'de>>(mut map: A, message: &'static Message, state: &mut State<'_>) -> Result<(), A::Error> {
    let (mut seen, mut expected) = (0u32, 0);
    while let Some(position) = map.next_key_seed(FieldKey { fields: message.fields, expected })? {
        let Some(position) = position else {
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        let field = &message.fields[position];
        if seen & 1 << position != 0 {
            return Err(leave(&mut state.left, twice(field.json)));
        }
        seen |= 1 << position;
        expected = position + 1;
        read_field(&mut map, field, state)?;
    }
    Ok(())
}

/// Reads the value of a field whose key was read.
fn read_field<'de, A: MapAccess<'de>>(map: &mut A, field: &'static Field, state: &mut State<'_>) -> Result<(), A::Error> {
    let (kind, explicit) = match &field.kind {
        Kind::Set(kind) => (*kind, true),
        kind => (kind, false),
    };
    let place = Place { number: Some(field.number), kind, explicit, element: false };
    let read = map.next_value_seed(FieldValue { place, state: &mut *state });
    if read.is_err() {
        state.place.push(field.json);
    }
    read
}

/// A key as its field's position in the table; `None` for an unknown one.
struct FieldKey {
    fields: &'static [Field],
    /// Where to look first: producers keep the order of fields.
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for FieldKey {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for FieldKey {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        let (before, after) = self.fields.split_at(self.expected);
        let is_it = |field: &Field| field.json == key || field.proto == key;
        let found = after.iter().position(is_it).map(|position| position + self.expected);
        Ok(found.or_else(|| before.iter().position(is_it)))
    }
}

/// Where a value goes, and as what.
#[derive(Clone, Copy)]
struct Place {
    /// The field's number; `None` inside a packed list, whose numbers have no tags.
    number: Option<u32>,
    kind: &'static Kind,
    /// Written even when zero.
    explicit: bool,
    /// In a list, where null is no absent field.
    element: bool,
}

struct FieldValue<'s, 'w> {
    place: Place,
    state: &'s mut State<'w>,
}

impl FieldValue<'_, '_> {
    fn scalar<E: serde::de::Error>(self, scalar: Scalar<'_>) -> Result<(), E> {
        let FieldValue { place, state } = self;
        put_scalar(state.out, place, &scalar).map_err(|failure| leave(&mut state.left, failure))
    }
}

impl<'de> DeserializeSeed<'de> for FieldValue<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FieldValue<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(expectation(self.place.kind))
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        match (self.place.element, self.place.kind, self.place.number) {
            (false, _, _) => {}
            (true, Kind::Message(_), Some(number)) => put_bytes(self.state.out, number, &[]),
            (true, _, _) => return Err(E::invalid_type(serde::de::Unexpected::Unit, &self)),
        }
        Ok(())
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(Scalar::Bool(value))
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(Scalar::Integer(i128::from(value)))
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(Scalar::Integer(i128::from(value)))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(Scalar::Double(value))
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.scalar(Scalar::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let (Kind::Message(message), Some(number)) = (self.place.kind, self.place.number) else {
            return self.scalar(Scalar::Object);
        };
        let written = open(self.state.out, number);
        read_message(map, message, self.state)?;
        close(self.state.out, written);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let (Kind::Repeated(kind), Some(number)) = (self.place.kind, self.place.number) else {
            return self.scalar(Scalar::Array);
        };
        let state = self.state;
        let place = Place { number: Some(number), kind, explicit: true, element: true };
        if matches!(kind, Kind::Message(_) | Kind::String) {
            while seq.next_element_seed(FieldValue { place, state: &mut *state })?.is_some() {}
            return Ok(());
        }
        let start = state.out.len();
        let packed = open(state.out, number);
        let content = state.out.len();
        let place = Place { number: None, ..place };
        while seq.next_element_seed(FieldValue { place, state: &mut *state })?.is_some() {}
        if state.out.len() == content {
            state.out.truncate(start);
        } else {
            close(state.out, packed);
        }
        Ok(())
    }
}

/// A JSON value that is no null; arrays and objects only where none may be.
enum Scalar<'s> {
    Bool(bool),
    Integer(i128),
    Double(f64),
    Text(&'s str),
    Array,
    Object,
}

impl Scalar<'_> {
    fn found(&self) -> String {
        match self {
            Scalar::Bool(value) => value.to_string(),
            Scalar::Integer(value) => value.to_string(),
            Scalar::Double(value) => value.to_string(),
            Scalar::Text(text) => quote(text),
            Scalar::Array => "an array".to_owned(),
            Scalar::Object => "an object".to_owned(),
        }
    }

    /// A whole number, however it is written.
    fn integer(&self) -> Option<i128> {
        match self {
            Scalar::Integer(value) => Some(*value),
            // Every double this small is exact as an integer, if it is one.
            Scalar::Double(value) if value.fract() == 0.0 && value.abs() < 1e19 => Some(*value as i128),
            Scalar::Text(text) => {
                let unsigned = text.parse::<u64>().map(i128::from);
                unsigned.or_else(|_| text.parse::<i64>().map(i128::from)).ok()
            }
            _ => None,
        }
    }

    fn double(&self) -> Option<f64> {
        match self {
            Scalar::Integer(value) => Some(*value as f64),
            Scalar::Double(value) => Some(*value),
            Scalar::Text("NaN") => Some(f64::NAN),
            Scalar::Text("Infinity") => Some(f64::INFINITY),
            Scalar::Text("-Infinity") => Some(f64::NEG_INFINITY),
            // Rust reads more words than these as numbers.
            Scalar::Text(text) if text.bytes().all(|byte| b"0123456789+-.eE".contains(&byte)) => text.parse().ok(),
            _ => None,
        }
    }
}

/// What a kind of field may be, for a person.
fn expectation(kind: &Kind) -> &'static str {
    match kind {
        Kind::String => "a text",
        Kind::Bytes => "base64",
        Kind::Id => "hex",
        Kind::Bool => "true or false",
        Kind::Enum(_) => "a number or name of its enum",
        Kind::Int64 | Kind::Sfixed64 => "a signed 64-bit integer",
        Kind::Uint64 | Kind::Fixed64 => "an unsigned 64-bit integer",
        Kind::Uint32 | Kind::Fixed32 => "an unsigned 32-bit integer",
        Kind::Sint32 => "a signed 32-bit integer",
        Kind::Double => "a number",
        Kind::Set(kind) => expectation(kind),
        Kind::Message(_) => "an object",
        Kind::Repeated(_) => "an array",
        Kind::Removed => "absent: it was removed from OTLP before 1.0, and its data would be lost",
    }
}

/// A number as protobuf writes it.
enum Number {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
}

/// Writes a scalar field, or an element of a list.
fn put_scalar(out: &mut Vec<u8>, place: Place, scalar: &Scalar<'_>) -> Checked<()> {
    let wrong = || {
        let (found, expected) = (scalar.found(), expectation(place.kind));
        Failure::new(Reason::InvalidField, format_args!("{found} where should be {expected}"))
    };
    let bytes = match (place.kind, scalar) {
        (Kind::String, Scalar::Text(text)) => {
            put_text(out, place, text.as_bytes());
            return Ok(());
        }
        (Kind::Bytes, Scalar::Text(text)) => base64_of(text),
        (Kind::Id, Scalar::Text(text)) => hex_of(text),
        _ => {
            put_number_field(out, place, number_of(place.kind, scalar).ok_or_else(wrong)?);
            return Ok(());
        }
    };
    put_text(out, place, &bytes.ok_or_else(wrong)?);
    Ok(())
}

fn put_text(out: &mut Vec<u8>, place: Place, bytes: &[u8]) {
    if let Some(number) = place.number
        && (place.explicit || !bytes.is_empty())
    {
        put_bytes(out, number, bytes);
    }
}

/// Bytes written as base64.
pub(super) fn base64_of(text: &str) -> Option<Vec<u8>> {
    BASE64.iter().find_map(|engine| engine.decode(text).ok())
}

/// Whole bytes of any length: which length a field wants is a rule of the walk.
fn hex_of(text: &str) -> Option<Vec<u8>> {
    match text.len() {
        32 => super::hex::bytes_of::<16>(text).map(Vec::from),
        16 => super::hex::bytes_of::<8>(text).map(Vec::from),
        _ => text
            .as_bytes()
            .chunks(2)
            .map(|pair| super::hex::bytes_of::<1>(std::str::from_utf8(pair).ok()?).map(|[byte]| byte))
            .collect(),
    }
}

fn number_of(kind: &Kind, scalar: &Scalar<'_>) -> Option<Number> {
    Some(match kind {
        Kind::Bool => match scalar {
            Scalar::Bool(value) => Number::Varint(u64::from(*value)),
            _ => return None,
        },
        Kind::Enum(names) => match scalar {
            Scalar::Text(text) => Number::Varint(names.iter().find(|(name, _)| name == text)?.1 as u64),
            // Negative numbers are written with their sign extended, as protobuf wants for int32.
            _ => Number::Varint(i64::from(i32::try_from(scalar.integer()?).ok()?) as u64),
        },
        Kind::Int64 => Number::Varint(i64::try_from(scalar.integer()?).ok()? as u64),
        Kind::Uint64 => Number::Varint(u64::try_from(scalar.integer()?).ok()?),
        Kind::Uint32 => Number::Varint(u64::from(u32::try_from(scalar.integer()?).ok()?)),
        Kind::Sint32 => {
            let value = i32::try_from(scalar.integer()?).ok()?;
            Number::Varint(u64::from((value << 1 ^ value >> 31) as u32))
        }
        Kind::Fixed32 => Number::Fixed32(u32::try_from(scalar.integer()?).ok()?),
        Kind::Fixed64 => Number::Fixed64(u64::try_from(scalar.integer()?).ok()?),
        Kind::Sfixed64 => Number::Fixed64(i64::try_from(scalar.integer()?).ok()? as u64),
        Kind::Double => Number::Fixed64(scalar.double()?.to_bits()),
        _ => return None,
    })
}

fn put_number_field(out: &mut Vec<u8>, place: Place, value: Number) {
    match (place.number, value) {
        (Some(_), Number::Varint(0) | Number::Fixed64(0) | Number::Fixed32(0)) if !place.explicit => {}
        (Some(number), Number::Varint(value)) => put_number(out, number, value),
        (Some(number), Number::Fixed64(value)) => put_fixed64(out, number, value),
        (Some(number), Number::Fixed32(value)) => put_fixed32(out, number, value),
        (None, Number::Varint(value)) => put_varint(out, value),
        (None, Number::Fixed64(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (None, Number::Fixed32(value)) => out.extend_from_slice(&value.to_le_bytes()),
    }
}
