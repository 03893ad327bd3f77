//! What a worker has let go and not read back yet: runs of frames, segment by segment, oldest first.

use std::collections::VecDeque;
use std::ops::Range;

use timely::dataflow::operators::Capability;

use super::read::Run;
use crate::batch::SpilledBatches;
use crate::epoch::Epoch;

/// Frames of one segment that are not read back. The other workers' frames lie among them, so they are many runs; and since segments
/// are released whole, one capability is enough for all, however long storage is away.
struct Chapter {
    /// At the epoch of its first frame, the least: a worker's epochs ascend in the log.
    capability: Capability<Epoch>,
    segment: u64,
    /// What lies back to back, joined.
    runs: Vec<Range<u64>>,
}

/// All of it.
#[derive(Default)]
pub(super) struct Spilled {
    chapters: VecDeque<Chapter>,
}

impl Spilled {
    /// Notes what was let go.
    pub fn push(&mut self, capability: &Capability<Epoch>, SpilledBatches { run: Run { segment, bytes }, .. }: SpilledBatches) {
        match self.chapters.back_mut().filter(|last| last.segment == segment) {
            Some(Chapter { runs, .. }) => match runs.last_mut().filter(|last| last.end == bytes.start) {
                Some(last) => last.end = bytes.end,
                None => runs.push(bytes),
            },
            None => self.chapters.push_back(Chapter { capability: capability.clone(), segment, runs: vec![bytes] }),
        }
    }

    /// Takes the oldest segment's runs, with the capability for what comes of them.
    pub fn pop(&mut self) -> Option<(Capability<Epoch>, Vec<Run>)> {
        let Chapter { capability, segment, runs } = self.chapters.pop_front()?;
        Some((capability, runs.into_iter().map(|bytes| Run { segment, bytes }).collect()))
    }

    /// True if nothing waits to be read back.
    pub fn is_empty(&self) -> bool {
        self.chapters.is_empty()
    }
}
