//! Reading: clients take turns, and what they say goes to the bus.

use std::time::Instant;

use jiff::Timestamp;
use lastcall_core::settings::ClientMessages;

use super::{EventLoop, SLICE};
use crate::{
    client_id::ClientId,
    connection::Readable,
    frame::Frame,
    message::{BROADCAST, ServerMessage},
};

/// Reads between two looks at the clock. A read that fills the buffer takes much longer than one of a message.
const READS_PER_LOOK: usize = 8;

impl EventLoop {
    /// Whether what clients send can be passed on now.
    pub(super) fn may_read(&self) -> bool {
        !self.hushed && (self.setup.rules.client_messages != ClientMessages::Broadcast || self.bus.has_room())
    }

    pub(super) fn wants_to_be_read(&mut self, slot: usize) {
        if let Some(connection) = self.clients.get_mut(slot)
            && !connection.waits_to_be_read
        {
            connection.waits_to_be_read = true;
            self.readers.push_back(slot);
        }
    }

    pub(super) fn read(&mut self) {
        let started = Instant::now();
        let mut reads = 0_usize;
        while self.may_read()
            && let Some(slot) = self.readers.pop_front()
        {
            let Some(connection) = self.clients.get_mut(slot) else { continue };
            let said = &mut self.said;
            let (outcome, readable) =
                connection.read(&mut self.buffer, &self.setup.rules, &mut self.figures, |id, text| {
                    said.push(message(id, text));
                });
            if !self.said.is_empty() {
                self.bus.publish(&mut self.said);
            }
            match readable {
                Readable::Maybe => self.readers.push_back(slot),
                Readable::No => connection.waits_to_be_read = false,
            }
            self.settle(slot, outcome);
            reads += 1;
            if reads.is_multiple_of(READS_PER_LOOK) && started.elapsed() > SLICE {
                break;
            }
        }
    }

    pub(super) fn flush(&mut self, slot: usize) {
        let Some(connection) = self.clients.get_mut(slot) else { return };
        if !connection.has_output() {
            return;
        }
        let outcome = connection.flush();
        let read_on = !connection.has_output();
        self.settle(slot, outcome);
        if read_on {
            // It may have been held back because of its output.
            self.wants_to_be_read(slot);
        }
    }
}

/// What a client said, as everyone hears it.
pub(super) fn message(from: ClientId, text: &str) -> Frame {
    ServerMessage::Message { channel: BROADCAST, time: Timestamp::now(), from, data: text }.frame()
}
