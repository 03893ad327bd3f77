//! Format `otlp_proto`: a walk that proves a payload to be conforming OTLP protobuf of one signal, without decoding it.
//!
//! What passes is not copied, and decoding it later cannot fail. Checked are, for all known fields: wire types, lengths, UTF-8 of
//! strings, packed lists; and the rules that protobuf does not know: ids, times, depth of values, size of one row. Unknown fields are
//! passed over, as protobuf wants, but a message made of nothing else is refused, and so are fields that carried data in versions
//! before 1.0: reading over them would lose rows in silence.
//!
//! ```text
//! TracesData > resource_spans > scope_spans > spans                           one row each
//! LogsData > resource_logs > scope_logs > log_records                         one row each
//! MetricsData > resource_metrics > scope_metrics > metrics > data points      one row each
//! ```
//! Recursion is only in values (`AnyValue`) and ends at `depth_max`.

use crate::batch::{Reason, Signal};
use crate::otlp::wire::{Value, fields};

use super::failure::{Checked, Failure};

mod metrics;

/// Limits of a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Levels of values inside one another; a plain string is one.
    pub depth_max: u32,
    /// Bytes of one span, log record or data point with its metric, scope and resource.
    pub row_bytes_max: usize,
}

/// Bytes that a message may become as rows, each with its resource, scope and metric. Resources are repeated on every row, so a few MiB
/// of a hostile message could become gigabytes of memory. Honest ones grow by a fraction of the payload limit.
const EXPANDED_BYTES_MAX: u64 = 128 << 20;

/// What lies below a resource or a scope, or is one item.
#[derive(Clone, Copy, Default)]
struct Rows {
    count: u64,
    /// Bytes of the widest row, counting from the level at hand downwards.
    widest: usize,
    /// Bytes of all rows: what is shared counts once for each.
    expanded: u64,
}

impl Rows {
    fn add(&mut self, other: Rows) {
        self.count += other.count;
        self.widest = self.widest.max(other.widest);
        self.expanded += other.expanded;
    }

    /// One row of `bytes` bytes.
    fn one(bytes: usize) -> Rows {
        Rows { count: 1, widest: bytes, expanded: bytes as u64 }
    }

    /// Repeats `bytes` bytes of a resource, scope or metric on every row.
    fn share(&mut self, bytes: usize) {
        self.widest += bytes;
        self.expanded = self.expanded.saturating_add(self.count.saturating_mul(bytes as u64));
    }
}

/// Checks that `payload` is of `signal`, and counts its rows.
pub(super) fn check(payload: &[u8], signal: Signal, rules: &Rules) -> Checked<u64> {
    match signal {
        Signal::Traces => data(payload, rules, span),
        Signal::Logs => data(payload, rules, log_record),
        Signal::Metrics => data(payload, rules, metrics::metric),
    }
}

/// As `check`, but tells a payload of another signal from a broken one. Only a failed payload is walked again.
pub(super) fn check_or_name_signal(payload: &[u8], signal: Signal, rules: &Rules) -> Checked<u64> {
    check(payload, signal, rules).map_err(|failure| {
        // A limit was hit by what otherwise was of the signal.
        if matches!(failure.reason, Reason::TooLarge | Reason::TooDeep) {
            return failure;
        }
        let others = [Signal::Traces, Signal::Logs, Signal::Metrics].into_iter().filter(|&other| other != signal);
        let found = others.into_iter().find(|&other| check(payload, other, rules).is_ok_and(|rows| rows > 0));
        match found {
            Some(found) => wrong_signal(signal, found),
            None => failure,
        }
    })
}

/// The failure of a payload that is of `found` in a topic of `expected`.
#[cold]
pub(super) fn wrong_signal(expected: Signal, found: Signal) -> Box<Failure> {
    Failure::new(Reason::WrongSignal, format_args!("payload holds {found}, its topic carries {expected}"))
}

/// The outermost message: field 1, repeated.
fn data(payload: &[u8], rules: &Rules, item: impl Fn(&[u8], &Rules) -> Checked<Rows> + Copy) -> Checked<u64> {
    let mut rows = Rows::default();
    let mut resources = 0usize;
    for field in fields(payload) {
        if let (1, value) = field? {
            let below = resource_items(message(value, "resource")?, rules, item);
            rows.add(below.map_err(|failure| failure.within(format_args!("resources[{resources}]")))?);
            resources += 1;
        }
    }
    if rows.expanded > EXPANDED_BYTES_MAX {
        return Err(expands_too_far(&rows, payload.len()));
    }
    if resources == 0 {
        return Err(Failure::new(Reason::Undecodable, "protobuf without any resource (field 1)"));
    }
    Ok(rows.count)
}

#[cold]
fn expands_too_far(rows: &Rows, bytes: usize) -> Box<Failure> {
    let Rows { count, expanded, .. } = rows;
    let message = format_args!(
        "{count} rows share so large a resource that {bytes} bytes become {expanded}, over the limit of {EXPANDED_BYTES_MAX}: send fewer records a message"
    );
    Failure::new(Reason::TooLarge, message)
}

/// `ResourceSpans`, `ResourceLogs`, `ResourceMetrics`: one form. Here a row's size is known, so here it is judged.
fn resource_items(bytes: &[u8], rules: &Rules, item: impl Fn(&[u8], &Rules) -> Checked<Rows> + Copy) -> Checked<Rows> {
    let mut rows = Rows::default();
    let (mut shared, mut scopes, mut known) = (0, 0usize, bytes.is_empty());
    for field in fields(bytes) {
        let (number, value) = field?;
        known |= number <= 3;
        match number {
            1 => {
                let bytes = message(value, "resource")?;
                resource(bytes, rules).map_err(|failure| failure.within("resource"))?;
                shared += bytes.len();
            }
            2 => {
                let below = scope_items(message(value, "scope")?, rules, item);
                rows.add(below.map_err(|failure| failure.within(format_args!("scopes[{scopes}]")))?);
                scopes += 1;
            }
            3 => shared += text(value, "schema_url")?,
            1000 => return Err(removed("instrumentation_library_* (field 1000)", "0.19")),
            _ => {}
        }
    }
    require_known(known, "resource")?;
    rows.share(shared);
    if rows.widest > rules.row_bytes_max {
        return Err(row_too_large(rows.widest, shared, rules.row_bytes_max));
    }
    Ok(rows)
}

#[cold]
fn row_too_large(widest: usize, shared: usize, limit: usize) -> Box<Failure> {
    let message = format_args!("a row of {widest} bytes, {shared} of them its resource, is over the limit of {limit}");
    Failure::new(Reason::TooLarge, message)
}

/// `ScopeSpans`, `ScopeLogs`, `ScopeMetrics`: one form.
fn scope_items(bytes: &[u8], rules: &Rules, item: impl Fn(&[u8], &Rules) -> Checked<Rows> + Copy) -> Checked<Rows> {
    let mut rows = Rows::default();
    let (mut shared, mut items, mut known) = (0, 0usize, bytes.is_empty());
    for field in fields(bytes) {
        let (number, value) = field?;
        known |= number <= 3;
        match number {
            1 => {
                let bytes = message(value, "scope")?;
                scope(bytes, rules).map_err(|failure| failure.within("scope"))?;
                shared += bytes.len();
            }
            2 => {
                let below = item(message(value, "item")?, rules);
                rows.add(below.map_err(|failure| failure.within(format_args!("items[{items}]")))?);
                items += 1;
            }
            3 => shared += text(value, "schema_url")?,
            _ => {}
        }
    }
    require_known(known, "scope")?;
    rows.share(shared);
    Ok(rows)
}

fn resource(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, value) => attribute(value, rules)?,
            (2, value) => number(value, "dropped_attributes_count")?,
            (3, value) => entity(message(value, "entity_refs")?)?,
            _ => {}
        }
    }
    Ok(())
}

fn entity(bytes: &[u8]) -> Checked<()> {
    for field in fields(bytes) {
        if let (1..=4, value) = field? {
            text(value, "entity_refs")?;
        }
    }
    Ok(())
}

fn scope(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, value) => drop(text(value, "name")?),
            (2, value) => drop(text(value, "version")?),
            (3, value) => attribute(value, rules)?,
            (4, value) => number(value, "dropped_attributes_count")?,
            _ => {}
        }
    }
    Ok(())
}

fn span(bytes: &[u8], rules: &Rules) -> Checked<Rows> {
    let (mut trace_id, mut span_id): (&[u8], &[u8]) = (&[], &[]);
    for field in fields(bytes) {
        match field? {
            (1, value) => trace_id = id(value, 16, "trace_id")?,
            (2, value) => span_id = id(value, 8, "span_id")?,
            (3, value) => drop(text(value, "trace_state")?),
            (4, value) => drop(id(value, 8, "parent_span_id")?),
            (5, value) => drop(text(value, "name")?),
            (6, value) => number(value, "kind")?,
            (7, value) => time(value, "start_time_unix_nano")?,
            (8, value) => time(value, "end_time_unix_nano")?,
            (9, value) => attribute(value, rules)?,
            (10, value) => number(value, "dropped_attributes_count")?,
            (11, value) => event(message(value, "events")?, rules)?,
            (12, value) => number(value, "dropped_events_count")?,
            (13, value) => link(message(value, "links")?, rules)?,
            (14, value) => number(value, "dropped_links_count")?,
            (15, value) => status(message(value, "status")?)?,
            (16, value) => fixed32(value, "flags")?,
            _ => {}
        }
    }
    // OTLP calls a span without both ids invalid, and all zeros no id. The producer can be mended from the dead letter; a row that
    // belongs to no trace cannot.
    require_id(trace_id, "trace_id")?;
    require_id(span_id, "span_id")?;
    Ok(Rows::one(bytes.len()))
}

fn event(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, value) => time(value, "events.time_unix_nano")?,
            (2, value) => drop(text(value, "events.name")?),
            (3, value) => attribute(value, rules)?,
            (4, value) => number(value, "events.dropped_attributes_count")?,
            _ => {}
        }
    }
    Ok(())
}

fn link(bytes: &[u8], rules: &Rules) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (1, value) => drop(id(value, 16, "links.trace_id")?),
            (2, value) => drop(id(value, 8, "links.span_id")?),
            (3, value) => drop(text(value, "links.trace_state")?),
            (4, value) => attribute(value, rules)?,
            (5, value) => number(value, "links.dropped_attributes_count")?,
            (6, value) => fixed32(value, "links.flags")?,
            _ => {}
        }
    }
    Ok(())
}

fn status(bytes: &[u8]) -> Checked<()> {
    for field in fields(bytes) {
        match field? {
            (2, value) => drop(text(value, "status.message")?),
            (3, value) => number(value, "status.code")?,
            _ => {}
        }
    }
    Ok(())
}

fn log_record(bytes: &[u8], rules: &Rules) -> Checked<Rows> {
    let mut known = bytes.is_empty();
    for field in fields(bytes) {
        let (number_of_field, value) = field?;
        // Field 4 held a name in early versions; alone it makes no record.
        known |= number_of_field <= 12 && number_of_field != 4;
        match number_of_field {
            1 => time(value, "time_unix_nano")?,
            2 => number(value, "severity_number")?,
            3 => drop(text(value, "severity_text")?),
            5 => any_value(message(value, "body")?, 1, rules).map_err(|failure| failure.within("body"))?,
            6 => attribute(value, rules)?,
            7 => number(value, "dropped_attributes_count")?,
            8 => fixed32(value, "flags")?,
            9 => drop(id(value, 16, "trace_id")?),
            10 => drop(id(value, 8, "span_id")?),
            11 => time(value, "observed_time_unix_nano")?,
            12 => drop(text(value, "event_name")?),
            _ => {}
        }
    }
    require_known(known, "log record")?;
    Ok(Rows::one(bytes.len()))
}

/// A `KeyValue` of an attribute list: its value is the first level.
#[inline]
fn attribute(value: Value<'_>, rules: &Rules) -> Checked<()> {
    key_value(message(value, "attributes")?, 1, rules)
}

#[inline]
fn key_value(bytes: &[u8], depth: u32, rules: &Rules) -> Checked<()> {
    let mut key: &[u8] = &[];
    for field in fields(bytes) {
        let checked = match field? {
            (1, Value::Bytes(bytes)) => {
                key = bytes;
                utf8(bytes, "key")
            }
            (1, _) => Err(wire_type("key")),
            (2, value) => message(value, "value").and_then(|bytes| any_value(bytes, depth, rules)),
            (3, value) => number(value, "key_strindex"),
            _ => Ok(()),
        };
        checked.map_err(|failure| within_attribute(failure, key))?;
    }
    Ok(())
}

#[cold]
fn within_attribute(failure: Box<Failure>, key: &[u8]) -> Box<Failure> {
    failure.within(super::failure::quote(&String::from_utf8_lossy(key)))
}

/// An `AnyValue` and all inside it. The stack it takes is bounded by `depth_max`.
fn any_value(bytes: &[u8], depth: u32, rules: &Rules) -> Checked<()> {
    if depth > rules.depth_max {
        return Err(too_deep(rules.depth_max));
    }
    for field in fields(bytes) {
        match field? {
            (1, value) => drop(text(value, "string_value")?),
            (2, value) => number(value, "bool_value")?,
            (3, value) => number(value, "int_value")?,
            (4, value) => fixed64(value, "double_value")?,
            (5, value) => {
                for field in fields(message(value, "array_value")?) {
                    if let (1, value) = field? {
                        any_value(message(value, "array_value.values")?, depth + 1, rules)?;
                    }
                }
            }
            (6, value) => {
                for field in fields(message(value, "kvlist_value")?) {
                    if let (1, value) = field? {
                        key_value(message(value, "kvlist_value.values")?, depth + 1, rules)?;
                    }
                }
            }
            (7, value) => drop(message(value, "bytes_value")?),
            (8, value) => number(value, "string_value_strindex")?,
            _ => {}
        }
    }
    Ok(())
}

#[cold]
fn too_deep(depth_max: u32) -> Box<Failure> {
    Failure::new(Reason::TooDeep, format_args!("a value is nested deeper than {depth_max} levels"))
}

#[cold]
fn wire_type(field: &'static str) -> Box<Failure> {
    Failure::new(Reason::Malformed, format_args!("{field} has the wrong wire type"))
}

#[cold]
fn removed(field: &str, version: &str) -> Box<Failure> {
    let message = format_args!("{field} was removed from OTLP in {version}; its data would be lost");
    Failure::new(Reason::InvalidField, message)
}

#[inline]
fn require_known(known: bool, what: &str) -> Checked<()> {
    if known {
        return Ok(());
    }
    Err(Failure::new(Reason::Undecodable, format_args!("protobuf where a {what} has unknown fields only")))
}

/// The bytes of a message or bytes field.
#[inline(always)]
fn message<'a>(value: Value<'a>, field: &'static str) -> Checked<&'a [u8]> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        _ => Err(wire_type(field)),
    }
}

/// A string field; gives its length.
#[inline(always)]
fn text(value: Value<'_>, field: &'static str) -> Checked<usize> {
    let bytes = message(value, field)?;
    utf8(bytes, field)?;
    Ok(bytes.len())
}

/// Most strings are short and ASCII, which is told by a few words' high bits; the vectors come in where that fails.
#[inline(always)]
fn utf8(bytes: &[u8], field: &'static str) -> Checked<()> {
    if bytes.is_ascii() || simdutf8::basic::from_utf8(bytes).is_ok() {
        return Ok(());
    }
    Err(not_utf8(field))
}

#[cold]
fn not_utf8(field: &'static str) -> Box<Failure> {
    Failure::new(Reason::InvalidUtf8, format_args!("{field} is not UTF-8"))
}

#[inline(always)]
fn number(value: Value<'_>, field: &'static str) -> Checked<()> {
    match value {
        Value::Varint(_) => Ok(()),
        _ => Err(wire_type(field)),
    }
}

#[inline(always)]
fn fixed64(value: Value<'_>, field: &'static str) -> Checked<()> {
    match value {
        Value::Fixed64(_) => Ok(()),
        _ => Err(wire_type(field)),
    }
}

#[inline(always)]
fn fixed32(value: Value<'_>, field: &'static str) -> Checked<()> {
    match value {
        Value::Fixed32(_) => Ok(()),
        _ => Err(wire_type(field)),
    }
}

/// Unix nanoseconds, kept as a signed number everywhere behind: until the year 2262.
#[inline(always)]
fn time(value: Value<'_>, field: &'static str) -> Checked<()> {
    match value {
        Value::Fixed64(nanos) if nanos <= i64::MAX as u64 => Ok(()),
        Value::Fixed64(nanos) => Err(time_out_of_range(field, nanos)),
        _ => Err(wire_type(field)),
    }
}

#[cold]
fn time_out_of_range(field: &'static str, nanos: u64) -> Box<Failure> {
    Failure::new(Reason::InvalidField, format_args!("{field} {nanos} is over {}, in the year 2262", i64::MAX))
}

/// An id of `len` bytes, or none.
#[inline(always)]
fn id<'a>(value: Value<'a>, len: usize, field: &'static str) -> Checked<&'a [u8]> {
    let bytes = message(value, field)?;
    if bytes.len() != len && !bytes.is_empty() {
        return Err(id_length(field, bytes.len(), len));
    }
    Ok(bytes)
}

#[cold]
fn id_length(field: &'static str, found: usize, expected: usize) -> Box<Failure> {
    Failure::new(Reason::InvalidField, format_args!("{field} is {found} bytes long, not {expected}"))
}

#[inline(always)]
fn require_id(id: &[u8], field: &'static str) -> Checked<()> {
    if id.iter().any(|&byte| byte != 0) {
        return Ok(());
    }
    let found = if id.is_empty() { "missing" } else { "all zeros" };
    Err(Failure::new(Reason::InvalidField, format_args!("{field} is {found}")))
}
