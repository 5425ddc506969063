//! Writing what is queued: clients take turns.

use std::collections::VecDeque;

use crate::{
    connection::Outcome,
    connection_key::ConnectionKey,
    connections::{Connections, Slot},
    excess_capacity::release_excess_capacity,
};

/// The connections of one event loop that are to be written to.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Each once. They take turns, one flush each.
    queue: VecDeque<ConnectionKey>,
}

impl Writer {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Has what is queued for a connection written when its turn comes, unless it waits for that already.
    pub(super) fn queue(&mut self, key: ConnectionKey, entry: &mut Slot) {
        if entry.connection.has_output() && !entry.write_queued {
            entry.write_queued = true;
            self.queue.push_back(key);
        }
    }

    /// Gives the next connection its turn; `None`: none is queued.
    pub(super) fn flush_next(&mut self, connections: &mut Connections) -> Option<(ConnectionKey, Outcome)> {
        while let Some(key) = self.queue.pop_front() {
            let Some(entry) = connections.get_by_key(key) else { continue };
            entry.write_queued = false;
            if entry.connection.has_output() {
                return Some((key, entry.connection.flush()));
            }
        }
        release_excess_capacity(&mut self.queue);
        None
    }
}
