//! The few encodings that frames, key files and captures share: LEB128 varints, zigzag for signed numbers, length-prefixed strings.

use std::sync::Arc;

use crate::coverage::{PartitionKey, TopicKey};

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Zigzag: small numbers of either sign stay short.
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_partition(out: &mut Vec<u8>, key: &PartitionKey) {
    put_string(out, &key.topic.cluster);
    put_string(out, &key.topic.name);
    put_string(out, &key.topic.id);
    put_signed(out, i64::from(key.partition));
}

/// Reads what the functions above wrote. `None` means that the bytes were not written by them.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn position_in(&self, whole: &[u8]) -> usize {
        whole.len() - self.rest.len()
    }

    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    #[inline]
    pub(crate) fn signed(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let bytes = usize::try_from(self.varint()?).ok()?;
        std::str::from_utf8(self.take(bytes)?).ok()
    }

    /// A number of items of at least `item_bytes_min` bytes each: more than the rest could hold is refused before anything is
    /// allocated for them.
    pub(crate) fn count(&mut self, item_bytes_min: usize) -> Option<usize> {
        let count = usize::try_from(self.varint()?).ok()?;
        (count <= self.rest.len() / item_bytes_min).then_some(count)
    }

    pub(crate) fn key(&mut self) -> Option<u128> {
        self.take(16)?.try_into().ok().map(u128::from_le_bytes)
    }

    pub(crate) fn partition(&mut self) -> Option<PartitionKey> {
        let (cluster, name, id) = (self.string()?.into(), self.string()?.into(), self.string()?.into());
        let partition = i32::try_from(self.signed()?).ok()?;
        Some(PartitionKey { topic: Arc::new(TopicKey { cluster, name, id }), partition })
    }
}

/// The little-endian `u32` at `at` of a header whose length was checked.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// The little-endian `u64` at `at` of a header whose length was checked.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn numbers_and_texts_come_back_as_they_were_put(value: u64, signed: i64, text: String) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            put_string(&mut out, &text);
            let mut cursor = Cursor::new(&out);
            proptest::prop_assert_eq!(cursor.varint(), Some(value));
            proptest::prop_assert_eq!(cursor.signed(), Some(signed));
            proptest::prop_assert_eq!(cursor.string(), Some(text.as_str()));
            proptest::prop_assert!(cursor.is_empty());
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
            let mut cursor = Cursor::new(&bytes);
            while cursor.partition().is_some() {}
            let mut cursor = Cursor::new(&bytes);
            while cursor.varint().is_some() {}
        }
    }
}
