//! OTLP's `AnyValue` and `KeyValue`, read from the wire and written as text.
//!
//! ```text
//! string          as it is                          empty value      null
//! bool            true, false                       bytes            base64, standard alphabet, padded
//! int             decimal                           array            JSON array
//! double          shortest that reads back equal,   key-value list   JSON object, keys in order, duplicates kept
//!                 or NaN, Infinity, -Infinity
//! ```
//! This is the value's JSON form, or the content of that form where it is a JSON string. Inside arrays and lists, texts, bytes and
//! the three doubles without a JSON number are quoted.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::columns::OptionalTexts;
use super::encoder::Problem;
use crate::otlp::wire::{Value, WireError, fields};

/// How deep values may nest. `normalize` refuses 64 levels, so this bound only guards the stack; it is wider, so that nothing which
/// `normalize` accepts can fail here.
const DEPTH_MAX: usize = 96;

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

/// Appends the text of `value` to `column`.
#[inline]
pub fn push_text(value: &Any<'_>, column: &mut OptionalTexts) -> Result<(), Problem> {
    match value {
        Any::Text(text) => column.push(text),
        Any::Empty => column.push_null(),
        Any::Bool(true) => column.push(b"true"),
        Any::Bool(false) => column.push(b"false"),
        Any::Int(number) => column.push(itoa::Buffer::new().format(*number).as_bytes()),
        Any::Double(_) | Any::Bytes(_) | Any::Array(_) | Any::List(_) => {
            let mut text = Vec::new();
            write_text(value, &mut text)?;
            column.push(&text);
        }
    }
    Ok(())
}

fn write_text(value: &Any<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
    match value {
        Any::Text(text) => out.extend_from_slice(text),
        Any::Bytes(bytes) => write_base64(bytes, out),
        Any::Double(number) if !number.is_finite() => out.extend_from_slice(name_of(*number).as_bytes()),
        other => write_json(other, 0, out)?,
    }
    Ok(())
}

fn write_json(value: &Any<'_>, depth: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
    if depth > DEPTH_MAX {
        return Err(Problem::TooDeep { levels: DEPTH_MAX });
    }
    match value {
        Any::Empty => out.extend_from_slice(b"null"),
        Any::Text(text) => write_quoted(text, out),
        Any::Bool(true) => out.extend_from_slice(b"true"),
        Any::Bool(false) => out.extend_from_slice(b"false"),
        Any::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        Any::Double(number) if number.is_finite() => out.extend_from_slice(ryu::Buffer::new().format_finite(*number).as_bytes()),
        Any::Double(number) => write_quoted(name_of(*number).as_bytes(), out),
        Any::Bytes(bytes) => {
            out.push(b'"');
            write_base64(bytes, out);
            out.push(b'"');
        }
        Any::Array(message) => write_array(message, depth, out)?,
        Any::List(message) => write_object(message, depth, out)?,
    }
    Ok(())
}

fn write_array(message: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
    out.push(b'[');
    let mut separator: &[u8] = b"";
    for field in fields(message) {
        if let (1, Value::Bytes(element)) = field? {
            out.extend_from_slice(separator);
            write_json(&any(element)?, depth + 1, out)?;
            separator = b",";
        }
    }
    out.push(b']');
    Ok(())
}

fn write_object(message: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
    out.push(b'{');
    let mut separator: &[u8] = b"";
    for field in fields(message) {
        if let (1, Value::Bytes(entry)) = field? {
            let entry = key_value(entry)?;
            out.extend_from_slice(separator);
            write_quoted(entry.key, out);
            out.push(b':');
            write_json(&any(&entry.value)?, depth + 1, out)?;
            separator = b",";
        }
    }
    out.push(b'}');
    Ok(())
}

fn name_of(number: f64) -> &'static str {
    if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start), "padded base64 is four bytes for every three begun");
}

/// Bytes that a JSON string must not hold as they are. Bytes above 0x7f pass: the text is checked to be UTF-8 with its column.
fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn write_quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(position) = rest.iter().position(|&byte| needs_escape(byte)) {
        out.extend_from_slice(&rest[..position]);
        write_escape(rest[position], out);
        rest = &rest[position + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&digits);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}
