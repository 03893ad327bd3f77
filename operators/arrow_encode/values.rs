//! OTLP's values, written as text.
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

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::columns::OptionalTexts;
use super::encoder::Problem;
use crate::otlp::value::{Any, any, key_value};
use crate::otlp::wire::{Value, fields};

/// How deep values may nest. `normalize` refuses 64 levels, so this bound only guards the stack; it is wider, so that nothing which
/// `normalize` accepts can fail here.
const DEPTH_MAX: usize = 96;

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

/// Appends the text of `value`, which is not empty.
pub fn write_text(value: &Any<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
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
