//! The one table of keys: what there is, its default, and what goes wrong when it is too small or too large.
//!
//! Everything else is made from this file: the structs the program reads, what files are checked against,
//! `config/reference.yaml`. Names are those of the specification and of OpenWit where these have one. The defaults suit one small
//! machine that embeds everything: less than 512 MiB of buffers.

use std::path::PathBuf;

use openwit_operators::batch::Signal;

use super::graph::Graph;
use super::key::{Key, Value};
use super::librdkafka::{self, Properties};
use super::rule;
use super::secret::Secret;
use super::table::{Field, choices, section, table_of};

mod gateway;
mod storage;

pub use gateway::*;
pub use storage::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Beyond any real setting of memory or disk; keeps sums of a few such values far from overflow.
const BYTES_MAX: u64 = 1 << 50;
/// A year: beyond it a period is a slip of the unit.
const SECONDS_MAX: u64 = 31_536_000;

section! {
    /// The configuration of one process.
    Config {
        /// What to run. A shipped graph: `ingest` (Kafka to Flight), `storage` (Flight to Parquet and catalog), or `standalone`, both in
        /// one process. Or stages of one's own: `{stages: [..], storage: false}` (docs/graphs.md).
        graph: Graph = Key::graph("standalone", Graph::NAMES);
        /// This process.
        node: Node;
        /// What comes in, and how it is read.
        ingestion: Ingestion;
        /// What happens until data is durable.
        processing: Processing;
        /// What is kept of the logs once their data is published.
        wal_cleanup: WalCleanup;
        /// From durable data to the storage nodes.
        pipeline: Pipeline;
        /// Where this process listens.
        service_ports: ServicePorts;
        /// From Arrow to Parquet files in an object store.
        storage: Storage;
        /// The catalog of files and of what they cover.
        metastore: Metastore;
    }
}

section! {
    /// This process.
    Node {
        /// The name of this node. It is part of the path of every file it writes, so no two nodes may share one, and a node keeps
        /// its name over restarts.
        id: String = Key::text("local", rule::NAME);
        /// The folder under which everything lies that this node keeps. Two processes cannot share it.
        data_directory: PathBuf = Key::path("./data");
    }
}

section! {
    /// What comes in, and how it is read.
    Ingestion {
        /// Which entry points are open.
        sources: Sources;
        /// The Kafka source.
        kafka: Kafka;
        /// When a batch is closed. A batch is the unit that is deduplicated, logged and accounted for.
        batching: Batching;
        /// The gRPC messages that carry record batches.
        grpc: Grpc;
        /// What is refused whoever sends it. A message beyond a limit goes to the dead letter.
        limits: Limits;
        /// What rows of an index must be like; see docs/datasets.md.
        datasets: Datasets;
        /// Who may send; see docs/gateway.md.
        auth: Auth;
        /// Whose messages are; see docs/gateway.md.
        tenants: Tenants;
        /// How much may be sent; see docs/gateway.md.
        quotas: Quotas;
    }
}

section! {
    /// Which entry points are open. Close those that are not used.
    Sources {
        /// Kafka as a source.
        kafka: KafkaSource;
        /// OTLP over gRPC as a source.
        grpc: GrpcSource;
        /// OTLP over HTTP as a source.
        http: HttpSource;
    }
}

section! {
    /// Kafka as a source.
    KafkaSource {
        /// Reads from Kafka. The graphs `standalone` and `ingest` need a source.
        enabled: bool = Key::bool("true");
    }
}

section! {
    /// OTLP over gRPC as a source.
    GrpcSource {
        /// Receives OTLP over gRPC.
        enabled: bool = Key::bool("false").not_yet("OTLP over gRPC as a source; send through Kafka");
    }
}

section! {
    /// OTLP over HTTP as a source.
    HttpSource {
        /// Receives OTLP over HTTP.
        enabled: bool = Key::bool("false").not_yet("OTLP over HTTP as a source; send through Kafka");
    }
}

section! {
    /// The Kafka source.
    Kafka {
        /// Brokers to begin with; the others are learned from them. Also written as one text with commas.
        brokers: Vec<String> = Key::list("[\"localhost:9092\"]", rule::BROKER);
        /// The consumer group. All nodes of one pipeline share it, and Kafka divides the partitions among them; two pipelines
        /// with one group would each get only a part of the data.
        group_id: String = Key::text("ingestion-group", rule::TEXT);
        /// Topics to read, as names or globs: `*` stands for one dot-separated token, `**` for any rest. Topics created later are
        /// picked up, as are partitions added, within `metadata_refresh_interval_ms`. There is no default.
        topics: Vec<String> = Key::list("[]", rule::TOPIC_GLOB).example("[\"v6.qtw.traces.*.*\"]");
        /// Topics that `topics` matches and that are not to be read.
        exclude_topics: Vec<String> = Key::list("[]", rule::TOPIC_GLOB);
        /// How often the brokers are asked for new topics and partitions.
        metadata_refresh_interval_ms: u64 = Key::number("30000", 100, 3_600_000, "ms")
            .too_small("load on the brokers, more with many topics")
            .too_large("new topics and partitions are read late");
        /// `standard`: one consumer per process, workers as in `processing.workers`. `high_performance`: as in the section of
        /// this name.
        consumer_type: ConsumerType = Key::choice("standard", ConsumerType::NAMES);
        /// Parallelism of `consumer_type: high_performance`; without effect in the other.
        high_performance: HighPerformance;
        /// Bytes that a broker collects before it answers a fetch, waiting `batching.fetch_wait_max_ms` at most.
        fetch_min_bytes: u64 = Key::bytes("1", 1, 100_000_000)
            .too_small("a busy topic costs many small fetches, at both ends")
            .too_large("a quiet topic is read late, by up to fetch_wait_max_ms");
        /// Bytes of one fetch from one broker.
        fetch_max_bytes: u64 = Key::bytes("16MiB", KIB, 2_147_483_135)
            .too_small("many round trips, less throughput")
            .too_large("memory: an answer is held whole, beyond prefetch_bytes_max");
        /// Bytes of one partition in one fetch. A single larger message is still read.
        max_partition_fetch_bytes: u64 = Key::bytes("2MiB", KIB, 1_000_000_000)
            .too_small("a partition that is behind catches up slowly")
            .too_large("one busy partition fills every fetch, the others wait");
        /// Bytes that each consumer may hold read ahead of the pipeline.
        prefetch_bytes_max: u64 = Key::bytes("32MiB", MIB, 2 * GIB - KIB)
            .too_small("the pipeline waits for the network between fetches")
            .too_large("memory: it counts once for each consumer against processing.buffer.max_buffer_memory");
        /// Payloads that already are valid OTLP protobuf pass as ranges of the buffer they were read into. `false` copies them,
        /// which frees that buffer sooner where most other messages of it were rejected or transcoded.
        enable_zero_copy: bool = Key::bool("true");
        /// Takes the buffers of the pool at start instead of when they are first needed.
        preallocate_buffers: bool = Key::bool("false");
        /// Read buffers kept for reuse, each of a batch's `batch_bytes_max`. 0 keeps none. Never more than fit into
        /// `processing.buffer.max_size_bytes`, whatever stands here.
        buffer_pool_size: usize = Key::number("64", 0, 1_000_000, "buffers")
            .too_small("each batch takes fresh memory from the system, which costs more than parsing it")
            .too_large("memory stays taken after a peak");
        /// Which index (dataset) a topic's rows go to.
        topic_index_config: TopicIndexConfig;
        /// What happens to topics whose name has no index token.
        auto_generate: AutoGenerate;
        /// How the consumer stays a member of its group.
        consumer: Consumer;
        /// Batching of this source; absent keys are as in `ingestion.batching`.
        batching: KafkaBatching;
        /// The signal that the topics carry, unless their entry in `topic_index_config.patterns` says otherwise. A message of
        /// another signal is rejected.
        telemetry_type: Signal = Key::choice("traces", SIGNALS);
        /// The encoding of payloads. `auto` tries OTLP protobuf, OTLP JSON, plain JSON, and rejects what is none of them; `raw`
        /// takes any text as the body of a log record.
        format: Format = Key::choice("auto", Format::NAMES);
        /// What a message without a payload is: `skip` counts it and goes on, `reject` sends it to the dead letter.
        tombstones: Tombstones = Key::choice("skip", Tombstones::NAMES);
        /// What makes two messages duplicates: equal `payload`, equal `kafka_key`, or an equal header, `header:NAME`. A message
        /// without that key or header counts by its payload.
        message_id: MessageId = Key::text("payload", rule::MESSAGE_ID);
        /// Where a partition begins for which the group has no offset yet, and neither log nor catalog knows one. `latest` also
        /// skips what a topic or partition created later holds when it is found.
        auto_offset_reset: AutoOffsetReset = Key::choice("earliest", AutoOffsetReset::NAMES);
        /// What happens where the broker's retention removed messages before they were read: `continue` reads on with the oldest that
        /// is left, `stop` ends the run, so that somebody can decide. Both tell which offsets are gone.
        lost_offsets: LostOffsets = Key::choice("continue", LostOffsets::NAMES);
        /// Makes this process a static member of the group: a restart within `consumer.session_timeout_ms` moves no partition.
        /// Unique in the group; where a process has several consumers, each adds its number.
        group_instance_id: Option<String> = Key::text("null", rule::NAME).or_null();
        /// The name that brokers show for this client in their logs and quotas.
        client_id: String = Key::text("openwit-ingest", rule::NAME);
        /// When offsets are committed.
        commit_strategy: CommitStrategy;
        /// Where rejected messages go.
        dead_letter: DeadLetter;
        /// Encryption and authentication towards the brokers.
        security: Security;
        /// Further settings of librdkafka by its own names, like `socket.keepalive.enable: "true"`. Those that a key here
        /// governs, and those the commit rule rests on, are refused.
        librdkafka: Properties = Key::map(librdkafka::check_setting);
    }
}

choices! {
    /// How the consumer is driven.
    ConsumerType {
        /// One consumer per process.
        Standard = "standard",
        /// Several consumers, spread over more workers.
        HighPerformance = "high_performance",
    }
}

section! {
    /// Parallelism of `consumer_type: high_performance`.
    HighPerformance {
        /// Consumers of this process, spread over its workers. Each is a member of the group.
        num_consumers: usize = Key::number("2", 1, 256, "consumers")
            .too_small("one connection per broker limits to about a million messages a second")
            .too_large("memory for reading ahead; members beyond the number of partitions idle");
        /// Workers, in place of `processing.workers`.
        processing_threads: usize = Key::number("4", 1, 256, "threads")
            .too_small("cores idle")
            .too_large("more threads than cores only take turns");
        /// Flight streams of each worker to each storage endpoint. The rows of an index keep to one of them, so more streams than
        /// indexes are not opened.
        num_grpc_clients: usize = Key::number("2", 1, 64, "streams")
            .too_small("one stream's flow control limits throughput")
            .too_large("memory for batches in flight, smaller batches at storage");
        /// Messages read and not yet received by storage, in place of `processing.buffer.max_size_messages`.
        channel_buffer_size: usize = Key::number("10000", 1, 100_000_000, "messages")
            .too_small("reading pauses while the log syncs")
            .too_large("memory, and more to read again after a crash");
    }
}

section! {
    /// Which index (dataset) a topic's rows go to: a token of the topic's name. `v6.qtw.traces.shop.eu` has `shop` at position 3.
    TopicIndexConfig {
        /// The position of the index among the dot-separated tokens, from 0.
        default_index_position: usize = Key::number("0", 0, 248, "tokens");
        /// Exceptions by topic; the first that matches counts.
        patterns: Vec<TopicPattern> = Key::entries(table_of::<TopicPattern>);
    }
}

section! {
    /// An exception for the topics that match.
    TopicPattern {
        /// Topic name or glob, as in `topics`.
        r#match: String = Key::text("null", rule::TOPIC_GLOB).example("\"v6.qtw.*.*.*\"");
        /// The position of the index in these topics; by default `default_index_position`.
        index_position: Option<usize> = Key::number("null", 0, 248, "tokens").or_null();
        /// The signal of these topics; by default `ingestion.kafka.telemetry_type`.
        telemetry_type: Option<Signal> = Key::choice("null", SIGNALS).or_null();
        /// The encoding of these topics; by default `ingestion.kafka.format`.
        format: Option<Format> = Key::choice("null", Format::NAMES).or_null();
    }
}

section! {
    /// What happens to topics whose name has no index token.
    AutoGenerate {
        /// Makes an index name up for them. `false` rejects their messages.
        enabled: bool = Key::bool("false");
        /// What generated names begin with.
        prefix: String = Key::text("auto_", rule::INDEX_PREFIX);
        /// How the rest is made: `hash` of the topic's name, the same on every node and in every release, the `topic`'s name
        /// itself, or one of so many `numbers`, which topics share by their hash.
        strategy: AutoGenerateStrategy = Key::choice("hash", AutoGenerateStrategy::NAMES);
        /// How many indexes `strategy: numbers` makes, named by the numbers below it. When it changes, topics move to other indexes.
        numbers: u32 = Key::number("16", 1, 100_000, "indexes")
            .too_small("topics that have nothing to do with each other share files")
            .too_large("as many small files as topics");
    }
}

choices! {
    /// What happens where messages are gone.
    LostOffsets {
        /// Reading goes on behind them.
        Continue = "continue",
        /// The run ends.
        Stop = "stop",
    }
}

choices! {
    /// How an index name is made up.
    AutoGenerateStrategy {
        /// From a stable hash of the topic's name.
        Hash = "hash",
        /// The topic's name, in lower case.
        Topic = "topic",
        /// One of a fixed number of indexes.
        Numbers = "numbers",
    }
}

section! {
    /// How the consumer stays a member of its group.
    Consumer {
        /// Without a heartbeat for this long, the group gives the partitions to others. Brokers allow 6 seconds to 30 minutes
        /// unless configured otherwise.
        session_timeout_ms: u64 = Key::number("45000", 1_000, 3_600_000, "ms")
            .too_small("a short stall of the machine or the network costs a rebalance")
            .too_large("after a crash its partitions stand still for this long");
        /// Time between heartbeats; at most a third of the session timeout is good.
        heartbeat_interval_ms: u64 = Key::number("3000", 1, 3_600_000, "ms")
            .too_small("needless requests to the brokers")
            .too_large("a lost heartbeat or two end the session; rebalances are noticed late");
        /// A consumer that does not poll for this long leaves the group. Polling goes on while backpressure pauses partitions, so
        /// this only catches a process that hangs.
        max_poll_interval_ms: u64 = Key::number("300000", 1_000, 86_400_000, "ms")
            .too_small("a slow disk looks like a hang")
            .too_large("a hung process keeps its partitions");
        /// How long a partition that moves away is kept to finish what was read of it. What is left is read again by its next
        /// owner, and dropped there by its offsets if it was stored.
        revoke_wait_ms: u64 = Key::number("10000", 0, 600_000, "ms")
            .too_small("more is read twice after each rebalance")
            .too_large("a rebalance of the whole group waits for this member");
        /// Messages taken from the client in one go.
        max_poll_records: usize = Key::number("10000", 1, 1_000_000, "messages")
            .too_small("cost per call; half of the throughput below about a hundred")
            .too_large("other operators of the worker wait for their turn");
    }
}

section! {
    /// Batching of this source; absent keys are as in `ingestion.batching`.
    KafkaBatching {
        /// As `ingestion.batching.batch_size`.
        batch_size: Option<usize> = Key::number("null", 1, 10_000_000, "messages").or_null();
        /// As `ingestion.batching.batch_timeout_ms`.
        batch_timeout_ms: Option<u64> = Key::number("null", 1, 600_000, "ms").or_null();
        /// As `ingestion.batching.batch_bytes_max`.
        batch_bytes_max: Option<u64> = Key::bytes("null", KIB, GIB).or_null();
        /// How long a broker may wait for `fetch_min_bytes`.
        fetch_wait_max_ms: u64 = Key::number("100", 0, 300_000, "ms")
            .too_small("a quiet topic is asked again and again")
            .too_large("a quiet topic is read late if fetch_min_bytes is large");
    }
}

/// The names of the signals, as `Signal::name` gives them.
const SIGNALS: &[&str] = &["traces", "metrics", "logs"];

impl Field for Signal {
    fn from_value(value: &Value) -> Option<Self> {
        let Value::Text(text) = value else { return None };
        [Signal::Traces, Signal::Metrics, Signal::Logs].into_iter().find(|signal| signal.name() == text)
    }

    fn to_value(&self) -> Value {
        Value::Text(self.name().to_owned())
    }
}

choices! {
    /// The encoding of payloads.
    Format {
        /// Found out per message.
        Auto = "auto",
        /// OTLP protobuf.
        OtlpProto = "otlp_proto",
        /// OTLP JSON.
        OtlpJson = "otlp_json",
        /// Plain JSON objects.
        Json = "json",
        /// Any bytes.
        Raw = "raw",
    }
}

choices! {
    /// What a message without a payload is.
    Tombstones {
        /// Counted, otherwise ignored.
        Skip = "skip",
        /// A reject.
        Reject = "reject",
    }
}

/// What makes two messages duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageId {
    /// Equal payloads.
    Payload,
    /// Equal Kafka keys.
    KafkaKey,
    /// Equal values of this header.
    Header(String),
}

impl Field for MessageId {
    fn from_value(value: &Value) -> Option<Self> {
        let Value::Text(text) = value else { return None };
        match text.as_str() {
            "payload" => Some(Self::Payload),
            "kafka_key" => Some(Self::KafkaKey),
            _ => text.strip_prefix("header:").map(|name| Self::Header(name.to_owned())),
        }
    }

    fn to_value(&self) -> Value {
        Value::Text(match self {
            Self::Payload => "payload".to_owned(),
            Self::KafkaKey => "kafka_key".to_owned(),
            Self::Header(name) => format!("header:{name}"),
        })
    }
}

choices! {
    /// Where an unknown partition begins.
    AutoOffsetReset {
        /// At its oldest message: nothing is lost.
        Earliest = "earliest",
        /// At its end: what is there already is skipped.
        Latest = "latest",
    }
}

section! {
    /// When offsets are committed.
    CommitStrategy {
        /// `after_wal`: when everything before them is in the short-term log. `after_publish`: when it is in the object store and
        /// the catalog, for machines whose disk may vanish.
        mode: CommitMode = Key::choice("after_wal", CommitMode::NAMES);
        /// Time between commits. What is read again after a crash is dropped by its offsets.
        interval_ms: u64 = Key::number("1000", 10, 3_600_000, "ms")
            .too_small("load on the brokers")
            .too_large("more is read again after a crash, and lag as the brokers show it is out of date");
    }
}

choices! {
    /// When offsets are committed.
    CommitMode {
        /// When durable in the short-term log.
        AfterWal = "after_wal",
        /// When published in the catalog.
        AfterPublish = "after_publish",
    }
}

section! {
    /// Where rejected messages go, with their bytes, key, headers, reason and origin. If both are given they go to both; an
    /// offset is committed only when its dead letter is acknowledged.
    DeadLetter {
        /// A topic, which must not be among those that are read.
        topic: Option<String> = Key::text("null", rule::TOPIC).or_null();
        /// A local folder. `null` for none, where there is a topic.
        directory: Option<PathBuf> = Key::path("{data_directory}/dead-letter").or_null();
        /// Size at which a file of the folder is closed and the next begun.
        file_bytes_max: u64 = Key::bytes("64MiB", 4 * KIB, BYTES_MAX)
            .too_small("many files")
            .too_large("files that are unhandy to look into");
    }
}

section! {
    /// Encryption and authentication towards the brokers.
    Security {
        /// How to talk to the brokers.
        protocol: SecurityProtocol = Key::choice("plaintext", SecurityProtocol::NAMES);
        /// Authentication by SASL, for the protocols that begin with `sasl_`.
        sasl: Sasl;
        /// Encryption, for the protocols that end with `ssl`.
        tls: Tls;
    }
}

choices! {
    /// How to talk to the brokers.
    SecurityProtocol {
        /// Neither encrypted nor authenticated.
        Plaintext = "plaintext",
        /// Encrypted.
        Ssl = "ssl",
        /// Authenticated.
        SaslPlaintext = "sasl_plaintext",
        /// Encrypted and authenticated.
        SaslSsl = "sasl_ssl",
    }
}

section! {
    /// Authentication by SASL.
    Sasl {
        /// The mechanism.
        mechanism: SaslMechanism = Key::choice_with("SCRAM-SHA-512", SaslMechanism::NAMES, &[
            ("GSSAPI", "librdkafka is built without Kerberos"),
        ]);
        /// The user.
        username: Option<String> = Key::text("null", rule::TEXT).or_null();
        /// The password. Give it as `${VARIABLE}`.
        password: Option<Secret> = Key::secret();
        /// Where tokens come from, for OAUTHBEARER.
        oauthbearer: Oauthbearer;
    }
}

section! {
    /// Where tokens come from (OAuth 2.0, client credentials). They are renewed when four fifths of their life are over.
    Oauthbearer {
        /// The identity provider's token endpoint.
        token_endpoint_url: Option<String> = Key::text("null", rule::URL).or_null();
        /// The client, as the identity provider knows it.
        client_id: Option<String> = Key::text("null", rule::TEXT).or_null();
        /// The client's secret. Give it as `${VARIABLE}`.
        client_secret: Option<Secret> = Key::secret();
        /// What the token is asked to be good for; names with blanks between them.
        scope: Option<String> = Key::text("null", rule::TEXT).or_null();
        /// PEM file of the authorities that the endpoint's certificate is checked against; `null` takes those of the system.
        ca_location: Option<PathBuf> = Key::path("null").or_null();
    }
}

choices! {
    /// SASL mechanisms.
    SaslMechanism {
        /// The password as it is: only under TLS.
        Plain = "PLAIN",
        /// Challenge and response.
        ScramSha256 = "SCRAM-SHA-256",
        /// Challenge and response.
        ScramSha512 = "SCRAM-SHA-512",
        /// A token of an identity provider: only under TLS.
        Oauthbearer = "OAUTHBEARER",
    }
}

section! {
    /// Encryption.
    Tls {
        /// PEM file of the authorities that brokers' certificates are checked against; `null` takes those of the system.
        ca_location: Option<PathBuf> = Key::path("null").or_null();
        /// PEM file of this client's own certificate, where brokers ask for one.
        certificate_location: Option<PathBuf> = Key::path("null").or_null();
        /// PEM file of the certificate's private key.
        key_location: Option<PathBuf> = Key::path("null").or_null();
        /// Password of the private key. Give it as `${VARIABLE}`.
        key_password: Option<Secret> = Key::secret();
        /// Checks the brokers' certificates. `false` leaves the connection open to anyone in between.
        verify_certificate: bool = Key::bool("true");
        /// Checks that a broker's certificate is for its host name.
        verify_hostname: bool = Key::bool("true");
    }
}

section! {
    /// When a batch is closed. A batch is the unit that is deduplicated, logged and accounted for.
    Batching {
        /// Messages of a batch. Times the average message size it must stay below `ingestion.grpc.max_message_size`.
        batch_size: usize = Key::number("1000", 1, 10_000_000, "messages")
            .too_small("cost per batch: less throughput")
            .too_large("memory, latency, and messages beyond the gRPC limit");
        /// Time after which a batch is closed, full or not. 200 to 5000 for near real time.
        batch_timeout_ms: u64 = Key::number("200", 1, 600_000, "ms")
            .too_small("small batches")
            .too_large("latency on quiet topics");
        /// Bytes of a batch. A single larger message makes a batch of its own.
        batch_bytes_max: u64 = Key::bytes("2MiB", KIB, GIB)
            .too_small("cost per batch: less throughput")
            .too_large("memory; a batch must fit into half a segment of the log");
    }
}

section! {
    /// The gRPC messages that carry record batches.
    Grpc {
        /// Bytes of one message, at both ends. Record batches are split to stay below it with room for Arrow's metadata.
        max_message_size: u64 = Key::bytes("4MiB", 64 * KIB, 2 * GIB - 1)
            .too_small("large records do not fit and go to the dead letter")
            .too_large("memory: each stream holds a few messages");
    }
}

section! {
    /// What is refused whoever sends it. A message beyond a limit goes to the dead letter.
    Limits {
        /// Bytes of one payload.
        payload_bytes_max: u64 = Key::bytes("16MiB", KIB, GIB)
            .too_small("large exports are rejected whole")
            .too_large("one message can take this much memory, a few times over while it is transcoded");
        /// Bytes of one payload once it is decompressed, where its producer compressed it. `payload_bytes_max` if absent.
        decompressed_bytes_max: Option<u64> = Key::bytes("null", KIB, GIB)
            .or_null()
            .too_small("well compressed exports are rejected whole")
            .too_large("a few bytes of a hostile message can take this much memory, a few times over");
        /// Records of one JSON payload, in lines or in an array.
        json_records_max: usize = Key::number("100000", 1, 10_000_000, "records")
            .too_small("large messages are rejected whole")
            .too_large("a message of empty records becomes many times its bytes as rows");
        /// Levels of values inside one another.
        depth_max: u32 = Key::number("64", 1, 128, "levels")
            .too_small("deep attributes are rejected")
            .too_large("nothing, up to the most that is allowed");
    }
}

section! {
    /// What rows of an index must be like; see docs/datasets.md.
    Datasets {
        /// The folder of dataset schemas, one YAML file each. For an index and signal the first that fits counts, in the order of the
        /// files' names; an index that none fits takes what OTLP allows. They are read at the start.
        directory: Option<PathBuf> = Key::path("null").or_null();
    }
}

section! {
    /// What happens until data is durable.
    Processing {
        /// Workers, each a thread that runs a whole graph for its share; `graph: standalone` has as many for storage again.
        /// `consumer_type: high_performance` has its own key.
        workers: usize = Key::number("1", 1, 256, "threads")
            .too_small("cores idle")
            .too_large("more threads than cores only take turns");
        /// The tick by which the pipeline agrees on what is done: log syncs, commits and backpressure follow it.
        epoch_interval_ms: u64 = Key::number("20", 1, 10_000, "ms")
            .too_small("more syncs of the log, each with less data")
            .too_large("latency, and more memory in flight");
        /// How long a stop may take to finish what was read. What is left is read again at the next start.
        shutdown_timeout_seconds: u64 = Key::number("30", 0, 86_400, "seconds")
            .too_small("more is read again after a restart")
            .too_large("a stop may outlast the patience of whoever asked for it");
        /// What may be in memory between reading and storage.
        buffer: Buffer;
        /// Messages that are coalesced for one delivery to storage, unless `buffer.flush_interval_seconds` passes first.
        flush_size_messages: usize = Key::number("5000", 1, 10_000_000, "messages")
            .too_small("small record batches, cost per delivery")
            .too_large("memory, and latency where traffic is slow");
        /// Drops messages that were seen before within the window. `false` keeps those that producers sent twice; what Kafka
        /// delivers twice is dropped by its offsets in any case.
        dedup_enabled: bool = Key::bool("true");
        /// How far apart, by their own times, two equal messages still count as duplicates.
        dedup_window_seconds: u64 = Key::number("60", 1, 604_800, "seconds")
            .too_small("a producer's late retry is stored twice")
            .too_large("memory: about 45 bytes for each message of the window");
        /// Bytes of the window's table, all workers together. When it is full the oldest part of the window is forgotten, and
        /// counted.
        dedup_max_bytes: u64 = Key::bytes("64MiB", MIB, BYTES_MAX)
            .too_small("the window is shorter than dedup_window_seconds")
            .too_large("memory");
        /// When a partition comes from another process, reads what that one read last once more, two windows of it and no more than
        /// `dedup_max_bytes` holds, so that duplicates of it are still found; the partition waits for that. `false` begins at
        /// once, and stores duplicates of what was handled elsewhere.
        dedup_warm_up: bool = Key::bool("true");
        /// The short-term and long-term logs.
        wal: Wal;
    }
}

section! {
    /// What may be in memory between reading and storage. Each partition has a share of it, alone at most eight ninths: one that is
    /// over it for long is paused until half of what it has is gone. At a limit, all are paused until a quarter of it is free.
    Buffer {
        /// Messages. `consumer_type: high_performance` has its own key.
        max_size_messages: usize = Key::number("100000", 1, 1_000_000_000, "messages")
            .too_small("reading pauses while the log syncs")
            .too_large("memory");
        /// Bytes of messages.
        max_size_bytes: u64 = Key::bytes("64MiB", MIB, BYTES_MAX)
            .too_small("reading pauses while the log syncs")
            .too_large("memory, and more to read again after a crash");
        /// The ceiling for the memory of the process. At the start the sum of all buffers is held against it: reading ahead, buffered
        /// messages, dedup window, deliveries, row groups, uploads. While it runs, an eighth of the buffer is used once its resident memory is
        /// at 15/16 of this. Set it below the limit of the container.
        max_buffer_memory: u64 = Key::bytes("1GiB", 16 * MIB, BYTES_MAX)
            .too_small("the other limits do not fit and the configuration is refused; or reading is slow, with little in flight")
            .too_large("the system ends the process before backpressure can work");
        /// Time after which coalesced messages go to storage, however few they are. 0 sends at every tick.
        flush_interval_seconds: u64 = Key::number("1", 0, 3_600, "seconds")
            .too_small("small record batches, cost per delivery")
            .too_large("latency until rows can be found");
    }
}

section! {
    /// The short-term log: what is in it is safe, and its offsets are committed.
    Wal {
        /// Keeps a log. Without it, offsets must wait for publication (`commit_strategy.mode: after_publish`) and a lagging
        /// storage node stops the reading.
        enabled: bool = Key::bool("true").not_yet("running without a write-ahead log");
        /// Its folder, on a local disk.
        directory: PathBuf = Key::path("{data_directory}/wal/short");
        /// Size of all segments. When they are full of data that storage has not published, reading pauses; nothing is lost.
        max_size_bytes: u64 = Key::bytes("2GiB", 2 * MIB, BYTES_MAX)
            .too_small("a short outage of storage stops the reading")
            .too_large("disk");
        /// Size of a segment, a multiple of 4KiB. 64 MiB to 512 MiB on servers.
        segment_size_bytes: u64 = Key::bytes("64MiB", MIB, 4 * GIB)
            .too_small("many files, changed often")
            .too_large("space comes back late, as only whole segments do");
        /// Syncs the log to the disk before offsets are committed. `false` risks the last `sync_interval_ms` at a power failure,
        /// and gains throughput on disks that are slow to sync.
        sync_on_write: bool = Key::bool("true");
        /// Time between syncs where `sync_on_write` is false.
        sync_interval_ms: u64 = Key::number("100", 1, 60_000, "ms")
            .too_small("as slow as sync_on_write")
            .too_large("more is at risk");
        /// Writes past the page cache where the file system can: several times the throughput on a busy machine. `false` only
        /// where the file system is known to misbehave.
        direct_io: bool = Key::bool("true");
        /// Bytes of the dedup keys that are kept beyond the segments they came from, to rebuild the dedup window at a start.
        dedup_keys_bytes_max: u64 = Key::bytes("256MiB", MIB, BYTES_MAX)
            .too_small("after a restart the dedup window is shorter")
            .too_large("disk, and a longer start");
        /// The long-term log: a compressed copy by day, for restoring and reindexing.
        long_term: LongTerm;
    }
}

section! {
    /// The long-term log: a compressed copy by day, for restoring and reindexing.
    LongTerm {
        /// Keeps it. It costs the offset commits nothing, but disk and some CPU.
        enabled: bool = Key::bool("false");
        /// Its folder, where `object_store.scheme` is `fs`.
        directory: PathBuf = Key::path("{data_directory}/wal/long");
        /// Level of zstd.
        compression_level: u32 = Key::number("1", 1, 22, "")
            .too_small("larger copies")
            .too_large("CPU: from 10 on copying falls behind, and segments wait for it");
        /// An object store in the place of the folder. Several nodes may share it.
        object_store: LongTermStore;
    }
}

section! {
    /// An object store in the place of the folder. Several nodes may share it.
    LongTermStore {
        /// `fs`: the folder `directory`. `s3`: S3 or a store that speaks its protocol.
        scheme: LongTermScheme = Key::choice("fs", LongTermScheme::NAMES);
        /// The bucket, for `s3`.
        bucket: Option<String> = Key::text("null", rule::BUCKET).or_null();
        /// The URL of the store, for `s3` that is not Amazon's.
        endpoint: Option<String> = Key::text("null", rule::URL).or_null();
        /// The region, for `s3`.
        region: String = Key::text("us-east-1", rule::NAME);
        /// Access key, for `s3`; without it the credentials of the environment or the machine are taken. Give it as
        /// `${VARIABLE}`.
        access_key_id: Option<Secret> = Key::secret();
        /// Its secret. Give it as `${VARIABLE}`.
        secret_access_key: Option<Secret> = Key::secret();
        /// The front of every object's path, for `s3`.
        prefix: String = Key::text("wal", rule::OBJECT_PREFIX);
    }
}

choices! {
    /// Where a long-term log may be.
    LongTermScheme {
        /// A folder.
        Fs = "fs",
        /// S3 and its like.
        S3 = "s3",
    }
}

section! {
    /// What is kept of the logs once their data is published. What is not published is never removed, whatever stands here.
    WalCleanup {
        /// Removes from the long-term log what is past its time, this node's copies only. `false` keeps all: something else has to
        /// remove it, like a bucket's lifecycle rule.
        enabled: bool = Key::bool("true");
        /// Time between two cleanups of the long-term log.
        interval_seconds: u64 = Key::number("60", 1, 86_400, "seconds")
            .too_small("needless work, and requests to list the store")
            .too_large("disk that could be free");
        /// How long a published segment of the short-term log is kept, to look at it with `wal cat`. 0 reuses it at once; so does
        /// a log that has reached `processing.wal.max_size_bytes`, or a full disk.
        retention_seconds: u64 = Key::number("0", 0, SECONDS_MAX, "seconds")
            .too_small("nothing: published data is in the object store")
            .too_large("disk, up to processing.wal.max_size_bytes, and a longer start");
        /// How long a segment of the long-term log is kept, from its last message on.
        long_term_retention_seconds: u64 = Key::number("604800", 0, 100 * SECONDS_MAX, "seconds")
            .too_small("less can be restored")
            .too_large("disk");
        /// Bytes of this node's part of the long-term log; beyond them the oldest segments go first.
        long_term_bytes_max: u64 = Key::bytes("10GiB", MIB, BYTES_MAX)
            .too_small("less can be restored")
            .too_large("disk");
    }
}

section! {
    /// From durable data to the storage nodes.
    Pipeline {
        /// Rows of one record batch. Batches are closed earlier where bytes come near `ingestion.grpc.max_message_size`.
        batch_size: usize = Key::number("8192", 1, 1_000_000, "rows")
            .too_small("cost per batch: twice the CPU below a thousand")
            .too_large("caches and memory; nothing is gained above ten thousand");
        /// The average size of a message, for checking `batch_size` against the gRPC limit before anything runs. Metrics show the
        /// real one.
        average_message_bytes: u64 = Key::bytes("1KiB", 1, GIB)
            .too_small("the check passes, and messages turn out larger")
            .too_large("the check refuses what would work");
        /// Bytes of deliveries that storage has not acknowledged yet, all endpoints together.
        in_flight_bytes_max: u64 = Key::bytes("32MiB", 64 * KIB, BYTES_MAX)
            .too_small("the network idles between acknowledgements")
            .too_large("memory");
    }
}

section! {
    /// Where this process listens.
    ServicePorts {
        /// The address of the interface. 0.0.0.0 and :: take all; nothing here asks for a password, so put only trusted networks
        /// there.
        bind_address: String = Key::text("127.0.0.1", rule::IP_ADDRESS);
        /// Arrow Flight, in the graphs `storage` and `standalone`. 0 takes any free port.
        arrow_flight: u16 = Key::number("8815", 0, 65_535, "");
        /// HTTP while `run` runs: `/healthz` says that the process is alive, `/status` how far each stage is (docs/status.md). There
        /// is no `/metrics`, `/readyz` or `/ui` yet. 0 takes any free port.
        admin: u16 = Key::number("9464", 0, 65_535, "");
    }
}
