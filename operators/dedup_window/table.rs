//! Where the winner of a key lies: an open-addressed table from 128-bit keys to positions in `winners`.
//!
//! ```text
//! shard  = high bits of a mix of the key      grows and is swept alone: at most about 6,000 entries move at a time
//! bucket = 64 bytes, one line of the cache    what finds its bucket full goes on to the next and marks the bucket as passed
//!
//!   tags      [u32; 8]   hash (30 bits) | passed (1 bit, of the first tag) | taken (1 bit)
//!   positions [u32; 8]   the winner's position
//! ```
//!
//! A search ends at the first bucket that nothing passed; 19 of 20 records have a new key, and cost one line. A tag only says where to
//! look: the caller compares whole keys in `winners`, because a hash's tag alone would drop real records. A shard's tags are all that
//! is needed to rebuild it, so growing touches no winner.
//!
//! An entry is alive while its position is: forgetting touches nothing here. A dead entry's place is taken by the next insertion that
//! passes it, or freed when its shard is swept.
//!
//! Rejected: whole winners in the buckets (two to four lines per record, and their share of empty places costs 32 bytes each), a table
//! per generation (every record misses the cache once per generation), a map with a queue (twice the memory), filters (they drop real
//! records).

use super::winners::{Alive, Position};

/// Entries in a bucket.
const LANES: usize = 8;

/// A tag's lowest bit: an entry lies here.
const TAKEN: u32 = 1;

/// The next bit, of a bucket's first tag: an entry went on to the next bucket.
const PASSED: u32 = 2;

/// The bits of a tag that are the key's.
const HASH_BITS: u32 = 30;

/// A probe gives up after so many buckets. In 100,000 insertions at the highest load the longest path was 13 buckets; only keys made
/// to collide get here, and they cost entries of their own.
const PROBE_BUCKETS_MAX: usize = 64;

/// A shard is rebuilt or grown before more of its entries than this are taken, in 1/64. In simulation an absent key costs 1.09
/// buckets at a load of 0.60, 1.29 at 0.70, 1.43 at 0.75, 1.79 at 0.80.
const LOAD_MAX_64THS: usize = 48;

/// After a rebuild at the same size at most this share may be taken, in 1/64; else the shard grows.
const LOAD_KEPT_64THS: usize = 40;

/// The same where growing is not allowed: some room must come of a rebuild, or it would be repeated for every record.
const LOAD_TIGHT_64THS: usize = 45;

/// A sweep that finds less than this share alive gives memory back, in 1/64.
const LOAD_SHRINK_64THS: usize = 18;

/// A sweep rebuilds a shard of which more than one in so many buckets were passed. At the highest load one in five is; marks outlive
/// what made them, so a shard that is never rebuilt would come to have all of them set.
const PASSED_SHARE: usize = 3;

/// Bytes of a shard when the window is at its bound: a rebuild moves so many at most, in well below 0.1 ms.
const SHARD_BYTES: usize = 64 << 10;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Bucket {
    tags: [u32; LANES],
    positions: [u32; LANES],
}

impl Bucket {
    const EMPTY: Bucket = Bucket { tags: [0; LANES], positions: [0; LANES] };

    #[inline(always)]
    fn taken(&self) -> u32 {
        lanes::with_bits(&self.tags, TAKEN, TAKEN)
    }

    #[inline(always)]
    fn alive(&self, alive: Alive) -> u32 {
        lanes::within(&self.positions, alive.floor, alive.count) & self.taken()
    }

    #[inline(always)]
    fn tagged(&self, tag: u32) -> u32 {
        lanes::with_bits(&self.tags, !PASSED, tag)
    }

    #[inline(always)]
    fn was_passed(&self) -> bool {
        self.tags[0] & PASSED != 0
    }
}

/// Eight numbers at once, one bit of the result per number. Which lane is which is a coin toss to the branch predictor, so nothing here
/// branches. Measured: a verdict costs 7 to 15 % more where the compiler is left to make vector code of the plain form.
mod lanes {
    #[cfg(not(target_arch = "x86_64"))]
    pub use self::plain::{with_bits, within};
    #[cfg(target_arch = "x86_64")]
    pub use self::sse2::{with_bits, within};

    #[cfg(target_arch = "x86_64")]
    mod sse2 {
        use std::arch::x86_64::*;

        /// Lanes whose bits under `mask` are `bits`.
        #[inline(always)]
        pub fn with_bits(numbers: &[u32; 8], mask: u32, bits: u32) -> u32 {
            // SAFETY: every x86-64 processor has SSE2; the loads need no alignment and stay inside the array.
            unsafe {
                let (mask, bits) = (_mm_set1_epi32(mask as i32), _mm_set1_epi32(bits as i32));
                let test = |half: __m128i| _mm_cmpeq_epi32(_mm_and_si128(half, mask), bits);
                let halves = numbers.as_ptr().cast::<__m128i>();
                collect(test(_mm_loadu_si128(halves)), test(_mm_loadu_si128(halves.add(1))))
            }
        }

        /// Lanes among the `count` numbers from `first` on, modulo 2^32.
        #[inline(always)]
        pub fn within(numbers: &[u32; 8], first: u32, count: u32) -> u32 {
            // SAFETY: every x86-64 processor has SSE2; the loads need no alignment and stay inside the array.
            unsafe {
                // SSE2 compares signed numbers only: shifting both sides by 2^31 keeps their order.
                let shifted_first = _mm_set1_epi32(first.wrapping_add(1 << 31) as i32);
                let shifted_count = _mm_set1_epi32(count.wrapping_add(1 << 31) as i32);
                let test = |half: __m128i| _mm_cmplt_epi32(_mm_sub_epi32(half, shifted_first), shifted_count);
                let halves = numbers.as_ptr().cast::<__m128i>();
                collect(test(_mm_loadu_si128(halves)), test(_mm_loadu_si128(halves.add(1))))
            }
        }

        #[inline(always)]
        fn collect(low: __m128i, high: __m128i) -> u32 {
            // SAFETY: every x86-64 processor has SSE2, and nothing here touches memory.
            unsafe {
                let both = _mm_packs_epi32(low, high);
                _mm_movemask_epi8(_mm_packs_epi16(both, _mm_setzero_si128())) as u32
            }
        }
    }

    /// The same for any processor, and the definition that the fast ones are tested against.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    pub mod plain {
        fn mask(numbers: &[u32; 8], test: impl Fn(u32) -> bool) -> u32 {
            numbers.iter().enumerate().fold(0, |mask, (lane, &number)| mask | u32::from(test(number)) << lane)
        }

        pub fn with_bits(numbers: &[u32; 8], mask_bits: u32, bits: u32) -> u32 {
            mask(numbers, |number| number & mask_bits == bits)
        }

        pub fn within(numbers: &[u32; 8], first: u32, count: u32) -> u32 {
            mask(numbers, |number| number.wrapping_sub(first) < count)
        }
    }
}

/// What the table needs of a key: its shard, and its tag there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hash {
    shard: u32,
    tag: u32,
}

/// Where an entry lies in the shard of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    bucket: u32,
    lane: u32,
}

/// What became of the room a shard needs for one more entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is room.
    Made,
    /// Only forgetting winners would give room: the table may not grow further.
    ForgetFirst,
}

struct Shard {
    buckets: Vec<Bucket>,
    /// Entries that are not empty, dead ones included.
    taken: u32,
    taken_max: u32,
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
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag >> (u32::BITS - HASH_BITS)) * self.buckets.len() as u64) >> HASH_BITS) as usize
    }

    #[inline(always)]
    fn next(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    #[inline(always)]
    fn find(&self, tag: u32, alive: Alive, mut visit: impl FnMut(Slot, Position)) -> Option<Slot> {
        let mut found = None;
        let mut index = self.home(tag);
        for _ in 0..PROBE_BUCKETS_MAX.min(self.buckets.len()) {
            let bucket = &self.buckets[index];
            let (taken, alive) = (bucket.taken(), bucket.alive(alive));
            let mut candidates = bucket.tagged(tag) & alive;
            while candidates != 0 {
                let lane = candidates.trailing_zeros();
                candidates &= candidates - 1;
                visit(Slot { bucket: index as u32, lane }, bucket.positions[lane as usize]);
            }
            // A dead entry before an empty one: so the shard fills as late as possible.
            let dead = taken & !alive;
            let free = if dead != 0 { dead } else { !taken & ((1 << LANES) - 1) };
            if found.is_none() && free != 0 {
                found = Some(Slot { bucket: index as u32, lane: free.trailing_zeros() });
            }
            if !bucket.was_passed() && found.is_some() {
                break;
            }
            index = self.next(index);
        }
        found
    }

    #[inline(always)]
    fn set(&mut self, slot: Slot, tag: u32, position: Position) {
        let bucket = &mut self.buckets[slot.bucket as usize];
        let lane = slot.lane as usize;
        self.taken += u32::from(bucket.tags[lane] & TAKEN == 0);
        bucket.tags[lane] = tag | bucket.tags[lane] & PASSED;
        bucket.positions[lane] = position;
    }

    /// Marks the buckets from `home` on, before `until`, as passed: an entry went on from them.
    #[inline(always)]
    fn pass(&mut self, home: usize, until: usize) {
        let mut index = home;
        while index != until {
            self.buckets[index].tags[0] |= PASSED;
            index = self.next(index);
        }
    }

    /// The first empty place from the home of `tag` on, among those a search will look at.
    fn first_empty(&self, tag: u32) -> Option<Slot> {
        let mut index = self.home(tag);
        for _ in 0..PROBE_BUCKETS_MAX.min(self.buckets.len()) {
            let taken = self.buckets[index].taken();
            if taken.trailing_ones() < LANES as u32 {
                return Some(Slot { bucket: index as u32, lane: taken.trailing_ones() });
            }
            index = self.next(index);
        }
        None
    }

    /// Inserts into a shard that has room and no dead entries. An entry whose path is too long is lost: its winner is forgotten.
    fn insert(&mut self, tag: u32, position: Position) {
        if let Some(slot) = self.first_empty(tag) {
            self.pass(self.home(tag), slot.bucket as usize);
            self.set(slot, tag, position);
        }
    }

    /// Empties the places of dead entries, and returns how many are alive.
    fn drop_dead(&mut self, alive: Alive) -> usize {
        let mut taken = 0;
        for bucket in &mut self.buckets {
            for lane in 0..LANES {
                let is_alive = (bucket.tags[lane] & TAKEN != 0) & alive.contains(bucket.positions[lane]);
                bucket.tags[lane] &= if is_alive { u32::MAX } else { PASSED };
                taken += u32::from(is_alive);
            }
        }
        self.taken = taken;
        taken as usize
    }

    fn count_passed(&self) -> usize {
        self.buckets.iter().filter(|bucket| bucket.was_passed()).count()
    }
}

/// The table.
pub(super) struct Table {
    shards: Vec<Shard>,
    /// 64 less the bits of a shard's number.
    shift: u32,
    buckets: usize,
    /// Holds a shard's entries while it is rebuilt.
    moved: Vec<(u32, Position)>,
    next_swept: usize,
}

impl Table {
    /// An empty table whose shards stay small while it takes up to `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        let count = (bytes_max / SHARD_BYTES).next_power_of_two().clamp(16, 1 << 16);
        let shards: Vec<Shard> = (0..count).map(|shard| Shard::new(Self::buckets_min(shard))).collect();
        let buckets = shards.iter().map(|shard| shard.buckets.len()).sum();
        Table { shards, shift: u64::BITS - count.ilog2(), buckets, moved: Vec::new(), next_swept: 0 }
    }

    /// Shards start a little apart in size: as all grow by the same factor they would otherwise all grow in the same moment.
    fn buckets_min(shard: usize) -> usize {
        16 + shard % 8
    }

    /// How many shards there are to sweep.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        let moved = self.moved.capacity() * size_of::<(u32, Position)>();
        self.buckets * size_of::<Bucket>() + self.shards.len() * size_of::<Shard>() + moved
    }

    /// The part of a key that the table works with. The multiplications spread keys that share some of their bits, as those routed to
    /// one worker do.
    #[inline(always)]
    pub fn hash(&self, key: u128) -> Hash {
        let mixed = (key as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (key >> 64) as u64;
        let mixed = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The bits below those of the shard, whose number has 16 at most.
        let tag = (mixed << 16 >> 32) as u32 & !(TAKEN | PASSED) | TAKEN;
        Hash { shard: (mixed >> self.shift) as u32, tag }
    }

    #[inline(always)]
    fn shard(&self, hash: Hash) -> &Shard {
        &self.shards[hash.shard as usize]
    }

    /// Reads the key's home bucket. Called for many keys in a row before they are looked up, it lets the processor wait for many
    /// cache lines at once instead of one after another.
    #[inline(always)]
    pub fn touch(&self, hash: Hash) -> u32 {
        let shard = self.shard(hash);
        shard.buckets[shard.home(hash.tag)].tags[0]
    }

    /// A position that the key's home bucket holds for it, if any: its winner is to be read ahead, too.
    #[inline(always)]
    pub fn candidate(&self, hash: Hash) -> Option<Position> {
        let shard = self.shard(hash);
        let bucket = &shard.buckets[shard.home(hash.tag)];
        let same = bucket.tagged(hash.tag);
        (same != 0).then(|| bucket.positions[same.trailing_zeros() as usize & (LANES - 1)])
    }

    /// Shows `visit` the alive entries that may be those of the key, and returns the first place a new one may take.
    #[inline(always)]
    pub fn find(&self, hash: Hash, alive: Alive, visit: impl FnMut(Slot, Position)) -> Option<Slot> {
        self.shard(hash).find(hash.tag, alive, visit)
    }

    /// The place of a new entry for which `find` met no free one; it may be an alive entry's.
    pub fn place_after(&self, hash: Hash) -> Slot {
        let shard = self.shard(hash);
        shard.first_empty(hash.tag).unwrap_or(Slot { bucket: shard.home(hash.tag) as u32, lane: 0 })
    }

    /// The position of the entry at `slot`, which may be dead.
    pub fn position(&self, hash: Hash, slot: Slot) -> Option<Position> {
        let bucket = &self.shard(hash).buckets[slot.bucket as usize];
        (bucket.tags[slot.lane as usize] & TAKEN != 0).then_some(bucket.positions[slot.lane as usize])
    }

    /// Puts an entry of the key at `slot`.
    #[inline(always)]
    pub fn put(&mut self, hash: Hash, slot: Slot, position: Position) {
        let shard = &mut self.shards[hash.shard as usize];
        shard.pass(shard.home(hash.tag), slot.bucket as usize);
        shard.set(slot, hash.tag, position);
    }

    /// True if the shard of the key has room for one more entry.
    #[inline(always)]
    pub fn has_room(&self, hash: Hash) -> bool {
        let shard = self.shard(hash);
        shard.taken < shard.taken_max
    }

    /// Makes room in the shard of the key: drops its dead entries, and grows it if too many are alive and `bytes_free` allow it.
    pub fn make_room(&mut self, hash: Hash, alive: Alive, bytes_free: usize) -> Room {
        let shard = hash.shard as usize;
        let buckets = self.shards[shard].buckets.len();
        let entries = self.shards[shard].drop_dead(alive);
        let more = buckets / 2;
        if entries <= entries_at(LOAD_KEPT_64THS, buckets) {
            return Room::Made;
        }
        if more * size_of::<Bucket>() <= bytes_free {
            self.rebuild(shard, buckets + more);
            return Room::Made;
        }
        let is_tight = entries > entries_at(LOAD_TIGHT_64THS, buckets);
        if is_tight { Room::ForgetFirst } else { Room::Made }
    }

    /// Frees the dead entries of the next `count` shards, and memory where few are alive.
    pub fn sweep(&mut self, count: usize, alive: Alive) {
        for _ in 0..count.min(self.shards.len()) {
            let shard = self.next_swept;
            self.next_swept = (shard + 1) % self.shards.len();
            let entries = self.shards[shard].drop_dead(alive);
            let buckets = self.shards[shard].buckets.len();
            let is_sparse = entries < entries_at(LOAD_SHRINK_64THS, buckets);
            let fitting = (entries * 64).div_ceil(LANES * LOAD_KEPT_64THS).max(Self::buckets_min(shard));
            if is_sparse && fitting < buckets {
                self.rebuild(shard, fitting);
            } else if self.shards[shard].count_passed() > buckets / PASSED_SHARE {
                self.rebuild(shard, buckets);
            }
        }
    }

    /// Gives a shard without dead entries `buckets`, and forgets which of them were passed long ago.
    fn rebuild(&mut self, shard: usize, buckets: usize) {
        let table = &mut self.shards[shard];
        self.moved.clear();
        for bucket in &table.buckets {
            let mut lanes = bucket.taken();
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                lanes &= lanes - 1;
                self.moved.push((bucket.tags[lane] & !PASSED, bucket.positions[lane]));
            }
        }
        self.buckets = self.buckets - table.buckets.len() + buckets;
        if table.buckets.len() == buckets {
            table.buckets.fill(Bucket::EMPTY);
            table.taken = 0;
        } else {
            // The old buckets are freed first, so that growing never takes both.
            table.buckets = Vec::new();
            *table = Shard::new(buckets);
        }
        for &(tag, position) in &self.moved {
            table.insert(tag, position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lanes;

    proptest::proptest! {
        #[test]
        fn eight_numbers_at_once_are_compared_as_one_by_one(
            numbers in proptest::array::uniform8(proptest::prop_oneof![0u32..9, u32::MAX - 9..=u32::MAX, proptest::num::u32::ANY]),
            first in proptest::prop_oneof![0u32..9, u32::MAX - 9..=u32::MAX, proptest::num::u32::ANY], count: u32, mask in 0u32..16,
        ) {
            for count in [count, count % 16] {
                proptest::prop_assert_eq!(lanes::within(&numbers, first, count), lanes::plain::within(&numbers, first, count));
            }
            let bits = count & mask;
            proptest::prop_assert_eq!(lanes::with_bits(&numbers, mask, bits), lanes::plain::with_bits(&numbers, mask, bits));
        }
    }
}
