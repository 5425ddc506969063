//! The receivers that get the publications of a channel.

/// The highest number of receivers.
pub const MAX_RECEIVERS: usize = 64;

/// A set of receivers, which are numbered from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceiverSet(u64);

impl ReceiverSet {
    /// Returns true if the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds a receiver, whose number is below [`MAX_RECEIVERS`].
    pub fn insert(&mut self, receiver: usize) {
        self.0 |= Self::bit(receiver);
    }

    /// Removes a receiver.
    pub fn remove(&mut self, receiver: usize) {
        self.0 &= !Self::bit(receiver);
    }

    /// Returns true if this receiver is in the set.
    pub fn contains(self, receiver: usize) -> bool {
        self.0 & Self::bit(receiver) != 0
    }

    fn bit(receiver: usize) -> u64 {
        debug_assert!(receiver < MAX_RECEIVERS);
        1 << receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_inserted_and_not_removed() {
        let mut set = ReceiverSet::default();
        assert!(set.is_empty());
        for receiver in [0, 5, 63] {
            set.insert(receiver);
            set.insert(receiver);
        }
        set.remove(5);
        set.remove(6);
        let receivers: Vec<_> = (0..MAX_RECEIVERS).filter(|receiver| set.contains(*receiver)).collect();
        assert_eq!(receivers, [0, 63]);
        assert!(!set.is_empty());
    }
}
