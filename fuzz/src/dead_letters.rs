//! Dead letters: lines of files, messages of a topic, and the marks of messages that were sent back.
//!
//! A line that is read comes back when it is written; its identity read alone is that of the whole; a letter that goes to Kafka comes back
//! from there.

use std::sync::Arc;

use openwit_operators::batch::{headers, push_header};
use openwit_operators::coverage::{PartitionKey, TopicKey};
use openwit_operators::dead_letter::letter::{Header, Letter, parse_identity};
use openwit_operators::dead_letter::replay::Mark;

use super::{Body, Meter, Stage};

static LINE: Stage = Stage { name: "read a line", bytes: 16 << 10, bytes_per_byte: 64 };
static HEADERS: Stage = Stage { name: "read headers", bytes: 16 << 10, bytes_per_byte: 64 };

/// A body for lines and for messages, chosen by an input's first byte.
pub fn body() -> Box<dyn Body> {
    Box::new(DeadLetters)
}

struct DeadLetters;

impl Body for DeadLetters {
    fn run(&mut self, input: &[u8], meter: &mut Meter) {
        let Some((&kind, bytes)) = input.split_first() else { return };
        match kind {
            0 => check_line(bytes, meter),
            1 => check_headers(bytes, meter),
            _ => {}
        }
    }
}

fn check_line(bytes: &[u8], meter: &mut Meter) {
    for line in bytes.split(|byte| *byte == b'\n') {
        let (letter, identity) = meter.measure(&LINE, line.len(), || (Letter::parse(line), parse_identity(line)));
        let Ok(letter) = letter else { continue };
        let identity = identity.expect("a letter has an identity");
        assert_eq!(identity, (letter.partition.clone(), letter.offset), "an identity is that of its letter");
        let mut written = Vec::new();
        letter.write_line(&mut written);
        assert_eq!(Letter::parse(&written).expect("what was written can be read"), letter);
        let mark = Mark::find(&letter.headers);
        check_kafka(letter);
        drop(mark);
    }
}

/// A letter as a message of Kafka, and back.
fn check_kafka(letter: Letter) {
    let mut headers = letter.headers.clone();
    headers.extend(letter.kafka_headers().into_iter().map(|(name, value)| (name.as_bytes().to_vec(), Some(value.into_bytes()))));
    let back = Letter::from_kafka(letter.key.as_deref(), letter.payload.as_deref(), headers);
    assert_eq!(back, Some(letter), "a letter comes back from Kafka");
}

fn check_headers(bytes: &[u8], meter: &mut Meter) {
    let (letter, _) = meter.measure(&HEADERS, bytes.len(), || {
        let owned = |(name, value): (&[u8], Option<&[u8]>)| (name.to_vec(), value.map(<[u8]>::to_vec));
        let headers: Vec<Header> = headers(bytes).map(owned).collect();
        let mark = Mark::find(&headers);
        (Letter::from_kafka(Some(b"key"), None, headers), mark)
    });
    if let Some(letter) = letter.filter(|letter| letter.omitted.is_none()) {
        check_kafka(letter);
    }
}

/// Letters as they are meant to be, as lines and as headers.
pub fn normal() -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for payload_bytes in [10, 200, 1_000, 4_000] {
        let topic = TopicKey { cluster: "c".into(), name: "traces.shop".into(), id: "~1".into() };
        let mark = [
            ("attempt", "2"),
            ("cluster", "c"),
            ("topic", "t"),
            ("topic_id", ""),
            ("partition", "1"),
            ("offset", "9"),
            ("timestamp_ms", "5"),
        ];
        let mark = mark.map(|(name, value)| (format!("openwit.replay.{name}").into_bytes(), Some(value.as_bytes().to_vec())));
        let mut letter = Letter {
            partition: PartitionKey { topic: Arc::new(topic), partition: 3 },
            offset: 1_234_567,
            timestamp_ms: 1_767_225_600_000,
            rejected_at_ms: 1_767_225_600_017,
            reason: "malformed".into(),
            detail: "field 1 is cut at byte 17 \"…\"".into(),
            key: Some(b"key".to_vec()),
            payload: Some(b"0123456789".repeat(payload_bytes / 10)),
            headers: vec![(b"content-type".to_vec(), Some(b"application/json".to_vec())), (vec![0xff, 1], None)],
            omitted: None,
        };
        letter.headers.extend(mark);
        let mut line = vec![0];
        letter.write_line(&mut line);
        inputs.push(line);
        let mut headers = vec![1];
        // As long as the line, so that there is something to compare with.
        letter.headers.push((b"filler".to_vec(), letter.payload.clone()));
        letter.headers.iter().for_each(|(name, value)| push_header(&mut headers, name, value.as_deref()));
        letter
            .kafka_headers()
            .iter()
            .for_each(|(name, value)| push_header(&mut headers, name.as_bytes(), Some(value.as_bytes())));
        inputs.push(headers);
    }
    inputs
}
