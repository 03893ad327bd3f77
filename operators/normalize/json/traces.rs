//! Plain JSON as a span.

use crate::batch::Reason;
use crate::normalize::failure::{Checked, Failure};
use crate::normalize::json_text::{Held, put_attribute};
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_number};

use super::time::nanos_of;
use super::{Keys, Record, Slot, id_of, is_text, owned_text};

const TRACE_ID: usize = 0;
const SPAN_ID: usize = 1;
const PARENT: usize = 2;
const NAME: usize = 3;
const KIND: usize = 4;
const START: usize = 5;
const END: usize = 6;
const DURATION: usize = 7;
const STATUS: usize = 8;
const STATUS_MESSAGE: usize = 9;
const EVENTS: usize = 10;
const TRACE_STATE: usize = 11;
const SERVICE: usize = 12;

const SLOTS: [Slot; 13] = [
    Slot { names: &["trace_id", "traceId"], usable: |value| id_of::<16>(value).is_some() },
    Slot { names: &["span_id", "spanId"], usable: |value| id_of::<8>(value).is_some() },
    Slot { names: &["parent_span_id", "parentSpanId", "parent_id"], usable: |value| id_of::<8>(value).is_some() },
    Slot { names: &["name", "operation_name", "operationName"], usable: is_text },
    Slot { names: &["kind", "span_kind"], usable: |value| kind(value).is_some() },
    Slot {
        names: &["start_time", "startTime", "start_time_unix_nano", "startTimeUnixNano", "start", "timestamp"],
        usable: |value| nanos_of(value).is_some(),
    },
    Slot {
        names: &["end_time", "endTime", "end_time_unix_nano", "endTimeUnixNano", "end"],
        usable: |value| nanos_of(value).is_some(),
    },
    Slot {
        names: &["duration_ns", "duration_us", "duration_ms", "duration"],
        usable: |value| duration_nanos("duration", value).is_some(),
    },
    Slot { names: &["status", "status_code", "statusCode"], usable: |value| status(value).is_some() },
    Slot { names: &["status_message", "statusMessage"], usable: is_text },
    Slot { names: &["events"], usable: |value| events(value).is_some() },
    Slot { names: &["trace_state", "traceState"], usable: is_text },
    Slot { names: &["service", "service.name", "service_name"], usable: is_text },
];

/// The keys of a span.
pub(super) fn keys() -> Keys {
    Keys::new(&SLOTS, &["attributes", "tags"], 9)
}

/// Appends `record`. Ids, name and start are required.
pub(super) fn write(record: &mut Record<'_, '_>, out: &mut Vec<u8>) -> Checked<()> {
    let trace_id = record.require(TRACE_ID, "32 hex digits", |_, value| id_of::<16>(value).flatten())?;
    let span_id = record.require(SPAN_ID, "16 hex digits", |_, value| id_of::<8>(value).flatten())?;
    let name = record.require(NAME, "a text", |_, value| owned_text(value))?;
    let start = record.require(START, "a time", nanos_of_named)?;
    let parent = record.take(PARENT, id_of::<8>).flatten();
    let kind = record.take(KIND, kind);
    let end = end_time(record, start)?;
    let status = record.take(STATUS, status);
    let message = record.take(STATUS_MESSAGE, owned_text);
    let events = record.take(EVENTS, events);
    let trace_state = record.take(TRACE_STATE, owned_text);
    record.name_service(SERVICE);

    let item = &mut record.scratch.item;
    put_bytes(item, 1, &trace_id);
    put_bytes(item, 2, &span_id);
    if let Some(trace_state) = trace_state {
        put_bytes(item, 3, trace_state.as_bytes());
    }
    if let Some(parent) = parent {
        put_bytes(item, 4, &parent);
    }
    put_bytes(item, 5, name.as_bytes());
    if let Some(kind) = kind {
        put_number(item, 6, kind);
    }
    put_fixed64(item, 7, start);
    if let Some(end) = end {
        put_fixed64(item, 8, end);
    }
    item.extend_from_slice(&events.unwrap_or_default());
    put_status(item, status.unwrap_or_default(), message.as_deref());
    record.finish(out);
    Ok(())
}

/// Names that end in "unix nano" say their unit; the other times are told by their size.
fn nanos_of_named(name: &str, value: &Held<'_>) -> Option<u64> {
    if !name.ends_with("nix_nano") && !name.ends_with("nixNano") {
        return nanos_of(value);
    }
    let nanos = match value {
        Held::Integer(nanos) => *nanos,
        Held::Text(text) => text.parse().ok()?,
        _ => return None,
    };
    u64::try_from(nanos).ok()
}

/// The end where it is told, else the start and the duration.
fn end_time(record: &mut Record<'_, '_>, start: u64) -> Checked<Option<u64>> {
    if let Some(end) = record.take_named(END, nanos_of_named) {
        // A duration beside it is kept as an attribute.
        record.take(DURATION, |_| None::<u64>);
        return Ok(Some(end));
    }
    let Some(duration) = record.take_named(DURATION, duration_nanos) else { return Ok(None) };
    let end = start.checked_add(duration).filter(|&end| end <= i64::MAX as u64);
    let too_late = || Failure::new(Reason::InvalidField, "start and duration end after the year 2262");
    end.ok_or_else(too_late).map(Some)
}

/// A number in the unit that `name` says, nanoseconds for a plain `duration`; or a text with its unit: `1.5s`, `20ms`.
fn duration_nanos(name: &str, value: &Held<'_>) -> Option<u64> {
    let (number, unit) = match value {
        Held::Integer(number) => (*number as f64, name.rsplit('_').next()?),
        Held::Double(number) => (*number, name.rsplit('_').next()?),
        Held::Text(text) => {
            let end = text.find(|character: char| !character.is_ascii_digit() && character != '.')?;
            (text[..end].parse().ok()?, &text[end..])
        }
        _ => return None,
    };
    let nanos_per_unit = match unit {
        "ns" | "duration" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3_600e9,
        _ => return None,
    };
    let nanos = (number * nanos_per_unit).round();
    (0.0..i64::MAX as f64).contains(&nanos).then_some(nanos as u64)
}

/// 0 to 5, or a name with or without `SPAN_KIND_`, in any case.
fn kind(value: &Held<'_>) -> Option<u64> {
    const NAMES: [&str; 6] = ["unspecified", "internal", "server", "client", "producer", "consumer"];
    numbered(value, "SPAN_KIND_", &NAMES)
}

/// A number below the names' count, or one of the names.
fn numbered(value: &Held<'_>, prefix: &str, names: &[&str]) -> Option<u64> {
    match value {
        Held::Integer(number) => u64::try_from(*number).ok().filter(|&number| number < names.len() as u64),
        Held::Text(text) => {
            let bare = text
                .get(..prefix.len())
                .filter(|start| start.eq_ignore_ascii_case(prefix))
                .map_or(&**text, |_| &text[prefix.len()..]);
            names.iter().position(|name| name.eq_ignore_ascii_case(bare)).map(|position| position as u64)
        }
        _ => None,
    }
}

#[derive(Default)]
struct Status {
    code: u64,
    message: Option<String>,
}

/// A code or its name, or an object with `code` and `message` and nothing else.
fn status(value: &Held<'_>) -> Option<Status> {
    if !matches!(value, Held::Nested(_)) {
        return Some(Status { code: status_code(value)?, message: None });
    }
    let (mut status, mut members) = (Status::default(), 0);
    for (key, member) in value.members() {
        let member = Held::of_any_value(member)?;
        match &*key {
            "code" => status.code = status_code(&member)?,
            "message" => status.message = Some(member.text()?.to_owned()),
            _ => return None,
        }
        members += 1;
    }
    (members > 0).then_some(status)
}

fn status_code(value: &Held<'_>) -> Option<u64> {
    numbered(value, "STATUS_CODE_", &["unset", "ok", "error"])
}

fn put_status(item: &mut Vec<u8>, status: Status, message: Option<&str>) {
    let message = message.or(status.message.as_deref()).unwrap_or_default();
    if status.code == 0 && message.is_empty() {
        return;
    }
    let written = open(item, 15);
    if !message.is_empty() {
        put_bytes(item, 2, message.as_bytes());
    }
    if status.code != 0 {
        put_number(item, 3, status.code);
    }
    close(item, written);
}

/// An array of objects as `events` fields: `name`, `time` or `timestamp`, `attributes`; other members are attributes too.
fn events(value: &Held<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut count = 0;
    for element in value.elements() {
        let event = Held::of_any_value(element).filter(|event| event.members().next().is_some())?;
        let message = open(&mut out, 11);
        for (key, member) in event.members() {
            let Some(value) = Held::of_any_value(member) else { continue };
            put_event_member(&mut out, &key, &value);
        }
        close(&mut out, message);
        count += 1;
    }
    (count > 0).then_some(out)
}

fn put_event_member(out: &mut Vec<u8>, key: &str, value: &Held<'_>) {
    let nanos =
        matches!(key, "time" | "timestamp" | "time_unix_nano" | "timeUnixNano").then(|| nanos_of_named(key, value)).flatten();
    match (key, value) {
        (_, _) if nanos.is_some() => put_fixed64(out, 1, nanos.unwrap_or_default()),
        ("name", Held::Text(name)) => put_bytes(out, 2, name.as_bytes()),
        ("attributes", Held::Nested(_)) if value.members().next().is_some() => {
            for (key, member) in value.members() {
                if let Some(value) = Held::of_any_value(member) {
                    put_attribute(out, 3, &key, &value);
                }
            }
        }
        _ => put_attribute(out, 3, key, value),
    }
}
