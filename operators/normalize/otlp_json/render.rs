//! OTLP protobuf as OTLP/JSON, by the tables that `write` reads JSON with. For people: what the tables do not know is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use super::schema::{DATA, Field, Kind, Message};
use crate::batch::Signal;
use crate::otlp::wire::{Value, WireError, fields, varints};

/// Nesting beyond which nothing is shown: `normalize` lets nothing through that is deeper by default.
const DEPTH_MAX: usize = 128;

/// The name of the signal's outermost field, and the list in it.
pub(crate) fn data(signal: Signal, payload: &[u8]) -> Result<(&'static str, Json), WireError> {
    let (_, field) = DATA.iter().find(|(of, _)| *of == signal).expect("every signal has a table");
    let outer = std::slice::from_ref(field);
    let mut shown = message(payload, outer, DEPTH_MAX)?;
    Ok((field.json, shown.remove(field.json).unwrap_or_else(|| json!([]))))
}

fn message(bytes: &[u8], table: &'static [Field], depth: usize) -> Result<Map<String, Json>, WireError> {
    let mut shown = Map::new();
    for field in fields(bytes) {
        let (number, value) = field?;
        let Some(field) = table.iter().find(|field| field.number == number) else { continue };
        put(&mut shown, field, value, depth)?;
    }
    Ok(shown)
}

fn put(shown: &mut Map<String, Json>, field: &'static Field, value: Value<'_>, depth: usize) -> Result<(), WireError> {
    let Kind::Repeated(kind) = &field.kind else {
        if let Some(value) = single(&field.kind, value, depth)? {
            merge(shown, field.json, value);
        }
        return Ok(());
    };
    let items = match (kind, value) {
        // Numbers come packed; each on its own is the other form that protobuf allows.
        (Kind::Uint64, Value::Bytes(packed)) => {
            varints(packed).map(|number| number.map(|number| json!(number.to_string()))).collect::<Result<_, _>>()?
        }
        (Kind::Fixed64, Value::Bytes(packed)) => words(packed).map(|bits| json!(bits.to_string())).collect(),
        (Kind::Double, Value::Bytes(packed)) => words(packed).map(|bits| double(f64::from_bits(bits))).collect(),
        (_, value) => single(kind, value, depth)?.into_iter().collect::<Vec<_>>(),
    };
    if let Json::Array(list) = shown.entry(field.json).or_insert_with(|| json!([])) {
        list.extend(items);
    }
    Ok(())
}

/// The last value counts, but messages that come in pieces are one.
fn merge(shown: &mut Map<String, Json>, name: &str, value: Json) {
    match (shown.get_mut(name), value) {
        (Some(Json::Object(before)), Json::Object(more)) => before.extend(more),
        (_, value) => _ = shown.insert(name.into(), value),
    }
}

/// `None` where the wire has another type than the table: protobuf passes over such a field.
fn single(kind: &'static Kind, value: Value<'_>, depth: usize) -> Result<Option<Json>, WireError> {
    Ok(Some(match (kind, value) {
        (Kind::Set(kind), value) => return single(kind, value, depth),
        (Kind::String, Value::Bytes(text)) => json!(String::from_utf8_lossy(text)),
        (Kind::Bytes, Value::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Kind::Id, Value::Bytes(id)) => json!(id.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        (Kind::Bool, Value::Varint(flag)) => json!(flag != 0),
        (Kind::Enum(_), Value::Varint(number)) => json!(number as i32),
        (Kind::Int64, Value::Varint(number)) => json!((number as i64).to_string()),
        (Kind::Uint64, Value::Varint(number)) | (Kind::Fixed64, Value::Fixed64(number)) => json!(number.to_string()),
        (Kind::Sfixed64, Value::Fixed64(bits)) => json!((bits as i64).to_string()),
        (Kind::Uint32, Value::Varint(number)) => json!(number as u32),
        (Kind::Sint32, Value::Varint(number)) => json!((number as u32 >> 1) as i32 ^ -((number & 1) as i32)),
        (Kind::Fixed32, Value::Fixed32(number)) => json!(number),
        (Kind::Double, Value::Fixed64(bits)) => double(f64::from_bits(bits)),
        (Kind::Message(_), Value::Bytes(_)) if depth == 0 => json!("(nested too deep to be shown)"),
        (Kind::Message(Message { fields }), Value::Bytes(bytes)) => Json::Object(message(bytes, fields, depth - 1)?),
        _ => return Ok(None),
    }))
}

/// JSON has no number for these three; OTLP/JSON has a text.
fn double(value: f64) -> Json {
    match value {
        value if value.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        value => json!(value),
    }
}

fn words(packed: &[u8]) -> impl Iterator<Item = u64> + '_ {
    packed.chunks_exact(8).map(|word| word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalize::tests::samples;

    #[test]
    fn what_is_shown_is_read_back_as_the_same_rows() {
        for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
            let (_, payload) = samples::sample(signal);
            let (name, list) = data(signal, &payload).unwrap();
            let text = json!({ name: list }).to_string();
            let mut written = Vec::new();
            super::super::write(&text, signal, &mut written).unwrap_or_else(|_| panic!("{text}"));
            // The order of fields and zeros that were written may differ; what is shown of both may not.
            assert_eq!(data(signal, &written).unwrap(), (name, list), "{signal}");
        }
    }

    #[test]
    fn hostile_bytes_are_an_error_or_shown_and_never_panic() {
        let mut deep: Vec<u8> = Vec::new();
        for _ in 0..2_000 {
            let mut outer = vec![0x2a];
            prost::encoding::encode_varint(deep.len() as u64, &mut outer);
            outer.extend_from_slice(&deep);
            deep = outer;
        }
        for payload in [&deep[..], &[0x0a], &[0x0a, 0xff, 0xff, 0xff], &[0xff; 20]] {
            for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
                let _ = data(signal, payload);
            }
        }
    }
}
