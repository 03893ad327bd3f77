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

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
}

#[derive(Clone, Copy, Debug)]
enum Part {
    InFlight,
    Behind,
    Recalled,
}

impl Budget {
    /// A budget of `limit`, half of it behind the log.
    pub fn new(limit: Load) -> Arc<Self> {
        Arc::new(Budget { limit, in_flight: Meter::default(), behind: Meter::default(), recalled: Meter::default() })
    }

    /// Counts what is being collected. `seal` makes it the charge of a batch.
    pub fn collect(&self, load: Load) {
        self.in_flight.add(load);
    }

    /// The charge of a batch whose load `collect` has counted.
    pub fn seal(self: &Arc<Self>, load: Load) -> Charge {
        self.charge(load, Part::InFlight)
    }

    /// Takes room behind the log for a durable batch; `None` if its payload has to be let go. A batch larger than all the room takes
    /// it alone.
    pub fn stay(self: &Arc<Self>, load: Load) -> Option<Charge> {
        let before = self.behind.load();
        let fits =
            before.bytes + load.bytes <= self.limit.bytes / 2 && before.messages + load.messages <= self.limit.messages / 2;
        if !fits && before != Load::default() {
            return None;
        }
        // Two workers may take the last room at once: the bound is exceeded by a batch a worker.
        self.behind.add(load);
        Some(self.charge(load, Part::Behind))
    }

    /// True if a batch may be read back.
    pub fn may_recall(&self) -> bool {
        self.recalled.load().bytes < RECALLED_BYTES_MAX.min(self.limit.bytes / 2)
    }

    /// The charge of a batch that was read back.
    pub fn recall(self: &Arc<Self>, load: Load) -> Charge {
        self.recalled.add(load);
        self.charge(load, Part::Recalled)
    }

    /// What is in flight, batches that were read back not counted.
    pub fn in_flight(&self) -> Load {
        self.in_flight.load()
    }

    /// What of it is behind the log.
    pub fn behind(&self) -> Load {
        self.behind.load()
    }

    /// True if nothing should be read any more.
    pub fn is_full(&self) -> bool {
        let Load { bytes, messages } = self.in_flight();
        bytes >= self.limit.bytes || messages >= self.limit.messages
    }

    /// True if reading may be resumed: it waits for a quarter to be free again, or a full pipeline would pause and resume with every
    /// batch.
    pub fn has_room(&self) -> bool {
        let Load { bytes, messages } = self.in_flight();
        bytes <= self.limit.bytes / 4 * 3 && messages <= self.limit.messages / 4 * 3
    }

    fn charge(self: &Arc<Self>, load: Load, part: Part) -> Charge {
        Charge(Some(Arc::new(Held { budget: self.clone(), load, part })))
    }

    fn meter(&self, part: Part) -> &Meter {
        match part {
            Part::InFlight => &self.in_flight,
            Part::Behind => &self.behind,
            Part::Recalled => &self.recalled,
        }
    }
}

/// A batch's share of the budget, given back with its last clone. The default is no share: of a batch that came over the network, say.
#[derive(Clone, Debug, Default)]
pub struct Charge(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    budget: Arc<Budget>,
    load: Load,
    part: Part,
}

impl Charge {
    /// How much it is.
    pub fn load(&self) -> Load {
        self.0.as_ref().map_or(Load::default(), |held| held.load)
    }

    /// The charge of a batch that has become `bytes` larger. What is in flight may exceed the limit by it, and reading stops earlier.
    pub fn grown(self, bytes: usize) -> Charge {
        match &self.0 {
            Some(held) if bytes > 0 => {
                let load = Load { bytes: held.load.bytes + bytes, ..held.load };
                held.budget.meter(held.part).add(load);
                held.budget.charge(load, held.part)
            }
            _ => self,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.meter(self.part).subtract(self.load);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: usize) -> Load {
        Load { bytes, messages: 1 }
    }

    #[test]
    fn a_charge_that_grew_is_given_back_as_large_as_it_became() {
        let budget = Budget::new(load(1_000));
        budget.collect(Load { bytes: 100, messages: 2 });
        let charge = budget.seal(Load { bytes: 100, messages: 2 }).grown(500);
        assert_eq!((charge.load(), budget.in_flight()), (Load { bytes: 600, messages: 2 }, Load { bytes: 600, messages: 2 }));
        drop(charge);
        assert_eq!(budget.in_flight(), Load::default());
        assert_eq!(Charge::default().grown(5).load(), Load::default());
    }

    #[test]
    fn a_charge_is_given_back_with_its_last_clone_and_only_once() {
        let budget = Budget::new(Load { bytes: 100, messages: 10 });
        budget.collect(load(60));
        budget.collect(load(40));
        assert!(budget.is_full());
        let charge = budget.seal(Load { bytes: 100, messages: 2 });
        let other = charge.clone();
        drop(charge);
        assert_eq!(budget.in_flight(), Load { bytes: 100, messages: 2 });
        drop(other);
        assert_eq!(budget.in_flight(), Load::default());
        drop(Charge::default());
        assert_eq!(budget.in_flight(), Load::default());
    }

    #[test]
    fn reading_resumes_only_when_a_quarter_is_free() {
        let budget = Budget::new(Load { bytes: 100, messages: 10 });
        budget.collect(load(80));
        assert!(!budget.is_full() && !budget.has_room());
        drop(budget.seal(load(80)));
        assert!(budget.has_room());
        budget.collect(Load { bytes: 0, messages: 10 });
        assert!(budget.is_full());
    }

    #[test]
    fn durable_batches_stay_only_in_half_of_the_budget_but_one_always_can() {
        let budget = Budget::new(Load { bytes: 100, messages: 10 });
        let huge = budget.stay(load(90)).expect("the room is empty");
        assert!(budget.stay(load(1)).is_none());
        drop(huge);
        let first = budget.stay(load(30)).expect("there is room");
        assert!(budget.stay(load(30)).is_none());
        let second = budget.stay(load(20)).expect("there is room");
        assert_eq!(budget.behind(), Load { bytes: 50, messages: 2 });
        // What is read back has room of its own.
        assert!(budget.may_recall());
        let recalled = budget.recall(load(50));
        assert!(!budget.may_recall());
        drop((first, second, recalled));
        assert!(budget.may_recall());
        assert_eq!(budget.behind(), Load::default());
    }
}
