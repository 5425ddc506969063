//! What a client sends, and what is made of it.

use std::{
    io::{self, ErrorKind, Read},
    ops::ControlFlow,
};

use bytes::Bytes;
use lastcall_core::settings::ClientMessages;

use super::{Connection, Life, Outcome, Readable, Rules};
use crate::{
    admission::Disconnect,
    client_id::ClientId,
    codec::{CloseReason, Event, Frame},
    protocol::ServerMessage,
    stats::Figures,
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
    fn most_to_read(&self, rules: &Rules) -> usize {
        let bounded = rules.texts_are_bounded && self.is_open();
        if bounded { BOUNDED_READ.max(self.decoder.rest_of_frame()) } else { usize::MAX }
    }

    /// Reads once, up to the size of `buffer`. Texts to be passed on go to `on_text`.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        rules: &Rules,
        figures: &mut Figures,
        on_text: impl FnMut(ClientId, &str),
    ) -> (Outcome, Readable) {
        if self.is_held_back(rules) {
            return (Outcome::Unchanged, Readable::No);
        }
        let most = self.most_to_read(rules);
        if let Some(mut input) = self.take_early_input() {
            let mut first = Vec::from(input.split_to(most.min(input.len())));
            self.set_early_input(input);
            return (self.receive(&mut first, rules, figures, on_text), Readable::Maybe);
        }
        let most = most.min(buffer.len());
        let buffer = &mut buffer[..most];
        match self.stream.read(buffer) {
            Ok(0) => (self.hung_up(), Readable::No),
            Ok(n) => {
                // A short read has emptied the socket (epoll(7), question 9), unless the end follows.
                let readable =
                    if n < buffer.len() && !self.half_closed { Readable::No } else { Readable::Maybe };
                (self.receive(&mut buffer[..n], rules, figures, on_text), readable)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => (Outcome::Unchanged, Readable::No),
            Err(error) if error.kind() == ErrorKind::Interrupted => (Outcome::Unchanged, Readable::Maybe),
            Err(_) => (self.hung_up(), Readable::No),
        }
    }

    /// Who does not read its echoes is not read from: TCP then holds it back.
    fn is_held_back(&self, rules: &Rules) -> bool {
        rules.is_echo() && self.life == Life::Open && self.has_output()
    }

    /// Handles bytes that the client sent.
    pub(crate) fn receive(
        &mut self,
        input: &mut [u8],
        rules: &Rules,
        figures: &mut Figures,
        mut on_text: impl FnMut(ClientId, &str),
    ) -> Outcome {
        self.ping.answered();
        figures.bytes_received += input.len() as u64;
        if matches!(self.life, Life::Answering | Life::Deaf) {
            return Outcome::Unchanged;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut outcome = Outcome::Unchanged;
        let result = decoder.decode(input, rules.accept(), |event| {
            figures.messages_received += u64::from(matches!(event, Event::Text(_) | Event::Binary(_)));
            outcome = outcome.max(self.handle(event, rules, &mut on_text));
            match (outcome, self.life) {
                (Outcome::Over(_), _) | (_, Life::Answering) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        self.decoder = decoder;
        match result {
            Ok(()) => outcome,
            Err(reason) => outcome.max(self.refuse(reason, rules)),
        }
    }

    fn handle(
        &mut self,
        event: Event<'_>,
        rules: &Rules,
        on_text: &mut impl FnMut(ClientId, &str),
    ) -> Outcome {
        match (self.life, event) {
            (Life::Open, Event::Text(text)) => match rules.client_messages {
                ClientMessages::Broadcast => {
                    on_text(self.id, text);
                    Outcome::Unchanged
                }
                ClientMessages::Ignore => Outcome::Unchanged,
                ClientMessages::Echo => self.send(Frame::text(text).bytes(), rules),
            },
            (Life::Open, Event::Binary(payload)) => self.send(Frame::binary(payload).bytes(), rules),
            (Life::Open, Event::Ping(payload)) => self.send(Frame::pong(payload).bytes(), rules),
            (Life::Open, Event::Close(status)) => {
                self.life = Life::Answering;
                self.last_frame(&Frame::close(status.map(|(code, _)| (code, ""))))
            }
            (Life::CloseSent, Event::Close(_)) => Outcome::Over(Disconnect::ByServer),
            // After a close frame, nothing counts but the other side's (RFC 6455 §5.5.1).
            _ => Outcome::Unchanged,
        }
    }

    /// What came cannot be accepted.
    fn refuse(&mut self, reason: CloseReason, rules: &Rules) -> Outcome {
        if self.life == Life::CloseSent {
            return self.hung_up();
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
