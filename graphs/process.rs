//! One process: opens what outlives a dataflow, runs the graphs on its workers, restarts them after a curable fault, and closes.
//!
//! ```text
//! open catalog > open log, recover > bind Flight port > build graphs on all workers > step until done or failed > close
//!      ^                                                                                          |
//!      +------------------------------ curable fault: wait, start again ---------------------------+
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openwit_operators::budget::{Budget, Load};
use openwit_operators::catalog_commit::registrar::{self, Registrar};
use openwit_operators::catalog_commit::{self, Catalog, covered};
use openwit_operators::clock::{Clock, SystemClock};
use openwit_operators::coverage::PartitionKey;
use openwit_operators::dead_letter;
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::{Fault, Health, chain};
use openwit_operators::flight_sink::Router;
use openwit_operators::flight_source::{self, Server};
use openwit_operators::frame_source::{self, Feed};
use openwit_operators::kafka_source::{self, consumer};
use openwit_operators::object_upload::{self, ObjectStore, StoreUri};
use openwit_operators::wal_commit::recovery::Recovery;
use openwit_operators::wal_commit::replay::{self as wal_replay, Replay};
use openwit_operators::wal_commit::{self, Log, Writer};
use openwit_operators::{arrow_encode, dedup_window, flight_sink, index_trigger, normalize, parquet_roll};
use timely::worker::Worker;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::catalog::{self, Files};
use crate::recovery::{Durable, warm_windows};
use crate::reload::{QuotaReload, Reloader, TokenReload};
use crate::{ingest, janitor, memory, replay, storage, workers};

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
    /// Where commits are registered.
    pub catalog: catalog::Location,
    /// Largest gRPC message.
    pub message_bytes_max: usize,
    /// Read Kafka.
    pub ingest: Option<IngestPlan>,
    /// Read a log in the place of Kafka.
    pub replay: Option<ReplayPlan>,
    /// Store what comes by Flight.
    pub storage: Option<StoragePlan>,
}

/// The ingest side of a plan.
#[derive(Clone)]
pub struct IngestPlan {
    /// The graph's settings. Sink endpoints may be empty: then the process's own storage is used.
    pub graph: ingest::Config,
    /// Arena bytes in flight between the source and storage.
    pub in_flight_bytes_max: usize,
    /// Messages in flight between the source and storage.
    pub in_flight_messages_max: usize,
    /// Resident memory of the process near which less is read.
    pub memory_bytes_max: u64,
    /// The write-ahead log.
    pub wal: wal_commit::Config,
    /// Where rejects go.
    pub dead_letter: dead_letter::Config,
    /// The tokens of `graph.normalize.auth`, kept up to date.
    pub tokens: Option<TokenReload>,
    /// What tenants and topics may send, kept up to date.
    pub quotas: Option<QuotaReload>,
}

/// A log to be read in the place of Kafka.
#[derive(Clone)]
pub struct ReplayPlan {
    /// The graph's settings. Sink endpoints may be empty: then the process's own storage is used.
    pub graph: replay::Config,
    /// The log, and which of its frames.
    pub frames: frame_source::Config,
    /// Bytes in flight between the log and storage.
    pub in_flight_bytes_max: usize,
    /// Messages in flight between the log and storage.
    pub in_flight_messages_max: usize,
    /// The replay's own log.
    pub wal: wal_commit::Config,
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

    /// The fault of the graphs that run now, if they have failed.
    pub fn fault(&self) -> Option<Fault> {
        lock(&self.shared.running).as_ref().and_then(|(health, _)| health.fault())
    }

    fn enter(&self, health: &Health, server: Option<Arc<Server>>) {
        *lock(&self.shared.running) = Some((health.clone(), server));
        if self.is_stopping() {
            health.stop();
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
            Err(fault) if fault.is_curable && !control.is_stopping() => {
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
    let Some(ingest) = &plan.ingest else { return Ok(Vec::new()) };
    let tokens = ingest.tokens.clone().map(|tokens| Reloader::start(tokens, clock.clone()));
    let quotas = ingest.quotas.clone().map(|quotas| Reloader::start(quotas, clock.clone()));
    tokens.into_iter().chain(quotas).collect()
}

fn fault(message: impl std::fmt::Display) -> Fault {
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
    let opened = open(plan, control, &health, clock, runtime.handle())?;
    control.enter(&health, opened.server.clone());
    let ended = execute(plan.workers, &opened, &health);
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
    ingest: Option<(ingest::Config, ingest::Ports)>,
    replay: Option<(replay::Config, replay::Ports)>,
    storage: Option<(storage::Config, storage::Ports)>,
    server: Option<Arc<Server>>,
    writer: Option<Writer>,
    /// Ends the janitor.
    janitor: Option<Arc<watch::Sender<bool>>>,
    desks: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
    /// Workers whose ingest or replay graph is still running.
    ingesting: Arc<AtomicUsize>,
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
    let is_stopping = || control.is_stopping();
    let catalog = catalog::open_for_writing(&plan.catalog, files.as_ref(), runtime, &is_stopping)
        .map_err(|error| fault(format!("opening the catalog: {error}")))?;
    let catalog: Arc<dyn Catalog> = catalog.into();
    let coverage = catalog::reach(&is_stopping, || catalog.coverage());
    let coverage = coverage.map_err(|error| fault(format!("reading the catalog: {}", chain(&error))))?;
    let committed = Arc::new(covered(&coverage));
    let index = plan.storage.as_ref().map(|storage| storage.index).unwrap_or_default();
    let (registrar, registrar_thread) =
        registrar::open(catalog.clone(), store.as_ref().map(StoreUri::of), index, health.clone(), counters.catalog.clone())
            .map_err(|error| fault(format!("starting the catalog: {error}")))?;
    let mut desks = vec![registrar_thread];
    let mut janitor = None;
    if let (Some((interval, config)), Some(store)) = (plan.storage.as_ref().and_then(|storage| storage.janitor.clone()), &store) {
        let tools = janitor::Tools { store: store.clone(), catalog, runtime: runtime.clone(), clock: clock.clone() };
        let (stop, thread) = janitor::start(tools, config, interval, health.clone())
            .map_err(|error| fault(format!("starting the janitor: {error}")))?;
        janitor = Some(Arc::new(stop));
        desks.push(thread);
    }
    let (server, storage) = match (&plan.storage, store) {
        (Some(storage), Some(store)) => {
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
            };
            (Some((server, address)), Some((config, ports)))
        }
        _ => (None, None),
    };
    let own_endpoint = server.as_ref().map(|(_, address)| format!("http://{address}"));
    let (mut writer, mut ingest, mut replay) = (None, None, None);
    let context = Context { plan, counters, health, clock, runtime, registrar: &registrar, committed: &committed };
    if let Some(plan) = &plan.ingest {
        let (config, ports, log_writer, desk) = open_ingest(plan, own_endpoint, &context)?;
        (writer, ingest) = (Some(log_writer), Some((config, ports)));
        desks.push(desk);
    } else if let Some(plan) = &plan.replay {
        let (config, ports, log_writer, reader) = open_replay(plan, own_endpoint, &context)?;
        (writer, replay) = (Some(log_writer), Some((config, ports)));
        desks.push(reader);
    }
    let has_source = ingest.is_some() || replay.is_some();
    let ingesting = Arc::new(AtomicUsize::new(if has_source { plan.workers } else { 0 }));
    let server = server.map(|(server, _)| server);
    Ok(Opened { ingest, replay, storage, server, writer, janitor, desks: Arc::new(Mutex::new(desks)), ingesting })
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

struct Context<'a> {
    plan: &'a Plan,
    counters: &'a Counters,
    health: &'a Health,
    clock: &'a Arc<dyn Clock>,
    runtime: &'a tokio::runtime::Handle,
    registrar: &'a Registrar,
    committed: &'a Arc<BTreeMap<PartitionKey, openwit_operators::coverage::OffsetSet>>,
}

type OpenedIngest = (ingest::Config, ingest::Ports, Writer, std::thread::JoinHandle<()>);

fn open_ingest(ingest: &IngestPlan, own_endpoint: Option<String>, context: &Context<'_>) -> Result<OpenedIngest, Fault> {
    let Context { plan, counters, health, clock, .. } = *context;
    let mut config = ingest.graph.clone();
    find_storage(&mut config.sink, own_endpoint)?;
    let (log, recovery) = open_log(&ingest.wal, Epoch::of(clock.now_ms(), 1))?;
    let windows = match config.dedup {
        Some(window) => warm_windows(window, plan.workers, &recovery).map_err(fault)?,
        None => Arc::default(),
    };
    let writer = start_writer(log, health)?;
    let (dead_letter, desk) =
        dead_letter::open(&ingest.dead_letter, clock, health.clone(), counters.dead_letter.clone()).map_err(fault)?;
    let durable = Durable::new(&recovery, context.registrar.clone());
    let budget = Budget::new(Load { bytes: ingest.in_flight_bytes_max, messages: ingest.in_flight_messages_max });
    memory::watch(ingest.memory_bytes_max, &budget).map_err(|error| fault(format!("starting the memory's thread: {error}")))?;
    let router = Arc::new(Router::new(&config.sink.endpoints, config.sink.failover));
    let quotas = ingest.quotas.as_ref().map(|reload| reload.quotas.clone());
    let ports = ingest::Ports {
        source: consumer::Ports {
            health: health.clone(),
            clock: clock.clone(),
            covered: Arc::new(durable),
            budget: budget.clone(),
            quotas: quotas.clone(),
            stats: counters.source.clone(),
        },
        normalize: normalize::Ports { stats: counters.normalize.clone(), health: health.clone(), quotas },
        dedup: dedup_window::Ports { memories: windows, stats: counters.dedup.clone(), health: health.clone() },
        dead_letter: dead_letter::Ports { desk: dead_letter },
        wal: wal_commit::Ports { writer: writer.clone(), budget: budget.clone(), backlog: counters.backlog.clone() },
        replay: wal_replay_ports(&writer, &recovery, &budget, context),
        encode: arrow_encode::Ports { route: router.clone(), health: health.clone() },
        sink: sink_ports(&writer, router, config.encode, context),
    };
    Ok((config, ports, writer, desk))
}

type OpenedReplay = (replay::Config, replay::Ports, Writer, std::thread::JoinHandle<()>);

fn open_replay(plan: &ReplayPlan, own_endpoint: Option<String>, context: &Context<'_>) -> Result<OpenedReplay, Fault> {
    let Context { counters, health, clock, .. } = *context;
    let mut config = plan.graph.clone();
    find_storage(&mut config.sink, own_endpoint)?;
    let run_epoch = Epoch::of(clock.now_ms(), 1);
    // What an earlier replay that was killed left in its log is sent first.
    let (log, recovery) = open_log(&plan.wal, run_epoch)?;
    let writer = start_writer(log, health)?;
    let (feed, reader) = Feed::start(
        plan.frames.clone(),
        Epoch(run_epoch.0 + 1),
        context.committed.clone(),
        health.clone(),
        counters.frames.clone(),
    )
    .map_err(|error| fault(format!("starting the reader of frames: {error}")))?;
    let budget = Budget::new(Load { bytes: plan.in_flight_bytes_max, messages: plan.in_flight_messages_max });
    let router = Arc::new(Router::new(&config.sink.endpoints, config.sink.failover));
    let ports = replay::Ports {
        frames: frame_source::Ports { feed, budget: budget.clone(), health: health.clone() },
        wal: wal_commit::Ports { writer: writer.clone(), budget: budget.clone(), backlog: counters.backlog.clone() },
        replay: wal_replay_ports(&writer, &recovery, &budget, context),
        encode: arrow_encode::Ports { route: router.clone(), health: health.clone() },
        sink: sink_ports(&writer, router, config.encode, context),
    };
    Ok((config, ports, writer, reader))
}

fn find_storage(sink: &mut flight_sink::Config, own_endpoint: Option<String>) -> Result<(), Fault> {
    if sink.endpoints.is_empty() {
        sink.endpoints.extend(own_endpoint);
    }
    let has_any = !sink.endpoints.is_empty();
    has_any.then_some(()).ok_or_else(|| fault("no storage: name storage.endpoints, or run the storage graph in this process"))
}

fn open_log(config: &wal_commit::Config, run_epoch: Epoch) -> Result<(Log, Recovery), Fault> {
    let opened = Log::open(config.clone(), run_epoch);
    let (log, recovery) = opened.map_err(|error| fault(format!("opening the write-ahead log: {}", chain(&error))))?;
    report_recovery(&recovery.report, &config.directory);
    Ok((log, recovery))
}

fn start_writer(log: Log, health: &Health) -> Result<Writer, Fault> {
    Writer::spawn(log, health.clone()).map_err(|error| fault(format!("starting the log's writer: {}", chain(&error))))
}

fn wal_replay_ports(writer: &Writer, recovery: &Recovery, budget: &Arc<Budget>, context: &Context<'_>) -> wal_replay::Ports {
    wal_replay::Ports {
        replay: Arc::new(Replay::new(recovery.frames(), context.committed.clone())),
        reader: writer.reader(),
        budget: budget.clone(),
        health: context.health.clone(),
        stats: context.counters.backlog.clone(),
    }
}

fn sink_ports(writer: &Writer, router: Arc<Router>, limits: arrow_encode::Limits, context: &Context<'_>) -> flight_sink::Ports {
    flight_sink::Ports {
        runtime: context.runtime.clone(),
        router,
        reader: writer.reader(),
        limits,
        health: context.health.clone(),
        stats: context.counters.sink.clone(),
    }
}

fn report_recovery(report: &wal_commit::recovery::Report, directory: &PathBuf) {
    if report.frames > 0 || report.torn.is_some() {
        info!(
            ?directory,
            frames = report.frames,
            records = report.records,
            torn = report.torn.is_some(),
            "write-ahead log recovered"
        );
    }
    if report.is_loss() {
        let (regions, records) = report.lost();
        tracing::error!(
            ?directory,
            regions,
            records,
            "the write-ahead log is damaged; see `openwit-ingest wal verify`, the rest is used"
        );
    }
}

/// One of the two graphs of a process. Each has workers of its own: what storage encodes and compresses for a tenth of a second at a
/// time must not keep messages from being acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Ingest or replay.
    Source,
    Storage,
}

/// Runs the graphs on all workers until they are done or one has failed.
fn execute(workers: usize, opened: &Opened, health: &Health) -> Result<(), String> {
    let has_source = opened.ingest.is_some() || opened.replay.is_some();
    let sides = [(Side::Storage, opened.storage.is_some()), (Side::Source, has_source)];
    let sides = sides.into_iter().filter_map(|(side, is_there)| is_there.then_some(side));
    let start = |side: Side| {
        let (opened, on_workers) = (opened.clone(), health.clone());
        workers::start(workers, STAGE, health, move |worker| work(worker, side, &opened, &on_workers))
    };
    let started: Vec<_> = sides.map(start).collect();
    let ended: Vec<_> = started.into_iter().map(|guards| guards.and_then(workers::join)).collect();
    ended.into_iter().collect()
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
            if let Some((config, ports)) = opened.ingest.clone() {
                worker.dataflow_named::<Epoch, _, _>("ingest", |scope| ingest::ingest(scope, config, ports));
            }
            if let Some((config, ports)) = opened.replay.clone() {
                worker.dataflow_named::<Epoch, _, _>("replay", |scope| replay::replay(scope, config, ports));
            }
        }
    }
    let is_storage_only = opened.ingest.is_none() && opened.replay.is_none();
    while worker.has_dataflows() && !health.failed() {
        worker.step_or_park(None);
        if is_storage_only && health.stopping() {
            close_storage(opened);
        }
    }
    if side == Side::Source && opened.ingesting.fetch_sub(1, Ordering::AcqRel) == 1 {
        close_storage(opened);
    }
}

fn close_storage(opened: &Opened) {
    if let Some(server) = &opened.server {
        server.close();
    }
}

fn close(opened: Opened, runtime: &tokio::runtime::Runtime) {
    let Opened { ingest, replay, storage, server, writer, janitor, desks, .. } = opened;
    if let Some(stop) = janitor {
        stop.send_replace(true);
    }
    if let Some(server) = server {
        runtime.block_on(async { server.finish(LAST_ACKS_WAIT).await });
    }
    // The desks end with their last users.
    drop((ingest, replay, storage));
    if let Some(writer) = writer {
        writer.shutdown();
    }
    for desk in lock(&desks).drain(..) {
        // A panic in a desk has raised a fault already.
        let _ = desk.join();
    }
}
