//! Operators that change batches one by one: a core with two functions, and the shell that all of them share.
//!
//! # In, Out
//! Batches of one type; each leaves as one batch, in its order, on its worker, in its epoch.
//!
//! # Holds
//! What the core keeps, and a backlog: batches that it has not come to, with their capabilities.
//!
//! # Closes when
//! Its input is closed and its backlog changed.
//!
//! # Fails when
//! Its options are refused, which `check` tells before anything starts. A core cannot refuse a batch: a message that is to go to the dead
//! letter is `normalize`'s to reject.
//!
//! # Invariants
//! - A batch accounts for the same offsets when it leaves as when it came.

#[cfg(doctest)]
#[doc = include_str!("../docs/adding-an-operator.md")]
struct AddingAnOperator;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::Operator;

use crate::backlog::Backlog;
use crate::batch::Measured;
use crate::epoch::Epoch;
use crate::options::{Declared, Options};

/// The core of an operator that changes batches one by one.
pub trait Transform: Sized + 'static {
    /// What comes in and goes out.
    type Batch: Clone + Measured + 'static;

    /// The operator's name in graphs, metrics and faults.
    const NAME: &'static str;
    /// What it does, as a sentence.
    const MEANING: &'static str;
    /// What it can be told.
    const OPTIONS: &'static [Declared];

    /// A core with these options, or why they cannot work.
    fn new(options: &Options) -> Result<Self, String>;

    /// Changes one batch.
    fn apply(&mut self, batch: Self::Batch) -> Self::Batch;
}

/// Passes every batch through `core`.
pub fn transform<'s, T: Transform>(mut core: T, stream: Stream<'s, Epoch, Vec<T::Batch>>) -> Stream<'s, Epoch, Vec<T::Batch>> {
    let scope = stream.scope();
    stream.unary::<CapacityContainerBuilder<Vec<T::Batch>>, _, _, _>(Pipeline, T::NAME, |_capability, info| {
        let mut backlog = Backlog::new(scope.activator_for(info.address));
        move |input, output| {
            // 1. Take what is there.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                backlog.take(&capability, batches);
            });
            // 2. Change some of it.
            for (capability, batch) in backlog.turn() {
                output.session(&capability).give(core.apply(batch));
            }
        }
    })
}
