//! The task behind a lane: keeps one `DoPut` stream open, and everything that was given to it and is not published.
//!
//! When a stream breaks nobody knows what storage still has, so the next one begins with all of it: what is in memory is sent again,
//! what was let go after storage had received it is read from the log and encoded again, which gives the same rows. Storage drops the
//! offsets that it has. What comes new meanwhile takes turns with what is sent again. Where the log holds messages as they came, what was let
//! go can be made again by the whole graph only: once storage can be reached, the graphs are started again from the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor, PutResult, SchemaAsIpc};
use futures::StreamExt;
use timely::scheduling::SyncActivator;
use tokio::sync::mpsc as channel;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use super::{LaneKey, NAME, Ports, Report};
use crate::arrow_encode::schema::schema_for;
use crate::arrow_encode::{Encoder, Limits};
use crate::backoff::Backoff;
use crate::batch::{EncodedBatch, Group, Signal};
use crate::budget::Charge;
use crate::fault::chain;
use crate::flight::{Ack, CONNECTION_WINDOW_BYTES, PartHeader, STREAM_WINDOW_BYTES};
use crate::wal_commit::read::{Position, Reader};

/// First and longest wait between two attempts to reach a storage node.
const WAIT_MIN_MS: u64 = 50;
const WAIT_MAX_MS: u64 = 5_000;
/// Storage answers a new stream at once, before it takes anything from it. One that takes a connection and says nothing has stalled:
/// its kernel took the connection. Waiting for keep-alives would cost three times as much, at each attempt.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The waits between attempts to reach a storage node; those of different lanes differ.
pub(super) fn backoff(key: LaneKey) -> Backoff {
    let lane = (key.0 as u64) << 32 | (key.1 as u64) << 8 | key.2 as u64;
    Backoff::new(WAIT_MIN_MS, WAIT_MAX_MS, lane ^ u64::from(std::process::id()).rotate_left(40))
}

/// A delivery on its way: until storage has received it with its rows, then with the frames they can be made of again.
pub(super) struct Parcel {
    /// Its name on the stream, unique in the operator.
    pub(super) id: u64,
    pub(super) group: Group,
    /// The endpoint its rows belong to.
    pub(super) endpoint: usize,
    pub(super) frames: Vec<Position>,
    pub(super) payload: Option<Payload>,
}

/// Rows in memory, and their shares of the budget.
pub(super) struct Payload {
    pub(super) batch: EncodedBatch,
    pub(super) _charges: Vec<Charge>,
}

/// What makes rows of frames again.
#[derive(Clone)]
pub(super) struct Remaker {
    pub(super) reader: Reader,
    pub(super) limits: Limits,
}

impl Remaker {
    /// The rows of `frames`: those that were made of them the first time, since the encoder's output depends on its input alone.
    fn remake(&self, group: &Group, frames: &[Position]) -> Result<EncodedBatch, String> {
        let mut encoder: Option<Encoder> = None;
        for position in frames {
            let frame = self.reader.read(*position).map_err(|error| chain(&error))?;
            // All are of one dataset schema, as they were the first time.
            let encoder = encoder.get_or_insert_with(|| Encoder::new(self.limits.config(&frame.batch)));
            encoder.append(&frame.batch).map_err(|error| chain(&error))?;
        }
        let remade = encoder.and_then(|mut encoder| encoder.finish());
        remade.ok_or_else(|| format!("{} frames of {group} hold no rows and cover nothing", frames.len()))
    }
}

/// Why a stream ended.
enum Broken {
    /// It can be opened again.
    Retry(String),
    /// Opening it again would fail again.
    Refused(String),
    /// Rows that storage had received, and may not have any more, can only be made again by the whole graph.
    Lost(String),
    /// The operator is gone.
    Done,
}

pub(super) async fn connect(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(endpoint.to_owned())?
        .tcp_nodelay(true)
        .connect_timeout(OPEN_TIMEOUT)
        // A peer that stalls, or whose network is cut, while a stream is open is noticed within 15 seconds.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
}

/// The task's state.
pub(super) struct Connection {
    pub(super) key: LaneKey,
    pub(super) endpoint: String,
    pub(super) message_bytes_max: usize,
    pub(super) ports: Ports,
    pub(super) remaker: Arc<Remaker>,
    pub(super) reporter: Sender<Report>,
    pub(super) activator: SyncActivator,
    /// Given to this lane and not published, oldest first.
    pub(super) parcels: BTreeMap<u64, Parcel>,
}

/// What one stream has still to send.
struct Outgoing {
    /// Parcels of earlier streams.
    again: VecDeque<u64>,
    /// What the next turn is for.
    is_turn_of_again: bool,
    messages: VecDeque<FlightData>,
    encoder: PartEncoder,
}

impl Connection {
    pub(super) async fn run(mut self, mut incoming: channel::UnboundedReceiver<Parcel>) {
        let mut waits = backoff(self.key);
        while !self.ports.health.failed() {
            match self.serve(&mut incoming, &mut waits).await {
                Broken::Done => return,
                Broken::Refused(message) => {
                    self.ports.health.fail(NAME, format!("storage {} refused a delivery: {message}", self.endpoint));
                    return;
                }
                Broken::Lost(message) => {
                    self.ports.health.fail_curable(NAME, message);
                    return;
                }
                Broken::Retry(message) => {
                    self.ports.router.failed(self.key.0);
                    self.ports.stats.retries.fetch_add(1, Ordering::Relaxed);
                    let unpublished = self.parcels.len();
                    warn!(endpoint = self.endpoint, signal = %self.key.2, unpublished, message, "flight send failed, trying again");
                    self.report(Report::Broken(self.key));
                }
            }
            self.hand_back_if_replaced(&mut incoming);
            tokio::time::sleep(waits.next_wait()).await;
        }
    }

    /// Gives everything up to the endpoint that stands in. The task goes on trying: that is how its endpoint is found to be back.
    fn hand_back_if_replaced(&mut self, incoming: &mut channel::UnboundedReceiver<Parcel>) {
        if !self.ports.router.is_replaced(self.key.0) {
            return;
        }
        while let Ok(parcel) = incoming.try_recv() {
            self.parcels.insert(parcel.id, parcel);
        }
        let parcels: Vec<Parcel> = std::mem::take(&mut self.parcels).into_values().collect();
        self.report(Report::HandedBack(self.key, parcels));
    }

    /// Serves one stream until it breaks.
    async fn serve(&mut self, incoming: &mut channel::UnboundedReceiver<Parcel>, waits: &mut Backoff) -> Broken {
        let channel = match connect(&self.endpoint).await {
            Ok(channel) => channel,
            Err(error) => return Broken::Retry(format!("connecting: {}", chain(&error))),
        };
        let mut client = FlightServiceClient::new(channel)
            .max_encoding_message_size(self.message_bytes_max)
            .max_decoding_message_size(self.message_bytes_max);
        // Room for a few messages: the HTTP/2 window is the real bound.
        let (requests, receiver) = channel::channel::<FlightData>(4);
        let requests_stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut encoder = PartEncoder::new(self.key.2);
        if requests.send(encoder.schema_message(schema_for(self.key.2))).await.is_err() {
            return Broken::Retry("the request stream closed".into());
        }
        let mut answers = match tokio::time::timeout(OPEN_TIMEOUT, client.do_put(requests_stream)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return judge(&status),
            Err(_) => return Broken::Retry(format!("no answer to a new stream within {OPEN_TIMEOUT:?}")),
        };
        self.ports.router.connected(self.key.0);
        let again: VecDeque<u64> = self.parcels.keys().copied().collect();
        info!(endpoint = self.endpoint, signal = %self.key.2, again = again.len(), "flight stream open");
        let mut outgoing = Outgoing { again, is_turn_of_again: true, messages: VecDeque::new(), encoder };
        loop {
            if let Err(broken) = self.fill(&mut outgoing, incoming).await {
                return broken;
            }
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some(Ok(answer)) => match self.note(&answer) {
                        // Answers prove that the stream works.
                        Ok(()) => *waits = backoff(self.key),
                        Err(broken) => return broken,
                    },
                    Some(Err(status)) => return judge(&status),
                    None => return Broken::Retry("storage closed the stream".into()),
                },
                permit = requests.reserve(), if !outgoing.messages.is_empty() => match (permit, outgoing.messages.pop_front()) {
                    (Ok(permit), Some(part)) => permit.send(part),
                    _ => return Broken::Retry("the request stream closed".into()),
                },
                next = incoming.recv(), if outgoing.messages.is_empty() => {
                    let Some(parcel) = next else { return Broken::Done };
                    if let Err(broken) = self.pack(parcel.id, Some(parcel), &mut outgoing).await {
                        return broken;
                    }
                }
            }
        }
    }

    /// Makes the messages of the next parcel, if none are left and one is known: old and new ones take turns.
    async fn fill(&mut self, outgoing: &mut Outgoing, incoming: &mut channel::UnboundedReceiver<Parcel>) -> Result<(), Broken> {
        if !outgoing.messages.is_empty() || outgoing.again.is_empty() {
            return Ok(());
        }
        let fresh = if outgoing.is_turn_of_again { None } else { incoming.try_recv().ok() };
        outgoing.is_turn_of_again = fresh.is_some() || !outgoing.is_turn_of_again;
        if let Some(parcel) = fresh {
            return self.pack(parcel.id, Some(parcel), outgoing).await;
        }
        match outgoing.again.pop_front() {
            Some(id) => self.pack(id, None, outgoing).await,
            None => Ok(()),
        }
    }

    /// Turns a parcel into messages; one that comes new is kept until it is published.
    async fn pack(&mut self, id: u64, new: Option<Parcel>, outgoing: &mut Outgoing) -> Result<(), Broken> {
        let is_new = new.is_some();
        if let Some(parcel) = new {
            self.parcels.insert(id, parcel);
        }
        // Published meanwhile: by an ack of this very stream for what it rests on.
        let Some(parcel) = self.parcels.get(&id) else { return Ok(()) };
        if !is_new {
            self.ports.stats.resent.fetch_add(1, Ordering::Relaxed);
        }
        let parts = match &parcel.payload {
            Some(payload) => outgoing.encoder.parts(id, &payload.batch),
            None if parcel.frames.is_empty() => {
                let message = format!(
                    "the stream to storage {} broke when it had received and not published rows of {}, which are made again from the messages in the write-ahead log",
                    self.endpoint, parcel.group
                );
                return Err(Broken::Lost(message));
            }
            None => {
                let (remaker, group, frames) = (self.remaker.clone(), parcel.group.clone(), parcel.frames.clone());
                let remade = tokio::task::spawn_blocking(move || remaker.remake(&group, &frames)).await;
                let remade = remade.unwrap_or_else(|error| Err(error.to_string()));
                remade.and_then(|batch| outgoing.encoder.parts(id, &batch))
            }
        };
        match parts {
            Ok(parts) => {
                outgoing.messages.extend(parts);
                Ok(())
            }
            Err(message) => {
                let doing = format!("a delivery of {} cannot be made again from the write-ahead log: {message}", parcel.group);
                Err(Broken::Refused(doing))
            }
        }
    }

    fn note(&mut self, answer: &PutResult) -> Result<(), Broken> {
        let ack: Ack = serde_json::from_slice(&answer.app_metadata)
            .map_err(|error| Broken::Refused(format!("an answer that is no ack: {error}")))?;
        let report = match ack {
            Ack::Received(ids) => {
                for id in &ids {
                    if let Some(parcel) = self.parcels.get_mut(id) {
                        parcel.payload = None;
                    }
                }
                Report::Received(ids)
            }
            Ack::Published(ids) => {
                for id in &ids {
                    self.parcels.remove(id);
                }
                Report::Published(ids)
            }
        };
        self.report(report);
        Ok(())
    }

    fn report(&self, report: Report) {
        // The operator is gone only when the process ends.
        let _ = self.reporter.send(report);
        let _ = self.activator.activate();
    }
}

fn judge(status: &tonic::Status) -> Broken {
    use tonic::Code::{InvalidArgument, OutOfRange, Unauthenticated, Unimplemented};
    match status.code() {
        InvalidArgument | OutOfRange | Unauthenticated | Unimplemented => Broken::Refused(status.to_string()),
        _ => Broken::Retry(status.to_string()),
    }
}

/// Turns deliveries into Flight messages. A schema is said where it differs from the one before.
struct PartEncoder {
    signal: Signal,
    schema: SchemaRef,
    options: arrow::ipc::writer::IpcWriteOptions,
    generator: arrow::ipc::writer::IpcDataGenerator,
    dictionaries: arrow::ipc::writer::DictionaryTracker,
    context: arrow::ipc::writer::IpcWriteContext,
}

impl PartEncoder {
    fn new(signal: Signal) -> Self {
        PartEncoder {
            signal,
            schema: schema_for(signal),
            options: arrow::ipc::writer::IpcWriteOptions::default(),
            generator: arrow::ipc::writer::IpcDataGenerator::default(),
            dictionaries: arrow::ipc::writer::DictionaryTracker::new(false),
            context: arrow::ipc::writer::IpcWriteContext::default(),
        }
    }

    fn schema_message(&mut self, schema: SchemaRef) -> FlightData {
        let descriptor = FlightDescriptor::new_path(vec![self.signal.name().into()]);
        self.schema = schema;
        FlightData::from(SchemaAsIpc::new(&self.schema, &self.options)).with_descriptor(descriptor)
    }

    /// The messages of one delivery; one without rows when there is nothing but coverage.
    fn parts(&mut self, sequence: u64, batch: &EncodedBatch) -> Result<Vec<FlightData>, String> {
        let empty = [RecordBatch::new_empty(self.schema.clone())];
        let batches = if batch.batches.is_empty() { &empty[..] } else { &batch.batches[..] };
        let mut parts = Vec::with_capacity(batches.len() + 1);
        // Record batches of one dataset schema, of one delivery at least, share theirs: mostly the pointers are equal.
        let schema = batches[0].schema_ref();
        if !Arc::ptr_eq(schema, &self.schema) && **schema != *self.schema {
            parts.push(self.schema_message(schema.clone()));
        }
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
