//! Hands encoded batches to a storage node over Arrow Flight.
//!
//! # In
//! `EncodedBatch`.
//!
//! # Out
//! Two streams without data, whose frontiers are the news: *received* (storage holds the rows, memory may be freed) and *published*
//! (they are in the object store and in the catalog, the write-ahead log may be released).
//!
//! # Holds
//! Per delivery a capability on each output, until its ack; the batch itself until it is received.
//!
//! # Closes when
//! The input is done and every delivery is published. When the input is done and all is received it asks storage to flush.
//!
//! # Fails when
//! Storage refuses a delivery as malformed. A connection that breaks is opened again, with backoff, and what was not received is
//! sent again. If storage forgets what it had received but not published, the fault is curable: a new start replays the log.
//!
//! # Invariants
//! - The received frontier passes an epoch only when all its deliveries are received, the published one only when published (I-4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightData, FlightDescriptor, PutResult, SchemaAsIpc};
use bytes::Bytes;
use futures::StreamExt;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;
use tokio::sync::mpsc as channel;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::arrow_encode::schema::schema_for;
use crate::batch::{EncodedBatch, Signal};
use crate::epoch::Epoch;
use crate::fault::Health;
use crate::flight::{Ack, CONNECTION_WINDOW_BYTES, FLUSH_ACTION, PartHeader, STREAM_WINDOW_BYTES, batch_bytes};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "flight_sink";

/// The longest wait between two attempts to reach a storage node.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Storage nodes, as `http://host:port`. A group always goes to the same one.
    pub endpoints: Vec<String>,
    /// Connections per endpoint and worker.
    pub clients: usize,
    /// Bytes sent and not yet received, per connection; more wait in the operator.
    pub window_bytes: usize,
    /// Largest gRPC message, in bytes.
    pub message_bytes_max: usize,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rows sent to storage; rows sent again after a restart count again.
    pub rows_sent: std::sync::atomic::AtomicU64,
    /// Rows published.
    pub rows_published: std::sync::atomic::AtomicU64,
    /// Deliveries received by storage and not published yet.
    pub unpublished: std::sync::atomic::AtomicU64,
    /// Attempts that failed and were repeated.
    pub retries: std::sync::atomic::AtomicU64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where connections live.
    pub runtime: tokio::runtime::Handle,
    /// Where faults go.
    pub health: Health,
    /// Counters.
    pub stats: Arc<Stats>,
}

/// The operator's output streams; both carry frontiers only.
pub struct Outputs<'s> {
    /// Its frontier passes what storage has received.
    pub received: Stream<'s, Epoch, Vec<()>>,
    /// Its frontier passes what storage has published.
    pub published: Stream<'s, Epoch, Vec<()>>,
}

/// Delivers batches to storage.
pub fn flight_sink<'s>(stream: Stream<'s, Epoch, Vec<EncodedBatch>>, config: Config, ports: Ports) -> Outputs<'s> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.worker().sync_activator_for(address.to_vec());
    let mut input = builder.new_input(stream, Pipeline);
    let (_received_output, received) = builder.new_output::<Vec<()>>();
    let (_published_output, published) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let mut sink = Sink::new(config, ports, activator);
        move |frontiers| {
            // 1. Take input, with a capability for each ack.
            input.for_each(|capability, batches| {
                let received = capability.retain_least(0).expect("every batch is sent under a capability");
                let published = capability.retain_least(1).expect("every batch is sent under a capability");
                for batch in batches.drain(..) {
                    sink.take(batch, received.clone(), published.clone());
                }
            });
            // 2. Let go of what storage has acknowledged.
            sink.take_reports();
            // 3. Send what the windows allow; at the end of the input ask storage to publish.
            sink.send();
            if frontiers[0].is_empty() {
                sink.flush_when_received();
            }
        }
    });
    Outputs { received, published }
}

type LaneKey = (usize, usize, Signal);

enum Report {
    Received(LaneKey, Vec<u64>),
    Published(LaneKey, Vec<u64>),
}

struct Pending {
    batch: EncodedBatch,
    received: Capability<Epoch>,
    published: Capability<Epoch>,
}

/// One stream to one endpoint for one signal, as the operator sees it.
struct Lane {
    outgoing: channel::UnboundedSender<(u64, EncodedBatch)>,
    waiting: VecDeque<Pending>,
    next_sequence: u64,
    unreceived: BTreeMap<u64, (usize, Capability<Epoch>)>,
    unreceived_bytes: usize,
    unpublished: BTreeMap<u64, (usize, Capability<Epoch>)>,
}

struct Sink {
    config: Config,
    ports: Ports,
    activator: SyncActivator,
    lanes: BTreeMap<LaneKey, Lane>,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
    is_flushed: bool,
}

impl Sink {
    fn new(config: Config, ports: Ports, activator: SyncActivator) -> Self {
        let (reporter, reports) = std::sync::mpsc::channel();
        Sink { config, ports, activator, lanes: BTreeMap::new(), reports, reporter, is_flushed: false }
    }

    fn take(&mut self, batch: EncodedBatch, received: Capability<Epoch>, published: Capability<Epoch>) {
        let hash = group_hash(&batch);
        let endpoint = rendezvous(hash, self.config.endpoints.len());
        let key = (endpoint, (hash % self.config.clients.max(1) as u64) as usize, batch.group.signal);
        if !self.lanes.contains_key(&key) {
            let lane = self.open(key);
            self.lanes.insert(key, lane);
        }
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.waiting.push_back(Pending { batch, received, published });
        }
    }

    fn open(&self, key: LaneKey) -> Lane {
        let (outgoing, incoming) = channel::unbounded_channel();
        let connection = Connection {
            key,
            endpoint: self.config.endpoints[key.0].clone(),
            message_bytes_max: self.config.message_bytes_max,
            ports: self.ports.clone(),
            reporter: self.reporter.clone(),
            activator: self.activator.clone(),
            unreceived: BTreeMap::new(),
            received: BTreeSet::new(),
        };
        self.ports.runtime.spawn(connection.run(incoming));
        Lane {
            outgoing,
            waiting: VecDeque::new(),
            next_sequence: 0,
            unreceived: BTreeMap::new(),
            unreceived_bytes: 0,
            unpublished: BTreeMap::new(),
        }
    }

    fn take_reports(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Received(key, sequences) => {
                    let Some(lane) = self.lanes.get_mut(&key) else { continue };
                    for (bytes, _capability) in sequences.iter().filter_map(|sequence| lane.unreceived.remove(sequence)) {
                        lane.unreceived_bytes -= bytes;
                    }
                }
                Report::Published(key, sequences) => {
                    let Some(lane) = self.lanes.get_mut(&key) else { continue };
                    for (rows, _capability) in sequences.iter().filter_map(|sequence| lane.unpublished.remove(sequence)) {
                        self.ports.stats.rows_published.fetch_add(rows as u64, Relaxed);
                        self.ports.stats.unpublished.fetch_sub(1, Relaxed);
                    }
                }
            }
        }
    }

    fn send(&mut self) {
        for lane in self.lanes.values_mut() {
            while lane.unreceived_bytes < self.config.window_bytes {
                let Some(pending) = lane.waiting.pop_front() else { break };
                let sequence = lane.next_sequence;
                lane.next_sequence += 1;
                let bytes = batch_bytes(&pending.batch.batches);
                lane.unreceived_bytes += bytes;
                lane.unreceived.insert(sequence, (bytes, pending.received));
                lane.unpublished.insert(sequence, (pending.batch.rows(), pending.published));
                self.ports.stats.unpublished.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.ports.stats.rows_sent.fetch_add(pending.batch.rows() as u64, std::sync::atomic::Ordering::Relaxed);
                // The connection's task ends only with the runtime, or after it raised a fault.
                let _ = lane.outgoing.send((sequence, pending.batch));
            }
        }
    }

    fn flush_when_received(&mut self) {
        let is_received = |lane: &Lane| lane.waiting.is_empty() && lane.unreceived.is_empty();
        if self.is_flushed || !self.lanes.values().all(is_received) {
            return;
        }
        self.is_flushed = true;
        let endpoints: BTreeSet<usize> = self.lanes.keys().map(|key| key.0).collect();
        for endpoint in endpoints {
            self.ports.runtime.spawn(flush(self.config.endpoints[endpoint].clone(), self.ports.clone()));
        }
    }
}

/// A topic belongs to one group, so hashing the group keeps a partition on one storage node.
fn group_hash(batch: &EncodedBatch) -> u64 {
    twox_hash::XxHash3_64::oneshot(batch.group.to_string().as_bytes())
}

/// Highest random weight: adding or removing an endpoint moves only the groups that must move.
fn rendezvous(hash: u64, endpoints: usize) -> usize {
    let weight = |endpoint: &usize| twox_hash::XxHash3_64::oneshot_with_seed(hash, &endpoint.to_le_bytes());
    (0..endpoints).max_by_key(weight).unwrap_or(0)
}

async fn connect(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(endpoint.to_owned())?
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
}

/// Asks storage to publish what is open; repeated until it answers or the process ends.
async fn flush(endpoint: String, ports: Ports) {
    let mut wait = BACKOFF_MIN;
    while !ports.health.failed() {
        let error = match connect(&endpoint).await {
            Ok(channel) => match FlightServiceClient::new(channel).do_action(Action::new(FLUSH_ACTION, Bytes::new())).await {
                Ok(_) => return,
                Err(status) => status.to_string(),
            },
            Err(error) => error.to_string(),
        };
        warn!(endpoint, error, "asking storage to flush failed, trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACKOFF_MAX);
    }
}

/// The task behind a lane: keeps one `DoPut` stream open and what storage has not received yet.
struct Connection {
    key: LaneKey,
    endpoint: String,
    message_bytes_max: usize,
    ports: Ports,
    reporter: Sender<Report>,
    activator: SyncActivator,
    unreceived: BTreeMap<u64, EncodedBatch>,
    received: BTreeSet<u64>,
}

/// Why a stream ended.
enum Broken {
    /// It can be opened again.
    Retry(String),
    /// Opening it again would fail again.
    Refused(String),
    /// The operator is gone.
    Done,
}

impl Connection {
    async fn run(mut self, mut incoming: channel::UnboundedReceiver<(u64, EncodedBatch)>) {
        let mut wait = BACKOFF_MIN;
        while !self.ports.health.failed() {
            let served_before = self.received.len() + self.unreceived.len();
            match self.serve(&mut incoming).await {
                Broken::Done => return,
                Broken::Refused(message) => {
                    self.ports.health.fail(NAME, format!("storage {} refused a delivery: {message}", self.endpoint));
                    return;
                }
                Broken::Retry(message) => {
                    if !self.received.is_empty() {
                        // Their rows are no longer in memory here, and nobody knows whether storage still has them.
                        let lost = self.received.len();
                        let message = format!(
                            "storage {}: the stream broke with {lost} deliveries received and not published: {message}",
                            self.endpoint
                        );
                        self.ports.health.fail_curable(NAME, message);
                        return;
                    }
                    self.ports.stats.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    warn!(endpoint = self.endpoint, unreceived = served_before, message, "flight send failed, trying again");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    /// Serves one stream until it breaks.
    async fn serve(&mut self, incoming: &mut channel::UnboundedReceiver<(u64, EncodedBatch)>) -> Broken {
        let channel = match connect(&self.endpoint).await {
            Ok(channel) => channel,
            Err(error) => return Broken::Retry(format!("connecting: {error}")),
        };
        let mut client = FlightServiceClient::new(channel)
            .max_encoding_message_size(self.message_bytes_max)
            .max_decoding_message_size(self.message_bytes_max);
        // Room for a few messages: the HTTP/2 window is the real bound.
        let (requests, receiver) = channel::channel::<FlightData>(4);
        let requests_stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut encoder = PartEncoder::new(self.key.2);
        let schema = encoder.schema_message();
        if requests.send(schema).await.is_err() {
            return Broken::Retry("the request stream closed".into());
        }
        let mut answers = match client.do_put(requests_stream).await {
            Ok(response) => response.into_inner(),
            Err(status) => return judge(&status),
        };
        info!(endpoint = self.endpoint, signal = %self.key.2, "flight stream open");
        let again: Vec<(u64, EncodedBatch)> =
            self.unreceived.iter().map(|(sequence, batch)| (*sequence, batch.clone())).collect();
        let mut outbox: VecDeque<FlightData> = VecDeque::new();
        for (sequence, batch) in &again {
            match encoder.parts(*sequence, batch) {
                Ok(parts) => outbox.extend(parts),
                Err(message) => return Broken::Refused(message),
            }
        }
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some(Ok(answer)) => if let Err(broken) = self.note(&answer) { return broken },
                    Some(Err(status)) => return judge(&status),
                    None => return Broken::Retry("storage closed the stream".into()),
                },
                permit = requests.reserve(), if !outbox.is_empty() => match (permit, outbox.pop_front()) {
                    (Ok(permit), Some(part)) => permit.send(part),
                    _ => return Broken::Retry("the request stream closed".into()),
                },
                next = incoming.recv(), if outbox.is_empty() => {
                    let Some((sequence, batch)) = next else { return Broken::Done };
                    match encoder.parts(sequence, &batch) {
                        Ok(parts) => outbox.extend(parts),
                        Err(message) => return Broken::Refused(message),
                    }
                    self.unreceived.insert(sequence, batch);
                }
            }
        }
    }

    fn note(&mut self, answer: &PutResult) -> Result<(), Broken> {
        let ack: Ack = serde_json::from_slice(&answer.app_metadata)
            .map_err(|error| Broken::Refused(format!("an answer that is no ack: {error}")))?;
        let report = match ack {
            Ack::Received(sequences) => {
                for sequence in &sequences {
                    if self.unreceived.remove(sequence).is_some() {
                        self.received.insert(*sequence);
                    }
                }
                Report::Received(self.key, sequences)
            }
            Ack::Published(sequences) => {
                for sequence in &sequences {
                    self.received.remove(sequence);
                }
                Report::Published(self.key, sequences)
            }
        };
        // The operator is gone only when the process ends.
        let _ = self.reporter.send(report);
        let _ = self.activator.activate();
        Ok(())
    }
}

fn judge(status: &tonic::Status) -> Broken {
    use tonic::Code::{InvalidArgument, OutOfRange, Unauthenticated, Unimplemented};
    match status.code() {
        InvalidArgument | OutOfRange | Unauthenticated | Unimplemented => Broken::Refused(status.to_string()),
        _ => Broken::Retry(status.to_string()),
    }
}

/// Turns deliveries into Flight messages of one schema.
struct PartEncoder {
    signal: Signal,
    options: arrow::ipc::writer::IpcWriteOptions,
    generator: arrow::ipc::writer::IpcDataGenerator,
    dictionaries: arrow::ipc::writer::DictionaryTracker,
    context: arrow::ipc::writer::IpcWriteContext,
}

impl PartEncoder {
    fn new(signal: Signal) -> Self {
        PartEncoder {
            signal,
            options: arrow::ipc::writer::IpcWriteOptions::default(),
            generator: arrow::ipc::writer::IpcDataGenerator::default(),
            dictionaries: arrow::ipc::writer::DictionaryTracker::new(false),
            context: arrow::ipc::writer::IpcWriteContext::default(),
        }
    }

    fn schema_message(&self) -> FlightData {
        let descriptor = FlightDescriptor::new_path(vec![self.signal.name().into()]);
        FlightData::from(SchemaAsIpc::new(&schema_for(self.signal), &self.options)).with_descriptor(descriptor)
    }

    /// The messages of one delivery; one without rows when there is nothing but coverage.
    fn parts(&mut self, sequence: u64, batch: &EncodedBatch) -> Result<Vec<FlightData>, String> {
        let empty = [RecordBatch::new_empty(schema_for(self.signal))];
        let batches = if batch.batches.is_empty() { &empty[..] } else { &batch.batches[..] };
        let mut parts = Vec::with_capacity(batches.len());
        for (position, part) in batches.iter().enumerate() {
            let coverage = (position + 1 == batches.len()).then(|| batch.coverage.clone());
            let header = PartHeader { sequence, group: batch.group.clone(), coverage };
            let header = serde_json::to_vec(&header).map_err(|error| format!("writing a part header: {error}"))?;
            let encoded = self.generator.encode(part, &mut self.dictionaries, &self.options, &mut self.context);
            let (dictionaries, data) = encoded.map_err(|error| format!("encoding a record batch: {error}"))?;
            parts.extend(dictionaries.into_iter().map(FlightData::from));
            parts.push(FlightData::from(data).with_app_metadata(header));
        }
        Ok(parts)
    }
}
