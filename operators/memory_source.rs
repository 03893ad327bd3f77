//! `memory_source`: messages that are in memory already, in the place of Kafka. For test cases.
//!
//! # In
//! Nothing.
//!
//! # Out
//! The batches it was given, each in its epoch.
//!
//! # Holds
//! Nothing: all is emitted when it is first scheduled.
//!
//! # Closes when
//! At once, behind the last batch.
//!
//! # Fails when
//! Never.
//!
//! # Invariants
//! - Batches of a partition all go to the worker that normalizes it, in their order; their epochs do not depend on the number of workers.

use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use crate::batch::RawBatch;
use crate::epoch::Epoch;
use crate::normalize::partition_hash;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "memory_source";

/// What is emitted: batches in the order of their epochs, few enough to be in memory all at once.
pub type Batches = Arc<Vec<(Epoch, RawBatch)>>;

/// Emits `batches`.
///
/// # Panics
/// Where their epochs do not ascend.
pub fn memory_source<'s>(scope: Scope<'s, Epoch>, batches: Batches) -> Stream<'s, Epoch, Vec<RawBatch>> {
    let (worker, peers) = (scope.index() as u64, scope.peers() as u64);
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let (output, emitted) = builder.new_output::<Vec<RawBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<RawBatch>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        move |_frontiers| {
            // 1. Emit all of this worker's batches, and close.
            let Some(mut open) = capability.take() else { return };
            let mut output = output.activate();
            for (epoch, batch) in batches.iter().filter(|(_, batch)| partition_hash(&batch.partition) % peers == worker) {
                open.downgrade(epoch);
                let mut session = output.session(&open);
                session.give(batch.clone());
                session.flush();
            }
        }
    });
    emitted
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use timely::dataflow::channels::pact::Pipeline;
    use timely::dataflow::operators::generic::Operator as _;

    use super::*;
    use crate::testing;

    #[test]
    fn every_batch_comes_once_in_its_epoch_whatever_the_number_of_workers() {
        let batch = |partition: i32, start: i64| RawBatch {
            partition: testing::partition("t", partition),
            start,
            end: start + 1,
            arena: Bytes::new(),
            records: Vec::new(),
            polled_ms: 0,
            charge: Default::default(),
        };
        let numbers = (0..40i64).map(|number| (Epoch(number as u64 / 7), batch(number as i32 % 5, number)));
        let batches: Batches = Arc::new(numbers.collect());
        let expected: Vec<(u64, i64)> = batches.iter().map(|(epoch, batch)| (epoch.0, batch.start)).collect();
        for workers in [1, 2, 4] {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (kept, given) = (seen.clone(), batches.clone());
            let guards = timely::execute(timely::Config::process(workers), move |worker| {
                let kept = kept.clone();
                worker.dataflow::<Epoch, _, _>(|scope| {
                    let stream = memory_source(scope, given.clone());
                    stream.sink(Pipeline, "seen", move |(input, _frontier)| {
                        input.for_each(|capability, batches| {
                            let epoch = capability.least().unwrap().0;
                            kept.lock().unwrap().extend(batches.drain(..).map(|batch| (epoch, batch.start)));
                        });
                    });
                });
            });
            guards.unwrap().join().into_iter().for_each(|ended| ended.unwrap());
            let mut seen = std::mem::take(&mut *seen.lock().unwrap());
            seen.sort_unstable();
            assert_eq!(seen, expected);
        }
    }
}
