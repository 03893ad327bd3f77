//! Frames of messages as they came, in the order of their epochs: the order in which the dedup window decided about them.
//!
//! Several workers write one log, so that a later frame may be of an earlier epoch. What was walked is cut into runs that ascend; they
//! are few, and seldom more than one for each worker lie side by side.
//!
//! ```text
//! in the log:     5 6 7 | 5 6 | 8 9 | 7 8 9            merged:  5 5 6 6 7 7 8 8 9 9
//! ```
//!
//! Epochs are times of the day, and a clock may have been set back between two runs of the process. Each run of the process is moved back as far as is
//! needed to lie before the next one, and the last one before what is read now; mostly by nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Error;
use super::disk::Disk;
use super::read::{Frames, RecoveredFrame, Run};
use crate::batch::Sourced;
use crate::coverage::{OffsetSet, PartitionKey};
use crate::epoch::Epoch;

/// What one run of the process has left in the log.
#[derive(Clone, Debug)]
pub(super) struct OwnRun {
    /// When it started; unknown where a header is damaged.
    started: Option<u64>,
    first: Epoch,
    last: Epoch,
    /// Runs that ascend, each with its first epoch.
    ascents: Vec<(Epoch, Run)>,
}

impl OwnRun {
    /// Adds what was found in the next segment.
    pub(super) fn add(all: &mut Vec<OwnRun>, started: Option<u64>, epochs: Option<(Epoch, Epoch)>, ascents: Vec<(Epoch, Run)>) {
        let Some((first, last)) = epochs.filter(|_| !ascents.is_empty()) else { return };
        // A segment whose header is damaged is taken for one of the same run as the segment before it.
        match all.last_mut().filter(|own| started.is_none() || own.started == started) {
            Some(own) => {
                (own.first, own.last) = (own.first.min(first), own.last.max(last));
                own.ascents.extend(ascents);
            }
            None => all.push(OwnRun { started, first, last, ascents }),
        }
    }
}

/// The frames, merged.
pub struct Ordered {
    disk: Arc<dyn Disk>,
    left_out: Arc<BTreeMap<PartitionKey, OffsetSet>>,
    runs: VecDeque<Moved>,
    open: Vec<Open>,
}

/// A run of the process, and by how much it is moved back.
struct Moved {
    by: u64,
    /// By first epoch.
    ascents: VecDeque<(Epoch, Run)>,
}

struct Open {
    frames: Frames<Sourced>,
    next: RecoveredFrame<Sourced>,
}

impl Ordered {
    pub(super) fn new(disk: Arc<dyn Disk>, runs: Vec<OwnRun>, before: Epoch) -> Self {
        let mut limit = before.0;
        let mut moved = VecDeque::new();
        for OwnRun { first, last, mut ascents, .. } in runs.into_iter().rev() {
            let by = (last.0 + 1).saturating_sub(limit);
            limit = first.0.saturating_sub(by);
            ascents.sort_by_key(|(epoch, run)| (*epoch, run.segment, run.bytes.start));
            moved.push_front(Moved { by, ascents: ascents.into() });
        }
        Ordered { disk, left_out: Arc::default(), runs: moved, open: Vec::new() }
    }

    /// The same without frames all of whose offsets are among these.
    pub fn leaving_out(self, offsets: Arc<BTreeMap<PartitionKey, OffsetSet>>) -> Self {
        Ordered { left_out: offsets, ..self }
    }

    fn is_left_out(&self, sourced: &Sourced) -> bool {
        let Sourced::Read(batch) = sourced else { return false };
        let offsets = self.left_out.get(&batch.partition);
        offsets.is_some_and(|offsets| offsets.missing_in(batch.start..batch.end).is_empty())
    }

    fn next_of_all(&mut self) -> Option<Result<RecoveredFrame<Sourced>, Error>> {
        let least = match self.least() {
            Ok(least) => least?,
            Err(error) => return Some(Err(error)),
        };
        let by = self.runs.front().map_or(0, |moved| moved.by);
        let open = &mut self.open[least];
        let frame = match open.frames.next() {
            Some(Ok(next)) => std::mem::replace(&mut open.next, next),
            // What is behind is missing: nobody may go on as if it were not.
            Some(Err(error)) => return Some(Err(error)),
            None => self.open.swap_remove(least).next,
        };
        Some(Ok(RecoveredFrame { epoch: Epoch(frame.epoch.0.saturating_sub(by).max(1)), ..frame }))
    }

    /// The open run whose next frame is the least; those that begin before it are opened.
    fn least(&mut self) -> Result<Option<usize>, Error> {
        loop {
            let key = |open: &Open| (open.next.epoch, open.next.position);
            let least = (0..self.open.len()).min_by_key(|open| key(&self.open[*open]));
            let Some(moved) = self.runs.front_mut() else { return Ok(None) };
            let is_due = |(epoch, _): &&(Epoch, Run)| least.is_none_or(|least| *epoch <= self.open[least].next.epoch);
            match moved.ascents.front().filter(is_due).cloned() {
                Some((_, run)) => {
                    moved.ascents.pop_front();
                    let mut frames = Frames::new(self.disk.clone(), [run]);
                    if let Some(next) = frames.next().transpose()? {
                        self.open.push(Open { frames, next });
                    }
                }
                None if least.is_some() => return Ok(least),
                // The next run of the process.
                None => drop(self.runs.pop_front()),
            }
        }
    }
}

impl Iterator for Ordered {
    type Item = Result<RecoveredFrame<Sourced>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_of_all()? {
                Ok(frame) if self.is_left_out(&frame.batch) => {}
                next => return Some(next),
            }
        }
    }
}
