//! Builds a checked graph on a worker.
//!
//! ```text
//!  source > ... > stages in the order of their wiring > ... > sinks
//!    ^                                                   |
//!    +--- commit, published (frontiers only) ------------+
//! ```
//!
//! Nobody wires the feedback: it follows from the stages. The *commit* frontier is behind every branch's first stage that keeps what it
//! is given, or, with `after_publish`, behind every sink; the *published* frontier, which releases the log, is behind every sink
//! that the log feeds.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openwit_operators::batch::RecalledBatch;
use openwit_operators::epoch::{Epoch, Same};
use openwit_operators::kafka_source::{self, consumer};
use openwit_operators::parquet_source::Lake;
use openwit_operators::place::Place;
use openwit_operators::wal_commit::{self, replay, reread};
use openwit_operators::{
    arrow_encode, dead_letter, dedup_window, flight_sink, frame_source, memory_sink, memory_source, normalize, settle,
};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::operators::{Concatenate, ConnectLoop, Feedback};

use crate::edge::{Edge, Flow, Travels};
use crate::frontiers::{Frontiers, Mark, note};
use crate::held::{Counts, Held, StageStats};
use crate::registry::{self, Keeps};
use crate::wiring::{Placed, Stage, Wiring};

/// When an offset may be committed to Kafka (design D-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// Once its record is durable: in the write-ahead log, where the graph has one.
    AfterWal,
    /// Once its record is in every sink: with a storage node in the object store and in the catalog. For machines whose disk may vanish.
    AfterPublish,
}

/// The settings of the operators that have sections of the configuration to themselves.
#[derive(Clone)]
pub struct Settings {
    /// Of `kafka_source`, where the graph has one.
    pub source: Option<kafka_source::Config>,
    /// Of `frame_source`: the log, and which of its frames.
    pub frames: Option<frame_source::Config>,
    /// Of `parquet_source_stored`: what the catalog lists.
    pub stored: Option<Arc<Lake>>,
    /// Of `memory_source` and `memory_sink`, in a test case.
    pub memory: Option<Memory>,
    /// Of `normalize`.
    pub normalize: normalize::Config,
    /// Of `dedup_window`.
    pub dedup: dedup_window::Config,
    /// Of `arrow_encode`.
    pub encode: arrow_encode::Limits,
    /// Of `flight_sink`. Endpoints may be empty: then the process's own storage is used.
    pub sink: flight_sink::Config,
    /// When offsets are committed.
    pub commit_mode: CommitMode,
    /// The properties of any client of the brokers.
    pub brokers: BTreeMap<String, String>,
    /// Length of an epoch in milliseconds.
    pub epoch_interval_ms: u64,
}

/// What a test case gives, and what becomes of it.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The messages.
    pub batches: memory_source::Batches,
    /// What came to the sinks.
    pub collected: memory_sink::Collected,
}

/// What the operators of one start lean on: of those that the graph has.
#[derive(Clone, Default)]
pub struct Resources {
    /// Workers of this process.
    pub workers: usize,
    /// Of `kafka_source`.
    pub source: Option<consumer::Ports>,
    /// Of `frame_source`.
    pub frames: Option<frame_source::Ports>,
    /// Of `normalize`.
    pub normalize: Option<normalize::Ports>,
    /// Of `dedup_window`, with what the log remembers.
    pub dedup: Option<dedup_window::Ports>,
    /// Of `dead_letter`.
    pub dead_letter: Option<dead_letter::Ports>,
    /// Of `wal_commit`, and of `wal_replay` in it.
    pub wal: Option<(wal_commit::Ports, replay::Ports)>,
    /// Of `wal_commit`, and of `wal_reread` in it, where it stands before `normalize`.
    pub raw_wal: Option<(wal_commit::Ports, reread::Ports)>,
    /// Of `settle` behind such a log: what the catalog covered at the start.
    pub settled: Option<settle::Committed>,
    /// Of `arrow_encode`.
    pub encode: Option<arrow_encode::Ports>,
    /// Of `flight_sink`.
    pub sink: Option<flight_sink::Ports>,
    /// Counters of stages.
    pub stats: Arc<StageStats>,
    /// Where stages note how far they are.
    pub frontiers: Frontiers,
    /// What stages opened by themselves, by their names.
    pub opened: BTreeMap<String, Held>,
}

/// Where an operator is built.
pub struct Site<'a, 's> {
    /// The dataflow.
    pub scope: Scope<'s, Epoch>,
    /// Where its worker is.
    pub place: Place,
    /// The stage.
    pub stage: &'a Stage,
    /// The settings.
    pub settings: &'a Settings,
    resources: &'a Resources,
    input: Option<Edge<'s>>,
    loops: &'a mut Loops<'s>,
}

/// Streams that no wiring names.
struct Loops<'s> {
    commit: Option<Flow<'s, ()>>,
    published: Option<Flow<'s, ()>>,
    /// The frontier of the dead letter, which the log waits for: whatever is durable has its rejects durable too, and a restart from the
    /// log skips none.
    dead_letter: Option<Flow<'s, ()>>,
    recalled: Option<Flow<'s, RecalledBatch>>,
}

/// What a stage has become.
pub struct Built<'s> {
    /// Its outputs, in the order in which its operator declares them.
    pub outputs: Vec<Edge<'s>>,
    /// Its frontier passes an epoch when the stage has kept all of it; of stages that keep something.
    pub done: Option<Flow<'s, ()>>,
}

impl<'s> Built<'s> {
    /// A stage with these outputs.
    pub fn outputs(outputs: impl IntoIterator<Item = Edge<'s>>) -> Self {
        Built { outputs: outputs.into_iter().collect(), done: None }
    }

    /// The same, its frontier noted: of what it has kept, or else of what it gives.
    fn noted(mut self, mark: Mark) -> Self {
        match (&self.done, self.outputs.is_empty()) {
            (Some(done), _) => note(done.clone(), mark),
            (None, false) => {
                let first = self.outputs.remove(0);
                self.outputs.insert(0, first.noted(mark));
            }
            (None, true) => {}
        }
        self
    }

    /// A sink.
    pub fn sink(done: Flow<'s, ()>) -> Self {
        Built { outputs: Vec::new(), done: Some(done) }
    }
}

/// What an operator takes from its site.
///
/// # Panics
/// Where it takes what its entry in the registry does not promise: wirings are checked before they are built.
impl<'s> Site<'_, 's> {
    /// The input, which the wiring has found to be of this type.
    pub fn input<D: Travels>(&mut self) -> Flow<'s, D> {
        let edge = self.edge();
        D::flow(edge).unwrap_or_else(|| panic!("{}: wired with something else than {}", self.stage.name, D::KIND))
    }

    /// The input, of any type.
    pub fn edge(&mut self) -> Edge<'s> {
        self.input.take().unwrap_or_else(|| panic!("{}: has no input", self.stage.name))
    }

    /// The frontier of what may be committed.
    pub fn commit(&mut self) -> Flow<'s, ()> {
        self.loops.commit.take().expect("made where a source commits")
    }

    /// The frontier of what is published.
    pub fn published(&mut self) -> Flow<'s, ()> {
        self.loops.published.take().expect("made where there is a log")
    }

    /// The dead letter's frontier, where the graph has one.
    pub fn dead_letter(&self) -> Option<Flow<'s, ()>> {
        self.loops.dead_letter.clone()
    }

    /// What the catalog covered at the start, where the log stands before `normalize`.
    pub fn settled(&self) -> Option<settle::Committed> {
        self.resources.settled.clone()
    }

    /// Leaves messages for their keys only to whoever wants them.
    pub fn leave_recalled(&mut self, recalled: Flow<'s, RecalledBatch>) {
        self.loops.recalled = Some(recalled);
    }

    /// Messages for their keys only, where the source has such.
    pub fn recalled(&mut self) -> Option<Flow<'s, RecalledBatch>> {
        self.loops.recalled.take()
    }

    /// What the process opened for this operator.
    pub fn ports<P: Clone>(&self, of: impl Fn(&Resources) -> &Option<P>) -> P {
        of(self.resources).clone().unwrap_or_else(|| panic!("{}: nothing was opened for it", self.stage.name))
    }

    /// The stage's counters.
    pub fn stats<S: Counts>(&self) -> Arc<S> {
        self.resources.stats.of(&self.stage.name)
    }

    /// What the stage's own `open` has opened.
    pub fn opened<P: Any + Send + Sync>(&self) -> Arc<P> {
        let opened = self.resources.opened.get(&self.stage.name);
        opened.and_then(Held::value).unwrap_or_else(|| panic!("{}: nothing was opened for it", self.stage.name))
    }
}

/// Builds the graph on one worker.
pub fn build(scope: Scope<'_, Epoch>, wiring: &Wiring, settings: &Settings, resources: &Resources) {
    let commit = wiring.commits().then(|| scope.feedback::<Vec<()>>(Same)).unzip();
    let published = wiring.has(registry::LOG).then(|| scope.feedback::<Vec<()>>(Same)).unzip();
    let mut loops = Loops { commit: commit.1, published: published.1, dead_letter: None, recalled: None };
    let place = Place::of(&scope, resources.workers);
    let mut built: BTreeMap<usize, Built<'_>> = BTreeMap::new();
    for position in &wiring.order {
        let Placed { stage, operator, inputs, .. } = &wiring.stages[*position];
        let mut inputs = inputs.iter().map(|link| built[&link.stage].outputs[link.output].clone());
        let first = inputs.next();
        let others: Vec<Edge<'_>> = inputs.collect();
        let input = if others.is_empty() { first } else { first.map(|first| first.joined(others)) };
        let mark = resources.frontiers.of(&stage.name);
        let stage = (operator.build)(&mut Site { scope, place, stage, settings, resources, input, loops: &mut loops });
        let stage = stage.noted(mark);
        if operator.name == registry::DEAD_LETTER {
            loops.dead_letter = stage.done.clone();
        }
        built.insert(*position, stage);
    }
    let join = |stages: BTreeSet<usize>| {
        let mut done: Vec<Flow<'_, ()>> = stages.iter().filter_map(|stage| built[stage].done.clone()).collect();
        if done.len() == 1 { done.remove(0) } else { scope.concatenate(done) }
    };
    if let Some(handle) = commit.0 {
        join(commit_points(wiring, settings.commit_mode)).connect_loop(handle);
    }
    if let Some(handle) = published.0 {
        join(release_points(wiring)).connect_loop(handle);
    }
}

/// The stages that must have kept an epoch before its offsets are committed.
pub fn commit_points(wiring: &Wiring, mode: CommitMode) -> BTreeSet<usize> {
    match mode {
        CommitMode::AfterPublish => wiring.sinks().collect(),
        CommitMode::AfterWal => {
            // The first that keeps something on every branch: nothing behind it counts.
            let is_keeper = |stage: &usize| wiring.stages[*stage].operator.keeps == Keeps::Durable;
            let keepers: Vec<usize> = (0..wiring.stages.len()).filter(is_keeper).collect();
            let covered: BTreeSet<usize> = keepers.iter().flat_map(|stage| wiring.below(*stage)).collect();
            // Sinks that keep nothing are waited for as well: what they were to show is shown before it is committed.
            let points = wiring.sinks().chain(keepers.iter().copied());
            // The log waits for the dead letter by itself.
            let is_waited_for =
                |stage: &usize| wiring.has(registry::LOG) && wiring.stages[*stage].operator.name == registry::DEAD_LETTER;
            points.filter(|stage| !covered.contains(stage) && !is_waited_for(stage)).collect()
        }
    }
}

/// The stages that must have done with an epoch before the log may let it go.
pub fn release_points(wiring: &Wiring) -> BTreeSet<usize> {
    let Some(log) = wiring.stages.iter().position(|placed| placed.operator.name == registry::LOG) else { return BTreeSet::new() };
    let below = wiring.below(log);
    wiring.sinks().filter(|sink| below.contains(sink)).collect()
}

/// Keeps a stream's frontier and drops its data.
pub fn frontier_only<D: Clone + 'static>(stream: Flow<'_, D>) -> Flow<'_, ()> {
    stream.unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "frontier_only", |_capability, _info| {
        move |input, _output| input.for_each(|_capability, data| data.clear())
    })
}

/// Each batch as another type's: where two types hold the same.
pub fn mapped<'s, A: Clone + 'static, B: Clone + 'static>(
    stream: Flow<'s, A>,
    name: &str,
    into: impl Fn(A) -> B + 'static,
) -> Flow<'s, B> {
    stream.unary::<CapacityContainerBuilder<Vec<B>>, _, _, _>(Pipeline, name, |_capability, _info| {
        move |input, output| {
            input.for_each(|capability, batches| {
                output.session(&capability).give_iterator(batches.drain(..).map(&into));
            });
        }
    })
}
