//! The seen-keys window: decides which records are duplicates.
//!
//! # Definition
//! A record whose verdict is "not a duplicate", and that is not a redelivery, is a *winner* and is remembered. A record is
//! - a **redelivery** if a remembered winner of its key has its identity (partition, offset): never a duplicate;
//! - a **duplicate** if a remembered winner of its key is at most `window_ms` away in record time, on either side;
//! - else a winner. A duplicate is not remembered: a key that repeats for ever is stored once per window, not once.
//!
//! Record times before 1970 count as 1970, those after 2109 as 2109. Of one key up to four winners are told apart.
//!
//! # Forgetting
//! Progress is the record time the stream has reached. It never goes back, and it moves by what `advance` is told: towards the
//! median time of an epoch's records, never past the epoch itself plus a tolerance, and by at most a 1,024th of the window per
//! record. So one record from the year 2100 moves nothing, and a flood of them in live traffic no more than the tolerance. After a
//! gap in time progress walks at that pace until all from before the gap is forgotten, then jumps the rest, forgetting nothing more.
//!
//! ```text
//! progress ------------------------------------------------------------------>
//!     | forgotten |   generations, each an eighth of the window   | open |
//!                 <- window_ms + 2/8 tolerance for late records -->
//! ```
//!
//! Each winner belongs to the generation that was open when it came, whatever its own time. So records of a lagging partition, older
//! than all of the window, find each other as live ones do: only their distance to each other counts. Forgetting a generation is
//! moving one number; its memory is reused by and by (see `table`). A winner stays remembered until progress is more than
//! `window_ms` and the tolerance past its arrival, unless `bytes_max` forgets the oldest generation early, which `forced` counts.
//!
//! Nothing here depends on a clock, a seed or an address. Where `advance` is told of all records of an epoch, not only of those
//! whose keys this window owns, verdicts do not depend on the number of workers either.

use std::collections::{BTreeMap, VecDeque};

pub use super::Config;
use super::table::{Alive, Entry, Found, PARTITION_BITS, Room, SAME_KEY_MAX, Slot, Table};
use crate::coverage::PartitionKey;

/// Generations in a window. More of them forget closer to the window's edge, each costs a sweep; an eighth wastes 6 % on average.
const GENERATIONS: u64 = 8;

/// How far, in generations, records may be late and the window still find what it should; also how far records may be ahead of
/// their epoch and still move progress.
const TOLERANCE_GENERATIONS: u64 = 2;

/// One record moves progress by at most this part of the window.
const STEPS_PER_WINDOW: u64 = 1024;

/// Keys whose memory is awaited together. Measured: 8 to 64 are alike, the processor has about ten lines under way.
const TOUCHED_AHEAD: usize = 32;

/// How many times `advance` is called while the sweeping that one generation brings is done: a little at a time, without a stall.
const SWEEPS_PER_GENERATION: usize = 128;

/// A generation's number is a byte in each entry, so dead entries must be swept before their number comes round. If sweeping of so
/// many tables is owed, 32 generations' worth, it is done at once: a shard is swept every 40 generations, and 256 numbers exist.
const OWED_TABLES_MAX: usize = 4;

/// More generations than this are never alive: time makes at most 12, the bound on entries per generation 8 more.
const ALIVE_MAX: usize = 64;

/// Times compared for an epoch's median. A sample is enough: one record cannot move it, and half of them are an epoch's time.
const MEDIAN_SAMPLE: usize = 65;

/// A partition's number in one window, given by `Partitions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionIndex(u32);

/// Gives each partition a small number, for the life of a window.
#[derive(Debug, Default)]
pub struct Partitions(BTreeMap<PartitionKey, u32>);

/// A window tells about four million partitions apart; deleted and recreated topics count again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dedup window has seen more than {} partitions", Partitions::MAX)]
pub struct TooManyPartitions;

impl Partitions {
    /// The most partitions a window can tell apart.
    pub const MAX: usize = 1 << PARTITION_BITS;

    /// The number of `partition`, new if it was not seen before.
    pub fn index(&mut self, partition: &PartitionKey) -> Result<PartitionIndex, TooManyPartitions> {
        if let Some(&index) = self.0.get(partition) {
            return Ok(PartitionIndex(index));
        }
        if self.0.len() >= Self::MAX {
            return Err(TooManyPartitions);
        }
        let index = self.0.len() as u32;
        self.0.insert(partition.clone(), index);
        Ok(PartitionIndex(index))
    }
}

/// One record as the window sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The dedup key, a hash with all bits well spread.
    pub key: u128,
    /// The record's Kafka time in Unix milliseconds; its epoch where it has none.
    pub time_ms: i64,
    /// The record's partition.
    pub partition: PartitionIndex,
    /// The record's offset.
    pub offset: i64,
}

impl Sighting {
    fn entry(&self) -> Entry {
        Entry::new(self.key, self.time_ms, self.partition.0, self.offset)
    }
}

/// How far some records of an epoch bring the stream in record time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The epoch, in Unix milliseconds.
    pub epoch_ms: u64,
    /// The records' median time in Unix milliseconds.
    pub time_ms: i64,
    /// How many records.
    pub records: u64,
}

impl Progress {
    /// The progress that `times_ms`, in any order, make in an epoch; `None` where there are none.
    pub fn of(epoch_ms: u64, times_ms: impl ExactSizeIterator<Item = i64>) -> Option<Self> {
        let records = times_ms.len();
        let step = records.div_ceil(MEDIAN_SAMPLE).max(1);
        let mut sample: Vec<i64> = times_ms.step_by(step).collect();
        sample.sort_unstable();
        let time_ms = *sample.get(sample.len() / 2)?;
        Some(Progress { epoch_ms, time_ms, records: records as u64 })
    }
}

/// What a window has done since it was made. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sightings observed.
    pub observed: u64,
    /// Of these, duplicates.
    pub duplicates: u64,
    /// Of these, records seen before under the same identity.
    pub redelivered: u64,
    /// Winners remembered, those of `remember` included.
    pub winners: u64,
    /// Generations closed.
    pub rotations: u64,
    /// Generations forgotten early because `bytes_max` was reached.
    pub forced: u64,
    /// Single winners forgotten early because their key or path was full: a sign of keys made to collide.
    pub displaced: u64,
}

struct Generation {
    /// Progress when it was opened.
    opened_ms: i64,
    /// Progress when it last was the open one.
    closed_ms: i64,
    /// `Stats::winners` when it was opened.
    first_winner: u64,
    /// Its entries alive.
    entries: u64,
}

/// What one worker remembers of the keys it owns.
pub struct Window {
    window_ms: u64,
    generation_ms: u64,
    generation_entries_max: u64,
    table: Table,
    /// Oldest first, never empty; the last one is open.
    generations: VecDeque<Generation>,
    /// The numbers of `generations`.
    alive: Alive,
    progress_ms: Option<i64>,
    /// How far progress has walked since it last was where the records are.
    walked_ms: u64,
    /// Shards that are to be swept: all of them once per window.
    owed: usize,
    stats: Stats,
}

impl Window {
    /// An empty window.
    pub fn new(config: Config) -> Self {
        let table = Table::new(config.bytes_max);
        // Beyond a century the arithmetic below would gain nothing but overflow.
        let window_ms = config.window_ms.min(100 * 366 * 86_400_000);
        let open = Generation { opened_ms: 0, closed_ms: 0, first_winner: 0, entries: 0 };
        Window {
            window_ms,
            generation_ms: window_ms.div_ceil(GENERATIONS).max(1),
            generation_entries_max: (table.entries_max() as u64 / GENERATIONS).max(1),
            table,
            generations: VecDeque::from([open]),
            alive: Alive { first: 0, count: 1 },
            progress_ms: None,
            walked_ms: 0,
            owed: 0,
            stats: Stats::default(),
        }
    }

    /// Moves progress by what some records of an epoch say. Call it before `observe` and `remember` of these records; where several
    /// batches or workers report for one epoch, in a fixed order.
    pub fn advance(&mut self, progress: Progress) {
        let tolerance_ms = TOLERANCE_GENERATIONS * self.generation_ms;
        let latest = i64::try_from(progress.epoch_ms.saturating_add(tolerance_ms)).unwrap_or(i64::MAX);
        let target = progress.time_ms.min(latest);
        let now = *self.progress_ms.get_or_insert(target);
        let step = (self.window_ms / STEPS_PER_WINDOW).max(1).saturating_mul(progress.records);
        let is_in_reach = target <= now.saturating_add_unsigned(step);
        self.walked_ms = if is_in_reach { 0 } else { self.walked_ms.saturating_add(step) };
        let moved = if is_in_reach { target.max(now) } else { now.saturating_add_unsigned(step) };
        self.progress_ms = Some(moved);
        self.expire(moved);
        if self.walked_ms > self.kept_ms() + self.generation_ms {
            self.jump(target);
        }
        self.rotate();
        self.sweep(self.owed.div_ceil(SWEEPS_PER_GENERATION));
    }

    /// Decides `sightings` in the given order. `verdicts` is cleared and gets one verdict each: true is a duplicate.
    pub fn observe(&mut self, sightings: &[Sighting], verdicts: &mut Vec<bool>) {
        verdicts.clear();
        verdicts.reserve(sightings.len());
        self.stats.observed += sightings.len() as u64;
        for ahead in sightings.chunks(TOUCHED_AHEAD) {
            self.touch(ahead);
            for sighting in ahead {
                let is_duplicate = self.decide(sighting.entry());
                verdicts.push(is_duplicate);
            }
        }
    }

    /// Remembers records that are known to be winners: at start, from the write-ahead log, in its order.
    pub fn remember(&mut self, sightings: &[Sighting]) {
        for ahead in sightings.chunks(TOUCHED_AHEAD) {
            self.touch(ahead);
            for sighting in ahead {
                let entry = sighting.entry();
                self.make_room(entry.key);
                let found = self.table.find(entry.key, self.alive);
                let is_known = found.same().iter().any(|&slot| self.table.entry(entry.key, slot).is_same_record(entry));
                if !is_known {
                    self.insert(entry, found);
                }
            }
        }
    }

    /// Winners remembered.
    pub fn len(&self) -> usize {
        self.generations.iter().map(|generation| generation.entries).sum::<u64>() as usize
    }

    /// True if nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// The record time the stream has reached.
    pub fn progress_ms(&self) -> Option<i64> {
        self.progress_ms
    }

    /// How many of the first winners are forgotten: winner number n (from 0, as `Stats::winners` counts) is remembered from here on.
    pub fn forgotten(&self) -> u64 {
        self.generations.front().map_or(self.stats.winners, |oldest| oldest.first_winner)
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn touch(&self, sightings: &[Sighting]) {
        let read = sightings.iter().fold(0, |read, sighting| read ^ self.table.touch(sighting.key));
        std::hint::black_box(read);
    }

    #[inline(always)]
    fn decide(&mut self, entry: Entry) -> bool {
        self.make_room(entry.key);
        let found = self.table.find(entry.key, self.alive);
        let mut is_near = false;
        for &slot in found.same() {
            let winner = self.table.entry(entry.key, slot);
            if winner.is_same_record(entry) {
                self.stats.redelivered += 1;
                return false;
            }
            is_near |= winner.distance_ms(entry) <= self.window_ms;
        }
        if is_near {
            self.stats.duplicates += 1;
            return true;
        }
        self.insert(entry, found);
        false
    }

    #[inline(always)]
    fn insert(&mut self, entry: Entry, found: Found) {
        let slot = match found.free {
            Some(slot) if found.same().len() < SAME_KEY_MAX => slot,
            _ => self.displace(entry, found.same()),
        };
        let open = self.alive.first.wrapping_add(self.alive.count - 1);
        self.table.put(slot, entry, open);
        self.stats.winners += 1;
        let is_full = self.generations.back_mut().is_some_and(|generation| {
            generation.entries += 1;
            generation.entries >= self.generation_entries_max
        });
        if is_full {
            self.open_generation();
        }
    }

    /// A place for `entry` where the search met none: that of its key's winner with the least time if it has too many, else the
    /// next free one, else another winner's.
    #[cold]
    fn displace(&mut self, entry: Entry, same: &[Slot]) -> Slot {
        let least = same.iter().copied().min_by_key(|&slot| self.table.entry(entry.key, slot).order());
        let slot = match least {
            Some(slot) if same.len() == SAME_KEY_MAX => slot,
            _ => self.table.place_after(entry.key),
        };
        if !self.table.is_taken(entry.key, slot) {
            return slot;
        }
        let index = self.table.generation(entry.key, slot).wrapping_sub(self.alive.first);
        if let Some(generation) = self.generations.get_mut(usize::from(index)) {
            generation.entries -= 1;
            self.stats.displaced += 1;
        }
        slot
    }

    #[inline(always)]
    fn make_room(&mut self, key: u128) {
        if !self.table.has_room(key) {
            self.make_room_slowly(key);
        }
    }

    #[cold]
    fn make_room_slowly(&mut self, key: u128) {
        while self.table.make_room(key, self.alive) == Room::ForgetFirst {
            self.stats.forced += 1;
            self.forget_oldest();
        }
    }

    /// How long a winner is remembered, in progress.
    fn kept_ms(&self) -> u64 {
        self.window_ms + TOLERANCE_GENERATIONS * self.generation_ms
    }

    /// Moves progress over a gap. What is alive came during the walk, after the gap: it counts as come now.
    fn jump(&mut self, target: i64) {
        self.walked_ms = 0;
        self.progress_ms = Some(target);
        for generation in &mut self.generations {
            generation.opened_ms = target;
            generation.closed_ms = target;
        }
    }

    fn expire(&mut self, progress_ms: i64) {
        let kept_ms = self.kept_ms();
        while let Some(oldest) = self.generations.front() {
            let is_empty_and_open = self.generations.len() == 1 && oldest.entries == 0;
            let is_remembered = progress_ms.saturating_sub_unsigned(kept_ms) <= oldest.closed_ms;
            if is_remembered || is_empty_and_open {
                break;
            }
            self.forget_oldest();
        }
    }

    fn rotate(&mut self) {
        let now = self.progress_ms.unwrap_or(0);
        match self.generations.back_mut() {
            Some(open) if now.abs_diff(open.opened_ms) < self.generation_ms => open.closed_ms = now,
            _ => self.open_generation(),
        }
    }

    fn forget_oldest(&mut self) {
        if self.generations.len() == 1 {
            self.open_generation();
        }
        self.generations.pop_front();
        self.alive.first = self.alive.first.wrapping_add(1);
        self.alive.count -= 1;
    }

    fn open_generation(&mut self) {
        while self.generations.len() >= ALIVE_MAX {
            self.stats.forced += 1;
            self.forget_oldest();
        }
        let now = self.progress_ms.unwrap_or(0);
        let first_winner = self.stats.winners;
        self.generations.push_back(Generation { opened_ms: now, closed_ms: now, first_winner, entries: 0 });
        self.alive.count += 1;
        self.stats.rotations += 1;
        self.owed += self.table.shards().div_ceil(GENERATIONS as usize);
        self.sweep(self.owed.saturating_sub(OWED_TABLES_MAX * self.table.shards()));
    }

    fn sweep(&mut self, shards: usize) {
        self.owed -= shards;
        self.table.sweep(shards, self.alive);
    }
}

#[cfg(test)]
#[path = "window/tests.rs"]
mod tests;
