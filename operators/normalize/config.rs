//! How messages are normalized, and what is refused of it before anything starts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::Signal;
use crate::dataset::Schema;

use super::access::{Auth, Tenants};
use super::dataset::Datasets;
use super::index::{self, IndexRules, Router};

/// How payloads are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// OTLP protobuf, OTLP JSON or plain JSON, told apart message by message.
    #[default]
    Auto,
    /// OTLP protobuf.
    OtlpProto,
    /// OTLP JSON.
    OtlpJson,
    /// Flat JSON objects: one per message, one per line, or the elements of an array.
    Json,
    /// A line of text per message, for logs only.
    Raw,
}

/// What happens to a message without a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TombstonePolicy {
    /// It is dropped and counted: in a log of telemetry it says nothing.
    #[default]
    Skip,
    /// It is rejected as `empty`.
    Reject,
}

/// What tells two messages to be the same.
///
/// Where the configured id is absent or empty, the payload's hash takes its place: one empty id must not make all messages one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MessageKey {
    /// A hash of the payload as it came, but for its compression.
    #[default]
    PayloadHash,
    /// The message's Kafka key.
    KafkaKey,
    /// The value of the header of this name; the last, if there are several.
    Header(String),
}

/// Limits on a payload. What is over one is a reject, `too_large` or `too_deep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Levels of values inside one another; default 64. JSON also ends at 128 levels of its own, so OTLP JSON holds about 30.
    pub depth_max: u32,
    /// Bytes of one span, log record or data point with its metric, scope and resource; default 3 MiB. Larger than what fits a Flight
    /// message, and `arrow_encode` has to reject it.
    pub row_bytes_max: usize,
    /// Bytes of one payload as it came; default 64 MiB. Too small, and big exports are rejected whole.
    pub payload_bytes_max: usize,
    /// Bytes of one payload once it is decompressed; default 64 MiB. Too large, and a few bytes of a hostile message take this much
    /// memory.
    pub decompressed_bytes_max: usize,
    /// Records of one JSON payload, in lines or in an array; default 100,000. Too large, and a message of `{}` after `{}` becomes many
    /// times its bytes as rows.
    pub json_records_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // gRPC's default of 4 MiB, less a quarter for what Arrow adds; Kafka brokers are rarely configured beyond tens of MiB a message.
        Limits {
            depth_max: 64,
            row_bytes_max: 3 << 20,
            payload_bytes_max: 64 << 20,
            decompressed_bytes_max: 64 << 20,
            json_records_max: 100_000,
        }
    }
}

/// How messages are normalized.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How payloads are encoded, where no pattern says otherwise.
    pub format: Format,
    /// The signal topics carry, where no pattern says otherwise. May be left out only if no topic can need it.
    pub telemetry_type: Option<Signal>,
    /// Which index a topic's messages belong to.
    pub topics: IndexRules,
    /// What rows must be like, by index and signal; the first that fits counts. An index without a schema takes what OTLP allows.
    pub datasets: Arc<[Schema]>,
    /// What happens to messages without a payload.
    pub tombstones: TombstonePolicy,
    /// What tells two messages to be the same.
    pub message_key: MessageKey,
    /// Limits on a payload.
    pub limits: Limits,
    /// Payloads that pass untouched stay in the source's arena, which then lives until the last of them is delivered. If false they
    /// are copied out, and the arena with its keys, headers and rejects returns to the pool at once: slower, less memory.
    pub zero_copy: bool,
    /// How producers say who they are. `None`: nobody is asked.
    pub auth: Option<Auth>,
    /// Whose messages are.
    pub tenants: Tenants,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            format: Format::default(),
            telemetry_type: None,
            topics: IndexRules::default(),
            datasets: Arc::default(),
            tombstones: TombstonePolicy::default(),
            message_key: MessageKey::default(),
            limits: Limits::default(),
            zero_copy: true,
            auth: None,
            tenants: Tenants::default(),
        }
    }
}

/// Why a `Config` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The index rules are wrong.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// Some topic's signal would be unknown.
    #[error("telemetry_type is needed: a topic that no pattern with a signal matches would have none")]
    SignalMissing,
    /// Raw text has no form for spans or data points.
    #[error("format raw carries logs only, but {place} sets {signal}")]
    RawNotLogs {
        /// Which entry combines them.
        place: String,
        /// The signal.
        signal: Signal,
    },
    /// A limit of nothing rejects everything.
    #[error("{key} must be at least 1")]
    ZeroLimit {
        /// The limit.
        key: &'static str,
    },
    /// A dataset schema is wrong.
    #[error("{0}")]
    Dataset(String),
    /// A header's name is empty.
    #[error("message_key names a header without a name")]
    HeaderUnnamed,
}

impl Config {
    /// Every problem, not just the first.
    pub fn problems(&self) -> Vec<ConfigError> {
        let mut problems: Vec<ConfigError> = Router::new(self.topics.clone()).err().map(ConfigError::from).into_iter().collect();
        let patterns = &self.topics.patterns;
        let indexed_by_default = self.topics.default_index_position.is_some() || self.topics.auto_generate.enabled;
        let by_patterns = !patterns.is_empty() && patterns.iter().all(|pattern| pattern.signal.is_some());
        if self.telemetry_type.is_none() && (indexed_by_default || !by_patterns) {
            problems.push(ConfigError::SignalMissing);
        }
        let mut check_raw = |place: String, format: Format, signal: Option<Signal>| match signal {
            Some(signal @ (Signal::Traces | Signal::Metrics)) if format == Format::Raw => {
                problems.push(ConfigError::RawNotLogs { place, signal });
            }
            _ => {}
        };
        check_raw("telemetry_type".to_owned(), self.format, self.telemetry_type);
        for (position, pattern) in patterns.iter().enumerate() {
            let place = format!("topic_index_config.patterns[{position}]");
            check_raw(place, pattern.format.unwrap_or(self.format), pattern.signal.or(self.telemetry_type));
        }
        let limits = [
            ("depth_max", self.limits.depth_max as usize),
            ("row_bytes_max", self.limits.row_bytes_max),
            ("payload_bytes_max", self.limits.payload_bytes_max),
            ("decompressed_bytes_max", self.limits.decompressed_bytes_max),
            ("json_records_max", self.limits.json_records_max),
        ];
        problems.extend(limits.into_iter().filter(|&(_, limit)| limit == 0).map(|(key, _)| ConfigError::ZeroLimit { key }));
        problems.extend(Datasets::new(&self.datasets).err().map(ConfigError::Dataset));
        if self.message_key == MessageKey::Header(String::new()) {
            problems.push(ConfigError::HeaderUnnamed);
        }
        problems
    }
}
