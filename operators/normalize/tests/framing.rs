//! Payloads that are compressed, hold several JSON records, or are the data of a CloudEvent.

use std::io::Write;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData};
use proptest::collection::vec;
use proptest::prelude::any as arbitrary;
use prost::Message as _;

use super::samples::{sample, text, text_attribute};
use super::*;
use crate::budget::{Budget, Load};
use crate::normalize::json_split::parts;

const ENCODINGS: [&str; 4] = ["gzip", "zstd", "snappy", "snappy framed"];

fn compressed(encoding: &str, payload: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(payload).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::encode_all(payload, 1).unwrap(),
        "snappy" => snap::raw::Encoder::new().compress_vec(payload).unwrap(),
        _ => {
            let mut encoder = snap::write::FrameEncoder::new(Vec::new());
            encoder.write_all(payload).unwrap();
            encoder.into_inner().unwrap()
        }
    }
}

/// The value of the header that goes with an encoding of `ENCODINGS`.
fn name(encoding: &str) -> &str {
    encoding.split(' ').next().unwrap()
}

fn with<'a>(payload: &'a [u8], headers: &[(&'a str, &'a str)]) -> Message<'a> {
    let headers = headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
    Message { headers, ..message(0, payload) }
}

/// The log records of protobuf, in order.
fn records(protobuf: &[u8]) -> Vec<LogRecord> {
    let data = LogsData::decode(protobuf).unwrap();
    let scopes = data.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
    scopes.flat_map(|scope| scope.log_records).collect()
}

fn bodies(protobuf: &[u8]) -> Vec<String> {
    records(protobuf).into_iter().map(|record| format!("{:?}", record.body.unwrap().value.unwrap())).collect()
}

fn body(text: &str) -> String {
    format!("StringValue({text:?})")
}

#[test]
fn a_compressed_payload_becomes_what_it_holds_and_its_duplicate() {
    let (json, protobuf) = sample(Signal::Logs);
    for payload in [json.as_bytes(), &protobuf, b"{\"msg\":\"x\"}", b"{\"msg\":\"x\"}\n{\"msg\":\"y\"}"] {
        let plain = batch("topic", 0, 1, &[message(0, payload)]);
        let plain = normalizer(Format::Auto, Signal::Logs).normalize(plain).batch;
        for encoding in ENCODINGS {
            let packed = compressed(encoding, payload);
            let named = with(&packed, &[("Content-Encoding", name(encoding))]);
            // Some of the encodings show by their first bytes.
            let shown = (name(encoding) != "snappy").then(|| message(1, &packed));
            let messages: Vec<_> = [named].into_iter().chain(shown).collect();
            let count = messages.len();
            let found = normalizer(Format::Auto, Signal::Logs).normalize(batch("topic", 0, 2, &messages)).batch;
            assert_eq!(found.records.len(), count, "{encoding}");
            for record in &found.records {
                assert_eq!(found.payload(record), plain.payload(&plain.records[0]), "{encoding}");
                assert_eq!(record.key, plain.records[0].key, "{encoding}: the key is of what is compressed");
            }
        }
    }
}

#[test]
fn every_format_is_decompressed_where_the_header_says_so_and_only_auto_looks() {
    let gzip = compressed("gzip", b"{\"msg\":\"x\"}");
    for format in [Format::Json, Format::Raw] {
        let found = normalize_message(&mut normalizer(format, Signal::Logs), with(&gzip, &[("content-encoding", "GZIP")]));
        assert!(matches!(found, Ok((Arena::Written, _))), "{format:?}: {found:?}");
        assert!(normalize(&mut normalizer(format, Signal::Logs), &gzip).is_err(), "{format:?}");
    }
    let twice = compressed("gzip", &gzip);
    assert!(normalize(&mut normalizer(Format::Auto, Signal::Logs), &twice).is_err(), "only one layer is taken off");
    let members = [compressed("gzip", b"{\"msg\":"), compressed("gzip", b"\"x\"}")].concat();
    let (_, found) = normalize(&mut normalizer(Format::Auto, Signal::Logs), &members).unwrap();
    assert_eq!(bodies(&found), [body("x")], "several members are one text");
    let plain = with(b"{\"msg\":\"x\"}", &[("content-encoding", "gzip"), ("content-encoding", "identity")]);
    assert!(normalize_message(&mut normalizer(Format::Auto, Signal::Logs), plain).is_ok(), "the last header counts");
}

#[test]
fn a_broken_compressed_payload_is_malformed_and_keeps_its_bytes_for_the_dead_letter() {
    let mut auto = normalizer(Format::Auto, Signal::Logs);
    let payload =
        format!("{{\"msg\":\"{}\"}}", (0..2_000).map(|n: u32| char::from(b'a' + (n * n % 23) as u8)).collect::<String>());
    for encoding in ENCODINGS {
        let whole = compressed(encoding, payload.as_bytes());
        let mut flipped = whole.clone();
        flipped[0] ^= 0x55;
        let cut = &whole[..whole.len() - 3];
        for broken in [cut, &whole[..whole.len() / 2], &flipped, b"no such thing", b"\xff\xff\xff\xff\x0f"] {
            let headers = [("content-encoding", name(encoding))];
            let found = auto.normalize(batch("topic", 0, 1, &[with(broken, &headers)]));
            let [reject] = &found.rejects[..] else { panic!("{encoding}: {broken:?} was accepted") };
            assert!(matches!(reject.reason, Reason::Malformed | Reason::TooLarge), "{encoding}: {}", reject.detail);
            assert!(reject.detail.starts_with(name(encoding)), "{}", reject.detail);
            assert_eq!(reject.record.payload.unwrap().of(&reject.arena), broken);
        }
    }
    let (reason, detail) = normalize_message(&mut auto, with(b"\x0b\x02\x80ab", &[("content-encoding", "br")])).unwrap_err();
    assert_eq!(reason, Reason::Undecodable);
    assert!(detail.starts_with("content-encoding 'br' is none of gzip, zstd, snappy; otlp_proto:"), "{detail}");
    let readable = with(b"{\"msg\":\"x\"}", &[("content-encoding", "utf-8")]);
    assert!(normalize_message(&mut auto, readable).is_ok(), "an encoding that nobody needs is none");
}

#[test]
fn a_bomb_is_refused_in_bounded_memory() {
    let limits = Limits { decompressed_bytes_max: 10_000, ..Limits::default() };
    let mut limited = Normalizer::new(Config { limits, ..config(Format::Raw, Signal::Logs) }).unwrap();
    let zeros = vec![b'0'; 50_000_000];
    for encoding in ENCODINGS {
        let headers = [("content-encoding", name(encoding))];
        let just = compressed(encoding, &zeros[..10_000]);
        assert!(normalize_message(&mut limited, with(&just, &headers)).is_ok(), "{encoding}");
        for len in [10_001, zeros.len()] {
            let bomb = compressed(encoding, &zeros[..len]);
            let (reason, detail) = normalize_message(&mut limited, with(&bomb, &headers)).unwrap_err();
            assert_eq!(reason, Reason::TooLarge, "{encoding}: {detail}");
            assert!(detail.contains("over the limit of 10000 bytes"), "{detail}");
            assert!(limited.unpacked.capacity() <= 32_000, "{encoding}: {} bytes", limited.unpacked.capacity());
        }
    }
    // A snappy block may claim any length: nothing is taken on its word.
    let mut trusting = normalizer(Format::Raw, Signal::Logs);
    let claims = with(b"\x80\x80\x80\x10ab", &[("content-encoding", "snappy")]);
    let (reason, detail) = normalize_message(&mut trusting, claims).unwrap_err();
    assert_eq!((reason, trusting.unpacked.capacity()), (Reason::Malformed, 0), "{detail}");
}

#[test]
fn a_batch_that_becomes_too_large_is_continued_by_another_and_counted_as_what_it_became() {
    let line = format!("{{\"msg\":\"{}\"}}", "x".repeat(20 << 20));
    let packed = compressed("zstd", line.as_bytes());
    let limits = Limits { row_bytes_max: 64 << 20, ..Limits::default() };
    let mut auto = Normalizer::new(Config { limits, ..config(Format::Auto, Signal::Logs) }).unwrap();
    let messages: Vec<_> = [1, 2, 4, 5].into_iter().map(|offset| message(offset, &packed)).collect();
    let budget = Budget::new(Load { bytes: 1 << 30, messages: 100 });
    let mut raw = batch("topic", 0, 8, &messages);
    let load = Load { bytes: raw.arena.len(), messages: 4 };
    budget.collect(load);
    raw.charge = budget.seal(load);
    let mut next = Some(raw);
    let mut batches = Vec::new();
    while let Some(raw) = next.take() {
        let Normalized { batch, rejects, rest, .. } = auto.normalize(raw);
        assert!(rejects.is_empty());
        batches.push(batch);
        next = rest;
    }
    let ranges: Vec<_> = batches.iter().map(|batch| (batch.coverage.range(), batch.coverage.absent.clone())).collect();
    assert_eq!(ranges, [(0..3, vec![0..1]), (3..8, vec![3..4, 6..8])]);
    assert!(budget.in_flight().bytes > 80 << 20, "{:?}", budget.in_flight());
    drop(batches);
    assert_eq!(budget.in_flight(), Load::default());
}

#[test]
fn lines_and_elements_are_records_in_their_order() {
    let (json, _) = sample(Signal::Logs);
    let line = json.replace('\n', " ");
    let count = records(&accepted(&mut normalizer(Format::Auto, Signal::Logs), json)).len();
    for format in [Format::Json, Format::Auto] {
        let mut normalizer = normalizer(format, Signal::Logs);
        let cases: [(&str, &[&str]); 8] = [
            ("{\"msg\":\"a\"}\n{\"msg\":\"b\"}", &["a", "b"]),
            ("\n\r\n {\"msg\":\"a\"}\r\n\n{\"msg\":\"b\"}\n\n", &["a", "b"]),
            ("\u{feff}{\"msg\":\"a\"}\n{\"msg\":\"b\"}\n{\"msg\":\"c\"}", &["a", "b", "c"]),
            ("{\"msg\":\"a\"}\n", &["a"]),
            ("{\n  \"msg\": \"a\"\n}\n", &["a"]),
            ("{\"x\":{}\n,\"msg\":\"a\"}", &["a"]),
            ("[{\"msg\":\"a\"}, {\"msg\":\"b\"}\n]\n", &["a", "b"]),
            ("[\n{\"msg\":\"a,]}\"}]", &["a,]}"]),
        ];
        for (payload, expected) in cases {
            let expected: Vec<String> = expected.iter().map(|text| body(text)).collect();
            assert_eq!(bodies(&accepted(&mut normalizer, payload)), expected, "{format:?}: {payload}");
        }
    }
    // Each line by itself: what the collector's file exporter writes may stand beside plain lines.
    let mixed = format!("{line}\n{{\"msg\":\"last\"}}\n{line}");
    let found = accepted(&mut normalizer(Format::Auto, Signal::Logs), &mixed);
    assert_eq!(records(&found).len(), 2 * count + 1);
    assert_eq!(records(&found)[count].body, Some(text("last")));
    let exported = accepted(&mut normalizer(Format::OtlpJson, Signal::Logs), &format!("{line}\n{line}"));
    assert_eq!(records(&exported).len(), 2 * count);
}

#[test]
fn one_bad_record_refuses_its_message_and_is_named() {
    let cases: [(Signal, &str, Reason, &str); 12] = [
        (Signal::Logs, "{}\n{\"a\":}\n{}", Reason::Malformed, "JSON: expected value at column 6 at line 2"),
        (Signal::Logs, "{}\n\n\n{\"a\":1", Reason::Malformed, "at line 4"),
        (Signal::Logs, "{} {}\n{}", Reason::Malformed, "at line 1"),
        (Signal::Logs, "{\n\"a\":1\n}\n{}", Reason::Malformed, "trailing characters at line 4 column 1"),
        (Signal::Logs, "{}\n[]", Reason::Malformed, "not an object at line 2"),
        (Signal::Logs, "[{},{\"a\":},{}]", Reason::Malformed, "at element 1"),
        (Signal::Logs, "[{},]", Reason::Malformed, "a comma without a value at element 1"),
        (Signal::Logs, "[{}", Reason::Malformed, "ends inside an array"),
        (Signal::Logs, "[{}]\n[{}]", Reason::Malformed, "something follows"),
        (Signal::Logs, "[]", Reason::Empty, "array is empty"),
        (Signal::Metrics, "{\"name\":\"n\",\"value\":1}\n{\"name\":\"n\"}", Reason::InvalidField, "value is missing at line 2"),
        (Signal::Metrics, "[{\"name\":\"n\",\"value\":1},{\"name\":\"\",\"value\":1}]", Reason::InvalidField, "at element 1"),
    ];
    for (signal, payload, reason, says) in cases {
        let (found, detail) = rejected(&mut normalizer(Format::Json, signal), payload.as_bytes());
        assert_eq!(found, reason, "{payload}: {detail}");
        assert!(detail.contains(says), "{payload}: {detail}");
    }
    let limits = Limits { json_records_max: 3, ..Limits::default() };
    let mut limited = Normalizer::new(Config { limits, ..config(Format::Json, Signal::Logs) }).unwrap();
    assert!(normalize(&mut limited, b"{}\n{}\n{}\n\n").is_ok() && normalize(&mut limited, b"[{},{},{}]").is_ok());
    for payload in [&b"{}\n{}\n{}\n{}"[..], b"[{},{},{},{}]"] {
        let (reason, detail) = rejected(&mut limited, payload);
        assert_eq!((reason, detail.as_str()), (Reason::TooLarge, "more than 3 JSON records in one message"));
    }
}

fn event_attributes(subject: bool) -> Vec<KeyValue> {
    let all = [("id", "7"), ("source", "/shop"), ("spec_version", "1.0"), ("type", "order.made"), ("subject", "42")];
    let mut all: Vec<_> = all.map(|(name, value)| text_attribute(&format!("cloudevents.event_{name}"), value)).into();
    all.truncate(if subject { 5 } else { 4 });
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

/// Body, time and sorted attributes of the one record.
fn event_of(protobuf: &[u8]) -> (LogRecord, Vec<KeyValue>) {
    let mut record = records(protobuf).remove(0);
    let mut attributes = std::mem::take(&mut record.attributes);
    attributes.sort_by(|a, b| a.key.cmp(&b.key));
    (record, attributes)
}

#[test]
fn attributes_of_events_become_attributes_of_plain_rows_and_their_time_stands_in() {
    let headers = [
        ("ce_specversion", "1.0"),
        ("ce_id", "7"),
        ("ce_source", "/shop"),
        ("ce_type", "order.made"),
        ("ce_time", "2026-11-23T12:01:02.5Z"),
        ("ce_traceparent", "dropped"),
    ];
    let expected = LogRecord {
        body: Some(text("x")),
        time_unix_nano: 1_795_435_262_500_000_000,
        observed_time_unix_nano: KAFKA_NANOS,
        ..LogRecord::default()
    };
    let structured =
        br#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.made","time":"2026-11-23T12:01:02.5Z","ext":1,
        "data":{"msg":"x"}}"#;
    let base64 = br#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.made","time":"2026-11-23T12:01:02.5Z",
        "datacontenttype":"application/json; charset=utf-8","data_base64":"eyJtc2ciOiJ4In0="}"#;
    let structured_type = [("content-type", "application/cloudevents+json; charset=UTF-8")];
    for (format, message) in [
        (Format::Auto, with(b"{\"msg\":\"x\"}", &headers)),
        (Format::Json, with(b"{\"msg\":\"x\"}", &headers)),
        (Format::Raw, with(b"x", &headers)),
        (Format::Auto, with(structured, &structured_type)),
        (Format::Json, with(structured, &structured_type)),
        (Format::Auto, with(base64, &structured_type)),
    ] {
        let (_, found) = normalize_message(&mut normalizer(format, Signal::Logs), message).unwrap();
        assert_eq!(event_of(&found), (expected.clone(), event_attributes(false)), "{format:?}");
    }
    // Without a version they are headers like any other.
    let (_, found) = normalize_message(&mut normalizer(Format::Auto, Signal::Logs), with(b"{}", &headers[1..])).unwrap();
    let (record, attributes) = event_of(&found);
    assert_eq!((record.time_unix_nano, attributes), (KAFKA_NANOS, vec![]));
    // A record's own time wins, and OTLP passes untouched.
    let timed = with(b"{\"ts\":1760000000}", &headers);
    let (_, found) = normalize_message(&mut normalizer(Format::Auto, Signal::Logs), timed).unwrap();
    assert_eq!(records(&found)[0].time_unix_nano, 1_760_000_000_000_000_000);
    let (_, protobuf) = sample(Signal::Logs);
    let found = normalize_message(&mut normalizer(Format::Auto, Signal::Logs), with(&protobuf, &headers));
    assert_eq!(found, Ok((Arena::Raw, protobuf)));
}

#[test]
fn the_content_type_picks_the_decoder_where_the_format_is_auto() {
    let (_, protobuf) = sample(Signal::Logs);
    let mut auto = normalizer(Format::Auto, Signal::Logs);
    let cases: [(&[u8], &str, Result<Arena, Reason>); 6] = [
        (&protobuf, "application/x-protobuf", Ok(Arena::Raw)),
        (&protobuf, "application/json", Err(Reason::Malformed)),
        (b"{}", "application/x-protobuf", Err(Reason::Malformed)),
        (b"{}\n{}", "Application/X-NDJSON", Ok(Arena::Written)),
        (b"{}", "text/plain", Ok(Arena::Written)),
        (b"{}", "application/json;charset=utf-8", Ok(Arena::Written)),
    ];
    for (payload, media_type, expected) in cases {
        let found = normalize_message(&mut auto, with(payload, &[("content-type", media_type)]));
        let found = found.map(|(arena, _)| arena).map_err(|(reason, _)| reason);
        match (found, expected) {
            // A payload for the other decoder may break its rules in several ways.
            (Err(_), Err(_)) => {}
            (found, expected) => assert_eq!(found, expected, "{media_type}"),
        }
    }
    let json = with(b"{}", &[("content-type", "application/x-protobuf")]);
    assert!(normalize_message(&mut normalizer(Format::Json, Signal::Logs), json).is_ok(), "a configured format decides");
}

#[test]
fn structured_events_carry_any_payload_and_broken_ones_are_refused() {
    let headers = [("content-type", "application/cloudevents+json")];
    let mut auto = normalizer(Format::Auto, Signal::Logs);
    let mut open = |rest: &str| {
        let payload = format!("{{\"specversion\":\"1.0\"{rest}}}");
        normalize_message(&mut auto, with(payload.as_bytes(), &headers))
    };
    let (_, two) = open(r#","data":[{"msg":"a"},{"msg":"b"}]"#).unwrap();
    assert_eq!(bodies(&two), [body("a"), body("b")]);
    let (_, quoted) = open(r#","datacontenttype":"text/plain","data":"{\"msg\":\"a\"}""#).unwrap();
    assert_eq!(bodies(&quoted), [body("a")]);
    let (_, protobuf) = sample(Signal::Logs);
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &protobuf);
    let (arena, found) = open(&format!(",\"data_base64\":\"{base64}\"")).unwrap();
    assert_eq!((arena, &found), (Arena::Written, &protobuf));
    let cases = [
        ("", Reason::Empty, "without data"),
        (",\"data\":null", Reason::Empty, "without data"),
        (",\"data\":{},\"data_base64\":\"\"", Reason::Malformed, "exclude each other"),
        (",\"data\":{},\"data\":{}", Reason::Malformed, "data comes twice"),
        (",\"data_base64\":\"*\"", Reason::InvalidField, "'*' is not base64"),
        (",\"data\":{\"a\":}", Reason::Malformed, "JSON: expected value"),
        (",\"data\":{},\"ext\":tru", Reason::Malformed, "at CloudEvent"),
        (",\"data\":{},\"id\":7", Reason::InvalidField, "at CloudEvent"),
        (",\"data\":5", Reason::Malformed, "not an object"),
        (",\"specversion\":\"1.0\",\"data\":{}", Reason::Malformed, "specversion comes twice"),
    ];
    for (rest, reason, says) in cases {
        let (found, detail) = open(rest).unwrap_err();
        assert_eq!(found, reason, "{rest}: {detail}");
        assert!(detail.contains(says), "{rest}: {detail}");
    }
    let (reason, detail) = normalize_message(&mut auto, with(b"{\"specversion\":\"0.3\",\"data\":{}}", &headers)).unwrap_err();
    assert_eq!((reason, detail.as_str()), (Reason::Undecodable, "CloudEvent without a specversion of 1.x"));
}

proptest::proptest! {
    #[test]
    fn records_come_the_same_however_framed_and_compressed(
        texts in vec(".{0,20}", 1..20),
        encoding in 0..ENCODINGS.len(),
        blank in arbitrary::<bool>(),
    ) {
        let objects: Vec<String> = texts.iter().map(|text| serde_json::json!({ "msg": text }).to_string()).collect();
        let gap = if blank { "\n \r\n" } else { "\n" };
        let expected: Vec<String> = texts.iter().map(|text| body(text)).collect();
        for framed in [objects.join(gap), format!("[{}]", objects.join(","))] {
            let packed = compressed(ENCODINGS[encoding], framed.as_bytes());
            let message = with(&packed, &[("content-encoding", name(ENCODINGS[encoding]))]);
            let found = normalize_message(&mut normalizer(Format::Auto, Signal::Logs), message);
            let (_, found) = found.map_err(|reject| proptest::test_runner::TestCaseError::fail(format!("{reject:?}")))?;
            proptest::prop_assert_eq!(bodies(&found), expected.clone());
        }
    }

    #[test]
    fn random_bytes_under_any_header_never_panic_and_stay_in_bounds(
        bytes in vec(arbitrary::<u8>(), 0..300),
        damage in (0usize..400, arbitrary::<u8>()),
        encoding in 0..ENCODINGS.len(),
    ) {
        let limits = Limits { decompressed_bytes_max: 5_000, ..Limits::default() };
        let mut limited = Normalizer::new(Config { limits, ..config(Format::Auto, Signal::Logs) }).unwrap();
        let mut damaged = compressed(ENCODINGS[encoding], &[&b"{\"msg\":\"x\"}\n"[..]; 20].concat());
        let at = damage.0 % damaged.len();
        damaged[at] ^= damage.1;
        let magic: &[u8] = [&b"\x1f\x8b\x08\x00"[..], b"\x28\xb5\x2f\xfd", b"", b"\xff\x06\x00\x00sNaPpY"][encoding];
        let media_types = ["application/cloudevents+json", "application/json", "application/x-protobuf"];
        for payload in [&bytes[..], &[magic, &bytes].concat(), &damaged, &[b"[", &bytes[..]].concat()] {
            for media_type in media_types {
                let headers = [("content-encoding", name(ENCODINGS[encoding])), ("content-type", media_type)];
                let _ = normalize_message(&mut limited, with(payload, &headers));
                let _ = normalize_message(&mut limited, with(payload, &headers[1..]));
                proptest::prop_assert!(limited.unpacked.capacity() <= 20_000);
            }
        }
    }

    #[test]
    fn cutting_accepts_no_array_that_is_none(text in "[\\[\\]{}\",:\\\\a1 ]{0,12}") {
        let text = format!("[{text}");
        let is_array = serde_json::from_str::<Vec<serde_json::Value>>(&text).map(|elements| elements.len());
        let cut: Option<usize> = parts(&text)
            .map(|part| part.ok().filter(|part| serde_json::from_str::<serde_json::Value>(part).is_ok()))
            .try_fold(0, |count, part| part.map(|_| count + 1));
        proptest::prop_assert_eq!(cut, is_array.ok(), "{}", text);
    }
}
