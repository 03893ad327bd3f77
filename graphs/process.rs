//! One process: opens what outlives a dataflow, runs the graphs on its workers, restarts them after a curable fault, and closes.
//!
//! ```text
//! open catalog > open log, recover > bind Flight port > build graphs on all workers > step until done or failed > close
//!      ^                                                                                          |
//!      +------------------------------ curable fault: wait, start again ---------------------------+
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openwit_operators::catalog_commit::registrar::{self, Registrar};
use openwit_operators::catalog_commit::{self, Catalog, covered};
use openwit_operators::clock::{Clock, SystemClock};
use openwit_operators::dead_letter;
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::{Fault, Health, chain};
use openwit_operators::flight_source::{self, Server};
use openwit_operators::frame_source;
use openwit_operators::kafka_source::{self, consumer};
use openwit_operators::object_upload::{self, ObjectStore, StoreUri};
use openwit_operators::place::Place;
use openwit_operators::wal_commit::replay as wal_replay;
use openwit_operators::wal_commit::{self, Writer};
use openwit_operators::{dedup_window, flight_sink, index_trigger, normalize, parquet_roll};
use timely::worker::Worker;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::catalog::{self, Files};
use crate::cluster::{self, joining, links::Links, watched::Watched};
use crate::dataflow::{self, Resources, Settings};
use crate::frontiers::{Frontiers, StageFrontier};
use crate::held::{Held, StageStats};
use crate::opening::{Committed, Context, open_graph};
use crate::recovery::Durable;
use crate::reload::{QuotaReload, Reloader, TokenReload};
use crate::wiring::Wiring;
use crate::workers::{self, Connections};
use crate::{janitor, storage};

/// Stage name of faults that no operator raised.
const STAGE: &str = "process";

/// Waits between a curable fault and the next start.
const RESTART_WAIT_MIN: Duration = Duration::from_millis(200);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(10);
/// A run this long was a good one: the next fault is a new story.
const HEALTHY: Duration = Duration::from_secs(60);

/// How long storage's last acks may take to reach their senders.
const LAST_ACKS_WAIT: Duration = Duration::from_secs(5);

/// What a process runs.
#[derive(Clone)]
pub struct Plan {
    /// Timely workers: threads that run every graph.
    pub workers: usize,
    /// The cluster whose dataflow the graph from a source on is a part of.
    pub cluster: Option<cluster::Config>,
    /// Where commits are registered; `None` where the graph knows of no catalog.
    pub catalog: Option<catalog::Location>,
    /// Largest gRPC message.
    pub message_bytes_max: usize,
    /// The graph from a source on.
    pub graph: Option<GraphPlan>,
    /// Store what comes by Flight.
    pub storage: Option<StoragePlan>,
}

/// A graph from its source on, and what its operators lean on. Where the graph has no such operator its settings change nothing.
#[derive(Clone)]
pub struct GraphPlan {
    /// The stages.
    pub wiring: Arc<Wiring>,
    /// Their settings.
    pub settings: Settings,
    /// Bytes in flight between the source and the sinks.
    pub in_flight_bytes_max: usize,
    /// Messages in flight between the source and the sinks.
    pub in_flight_messages_max: usize,
    /// Resident memory of the process near which less is read.
    pub memory_bytes_max: u64,
    /// The write-ahead log.
    pub wal: wal_commit::Config,
    /// Where rejects go.
    pub dead_letter: dead_letter::Config,
    /// The tokens of `settings.normalize.auth`, kept up to date.
    pub tokens: Option<TokenReload>,
    /// What tenants and topics may send, kept up to date.
    pub quotas: Option<QuotaReload>,
}

/// The storage side of a plan.
#[derive(Clone)]
pub struct StoragePlan {
    /// The graph's settings.
    pub graph: storage::Config,
    /// The Flight port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where files are kept.
    pub store: ObjectStore,
    /// Bytes received and not yet taken by a worker.
    pub queue_bytes_max: usize,
    /// How index work is announced.
    pub index: index_trigger::Config,
    /// How often the janitor makes a pass, and what it tidies; `None` for none.
    pub janitor: Option<(Duration, catalog_commit::janitor::Config)>,
}

/// Counters of a process, kept over restarts of its graphs.
#[derive(Clone, Default)]
pub struct Counters {
    /// Of the source.
    pub source: Arc<consumer::Stats>,
    /// Positions of the source.
    pub positions: Arc<kafka_source::Status>,
    /// Of `normalize`.
    pub normalize: Arc<normalize::Stats>,
    /// Of `dedup_window`.
    pub dedup: Arc<dedup_window::Stats>,
    /// Of the dead letter.
    pub dead_letter: Arc<dead_letter::Stats>,
    /// Of the log that is read in the place of Kafka.
    pub frames: Arc<frame_source::Stats>,
    /// Of what is in the log alone.
    pub backlog: Arc<wal_replay::Stats>,
    /// Of `flight_sink`.
    pub sink: Arc<flight_sink::Stats>,
    /// Of the catalog.
    pub catalog: Arc<registrar::Stats>,
    /// Of stages that a graph can have several of.
    pub stages: Arc<StageStats>,
}

/// The handle by which a process is stopped and watched.
#[derive(Clone, Default)]
pub struct Control {
    /// Counters.
    pub counters: Counters,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    /// Health and Flight server of the graphs that run now.
    running: Mutex<Option<(Health, Option<Arc<Server>>)>>,
    /// How far their stages are.
    frontiers: Mutex<Frontiers>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Closes the sources; the graphs drain, commit, publish and end.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        if let Some((health, _)) = &*lock(&self.shared.running) {
            health.stop();
        }
    }

    /// True once `stop` was called.
    pub fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// A handle for another run with counters of its own: whoever stops one of the two stops both.
    pub fn next(&self) -> Control {
        Control { counters: Counters::default(), shared: self.shared.clone() }
    }

    /// The fault of the graphs that run now, if they have failed.
    pub fn fault(&self) -> Option<Fault> {
        lock(&self.shared.running).as_ref().and_then(|(health, _)| health.fault())
    }

    /// How far each stage is, and what of each partition. Cheap: it holds nobody up, and may be asked at any time.
    pub fn frontiers(&self) -> Vec<StageFrontier> {
        self.marks().read(&self.counters.positions, &self.counters.catalog.published())
    }

    /// What the process is at.
    pub fn state(&self) -> State {
        let running = lock(&self.shared.running);
        match (&*running, self.is_stopping()) {
            (_, true) => State::Draining,
            (None, false) => State::Starting,
            (Some((health, _)), false) if health.failed() => State::Restarting,
            (Some(_), false) => State::Running,
        }
    }

    /// A start: what an earlier one had read is read again from where it was committed.
    fn begin(&self, plan: &Plan) {
        self.counters.positions.begin();
        let wiring = plan.graph.as_ref().map(|graph| &*graph.wiring);
        *lock(&self.shared.frontiers) = Frontiers::new(wiring, plan.storage.is_some());
    }

    fn marks(&self) -> Frontiers {
        lock(&self.shared.frontiers).clone()
    }

    fn enter(&self, health: &Health, server: Option<Arc<Server>>) {
        *lock(&self.shared.running) = Some((health.clone(), server));
        if self.is_stopping() {
            health.stop();
        }
    }
}

/// What a process is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Catalog, log and ports are being opened.
    Starting,
    /// The graphs run.
    Running,
    /// A curable fault has ended them: they are started again.
    Restarting,
    /// The sources are closed: what was read is drained, committed and published.
    Draining,
}

impl State {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Restarting => "restarting",
            State::Draining => "draining",
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Times the graphs were started again after a curable fault.
    pub restarts: usize,
}

/// Runs the plan until its sources are done or `control` stops them.
pub fn run(plan: &Plan, control: &Control) -> Result<Outcome, Fault> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let mut wait = RESTART_WAIT_MIN;
    let mut outcome = Outcome::default();
    let _reloaders = start_reloaders(plan, &clock).map_err(|error| fault(format!("starting to watch files: {error}")))?;
    loop {
        let started = Instant::now();
        let ended = run_once(plan, control, &clock);
        if started.elapsed() > HEALTHY {
            wait = RESTART_WAIT_MIN;
        }
        match ended {
            Ok(()) => return Ok(outcome),
            // The others of a cluster cannot take a new graph in: whoever started the processes starts all of them again.
            Err(fault) if fault.is_curable && !control.is_stopping() && plan.cluster.is_none() => {
                warn!(%fault, "starting the graphs again from the write-ahead log");
                outcome.restarts += 1;
                std::thread::sleep(wait);
                wait = (wait * 2).min(RESTART_WAIT_MAX);
            }
            Err(fault) => return Err(fault),
        }
    }
}

fn start_reloaders(plan: &Plan, clock: &Arc<dyn Clock>) -> std::io::Result<Vec<Reloader>> {
    let Some(graph) = &plan.graph else { return Ok(Vec::new()) };
    let tokens = graph.tokens.clone().map(|tokens| Reloader::start(tokens, clock.clone()));
    let quotas = graph.quotas.clone().map(|quotas| Reloader::start(quotas, clock.clone()));
    tokens.into_iter().chain(quotas).collect()
}

/// A fault of the process itself.
pub(crate) fn fault(message: impl std::fmt::Display) -> Fault {
    Fault { stage: STAGE, message: message.to_string(), is_curable: false }
}

fn run_once(plan: &Plan, control: &Control, clock: &Arc<dyn Clock>) -> Result<(), Fault> {
    let health = Health::default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("io")
        .enable_all()
        .build()
        .map_err(|error| fault(format!("starting the I/O runtime: {error}")))?;
    control.begin(plan);
    let opened = open(plan, control, &health, clock, runtime.handle())?;
    control.enter(&health, opened.server.clone());
    let ended = execute(plan, control, &opened, &health, &**clock);
    let result = match (health.fault(), ended) {
        (Some(fault), _) => Err(fault),
        (None, Err(message)) => Err(fault(message)),
        (None, Ok(())) => Ok(()),
    };
    close(opened, &runtime);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// What the graphs of one start lean on.
#[derive(Clone)]
struct Opened {
    graph: Option<(Arc<Wiring>, Settings, Resources)>,
    storage: Option<(storage::Config, storage::Ports)>,
    /// What is durable at the start, of a graph from a source on.
    durable: Option<Arc<Durable>>,
    server: Option<Arc<Server>>,
    writer: Option<Writer>,
    /// Ends the janitor.
    janitor: Option<Arc<watch::Sender<bool>>>,
    desks: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
    /// Workers whose graph from a source on is still running.
    reading: Arc<AtomicUsize>,
}

fn open(
    plan: &Plan,
    control: &Control,
    health: &Health,
    clock: &Arc<dyn Clock>,
    runtime: &tokio::runtime::Handle,
) -> Result<Opened, Fault> {
    let counters = &control.counters;
    let build = |storage: &StoragePlan| object_upload::build_patient_operator(&storage.store, storage.graph.upload.timeout);
    let store = plan.storage.as_ref().map(build).transpose();
    let store = store.map_err(|error| fault(format!("opening the object store: {}", chain(&error))))?;
    let prefix = plan.storage.as_ref().map_or("", |storage| &storage.graph.roll.prefix);
    let files = store.as_ref().map(|store| Files { store, prefix });
    let mut desks = Vec::new();
    let catalog = match &plan.catalog {
        Some(location) => {
            let (opened, thread) = open_catalog(location, plan, files.as_ref(), control, health, runtime)?;
            desks.push(thread);
            Some(opened)
        }
        None => None,
    };
    let mut janitor = None;
    if let (Some((interval, config)), Some(store), Some((catalog, ..))) =
        (plan.storage.as_ref().and_then(|storage| storage.janitor.clone()), &store, &catalog)
    {
        let tools =
            janitor::Tools { store: store.clone(), catalog: catalog.clone(), runtime: runtime.clone(), clock: clock.clone() };
        let (stop, thread) = janitor::start(tools, config, interval, health.clone())
            .map_err(|error| fault(format!("starting the janitor: {error}")))?;
        janitor = Some(Arc::new(stop));
        desks.push(thread);
    }
    let (server, storage) = match (&plan.storage, store, &catalog) {
        (Some(storage), Some(store), Some((_, committed, registrar))) => {
            let local = &storage.graph.roll.directory;
            parquet_roll::discard_surplus(local, plan.workers)
                .map_err(|error| fault(format!("cleaning {}: {error}", local.display())))?;
            let (server, address) = bind(storage, plan, health, runtime)?;
            let config = storage.graph.clone();
            let ports = storage::Ports {
                source: flight_source::Ports { server: server.clone(), health: health.clone(), clock: clock.clone() },
                roll: parquet_roll::Ports {
                    committed: committed.clone(),
                    clock: clock.clone(),
                    health: health.clone(),
                    refuse: server.clone(),
                },
                upload: object_upload::Ports { runtime: runtime.clone(), store: store.clone(), health: health.clone() },
                catalog: catalog_commit::Ports {
                    registrar: registrar.clone(),
                    runtime: runtime.clone(),
                    store,
                    health: health.clone(),
                },
                index: index_trigger::Ports { registrar: registrar.clone() },
                frontiers: control.marks(),
            };
            (Some((server, address)), Some((config, ports)))
        }
        _ => (None, None),
    };
    let own_endpoint = server.as_ref().map(|(_, address)| format!("http://{address}"));
    let catalog = catalog.map(|(_, committed, registrar)| (committed, registrar));
    let context = Context { place: place(plan), counters, health, clock, runtime, catalog };
    let (mut writer, mut graph, mut durable) = (None, None, None);
    if let Some(plan) = &plan.graph {
        let opened = open_graph(plan, own_endpoint, control.marks(), &context)?;
        writer = opened.writer;
        durable = Some(opened.durable);
        desks.extend(opened.desks);
        graph = Some((plan.wiring.clone(), opened.settings, opened.resources));
    }
    let reading = Arc::new(AtomicUsize::new(if graph.is_some() { plan.workers } else { 0 }));
    let server = server.map(|(server, _)| server);
    Ok(Opened { graph, storage, durable, server, writer, janitor, desks: Arc::new(Mutex::new(desks)), reading })
}

type OpenedCatalog = (Arc<dyn Catalog>, Committed, Registrar);

fn open_catalog(
    location: &catalog::Location,
    plan: &Plan,
    files: Option<&Files<'_>>,
    control: &Control,
    health: &Health,
    runtime: &tokio::runtime::Handle,
) -> Result<(OpenedCatalog, std::thread::JoinHandle<()>), Fault> {
    let is_stopping = || control.is_stopping();
    let catalog = catalog::open_for_writing(location, files, runtime, &is_stopping)
        .map_err(|error| fault(format!("opening the catalog: {error}")))?;
    let catalog: Arc<dyn Catalog> = catalog.into();
    let coverage = catalog::reach(&is_stopping, || catalog.coverage());
    let coverage = coverage.map_err(|error| fault(format!("reading the catalog: {}", chain(&error))))?;
    let index = plan.storage.as_ref().map(|storage| storage.index).unwrap_or_default();
    let store = files.map(|files| StoreUri::of(files.store));
    let (registrar, thread) = registrar::open(catalog.clone(), store, index, health.clone(), control.counters.catalog.clone())
        .map_err(|error| fault(format!("starting the catalog: {error}")))?;
    Ok(((catalog, Arc::new(covered(&coverage)), registrar), thread))
}

fn bind(
    storage: &StoragePlan,
    plan: &Plan,
    health: &Health,
    runtime: &tokio::runtime::Handle,
) -> Result<(Arc<Server>, SocketAddr), Fault> {
    let server = Server::new(plan.workers, storage.queue_bytes_max, health.clone());
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(storage.listen))
        .map_err(|error| fault(format!("binding the Arrow Flight port {}: {error}", storage.listen)))?;
    let address = listener.local_addr().map_err(|error| fault(format!("asking for the Arrow Flight port: {error}")))?;
    info!(%address, "Arrow Flight is served");
    runtime.spawn(health.clone().watch(flight_source::NAME, server.serve(listener, plan.message_bytes_max)));
    Ok((server, address))
}

/// One of the two graphs of a process. Each has workers of its own: what storage encodes and compresses for a tenth of a second at a
/// time must not keep messages from being acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The graph from a source on.
    Source,
    Storage,
}

/// Runs the graphs on all workers until they are done or one has failed.
fn execute(plan: &Plan, control: &Control, opened: &Opened, health: &Health, clock: &dyn Clock) -> Result<(), String> {
    let start = |side: Side, cluster: Option<Connections>| {
        let (opened, on_workers) = (opened.clone(), health.clone());
        workers::start(plan.workers, cluster, STAGE, health, move |worker| work(worker, side, &opened, &on_workers))
    };
    let storage = opened.storage.is_some().then(|| start(Side::Storage, None));
    let mut links = None;
    let source = match (&plan.graph, &plan.cluster) {
        (None, _) => None,
        (Some(_), None) => Some(start(Side::Source, None)),
        (Some(graph), Some(cluster)) => match join_cluster(plan, (graph, cluster), control, opened, health, clock) {
            Ok(Some((connections, joined))) => {
                links = Some(joined);
                Some(start(Side::Source, Some(connections)))
            }
            // It was stopped before the others were there: nothing was read.
            Ok(None) => {
                close_storage(opened);
                None
            }
            Err(error) => {
                health.fail(cluster::NAME, &error);
                Some(Err(error))
            }
        },
    };
    let ended: Vec<_> = source.into_iter().chain(storage).map(|guards| guards.and_then(workers::join)).collect();
    links.into_iter().for_each(Links::end);
    ended.into_iter().collect()
}

/// Finds the other processes of the cluster; `None` if this one is stopped before all are there.
fn join_cluster(
    plan: &Plan,
    (graph, cluster): (&GraphPlan, &cluster::Config),
    control: &Control,
    opened: &Opened,
    health: &Health,
    clock: &dyn Clock,
) -> Result<Option<(Connections, Links)>, String> {
    let logged = opened.durable.as_ref().map(|durable| durable.logged()).unwrap_or_default();
    let own = joining::Own { facts: alike(plan, graph, cluster), logged };
    let joined = joining::join(cluster, own, clock, || health.stopping() || health.failed());
    let Some(joined) = joined.map_err(|error| chain(&error))? else { return Ok(None) };
    if let Some(durable) = &opened.durable {
        joined.logged.into_iter().flatten().for_each(|logged| durable.join(logged));
    }
    let failed = |error: std::io::Error| format!("preparing the connections of the cluster: {error}");
    let watched = |(number, stream): (usize, Option<_>)| {
        stream.map(|stream| Watched::new(stream, cluster.peer(number), health.clone())).transpose()
    };
    let connections: Result<Connections, _> = joined.data.into_iter().enumerate().map(watched).collect();
    let stopped = control.clone();
    let links = Links::start(cluster, joined.control, health, move || stopped.stop()).map_err(failed)?;
    Ok(Some((connections.map_err(failed)?, links)))
}

/// What must be alike in all processes of a cluster.
fn alike(plan: &Plan, graph: &GraphPlan, cluster: &cluster::Config) -> BTreeMap<String, String> {
    let stages = graph.wiring.stages.iter().map(|placed| placed.stage.name.as_str()).collect::<Vec<_>>().join(", ");
    let settings = &graph.settings;
    let mut facts = BTreeMap::from([
        ("the program's version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("the list of addresses".to_owned(), cluster.addresses().join(", ")),
        ("the number of workers".to_owned(), plan.workers.to_string()),
        ("the graph".to_owned(), stages),
        ("epoch_interval_ms".to_owned(), settings.epoch_interval_ms.to_string()),
        ("the dedup window in ms".to_owned(), settings.dedup.window_ms.to_string()),
    ]);
    let group = settings.source.as_ref().and_then(|source| source.consumer.client.get("group.id"));
    facts.extend(group.map(|group| ("group_id".to_owned(), group.clone())));
    facts
}

/// Where the process is: its first worker.
fn place(plan: &Plan) -> Place {
    let (process, processes) = plan.cluster.as_ref().map_or((0, 1), |cluster| (cluster.process(), cluster.processes()));
    Place { process, worker: 0, workers: plan.workers, peers: processes * plan.workers }
}

/// Builds a side's graph on one worker and steps it.
fn work(worker: &mut Worker, side: Side, opened: &Opened, health: &Health) {
    match side {
        Side::Storage => {
            if let Some((config, ports)) = opened.storage.clone() {
                worker.dataflow_named::<Epoch, _, _>("storage", |scope| storage::storage(scope, config, ports));
            }
        }
        Side::Source => {
            if let Some((wiring, settings, resources)) = &opened.graph {
                worker.dataflow_named::<Epoch, _, _>("graph", |scope| dataflow::build(scope, wiring, settings, resources));
            }
        }
    }
    let is_storage_only = opened.graph.is_none();
    while worker.has_dataflows() && !health.failed() {
        worker.step_or_park(None);
        if is_storage_only && health.stopping() {
            close_storage(opened);
        }
    }
    if side == Side::Source && opened.reading.fetch_sub(1, Ordering::AcqRel) == 1 {
        close_storage(opened);
    }
}

fn close_storage(opened: &Opened) {
    if let Some(server) = &opened.server {
        server.close();
    }
}

fn close(opened: Opened, runtime: &tokio::runtime::Runtime) {
    let Opened { graph, storage, durable, server, writer, janitor, desks, .. } = opened;
    if let Some(stop) = janitor {
        stop.send_replace(true);
    }
    if let Some(server) = server {
        runtime.block_on(async { server.finish(LAST_ACKS_WAIT).await });
    }
    let held: Vec<Held> = graph.iter().flat_map(|(.., resources)| resources.opened.values().cloned()).collect();
    // The desks end with their last users.
    drop((graph, storage, durable));
    held.into_iter().for_each(Held::close);
    if let Some(writer) = writer {
        writer.shutdown();
    }
    for desk in lock(&desks).drain(..) {
        // A panic in a desk has raised a fault already.
        let _ = desk.join();
    }
}
