//! `wal_replay`: brings frames back into the graph, behind `wal_commit`: those of the last run, and those whose payloads were let go
//! because storage lagged.
//!
//! # In
//! `SpilledBatches`, on the worker that let them go. The frames of the last run are shared by all workers.
//!
//! # Out
//! `DurableBatch`, once for each spilled frame, and for each frame of the last run that the catalog does not cover yet.
//!
//! # Holds
//! Of the last run a capability at the replay epoch it stands at: replay epochs count from 1, far below those of live data, and each
//! holds a few MiB. Of what was spilled a capability for each segment with frames that are not read back, at the epoch of the first of
//! them. So the published frontier stays below both, and the segments are kept.
//!
//! # Closes when
//! The frames are exhausted and the input is done.
//!
//! # Fails when
//! A frame that was whole when it was written, or at the start, can no longer be read. Its capability is kept.
//!
//! # Invariants
//! - Frames read back and not yet received by storage are bounded by `budget::RECALLED_BYTES_MAX`: a backlog as large as the disk is
//!   drained in constant memory. The bound is not shared with live data, so neither starves the other (I-16).
//! - What is held for a spilled run, 16 bytes, is independent of its length; runs are joined where no other worker's frames lie between.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::Activator;
use tracing::info;

use super::read::{Frames, Reader, RecoveredFrame};
use super::spilled::Spilled;
use crate::backlog::BYTES_PER_SCHEDULING;
use crate::batch::{DurableBatch, NormalizedBatch, SpilledBatches};
use crate::budget::{Budget, Load};
use crate::coverage::{OffsetSet, PartitionKey};
use crate::epoch::Epoch;
use crate::fault::{Health, chain};

/// The operator's name in graphs, metrics and faults.
pub const NAME: &str = "wal_replay";

/// Payload bytes of one replay epoch.
const EPOCH_BYTES: usize = 4 << 20;
/// How long an operator waits that may not read further yet: memory is freed on other threads, which do not know of it.
const WAIT: Duration = Duration::from_millis(5);

/// What the operator needs from outside.
#[derive(Clone)]
pub struct Ports {
    /// Frames of the last run.
    pub replay: Arc<Replay>,
    /// Reads spilled frames.
    pub reader: Reader,
    /// The memory budget.
    pub budget: Arc<Budget>,
    /// Where faults go.
    pub health: Health,
    /// Counters of the backlog.
    pub stats: Arc<Stats>,
}

/// Counters of what was let go and read back, written by `wal_commit` and `wal_replay` and read by anybody.
#[derive(Debug, Default)]
pub struct Stats {
    /// Batches whose payloads were let go.
    pub spilled: AtomicU64,
    /// Spilled batches that are not read back yet.
    pub backlog: AtomicU64,
    /// Batches read back, those of the last run included.
    pub recalled: AtomicU64,
}

impl Stats {
    /// Counts batches whose payloads were let go.
    pub fn note_spilled(&self, batches: u64) {
        self.spilled.fetch_add(batches, Ordering::Relaxed);
        if self.backlog.fetch_add(batches, Ordering::Relaxed) == 0 {
            info!("storage lags: batches are kept in the write-ahead log alone");
        }
    }

    pub(super) fn note_read_back(&self, batches: u64) {
        if self.backlog.fetch_sub(batches, Ordering::Relaxed) == batches {
            info!("the backlog in the write-ahead log is read back");
        }
    }
}

/// The frames of the last run, shared by the workers: each takes the next one when it has room.
pub struct Replay {
    state: Mutex<State>,
    committed: Arc<BTreeMap<PartitionKey, OffsetSet>>,
}

struct State {
    frames: Option<Frames>,
    epoch: u64,
    epoch_bytes: usize,
}

impl Replay {
    /// Replays `frames` except for those that `committed` covers.
    pub fn new(frames: Frames, committed: Arc<BTreeMap<PartitionKey, OffsetSet>>) -> Self {
        Replay { state: Mutex::new(State { frames: Some(frames), epoch: 1, epoch_bytes: 0 }), committed }
    }

    /// The next frame with its replay epoch; `None` at the end.
    fn next(&self) -> Option<Result<(Epoch, RecoveredFrame), super::Error>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let frame = match state.frames.as_mut()?.next() {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Some(Err(error)),
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
            return Some(Ok((Epoch(state.epoch), frame)));
        }
    }

    fn is_committed(&self, batch: &NormalizedBatch) -> bool {
        let committed = self.committed.get(&batch.coverage.partition);
        committed.is_some_and(|committed| committed.missing_in(batch.coverage.range()).is_empty())
    }
}

/// Reads back what is in the log alone.
pub fn wal_replay<'s>(stream: Stream<'s, Epoch, Vec<SpilledBatches>>, ports: Ports) -> Stream<'s, Epoch, Vec<DurableBatch>> {
    let scope = stream.scope();
    let mut builder = OperatorBuilder::new(NAME.into(), scope);
    let activator = scope.activator_for(builder.operator_info().address);
    let mut input = builder.new_input(stream, Pipeline);
    let (output, replayed) = builder.new_output::<Vec<DurableBatch>>();
    let mut output = OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<DurableBatch>>>::from(output);
    builder.build(move |mut capabilities| {
        let mut recovered = capabilities.pop();
        if let Some(capability) = &mut recovered {
            capability.downgrade(&Epoch(1));
        }
        let mut backlog = Backlog::new(ports.reader.clone());
        let mut next_timer = None;
        let mut failed = false;
        move |_frontiers| {
            // 1. Note what was spilled.
            input.for_each(|capability, spilled| {
                let capability = capability.retain_least(0).expect("every run is sent under a capability");
                spilled.drain(..).for_each(|spilled| backlog.spilled.push(&capability, spilled));
            });
            // 2. Read back what there is room for: first the last run, which is older. A frame that cannot be read keeps its
            // capability.
            let mut output = output.activate();
            let mut bytes = 0;
            while !failed && bytes < BYTES_PER_SCHEDULING && ports.budget.may_recall() {
                let read = next_recovered(&mut recovered, &ports.replay).or_else(|| backlog.next(&ports.stats));
                let Some(read) = read else { return };
                match read {
                    Ok((capability, frame)) => {
                        bytes += frame.position.bytes as usize;
                        let mut session = output.session(&capability);
                        session.give(recall(frame, &ports));
                        session.flush();
                    }
                    Err(error) => {
                        ports.health.fail(NAME, chain(&error));
                        failed = true;
                    }
                }
            }
            // 3. Come back for more, at once or when there may be room.
            if !failed && bytes >= BYTES_PER_SCHEDULING {
                activator.activate();
            } else if recovered.is_some() || !backlog.is_empty() {
                arm_timer(&mut next_timer, &activator);
            }
        }
    });
    replayed
}

type Read = Result<(Capability<Epoch>, RecoveredFrame), super::Error>;

fn next_recovered(recovered: &mut Option<Capability<Epoch>>, replay: &Replay) -> Option<Read> {
    let capability = recovered.as_mut()?;
    match replay.next() {
        Some(Ok((epoch, frame))) => {
            capability.downgrade(&epoch);
            Some(Ok((capability.clone(), frame)))
        }
        Some(Err(error)) => Some(Err(error)),
        None => {
            *recovered = None;
            None
        }
    }
}

fn recall(frame: RecoveredFrame, ports: &Ports) -> DurableBatch {
    let RecoveredFrame { position, batch, .. } = frame;
    ports.stats.recalled.fetch_add(1, Ordering::Relaxed);
    let charge = ports.budget.recall(Load { bytes: position.bytes as usize, messages: batch.records.len() });
    DurableBatch { batch, position: Some(position), charge }
}

/// One timer at a time: `activate_after` never deduplicates.
pub(super) fn arm_timer(next: &mut Option<Instant>, activator: &Activator) {
    let now = Instant::now();
    if next.is_none_or(|timer| timer <= now) {
        *next = Some(now + WAIT);
        activator.activate_after(WAIT);
    }
}

/// What this worker has let go, oldest first.
struct Backlog {
    reader: Reader,
    spilled: Spilled,
    current: Option<(Capability<Epoch>, Frames)>,
}

impl Backlog {
    fn new(reader: Reader) -> Self {
        Backlog { reader, spilled: Spilled::default(), current: None }
    }

    fn is_empty(&self) -> bool {
        self.current.is_none() && self.spilled.is_empty()
    }

    fn next(&mut self, stats: &Stats) -> Option<Read> {
        loop {
            if let Some((capability, frames)) = &mut self.current {
                match frames.next() {
                    Some(Ok(frame)) => {
                        stats.note_read_back(1);
                        return Some(Ok((capability.clone(), frame)));
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None => self.current = None,
                }
            }
            let (capability, runs) = self.spilled.pop()?;
            self.current = Some((capability, self.reader.frames(runs)));
        }
    }
}
