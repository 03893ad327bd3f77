//! Decides which partitions may be read, so that one whose messages go on slowly keeps no other waiting (ADR 0020). It calls nothing:
//! the consumer's thread asks each turn and does what it is told.
//!
//! ```text
//! has its share --over--> all reading stands, HOLD at most --still over--> paused alone --drained to half--> has its share
//!                               \--half of its share--> has its share
//! ```
//!
//! A pause throws away what the client has read ahead of the partition, so a pipeline that is merely busy never gets there: standing for some
//! milliseconds costs nothing, since messages of all partitions come through one queue. Once a partition is paused the pipeline is
//! known to be slow, and the next one is paused at once: with any number of busy partitions a quiet one waits for `HOLD` at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::{Lane, Load};
use crate::coverage::PartitionKey;

/// How long all reading stands for one partition before it is paused alone. Long against a sync of the log and an epoch, which is what a busy
/// pipeline waits for; short against what anybody notices of a partition that has nothing to do with it.
pub const HOLD: Duration = Duration::from_millis(200);

/// What the thread is to do with its turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Read.
    Read,
    /// Read nothing.
    Stand,
    /// Read nothing, and close the open batch of this partition: it has nothing else that could drain.
    Close(PartitionKey),
    /// Close its open batch, pause it, and read the others.
    Pause(PartitionKey),
}

/// The partitions of one consumer that may not be read, and the one that is being waited for.
#[derive(Debug, Default)]
pub struct Gate {
    over: Option<Over>,
    waiting: BTreeMap<PartitionKey, Waiting>,
}

#[derive(Debug)]
struct Over {
    partition: PartitionKey,
    lane: Arc<Lane>,
    since: Instant,
}

/// A partition that is paused alone.
#[derive(Debug)]
struct Waiting {
    lane: Arc<Lane>,
    /// It goes on when it has no more than this.
    until: Load,
}

impl Gate {
    /// Notes that a partition has more than its share. Returns true if reading has to stand for it now.
    pub fn note_over(&mut self, partition: &PartitionKey, lane: &Arc<Lane>, now: Instant) -> bool {
        if self.over.is_some() || self.waits(partition) {
            return false;
        }
        self.over = Some(Over { partition: partition.clone(), lane: lane.clone(), since: now });
        true
    }

    /// What is to be done now. `open` is what the partition that is waited for has in its open batch.
    pub fn turn(&mut self, open: impl FnOnce(&PartitionKey) -> Load, now: Instant) -> Turn {
        let Some(over) = &self.over else { return Turn::Read };
        let open = open(&over.partition);
        if over.lane.is_relieved(open) {
            self.over = None;
            return Turn::Read;
        }
        let is_slow = !self.waiting.is_empty() || now.saturating_duration_since(over.since) >= HOLD;
        if !is_slow {
            let drains = over.lane.before_log() != Load::default();
            return if drains { Turn::Stand } else { Turn::Close(over.partition.clone()) };
        }
        let Over { partition, lane, .. } = self.over.take().expect("it was just looked at");
        // What it has now, not its share: a share grows as the others drain.
        let until = lane.before_log().plus(open).half();
        self.waiting.insert(partition.clone(), Waiting { lane, until });
        Turn::Pause(partition)
    }

    /// Partitions that may be read again: drained to half of what they had, and to half of their share.
    pub fn take_drained(&mut self) -> Vec<PartitionKey> {
        // Hardly ever is one paused: this is asked each turn.
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let is_drained =
            |waiting: &Waiting| !waiting.lane.before_log().exceeds(waiting.until) && waiting.lane.is_relieved(Load::default());
        self.waiting.extract_if(.., |_, waiting| is_drained(waiting)).map(|(partition, _)| partition).collect()
    }

    /// True if reading stands for a partition.
    pub fn stands(&self) -> bool {
        self.over.is_some()
    }

    /// True if the partition is paused alone.
    pub fn waits(&self, partition: &PartitionKey) -> bool {
        self.waiting.contains_key(partition)
    }

    /// Forgets a partition that is given up.
    pub fn forget(&mut self, partition: &PartitionKey) {
        self.over.take_if(|over| over.partition == *partition);
        self.waiting.remove(partition);
    }
}

#[cfg(test)]
mod tests;
