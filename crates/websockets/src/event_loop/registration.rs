//! Registration of connections: after their handshake, or when they come from another process.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lastcall_broker::{BrokerError, Since};
use lastcall_core::{ChannelName, Epoch, Position};
use mio::{Interest, Token};
use socket2::SockRef;
use tracing::{debug, trace};

use super::{EventLoop, peer_of};
use crate::{
    admission::Disconnect,
    client_id::ClientId,
    codec::CloseReason,
    connection::{Connection, Outcome, snapshot::PendingSnapshot},
    connection_key::ConnectionKey,
    connections::{Slot, stream_positions::StreamPositions},
    handshake::ChannelRequest,
    mailbox::{ConnectionSource, NewConnection},
    protocol::Form,
    protocol::{ServerInfo, ServerMessage, event_stream},
};

/// A position that no channel has: epochs are random. The ids of events have it in place of one that the client sent and that is
/// malformed, until the client is told: if it comes back before that, it must still be told.
const NEVER_GIVEN: Position = Position { epoch: Epoch(0), offset: 0 };

/// The shortest time after which an `EventSource` comes back.
const MIN_RETRY: Duration = Duration::from_secs(1);

/// About how many bytes the kernel takes for a client before they can be sent (TCP_NOTSENT_LOWAT, tcp(7)). What is sent and
/// not acknowledged does not count, so a distant client is not slowed down.
const MOST_UNSENT: u32 = 128 << 10;

impl EventLoop {
    /// Registers a connection, and starts or continues to serve it.
    pub(super) fn register(&mut self, new: NewConnection) {
        let NewConnection { stream, permit, source } = new;
        let stream = mio::net::TcpStream::from_std(stream);
        match source {
            ConnectionSource::Handshake(id, handshake) => {
                let mut connection = Connection::new(stream, id, handshake.form, permit);
                connection.set_early_input(handshake.early_input);
                if let Some(slot) = self.insert(connection) {
                    self.stats.opened += 1;
                    // Before the welcome: a client that has it gets what is published then.
                    let key = ConnectionKey { slot, id };
                    self.reserve_subscriptions(slot, handshake.channels.len());
                    if handshake.form.is_event_stream() && handshake.channels.len() > 1 {
                        let asked = handshake.channels.iter().map(|channel| match channel.since {
                            Since::Position(position) => Some(position),
                            Since::Invalid => Some(NEVER_GIVEN),
                            Since::Now => None,
                        });
                        self.set_positions(slot, StreamPositions::new(asked));
                    }
                    if handshake.channels.is_empty() {
                        self.subscribe_restored(key, &[], &[]);
                    }
                    // An echo server sends nothing of its own.
                    let is_echo = self.config.connection.is_echo();
                    let named = handshake.channels.into_iter().filter(|_| !is_echo);
                    for ChannelRequest { name, since } in named {
                        self.subscribe(key, &name, since, true);
                    }
                    self.start(slot, handshake.response);
                }
            }
            ConnectionSource::Handover(mut snapshot) => {
                let (close_timeout, age_s) = (snapshot.close_timeout_in_ms, snapshot.age_s);
                let is_incomplete = snapshot.is_incomplete;
                let texts_unanswered = snapshot.texts_unanswered;
                let channels = std::mem::take(&mut snapshot.channels);
                let numbers = std::mem::take(&mut snapshot.subscriptions);
                let pending = std::mem::take(&mut snapshot.pending);
                let positions = match snapshot.stream_positions.as_slice() {
                    [] => StreamPositions::restore(&snapshot.positions),
                    bytes => StreamPositions::from_bytes(bytes),
                };
                let slot = self.insert(Connection::restore(stream, *snapshot, permit));
                if let Some(entry) = slot.and_then(|slot| self.connections.get_mut(slot)) {
                    entry.set_age(age_s);
                }
                if let Some(key) = slot.and_then(|slot| self.connections.key(slot)) {
                    self.reserve_subscriptions(key.slot, channels.len());
                    if !positions.is_empty() {
                        self.set_positions(key.slot, positions);
                    }
                    if numbers.len() > 0 {
                        self.subscribe_by_numbers(key, &numbers, &pending);
                    } else {
                        self.subscribe_restored(key, &channels, &pending);
                    }
                    if texts_unanswered {
                        self.refuse_texts(key.slot, &BrokerError::OutcomeUnknown("an upgrade".to_owned()));
                    }
                    if is_incomplete {
                        self.close(key.slot, CloseReason::SlowConsumer);
                    }
                }
                if let Some(key) = slot.and_then(|slot| self.connections.key(slot))
                    && let Some(left) = close_timeout
                {
                    // The other process may have had a longer timeout.
                    let left = Duration::from_millis(left).min(self.config.close_timeout);
                    self.timers.start_close_timeout(key, left, Instant::now());
                }
            }
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
        if self.config.connection.is_echo() {
            return;
        }
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
    fn insert(&mut self, mut connection: Connection<mio::net::TcpStream>) -> Option<usize> {
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
    fn start(&mut self, slot: usize, response: Vec<u8>) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let connection = &mut entry.connection;
        let id = connection.id;
        trace!(client = %id, peer = peer_of(&connection.stream).map(display), "connected");
        let mut outcome: Outcome;
        if self.config.connection.is_echo() {
            outcome = connection.send_handshake(response, &Bytes::new());
        } else {
            let welcome = ServerMessage::Welcome { client: id, server: ServerInfo };
            let welcome = match connection.form {
                Form::WebSocket => welcome.frame().bytes().clone(),
                // It replaces the time that the last drain has given the client.
                Form::EventStream | Form::UnchunkedEventStream => {
                    connection.form.of_chunk(event_stream::encode(&welcome, Some(retry_after(id))))
                }
            };
            outcome = connection.send_handshake(response, &welcome);
            if let Some(notice) = &self.notice {
                outcome = outcome.max(connection.send_unbounded(&notice.encode(connection.form, id)));
            }
        }
        if let Some(reason) = self.close_reason {
            outcome = outcome.max(connection.close(reason, None));
        }
        self.apply_outcome(slot, outcome);
    }
}

/// Returns after which time an `EventSource` comes back whose connection is lost. Each client has its own, so that not all
/// come at once.
fn retry_after(client: ClientId) -> Duration {
    MIN_RETRY + MIN_RETRY.mul_f64(client.jitter())
}
