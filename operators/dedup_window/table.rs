//! The memory of the window: an open-addressed table of fixed-size entries, sharded so that it grows without a stall.
//!
//! ```text
//! shard  = high bits of a mix of the key      grows and is swept alone: at most about 8,000 entries move at a time
//! bucket = 512 bytes, 15 entries; what finds its bucket full goes on to the next and marks the bucket as passed
//!
//!   head   tags        [u8; 16]   0: no entry, else 8 bits of the key     } one line of the cache: 19 of 20 searches for an
//!          generations [u8; 16]   when each entry came                    } absent key read nothing else
//!   entry  key u128, offset u64, when u64 = record time in ms (42 bits) | partition (22 bits)                     15 times
//! ```
//!
//! The sixteenth tag tells whether an entry passed: a search ends at the first bucket that none did. A tag only says where to look:
//! keys are compared whole, because a hash's tag alone would drop real records.
//!
//! An entry is alive while its generation is: forgetting a generation changes two numbers in the window and nothing here. A dead
//! entry's place is taken by the next insertion that passes it, or freed when its shard is swept.
//!
//! Rejected: one table per generation (every probe misses the cache once per generation; a bound of two windows' keys), a map with
//! a queue (twice the memory), filters (they drop real records), small buckets of two lines (at a load of 0.8 an absent key costs
//! 3.8 of them, against 1.4 of these).

/// Entries in a bucket.
const LANES: usize = 15;

/// The bits of a mask that stand for entries.
const LANE_MASK: u32 = (1 << LANES) - 1;

/// Where the tags say that an entry passed.
const PASSED: usize = 15;

/// Bits of the packed record time: enough until the year 2109. Later times count as that year, earlier than 1970 as 1970.
const TIME_BITS: u32 = 42;

/// Bits of the packed partition number.
pub(super) const PARTITION_BITS: u32 = 22;

const _: () = assert!(TIME_BITS + PARTITION_BITS == u64::BITS);

/// A probe gives up after so many buckets. In a million insertions at the highest load the longest path was 24 buckets; only keys
/// made to collide get here, and they cost entries of their own.
const PROBE_BUCKETS_MAX: usize = 64;

/// Alive entries of one key that are told apart. They are more than a window apart from each other, so only a replayed or lagging
/// partition has several; the bound keeps one hot key from making a long path.
pub(super) const SAME_KEY_MAX: usize = 4;

/// A shard is rebuilt or grown before more of its entries than this are taken, in 1/64. In simulation an absent key costs 1.1
/// buckets at a load of 0.70, 1.4 at 0.80, 1.8 at 0.84, 2.6 at 0.88.
const LOAD_MAX_64THS: usize = 52;

/// After a rebuild at the same size at most this share may be taken, in 1/64; else the shard grows.
const LOAD_KEPT_64THS: usize = 44;

/// The same where growing is not allowed: some room must come of a rebuild, or it would be repeated for every record.
const LOAD_TIGHT_64THS: usize = 49;

/// A sweep that finds less than this share alive gives memory back, in 1/64.
const LOAD_SHRINK_64THS: usize = 20;

/// Bytes of a shard when the table is at its bound: a rebuild moves so many at most, in about 0.1 ms.
const SHARD_BYTES: usize = 256 << 10;

/// The generations that are remembered: `count` numbers from `first` on, modulo 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alive {
    /// The oldest generation.
    pub first: u8,
    /// How many generations, at least one.
    pub count: u8,
}

/// One remembered record, packed as it lies in the table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: u128,
    offset: i64,
    when: u64,
}

impl Entry {
    /// Packs a record.
    #[inline(always)]
    pub fn new(key: u128, time_ms: i64, partition: u32, offset: i64) -> Self {
        debug_assert!(partition < 1 << PARTITION_BITS);
        let time = time_ms.clamp(0, (1 << TIME_BITS) - 1) as u64;
        Entry { key, offset, when: time << PARTITION_BITS | u64::from(partition) }
    }

    /// True if both are the same Kafka record.
    #[inline(always)]
    pub fn is_same_record(self, other: Entry) -> bool {
        let partition = (1 << PARTITION_BITS) - 1;
        self.offset == other.offset && self.when & partition == other.when & partition
    }

    /// How far the two record times are apart.
    #[inline(always)]
    pub fn distance_ms(self, other: Entry) -> u64 {
        (self.when >> PARTITION_BITS).abs_diff(other.when >> PARTITION_BITS)
    }

    /// A total order by record time, then partition, then offset.
    pub fn order(self) -> (u64, i64) {
        (self.when, self.offset)
    }
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Bucket {
    tags: [u8; 16],
    generations: [u8; 16],
    entries: [Entry; LANES],
}

const _: () = assert!(size_of::<Bucket>() == 512);

impl Bucket {
    const EMPTY: Bucket =
        Bucket { tags: [0; 16], generations: [0; 16], entries: [Entry { key: 0, offset: 0, when: 0 }; LANES] };

    #[inline(always)]
    fn taken(&self) -> u32 {
        !lanes::equal(self.tags, 0) & LANE_MASK
    }

    #[inline(always)]
    fn alive(&self, alive: Alive) -> u32 {
        lanes::within(self.generations, alive.first, alive.count) & self.taken()
    }

    #[inline(always)]
    fn was_passed(&self) -> bool {
        self.tags[PASSED] != 0
    }
}

/// Sixteen bytes at once, one bit of the result per byte. Which lane is which is a coin toss to the branch predictor, so nothing
/// here branches.
mod lanes {
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8, _mm_sub_epi8};

    /// Bytes equal to `byte`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn equal(bytes: [u8; 16], byte: u8) -> u32 {
        // SAFETY: every x86-64 processor has SSE2, and nothing here touches memory.
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(load(bytes), _mm_set1_epi8(byte as i8))) as u32 }
    }

    /// Bytes among the `count` numbers from `first` on, modulo 256; `count` is at least one.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn within(bytes: [u8; 16], first: u8, count: u8) -> u32 {
        // SAFETY: every x86-64 processor has SSE2, and nothing here touches memory.
        unsafe {
            let age = _mm_sub_epi8(load(bytes), _mm_set1_epi8(first as i8));
            let least = _mm_min_epu8(age, _mm_set1_epi8(count.wrapping_sub(1) as i8));
            _mm_movemask_epi8(_mm_cmpeq_epi8(age, least)) as u32
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn load(bytes: [u8; 16]) -> __m128i {
        let both = u128::from_le_bytes(bytes);
        // SAFETY: every x86-64 processor has SSE2, and nothing here touches memory.
        unsafe { _mm_set_epi64x((both >> 64) as i64, both as i64) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub use self::plain::{equal, within};

    /// The same for any processor, and the definition that the fast ones are tested against.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    pub mod plain {
        fn mask(bytes: [u8; 16], test: impl Fn(u8) -> bool) -> u32 {
            bytes.iter().enumerate().fold(0, |mask, (lane, &byte)| mask | u32::from(test(byte)) << lane)
        }

        pub fn equal(bytes: [u8; 16], byte: u8) -> u32 {
            mask(bytes, |other| other == byte)
        }

        pub fn within(bytes: [u8; 16], first: u8, count: u8) -> u32 {
            mask(bytes, |byte| byte.wrapping_sub(first) < count)
        }
    }
}

/// Where an entry lies in the shard of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    bucket: u32,
    lane: u32,
}

/// What a search met on its path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    same: [Slot; SAME_KEY_MAX],
    same_count: usize,
    /// The first place a new entry may take.
    pub free: Option<Slot>,
}

impl Found {
    /// Where alive entries with the key lie.
    #[inline(always)]
    pub fn same(&self) -> &[Slot] {
        &self.same[..self.same_count]
    }
}

/// What became of the room a shard needs for one more entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is room.
    Made,
    /// Only forgetting a generation would give room: the table may not grow further.
    ForgetFirst,
}

struct Shard {
    buckets: Vec<Bucket>,
    /// Entries that are not empty, dead ones included.
    taken: u32,
    taken_max: u32,
}

/// A key's tag; never 0, which is an empty entry's.
#[inline(always)]
fn tag_of(key: u128) -> u8 {
    ((key >> 96) as u8).max(1)
}

/// The share `load` of the entries in `buckets`.
fn entries_at(load_64ths: usize, buckets: usize) -> usize {
    buckets * LANES * load_64ths / 64
}

impl Shard {
    fn new(buckets: usize) -> Self {
        let taken_max = entries_at(LOAD_MAX_64THS, buckets) as u32;
        Shard { buckets: vec![Bucket::EMPTY; buckets], taken: 0, taken_max }
    }

    #[inline(always)]
    fn home(&self, key: u128) -> usize {
        // The multiplication spreads keys that share their low bits, as those routed to one worker do.
        let spread = (key as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        ((u128::from(spread) * self.buckets.len() as u128) >> 64) as usize
    }

    #[inline(always)]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    #[inline(always)]
    fn find(&self, key: u128, alive: Alive) -> Found {
        let mut found = Found { same: [Slot { bucket: 0, lane: 0 }; SAME_KEY_MAX], same_count: 0, free: None };
        let tag = tag_of(key);
        let mut index = self.home(key);
        for _ in 0..PROBE_BUCKETS_MAX.min(self.buckets.len()) {
            let bucket = &self.buckets[index];
            let (taken, alive) = (bucket.taken(), bucket.alive(alive));
            let mut candidates = lanes::equal(bucket.tags, tag) & alive;
            while candidates != 0 {
                let slot = Slot { bucket: index as u32, lane: candidates.trailing_zeros() };
                candidates &= candidates - 1;
                if bucket.entries[slot.lane as usize].key == key && found.same_count < SAME_KEY_MAX {
                    found.same[found.same_count] = slot;
                    found.same_count += 1;
                }
            }
            let free = LANE_MASK & !alive;
            if found.free.is_none() && free != 0 {
                // A dead entry before an empty one: so the shard fills up as late as possible.
                let best = if free & taken != 0 { free & taken } else { free };
                found.free = Some(Slot { bucket: index as u32, lane: best.trailing_zeros() });
            }
            if !bucket.was_passed() {
                break;
            }
            index = self.next(index);
        }
        found
    }

    #[inline(always)]
    fn set(&mut self, slot: Slot, entry: Entry, generation: u8) {
        let bucket = &mut self.buckets[slot.bucket as usize];
        let lane = slot.lane as usize;
        self.taken += u32::from(bucket.tags[lane] == 0);
        bucket.tags[lane] = tag_of(entry.key);
        bucket.generations[lane] = generation;
        bucket.entries[lane] = entry;
    }

    /// Marks the buckets from `home` on, before `until`, as passed: an entry went on from them.
    #[inline(always)]
    fn pass(&mut self, home: usize, until: usize) {
        let mut index = home;
        while index != until {
            self.buckets[index].tags[PASSED] = 1;
            index = self.next(index);
        }
    }

    /// A place for a new entry after a search found none: the first one past the buckets it saw, which were all full.
    fn free_after(&self, key: u128) -> Option<Slot> {
        let mut index = self.home(key);
        for _ in 0..PROBE_BUCKETS_MAX.min(self.buckets.len()) {
            let empty = LANE_MASK & !self.buckets[index].taken();
            if empty != 0 {
                return Some(Slot { bucket: index as u32, lane: empty.trailing_zeros() });
            }
            index = self.next(index);
        }
        None
    }

    /// The entry with the least order in the home bucket of `key`, which is full.
    fn least(&self, key: u128) -> Slot {
        let home = self.home(key);
        let order = |&lane: &usize| self.buckets[home].entries[lane].order();
        let lane = (0..LANES).min_by_key(order).unwrap_or(0);
        Slot { bucket: home as u32, lane: lane as u32 }
    }

    fn count_alive(&self, alive: Alive) -> usize {
        self.buckets.iter().map(|bucket| bucket.alive(alive).count_ones() as usize).sum()
    }

    /// Inserts into a shard that has room and no dead entries.
    fn insert(&mut self, entry: Entry, generation: u8) {
        let home = self.home(entry.key);
        let mut index = home;
        loop {
            let empty = LANE_MASK & !self.buckets[index].taken();
            if empty != 0 {
                self.pass(home, index);
                return self.set(Slot { bucket: index as u32, lane: empty.trailing_zeros() }, entry, generation);
            }
            index = self.next(index);
        }
    }
}

/// The table.
pub(super) struct Table {
    shards: Vec<Shard>,
    /// 64 less the bits of a shard's number.
    shift: u32,
    buckets: usize,
    buckets_max: usize,
    /// Holds a shard's entries and their generations while it is rebuilt.
    moved: Vec<(Entry, u8)>,
    next_swept: usize,
}

impl Table {
    /// The least bytes a table can be bound to.
    pub const BYTES_MIN: usize = 128 << 10;

    /// An empty table that never takes more than about `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max.max(Self::BYTES_MIN);
        let count = (bytes_max / SHARD_BYTES).next_power_of_two().clamp(16, 1 << 16);
        let shards: Vec<Shard> = (0..count).map(|shard| Shard::new(Self::buckets_min(shard))).collect();
        let buckets = shards.iter().map(|shard| shard.buckets.len()).sum();
        let buckets_max = (bytes_max - count * size_of::<Shard>()) / size_of::<Bucket>();
        Table { shards, shift: u64::BITS - count.ilog2(), buckets, buckets_max, moved: Vec::new(), next_swept: 0 }
    }

    /// Shards start a little apart in size: as all grow by the same factor they would otherwise all grow in the same moment.
    fn buckets_min(shard: usize) -> usize {
        4 + shard % 2
    }

    /// How many shards there are to sweep.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        let moved = self.moved.capacity() * size_of::<(Entry, u8)>();
        self.buckets * size_of::<Bucket>() + self.shards.len() * size_of::<Shard>() + moved
    }

    /// About how many entries fit at the bound.
    pub fn entries_max(&self) -> usize {
        entries_at(LOAD_KEPT_64THS, self.buckets_max)
    }

    #[inline(always)]
    fn shard_of(&self, key: u128) -> usize {
        let mixed = (key as u64 ^ ((key >> 64) as u64).rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> self.shift) as usize
    }

    /// Reads the head of the key's home bucket. Called for many keys in a row before they are looked up, it lets the processor wait
    /// for many cache lines at once instead of one after another.
    #[inline(always)]
    pub fn touch(&self, key: u128) -> u8 {
        let shard = &self.shards[self.shard_of(key)];
        shard.buckets[shard.home(key)].tags[PASSED]
    }

    /// Looks for `key`.
    #[inline(always)]
    pub fn find(&self, key: u128, alive: Alive) -> Found {
        self.shards[self.shard_of(key)].find(key, alive)
    }

    /// The entry that `find` of the same key met at `slot`.
    #[inline(always)]
    pub fn entry(&self, key: u128, slot: Slot) -> Entry {
        self.shards[self.shard_of(key)].buckets[slot.bucket as usize].entries[slot.lane as usize]
    }

    /// The generation of the entry at `slot`.
    pub fn generation(&self, key: u128, slot: Slot) -> u8 {
        self.shards[self.shard_of(key)].buckets[slot.bucket as usize].generations[slot.lane as usize]
    }

    /// The place of a new entry for which `find` met no free one; it may be that of an alive entry.
    #[cold]
    pub fn place_after(&self, key: u128) -> Slot {
        let shard = &self.shards[self.shard_of(key)];
        shard.free_after(key).unwrap_or_else(|| shard.least(key))
    }

    /// True if an entry lies at `slot`, alive or not.
    pub fn is_taken(&self, key: u128, slot: Slot) -> bool {
        self.shards[self.shard_of(key)].buckets[slot.bucket as usize].tags[slot.lane as usize] != 0
    }

    /// Puts `entry` at `slot`.
    #[inline(always)]
    pub fn put(&mut self, slot: Slot, entry: Entry, generation: u8) {
        let shard = self.shard_of(entry.key);
        let shard = &mut self.shards[shard];
        let home = shard.home(entry.key);
        shard.pass(home, slot.bucket as usize);
        shard.set(slot, entry, generation);
    }

    /// True if the shard of `key` has room for one more entry.
    #[inline(always)]
    pub fn has_room(&self, key: u128) -> bool {
        let shard = &self.shards[self.shard_of(key)];
        shard.taken < shard.taken_max
    }

    /// Makes room in the shard of `key`: drops its dead entries, and grows it if too many are alive.
    pub fn make_room(&mut self, key: u128, alive: Alive) -> Room {
        let shard = self.shard_of(key);
        let buckets = self.shards[shard].buckets.len();
        let entries = self.shards[shard].count_alive(alive);
        let grown = buckets + buckets.div_ceil(4);
        let may_grow = self.buckets - buckets + grown <= self.buckets_max;
        if entries <= entries_at(LOAD_KEPT_64THS, buckets) {
            self.rebuild(shard, buckets, alive);
        } else if may_grow {
            self.rebuild(shard, grown, alive);
        } else if entries <= entries_at(LOAD_TIGHT_64THS, buckets) {
            self.rebuild(shard, buckets, alive);
        } else {
            return Room::ForgetFirst;
        }
        Room::Made
    }

    /// Frees the dead entries of the next `count` shards, and memory where few are alive.
    pub fn sweep(&mut self, count: usize, alive: Alive) {
        for _ in 0..count.min(self.shards.len()) {
            let shard = self.next_swept;
            self.next_swept = (shard + 1) % self.shards.len();
            let entries = self.shards[shard].count_alive(alive);
            let buckets = self.shards[shard].buckets.len();
            let is_sparse = entries < entries_at(LOAD_SHRINK_64THS, buckets);
            let fitting = (entries * 64).div_ceil(LANES * LOAD_KEPT_64THS).max(Self::buckets_min(shard));
            if is_sparse && fitting < buckets {
                self.rebuild(shard, fitting, alive);
            } else if entries < self.shards[shard].taken as usize {
                self.rebuild(shard, buckets, alive);
            }
        }
    }

    fn rebuild(&mut self, shard: usize, buckets: usize, alive: Alive) {
        let table = &mut self.shards[shard];
        self.moved.clear();
        for bucket in &table.buckets {
            let mut lanes = bucket.alive(alive);
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                lanes &= lanes - 1;
                self.moved.push((bucket.entries[lane], bucket.generations[lane]));
            }
        }
        self.buckets = self.buckets - table.buckets.len() + buckets;
        if table.buckets.len() == buckets {
            for bucket in &mut table.buckets {
                bucket.tags = [0; 16];
            }
            table.taken = 0;
        } else {
            // The old buckets are freed first, so that growing never takes both.
            table.buckets = Vec::new();
            *table = Shard::new(buckets);
        }
        for &(entry, generation) in &self.moved {
            table.insert(entry, generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lanes;

    proptest::proptest! {
        #[test]
        fn sixteen_bytes_at_once_are_compared_as_one_by_one(bytes: [u8; 16], byte: u8, first: u8, count in 1u8..) {
            proptest::prop_assert_eq!(lanes::equal(bytes, byte), lanes::plain::equal(bytes, byte));
            proptest::prop_assert_eq!(lanes::within(bytes, first, count), lanes::plain::within(bytes, first, count));
        }
    }
}
