//! The writing half of a connection: messages to the client, as far as its socket takes them.
//!
//! A message is sent in two steps, [`Connection::prepare`] and [`Connection::complete`]. Between them is the
//! write to the socket, so the writes to many sockets can be made together.

use std::io::{self, ErrorKind, IoSlice};

use bytes::Bytes;

use super::{
    Connection, ConnectionConfig, Outcome, State, Stream,
    outbox::Round,
    replay::{Replay, ReplayForm},
};
use crate::{admission::Disconnect, codec::Frame, encoded::PublicationRun};

/// The output that a socket took.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) bytes: u32,
    /// Messages that the client has missed, which are counted when they are encoded to be written next.
    pub(crate) replayed_messages: u32,
}

/// The next step to send messages.
#[must_use]
#[derive(Debug)]
pub(crate) enum Prepared<'a> {
    /// They are to be written to the socket, and the result is for [`Connection::complete`].
    Write(Write<'a>),
    /// None: they are queued, or not sent at all.
    Done(Outcome),
}

/// Whole messages that a socket is to get next.
#[derive(Debug)]
pub(crate) struct Write<'a> {
    pub(crate) messages: &'a Bytes,
    round: Round,
}

impl<S: Stream> Connection<S> {
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

    /// Writes the response to the handshake, and the first messages after it, in one system call.
    pub(crate) fn send_handshake(&mut self, response: Vec<u8>, messages: &Bytes) -> Outcome {
        let (response, mut all) = (response.len(), response);
        all.extend_from_slice(messages);
        match self.write(&all) {
            Ok(written) if written >= response => {
                self.complete(Write { messages, round: Round::default() }, Ok(written - response))
            }
            // A new socket buffers several KiB. If it does not, the client is gone or never read an earlier
            // response.
            _ => self.disconnected(),
        }
    }

    /// Sends whole messages, or queues what the socket does not take. If too much was in the queue before
    /// this round of the loop, it sends nothing and returns [`Outcome::TooSlow`].
    pub(crate) fn send(&mut self, messages: &Bytes, round: Round, config: &ConnectionConfig) -> Outcome {
        let prepared = self.prepare(messages, round, config);
        self.write_prepared(prepared)
    }

    /// Sends whole messages like [`Connection::send`], however much is queued. For the few that every client
    /// must get.
    pub(crate) fn send_unbounded(&mut self, messages: &Bytes) -> Outcome {
        let prepared = self.prepare_unbounded(messages, Round::default());
        self.write_prepared(prepared)
    }

    fn write_prepared(&mut self, prepared: Prepared<'_>) -> Outcome {
        match prepared {
            Prepared::Write(write) => {
                let result = self.write(write.messages);
                self.complete(write, result)
            }
            Prepared::Done(outcome) => outcome,
        }
    }

    /// Prepares to send whole messages, as [`Connection::send`] does. Until [`Connection::complete`], nothing
    /// else may be sent.
    pub(crate) fn prepare<'a>(
        &mut self,
        messages: &'a Bytes,
        round: Round,
        config: &ConnectionConfig,
    ) -> Prepared<'a> {
        if self.is_open() && self.outbox.is_over(config.max_queue, round) {
            return Prepared::Done(Outcome::TooSlow);
        }
        self.prepare_unbounded(messages, round)
    }

    fn prepare_unbounded<'a>(&mut self, messages: &'a Bytes, round: Round) -> Prepared<'a> {
        if !self.is_open() || messages.is_empty() {
            return Prepared::Done(Outcome::Unchanged);
        }
        if self.has_output() {
            self.outbox.push(messages.clone(), 0, round);
            return Prepared::Done(Outcome::Unchanged);
        }
        Prepared::Write(Write { messages, round })
    }

    /// Takes the result of a write to the socket that [`Connection::prepare`] has asked for, and queues what
    /// is left.
    pub(crate) fn complete(&mut self, write: Write<'_>, result: io::Result<usize>) -> Outcome {
        let Write { messages, round } = write;
        let written = match result {
            Ok(written) => written,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => return self.disconnected(),
        };
        self.count_sent(written);
        if written < messages.len() {
            self.outbox.push(messages.clone(), written, round);
        }
        Outcome::Unchanged
    }

    /// Sends a pong. Of those that the socket does not take, the last one stands for all.
    pub(super) fn send_pong(&mut self, frame: &Frame) -> Outcome {
        let frame = frame.bytes();
        if self.has_output() {
            self.outbox.push_pong(frame);
            return Outcome::Unchanged;
        }
        match self.write(frame) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.outbox.push_pong(frame);
                Outcome::Unchanged
            }
            result => self.complete(Write { messages: frame, round: Round::default() }, result),
        }
    }

    /// Writes to the socket, and returns how many bytes it took.
    ///
    /// # Errors
    /// Those of the system, but `Interrupted`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match self.stream.write_vectored(slices) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Sends publications to a client of server-sent events whose ids have these positions before and after
    /// that of each publication. Each such client has bytes of its own, so what its socket does not take is
    /// encoded when its turn comes, but for the rest of a chunk. Like [`Connection::send`], it may return
    /// [`Outcome::TooSlow`]. Returns also about how many bytes it has put together.
    pub(crate) fn send_among(
        &mut self,
        run: &PublicationRun,
        [before, after]: [&str; 2],
        round: Round,
        config: &ConnectionConfig,
    ) -> (Outcome, usize) {
        if !self.is_open() {
            return (Outcome::Unchanged, 0);
        }
        if self.outbox.is_over(config.max_queue, round) {
            return (Outcome::TooSlow, 0);
        }
        let (mut sent, mut encoded) = (0, 0);
        let mut takes_more = !self.has_output();
        while takes_more && sent < run.publications.len() {
            let chunks = run.chunks_among(sent, [before, after], self.form);
            let slices: Vec<_> = chunks.iter().map(|(chunk, _)| IoSlice::new(chunk)).collect();
            let mut written = match self.write_vectored(&slices) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return (self.disconnected(), encoded),
            };
            self.count_sent(written);
            for (chunk, publications) in chunks {
                encoded += chunk.len();
                takes_more = written >= chunk.len();
                if written > 0 {
                    sent += publications;
                }
                if !takes_more {
                    if written > 0 {
                        self.outbox.push(chunk, written, round);
                    }
                    break;
                }
                written -= chunk.len();
            }
        }
        if sent < run.publications.len() {
            let form = ReplayForm::new(self.form, before.to_owned(), after.to_owned());
            for replay in Replay::of_run(run, sent, &form) {
                encoded += replay.own_bytes();
                self.outbox.push_replay(replay, round);
            }
        }
        (Outcome::Unchanged, encoded)
    }

    /// Sends what the client has missed, in pages, as its socket takes them. What is sent later comes after
    /// it.
    pub(crate) fn replay(&mut self, replay: Replay) -> Outcome {
        if !self.is_open() {
            return Outcome::Unchanged;
        }
        let is_first = !self.has_output();
        self.outbox.push_replay(replay, Round::default());
        if is_first { self.flush() } else { Outcome::Unchanged }
    }

    /// Returns true if the client has not got all yet of what it has missed before it subscribed.
    pub(crate) fn has_missed(&self) -> bool {
        self.outbox.has_missed()
    }

    /// Returns true if publications wait to be encoded.
    pub(crate) fn has_replay(&self) -> bool {
        self.outbox.has_replay()
    }

    /// Returns true if what comes last are publications that wait to be encoded.
    pub(crate) fn ends_with_replay(&self) -> bool {
        self.outbox.ends_with_replay()
    }

    /// Returns true if a replay holds publications that the history has dropped.
    pub(crate) fn pins_history(&self) -> bool {
        self.outbox.pins_history()
    }

    /// Returns how many bytes the client has acknowledged, wrapping around.
    ///
    /// # Errors
    /// When the socket has failed, which the poll reports, too.
    pub(crate) fn acknowledged(&self) -> io::Result<u32> {
        Ok(self.stream.tcp_progress()?.acknowledged)
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
}
