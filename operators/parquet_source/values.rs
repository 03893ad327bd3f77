//! Values of OTLP, made again of the text that `arrow_encode` has made of them.
//!
//! A text in a map says what it is in one case only: under a key that has a column for strings it was no string, else it would be in the
//! column. There it becomes the value whose text it is. Several may have it (`true` is base64, too); any of them gives the same row.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::arrow_encode::values::write_text;
use crate::otlp::value::any;
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_number};

/// Appends the content of an `AnyValue` that is no string and has this text. False, and nothing, if there is none.
pub fn put_other(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    // What was written is held against the text: nothing here can make another row of it.
    let is_same = |content: &[u8]| {
        let mut again = Vec::with_capacity(text.len());
        any(content).is_ok_and(|value| write_text(&value, &mut again).is_ok()) && again == text.as_bytes()
    };
    for put in [put_plain, put_json, put_base64] {
        if put(text, out) && is_same(&out[start..]) {
            return true;
        }
        out.truncate(start);
    }
    false
}

fn put_plain(text: &str, out: &mut Vec<u8>) -> bool {
    match text {
        "true" => put_number(out, 2, 1),
        "false" => put_number(out, 2, 0),
        "NaN" => put_fixed64(out, 4, f64::NAN.to_bits()),
        "Infinity" => put_fixed64(out, 4, f64::INFINITY.to_bits()),
        "-Infinity" => put_fixed64(out, 4, f64::NEG_INFINITY.to_bits()),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), _) => put_number(out, 3, number as u64),
            (_, Ok(number)) if number.is_finite() => put_fixed64(out, 4, number.to_bits()),
            _ => return false,
        },
    }
    true
}

fn put_json(text: &str, out: &mut Vec<u8>) -> bool {
    text.starts_with(['[', '{']) && {
        let mut json = serde_json::Deserializer::from_str(text);
        Json(out).deserialize(&mut json).is_ok() && json.end().is_ok()
    }
}

fn put_base64(text: &str, out: &mut Vec<u8>) -> bool {
    STANDARD.decode(text).map(|bytes| put_bytes(out, 7, &bytes)).is_ok()
}

/// Appends JSON as the content of an `AnyValue`, members in their order, nulls and repeated keys among them.
struct Json<'w>(&'w mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, flag: bool) -> Result<(), E> {
        put_number(self.0, 2, u64::from(flag));
        Ok(())
    }
    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        put_number(self.0, 3, number as u64);
        Ok(())
    }
    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        put_number(self.0, 3, number);
        Ok(())
    }
    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        put_fixed64(self.0, 4, number.to_bits());
        Ok(())
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        put_bytes(self.0, 1, text.as_bytes());
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let array = open(self.0, 5);
        loop {
            let start = self.0.len();
            let element = open(self.0, 1);
            if elements.next_element_seed(Json(self.0))?.is_none() {
                self.0.truncate(start);
                break;
            }
            close(self.0, element);
        }
        close(self.0, array);
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let list = open(self.0, 6);
        while let Some(Key(key)) = members.next_key()? {
            let member = open(self.0, 1);
            put_bytes(self.0, 1, key.as_bytes());
            let value = open(self.0, 2);
            members.next_value_seed(Json(self.0))?;
            close(self.0, value);
            close(self.0, member);
        }
        close(self.0, list);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Key(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::value::Any;

    #[test]
    fn a_text_becomes_the_value_that_has_it_and_no_string() {
        for text in [
            "true",
            "false",
            "0",
            "-1",
            "9223372036854775807",
            "0.0",
            "-0.0",
            "1e300",
            "-2.5e-300",
            "0.1",
            "NaN",
            "-Infinity",
            "Infinity",
            "",
            "AQI=",
            "[]",
            "{}",
            "[1,\"a\",null,[true]]",
            "{\"k\":null,\"k\":{\"\":0.5}}",
            "[\"NaN\",\"q\\\"\\u0001\\n\"]",
        ] {
            let mut content = b"before".to_vec();
            assert!(put_other(text, &mut content), "{text}");
            let value = any(&content[6..]).unwrap();
            assert!(!matches!(value, Any::Text(_) | Any::Empty), "{text}: {value:?}");
        }
        // None of these is written by `arrow_encode` where a string has a column.
        for text in ["a text", "01", "+1", "1.", "[1, 2]", "[", "{\"a\":1", "AQI", "nulls", "[18446744073709551615]"] {
            let mut content = Vec::new();
            assert!(!put_other(text, &mut content) && content.is_empty(), "{text}: {content:?}");
        }
        let deep = "[".repeat(200);
        assert!(!put_other(&deep, &mut Vec::new()));
    }
}
