//! Hands deliveries to storage nodes over Arrow Flight.
//!
//! # In
//! `Delivery`.
//!
//! # Out
//! A stream without data, whose frontier is the news: what it has passed is *published*, in the object store and in the catalog, and the
//! write-ahead log may be released.
//!
//! # Holds
//! Per delivery a capability until it is published; its rows, and its share of the memory budget, until storage has received them.
//! From then on only the positions of its frames; nothing where the log holds messages as they came.
//!
//! # Closes when
//! The input is done and every delivery is published. When the input is done and all is received it asks storage to flush.
//!
//! # Fails when
//! Storage refuses a delivery as malformed, or a frame can no longer be read. A connection that breaks is opened again, with backoff,
//! and everything that is not published is sent again, from memory or from the log; where the log holds messages as they came, what is
//! not in memory any more is a curable fault. An endpoint that stays away is replaced by another
//! one (see `router`).
//!
//! # Invariants
//! - The published frontier passes an epoch only when all its deliveries are published (I-4).
//! - A delivery's frames are not released before it is published: the log can always make its rows again, alone or with the graph.
//!
//! ```text
//! sink         one per worker: windows, capabilities
//!  +- connection   one task per (endpoint, client, signal): a stream, and what is not published
//!  +- router       one per process: which endpoint takes what
//! ```

mod connection;
mod router;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use arrow_flight::Action;
use arrow_flight::flight_service_client::FlightServiceClient;
use bytes::Bytes;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::SyncActivator;
use tokio::sync::mpsc as channel;
use tracing::warn;

use self::connection::{Connection, Parcel, Payload, Remaker, backoff, connect};
pub use self::router::{Failover, Router};
use crate::arrow_encode::Limits;
use crate::batch::{Delivery, Signal};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};
use crate::flight::{FLUSH_ACTION, batch_bytes};
use crate::wal_commit::read::Reader;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "flight_sink";

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Storage nodes, as `http://host:port`.
    pub endpoints: Vec<String>,
    /// Connections per endpoint and worker.
    pub clients: usize,
    /// Bytes sent and not yet received, per connection; more wait in the operator.
    pub window_bytes: usize,
    /// Largest gRPC message, in bytes.
    pub message_bytes_max: usize,
    /// When another endpoint stands in for one that is away.
    pub failover: Failover,
}

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Rows handed to a connection; those handed to another one at a failover count again.
    pub rows_sent: AtomicU64,
    /// Rows that storage has received at least once.
    pub rows_received: AtomicU64,
    /// Rows published.
    pub rows_published: AtomicU64,
    /// Deliveries handed to a connection and not published yet.
    pub unpublished: AtomicU64,
    /// Attempts that failed and were repeated.
    pub retries: AtomicU64,
    /// Deliveries sent again on a new stream.
    pub resent: AtomicU64,
    /// Deliveries handed to an endpoint that stands in for another one.
    pub rerouted: AtomicU64,
}

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Where connections live.
    pub runtime: tokio::runtime::Handle,
    /// Which endpoint takes what.
    pub router: Arc<Router>,
    /// Reads frames of deliveries that are sent again.
    pub reader: Reader,
    /// How rows are encoded, to make those of such deliveries again.
    pub limits: Limits,
    /// Where faults go.
    pub health: Health,
    /// Counters.
    pub stats: Arc<Stats>,
}

/// Delivers batches to storage. The frontier of the stream passes what is published.
pub fn flight_sink<'s>(stream: Stream<'s, Epoch, Vec<Delivery>>, config: Config, ports: Ports) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let address = builder.operator_info().address;
    let activator = scope.worker().sync_activator_for(address.to_vec());
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, published) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        let mut sink = Sink::new(config, ports, activator);
        move |frontiers| {
            // 1. Take input, with a capability until it is published.
            input.for_each(|capability, deliveries| {
                let capability = capability.retain_least(0).expect("every delivery is sent under a capability");
                deliveries.drain(..).for_each(|delivery| sink.take(delivery, capability.clone()));
            });
            // 2. Let go of what storage has acknowledged; take back what an endpoint that is away had.
            sink.take_reports();
            // 3. Send what the windows allow; at the end of the input ask storage to publish.
            sink.send();
            if frontiers[0].is_empty() {
                sink.flush_when_received();
            }
        }
    });
    published
}

/// Endpoint, client number, signal: one stream.
type LaneKey = (usize, usize, Signal);

/// What a connection's task tells the operator.
enum Report {
    /// Storage has the rows of these deliveries.
    Received(Vec<u64>),
    /// These deliveries are published.
    Published(Vec<u64>),
    /// The lane's stream broke: what was received on it is sent again.
    Broken(LaneKey),
    /// The lane's endpoint is away and another one there: these are its deliveries.
    HandedBack(LaneKey, Vec<Parcel>),
}

/// One stream to one endpoint for one signal, as the operator sees it.
struct Lane {
    outgoing: channel::UnboundedSender<Parcel>,
    waiting: VecDeque<Parcel>,
    unreceived_bytes: usize,
}

/// A delivery that is not published.
struct Entry {
    lane: LaneKey,
    _published: Capability<Epoch>,
    rows: u64,
    /// Counted in its lane's window.
    window_bytes: usize,
    is_received: bool,
    /// Counted in `Stats::unpublished`.
    is_sent: bool,
    /// Counted in `Stats::rows_received`.
    was_received: bool,
}

struct Sink {
    config: Config,
    ports: Ports,
    remaker: Arc<Remaker>,
    activator: SyncActivator,
    lanes: BTreeMap<LaneKey, Lane>,
    entries: BTreeMap<u64, Entry>,
    next_id: u64,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
    /// Endpoints that were asked to flush since something was last sent to them.
    flushed: BTreeSet<usize>,
}

impl Sink {
    fn new(config: Config, ports: Ports, activator: SyncActivator) -> Self {
        let (reporter, reports) = std::sync::mpsc::channel();
        Sink {
            remaker: Arc::new(Remaker { reader: ports.reader.clone(), limits: ports.limits }),
            config,
            ports,
            activator,
            lanes: BTreeMap::new(),
            entries: BTreeMap::new(),
            next_id: 0,
            reports,
            reporter,
            flushed: BTreeSet::new(),
        }
    }

    fn take(&mut self, delivery: Delivery, published: Capability<Epoch>) {
        let Delivery { batch, frames, endpoint, charges } = delivery;
        let id = self.next_id;
        self.next_id += 1;
        let (group, rows) = (batch.group.clone(), batch.rows() as u64);
        let parcel = Parcel { id, group, endpoint, frames, payload: Some(Payload { batch, _charges: charges }) };
        let lane = self.lane_of(&parcel);
        let entry =
            Entry { lane, _published: published, rows, window_bytes: 0, is_received: false, is_sent: false, was_received: false };
        self.entries.insert(id, entry);
        self.queue(lane, parcel);
    }

    /// The lane that takes a parcel now.
    fn lane_of(&self, parcel: &Parcel) -> LaneKey {
        let hash = twox_hash::XxHash3_64::oneshot(parcel.group.to_string().as_bytes());
        let client = (hash % self.config.clients.max(1) as u64) as usize;
        (self.ports.router.stand_in(parcel.endpoint), client, parcel.group.signal)
    }

    fn queue(&mut self, key: LaneKey, parcel: Parcel) {
        if !self.lanes.contains_key(&key) {
            let lane = self.open(key);
            self.lanes.insert(key, lane);
        }
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.waiting.push_back(parcel);
        }
    }

    fn open(&self, key: LaneKey) -> Lane {
        let (outgoing, incoming) = channel::unbounded_channel();
        let connection = Connection {
            key,
            endpoint: self.config.endpoints[key.0].clone(),
            message_bytes_max: self.config.message_bytes_max,
            ports: self.ports.clone(),
            remaker: self.remaker.clone(),
            reporter: self.reporter.clone(),
            activator: self.activator.clone(),
            parcels: BTreeMap::new(),
        };
        self.ports.runtime.spawn(self.ports.health.clone().watch(NAME, connection.run(incoming)));
        Lane { outgoing, waiting: VecDeque::new(), unreceived_bytes: 0 }
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Received(ids) => ids.iter().for_each(|id| self.note_received(*id)),
                Report::Published(ids) => {
                    for id in ids {
                        self.note_received(id);
                        // Its capability goes with it.
                        let Some(entry) = self.entries.remove(&id) else { continue };
                        self.ports.stats.rows_published.fetch_add(entry.rows, Ordering::Relaxed);
                        self.ports.stats.unpublished.fetch_sub(u64::from(entry.is_sent), Ordering::Relaxed);
                    }
                }
                Report::Broken(lane) => {
                    self.flushed.remove(&lane.0);
                    self.entries.values_mut().filter(|entry| entry.lane == lane).for_each(|entry| entry.is_received = false);
                }
                Report::HandedBack(lane, parcels) => self.reroute(lane, parcels),
            }
        }
    }

    fn note_received(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.is_received = true;
        if !std::mem::replace(&mut entry.was_received, true) {
            self.ports.stats.rows_received.fetch_add(entry.rows, Ordering::Relaxed);
        }
        let key = entry.lane;
        self.leave_window(key, id);
    }

    fn leave_window(&mut self, key: LaneKey, id: u64) {
        let bytes = self.entries.get_mut(&id).map_or(0, |entry| std::mem::take(&mut entry.window_bytes));
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.unreceived_bytes -= bytes;
        }
    }

    /// Moves everything from a lane whose endpoint is away to where it goes now.
    fn reroute(&mut self, from: LaneKey, mut parcels: Vec<Parcel>) {
        if let Some(lane) = self.lanes.get_mut(&from) {
            parcels.extend(lane.waiting.drain(..));
        }
        if !parcels.is_empty() {
            let (endpoint, deliveries) = (&self.config.endpoints[from.0], parcels.len());
            warn!(endpoint, deliveries, "deliveries go to another storage node");
        }
        self.ports.stats.rerouted.fetch_add(parcels.len() as u64, Ordering::Relaxed);
        for parcel in parcels {
            self.leave_window(from, parcel.id);
            let lane = self.lane_of(&parcel);
            self.flushed.remove(&lane.0);
            if let Some(entry) = self.entries.get_mut(&parcel.id) {
                (entry.lane, entry.is_received) = (lane, false);
            }
            self.queue(lane, parcel);
        }
    }

    fn send(&mut self) {
        for lane in self.lanes.values_mut() {
            while lane.unreceived_bytes < self.config.window_bytes {
                let Some(parcel) = lane.waiting.pop_front() else { break };
                let bytes = parcel.payload.as_ref().map_or(0, |payload| batch_bytes(&payload.batch.batches));
                lane.unreceived_bytes += bytes;
                if let Some(entry) = self.entries.get_mut(&parcel.id) {
                    entry.window_bytes = bytes;
                    self.ports.stats.unpublished.fetch_add(u64::from(!entry.is_sent), Ordering::Relaxed);
                    entry.is_sent = true;
                    self.ports.stats.rows_sent.fetch_add(entry.rows, Ordering::Relaxed);
                }
                // The connection's task ends only with the runtime, or after it raised a fault.
                let _ = lane.outgoing.send(parcel);
            }
        }
    }

    /// Asks storage to publish what is open, once everything is received; again after something was sent again.
    fn flush_when_received(&mut self) {
        if !self.entries.values().all(|entry| entry.is_received) {
            return;
        }
        let endpoints: BTreeSet<LaneKey> = self.entries.values().map(|entry| entry.lane).collect();
        for key in endpoints {
            if self.flushed.insert(key.0) {
                let flush = flush(key, self.config.endpoints[key.0].clone(), self.ports.clone());
                self.ports.runtime.spawn(self.ports.health.clone().watch(NAME, flush));
            }
        }
    }
}

/// Asks storage to publish what is open; repeated until it answers, the endpoint is replaced, or the process ends.
async fn flush(key: LaneKey, endpoint: String, ports: Ports) {
    let mut waits = backoff(key);
    while !ports.health.failed() && !ports.router.is_replaced(key.0) {
        let error = match connect(&endpoint).await {
            Ok(channel) => match FlightServiceClient::new(channel).do_action(Action::new(FLUSH_ACTION, Bytes::new())).await {
                Ok(_) => return,
                Err(status) => status.to_string(),
            },
            Err(error) => chain(&error),
        };
        warn!(endpoint, error, "asking storage to flush failed, trying again");
        tokio::time::sleep(waits.next_wait()).await;
    }
}
