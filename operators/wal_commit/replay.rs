//! `wal_replay`: brings frames of the last run back into the graph, behind `wal_commit`.
//!
//! # In
//! The received frontier, for pacing.
//!
//! # Out
//! `DurableBatch`, once for each frame that the catalog does not cover yet.
//!
//! # Holds
//! A capability at the replay epoch it stands at. Replay epochs count from 1, far below those of live data, and each holds a few
//! MiB: so the published frontier stays below live epochs, and the old segments are kept, until all is published again.
//!
//! # Closes when
//! The frames are exhausted.
//!
//! # Fails when
//! A frame that was whole at the start can no longer be read.
//!
//! # Invariants
//! - At most `EPOCHS_AHEAD` replay epochs are on their way to storage: a long log is replayed in constant memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use super::read::Frames;
use crate::batch::{DurableBatch, NormalizedBatch};
use crate::coverage::{OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "wal_replay";

/// Payload bytes of one replay epoch.
const EPOCH_BYTES: usize = 4 << 20;
/// Replay epochs emitted and not yet received by storage.
const EPOCHS_AHEAD: u64 = 8;
/// How long an operator waits that may not read further yet.
const WAIT: Duration = Duration::from_millis(5);

/// The frames of the last run, shared by the workers: each takes the next one when it has room.
pub struct Replay {
    state: Mutex<State>,
    committed: Arc<BTreeMap<PartitionKey, OffsetSet>>,
    health: Health,
}

struct State {
    frames: Option<Frames>,
    epoch: u64,
    epoch_bytes: usize,
}

impl Replay {
    /// Replays `frames` except for those that `committed` covers.
    pub fn new(frames: Frames, committed: Arc<BTreeMap<PartitionKey, OffsetSet>>, health: Health) -> Self {
        Replay { state: Mutex::new(State { frames: Some(frames), epoch: 1, epoch_bytes: 0 }), committed, health }
    }

    /// The next frame with its replay epoch; `None` at the end.
    fn next(&self) -> Option<Result<(Epoch, NormalizedBatch), ()>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let frame = match state.frames.as_mut()?.next() {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.health.fail(NAME, chain(&error));
                    return Some(Err(()));
                }
                None => {
                    state.frames = None;
                    return None;
                }
            };
            if self.is_committed(&frame.batch) {
                continue;
            }
            if state.epoch_bytes >= EPOCH_BYTES {
                state.epoch += 1;
                state.epoch_bytes = 0;
            }
            state.epoch_bytes += frame.batch.payload_bytes();
            return Some(Ok((Epoch(state.epoch), frame.batch)));
        }
    }

    fn is_committed(&self, batch: &NormalizedBatch) -> bool {
        let committed = self.committed.get(&batch.coverage.partition);
        committed.is_some_and(|committed| committed.missing_in(batch.coverage.range()).is_empty())
    }
}

/// Replays the last run's frames; all workers share them.
pub fn wal_replay<'s>(
    scope: Scope<'s, Epoch>,
    replay: Arc<Replay>,
    received: Stream<'s, Epoch, Vec<()>>,
) -> Stream<'s, Epoch, Vec<DurableBatch>> {
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    // The output comes first: the feedback input has no path to it.
    let (output, replayed) = builder.new_output::<Vec<DurableBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<DurableBatch>>>::from(output);
    let mut received_input = builder.new_input_connection(received, Pipeline, []);
    builder.build(move |mut capabilities| {
        let mut capability = capabilities.pop();
        if let Some(capability) = &mut capability {
            capability.downgrade(&Epoch(1));
        }
        move |frontiers| {
            received_input.for_each(|_, data| data.clear());
            let Some(open) = &mut capability else { return };
            // 1. Wait for room.
            let received = frontiers[0].frontier().first().copied().unwrap_or(Epoch(u64::MAX));
            if open.time().0 > received.0.saturating_add(EPOCHS_AHEAD) {
                activator.activate_after(WAIT);
                return;
            }
            // 2. Emit one frame, or end. A frame that cannot be read keeps the capability.
            match replay.next() {
                Some(Ok((epoch, batch))) => {
                    open.downgrade(&epoch);
                    let mut output = output.activate();
                    let mut session = output.session(open);
                    session.give(DurableBatch(batch));
                    session.flush();
                    activator.activate();
                }
                Some(Err(())) => {}
                None => capability = None,
            }
        }
    });
    replayed
}
