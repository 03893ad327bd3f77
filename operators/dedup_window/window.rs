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
//! moving one number; its memory is reused by and by (see `winners`, `table`). A winner stays remembered until progress is more than
//! `window_ms` and the tolerance past its arrival, unless `bytes_max` forgets the oldest generation early, which `forced` counts.
//!
//! Nothing here depends on a clock, a seed or an address. Where `advance` is told of all records of an epoch, not only of those
//! whose keys this window owns, verdicts do not depend on the number of workers either.

use std::collections::{BTreeMap, VecDeque};

pub use super::Config;
use super::table::{Hash, Room, Slot, Table};
use super::winners::{PARTITION_BITS, Winner, Winners};
use crate::coverage::PartitionKey;

/// Generations in a window. More of them forget closer to the window's edge, each costs a sweep; an eighth wastes 6 % on average.
const GENERATIONS: u64 = 8;

/// How far, in generations, records may be late and the window still find what it should; also how far records may be ahead of
/// their epoch and still move progress.
const TOLERANCE_GENERATIONS: u64 = 2;

/// One record moves progress by at most this part of the window.
const STEPS_PER_WINDOW: u64 = 1024;

/// Keys whose memory is awaited together. Measured: 32 to 512 are alike, the processor has about ten lines under way.
const TOUCHED_AHEAD: usize = 32;

/// Winners of one key that are told apart. They are more than a window apart from each other, so only a replayed or lagging partition
/// has several; the bound keeps one hot key from making a long path.
const SAME_KEY_MAX: usize = 4;

/// How many times `advance` is called while the sweeping that one generation brings is done: a little at a time, without a stall.
const SWEEPS_PER_GENERATION: usize = 128;

/// Positions of winners are numbers modulo 2^32, so dead ones must be swept from the table before they come round. If sweeping of so
/// many tables is owed, 32 generations' worth, it is done at once: so each shard is swept every 40 generations.
const OWED_TABLES_MAX: usize = 4;

/// More generations than this are never alive: time makes at most 12, the bound on entries per generation 8 more.
const ALIVE_MAX: usize = 64;

/// Winners in a generation at most, however large `bytes_max` is: `ALIVE_MAX` + 40 generations are less than 2^32 winners.
const GENERATION_ENTRIES_MAX: u64 = 1 << 25;

const _: () = assert!((ALIVE_MAX as u64 + 41) * GENERATION_ENTRIES_MAX < 1 << 32);

/// Times compared for an epoch's median. A sample is enough: one record cannot move it, and half of them are an epoch's time.
const MEDIAN_SAMPLE: usize = 65;

/// The least `bytes_max`: a few chunks of winners, and their table.
const BYTES_MIN: usize = 1 << 20;

/// Bytes of memory per winner, to guess how many fit: 32 for the winner, the rest for the table's entry and its empty neighbours.
pub(super) const BYTES_PER_WINNER: usize = 45;

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
    fn packed(&self) -> Winner {
        Winner::new(self.key, self.time_ms, self.partition.0, self.offset)
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

/// What is remembered of one record's key.
struct Seen {
    is_redelivered: bool,
    is_near: bool,
    winners: usize,
}

/// How long a winner is remembered, in progress.
pub(super) fn kept_ms(window_ms: u64) -> u64 {
    window_ms.saturating_add(TOLERANCE_GENERATIONS * generation_ms(window_ms))
}

fn generation_ms(window_ms: u64) -> u64 {
    window_ms.div_ceil(GENERATIONS).max(1)
}

/// What one worker remembers of the keys it owns.
pub struct Window {
    window_ms: u64,
    generation_ms: u64,
    generation_entries_max: u64,
    bytes_max: usize,
    winners: Winners,
    table: Table,
    /// Oldest first, never empty; the last one is open.
    generations: VecDeque<Generation>,
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
        let bytes_max = config.bytes_max.max(BYTES_MIN);
        let generation_entries_max = (bytes_max / BYTES_PER_WINNER) as u64 / GENERATIONS;
        // Beyond a century the arithmetic below would gain nothing but overflow.
        let window_ms = config.window_ms.min(100 * 366 * 86_400_000);
        let open = Generation { opened_ms: 0, closed_ms: 0, first_winner: 0, entries: 0 };
        Window {
            window_ms,
            generation_ms: generation_ms(window_ms),
            generation_entries_max: generation_entries_max.min(GENERATION_ENTRIES_MAX),
            bytes_max,
            winners: Winners::default(),
            // The table is about a quarter of all, and each of its shards a little part of it.
            table: Table::new(bytes_max / 4),
            generations: VecDeque::from([open]),
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
        if self.progress_ms.is_none() {
            self.jump(target);
        }
        let now = self.progress_ms.unwrap_or(target);
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
            let hashes = self.touch(ahead);
            for (sighting, &hash) in ahead.iter().zip(&hashes) {
                let is_duplicate = self.decide(sighting.packed(), hash);
                verdicts.push(is_duplicate);
            }
        }
    }

    /// Remembers records that are known to be winners: at start, from the write-ahead log, in its order.
    pub fn remember(&mut self, sightings: &[Sighting]) {
        for ahead in sightings.chunks(TOUCHED_AHEAD) {
            let hashes = self.touch(ahead);
            for (sighting, &hash) in ahead.iter().zip(&hashes) {
                let record = sighting.packed();
                let (seen, free) = self.look(record, hash);
                if !seen.is_redelivered {
                    self.insert(record, hash, free);
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
        self.table.bytes() + self.winners.bytes()
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

    /// Reads what the verdicts will need: first the places in the table, then the winners that may be the records'.
    #[inline(always)]
    fn touch(&self, sightings: &[Sighting]) -> [Hash; TOUCHED_AHEAD] {
        let mut hashes = [Hash::default(); TOUCHED_AHEAD];
        let mut read = 0;
        for (hash, sighting) in hashes.iter_mut().zip(sightings) {
            *hash = self.table.hash(sighting.key);
            read ^= self.table.touch(*hash);
        }
        let alive = self.winners.alive();
        for &hash in &hashes[..sightings.len()] {
            if let Some(position) = self.table.candidate(hash).filter(|&position| alive.contains(position)) {
                read ^= self.winners.get(position).key as u32;
            }
        }
        std::hint::black_box(read);
        hashes
    }

    #[inline(always)]
    fn decide(&mut self, record: Winner, hash: Hash) -> bool {
        let (seen, free) = self.look(record, hash);
        self.stats.redelivered += u64::from(seen.is_redelivered);
        self.stats.duplicates += u64::from(seen.is_near && !seen.is_redelivered);
        if !seen.is_near && !seen.is_redelivered {
            self.insert(record, hash, free);
        }
        seen.is_near && !seen.is_redelivered
    }

    /// What is remembered of a record's key, and a place for one more of its winners if there is one to give.
    #[inline(always)]
    fn look(&mut self, record: Winner, hash: Hash) -> (Seen, Option<Slot>) {
        if !self.table.has_room(hash) || !self.winners.has_room() {
            self.make_room(hash);
        }
        let mut seen = Seen { is_redelivered: false, is_near: false, winners: 0 };
        let free = self.table.find(hash, self.winners.alive(), |_, position| {
            let winner = self.winners.get(position);
            if winner.key == record.key {
                seen.is_redelivered |= winner.is_same_record(record);
                seen.is_near |= winner.distance_ms(record) <= self.window_ms;
                seen.winners += 1;
            }
        });
        let free = free.filter(|_| seen.winners < SAME_KEY_MAX);
        (seen, free)
    }

    /// Remembers a winner, where no place is given at the cost of another one.
    #[inline(always)]
    fn insert(&mut self, record: Winner, hash: Hash, free: Option<Slot>) {
        let slot = free.unwrap_or_else(|| self.displace(record.key, hash));
        let position = self.winners.push(record);
        self.table.put(hash, slot, position);
        self.stats.winners += 1;
        let is_full = self.generations.back_mut().is_some_and(|generation| {
            generation.entries += 1;
            generation.entries >= self.generation_entries_max
        });
        if is_full {
            self.open_generation();
        }
    }

    /// A place for one more winner of `key` where the search gave none: that of the key's winner with the least time if it has too
    /// many, else an empty one, else another winner's.
    #[cold]
    fn displace(&mut self, key: u128, hash: Hash) -> Slot {
        let alive = self.winners.alive();
        let mut same = Vec::new();
        self.table.find(hash, alive, |slot, position| {
            let winner = self.winners.get(position);
            if winner.key == key {
                same.push((winner.order(), slot));
            }
        });
        let least = same.iter().min_by_key(|(order, _)| *order).filter(|_| same.len() >= SAME_KEY_MAX);
        let slot = least.map_or_else(|| self.table.place_after(hash), |&(_, slot)| slot);
        if let Some(position) = self.table.position(hash, slot).filter(|&position| alive.contains(position)) {
            let number = self.forgotten() + u64::from(position.wrapping_sub(alive.floor));
            let after = self.generations.partition_point(|generation| generation.first_winner <= number);
            self.generations[after - 1].entries -= 1;
            self.stats.displaced += 1;
        }
        slot
    }

    #[cold]
    fn make_room(&mut self, hash: Hash) {
        loop {
            let bytes_free = self.bytes_max.saturating_sub(self.bytes());
            if !self.winners.has_room() && (self.winners.has_spare() || bytes_free >= Winners::CHUNK_BYTES) {
                self.winners.make_room();
            }
            let bytes_free = self.bytes_max.saturating_sub(self.bytes());
            if !self.winners.has_room() {
                self.stats.forced += 1;
                self.forget_oldest();
            } else if self.table.has_room(hash) || self.table.make_room(hash, self.winners.alive(), bytes_free) == Room::Made {
                return;
            } else if self.winners.has_spare() {
                self.winners.release_spare();
            } else {
                self.stats.forced += 1;
                self.forget_oldest();
            }
        }
    }

    fn kept_ms(&self) -> u64 {
        kept_ms(self.window_ms)
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
        self.winners.forget_before(self.forgotten() as u32);
    }

    fn open_generation(&mut self) {
        while self.generations.len() >= ALIVE_MAX {
            self.stats.forced += 1;
            self.forget_oldest();
        }
        let now = self.progress_ms.unwrap_or(0);
        let first_winner = self.stats.winners;
        self.generations.push_back(Generation { opened_ms: now, closed_ms: now, first_winner, entries: 0 });
        self.stats.rotations += 1;
        self.owed += self.table.shards().div_ceil(GENERATIONS as usize);
        self.sweep(self.owed.saturating_sub(OWED_TABLES_MAX * self.table.shards()));
    }

    fn sweep(&mut self, shards: usize) {
        self.owed -= shards;
        self.table.sweep(shards, self.winners.alive());
    }
}

#[cfg(test)]
#[path = "window/tests.rs"]
mod tests;
