//! A pool of batch arenas.
//!
//! The first touch of a fresh page costs about 0.7 CPU seconds per GB on a guest that gives freed memory back to its host: more
//! than decoding. So arenas are handed back when the last reader of a batch lets go, and reused.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Keeps at most `kept_max` free arenas; those beyond are freed.
#[derive(Clone, Debug)]
pub struct ArenaPool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    kept_max: usize,
    arena_bytes: usize,
}

impl ArenaPool {
    /// A pool that keeps up to `kept_max` arenas; new ones reserve `arena_bytes`. With `preallocate` all are made, and touched, now.
    pub fn new(kept_max: usize, arena_bytes: usize, preallocate: bool) -> Self {
        let free = if preallocate { (0..kept_max).map(|_| touched(arena_bytes)).collect() } else { Vec::new() };
        ArenaPool { free: Arc::new(Mutex::new(free)), kept_max, arena_bytes }
    }

    /// An empty arena, reused where one is free.
    pub fn take(&self) -> Vec<u8> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(self.arena_bytes))
    }

    /// Makes a filled arena immutable and shared; it comes back to the pool with its last reader.
    pub fn seal(&self, arena: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { arena, pool: self.clone() })
    }

    fn give_back(&self, mut arena: Vec<u8>) {
        // An arena grown by one huge message is not worth keeping.
        let oversized = arena.capacity() > 4 * self.arena_bytes.max(64 * 1024);
        arena.clear();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if !oversized && free.len() < self.kept_max {
            free.push(arena);
        }
    }
}

struct Lent {
    arena: Vec<u8>,
    pool: ArenaPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.arena
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.arena));
    }
}

fn touched(bytes: usize) -> Vec<u8> {
    let mut arena = vec![1u8; bytes];
    arena.clear();
    arena
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_returns_when_its_last_reader_is_gone() {
        let pool = ArenaPool::new(1, 16, false);
        let mut arena = pool.take();
        arena.extend_from_slice(b"abc");
        let place = arena.as_ptr();
        let sealed = pool.seal(arena);
        let reader = sealed.slice(1..2);
        drop(sealed);
        let other = pool.take();
        assert_ne!(other.as_ptr(), place);
        assert_eq!(&reader[..], b"b");
        drop(reader);
        let reused = pool.take();
        assert_eq!(reused.as_ptr(), place);
    }

    #[test]
    fn as_many_arenas_are_kept_as_the_pool_is_large_and_none_that_one_message_made_huge() {
        for kept_max in [0, 2] {
            let pool = ArenaPool::new(kept_max, 16, false);
            let arenas: Vec<Vec<u8>> = (0..3).map(|_| pool.take()).collect();
            let sealed: Vec<Bytes> = arenas.into_iter().map(|arena| pool.seal(arena)).collect();
            drop(sealed);
            assert_eq!(pool.free.lock().unwrap().len(), kept_max);
        }
        let pool = ArenaPool::new(2, 16, false);
        drop(pool.seal(vec![0; 1 << 20]));
        assert!(pool.free.lock().unwrap().is_empty());
    }

    #[test]
    fn preallocated_arenas_are_there_before_the_first_is_needed() {
        for preallocate in [true, false] {
            let pool = ArenaPool::new(3, 4096, preallocate);
            let there: Vec<usize> = pool.free.lock().unwrap().iter().map(Vec::capacity).collect();
            assert_eq!(there, vec![4096; if preallocate { 3 } else { 0 }]);
            let (taken, place) = (pool.take(), there.len());
            assert!(taken.is_empty() && taken.capacity() >= 4096);
            assert_eq!(pool.free.lock().unwrap().len(), place.saturating_sub(1));
        }
    }
}
