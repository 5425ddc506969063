//! Registration of connections: after their handshake, or when they come from another process.

use std::time::{Duration, Instant};

use lastcall_broker::BrokerError;
use mio::{Interest, Token, net::TcpStream};
use socket2::SockRef;
use tracing::{debug, trace};

use super::{EventLoop, peer_of};
use crate::{
    admission::{Disconnect, Permit},
    client_id::ClientId,
    codec::CloseReason,
    connection::{Connection, snapshot::ConnectionSnapshot},
    connection_key::ConnectionKey,
    connections::{Slot, stream_positions::StreamPositions},
    handshake::Handshake,
    mailbox::{ConnectionSource, NewConnection},
    protocol::Outgoing,
};

/// About how many bytes the kernel takes for a client before they can be sent (TCP_NOTSENT_LOWAT, tcp(7)). What is sent and
/// not acknowledged does not count, so a distant client is not slowed down.
const MOST_UNSENT: u32 = 128 << 10;

impl EventLoop {
    /// Registers a connection, and starts or continues to serve it.
    pub(super) fn register(&mut self, new: NewConnection) {
        let NewConnection { stream, permit, source } = new;
        let stream = TcpStream::from_std(stream);
        match source {
            ConnectionSource::Handshake(id, handshake) => self.start(stream, permit, id, handshake),
            ConnectionSource::Handover(snapshot) => self.restore(stream, permit, *snapshot),
        }
    }

    /// Starts to serve a connection that has made its handshake here.
    fn start(&mut self, stream: TcpStream, permit: Permit, id: ClientId, handshake: Handshake) {
        let Handshake { response, early_input, form, channels } = handshake;
        let form = self.config.connection.form(form);
        let mut connection = Connection::new(stream, id, form, permit);
        connection.set_early_input(early_input);
        let Some(slot) = self.insert(connection) else { return };
        self.stats.opened += 1;
        if form.receives_publications()
            && let Some(entry) = self.connections.get_mut(slot)
        {
            // Before the welcome: a client that has it gets what is published then.
            self.channels.subscribe_new(ConnectionKey { slot, id }, entry, channels);
        }
        self.welcome(slot, response);
    }

    /// Continues to serve a connection of another process.
    fn restore(&mut self, stream: TcpStream, permit: Permit, mut snapshot: ConnectionSnapshot) {
        let (close_timeout, age_s) = (snapshot.close_timeout_in_ms, snapshot.age_s);
        let (is_incomplete, texts_unanswered) = (snapshot.is_incomplete, snapshot.texts_unanswered);
        let channels = std::mem::take(&mut snapshot.channels);
        let numbers = std::mem::take(&mut snapshot.subscriptions);
        let pending = std::mem::take(&mut snapshot.pending);
        let positions = match snapshot.stream_positions.as_slice() {
            [] => StreamPositions::restore(&snapshot.positions),
            bytes => StreamPositions::from_bytes(bytes),
        };
        let (id, form) = (snapshot.id, self.config.connection.form(snapshot.form));
        snapshot.form = form;
        let Some(slot) = self.insert(Connection::restore(stream, snapshot, permit)) else { return };
        let key = ConnectionKey { slot, id };
        let Some(entry) = self.connections.get_mut(slot) else { return };
        entry.set_age(age_s);
        if form.receives_publications() {
            if !positions.is_empty() {
                entry.subscriptions.set_positions(positions);
            }
            if numbers.len() > 0 {
                self.channels.subscribe_by_numbers(key, entry, &numbers, &pending);
            } else {
                self.channels.subscribe_again(key, entry, &channels, &pending);
            }
        }
        if texts_unanswered {
            self.refuse_texts(slot, &BrokerError::OutcomeUnknown("an upgrade".to_owned()));
        }
        if is_incomplete {
            self.close(slot, CloseReason::SlowConsumer);
        }
        if let Some(left) = close_timeout
            && self.connections.slot(key).is_some()
        {
            // The other process may have had a longer timeout.
            let left = Duration::from_millis(left).min(self.config.close_timeout);
            self.timers.start_close_timeout(key, left, Instant::now());
        }
    }

    /// Adds a connection to the poll and to a slot. The poll reports at once what there is to be read.
    fn insert(&mut self, mut connection: Connection<TcpStream>) -> Option<usize> {
        let slot = self.connections.next_slot();
        // Most clients always take what they are sent: writability is only watched while output is queued.
        let write_interest = connection.has_output();
        let interest =
            if write_interest { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let registry = self.config.poll.registry();
        if let Err(error) = registry.register(&mut connection.stream, Token(slot), interest) {
            debug!(client = %connection.id, %error, "a new socket could not be registered");
            connection.finish(Disconnect::Forced);
            return None;
        }
        let has_early_input = connection.has_early_input();
        // Otherwise a client that does not read makes the kernel keep megabytes of what cannot be sent.
        if let Err(error) = SockRef::from(&connection.stream).set_tcp_notsent_lowat(MOST_UNSENT) {
            debug!(client = %connection.id, %error, "the limit of unsent bytes of a connection stays what it was");
        }
        self.connections.insert(Slot::new(connection, write_interest));
        self.watch_replay(slot);
        if has_early_input {
            self.queue_read(slot);
        }
        Some(slot)
    }

    /// Sends a new client the response to its handshake and the first messages.
    fn welcome(&mut self, slot: usize, response: Vec<u8>) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let connection = &mut entry.connection;
        let (id, form) = (connection.id, connection.form);
        trace!(client = %id, peer = peer_of(&connection.stream).map(display), "connected");
        let mut outcome =
            connection.send_handshake(response, &form.encode(&Outgoing::Welcome { client: id }));
        if let Some(notice) = &self.notice {
            outcome = outcome.max(connection.send_unbounded(&form.encode(&notice.message(id, false))));
        }
        if let Some(reason) = self.close_reason {
            outcome = outcome.max(connection.close(reason, None));
        }
        self.apply_outcome(slot, outcome);
    }
}
