//! Plain JSON as a metric with one data point.

use crate::batch::Reason;
use crate::normalize::failure::{Checked, Failure, quote};
use crate::normalize::json_text::Held;
use crate::otlp::write::{close, open, put_bytes, put_fixed64, put_number};

use super::time::nanos_of;
use super::{Keys, Record, Scratch, Slot, is_text, owned_text};

const NAME: usize = 0;
const VALUE: usize = 1;
const TYPE: usize = 2;
const UNIT: usize = 3;
const DESCRIPTION: usize = 4;
const TIME: usize = 5;
const START: usize = 6;
const MONOTONIC: usize = 7;
const TEMPORALITY: usize = 8;
const SERVICE: usize = 9;

const SLOTS: [Slot; 10] = [
    Slot { names: &["name", "metric", "metric_name"], usable: is_text },
    Slot { names: &["value"], usable: |value| point(value).is_some() },
    Slot { names: &["type", "metric_type"], usable: is_text },
    Slot { names: &["unit"], usable: is_text },
    Slot { names: &["description"], usable: is_text },
    Slot { names: &["timestamp", "time", "ts", "@timestamp", "datetime"], usable: |value| nanos_of(value).is_some() },
    Slot { names: &["start_time", "startTime"], usable: |value| nanos_of(value).is_some() },
    Slot { names: &["is_monotonic", "isMonotonic", "monotonic"], usable: |value| flag(value).is_some() },
    Slot { names: &["temporality", "aggregation_temporality"], usable: |value| temporality(value).is_some() },
    Slot { names: &["service", "service.name", "service_name"], usable: is_text },
];

/// The keys of a data point.
pub(super) fn keys() -> Keys {
    Keys::new(&SLOTS, &["attributes", "labels", "tags"], 7)
}

/// Appends `record`. Name and value are required; a metric without a type is a gauge.
pub(super) fn write(record: &mut Record<'_, '_>, record_nanos: u64, out: &mut Vec<u8>) -> Checked<()> {
    let name = record.require(NAME, "a text", |_, value| owned_text(value).filter(|name| !name.is_empty()))?;
    let value = record.require(VALUE, "a number", |_, value| point(value))?;
    let kind = match record.take(TYPE, owned_text) {
        Some(kind) => kind_of(&kind)?,
        None => Kind::Gauge,
    };
    let unit = record.take(UNIT, owned_text);
    let description = record.take(DESCRIPTION, owned_text);
    let nanos = record.take(TIME, nanos_of).unwrap_or(record_nanos);
    let start = record.take(START, nanos_of);
    // Of a gauge these two say nothing, so they are kept as attributes.
    let monotonic = record.take(MONOTONIC, |value| flag(value).filter(|_| kind != Kind::Gauge));
    let temporality = record.take(TEMPORALITY, |value| temporality(value).filter(|_| kind != Kind::Gauge));
    record.name_service(SERVICE);

    // The attributes are the point's, the innermost message: they are moved there, and the metric is the item.
    let Scratch { attributes, item, .. } = &mut *record.scratch;
    put_bytes(item, 1, name.as_bytes());
    for (field, text) in [(2, description), (3, unit)] {
        if let Some(text) = text {
            put_bytes(item, field, text.as_bytes());
        }
    }
    let data = open(item, if kind == Kind::Gauge { 5 } else { 7 });
    let data_point = open(item, 1);
    if let Some(start) = start {
        put_fixed64(item, 2, start);
    }
    if nanos != 0 {
        put_fixed64(item, 3, nanos);
    }
    put_fixed64(item, value.field, value.bits);
    item.append(attributes);
    close(item, data_point);
    if kind != Kind::Gauge {
        put_number(item, 2, temporality.unwrap_or(CUMULATIVE));
        if monotonic.unwrap_or(kind == Kind::Counter) {
            put_number(item, 3, 1);
        }
    }
    close(item, data);
    record.finish(out);
    Ok(())
}

const CUMULATIVE: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Sum,
    Counter,
}

fn kind_of(name: &str) -> Checked<Kind> {
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
    match () {
        () if is("gauge") => Ok(Kind::Gauge),
        () if is("sum") => Ok(Kind::Sum),
        () if is("counter") => Ok(Kind::Counter),
        () => Err(Failure::new(Reason::InvalidField, format_args!("type {} is none of gauge, sum, counter", quote(name)))),
    }
}

/// A number as `as_double` or `as_int`.
struct Point {
    field: u32,
    bits: u64,
}

/// JSON cannot write numbers that are not finite, so their names are taken as well.
fn point(value: &Held<'_>) -> Option<Point> {
    let double = match value {
        Held::Integer(number) => return Some(Point { field: 6, bits: *number as u64 }),
        Held::Unsigned(number) => *number as f64,
        Held::Double(number) => *number,
        Held::Text(text) => match &**text {
            "NaN" => f64::NAN,
            "Infinity" | "+Inf" => f64::INFINITY,
            "-Infinity" | "-Inf" => f64::NEG_INFINITY,
            _ => return None,
        },
        _ => return None,
    };
    Some(Point { field: 4, bits: double.to_bits() })
}

fn flag(value: &Held<'_>) -> Option<bool> {
    match value {
        Held::Bool(flag) => Some(*flag),
        _ => None,
    }
}

fn temporality(value: &Held<'_>) -> Option<u64> {
    let name = value.text()?;
    if name.eq_ignore_ascii_case("delta") {
        return Some(1);
    }
    name.eq_ignore_ascii_case("cumulative").then_some(CUMULATIVE)
}
