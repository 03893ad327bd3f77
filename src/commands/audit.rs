//! `audit`: proves from Kafka's offsets, the catalog and the object store that nothing is lost or doubled.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openwit_graphs::catalog;
use openwit_operators::catalog_commit::audit::{Audit, Expected, audit as balance};
use openwit_operators::catalog_commit::{CompleteThrough, FileFilter, FileRow};
use openwit_operators::coverage::{OffsetSet, PartitionKey, TopicKey};
use openwit_operators::fault::chain;
use openwit_operators::kafka_client;
use openwit_operators::object_upload;
use openwit_operators::wal_commit::disk::Directory;
use openwit_operators::wal_commit::inspect;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;

use super::{Ended, Failure, load};
use crate::cli::AuditArgs;
use crate::config::{AutoOffsetReset, Config};
use crate::generate::time;
use crate::plan::{catalog_location, consumer_properties, object_store, topics};

/// How long the broker may take to answer one question.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(args: &AuditArgs) -> Ended {
    let config = load(&args.config)?;
    let audited = audit(&config, Scope::Committed)?;
    if args.json {
        println!("{}", serde_json::to_string(&audited).map_err(Failure::fault)?);
    } else {
        println!("{audited}");
    }
    audited.verdict()
}

/// Up to where offsets must be accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Up to the group's committed offsets: what is read later is lag, not loss.
    Committed,
    /// As `Committed`, at the end of a run: what is in the write-ahead log alone is a finding, too.
    Consumed,
}

/// What an audit found.
#[derive(Debug, Serialize)]
pub struct Audited {
    /// The balance of offsets.
    pub balance: Audit,
    /// Offsets that are durable in the local write-ahead log and not yet published, by partition.
    pub pending: BTreeMap<String, u64>,
    /// Messages in Kafka that the group has not committed.
    pub lag: u64,
    /// Files in the catalog.
    pub files: usize,
    /// Files of the catalog that are not in the object store, or not with their size.
    pub missing_objects: Vec<String>,
    /// How far each partition is published without a gap.
    pub complete_through: Vec<Complete>,
    /// True if nothing is missing or doubled.
    pub clean: bool,
}

/// How far a partition is published without a gap.
#[derive(Debug, Serialize)]
pub struct Complete {
    /// The topic's name.
    pub topic: String,
    /// The topic's id.
    pub topic_id: String,
    /// The partition's number.
    pub partition: i32,
    /// Up to where.
    #[serde(flatten)]
    pub through: CompleteThrough,
}

impl Audited {
    /// The command's end: an error on any difference.
    pub fn verdict(&self) -> Ended {
        match self.clean {
            true => Ok(()),
            false => Err(Failure::difference(format!("the audit found a difference: {}", self.first_findings()))),
        }
    }

    /// The first of all that is wrong; the report has the rest.
    fn first_findings(&self) -> String {
        const SHOWN_MAX: usize = 5;
        let partitions = self.balance.partitions.iter();
        let offsets = partitions.filter_map(|one| one.findings().map(|found| format!("{}: {found}", one.name())));
        let objects = self.missing_objects.iter().map(|object| format!("missing in the object store: {object}"));
        let pending = self.pending.iter().map(|(partition, offsets)| format!("{partition}: {offsets} offsets not published"));
        let all: Vec<String> = offsets.chain(objects).chain(pending).collect();
        let more = all.len().saturating_sub(SHOWN_MAX);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        all[..all.len().min(SHOWN_MAX)].join("; ") + &more
    }
}

impl fmt::Display for Audited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.balance)?;
        for (partition, offsets) in &self.pending {
            writeln!(f, "{partition}: {offsets} offsets are in the write-ahead log and not published yet")?;
        }
        for Complete { topic, partition, through, .. } in &self.complete_through {
            write!(f, "{topic}[{partition}]: complete from {} to {}", through.start, through.offset)?;
            match through.kafka_time_max_ms.and_then(|time_ms| u64::try_from(time_ms).ok()) {
                Some(time_ms) => writeln!(f, ", Kafka time {}", rfc3339(time_ms))?,
                None => writeln!(f)?,
            }
        }
        for object in &self.missing_objects {
            writeln!(f, "missing in the object store: {object}")?;
        }
        let verdict = if self.clean { "clean" } else { "NOT CLEAN" };
        write!(
            f,
            "audit: {verdict}; {} files, {} objects missing, {} messages not consumed yet",
            self.files,
            self.missing_objects.len(),
            self.lag
        )
    }
}

fn rfc3339(unix_ms: u64) -> String {
    let mut text = Vec::new();
    time::push_rfc3339(&mut text, unix_ms.saturating_mul(1_000_000));
    String::from_utf8_lossy(&text).into_owned()
}

/// Audits what `config` reads and stores.
pub fn audit(config: &Config, scope: Scope) -> Result<Audited, Failure> {
    let catalog = catalog::open(&catalog_location(config)).map_err(|error| Failure::fault(chain(&error)))?;
    let coverage = catalog.coverage().map_err(|error| Failure::fault(chain(&error)))?;
    let files = catalog.files(&FileFilter::default()).map_err(|error| Failure::fault(chain(&error)))?;
    let complete = catalog.complete_through().map_err(|error| Failure::fault(chain(&error)))?;
    let complete_through = complete.into_iter().map(|(PartitionKey { topic, partition }, through)| Complete {
        topic: topic.name.to_string(),
        topic_id: topic.id.to_string(),
        partition,
        through,
    });
    let complete_through = complete_through.collect();
    let (expected, lag) = if config.has_ingest() { expectations(config, &coverage)? } else { (BTreeMap::new(), 0) };
    let mut balance = balance(&coverage, &expected);
    let pending = set_aside_pending(config, &mut balance)?;
    let missing_objects = missing_objects(config, &files)?;
    let is_all_published = scope == Scope::Committed || pending.is_empty();
    let clean = balance.clean && missing_objects.is_empty() && is_all_published;
    Ok(Audited { balance, pending, lag, files: files.len(), missing_objects, complete_through, clean })
}

type Coverage<T> = BTreeMap<PartitionKey, T>;

/// What Kafka says must be accounted for, and how much is still to be read.
fn expectations<T>(config: &Config, coverage: &Coverage<Vec<T>>) -> Result<(Coverage<Expected>, u64), Failure> {
    let failed = |doing: &str, error: rdkafka::error::KafkaError| Failure::fault(format!("{doing}: {error}"));
    let (client, login) = kafka_client::settings(&consumer_properties(config));
    let consumer: BaseConsumer = client.create().map_err(|error| failed("creating a Kafka client", error))?;
    login.begin(consumer.client());
    let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(|error| failed("reading topic metadata", error))?;
    let cluster = consumer.client().fetch_cluster_id(PATIENCE).unwrap_or_default();
    let patterns = topics(config).map_err(Failure::usage)?;
    let mut list = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| patterns.matches(topic.name())) {
        for partition in topic.partitions() {
            list.add_partition(topic.name(), partition.id());
        }
    }
    let committed = consumer.committed_offsets(list, PATIENCE).map_err(|error| failed("reading committed offsets", error))?;
    let (mut expected, mut lag) = (BTreeMap::new(), 0);
    for element in committed.elements() {
        let (topic, partition) = (element.topic(), element.partition());
        let (low, high) = consumer
            .fetch_watermarks(topic, partition, PATIENCE)
            .map_err(|error| failed(&format!("reading the offsets of {topic}[{partition}]"), error))?;
        let Offset::Offset(end) = element.offset() else {
            lag += (high - low) as u64;
            continue;
        };
        lag += (high - end).max(0) as u64;
        let key = newest_incarnation(coverage, &cluster, topic, partition);
        // With `latest` consumption begins wherever the log ended then: the catalog alone knows.
        let start = if config.ingestion.kafka.auto_offset_reset == AutoOffsetReset::Earliest { low } else { end };
        expected.insert(key, Expected { start, end, rows_found: None });
    }
    Ok((expected, lag))
}

/// The key under which the catalog knows a partition: of a recreated topic, the last one.
fn newest_incarnation<T>(coverage: &Coverage<T>, cluster: &str, topic: &str, partition: i32) -> PartitionKey {
    let is_same = |key: &&PartitionKey| key.partition == partition && &*key.topic.name == topic && &*key.topic.cluster == cluster;
    let known = coverage.keys().filter(is_same).max_by_key(|key| (key.topic.id.len(), key.topic.id.clone()));
    known.cloned().unwrap_or_else(|| {
        let key = TopicKey { cluster: cluster.into(), name: topic.into(), id: "".into() };
        PartitionKey { topic: key.into(), partition }
    })
}

/// Takes what is durable in the local log out of the gaps: it is not lost, it is on its way.
fn set_aside_pending(config: &Config, balance: &mut Audit) -> Result<BTreeMap<String, u64>, Failure> {
    let mut pending = BTreeMap::new();
    if balance.missing == 0 || !config.has_ingest() || !config.processing.wal.directory.exists() {
        return Ok(pending);
    }
    let mut logged: Coverage<OffsetSet> = BTreeMap::new();
    let log = inspect::Source::Short(Arc::new(Directory::read_only(&config.processing.wal.directory)), None);
    for segment in log.list().map_err(|error| Failure::fault(chain(&error)))? {
        for (partition, offsets) in segment.offsets {
            let all = logged.entry(partition).or_default();
            offsets.ranges().for_each(|range| all.insert(range));
        }
    }
    balance.missing = 0;
    for one in &mut balance.partitions {
        let key =
            TopicKey { cluster: one.cluster.as_str().into(), name: one.topic.as_str().into(), id: one.topic_id.as_str().into() };
        let logged = logged.remove(&PartitionKey { topic: key.into(), partition: one.partition }).unwrap_or_default();
        let length = |gaps: &[std::ops::Range<i64>]| gaps.iter().map(|gap| (gap.end - gap.start) as u64).sum::<u64>();
        let before = length(&one.gaps);
        one.gaps = one.gaps.iter().flat_map(|gap| logged.missing_in(gap.clone())).collect();
        let after = length(&one.gaps);
        balance.missing += after;
        if after < before {
            pending.insert(format!("{}[{}]", one.topic, one.partition), before - after);
        }
    }
    balance.clean = balance.partitions.iter().all(|one| one.is_clean());
    Ok(pending)
}

fn missing_objects(config: &Config, files: &[FileRow]) -> Result<Vec<String>, Failure> {
    if !config.has_storage() {
        return Ok(Vec::new());
    }
    let operator = object_upload::build_operator(&object_store(config)).map_err(|error| Failure::fault(chain(&error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::fault)?;
    let mut missing = Vec::new();
    for file in files {
        match runtime.block_on(operator.stat(&file.path)) {
            Ok(found) if found.content_length() == file.bytes => {}
            Ok(found) => {
                missing.push(format!("{}: {} bytes, the catalog says {}", file.path, found.content_length(), file.bytes))
            }
            Err(error) => missing.push(format!("{}: {}", file.path, error.kind())),
        }
    }
    Ok(missing)
}
