//! One record per message, as programs write it that know nothing of OTLP: a JSON object or a line of text.
//!
//! ```text
//! json logs     {"timestamp": RFC 3339, "level", "message", "service", "trace_id", "span_id", "attributes": {..}}
//! json traces   {"trace_id", "span_id", "parent_span_id", "name", "kind", "start_time", "end_time", "status", "service", "attributes": {..}}
//! json metrics  {"timestamp": RFC 3339, "name", "type": "gauge" | "sum", "value", "unit", "service", "attributes": {..}}
//! raw           RFC 3339 level service [trace id] sentence order=.. duration_us=..
//! ```

use openwit_operators::batch::Signal;

use super::json::{Object, push_display, push_hex, push_object, push_string};
use super::random::Random;
use super::stamp::Stamp;
use super::time::{push_digits, push_rfc3339};
use super::vocabulary::{CODES_FINE, METHODS, ROUTES, SENTENCES, SERVICES, SEVERITIES, USER_AGENTS};

/// What fills a message up to the size asked for: words, so that it compresses like text.
const FILLER: &str = "the quick brown fox jumps over the lazy dog while ";

/// Appends the JSON object of `stamp`, about `bytes_min` bytes long or its natural size, whichever is more.
pub fn push_json(out: &mut Vec<u8>, signal: Signal, stamp: &Stamp, bytes_min: usize) {
    let mut random = stamp.random();
    let natural_end = out.len() + bytes_min;
    push_object(out, |object| match signal {
        Signal::Logs => log(object, stamp, &mut random, natural_end),
        Signal::Traces => span(object, stamp, &mut random, natural_end),
        Signal::Metrics => metric(object, stamp, &mut random, natural_end),
    });
}

/// Appends the line of text of `stamp`, at least `bytes_min` bytes long.
pub fn push_raw(out: &mut Vec<u8>, stamp: &Stamp, bytes_min: usize) {
    let mut random = stamp.random();
    let end = out.len() + bytes_min;
    push_rfc3339(out, stamp.time_ns(0));
    let (_, level) = SEVERITIES[random.below(SEVERITIES.len() as u64) as usize];
    for word in [" ", level, " ", random.pick(&SERVICES), " ["] {
        out.extend_from_slice(word.as_bytes());
    }
    push_hex(out, &stamp.trace_id(0));
    out.extend_from_slice(b"] ");
    out.extend_from_slice(random.pick(&SENTENCES).as_bytes());
    out.extend_from_slice(b" order=");
    push_digits(out, random.bits(), 10);
    out.extend_from_slice(b" duration_us=");
    push_display(out, random.below(1 << 20));
    out.extend_from_slice(b" agent=");
    push_string(out, random.pick(&USER_AGENTS));
    if out.len() < end {
        out.push(b' ');
        push_filler(out, end);
    }
}

fn push_filler(out: &mut Vec<u8>, end: usize) {
    while out.len() < end {
        let left = (end - out.len()).min(FILLER.len());
        out.extend_from_slice(&FILLER.as_bytes()[..left]);
    }
}

fn push_time(object: &mut Object<'_>, key: &str, unix_ns: u64) {
    let out = object.key(key);
    out.push(b'"');
    push_rfc3339(out, unix_ns);
    out.push(b'"');
}

/// A member that lengthens the object to `end`; left out when the object is long enough.
fn push_note(object: &mut Object<'_>, end: usize) {
    let out = object.key("note");
    out.push(b'"');
    // Room for the quote and the two braces that follow.
    push_filler(out, end.saturating_sub(3));
    out.push(b'"');
}

fn log(object: &mut Object<'_>, stamp: &Stamp, random: &mut Random, end: usize) {
    let (_, level) = SEVERITIES[random.below(SEVERITIES.len() as u64) as usize];
    push_time(object, "timestamp", stamp.time_ns(0));
    object.text("level", level);
    let out = object.key("message");
    push_string(out, random.pick(&SENTENCES));
    // The sentence's closing quote gives way to the order number.
    out.pop();
    out.push(b' ');
    push_digits(out, random.bits(), 10);
    out.push(b'"');
    object.text("service", random.pick(&SERVICES));
    object.id("trace_id", &stamp.trace_id(0));
    object.id("span_id", &stamp.span_id(0));
    object.object("attributes", |object| {
        object.text("http.route", random.pick(&ROUTES));
        push_display(object.key("duration_us"), random.below(1 << 20));
        push_display(object.key("retry"), random.one_in(10));
        push_note_if_short(object, end);
    });
}

fn span(object: &mut Object<'_>, stamp: &Stamp, random: &mut Random, end: usize) {
    let (method, route) = (random.pick(&METHODS), random.pick(&ROUTES));
    let duration_ns = 50_000 + random.below(1 << 23);
    let failed = random.one_in(20);
    object.id("trace_id", &stamp.trace_id(0));
    object.id("span_id", &stamp.span_id(0));
    if !random.one_in(4) {
        object.id("parent_span_id", &random.bits().max(1).to_be_bytes());
    }
    object.text("name", route);
    object.text("kind", random.pick(&["server", "client", "internal", "producer", "consumer"]));
    push_time(object, "start_time", stamp.time_ns(0));
    push_time(object, "end_time", stamp.time_ns(0).wrapping_add(duration_ns));
    object.text("status", if failed { "error" } else { "ok" });
    object.text("service", random.pick(&SERVICES));
    object.object("attributes", |object| {
        object.text("http.request.method", method);
        object.text("http.route", route);
        let code = if failed { 500 } else { CODES_FINE[random.below(CODES_FINE.len() as u64) as usize] };
        push_display(object.key("http.response.status_code"), code);
        object.text("user_agent.original", random.pick(&USER_AGENTS));
        push_display(object.key("http.response.body.size"), random.below(1 << 18));
        push_display(object.key("server.port"), 8080);
        push_note_if_short(object, end);
    });
}

fn metric(object: &mut Object<'_>, stamp: &Stamp, random: &mut Random, end: usize) {
    let (name, kind, unit) = match random.below(3) {
        0 => ("process.memory.usage", "gauge", "By"),
        1 => ("http.server.active_requests", "gauge", "{request}"),
        _ => ("http.server.requests", "sum", "{request}"),
    };
    push_time(object, "timestamp", stamp.time_ns(0));
    object.text("name", name);
    object.text("type", kind);
    push_display(object.key("value"), random.below(1 << 34) as f64 / 16.0);
    object.text("unit", unit);
    object.text("service", random.pick(&SERVICES));
    object.object("attributes", |object| {
        object.text("http.request.method", random.pick(&METHODS));
        object.text("http.route", random.pick(&ROUTES));
        push_note_if_short(object, end);
    });
}

/// Adds a note where the object would end before `end`.
fn push_note_if_short(object: &mut Object<'_>, end: usize) {
    // `,"note":""` and the closing braces.
    const NOTE_FRAME: usize = 12;
    if object.position() + NOTE_FRAME < end {
        push_note(object, end);
    }
}
