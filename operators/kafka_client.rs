//! What every Kafka client here needs beside it: settings and login, a record of its complaints, and a guard against losing all its
//! brokers for good.
//!
//! From 2.10 on librdkafka forgets brokers that an answer about metadata does not name. A broker that is shutting down may name none;
//! then nothing is left to connect to, and the client never goes back to its bootstrap servers (confluentinc/librdkafka issue 5301, open
//! at the time of writing). Its statistics show it: not one broker that was configured or learned. Naming the bootstrap servers again
//! mends it, and the client keeps all else it has: its queue, its assignment, its group.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::Statistics;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;
use tracing::warn;

mod complaints;
mod login;

pub use complaints::Complaints;
pub use login::Login;

/// The settings of a client as librdkafka takes them, and the login beside them where it fetches tokens.
pub fn settings(properties: &BTreeMap<String, String>) -> (ClientConfig, Login) {
    let mut client = ClientConfig::new();
    for (name, value) in properties.iter().filter(|(name, _)| !login::PROPERTIES.contains(&name.as_str())) {
        client.set(name, value);
    }
    (client, Login::new(properties))
}

/// How often the client must give statistics for this to work, in milliseconds: a value of its property `statistics.interval.ms`.
pub const STATISTICS_INTERVAL_MS: &str = "1000";

/// Watches one client's statistics.
#[derive(Debug, Default)]
pub struct BrokerWatch {
    has_lost_all: AtomicBool,
}

impl BrokerWatch {
    /// Takes what the client says of itself, every `STATISTICS_INTERVAL_MS`.
    pub fn note(&self, statistics: &Statistics) {
        self.note_sources(statistics.brokers.values().map(|broker| broker.source.as_str()));
    }

    fn note_sources<'s>(&self, mut sources: impl Iterator<Item = &'s str>) {
        // Logical brokers, like the group's coordinator, have no address of their own.
        let has_address = sources.any(|source| source == "learned" || source == "configured");
        self.has_lost_all.store(!has_address, Ordering::Release);
    }

    /// Names the bootstrap servers again if the client has lost all brokers. Cheap otherwise: call it wherever the client is polled.
    pub fn revive<C: ClientContext>(&self, client: &Client<C>, bootstrap_servers: &str) {
        if self.has_lost_all.swap(false, Ordering::AcqRel) {
            let added = add_brokers(client, bootstrap_servers);
            warn!(
                bootstrap_servers,
                added, "the Kafka client had lost all its brokers, it begins with the bootstrap servers again"
            );
        }
    }
}

/// Gives a client brokers to begin with, as at its creation; returns how many of them it takes.
pub fn add_brokers<C: ClientContext>(client: &Client<C>, bootstrap_servers: &str) -> i32 {
    // A list with a zero in it was refused when the client was made.
    let Ok(list) = CString::new(bootstrap_servers) else { return 0 };
    // SAFETY: the client lives as long as the reference to it. The function takes its own locks, may be called from any thread, and
    // only reads the text, which ends with a zero, during the call.
    unsafe { rdkafka_sys::rd_kafka_brokers_add(client.native_ptr(), list.as_ptr()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::config::{ClientConfig, FromClientConfig};
    use rdkafka::producer::{BaseProducer, Producer};

    #[test]
    fn a_client_without_any_broker_of_an_address_begins_anew() {
        let watch = BrokerWatch::default();
        let producer = BaseProducer::from_config(ClientConfig::new().set("bootstrap.servers", "127.0.0.1:1")).unwrap();
        for (sources, is_lost) in
            [(&["learned", "logical"][..], false), (&["configured"], false), (&["logical"], true), (&[], true)]
        {
            watch.note_sources(sources.iter().copied());
            assert_eq!(watch.has_lost_all.load(Ordering::Acquire), is_lost, "{sources:?}");
            watch.revive(producer.client(), "127.0.0.1:1,127.0.0.1:2");
            assert!(!watch.has_lost_all.load(Ordering::Acquire));
        }
        assert_eq!(add_brokers(producer.client(), "127.0.0.1:3,127.0.0.1:4"), 2);
        assert_eq!(add_brokers(producer.client(), "no\0list"), 0);
    }
}
