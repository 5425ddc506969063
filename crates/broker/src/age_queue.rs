//! Which channel has the oldest publication.

use std::{cmp::Reverse, collections::BinaryHeap};

use lastcall_core::ChannelName;

/// Channels by the age of what they keep. Each channel is in the queue at most once, at an age that it had: a channel
/// whose oldest publication is gone is not moved. So the first one is to be looked at, and put back if it is younger
/// than the queue says.
#[derive(Debug, Default)]
pub(crate) struct AgeQueue(BinaryHeap<Reverse<(i64, ChannelName)>>);

impl AgeQueue {
    /// Adds a channel that is not in the queue. `since_ms`: the time of what is oldest.
    pub(crate) fn push(&mut self, since_ms: i64, channel: ChannelName) {
        self.0.push(Reverse((since_ms, channel)));
    }

    /// Returns the time of the first channel. No other one has anything older.
    pub(crate) fn first(&self) -> Option<i64> {
        self.0.peek().map(|Reverse((since_ms, _))| *since_ms)
    }

    /// Removes the first channel.
    pub(crate) fn pop(&mut self) -> Option<ChannelName> {
        self.0.pop().map(|Reverse((_, channel))| channel)
    }

    /// Returns all channels, in no order, with the ages at which they are.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &ChannelName)> {
        self.0.iter().map(|Reverse((since_ms, channel))| (*since_ms, channel))
    }
}
