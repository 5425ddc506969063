//! One client: plain data, and what happens to it. Which loop serves it, and when, is not its concern.

mod input;
mod outbox;
mod ping;

use std::{
    io::{ErrorKind, Write},
    net::Shutdown,
    time::Duration,
};

use bytes::Bytes;
use lastcall_core::settings::ClientMessages;
use mio::net::TcpStream;
use serde::{Deserialize, Serialize};

use crate::{
    admission::{Disconnect, Permit},
    budget::Used,
    client_id::ClientId,
    codec::{CloseReason, Decoder, DecoderLimits, Frame},
    snapshot::ConnectionState,
};

pub(crate) use outbox::Outbox;
pub(crate) use ping::Ping;

/// What all clients must keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionConfig {
    pub(crate) client_messages: ClientMessages,
    pub(crate) max_message_size: usize,
    pub(crate) max_queue: usize,
    /// Whether there is a bound on texts that go to everyone.
    pub(crate) texts_are_bounded: bool,
}

impl ConnectionConfig {
    /// Whether nothing is sent but echoes.
    pub(crate) fn is_echo(&self) -> bool {
        self.client_messages == ClientMessages::Echo
    }

    fn decoder_limits(&self) -> DecoderLimits {
        DecoderLimits { max_message_size: self.max_message_size, accept_binary: self.is_echo() }
    }
}

/// The state of a connection. The serialized names stay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Messages go both ways (RFC 6455 §7.1: the connection is open).
    #[default]
    Open,
    /// The server has sent a close frame and waits for the client's.
    CloseSent,
    /// The client has sent a close frame; ours is queued, and the connection ends once it is written.
    #[serde(rename = "answering")]
    CloseReceived,
    /// The server has sent a close frame after input that it cannot decode. Later input is discarded until the client
    /// closes the TCP connection, so that the close frame is not lost to a reset (RFC 6455 §7.1.1).
    #[serde(rename = "deaf")]
    Lingering,
}

/// What an action did to the connection.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Nothing special.
    Unchanged,
    /// More would wait for it than may: it is to be closed as a slow consumer.
    TooSlow,
    /// It is closing now; it has `close_timeout` to finish.
    CloseStarted,
    /// It ended.
    Ended(Disconnect),
}

/// Whether a socket may have more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readable {
    Maybe,
    No,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) id: ClientId,
    /// What came of the last ping.
    pub(crate) ping: Ping,
    /// Whether it stands in the loop's list of those to read from.
    pub(crate) read_queued: bool,
    /// Whether it is not to be read from for a while, as it said too much.
    pub(crate) is_throttled: bool,
    /// What it has used of the budget for texts.
    pub(crate) used: Used,
    /// What it sent behind its handshake, and is not handled yet.
    early_input: Option<Box<Bytes>>,
    /// Whether the kernel tells when the socket takes output again.
    pub(crate) write_interest: bool,
    /// Whether the kernel said that the client sends no more: the end is to be read, too.
    pub(crate) peer_closed: bool,
    state: State,
    /// Why it was closed, once it was.
    close_reason: Option<CloseReason>,
    decoder: Decoder,
    outbox: Outbox,
    permit: Permit,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, id: ClientId, permit: Permit) -> Self {
        Self {
            stream,
            id,
            ping: Ping::default(),
            read_queued: false,
            is_throttled: false,
            used: Used::default(),
            early_input: None,
            write_interest: false,
            peer_closed: false,
            state: State::Open,
            close_reason: None,
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            permit,
        }
    }

    /// Goes on with a client of another process.
    pub(crate) fn restore(stream: TcpStream, state: ConnectionState, permit: Permit) -> Self {
        Self {
            state: state.state,
            ping: Ping::restore(state.heard, !state.outbox.is_empty()),
            close_reason: state.close_reason,
            decoder: state.decoder,
            outbox: state.outbox,
            ..Self::new(stream, state.id, permit)
        }
    }

    /// What another process needs to go on with this client; `cut_off_in`: how long it still has, if it is
    /// being closed.
    pub(crate) fn state(&self, cut_off_in: Option<Duration>) -> ConnectionState {
        ConnectionState {
            id: self.id,
            state: self.state,
            close_reason: self.close_reason,
            cut_off_in_ms: cut_off_in.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            heard: self.ping == Ping::Answered,
            early_input: self.early_input.as_deref().cloned().unwrap_or_default(),
            decoder: self.decoder.clone(),
            outbox: self.outbox.clone(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Bytes that wait for it.
    pub(crate) fn queued(&self) -> usize {
        self.outbox.len()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Why the server closed it, if it did.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason
    }

    /// Ends the connection: its permit is free, its socket goes.
    pub(crate) fn finish(self, disconnect: Disconnect) {
        self.permit.release(disconnect);
    }

    /// Sends the answer to the handshake, and the first frames behind it.
    pub(crate) fn send_handshake(&mut self, answer: Vec<u8>, frames: &Bytes) -> Outcome {
        let (answer, mut all) = (answer.len(), answer);
        all.extend_from_slice(frames);
        loop {
            match self.stream.write(&all) {
                Ok(written) if written >= answer => {
                    if written < all.len() {
                        self.outbox.push(frames.clone(), written - answer);
                    }
                    return Outcome::Unchanged;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A new socket takes some kilobytes: this one is gone, or its client did not read an answer before.
                _ => return self.disconnected(),
            }
        }
    }

    /// Sends whole frames: at once if the socket takes them, else they wait in the outbox, unless too much waits
    /// there already.
    pub(crate) fn send(&mut self, frames: &Bytes, rules: &ConnectionConfig) -> Outcome {
        if self.is_open() && self.has_output() && self.outbox.len() + frames.len() > rules.max_queue {
            return Outcome::TooSlow;
        }
        self.send_unbounded(frames)
    }

    /// The same, however much waits. For the few frames that every client must get.
    pub(crate) fn send_unbounded(&mut self, frames: &Bytes) -> Outcome {
        if self.state != State::Open {
            return Outcome::Unchanged;
        }
        if self.has_output() {
            self.outbox.push(frames.clone(), 0);
            return Outcome::Unchanged;
        }
        loop {
            match self.stream.write(frames) {
                Ok(written) if written == frames.len() => {}
                Ok(written) => self.outbox.push(frames.clone(), written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.outbox.push(frames.clone(), 0),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.disconnected(),
            }
            return Outcome::Unchanged;
        }
    }

    /// Starts the closing handshake, if it has not started. What waits, and then `notice`, is flushed before; for a
    /// slow consumer, `notice` only.
    pub(crate) fn close(&mut self, reason: CloseReason, notice: Option<&Frame>) -> Outcome {
        if self.state != State::Open {
            return Outcome::Unchanged;
        }
        self.close_reason = Some(reason);
        if reason == CloseReason::SlowConsumer {
            self.outbox.truncate_to_partial_frame();
        }
        if let Some(notice) = notice {
            self.outbox.push(notice.bytes().clone(), 0);
        }
        self.state = if reason.breaks_the_stream() { State::Lingering } else { State::CloseSent };
        self.send_close_frame(&Frame::close(Some((reason.code(), reason.reason()))))
    }

    /// Queues a close frame, after which nothing is sent.
    fn send_close_frame(&mut self, frame: &Frame) -> Outcome {
        self.outbox.push(frame.bytes().clone(), 0);
        Outcome::CloseStarted.max(self.flush())
    }

    /// Writes what waits, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Outcome {
        let before = self.outbox.len();
        if self.outbox.flush(&self.stream).is_err() {
            return self.disconnected();
        }
        if self.outbox.len() < before {
            self.ping.wrote(self.outbox.is_empty());
        }
        if self.has_output() {
            return Outcome::Unchanged;
        }
        match self.state {
            State::CloseReceived => Outcome::Ended(Disconnect::ByClient),
            State::Lingering => match self.stream.shutdown(Shutdown::Write) {
                Ok(()) => Outcome::Unchanged,
                Err(_) => self.disconnected(),
            },
            State::Open | State::CloseSent => Outcome::Unchanged,
        }
    }

    /// The TCP connection is gone, or as good as gone.
    pub(crate) fn disconnected(&self) -> Outcome {
        Outcome::Ended(match self.state {
            State::Open | State::CloseReceived => Disconnect::ByClient,
            State::CloseSent | State::Lingering => Disconnect::ByServer,
        })
    }
}
