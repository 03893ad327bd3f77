//! Receives deliveries over Arrow Flight and feeds them to the storage graph.
//!
//! # In
//! `DoPut` streams of any number of senders, served by tokio; the feedback edge of published deliveries.
//!
//! # Out
//! `Input`: a delivery, or the order to flush. All deliveries of a group go to the same worker.
//!
//! # Holds
//! One capability per worker, downgraded every tick; at most `queue_bytes_max` bytes of deliveries not yet taken by a worker. A worker
//! without room on its disk takes none for a while (`Refuse::hold`): the queue fills, and senders wait.
//!
//! # Closes when
//! Asked to close: no new delivery is taken, the capability is dropped, and open streams live until what they sent is published.
//!
//! # Fails when
//! The port cannot be bound. A sender that says nonsense gets an error and loses its stream, nothing else.
//!
//! # Invariants
//! - `Received` is said only after a worker has taken the delivery, `Published` only after its commit is in the catalog (I-4).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo,
    PutResult, SchemaResult, Ticket,
};
use futures::{StreamExt, TryStreamExt};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::scheduling::SyncActivator;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc as channel};
use tonic::{Request, Response, Status, Streaming};

use crate::batch::EncodedBatch;
use crate::clock::Clock;
use crate::epoch::Epoch;
use crate::fault::Health;
use crate::flight::{Ack, CONNECTION_WINDOW_BYTES, FLUSH_ACTION, PartHeader, STREAM_WINDOW_BYTES, batch_bytes};
use crate::parquet_roll::{DeliveryId, Received, Refuse};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "flight_source";

/// Bytes a worker takes over per scheduling.
const BYTES_PER_SCHEDULING: usize = 32 << 20;

/// What the source emits.
#[derive(Clone, Debug)]
pub enum Input {
    /// Rows of one group.
    Delivery(Received),
    /// Publish what is open.
    Flush,
}

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Length of an epoch in milliseconds.
    pub epoch_interval_ms: u64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The server that the deliveries come from.
    pub server: Arc<Server>,
    /// Where faults go.
    pub health: Health,
    /// The wall clock, for epochs.
    pub clock: Arc<dyn Clock>,
}

/// A delivery on its way from the server to a worker.
struct Queued {
    input: Input,
    bytes: usize,
    /// Given back when the worker has taken the delivery.
    _room: Option<OwnedSemaphorePermit>,
}

/// The Flight server's side that operators see: queues to workers and ways back to senders.
pub struct Server {
    queues: Vec<WorkerQueue>,
    room: Arc<Semaphore>,
    queue_bytes_max: usize,
    /// Where the acks of each open stream go.
    streams: Mutex<BTreeMap<u64, channel::UnboundedSender<Result<PutResult, Status>>>>,
    next_stream: AtomicU64,
    health: Health,
    closing: AtomicBool,
    /// Notified when the last acks are on their way and connections may end.
    finishing: tokio::sync::Notify,
    finished: tokio::sync::Notify,
}

struct WorkerQueue {
    sender: Sender<Queued>,
    /// Taken by the worker's operator.
    receiver: Mutex<Option<Receiver<Queued>>>,
    activator: Mutex<Option<SyncActivator>>,
    /// Nothing is taken before this time, in Unix milliseconds: the worker has no room for it.
    held_until_ms: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// A server that spreads groups over `workers` queues, holding at most `queue_bytes_max` bytes in them.
    pub fn new(workers: usize, queue_bytes_max: usize, health: Health) -> Arc<Server> {
        let queue = |_| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let receiver = Mutex::new(Some(receiver));
            WorkerQueue { sender, receiver, activator: Mutex::default(), held_until_ms: AtomicU64::new(0) }
        };
        Arc::new(Server {
            queues: (0..workers).map(queue).collect(),
            // Permits are KiB, as a semaphore counts in u32.
            room: Arc::new(Semaphore::new(queue_bytes_max.div_ceil(1024))),
            queue_bytes_max,
            streams: Mutex::default(),
            next_stream: AtomicU64::new(0),
            health,
            closing: AtomicBool::new(false),
            finishing: tokio::sync::Notify::new(),
            finished: tokio::sync::Notify::new(),
        })
    }

    /// Serves on `listener` until the runtime ends.
    pub fn serve(
        self: &Arc<Self>,
        listener: tokio::net::TcpListener,
        message_bytes_max: usize,
    ) -> impl Future<Output = ()> + Send + use<> {
        let service = FlightServiceServer::new(Service(self.clone()))
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(message_bytes_max);
        let server = self.clone();
        async move {
            let served = tonic::transport::Server::builder()
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .tcp_nodelay(true)
                .add_service(service)
                .serve_with_incoming_shutdown(
                    tokio_stream::wrappers::TcpListenerStream::new(listener),
                    server.finishing.notified(),
                )
                .await;
            server.finished.notify_one();
            if let Err(error) = served {
                server.health.fail(NAME, format!("serving Arrow Flight: {error}"));
            }
        }
    }

    /// Takes no further delivery and lets the operators end once they are drained.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.queues.iter().for_each(WorkerQueue::wake);
    }

    /// Ends all streams once their last acks are sent, and the server with them, within `wait`.
    pub async fn finish(&self, wait: Duration) {
        lock(&self.streams).clear();
        self.finishing.notify_one();
        if tokio::time::timeout(wait, self.finished.notified()).await.is_err() {
            tracing::debug!("some senders keep their connection open");
        }
    }

    /// Orders every worker to publish what is open.
    pub fn flush(&self) {
        for queue in &self.queues {
            queue.push(Queued { input: Input::Flush, bytes: 0, _room: None });
        }
    }

    fn worker_of(&self, batch: &EncodedBatch) -> usize {
        let hash = twox_hash::XxHash3_64::oneshot(batch.group.to_string().as_bytes());
        (hash % self.queues.len() as u64) as usize
    }

    async fn enqueue(&self, received: Received) -> Result<(), Status> {
        let bytes = batch_bytes(&received.batch.batches);
        // A delivery larger than all the room takes all of it.
        let permits = bytes.min(self.queue_bytes_max).div_ceil(1024).max(1) as u32;
        let room = self.room.clone().acquire_many_owned(permits).await;
        let room = room.map_err(|_| Status::unavailable("storage is closing"))?;
        if self.closing.load(Ordering::Acquire) {
            return Err(Status::unavailable("storage is closing"));
        }
        let queue = &self.queues[self.worker_of(&received.batch)];
        queue.push(Queued { input: Input::Delivery(received), bytes, _room: Some(room) });
        Ok(())
    }

    /// Tells senders what became of their deliveries; one that has gone away is not waited for.
    fn acknowledge(&self, deliveries: impl Iterator<Item = DeliveryId>, ack: fn(Vec<u64>) -> Ack) {
        let mut by_stream: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for delivery in deliveries {
            by_stream.entry(delivery.session).or_default().push(delivery.sequence);
        }
        let streams = lock(&self.streams);
        for (stream, sequences) in by_stream {
            let Some(sender) = streams.get(&stream) else { continue };
            let body = serde_json::to_vec(&ack(sequences)).expect("an ack is numbers only");
            // A sender that has gone away sends again what it needs acked.
            let _ = sender.send(Ok(PutResult { app_metadata: body.into() }));
        }
    }
}

impl Refuse for Server {
    fn refuse(&self, delivery: DeliveryId, message: &str, is_retriable: bool) {
        if let Some(answers) = lock(&self.streams).remove(&delivery.session) {
            let status = if is_retriable { Status::unavailable(message) } else { Status::invalid_argument(message) };
            // A sender that has gone away sends again what it needs acked.
            let _ = answers.send(Err(status));
        }
    }

    fn hold(&self, worker: usize, until_ms: u64) {
        self.queues[worker % self.queues.len()].held_until_ms.fetch_max(until_ms, Ordering::AcqRel);
    }
}

impl WorkerQueue {
    fn push(&self, queued: Queued) {
        // The operator is gone only when the process ends.
        let _ = self.sender.send(queued);
        self.wake();
    }

    fn wake(&self) {
        if let Some(activator) = &*lock(&self.activator) {
            let _ = activator.activate();
        }
    }
}

/// How often the epoch moves on where nothing comes, at the same moments for all workers: each tick wakes all of them, and nothing behind
/// waits for an epoch to pass.
const TICK: Duration = Duration::from_secs(1);

/// Emits what the Flight server receives; `published` carries deliveries whose commits are in the catalog.
pub fn flight_source<'s>(
    scope: Scope<'s, Epoch>,
    config: Config,
    ports: Ports,
    published: Stream<'s, Epoch, Vec<DeliveryId>>,
) -> Stream<'s, Epoch, Vec<Input>> {
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.activator_for(address.clone());
    let queue = scope.index() % ports.server.queues.len();
    *lock(&ports.server.queues[queue].activator) = Some(scope.worker().sync_activator_for(address.to_vec()));
    let receiver = lock(&ports.server.queues[queue].receiver).take();
    // The output comes first: the feedback input has no path to it.
    let (output, stream) = builder.new_output::<Vec<Input>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Input>>>::from(output);
    let mut published_input = builder.new_input_connection(published, Pipeline, []);

    builder.build_reschedule(move |mut capabilities| {
        let mut capability = capabilities.pop();
        let mut next_tick = Instant::now();
        let tick = TICK.max(Duration::from_millis(config.epoch_interval_ms));
        move |frontiers| {
            // 1. Tell senders what is published.
            published_input.for_each(|_, deliveries| ports.server.acknowledge(deliveries.drain(..), Ack::Published));

            // 2. Move the epoch on, then take what has been received.
            let Some(open) = &mut capability else { return !frontiers[0].is_empty() };
            let now_ms = ports.clock.now_ms();
            let held_ms = ports.server.queues[queue].held_until_ms.load(Ordering::Acquire).saturating_sub(now_ms);
            let is_held = held_ms > 0;
            let (taken, bytes) = receiver.as_ref().filter(|_| !is_held).map(take).unwrap_or_default();
            let (now, is_due) = (Epoch::of(now_ms, config.epoch_interval_ms), next_tick <= Instant::now());
            if (is_due || !taken.is_empty()) && now > *open.time() {
                open.downgrade(&now);
            }
            let more = bytes >= BYTES_PER_SCHEDULING;
            emit(taken, open, &mut output, &ports.server);

            // 3. End when asked to and drained.
            if ports.server.closing.load(Ordering::Acquire) && !more {
                capability = None;
                return true;
            }
            if more {
                activator.activate();
            }
            if is_due {
                let tick_ms = tick.as_millis() as u64;
                let until_tick_ms = tick_ms - now_ms % tick_ms;
                let wait = Duration::from_millis(if is_held { until_tick_ms.min(held_ms) } else { until_tick_ms });
                next_tick = Instant::now() + wait;
                activator.activate_after(wait);
            }
            true
        }
    });
    stream
}

fn take(receiver: &Receiver<Queued>) -> (Vec<Queued>, usize) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    while bytes < BYTES_PER_SCHEDULING {
        let Ok(queued) = receiver.try_recv() else { break };
        bytes += queued.bytes;
        taken.push(queued);
    }
    (taken, bytes)
}

fn emit(
    taken: Vec<Queued>,
    capability: &Capability<Epoch>,
    output: &mut OutputBuilder<Epoch, CapacityContainerBuilder<Vec<Input>>>,
    server: &Server,
) {
    if taken.is_empty() {
        return;
    }
    let mut received = Vec::new();
    let mut output = output.activate();
    let mut session = output.session(capability);
    for queued in taken {
        if let Input::Delivery(delivery) = &queued.input {
            received.push(delivery.id);
        }
        session.give(queued.input);
    }
    session.flush();
    server.acknowledge(received.into_iter(), Ack::Received);
}

/// The Flight service: `DoPut` and the flush action.
struct Service(Arc<Server>);

type Answers<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        if self.0.closing.load(Ordering::Acquire) {
            return Err(Status::unavailable("storage is closing"));
        }
        let stream = self.0.next_stream.fetch_add(1, Ordering::Relaxed);
        let (answers, receiver) = channel::unbounded_channel();
        let mut streams = lock(&self.0.streams);
        // Streams whose senders are gone.
        streams.retain(|_, answers| !answers.is_closed());
        streams.insert(stream, answers);
        drop(streams);
        let server = self.0.clone();
        let data = request.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let health = self.0.health.clone();
        let task = async move {
            let ended = receive(&server, stream, FlightDataDecoder::new(data)).await;
            // A sender that has only stopped sending still waits for acks: its entry goes when its stream does.
            if let Err(status) = ended
                && let Some(answers) = lock(&server.streams).remove(&stream)
            {
                let _ = answers.send(Err(status));
            }
        };
        tokio::spawn(health.watch(NAME, task));
        let answers = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        match request.into_inner().r#type.as_str() {
            FLUSH_ACTION => {
                self.0.flush();
                Ok(Response::new(Box::pin(futures::stream::empty())))
            }
            other => Err(Status::unimplemented(format!("action '{other}'; known: {FLUSH_ACTION}"))),
        }
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let flush = ActionType { r#type: FLUSH_ACTION.into(), description: "publish what is open".into() };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(flush)]))))
    }

    async fn handshake(&self, _request: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("handshake"))
    }
    async fn list_flights(&self, _request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented("list_flights"))
    }
    async fn get_flight_info(&self, _request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented("get_flight_info"))
    }
    async fn poll_flight_info(&self, _request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("poll_flight_info"))
    }
    async fn get_schema(&self, _request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented("get_schema"))
    }
    async fn do_get(&self, _request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        Err(Status::unimplemented("do_get"))
    }
    async fn do_exchange(&self, _request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("do_exchange"))
    }
}

/// Receives one stream: gathers the parts of each delivery and queues it when its last part, with the coverage, is there.
async fn receive(server: &Server, stream: u64, mut decoder: FlightDataDecoder) -> Result<(), Status> {
    let mut parts = Vec::new();
    while let Some(decoded) = decoder.next().await {
        let decoded = decoded.map_err(status_of)?;
        let DecodedPayload::RecordBatch(batch) = decoded.payload else { continue };
        let header: PartHeader = serde_json::from_slice(&decoded.inner.app_metadata)
            .map_err(|error| Status::invalid_argument(format!("app_metadata is no part header: {error}")))?;
        if batch.num_rows() > 0 {
            parts.push(batch);
        }
        let Some(coverage) = header.coverage else { continue };
        let id = DeliveryId { session: stream, sequence: header.sequence };
        let batch = EncodedBatch { group: header.group, batches: std::mem::take(&mut parts), coverage };
        server.enqueue(Received { id, batch }).await?;
    }
    Ok(())
}

fn status_of(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => Status::invalid_argument(other.to_string()),
    }
}
