//! A growing byte buffer whose memory starts on a block boundary, as direct I/O demands.
//!
//! The alignment is had by starting inside an ordinary vector, which needs no `unsafe` and costs one block of memory.

use super::disk::BLOCK_BYTES;

const BLOCK: usize = BLOCK_BYTES as usize;

#[derive(Default)]
pub(super) struct AlignedBuffer {
    storage: Vec<u8>,
    /// Where the first aligned byte lies in `storage`.
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let end = self.start + self.len;
        self.storage[end..end + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn extend_zeros(&mut self, count: usize) {
        self.reserve(count);
        let end = self.start + self.len;
        self.storage[end..end + count].fill(0);
        self.len += count;
    }

    /// The bytes, followed by zeros up to `padded` bytes. The zeros do not become part of the buffer.
    pub(super) fn padded(&mut self, padded: usize) -> &[u8] {
        let len = self.len;
        self.extend_zeros(padded - len);
        self.len = len;
        &self.storage[self.start..self.start + padded]
    }

    /// Gives memory above `bytes_max` back, so that one huge frame does not hold it for ever.
    pub(super) fn shrink_to(&mut self, bytes_max: usize) {
        if self.storage.len() > bytes_max && self.len < bytes_max / 2 {
            self.reallocate(bytes_max / 2);
        }
    }

    /// Makes room for `more` bytes.
    pub(super) fn reserve(&mut self, more: usize) {
        let needed = self.len + more;
        if self.start + needed > self.storage.len() || self.storage.is_empty() {
            self.reallocate(needed.max(self.len * 2));
        }
    }

    fn reallocate(&mut self, capacity: usize) {
        let mut storage = vec![0; capacity.next_multiple_of(BLOCK) + BLOCK];
        let start = storage.as_ptr().addr().next_multiple_of(BLOCK) - storage.as_ptr().addr();
        storage[start..start + self.len].copy_from_slice(self.bytes());
        (self.storage, self.start) = (storage, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_and_keeps_its_bytes_while_growing_and_shrinking() {
        let mut buffer = AlignedBuffer::default();
        let mut model = Vec::new();
        for round in 0..200usize {
            let piece = vec![round as u8; round * 37 % 9_000];
            buffer.extend(&piece);
            model.extend_from_slice(&piece);
            assert_eq!(buffer.bytes().as_ptr().addr() % BLOCK, 0);
            if round % 7 == 0 {
                let padded = model.len().next_multiple_of(BLOCK);
                assert_eq!(buffer.padded(padded).len(), padded);
                assert!(buffer.padded(padded)[model.len()..].iter().all(|&byte| byte == 0));
                let kept = buffer.bytes()[model.len() / BLOCK * BLOCK..].to_vec();
                buffer.clear();
                buffer.shrink_to(16 * BLOCK);
                buffer.extend(&kept);
                model = kept;
            }
            assert_eq!(buffer.bytes(), model);
        }
    }
}
