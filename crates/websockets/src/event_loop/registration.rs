//! Registration of connections: after their handshake, or when they come from another process.

use std::time::{Duration, Instant};

use lastcall_broker::{BrokerError, Since};
use lastcall_core::{ChannelName, Epoch, Position};
use mio::{Interest, Token, net::TcpStream};
use socket2::SockRef;
use tracing::{debug, trace};

use super::{EventLoop, peer_of};
use crate::{
    admission::{Disconnect, Permit},
    client_id::ClientId,
    codec::CloseReason,
    connection::{
        Connection,
        snapshot::{ConnectionSnapshot, PendingSnapshot},
    },
    connection_key::ConnectionKey,
    connections::{Slot, stream_positions::StreamPositions},
    handshake::{ChannelRequest, Handshake},
    mailbox::{ConnectionSource, NewConnection},
    protocol::{Form, Outgoing},
};

/// A position that no channel has: epochs are random. The ids of events have it in place of one that the client sent and that is
/// malformed, until the client is told: if it comes back before that, it must still be told.
const NEVER_GIVEN: Position = Position { epoch: Epoch(0), offset: 0 };

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
        if form.receives_publications() {
            // Before the welcome: a client that has it gets what is published then.
            self.subscribe_all(ConnectionKey { slot, id }, form, channels);
        }
        self.welcome(slot, response);
    }

    fn subscribe_all(&mut self, key: ConnectionKey, form: Form, channels: Vec<ChannelRequest>) {
        if channels.is_empty() {
            return self.subscribe_restored(key, &[], &[]);
        }
        self.reserve_subscriptions(key.slot, channels.len());
        if form.is_event_stream() && channels.len() > 1 {
            let asked = channels.iter().map(|channel| match channel.since {
                Since::Position(position) => Some(position),
                Since::Invalid => Some(NEVER_GIVEN),
                Since::Now => None,
            });
            self.set_positions(key.slot, StreamPositions::new(asked));
        }
        for ChannelRequest { name, since } in channels {
            self.subscribe(key, &name, since, true);
        }
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
        if let Some(entry) = self.connections.get_mut(slot) {
            entry.set_age(age_s);
        }
        if form.receives_publications() {
            self.reserve_subscriptions(slot, channels.len());
            if !positions.is_empty() {
                self.set_positions(slot, positions);
            }
            if numbers.len() > 0 {
                self.subscribe_by_numbers(key, &numbers, &pending);
            } else {
                self.subscribe_restored(key, &channels, &pending);
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

    /// Subscribes a connection to channels that its client knows of already: those that it had in the other process. Without
    /// any, it is one of a client that named none.
    fn subscribe_restored(
        &mut self,
        key: ConnectionKey,
        channels: &[ChannelName],
        pending: &[PendingSnapshot],
    ) {
        if channels.is_empty() {
            let broadcast = self.broadcast.clone();
            self.subscribe(key, &broadcast, Since::Now, false);
        }
        for (index, channel) in channels.iter().enumerate() {
            match pending.iter().find(|pending| pending.index as usize == index) {
                Some(pending) => self.subscribe(key, channel, pending.since, pending.announced),
                None => self.subscribe(key, channel, Since::Now, false),
            }
        }
    }

    fn reserve_subscriptions(&mut self, slot: usize, subscriptions: usize) {
        if let Some(entry) = self.connections.get_mut(slot) {
            entry.subscriptions.reserve(subscriptions);
        }
    }

    fn set_positions(&mut self, slot: usize, positions: StreamPositions) {
        if let Some(entry) = self.connections.get_mut(slot) {
            entry.subscriptions.set_positions(positions);
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
