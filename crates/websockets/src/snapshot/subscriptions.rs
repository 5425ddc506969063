//! The subscriptions of connections as numbers, and the channels that have these numbers.

use lastcall_core::ChannelName;
use serde::{Deserialize, Serialize};

/// A channel of an event loop: its number there, its name (`None`: the number has no channel any more), and how many
/// subscriptions it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberedChannel(pub(crate) u32, pub(crate) Option<ChannelName>, pub(crate) u32);

/// Channels of an event loop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberedChannels {
    pub(crate) event_loop: usize,
    /// The number of event loops of the old process.
    pub(crate) event_loops: usize,
    pub(crate) channels: Vec<NumberedChannel>,
}

/// The channels of a connection: their numbers in its event loop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SubscriptionNumbers {
    pub(crate) event_loop: usize,
    /// Four bytes for each, the lowest one first.
    #[serde(with = "serde_bytes")]
    numbers: Vec<u8>,
}

impl SubscriptionNumbers {
    pub(crate) fn new(event_loop: usize, numbers: impl ExactSizeIterator<Item = u32>) -> Self {
        let mut bytes = Vec::with_capacity(4 * numbers.len());
        numbers.for_each(|number| bytes.extend(number.to_le_bytes()));
        Self { event_loop, numbers: bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.numbers.len() / 4
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let numbers = self.numbers.chunks_exact(4);
        numbers.map(|bytes| bytes.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte)))
    }
}
