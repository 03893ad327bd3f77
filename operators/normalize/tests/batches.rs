//! Whole batches: coverage, keys, routes, detection, config.

use opentelemetry_proto::tonic::logs::v1::LogsData;
use prost::Message as _;

use super::samples::{sample, text};
use super::*;
use crate::coverage::Dispositions;
use crate::normalize::index::{AutoGenerate, IndexPattern};

#[test]
fn every_offset_has_one_disposition() {
    let tombstone = |offset| Message { offset, ..Message::default() };
    let messages = [message(12, b"{}"), message(13, b""), tombstone(15), message(16, b"nonsense"), message(18, b"{\"a\":1}")];
    let Normalized { batch, rejects, .. } = normalizer(Format::Auto, Signal::Logs).normalize(batch("topic", 10, 21, &messages));
    let coverage = &batch.coverage;
    assert_eq!((coverage.range(), &coverage.rejected[..], &coverage.skipped[..]), (10..21, &[13, 16][..], &[15][..]));
    assert_eq!(coverage.absent, [10..12, 14..15, 17..18, 19..21]);
    let expected = Dispositions { stored: 2, duplicates: 0, rejected: 2, skipped: 1, absent: 6 };
    assert_eq!(coverage.dispositions(), expected);
    let offsets: Vec<i64> = batch.records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [12, 18]);
    let rejected: Vec<_> = rejects.iter().map(|reject| (reject.record.offset, reject.reason)).collect();
    assert_eq!(rejected, [(13, Reason::Empty), (16, Reason::Undecodable)]);
    assert_eq!(rejects[1].record.payload.unwrap().of(&rejects[1].arena), b"nonsense", "the dead letter gets the original bytes");
    assert_eq!(batch.group.to_string(), "topic/logs");
}

#[test]
fn a_batch_without_messages_still_covers_its_range() {
    let Normalized { batch, rejects, .. } = normalizer(Format::Auto, Signal::Logs).normalize(batch("topic", 3, 9, &[]));
    assert!(batch.records.is_empty() && rejects.is_empty());
    assert_eq!(batch.coverage.absent, std::slice::from_ref(&batch.coverage.range()));
    assert_eq!(batch.coverage.range(), 3..9);
}

#[test]
fn tombstones_are_rejected_where_policy_says_so() {
    let config = Config { tombstones: TombstonePolicy::Reject, ..config(Format::Auto, Signal::Logs) };
    let messages = [Message { offset: 0, ..Message::default() }];
    let Normalized { batch, rejects, .. } = Normalizer::new(config).unwrap().normalize(batch("topic", 0, 1, &messages));
    assert_eq!((rejects[0].reason, &batch.coverage.rejected[..]), (Reason::Empty, &[0][..]));
}

#[test]
#[should_panic(expected = "outside of")]
fn a_batch_out_of_order_is_never_covered() {
    normalizer(Format::Auto, Signal::Logs).normalize(batch("topic", 0, 9, &[message(5, b"{}"), message(4, b"{}")]));
}

/// The keys of `messages` in `topic`.
fn keys(key: MessageKey, topic: &str, messages: &[Message<'_>]) -> Vec<u128> {
    let config = Config { message_key: key, ..config(Format::Auto, Signal::Logs) };
    let end = messages.len() as i64;
    let normalized = Normalizer::new(config).unwrap().normalize(batch(topic, 0, end, messages));
    normalized.batch.records.iter().map(|record| record.key).collect()
}

#[test]
fn keys_tell_groups_and_payloads_apart_and_nothing_else() {
    let messages = [message(0, b"{}"), message(1, b"{}"), message(2, b"{ }")];
    let found = keys(MessageKey::PayloadHash, "a", &messages);
    assert_eq!(found[0], found[1]);
    assert_ne!(found[0], found[2], "the payload as it came, not as it was written");
    assert_ne!(found[0], keys(MessageKey::PayloadHash, "b", &messages)[0], "another index");
    // Golden: a change here would let duplicates through after an upgrade.
    assert_eq!(format!("{:032x}", found[0]), "998e44710142538707fd4bc1f03db1d2");
}

#[test]
fn an_id_replaces_the_payload_and_an_empty_or_missing_one_does_not() {
    let id = |offset, key, headers| Message { key, headers, ..message(offset, b"{}") };
    let messages = [
        id(0, Some(&b"k1"[..]), vec![("id", Some(&b"h1"[..]))]),
        id(1, Some(b"k1"), vec![("id", Some(b"h0")), ("other", None), ("id", Some(b"h1"))]),
        id(2, Some(b""), vec![("id", Some(b""))]),
        id(3, None, vec![("id", None)]),
        id(4, Some(b"{}"), vec![("id", Some(b"{}"))]),
    ];
    let payload = keys(MessageKey::PayloadHash, "a", &messages)[0];
    for key in [MessageKey::KafkaKey, MessageKey::Header("id".into())] {
        let found = keys(key, "a", &messages);
        assert_eq!((found[0], found[2], found[3]), (found[1], payload, payload));
        assert!(found[0] != payload && found[4] != payload, "an id is never mistaken for a payload");
    }
}

#[test]
fn topics_without_an_index_are_rejected_whole() {
    let rules = IndexRules { default_index_position: Some(3), ..IndexRules::default() };
    let config = Config { topics: rules, ..config(Format::Auto, Signal::Traces) };
    let messages = [message(0, b"{}"), Message { offset: 1, ..Message::default() }];
    let Normalized { batch, rejects, .. } = Normalizer::new(config).unwrap().normalize(batch("a.b", 0, 2, &messages));
    assert_eq!(batch.group.to_string(), format!("{UNINDEXED}/traces"));
    assert!(rejects.iter().all(|reject| reject.reason == Reason::NoIndex) && rejects.len() == 2);
    assert_eq!(batch.coverage.rejected, [0, 1]);
}

#[test]
fn patterns_override_signal_and_format() {
    let pattern =
        IndexPattern { matches: "raw.*".into(), index_position: Some(1), signal: Some(Signal::Logs), format: Some(Format::Raw) };
    let topics = IndexRules { default_index_position: Some(0), patterns: vec![pattern], ..IndexRules::default() };
    let mut normalizer = Normalizer::new(Config { topics, ..config(Format::Auto, Signal::Traces) }).unwrap();
    let Normalized { batch: found, .. } =
        normalizer.normalize(batch("raw.Syslog", 0, 1, &[message(0, "gr\u{fc}\u{df}e".as_bytes())]));
    assert_eq!(found.group.to_string(), "syslog/logs");
    let record =
        LogsData::decode(found.payload(&found.records[0])).unwrap().resource_logs[0].scope_logs[0].log_records[0].clone();
    assert_eq!((record.body, record.time_unix_nano), (Some(text("gr\u{fc}\u{df}e")), KAFKA_NANOS));
    let (_, payload) = sample(Signal::Traces);
    let Normalized { batch: found, .. } = normalizer.normalize(batch("spans", 0, 1, &[message(0, &payload)]));
    assert_eq!((found.group.to_string().as_str(), found.records.len()), ("spans/traces", 1));
}

#[test]
fn raw_text_is_any_utf8_and_nothing_else() {
    let mut raw = normalizer(Format::Raw, Signal::Logs);
    for payload in ["x", "{\"a\":", &"long ".repeat(1_000), "\n\0"] {
        let written = accepted(&mut raw, payload);
        let data = LogsData::decode(&written[..]).unwrap();
        assert_eq!(data.encode_to_vec(), written);
        assert_eq!(data.resource_logs[0].scope_logs[0].log_records[0].body, Some(text(payload)));
    }
    let (reason, detail) = rejected(&mut raw, b"abc\xff");
    assert_eq!(reason, Reason::InvalidUtf8);
    assert!(detail.contains("byte 3"), "{detail}");
}

#[test]
fn auto_tells_formats_apart_and_says_what_each_decoder_said() {
    let mut auto = normalizer(Format::Auto, Signal::Logs);
    let (json, protobuf) = sample(Signal::Logs);
    assert_eq!(normalize(&mut auto, &protobuf).map(|(arena, _)| arena), Ok(Arena::Raw));
    for text in [json.to_owned(), format!("\n{json}"), format!("\u{feff}{json}"), "\n{\"msg\":\"x\"}".to_owned()] {
        assert_eq!(normalize(&mut auto, text.as_bytes()).map(|(arena, _)| arena), Ok(Arena::Written), "{text}");
    }
    let cases: [(&[u8], Reason, &[&str]); 7] = [
        (b"plain text", Reason::Undecodable, &["otlp_proto:", "json: not an object"]),
        (b"[1,2]", Reason::Malformed, &["JSON is not an object at element 0"]),
        (b"\n", Reason::Undecodable, &["otlp_proto:"]),
        (b"\n{\"a\":", Reason::Undecodable, &["otlp_proto:", "json: JSON: EOF"]),
        (b"{\"a\":", Reason::Malformed, &["JSON: EOF"]),
        (&protobuf[..protobuf.len() - 1], Reason::Undecodable, &["otlp_proto: protobuf message ends"]),
        (b"\x00\x01\x02", Reason::Undecodable, &["invalid tag"]),
    ];
    for (payload, reason, wanted) in cases {
        let (found, detail) = rejected(&mut auto, payload);
        assert_eq!(found, reason, "{payload:?}: {detail}");
        assert!(wanted.iter().all(|wanted| detail.contains(wanted)), "{payload:?}: {detail}");
    }
}

#[test]
fn payloads_and_rows_over_their_limits_are_too_large() {
    let mut limited = config(Format::Auto, Signal::Logs);
    limited.limits = Limits { payload_bytes_max: 100, row_bytes_max: 50, ..Limits::default() };
    let mut limited = Normalizer::new(limited).unwrap();
    let line = |len: usize| format!("{{\"msg\":\"{}\"}}", "x".repeat(len)).into_bytes();
    assert!(normalize(&mut limited, &line(20)).is_ok());
    for (len, wanted) in [(60, "over the limit of 50"), (120, "payload of 130 bytes is over the limit of 100")] {
        let (reason, detail) = rejected(&mut limited, &line(len));
        assert_eq!(reason, Reason::TooLarge);
        assert!(detail.contains(wanted), "{detail}");
    }
}

#[test]
fn unusable_kafka_times_leave_the_time_unknown() {
    for timestamp_ms in [-1, i64::MIN, i64::MAX] {
        assert_eq!(kafka_nanos(timestamp_ms), 0);
    }
    assert_eq!(kafka_nanos(KAFKA_MS), KAFKA_NANOS);
}

#[test]
fn batches_do_not_influence_one_another() {
    let lines: Vec<Vec<u8>> =
        (0..50).map(|n| format!("{{\"msg\":\"{}\",\"n\":{n}}}", "x".repeat(n * 7 % 300)).into_bytes()).collect();
    let messages: Vec<_> = lines.iter().zip(0..).map(|(line, offset)| message(offset, line)).collect();
    let together = normalizer(Format::Auto, Signal::Logs).normalize(batch("topic", 0, 50, &messages));
    for (record, line) in together.batch.records.iter().zip(&lines) {
        let (_, alone) = normalize(&mut normalizer(Format::Auto, Signal::Logs), line).unwrap();
        assert_eq!(together.batch.payload(record), alone);
    }
}

#[test]
fn configs_that_could_not_work_are_refused_with_all_their_problems() {
    let fine = config(Format::Auto, Signal::Traces);
    assert!(fine.problems().is_empty());
    let pattern = |signal, format| IndexPattern { matches: "a.*".into(), index_position: Some(1), signal, format };
    let with = |telemetry_type, position, patterns| Config {
        telemetry_type,
        topics: IndexRules { default_index_position: position, patterns, auto_generate: AutoGenerate::default() },
        ..Config::default()
    };
    let missing = [ConfigError::SignalMissing];
    assert_eq!(with(None, Some(0), vec![]).problems(), missing);
    assert_eq!(with(None, None, vec![]).problems(), missing);
    assert_eq!(with(None, None, vec![pattern(Some(Signal::Logs), None), pattern(None, None)]).problems(), missing);
    assert_eq!(with(None, None, vec![pattern(Some(Signal::Logs), None)]).problems(), []);
    assert_eq!(with(Some(Signal::Logs), None, vec![pattern(None, Some(Format::Raw))]).problems(), []);
    let raw = with(Some(Signal::Traces), Some(0), vec![pattern(None, Some(Format::Raw))]);
    assert!(matches!(&raw.problems()[..], [ConfigError::RawNotLogs { .. }]));
    let mut all = with(Some(Signal::Metrics), Some(0), vec![IndexPattern { matches: "^".into(), ..IndexPattern::default() }]);
    all.format = Format::Raw;
    all.limits = Limits { depth_max: 0, row_bytes_max: 0, payload_bytes_max: 0, decompressed_bytes_max: 0, json_records_max: 0 };
    all.message_key = MessageKey::Header(String::new());
    assert_eq!(all.problems().len(), 9);
    assert!(Normalizer::new(all).is_err());
}

#[test]
fn a_message_sent_back_from_the_dead_letter_is_no_duplicate_of_the_rejected_one_and_one_attempt_counts_once() {
    let body = br#"{"message":"x"}"#;
    let sent_back = |offset: i64, attempt: &'static [u8], from: &'static [u8]| Message {
        offset,
        payload: Some(body),
        headers: vec![
            ("trace", Some(b"1")),
            ("openwit.replay.attempt", Some(attempt)),
            ("openwit.replay.partition", Some(b"0")),
            ("openwit.replay.offset", Some(from)),
        ],
        ..Message::default()
    };
    let plain = Message { offset: 1, payload: Some(body), headers: vec![("trace", Some(b"1"))], ..Message::default() };
    let messages = [
        message(0, body),
        plain,
        sent_back(2, b"1", b"7"),
        sent_back(3, b"1", b"7"),
        sent_back(4, b"2", b"7"),
        sent_back(5, b"1", b"8"),
    ];
    for message_key in [MessageKey::PayloadHash, MessageKey::Header("trace".into())] {
        let config = Config { message_key, ..config(Format::Json, Signal::Logs) };
        let normalized = Normalizer::new(config).unwrap().normalize(batch("topic", 0, 6, &messages));
        let keys: Vec<u128> = normalized.batch.records.iter().map(|record| record.key).collect();
        let distinct: std::collections::BTreeSet<_> = keys[1..].iter().collect();
        assert_eq!(keys[2], keys[3], "one attempt, sent twice");
        assert_eq!(distinct.len(), 4, "the message itself, two attempts, and another message's");
    }
}
