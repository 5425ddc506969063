//! The bytes that a client's socket has not taken yet. An empty outbox costs one pointer.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Write},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

use super::replay::Replay;
use crate::wire_form::WireForm;

/// Most chunks in one call of writev(2).
const MAX_SLICES: usize = 16;

/// Bytes after which a flush lets other connections have their turn.
const TURN: usize = 128 << 10;

/// What is queued for one client, in order. Its chunks are shared with other clients, not copied.
///
/// Plain data: it is serialized for the new process, which may be another build. The serialized names stay.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outbox {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
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
    /// Whether the last flush ended with its turn: the socket may take more.
    turn_ended: bool,
}

impl Serialize for Queue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut replayed = self.replayed;
        let chunks: Vec<Bytes> = self
            .chunks
            .iter()
            .map(|chunk| match chunk {
                Chunk::Bytes(bytes) => bytes.clone(),
                // The new process has the publications in its history, too, but may have to drop some before they are written.
                Chunk::Replay(replay) => {
                    let rest = replay.rest();
                    replayed += rest.len();
                    rest
                }
            })
            .collect();
        let mut queue = serializer.serialize_struct("Queue", 4)?;
        queue.serialize_field("chunks", &chunks)?;
        queue.serialize_field("written", &self.written)?;
        queue.serialize_field("waiting", &self.waiting)?;
        queue.serialize_field("replayed", &replayed)?;
        queue.end()
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Chunk {
    /// Whole messages.
    Bytes(Bytes),
    /// Messages that are encoded once they are the next ones to be written.
    Replay(Box<Replay>),
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
        let chunks = chunks.into_iter().filter(|chunk| !chunk.is_empty()).map(Chunk::Bytes).collect();
        let waiting = all - written;
        Ok(Self { waiting, chunks, written, replayed: replayed.min(waiting), turn_ended: false })
    }
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Returns the number of queued bytes that count towards `max_queue`. Replays count from when their pages are encoded, and
    /// what was a replay in the old process does not count.
    pub(crate) fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.waiting - queue.replayed)
    }

    /// Returns about how many bytes the outbox has when it is serialized.
    pub(crate) fn serialized_size(&self) -> usize {
        let chunks = self.queue.iter().flat_map(|queue| &queue.chunks);
        chunks
            .map(|chunk| match chunk {
                Chunk::Bytes(bytes) => bytes.len(),
                Chunk::Replay(replay) => replay.size(),
            })
            .sum()
    }

    /// Queues whole frames. The socket has taken their first `written` bytes already, which is only possible when
    /// nothing else is queued.
    pub(crate) fn push(&mut self, frames: Bytes, written: usize) {
        let queue = self.queue.get_or_insert_default();
        debug_assert!(written == 0 || queue.chunks.is_empty());
        queue.written = queue.written.max(written);
        queue.waiting += frames.len() - written;
        queue.chunks.push_back(Chunk::Bytes(frames));
    }

    /// Queues a replay.
    pub(crate) fn push_replay(&mut self, replay: Replay) {
        self.queue.get_or_insert_default().chunks.push_back(Chunk::Replay(Box::new(replay)));
    }

    /// Returns true if the last flush ended with its turn. No event of the poll says when to go on.
    pub(crate) fn turn_ended(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.turn_ended)
    }

    /// Writes until nothing is queued, `socket` would block, or the turn is over. Returns how many bytes were written.
    ///
    /// # Errors
    /// Those of `socket`, except `WouldBlock` and `Interrupted`.
    pub(crate) fn flush(&mut self, mut socket: impl Write) -> io::Result<usize> {
        let mut written = 0;
        while let Some(queue) = &mut self.queue {
            queue.turn_ended = written >= TURN;
            if queue.turn_ended {
                break;
            }
            queue.encode_next();
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut skip = queue.written;
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(&queue.chunks) {
                let Chunk::Bytes(bytes) = chunk else { break };
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
                    written += n;
                    if queue.advance(n) {
                        self.queue = None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Drops what is queued, except the rest of a message that is written in part, so that another one may follow.
    pub(crate) fn truncate_to_partial_message(&mut self, form: WireForm) {
        let Some(queue) = &mut self.queue else { return };
        let rest = match queue.chunks.front() {
            Some(Chunk::Bytes(chunk)) => {
                // A chunk from another process may not consist of whole messages: then all of it is kept.
                let end = form.next_boundary(chunk, queue.written).clamp(queue.written, chunk.len());
                chunk.slice(queue.written..end)
            }
            Some(Chunk::Replay(_)) | None => Bytes::new(),
        };
        self.queue = None;
        if !rest.is_empty() {
            self.push(rest, 0);
        }
    }
}

impl Queue {
    /// Records that `n` bytes were written. Returns true if nothing is left.
    fn advance(&mut self, n: usize) -> bool {
        self.waiting -= n;
        self.replayed = self.replayed.min(self.waiting);
        self.written += n;
        while let Some(chunk) = self.chunks.front() {
            let Chunk::Bytes(bytes) = chunk else { return false };
            if self.written < bytes.len() {
                return false;
            }
            self.written -= bytes.len();
            self.chunks.pop_front();
        }
        true
    }

    /// Encodes the next page of a replay, if it is to be written next.
    fn encode_next(&mut self) {
        while let Some(Chunk::Replay(replay)) = self.chunks.front_mut() {
            if let Some(page) = replay.next_page() {
                self.waiting += page.len();
                self.chunks.push_front(Chunk::Bytes(page));
                break;
            }
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec::Frame, connection::memory_stream::MemoryStream};

    fn text(n: usize) -> Bytes {
        Frame::text(n.to_string().repeat(n)).bytes().clone()
    }

    #[test]
    fn the_queue_is_written_in_order_whatever_the_socket_takes_at_a_time() {
        let expected: Vec<u8> = (1..40).flat_map(|n| text(n).to_vec()).collect();
        for capacity in 1..60 {
            let mut outbox = Outbox::default();
            let mut socket = MemoryStream::default();
            for n in 1..40 {
                outbox.push(text(n), 0);
            }
            assert_eq!(outbox.len(), expected.len());
            while !outbox.is_empty() {
                socket.capacity = capacity;
                outbox.flush(&mut socket).unwrap();
                assert_eq!(outbox.len() + socket.written.len(), expected.len());
            }
            assert_eq!(socket.written, expected, "{capacity} bytes at a time");
        }
    }

    #[test]
    fn a_partial_frame_is_completed_and_the_rest_dropped() {
        for capacity in 0..40 {
            let mut outbox = Outbox::default();
            let mut socket = MemoryStream { capacity, ..MemoryStream::default() };
            let chunk: Vec<u8> = [text(5), text(7)].concat();
            outbox.push(chunk.into(), 0);
            outbox.push(text(9), 0);
            outbox.flush(&mut socket).unwrap();
            outbox.truncate_to_partial_message(WireForm::WebSocket);
            socket.capacity = 1000;
            outbox.flush(&mut socket).unwrap();
            let ends = [0, 7, 16, 27];
            assert!(outbox.is_empty());
            assert_eq!(socket.written.len(), *ends.iter().find(|end| **end >= capacity.min(27)).unwrap());
        }
    }

    #[test]
    fn a_socket_that_takes_nothing_without_blocking_is_an_error() {
        struct Zero;
        impl Write for Zero {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Ok(0)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut outbox = Outbox::default();
        outbox.push(text(1), 0);
        assert_eq!(outbox.flush(Zero).unwrap_err().kind(), ErrorKind::WriteZero);
    }
}
