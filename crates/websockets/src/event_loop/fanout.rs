//! Writing to many connections of a loop, over several iterations if need be.

use std::time::Instant;

use super::{
    EventLoop,
    jobs::{Fanout, FanoutContent},
    run_fanout::RunFanout,
};
use crate::connections::subscription_list::LocalChannelId;

/// Connections between two readings of the clock, one of which costs about a hundredth of a write.
const CONNECTIONS_PER_CLOCK_READ: usize = 32;

/// Bytes between two readings of the clock: what takes longer than the writes themselves is to copy them.
const BYTES_PER_CLOCK_READ: usize = 256 << 10;

impl EventLoop {
    /// Continues a fan-out until the slice is over. Returns true when all connections have got it.
    pub(super) fn deliver(&mut self, fanout: &mut Fanout, started: Instant) -> bool {
        match &fanout.content {
            FanoutContent::Publications(run) => self.deliver_run(run, &mut fanout.next, started),
            _ => self.deliver_to_all(fanout, started),
        }
    }

    fn deliver_run(&mut self, run: &RunFanout, next: &mut usize, started: Instant) -> bool {
        // Found anew in each slice: the last member may have left meanwhile.
        let Some(id) = self.subscriptions.find(run.channel()) else { return true };
        let mut bytes = 0;
        // The channel is gone once its last member has left during this very slice.
        while let Some(channel) = self.subscriptions.get(id).filter(|channel| *next < channel.members.end()) {
            let slot = channel.members.get(*next);
            *next += 1;
            if let Some(slot) = slot {
                bytes += self.deliver_run_to(slot, run, id);
            }
            if next.is_multiple_of(CONNECTIONS_PER_CLOCK_READ) || bytes >= BYTES_PER_CLOCK_READ {
                bytes = 0;
                if started.elapsed() > self.slice {
                    return false;
                }
            }
        }
        true
    }

    /// Returns how many bytes it has written or queued.
    fn deliver_run_to(&mut self, slot: usize, run: &RunFanout, id: LocalChannelId) -> usize {
        let Some(entry) = self.connections.get_mut(slot) else { return 0 };
        let connection = &mut entry.connection;
        if !connection.is_open() {
            return 0;
        }
        let several;
        let bytes = match entry.subscriptions.positions(id) {
            None => run.joined(connection.form),
            Some((positions, index)) => {
                several = connection.form.of_chunk(run.chunk_for(positions, index));
                &several
            }
        };
        let count = bytes.len();
        self.stats.messages_sent += run.count() as u64;
        let outcome = connection.send(bytes, run.round, &self.config.connection);
        self.apply_outcome(slot, outcome);
        count
    }

    fn deliver_to_all(&mut self, fanout: &mut Fanout, started: Instant) -> bool {
        while fanout.next < self.connections.slots() {
            let slot = fanout.next;
            fanout.next += 1;
            self.deliver_to(slot, &fanout.content);
            if fanout.next.is_multiple_of(CONNECTIONS_PER_CLOCK_READ) && started.elapsed() > self.slice {
                return false;
            }
        }
        true
    }

    fn deliver_to(&mut self, slot: usize, content: &FanoutContent) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let connection = &mut entry.connection;
        let outcome = match content {
            FanoutContent::Reminder(_) if connection.has_output() => return,
            FanoutContent::Notice(notice) | FanoutContent::Reminder(notice) => {
                connection.send_unbounded(&notice.encode(connection.form, connection.id))
            }
            FanoutContent::Close(reason) => return self.close(slot, *reason),
            // These have their own members.
            FanoutContent::Publications(_) => return,
        };
        self.apply_outcome(slot, outcome);
    }
}
