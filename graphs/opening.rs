//! What the operators of a graph lean on, opened for one start: the log with what it remembers, desks, sources, and what stages open by
//! themselves. Of what the graph does not have, nothing is opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use openwit_operators::budget::{Budget, Load};
use openwit_operators::catalog_commit::registrar::Registrar;
use openwit_operators::clock::Clock;
use openwit_operators::coverage::{OffsetSet, PartitionKey};
use openwit_operators::dedup_window::remember::Feed;
use openwit_operators::epoch::Epoch;
use openwit_operators::fault::{Fault, Health, chain};
use openwit_operators::flight_sink::Router;
use openwit_operators::kafka_source::consumer;
use openwit_operators::place::Place;
use openwit_operators::wal_commit::recovery::Recovery;
use openwit_operators::wal_commit::replay::{self as wal_replay, Replay};
use openwit_operators::wal_commit::reread::{self, Turns};
use openwit_operators::wal_commit::{self, Log, Writer};
use openwit_operators::{arrow_encode, dead_letter, dedup_window, flight_sink, frame_source, kafka_source, normalize};
use tracing::info;

use crate::dataflow::{Resources, Settings};
use crate::frontiers::Frontiers;
use crate::memory;
use crate::process::{Counters, GraphPlan, fault};
use crate::recovery::Durable;
use crate::registry::{self, Means};
use crate::wiring::Wiring;

/// What a catalog covers.
pub type Committed = Arc<BTreeMap<PartitionKey, OffsetSet>>;

/// What a start has at hand.
pub struct Context<'a> {
    /// Where the process is: its first worker.
    pub place: Place,
    /// Counters.
    pub counters: &'a Counters,
    /// Where faults go.
    pub health: &'a Health,
    /// The wall clock.
    pub clock: &'a Arc<dyn Clock>,
    /// Where connections live.
    pub runtime: &'a tokio::runtime::Handle,
    /// What the catalog covers, and its desk.
    pub catalog: Option<(Committed, Registrar)>,
}

impl Context<'_> {
    fn committed(&self) -> Committed {
        self.catalog.as_ref().map(|(committed, _)| committed.clone()).unwrap_or_default()
    }
}

/// A graph whose operators have what they lean on.
pub struct OpenedGraph {
    /// The settings, with the endpoints of storage.
    pub settings: Settings,
    /// What was opened.
    pub resources: Resources,
    /// The log's writer, where the graph has a log.
    pub writer: Option<Writer>,
    /// What is durable: what the other processes of a cluster have in their logs is told to it when they are there.
    pub durable: Arc<Durable>,
    /// Threads that end with their last users.
    pub desks: Vec<JoinHandle<()>>,
}

/// Opens what the operators of `plan` need.
pub fn open_graph(
    plan: &GraphPlan,
    own_endpoint: Option<String>,
    frontiers: Frontiers,
    context: &Context<'_>,
) -> Result<OpenedGraph, Fault> {
    let wiring = &plan.wiring;
    let mut settings = plan.settings.clone();
    if wiring.has(registry::FLIGHT) {
        find_storage(&mut settings.sink, own_endpoint)?;
    }
    let run_epoch = Epoch::of(context.clock.now_ms(), 1);
    // What an earlier run that was killed left in its log is sent first.
    let log = wiring.has(registry::LOG).then(|| open_log(&plan.wal, run_epoch)).transpose()?;
    let (log, recovery) = log.unzip();
    if let Some(recovery) = &recovery {
        refuse_other_kind(wiring, recovery, &context.committed(), &plan.wal.directory)?;
    }
    let writer = log.map(|log| start_writer(log, context.health)).transpose()?;
    let budget = Budget::new(Load { bytes: plan.in_flight_bytes_max, messages: plan.in_flight_messages_max });
    let registrar = context.catalog.as_ref().map(|(_, registrar)| registrar.clone());
    let durable = Arc::new(Durable::new(recovery.as_ref(), registrar, wiring.has_raw_log()));
    let resources = Resources { workers: context.place.workers, frontiers, ..Resources::default() };
    let mut opening = Opening { plan, context, settings: &settings, budget, resources, desks: Vec::new() };
    opening.sources(&durable, run_epoch)?;
    opening.until_the_log(recovery.as_ref())?;
    if let Some((writer, recovery)) = writer.as_ref().zip(recovery.as_ref()) {
        opening.behind_the_log(writer, recovery, run_epoch);
    }
    opening.stages_own()?;
    let Opening { resources, desks, .. } = opening;
    Ok(OpenedGraph { settings, resources, writer, durable, desks })
}

struct Opening<'a> {
    plan: &'a GraphPlan,
    context: &'a Context<'a>,
    settings: &'a Settings,
    budget: Arc<Budget>,
    resources: Resources,
    desks: Vec<JoinHandle<()>>,
}

impl Opening<'_> {
    fn has(&self, operator: &str) -> bool {
        self.plan.wiring.has(operator)
    }

    fn sources(&mut self, durable: &Arc<Durable>, run_epoch: Epoch) -> Result<(), Fault> {
        let Context { counters, health, clock, .. } = *self.context;
        if self.has(kafka_source::NAME) {
            let watched = memory::watch(self.plan.memory_bytes_max, &self.budget);
            watched.map_err(|error| fault(format!("starting the memory's thread: {error}")))?;
            self.resources.source = Some(consumer::Ports {
                health: health.clone(),
                clock: clock.clone(),
                covered: durable.clone(),
                budget: self.budget.clone(),
                quotas: self.plan.quotas.as_ref().map(|reload| reload.quotas.clone()),
                stats: counters.source.clone(),
            });
        }
        if let Some(frames) =
            self.settings.frames.clone().filter(|_| self.has(frame_source::NAME) || self.has(frame_source::RAW_NAME))
        {
            let (stats, committed) = (counters.frames.clone(), self.context.committed());
            let (feed, reader) = frame_source::Feed::start(frames, Epoch(run_epoch.0 + 1), committed, health.clone(), stats)
                .map_err(|error| fault(format!("starting the reader of frames: {error}")))?;
            self.desks.push(reader);
            self.resources.frames = Some(frame_source::Ports { feed, budget: self.budget.clone(), health: health.clone() });
        }
        Ok(())
    }

    fn until_the_log(&mut self, recovery: Option<&Recovery>) -> Result<(), Fault> {
        let Context { counters, health, clock, .. } = *self.context;
        let quotas = self.plan.quotas.as_ref().map(|reload| reload.quotas.clone());
        self.resources.normalize = Some(normalize::Ports { stats: counters.normalize.clone(), health: health.clone(), quotas });
        if self.has(dedup_window::NAME) {
            let remembered = match recovery {
                Some(recovery) => {
                    let started = Feed::start(recovery.keys(), health.clone());
                    let (feed, reader) = started.map_err(|error| fault(format!("starting the reader of dedup keys: {error}")))?;
                    self.desks.push(reader);
                    feed
                }
                None => Feed::default(),
            };
            self.resources.dedup =
                Some(dedup_window::Ports { remembered, stats: counters.dedup.clone(), health: health.clone() });
        }
        if self.has(registry::DEAD_LETTER) {
            let opened = dead_letter::open(&self.plan.dead_letter, clock, health.clone(), counters.dead_letter.clone());
            let (desk, thread) = opened.map_err(fault)?;
            self.desks.push(thread);
            self.resources.dead_letter = Some(dead_letter::Ports { desk });
        }
        Ok(())
    }

    fn behind_the_log(&mut self, writer: &Writer, recovery: &Recovery, run_epoch: Epoch) {
        let Context { counters, health, .. } = *self.context;
        let reader = writer.reader();
        // Sinks that the catalog does not speak for are given everything again that the log still has.
        let committed = match self.plan.wiring.has_other_keepers() {
            true => Committed::default(),
            false => self.context.committed(),
        };
        let budget = &self.budget;
        let wal = wal_commit::Ports { writer: writer.clone(), budget: budget.clone(), backlog: counters.backlog.clone() };
        let (budget, health, stats) = (budget.clone(), health.clone(), counters.backlog.clone());
        if self.plan.wiring.has_raw_log() {
            // The source's first epoch is that of the start, rounded down.
            let before = Epoch(run_epoch.0.saturating_sub(self.settings.epoch_interval_ms));
            let frames = recovery.raw_frames(before);
            // What is missing comes from Kafka, behind all of these: none of it may be taken for the duplicate of a copy that
            // was dropped in favour of one that is missing.
            let frames = match recovery.report.lost_records() {
                true => frames.leaving_out(self.context.committed()),
                false => frames,
            };
            let recovered = Arc::new(Mutex::new(Some(frames)));
            let reread = reread::Ports { recovered, turns: Arc::new(Turns::default()), reader, budget, health, stats };
            self.resources.raw_wal = Some((wal, reread));
            self.resources.settled = Some(self.context.committed());
        } else {
            let replay = Arc::new(Replay::new(recovery.frames(), committed));
            self.resources.wal = Some((wal, wal_replay::Ports { replay, reader, budget, health, stats }));
        }
        let router = Arc::new(Router::new(&self.settings.sink.endpoints, self.settings.sink.failover));
        let Context { counters, health, .. } = *self.context;
        self.resources.encode = Some(arrow_encode::Ports { route: router.clone(), health: health.clone() });
        self.resources.sink = Some(flight_sink::Ports {
            runtime: self.context.runtime.clone(),
            router,
            reader: writer.reader(),
            limits: self.settings.encode,
            health: health.clone(),
            stats: counters.sink.clone(),
        });
    }

    fn stages_own(&mut self) -> Result<(), Fault> {
        let Context { place, counters, health, clock, .. } = *self.context;
        let stats = &counters.stages;
        self.resources.stats = stats.clone();
        let (brokers, epoch_interval_ms) = (&self.settings.brokers, self.settings.epoch_interval_ms);
        let registrar = self.context.catalog.as_ref().map(|(_, registrar)| registrar.clone());
        let covered: Arc<dyn consumer::Covered> = Arc::new(Durable::new(None, registrar, false));
        let (budget, datasets, stored) = (&self.budget, &*self.settings.normalize.datasets, self.settings.stored.as_ref());
        let means =
            Means { health, clock, budget, place, stats, brokers, epoch_interval_ms, datasets, stored, covered: &covered };
        for placed in &self.plan.wiring.stages {
            let Some(open) = placed.operator.open else { continue };
            let opened = open(placed, &means).map_err(|message| Fault {
                stage: placed.operator.name,
                message: format!("stage {}: {message}", placed.stage.name),
                is_curable: false,
            })?;
            self.resources.opened.insert(placed.stage.name.clone(), opened);
        }
        Ok(())
    }
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

/// Refuses a log of messages of the other kind that are not stored yet: nobody of this graph would read them.
fn refuse_other_kind(wiring: &Wiring, recovery: &Recovery, committed: &Committed, directory: &Path) -> Result<(), Fault> {
    let (found, held, wanted) = match wiring.has_raw_log() {
        true => (&recovery.normalized, "normalized messages", "messages as they came"),
        false => (&recovery.raw, "messages as they came", "normalized messages"),
    };
    let missing = |(partition, offsets): (&PartitionKey, &OffsetSet)| -> i64 {
        let ranges = offsets.ranges().flat_map(|range| match committed.get(partition) {
            Some(committed) => committed.missing_in(range),
            None => vec![range],
        });
        ranges.map(|range| range.end - range.start).sum()
    };
    let unstored: i64 = found.iter().map(missing).sum();
    if unstored == 0 {
        return Ok(());
    }
    Err(fault(format!(
        "the write-ahead log {} holds {held}, {unstored} offsets of which are not stored yet, and this graph has {wanted} in its log. Run the \
         former graph until all is stored (a stop waits for that), or give this one a directory of its own: processing.wal.directory",
        directory.display()
    )))
}

fn start_writer(log: Log, health: &Health) -> Result<Writer, Fault> {
    Writer::spawn(log, health.clone()).map_err(|error| fault(format!("starting the log's writer: {}", chain(&error))))
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
