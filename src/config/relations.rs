//! What the values of several keys must be to each other. Checked before anything starts.
//!
//! A relation names its keys. Where one of them already has a problem it is not checked: its value is not the one that was meant.
//! The problem stands at the key that was given, so that it points to a line and not to a default.

use std::path::{Component, Path, PathBuf};

use super::key::bytes_text;
use openwit_operators::batch::Signal;
use openwit_operators::{dead_letter, dedup_window, flight_sink, normalize, wal_commit};

use super::keys::{CommitMode, Config, Format, LongTermScheme, MetastoreType, ObjectStoreScheme, TlsMode};
use super::layers::default_of;
use super::print;
use super::problem::{Place, Problem, Problems};
use super::table::{RawConfig, Table};

mod gateway;
mod security;

/// About what zstd makes of telemetry, for judging whether the log holds a whole file's rows.
const COMPRESSION_RATIO: u64 = 10;

pub(super) struct Relations<'a> {
    config: &'a Config,
    raw: &'a RawConfig,
    table: &'a Table,
    /// The problems of single keys.
    known: &'a Problems,
    found: Vec<Problem>,
}

/// All problems between keys.
pub(super) fn check(config: &Config, raw: &RawConfig, table: &Table, known: &Problems) -> Vec<Problem> {
    let mut relations = Relations { config, raw, table, known, found: Vec::new() };
    // A graph that was refused needs nothing: what stands in for it would tell of things that nobody wants.
    let is_meant = !known.blames("graph");
    if config.has_ingest() {
        if is_meant {
            relations.sources();
        }
        relations.formats();
        relations.consumer();
        relations.security();
        relations.batches();
    }
    if config.has_operator(normalize::NAME) {
        relations.gateway();
    }
    if config.has_operator(wal_commit::NAME) {
        relations.log();
        relations.long_term();
    }
    if config.has_operator(dead_letter::NAME) {
        relations.dead_letter();
    }
    if is_meant {
        relations.graph();
    }
    if config.has_storage() {
        relations.object_store();
        relations.rotation();
    }
    relations.memory();
    relations.catalog();
    relations.directories();
    relations.found
}

impl Relations<'_> {
    fn refuse(&mut self, keys: &[&str], message: impl Into<String>) {
        self.report(keys, Problem::error(Place::Default, "", message));
    }

    fn warn(&mut self, keys: &[&str], message: impl Into<String>) {
        self.report(keys, Problem::warning(Place::Default, "", message));
    }

    fn report(&mut self, keys: &[&str], problem: Problem) {
        if keys.iter().any(|key| self.known.blames(key)) {
            return;
        }
        let Some(key) = keys.iter().find(|key| self.is_given(key)).or(keys.first()) else { return };
        let Some((given, declared)) = self.raw.get(key).zip(self.table.key(key)) else {
            return self.found.push(Problem { key: (*key).to_owned(), ..problem });
        };
        let value = Some(print::shown(declared, &given.value)).filter(|value| !value.is_empty() && value != "null");
        self.found.push(Problem { key: (*key).to_owned(), place: given.place.clone(), value, ..problem });
    }

    /// True where the file or a `--set` gave the key.
    fn is_given(&self, key: &str) -> bool {
        self.raw.get(key).is_some_and(|given| given.place != Place::Default)
    }

    fn sources(&mut self) {
        let ingestion = &self.config.ingestion;
        if !ingestion.sources.kafka.enabled {
            let message = format!("graph {} needs a source, and Kafka is the only one", self.config.graph.name());
            self.refuse(&["ingestion.sources.kafka.enabled", "graph"], message);
        } else if ingestion.kafka.topics.is_empty() {
            self.refuse(&["ingestion.kafka.topics"], "must name at least one topic or glob, like v6.qtw.traces.*.*");
        }
        if ingestion.kafka.brokers.is_empty() {
            self.refuse(&["ingestion.kafka.brokers"], "must name at least one broker");
        }
    }

    /// Between the stages of the graph and the rest.
    fn graph(&mut self) {
        let has_flight = self.config.has_operator(flight_sink::NAME);
        if has_flight && !self.config.has_storage() && self.config.storage.endpoints.is_empty() {
            let message = format!(
                "graph {} delivers to other processes: must name at least one, like http://storage-0:8815 (graph standalone delivers to itself)",
                self.config.graph.name()
            );
            self.refuse(&["storage.endpoints"], message);
        }
        if self.config.has_operator(dedup_window::NAME) && !self.config.processing.dedup_enabled {
            self.refuse(
                &["processing.dedup_enabled", "graph"],
                "a stage of the graph is a dedup_window: leave the stage out instead",
            );
        }
    }

    fn formats(&mut self) {
        let kafka = &self.config.ingestion.kafka;
        let (format_key, signal_key) = ("ingestion.kafka.format", "ingestion.kafka.telemetry_type");
        let says = |signal: Signal| format!("format raw carries logs only, telemetry_type is {signal}");
        if kafka.format == Format::Raw && kafka.telemetry_type != Signal::Logs {
            self.refuse(&[format_key, signal_key], says(kafka.telemetry_type));
        }
        for pattern in &kafka.topic_index_config.patterns {
            let has_own = pattern.format.is_some() || pattern.telemetry_type.is_some();
            let (format, signal) =
                (pattern.format.unwrap_or(kafka.format), pattern.telemetry_type.unwrap_or(kafka.telemetry_type));
            if has_own && format == Format::Raw && signal != Signal::Logs {
                self.refuse(
                    &["ingestion.kafka.topic_index_config.patterns"],
                    format!("match {}: {}", pattern.r#match, says(signal)),
                );
            }
        }
    }

    fn consumer(&mut self) {
        let kafka = &self.config.ingestion.kafka;
        let consumer = &kafka.consumer;
        let (heartbeat, session) =
            ("ingestion.kafka.consumer.heartbeat_interval_ms", "ingestion.kafka.consumer.session_timeout_ms");
        if consumer.heartbeat_interval_ms >= consumer.session_timeout_ms {
            self.refuse(&[heartbeat, session], format!("must be below session_timeout_ms, {} ms", consumer.session_timeout_ms));
        } else if consumer.heartbeat_interval_ms > consumer.session_timeout_ms / 3 {
            let message = format!(
                "more than a third of session_timeout_ms, {} ms: one or two lost heartbeats end the session",
                consumer.session_timeout_ms
            );
            self.warn(&[heartbeat, session], message);
        }
        if consumer.session_timeout_ms > consumer.max_poll_interval_ms {
            let message =
                format!("session_timeout_ms must not be above max_poll_interval_ms, {} ms", consumer.max_poll_interval_ms);
            self.refuse(&[session, "ingestion.kafka.consumer.max_poll_interval_ms"], message);
        }
        let revoke_key = "ingestion.kafka.consumer.revoke_wait_ms";
        if consumer.revoke_wait_ms >= consumer.max_poll_interval_ms {
            let message = format!(
                "must be below max_poll_interval_ms, {} ms: the group would take the member for hung",
                consumer.max_poll_interval_ms
            );
            self.refuse(&[revoke_key, "ingestion.kafka.consumer.max_poll_interval_ms"], message);
        } else if consumer.revoke_wait_ms > consumer.session_timeout_ms {
            let message = format!(
                "above session_timeout_ms, {} ms: the group waits longer for a slow member than for a dead one",
                consumer.session_timeout_ms
            );
            self.warn(&[revoke_key, session], message);
        }
        let (fetch_min, fetch_max) = ("ingestion.kafka.fetch_min_bytes", "ingestion.kafka.fetch_max_bytes");
        if kafka.fetch_min_bytes > kafka.fetch_max_bytes {
            let message = format!("fetch_min_bytes must not be above fetch_max_bytes, {}", bytes_text(kafka.fetch_max_bytes));
            self.refuse(&[fetch_min, fetch_max], message);
        }
        if kafka.max_partition_fetch_bytes > kafka.fetch_max_bytes {
            let message = format!("above fetch_max_bytes, {}: the smaller counts", bytes_text(kafka.fetch_max_bytes));
            self.warn(&["ingestion.kafka.max_partition_fetch_bytes", fetch_max], message);
        }
    }

    fn warn_unused(&mut self, key: &str, why: &str) {
        let default = self.table.key(key).and_then(|declared| default_of(declared).ok());
        let differs = self.raw.get(key).map(|given| &given.value) != default.as_ref();
        if self.is_given(key) && differs {
            self.warn(&[key], format!("has no effect: {why}"));
        }
    }

    /// The specification's central sizing rule, and that every unit fits into what holds it.
    fn batches(&mut self) {
        let config = self.config;
        let batching = config.kafka_batching();
        let size_key = self.batching_key("batch_size");
        let bytes_key = self.batching_key("batch_bytes_max");
        let (average, limit) = (config.pipeline.average_message_bytes, config.ingestion.grpc.max_message_size);
        let expected = (batching.batch_size as u64).saturating_mul(average);
        if expected >= limit {
            let message = format!(
                "a batch of {} messages of {} is {} bytes, which must stay below ingestion.grpc.max_message_size, {}: lower batch_size to {}, \
                 raise the limit, or correct pipeline.average_message_bytes",
                batching.batch_size,
                bytes_text(average),
                expected,
                bytes_text(limit),
                (limit - 1) / average
            );
            self.refuse(&[&size_key, "ingestion.grpc.max_message_size", "pipeline.average_message_bytes"], message);
        }
        let (messages_max, messages_key) = config.messages_in_flight();
        if batching.batch_size > messages_max {
            self.refuse(
                &[&size_key, messages_key],
                format!("batch_size must not be above {messages_key}, {messages_max}: no batch could pass"),
            );
        }
        let buffer_bytes = config.processing.buffer.max_size_bytes;
        if batching.batch_bytes_max > buffer_bytes {
            let message = format!(
                "batch_bytes_max must not be above processing.buffer.max_size_bytes, {}: no batch could pass",
                bytes_text(buffer_bytes)
            );
            self.refuse(&[&bytes_key, "processing.buffer.max_size_bytes"], message);
        }
        if limit > config.pipeline.in_flight_bytes_max {
            let message = format!(
                "ingestion.grpc.max_message_size must not be above pipeline.in_flight_bytes_max, {}: a full message could never be sent",
                bytes_text(config.pipeline.in_flight_bytes_max)
            );
            self.refuse(&["pipeline.in_flight_bytes_max", "ingestion.grpc.max_message_size"], message);
        }
        if batching.batch_timeout_ms < config.processing.epoch_interval_ms {
            let message = format!(
                "below processing.epoch_interval_ms, {} ms, which then is the timeout",
                config.processing.epoch_interval_ms
            );
            self.warn(&[&self.batching_key("batch_timeout_ms"), "processing.epoch_interval_ms"], message);
        }
    }

    /// The key that gives a value of the Kafka source's batching.
    fn batching_key(&self, name: &str) -> String {
        let own = format!("ingestion.kafka.batching.{name}");
        if self.is_given(&own) || self.known.blames(&own) { own } else { format!("ingestion.batching.{name}") }
    }

    fn memory(&mut self) {
        let parts = self.config.buffer_memory();
        let sum: u64 = parts.iter().map(|part| part.bytes).sum();
        let limit = self.config.processing.buffer.max_buffer_memory;
        if sum <= limit {
            return;
        }
        let terms: Vec<String> = parts.iter().map(|part| format!("{} {}", part.what, bytes_text(part.bytes))).collect();
        let message = format!(
            "all buffers together may take {} MiB, above max_buffer_memory, {}: {}",
            sum.div_ceil(1 << 20),
            bytes_text(limit),
            terms.join(", ")
        );
        let mut keys = vec!["processing.buffer.max_buffer_memory"];
        keys.extend(parts.iter().flat_map(|part| part.keys));
        self.refuse(&keys, message);
    }

    fn log(&mut self) {
        let wal = &self.config.processing.wal;
        let (segment, total) = ("processing.wal.segment_size_bytes", "processing.wal.max_size_bytes");
        if wal.segment_size_bytes > wal.max_size_bytes / 2 {
            let message = format!(
                "segment_size_bytes must not be above half of max_size_bytes, {}: one segment is written while another is released",
                bytes_text(wal.max_size_bytes)
            );
            self.refuse(&[segment, total], message);
        }
        if !wal.segment_size_bytes.is_multiple_of(4_096) {
            self.refuse(&[segment], "must be a multiple of 4KiB, the unit of direct disk writes");
        }
        let in_flight = self.config.processing.buffer.max_size_bytes.saturating_add(self.config.pipeline.in_flight_bytes_max);
        if wal.max_size_bytes < in_flight {
            let message = format!(
                "max_size_bytes must not be below what is on its way, processing.buffer.max_size_bytes and pipeline.in_flight_bytes_max, \
                 together {} MiB: the log would wait for itself",
                in_flight.div_ceil(1 << 20)
            );
            self.refuse(&[total, "processing.buffer.max_size_bytes", "pipeline.in_flight_bytes_max"], message);
        }
        let batch_bytes = self.config.kafka_batching().batch_bytes_max;
        if batch_bytes > wal.segment_size_bytes / 2 {
            let message = format!(
                "batch_bytes_max must not be above half of processing.wal.segment_size_bytes, {}",
                bytes_text(wal.segment_size_bytes)
            );
            self.refuse(&[&self.batching_key("batch_bytes_max"), segment], message);
        }
        if let Some(decompressed) = self.config.ingestion.limits.decompressed_bytes_max
            && decompressed > wal.max_size_bytes / 4
        {
            let message = format!(
                "must not be above a quarter of processing.wal.max_size_bytes, {}: the log takes a message whole",
                bytes_text(wal.max_size_bytes)
            );
            self.refuse(&["ingestion.limits.decompressed_bytes_max", total], message);
        }
        if wal.sync_on_write {
            self.warn_unused("processing.wal.sync_interval_ms", "processing.wal.sync_on_write is true");
        } else if self.config.ingestion.kafka.commit_strategy.mode == CommitMode::AfterWal {
            let message =
                format!("a power failure loses up to the last {} ms of what Kafka was told is done", wal.sync_interval_ms);
            self.warn(&["processing.wal.sync_on_write"], message);
        }
    }

    fn long_term(&mut self) {
        let long_term = &self.config.processing.wal.long_term;
        let store = &long_term.object_store;
        let at = |name: &str| format!("processing.wal.long_term.object_store.{name}");
        let keys = ["scheme", "bucket", "endpoint", "region", "access_key_id", "secret_access_key", "prefix"];
        if !long_term.enabled {
            let why = "processing.wal.long_term.enabled is false";
            keys.iter().for_each(|name| self.warn_unused(&at(name), why));
            self.warn_unused("processing.wal.long_term.compression_level", why);
            let cleanup = ["enabled", "interval_seconds", "long_term_retention_seconds", "long_term_bytes_max"];
            cleanup.iter().for_each(|name| self.warn_unused(&format!("wal_cleanup.{name}"), why));
            return;
        }
        if !self.config.wal_cleanup.enabled {
            for name in ["interval_seconds", "long_term_retention_seconds", "long_term_bytes_max"] {
                self.warn_unused(&format!("wal_cleanup.{name}"), "wal_cleanup.enabled is false");
            }
        }
        if store.scheme == LongTermScheme::Fs {
            let why = "processing.wal.long_term.object_store.scheme is fs";
            keys[1..].iter().for_each(|name| self.warn_unused(&at(name), why));
            return;
        }
        self.warn_unused("processing.wal.long_term.directory", "processing.wal.long_term.object_store.scheme is s3");
        self.bucket(&at, store.bucket.is_some(), [store.access_key_id.is_some(), store.secret_access_key.is_some()]);
    }

    /// What S3 needs, under the keys that `at` names.
    fn bucket(&mut self, at: &dyn Fn(&str) -> String, has_bucket: bool, has_keys: [bool; 2]) {
        if !has_bucket {
            self.refuse(&[&at("bucket")], "must be given for scheme s3");
        }
        match has_keys {
            [true, false] => self.refuse(&[&at("secret_access_key")], "must be given with access_key_id"),
            [false, true] => self.refuse(&[&at("access_key_id")], "must be given with secret_access_key"),
            _ => {}
        }
    }

    fn dead_letter(&mut self) {
        let kafka = &self.config.ingestion.kafka;
        let (topic_key, directory_key) = ("ingestion.kafka.dead_letter.topic", "ingestion.kafka.dead_letter.directory");
        if kafka.dead_letter.topic.is_none() && kafka.dead_letter.directory.is_none() {
            self.refuse(
                &[directory_key, topic_key],
                "must be given where dead_letter.topic is not: a rejected message must go somewhere",
            );
        }
        let Some(topic) = &kafka.dead_letter.topic else { return };
        let matches = |globs: &[String]| globs.iter().find(|glob| glob_matches(glob, topic)).cloned();
        if let Some(glob) = matches(&kafka.topics)
            && matches(&kafka.exclude_topics).is_none()
        {
            let message = format!(
                "ingestion.kafka.topics reads it (by {glob}): rejected messages would go round for ever; add it to ingestion.kafka.exclude_topics"
            );
            self.refuse(&[topic_key, "ingestion.kafka.topics"], message);
        }
    }

    fn object_store(&mut self) {
        let store = &self.config.storage.object_store;
        let at = |name: &str| format!("storage.object_store.{name}");
        let used: &[&str] = match store.scheme {
            ObjectStoreScheme::Fs => &["root"],
            ObjectStoreScheme::S3 => &["bucket", "endpoint", "region", "access_key_id", "secret_access_key"],
            ObjectStoreScheme::Gcs => &["bucket", "endpoint", "credential_path"],
            ObjectStoreScheme::Azblob => &["container", "endpoint", "account_name", "account_key"],
        };
        let scheme = store.scheme.name();
        let all = [
            "bucket",
            "container",
            "endpoint",
            "region",
            "access_key_id",
            "secret_access_key",
            "credential_path",
            "account_name",
            "account_key",
        ];
        for name in all.iter().filter(|name| !used.contains(name)) {
            self.warn_unused(&at(name), &format!("storage.object_store.scheme is {scheme}"));
        }
        if store.scheme == ObjectStoreScheme::Fs {
            return;
        }
        self.warn_unused(
            &at("root"),
            &format!("storage.object_store.scheme is {scheme}; the front of paths is storage.object_store.prefix"),
        );
        // S3 takes at most 10,000 parts of an object.
        let (chunk, file) = (self.config.storage.upload.chunk_bytes, self.config.storage.rotation.file_bytes_max);
        if file / chunk >= 10_000 {
            let message = format!(
                "a file of storage.rotation.file_bytes_max, {}, must have less than 10000 parts of chunk_bytes",
                bytes_text(file)
            );
            self.refuse(&["storage.upload.chunk_bytes", "storage.rotation.file_bytes_max"], message);
        }
        match store.scheme {
            ObjectStoreScheme::Azblob => {
                let needed = [("container", store.container.is_some()), ("endpoint", store.endpoint.is_some())];
                for (name, _) in needed.iter().filter(|(_, is_there)| !is_there) {
                    self.refuse(&[&at(name)], format!("must be given for scheme {scheme}"));
                }
            }
            ObjectStoreScheme::Gcs if store.bucket.is_none() => {
                self.refuse(&[&at("bucket")], format!("must be given for scheme {scheme}"));
            }
            ObjectStoreScheme::S3 => {
                self.bucket(&at, store.bucket.is_some(), [store.access_key_id.is_some(), store.secret_access_key.is_some()]);
            }
            _ => {}
        }
        if store.account_key.is_some() && store.account_name.is_none() {
            self.refuse(&[&at("account_name")], "must be given with account_key");
        }
    }

    fn rotation(&mut self) {
        let config = self.config;
        let rotation = &config.storage.rotation;
        let (size_key, age_key, idle_key) =
            ("storage.rotation.file_bytes_max", "storage.rotation.age_max_seconds", "storage.rotation.idle_seconds");
        let upload = &config.storage.upload;
        if upload.backoff_ms > upload.backoff_max_ms {
            let message = format!("backoff_ms must not be above backoff_max_ms, {} ms", upload.backoff_max_ms);
            self.refuse(&["storage.upload.backoff_ms", "storage.upload.backoff_max_ms"], message);
        }
        if rotation.idle_seconds > rotation.age_max_seconds {
            self.warn(&[idle_key, age_key], format!("has no effect above age_max_seconds, {} seconds", rotation.age_max_seconds));
        }
        // Segments come back when their rows are published, so the log must hold about all rows of the open files.
        let wal = &config.processing.wal;
        let rows_bytes = rotation.file_bytes_max.saturating_mul(COMPRESSION_RATIO);
        if config.has_ingest() && rows_bytes > wal.max_size_bytes {
            let message = format!(
                "a file of {} holds about {} of messages, more than the log (processing.wal.max_size_bytes, {}): under load reading pauses until \
                 age_max_seconds, {} seconds",
                bytes_text(rotation.file_bytes_max),
                bytes_text(rows_bytes),
                bytes_text(wal.max_size_bytes),
                rotation.age_max_seconds
            );
            self.warn(&[size_key, "processing.wal.max_size_bytes"], message);
        }
    }

    fn catalog(&mut self) {
        let metastore = &self.config.metastore;
        let url_key = "metastore.url";
        match (metastore.r#type, &metastore.url) {
            (MetastoreType::Sled, _) => self.warn_unused(url_key, "metastore.type is sled"),
            (MetastoreType::Postgres, None) => {
                self.refuse(
                    &[url_key, "metastore.type"],
                    "must be given for type postgres, like postgres://user:password@host:5432/database",
                );
            }
            (MetastoreType::Postgres, Some(url)) => {
                let is_known = ["postgres://", "postgresql://", "host="].iter().any(|start| url.expose().starts_with(start));
                if !is_known {
                    self.refuse(&[url_key], "must begin with postgres://, postgresql:// or host=");
                }
                if url.expose().contains("sslmode=") || url.expose().contains("sslrootcert=") {
                    self.refuse(
                        &[url_key],
                        "must not say how to encrypt: that is for metastore.tls.mode and metastore.tls.ca_location",
                    );
                }
                self.warn_unused("metastore.path", "metastore.type is postgres");
            }
        }
        self.catalog_tls();
    }

    fn catalog_tls(&mut self) {
        let (metastore, tls) = (&self.config.metastore, &self.config.metastore.tls);
        let at = |name: &str| format!("metastore.tls.{name}");
        let names = ["mode", "ca_location", "certificate_location", "key_location"];
        if metastore.r#type == MetastoreType::Sled {
            names.iter().for_each(|name| self.warn_unused(&at(name), "metastore.type is sled"));
            return;
        }
        if tls.mode == TlsMode::Disable {
            names[1..].iter().for_each(|name| self.warn_unused(&at(name), "metastore.tls.mode is disable"));
        } else if tls.mode != TlsMode::VerifyFull {
            self.warn_unused(&at("ca_location"), "only metastore.tls.mode verify-full checks the server's certificate");
        }
        if tls.certificate_location.is_some() != tls.key_location.is_some() {
            let (missing, other) = if tls.key_location.is_none() {
                ("key_location", "certificate_location")
            } else {
                ("certificate_location", "key_location")
            };
            self.refuse(&[&at(missing)], format!("must be given with {other}: a certificate and its key belong together"));
        }
    }

    /// Every folder has one owner: each owner deletes what it does not know.
    fn directories(&mut self) {
        let used = self.config.directories();
        for (position, (key, path)) in used.iter().enumerate() {
            for (other_key, other) in &used[..position] {
                let (path, other) = (plain(path), plain(other));
                if path.starts_with(&other) || other.starts_with(&path) {
                    let message = format!("must not be, hold or lie in {other_key}, {}", other.display());
                    self.refuse(&[key, other_key], message);
                }
            }
        }
    }
}

/// A path without its `.` parts, so that `./data` and `data` are one.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// Whether a glob of `topics` matches a topic: `*` stands for one token or a part of one, `**` for one or more whole tokens.
fn glob_matches(glob: &str, topic: &str) -> bool {
    // ends[n]: the globs' tokens so far can take exactly the first n tokens of the topic.
    let tokens: Vec<&str> = topic.split('.').collect();
    let mut ends = vec![false; tokens.len() + 1];
    ends[0] = true;
    for part in glob.split('.') {
        let mut next = vec![false; tokens.len() + 1];
        for (position, token) in tokens.iter().enumerate() {
            next[position + 1] = match part {
                "**" => ends[position] || next[position],
                "*" => ends[position] && !token.is_empty(),
                _ => ends[position] && token_matches(part, token),
            };
        }
        ends = next;
    }
    ends[tokens.len()]
}

/// Greedy with one step back: the last `*` takes one letter more whenever what follows it does not fit.
fn token_matches(part: &str, token: &str) -> bool {
    let (part, token) = (part.as_bytes(), token.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star = None;
    while seen < token.len() {
        match part.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == token[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star_at, star_seen)) = star else { return false };
                star = Some((star_at, star_seen + 1));
                at = star_at + 1;
                seen = star_seen + 1;
            }
        }
    }
    part[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_tokens() {
        for (glob, topic, expected) in [
            ("v6.qtw.traces.*.*", "v6.qtw.traces.shop.eu", true),
            ("v6.qtw.traces.*.*", "v6.qtw.traces.shop", false),
            ("v6.qtw.traces.*", "v6.qtw.traces.shop.eu", false),
            ("*", "dead", true),
            ("*", "dead.letter", false),
            ("**", "dead.letter", true),
            ("v6.**", "v6.dead.letter", true),
            ("v6.**", "v6", false),
            ("a.**.z", "a.b.c.z", true),
            ("a.**.z", "a.z", false),
            ("a.**.z", "a.b.z.y", false),
            ("log-*", "log-", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "aXcYb", false),
            ("dead", "dead", true),
        ] {
            assert_eq!(glob_matches(glob, topic), expected, "{glob} {topic}");
        }
    }
}
