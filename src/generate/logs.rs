//! Log records: templates, and stamping a template into a message of its own.

use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData, ResourceLogs, ScopeLogs};

use super::patched::Value as Stamped;
use super::random::Random;
use super::stamp::{ORDER_DIGITS, SPANS_PER_TRACE, Stamp};
use super::vocabulary::{ROUTES, SENTENCES, SEVERITIES, attribute, integer, resource, scope, set_integer, text};

/// Position of the attribute that stamping overwrites.
const DURATION: usize = 1;
/// Log records of one resource and scope.
const RECORDS_PER_RESOURCE: usize = 64;
/// Nanoseconds between an event and its observation by the collector.
const OBSERVED_AFTER_NS: u64 = 1_700_000;

/// A template of `records` log records. Its identifiers and times are placeholders of the right length.
pub fn template(random: &mut Random, records: usize) -> LogsData {
    let mut local = 0;
    let mut resource_logs = Vec::new();
    while local < records {
        let end = records.min(local + RECORDS_PER_RESOURCE);
        let log_records = (local..end).map(|local| record(random, local)).collect();
        let scope_logs = ScopeLogs { scope: Some(scope("com.example.shop.orders")), log_records, ..ScopeLogs::default() };
        let resource = Some(resource(random));
        resource_logs.push(ResourceLogs { resource, scope_logs: vec![scope_logs], ..ResourceLogs::default() });
        local = end;
    }
    LogsData { resource_logs }
}

fn record(random: &mut Random, local: usize) -> LogRecord {
    let (severity_number, severity) = SEVERITIES[random.below(SEVERITIES.len() as u64) as usize];
    // Every fifth record was written outside of any trace, as at start-up.
    let traced = local % 5 != 4;
    LogRecord {
        severity_number,
        severity_text: severity.to_owned(),
        body: Some(text(format!("{} {:0ORDER_DIGITS$}", random.pick(&SENTENCES), 0))),
        attributes: vec![
            attribute("http.route", text(random.pick(&ROUTES))),
            attribute("duration_us", integer(0)),
            attribute("thread.name", text(format!("worker-{}", random.below(32)))),
            attribute("code.function.name", text("com.example.shop.orders.OrderService.place")),
        ],
        flags: u32::from(traced),
        trace_id: if traced { vec![0; 16] } else { vec![] },
        span_id: if traced { vec![0; 8] } else { vec![] },
        event_name: if local % 20 == 3 { "order.placed".to_owned() } else { String::new() },
        ..LogRecord::default()
    }
}

/// Makes `data`, a template or a message stamped before, the message of `stamp`. Allocates nothing.
///
/// `mark` is told of each value stamped, in the order in which they lie in the encoded message.
pub fn stamp(data: &mut LogsData, stamp: &Stamp, mark: &mut dyn FnMut(Stamped)) {
    let scopes = data.resource_logs.iter_mut().flat_map(|resource| &mut resource.scope_logs);
    for (local, record) in scopes.flat_map(|scope| &mut scope.log_records).enumerate() {
        stamp_record(record, local as u64, stamp, mark);
    }
}

fn stamp_record(record: &mut LogRecord, local: u64, stamp: &Stamp, mark: &mut dyn FnMut(Stamped)) {
    record.time_unix_nano = stamp.time_ns(local);
    record.observed_time_unix_nano = record.time_unix_nano.wrapping_add(OBSERVED_AFTER_NS);
    mark(Stamped::Time(local, 0));
    if let Some(AnyValue { value: Some(Value::StringValue(body)) }) = &mut record.body {
        // The order number stands at the end of the sentence.
        body.truncate(body.len().saturating_sub(ORDER_DIGITS));
        body.extend(stamp.order(local).map(char::from));
        mark(Stamped::Order(local));
    }
    set_integer(&mut record.attributes[DURATION], stamp.amount(local) as i64);
    mark(Stamped::Amount(local));
    if !record.trace_id.is_empty() {
        let trace = local / SPANS_PER_TRACE;
        record.trace_id.copy_from_slice(&stamp.trace_id(trace));
        record.span_id.copy_from_slice(&stamp.span_id(local));
        mark(Stamped::TraceId(trace));
        mark(Stamped::SpanId(local));
    }
    mark(Stamped::Time(local, OBSERVED_AFTER_NS));
}

/// Log records in `data`.
#[cfg(test)]
pub fn count(data: &LogsData) -> usize {
    data.resource_logs.iter().flat_map(|resource| &resource.scope_logs).map(|scope| scope.log_records.len()).sum()
}
