//! What is proved here: which payloads are accepted, as what, and with which reason the others are rejected. prost, which shares no
//! code with this crate, is the judge of protobuf. What cannot be proved here: that producers mean what the tables of `json` say.

mod access;
mod batches;
mod datasets;
mod framing;
mod otlp_json;
mod plain_json;
mod protobuf;
mod quotas;
pub(super) mod samples;

use std::sync::Arc;

use crate::batch::{RawBatch, RawRecord, Span, push_header};
use crate::coverage::{PartitionKey, TopicKey};

use super::index::IndexRules;
use super::*;

/// 2026-11-23T12:01:02.123Z, the Kafka time of all messages in these tests.
const KAFKA_MS: i64 = 1_795_435_262_123;
const KAFKA_NANOS: u64 = 1_795_435_262_123_000_000;

/// A config for topics whose whole name is their index.
fn config(format: Format, signal: Signal) -> Config {
    let topics = IndexRules { default_index_position: Some(0), ..IndexRules::default() };
    Config { format, telemetry_type: Some(signal), topics, ..Config::default() }
}

fn normalizer(format: Format, signal: Signal) -> Normalizer {
    Normalizer::new(config(format, signal)).unwrap()
}

/// One message of a batch.
#[derive(Clone, Default)]
struct Message<'a> {
    offset: i64,
    payload: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

fn message(offset: i64, payload: &[u8]) -> Message<'_> {
    Message { offset, payload: Some(payload), ..Message::default() }
}

fn batch(topic: &str, start: i64, end: i64, messages: &[Message<'_>]) -> RawBatch {
    let topic = TopicKey { cluster: "cluster".into(), name: topic.into(), id: "".into() };
    let mut arena = Vec::new();
    let mut records = Vec::new();
    for Message { offset, payload, key, headers } in messages {
        let mut add = |bytes: &[u8]| {
            let start = arena.len() as u32;
            arena.extend_from_slice(bytes);
            Span { start, len: bytes.len() as u32 }
        };
        let (payload, key) = (payload.map(&mut add), key.map(&mut add));
        let mut encoded = Vec::new();
        headers.iter().for_each(|(name, value)| push_header(&mut encoded, name.as_bytes(), *value));
        records.push(RawRecord { offset: *offset, timestamp_ms: KAFKA_MS, key, payload, headers: add(&encoded) });
    }
    RawBatch {
        partition: PartitionKey { topic: Arc::new(topic), partition: 0 },
        start,
        end,
        arena: arena.into(),
        records,
        polled_ms: 0,
        charge: Default::default(),
    }
}

/// What `normalizer` makes of one payload: the accepted protobuf and where it lies, or reason and detail.
fn normalize(normalizer: &mut Normalizer, payload: &[u8]) -> Result<(Arena, Vec<u8>), (Reason, String)> {
    normalize_message(normalizer, message(0, payload))
}

/// The same of a message with key and headers, at offset 0.
fn normalize_message(normalizer: &mut Normalizer, message: Message<'_>) -> Result<(Arena, Vec<u8>), (Reason, String)> {
    let Normalized { batch, mut rejects, .. } = normalizer.normalize(batch("topic", 0, 1, &[message]));
    match batch.records.first() {
        Some(record) => {
            assert!(rejects.is_empty() && batch.coverage.rejected.is_empty());
            Ok((record.arena, batch.payload(record).to_vec()))
        }
        None => {
            assert_eq!(batch.coverage.rejected, [0]);
            assert!(batch.written.is_empty(), "a reject leaves nothing behind");
            let reject = rejects.remove(0);
            assert!(reject.detail.chars().count() <= 256 && !reject.detail.contains(char::is_control), "{}", reject.detail);
            Err((reject.reason, reject.detail))
        }
    }
}

/// As `normalize` for a payload that must be accepted.
fn accepted(normalizer: &mut Normalizer, payload: &str) -> Vec<u8> {
    match normalize(normalizer, payload.as_bytes()) {
        Ok((_, protobuf)) => protobuf,
        Err((reason, detail)) => panic!("{payload} was rejected: {reason:?}: {detail}"),
    }
}

/// As `normalize` for a payload that must be rejected.
fn rejected(normalizer: &mut Normalizer, payload: &[u8]) -> (Reason, String) {
    match normalize(normalizer, payload) {
        Ok((arena, _)) => panic!("{} was accepted as {arena:?}", String::from_utf8_lossy(payload)),
        Err(reject) => reject,
    }
}
