//! Turns a checked configuration into what the graphs and their operators take.

mod case;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openwit_graphs::dataflow::{CommitMode, Settings};
use openwit_graphs::process::{GraphPlan, Plan, StoragePlan};
use openwit_graphs::reload::{QuotaReload, TokenReload};
use openwit_graphs::replayed::{ending_in, fed_by, without_captures};
use openwit_graphs::wiring::{self, Description, Stage, Wiring};
use openwit_graphs::{catalog, cluster, storage};
use openwit_operators::catalog_commit::janitor;
use openwit_operators::catalog_commit::postgres_catalog::{self, tls};
use openwit_operators::dataset::Schema;
use openwit_operators::kafka_source::collector::BatchLimits;
use openwit_operators::kafka_source::consumer;
use openwit_operators::kafka_source::pool::ArenaPool;
use openwit_operators::kafka_source::resume::{Lost, Reset};
use openwit_operators::kafka_source::topics::TopicPatterns;
use openwit_operators::kafka_source::warm_up;
use openwit_operators::normalize::TenantFrom;
use openwit_operators::normalize::index::{AutoGenerate, IndexPattern, IndexRules, Strategy};
use openwit_operators::object_upload::{self, Azblob, Gcs, ObjectStore, S3, Secret};
use openwit_operators::options;
use openwit_operators::parquet_source::Lake;
use openwit_operators::quota::Quotas;
use openwit_operators::tenant::Tenant;
use openwit_operators::tokens::Store;
use openwit_operators::{
    arrow_encode, blackhole, dead_letter, dedup_window, flight_sink, flight_source, frame_source, kafka_source, normalize,
    parquet_files, parquet_roll, parquet_source, wal_commit,
};

use crate::config::datasets;
use crate::config::quotas::QuotaFile;
use crate::config::tokens::TokenFile;
use crate::config::{
    AutoGenerateStrategy, AutoOffsetReset, CommitMode as CommitKey, Config, Format, LongTermScheme, LostOffsets, MessageId,
    MetastoreType, ObjectStoreScheme, TenantSource, TlsMode, Tombstones, default_options,
};

pub use case::case_plan;

/// What a command changes of a configuration's plan.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Timely workers.
    pub workers: Option<usize>,
    /// End at the end offsets of the start.
    pub until_end: bool,
    /// Which process of which cluster it is.
    pub cluster: Option<cluster::Config>,
}

/// Extra room in a gRPC message for a single row that Arrow makes larger than its payload (nested values as JSON text, repeated
/// resources): `normalize` bounds the payload, this bounds what it can become in all but hostile cases.
const MESSAGE_HEADROOM: usize = 4;

/// Bytes received by storage that no worker has taken yet.
const STORAGE_QUEUE_BYTES_MAX: usize = 32 << 20;

/// Bytes at which a delivery is sent without waiting for more.
const DELIVERY_BYTES_MAX: usize = 8 << 20;

/// The plan of `config`; `positions` is where the source shows how far it is.
pub fn plan(config: &Config, changes: &Changes, positions: Arc<kafka_source::Status>) -> Result<Plan, String> {
    let workers = changes.workers.unwrap_or(config.workers());
    let description = config.description();
    if changes.cluster.is_some() && description.stages.is_empty() {
        return Err("--processes: a cluster is of graphs with a source; any number of storage processes work without knowing of each other".into());
    }
    let wiring = (!description.stages.is_empty()).then(|| wire(&description)).transpose()?;
    let graph = wiring.map(|wiring| {
        let source = wiring.has(kafka_source::NAME).then(|| source(config, changes, workers, positions)).transpose()?;
        let files = Files::read(config)?;
        graph_plan(config, wiring, workers, files, Origin { source, frames: None, stored: None })
    });
    let plan = process_plan(config, workers, graph.transpose()?, description.storage)?;
    Ok(Plan { cluster: changes.cluster.clone(), ..plan })
}

/// What a replay reads.
#[derive(Clone)]
pub enum Input {
    /// The frames of a log.
    Log(frame_source::Config),
    /// A source that a stage describes: of a capture, Kafka or Parquet files.
    Stage(Stage),
    /// What the catalog lists, by the source that the stage describes.
    Stored(Stage, Arc<Lake>),
}

/// Where the result of a replay goes.
#[derive(Clone, Debug)]
pub enum Output {
    /// To the sinks of the graph. Its captures, one of which may be what is read, get nothing.
    Published,
    /// To Parquet files in `rows/` of this folder, and rejects to `rejects/`; what an earlier replay left there is replaced, or not.
    Files(PathBuf, bool),
    /// Nowhere: it is counted.
    Counted,
}

/// The folder of a replay's result in which its rows are.
pub const ROWS: &str = "rows";
/// The folder of a replay's result in which its rejects are.
pub const REJECTS: &str = "rejects";

/// The plan of `config` with `input` in the place of its source. No offset is committed, and unless it is to be published nothing
/// else is touched either that the graph touches in production.
pub fn replay_plan(config: &Config, workers: usize, input: Input, output: &Output) -> Result<Plan, String> {
    let (source, frames, stored) = match input {
        Input::Log(frames) if frames.is_raw => (Stage::of(frame_source::RAW_NAME), Some(frames), None),
        Input::Log(frames) => (Stage::of(frame_source::NAME), Some(frames), None),
        Input::Stage(stage) => (stage, None, None),
        Input::Stored(stage, lake) => (stage, None, Some(lake)),
    };
    let fed = fed_by(&config.description(), source)?;
    let description = match output {
        // Which of two copies is stored was decided by epochs, which frames from several workers do not ascend by.
        Output::Published if frames.as_ref().is_some_and(|frames| frames.is_raw) => {
            return Err("a log of messages as they came is not published by a replay: its graph stores what is missing when it is started; \
                        --to DIR keeps what a replay makes of it"
                .to_owned());
        }
        Output::Published => without_captures(&fed)?,
        Output::Files(directory, replace) => ending_in(&fed, files_stage(&directory.join(ROWS), *replace))?,
        Output::Counted => rejects_counted(ending_in(&fed, Stage::of(blackhole::NAME).named("rows"))?),
    };
    let wiring = wire(&description)?;
    // What was let in when it came is not charged again.
    let files = match wiring.has(normalize::NAME) {
        true => Files { quotas: None, ..Files::read(config)? },
        // Rows are told by them which attributes their columns are of.
        false if wiring.has(parquet_source::NAME) || stored.is_some() => Files { schemas: schemas(config)?, ..Files::default() },
        false => Files::default(),
    };
    let mut graph = graph_plan(config, wiring, workers, files, Origin { source: None, frames, stored })?;
    // Nothing of it is copied, kept, or remembered for the dedup window: the log that is read has all that.
    graph.wal = wal_commit::Config {
        directory: replay_directory(config),
        keys_retention_ms: 0,
        retention_ms: 0,
        long_term: None,
        ..graph.wal
    };
    if let Output::Files(directory, _) = output {
        graph.dead_letter =
            dead_letter::Config { file: Some(dead_letter::file::Config::new(directory.join(REJECTS))), kafka: None };
    }
    process_plan(config, workers, Some(graph), description.storage)
}

/// The sink of a replay.
fn files_stage(directory: &Path, replace: bool) -> Stage {
    let mut options = default_options(parquet_files::NAME);
    options.set("directory", options::Value::Path(directory.to_owned()));
    options.set("replace", options::Value::Bool(replace));
    Stage::of(parquet_files::NAME).with(options)
}

/// The graph with counters in the place of its dead letter.
fn rejects_counted(mut description: Description) -> Description {
    for stage in description.stages.iter_mut().filter(|stage| stage.operator == dead_letter::NAME) {
        *stage = Stage { from: stage.from.clone(), ..Stage::of(blackhole::NAME).named("rejects") };
    }
    description
}

fn process_plan(config: &Config, workers: usize, graph: Option<GraphPlan>, storage: bool) -> Result<Plan, String> {
    let knows_catalog = storage || graph.as_ref().is_some_and(|graph| graph.wiring.has(flight_sink::NAME));
    Ok(Plan {
        workers,
        cluster: None,
        catalog: knows_catalog.then(|| catalog_location(config)),
        message_bytes_max: config.ingestion.grpc.max_message_size as usize * MESSAGE_HEADROOM,
        graph,
        storage: storage.then(|| storage_plan(config, workers)).transpose()?,
    })
}

/// The wiring of a graph, or everything that is wrong with it, a line each.
pub fn wire(description: &Description) -> Result<Arc<Wiring>, String> {
    wiring::check(description).map(Arc::new).map_err(|flaws| wiring::told(&flaws))
}

/// Where a graph reads from, as far as that needs settings.
struct Origin {
    source: Option<kafka_source::Config>,
    frames: Option<frame_source::Config>,
    stored: Option<Arc<Lake>>,
}

/// Where a replay keeps its own log: beside that of `run`, which may be in use.
pub fn replay_directory(config: &Config) -> PathBuf {
    let mut name = config.processing.wal.directory.file_name().unwrap_or_default().to_owned();
    name.push("-replay");
    config.processing.wal.directory.with_file_name(name)
}

/// Where the catalog of `config` is.
pub fn catalog_location(config: &Config) -> catalog::Location {
    let metastore = &config.metastore;
    match metastore.r#type {
        MetastoreType::Sled => catalog::Location::Sled(metastore.path.clone()),
        MetastoreType::Postgres => catalog::Location::Postgres(postgres_catalog::Config {
            url: Secret::new(metastore.url.as_ref().map_or("", |url| url.expose())),
            schema: metastore.schema.clone(),
            tls: postgres_catalog::Tls {
                mode: match metastore.tls.mode {
                    TlsMode::Disable => tls::Mode::Disable,
                    TlsMode::Prefer => tls::Mode::Prefer,
                    TlsMode::Require => tls::Mode::Require,
                    TlsMode::VerifyFull => tls::Mode::VerifyFull,
                },
                ca: metastore.tls.ca_location.clone(),
                certificate: metastore.tls.certificate_location.clone(),
                key: metastore.tls.key_location.clone(),
            },
        }),
    }
}

/// The Kafka client's properties of `config`'s consumers.
pub fn consumer_properties(config: &Config) -> BTreeMap<String, String> {
    config.ingestion.kafka.consumer_properties().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The properties of any client of the brokers.
pub fn connection_properties(config: &Config) -> BTreeMap<String, String> {
    config.ingestion.kafka.connection_properties().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The topics that `config` reads.
pub fn topics(config: &Config) -> Result<TopicPatterns, String> {
    let kafka = &config.ingestion.kafka;
    TopicPatterns::new(&kafka.topics, &kafka.exclude_topics).map_err(|error| format!("ingestion.kafka.topics: {error}"))
}

fn graph_plan(config: &Config, wiring: Arc<Wiring>, workers: usize, files: Files, origin: Origin) -> Result<GraphPlan, String> {
    let Files { tokens, quotas, schemas } = files;
    let settings = Settings {
        source: origin.source,
        frames: origin.frames,
        stored: origin.stored,
        memory: None,
        normalize: normalize_config(config, tokens.as_ref(), schemas)?,
        dedup: dedup(config),
        encode: encode_limits(config),
        sink: sink(config, workers),
        commit_mode: commit_mode(config),
        brokers: connection_properties(config),
        epoch_interval_ms: config.processing.epoch_interval_ms,
    };
    Ok(GraphPlan {
        wal: wal(config, &wiring),
        wiring,
        settings,
        in_flight_bytes_max: config.processing.buffer.max_size_bytes as usize,
        in_flight_messages_max: config.messages_in_flight_max(),
        memory_bytes_max: config.processing.buffer.max_buffer_memory,
        dead_letter: dead_letter(config),
        tokens,
        quotas,
    })
}

/// When offsets of `config` are committed.
pub fn commit_mode(config: &Config) -> CommitMode {
    match config.ingestion.kafka.commit_strategy.mode {
        CommitKey::AfterWal => CommitMode::AfterWal,
        CommitKey::AfterPublish => CommitMode::AfterPublish,
    }
}

/// What the files say that a configuration names.
#[derive(Default)]
struct Files {
    tokens: Option<TokenReload>,
    quotas: Option<QuotaReload>,
    schemas: Vec<Schema>,
}

impl Files {
    /// Reads all of them, and names the problems of all.
    fn read(config: &Config) -> Result<Self, String> {
        match (tokens(config), quotas(config), schemas(config)) {
            (Ok(tokens), Ok(quotas), Ok(schemas)) => Ok(Files { tokens, quotas, schemas }),
            (tokens, quotas, schemas) => {
                let problems = [tokens.err(), quotas.err(), schemas.err()];
                let problems: Vec<String> =
                    problems.into_iter().flatten().map(|problems| problems.trim_end().to_owned()).collect();
                Err(problems.join("\n"))
            }
        }
    }
}

fn schemas(config: &Config) -> Result<Vec<Schema>, String> {
    let directory = config.ingestion.datasets.directory.as_ref();
    directory.map_or(Ok(Vec::new()), |directory| datasets::load(directory).map_err(|refused| refused.to_string()))
}

fn dedup(config: &Config) -> dedup_window::Config {
    let processing = &config.processing;
    dedup_window::Config { window_ms: processing.dedup_window_seconds * 1_000, bytes_max: processing.dedup_max_bytes as usize }
}

fn encode_limits(config: &Config) -> arrow_encode::Limits {
    let processing = &config.processing;
    arrow_encode::Limits {
        batch_rows_max: config.pipeline.batch_size,
        batch_bytes_max: config.record_batch_bytes_max() as usize,
        delivery_bytes_max: DELIVERY_BYTES_MAX,
        delivery_messages_max: processing.flush_size_messages,
        delivery_wait: Duration::from_secs(processing.buffer.flush_interval_seconds),
    }
}

fn sink(config: &Config, workers: usize) -> flight_sink::Config {
    flight_sink::Config {
        endpoints: config.storage.endpoints.clone(),
        clients: config.flight_streams(),
        window_bytes: (config.pipeline.in_flight_bytes_max as usize / workers / config.flight_streams())
            .max(config.ingestion.grpc.max_message_size as usize),
        message_bytes_max: config.ingestion.grpc.max_message_size as usize * MESSAGE_HEADROOM,
        failover: flight_sink::Failover {
            after: Duration::from_millis(config.storage.failover.after_ms),
            recover_after: Duration::from_millis(config.storage.failover.recover_after_ms),
        },
    }
}

fn dead_letter(config: &Config) -> dead_letter::Config {
    let keys = &config.ingestion.kafka.dead_letter;
    let file = keys.directory.as_ref().map(|directory| dead_letter::file::Config {
        file_bytes_max: keys.file_bytes_max,
        ..dead_letter::file::Config::new(directory.clone())
    });
    // A letter too large for the topic is whole in the folder, if there is one.
    let oversize = if file.is_some() { dead_letter::kafka::Oversize::OmitPayload } else { dead_letter::kafka::Oversize::Refuse };
    let kafka = keys.topic.as_ref().map(|topic| dead_letter::kafka::Config {
        client: connection_properties(config),
        oversize,
        ..dead_letter::kafka::Config::new(topic.clone(), String::new())
    });
    dead_letter::Config { file, kafka }
}

fn source(
    config: &Config,
    changes: &Changes,
    workers: usize,
    positions: Arc<kafka_source::Status>,
) -> Result<kafka_source::Config, String> {
    let (kafka, batching, processing) = (&config.ingestion.kafka, config.kafka_batching(), &config.processing);
    if config.consumers() > workers {
        return Err(format!(
            "ingestion.kafka.high_performance.num_consumers: value \"{}\": must not be above the number of workers, {workers}: each consumer has one",
            config.consumers()
        ));
    }
    let limits = BatchLimits {
        records_max: batching.batch_size,
        bytes_max: batching.batch_bytes_max as usize,
        timeout_ms: batching.batch_timeout_ms,
    };
    let mut client = consumer_properties(config);
    client.insert("auto.commit.interval.ms".into(), kafka.commit_strategy.interval_ms.to_string());
    let consumer = consumer::Config {
        client,
        topics: topics(config)?,
        limits,
        poll_records_max: kafka.consumer.max_poll_records,
        reset: match kafka.auto_offset_reset {
            AutoOffsetReset::Earliest => Reset::Earliest,
            AutoOffsetReset::Latest => Reset::Latest,
        },
        lost: match kafka.lost_offsets {
            LostOffsets::Continue => Lost::Continue,
            LostOffsets::Stop => Lost::Stop,
        },
        until_end: changes.until_end,
        commit_resumed: kafka.commit_strategy.mode == CommitKey::AfterWal,
        revoke_wait: Duration::from_millis(kafka.consumer.revoke_wait_ms),
        warm_up: (config.has_operator(dedup_window::NAME) && processing.dedup_warm_up)
            .then(|| warm_up::Config { reach_ms: dedup(config).reach_ms(), messages_max: dedup(config).keys_max() }),
        pool: ArenaPool::new(config.arenas_kept_max(), limits.bytes_max, kafka.preallocate_buffers),
    };
    Ok(kafka_source::Config {
        consumer,
        // With --until-end one consumer must see the end of every partition.
        consumers: if changes.until_end { 1 } else { config.consumers() },
        epoch_interval_ms: config.processing.epoch_interval_ms,
        status: positions,
    })
}

/// The tokens that producers show, and how they are kept up to date.
fn tokens(config: &Config) -> Result<Option<TokenReload>, String> {
    let auth = &config.ingestion.auth;
    let Some(path) = &auth.tokens_file else { return Ok(None) };
    let (file, tokens) = TokenFile::open(path).map_err(|problems| problems.to_string())?;
    let interval = Duration::from_millis(auth.reload_interval_ms);
    Ok(Some(TokenReload { store: Arc::new(Store::new(tokens)), file: Arc::new(file), interval }))
}

/// What tenants and topics may send, and how that is kept up to date.
fn quotas(config: &Config) -> Result<Option<QuotaReload>, String> {
    let keys = &config.ingestion.quotas;
    let Some(path) = &keys.file else { return Ok(None) };
    let (file, rules) = QuotaFile::open(path).map_err(|problems| problems.to_string())?;
    let interval = Duration::from_millis(keys.reload_interval_ms);
    Ok(Some(QuotaReload { quotas: Arc::new(Quotas::new(rules)), file: Arc::new(file), interval }))
}

fn tenants(config: &Config) -> Result<normalize::Tenants, String> {
    let keys = &config.ingestion.tenants;
    let from = match keys.from {
        TenantSource::None => TenantFrom::None,
        TenantSource::Token => TenantFrom::Token,
        TenantSource::Header => TenantFrom::Header(keys.header.as_str().into()),
        TenantSource::Topic => {
            TenantFrom::Topic(keys.topic_position.ok_or("ingestion.tenants.from: topic needs ingestion.tenants.topic_position")?)
        }
    };
    let default = keys.default.as_deref().map(Tenant::new).transpose();
    Ok(normalize::Tenants { from, default: default.map_err(|error| format!("ingestion.tenants.default: {error}"))? })
}

fn normalize_config(config: &Config, tokens: Option<&TokenReload>, schemas: Vec<Schema>) -> Result<normalize::Config, String> {
    let (kafka, limits) = (&config.ingestion.kafka, &config.ingestion.limits);
    let pattern = |pattern: &crate::config::TopicPattern| IndexPattern {
        matches: pattern.r#match.clone(),
        index_position: pattern.index_position,
        signal: pattern.telemetry_type,
        format: pattern.format.map(format),
    };
    let normalize = normalize::Config {
        datasets: schemas.into(),
        format: format(kafka.format),
        telemetry_type: Some(kafka.telemetry_type),
        topics: IndexRules {
            default_index_position: Some(kafka.topic_index_config.default_index_position),
            patterns: kafka.topic_index_config.patterns.iter().map(pattern).collect(),
            auto_generate: AutoGenerate {
                enabled: kafka.auto_generate.enabled,
                prefix: kafka.auto_generate.prefix.clone(),
                strategy: match kafka.auto_generate.strategy {
                    AutoGenerateStrategy::Hash => Strategy::Hash,
                    AutoGenerateStrategy::Topic => Strategy::Topic,
                    AutoGenerateStrategy::Numbers => Strategy::Numbers,
                },
                numbers: kafka.auto_generate.numbers,
            },
        },
        tombstones: match kafka.tombstones {
            Tombstones::Skip => normalize::TombstonePolicy::Skip,
            Tombstones::Reject => normalize::TombstonePolicy::Reject,
        },
        message_key: match &kafka.message_id {
            MessageId::Payload => normalize::MessageKey::PayloadHash,
            MessageId::KafkaKey => normalize::MessageKey::KafkaKey,
            MessageId::Header(name) => normalize::MessageKey::Header(name.clone()),
        },
        limits: normalize::Limits {
            depth_max: limits.depth_max,
            row_bytes_max: config.row_bytes_max() as usize,
            payload_bytes_max: limits.payload_bytes_max as usize,
            decompressed_bytes_max: limits.decompressed_bytes_max.unwrap_or(limits.payload_bytes_max) as usize,
            json_records_max: limits.json_records_max,
        },
        zero_copy: kafka.enable_zero_copy,
        auth: tokens
            .map(|reload| normalize::Auth { header: config.ingestion.auth.header.as_str().into(), tokens: reload.store.clone() }),
        tenants: tenants(config)?,
    };
    let problems: Vec<String> = normalize.problems().iter().map(ToString::to_string).collect();
    if problems.is_empty() { Ok(normalize) } else { Err(format!("ingestion.kafka: {}", problems.join("; "))) }
}

fn format(format: Format) -> normalize::Format {
    match format {
        Format::Auto => normalize::Format::Auto,
        Format::OtlpProto => normalize::Format::OtlpProto,
        Format::OtlpJson => normalize::Format::OtlpJson,
        Format::Json => normalize::Format::Json,
        Format::Raw => normalize::Format::Raw,
    }
}

fn wal(config: &Config, wiring: &Wiring) -> wal_commit::Config {
    let (processing, wal) = (&config.processing, &config.processing.wal);
    let keys_retention_ms = match (wiring.has(dedup_window::NAME), wiring.has_raw_log()) {
        (false, _) => 0,
        (true, false) => processing.dedup_window_seconds * 1_000,
        // Which messages were duplicates is found out anew, as when they are read back from Kafka.
        (true, true) => dedup(config).reach_ms(),
    };
    wal_commit::Config {
        directory: wal.directory.clone(),
        segment_bytes: wal.segment_size_bytes,
        bytes_max: wal.max_size_bytes,
        sync: match wal.sync_on_write {
            true => wal_commit::Sync::OnWrite,
            false => wal_commit::Sync::Every(Duration::from_millis(wal.sync_interval_ms)),
        },
        keys_retention_ms,
        keys_bytes_max: wal.dedup_keys_bytes_max,
        retention_ms: config.wal_cleanup.retention_seconds * 1_000,
        long_term: wal.long_term.enabled.then(|| long_term(config)),
        direct_io: wal.direct_io,
    }
}

fn long_term(config: &Config) -> wal_commit::long_term::Config {
    let (keys, cleanup) = (&config.processing.wal.long_term, &config.wal_cleanup);
    wal_commit::long_term::Config {
        store: long_term_store(config),
        node: config.node.id.clone(),
        compression_level: keys.compression_level as i32,
        cleanup: cleanup.enabled.then_some(wal_commit::long_term::Cleanup {
            interval: Duration::from_secs(cleanup.interval_seconds),
            retention_ms: cleanup.long_term_retention_seconds * 1_000,
            bytes_max: cleanup.long_term_bytes_max,
        }),
    }
}

/// Where the long-term log of `config` is.
pub fn long_term_store(config: &Config) -> ObjectStore {
    let keys = &config.processing.wal.long_term;
    let store = &keys.object_store;
    match store.scheme {
        LongTermScheme::Fs => ObjectStore::Fs { root: absolute(&keys.directory) },
        LongTermScheme::S3 => ObjectStore::S3(S3 {
            bucket: store.bucket.clone().unwrap_or_default(),
            root: store.prefix.clone(),
            endpoint: store.endpoint.clone(),
            region: Some(store.region.clone()),
            access_key_id: store.access_key_id.as_ref().map(|secret| Secret::new(secret.expose())),
            secret_access_key: store.secret_access_key.as_ref().map(|secret| Secret::new(secret.expose())),
            ..S3::default()
        }),
    }
}

fn storage_plan(config: &Config, workers: usize) -> Result<StoragePlan, String> {
    let (storage, rotation) = (&config.storage, &config.storage.rotation);
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let roll = parquet_roll::Config {
        directory: storage.local_directory.clone(),
        prefix: storage.object_store.prefix.clone(),
        node_id: config.node.id.clone(),
        seed: seed ^ (u64::from(std::process::id()) << 32),
        file_bytes_max: rotation.file_bytes_max,
        age_max_ms: rotation.age_max_seconds * 1_000,
        idle_ms: rotation.idle_seconds * 1_000,
        open_writers_max: rotation.open_writers_max.div_ceil(workers),
        row_group_rows_max: storage.parquet.row_group_rows,
        memory_bytes_max: rotation.memory_bytes_max as usize / workers,
        event_time_skew_days_max: rotation.event_time_skew_days_max,
        compression: match storage.parquet.compression {
            crate::config::Compression::Zstd => parquet_roll::Compression::Zstd(storage.parquet.compression_level as i32),
            crate::config::Compression::Uncompressed => parquet_roll::Compression::None,
        },
        bloom_filters: storage.parquet.bloom_filter_enabled,
    };
    let upload = object_upload::Config {
        chunk_bytes: storage.upload.chunk_bytes as usize,
        chunks_concurrent: storage.upload.chunks_concurrent,
        files_concurrent: storage.upload_concurrency,
        attempts_max: storage.upload.attempts_max,
        backoff_ms: storage.upload.backoff_ms,
        backoff_max_ms: storage.upload.backoff_max_ms,
        timeout: Duration::from_secs(storage.upload.timeout_seconds),
    };
    let address: IpAddr =
        config.service_ports.bind_address.parse().map_err(|error| format!("service_ports.bind_address: {error}"))?;
    Ok(StoragePlan {
        graph: storage::Config {
            source: flight_source::Config { epoch_interval_ms: config.processing.epoch_interval_ms },
            roll,
            upload,
        },
        listen: SocketAddr::new(address, config.service_ports.arrow_flight),
        store: object_store(config),
        queue_bytes_max: STORAGE_QUEUE_BYTES_MAX,
        index: openwit_operators::index_trigger::Config {
            announced_max: storage.index_trigger.announced_max,
            repeat_after_ms: storage.index_trigger.repeat_after_seconds * 1_000,
        },
        janitor: Some(Duration::from_secs(storage.janitor.interval_seconds))
            .filter(|interval| !interval.is_zero())
            .map(|interval| (interval, janitor_config(config))),
    })
}

/// The object store of `config`.
pub fn object_store(config: &Config) -> ObjectStore {
    let store = &config.storage.object_store;
    match store.scheme {
        ObjectStoreScheme::Fs => ObjectStore::Fs { root: absolute(&store.root) },
        ObjectStoreScheme::S3 => ObjectStore::S3(S3 {
            bucket: store.bucket.clone().unwrap_or_default(),
            endpoint: store.endpoint.clone(),
            region: Some(store.region.clone()),
            access_key_id: store.access_key_id.as_ref().map(|secret| Secret::new(secret.expose())),
            secret_access_key: store.secret_access_key.as_ref().map(|secret| Secret::new(secret.expose())),
            ..S3::default()
        }),
        ObjectStoreScheme::Gcs => ObjectStore::Gcs(Gcs {
            bucket: store.bucket.clone().unwrap_or_default(),
            endpoint: store.endpoint.clone(),
            credential_path: store.credential_path.clone(),
        }),
        ObjectStoreScheme::Azblob => ObjectStore::Azblob(Azblob {
            container: store.container.clone().unwrap_or_default(),
            endpoint: store.endpoint.clone().unwrap_or_default(),
            account_name: store.account_name.clone(),
            account_key: store.account_key.as_ref().map(|secret| Secret::new(secret.expose())),
        }),
    }
}

/// What the janitor of `config` tidies.
pub fn janitor_config(config: &Config) -> janitor::Config {
    let keys = &config.storage.janitor;
    janitor::Config {
        prefix: config.storage.object_store.prefix.clone(),
        grace_ms: keys.grace_seconds * 1_000,
        retention_days: Some(keys.retention_days).filter(|days| *days > 0),
    }
}

/// OpenDAL takes a relative root as relative to `/`.
fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
