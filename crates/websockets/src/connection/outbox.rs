//! The bytes that a client's socket has not taken yet. An empty outbox costs one pointer.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Write},
};

use bytes::Bytes;
use serde::Deserialize;

use super::replay::{PAGE, Replay};
use crate::protocol::Form;

/// Most chunks in one call of writev(2).
const MAX_SLICES: usize = 16;

/// Bytes after which a flush lets other connections have their turn.
const TURN: usize = 128 << 10;

/// Messages up to this size are copied into one chunk: pings and comments. A publication is larger, and
/// shared by all of its clients, here and in a handover.
const SMALL: usize = 64;

/// Most bytes of a chunk that small messages are copied into.
const COPIED: usize = 16 << 10;

/// The cost of a chunk beside its bytes: its place in the queue, which may have room for twice as many, and
/// the header of its allocation.
const CHUNK_COST: usize = 2 * size_of::<Chunk>() + 32;

/// Chunks that a queue keeps room for.
const KEPT_CHUNKS: usize = 16;

/// The queue of one client, in order. Its chunks are shared with other clients, not copied; but for small
/// messages.
///
/// It can be read as builds up to version 3 of the handover have written it. Later ones hand over a
/// `QueueSnapshot`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Outbox {
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(try_from = "UncheckedQueue")]
struct Queue {
    /// Never empty; the first chunk may have been written in part.
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are written; fewer than it has.
    written: usize,
    /// Bytes of all chunks that are not written. A replay has none until they are encoded.
    waiting: usize,
    /// Of these, bytes of replays that the old process encoded. They do not count towards `max_queue`.
    replayed: usize,
    /// The cost of all chunks: the memory that they keep, and not only what is not written of it. What a client
    /// has missed before it subscribed does not count, nor do pages.
    cost: usize,
    /// The part of that which is of publications that are not encoded yet.
    live: usize,
    /// The cost of the chunks that were queued before the current round, as far as they are still there.
    cost_before_round: usize,
    round: Round,
    /// The index of a pong of which nothing is written: the next one takes its place.
    pong: Option<usize>,
    /// True if the last flush ended with its turn: the socket may take more.
    turn_ended: bool,
}

/// The number of what a loop takes from its mailbox without a chance for the clients to read it: at least all
/// publications of one call.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round(u32);

impl Round {
    /// Returns the one after this.
    pub(crate) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// The output that a flush has written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) bytes: usize,
    /// Messages that the client has missed, and that were encoded to be written next.
    pub(crate) replayed_messages: usize,
}

impl PartialEq for Queue {
    /// Returns true if the client gets the same bytes, in whatever chunks they are.
    fn eq(&self, other: &Self) -> bool {
        let bytes = |queue: &Self| {
            let mut all = Vec::with_capacity(queue.waiting);
            for chunk in &queue.chunks {
                match chunk {
                    Chunk::Replay(replay) => all.extend_from_slice(&replay.rest()),
                    _ => all.extend_from_slice(chunk.bytes().unwrap_or_default()),
                }
            }
            all
        };
        self.written == other.written && bytes(self) == bytes(other)
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Chunk {
    /// Whole messages, shared with other clients.
    Shared(Bytes),
    /// Whole messages, each of them small.
    Copied(Vec<u8>),
    /// Whole messages of the replay behind it.
    Page(Bytes),
    /// Messages that are encoded once they are the next ones to be written.
    Replay(Box<Replay>),
}

impl Chunk {
    /// Returns what can be written; `None`: it must be encoded first.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Shared(bytes) | Self::Page(bytes) => Some(bytes),
            Self::Copied(bytes) => Some(bytes),
            Self::Replay(_) => None,
        }
    }

    /// Returns the memory that counts towards `max_queue`.
    fn cost(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len() + CHUNK_COST,
            Self::Copied(bytes) => bytes.capacity() + CHUNK_COST,
            Self::Replay(replay) => replay.cost(),
            Self::Page(_) => 0,
        }
    }

    /// Returns the part of the cost which is of publications that are not encoded yet.
    fn live(&self) -> usize {
        match self {
            Self::Replay(replay) => replay.cost(),
            _ => 0,
        }
    }
}

/// A queue from another process. If it contradicts itself, the handover fails and the old process continues.
#[derive(Default, Deserialize)]
#[serde(default)]
struct UncheckedQueue {
    chunks: VecDeque<Bytes>,
    written: usize,
    replayed: usize,
}

/// The reason why a queue from another process is refused.
#[derive(Debug, thiserror::Error)]
#[error("invalid output queue: {written} bytes of the first chunk are written, which has {first}")]
struct InvalidQueue {
    written: usize,
    first: usize,
}

impl TryFrom<UncheckedQueue> for Queue {
    type Error = InvalidQueue;

    fn try_from(UncheckedQueue { chunks, written, replayed }: UncheckedQueue) -> Result<Self, InvalidQueue> {
        let first = chunks.front().map_or(0, Bytes::len);
        if written >= first {
            return Err(InvalidQueue { written, first });
        }
        let all: usize = chunks.iter().map(Bytes::len).sum();
        // A replay may have ended with an empty chunk.
        let chunks: VecDeque<_> =
            chunks.into_iter().filter(|chunk| !chunk.is_empty()).map(Chunk::Shared).collect();
        let waiting = all - written;
        let cost = chunks.iter().map(Chunk::cost).sum();
        Ok(Self { waiting, cost, chunks, written, replayed: replayed.min(waiting), ..Self::default() })
    }
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Returns the number of queued bytes. Of what is not encoded yet, the cost counts; of what the client has
    /// missed before it subscribed, nothing.
    pub(crate) fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.waiting + queue.live)
    }

    /// Begins a round, unless it has begun. Returns true if more than `max_queue` was queued before it: the
    /// client is too slow, as it has not taken that. What a round adds is not held against the client, which
    /// could not read any of it yet. Replays do not count.
    pub(crate) fn is_over(&mut self, max_queue: usize, round: Round) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        if queue.round != round {
            queue.round = round;
            queue.cost_before_round = queue.cost.saturating_sub(queue.replayed);
        }
        queue.cost_before_round > max_queue
    }

    /// Returns what is queued, in order. The first chunk may be written in part: see [`Outbox::progress`].
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.queue.iter().flat_map(|queue| &queue.chunks)
    }

    /// Returns how many bytes of the first chunk are written, and how many of all that wait are of replays that
    /// an old process encoded: like pages, they do not count towards `max_queue`.
    pub(crate) fn progress(&self) -> (usize, usize) {
        self.queue.as_ref().map_or((0, 0), |queue| (queue.written, queue.replayed))
    }

    /// Returns what was queued in another process.
    pub(crate) fn restore(chunks: Vec<Chunk>, written: usize, replayed: usize) -> Self {
        if chunks.is_empty() {
            return Self::default();
        }
        let bytes = chunks.iter().map(|chunk| chunk.bytes().map_or(0, <[u8]>::len));
        let waiting = bytes.sum::<usize>().saturating_sub(written);
        let cost = chunks.iter().map(Chunk::cost).sum();
        let live = chunks.iter().map(Chunk::live).sum();
        let (chunks, replayed) = (chunks.into(), replayed.min(waiting));
        Self {
            queue: Some(Box::new(Queue {
                chunks,
                written,
                waiting,
                replayed,
                cost,
                live,
                ..Queue::default()
            })),
        }
    }

    /// Queues whole frames. The socket has taken their first `written` bytes already, which is only possible
    /// when nothing else is queued.
    pub(crate) fn push(&mut self, frames: Bytes, written: usize, round: Round) {
        // A form may have no bytes for a message.
        if frames.is_empty() {
            return;
        }
        let queue = self.queue.get_or_insert_with(|| Box::new(Queue { round, ..Queue::default() }));
        debug_assert!(written == 0 || queue.chunks.is_empty());
        queue.written = queue.written.max(written);
        queue.waiting += frames.len() - written;
        if frames.len() > SMALL {
            queue.push_back(Chunk::Shared(frames));
        } else {
            queue.copy(&frames);
        }
    }

    /// Queues a pong. Of those that the socket has not taken, the last one stands for all (RFC 6455 §5.5.3),
    /// and comes before all other messages.
    pub(crate) fn push_pong(&mut self, frame: &[u8]) {
        let queue = self.queue.get_or_insert_default();
        let chunk = Chunk::Copied(frame.to_vec());
        queue.waiting += frame.len();
        queue.cost += chunk.cost();
        let index = match queue.pong {
            Some(index) => {
                let replaced = std::mem::replace(&mut queue.chunks[index], chunk);
                queue.waiting = queue.waiting.saturating_sub(replaced.bytes().map_or(0, <[u8]>::len));
                queue.remove_cost(&replaced);
                index
            }
            None => {
                let index = usize::from(queue.written > 0);
                queue.chunks.insert(index, chunk);
                index
            }
        };
        queue.pong = Some(index);
    }

    /// Queues publications that are encoded when their turn comes.
    pub(crate) fn push_replay(&mut self, replay: Replay, round: Round) {
        let queue = self.queue.get_or_insert_with(|| Box::new(Queue { round, ..Queue::default() }));
        queue.live += replay.cost();
        queue.push_back(Chunk::Replay(Box::new(replay)));
    }

    /// Returns true if the client has not got all yet of what it has missed before it subscribed.
    pub(crate) fn has_missed(&self) -> bool {
        self.replays().any(Replay::is_missed)
    }

    /// Returns true if publications wait to be encoded.
    pub(crate) fn has_replay(&self) -> bool {
        self.replays().next().is_some()
    }

    /// Returns true if what comes last are publications that wait to be encoded.
    pub(crate) fn ends_with_replay(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| matches!(queue.chunks.back(), Some(Chunk::Replay(_))))
    }

    /// Returns true if a replay holds publications that the history has dropped.
    pub(crate) fn pins_history(&self) -> bool {
        self.replays().any(Replay::pins_history)
    }

    fn replays(&self) -> impl Iterator<Item = &Replay> {
        let chunks = self.queue.iter().flat_map(|queue| &queue.chunks);
        chunks.filter_map(|chunk| match chunk {
            Chunk::Replay(replay) => Some(&**replay),
            _ => None,
        })
    }

    /// Returns true if the last flush ended with its turn. No event of the poll says when to go on.
    pub(crate) fn turn_ended(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.turn_ended)
    }

    /// Writes until nothing is queued, `socket` would block, or the turn is over. Returns what was written.
    ///
    /// # Errors
    /// Those of `socket`, except `WouldBlock` and `Interrupted`.
    pub(crate) fn flush(&mut self, mut socket: impl Write) -> io::Result<Flushed> {
        let mut flushed = Flushed::default();
        while let Some(queue) = &mut self.queue {
            queue.turn_ended = flushed.bytes >= TURN;
            if queue.turn_ended {
                break;
            }
            flushed.replayed_messages += queue.encode_next();
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut skip = queue.written;
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(&queue.chunks) {
                let Some(bytes) = chunk.bytes() else { break };
                *slice = IoSlice::new(&bytes[skip..]);
                skip = 0;
                used += 1;
            }
            if used == 0 {
                // The last replay has come to its end.
                self.queue = None;
                break;
            }
            match socket.write_vectored(&slices[..used]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    flushed.bytes += n;
                    if queue.advance(n) {
                        self.queue = None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(flushed)
    }

    /// Drops what is queued, except the rest of a message that is written in part, so that another one may
    /// follow.
    pub(crate) fn truncate_to_partial_message(&mut self, form: Form) {
        let Some(queue) = self.queue.take() else { return };
        // Nothing of the first message is written: then it goes, too.
        let Some(first) = queue.chunks.front().and_then(Chunk::bytes) else { return };
        // A chunk from another process may not consist of whole messages: then all of it is kept.
        let end = form.next_boundary(first, queue.written).clamp(queue.written, first.len());
        let rest = &first[queue.written..end];
        if !rest.is_empty() {
            self.push(Bytes::copy_from_slice(rest), 0, queue.round);
        }
    }
}

impl Queue {
    fn push_back(&mut self, chunk: Chunk) {
        self.cost += chunk.cost();
        self.chunks.push_back(chunk);
    }

    /// Adds a small message to the last chunk, if it is one of small messages, and not a pong that may be
    /// replaced.
    fn copy(&mut self, message: &[u8]) {
        let is_pong = self.pong.is_some_and(|pong| pong + 1 == self.chunks.len());
        if let Some(Chunk::Copied(last)) = self.chunks.back_mut().filter(|_| !is_pong)
            && last.len() + message.len() <= COPIED
        {
            let before = last.capacity();
            last.extend_from_slice(message);
            self.cost += last.capacity() - before;
        } else {
            self.push_back(Chunk::Copied(message.to_vec()));
        }
    }

    /// Subtracts what a chunk costs that is no longer there.
    fn remove_cost(&mut self, chunk: &Chunk) {
        self.cost = self.cost.saturating_sub(chunk.cost());
        self.cost_before_round = self.cost_before_round.saturating_sub(chunk.cost());
    }

    /// Subtracts what publications have cost that are encoded now.
    fn spend_live(&mut self, cost: usize) {
        self.live = self.live.saturating_sub(cost);
        self.cost = self.cost.saturating_sub(cost);
        self.cost_before_round = self.cost_before_round.saturating_sub(cost);
    }

    /// Records that `n` bytes were written. Returns true if nothing is left.
    fn advance(&mut self, n: usize) -> bool {
        self.waiting = self.waiting.saturating_sub(n);
        self.replayed = self.replayed.min(self.waiting);
        self.written += n;
        while let Some(len) = self.chunks.front().map(|chunk| chunk.bytes().map(<[u8]>::len)) {
            match len {
                Some(len) if self.written >= len => self.written -= len,
                _ => break,
            }
            if let Some(chunk) = self.chunks.pop_front() {
                self.remove_cost(&chunk);
            }
            self.pong = self.pong.and_then(|pong| pong.checked_sub(1));
        }
        // A pong of which a part is written has to be written whole.
        self.pong = self.pong.filter(|pong| *pong > 0 || self.written == 0);
        if self.chunks.len() * 4 < self.chunks.capacity() {
            self.chunks.shrink_to(KEPT_CHUNKS.max(self.chunks.len() * 2));
        }
        self.chunks.is_empty()
    }

    /// Encodes about a page of what is to be written next. Returns how many messages it has that the client
    /// has missed.
    fn encode_next(&mut self) -> usize {
        let (mut index, mut bytes, mut messages) = (0, 0, 0);
        while bytes < PAGE && index < MAX_SLICES {
            match self.chunks.get_mut(index) {
                Some(Chunk::Replay(replay)) => {
                    let before = replay.cost();
                    let Some((page, count)) = replay.next_page() else {
                        self.spend_live(before);
                        self.chunks.remove(index);
                        continue;
                    };
                    messages += if replay.is_missed() { count } else { 0 };
                    let after = replay.cost();
                    self.spend_live(before.saturating_sub(after));
                    self.waiting += page.len();
                    bytes += page.len();
                    self.chunks.insert(index, Chunk::Page(page));
                }
                Some(chunk) => bytes += chunk.bytes().map_or(0, <[u8]>::len),
                None => break,
            }
            index += 1;
        }
        messages
    }
}
