//! A load on a mock broker, the standalone graph on it, and the model of what must come of it, written from the definition.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::JoinHandle;
use std::time::Duration;

use openwit_graphs::catalog;
use openwit_graphs::process::{self, Control, Outcome};
use openwit_ingest::commands::audit::{Audited, Scope, audit};
use openwit_ingest::config::Config;
use openwit_ingest::embedded_broker::EmbeddedBroker;
use openwit_ingest::generate::producer::{self, Pace, Settings};
use openwit_ingest::generate::{Format, Generator, Kind, Message, Plan, Ppm, Topic};
use openwit_ingest::plan::{Changes, catalog_location, plan};
use openwit_operators::batch::Signal;
use openwit_operators::coverage::Dispositions;
use openwit_operators::fault::Fault;
use tempfile::TempDir;

use crate::support::lake::{self, Place};
use crate::support::wait;

/// Longer than any run here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const INDEX: &str = "shop";

/// A load with duplicates, invalid messages and tombstones over four partitions. 400 messages of 7 kB stay within the 5 MiB that the
/// mock broker keeps of a partition.
pub fn load(topic: &str, signal: Signal, format: Format) -> Plan {
    Plan {
        topics: vec![Topic { name: topic.into(), partitions: 4 }],
        format,
        signal,
        count: Some(400),
        records_per_message: if format.batches_records() { 10 } else { 1 },
        message_bytes_min: 0,
        duplicates: Ppm(100_000),
        invalid: Ppm(50_000),
        tombstones: Ppm(20_000),
        seed: 7,
        keyed: true,
        start_time_ns: 1_767_225_600_000_000_000,
        time_step_ns: 1_000_000,
    }
}

/// Sends `load` to a new topic of `broker`.
pub fn send(broker: &EmbeddedBroker, load: &Plan) {
    for topic in &load.topics {
        broker.create_topic(topic).unwrap();
    }
    send_when(broker.brokers(), load, |_| true);
}

/// Sends `load`, each message when `admits` its number.
pub fn send_when(brokers: &str, load: &Plan, admits: impl Fn(u64) -> bool) {
    let settings = Settings { brokers: brokers.into(), compression: "none".into(), properties: vec![] };
    let mut generator = Generator::new(load.clone()).unwrap();
    let admits = |message: &Message| admits(message.index);
    let sent = producer::send(&settings, &mut generator, Pace::default(), &Default::default(), admits).unwrap();
    assert_eq!(Some(sent.delivered), load.count);
}

/// What one message of a load must become.
pub struct Sent {
    pub index: u64,
    pub kind: Kind,
    pub records: u64,
    pub payload: Option<Vec<u8>>,
}

impl Sent {
    /// The valid message it is, or is a copy of.
    fn original(&self) -> Option<u64> {
        match self.kind {
            Kind::Valid => Some(self.index),
            Kind::Duplicate { of } => Some(of),
            Kind::Invalid(_) | Kind::Tombstone => None,
        }
    }
}

/// Every message of `load` at its place: the broker gives offsets in the order of sending.
pub fn sent(load: &Plan) -> BTreeMap<Place, Sent> {
    let mut next: BTreeMap<(usize, i32), i64> = BTreeMap::new();
    let place = |topic: usize, partition: i32, offset: i64| Place { topic: load.topics[topic].name.clone(), partition, offset };
    Generator::new(load.clone())
        .unwrap()
        .map(|message| {
            let offset = next.entry((message.topic, message.partition)).or_default();
            let place = place(message.topic, message.partition, *offset);
            *offset += 1;
            let payload = message.payload().map(<[u8]>::to_vec);
            (place, Sent { index: message.index, kind: message.kind, records: message.records, payload })
        })
        .collect()
}

/// A configuration whose every limit is small, so that a small load meets many batches, epochs, segments, files and commits.
pub fn config(broker: &EmbeddedBroker, load: &Plan, folder: &TempDir) -> Config {
    config_at(broker.brokers(), load, folder)
}

/// The same, for a broker at `brokers`.
pub fn config_at(brokers: &str, load: &Plan, folder: &TempDir) -> Config {
    let mut config = Config::embedded(folder.path());
    let kafka = &mut config.ingestion.kafka;
    kafka.brokers = brokers.split(',').map(str::to_owned).collect();
    kafka.topics = load.topics.iter().map(|topic| topic.name.clone()).collect();
    kafka.topic_index_config.default_index_position = 3;
    kafka.telemetry_type = load.signal;
    kafka.batching.fetch_wait_max_ms = 10;
    kafka.commit_strategy.interval_ms = 50;
    // The mock broker lets a member wait for the end of the session of one that has left, less a second.
    kafka.consumer.session_timeout_ms = 3_000;
    kafka.consumer.heartbeat_interval_ms = 500;
    config.ingestion.batching.batch_size = 16;
    config.ingestion.batching.batch_timeout_ms = 20;
    config.processing.epoch_interval_ms = 5;
    config.processing.flush_size_messages = 40;
    config.processing.wal.segment_size_bytes = 1 << 20;
    config.processing.wal.max_size_bytes = 16 << 20;
    config.pipeline.batch_size = 200;
    config.storage.parquet.row_group_rows = 1_000;
    config.storage.rotation.file_bytes_max = 64 << 10;
    config.storage.upload.attempts_max = 2;
    config.storage.upload.backoff_ms = 10;
    config.storage.upload.backoff_max_ms = 20;
    config
}

/// `config` with everything it writes in another folder.
pub fn elsewhere(config: &Config, folder: &TempDir) -> Config {
    let embedded = Config::embedded(folder.path());
    let mut other = config.clone();
    other.storage.object_store.root = embedded.storage.object_store.root;
    other.storage.local_directory = embedded.storage.local_directory;
    other.metastore.path = embedded.metastore.path;
    other.processing.wal.directory = embedded.processing.wal.directory;
    other.ingestion.kafka.dead_letter.directory = embedded.ingestion.kafka.dead_letter.directory;
    other
}

/// When a run ends by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When all that is in the topics at the start is published.
    End,
    /// When it is stopped.
    Stopped,
}

/// How far the source is, all partitions together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    pub emitted: i64,
    pub committable: i64,
}

/// A run on a thread of its own.
pub struct Running {
    control: Control,
    thread: JoinHandle<Result<Outcome, Fault>>,
}

impl Running {
    pub fn start(config: &Config, workers: usize, until: Until) -> Self {
        let control = Control::default();
        let changes = Changes { workers: Some(workers), until_end: until == Until::End, cluster: None };
        let plan = plan(config, &changes, control.counters.positions.clone()).unwrap();
        let running = control.clone();
        Running { control, thread: std::thread::spawn(move || process::run(&plan, &running)) }
    }

    pub fn control(&self) -> &Control {
        &self.control
    }

    pub fn positions(&self) -> Positions {
        let all = self.control.counters.positions.positions();
        let committable = all.values().filter_map(|position| position.committable).sum();
        Positions { emitted: all.values().map(|position| position.emitted).sum(), committable }
    }

    pub fn wait_for(&mut self, what: &str, condition: impl Fn(Positions) -> bool) {
        let met = wait::until_or_late(PATIENCE, || self.thread.is_finished() || condition(self.positions()));
        assert!(
            met && !self.thread.is_finished(),
            "waiting for {what}: {:?}, fault {:?}",
            self.positions(),
            self.control.fault()
        );
    }

    /// Does `meanwhile` again and again until the run has ended by itself.
    pub fn wait_for_end(&self, what: &str, meanwhile: impl Fn()) {
        wait::until(what, PATIENCE, || {
            meanwhile();
            self.thread.is_finished()
        });
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(self) {
        self.control.stop();
        self.finish();
    }

    /// Waits for its end, which must be a good one.
    pub fn finish(self) -> Control {
        let (outcome, control) = self.end();
        let outcome = outcome.unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(outcome.restarts, 0);
        control
    }

    /// Waits for its end, which must be a good one, and tells how often the graphs were started again.
    pub fn finish_after_restarts(self) -> usize {
        let (outcome, _) = self.end();
        outcome.unwrap_or_else(|fault| panic!("{fault}")).restarts
    }

    /// Waits for its end, which must be a fault.
    pub fn fault(self) -> Fault {
        let (outcome, _) = self.end();
        outcome.expect_err("a run that cannot store anything does not end well")
    }

    fn end(self) -> (Result<Outcome, Fault>, Control) {
        let ended = wait::until_or_late(PATIENCE, || self.thread.is_finished());
        assert!(ended, "still running after {PATIENCE:?}: {:?}", self.positions());
        (self.thread.join().unwrap(), self.control)
    }
}

/// Runs `config` on `workers` until all that is in its topics is published.
pub fn run_to_the_end(config: &Config, workers: usize) -> Control {
    Running::start(config, workers, Until::End).finish()
}

/// What came of a load, apart from which copy of a message was delivered: the same for every run of the same load.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Contents of rows, by the number of their valid message and their own.
    pub rows: BTreeMap<(u64, i32), u64>,
    /// Reasons, by the place of the rejected message.
    pub rejects: BTreeMap<Place, String>,
}

/// Checks that what `config` left behind is `sent`, exactly once.
pub fn delivered(config: &Config, sent: &BTreeMap<Place, Sent>) -> Delivered {
    let audited = audit(config, Scope::Consumed).unwrap_or_else(|failure| panic!("{}", failure.message));
    assert!(audited.clean && audited.lag == 0 && audited.pending.is_empty(), "{audited}");
    check_coverage(config, sent, &audited);
    Delivered { rows: check_rows(config, sent), rejects: check_letters(config, sent) }
}

fn check_rows(config: &Config, sent: &BTreeMap<Place, Sent>) -> BTreeMap<(u64, i32), u64> {
    let mut rows = BTreeMap::new();
    let mut copies: BTreeMap<u64, BTreeSet<Place>> = BTreeMap::new();
    for row in lake::rows(&config.storage.object_store.root) {
        let message = sent.get(&row.place).unwrap_or_else(|| panic!("a row of a message that was never sent: {row:?}"));
        let original = message.original().unwrap_or_else(|| panic!("a row of a message that is {:?}: {row:?}", message.kind));
        copies.entry(original).or_default().insert(row.place.clone());
        let twice = rows.insert((original, row.ordinal), row.content);
        assert!(twice.is_none(), "doubled: {row:?} of message {original}; copies {:?}", copies[&original]);
    }
    let valid = sent.values().filter(|message| message.kind == Kind::Valid);
    let expected: BTreeSet<(u64, i32)> =
        valid.flat_map(|message| (0..message.records as i32).map(|ordinal| (message.index, ordinal))).collect();
    let found: BTreeSet<(u64, i32)> = rows.keys().copied().collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(missing.is_empty(), "{} rows are missing, the first (message, ordinal): {:?}", missing.len(), missing[0]);
    assert_eq!(expected.len(), found.len(), "ordinals that the messages do not have");
    let torn = copies.iter().find(|(_, places)| places.len() > 1);
    assert!(torn.is_none(), "rows of one message come from several copies: {torn:?}");
    rows
}

fn check_letters(config: &Config, sent: &BTreeMap<Place, Sent>) -> BTreeMap<Place, String> {
    let folder = config.ingestion.kafka.dead_letter.directory.as_ref().unwrap();
    let mut rejects = BTreeMap::new();
    for letter in lake::letters(folder) {
        let message =
            sent.get(&letter.place()).unwrap_or_else(|| panic!("a letter of a message that was never sent: {letter:?}"));
        assert!(matches!(message.kind, Kind::Invalid(_)), "a letter of a message that is {:?}: {letter:?}", message.kind);
        assert_eq!(letter.payload(), message.payload, "the payload of {:?}", letter.place());
        let twice = rejects.insert(letter.place(), letter.reason);
        assert!(twice.is_none(), "a second letter of {:?} without a crash", letter.topic);
    }
    let invalid = sent.iter().filter(|(_, message)| matches!(message.kind, Kind::Invalid(_))).map(|(place, _)| place);
    let missing: Vec<_> = invalid.filter(|place| !rejects.contains_key(place)).collect();
    assert!(missing.is_empty(), "{} invalid messages are not in the dead letter, the first: {:?}", missing.len(), missing[0]);
    rejects
}

/// The catalog accounts for every offset of every partition, each as what it is.
fn check_coverage(config: &Config, sent: &BTreeMap<Place, Sent>, audited: &Audited) {
    let catalog = catalog::open(&catalog_location(config)).unwrap();
    let coverage = catalog.coverage().unwrap();
    let mut ends: BTreeMap<(&str, i32), i64> = BTreeMap::new();
    for place in sent.keys() {
        ends.insert((&place.topic, place.partition), place.offset + 1);
    }
    let mut total = Dispositions::default();
    for (partition, rows) in &coverage {
        let end = ends.remove(&(&*partition.topic.name, partition.partition));
        let ranges: Vec<_> = rows.iter().map(|row| row.range.clone()).collect();
        assert_eq!(ranges, [0..end.unwrap_or(0)], "{partition}: one run of offsets without a gap");
        rows.iter().for_each(|row| total += row.dispositions);
    }
    assert!(ends.is_empty(), "partitions that are not in the catalog: {ends:?}");
    let count = |which: &dyn Fn(&Kind) -> bool| sent.values().filter(|message| which(&message.kind)).count() as u64;
    let expected = Dispositions {
        stored: count(&|kind| *kind == Kind::Valid),
        duplicates: count(&|kind| matches!(kind, Kind::Duplicate { .. })),
        rejected: count(&|kind| matches!(kind, Kind::Invalid(_))),
        skipped: count(&|kind| *kind == Kind::Tombstone),
        absent: 0,
    };
    assert_eq!(total, expected);
    assert_eq!(audited.balance.dispositions, expected);
}
