//! `settle`: the last look at messages before they become rows, where the log stands before `normalize`.
//!
//! # In
//! `UniqueBatch`, on the worker that normalized it, and the frontier of the dead letter.
//!
//! # Out
//! `DurableBatch`, without a place in the log: that holds the messages as they came. Left out are the batches whose offsets the catalog covered at the start: the
//! log keeps what is published for as long as the dedup window is to be warmed up from it.
//!
//! # Holds
//! The batches of an epoch, and a capability for it, until the dead letter has all of its rejects.
//!
//! # Closes when
//! The input frontier is empty and the dead letter has passed it.
//!
//! # Fails when
//! Never.
//!
//! # Invariants
//! - No offset of a rejected message is published before the message is in every dead letter (I-3). So what the catalog covers has its
//!   rejects there, and [`new_rejects`] leaves them out.

use std::collections::BTreeMap;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{Operator, OutputBuilder};

use crate::batch::{DurableBatch, Reject, UniqueBatch};
use crate::budget::Charge;
use crate::coverage::{OffsetSet, PartitionKey};
use crate::epoch::Epoch;

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "settle";

/// What the catalog covered at the start.
pub type Committed = Arc<BTreeMap<PartitionKey, OffsetSet>>;

/// Passes on what is not published, once its rejects are in the dead letter.
pub fn settle<'s>(
    stream: Stream<'s, Epoch, Vec<UniqueBatch>>,
    dead_letter: Stream<'s, Epoch, Vec<()>>,
    committed: Committed,
) -> Stream<'s, Epoch, Vec<DurableBatch>> {
    let mut builder = OperatorBuilder::new(NAME.into(), stream.scope());
    let mut input = builder.new_input(stream, Pipeline);
    let (output, settled) = builder.new_output::<Vec<DurableBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<DurableBatch>>>::from(output);
    // It has no path to the output: its frontier is news, no data comes.
    let mut dead_letter_input = builder.new_input_connection(dead_letter, Pipeline, []);
    builder.build(move |_capabilities| {
        let mut open: BTreeMap<Epoch, (Capability<Epoch>, Vec<DurableBatch>)> = BTreeMap::new();
        move |frontiers| {
            dead_letter_input.for_each(|_, data| data.clear());
            // 1. Keep what is new.
            input.for_each(|capability, batches| {
                let capability = capability.retain_least(0).expect("every batch is sent under a capability");
                let (_, held) = open.entry(*capability.time()).or_insert_with(|| (capability, Vec::new()));
                let new = batches.drain(..).filter(|UniqueBatch(batch)| {
                    let committed = committed.get(&batch.coverage.partition);
                    !committed.is_some_and(|committed| committed.missing_in(batch.coverage.range()).is_empty())
                });
                held.extend(new.map(|UniqueBatch(batch)| DurableBatch { batch, position: None, charge: Charge::default() }));
            });
            // 2. Send the epochs whose rejects are kept.
            let mut output = output.activate();
            while let Some(entry) = open.first_entry().filter(|entry| !frontiers[1].less_equal(entry.key())) {
                let (capability, mut batches) = entry.remove();
                let mut session = output.session(&capability);
                session.give_iterator(batches.drain(..));
                session.flush();
            }
        }
    });
    settled
}

/// The rejects whose offsets the catalog did not cover at the start: the others are in the dead letter.
pub fn new_rejects<'s>(stream: Stream<'s, Epoch, Vec<Reject>>, committed: Committed) -> Stream<'s, Epoch, Vec<Reject>> {
    stream.unary::<CapacityContainerBuilder<Vec<Reject>>, _, _, _>(Pipeline, "new_rejects", |_capability, _info| {
        move |input, output| {
            input.for_each(|capability, rejects| {
                let is_new = |reject: &Reject| {
                    let committed = committed.get(&reject.partition);
                    committed.is_none_or(|committed| committed.range_around(reject.record.offset).is_none())
                };
                output.session(&capability).give_iterator(rejects.drain(..).filter(|reject| is_new(reject)));
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use timely::dataflow::operators::{Input, Inspect, Probe};

    use super::*;
    use crate::batch::{Group, Signal};
    use crate::testing::{batch, partition};

    fn unique(start: i64) -> UniqueBatch {
        let group = Group { index: "i".into(), signal: Signal::Logs };
        UniqueBatch(batch(&group, partition("t", 0), start, &vec![vec![0]; 10]))
    }

    #[test]
    fn nothing_goes_on_before_its_rejects_are_kept_and_what_is_published_not_at_all() {
        timely::execute_directly(|worker| {
            let mut covered = OffsetSet::default();
            covered.insert(0..15);
            let committed: Committed = Arc::new([(partition("t", 0), covered)].into_iter().collect());
            let seen = Rc::new(RefCell::new(Vec::new()));
            let seeing = seen.clone();
            let (mut batches, mut letters, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
                let (batches, stream) = scope.new_input::<Vec<UniqueBatch>>();
                let (letters, dead_letter) = scope.new_input::<Vec<()>>();
                let settled = settle(stream, dead_letter, committed);
                let settled = settled.inspect(move |durable| seeing.borrow_mut().push(durable.batch.coverage.start));
                (batches, letters, settled.probe().0)
            });
            for (epoch, start) in [(1, 0), (2, 10), (3, 20)] {
                batches.advance_to(Epoch(epoch));
                batches.send(unique(start));
            }
            batches.close();
            // A batch of which a part is stored goes on whole: storage drops that part.
            for (kept, expected) in [(2, &[][..]), (3, &[10]), (4, &[10, 20])] {
                letters.advance_to(Epoch(kept));
                for _ in 0..20 {
                    worker.step();
                }
                assert_eq!(*seen.borrow(), expected);
                assert_eq!(probe.less_equal(&Epoch(3)), kept < 4, "epochs that wait hold the frontier");
            }
            letters.close();
            while worker.step() {}
            assert!(probe.done());
        });
    }
}
