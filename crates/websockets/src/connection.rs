//! The state machine of one connection, WebSocket or server-sent events, over any stream that can be read and written.
//!
//! It makes one system call where it can and never blocks. When to read, when to write and when to give up is decided
//! by the event loop that owns it: each action returns an [`Outcome`] that says what is left to do.

mod input;
#[cfg(test)]
pub(crate) mod memory_stream;
pub(crate) mod outbox;
mod ping;
pub(crate) mod replay;
pub(crate) mod snapshot;
pub(crate) mod state;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod unread;

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use bytes::Bytes;
use lastcall_broker::Broker;

use self::{
    outbox::{Outbox, Round},
    replay::Replay,
    snapshot::ConnectionSnapshot,
    state::State,
    stream::Delivery,
    unread::{QueueSnapshot, UnreadBuffers},
};
pub(crate) use self::{ping::Ping, stream::Stream};
use crate::{
    admission::{Disconnect, Permit},
    client_id::ClientId,
    codec::{CloseReason, Decoder, Frame},
    protocol::{Form, Input},
};

/// The settings that concern each connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionConfig {
    /// The form of all WebSockets.
    pub(crate) websockets: Form,
    /// Whether the texts of clients are published.
    pub(crate) publishes_texts: bool,
    /// Most bytes in one message from a client, its fragments together.
    pub(crate) max_message_size: usize,
    /// Most bytes that may be queued for one client before more is added.
    pub(crate) max_queue: usize,
    /// Whether the rate of published texts is limited.
    pub(crate) limits_texts: bool,
}

impl ConnectionConfig {
    /// Returns the form that a connection has, of those that are WebSockets or not.
    pub(crate) fn form(&self, form: Form) -> Form {
        match form {
            Form::WebSocket | Form::Echo => self.websockets,
            Form::EventStream | Form::UnchunkedEventStream => form,
        }
    }
}

/// What the event loop must do after an action. The variants are ordered: of two outcomes, the greater one counts.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Nothing.
    Unchanged,
    /// More is queued than `max_queue` allows: close the connection with [`CloseReason::SlowConsumer`].
    TooSlow,
    /// A close frame was sent or queued: end the connection after `close_timeout`, if it has not ended by then.
    CloseStarted,
    /// The connection has ended: remove it.
    Ended(Disconnect),
}

/// Whether a stream may have more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readable {
    Maybe,
    /// Nothing until the next readiness event.
    No,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    pub(crate) stream: S,
    pub(crate) id: ClientId,
    /// How the client gets its messages.
    pub(crate) form: Form,
    /// The last ping and its answer.
    pub(crate) ping: Ping,
    /// Whether the client has shut down its direction of the TCP connection: read on until the end of the stream.
    pub(crate) peer_closed: bool,
    /// True if that end was read. A client of server-sent events may still read.
    input_ended: bool,
    state: State,
    /// Why the server closed it, if it did.
    close_reason: Option<CloseReason>,
    /// Bytes that arrived right after the handshake's request and are not decoded yet.
    early_input: Option<Box<Bytes>>,
    decoder: Decoder,
    outbox: Outbox,
    /// The output that the socket took since [`Connection::take_sent`].
    sent: Sent,
    permit: Permit,
}

/// The output that a socket took.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) bytes: u32,
    /// Messages of replays, which are counted when they are encoded to be written next.
    pub(crate) replayed_messages: u32,
}

impl<S: Stream> Connection<S> {
    pub(crate) fn new(stream: S, id: ClientId, form: Form, permit: Permit) -> Self {
        Self {
            stream,
            id,
            form,
            ping: Ping::default(),
            peer_closed: false,
            input_ended: false,
            state: State::Open,
            close_reason: None,
            early_input: None,
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            sent: Sent::default(),
            permit,
        }
    }

    /// Continues a connection of another process.
    pub(crate) fn restore(stream: S, snapshot: ConnectionSnapshot, permit: Permit) -> Self {
        let mut connection = Self {
            state: snapshot.state,
            ping: match snapshot.form.ping() {
                Some(_) => Ping::restore(snapshot.active_since_ping, !snapshot.outbox.is_empty()),
                None => Ping::default(),
            },
            close_reason: snapshot.close_reason,
            decoder: snapshot.decoder,
            outbox: snapshot.outbox,
            ..Self::new(stream, snapshot.id, snapshot.form, permit)
        };
        connection.set_early_input(snapshot.early_input);
        connection
    }

    /// Returns what another process needs to continue this connection, but for its channels, its output and its age. `close_timeout` is the time that is left of
    /// it, if the connection is closing.
    pub(crate) fn snapshot(&self, close_timeout: Option<Duration>) -> ConnectionSnapshot {
        ConnectionSnapshot {
            id: self.id,
            form: self.form,
            age_s: None,
            state: self.state,
            close_reason: self.close_reason,
            close_timeout_in_ms: close_timeout
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            active_since_ping: self.ping == Ping::Answered,
            early_input: self.early_input.as_deref().cloned().unwrap_or_default(),
            decoder: self.decoder.clone(),
            ..ConnectionSnapshot::default()
        }
    }

    /// Returns about how many bytes of what the client has sent in part or has not read go to a new process, and whether there
    /// are replays among them.
    pub(crate) fn unread_size(&self) -> (usize, bool) {
        unread::estimate(&self.outbox, self.pending_input())
    }

    /// Adds what the client has sent in part or has not read to what goes to a new process. `None`: it does not fit.
    pub(crate) fn add_unread(
        &self,
        buffers: &mut UnreadBuffers,
        broker: &dyn Broker,
    ) -> Option<QueueSnapshot> {
        buffers.add(&self.outbox, self.pending_input(), broker)
    }

    fn pending_input(&self) -> usize {
        self.decoder.len() + self.early_input.as_deref().map_or(0, Bytes::len)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns the number of bytes that are queued for the client.
    pub(crate) fn queued(&self) -> usize {
        self.outbox.len()
    }

    /// Returns what the socket took since the last call.
    pub(crate) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    fn count_sent(&mut self, bytes: usize) {
        self.sent.bytes = self.sent.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Returns true if the socket may take more of what is queued, although no event will say so: call
    /// [`Connection::flush`] again when others have had their turn.
    pub(crate) fn awaits_turn(&self) -> bool {
        self.outbox.turn_ended()
    }

    /// Returns why the server closed the connection, if it did.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason
    }

    /// Releases the permit and closes the socket.
    pub(crate) fn finish(self, disconnect: Disconnect) {
        self.permit.release(disconnect);
    }

    /// Writes the response to the handshake, and the first frames after it, in one system call.
    pub(crate) fn send_handshake(&mut self, response: Vec<u8>, frames: &Bytes) -> Outcome {
        let (response, mut all) = (response.len(), response);
        all.extend_from_slice(frames);
        loop {
            match self.stream.write(&all) {
                Ok(written) if written >= response => {
                    self.count_sent(written - response);
                    if written < all.len() {
                        self.outbox.push(frames.clone(), written - response, Round::default());
                    }
                    return Outcome::Unchanged;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A new socket buffers several KiB. If it does not, the client is gone or never read an earlier
                // response.
                _ => return self.disconnected(),
            }
        }
    }

    /// Sends whole frames, or queues what the socket does not take. If too much was in the queue before this round of the
    /// loop, it sends nothing and returns [`Outcome::TooSlow`].
    pub(crate) fn send(&mut self, frames: &Bytes, round: Round, config: &ConnectionConfig) -> Outcome {
        if self.is_open() && self.outbox.is_over(config.max_queue, round) {
            return Outcome::TooSlow;
        }
        self.send_or_queue(frames, round)
    }

    /// Sends whole frames like [`Connection::send`], however much is queued. For the few that every client must get.
    pub(crate) fn send_unbounded(&mut self, frames: &Bytes) -> Outcome {
        self.send_or_queue(frames, Round::default())
    }

    fn send_or_queue(&mut self, frames: &Bytes, round: Round) -> Outcome {
        if !self.is_open() || frames.is_empty() {
            return Outcome::Unchanged;
        }
        if self.has_output() {
            self.outbox.push(frames.clone(), 0, round);
            return Outcome::Unchanged;
        }
        match self.write(frames) {
            Ok(written) if written == frames.len() => {}
            Ok(written) => self.outbox.push(frames.clone(), written, round),
            Err(_) => return self.disconnected(),
        }
        Outcome::Unchanged
    }

    /// Sends a pong. Of those that the socket does not take, the last one stands for all.
    fn send_pong(&mut self, frame: &Frame) -> Outcome {
        if self.has_output() {
            self.outbox.push_pong(frame.bytes());
            return Outcome::Unchanged;
        }
        match self.write(frame.bytes()) {
            Ok(0) => self.outbox.push_pong(frame.bytes()),
            Ok(written) if written < frame.bytes().len() => {
                self.outbox.push(frame.bytes().clone(), written, Round::default());
            }
            Ok(_) => {}
            Err(_) => return self.disconnected(),
        }
        Outcome::Unchanged
    }

    /// Writes to the socket, and returns how many bytes it took: none if it would block.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.stream.write(bytes) {
                Ok(written) => {
                    self.count_sent(written);
                    return Ok(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends what the client has missed, in pages, as its socket takes them. What is sent later comes after it.
    pub(crate) fn replay(&mut self, replay: Replay) -> Outcome {
        if !self.is_open() {
            return Outcome::Unchanged;
        }
        let is_first = !self.has_output();
        self.outbox.push_replay(replay);
        if is_first { self.flush() } else { Outcome::Unchanged }
    }

    /// Sends what shows whether the client is there. Clients of server-sent events only show that they read.
    pub(crate) fn send_ping(&mut self) -> Outcome {
        let Some(ping) = self.form.ping() else { return Outcome::Unchanged };
        let is_read = self.form.is_event_stream() || self.has_output();
        // Before it is sent: that it is acknowledged must show.
        let before = if is_read { self.stream.delivery() } else { Ok(Delivery::default()) };
        let outcome = self.send_unbounded(&ping);
        match before {
            Ok(before) if is_read => self.ping.sent_unread(before),
            Ok(_) if self.has_output() => self.ping.sent_unread(self.stream.delivery().unwrap_or_default()),
            Ok(_) => self.ping.sent(),
            Err(_) => return self.disconnected(),
        }
        outcome
    }

    /// Returns true if the answer to the ping is missing, when the time for it is over: the client is gone, or does not read.
    pub(crate) fn is_overdue(&mut self) -> bool {
        if !self.ping.is_unread() && !self.ping.is_overdue() {
            return false;
        }
        // The poll reports a socket that has failed.
        let Ok(delivery) = self.stream.delivery() else { return false };
        if self.ping.is_unread() {
            let is_answer = self.form.is_event_stream();
            return self.ping.check_unread(delivery, self.has_output(), is_answer);
        }
        // What came before the ping may not even be sent, as the client reads slowly: it cannot have answered yet.
        if delivery.unsent {
            self.ping.sent_unread(delivery);
        }
        !delivery.unsent
    }

    /// Returns true if a replay is under way.
    pub(crate) fn has_replay(&self) -> bool {
        self.outbox.has_replay()
    }

    /// Returns true if a replay holds publications that the history has dropped.
    pub(crate) fn pins_history(&self) -> bool {
        self.outbox.pins_history()
    }

    /// Returns how many bytes the client has acknowledged, wrapping around.
    pub(crate) fn acknowledged(&self) -> Option<u32> {
        self.stream.delivery().ok().map(|delivery| delivery.acknowledged)
    }

    /// Starts the closing handshake (RFC 6455 §7.1.2), unless it has started. What is queued is sent before the close
    /// frame, and `notice` after that; for a slow consumer, only `notice`.
    pub(crate) fn close(&mut self, reason: CloseReason, notice: Option<Bytes>) -> Outcome {
        if !self.is_open() {
            return Outcome::Unchanged;
        }
        self.close_reason = Some(reason);
        if reason == CloseReason::SlowConsumer {
            self.outbox.truncate_to_partial_message(self.form);
        }
        if let Some(notice) = notice {
            self.outbox.push(notice, 0, Round::default());
        }
        let has_answer = self.form.input() != Input::Discarded && !reason.discards_input();
        self.state = if has_answer { State::CloseSent } else { State::Lingering };
        self.send_last(self.form.close(reason))
    }

    /// Sends or queues the last bytes of a connection.
    fn send_last(&mut self, bytes: Bytes) -> Outcome {
        self.outbox.push(bytes, 0, Round::default());
        Outcome::CloseStarted.max(self.flush())
    }

    /// Writes what is queued, as far as the socket takes it and the turn lasts.
    pub(crate) fn flush(&mut self) -> Outcome {
        let Ok(flushed) = self.outbox.flush(&mut self.stream) else { return self.disconnected() };
        self.count_sent(flushed.bytes);
        self.sent.replayed_messages += u32::try_from(flushed.replayed_messages).unwrap_or(u32::MAX);
        // A client of server-sent events answers by reading, not by what comes back later.
        if !self.form.is_event_stream() && self.outbox.is_empty() {
            self.ping.left();
        }
        if self.has_output() {
            return Outcome::Unchanged;
        }
        match self.state {
            State::CloseReceived => Outcome::Ended(Disconnect::ByClient),
            State::Lingering => match self.stream.shutdown_write() {
                Ok(()) if !self.input_ended => Outcome::Unchanged,
                // Both directions have ended.
                Ok(()) | Err(_) => self.disconnected(),
            },
            State::Open | State::CloseSent => Outcome::Unchanged,
        }
    }

    /// Returns the outcome for a TCP connection that has failed, has ended, or must be treated so.
    pub(crate) fn disconnected(&self) -> Outcome {
        Outcome::Ended(self.state.disconnect())
    }
}
