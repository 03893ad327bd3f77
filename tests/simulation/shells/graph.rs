//! The graph as `graphs/ingest.rs` joins it, with a source and a sink that do what the schedule says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openwit_operators::arrow_encode::{self, Route, arrow_encode};
use openwit_operators::batch::{Delivery, EncodedBatch, RawBatch, RecalledBatch, Signal};
use openwit_operators::coverage::PartitionKey;
use openwit_operators::dead_letter::{self, dead_letter};
use openwit_operators::dedup_window::{self, dedup_window};
use openwit_operators::epoch::{Epoch, Same};
use openwit_operators::fault::Health;
use openwit_operators::kafka_source::ledger::Ledger;
use openwit_operators::normalize::index::IndexRules;
use openwit_operators::normalize::{self, Format, normalize};
use openwit_operators::place::Place;
use openwit_operators::recall::recall;
use openwit_operators::wal_commit::{self, replay, wal_commit};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{Operator, OutputBuilder, operator::empty};
use timely::dataflow::operators::{Capability, Concat, ConnectLoop, Feedback};
use timely::dataflow::{Scope, Stream};
use timely::scheduling::SyncActivator;

/// What the schedule gives to a source.
pub enum Feed {
    /// A batch, to be emitted in the open epoch.
    Batch(RawBatch),
    /// The next epoch opens.
    Epoch(u64),
    /// There is no more.
    End,
}

/// What the graph and the schedule hand to each other, by worker.
#[derive(Default)]
pub struct Exchange {
    /// For the sources.
    pub feeds: Vec<VecDeque<Feed>>,
    /// Which offsets each source emitted in which epoch.
    pub ledgers: Vec<Ledger>,
    /// Positions that a source would commit to Kafka.
    pub committed: Vec<(PartitionKey, i64)>,
    /// What has come to the sinks: worker, number, rows.
    pub delivered: Vec<(usize, u64, EncodedBatch)>,
    /// Numbers of deliveries that are published, for the sinks.
    pub published: Vec<BTreeSet<u64>>,
    activators: BTreeMap<(usize, bool), SyncActivator>,
    deliveries: u64,
}

impl Exchange {
    /// Nothing yet, for so many workers.
    pub fn new(workers: usize) -> Self {
        let (mut feeds, mut ledgers, mut published) = (Vec::new(), Vec::new(), Vec::new());
        feeds.resize_with(workers, VecDeque::new);
        ledgers.resize_with(workers, Ledger::default);
        published.resize_with(workers, BTreeSet::new);
        Exchange { feeds, ledgers, published, ..Exchange::default() }
    }

    /// Has the source of a worker look at its feed.
    pub fn wake_source(&self, worker: usize) {
        self.activators[&(worker, true)].activate().unwrap();
    }

    /// Has the sink of a worker look at what is published.
    pub fn wake_sink(&self, worker: usize) {
        self.activators[&(worker, false)].activate().unwrap();
    }
}

/// Shared by the operators and the schedule, of which only one runs at a time.
pub type Shared = Arc<Mutex<Exchange>>;

/// All that the graph needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// The source's and the sink's.
    pub shared: Shared,
    /// True if offsets are committed when they are durable, false if when they are published.
    pub is_after_wal: bool,
    /// The windows, warmed up.
    pub dedup: dedup_window::Ports,
    /// The dead letter's desk.
    pub dead_letter: dead_letter::Ports,
    /// The log.
    pub wal: wal_commit::Ports,
    /// What is in the log alone.
    pub replay: replay::Ports,
    /// Where faults go.
    pub health: Health,
}

/// How messages are normalized.
fn normalize_config() -> normalize::Config {
    normalize::Config {
        format: Format::OtlpProto,
        telemetry_type: Some(Signal::Logs),
        topics: IndexRules { default_index_position: Some(1), ..IndexRules::default() },
        ..normalize::Config::default()
    }
}

/// The settings of the window: nothing is forgotten.
pub fn window_config() -> dedup_window::Config {
    dedup_window::Config { window_ms: 3_600_000, bytes_max: 16 << 20 }
}

/// No wait, which would be by the clock: a delivery leaves when its operator has seen what is there.
const LIMITS: arrow_encode::Limits = arrow_encode::Limits {
    batch_rows_max: 5,
    batch_bytes_max: 1 << 20,
    delivery_bytes_max: 1 << 20,
    delivery_messages_max: 6,
    delivery_wait: Duration::ZERO,
};

struct OneEndpoint;

impl Route for OneEndpoint {
    fn endpoint(&self, _partition: &PartitionKey) -> usize {
        0
    }
}

/// Builds the graph on one worker.
pub fn build(scope: Scope<'_, Epoch>, ports: Ports) {
    let (durable_loop, durable) = scope.feedback::<Vec<()>>(Same);
    let (published_loop, published) = scope.feedback::<Vec<()>>(Same);
    let commit = if ports.is_after_wal { durable } else { published.clone() };

    let place = Place::alone(&scope);
    let raw = source(scope, commit, ports.shared.clone());
    let counters = normalize::Ports { stats: Arc::default(), health: ports.health.clone(), quotas: None };
    let normalized = normalize(raw, normalize_config(), counters, place);
    let recalled = recall(empty::<Epoch, Vec<RecalledBatch>>(scope), normalize_config(), place);
    let unique = dedup_window(normalized.normalized, recalled, window_config(), ports.dedup, place);
    let dead = dead_letter(normalized.rejects, ports.dead_letter);
    let logged = wal_commit(unique, wal_commit::Frontiers { dead_letter: dead, published }, ports.wal);
    let replayed = replay::wal_replay(logged.spilled.clone(), ports.replay);
    let route = arrow_encode::Ports { route: Arc::new(OneEndpoint), health: ports.health };
    let encoded = arrow_encode(logged.durable.concat(replayed), LIMITS, route);
    let delivered = sink(encoded, ports.shared);

    frontier_only(logged.spilled).connect_loop(durable_loop);
    delivered.connect_loop(published_loop);
}

fn frontier_only<'s, D: Clone + 'static>(stream: Stream<'s, Epoch, Vec<D>>) -> Stream<'s, Epoch, Vec<()>> {
    stream.unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "frontier_only", |_capability, _info| {
        move |input, _output| input.for_each(|_capability, data| data.clear())
    })
}

fn lock(shared: &Shared) -> MutexGuard<'_, Exchange> {
    shared.lock().unwrap()
}

/// Emits what it is fed, and tells which positions the commit frontier has passed: as `kafka_source` does, with its ledger.
fn source<'s>(scope: Scope<'s, Epoch>, commit: Stream<'s, Epoch, Vec<()>>, shared: Shared) -> Stream<'s, Epoch, Vec<RawBatch>> {
    let worker = scope.index();
    let mut builder = OperatorBuilder::new("source".into(), scope);
    let activator = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    lock(&shared).activators.insert((worker, true), activator);
    let (output, stream) = builder.new_output::<Vec<RawBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<RawBatch>>>::from(output);
    let mut commit_input = builder.new_input_connection(commit, Pipeline, []);
    builder.build_reschedule(move |mut capabilities| {
        let mut capability = capabilities.pop();
        move |frontiers| {
            commit_input.for_each(|_, data| data.clear());
            let mut shared = lock(&shared);
            // 1. Commit what has had its effect.
            let frontier = frontiers[0].frontier().first().copied();
            let committed = shared.ledgers[worker].retire_committable(frontier);
            shared.committed.extend(committed);
            // 2. Emit what there is.
            let mut output = output.activate();
            while let Some(feed) = shared.feeds[worker].pop_front() {
                let Some(open) = &mut capability else { panic!("a feed after the end") };
                match feed {
                    Feed::Batch(batch) => {
                        shared.ledgers[worker].emit(*open.time(), &batch.partition, batch.end);
                        let mut session = output.session(open);
                        session.give(batch);
                        session.flush();
                    }
                    Feed::Epoch(epoch) => open.downgrade(&Epoch(epoch)),
                    Feed::End => capability = None,
                }
            }
            capability.is_some() || !frontiers[0].is_empty()
        }
    });
    stream
}

/// Hands deliveries over, and holds their epochs until they are published.
fn sink<'s>(stream: Stream<'s, Epoch, Vec<Delivery>>, shared: Shared) -> Stream<'s, Epoch, Vec<()>> {
    let scope = stream.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new("sink".into(), scope);
    let activator = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    lock(&shared).activators.insert((worker, false), activator);
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, published) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        // With the delivery goes its share of the memory budget.
        let mut held: BTreeMap<u64, (Capability<Epoch>, Delivery)> = BTreeMap::new();
        move |_frontiers| {
            let mut shared = lock(&shared);
            input.for_each(|capability, deliveries| {
                let capability = capability.retain_least(0).expect("every delivery is sent under a capability");
                for delivery in deliveries.drain(..) {
                    let number = shared.deliveries;
                    shared.deliveries += 1;
                    shared.delivered.push((worker, number, delivery.batch.clone()));
                    held.insert(number, (capability.clone(), delivery));
                }
            });
            for number in std::mem::take(&mut shared.published[worker]) {
                held.remove(&number).expect("what is published was delivered");
            }
        }
    });
    published
}
