//! Clients that come to a loop, from their handshake or from another process.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mio::{Interest, Token};
use tracing::{debug, trace};

use super::EventLoop;
use crate::{
    admission::{Disconnect, Permit},
    connection::Connection,
    handshake::Handshake,
    mailbox::{ConnectionSource, NewConnection},
    protocol::{ServerInfo, ServerMessage},
    snapshot::ConnectionState,
};

impl EventLoop {
    /// Takes in a client.
    pub(super) fn register(&mut self, new: NewConnection) {
        let NewConnection { stream, permit, source } = new;
        let (id, Handshake { response, early_input }) = match source {
            ConnectionSource::Handshake(id, handshake) => (id, handshake),
            ConnectionSource::Handover(state) => return self.restore(stream, *state, permit),
        };
        let mut stream = mio::net::TcpStream::from_std(stream);
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        // Nearly all clients always take what they are sent: whether they do is only watched once one did not.
        if let Err(error) = self.config.poll.registry().register(&mut stream, Token(slot), Interest::READABLE)
        {
            debug!(client = %id, %error, "a new socket could not be registered");
            return permit.release(Disconnect::Forced);
        }
        let connection = entry.insert(Connection::new(stream, id, permit));
        self.stats.opened += 1;
        trace!(client = %id, peer = connection.stream.peer_addr().ok().map(display), "connected");

        let rules = &self.config.rules;
        let mut outcome;
        if rules.is_echo() {
            outcome = connection.send_handshake(response, &Bytes::new());
        } else {
            let welcome = ServerMessage::Welcome { client: id, server: ServerInfo };
            outcome = connection.send_handshake(response, welcome.frame().bytes());
            if let Some(notice) = &self.notice {
                outcome = outcome.max(connection.send_unbounded(notice.frame(id).bytes()));
            }
        }
        if let Some(reason) = self.close_reason {
            outcome = outcome.max(connection.close(reason, None));
        }
        let has_early_input = !early_input.is_empty();
        connection.set_early_input(early_input);
        self.apply_outcome(slot, outcome);
        if has_early_input {
            self.queue_read(slot);
        }
    }

    /// Goes on with a client that another process served until now.
    fn restore(&mut self, stream: TcpStream, state: ConnectionState, permit: Permit) {
        let (id, cut_off_in_ms) = (state.id, state.cut_off_in_ms);
        let early_input = state.early_input.clone();
        let mut stream = mio::net::TcpStream::from_std(stream);
        let interest = if state.outbox.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let entry = self.connections.vacant_entry();
        let slot = entry.key();
        // The kernel tells at once what there is to be read, and whether the socket takes output.
        if let Err(error) = self.config.poll.registry().register(&mut stream, Token(slot), interest) {
            debug!(client = %id, %error, "a socket that was handed over could not be registered");
            return permit.release(Disconnect::Forced);
        }
        let mut connection = Connection::restore(stream, state, permit);
        connection.write_interest = connection.has_output();
        let has_early_input = !early_input.is_empty();
        connection.set_early_input(early_input);
        entry.insert(connection);
        if has_early_input {
            self.queue_read(slot);
        }
        if let Some(left) = cut_off_in_ms {
            // Another process may have had a longer timeout, or have written down nonsense.
            let left = Duration::from_millis(left).min(self.config.close_timeout);
            self.closing.push_back((self.clock.read(Instant::now()) + left, slot, id));
            self.closing.make_contiguous().sort_unstable();
        }
    }
}
