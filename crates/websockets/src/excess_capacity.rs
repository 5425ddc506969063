//! The memory of queues after a burst.

use std::collections::VecDeque;

/// Entries that an empty queue keeps room for.
const KEPT_CAPACITY: usize = 128;

/// Releases the memory that a queue needed for a burst, once it is empty. After thousands of clients at once, that memory
/// would otherwise stay allocated, and be a considerable part of what the clients cost.
pub(crate) fn release_excess_capacity<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() {
        queue.shrink_to(KEPT_CAPACITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
