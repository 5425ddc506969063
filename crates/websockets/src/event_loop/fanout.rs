//! Writing to many connections of a loop, over several iterations if need be.

use std::time::Instant;

use lastcall_core::ChannelName;

use super::{
    EventLoop,
    jobs::{Fanout, FanoutContent},
    run_fanout::RunFanout,
};
use crate::{connections::subscription_list::LocalChannelId, mailbox::ChannelReset, protocol::Outgoing};

/// Connections between two readings of the clock, one of which costs about a hundredth of a write.
const CONNECTIONS_PER_CLOCK_READ: usize = 32;

/// Bytes between two readings of the clock: what takes longer than the writes themselves is to copy them.
const BYTES_PER_CLOCK_READ: usize = 256 << 10;

impl EventLoop {
    /// Continues a fan-out until the slice is over. Returns true when all connections have got it.
    pub(super) fn deliver(&mut self, fanout: &mut Fanout, started: Instant) -> bool {
        match &fanout.content {
            FanoutContent::Publications(run) => {
                self.deliver_to_members(run.channel(), &mut fanout.next, started, |event_loop, slot, id| {
                    event_loop.deliver_run_to(slot, run, id)
                })
            }
            FanoutContent::Reset(reset) => {
                self.deliver_to_members(&reset.channel, &mut fanout.next, started, |event_loop, slot, id| {
                    event_loop.deliver_reset_to(slot, reset, id)
                })
            }
            _ => self.deliver_to_all(fanout, started),
        }
    }

    /// Delivers to the members of a channel. `deliver` returns how many bytes it has written or queued.
    fn deliver_to_members(
        &mut self,
        name: &ChannelName,
        next: &mut usize,
        started: Instant,
        deliver: impl Fn(&mut Self, usize, LocalChannelId) -> usize,
    ) -> bool {
        // Found anew in each slice: the last member may have left meanwhile.
        let Some(id) = self.channels.find(name) else { return true };
        let mut bytes = 0;
        // The channel is gone once its last member has left during this very slice.
        while let Some((index, slot)) = self.channels.next_member(id, *next) {
            *next = index + 1;
            bytes += deliver(self, slot, id);
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

    /// Tells a client that it may have missed publications of a channel. Returns how many bytes it has written or queued.
    fn deliver_reset_to(&mut self, slot: usize, reset: &ChannelReset, id: LocalChannelId) -> usize {
        let Some(entry) = self.connections.get_mut(slot) else { return 0 };
        let connection = &mut entry.connection;
        if !connection.is_open() {
            return 0;
        }
        let ChannelReset { channel, top } = reset;
        let message = Outgoing::Reset { channel, position: *top };
        let bytes = match entry.subscriptions.positions(id) {
            None => connection.form.encode(&message),
            Some((positions, index)) => {
                positions.set(index, &top.to_string());
                connection.form.encode_among(&message, positions.around(index).into())
            }
        };
        let count = bytes.len();
        self.stats.not_recovered += 1;
        let outcome = connection.send_unbounded(&bytes);
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
                let notice = connection.form.encode(&notice.message(connection.id, false));
                connection.send_unbounded(&notice)
            }
            FanoutContent::Close(reason) => return self.close(slot, *reason),
            // These have their own members.
            FanoutContent::Publications(_) | FanoutContent::Reset(_) => return,
        };
        self.apply_outcome(slot, outcome);
    }
}
