//! The winners of the window, in the order in which they came: an append-only log in memory.
//!
//! ```text
//! position   first ........ floor .................... next        (modulo 2^32)
//!            | forgotten, in |       remembered        |
//!            |  a chunk that |                         |
//!            |  also holds   |                         |
//!            |  remembered   |                         |
//!            chunk           chunk           chunk
//! ```
//! Appending writes the next place in memory, so a winner costs no wait for a cache line; only the `table`, which says where a key's
//! winner lies, is hit at random. Forgetting moves `floor` and frees whole chunks.
//! Order: first <= floor <= next, and next - first < 2^32.

use std::collections::VecDeque;

/// Winners in a chunk, 256 KiB: small against any bound, large against the cost of an allocation.
const CHUNK: usize = 8192;

/// Bits of the packed record time: enough until the year 2109. Later times count as that year, earlier than 1970 as 1970.
const TIME_BITS: u32 = 42;

/// Bits of the packed partition number.
pub(super) const PARTITION_BITS: u32 = 22;

const _: () = assert!(TIME_BITS + PARTITION_BITS == u64::BITS);

/// Where a winner lies: its number, modulo 2^32.
pub(super) type Position = u32;

/// The positions that are remembered: `count` of them from `floor` on, modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alive {
    /// The first.
    pub floor: Position,
    /// How many.
    pub count: u32,
}

impl Alive {
    #[inline(always)]
    pub fn contains(self, position: Position) -> bool {
        position.wrapping_sub(self.floor) < self.count
    }
}

/// One remembered record, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Winner {
    pub key: u128,
    offset: i64,
    when: u64,
}

impl Winner {
    /// Packs a record.
    #[inline(always)]
    pub fn new(key: u128, time_ms: i64, partition: u32, offset: i64) -> Self {
        debug_assert!(partition < 1 << PARTITION_BITS);
        let time = time_ms.clamp(0, (1 << TIME_BITS) - 1) as u64;
        Winner { key, offset, when: time << PARTITION_BITS | u64::from(partition) }
    }

    /// True if both are the same Kafka record.
    #[inline(always)]
    pub fn is_same_record(self, other: Winner) -> bool {
        let partition = (1 << PARTITION_BITS) - 1;
        self.offset == other.offset && self.when & partition == other.when & partition
    }

    /// How far the two record times are apart.
    #[inline(always)]
    pub fn distance_ms(self, other: Winner) -> u64 {
        (self.when >> PARTITION_BITS).abs_diff(other.when >> PARTITION_BITS)
    }

    /// A total order by record time, then partition, then offset.
    pub fn order(self) -> (u64, i64) {
        (self.when, self.offset)
    }
}

/// The log.
#[derive(Default)]
pub(super) struct Winners {
    chunks: VecDeque<Vec<Winner>>,
    /// Chunks freed by the last forgetting, to be filled again: fresh memory costs more than all else here.
    spare: Vec<Vec<Winner>>,
    first: Position,
    floor: Position,
    next: Position,
}

impl Winners {
    /// Bytes of one chunk.
    pub const CHUNK_BYTES: usize = CHUNK * size_of::<Winner>();

    /// What is remembered.
    #[inline(always)]
    pub fn alive(&self) -> Alive {
        Alive { floor: self.floor, count: self.next.wrapping_sub(self.floor) }
    }

    /// The winner at an alive position.
    #[inline(always)]
    pub fn get(&self, position: Position) -> &Winner {
        let index = position.wrapping_sub(self.first) as usize;
        &self.chunks[index / CHUNK][index % CHUNK]
    }

    /// True if one more can be pushed.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.chunks.back().is_some_and(|chunk| chunk.len() < CHUNK)
    }

    /// True if room can be made without taking memory.
    pub fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Gives spare memory back.
    pub fn release_spare(&mut self) {
        self.spare = Vec::new();
    }

    /// Makes room for another chunk of winners.
    pub fn make_room(&mut self) {
        let mut chunk = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        chunk.clear();
        self.chunks.push_back(chunk);
    }

    /// Appends a winner where there is room, and returns its position.
    #[inline(always)]
    pub fn push(&mut self, winner: Winner) -> Position {
        debug_assert!(self.has_room());
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.push(winner);
        }
        let position = self.next;
        self.next = position.wrapping_add(1);
        position
    }

    /// Forgets all winners before `floor`.
    pub fn forget_before(&mut self, floor: Position) {
        self.floor = floor;
        self.spare.clear();
        while self.floor.wrapping_sub(self.first) as usize >= CHUNK {
            self.spare.extend(self.chunks.pop_front());
            self.first = self.first.wrapping_add(CHUNK as u32);
        }
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        (self.chunks.len() + self.spare.len()) * Self::CHUNK_BYTES
    }
}
