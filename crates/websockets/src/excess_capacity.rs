//! The memory of queues and tables after a burst.

use std::collections::VecDeque;

/// Entries that an empty queue keeps room for.
pub(crate) const KEPT_CAPACITY: usize = 128;

/// Releases the memory that a queue needed for a burst, once it is empty. After thousands of clients at once,
/// that memory would otherwise stay allocated, and be a considerable part of what the clients cost.
pub(crate) fn release_excess_capacity<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() {
        queue.shrink_to(KEPT_CAPACITY);
    }
}

/// Says when a table that has shrunk gives memory back whose entries must stay where they are: each time that
/// three quarters of the entries have gone, or half of those that were left the last time. So it costs little
/// for each entry that goes, also if the last entry of the table stays.
#[derive(Debug, Default)]
pub(crate) struct TrimThreshold(usize);

impl TrimThreshold {
    /// Records that the table has grown to so many entries.
    pub(crate) fn grew(&mut self, entries: usize) {
        self.0 = self.0.max(entries / 4);
    }

    /// Returns true if memory is to be given back now that so many entries are left.
    pub(crate) fn is_reached(&mut self, entries: usize) -> bool {
        let reached = entries <= self.0;
        if reached {
            self.0 = entries / 2;
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_trimmed_seldom_and_when_it_is_empty() {
        let mut threshold = TrimThreshold::default();
        (1..=10_000).for_each(|entries| threshold.grew(entries));
        let trims: Vec<_> = (0..10_000).rev().filter(|entries| threshold.is_reached(*entries)).collect();
        assert_eq!((trims[0], trims.last()), (2500, Some(&0)));
        assert!(trims.len() < 15, "{trims:?}");
    }

    #[test]
    fn a_queue_gives_memory_back_once_it_is_empty() {
        let mut queue: VecDeque<_> = (0..10_000).collect();
        release_excess_capacity(&mut queue);
        assert_eq!(queue.len(), 10_000);
        queue.truncate(1);
        release_excess_capacity(&mut queue);
        assert!(queue.capacity() >= 10_000);
        queue.clear();
        release_excess_capacity(&mut queue);
        assert!((1..1000).contains(&queue.capacity()));
    }
}
