//! The memory budget of an ingest process: what may be between the source and storage, and what is (design D-9).
//!
//! Every batch carries a [`Charge`], which gives its bytes and messages back when the last owner lets go: on every path, also where a
//! batch is thrown away. So the budget cannot be wrong about filters, exchanges, retries or failover.
//!
//! ```text
//! collected .. normalized .. in the log's queue | durable .. encoded .. sent | received
//! <------------------------------- in flight: limit ------------------------>
//!                                               <- behind the log: limit / 2 >
//!                                               <- read back: limit / 2, RECALLED_BYTES_MAX at most >
//! ```
//!
//! Behind the log nothing has to stay in memory. A durable batch that finds its half of the budget taken is let go, and `wal_replay`
//! reads it back later, within a bound of its own: so live data never waits for the backlog, nor the backlog for live data.
//!
//! Partitions share the budget by a *dynamic threshold* (ADR 0020): each has a [`Lane`], and may have before the log at most
//! [`THRESHOLD_FACTOR`] times what is free of the budget. So one that is busy alone gets nearly all of it, many that are busy get equal
//! parts, and always some room is left for one that was quiet. What is behind the log does not count against its partition: it can
//! always be let go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::coverage::PartitionKey;

#[cfg(test)]
mod tests;

/// How many times what is free a partition may have before the log. With n busy partitions 1 / (1 + 8 n) of the budget stays free for
/// quiet ones: a ninth with one, 1.5 % with eight. A smaller factor wastes memory where one partition is busy, a larger one leaves
/// a quiet one less than a batch.
pub const THRESHOLD_FACTOR: usize = 8;

/// Most bytes of batches read back from the log and not yet received by storage: a few deliveries in flight, with more being encoded. A
/// smaller budget has half of itself for them.
pub const RECALLED_BYTES_MAX: usize = 32 << 20;

/// An amount of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Arena bytes: keys, payloads and headers.
    pub bytes: usize,
    /// Messages.
    pub messages: usize,
}

impl Load {
    /// True if it is more than `other`, in bytes or in messages.
    pub fn exceeds(self, other: Load) -> bool {
        self.bytes > other.bytes || self.messages > other.messages
    }

    /// The half of it.
    pub fn half(self) -> Load {
        Load { bytes: self.bytes / 2, messages: self.messages / 2 }
    }

    /// Both together.
    pub fn plus(self, other: Load) -> Load {
        Load { bytes: self.bytes + other.bytes, messages: self.messages + other.messages }
    }

    fn less(self, other: Load) -> Load {
        Load { bytes: self.bytes.saturating_sub(other.bytes), messages: self.messages.saturating_sub(other.messages) }
    }
}

#[derive(Debug, Default)]
struct Meter {
    bytes: AtomicUsize,
    messages: AtomicUsize,
}

impl Meter {
    fn add(&self, load: Load) {
        self.bytes.fetch_add(load.bytes, Ordering::AcqRel);
        self.messages.fetch_add(load.messages, Ordering::AcqRel);
    }

    fn subtract(&self, load: Load) {
        self.bytes.fetch_sub(load.bytes, Ordering::AcqRel);
        self.messages.fetch_sub(load.messages, Ordering::AcqRel);
    }

    fn load(&self) -> Load {
        Load { bytes: self.bytes.load(Ordering::Acquire), messages: self.messages.load(Ordering::Acquire) }
    }
}

/// Bounds what is in flight; shared by the workers of a process.
#[derive(Debug)]
pub struct Budget {
    limit: Load,
    in_flight: Meter,
    behind: Meter,
    recalled: Meter,
    /// The process takes nearly as much memory as it may.
    pressed: AtomicBool,
    /// Lanes that a collector or a batch still holds.
    lanes: Mutex<BTreeMap<PartitionKey, Weak<Lane>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    InFlight,
    Behind,
    Recalled,
}

impl Budget {
    /// A budget of `limit`, half of it behind the log.
    pub fn new(limit: Load) -> Arc<Self> {
        let (in_flight, behind, recalled) = (Meter::default(), Meter::default(), Meter::default());
        Arc::new(Budget { limit, in_flight, behind, recalled, pressed: AtomicBool::new(false), lanes: Mutex::default() })
    }

    /// The lane of `partition`: the same as long as anything of it is in flight.
    pub fn lane(self: &Arc<Self>, partition: &PartitionKey) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(partition).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(Lane { budget: self.clone(), in_flight: Meter::default(), behind: Meter::default() });
        lanes.insert(partition.clone(), Arc::downgrade(&lane));
        lane
    }

    /// Counts what is being collected. `seal` makes it the charge of a batch.
    pub fn collect(&self, load: Load) {
        self.in_flight.add(load);
    }

    /// The charge of a batch whose load `collect` has counted, of no partition's lane.
    pub fn seal(self: &Arc<Self>, load: Load) -> Charge {
        self.charge(None, load, Part::InFlight)
    }

    /// Takes room behind the log for a durable batch with `charge`; `None` if its payload has to be let go. A batch larger than all the
    /// room takes it alone.
    pub fn stay(self: &Arc<Self>, charge: &Charge) -> Option<Charge> {
        let (before, load) = (self.behind.load(), charge.load());
        let fits = !self.is_pressed() && !before.plus(load).exceeds(self.limit.half());
        if !fits && before != Load::default() {
            return None;
        }
        // Two workers may take the last room at once: the bound is exceeded by a batch a worker.
        let lane = charge.held.as_ref().and_then(|held| held.lane.clone());
        Some(self.add_charge(lane, load, Part::Behind))
    }

    /// True if a batch may be read back.
    pub fn may_recall(&self) -> bool {
        self.recalled.load().bytes < RECALLED_BYTES_MAX.min(self.limit.bytes / 2)
    }

    /// The charge of a batch that was read back.
    pub fn recall(self: &Arc<Self>, load: Load) -> Charge {
        self.add_charge(None, load, Part::Recalled)
    }

    /// What is in flight, batches that were read back not counted.
    pub fn in_flight(&self) -> Load {
        self.in_flight.load()
    }

    /// What of it is behind the log.
    pub fn behind(&self) -> Load {
        self.behind.load()
    }

    /// What may be in flight.
    pub fn limit(&self) -> Load {
        self.limit
    }

    /// What one partition may have before the log, as things are.
    pub fn threshold(&self) -> Load {
        let free = self.limit.less(self.in_flight());
        let times = |amount: usize| amount.saturating_mul(THRESHOLD_FACTOR);
        Load { bytes: times(free.bytes), messages: times(free.messages) }
    }

    /// States whether the process takes nearly as much memory as it may, whatever this budget knows of.
    pub fn press(&self, pressed: bool) {
        self.pressed.store(pressed, Ordering::Release);
    }

    /// What was stated last.
    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Acquire)
    }

    /// True if what is on its way to the log has to get there before more comes. An eighth may be on its way all the same: to wait for less
    /// would free next to nothing, and where the ceiling was set too low nothing would go on.
    fn must_drain(&self, in_flight: Load) -> bool {
        let part = Load { bytes: self.limit.bytes / 8, messages: self.limit.messages / 8 };
        self.is_pressed() && in_flight.less(self.behind()).exceeds(part)
    }

    /// True if nothing should be read any more.
    pub fn is_full(&self) -> bool {
        let in_flight = self.in_flight();
        in_flight.bytes >= self.limit.bytes || in_flight.messages >= self.limit.messages || self.must_drain(in_flight)
    }

    /// True if reading may be resumed: it waits for a quarter to be free again, or a full pipeline would pause and resume with every
    /// batch.
    pub fn has_room(&self) -> bool {
        let in_flight = self.in_flight();
        let Load { bytes, messages } = in_flight;
        bytes <= self.limit.bytes / 4 * 3 && messages <= self.limit.messages / 4 * 3 && !self.must_drain(in_flight)
    }

    fn add_charge(self: &Arc<Self>, lane: Option<Arc<Lane>>, load: Load, part: Part) -> Charge {
        self.meter(part).add(load);
        self.charge(lane, load, part)
    }

    fn charge(self: &Arc<Self>, lane: Option<Arc<Lane>>, load: Load, part: Part) -> Charge {
        if let Some(meter) = lane.as_ref().and_then(|lane| lane.meter(part)) {
            meter.add(load);
        }
        Charge { held: Some(Arc::new(Held { budget: self.clone(), lane, load, part })), behind: None }
    }

    fn meter(&self, part: Part) -> &Meter {
        match part {
            Part::InFlight => &self.in_flight,
            Part::Behind => &self.behind,
            Part::Recalled => &self.recalled,
        }
    }
}

/// What one partition has of a budget. Its open batch is counted by who collects it, and comes in when it is sealed: so a message
/// costs no more than it would without lanes.
#[derive(Debug)]
pub struct Lane {
    budget: Arc<Budget>,
    in_flight: Meter,
    behind: Meter,
}

impl Lane {
    /// The charge of a batch whose load `Budget::collect` has counted.
    pub fn seal(self: &Arc<Self>, load: Load) -> Charge {
        self.budget.charge(Some(self.clone()), load, Part::InFlight)
    }

    /// What sealed batches of the partition have in flight.
    pub fn in_flight(&self) -> Load {
        self.in_flight.load()
    }

    /// What of it is not behind the log.
    pub fn before_log(&self) -> Load {
        self.in_flight.load().less(self.behind.load())
    }

    /// True if the partition has more than its share, with `open` in its open batch.
    pub fn is_over(&self, open: Load) -> bool {
        self.before_log().plus(open).exceeds(self.budget.threshold())
    }

    /// True if it has at most half of its share.
    pub fn is_relieved(&self, open: Load) -> bool {
        !self.before_log().plus(open).exceeds(self.budget.threshold().half())
    }

    fn meter(&self, part: Part) -> Option<&Meter> {
        match part {
            Part::InFlight => Some(&self.in_flight),
            Part::Behind => Some(&self.behind),
            Part::Recalled => None,
        }
    }
}

/// A batch's share of the budget, given back with its last clone. The default is no share: of a batch that came over the network, say.
#[derive(Clone, Debug, Default)]
pub struct Charge {
    held: Option<Arc<Held>>,
    /// Its share of the room behind the log, where it goes on being what it was before.
    behind: Option<Arc<Held>>,
}

#[derive(Debug)]
struct Held {
    budget: Arc<Budget>,
    lane: Option<Arc<Lane>>,
    load: Load,
    part: Part,
}

impl Charge {
    /// How much it is.
    pub fn load(&self) -> Load {
        self.held.as_ref().map_or(Load::default(), |held| held.load)
    }

    /// The charge of a batch that has become `bytes` larger. What is in flight may exceed the limit by it, and reading stops earlier.
    pub fn grown(self, bytes: usize) -> Charge {
        let grow = |held: &Arc<Held>| {
            let load = Load { bytes: held.load.bytes + bytes, ..held.load };
            held.budget.add_charge(held.lane.clone(), load, held.part).held
        };
        if bytes == 0 {
            return self;
        }
        Charge { held: self.held.as_ref().and_then(grow), behind: self.behind.as_ref().and_then(grow) }
    }

    /// Both charges in one, of which the other is for room behind the log.
    pub fn with(self, behind: Charge) -> Charge {
        Charge { behind: behind.held, ..self }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.meter(self.part).subtract(self.load);
        if let Some(meter) = self.lane.as_ref().and_then(|lane| lane.meter(self.part)) {
            meter.subtract(self.load);
        }
    }
}
