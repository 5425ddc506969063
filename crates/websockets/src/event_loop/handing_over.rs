//! The unread output of clients, before a handover.

use std::sync::PoisonError;

use super::EventLoop;
use crate::{
    admission::Disconnect,
    codec::CloseReason,
    connection_key::ConnectionKey,
    mailbox::{UnreadConnection, UnreadRound},
};

impl EventLoop {
    /// Returns the connections that have unread bytes.
    pub(super) fn measure_unread(&self) -> Vec<UnreadConnection> {
        let connections = self.connections.iter().map(|(slot, entry)| {
            let (size, has_replays) = entry.connection.unread_size();
            let key = ConnectionKey { slot, id: entry.connection.id };
            UnreadConnection { size, has_replays, event_loop: self.mailbox.index(), key }
        });
        connections.filter(|connection| connection.size > 0).collect()
    }

    /// Closes the connections of a round whose unread bytes do not fit.
    pub(super) fn fit_unread(&mut self, round: &UnreadRound) {
        for connection in &round.connections {
            if connection.event_loop != self.mailbox.index() {
                continue;
            }
            let Some(slot) = self.connections.slot(connection.key) else { continue };
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let mut buffers = round.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            if entry.connection.add_unread(&mut buffers, &*self.channels.broker).is_some() {
                continue;
            }
            let is_open = entry.connection.is_open();
            drop(buffers);
            if is_open {
                self.close(slot, CloseReason::SlowConsumer);
            } else {
                self.remove(slot, Disconnect::Forced);
            }
        }
    }
}
