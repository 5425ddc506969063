//! Reading: clients take turns, and what they say goes to the bus.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use lastcall_core::settings::ClientMessages;
use tracing::trace;

use super::{EventLoop, SLICE};
use crate::{connection::Readable, protocol::ServerMessage};

/// Reads between two looks at the clock. A read that fills the buffer takes much longer than one of a message.
const READS_PER_LOOK: usize = 8;

impl EventLoop {
    /// Whether what clients send can be passed on now.
    pub(super) fn may_read(&self) -> bool {
        if self.reads_paused {
            return false;
        }
        if self.config.rules.client_messages != ClientMessages::Broadcast {
            return true;
        }
        self.mailboxes.has_capacity() && self.config.budget.wait(Instant::now()).is_none()
    }

    /// When a client can be read from that cannot now, by the system's clock.
    pub(super) fn next_read(&self) -> Option<Instant> {
        if self.reads_paused {
            return None;
        }
        let throttled = self.throttled.peek().map(|Reverse((until, ..))| *until);
        let now = self.clock.system();
        let all = self.config.budget.wait(now).filter(|_| !self.read_queue.is_empty()).map(|wait| now + wait);
        [throttled, all].into_iter().flatten().min()
    }

    pub(super) fn queue_read(&mut self, slot: usize) {
        if let Some(connection) = self.connections.get_mut(slot)
            && !connection.read_queued
        {
            connection.read_queued = true;
            self.read_queue.push_back(slot);
        }
    }

    pub(super) fn read(&mut self) {
        let started = Instant::now();
        self.let_go_those_due(started);
        let mut reads = 0_usize;
        while self.may_read()
            && let Some(slot) = self.read_queue.pop_front()
        {
            // The slot may have been given to another client, which waits in its own right.
            let Some(connection) =
                self.connections.get_mut(slot).filter(|connection| !connection.is_throttled)
            else {
                continue;
            };
            let said = &mut self.received_texts;
            let (outcome, readable) =
                connection.read(&mut self.buffer, &self.config.rules, &mut self.stats, |id, text| {
                    said.push(ServerMessage::message(id, text).frame());
                });
            let mut wait = None;
            if !self.received_texts.is_empty() {
                let bytes = self.received_texts.iter().map(|frame| frame.bytes().len()).sum();
                wait = self.config.budget.charge(&mut connection.used, Instant::now(), bytes);
                self.mailboxes.publish(&mut self.received_texts);
            }
            match (wait, readable) {
                (Some(wait), _) => self.throttle(slot, wait),
                (None, Readable::Maybe) => self.read_queue.push_back(slot),
                (None, Readable::No) => connection.read_queued = false,
            }
            self.apply_outcome(slot, outcome);
            reads += 1;
            if reads.is_multiple_of(READS_PER_LOOK) && started.elapsed() > SLICE {
                break;
            }
        }
    }

    /// Does not read from a client for this long. It counts as waiting to be read meanwhile.
    fn throttle(&mut self, slot: usize, wait: Duration) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        trace!(client = %connection.id, wait_ms = wait.as_millis(), "a client that sends too fast is not read from");
        connection.is_throttled = true;
        self.config.budget.add_throttled();
        self.throttled.push(Reverse((Instant::now() + wait, slot, connection.id)));
    }

    /// Ends a client that has gone while it is not read from: it would keep its permit until it is.
    pub(super) fn end_if_throttled(&mut self, slot: usize) {
        let throttled = self.connections.get_mut(slot).filter(|connection| connection.is_throttled);
        if let Some(outcome) = throttled.map(|connection| connection.disconnected()) {
            self.apply_outcome(slot, outcome);
        }
    }

    /// Reads on from a client, if it is throttled.
    pub(super) fn let_go(&mut self, slot: usize) {
        if let Some(connection) = self.connections.get_mut(slot)
            && std::mem::take(&mut connection.is_throttled)
        {
            self.config.budget.remove_throttled();
            self.read_queue.push_back(slot);
        }
    }

    fn let_go_those_due(&mut self, now: Instant) {
        while let Some(Reverse((until, ..))) = self.throttled.peek()
            && *until <= now
            && let Some(Reverse((_, slot, id))) = self.throttled.pop()
        {
            if self.connections.get(slot).is_some_and(|connection| connection.id == id) {
                self.let_go(slot);
            }
        }
    }

    pub(super) fn flush(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.has_output() {
            return;
        }
        let outcome = connection.flush();
        let read_on = !connection.has_output();
        self.apply_outcome(slot, outcome);
        if read_on {
            // It may have been held back because of its output.
            self.queue_read(slot);
        }
    }
}
