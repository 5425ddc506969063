//! The bytes that a client's socket would not take yet. A client that keeps up has none, and costs one
//! pointer.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Write},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::next_boundary;

/// Chunks handed to the kernel in one call.
const MOST_SLICES: usize = 16;

/// What waits for one client, in order. Its chunks are shared with other clients, not copied.
///
/// Plain data: it can be written down and read by another process, of another version too.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outbox {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written")]
struct Queue {
    /// Each holds whole frames; the first may have been written in part.
    chunks: VecDeque<Bytes>,
    /// Bytes of the first chunk that are written.
    written: usize,
    /// Bytes that wait.
    waiting: usize,
}

/// A queue as another process wrote it down. What contradicts itself is refused: then nothing is handed over, and
/// that process goes on.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Written {
    chunks: VecDeque<Bytes>,
    written: usize,
}

/// A queue that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("a queue of output has {written} of the {first} bytes written that its first chunk has")]
struct Contradiction {
    written: usize,
    first: usize,
}

impl TryFrom<Written> for Queue {
    type Error = Contradiction;

    fn try_from(Written { chunks, written }: Written) -> Result<Self, Contradiction> {
        let first = chunks.front().map_or(0, Bytes::len);
        if written >= first {
            return Err(Contradiction { written, first });
        }
        let all: usize = chunks.iter().map(Bytes::len).sum();
        Ok(Self { waiting: all - written, chunks, written })
    }
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.waiting)
    }

    /// Adds whole frames, of which the socket took `written` bytes already (only when nothing waits).
    pub(crate) fn push(&mut self, frames: Bytes, written: usize) {
        let queue = self.queue.get_or_insert_default();
        debug_assert!(written == 0 || queue.chunks.is_empty());
        queue.written = queue.written.max(written);
        queue.waiting += frames.len() - written;
        queue.chunks.push_back(frames);
    }

    /// Writes until nothing waits or `socket` takes no more.
    pub(crate) fn flush(&mut self, mut socket: impl Write) -> io::Result<()> {
        while let Some(queue) = &mut self.queue {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let mut skip = queue.written;
            let chunks = queue.chunks.len().min(MOST_SLICES);
            for (slice, chunk) in slices.iter_mut().zip(&queue.chunks) {
                *slice = IoSlice::new(&chunk[skip..]);
                skip = 0;
            }
            match socket.write_vectored(&slices[..chunks]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    if queue.wrote(n) {
                        self.queue = None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Drops what waits, except the rest of a frame that is on its way: a close frame may follow it.
    pub(crate) fn truncate_to_partial_frame(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        let rest = queue.chunks.front().map(|chunk| {
            // A chunk from another process may not hold whole frames: then all of it is kept.
            let end = next_boundary(chunk, queue.written).clamp(queue.written, chunk.len());
            chunk.slice(queue.written..end)
        });
        self.queue = None;
        if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
            self.push(rest, 0);
        }
    }
}

impl Queue {
    /// Notes that `n` bytes went; whether nothing is left.
    fn wrote(&mut self, n: usize) -> bool {
        self.waiting -= n;
        self.written += n;
        while let Some(chunk) = self.chunks.front() {
            if self.written < chunk.len() {
                return false;
            }
            self.written -= chunk.len();
            self.chunks.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Frame;

    /// Takes `room` bytes, then would block.
    struct Socket {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= n;
            self.taken.extend(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn text(n: usize) -> Bytes {
        Frame::text(&n.to_string().repeat(n)).bytes().clone()
    }

    #[test]
    fn all_goes_in_order_whatever_the_socket_takes_at_a_time() {
        let expected: Vec<u8> = (1..40).flat_map(|n| text(n).to_vec()).collect();
        for room in 1..60 {
            let mut outbox = Outbox::default();
            let mut socket = Socket { taken: Vec::new(), room: 0 };
            for n in 1..40 {
                outbox.push(text(n), 0);
            }
            assert_eq!(outbox.len(), expected.len());
            while !outbox.is_empty() {
                socket.room = room;
                outbox.flush(&mut socket).unwrap();
                assert_eq!(outbox.len() + socket.taken.len(), expected.len());
            }
            assert_eq!(socket.taken, expected, "room for {room} at a time");
        }
    }

    #[test]
    fn a_started_frame_is_finished_and_the_rest_dropped() {
        for room in 0..40 {
            let mut outbox = Outbox::default();
            let mut socket = Socket { taken: Vec::new(), room };
            let chunk: Vec<u8> = [text(5), text(7)].concat();
            outbox.push(chunk.into(), 0);
            outbox.push(text(9), 0);
            outbox.flush(&mut socket).unwrap();
            outbox.truncate_to_partial_frame();
            socket.room = 1000;
            outbox.flush(&mut socket).unwrap();
            let ends = [0, 7, 16, 27];
            assert!(outbox.is_empty());
            assert_eq!(socket.taken.len(), *ends.iter().find(|end| **end >= room.min(27)).unwrap());
        }
    }
}
