//! OTLP's `AnyValue` and `KeyValue`, read from the wire.

use std::borrow::Cow;

use super::wire::{Value, WireError, fields};

/// One `AnyValue`. Message variants are the bytes of the message, merged where the wire had several.
#[derive(Clone, Debug)]
pub enum Any<'a> {
    /// No variant is set.
    Empty,
    /// `string_value`; not yet known to be UTF-8.
    Text(&'a [u8]),
    /// `bool_value`.
    Bool(bool),
    /// `int_value`.
    Int(i64),
    /// `double_value`.
    Double(f64),
    /// `bytes_value`.
    Bytes(&'a [u8]),
    /// `array_value`.
    Array(Cow<'a, [u8]>),
    /// `kvlist_value`.
    List(Cow<'a, [u8]>),
}

/// One `KeyValue`: the key, and the bytes of its `AnyValue`.
pub struct KeyValue<'a> {
    /// The key; not yet known to be UTF-8.
    pub key: &'a [u8],
    /// The value's message; empty if there is none.
    pub value: Cow<'a, [u8]>,
}

/// Merges an embedded message into the occurrences before it: for protobuf that is the concatenation of their bytes.
#[inline]
pub fn merge<'a>(before: &mut Cow<'a, [u8]>, message: &'a [u8]) {
    if before.is_empty() {
        *before = Cow::Borrowed(message);
    } else {
        before.to_mut().extend_from_slice(message);
    }
}

/// The value of the first field if its tag is `TAG`, a wire type 2, and its length below 128; and what follows it.
#[inline(always)]
fn short_field<const TAG: u8>(message: &[u8]) -> Option<(&[u8], &[u8])> {
    match message {
        [tag, length, rest @ ..] if *tag == TAG && *length < 0x80 => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

/// Key and text of a `KeyValue` in the form that producers give nearly all of them: key, then value, the value a string, all short.
/// Nothing else would come out of `key_value` and `any`, which cost twice as much.
#[inline(always)]
pub fn plain_text(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, rest) = short_field::<0x0a>(message)?;
    let (value, after_value) = short_field::<0x12>(rest)?;
    let (text, after_text) = short_field::<0x0a>(value)?;
    (after_value.is_empty() && after_text.is_empty()).then_some((key, text))
}

/// Reads a `KeyValue`.
pub fn key_value(message: &[u8]) -> Result<KeyValue<'_>, WireError> {
    match short_field::<0x0a>(message).map(|(key, rest)| (key, short_field::<0x12>(rest))) {
        Some((key, Some((value, [])))) => Ok(KeyValue { key, value: Cow::Borrowed(value) }),
        _ => general_key_value(message),
    }
}

fn general_key_value(message: &[u8]) -> Result<KeyValue<'_>, WireError> {
    let mut read = KeyValue { key: b"", value: Cow::Borrowed(b"") };
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(key)) => read.key = key,
            (2, Value::Bytes(value)) => merge(&mut read.value, value),
            _ => {}
        }
    }
    Ok(read)
}

/// The value of a varint if that is all there is, and it is below 2^56.
#[inline(always)]
fn only_varint(bytes: &[u8]) -> Option<u64> {
    let (&last, more) = bytes.split_last()?;
    if last >= 0x80 || more.len() > 7 {
        return None;
    }
    let mut value = u64::from(last);
    for &byte in more.iter().rev() {
        if byte < 0x80 {
            return None;
        }
        value = value << 7 | u64::from(byte & 0x7f);
    }
    Some(value)
}

/// Reads an `AnyValue`.
#[inline]
pub fn any(message: &[u8]) -> Result<Any<'_>, WireError> {
    // The two that are common, alone in their message as all producers write them.
    if let Some((text, [])) = short_field::<0x0a>(message) {
        return Ok(Any::Text(text));
    }
    if let [0x18, rest @ ..] = message
        && let Some(number) = only_varint(rest)
    {
        return Ok(Any::Int(number as i64));
    }
    general_any(message)
}

/// The last variant wins; occurrences of the same message variant in a row are merged.
fn general_any(message: &[u8]) -> Result<Any<'_>, WireError> {
    let mut read = Any::Empty;
    for field in fields(message) {
        match (field?, &mut read) {
            ((1, Value::Bytes(text)), _) => read = Any::Text(text),
            ((2, Value::Varint(flag)), _) => read = Any::Bool(flag != 0),
            ((3, Value::Varint(number)), _) => read = Any::Int(number as i64),
            ((4, Value::Fixed64(bits)), _) => read = Any::Double(f64::from_bits(bits)),
            ((5, Value::Bytes(more)), Any::Array(array)) => merge(array, more),
            ((5, Value::Bytes(array)), _) => read = Any::Array(Cow::Borrowed(array)),
            ((6, Value::Bytes(more)), Any::List(list)) => merge(list, more),
            ((6, Value::Bytes(list)), _) => read = Any::List(Cow::Borrowed(list)),
            ((7, Value::Bytes(bytes)), _) => read = Any::Bytes(bytes),
            // An index into a string table, which only profiles have: a variant without a value here.
            ((8, Value::Varint(_)), _) => read = Any::Empty,
            _ => {}
        }
    }
    Ok(read)
}
