//! A channel as the memory broker keeps it: its position and history, and what is known of it beside that.

use lastcall_core::Epoch;

use super::{
    age_queue::{Keeps, QueueKey},
    retention_rules::RuleId,
};
use crate::{ReceiverSet, channel::Channel};

/// The cost of a channel without subscribers beside its name and its publications.
const CHANNEL_OVERHEAD: usize = 200;

/// A channel, its receivers, and where it is among those that lose something next.
#[derive(Debug)]
pub(super) struct MemoryChannel {
    pub(super) log: Channel,
    pub(super) rule: RuleId,
    pub(super) receivers: ReceiverSet,
    pub(super) subscribers: u32,
    /// True if it had subscribers in another process, who are about to come: until then, it is not dropped.
    pub(super) awaits_subscribers: bool,
    /// Where it is in the queues of its rule; `None`: in none of them.
    pub(super) in_age_queue: Option<QueueKey>,
    /// When the last subscriber left, or the last publication came.
    pub(super) last_used_ms: i64,
}

impl MemoryChannel {
    pub(super) fn new(epoch: Epoch, rule: RuleId, now_ms: i64) -> Self {
        Self {
            log: Channel::new(epoch),
            rule,
            receivers: ReceiverSet::default(),
            subscribers: 0,
            awaits_subscribers: false,
            in_age_queue: None,
            last_used_ms: now_ms,
        }
    }

    /// Returns true if the channel has no subscribers, and none that are about to come from another process.
    pub(super) fn is_idle(&self) -> bool {
        self.subscribers == 0 && !self.awaits_subscribers
    }

    /// Returns what a channel with a name of this length costs by being kept without subscribers.
    pub(super) fn idle_cost(name: &str) -> usize {
        CHANNEL_OVERHEAD + name.len()
    }

    /// Returns the key that the channel should have in the queues; `None`: nothing of it may go.
    pub(super) fn queue_key(&self) -> Option<QueueKey> {
        if let Some((since_ms, _)) = self.log.kept_since().next() {
            return Some(QueueKey { keeps: Keeps::Publications, since_ms: *since_ms });
        }
        let keeps = if self.log.top().offset == 0 { Keeps::Start } else { Keeps::Position };
        self.is_idle().then_some(QueueKey { keeps, since_ms: self.last_used_ms })
    }
}
