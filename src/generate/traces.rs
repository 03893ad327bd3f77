//! Spans: templates, and stamping a template into a message of its own.
//!
//! Six spans make a trace, as a binary tree under a root without parent. Every twentieth span failed and has an exception event; every
//! sixteenth links to another trace of its message.

use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};

use super::patched::Value;
use super::random::Random;
use super::stamp::{SPANS_PER_TRACE, Stamp};
use super::vocabulary::{
    CODES_FINE, METHODS, ROUTES, USER_AGENTS, attribute, integer, resource, scope, set_address, set_integer, text,
};

// Positions of the attributes that stamping overwrites.
const CLIENT_ADDRESS: usize = 3;
const BODY_SIZE: usize = 5;

/// Spans of one resource and scope: more would make the resource free, fewer would make it dominate.
const SPANS_PER_RESOURCE: usize = 64;

/// A template of `spans` spans. Its identifiers and times are placeholders of the right length.
pub fn template(random: &mut Random, spans: usize) -> TracesData {
    let mut local = 0;
    let mut resource_spans = Vec::new();
    while local < spans {
        let end = spans.min(local + SPANS_PER_RESOURCE);
        let spans = (local..end).map(|local| span(random, local as u64)).collect();
        let scope_spans = ScopeSpans { scope: Some(scope("io.opentelemetry.http-server")), spans, ..ScopeSpans::default() };
        let resource = Some(resource(random));
        resource_spans.push(ResourceSpans { resource, scope_spans: vec![scope_spans], ..ResourceSpans::default() });
        local = end;
    }
    TracesData { resource_spans }
}

fn span(random: &mut Random, local: u64) -> Span {
    let failed = local % 20 == 7;
    let (method, route) = (random.pick(&METHODS), random.pick(&ROUTES));
    let code = if failed { 500 + random.below(4) as i64 } else { CODES_FINE[random.below(CODES_FINE.len() as u64) as usize] };
    // Durations spread over four orders of magnitude, as those of requests do.
    let magnitude = random.below(14);
    let duration_ns = 50_000 + random.below(1 << (10 + magnitude));
    Span {
        trace_id: vec![0; 16],
        span_id: vec![0; 8],
        parent_span_id: if parent(local).is_some() { vec![0; 8] } else { vec![] },
        trace_state: if local % 25 == 3 { "vendor=t61rcWkgMzE".to_owned() } else { String::new() },
        flags: 0x101,
        name: format!("{method} {route}"),
        kind: 1 + random.below(5) as i32,
        start_time_unix_nano: 0,
        end_time_unix_nano: duration_ns,
        attributes: vec![
            attribute("http.request.method", text(method)),
            attribute("http.route", text(route)),
            attribute("http.response.status_code", integer(code)),
            attribute("client.address", text("10.100.100.100")),
            attribute("user_agent.original", text(random.pick(&USER_AGENTS))),
            attribute("http.response.body.size", integer(0)),
            attribute("server.port", integer(8080)),
        ],
        events: if failed { vec![exception(duration_ns)] } else { vec![] },
        links: if local % 16 == 5 { vec![link()] } else { vec![] },
        status: status(failed, random),
        ..Span::default()
    }
}

fn status(failed: bool, random: &mut Random) -> Option<Status> {
    if failed {
        return Some(Status { code: 2, message: "connection reset by upstream".to_owned() });
    }
    random.one_in(4).then(|| Status { code: 1, ..Status::default() })
}

fn exception(duration_ns: u64) -> Event {
    Event {
        time_unix_nano: duration_ns / 2,
        name: "exception".to_owned(),
        attributes: vec![
            attribute("exception.type", text("java.net.SocketException")),
            attribute("exception.message", text("Connection reset by peer: \"payments-3\"")),
        ],
        ..Event::default()
    }
}

fn link() -> Link {
    Link {
        trace_id: vec![0; 16],
        span_id: vec![0; 8],
        attributes: vec![attribute("link.reason", text("batch"))],
        ..Link::default()
    }
}

/// The span under which span `local` of a message lies: a binary tree within each trace.
fn parent(local: u64) -> Option<u64> {
    let root = local - local % SPANS_PER_TRACE;
    (local > root).then(|| root + (local - root - 1) / 2)
}

/// Makes `data`, a template or a message stamped before, the message of `stamp`. Allocates nothing.
///
/// `mark` is told of each value stamped, in the order in which they lie in the encoded message.
pub fn stamp(data: &mut TracesData, stamp: &Stamp, mark: &mut dyn FnMut(Value)) {
    let scopes = data.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
    for (local, span) in scopes.flat_map(|scope| &mut scope.spans).enumerate() {
        stamp_span(span, local as u64, stamp, mark);
    }
}

fn stamp_span(span: &mut Span, local: u64, stamp: &Stamp, mark: &mut dyn FnMut(Value)) {
    let trace = local / SPANS_PER_TRACE;
    span.trace_id.copy_from_slice(&stamp.trace_id(trace));
    span.span_id.copy_from_slice(&stamp.span_id(local));
    mark(Value::TraceId(trace));
    mark(Value::SpanId(local));
    if let Some(parent) = parent(local) {
        span.parent_span_id.copy_from_slice(&stamp.span_id(parent));
        mark(Value::SpanId(parent));
    }
    // Durations and the distance of events from the start are the template's: only the whole span is moved.
    let (old_start, new_start) = (span.start_time_unix_nano, stamp.time_ns(local));
    let move_time = |time: &mut u64, mark: &mut dyn FnMut(Value)| {
        let after_ns = time.wrapping_sub(old_start);
        *time = new_start.wrapping_add(after_ns);
        mark(Value::Time(local, after_ns));
    };
    move_time(&mut span.start_time_unix_nano, mark);
    move_time(&mut span.end_time_unix_nano, mark);
    set_address(&mut span.attributes[CLIENT_ADDRESS], stamp.address(local));
    set_integer(&mut span.attributes[BODY_SIZE], stamp.amount(local) as i64);
    mark(Value::Address(local));
    mark(Value::Amount(local));
    span.events.iter_mut().for_each(|event| move_time(&mut event.time_unix_nano, mark));
    for link in &mut span.links {
        let linked = trace.saturating_sub(1);
        link.trace_id.copy_from_slice(&stamp.trace_id(linked));
        link.span_id.copy_from_slice(&stamp.span_id(linked * SPANS_PER_TRACE));
        mark(Value::TraceId(linked));
        mark(Value::SpanId(linked * SPANS_PER_TRACE));
    }
}

/// Spans in `data`.
#[cfg(test)]
pub fn count(data: &TracesData) -> usize {
    data.resource_spans.iter().flat_map(|resource| &resource.scope_spans).map(|scope| scope.spans.len()).sum()
}
