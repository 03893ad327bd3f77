//! What an operator was given and has not worked on: each scheduling takes a piece of it, and the worker comes back for the rest.
//!
//! An operator that works off everything at once keeps its worker for as long as it takes. The others hear of no epoch that it has finished
//! meanwhile, run out of what they may begin, and wait; then it waits for them. Workers take turns instead of working side by side.

use std::collections::VecDeque;

use timely::scheduling::Activator;

use crate::batch::Measured;

/// Bytes that an operator works on in one scheduling, sources too, so that nothing piles up behind them: about a millisecond of the slowest
/// work, decoding JSON, and a hundred times what a scheduling costs.
pub(crate) const BYTES_PER_SCHEDULING: usize = 256 << 10;

/// Batches that wait for their turn, each with what it is held by (a capability, or one for each output).
pub struct Backlog<H, B> {
    batches: VecDeque<(H, B)>,
    activator: Activator,
}

impl<H: Clone, B: Measured> Backlog<H, B> {
    /// Nothing yet; `activator` is the operator's own.
    pub fn new(activator: Activator) -> Self {
        Backlog { batches: VecDeque::new(), activator }
    }

    /// Takes all of `batches`, which are held by `held`.
    pub fn take(&mut self, held: &H, batches: &mut Vec<B>) {
        self.batches.extend(batches.drain(..).map(|batch| (held.clone(), batch)));
    }

    /// The batches of one scheduling, in the order in which they came: at least one, if there are any. Has the operator scheduled again for the rest.
    pub fn turn(&mut self) -> impl Iterator<Item = (H, B)> {
        let mut bytes = 0;
        let is_begun = |(_, batch): &&(H, B)| {
            let is_open = bytes < BYTES_PER_SCHEDULING;
            bytes += batch.bytes().max(1);
            is_open
        };
        let count = self.batches.iter().take_while(is_begun).count();
        if count < self.batches.len() {
            self.activator.activate();
        }
        self.batches.drain(..count)
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use timely::container::CapacityContainerBuilder;
    use timely::dataflow::channels::pact::Pipeline;
    use timely::dataflow::operators::Probe;
    use timely::dataflow::operators::generic::Operator;
    use timely::dataflow::operators::vec::Input;

    use super::*;
    use crate::epoch::Epoch;

    /// Of so many bytes.
    #[derive(Clone, Debug, PartialEq)]
    struct Piece(usize);

    impl Measured for Piece {
        fn records(&self) -> usize {
            1
        }
        fn bytes(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn what_has_piled_up_is_worked_off_in_turns_and_each_epoch_is_passed_when_its_own_are_done() {
        const HALF: usize = BYTES_PER_SCHEDULING / 2;
        timely::execute_directly(|worker| {
            let seen = Rc::new(RefCell::new(Vec::new()));
            let to = seen.clone();
            let (mut input, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
                let (input, stream) = scope.new_input::<Piece>();
                let worked =
                    stream.unary::<CapacityContainerBuilder<Vec<Piece>>, _, _, _>(Pipeline, "works", |_capability, info| {
                        let mut backlog = Backlog::new(scope.activator_for(info.address));
                        move |input, output| {
                            input.for_each(|capability, pieces| {
                                backlog.take(&capability.retain_least(0).expect("a capability"), pieces);
                            });
                            for (capability, piece) in backlog.turn() {
                                to.borrow_mut().push((capability.time().0, piece.0));
                                output.session(&capability).give(piece);
                            }
                        }
                    });
                (input, worked.probe().0)
            });
            // Of the second epoch every piece exceeds a turn.
            const LARGE: usize = 3 * BYTES_PER_SCHEDULING;
            [HALF, HALF, 0].into_iter().for_each(|bytes| input.send(Piece(bytes)));
            input.advance_to(Epoch(1));
            [LARGE; 6].into_iter().for_each(|bytes| input.send(Piece(bytes)));
            input.close();
            let (mut turns, mut worked_when_passed) = (Vec::new(), None);
            while !probe.done() {
                let before = seen.borrow().len();
                worker.step();
                let worked = seen.borrow()[before..].to_vec();
                turns.extend(Some(worked).filter(|worked| !worked.is_empty()));
                if worked_when_passed.is_none() && !probe.less_equal(&Epoch(0)) {
                    worked_when_passed = Some(seen.borrow().len());
                }
            }
            let worked_when_passed = worked_when_passed.expect("both epochs are passed in the end");
            assert!(worked_when_passed < 9, "the first epoch is passed before the second one is worked off");
            let mut expected = vec![vec![(0, HALF), (0, HALF)], vec![(0, 0), (1, LARGE)]];
            expected.extend([const { (1, LARGE) }; 5].map(|piece| vec![piece]));
            assert_eq!(turns, expected);
        });
    }
}
