//! The dead letter itself: one rejected message, whole, with why it was rejected and where it came from.
//!
//! In a file it is one line of JSON, in Kafka a message whose key, payload and headers are the original's plus headers of ours; both
//! forms are described in `docs/dead-letter.md`. A line leads with the message's identity, so that a scan for identities has it
//! first; binary is base64 (standard alphabet, padded).
//!
//! ```text
//! {"version":1,"cluster":"c","topic":"t","topic_id":"","partition":0,"offset":7,"timestamp_ms":-1,"rejected_at_ms":9,
//!  "reason":"malformed","detail":"..","key_base64":null,"payload_base64":"AAE=","headers":[["name","dmFsdWU="],["null",null]]}
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::batch::{self, Reject};
use crate::coverage::{PartitionKey, TopicKey};

/// The version of the line format that is written. A reader refuses later ones.
pub const VERSION: u32 = 1;

/// What stands in a letter for the value of a header that held a secret.
pub const REDACTED: &[u8] = b"[redacted by openwit-ingest]";

/// A name and a value, as Kafka's headers have them: the name is nearly always UTF-8, the value may be null.
pub type Header = (Vec<u8>, Option<Vec<u8>>);

/// One dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The message's partition.
    pub partition: PartitionKey,
    /// The message's offset.
    pub offset: i64,
    /// The message's Kafka timestamp in Unix milliseconds; -1 where the broker gave none.
    pub timestamp_ms: i64,
    /// When it was rejected, in Unix milliseconds.
    pub rejected_at_ms: u64,
    /// The reason's stable code; that of a later version may be unknown here.
    pub reason: String,
    /// The detail a person needs to mend the producer.
    pub detail: String,
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original payload.
    pub payload: Option<Vec<u8>>,
    /// The original headers.
    pub headers: Vec<Header>,
    /// What a letter in Kafka lacks because it was too large for its topic, such as `payload:1048576`; a line is always whole.
    pub omitted: Option<String>,
}

/// Why bytes are not a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not an object of the expected form.
    #[error("line is not a dead letter")]
    Json(#[from] serde_json::Error),
    /// A binary field is not base64.
    #[error("line has a field that is not base64")]
    Base64(#[from] base64::DecodeError),
    /// Written by a later version.
    #[error("line has format version {0}, this program reads up to {VERSION}")]
    Version(u32),
}

impl Letter {
    /// The dead letter of a rejected message.
    pub fn of(reject: &Reject, rejected_at_ms: u64) -> Self {
        let bytes = |span: Option<batch::Span>| span.map(|span| span.of(&reject.arena).to_vec());
        let is_secret =
            |name: &[u8]| reject.secret_header.as_ref().is_some_and(|secret| name.eq_ignore_ascii_case(secret.as_bytes()));
        let headers = batch::headers(reject.record.headers.of(&reject.arena));
        // An empty value stays one: it tells why the message was refused.
        let kept = |(name, value): (&[u8], Option<&[u8]>)| match value {
            Some(value) if !value.is_empty() && is_secret(name) => (name.to_vec(), Some(REDACTED.to_vec())),
            value => (name.to_vec(), value.map(<[u8]>::to_vec)),
        };
        Letter {
            partition: reject.partition.clone(),
            offset: reject.record.offset,
            timestamp_ms: reject.record.timestamp_ms,
            rejected_at_ms,
            reason: reject.reason.code().to_owned(),
            detail: reject.detail.clone(),
            key: bytes(reject.record.key),
            payload: bytes(reject.record.payload),
            headers: headers.map(kept).collect(),
            omitted: None,
        }
    }

    /// Reads one line, with or without its line feed.
    pub fn parse(line: &[u8]) -> Result<Self, ParseError> {
        let line: Line = serde_json::from_slice(line)?;
        if line.version > VERSION {
            return Err(ParseError::Version(line.version));
        }
        let decode = |text: Option<String>| text.map(|text| STANDARD.decode(text)).transpose();
        let mut headers = Vec::with_capacity(line.headers.len());
        for LineHeader(name, value, binary_name) in line.headers {
            headers.push((decode(binary_name)?.unwrap_or_else(|| name.into_bytes()), decode(value)?));
        }
        let topic = TopicKey { cluster: line.cluster.into(), name: line.topic.into(), id: line.topic_id.into() };
        Ok(Letter {
            partition: PartitionKey { topic: Arc::new(topic), partition: line.partition },
            offset: line.offset,
            timestamp_ms: line.timestamp_ms,
            rejected_at_ms: line.rejected_at_ms,
            reason: line.reason,
            detail: line.detail,
            key: decode(line.key_base64)?,
            payload: decode(line.payload_base64)?,
            headers,
            omitted: None,
        })
    }

    /// Appends this letter as a line, line feed included.
    pub fn write_line(&self, line: &mut Vec<u8>) {
        line.extend_from_slice(br#"{"version":1,"cluster":"#);
        write_string(&self.partition.topic.cluster, line);
        line.extend_from_slice(br#","topic":"#);
        write_string(&self.partition.topic.name, line);
        line.extend_from_slice(br#","topic_id":"#);
        write_string(&self.partition.topic.id, line);
        line.extend_from_slice(br#","partition":"#);
        write_integer(self.partition.partition, line);
        line.extend_from_slice(br#","offset":"#);
        write_integer(self.offset, line);
        line.extend_from_slice(br#","timestamp_ms":"#);
        write_integer(self.timestamp_ms, line);
        line.extend_from_slice(br#","rejected_at_ms":"#);
        write_integer(self.rejected_at_ms, line);
        line.extend_from_slice(br#","reason":"#);
        write_string(&self.reason, line);
        line.extend_from_slice(br#","detail":"#);
        write_string(&self.detail, line);
        line.extend_from_slice(br#","key_base64":"#);
        write_binary(self.key.as_deref(), line);
        line.extend_from_slice(br#","payload_base64":"#);
        write_binary(self.payload.as_deref(), line);
        line.extend_from_slice(br#","headers":["#);
        for (number, (name, value)) in self.headers.iter().enumerate() {
            if number > 0 {
                line.push(b',');
            }
            write_header(name, value.as_deref(), line);
        }
        line.extend_from_slice(b"]}\n");
    }

    /// The headers we add in Kafka, in their order. They come after the original's, so the last of a name is ours.
    pub fn kafka_headers(&self) -> Vec<(&'static str, String)> {
        let topic = &self.partition.topic;
        vec![
            ("openwit.reason", self.reason.clone()),
            ("openwit.detail", self.detail.clone()),
            ("openwit.cluster", topic.cluster.to_string()),
            ("openwit.topic", topic.name.to_string()),
            ("openwit.topic_id", topic.id.to_string()),
            ("openwit.partition", self.partition.partition.to_string()),
            ("openwit.offset", self.offset.to_string()),
            ("openwit.timestamp_ms", self.timestamp_ms.to_string()),
            ("openwit.rejected_at_ms", self.rejected_at_ms.to_string()),
        ]
    }

    /// The dead letter in a Kafka message; `None` if it is none. Headers of ours that the original had itself, as a replayed letter
    /// has, stay its own: only those from the last `openwit.reason` on are ours.
    pub fn from_kafka(key: Option<&[u8]>, payload: Option<&[u8]>, mut headers: Vec<Header>) -> Option<Self> {
        let first = headers.iter().rposition(|(name, _)| name == b"openwit.reason")?;
        let ours: BTreeMap<String, String> = headers.split_off(first).into_iter().filter_map(utf8_header).collect();
        let text = |name: &str| ours.get(name).cloned();
        let topic = TopicKey {
            cluster: text("openwit.cluster")?.into(),
            name: text("openwit.topic")?.into(),
            id: text("openwit.topic_id")?.into(),
        };
        let partition = PartitionKey { topic: Arc::new(topic), partition: text("openwit.partition")?.parse().ok()? };
        Some(Letter {
            partition,
            offset: text("openwit.offset")?.parse().ok()?,
            timestamp_ms: text("openwit.timestamp_ms")?.parse().ok()?,
            rejected_at_ms: text("openwit.rejected_at_ms")?.parse().ok()?,
            reason: text("openwit.reason")?,
            detail: text("openwit.detail")?,
            key: key.map(<[u8]>::to_vec),
            payload: payload.map(<[u8]>::to_vec),
            headers,
            omitted: text("openwit.omitted"),
        })
    }

    /// Bytes of key, payload and headers.
    pub fn original_bytes(&self) -> usize {
        let key = self.key.as_ref().map_or(0, Vec::len);
        let payload = self.payload.as_ref().map_or(0, Vec::len);
        key + payload + self.header_bytes()
    }

    /// Bytes of the original headers.
    pub fn header_bytes(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum()
    }
}

/// The identity in a line, read without its payload.
pub fn parse_identity(line: &[u8]) -> Result<(PartitionKey, i64), ParseError> {
    let line: IdentityLine = serde_json::from_slice(line)?;
    if line.version > VERSION {
        return Err(ParseError::Version(line.version));
    }
    let topic = TopicKey { cluster: line.cluster.into(), name: line.topic.into(), id: line.topic_id.into() };
    Ok((PartitionKey { topic: Arc::new(topic), partition: line.partition }, line.offset))
}

#[derive(Deserialize)]
struct IdentityLine {
    version: u32,
    cluster: String,
    topic: String,
    topic_id: String,
    partition: i32,
    offset: i64,
}

#[derive(Deserialize)]
struct Line {
    version: u32,
    cluster: String,
    topic: String,
    topic_id: String,
    partition: i32,
    offset: i64,
    timestamp_ms: i64,
    rejected_at_ms: u64,
    reason: String,
    detail: String,
    key_base64: Option<String>,
    payload_base64: Option<String>,
    headers: Vec<LineHeader>,
}

/// Name, value, and the name once more as base64 where it is not UTF-8.
struct LineHeader(String, Option<String>, Option<String>);

impl<'de> Deserialize<'de> for LineHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut parts: Vec<Option<String>> = Vec::deserialize(deserializer)?;
        let (binary_name, value) = match parts.len() {
            2 => (None, parts.pop().flatten()),
            3 => (parts.pop().flatten(), parts.pop().flatten()),
            length => return Err(serde::de::Error::invalid_length(length, &"2 or 3 elements of a header")),
        };
        let name = parts.pop().flatten().ok_or_else(|| serde::de::Error::custom("header without a name"))?;
        Ok(LineHeader(name, value, binary_name))
    }
}

fn utf8_header((name, value): Header) -> Option<(String, String)> {
    Some((String::from_utf8(name).ok()?, String::from_utf8(value?).ok()?))
}

fn write_header(name: &[u8], value: Option<&[u8]>, line: &mut Vec<u8>) {
    line.push(b'[');
    write_string(&String::from_utf8_lossy(name), line);
    line.push(b',');
    write_binary(value, line);
    if std::str::from_utf8(name).is_err() {
        line.push(b',');
        write_binary(Some(name), line);
    }
    line.push(b']');
}

fn write_integer(number: impl itoa::Integer, line: &mut Vec<u8>) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_string(text: &str, line: &mut Vec<u8>) {
    serde_json::to_writer(line, text).expect("a string written to memory cannot fail");
}

fn write_binary(bytes: Option<&[u8]>, line: &mut Vec<u8>) {
    let Some(bytes) = bytes else {
        return line.extend_from_slice(b"null");
    };
    line.push(b'"');
    let start = line.len();
    line.resize(start + base64::encoded_len(bytes.len(), true).unwrap_or(0), 0);
    let written = STANDARD.encode_slice(bytes, &mut line[start..]).expect("the buffer has the encoded length");
    line.truncate(start + written);
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn letter() -> Letter {
        let topic = TopicKey { cluster: "c".into(), name: "t".into(), id: "".into() };
        Letter {
            partition: PartitionKey { topic: Arc::new(topic), partition: 0 },
            offset: 7,
            timestamp_ms: -1,
            rejected_at_ms: 9,
            reason: "malformed".into(),
            detail: "line\n\"two\"".into(),
            key: None,
            payload: Some(vec![0, 1]),
            headers: vec![(b"name".to_vec(), Some(b"value".to_vec())), (b"null".to_vec(), None), (vec![0xff], Some(vec![]))],
            omitted: None,
        }
    }

    #[test]
    fn a_line_has_exactly_these_bytes() {
        let mut line = Vec::new();
        letter().write_line(&mut line);
        let expected = concat!(
            r#"{"version":1,"cluster":"c","topic":"t","topic_id":"","partition":0,"offset":7,"timestamp_ms":-1,"#,
            r#""rejected_at_ms":9,"reason":"malformed","detail":"line\n\"two\"","key_base64":null,"payload_base64":"AAE=","#,
            r#""headers":[["name","dmFsdWU="],["null",null],["�","","/w=="]]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8_lossy(&line), expected);
    }

    #[test]
    fn lines_of_another_form_are_refused() {
        let mut line = Vec::new();
        letter().write_line(&mut line);
        let text = String::from_utf8(line).expect("JSON is UTF-8");
        assert!(matches!(Letter::parse(text.replace(":1,", ":2,").as_bytes()), Err(ParseError::Version(2))));
        assert!(matches!(Letter::parse(text.replace("AAE=", "A").as_bytes()), Err(ParseError::Base64(_))));
        for broken in ["", "{}", "[]", "null", &text[..text.len() / 2], &text.replace(r#"["null",null]"#, r#"["null"]"#)] {
            assert!(matches!(Letter::parse(broken.as_bytes()), Err(ParseError::Json(_))), "{broken}");
        }
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..40)
    }

    proptest! {
        #[test]
        fn every_letter_survives_its_line(
            names in (any::<String>(), any::<String>(), any::<String>()), texts in (any::<String>(), any::<String>()),
            numbers in (any::<i32>(), any::<i64>(), any::<i64>(), any::<u64>()),
            key in proptest::option::of(bytes()), payload in proptest::option::of(bytes()),
            headers in proptest::collection::vec((bytes(), proptest::option::of(bytes())), 0..4),
        ) {
            let topic = TopicKey { cluster: names.0.into(), name: names.1.into(), id: names.2.into() };
            let (partition, offset, timestamp_ms, rejected_at_ms) = numbers;
            let partition = PartitionKey { topic: Arc::new(topic), partition };
            let (reason, detail) = texts;
            let letter = Letter { partition, offset, timestamp_ms, rejected_at_ms, reason, detail, key, payload, headers, omitted: None };
            let mut line = Vec::new();
            letter.write_line(&mut line);
            prop_assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            prop_assert_eq!(parse_identity(&line).expect("just written"), (letter.partition.clone(), letter.offset));
            prop_assert_eq!(Letter::parse(&line).expect("just written"), letter);
        }
    }
}
