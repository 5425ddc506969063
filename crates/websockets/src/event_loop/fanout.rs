//! Writing to all connections of a loop, over several iterations if there are many.

use std::time::Instant;

use super::{
    EventLoop,
    jobs::{Fanout, FanoutContent},
};

/// Connections between two readings of the clock, one of which costs about a hundredth of a write.
const CONNECTIONS_PER_CLOCK_READ: usize = 32;

impl EventLoop {
    /// Continues a fan-out until the slice is over. Returns true when all connections have got it.
    pub(super) fn deliver(&mut self, fanout: &mut Fanout, started: Instant) -> bool {
        while fanout.next_slot < self.connections.slots() {
            let slot = fanout.next_slot;
            fanout.next_slot += 1;
            self.deliver_to(slot, &fanout.content);
            if fanout.next_slot.is_multiple_of(CONNECTIONS_PER_CLOCK_READ) && started.elapsed() > self.slice {
                return false;
            }
        }
        true
    }

    fn deliver_to(&mut self, slot: usize, content: &FanoutContent) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let connection = &mut entry.connection;
        let outcome = match content {
            FanoutContent::Messages { frames, count } => {
                if connection.is_open() {
                    self.stats.messages_sent += *count as u64;
                    self.stats.bytes_sent += frames.len() as u64;
                }
                connection.send(frames, &self.config.connection)
            }
            FanoutContent::Reminder(_) if connection.has_output() => return,
            FanoutContent::Notice(notice) | FanoutContent::Reminder(notice) => {
                connection.send_unbounded(notice.frame(connection.id).bytes())
            }
            FanoutContent::Close(reason) => return self.close(slot, *reason),
        };
        self.apply_outcome(slot, outcome);
    }
}
