//! The configuration of a process: read, checked as a whole, and printed.
//!
//! ```text
//! defaults  <  file  <  --set key=value        each a tree of text, each with ${VARIABLES}
//!                |
//!           layers: read against the table     unknown keys, types, ranges, what is not supported yet
//!                |
//!            RawConfig -> Config               plain structs, the fields named as the keys
//!                |
//!            relations                         what values must be to each other
//! ```
//!
//! Dataset schemas, producers' tokens, quotas and test cases are files of their own (`datasets.rs`, `tokens.rs`, `quotas.rs`, `cases.rs`). `keys.rs` is the one table everything else is
//! made from. All problems are found in one pass, each with file, line, key, value and what is allowed. Secrets are of a type that does not print.

pub mod cases;
pub mod datasets;
mod graph;
mod key;
mod keys;
mod layers;
mod librdkafka;
mod print;
mod problem;
pub mod quotas;
mod reader;
mod relations;
mod rule;
mod secret;
mod table;
pub mod tokens;
mod watched;
mod yaml;

use std::io::Read;
use std::path::{Path, PathBuf};

use layers::{Environment, Layers};
use openwit_operators::budget::RECALLED_BYTES_MAX;
use openwit_operators::{dead_letter, dedup_window, wal_commit};
use table::{RawConfig, Section, Table};

pub use graph::{Graph, default_options};
pub use keys::*;
pub use librdkafka::Properties;
pub(crate) use problem::nearest;
pub use problem::{Place, Problem, Problems, Severity};
pub use secret::Secret;

/// No configuration is larger; what is, is another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A configuration that passed all checks.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but probably not as meant.
    pub warnings: Problems,
}

/// Batching of one source, its own keys over those for all sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceBatching {
    /// Messages of a batch.
    pub batch_size: usize,
    /// Time after which a batch is closed.
    pub batch_timeout_ms: u64,
    /// Bytes of a batch.
    pub batch_bytes_max: u64,
}

/// One part of the memory that buffers may take.
#[derive(Clone, Debug)]
pub struct BufferPart {
    /// What holds it.
    pub what: &'static str,
    /// How much, at most.
    pub bytes: u64,
    /// The keys it comes from.
    pub keys: &'static [&'static str],
}

impl Config {
    /// Reads a file and lays `overrides`, each `key=value` with a value in YAML, over it.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, Problems> {
        let file = path.display().to_string();
        let text = match read_text(path) {
            Ok(text) => text,
            Err(message) => {
                let mut problems = Problems::new(file);
                problems.push(Problem::error(Place::File(0), "", message));
                return Err(problems);
            }
        };
        Self::parse(&file, &text, overrides, &|name| std::env::var(name).ok())
    }

    /// As `load`, of a text that was read already, with the variables that `environment` gives.
    pub fn parse(file: &str, text: &str, overrides: &[String], environment: Environment<'_>) -> Result<Loaded, Problems> {
        let table = table();
        let mut layers = Layers::new(table.clone(), file, environment);
        layers.add_file(text);
        for (number, text) in overrides.iter().enumerate() {
            layers.add_override(number, text);
        }
        Self::checked(layers, &table)
    }

    /// The configuration that all layers give.
    fn checked(layers: Layers<'_>, table: &Table) -> Result<Loaded, Problems> {
        let (raw, mut problems) = layers.finish();
        let config = Config::fill("", &raw);
        let between = relations::check(&config, &raw, table, &problems);
        problems.list.extend(between);
        let problems = problems.sorted();
        if problems.errors() > 0 { Err(problems) } else { Ok(Loaded { config, warnings: problems }) }
    }

    /// The defaults, with everything under one folder and on a free port: for a process that embeds all of it. Topics and brokers
    /// are left to the caller.
    pub fn embedded(data_directory: &Path) -> Config {
        let mut layers = Layers::new(table(), "embedded", &|_| None);
        layers.set("node.data_directory", key::Value::Path(data_directory.to_owned()));
        layers.set("service_ports.arrow_flight", key::Value::Number(0));
        layers.set("service_ports.admin", key::Value::Number(0));
        let (raw, _) = layers.finish();
        Config::fill("", &raw)
    }

    /// All values as YAML that would load as the same configuration, but for secrets, which are redacted.
    pub fn to_yaml(&self) -> String {
        let mut raw = RawConfig::default();
        self.spill("", &mut raw);
        print::effective(&table(), &raw)
    }

    fn is_high_performance(&self) -> bool {
        self.ingestion.kafka.consumer_type == ConsumerType::HighPerformance
    }

    /// Timely workers of this process.
    pub fn workers(&self) -> usize {
        if self.is_high_performance() {
            self.ingestion.kafka.high_performance.processing_threads
        } else {
            self.processing.workers
        }
    }

    /// Kafka consumers of this process.
    pub fn consumers(&self) -> usize {
        if self.is_high_performance() { self.ingestion.kafka.high_performance.num_consumers } else { 1 }
    }

    /// Flight streams to each endpoint.
    pub fn flight_streams(&self) -> usize {
        if self.is_high_performance() { self.ingestion.kafka.high_performance.num_grpc_clients } else { 1 }
    }

    /// Messages that may be between reading and durability.
    pub fn messages_in_flight_max(&self) -> usize {
        self.messages_in_flight().0
    }

    /// The same, with the key it comes from.
    fn messages_in_flight(&self) -> (usize, &'static str) {
        if self.is_high_performance() {
            (self.ingestion.kafka.high_performance.channel_buffer_size, "ingestion.kafka.high_performance.channel_buffer_size")
        } else {
            (self.processing.buffer.max_size_messages, "processing.buffer.max_size_messages")
        }
    }

    /// Batching of the Kafka source.
    pub fn kafka_batching(&self) -> SourceBatching {
        let (own, all) = (&self.ingestion.kafka.batching, &self.ingestion.batching);
        SourceBatching {
            batch_size: own.batch_size.unwrap_or(all.batch_size),
            batch_timeout_ms: own.batch_timeout_ms.unwrap_or(all.batch_timeout_ms),
            batch_bytes_max: own.batch_bytes_max.unwrap_or(all.batch_bytes_max),
        }
    }

    /// Read buffers that the pool keeps: `buffer_pool_size`, but no more than fit into the buffer.
    pub fn arenas_kept_max(&self) -> usize {
        let fit = self.processing.buffer.max_size_bytes / self.kafka_batching().batch_bytes_max;
        self.ingestion.kafka.buffer_pool_size.min(fit as usize)
    }

    /// Bytes of one record batch as a Flight message carries it: what gRPC takes, less an eighth for Arrow's metadata.
    pub fn record_batch_bytes_max(&self) -> u64 {
        self.ingestion.grpc.max_message_size / 8 * 7
    }

    /// Bytes of one row before it is encoded: what gRPC takes, less a quarter for what Arrow adds.
    pub fn row_bytes_max(&self) -> u64 {
        self.ingestion.grpc.max_message_size / 4 * 3
    }

    /// What all buffers of this process may take, part by part.
    pub fn buffer_memory(&self) -> Vec<BufferPart> {
        let mut parts = Vec::new();
        if self.has_ingest() {
            let kafka = &self.ingestion.kafka;
            let dedup_bytes = if self.has_operator(dedup_window::NAME) { self.processing.dedup_max_bytes } else { 0 };
            let read_ahead_keys = &[
                "ingestion.kafka.prefetch_bytes_max",
                "ingestion.kafka.fetch_max_bytes",
                "ingestion.kafka.high_performance.num_consumers",
            ];
            parts.extend([
                BufferPart {
                    what: "read ahead",
                    bytes: (self.consumers() as u64)
                        .saturating_mul(kafka.prefetch_bytes_max.saturating_add(kafka.fetch_max_bytes)),
                    keys: read_ahead_keys,
                },
                BufferPart {
                    what: "buffered messages",
                    bytes: self.processing.buffer.max_size_bytes,
                    keys: &["processing.buffer.max_size_bytes"],
                },
                BufferPart { what: "read back from the log", bytes: RECALLED_BYTES_MAX as u64, keys: &[] },
                BufferPart {
                    what: "dedup window",
                    bytes: dedup_bytes,
                    keys: &["processing.dedup_max_bytes", "processing.dedup_enabled"],
                },
                BufferPart {
                    what: "deliveries",
                    bytes: self.pipeline.in_flight_bytes_max,
                    keys: &["pipeline.in_flight_bytes_max"],
                },
            ]);
        }
        if self.has_storage() {
            let (storage, upload) = (&self.storage, &self.storage.upload);
            let parts_at_once = (storage.upload_concurrency * upload.chunks_concurrent) as u64;
            parts.extend([
                BufferPart {
                    what: "row groups",
                    bytes: storage.rotation.memory_bytes_max,
                    keys: &["storage.rotation.memory_bytes_max"],
                },
                BufferPart {
                    what: "uploads",
                    bytes: parts_at_once.saturating_mul(upload.chunk_bytes),
                    keys: &["storage.upload_concurrency", "storage.upload.chunks_concurrent", "storage.upload.chunk_bytes"],
                },
            ]);
        }
        parts
    }

    /// The folders that the graph's parts own, each with its key.
    fn directories(&self) -> Vec<(&'static str, PathBuf)> {
        let (wal, store) = (&self.processing.wal, &self.storage.object_store);
        let mut used = Vec::new();
        if self.has_operator(wal_commit::NAME) {
            if wal.enabled {
                used.push(("processing.wal.directory", wal.directory.clone()));
            }
            if wal.long_term.enabled && wal.long_term.object_store.scheme == LongTermScheme::Fs {
                used.push(("processing.wal.long_term.directory", wal.long_term.directory.clone()));
            }
        }
        if self.has_operator(dead_letter::NAME) {
            let dead_letter = self.ingestion.kafka.dead_letter.directory.clone();
            used.extend(dead_letter.map(|directory| ("ingestion.kafka.dead_letter.directory", directory)));
        }
        if self.has_storage() {
            used.push(("storage.local_directory", self.storage.local_directory.clone()));
            if store.scheme == ObjectStoreScheme::Fs {
                used.push(("storage.object_store.root", store.root.clone()));
            }
            if self.metastore.r#type == MetastoreType::Sled {
                used.push(("metastore.path", self.metastore.path.clone()));
            }
        }
        used
    }
}

/// Every key with its default and documentation: the text of `config/reference.yaml`.
pub fn reference_yaml() -> String {
    print::reference(&table())
}

fn table() -> Table {
    table::table_of::<Config>()
}

fn read_text(path: &Path) -> Result<String, String> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) if text.len() as u64 > FILE_BYTES_MAX => Err(format!("larger than {FILE_BYTES_MAX} bytes: not a configuration")),
        Ok(text) => Ok(text),
        Err::<_, std::io::Error>(error) => Err(format!("cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests;
