//! The messages of a case.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json};

use crate::config::reader::Reader;
use crate::config::yaml::{Content, Node};

/// When the first message was sent unless it says so: 2026-01-01T00:00:00Z.
const TIMESTAMP_MS: i64 = 1_767_225_600_000;
/// Larger than any message that Kafka takes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Payloads of one case: they are in memory several times, and one batch's arena is below 4 GiB.
const INPUT_BYTES_MAX: usize = 256 << 20;
/// No topic has an offset beyond it, and one more than it is still a number.
const OFFSET_MAX: i64 = i64::MAX >> 1;

const MESSAGE_KEYS: [&str; 13] = [
    "description",
    "topic",
    "partition",
    "offset",
    "timestamp_ms",
    "polled_ms",
    "key",
    "headers",
    "payload",
    "json",
    "base64",
    "file",
    "tombstone",
];
/// The ways to say a payload.
const PAYLOAD_KEYS: [&str; 5] = ["payload", "json", "base64", "file", "tombstone"];

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Kafka's timestamp in Unix milliseconds; -1 for none.
    pub timestamp_ms: i64,
    /// When it is read, in Unix milliseconds.
    pub polled_ms: u64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Its payload; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
}

/// What holds for messages that do not say it.
pub(super) struct Defaults<'a> {
    /// Their topic.
    pub topic: Option<String>,
    /// The folder of their files.
    pub folder: &'a Path,
}

/// What the messages so far have come to.
struct Position {
    next_offsets: BTreeMap<(String, i32), i64>,
    timestamp_ms: i64,
    polled_ms: u64,
    bytes: usize,
}

impl Reader {
    /// The messages of a list.
    pub(super) fn input(&mut self, path: &str, node: &Node, defaults: &Defaults<'_>) -> Option<Vec<Message>> {
        let Content::List(items) = &node.content else {
            self.refuse(node.line, path, "must be a list of messages");
            return None;
        };
        let mut position = Position { next_offsets: BTreeMap::new(), timestamp_ms: TIMESTAMP_MS, polled_ms: 0, bytes: 0 };
        let read = items.iter().enumerate();
        Some(read.filter_map(|(index, node)| self.message(&format!("{path}[{index}]"), node, defaults, &mut position)).collect())
    }

    fn message(&mut self, path: &str, node: &Node, defaults: &Defaults<'_>, position: &mut Position) -> Option<Message> {
        let keys = self.keys(path, node, &MESSAGE_KEYS)?;
        let at = |key: &str| format!("{path}.{key}");
        let topic = match keys.get("topic") {
            Some(node) => self.text(&at("topic"), node),
            None if defaults.topic.is_some() => defaults.topic.clone(),
            None => {
                self.refuse(node.line, &at("topic"), "must be given, here or for the whole case");
                None
            }
        };
        let number = |reader: &mut Self, key: &str, says: &str, min: i64| {
            let read = |text: &str| text.parse::<i64>().ok().filter(|number| (min..=OFFSET_MAX).contains(number));
            keys.get(key).map(|node| reader.read(&at(key), node, says, read))
        };
        let partition = keys.get("partition").map(|node| {
            let read = |text: &str| text.parse::<i32>().ok().filter(|number| *number >= 0);
            self.read(&at("partition"), node, "a whole number from 0", read)
        });
        let partition = partition.unwrap_or(Some(0));
        let offset = number(self, "offset", "a whole number from 0", 0);
        let timestamp_ms = number(self, "timestamp_ms", "Unix milliseconds, or -1 for none", -1);
        let polled_ms = number(self, "polled_ms", "Unix milliseconds", 0);
        let (key, headers) = (self.key_of(path, &keys), self.headers(&at("headers"), keys.get("headers").copied()));
        let payload = self.payload(path, node, &keys, defaults.folder);
        position.bytes += payload.as_ref().and_then(Option::as_ref).map_or(0, Vec::len);
        if position.bytes > INPUT_BYTES_MAX {
            self.refuse(node.line, path, format!("with those above is over {INPUT_BYTES_MAX} bytes: a case holds less"));
            return None;
        }
        let timestamp_ms = timestamp_ms.unwrap_or(Some(position.timestamp_ms))?;
        let polled_ms = polled_ms.map_or_else(
            || Some(position.polled_ms.max(timestamp_ms.max(0) as u64)),
            |polled_ms| polled_ms.map(|polled_ms| polled_ms as u64),
        )?;
        if polled_ms < position.polled_ms {
            let message = format!("must not be before that of the message above, {}", position.polled_ms);
            self.refuse(keys.get("polled_ms").map_or(node.line, |node| node.line), &at("polled_ms"), message);
        }
        (position.timestamp_ms, position.polled_ms) = (timestamp_ms, polled_ms);
        let (topic, partition) = (topic?, partition?);
        let next = position.next_offsets.entry((topic.clone(), partition)).or_insert(0);
        let offset = offset.unwrap_or(Some(*next))?;
        if offset < *next {
            let message = format!("must be {next} or more: offsets of a partition ascend");
            self.refuse(keys.get("offset").map_or(node.line, |node| node.line), &at("offset"), message);
        }
        *next = offset.saturating_add(1);
        Some(Message { topic, partition, offset, timestamp_ms, polled_ms, key, headers: headers?, payload: payload? })
    }

    fn key_of(&mut self, path: &str, keys: &BTreeMap<&str, &Node>) -> Option<Vec<u8>> {
        let node = keys.get("key").filter(|node| node.content != Content::Null)?;
        self.text(&format!("{path}.key"), node).map(String::into_bytes)
    }

    fn headers(&mut self, path: &str, node: Option<&Node>) -> Option<Vec<(String, Option<Vec<u8>>)>> {
        let Some(node) = node else { return Some(Vec::new()) };
        let Content::Map(entries) = &node.content else {
            self.refuse(node.line, path, "must be a map of names and texts");
            return None;
        };
        let mut headers = Vec::new();
        for entry in entries {
            let value = match &entry.value.content {
                Content::Null => None,
                _ => Some(self.text(&format!("{path}.{}", entry.key), &entry.value)?.into_bytes()),
            };
            headers.push((entry.key.clone(), value));
        }
        Some(headers)
    }

    /// The payload, which is said in exactly one way.
    fn payload(&mut self, path: &str, node: &Node, keys: &BTreeMap<&str, &Node>, folder: &Path) -> Option<Option<Vec<u8>>> {
        let given: Vec<&str> = PAYLOAD_KEYS.into_iter().filter(|key| keys.contains_key(key)).collect();
        let [key] = given[..] else {
            let all = PAYLOAD_KEYS.join(", ");
            let message = match given.len() {
                0 => format!("has no payload: give one of {all}"),
                _ => format!("has {} payloads, {}: give one of {all}", given.len(), given.join(" and ")),
            };
            self.refuse(node.line, path, message);
            return None;
        };
        let (here, value) = (format!("{path}.{key}"), keys[key]);
        match key {
            "payload" => match &value.content {
                Content::Scalar(text) => Some(Some(text.clone().into_bytes())),
                _ => {
                    self.refuse(
                        value.line,
                        &here,
                        "must be text; for JSON there is the key json, for no payload tombstone: true",
                    );
                    None
                }
            },
            "json" => Some(Some(json_of(value).to_string().into_bytes())),
            "base64" => {
                let without_blanks = |text: &str| text.split_whitespace().collect::<String>();
                self.read(&here, value, "base64", |text| STANDARD.decode(without_blanks(text)).ok()).map(Some)
            }
            "file" => {
                let path = folder.join(self.text(&here, value)?);
                match bytes_of(&path) {
                    Ok(bytes) => Some(Some(bytes)),
                    Err(message) => {
                        self.refuse(value.line, &here, format!("{}: {message}", path.display()));
                        None
                    }
                }
            }
            _ => self.choice(&here, value, &[("true", ())]).map(|()| None),
        }
    }
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > FILE_BYTES_MAX => Err(format!("larger than {FILE_BYTES_MAX} bytes: no message is")),
        Ok(bytes) => Ok(bytes),
        Err::<_, std::io::Error>(error) => Err(format!("cannot be read: {error}")),
    }
}

/// YAML as JSON: what is not quoted and is a number, a boolean or null in JSON is that, everything else text.
fn json_of(node: &Node) -> Json {
    match &node.content {
        Content::Null => Json::Null,
        Content::Scalar(text) => {
            let typed = serde_json::from_str(text).ok().filter(|value: &Json| value.is_number() || value.is_boolean());
            typed.filter(|_| node.is_plain).unwrap_or_else(|| Json::String(text.clone()))
        }
        Content::List(items) => Json::Array(items.iter().map(json_of).collect()),
        Content::Map(entries) => {
            let members: Map<String, Json> = entries.iter().map(|entry| (entry.key.clone(), json_of(&entry.value))).collect();
            Json::Object(members)
        }
    }
}
