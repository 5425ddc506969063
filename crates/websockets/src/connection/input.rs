//! The reading half of a connection: bytes from the client, and what follows from them.

use std::{
    io::{self, ErrorKind},
    ops::ControlFlow,
};

use super::{Connection, ConnectionConfig, Outcome, Readable, State, Stream};
use crate::{
    admission::Disconnect,
    client_id::ClientId,
    codec::{CloseReason, DecoderLimits, Event, Frame},
    protocol::{Input, Outgoing},
    stats::Stats,
};
use bytes::Bytes;

/// Most bytes of one read while the rate of published texts is limited: the rate is checked after each read,
/// so one read must not bring much. The worst case are empty texts: 6 bytes become a message of 150.
const LIMITED_READ: usize = 512;

impl<S: Stream> Connection<S> {
    /// Sets the bytes that arrived right after the handshake's request. They are read before those of the
    /// stream.
    pub(crate) fn set_early_input(&mut self, input: Bytes) {
        self.early_input = Some(input).filter(|input| !input.is_empty()).map(Box::new);
    }

    /// Returns true if input has arrived, or the end of the stream or an error that is to be read.
    pub(crate) fn has_input(&self) -> bool {
        if self.early_input.is_some() {
            return true;
        }
        if self.input_ended {
            return false;
        }
        let nothing = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
        !self.stream.peek(&mut [0]).is_err_and(|error| nothing(&error))
    }

    /// Returns true if nothing more can be read from the client.
    pub(crate) fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Handles the end of the client's direction. A client of server-sent events has nothing more to say
    /// after its request, so its end is no close. But most clients that end it are gone: they show it by a
    /// reset when something is sent to them.
    fn end_input(&mut self) -> Outcome {
        if !self.form.is_event_stream() || self.state == State::Lingering && !self.has_output() {
            return self.disconnected();
        }
        if std::mem::replace(&mut self.input_ended, true) {
            return Outcome::Unchanged;
        }
        self.form.ping().map_or(Outcome::Unchanged, |ping| self.send_unbounded(&ping))
    }

    /// Returns true if bytes are left from the handshake.
    pub(crate) fn has_early_input(&self) -> bool {
        self.early_input.is_some()
    }

    /// Returns the most bytes to read at once. The rest of a frame may be read at once, as it is one message
    /// at most.
    fn read_limit(&self, config: &ConnectionConfig) -> usize {
        let is_limited = config.limits_texts && self.is_open();
        if is_limited { LIMITED_READ.max(self.decoder.rest_of_frame()) } else { usize::MAX }
    }

    /// Reads once, at most the size of `buffer`, and handles what was read. Texts to be published go to
    /// `on_text`.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        config: &ConnectionConfig,
        stats: &mut Stats,
        on_text: impl FnMut(ClientId, &str),
    ) -> (Outcome, Readable) {
        if self.is_backpressured() {
            return (Outcome::Unchanged, Readable::No);
        }
        let limit = self.read_limit(config);
        if let Some(mut input) = self.early_input.take() {
            let mut first = Vec::from(input.split_to(limit.min(input.len())));
            self.set_early_input(*input);
            return (self.receive(&mut first, config, stats, on_text), Readable::Maybe);
        }
        let limit = limit.min(buffer.len());
        let buffer = &mut buffer[..limit];
        match self.stream.read(buffer) {
            Ok(0) => (self.end_input(), Readable::No),
            Ok(n) => {
                // A short read has emptied the socket (epoll(7), question 9), unless the end of the stream
                // follows.
                let readable =
                    if n < buffer.len() && !self.peer_closed { Readable::No } else { Readable::Maybe };
                (self.receive(&mut buffer[..n], config, stats, on_text), readable)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => (Outcome::Unchanged, Readable::No),
            Err(error) if error.kind() == ErrorKind::Interrupted => (Outcome::Unchanged, Readable::Maybe),
            Err(_) => (self.disconnected(), Readable::No),
        }
    }

    /// Returns true if the client must read its echoes before it is read from again. TCP then slows it down.
    fn is_backpressured(&self) -> bool {
        self.form.input() == Input::Echoed && self.is_open() && self.has_output()
    }

    /// Handles bytes from the client.
    fn receive(
        &mut self,
        input: &mut [u8],
        config: &ConnectionConfig,
        stats: &mut Stats,
        mut on_text: impl FnMut(ClientId, &str),
    ) -> Outcome {
        self.ping.answered(self.has_output());
        stats.bytes_received += input.len() as u64;
        let is_discarded = matches!(self.state, State::CloseReceived | State::Lingering);
        let kind = self.form.input();
        if is_discarded || kind == Input::Discarded {
            return Outcome::Unchanged;
        }
        let limits =
            DecoderLimits { max_message_size: config.max_message_size, accept_binary: kind == Input::Echoed };
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut outcome = Outcome::Unchanged;
        let result = decoder.decode(input, limits, |event| {
            stats.messages_received += u64::from(matches!(event, Event::Text(_) | Event::Binary(_)));
            outcome = outcome.max(self.handle(event, config, &mut on_text));
            match (outcome, self.state) {
                (Outcome::Ended(_), _) | (_, State::CloseReceived) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        self.decoder = decoder;
        match result {
            Ok(()) => outcome,
            Err(reason) => outcome.max(self.reject(reason)),
        }
    }

    fn handle(
        &mut self,
        event: Event<'_>,
        config: &ConnectionConfig,
        on_text: &mut impl FnMut(ClientId, &str),
    ) -> Outcome {
        match (self.state, event) {
            // There is nothing queued when a read begins, and one read brings little.
            (State::Open, Event::Text(text)) if self.form.input() == Input::Echoed => {
                self.send_unbounded(Frame::text(text).bytes())
            }
            (State::Open, Event::Text(text)) => {
                if config.publishes_texts {
                    on_text(self.id, text);
                }
                Outcome::Unchanged
            }
            (State::Open, Event::Binary(payload)) => self.send_unbounded(Frame::binary(payload).bytes()),
            (State::Open, Event::Ping(payload)) => self.send_pong(&Frame::pong(payload)),
            (State::Open, Event::Close(status)) => {
                self.state = State::CloseReceived;
                self.send_last(Frame::close(status.map(|(code, _)| (code, ""))).bytes().clone())
            }
            (State::CloseSent, Event::Close(_)) => Outcome::Ended(Disconnect::ByServer),
            // After our close frame, only the client's counts (RFC 6455 §5.5.1).
            _ => Outcome::Unchanged,
        }
    }

    /// Closes the connection after input that is not acceptable.
    fn reject(&mut self, reason: CloseReason) -> Outcome {
        if self.state == State::CloseSent {
            return self.disconnected();
        }
        let told = if reason == CloseReason::UnsupportedData {
            let error = Outgoing::Error {
                code: "unsupported_data",
                message: "Binary messages are not accepted; send text.",
            };
            self.send_unbounded(&self.form.encode(&error))
        } else {
            Outcome::Unchanged
        };
        told.max(self.close(reason, None))
    }
}
