//! The clients of one event loop: how they come, what follows from what happens to one, and how they go.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lastcall_broker::{Broker, BrokerError};
use mio::{event::Event, net::TcpStream};
use tracing::{debug, trace};

use super::{
    LoopConfig,
    channels::Channels,
    clock::Clock,
    delivery::Delivery,
    drain::Drain,
    heartbeat::{BUCKETS, Heartbeat, HeartbeatEvent},
    reader::{Reader, refuse_texts},
    replays::Replays,
    sockets::Sockets,
    timers::{Due, Timers},
    writer::Writer,
};
use crate::{
    admission::{Disconnect, Permit},
    client_id::ClientId,
    codec::CloseReason,
    connection::{Connection, ConnectionConfig, Outcome, snapshot::ConnectionSnapshot},
    connection_key::ConnectionKey,
    connections::{Connections, Slot, stream_positions::StreamPositions},
    handshake::Handshake,
    mailbox::{ConnectionSource, NewConnection, SubscriptionStart},
    mailboxes::OwnMailbox,
    protocol::Outgoing,
    stats::Stats,
};

/// Reads between two readings of the clock. A read that fills the buffer takes much longer than one of a
/// message.
const READS_PER_CLOCK_READ: usize = 8;

/// Flushes between two readings of the clock. Most of them write little: their socket takes no more.
const FLUSHES_PER_CLOCK_READ: usize = 8;

/// The connections of one event loop, and all that acts on them. Each action on a connection has an
/// [`Outcome`], which is applied here.
pub(super) struct Clients {
    pub(super) sockets: Sockets,
    pub(super) connections: Connections,
    pub(super) channels: Channels,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    replays: Replays,
    pub(super) timers: Timers,
    pub(super) drain: Drain,
    pub(super) stats: Stats,
    pub(super) config: ConnectionConfig,
    /// Most time from the start of a close to the end of the connection.
    pub(super) close_timeout: Duration,
    /// The time in which a client must take some of a replay.
    replay_timeout: Duration,
}

impl Clients {
    pub(super) fn new(
        config: &LoopConfig,
        sockets: Sockets,
        mailbox: &OwnMailbox,
        broker: Arc<dyn Broker>,
    ) -> Self {
        let clock = Clock::start(Instant::now());
        let heartbeat = config.heartbeat.map(|heartbeat| Heartbeat::new(heartbeat, clock.now()));
        Self {
            sockets,
            connections: Connections::default(),
            channels: Channels::new(broker, mailbox.clone()),
            reader: Reader::new(config.connection, mailbox.clone(), Arc::clone(&config.budget)),
            writer: Writer::default(),
            replays: Replays::default(),
            timers: Timers::new(clock, heartbeat),
            drain: Drain::default(),
            stats: Stats::default(),
            config: config.connection,
            close_timeout: config.close_timeout,
            replay_timeout: config.replay_timeout,
        }
    }

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
        let form = self.config.form(form);
        let mut connection = Connection::new(stream, id, form, permit);
        connection.set_early_input(early_input);
        let Some(key) = self.insert(connection) else { return };
        let Some(entry) = self.connections.get_by_key(key) else { return };
        self.stats.opened += 1;
        if form.receives_publications() {
            // Before the welcome: a client that has it gets what is published then.
            self.channels.subscribe_new(key, entry, channels);
        }
        let connection = &mut entry.connection;
        trace!(client = %id, peer = peer_of(&connection.stream).map(display), "connected");
        let welcome = form.encode(&Outgoing::Welcome { client: id });
        let outcome = connection.send_handshake(response, &welcome).max(self.drain.welcome(connection));
        self.apply(key.slot, outcome);
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
        let form = self.config.form(snapshot.form);
        snapshot.form = form;
        let Some(key) = self.insert(Connection::restore(stream, snapshot, permit)) else { return };
        let Some(entry) = self.connections.get_by_key(key) else { return };
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
            let outcome = refuse_texts(entry, &BrokerError::OutcomeUnknown("an upgrade".to_owned()));
            self.apply(key.slot, outcome);
        }
        if is_incomplete {
            self.close(key.slot, CloseReason::SlowConsumer);
        }
        if let Some(left) = close_timeout
            && self.connections.slot(key).is_some()
        {
            // The other process may have had a longer timeout.
            let left = Duration::from_millis(left).min(self.close_timeout);
            self.timers.start_close_timeout(key, left, Instant::now());
        }
    }

    /// Adds a connection to the poll and to a slot.
    fn insert(&mut self, mut connection: Connection<TcpStream>) -> Option<ConnectionKey> {
        let key = ConnectionKey { slot: self.connections.next_slot(), id: connection.id };
        let write_interest = match self.sockets.add(&mut connection, key.slot) {
            Ok(write_interest) => write_interest,
            Err(error) => {
                debug!(client = %connection.id, %error, "a new socket could not be registered");
                connection.finish(Disconnect::Forced);
                return None;
            }
        };
        self.connections.insert(Slot::new(connection, write_interest));
        let entry = self.connections.get_by_key(key)?;
        self.replays.watch(key, entry, &mut self.timers);
        if entry.connection.has_early_input() {
            self.reader.queue(key, entry);
        }
        Some(key)
    }

    /// Takes what the poll says of a socket.
    pub(super) fn on_event(&mut self, event: &Event) {
        let slot = event.token().0;
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let key = entry.key(slot);
        if event.is_writable() {
            self.writer.queue(key, entry);
        }
        if event.is_read_closed() {
            entry.connection.peer_closed = true;
        }
        if event.is_readable() || event.is_read_closed() {
            self.reader.queue(key, entry);
        }
        // Otherwise a connection whose client is gone would keep its permit.
        if (event.is_error() || event.is_write_closed()) && entry.is_not_read() {
            let outcome = entry.connection.disconnected();
            self.apply(slot, outcome);
        }
    }

    /// Writes to the queued connections, until none is left or the slice is over.
    pub(super) fn write(&mut self, slice: Duration) {
        let started = Instant::now();
        let mut flushes = 0_usize;
        while let Some((key, outcome)) = self.writer.flush_next(&mut self.connections) {
            self.apply(key.slot, outcome);
            if let Some(entry) = self.connections.get_by_key(key)
                && !entry.connection.has_output()
            {
                self.reader.on_drained(key, entry);
            }
            flushes += 1;
            if flushes.is_multiple_of(FLUSHES_PER_CLOCK_READ) && started.elapsed() > slice {
                break;
            }
        }
    }

    /// Reads from the queued connections, until none is left or the slice is over.
    pub(super) fn read(&mut self, slice: Duration) {
        let started = Instant::now();
        let mut reads = 0_usize;
        while self.reader.may_read(Instant::now())
            && let Some((slot, outcome)) = self.reader.read_next(
                &mut self.connections,
                &self.channels,
                &mut self.timers,
                &mut self.stats,
            )
        {
            self.apply(slot, outcome);
            reads += 1;
            if reads.is_multiple_of(READS_PER_CLOCK_READ) && started.elapsed() > slice {
                break;
            }
        }
    }

    /// Continues a delivery until the slice is over. Returns true when all connections have got it.
    pub(super) fn deliver(&mut self, delivery: &mut Delivery, started: Instant, slice: Duration) -> bool {
        let Some(recipients) = delivery.recipients(&self.channels) else { return true };
        while let Some(slot) = delivery.next(recipients, &self.channels, &self.connections) {
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let outcome = delivery.send(entry, recipients, &self.config, &self.drain, &mut self.stats);
            self.apply(slot, outcome);
            if let Some(entry) =
                self.connections.get_mut(slot).filter(|entry| entry.connection.ends_with_replay())
            {
                self.replays.watch(entry.key(slot), entry, &mut self.timers);
            }
            if delivery.is_clock_due() && started.elapsed() > slice {
                return false;
            }
        }
        true
    }

    /// Begins a subscription, or closes a connection that has got none.
    pub(super) fn start_subscription(&mut self, start: SubscriptionStart) {
        match self.channels.start(start, &mut self.connections, &mut self.stats) {
            Some((slot, Ok(outcome))) => {
                self.apply(slot, outcome);
                if let Some(entry) = self.connections.get_mut(slot) {
                    self.replays.watch(entry.key(slot), entry, &mut self.timers);
                }
            }
            Some((slot, Err(reason))) => self.close(slot, reason),
            None => {}
        }
    }

    /// Takes the broker's answer for the texts of a connection, if there is one.
    pub(super) fn continue_texts(&mut self, key: ConnectionKey) {
        if let Some((slot, outcome)) = self.reader.continue_texts(key, &mut self.connections) {
            self.apply(slot, outcome);
        }
    }

    /// Does what is due, until nothing is left or the slice is over.
    pub(super) fn run_timers(&mut self, slice: Duration) {
        let started = Instant::now();
        while let Some(due) = self.timers.due(started) {
            match due {
                Due::Heartbeat(HeartbeatEvent::Ping(bucket)) => self.ping(bucket),
                Due::Heartbeat(HeartbeatEvent::Check(bucket)) => self.check_pings(bucket),
                Due::CheckReplays => {
                    let too_slow =
                        self.replays.check(self.replay_timeout, &mut self.connections, &mut self.timers);
                    too_slow.into_iter().for_each(|key| self.close_by_key(key, CloseReason::SlowConsumer));
                }
                Due::Close(key, reason) => self.close_by_key(key, reason),
                Due::CloseTimeout(key) => {
                    if let Some(slot) = self.connections.slot(key) {
                        self.remove(slot, Disconnect::Forced);
                    }
                }
                Due::EndThrottling(key) => {
                    if let Some(entry) = self.connections.get_by_key(key) {
                        self.reader.end_throttling(key, entry);
                    }
                }
            }
            if started.elapsed() > slice {
                break;
            }
        }
    }

    /// Pings the clients of a bucket.
    pub(super) fn ping(&mut self, bucket: usize) {
        for slot in (bucket..self.connections.slots()).step_by(BUCKETS) {
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let connection = &mut entry.connection;
            if connection.is_open() && connection.ping.is_needed() {
                let outcome = connection.send_ping();
                self.apply(slot, outcome);
            }
        }
    }

    /// Closes the connections of a bucket whose clients have not answered their ping.
    pub(super) fn check_pings(&mut self, bucket: usize) {
        for slot in (bucket..self.connections.slots()).step_by(BUCKETS) {
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let connection = &mut entry.connection;
            if !connection.is_open() || !connection.is_overdue() {
                continue;
            }
            // The answer may have arrived and not be read yet: after a pause there is much to read.
            if connection.has_input() {
                self.reader.queue(entry.key(slot), entry);
            } else {
                self.close(slot, CloseReason::Idle);
            }
        }
    }

    /// Closes the clients with the slowest replays, until what replays keep that the history has dropped is
    /// within its bound.
    pub(super) fn bound_pinned_history(&mut self) {
        if self.replays.is_empty() || !self.channels.broker.pins_too_much() {
            return;
        }
        for key in self.replays.pinning(&self.connections, self.timers.clock().now()) {
            if !self.channels.broker.pins_too_much() {
                break;
            }
            self.close_by_key(key, CloseReason::SlowConsumer);
        }
    }

    /// Does what an outcome asks for.
    fn apply(&mut self, slot: usize, outcome: Outcome) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let key = entry.key(slot);
        let sent = entry.connection.take_sent();
        self.stats.bytes_sent += u64::from(sent.bytes);
        self.stats.messages_sent += u64::from(sent.replayed_messages);
        if entry.connection.awaits_turn() {
            self.writer.queue(key, entry);
        }
        if let Err(error) = self.sockets.watch_output(slot, entry) {
            // Without the event, the output would never be written.
            debug!(client = %key.id, %error, "a socket could not be watched");
            return self.remove(slot, Disconnect::Forced);
        }
        match outcome {
            Outcome::Unchanged => {}
            Outcome::TooSlow => self.close(slot, CloseReason::SlowConsumer),
            Outcome::CloseStarted => {
                self.timers.start_close_timeout(key, self.close_timeout, Instant::now());
                self.reader.on_close(key, entry);
            }
            Outcome::Ended(disconnect) => self.remove(slot, disconnect),
        }
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, slot: usize, reason: CloseReason) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let outcome = self.drain.close(&mut entry.connection, reason);
        self.apply(slot, outcome);
    }

    fn close_by_key(&mut self, key: ConnectionKey, reason: CloseReason) {
        if let Some(slot) = self.connections.slot(key) {
            self.close(slot, reason);
        }
    }

    /// Removes a connection that has ended, and closes its socket, which takes it off the poll.
    pub(super) fn remove(&mut self, slot: usize, disconnect: Disconnect) {
        let Some(entry) = self.connections.remove(slot) else { return };
        self.reader.forget(entry.key(slot), &entry);
        self.channels.end(&entry.subscriptions);
        let (age_s, connection) = (entry.age_s(), entry.connection);
        debug!(
            client = %connection.id,
            peer = peer_of(&connection.stream).map(display),
            age_seconds = age_s,
            disconnect = ?disconnect,
            reason = connection.close_reason().map(CloseReason::reason),
            "connection ended"
        );
        self.stats.record_disconnect(disconnect, connection.close_reason());
        connection.finish(disconnect);
    }

    /// Ends all connections, as the loop ends.
    pub(super) fn end_all(&mut self) {
        for entry in self.connections.drain() {
            self.channels.end(&entry.subscriptions);
            entry.connection.finish(Disconnect::Forced);
        }
    }
}

/// Returns the address of a client, for the log: that of IPv4 for its clients at a socket of IPv6.
fn peer_of(stream: &TcpStream) -> Option<SocketAddr> {
    let address = stream.peer_addr().ok()?;
    let ip = address.ip().to_canonical();
    Some(if ip.is_ipv4() { SocketAddr::new(ip, address.port()) } else { address })
}
