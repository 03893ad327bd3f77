//! Storage nodes without an ingest node, on one catalog: what they do when they were sent the same offsets, when their disk is full, and
//! when something under them panics. The sender here sends again whatever was not published, as a write-ahead log would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{TimestampMillisecondArray, TimestampNanosecondArray};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, PutResult, SchemaAsIpc};
use openwit_graphs::frontiers::Frontiers;
use openwit_graphs::storage;
use openwit_operators::batch::{Group, Signal};
use openwit_operators::catalog_commit::rebuild::rebuild_from_footers;
use openwit_operators::catalog_commit::sled_catalog::SledCatalog;
use openwit_operators::catalog_commit::{self, Binding, Catalog, Commit, Committed, Error, FileFilter, FileRow};
use openwit_operators::catalog_commit::{CompleteThrough, IndexBacklog, IndexWork, Standing, registrar};
use openwit_operators::clock::SystemClock;
use openwit_operators::coverage::{Coverage, PartitionKey, TopicKey};
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::Health;
use openwit_operators::flight::{Ack, PartHeader};
use openwit_operators::flight_source::{self, Server};
use openwit_operators::index_trigger;
use openwit_operators::object_upload::{self, ObjectStore, StoreUri, build_operator};
use openwit_operators::parquet_roll::{self, CoverageRow};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use ulid::Ulid;

use crate::support::disk::Disk;
use crate::support::{lake, wait};

const PATIENCE: Duration = Duration::from_secs(60);
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// One catalog of several nodes. `before_commit` runs on the node's catalog thread.
struct Shared {
    catalog: Arc<SledCatalog>,
    before_commit: Box<dyn Fn() + Send + Sync>,
}

impl Catalog for Shared {
    fn commit(&self, commit: &Commit) -> Result<Committed, Error> {
        (self.before_commit)();
        self.catalog.commit(commit)
    }
    fn standing(&self, commit_id: Ulid) -> Result<Standing, Error> {
        self.catalog.standing(commit_id)
    }
    fn abandon(&self, commit_id: Ulid, group: &Group, node: &str) -> Result<Standing, Error> {
        self.catalog.abandon(commit_id, group, node)
    }
    fn coverage(&self) -> Result<BTreeMap<PartitionKey, Vec<CoverageRow>>, Error> {
        self.catalog.coverage()
    }
    fn complete_through(&self) -> Result<BTreeMap<PartitionKey, CompleteThrough>, Error> {
        self.catalog.complete_through()
    }
    fn files(&self, filter: &FileFilter) -> Result<Vec<FileRow>, Error> {
        self.catalog.files(filter)
    }
    fn retire_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        self.catalog.retire_files(files)
    }
    fn retired_files(&self, limit: usize) -> Result<Vec<FileRow>, Error> {
        self.catalog.retired_files(limit)
    }
    fn remove_files(&self, files: &[Ulid]) -> Result<u64, Error> {
        self.catalog.remove_files(files)
    }
    fn restore_files(&self, files: &[FileRow]) -> Result<u64, Error> {
        self.catalog.restore_files(files)
    }
    fn locate_files(&self, store: &StoreUri) -> Result<u64, Error> {
        self.catalog.locate_files(store)
    }
    fn index_pending(&self, limit: usize) -> Result<Vec<IndexWork>, Error> {
        self.catalog.index_pending(limit)
    }
    fn index_backlog(&self) -> Result<IndexBacklog, Error> {
        self.catalog.index_backlog()
    }
    fn index_done(&self, file: Ulid) -> Result<bool, Error> {
        self.catalog.index_done(file)
    }
    fn bind_topic(&self, topic: &TopicKey, group: &Group) -> Result<Binding, Error> {
        self.catalog.bind_topic(topic, group)
    }
    fn rebind_topic(&self, topic: &TopicKey, group: &Group) -> Result<(), Error> {
        self.catalog.rebind_topic(topic, group)
    }
    fn topics(&self) -> Result<BTreeMap<TopicKey, Group>, Error> {
        self.catalog.topics()
    }
}

/// What the nodes of a test share.
struct Lake {
    folder: TempDir,
    catalog: Arc<SledCatalog>,
}

impl Lake {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let catalog = Arc::new(SledCatalog::open(&folder.path().join("catalog")).unwrap());
        Lake { folder, catalog }
    }

    fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    fn store(&self) -> opendal::Operator {
        build_operator(&ObjectStore::Fs { root: self.objects() }).unwrap()
    }

    /// The offsets of all rows in files that the catalog names, ascending.
    fn offsets(&self) -> Vec<i64> {
        let files = self.catalog.files(&FileFilter::default()).unwrap();
        let root = self.objects().canonicalize().unwrap();
        for file in &files {
            assert_eq!(file.uri, Some(format!("file://{}/{}", root.display(), file.path)));
        }
        let rows = lake::rows_of(files.iter().map(|file| self.objects().join(&file.path)));
        let mut offsets: Vec<i64> = rows.into_iter().map(|row| row.place.offset).collect();
        offsets.sort_unstable();
        offsets
    }
}

/// A running storage graph.
struct Node {
    address: SocketAddr,
    server: Arc<Server>,
    health: Health,
    stats: Arc<registrar::Stats>,
    worker: JoinHandle<()>,
    runtime: Runtime,
}

impl Node {
    fn start(lake: &Lake, roll: parquet_roll::Config, before_commit: impl Fn() + Send + Sync + 'static) -> Self {
        let runtime = Runtime::new().unwrap();
        let (health, stats) = (Health::default(), Arc::<registrar::Stats>::default());
        let server = Server::new(1, 1 << 20, health.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(server.serve(listener, MESSAGE_BYTES_MAX));
        let catalog = Arc::new(Shared { catalog: lake.catalog.clone(), before_commit: Box::new(before_commit) });
        let index = index_trigger::Config::default();
        let (registrar, _desk) =
            registrar::open(catalog, Some(StoreUri::of(&lake.store())), index, health.clone(), stats.clone()).unwrap();
        let (store, handle, clock) = (lake.store(), runtime.handle().clone(), Arc::new(SystemClock::default()));
        let ports = storage::Ports {
            source: flight_source::Ports { server: server.clone(), health: health.clone(), clock: clock.clone() },
            roll: parquet_roll::Ports { committed: Arc::default(), clock, health: health.clone(), refuse: server.clone() },
            upload: object_upload::Ports { runtime: handle.clone(), store: store.clone(), health: health.clone() },
            catalog: catalog_commit::Ports { registrar: registrar.clone(), runtime: handle, store, health: health.clone() },
            index: index_trigger::Ports { registrar },
            frontiers: Frontiers::default(),
        };
        let source = flight_source::Config { epoch_interval_ms: 5 };
        let config = storage::Config { source, roll, upload: object_upload::Config::default() };
        let working = health.clone();
        let worker = std::thread::spawn(move || work(config, ports, working));
        Node { address, server, health, stats, worker, runtime }
    }

    /// Ends the node, which must be well.
    fn stop(self) {
        self.server.close();
        self.worker.join().unwrap();
        self.runtime.block_on(self.server.finish(Duration::from_secs(1)));
        assert_eq!(self.health.fault(), None);
    }
}

fn work(config: storage::Config, ports: storage::Ports, health: Health) {
    timely::execute_directly(move |worker| {
        health.register_worker();
        worker.dataflow_named::<Epoch, _, _>("storage", |scope| storage::storage(scope, config, ports));
        while worker.has_dataflows() && !health.failed() {
            worker.step_or_park(None);
        }
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    });
}

/// Closes a commit with every delivery.
fn eager(lake: &Lake, name: &str) -> parquet_roll::Config {
    let config = parquet_roll::Config::new(lake.folder.path().join(name), name.into(), name.len() as u64);
    parquet_roll::Config { file_bytes_max: 1, ..config }
}

/// One Flight stream.
struct Sender {
    parts: tokio::sync::mpsc::Sender<FlightData>,
    answers: tonic::Streaming<PutResult>,
}

impl Sender {
    async fn open(address: SocketAddr) -> Self {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut client = FlightServiceClient::new(endpoint.connect().await.unwrap()).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (parts, receiver) = tokio::sync::mpsc::channel(64);
        let options = arrow::ipc::writer::IpcWriteOptions::default();
        parts.send(FlightData::from(SchemaAsIpc::new(&rows(0..1).schema(), &options))).await.unwrap();
        let answers = client.do_put(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Sender { parts, answers }
    }

    /// Sends one row for each offset, as one delivery. The stream may have ended: its answers tell.
    async fn send(&self, sequence: u64, offsets: Range<i64>) {
        let coverage = Some(vec![Coverage::stored(partition(), offsets.clone())]);
        let header = serde_json::to_vec(&PartHeader { sequence, group: group(), coverage }).unwrap();
        let options = arrow::ipc::writer::IpcWriteOptions::default();
        let mut dictionaries = arrow::ipc::writer::DictionaryTracker::new(false);
        let (generator, mut context) = (arrow::ipc::writer::IpcDataGenerator::default(), Default::default());
        let (_, data) = generator.encode(&rows(offsets), &mut dictionaries, &options, &mut context).unwrap();
        let _ = self.parts.send(FlightData::from(data).with_app_metadata(header)).await;
    }

    async fn answer(&mut self) -> Result<Ack, tonic::Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.next()).await.expect("an answer comes in time");
        let answer = answer.unwrap_or_else(|| Err(tonic::Status::unavailable("the stream ended")))?;
        Ok(serde_json::from_slice(&answer.app_metadata).unwrap())
    }

    /// Waits until all of `sequences` are received, or all are published.
    async fn wait_for(&mut self, ack: fn(Vec<u64>) -> Ack, sequences: impl IntoIterator<Item = u64>) {
        let mut left: Vec<u64> = sequences.into_iter().collect();
        while !left.is_empty() {
            let (Ack::Received(found) | Ack::Published(found)) = match self.answer().await.unwrap() {
                answer if std::mem::discriminant(&answer) == std::mem::discriminant(&ack(vec![])) => answer,
                _ => continue,
            };
            left.retain(|sequence| !found.contains(sequence));
        }
    }

    /// Waits for the end of the stream.
    async fn end(&mut self) -> tonic::Status {
        loop {
            if let Err(status) = self.answer().await {
                return status;
            }
        }
    }
}

fn group() -> Group {
    Group { index: "orders".into(), signal: Signal::Logs }
}

fn partition() -> PartitionKey {
    let topic = TopicKey { cluster: "c".into(), name: "orders".into(), id: "".into() };
    PartitionKey { topic: Arc::new(topic), partition: 0 }
}

/// One row for each offset, with a text of 300 bytes that does not compress.
fn rows(offsets: Range<i64>) -> RecordBatch {
    let time_ms = 1_767_225_600_000;
    let text = |offset: i64| {
        (0..19).map(move |word| format!("{:016x}", (offset * 19 + word + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64)))
    };
    let count = offsets.clone().count();
    let of = |array: ArrayRef| array;
    RecordBatch::try_from_iter([
        ("_topic", of(Arc::new(StringArray::from_iter_values(offsets.clone().map(|_| "orders"))))),
        ("_partition", of(Arc::new(Int32Array::from(vec![0; count])))),
        ("_offset", of(Arc::new(Int64Array::from_iter_values(offsets.clone())))),
        ("_ordinal", of(Arc::new(Int32Array::from(vec![0; count])))),
        ("_kafka_timestamp", of(Arc::new(TimestampMillisecondArray::from(vec![time_ms; count]).with_timezone("UTC")))),
        ("time", of(Arc::new(TimestampNanosecondArray::from(vec![time_ms * 1_000_000; count]).with_timezone("UTC")))),
        ("body", of(Arc::new(StringArray::from_iter_values(offsets.map(|offset| text(offset).collect::<String>()))))),
    ])
    .unwrap()
}

#[test]
fn two_storage_nodes_with_the_same_offsets_store_them_once_and_none_restarts() {
    let lake = Lake::new();
    let (open_gate, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let winner = Node::start(&lake, eager(&lake, "winner"), || ());
    // Its commits stand before the catalog until the other one was there.
    let loser = Node::start(&lake, eager(&lake, "loser"), move || {
        let _ = gate.lock().unwrap().recv();
    });
    let deliveries = [(0, 0..30), (1, 30..80), (2, 80..90)];
    loser.runtime.block_on(async {
        let mut late = Sender::open(loser.address).await;
        for (sequence, offsets) in deliveries.clone() {
            late.send(sequence, offsets).await;
        }
        late.wait_for(Ack::Received, 0..3).await;
        let mut early = Sender::open(winner.address).await;
        early.send(0, 0..50).await;
        early.wait_for(Ack::Published, [0]).await;
        drop(open_gate);
        let status = late.end().await;
        assert!(status.code() == tonic::Code::Unavailable && status.message().contains("another node"), "{status}");
        // The third overlaps nothing, but it may rest on the others.
        wait::until("all three to be refused", PATIENCE, || loser.stats.refused.load(Ordering::Relaxed) == 3);
        let mut again = Sender::open(loser.address).await;
        for (sequence, offsets) in deliveries {
            again.send(sequence, offsets).await;
        }
        again.wait_for(Ack::Published, 0..3).await;
    });
    assert_eq!(lake.offsets(), (0..90).collect::<Vec<_>>());
    let runs: Vec<_> = lake.catalog.coverage().unwrap()[&partition()].iter().map(|row| row.range.clone()).collect();
    assert_eq!(runs, [0..90]);
    // The object of the first is gone; those of the other two are for the janitor, who finds that nobody needs them.
    let named = lake.catalog.files(&FileFilter::default()).unwrap().len();
    wait::until("the object to be removed", PATIENCE, || lake::files(&lake.objects(), ".parquet").len() == named + 2);
    let found = rebuild_from_footers(&lake.store(), "", &*lake.catalog, loser.runtime.handle()).unwrap();
    assert_eq!((found.registered, found.superseded.len(), found.conflicting.len()), (0, 2, 0), "{found:?}");
    for node in ["winner", "loser"] {
        assert!(lake::files(&lake.folder.path().join(node), ".parquet").is_empty(), "{node} keeps files");
    }
    loser.stop();
    winner.stop();
}

#[test]
fn a_full_disk_under_storage_makes_senders_wait_and_loses_nothing() {
    let Some(disk) = Disk::mount(512 << 10) else { return };
    let lake = Lake::new();
    // Twice the disk before anything would close by itself, had it room.
    let config = parquet_roll::Config {
        file_bytes_max: 1 << 20,
        row_group_rows_max: 100,
        ..parquet_roll::Config::new(disk.path().join("local"), "node".into(), 1)
    };
    let node = Node::start(&lake, config, || ());
    let deliveries: Vec<(u64, Range<i64>)> = (0..12).map(|number| (number as u64, number * 300..(number + 1) * 300)).collect();
    let mut refusals = 0;
    node.runtime.block_on(async {
        let mut left = deliveries.clone();
        while !left.is_empty() {
            let mut sender = Sender::open(node.address).await;
            for (sequence, offsets) in left.clone() {
                sender.send(sequence, offsets).await;
            }
            let mut received = 0;
            while !left.is_empty() {
                match sender.answer().await {
                    Ok(Ack::Published(published)) => left.retain(|(sequence, _)| !published.contains(sequence)),
                    Ok(Ack::Received(some)) => received += some.len(),
                    Err(status) => {
                        assert!(status.message().contains("no room"), "{status}");
                        refusals += 1;
                        break;
                    }
                }
                if received >= left.len() {
                    node.server.flush();
                }
            }
        }
    });
    assert!(refusals > 0, "the disk was never full");
    assert_eq!(lake.offsets(), (0..3_600).collect::<Vec<_>>());
    node.stop();
}

#[test]
fn a_catalog_that_panics_ends_the_node_with_a_fault() {
    let lake = Lake::new();
    let node = Node::start(&lake, eager(&lake, "node"), || panic!("as staged"));
    node.runtime.block_on(async {
        let mut sender = Sender::open(node.address).await;
        sender.send(0, 0..10).await;
        sender.wait_for(Ack::Received, [0]).await;
    });
    wait::until("the fault", PATIENCE, || node.health.failed());
    let expected = "catalog_commit: the stage's thread panicked: as staged";
    assert_eq!(node.health.fault().map(|fault| fault.to_string()), Some(expected.into()));
    assert!(lake.offsets().is_empty());
    node.worker.join().unwrap();
}
