//! The connections of one loop that are subscribed to a channel.

use crate::excess_capacity::TrimThreshold;

/// In place of a slot: the index of the next free entry is in the other bits.
const FREE: u32 = 1 << 31;

/// The end of the list of free entries.
const NONE: u32 = !FREE;

/// The slots of the subscribed connections. A slot keeps its index while others come and go, so a delivery
/// that continues later at an index skips none and repeats none.
#[derive(Debug)]
pub(crate) struct Members {
    /// Slots, and free entries, which are a list.
    entries: Vec<u32>,
    first_free: u32,
    len: u32,
    trim: TrimThreshold,
}

impl Default for Members {
    fn default() -> Self {
        Self { entries: Vec::new(), first_free: NONE, len: 0, trim: TrimThreshold::default() }
    }
}

impl Members {
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many there are.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Returns the end of the range of indexes that may be in use.
    pub(crate) fn end(&self) -> usize {
        self.entries.len()
    }

    /// Returns the slot at an index, if there is one.
    pub(crate) fn get(&self, index: usize) -> Option<usize> {
        self.entries.get(index).filter(|entry| **entry & FREE == 0).map(|slot| *slot as usize)
    }

    /// Adds a slot, and returns its index.
    pub(crate) fn insert(&mut self, slot: usize) -> u32 {
        debug_assert!(slot < NONE as usize, "there are fewer descriptors than that");
        self.len += 1;
        self.trim.grew(self.len as usize);
        let slot = slot as u32;
        if self.first_free == NONE {
            // The first one of most channels is the only one.
            if self.entries.is_empty() {
                self.entries.reserve_exact(1);
            }
            self.entries.push(slot);
            return (self.entries.len() - 1) as u32;
        }
        let index = self.first_free;
        let entry = &mut self.entries[index as usize];
        self.first_free = *entry & !FREE;
        *entry = slot;
        index
    }

    /// Removes the slot at an index.
    pub(crate) fn remove(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize).filter(|entry| **entry & FREE == 0) else {
            return;
        };
        *entry = FREE | self.first_free;
        self.first_free = index;
        self.len = self.len.saturating_sub(1);
        if self.trim.is_reached(self.len as usize) {
            self.trim();
        }
    }

    /// Gives back the room of the free entries at the end.
    fn trim(&mut self) {
        while self.entries.last().is_some_and(|entry| entry & FREE != 0) {
            self.entries.pop();
        }
        self.entries.shrink_to_fit();
        self.first_free = NONE;
        for (index, entry) in self.entries.iter_mut().enumerate().filter(|(_, entry)| **entry & FREE != 0) {
            *entry = FREE | self.first_free;
            self.first_free = index as u32;
        }
    }

    /// Returns all indexes with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, usize)> {
        (0..self.end()).filter_map(|index| Some((index as u32, self.get(index)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_keep_their_indexes(steps in prop::collection::vec((any::<bool>(), 0_usize..100), 0..200)) {
            let mut members = Members::default();
            let mut model: Vec<(u32, usize)> = Vec::new();
            for (inserts, number) in steps {
                if inserts || model.is_empty() {
                    let index = members.insert(number);
                    prop_assert!(model.iter().all(|(other, _)| *other != index), "{index} is in use");
                    model.push((index, number));
                } else {
                    let (index, _) = model.swap_remove(number % model.len());
                    members.remove(index);
                    members.remove(index);
                }
                let mut expected = model.clone();
                expected.sort_unstable();
                prop_assert_eq!(members.iter().collect::<Vec<_>>(), expected);
                prop_assert_eq!(members.is_empty(), model.is_empty());
                prop_assert!(!model.is_empty() || members.entries.capacity() == 0, "it keeps room for nobody");
            }
        }
    }
}
