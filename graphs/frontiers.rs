//! How far each stage is: the frontier of its output, noted by an operator behind it and read by anybody.
//!
//! ```text
//! stage > noted > next stage      batches pass untouched
//!           |
//!           +-> one atomic per stage: everything before this epoch has had the stage's effect
//! ```
//! A frontier is the same for all workers, but for what is on its way between them: the greatest that any of them has seen is true. The
//! offsets of an epoch are known to the source (`kafka_source::Status`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openwit_operators::coverage::PartitionKey;
use openwit_operators::epoch::Epoch;
use openwit_operators::kafka_source::{Passed, Status};
use openwit_operators::{catalog_commit, flight_source, index_trigger, object_upload, parquet_roll};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;
use timely::progress::frontier::MutableAntichain;

use crate::edge::Flow;
use crate::wiring::Wiring;

/// The stages of the storage graph.
pub const STORAGE: [&str; 5] =
    [flight_source::NAME, parquet_roll::NAME, object_upload::NAME, catalog_commit::NAME, index_trigger::NAME];

/// No time lies beyond: the stage has done all it will ever do.
const END: u64 = u64::MAX;

/// Where a stage's frontier is noted.
#[derive(Clone, Debug, Default)]
pub struct Mark(Arc<AtomicU64>);

impl Mark {
    fn note(&self, frontier: &MutableAntichain<Epoch>) {
        let at = frontier.frontier().first().map_or(END, |epoch| epoch.0);
        // Most schedulings bring batches and no progress.
        if self.0.load(Ordering::Relaxed) < at {
            self.0.fetch_max(at, Ordering::Relaxed);
        }
    }

    fn reached(&self) -> Reached {
        match self.0.load(Ordering::Relaxed) {
            0 => Reached::NotStarted,
            END => Reached::End,
            at => Reached::Before(Epoch(at)),
        }
    }
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Nowhere yet: its graph is being built.
    NotStarted,
    /// Everything before this epoch has had its effect. Epochs that are far below a wall clock's are those in which a start brings back
    /// what the log has.
    Before(Epoch),
    /// All there was: its input has ended.
    End,
}

/// The marks of the graphs of one start.
#[derive(Clone, Debug, Default)]
pub struct Frontiers {
    graph: Vec<(String, Mark)>,
    storage: Vec<(String, Mark)>,
}

/// How far a stage is, and what of each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageFrontier {
    /// The stage's name.
    pub stage: String,
    /// It is one of the storage graph, whose epochs are its own.
    pub is_storage: bool,
    /// How far it is.
    pub reached: Reached,
    /// How far it is with each partition that the source reads; for `catalog_commit` how far each partition that came is published.
    pub partitions: BTreeMap<PartitionKey, Passed>,
}

impl Frontiers {
    /// Marks for the stages of both graphs, as far as there are any.
    pub fn new(wiring: Option<&Wiring>, has_storage: bool) -> Frontiers {
        let mark = |name: &str| (name.to_owned(), Mark::default());
        let stages = wiring.iter().flat_map(|wiring| &wiring.stages);
        Frontiers {
            graph: stages.map(|placed| mark(&placed.stage.name)).collect(),
            storage: STORAGE.iter().filter(|_| has_storage).map(|name| mark(name)).collect(),
        }
    }

    /// The mark of a stage of the graph from a source on; one that nobody reads, where it was not asked for.
    pub fn of(&self, stage: &str) -> Mark {
        find(&self.graph, stage)
    }

    /// The mark of a stage of the storage graph.
    pub fn of_storage(&self, stage: &str) -> Mark {
        find(&self.storage, stage)
    }

    /// How far all stages are, the storage graph's last.
    pub fn read(&self, source: &Status, published: &BTreeMap<PartitionKey, i64>) -> Vec<StageFrontier> {
        let mut stages = Vec::new();
        for (stage, mark) in &self.graph {
            // Read before the offsets: what the source emits meanwhile is behind it.
            let reached = mark.reached();
            let partitions = match reached {
                Reached::NotStarted => source.passed(Some(Epoch(0))),
                Reached::Before(epoch) => source.passed(Some(epoch)),
                Reached::End => source.passed(None),
            };
            stages.push(StageFrontier { stage: stage.clone(), is_storage: false, reached, partitions });
        }
        let positions = source.positions();
        let of_partition = |(partition, end): (&PartitionKey, &i64)| {
            let behind = positions.get(partition).map(|at| at.emitted.saturating_sub(*end).max(0) as u64);
            (partition.clone(), Passed { offset: Some(*end), epoch: None, behind })
        };
        for (stage, mark) in &self.storage {
            let partitions = published.iter().filter(|_| stage == catalog_commit::NAME).map(of_partition);
            let (stage, partitions) = (stage.clone(), partitions.collect());
            stages.push(StageFrontier { stage, is_storage: true, reached: mark.reached(), partitions });
        }
        stages
    }
}

fn find(marks: &[(String, Mark)], stage: &str) -> Mark {
    marks.iter().find(|(name, _)| name == stage).map(|(_, mark)| mark.clone()).unwrap_or_default()
}

/// The same stream, its frontier noted.
pub fn noted<D: Clone + 'static>(stream: Flow<'_, D>, mark: Mark) -> Flow<'_, D> {
    stream.unary_frontier::<CapacityContainerBuilder<Vec<D>>, _, _, _>(Pipeline, "frontier", |_capability, _info| {
        move |(input, frontier), output| {
            input.for_each(|capability, batches| output.session(&capability).give_container(batches));
            mark.note(frontier);
        }
    })
}

/// Notes the frontier of a stream that carries nothing else.
pub fn note(stream: Flow<'_, ()>, mark: Mark) {
    stream.sink(Pipeline, "frontier", move |(input, frontier)| {
        input.for_each(|_capability, data| data.clear());
        mark.note(frontier);
    });
}
