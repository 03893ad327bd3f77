//! Plain JSON as a log record.

use crate::normalize::json_text::Held;
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_number};

use super::time::nanos_of;
use super::{Keys, Options, Record, Slot, anything, id_of, is_text};

const TIME: usize = 0;
const LEVEL: usize = 1;
const SEVERITY_NUMBER: usize = 2;
const BODY: usize = 3;
const TRACE_ID: usize = 4;
const SPAN_ID: usize = 5;
const SERVICE: usize = 6;

const SLOTS: [Slot; 7] = [
    Slot { names: &["timestamp", "time", "ts", "@timestamp", "datetime"], usable: |value| nanos_of(value).is_some() },
    Slot {
        names: &["level", "severity", "severity_text", "severityText", "lvl"],
        usable: |value| is_text(value) || severity_number(value).is_some(),
    },
    Slot { names: &["severity_number", "severityNumber"], usable: |value| severity_number(value).is_some() },
    Slot { names: &["message", "msg", "body", "log", "text"], usable: anything },
    Slot { names: &["trace_id", "traceId"], usable: |value| id_of::<16>(value).is_some() },
    Slot { names: &["span_id", "spanId"], usable: |value| id_of::<8>(value).is_some() },
    Slot { names: &["service", "service.name", "service_name"], usable: is_text },
];

/// The keys of a log record.
pub(super) fn keys() -> Keys {
    Keys::new(&SLOTS, &["attributes"], 6)
}

/// Appends `record`. Its observed time is Kafka's.
pub(super) fn write(record: &mut Record<'_, '_>, options: Options<'_>, out: &mut Vec<u8>) {
    let Options { kafka_nanos, record_nanos, .. } = options;
    let nanos = record.take(TIME, nanos_of).unwrap_or(record_nanos);
    let number = record.take(SEVERITY_NUMBER, severity_number);
    let level = record.take(LEVEL, |value| {
        Some(match value {
            Held::Text(text) => Level { number: number_of_name(text), text: Some(text.clone()) },
            // A number that nobody else gave.
            value if number.is_none() => Level { number: severity_number(value)?, text: None },
            _ => return None,
        })
    });
    let level = level.unwrap_or_default();
    let body = record.take(BODY, |value| Some(value.clone()));
    let trace_id = record.take(TRACE_ID, id_of::<16>).flatten();
    let span_id = record.take(SPAN_ID, id_of::<8>).flatten();
    record.name_service(SERVICE);

    let item = &mut record.scratch.item;
    if nanos != 0 {
        put_fixed64(item, 1, nanos);
    }
    if kafka_nanos != 0 {
        put_fixed64(item, 11, kafka_nanos);
    }
    let number = number.unwrap_or(level.number);
    if number != 0 {
        put_number(item, 2, number);
    }
    if let Some(text) = level.text {
        put_bytes(item, 3, text.as_bytes());
    }
    if let Some(body) = body {
        let any_value = open(item, 5);
        body.put(item);
        close(item, any_value);
    }
    if let Some(id) = trace_id {
        put_bytes(item, 9, &id);
    }
    if let Some(id) = span_id {
        put_bytes(item, 10, &id);
    }
    record.finish(out);
}

#[derive(Default)]
struct Level<'de> {
    number: u64,
    text: Option<std::borrow::Cow<'de, str>>,
}

/// A number of OTLP's own scale. Other scales overlap with it and with one another, so their numbers stay attributes.
fn severity_number(value: &Held<'_>) -> Option<u64> {
    match value {
        Held::Integer(number @ 1..=24) => Some(*number as u64),
        _ => None,
    }
}

/// The severity that a level's name stands for, in any case; 0 for a name that is not known.
fn number_of_name(name: &str) -> u64 {
    let mut lower = [0; 12];
    let Some(lower) = lower.get_mut(..name.len()) else { return 0 };
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    // OTLP's own short names end in a digit: INFO3 is two above INFO.
    let (base, above) = match lower {
        [base @ .., digit @ b'2'..=b'4'] => (&*base, u64::from(*digit - b'1')),
        base => (&*base, 0),
    };
    let number = match base {
        b"trace" | b"verbose" | b"finest" | b"finer" => 1,
        b"debug" | b"dbg" | b"fine" => 5,
        b"info" | b"inf" | b"information" => 9,
        b"notice" if above == 0 => 10,
        b"warn" | b"warning" | b"wrn" => 13,
        b"error" | b"err" | b"severe" => 17,
        b"critical" | b"crit" | b"dpanic" if above == 0 => 18,
        b"alert" if above == 0 => 19,
        b"fatal" | b"ftl" => 21,
        b"panic" | b"emergency" | b"emerg" if above == 0 => 22,
        _ => return 0,
    };
    number + above
}
