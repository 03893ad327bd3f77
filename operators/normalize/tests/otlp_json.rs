//! OTLP JSON against messages built by hand.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogsData;
use opentelemetry_proto::tonic::metrics::v1::MetricsData;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message as _;

use super::samples::{LOGS_JSON, METRICS_JSON, SIGNALS, SPAN_ID, TRACE_ID, TRACES_JSON, logs, metrics, sample, traces};
use super::*;

const FORMATS: [Format; 2] = [Format::OtlpJson, Format::Auto];

#[test]
fn samples_with_every_field_become_the_protobuf_built_by_hand() {
    for format in FORMATS {
        let written = |signal, json| accepted(&mut normalizer(format, signal), json);
        assert_eq!(TracesData::decode(&written(Signal::Traces, TRACES_JSON)[..]).unwrap(), traces());
        assert_eq!(LogsData::decode(&written(Signal::Logs, LOGS_JSON)[..]).unwrap(), logs());
        let found = MetricsData::decode(&written(Signal::Metrics, METRICS_JSON)[..]).unwrap();
        // NaN is not equal to itself, but its bytes are.
        assert_eq!(found.encode_to_vec(), metrics().encode_to_vec());
    }
}

#[test]
fn every_prefix_of_a_sample_is_rejected() {
    for signal in SIGNALS {
        let (json, _) = sample(signal);
        let json = json.trim_end();
        for len in (1..json.len()).filter(|len| json.is_char_boundary(*len)) {
            let (reason, detail) = rejected(&mut normalizer(Format::OtlpJson, signal), &json.as_bytes()[..len]);
            assert!(matches!(reason, Reason::Malformed | Reason::Undecodable), "cut at {len}: {reason:?} {detail}");
        }
    }
}

/// A log record with `fields`.
fn record(fields: &str) -> String {
    format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{{fields}}}]}}]}}]}}"#)
}

fn first_record(json: &str) -> opentelemetry_proto::tonic::logs::v1::LogRecord {
    let written = accepted(&mut normalizer(Format::OtlpJson, Signal::Logs), json);
    LogsData::decode(&written[..]).unwrap().resource_logs[0].scope_logs[0].log_records[0].clone()
}

#[test]
fn both_names_all_forms_of_numbers_and_unknown_fields_are_taken() {
    let json = record(
        r#""time_unix_nano":"7","observedTimeUnixNano":8.0,"severityNumber":"SEVERITY_NUMBER_FATAL4","unknown":{"a":[1,{"b":null}]},
           "traceId":"0AF7651916CD43DD8448EB211C80319C","span_id":"b7ad6b7169203331","flags":"257","body":{"double_value":"1.5e3"}"#,
    );
    let found = first_record(&json);
    assert_eq!((found.time_unix_nano, found.observed_time_unix_nano, found.severity_number, found.flags), (7, 8, 24, 257));
    assert_eq!((&found.trace_id[..], &found.span_id[..]), (&TRACE_ID[..], &SPAN_ID[..]));
    assert_eq!(found.body.unwrap().value, Some(Value::DoubleValue(1_500.0)));
}

#[test]
fn zero_values_of_a_oneof_are_kept() {
    for (json, expected) in [
        (r#"{"stringValue":""}"#, Value::StringValue(String::new())),
        (r#"{"boolValue":false}"#, Value::BoolValue(false)),
        (r#"{"intValue":0}"#, Value::IntValue(0)),
        (r#"{"doubleValue":0}"#, Value::DoubleValue(0.0)),
        (r#"{"bytesValue":""}"#, Value::BytesValue(vec![])),
        (r#"{"bytesValue":"-_8"}"#, Value::BytesValue(vec![0xfb, 0xff])),
    ] {
        assert_eq!(first_record(&record(&format!(r#""body":{json}"#))).body.unwrap().value, Some(expected), "{json}");
    }
}

#[test]
fn hostile_texts_are_rejected_with_their_reason() {
    let deep = |start: &str, times| record(&format!(r#""body":{}"#, start.repeat(times)));
    let cases: Vec<(String, Reason, &str)> = vec![
        ("[]".into(), Reason::Empty, "array is empty"),
        ("{}".into(), Reason::Undecodable, "resourceLogs"),
        (r#"{"a":1}"#.into(), Reason::Undecodable, "resourceLogs"),
        (r#"{"resourceLogs":[]}"#.into(), Reason::Empty, "resourceLogs is empty"),
        (r#"{"resourceLogs":null}"#.into(), Reason::Empty, "resourceLogs is empty"),
        (r#"{"resourceLogs":{}}"#.into(), Reason::InvalidField, "an object where should be an array at resourceLogs"),
        (r#"{"resourceLogs":[1]}"#.into(), Reason::InvalidField, "resourceLogs"),
        (r#"{"resourceLogs":[],"resource_logs":[]}"#.into(), Reason::Malformed, "twice"),
        (format!("{}{}", record(""), "x"), Reason::Malformed, "trailing"),
        (
            record(r#""flags":1,"flags":1"#),
            Reason::Malformed,
            "flags comes twice in one object at resourceLogs.scopeLogs.logRecords",
        ),
        (record(r#""spanId":"1","span_id":"2""#), Reason::InvalidField, "hex"),
        (record(r#""spanId":"","span_id":"""#), Reason::Malformed, "twice"),
        (record(r#""timeUnixNano":true"#), Reason::InvalidField, "true where should be an unsigned 64-bit integer"),
        (record(r#""timeUnixNano":-1"#), Reason::InvalidField, "-1"),
        (record(r#""timeUnixNano":1.5"#), Reason::InvalidField, "1.5"),
        (record(r#""timeUnixNano":"1e3""#), Reason::InvalidField, "1e3"),
        (record(r#""timeUnixNano":"9223372036854775808""#), Reason::InvalidField, "2262"),
        (record(r#""timeUnixNano":"18446744073709551616""#), Reason::InvalidField, "unsigned"),
        (record(r#""severityNumber":"INFO""#), Reason::InvalidField, "'INFO' where should be a number or name"),
        (record(r#""severityNumber":2147483648"#), Reason::InvalidField, "2147483648"),
        (record(r#""severityText":7"#), Reason::InvalidField, "7 where should be a text"),
        (record(r#""traceId":"0af7651916cd43dd8448eb211c80319""#), Reason::InvalidField, "hex"),
        (record(r#""traceId":"0af7651916cd43dd8448eb211c80319cff""#), Reason::InvalidField, "17 bytes"),
        (record(r#""traceId":"CvdlGRbNQ92ESOshHIAxnA==""#), Reason::InvalidField, "hex"),
        (record(r#""body":"text""#), Reason::InvalidField, "an object"),
        (record(r#""body":{"intValue":9223372036854775808}"#), Reason::InvalidField, "signed"),
        (record(r#""body":{"bytesValue":"a%"}"#), Reason::InvalidField, "base64"),
        (record(r#""body":{"doubleValue":"inf"}"#), Reason::InvalidField, "a number"),
        (record(r#""body":{"doubleValue":NaN}"#), Reason::Malformed, "JSON"),
        (record(r#""body":{"doubleValue":1e999}"#), Reason::Malformed, "out of range"),
        (record(r#""severityText":"\ud800""#), Reason::Malformed, "JSON"),
        (
            record(r#""attributes":[{"key":"k","value":{"arrayValue":{"values":[1]}}}]"#),
            Reason::InvalidField,
            "1 where should be an object",
        ),
        (r#"{"resourceLogs":[{"instrumentationLibraryLogs":[]}]}"#.into(), Reason::InvalidField, "removed"),
        (deep(r#"{"arrayValue":{"values":["#, 100_000), Reason::TooDeep, "recursion"),
        (deep(r#"{"kvlistValue":{"values":[{"key":"k","value":"#, 100_000), Reason::TooDeep, "recursion"),
        (deep("[", 100_000), Reason::InvalidField, "an array"),
    ];
    for (json, reason, wanted) in cases {
        let start: String = json.chars().take(120).collect();
        let (found, detail) = rejected(&mut normalizer(Format::OtlpJson, Signal::Logs), json.as_bytes());
        assert_eq!(found, reason, "{start}: {detail}");
        assert!(detail.contains(wanted), "{start}: {detail}");
    }
}

#[test]
fn text_that_is_not_utf8_is_rejected_as_such() {
    let mut json = record(r#""severityText":"x""#).into_bytes();
    let at = json.iter().position(|byte| *byte == b'x').unwrap();
    json[at] = 0xff;
    for format in FORMATS {
        assert_eq!(rejected(&mut normalizer(format, Signal::Logs), &json).0, Reason::InvalidUtf8);
    }
}

#[test]
fn an_unknown_field_is_passed_over_however_deep() {
    let json = record(&format!(r#""unknown":{}{},"flags":7"#, "[".repeat(100_000), "]".repeat(100_000)));
    assert_eq!(first_record(&json).flags, 7);
}

proptest::proptest! {
    #[test]
    fn mutated_texts_never_panic_and_what_is_accepted_prost_decodes(at in 0usize..6_000, byte: u8, cut in 0usize..4) {
        for signal in SIGNALS {
            let mut json = sample(signal).0.as_bytes().to_vec();
            let at = at % json.len();
            json[at] = byte;
            json.drain(at + 1..(at + 1 + cut).min(json.len()));
            if let Ok((_, payload)) = normalize(&mut normalizer(Format::OtlpJson, signal), &json) {
                proptest::prop_assert!(super::samples::prost_decodes(&payload, signal));
            }
        }
    }
}
