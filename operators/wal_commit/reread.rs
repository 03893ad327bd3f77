//! `wal_reread`: brings messages as they came back into the graph, behind a `wal_commit` that stands before `normalize`: those of the last
//! run, and those that were let go because storage lagged.
//!
//! # In
//! `SpilledBatches`, on the worker that let them go. The frames of the last run are read by one worker: which one of them reads does not
//! matter, as `normalize` sends each batch to the worker of its partition.
//!
//! # Out
//! `Sourced`, messages to be stored and messages for their keys: once for each spilled frame and once for each frame of the last run, published or not, *in the epoch in which it
//! was logged*. So the dedup window, which decides by epochs, decides as it did before: what was dropped is dropped again in favour of the
//! same message, and what is published already is remembered. What the catalog covers goes no further than `settle`.
//!
//! # Holds
//! A capability at the epoch of the next frame of the last run, and for each segment with spilled frames one at the next of these.
//!
//! # Closes when
//! The frames are exhausted and the input is done.
//!
//! # Fails when
//! A frame that was whole when it was written, or at the start, can no longer be read. Its capability is kept.
//!
//! # Invariants
//! - Frames are read in the order of their epochs, over all workers of the process, and an epoch that is begun is read whole. Else what was
//!   read could fill the memory while the window waits for an earlier epoch that finds no room.
//! - But for that, what is read back and not yet received by storage is bounded by `budget::RECALLED_BYTES_MAX` (I-16).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::Error;
use super::ordered::Ordered;
use super::read::{Frames, Reader, RecoveredFrame};
use super::replay::{Stats, arm_timer};
use super::spilled::Spilled;
use crate::backlog::BYTES_PER_SCHEDULING;
use crate::batch::{Sourced, SpilledBatches};
use crate::budget::{Budget, Load};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "wal_reread";

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Frames of the last run: the first worker takes them.
    pub recovered: Arc<Mutex<Option<Ordered>>>,
    /// Whose turn it is.
    pub turns: Arc<Turns>,
    /// Reads spilled frames.
    pub reader: Reader,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Where faults go.
    pub health: Health,
    /// Counters of the backlog.
    pub stats: Arc<Stats>,
}

impl Ports {
    /// The frames of the last run, for the first who asks. From then on it is his turn: what others have let go is of later epochs.
    fn take_recovered(&self, worker: usize) -> Option<Ordered> {
        let mut recovered = lock(&self.recovered);
        let taken = recovered.take()?;
        lock(&self.turns.state).next.insert(worker, Epoch(0));
        Some(taken)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which worker of the process may read: the one whose next frame is of the least epoch.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The epoch of the next frame of each worker that has one.
    next: BTreeMap<usize, Epoch>,
    /// The last epoch of which anything was read.
    begun: Epoch,
}

impl Turns {
    /// States what a worker would read next, and asks whether it may: its turn must be, and there must be room or the epoch begun.
    fn may_read(&self, worker: usize, next: Epoch, has_room: bool) -> bool {
        let mut state = lock(&self.state);
        state.next.insert(worker, next);
        let is_turn = state.next.values().all(|other| next <= *other);
        let may = is_turn && (has_room || next <= state.begun);
        if may {
            state.begun = state.begun.max(next);
        }
        may
    }

    /// States that a worker has nothing to read.
    fn nothing(&self, worker: usize) {
        lock(&self.state).next.remove(&worker);
    }
}

/// Reads back what is in the log alone.
pub fn wal_reread<'s>(stream: Stream<'s, Epoch, Vec<SpilledBatches>>, ports: Ports) -> Stream<'s, Epoch, Vec<Sourced>> {
    let scope = stream.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let mut input = builder.new_input(stream, Pipeline);
    let (output, reread) = builder.new_output::<Vec<Sourced>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<Sourced>>>::from(output);
    builder.build(move |mut capabilities| {
        let recovered = ports.take_recovered(worker);
        let mut backlog = Backlog::new(ports.reader.clone(), capabilities.pop().zip(recovered));
        let mut next_timer = None;
        let mut failed = false;
        move |_frontiers| {
            // 1. Note what was spilled.
            input.for_each(|capability, spilled| {
                let capability = capability.retain_least(0).expect("every run is sent under a capability");
                spilled.drain(..).for_each(|spilled| backlog.spilled.push(&capability, spilled));
            });
            // 2. Read back what there is room for, when it is this worker's turn. A frame that cannot be read keeps its capability.
            let mut output = output.activate();
            let mut bytes = 0;
            while !failed && bytes < BYTES_PER_SCHEDULING {
                let epoch = match backlog.peek() {
                    Ok(Some(epoch)) => epoch,
                    Ok(None) => {
                        ports.turns.nothing(worker);
                        return;
                    }
                    Err(error) => {
                        ports.health.fail(NAME, chain(&error));
                        failed = true;
                        break;
                    }
                };
                if !ports.turns.may_read(worker, epoch, ports.budget.may_recall()) {
                    break;
                }
                if let Some((capability, frame)) = backlog.take(&ports.stats) {
                    bytes += frame.position.bytes as usize;
                    let mut session = output.session(&capability);
                    session.give(recall(frame, &ports));
                    session.flush();
                }
            }
            // 3. Come back for more, at once or when there may be room or it may be this worker's turn.
            if !failed && bytes >= BYTES_PER_SCHEDULING {
                activator.activate();
            } else if !failed {
                arm_timer(&mut next_timer, &activator);
            }
        }
    });
    reread
}

fn recall(frame: RecoveredFrame<Sourced>, ports: &Ports) -> Sourced {
    let RecoveredFrame { position, batch, .. } = frame;
    ports.stats.recalled.fetch_add(1, Ordering::Relaxed);
    let load = Load { bytes: position.bytes as usize, messages: batch.batch().records.len() };
    batch.charged(ports.budget.recall(load))
}

/// What this worker has to read, oldest first.
struct Backlog {
    reader: Reader,
    spilled: Spilled,
    current: Option<Current>,
}

/// What is being read.
struct Current {
    /// At the epoch of the next frame, once that is known.
    capability: Capability<Epoch>,
    next: Option<RecoveredFrame<Sourced>>,
    /// It was let go by this run.
    was_spilled: bool,
    rest: Box<dyn Iterator<Item = Result<RecoveredFrame<Sourced>, Error>>>,
}

impl Backlog {
    fn new(reader: Reader, recovered: Option<(Capability<Epoch>, Ordered)>) -> Self {
        let current =
            recovered.map(|(capability, frames)| Current { capability, next: None, was_spilled: false, rest: Box::new(frames) });
        Backlog { reader, spilled: Spilled::default(), current }
    }

    /// The epoch of the next frame. A capability for what is to come is held until it is known that nothing is.
    fn peek(&mut self) -> Result<Option<Epoch>, Error> {
        loop {
            if let Some(current) = &mut self.current {
                if current.next.is_none() {
                    current.next = current.rest.next().transpose()?;
                }
                if let Some(next) = &current.next {
                    let epoch = next.epoch.max(*current.capability.time());
                    current.capability.downgrade(&epoch);
                    return Ok(Some(epoch));
                }
                self.current = None;
            }
            let Some((capability, runs)) = self.spilled.pop() else { return Ok(None) };
            let frames: Frames<Sourced> = self.reader.frames(runs);
            self.current = Some(Current { capability, next: None, was_spilled: true, rest: Box::new(frames) });
        }
    }

    /// Takes the next frame, if one was peeked at.
    fn take(&mut self, stats: &Stats) -> Option<(Capability<Epoch>, RecoveredFrame<Sourced>)> {
        let current = self.current.as_mut()?;
        if current.was_spilled {
            stats.note_read_back(1);
        }
        current.next.take().map(|frame| (current.capability.clone(), frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_next_epoch_is_the_least_reads_and_an_epoch_that_is_begun_is_read_whole_without_room() {
        let turns = Turns::default();
        assert!(turns.may_read(0, Epoch(5), true));
        assert!(!turns.may_read(1, Epoch(6), true), "the other stands at an earlier one");
        assert!(turns.may_read(0, Epoch(5), false), "begun");
        assert!(!turns.may_read(0, Epoch(7), true), "now it is the other's turn");
        assert!(!turns.may_read(1, Epoch(6), false), "no room, and not begun");
        assert!(turns.may_read(1, Epoch(6), true));
        turns.nothing(1);
        assert!(turns.may_read(0, Epoch(7), true));
        // What was let go late is read, though the room is taken by later epochs: they wait for it.
        assert!(turns.may_read(1, Epoch(4), false));
        assert!(turns.may_read(1, Epoch(7), false));
        assert!(!turns.may_read(1, Epoch(8), false));
    }
}
