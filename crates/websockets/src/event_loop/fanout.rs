//! Writing to many connections of a loop, over several iterations if need be.

use std::time::Instant;

use bytes::Bytes;

use super::{
    EventLoop,
    jobs::{Fanout, FanoutContent, JoinedRun},
};
use crate::mailbox::Run;

/// Connections between two readings of the clock, one of which costs about a hundredth of a write.
const CONNECTIONS_PER_CLOCK_READ: usize = 32;

impl EventLoop {
    /// Continues a fan-out until the slice is over. Returns true when all connections have got it.
    pub(super) fn deliver(&mut self, fanout: &mut Fanout, started: Instant) -> bool {
        match &fanout.content {
            FanoutContent::Publications(run) => self.deliver_run(run, &mut fanout.next, started),
            _ => self.deliver_to_all(fanout, started),
        }
    }

    /// Encodes publications for a fan-out.
    pub(super) fn join(run: &Run) -> Option<JoinedRun> {
        let Run { channel, publications } = run;
        let (top, count) = (publications.last()?.position(), publications.len());
        let frames = match &publications[..] {
            // Without a copy.
            [publication] => publication.frame(channel).bytes().clone(),
            publications => {
                let frames = publications.iter().map(|publication| publication.frame(channel).bytes());
                let mut joined = Vec::with_capacity(frames.clone().map(Bytes::len).sum());
                frames.for_each(|frame| joined.extend_from_slice(frame));
                joined.into()
            }
        };
        Some(JoinedRun { channel: channel.clone(), top, frames, count })
    }

    fn deliver_run(&mut self, run: &JoinedRun, next: &mut usize, started: Instant) -> bool {
        // Found anew in each slice: the last member may have left meanwhile.
        let Some(id) = self.subscriptions.find(&run.channel) else { return true };
        if let Some(channel) = self.subscriptions.get_mut(id) {
            channel.top = run.top;
        }
        // The channel is gone once its last member has left during this very slice.
        while let Some(channel) = self.subscriptions.get(id).filter(|channel| *next < channel.members.end()) {
            let slot = channel.members.get(*next);
            *next += 1;
            if let Some(slot) = slot
                && let Some(entry) = self.connections.get_mut(slot)
            {
                let connection = &mut entry.connection;
                if connection.is_open() {
                    self.stats.messages_sent += run.count as u64;
                    self.stats.bytes_sent += run.frames.len() as u64;
                }
                let outcome = connection.send(&run.frames, &self.config.connection);
                self.apply_outcome(slot, outcome);
            }
            if next.is_multiple_of(CONNECTIONS_PER_CLOCK_READ) && started.elapsed() > self.slice {
                return false;
            }
        }
        true
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
                connection.send_unbounded(notice.frame(connection.id).bytes())
            }
            FanoutContent::Close(reason) => return self.close(slot, *reason),
            // These have their own members.
            FanoutContent::Publications(_) => return,
        };
        self.apply_outcome(slot, outcome);
    }
}
