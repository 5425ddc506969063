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
    protocol::{Server, ServerMessage},
    snapshot::ConnectionState,
};

impl EventLoop {
    /// Takes in a client.
    pub(super) fn welcome(&mut self, new: NewConnection) {
        let NewConnection { stream, permit, source } = new;
        let (id, Handshake { response, early_input }) = match source {
            ConnectionSource::Handshake(id, handshake) => (id, handshake),
            ConnectionSource::Handover(state) => return self.adopt(stream, *state, permit),
        };
        let mut stream = mio::net::TcpStream::from_std(stream);
        let entry = self.clients.vacant_entry();
        let slot = entry.key();
        // Nearly all clients always take what they are sent: whether they do is only watched once one did not.
        if let Err(error) = self.setup.poll.registry().register(&mut stream, Token(slot), Interest::READABLE)
        {
            debug!(client = %id, %error, "a new socket could not be registered");
            return permit.release(Disconnect::Forced);
        }
        let connection = entry.insert(Connection::new(stream, id, permit));
        self.figures.opened += 1;
        trace!(client = %id, peer = connection.stream.peer_addr().ok().map(display), "connected");

        let rules = &self.setup.rules;
        let mut outcome;
        if rules.is_echo() {
            outcome = connection.greet(response, &Bytes::new());
        } else {
            let welcome = ServerMessage::Welcome { client: id, server: Server };
            outcome = connection.greet(response, welcome.frame().bytes());
            if let Some(notice) = &self.notice {
                outcome = outcome.max(connection.send_however_full(notice.frame(id).bytes()));
            }
        }
        if let Some(reason) = self.close_reason {
            outcome = outcome.max(connection.close(reason, None));
        }
        let has_early_input = !early_input.is_empty();
        connection.set_early_input(early_input);
        self.settle(slot, outcome);
        if has_early_input {
            self.wants_to_be_read(slot);
        }
    }

    /// Goes on with a client that another process served until now.
    fn adopt(&mut self, stream: TcpStream, state: ConnectionState, permit: Permit) {
        let (id, cut_off_in_ms) = (state.id, state.cut_off_in_ms);
        let early_input = state.early_input.clone();
        let mut stream = mio::net::TcpStream::from_std(stream);
        let interest = if state.outbox.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let entry = self.clients.vacant_entry();
        let slot = entry.key();
        // The kernel tells at once what there is to be read, and whether the socket takes output.
        if let Err(error) = self.setup.poll.registry().register(&mut stream, Token(slot), interest) {
            debug!(client = %id, %error, "a socket that was handed over could not be registered");
            return permit.release(Disconnect::Forced);
        }
        let mut connection = Connection::restore(stream, state, permit);
        connection.output_is_watched = connection.has_output();
        let has_early_input = !early_input.is_empty();
        connection.set_early_input(early_input);
        entry.insert(connection);
        if has_early_input {
            self.wants_to_be_read(slot);
        }
        if let Some(left) = cut_off_in_ms {
            // Another process may have had a longer timeout, or have written down nonsense.
            let left = Duration::from_millis(left).min(self.setup.close_timeout);
            self.closing.push_back((self.clock.read(Instant::now()) + left, slot, id));
            self.closing.make_contiguous().sort_unstable();
        }
    }
}
