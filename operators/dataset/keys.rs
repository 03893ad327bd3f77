//! A table of names, made once and asked for every attribute of every row: mostly one multiplication, one load, one comparison.

use crate::arrow_encode::promoted::fingerprint;

/// A slot that no name owns.
const EMPTY: u16 = u16::MAX;

/// Slots for each name: a name that is not in the table then mostly meets an empty slot, and runs of owned ones stay short.
const SLOTS_PER_NAME: usize = 16;

/// Names, each with what it stands for.
#[derive(Clone, Debug)]
pub struct Keys<T> {
    slots: Box<[u16]>,
    shift: u32,
    entries: Vec<(Box<[u8]>, T)>,
}

impl<T: Copy> Keys<T> {
    /// A table of `names`; of equal ones the first counts. More than 65,000 are not held: nobody writes so many.
    pub fn new<'k>(names: impl IntoIterator<Item = (&'k str, T)>) -> Self {
        let mut entries: Vec<(Box<[u8]>, T)> = Vec::new();
        for (name, value) in names {
            let is_new = entries.iter().all(|(known, _)| **known != *name.as_bytes());
            if is_new && entries.len() < usize::from(EMPTY) {
                entries.push((name.as_bytes().into(), value));
            }
        }
        let slots = (entries.len().max(1) * SLOTS_PER_NAME).next_power_of_two();
        let mut keys = Keys { slots: vec![EMPTY; slots].into(), shift: u32::BITS - slots.trailing_zeros(), entries };
        for index in 0..keys.entries.len() {
            let mut slot = keys.first_slot(&keys.entries[index].0);
            while keys.slots[slot] != EMPTY {
                slot = (slot + 1) & (keys.slots.len() - 1);
            }
            keys.slots[slot] = index as u16;
        }
        keys
    }

    /// What `key` stands for.
    #[inline(always)]
    pub fn find(&self, key: &[u8]) -> Option<T> {
        let mut slot = self.first_slot(key);
        loop {
            // `EMPTY` is beyond every entry.
            let (name, value) = self.entries.get(usize::from(self.slots[slot]))?;
            if **name == *key {
                return Some(*value);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    #[inline(always)]
    fn first_slot(&self, key: &[u8]) -> usize {
        (fingerprint(key).wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_name_is_found_and_no_other(names in prop::collection::btree_set("[a-c.]{0,6}", 0..60), other in "[a-c.]{0,7}") {
            let keys = Keys::new(names.iter().enumerate().map(|(index, name)| (name.as_str(), index)));
            for (index, name) in names.iter().enumerate() {
                prop_assert_eq!(keys.find(name.as_bytes()), Some(index));
            }
            prop_assert_eq!(keys.find(other.as_bytes()).is_some(), names.contains(&other));
        }
    }
}
