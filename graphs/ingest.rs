//! The ingest graph: Kafka to a storage node.
//!
//! ```text
//! kafka_source > normalize > dedup_window > wal_commit ----> arrow_encode > flight_sink
//!      ^  |         |            ^            ^  | ^  \         ^             |
//!      |  +------ recall (keys) -+            |  | |   > wal_replay          |
//!      |            +-- rejects > dead_letter-+  | |                         |
//!      +------ durable (frontier only) ----------+ +--- published (frontier only)
//! ```
//!
//! `wal_commit` waits for the dead letter's frontier before it writes an epoch, so whatever is durable has its rejects durable too,
//! and a restart from the log skips none. Hence one durable frontier, not two.

use openwit_operators::arrow_encode::{self, arrow_encode};
use openwit_operators::batch::{NormalizedBatch, UniqueBatch};
use openwit_operators::dead_letter::{self, dead_letter};
use openwit_operators::dedup_window::{self, dedup_window};
use openwit_operators::epoch::{Epoch, Same};
use openwit_operators::flight_sink::{self, flight_sink};
use openwit_operators::kafka_source::{self, consumer, kafka_source};
use openwit_operators::normalize::{self, normalize};
use openwit_operators::recall::recall;
use openwit_operators::wal_commit::{self, replay, wal_commit};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::{Concat, ConnectLoop, Feedback};
use timely::dataflow::{Scope, Stream};

/// When an offset may be committed to Kafka (design D-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// Once its record is durable in the write-ahead log.
    AfterWal,
    /// Once its record is in the object store and in the catalog: for machines whose disk may vanish.
    AfterPublish,
}

/// The settings of the graph's operators.
#[derive(Clone)]
pub struct Config {
    /// The source's settings.
    pub source: kafka_source::Config,
    /// How messages are normalized.
    pub normalize: normalize::Config,
    /// The dedup window; `None` stores duplicates.
    pub dedup: Option<dedup_window::Config>,
    /// How rows are encoded.
    pub encode: arrow_encode::Limits,
    /// Where rows are sent.
    pub sink: flight_sink::Config,
    /// When offsets are committed.
    pub commit_mode: CommitMode,
}

/// What the graph's operators need from outside.
#[derive(Clone)]
pub struct Ports {
    /// The source's.
    pub source: consumer::Ports,
    /// Counters of `normalize`.
    pub normalize: normalize::Ports,
    /// The windows, warmed up from the log.
    pub dedup: dedup_window::Ports,
    /// The dead letter's desk.
    pub dead_letter: dead_letter::Ports,
    /// The write-ahead log.
    pub wal: wal_commit::Ports,
    /// What is in the log alone.
    pub replay: replay::Ports,
    /// The encoder's.
    pub encode: arrow_encode::Ports,
    /// The sink's.
    pub sink: flight_sink::Ports,
}

/// Builds the graph on one worker.
pub fn ingest(scope: Scope<'_, Epoch>, config: Config, ports: Ports) {
    let (durable_loop, durable) = scope.feedback::<Vec<()>>(Same);
    let (published_loop, published) = scope.feedback::<Vec<()>>(Same);
    let commit = match config.commit_mode {
        CommitMode::AfterWal => durable,
        CommitMode::AfterPublish => published.clone(),
    };

    let read = kafka_source(scope, config.source, ports.source, commit);
    let normalized = normalize(read.raw, config.normalize.clone(), ports.normalize);
    let unique = match config.dedup {
        Some(window) => dedup_window(normalized.normalized, recall(read.recalled, config.normalize), window, ports.dedup),
        None => all_unique(normalized.normalized),
    };
    let dead = dead_letter(normalized.rejects, ports.dead_letter);
    let logged = wal_commit(unique, wal_commit::Frontiers { dead_letter: dead, published }, ports.wal);
    let replayed = replay::wal_replay(logged.spilled.clone(), ports.replay);
    let encoded = arrow_encode(logged.durable.concat(replayed), config.encode, ports.encode);
    let delivered = flight_sink(encoded, config.sink, ports.sink);

    // Of an epoch some batches may stay in memory and others not: it is durable when both streams have passed it, and they pass it
    // together.
    frontier_only(logged.spilled).connect_loop(durable_loop);
    delivered.connect_loop(published_loop);
}

/// Stands in for `dedup_window` where duplicates are wanted.
fn all_unique<'s>(stream: Stream<'s, Epoch, Vec<NormalizedBatch>>) -> Stream<'s, Epoch, Vec<UniqueBatch>> {
    stream.unary::<CapacityContainerBuilder<Vec<UniqueBatch>>, _, _, _>(Pipeline, "no_dedup", |_capability, _info| {
        move |input, output| {
            input.for_each(|capability, batches| {
                output.session(&capability).give_iterator(batches.drain(..).map(UniqueBatch));
            });
        }
    })
}

/// Keeps a stream's frontier and drops its data.
pub(crate) fn frontier_only<'s, D: Clone + 'static>(stream: Stream<'s, Epoch, Vec<D>>) -> Stream<'s, Epoch, Vec<()>> {
    stream.unary::<CapacityContainerBuilder<Vec<()>>, _, _, _>(Pipeline, "frontier_only", |_capability, _info| {
        move |input, _output| input.for_each(|_capability, data| data.clear())
    })
}
