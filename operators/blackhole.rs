//! Takes whatever comes and counts it: the end of a graph of which only what lies before it matters, as in a measurement.
//!
//! # In
//! Batches of any kind that can be measured.
//!
//! # Out
//! No data; its frontier is that of its input.
//!
//! # Holds
//! Nothing: what comes is dropped at once, and gives back its share of the memory budget.
//!
//! # Closes when
//! The input ends.
//!
//! # Fails when
//! Never.
//!
//! # Invariants
//! - Every batch is counted once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::batch::Measured;
use crate::epoch::Epoch;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "blackhole";

/// Counters, written here and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches.
    pub batches: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Bytes of these.
    pub bytes: AtomicU64,
}

/// Counts and drops batches. Its output carries no data: its frontier passes an epoch with the input's.
pub fn blackhole<'s, B: Measured + Clone + 'static>(
    stream: Stream<'s, Epoch, Vec<B>>,
    stats: Arc<Stats>,
) -> Stream<'s, Epoch, Vec<()>> {
    let mut builder = OperatorBuilder::new(NAME.into(), stream.scope());
    let mut input = builder.new_input(stream, Pipeline);
    let (_output, dropped) = builder.new_output::<Vec<()>>();
    builder.build(move |_capabilities| {
        move |_frontiers| {
            input.for_each(|_capability, batches| {
                for batch in batches.drain(..) {
                    stats.batches.fetch_add(1, Ordering::Relaxed);
                    stats.records.fetch_add(batch.records() as u64, Ordering::Relaxed);
                    stats.bytes.fetch_add(batch.bytes() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Health;
    use crate::testing::{self, Dice, Passed, Shape, run};

    #[test]
    fn everything_is_counted_once_and_the_frontier_passes() {
        let mut dice = Dice::new(31);
        let items = testing::batches(40, &mut dice);
        for workers in [1, 2, 4] {
            let (stats, passed) = (Arc::<Stats>::default(), Passed::default());
            let counted = stats.clone();
            run(Shape::Workers(workers), &items, &mut dice, &Health::default(), &passed, move |stream, _| {
                blackhole(stream, counted.clone())
            });
            let records: usize = items.iter().map(|(_, batch)| batch.records.len()).sum();
            let bytes: usize = items.iter().map(|(_, batch)| batch.payload_bytes()).sum();
            let found = [&stats.batches, &stats.records, &stats.bytes].map(|counter| counter.load(Ordering::Relaxed));
            assert_eq!(found, [items.len(), records, bytes].map(|count| count as u64));
            assert_eq!(passed.epoch(), u64::MAX);
        }
    }
}
