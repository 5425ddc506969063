//! What a client sends, and what is made of it.

use std::{
    io::{self, ErrorKind, Read},
    ops::ControlFlow,
};

use bytes::Bytes;
use lastcall_core::settings::ClientMessages;

use super::{Connection, ConnectionConfig, Outcome, Readable, State};
use crate::{
    admission::Disconnect,
    client_id::ClientId,
    codec::{CloseReason, Event, Frame},
    protocol::ServerMessage,
    stats::Stats,
};

/// Most bytes of one read from a client whose texts go to everyone, when there is a bound on these: what comes of one
/// read must be little. In the worst case, which is empty texts, each 6 bytes become 150.
const BOUNDED_READ: usize = 512;

impl Connection {
    /// Takes what the client sent behind its handshake, to be read before what its socket has.
    pub(crate) fn set_early_input(&mut self, input: Bytes) {
        self.early_input = Some(input).filter(|input| !input.is_empty()).map(Box::new);
    }

    pub(crate) fn take_early_input(&mut self) -> Option<Bytes> {
        self.early_input.take().map(|input| *input)
    }

    /// Whether something of the client, its end included, is there to be read.
    pub(crate) fn has_input(&self) -> bool {
        if self.early_input.is_some() {
            return true;
        }
        let nothing = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
        !self.stream.peek(&mut [0]).is_err_and(|error| nothing(&error))
    }

    /// Most bytes to be read at once. The rest of a frame is one message at most.
    fn most_to_read(&self, rules: &ConnectionConfig) -> usize {
        let bounded = rules.texts_are_bounded && self.is_open();
        if bounded { BOUNDED_READ.max(self.decoder.rest_of_frame()) } else { usize::MAX }
    }

    /// Reads once, up to the size of `buffer`. Texts to be passed on go to `on_text`.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        rules: &ConnectionConfig,
        stats: &mut Stats,
        on_text: impl FnMut(ClientId, &str),
    ) -> (Outcome, Readable) {
        if self.is_backpressured(rules) {
            return (Outcome::Unchanged, Readable::No);
        }
        let most = self.most_to_read(rules);
        if let Some(mut input) = self.take_early_input() {
            let mut first = Vec::from(input.split_to(most.min(input.len())));
            self.set_early_input(input);
            return (self.receive(&mut first, rules, stats, on_text), Readable::Maybe);
        }
        let most = most.min(buffer.len());
        let buffer = &mut buffer[..most];
        match self.stream.read(buffer) {
            Ok(0) => (self.disconnected(), Readable::No),
            Ok(n) => {
                // A short read has emptied the socket (epoll(7), question 9), unless the end follows.
                let readable =
                    if n < buffer.len() && !self.peer_closed { Readable::No } else { Readable::Maybe };
                (self.receive(&mut buffer[..n], rules, stats, on_text), readable)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => (Outcome::Unchanged, Readable::No),
            Err(error) if error.kind() == ErrorKind::Interrupted => (Outcome::Unchanged, Readable::Maybe),
            Err(_) => (self.disconnected(), Readable::No),
        }
    }

    /// Who does not read its echoes is not read from: TCP then holds it back.
    fn is_backpressured(&self, rules: &ConnectionConfig) -> bool {
        rules.is_echo() && self.state == State::Open && self.has_output()
    }

    /// Handles bytes that the client sent.
    pub(crate) fn receive(
        &mut self,
        input: &mut [u8],
        rules: &ConnectionConfig,
        stats: &mut Stats,
        mut on_text: impl FnMut(ClientId, &str),
    ) -> Outcome {
        self.ping.answered();
        stats.bytes_received += input.len() as u64;
        if matches!(self.state, State::CloseReceived | State::Lingering) {
            return Outcome::Unchanged;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut outcome = Outcome::Unchanged;
        let result = decoder.decode(input, rules.decoder_limits(), |event| {
            stats.messages_received += u64::from(matches!(event, Event::Text(_) | Event::Binary(_)));
            outcome = outcome.max(self.handle(event, rules, &mut on_text));
            match (outcome, self.state) {
                (Outcome::Ended(_), _) | (_, State::CloseReceived) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        self.decoder = decoder;
        match result {
            Ok(()) => outcome,
            Err(reason) => outcome.max(self.reject(reason, rules)),
        }
    }

    fn handle(
        &mut self,
        event: Event<'_>,
        rules: &ConnectionConfig,
        on_text: &mut impl FnMut(ClientId, &str),
    ) -> Outcome {
        match (self.state, event) {
            (State::Open, Event::Text(text)) => match rules.client_messages {
                ClientMessages::Broadcast => {
                    on_text(self.id, text);
                    Outcome::Unchanged
                }
                ClientMessages::Ignore => Outcome::Unchanged,
                ClientMessages::Echo => self.send(Frame::text(text).bytes(), rules),
            },
            (State::Open, Event::Binary(payload)) => self.send(Frame::binary(payload).bytes(), rules),
            (State::Open, Event::Ping(payload)) => self.send(Frame::pong(payload).bytes(), rules),
            (State::Open, Event::Close(status)) => {
                self.state = State::CloseReceived;
                self.send_close_frame(&Frame::close(status.map(|(code, _)| (code, ""))))
            }
            (State::CloseSent, Event::Close(_)) => Outcome::Ended(Disconnect::ByServer),
            // After a close frame, nothing counts but the other side's (RFC 6455 §5.5.1).
            _ => Outcome::Unchanged,
        }
    }

    /// What came cannot be accepted.
    fn reject(&mut self, reason: CloseReason, rules: &ConnectionConfig) -> Outcome {
        if self.state == State::CloseSent {
            return self.disconnected();
        }
        let told = if reason == CloseReason::UnsupportedData {
            let error = ServerMessage::Error {
                code: "unsupported_data",
                message: "Binary messages are not accepted; send text.",
            };
            self.send(error.frame().bytes(), rules)
        } else {
            Outcome::Unchanged
        };
        told.max(self.close(reason, None))
    }
}
