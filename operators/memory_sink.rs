//! `memory_sink`: keeps what comes in memory, to be looked at when the run is over. For test cases.
//!
//! # In
//! `UniqueBatch` or `Reject`.
//!
//! # Out
//! No data; its frontier is that of its input.
//!
//! # Holds
//! All that came: it is for little.
//!
//! # Closes when
//! The input ends.
//!
//! # Fails when
//! Never.
//!
//! # Invariants
//! - What was collected is in one order, whatever the number of workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::{NormalizedBatch, Reject, UniqueBatch};
use crate::epoch::Epoch;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "memory_sink";

/// What the sinks of a graph have collected, on all workers.
#[derive(Clone, Debug, Default)]
pub struct Collected(Arc<Mutex<Content>>);

/// What was collected.
#[derive(Debug, Default)]
pub struct Content {
    /// Messages, by partition and offset.
    pub batches: Vec<NormalizedBatch>,
    /// Rejects, by partition and offset.
    pub rejects: Vec<Reject>,
}

impl Collected {
    /// Takes all of it out, in order.
    pub fn take(&self) -> Content {
        let mut content = std::mem::take(&mut *self.lock());
        content.batches.sort_by(|one, other| {
            let place = |batch: &NormalizedBatch| (batch.coverage.start, batch.coverage.end);
            one.coverage.partition.cmp(&other.coverage.partition).then_with(|| place(one).cmp(&place(other)))
        });
        content
            .rejects
            .sort_by(|one, other| one.partition.cmp(&other.partition).then_with(|| one.record.offset.cmp(&other.record.offset)));
        content
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be collected.
pub trait Collect: Clone + 'static {
    /// Puts it where it belongs.
    fn collect(self, into: &mut Content);
}

impl Collect for UniqueBatch {
    fn collect(self, into: &mut Content) {
        into.batches.push(self.0);
    }
}

impl Collect for Reject {
    fn collect(self, into: &mut Content) {
        into.rejects.push(self);
    }
}

/// Collects what comes. Its output carries no data: its frontier passes an epoch with the input's.
pub fn memory_sink<'s, B: Collect>(stream: Stream<'s, Epoch, Vec<B>>, collected: Collected) -> Stream<'s, Epoch, Vec<()>> {
    let mut builder = OperatorBuilder::new(NAME.into(), stream.scope());
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, kept) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        move |_frontiers| {
            input.for_each(|_capability, batches| {
                let mut content = collected.lock();
                batches.drain(..).for_each(|batch| batch.collect(&mut content));
            });
        }
    });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Health;
    use crate::testing::{self, Dice, Passed, Shape, run};

    #[test]
    fn all_that_came_is_there_in_one_order_whatever_the_number_of_workers() {
        let mut dice = Dice::new(41);
        let items: Vec<(Epoch, UniqueBatch)> =
            testing::batches(40, &mut dice).into_iter().map(|(epoch, batch)| (epoch, UniqueBatch(batch))).collect();
        let mut expected: Vec<_> = items.iter().map(|(_, batch)| batch.0.coverage.clone()).collect();
        expected.sort_by_key(|coverage| (coverage.partition.clone(), coverage.start, coverage.end));
        for workers in [1, 2, 4] {
            let (collected, passed) = (Collected::default(), Passed::default());
            let into = collected.clone();
            run(Shape::Workers(workers), &items, &mut dice, &Health::default(), &passed, move |stream, _| {
                memory_sink(stream, into.clone())
            });
            let found: Vec<_> = collected.take().batches.into_iter().map(|batch| batch.coverage).collect();
            assert_eq!((found, passed.epoch()), (expected.clone(), u64::MAX));
        }
    }
}
