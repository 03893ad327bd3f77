//! The memory of the window: an open-addressed table of fixed-size entries, sharded so that it grows without a stall.
//!
//! ```text
//! shard = high bits of a mix of the key       grows and is swept alone: at most about 8,000 entries move at a time
//! bucket = 128 bytes, two cache lines, 4 entries; a full bucket overflows into the next one
//!
//!   line 1   low  [u64; 4]   the key's low half         } compared whole: a hash's tag alone would drop real records
//!            high [u64; 4]   the key's high half        }
//!   line 2   place[u64; 4]   offset (56 bits) | generation (8 bits)
//!            when [u64; 4]   record time in ms (42 bits) | partition + 1 (22 bits); 0 is an empty entry
//! ```
//!
//! An entry is alive while its generation is: forgetting a generation changes two numbers in the window and no entry here. A dead
//! entry's place is taken by the next insertion that passes it, or freed when its shard is rebuilt. Invariant: an entry lies in the
//! first bucket, from its home on, that had room when it came, and no bucket before it on that path ever becomes not full; so a
//! search ends at the first bucket with an empty entry.
//!
//! Rejected: one table per generation (every probe misses the cache once per generation; a bound of two windows' keys),
//! a map with a queue (three times the memory), filters (they drop real records).

/// Entries in a bucket: two cache lines, which the hardware fetches as a pair.
const LANES: usize = 4;

/// Bits of the packed record time: enough until the year 2109. Later times count as that year, earlier than 1970 as 1970.
const TIME_BITS: u32 = 42;

/// Bits of the packed partition number.
pub(super) const PARTITION_BITS: u32 = 22;

const _: () = assert!(TIME_BITS + PARTITION_BITS == u64::BITS);

/// A probe gives up after so many full buckets. At the highest load a run of 64 full buckets does not happen by chance (the bench
/// meets 30); only keys made to collide get there, and they cost their own oldest entry.
const PROBE_BUCKETS_MAX: usize = 64;

/// Alive entries of one key that are told apart. They are more than a window apart from each other, so only a replayed or lagging
/// partition has several; the bound keeps one hot key from making a long path.
pub(super) const SAME_KEY_MAX: usize = 4;

/// A shard is rebuilt or grown before more of its entries than this are taken, in 1/64. Measured: from 0.80 to 0.90 a probe of an
/// absent key goes from 1.2 to 2.3 buckets.
const LOAD_MAX_64THS: usize = 54;

/// After a rebuild at the same size at most this share may be taken, in 1/64; else the shard grows.
const LOAD_KEPT_64THS: usize = 45;

/// The same where growing is not allowed: some room must come of a rebuild, or it would be repeated for every record.
const LOAD_TIGHT_64THS: usize = 51;

/// A sweep that finds less than this share alive gives memory back, in 1/64.
const LOAD_SHRINK_64THS: usize = 20;

/// Bytes of a shard when the table is at its bound: a rebuild moves so many at most, in about 0.2 ms.
const SHARD_BYTES: usize = 256 << 10;

/// The generations that are remembered: `count` numbers from `first` on, modulo 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alive {
    /// The oldest generation.
    pub first: u8,
    /// How many generations.
    pub count: u8,
}

impl Alive {
    #[inline(always)]
    fn contains(self, generation: u8) -> bool {
        generation.wrapping_sub(self.first) < self.count
    }
}

/// One remembered record, packed as it lies in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: u128,
    place: u64,
    when: u64,
}

impl Entry {
    /// Packs a record. An offset above 2^56 loses its high bits, which can only make two records look like one redelivered.
    pub fn new(key: u128, time_ms: i64, partition: u32, offset: i64) -> Self {
        debug_assert!(partition < (1 << PARTITION_BITS) - 1);
        let time = time_ms.clamp(0, (1 << TIME_BITS) - 1) as u64;
        Entry { key, place: (offset as u64) << 8, when: time << PARTITION_BITS | u64::from(partition + 1) }
    }

    /// The same entry, remembered in `generation`.
    #[inline(always)]
    pub fn in_generation(self, generation: u8) -> Self {
        Entry { place: self.place & !0xff | u64::from(generation), ..self }
    }

    /// The generation it is remembered in.
    #[inline(always)]
    pub fn generation(self) -> u8 {
        self.place as u8
    }

    /// True if both are the same Kafka record.
    #[inline(always)]
    pub fn is_same_record(self, other: Entry) -> bool {
        let partition = (1 << PARTITION_BITS) - 1;
        self.place >> 8 == other.place >> 8 && self.when & partition == other.when & partition
    }

    /// How far the two record times are apart.
    #[inline(always)]
    pub fn distance_ms(self, other: Entry) -> u64 {
        (self.when >> PARTITION_BITS).abs_diff(other.when >> PARTITION_BITS)
    }

    /// A total order by record time, then partition, then offset.
    pub fn order(self) -> (u64, u64) {
        (self.when, self.place >> 8)
    }
}

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Bucket {
    low: [u64; LANES],
    high: [u64; LANES],
    place: [u64; LANES],
    when: [u64; LANES],
}

impl Bucket {
    const EMPTY: Bucket = Bucket { low: [0; LANES], high: [0; LANES], place: [0; LANES], when: [0; LANES] };

    #[inline(always)]
    fn entry(&self, lane: usize) -> Entry {
        let key = u128::from(self.high[lane]) << 64 | u128::from(self.low[lane]);
        Entry { key, place: self.place[lane], when: self.when[lane] }
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, entry: Entry) {
        self.low[lane] = entry.key as u64;
        self.high[lane] = (entry.key >> 64) as u64;
        self.place[lane] = entry.place;
        self.when[lane] = entry.when;
    }

    /// One bit per lane for which `test` holds, without a branch: which lane is which is a coin toss to the branch predictor.
    #[inline(always)]
    fn mask(&self, test: impl Fn(&Self, usize) -> bool) -> u32 {
        (0..LANES).fold(0, |mask, lane| mask | u32::from(test(self, lane)) << lane)
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

impl Shard {
    fn new(buckets: usize) -> Self {
        Shard { buckets: vec![Bucket::EMPTY; buckets], taken: 0, taken_max: (buckets * LANES * LOAD_MAX_64THS / 64) as u32 }
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
        let (low, high) = (key as u64, (key >> 64) as u64);
        let mut index = self.home(key);
        for _ in 0..PROBE_BUCKETS_MAX.min(self.buckets.len()) {
            let bucket = &self.buckets[index];
            let slot = |lanes: u32| Slot { bucket: index as u32, lane: lanes.trailing_zeros() };
            let empty = bucket.mask(|bucket, lane| bucket.when[lane] == 0);
            let dead = bucket.mask(|bucket, lane| !alive.contains(bucket.place[lane] as u8));
            let mut same = bucket.mask(|bucket, lane| (bucket.low[lane] == low) & (bucket.high[lane] == high)) & !empty & !dead;
            if found.free.is_none() && (empty | dead) != 0 {
                found.free = Some(slot(empty | dead));
            }
            while same != 0 && found.same_count < SAME_KEY_MAX {
                found.same[found.same_count] = slot(same);
                found.same_count += 1;
                same &= same - 1;
            }
            if empty != 0 {
                break;
            }
            index = self.next(index);
        }
        found
    }

    /// The entry with the least order in the home bucket of `key`, which is full.
    fn least(&self, key: u128) -> Slot {
        let home = self.home(key);
        let lanes = (0..LANES as u32).map(|lane| Slot { bucket: home as u32, lane });
        lanes.min_by_key(|slot| self.buckets[home].entry(slot.lane as usize).order()).unwrap_or(Slot { bucket: home as u32, lane: 0 })
    }

    fn alive(&self, alive: Alive) -> impl Iterator<Item = Entry> + '_ {
        let lanes = self.buckets.iter().flat_map(|bucket| (0..LANES).map(|lane| bucket.entry(lane)));
        lanes.filter(move |entry| entry.when != 0 && alive.contains(entry.generation()))
    }

    /// Inserts into a shard without dead entries that has room.
    fn insert(&mut self, entry: Entry) {
        let mut index = self.home(entry.key);
        loop {
            let empty = self.buckets[index].mask(|bucket, lane| bucket.when[lane] == 0);
            if empty != 0 {
                self.buckets[index].set(empty.trailing_zeros() as usize, entry);
                self.taken += 1;
                return;
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
    /// Holds a shard's entries while it is rebuilt.
    moved: Vec<Entry>,
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
        16 + shard % 4
    }

    /// How many shards there are to sweep.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.buckets * size_of::<Bucket>() + self.shards.len() * size_of::<Shard>() + self.moved.capacity() * size_of::<Entry>()
    }

    /// About how many entries fit at the bound.
    pub fn entries_max(&self) -> usize {
        self.buckets_max * LANES * LOAD_KEPT_64THS / 64
    }

    #[inline(always)]
    fn shard_of(&self, key: u128) -> usize {
        let mixed = (key as u64 ^ ((key >> 64) as u64).rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> self.shift) as usize
    }

    /// Reads both lines of the key's home bucket. Called for many keys in a row before they are looked up, it lets the processor
    /// wait for many cache lines at once instead of one after another.
    #[inline(always)]
    pub fn touch(&self, key: u128) -> u64 {
        let shard = &self.shards[self.shard_of(key)];
        let bucket = &shard.buckets[shard.home(key)];
        bucket.low[0] ^ bucket.when[0]
    }

    /// Looks for `key`.
    #[inline(always)]
    pub fn find(&self, key: u128, alive: Alive) -> Found {
        self.shards[self.shard_of(key)].find(key, alive)
    }

    /// The entry that `find` of the same key met at `slot`.
    #[inline(always)]
    pub fn entry(&self, key: u128, slot: Slot) -> Entry {
        self.shards[self.shard_of(key)].buckets[slot.bucket as usize].entry(slot.lane as usize)
    }

    /// The entry to replace when `find` met no free place.
    pub fn least(&self, key: u128) -> Slot {
        self.shards[self.shard_of(key)].least(key)
    }

    /// Puts `entry` where `find` of its key allowed it.
    #[inline(always)]
    pub fn put(&mut self, slot: Slot, entry: Entry) {
        let shard = self.shard_of(entry.key);
        let shard = &mut self.shards[shard];
        let bucket = &mut shard.buckets[slot.bucket as usize];
        shard.taken += u32::from(bucket.when[slot.lane as usize] == 0);
        bucket.set(slot.lane as usize, entry);
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
        let entries = self.shards[shard].alive(alive).count();
        let grown = buckets + buckets.div_ceil(4);
        let may_grow = self.buckets - buckets + grown <= self.buckets_max;
        if entries <= buckets * LANES * LOAD_KEPT_64THS / 64 {
            self.rebuild(shard, buckets, alive);
        } else if may_grow {
            self.rebuild(shard, grown, alive);
        } else if entries <= buckets * LANES * LOAD_TIGHT_64THS / 64 {
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
            let entries = self.shards[shard].alive(alive).count();
            let buckets = self.shards[shard].buckets.len();
            let is_sparse = entries < buckets * LANES * LOAD_SHRINK_64THS / 64;
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
        self.moved.extend(table.alive(alive));
        self.buckets = self.buckets - table.buckets.len() + buckets;
        if table.buckets.len() == buckets {
            table.buckets.fill(Bucket::EMPTY);
            table.taken = 0;
        } else {
            // The old buckets are freed first, so that growing never takes both.
            table.buckets = Vec::new();
            *table = Shard::new(buckets);
        }
        for &entry in &self.moved {
            table.insert(entry);
        }
    }
}
