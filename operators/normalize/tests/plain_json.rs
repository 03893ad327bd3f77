//! Plain JSON: what each key becomes.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData};
use opentelemetry_proto::tonic::metrics::v1::{Metric, MetricsData, NumberDataPoint, metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::{Span, Status, TracesData, span::Event};
use prost::Message as _;

use super::samples::{SPAN_ID, TRACE_ID, any, attribute, text, text_attribute};
use super::*;

/// The one record of `json`, and the attributes of its resource.
fn log(json: &str) -> (LogRecord, Vec<KeyValue>) {
    let written = accepted(&mut normalizer(Format::Json, Signal::Logs), json);
    assert_eq!(accepted(&mut normalizer(Format::Auto, Signal::Logs), json), written, "auto finds the same");
    let mut data = LogsData::decode(&written[..]).unwrap();
    let mut resource = data.resource_logs.pop().unwrap();
    let record = resource.scope_logs.pop().unwrap().log_records.pop().unwrap();
    (record, resource.resource.map(|resource| resource.attributes).unwrap_or_default())
}

/// A record as Kafka's time alone would make it.
fn timed(nanos: u64) -> LogRecord {
    LogRecord { time_unix_nano: nanos, observed_time_unix_nano: KAFKA_NANOS, ..LogRecord::default() }
}

#[test]
fn a_usual_line_fills_every_slot() {
    let json = r#"{"ts":"2026-11-23T12:01:02.5Z","level":"warn","msg":"stock is \"low\"","traceId":"0af7651916cd43dd8448eb211c80319c",
        "span_id":"B7AD6B7169203331","service":"basket","resource":{"host.name":"h1"},"attributes":{"left":3},"retry":true,"took_ms":1.5}"#;
    let (record, resource) = log(json);
    let expected = LogRecord {
        severity_number: 13,
        severity_text: "warn".into(),
        body: Some(text("stock is \"low\"")),
        trace_id: TRACE_ID.into(),
        span_id: SPAN_ID.into(),
        attributes: vec![
            attribute("left", Value::IntValue(3)),
            attribute("retry", Value::BoolValue(true)),
            attribute("took_ms", Value::DoubleValue(1.5)),
        ],
        ..timed(1_795_435_262_500_000_000)
    };
    assert_eq!(record, expected);
    assert_eq!(resource, [text_attribute("host.name", "h1"), text_attribute("service.name", "basket")]);
}

#[test]
fn types_are_kept_and_nulls_dropped() {
    let json = r#"{"i":-9223372036854775808,"u":18446744073709551615,"big":123456789012345678901234567890,"f":-0.0,"n":null,
        "a":[1,null,[],{"x":null,"y":"z"}],"o":{"p":{"q":[]}},"e":"gr\u00fc\u00dfe \ud83d\ude00 \u0000","":"empty key"}"#;
    let list = |values| Value::KvlistValue(KeyValueList { values });
    let array = |values| Value::ArrayValue(ArrayValue { values });
    let elements =
        vec![any(Value::IntValue(1)), AnyValue { value: None }, any(array(vec![])), any(list(vec![text_attribute("y", "z")]))];
    let expected = vec![
        attribute("i", Value::IntValue(i64::MIN)),
        text_attribute("u", "18446744073709551615"),
        attribute("big", Value::DoubleValue(123456789012345678901234567890.0)),
        attribute("f", Value::DoubleValue(-0.0)),
        attribute("a", array(elements)),
        attribute("o", list(vec![attribute("p", list(vec![attribute("q", array(vec![]))]))])),
        text_attribute("e", "gr\u{fc}\u{df}e \u{1f600} \u{0}"),
        text_attribute("", "empty key"),
    ];
    assert_eq!(log(json).0, LogRecord { attributes: expected, ..timed(KAFKA_NANOS) });
}

/// Each object beside the record it becomes, less Kafka's times where they are not the point.
#[test]
fn slots_take_what_they_can_use_and_leave_the_rest_as_attributes() {
    let attributes = |attributes: Vec<KeyValue>| LogRecord { attributes, ..timed(KAFKA_NANOS) };
    let severity = |number, text: &str| LogRecord { severity_number: number, severity_text: text.into(), ..timed(KAFKA_NANOS) };
    let body = |value| LogRecord { body: Some(value), ..timed(KAFKA_NANOS) };
    let cases: Vec<(&str, LogRecord)> = vec![
        ("{}", timed(KAFKA_NANOS)),
        (r#"{"timestamp":"yesterday"}"#, attributes(vec![text_attribute("timestamp", "yesterday")])),
        (
            r#"{"timestamp":"yesterday","ts":1760000000}"#,
            LogRecord { attributes: vec![text_attribute("timestamp", "yesterday")], ..timed(1_760_000_000_000_000_000) },
        ),
        (
            r#"{"ts":1760000000,"time":1760000001}"#,
            LogRecord { attributes: vec![attribute("ts", Value::IntValue(1_760_000_000))], ..timed(1_760_000_001_000_000_000) },
        ),
        (r#"{"time":12.5}"#, attributes(vec![attribute("time", Value::DoubleValue(12.5))])),
        (r#"{"level":"INFO"}"#, severity(9, "INFO")),
        (r#"{"lvl":"Debug2"}"#, severity(6, "Debug2")),
        (r#"{"severity":"strange"}"#, severity(0, "strange")),
        (r#"{"level":17}"#, severity(17, "")),
        (r#"{"level":"error","severity_number":20}"#, severity(20, "error")),
        (r#"{"level":30}"#, attributes(vec![attribute("level", Value::IntValue(30))])),
        (
            r#"{"level":9,"severity_number":10}"#,
            LogRecord { attributes: vec![attribute("level", Value::IntValue(9))], ..severity(10, "") },
        ),
        (r#"{"text":"a","message":"b"}"#, LogRecord { attributes: vec![text_attribute("text", "a")], ..body(text("b")) }),
        (r#"{"message":"a","message":"b"}"#, LogRecord { attributes: vec![text_attribute("message", "b")], ..body(text("a")) }),
        (r#"{"k":1,"k":2}"#, attributes(vec![attribute("k", Value::IntValue(1)), attribute("k", Value::IntValue(2))])),
        (
            r#"{"body":{"a":[1]}}"#,
            body(any(Value::KvlistValue(KeyValueList {
                values: vec![attribute("a", Value::ArrayValue(ArrayValue { values: vec![any(Value::IntValue(1))] }))],
            }))),
        ),
        (r#"{"log":5}"#, body(any(Value::IntValue(5)))),
        (r#"{"msg":null}"#, timed(KAFKA_NANOS)),
        (r#"{"trace_id":"xyz","span_id":""}"#, attributes(vec![text_attribute("trace_id", "xyz")])),
        (
            r#"{"service":{"name":"x"}}"#,
            attributes(vec![attribute(
                "service",
                Value::KvlistValue(KeyValueList { values: vec![text_attribute("name", "x")] }),
            )]),
        ),
        (
            r#"{"resource":"r","attributes":[1]}"#,
            attributes(vec![
                text_attribute("resource", "r"),
                attribute("attributes", Value::ArrayValue(ArrayValue { values: vec![any(Value::IntValue(1))] })),
            ]),
        ),
        ("\u{feff} {\"msg\":\"after a mark\"}\r\n", body(text("after a mark"))),
    ];
    for (json, expected) in cases {
        assert_eq!(log(json), (expected, vec![]), "{json}");
    }
}

#[test]
fn a_resource_that_names_its_service_wins() {
    let (record, resource) = log(r#"{"service":"a","resource":{"service.name":"b"}}"#);
    assert_eq!(resource, [text_attribute("service.name", "b")]);
    assert_eq!(record.attributes, [text_attribute("service", "a")]);
}

#[test]
fn a_flat_span_becomes_a_span() {
    let json = r#"{"traceId":"0af7651916cd43dd8448eb211c80319c","spanId":"b7ad6b7169203331","parentSpanId":"","name":"GET /","kind":"SPAN_KIND_SERVER",
        "startTimeUnixNano":"5","endTimeUnixNano":7,"status":{"code":2,"message":"gone"},"service":"basket","resource":{"zone":"b"},
        "attributes":{"http.status":200},"extra":[true],"events":[{"name":"miss","timestamp":1760000000,"key":"k","attributes":{"a":1}},{"name":"hit"}]}"#;
    let written = accepted(&mut normalizer(Format::Json, Signal::Traces), json);
    let data = TracesData::decode(&written[..]).unwrap();
    let miss = Event {
        time_unix_nano: 1_760_000_000_000_000_000,
        name: "miss".into(),
        attributes: vec![text_attribute("key", "k"), attribute("a", Value::IntValue(1))],
        dropped_attributes_count: 0,
    };
    let expected = Span {
        trace_id: TRACE_ID.into(),
        span_id: SPAN_ID.into(),
        name: "GET /".into(),
        kind: 2,
        start_time_unix_nano: 5,
        end_time_unix_nano: 7,
        attributes: vec![
            attribute("http.status", Value::IntValue(200)),
            attribute("extra", Value::ArrayValue(ArrayValue { values: vec![any(Value::BoolValue(true))] })),
        ],
        events: vec![miss, Event { name: "hit".into(), ..Event::default() }],
        status: Some(Status { message: "gone".into(), code: 2 }),
        ..Span::default()
    };
    assert_eq!(data.resource_spans[0].scope_spans[0].spans, [expected]);
    let resource = data.resource_spans[0].resource.clone().unwrap();
    assert_eq!(resource.attributes, [text_attribute("zone", "b"), text_attribute("service.name", "basket")]);
}

/// The span of the required fields and `more`.
fn span(more: &str) -> Span {
    let json = format!(
        r#"{{"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","name":"n","start_time":1760000000{more}}}"#
    );
    let written = accepted(&mut normalizer(Format::Json, Signal::Traces), &json);
    TracesData::decode(&written[..]).unwrap().resource_spans[0].scope_spans[0].spans[0].clone()
}

#[test]
fn durations_kinds_and_statuses_are_taken_in_all_their_forms() {
    const START: u64 = 1_760_000_000_000_000_000;
    for (more, end) in [
        (r#","duration":250"#, START + 250),
        (r#","duration":"1.5ms""#, START + 1_500_000),
        (r#","duration_ms":2.5"#, START + 2_500_000),
        (r#","duration_us":3"#, START + 3_000),
        (r#","end_time":1760000001,"duration":9"#, START + 1_000_000_000),
        (r#","duration":"soon""#, 0),
        (r#","duration":-1"#, 0),
    ] {
        assert_eq!(span(more).end_time_unix_nano, end, "{more}");
    }
    for (more, kind, code, attributes) in [
        (r#","kind":"client","status":"ok""#, 3, 1, 0),
        (r#","kind":5,"status_code":"STATUS_CODE_ERROR""#, 5, 2, 0),
        (r#","kind":6,"status":200"#, 0, 0, 2),
        (r#","kind":"x","status":{"code":"error","y":1}"#, 0, 0, 2),
        (r#","status":"error","status_message":"m""#, 0, 2, 0),
    ] {
        let found = span(more);
        let status = found.status.unwrap_or_default();
        assert_eq!((found.kind, status.code, found.attributes.len()), (kind, code, attributes), "{more}");
    }
}

fn point(json: &str) -> (Metric, NumberDataPoint) {
    let written = accepted(&mut normalizer(Format::Json, Signal::Metrics), json);
    let metric = MetricsData::decode(&written[..]).unwrap().resource_metrics[0].scope_metrics[0].metrics[0].clone();
    let point = match &metric.data {
        Some(metric::Data::Gauge(gauge)) => gauge.data_points[0].clone(),
        Some(metric::Data::Sum(sum)) => sum.data_points[0].clone(),
        _ => panic!("neither gauge nor sum"),
    };
    (metric, point)
}

#[test]
fn a_flat_metric_becomes_one_point() {
    let (metric, found) =
        point(r#"{"name":"queue.depth","value":7,"unit":"1","time":1760000000,"labels":{"queue":"a"},"host":"h"}"#);
    assert_eq!((metric.name.as_str(), metric.unit.as_str()), ("queue.depth", "1"));
    assert!(matches!(metric.data, Some(metric::Data::Gauge(_))));
    let expected = NumberDataPoint {
        time_unix_nano: 1_760_000_000_000_000_000,
        attributes: vec![text_attribute("queue", "a"), text_attribute("host", "h")],
        value: Some(number_data_point::Value::AsInt(7)),
        ..NumberDataPoint::default()
    };
    assert_eq!(found, expected);

    let (metric, found) =
        point(r#"{"metric":"hits","value":2.5,"type":"Counter","temporality":"delta","start_time":1760000000}"#);
    assert_eq!((found.time_unix_nano, found.start_time_unix_nano), (KAFKA_NANOS, 1_760_000_000_000_000_000));
    assert_eq!(found.value, Some(number_data_point::Value::AsDouble(2.5)));
    let Some(metric::Data::Sum(sum)) = metric.data else { panic!("a counter is a sum") };
    assert_eq!((sum.is_monotonic, sum.aggregation_temporality), (true, 1));

    let (metric, found) = point(r#"{"name":"x","value":"NaN","type":"sum","monotonic":false,"temporality":"odd"}"#);
    assert!(matches!(found.value, Some(number_data_point::Value::AsDouble(value)) if value.is_nan()));
    assert_eq!(found.attributes, [text_attribute("temporality", "odd")]);
    assert!(matches!(metric.data, Some(metric::Data::Sum(sum)) if !sum.is_monotonic && sum.aggregation_temporality == 2));
}

#[test]
fn hostile_texts_are_rejected_with_their_reason() {
    let deep = |start: &str, times: usize| format!("{{\"a\":{}", start.repeat(times));
    let cases: Vec<(Signal, String, Reason, &str)> = vec![
        (Signal::Logs, "[1]".into(), Reason::Malformed, "not an object"),
        (Signal::Logs, "\"text\"".into(), Reason::Malformed, "not an object"),
        (Signal::Logs, " \n".into(), Reason::Empty, "white space"),
        (Signal::Logs, "{} {}".into(), Reason::Malformed, "trailing"),
        (Signal::Logs, "{\"a\":1,}".into(), Reason::Malformed, "trailing comma"),
        (Signal::Logs, "{\"a\":NaN}".into(), Reason::Malformed, "JSON"),
        (Signal::Logs, "{\"a\":1e999}".into(), Reason::Malformed, "out of range"),
        (Signal::Logs, "{\"a\":\"\\ud800\"}".into(), Reason::Malformed, "JSON"),
        (Signal::Logs, "{\"a\":\"\\udc00x\"}".into(), Reason::Malformed, "JSON"),
        (Signal::Logs, "{\"a\":\"\\x\"}".into(), Reason::Malformed, "escape"),
        (Signal::Logs, "{\"a\":\"\u{1}\"}".into(), Reason::Malformed, "control character"),
        (Signal::Logs, "{'a':1}".into(), Reason::Malformed, "JSON"),
        (Signal::Logs, deep("[", 100_000), Reason::TooDeep, "deeper"),
        (Signal::Logs, deep("{\"a\":", 100_000), Reason::TooDeep, "deeper"),
        (Signal::Logs, deep("[", 65), Reason::TooDeep, "deeper"),
        (Signal::Logs, format!("{{\"msg\":{}", "[".repeat(100_000)), Reason::TooDeep, "deeper"),
        (Signal::Logs, format!("{{\"resource\":{}", "{\"a\":".repeat(100_000)), Reason::TooDeep, "deeper"),
        (Signal::Traces, "{}".into(), Reason::InvalidField, "trace_id is missing"),
        (Signal::Traces, r#"{"traceId":"0af7"}"#.into(), Reason::InvalidField, "traceId '0af7' is not 32 hex digits"),
        (
            Signal::Traces,
            r#"{"trace_id":"00000000000000000000000000000000","span_id":"b7ad6b7169203331","name":"n","start":1760000000}"#
                .into(),
            Reason::InvalidField,
            "all zeros",
        ),
        (
            Signal::Traces,
            r#"{"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","name":"n"}"#.into(),
            Reason::InvalidField,
            "start_time is missing",
        ),
        (Signal::Metrics, r#"{"value":1}"#.into(), Reason::InvalidField, "name is missing"),
        (Signal::Metrics, r#"{"name":"","value":1}"#.into(), Reason::InvalidField, "name"),
        (Signal::Metrics, r#"{"name":"n"}"#.into(), Reason::InvalidField, "value is missing"),
        (Signal::Metrics, r#"{"name":"n","value":"12"}"#.into(), Reason::InvalidField, "value '12' is not a number"),
        (Signal::Metrics, r#"{"name":"n","value":1,"type":"histogram"}"#.into(), Reason::InvalidField, "'histogram' is none of"),
    ];
    for (signal, json, reason, wanted) in cases {
        let start: String = json.chars().take(120).collect();
        let (found, detail) = rejected(&mut normalizer(Format::Json, signal), json.as_bytes());
        assert_eq!(found, reason, "{start}: {detail}");
        assert!(detail.contains(wanted), "{start}: {detail}");
    }
    let (reason, _) = rejected(&mut normalizer(Format::Json, Signal::Logs), b"{\"a\":\"\xff\"}");
    assert_eq!(reason, Reason::InvalidUtf8);
}

#[test]
fn values_may_nest_up_to_the_limit() {
    let nested = |times: usize| format!("{{\"a\":{}{}}}", "[".repeat(times), "]".repeat(times));
    // prost gives up earlier, at 100 messages inside one another: the walk over what was written is the judge here.
    assert!(normalize(&mut normalizer(Format::Json, Signal::Logs), nested(64).as_bytes()).is_ok());
    assert_eq!(rejected(&mut normalizer(Format::Json, Signal::Logs), nested(65).as_bytes()).0, Reason::TooDeep);
    let mut config = config(Format::Json, Signal::Logs);
    config.limits.depth_max = 1_000;
    let (reason, detail) = rejected(&mut Normalizer::new(config).unwrap(), nested(200).as_bytes());
    assert_eq!(reason, Reason::TooDeep, "{detail}");
}

#[test]
fn otlp_keys_end_a_plain_record_only_in_auto() {
    let json = r#"{"msg":"x","resourceSpans":[]}"#;
    let written = accepted(&mut normalizer(Format::Json, Signal::Logs), json);
    let data = LogsData::decode(&written[..]).unwrap();
    assert_eq!(data.resource_logs[0].scope_logs[0].log_records[0].attributes[0].key, "resourceSpans");
    assert_eq!(rejected(&mut normalizer(Format::Auto, Signal::Logs), json.as_bytes()).0, Reason::WrongSignal);
}

proptest::proptest! {
    #[test]
    fn random_objects_never_panic_and_what_is_accepted_prost_decodes(
        members in proptest::collection::vec((
            "(ts|time|level|msg|message|trace_id|span_id|service|resource|attributes|name|value|kind|status|events|start|end|duration|x)",
            "(null|true|-?[0-9]{1,20}|[0-9]{1,3}\\.[0-9]{1,3}e[0-9]|\"[ -!#-Z^-~é]{0,6}\"|\"[0-9a-f]{16}\"|\"[0-9a-f]{32}\"|\\[\\]|\\{\"a\":[0-9]\\}|\\[\\{\"name\":\"x\"\\}\\])",
        ), 0..8),
    ) {
        let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        let json = format!("{{{}}}", members.join(","));
        for signal in super::samples::SIGNALS {
            match normalize(&mut normalizer(Format::Json, signal), json.as_bytes()) {
                Ok((_, payload)) => proptest::prop_assert!(super::samples::prost_decodes(&payload, signal), "{}", json),
                Err((reason, detail)) => {
                    // Leading zeros make the text no JSON; all else that is wrong is the lack of a field.
                    let expected = matches!(reason, Reason::InvalidField | Reason::Malformed);
                    proptest::prop_assert!(expected, "{}: {:?} {}", json, reason, detail);
                    proptest::prop_assert!(signal != Signal::Logs || reason == Reason::Malformed, "{}: {}", json, detail);
                }
            }
        }
    }
}
