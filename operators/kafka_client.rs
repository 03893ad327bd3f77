//! Keeps a Kafka client from losing all its brokers for good.
//!
//! From 2.10 on librdkafka forgets brokers that an answer about metadata does not name. A broker that is shutting down may name none;
//! then nothing is left to connect to, and the client never goes back to its bootstrap servers (confluentinc/librdkafka issue 5301, open
//! at the time of writing). Its statistics show it: not one broker that was configured or learned. Naming the bootstrap servers again
//! mends it, and the client keeps all else it has: its queue, its assignment, its group.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::Statistics;
use rdkafka::client::{Client, ClientContext};
use tracing::warn;

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
        // Logical brokers, like the group's coordinator, have no address of their own.
        let has_address = |source: &str| source == "learned" || source == "configured";
        let is_lost = !statistics.brokers.values().any(|broker| has_address(&broker.source));
        self.has_lost_all.store(is_lost, Ordering::Release);
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

    fn statistics(sources: &[&str]) -> Statistics {
        let broker = |source: &&str| {
            let zeros = "\"outbuf_cnt\":0,\"outbuf_msg_cnt\":0,\"waitresp_cnt\":0,\"waitresp_msg_cnt\":0,\"tx\":0,\"txbytes\":0,\
                         \"txerrs\":0,\"txretries\":0,\"req_timeouts\":0,\"rx\":0,\"rxbytes\":0,\"rxerrs\":0,\"rxcorriderrs\":0,\
                         \"rxpartial\":0,\"req\":{},\"zbuf_grow\":0,\"buf_grow\":0,\"wakeups\":0,\"toppars\":{}";
            format!(
                "\"{source}\":{{\"name\":\"{source}\",\"nodeid\":1,\"nodename\":\"n\",\"source\":\"{source}\",\"state\":\"UP\",\
                 \"stateage\":0,{zeros}}}"
            )
        };
        let brokers: Vec<String> = sources.iter().map(broker).collect();
        let text = format!(
            "{{\"name\":\"c\",\"client_id\":\"c\",\"type\":\"consumer\",\"ts\":0,\"time\":0,\"age\":0,\"replyq\":0,\"msg_cnt\":0,\
             \"msg_size\":0,\"msg_max\":0,\"msg_size_max\":0,\"tx\":0,\"tx_bytes\":0,\"rx\":0,\"rx_bytes\":0,\"txmsgs\":0,\
             \"txmsg_bytes\":0,\"rxmsgs\":0,\"rxmsg_bytes\":0,\"simple_cnt\":0,\"metadata_cache_cnt\":0,\"topics\":{{}},\
             \"brokers\":{{{}}}}}",
            brokers.join(",")
        );
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn a_client_without_any_broker_of_an_address_begins_anew() {
        let watch = BrokerWatch::default();
        let producer = BaseProducer::from_config(ClientConfig::new().set("bootstrap.servers", "127.0.0.1:1")).unwrap();
        for (sources, is_lost) in
            [(&["learned", "logical"][..], false), (&["configured"], false), (&["logical"], true), (&[], true)]
        {
            watch.note(&statistics(sources));
            assert_eq!(watch.has_lost_all.load(Ordering::Acquire), is_lost, "{sources:?}");
            watch.revive(producer.client(), "127.0.0.1:1,127.0.0.1:2");
            assert!(!watch.has_lost_all.load(Ordering::Acquire));
        }
        assert_eq!(add_brokers(producer.client(), "127.0.0.1:3,127.0.0.1:4"), 2);
        assert_eq!(add_brokers(producer.client(), "no\0list"), 0);
    }
}
