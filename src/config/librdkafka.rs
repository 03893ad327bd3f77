//! From the keys of `ingestion.kafka` to the properties of librdkafka, and which of these the passthrough may not touch.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::keys::{AutoOffsetReset, Kafka, SaslMechanism, SecurityProtocol};
use super::secret::{REDACTED, Secret};

/// Settings of librdkafka by its own names. `Debug` redacts passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Names and values, passwords as they are: for the client alone.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of `name`, a password as it is.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `name` as it may be shown.
    pub fn shown(&self, name: &str) -> &str {
        if is_secret(name) { REDACTED } else { self.get(name).unwrap_or_default() }
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// These, and those of `over`, which win.
    pub(super) fn overlaid_by(mut self, over: Self) -> Self {
        self.0.extend(over.0);
        self
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, self.shown(name)))).finish()
    }
}

/// Properties that a key of ours governs, with that key under `ingestion.kafka`.
const GOVERNED: &[(&str, &str)] = &[
    ("auto.commit.interval.ms", "commit_strategy.interval_ms"),
    ("auto.offset.reset", "auto_offset_reset"),
    ("bootstrap.servers", "brokers"),
    ("client.id", "client_id"),
    ("enable.ssl.certificate.verification", "security.tls.verify_certificate"),
    ("fetch.max.bytes", "fetch_max_bytes"),
    ("fetch.message.max.bytes", "max_partition_fetch_bytes"),
    ("fetch.min.bytes", "fetch_min_bytes"),
    ("fetch.wait.max.ms", "batching.fetch_wait_max_ms"),
    ("group.id", "group_id"),
    ("group.instance.id", "group_instance_id"),
    ("heartbeat.interval.ms", "consumer.heartbeat_interval_ms"),
    ("https.ca.location", "security.sasl.oauthbearer.ca_location"),
    ("max.partition.fetch.bytes", "max_partition_fetch_bytes"),
    ("max.poll.interval.ms", "consumer.max_poll_interval_ms"),
    ("metadata.broker.list", "brokers"),
    ("queued.max.messages.kbytes", "prefetch_bytes_max"),
    ("sasl.mechanism", "security.sasl.mechanism"),
    ("sasl.mechanisms", "security.sasl.mechanism"),
    ("sasl.oauthbearer.client.id", "security.sasl.oauthbearer.client_id"),
    ("sasl.oauthbearer.client.secret", "security.sasl.oauthbearer.client_secret"),
    ("sasl.oauthbearer.scope", "security.sasl.oauthbearer.scope"),
    ("sasl.oauthbearer.token.endpoint.url", "security.sasl.oauthbearer.token_endpoint_url"),
    ("sasl.password", "security.sasl.password"),
    ("sasl.username", "security.sasl.username"),
    ("security.protocol", "security.protocol"),
    ("session.timeout.ms", "consumer.session_timeout_ms"),
    ("ssl.ca.location", "security.tls.ca_location"),
    ("ssl.certificate.location", "security.tls.certificate_location"),
    ("ssl.endpoint.identification.algorithm", "security.tls.verify_hostname"),
    ("ssl.key.location", "security.tls.key_location"),
    ("ssl.key.password", "security.tls.key_password"),
    ("topic.blacklist", "exclude_topics"),
    ("topic.metadata.refresh.interval.ms", "metadata_refresh_interval_ms"),
];

/// Properties that the source sets itself, with what rests on them.
const FIXED: &[(&str, &str)] = &[
    ("allow.auto.create.topics", "reading must not create topics"),
    ("auto.commit.enable", "offsets are committed only when their data is durable"),
    ("enable.auto.commit", "offsets are committed only when their data is durable"),
    ("enable.auto.offset.store", "offsets are committed only when their data is durable"),
    ("enable.partition.eof", "the source tells the end of a partition by its offsets"),
    ("group.protocol", "partitions are given back step by step, as the classic protocol allows"),
    ("isolation.level", "messages of aborted transactions must not be stored"),
    ("offset.store.method", "offsets are kept by the brokers"),
    ("partition.assignment.strategy", "partitions are given back step by step, as cooperative-sticky does"),
    ("plugin.library.paths", "a configuration must not load code"),
    ("sasl.oauthbearer.method", "tokens are fetched beside librdkafka"),
];

/// Why a setting of the passthrough is refused.
pub(super) fn check_setting(name: &str, value: &str) -> Result<(), String> {
    if let Some((_, key)) = GOVERNED.iter().find(|(governed, _)| *governed == name) {
        return Err(format!("set ingestion.kafka.{key} instead"));
    }
    if let Some((_, why)) = FIXED.iter().find(|(fixed, _)| *fixed == name) {
        return Err(format!("cannot be changed: {why}"));
    }
    // The client knows its own names and ranges best. Its message may repeat the value, so a secret's is not passed on.
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, why, ..)) if !is_secret(name) => Err(format!("librdkafka refuses it: {why}")),
        Err(_) => Err("librdkafka refuses it".to_owned()),
    }
}

/// Whether a property's value must not be shown.
fn is_secret(name: &str) -> bool {
    ["password", "secret", "pem", "jaas", "oauthbearer.config", "token"].iter().any(|word| name.contains(word))
}

impl Kafka {
    /// The properties of a consumer as these keys give them, the passthrough among them. Those that commits and ends of
    /// partitions rest on are left to the source.
    pub fn consumer_properties(&self) -> Properties {
        let mut properties = Properties::default();
        // Where lag comes from; a setting of the passthrough wins.
        properties.set("statistics.interval.ms", "1000");
        // How long no partition is fetched after the client's queue was full. By itself it would be a second, in which a partition that
        // had nothing in the queue waits for those that filled it.
        properties.set("fetch.queue.backoff.ms", "20");
        properties = properties.overlaid_by(self.librdkafka.clone()).overlaid_by(self.connection_properties());
        let reset = match self.auto_offset_reset {
            AutoOffsetReset::Earliest => "earliest",
            AutoOffsetReset::Latest => "latest",
        };
        let consumer = &self.consumer;
        properties.set("group.id", &self.group_id);
        if let Some(id) = &self.group_instance_id {
            properties.set("group.instance.id", id);
        }
        properties.set("auto.offset.reset", reset);
        properties.set("partition.assignment.strategy", "cooperative-sticky");
        properties.set("auto.commit.interval.ms", self.commit_strategy.interval_ms.to_string());
        properties.set("session.timeout.ms", consumer.session_timeout_ms.to_string());
        properties.set("heartbeat.interval.ms", consumer.heartbeat_interval_ms.to_string());
        properties.set("max.poll.interval.ms", consumer.max_poll_interval_ms.to_string());
        properties.set("topic.metadata.refresh.interval.ms", self.metadata_refresh_interval_ms.to_string());
        properties.set("fetch.min.bytes", self.fetch_min_bytes.to_string());
        properties.set("fetch.max.bytes", self.fetch_max_bytes.to_string());
        properties.set("max.partition.fetch.bytes", self.max_partition_fetch_bytes.to_string());
        properties.set("fetch.wait.max.ms", self.batching.fetch_wait_max_ms.to_string());
        properties.set("queued.max.messages.kbytes", (self.prefetch_bytes_max >> 10).to_string());
        properties
    }

    /// The properties of any client of the brokers, the dead letter's producer among them: who they are and how to talk to them.
    pub fn connection_properties(&self) -> Properties {
        let mut properties = Properties::default();
        properties.set("bootstrap.servers", self.brokers.join(","));
        properties.set("client.id", &self.client_id);
        properties.set("security.protocol", self.security.protocol.name());
        if self.security.protocol.has_sasl() {
            properties = properties.overlaid_by(self.sasl_properties());
        }
        if self.security.protocol.has_tls() {
            properties = properties.overlaid_by(self.tls_properties());
        }
        properties
    }

    fn sasl_properties(&self) -> Properties {
        let sasl = &self.security.sasl;
        let mut properties = Properties::default();
        let mut set = |name: &str, value: Option<&str>| value.into_iter().for_each(|value| properties.set(name, value));
        set("sasl.mechanism", Some(sasl.mechanism.name()));
        if sasl.mechanism == SaslMechanism::Oauthbearer {
            // By librdkafka's names; the client's login takes them out again and fetches the tokens (`kafka_client`).
            let from = &sasl.oauthbearer;
            set("sasl.oauthbearer.token.endpoint.url", from.token_endpoint_url.as_deref());
            set("sasl.oauthbearer.client.id", from.client_id.as_deref());
            set("sasl.oauthbearer.client.secret", from.client_secret.as_ref().map(Secret::expose));
            set("sasl.oauthbearer.scope", from.scope.as_deref());
            set("https.ca.location", from.ca_location.as_ref().map(|path| path.to_string_lossy()).as_deref());
        } else {
            set("sasl.username", sasl.username.as_deref());
            set("sasl.password", sasl.password.as_ref().map(Secret::expose));
        }
        properties
    }

    fn tls_properties(&self) -> Properties {
        let tls = &self.security.tls;
        let mut properties = Properties::default();
        let files = [
            ("ssl.ca.location", &tls.ca_location),
            ("ssl.certificate.location", &tls.certificate_location),
            ("ssl.key.location", &tls.key_location),
        ];
        for (name, path) in files {
            if let Some(path) = path {
                properties.set(name, path.to_string_lossy());
            }
        }
        if let Some(password) = &tls.key_password {
            properties.set("ssl.key.password", password.expose());
        }
        // librdkafka checks host names only where it checks certificates.
        let identification = if tls.verify_hostname && tls.verify_certificate { "https" } else { "none" };
        properties.set("enable.ssl.certificate.verification", tls.verify_certificate.to_string());
        properties.set("ssl.endpoint.identification.algorithm", identification);
        properties
    }
}

impl SecurityProtocol {
    /// Clients log in.
    pub const fn has_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    /// The connection is encrypted.
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_keys_govern_or_commits_rest_on_are_refused() {
        for (name, _) in GOVERNED.iter().chain(FIXED) {
            assert!(check_setting(name, "true").is_err(), "{name}");
        }
        assert_eq!(check_setting("socket.keepalive.enable", "true"), Ok(()));
        assert!(check_setting("socket.keepalive.enable", "perhaps").unwrap_err().contains("librdkafka refuses"));
        assert!(check_setting("socket.keepalive.enabled", "true").unwrap_err().contains("librdkafka refuses"));
    }

    #[test]
    fn a_secret_setting_is_never_repeated() {
        let why = check_setting("ssl.keystore.password.typo", "hunter2").unwrap_err();
        assert!(!why.contains("hunter2"), "{why}");
    }
}
