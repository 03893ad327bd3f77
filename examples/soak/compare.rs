//! Reads back what was produced, from Kafka, and what became of it, from the files that the catalog names and the dead letters.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use openwit_graphs::catalog;
use openwit_ingest::config::Config;
use openwit_ingest::generate::{Generator, Kind, Message, Plan};
use openwit_ingest::plan::{catalog_location, object_store};
use openwit_operators::batch::Signal;
use openwit_operators::catalog_commit::FileFilter;
use openwit_operators::object_upload;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use crate::decode;
use crate::digest::Digest;
use crate::ledger::{Findings, Ledger, Produced};
use crate::load::{Feed, INDEX_HEADER, partition};
use crate::node::DEDUP_WINDOW_SECONDS;
use crate::rows;

/// How long Kafka may take for the next message.
const PATIENCE: Duration = Duration::from_secs(60);

/// Compares all that was produced with all that was stored.
pub fn compare(brokers: &str, feeds: &[Feed], config: &Config, letters: &[PathBuf]) -> anyhow::Result<Findings> {
    let mut ledger = Ledger::new(feeds.iter().map(|feed| (feed.topic().name.clone(), feed.topic().partitions as usize)));
    read_kafka(brokers, feeds, &mut ledger).context("reading Kafka")?;
    read_files(config, &mut ledger).context("reading the files of the catalog")?;
    for folder in letters {
        read_letters(folder, &mut ledger).with_context(|| format!("reading {}", folder.display()))?;
    }
    Ok(ledger.judge(DEDUP_WINDOW_SECONDS * 1_000))
}

/// One topic being read.
struct Source {
    generator: Generator,
    message: Message,
    start_ms: i64,
}

fn read_kafka(brokers: &str, feeds: &[Feed], ledger: &mut Ledger) -> anyhow::Result<()> {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers)
        .set("group.id", "soak-check")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.message.max.bytes", "25000000")
        .set("queued.max.messages.kbytes", "65536");
    let consumer: BaseConsumer = client.create()?;
    let mut list = TopicPartitionList::new();
    for feed in feeds {
        for partition in 0..feed.topic().partitions {
            list.add_partition_offset(&feed.topic().name, partition, Offset::Beginning)?;
        }
    }
    consumer.assign(&list)?;
    let mut sources = feeds.iter().map(|feed| Source::new(&feed.plan)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut open = list.count();
    let mut heard = Instant::now();
    while open > 0 {
        match consumer.poll(Duration::from_secs(1)) {
            None if heard.elapsed() > PATIENCE => bail!("no message for {PATIENCE:?}, {open} partitions are not at their end"),
            None => continue,
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            // The client mends its connection by itself; if it does not, patience ends.
            Some(Err(_)) => continue,
            Some(Ok(message)) => {
                let topic = feeds.iter().position(|feed| feed.topic().name == message.topic()).context("another topic")?;
                let place = || format!("{}[{}]@{}", message.topic(), message.partition(), message.offset());
                sources[topic].take(topic, &message, ledger).with_context(place)?;
            }
        }
        heard = Instant::now();
    }
    Ok(())
}

impl Source {
    fn new(plan: &Plan) -> anyhow::Result<Self> {
        let start_ms = (plan.start_time_ns / 1_000_000) as i64;
        Ok(Source { generator: Generator::new(plan.clone())?, message: Message::empty(), start_ms })
    }

    fn take(&mut self, topic: usize, found: &BorrowedMessage<'_>, ledger: &mut Ledger) -> anyhow::Result<()> {
        let headers = found.headers().context("no headers")?;
        let header = headers.iter().find(|header| header.key == INDEX_HEADER).and_then(|header| header.value);
        let index: u64 = std::str::from_utf8(header.context("no number")?)?.parse()?;
        self.generator.fill(index, &mut self.message);
        let (kind, payload) = (self.message.kind, found.payload().unwrap_or_default());
        anyhow::ensure!(payload == self.message.payload().unwrap_or_default(), "Kafka holds other bytes than were produced");
        let plan = self.generator.plan();
        anyhow::ensure!(found.partition() == partition(plan, index, kind), "another partition than it was sent to");
        let kafka_ms = found.timestamp().to_millis().context("no timestamp")?;
        let rows = match (kind, plan.signal) {
            (Kind::Invalid(_) | Kind::Tombstone, _) => Vec::new(),
            (_, Signal::Traces) => decode::traces(payload, kafka_ms)?,
            (_, Signal::Logs) => decode::json_log(payload, kafka_ms)?,
            (_, Signal::Metrics) => decode::metrics(payload, kafka_ms)?,
        };
        anyhow::ensure!(rows.len() as u64 == self.message.records, "{} rows, not {}", rows.len(), self.message.records);
        let sent_ms = u32::try_from(kafka_ms - self.start_ms).context("it was sent before the run, or long after")?;
        let (partition, offset) = (found.partition(), found.offset());
        ledger.produced(topic, &Produced { partition, offset, index, kind, sent_ms, rows: &rows, payload: digest(payload) })
    }
}

fn digest(payload: &[u8]) -> u64 {
    let mut digest = Digest::default();
    digest.bytes(Some(payload));
    digest.finish()
}

fn read_files(config: &Config, ledger: &mut Ledger) -> anyhow::Result<()> {
    let catalog = catalog::open(&catalog_location(config))?;
    let store = object_upload::build_operator(&object_store(config))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for file in catalog.files(&FileFilter::default())? {
        let bytes = runtime.block_on(store.read(&file.path)).with_context(|| file.path.clone())?.to_bytes();
        let rows = rows::read(bytes, file.group.signal, |row| {
            ledger.row(&row, &file.path);
            Ok(())
        });
        let rows = rows.with_context(|| file.path.clone())?;
        anyhow::ensure!(rows == file.rows, "{} has {rows} rows, the catalog says {}", file.path, file.rows);
    }
    Ok(())
}

/// What is read of a dead letter.
#[derive(Deserialize)]
struct Letter {
    topic: String,
    partition: i32,
    offset: i64,
    payload_base64: Option<String>,
}

fn read_letters(folder: &Path, ledger: &mut Ledger) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            continue;
        }
        for line in BufReader::new(File::open(&path)?).lines() {
            let line = line?;
            let letter: Letter = serde_json::from_str(&line).with_context(|| path.display().to_string())?;
            let payload = base64::engine::general_purpose::STANDARD.decode(letter.payload_base64.unwrap_or_default())?;
            ledger.letter(&letter.topic, letter.partition, letter.offset, digest(&payload));
        }
    }
    Ok(())
}
