//! One letter as a line of JSON: the original message, why it was rejected, and where it was.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::batch::{Reject, Span, headers};
use crate::coverage::{PartitionKey, TopicKey};

/// What a dead-letter file is called: sortable by time, unique per process.
pub(super) const PREFIX: &str = "dead-letter-";
pub(super) const SUFFIX: &str = ".ndjson";

/// A line of a dead-letter file. Bytes are base64 (RFC 4648, with padding); header names that are not UTF-8 are shown lossily.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The reason's stable code.
    pub reason: String,
    /// What a person needs to mend the producer.
    pub detail: String,
    /// Kafka's cluster id.
    pub cluster: String,
    /// The source topic.
    pub topic: String,
    /// The source topic's id or incarnation; empty for the first.
    pub topic_id: String,
    /// The source partition.
    pub partition: i32,
    /// The source offset.
    pub offset: i64,
    /// The message's Kafka timestamp in Unix milliseconds; -1 where there was none.
    pub timestamp_ms: i64,
    /// The original key.
    pub key_base64: Option<String>,
    /// The original payload; null for a tombstone.
    pub payload_base64: Option<String>,
    /// The original headers, in order.
    pub headers: Vec<(String, Option<String>)>,
}

impl Letter {
    /// The letter of a reject.
    pub fn of(reject: &Reject) -> Self {
        let bytes = |span: Option<Span>| span.map(|span| STANDARD.encode(span.of(&reject.arena)));
        let header = |(name, value): (&[u8], Option<&[u8]>)| {
            (String::from_utf8_lossy(name).into_owned(), value.map(|value| STANDARD.encode(value)))
        };
        Letter {
            reason: reject.reason.code().into(),
            detail: reject.detail.clone(),
            cluster: reject.partition.topic.cluster.to_string(),
            topic: reject.partition.topic.name.to_string(),
            topic_id: reject.partition.topic.id.to_string(),
            partition: reject.partition.partition,
            offset: reject.record.offset,
            timestamp_ms: reject.record.timestamp_ms,
            key_base64: bytes(reject.record.key),
            payload_base64: bytes(reject.record.payload),
            headers: headers(reject.record.headers.of(&reject.arena)).map(header).collect(),
        }
    }

    /// The partition the message came from.
    pub fn partition_key(&self) -> PartitionKey {
        let topic = TopicKey {
            cluster: self.cluster.as_str().into(),
            name: self.topic.as_str().into(),
            id: self.topic_id.as_str().into(),
        };
        PartitionKey { topic: topic.into(), partition: self.partition }
    }
}

/// The dead-letter files in `directory`, oldest first.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { doing: "listing", path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// All letters in `directory`, oldest first. A line that is no letter, as a crash may leave at a file's end, is passed over.
pub fn read_directory(directory: &Path) -> Result<Vec<Letter>, Error> {
    let mut letters = Vec::new();
    for path in files(directory)? {
        letters.extend(read_file(&path)?.0);
    }
    Ok(letters)
}

/// The letters of one file, and the bytes of it that are whole lines.
pub(super) fn read_file(path: &Path) -> Result<(Vec<Letter>, u64), Error> {
    let failed = |source| Error::File { doing: "reading", path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let (mut letters, mut whole_bytes, mut line) = (Vec::new(), 0, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(failed)?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok((letters, whole_bytes));
        }
        whole_bytes += read as u64;
        letters.extend(serde_json::from_slice::<Letter>(&line).ok());
    }
}
