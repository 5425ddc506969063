//! The state machine of one connection, WebSocket or server-sent events, over any stream that can be read and
//! written.
//!
//! It makes one system call where it can and never blocks. When to read, when to write and when to give up is
//! decided by the event loop that owns it: each action returns an [`Outcome`] that says what is left to do.

mod input;
#[cfg(test)]
pub(crate) mod memory_stream;
pub(crate) mod outbox;
mod output;
mod ping;
pub(crate) mod replay;
pub(crate) mod snapshot;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod unread;

use std::time::Duration;

use bytes::Bytes;
use lastcall_broker::Broker;
use serde::{Deserialize, Serialize};

use self::{
    outbox::{Outbox, Round},
    output::Sent,
    snapshot::ConnectionSnapshot,
    stream::TcpProgress,
    unread::{OverBudget, QueueSnapshot, UnreadBuffers},
};
pub(crate) use self::{ping::Ping, stream::Stream};
use crate::{
    admission::{Disconnect, Permit},
    client_id::ClientId,
    codec::{CloseReason, Decoder},
    protocol::{Form, Input},
};

/// The settings that concern each connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionConfig {
    /// The form of all WebSockets.
    pub(crate) websockets: Form,
    /// True if the texts of clients are published.
    pub(crate) publishes_texts: bool,
    /// Most bytes in one message from a client, its fragments together.
    pub(crate) max_message_size: usize,
    /// Most bytes that may be queued for one client before more is added.
    pub(crate) max_queue: usize,
    /// True if the rate of published texts is limited.
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

/// The state of a connection (RFC 6455 §7.1). Its serialized names are part of the handover and stay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Messages go both ways.
    #[default]
    Open,
    /// The server has sent a close frame and waits for the client's.
    CloseSent,
    /// The client has sent a close frame; ours is queued, and the connection ends once it is written.
    #[serde(rename = "answering")]
    CloseReceived,
    /// The server has sent a close frame after input that it cannot decode. Later input is discarded until
    /// the client closes the TCP connection, so that the close frame is not lost to a reset (RFC 6455
    /// §7.1.1).
    #[serde(rename = "deaf")]
    Lingering,
}

impl State {
    /// Returns who has ended a connection whose TCP connection fails or ends in this state, or must be
    /// treated so.
    fn disconnect(self) -> Disconnect {
        match self {
            Self::Open | Self::CloseReceived => Disconnect::ByClient,
            Self::CloseSent | Self::Lingering => Disconnect::ByServer,
        }
    }
}

/// The consequence of an action for the event loop. The variants are ordered: of two outcomes,
/// the greater one counts.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Nothing.
    Unchanged,
    /// More is queued than `max_queue` allows: close the connection with [`CloseReason::SlowConsumer`].
    TooSlow,
    /// A close frame was sent or queued: end the connection after `close_timeout`, if it has not ended by
    /// then.
    CloseStarted,
    /// The connection has ended: remove it.
    Ended(Disconnect),
}

/// The state of a stream after a read.
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
    /// The form in which the client gets its messages.
    pub(crate) form: Form,
    /// The last ping and its answer.
    pub(crate) ping: Ping,
    /// True if the client has shut down its direction of the TCP connection: read on until the end of the
    /// stream.
    pub(crate) peer_closed: bool,
    /// True if that end was read. A client of server-sent events may still read.
    input_ended: bool,
    state: State,
    /// The reason for which the server closed it, if it did.
    close_reason: Option<CloseReason>,
    /// Bytes that arrived right after the handshake's request and are not decoded yet.
    early_input: Option<Box<Bytes>>,
    decoder: Decoder,
    outbox: Outbox,
    /// The output that the socket took since [`Connection::take_sent`].
    sent: Sent,
    permit: Permit,
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
        let is_read = snapshot.form.is_event_stream() || !snapshot.outbox.is_empty();
        let mut connection = Self {
            state: snapshot.state,
            ping: match snapshot.form.ping() {
                Some(_) => Ping::restore(snapshot.active_since_ping, is_read),
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

    /// Returns what another process needs to continue this connection, but for its channels, its output and
    /// its age. `close_timeout` is the time that is left of it, if the connection is closing.
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

    /// Returns about how many bytes of what the client has sent in part or has not read go to a new process,
    /// and whether there are replays among them.
    pub(crate) fn unread_size(&self) -> (usize, bool) {
        unread::estimate(&self.outbox, self.pending_input())
    }

    /// Adds what the client has sent in part or has not read to what goes to a new process.
    ///
    /// # Errors
    /// When it does not fit.
    pub(crate) fn add_unread(
        &self,
        buffers: &mut UnreadBuffers,
        broker: &dyn Broker,
    ) -> Result<QueueSnapshot, OverBudget> {
        buffers.add(&self.outbox, self.pending_input(), broker)
    }

    fn pending_input(&self) -> usize {
        self.decoder.len() + self.early_input.as_deref().map_or(0, Bytes::len)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Returns why the server closed the connection, if it did.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason
    }

    /// Releases the permit and closes the socket.
    pub(crate) fn finish(self, disconnect: Disconnect) {
        self.permit.release(disconnect);
    }

    /// Sends what shows whether the client is there. Clients of server-sent events only show that they read.
    pub(crate) fn send_ping(&mut self) -> Outcome {
        let Some(ping) = self.form.ping() else { return Outcome::Unchanged };
        let is_read = self.form.is_event_stream() || self.has_output();
        // Before it is sent: that it is acknowledged must show.
        let before = if is_read { self.stream.tcp_progress() } else { Ok(TcpProgress::default()) };
        let outcome = self.send_unbounded(&ping);
        match before {
            Ok(before) if is_read => self.ping.sent_unread(before),
            Ok(_) if self.has_output() => {
                self.ping.sent_unread(self.stream.tcp_progress().unwrap_or_default())
            }
            Ok(_) => self.ping.sent(),
            Err(_) => return self.disconnected(),
        }
        outcome
    }

    /// Returns true if the answer to the ping is missing, when the time for it is over: the client is gone,
    /// or does not read.
    pub(crate) fn is_overdue(&mut self) -> bool {
        if !self.ping.is_unread() && !self.ping.is_overdue() {
            return false;
        }
        // The poll reports a socket that has failed.
        let Ok(progress) = self.stream.tcp_progress() else { return false };
        if self.ping.is_unread() {
            let is_answer = self.form.is_event_stream();
            return self.ping.check_unread(progress, self.has_output(), is_answer);
        }
        // What came before the ping may not even be sent, as the client reads slowly: it cannot have answered
        // yet.
        if progress.unsent {
            self.ping.sent_unread(progress);
        }
        !progress.unsent
    }

    /// Starts the closing handshake (RFC 6455 §7.1.2), unless it has started. What is queued is sent before
    /// the close frame, and `notice` after that; for a slow consumer, only `notice`.
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

    /// Returns the outcome for a TCP connection that has failed, has ended, or must be treated so.
    pub(crate) fn disconnected(&self) -> Outcome {
        Outcome::Ended(self.state.disconnect())
    }
}
