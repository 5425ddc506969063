//! A stream of messages between two processes, with descriptors. Each call has a deadline.
//!
//! On the wire, a message is a header of two numbers, highest byte first (the length of the body in bytes,
//! and the number of descriptors), and the body.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// Most descriptors in one message: the kernel's SCM_MAX_FD is 253 (unix(7)).
pub(crate) const MAX_DESCRIPTORS: usize = 250;

/// Longest message, in bytes: far more than a batch of clients may take up. A header that says more is not
/// read on.
const MAX_MESSAGE: usize = 2 << 30;

/// Bytes before each message: its length and the number of its descriptors.
pub const HEADER_LEN: usize = 8;

/// An error between two processes.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The other side is gone.
    #[error("the other process is gone")]
    Gone,
    /// It did not read or write in time.
    #[error("the other process did not respond in time")]
    TimedOut,
    /// There was no room for the descriptors.
    #[error("no file descriptors are left to receive sockets with")]
    NoDescriptors,
    /// The bytes that were received are no message of this protocol.
    #[error("a message was not understood")]
    NotUnderstood(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another error of the system.
    #[error("the connection to the other process failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Self::Gone,
            _ => Self::Io(error),
        }
    }
}

/// A connection to another process. Blocks, but never past a deadline.
#[derive(Debug)]
pub struct FramedStream {
    stream: UnixStream,
}

impl FramedStream {
    /// Uses this connection, and has it block.
    ///
    /// # Errors
    /// When it cannot be made to block.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        Ok(Self { stream })
    }

    /// Makes two connected ends. Neither is inherited by a program that this process starts.
    ///
    /// # Errors
    /// When the system gives no sockets.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours)?, theirs.into()))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the other side is gone, or does not read it by `deadline`.
    pub fn send(&self, message: &impl Serialize, deadline: Instant) -> Result<(), StreamError> {
        self.send_with(message, &[], deadline)
    }

    /// Sends a message with descriptors: at most [`MAX_DESCRIPTORS`].
    pub(crate) fn send_with(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), StreamError> {
        let body = body(message)?;
        let header = header(body.len(), descriptors.len());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(StreamError::Io(io::Error::other("too many descriptors in one message")));
        }
        self.stream.set_write_timeout(Some(remaining(deadline)?))?;
        // The descriptors travel with the header, which is sent whole or not at all.
        let sent =
            retry(|| sendmsg(&self.stream, &[IoSlice::new(&header)], &mut ancillary, SendFlags::NOSIGNAL))?;
        if sent != HEADER_LEN {
            return Err(StreamError::Io(io::Error::other("only a part of a header was sent")));
        }
        let mut rest = body.as_slice();
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(remaining(deadline)?))?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(StreamError::Gone),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// When the other side is gone, sends no whole message by `deadline`, or one that is not understood.
    pub fn receive<T: DeserializeOwned>(&self, deadline: Instant) -> Result<T, StreamError> {
        self.receive_with(deadline).map(|(message, _)| message)
    }

    /// Waits for a message and its descriptors.
    pub(crate) fn receive_with<T: DeserializeOwned>(
        &self,
        deadline: Instant,
    ) -> Result<(T, Vec<OwnedFd>), StreamError> {
        let mut header = [0; HEADER_LEN];
        let mut descriptors = Vec::new();
        let mut got = 0;
        while got < HEADER_LEN {
            self.stream.set_read_timeout(Some(remaining(deadline)?))?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let message = retry(|| {
                let mut parts = [IoSliceMut::new(&mut header[got..])];
                // Close-on-exec from the start: another thread may start a process meanwhile.
                recvmsg(&self.stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            })?;
            for part in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = part {
                    descriptors.extend(received);
                }
            }
            if message.bytes == 0 {
                return Err(StreamError::Gone);
            }
            if message.flags.contains(ReturnFlags::CTRUNC) {
                // recvmsg(2): the kernel drops the descriptors for which there was no room.
                return Err(StreamError::NoDescriptors);
            }
            got += message.bytes;
        }
        let (length, count) = read_header(header);
        if length > MAX_MESSAGE || count != descriptors.len() {
            let what =
                format!("{length} bytes with {count} descriptors, of which {} came", descriptors.len());
            return Err(StreamError::NotUnderstood(what.into()));
        }
        let mut body = Vec::new();
        let mut piece = vec![0; length.min(256 << 10)];
        while body.len() < length {
            self.stream.set_read_timeout(Some(remaining(deadline)?))?;
            let wanted = piece.len().min(length - body.len());
            match (&self.stream).read(&mut piece[..wanted]) {
                Ok(0) => return Err(StreamError::Gone),
                Ok(read) => body.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((decode(&body)?, descriptors))
    }
}

/// Returns a message without descriptors as [`FramedStream::send`] writes it, for a caller that writes it
/// itself.
///
/// # Errors
/// When the message cannot be encoded.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, StreamError> {
    let body = body(message)?;
    Ok([&header(body.len(), 0)[..], &body].concat())
}

/// Returns the length of the body that follows this header, for a caller that reads it itself.
///
/// # Errors
/// When the body is longer than `max` bytes, or comes with descriptors.
pub fn body_len(header: [u8; HEADER_LEN], max: usize) -> Result<usize, StreamError> {
    match read_header(header) {
        (length, 0) if length <= max => Ok(length),
        (length, count) => {
            Err(StreamError::NotUnderstood(format!("{length} bytes with {count} descriptors").into()))
        }
    }
}

/// Returns the message in this body.
///
/// # Errors
/// When it is no message of this type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, StreamError> {
    rmp_serde::from_slice(body).map_err(|error| StreamError::NotUnderstood(error.into()))
}

fn body(message: &impl Serialize) -> Result<Vec<u8>, StreamError> {
    rmp_serde::to_vec_named(message).map_err(|error| StreamError::NotUnderstood(error.into()))
}

fn header(length: usize, descriptors: usize) -> [u8; HEADER_LEN] {
    // Both fit: a message is bounded by MAX_MESSAGE when it is read, and descriptors by MAX_DESCRIPTORS.
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    header[4..].copy_from_slice(&u32::try_from(descriptors).unwrap_or(u32::MAX).to_be_bytes());
    header
}

fn read_header([a, b, c, d, e, f, g, h]: [u8; HEADER_LEN]) -> (usize, usize) {
    (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]) as usize)
}

/// Returns the time until `deadline`.
fn remaining(deadline: Instant) -> Result<Duration, StreamError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(StreamError::TimedOut) } else { Ok(left) }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, StreamError> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(|error| io::Error::from(error).into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs::File, os::fd::AsFd, thread};

    use super::*;

    /// Returns a deadline that a test never reaches.
    pub(crate) fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// Two connected ends.
    pub(crate) fn pair() -> (FramedStream, FramedStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (FramedStream::new(a).unwrap(), FramedStream::new(b).unwrap())
    }

    /// Sends no more: the other end reads what was sent, and then the end.
    pub(crate) fn end(stream: &FramedStream) {
        stream.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    #[test]
    fn a_message_that_is_cut_at_any_byte_is_no_message() {
        let message = encode(&"a message").unwrap();
        for sent in 0..message.len() {
            let (a, b) = pair();
            (&a.stream).write_all(&message[..sent]).unwrap();
            end(&a);
            assert!(matches!(b.receive::<String>(soon()), Err(StreamError::Gone)), "{sent}");
        }
    }

    #[test]
    fn messages_arrive_whole_in_order_with_their_descriptors() {
        let (a, b) = pair();
        let large = "x".repeat(3 << 20);
        let sender = thread::spawn({
            let large = large.clone();
            move || {
                let files: Vec<_> = (0..MAX_DESCRIPTORS).map(|_| File::open("/dev/null").unwrap()).collect();
                let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                a.send_with(&1, &descriptors, soon()).unwrap();
                a.send(&large, soon()).unwrap();
                a.send_with(&2, &descriptors[..1], soon()).unwrap();
            }
        });
        let (number, descriptors): (i32, _) = b.receive_with(soon()).unwrap();
        assert_eq!((number, descriptors.len()), (1, MAX_DESCRIPTORS));
        assert!(rustix::io::fcntl_getfd(&descriptors[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(b.receive::<String>(soon()).unwrap(), large);
        let (number, descriptors): (i32, _) = b.receive_with(soon()).unwrap();
        assert_eq!((number, descriptors.len()), (2, 1));
        sender.join().unwrap();
        assert!(matches!(b.receive::<i32>(soon()), Err(StreamError::Gone)));
    }

    #[test]
    fn each_call_ends_at_its_deadline() {
        let (a, b) = pair();
        let near = || Instant::now() + Duration::from_millis(20);
        assert!(matches!(b.receive::<i32>(near()), Err(StreamError::TimedOut)));
        // More than any socket buffer takes.
        assert!(matches!(a.send(&"x".repeat(64 << 20), near()), Err(StreamError::TimedOut)));
        assert!(matches!(a.send(&1, Instant::now()), Err(StreamError::TimedOut)));
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        let (a, b) = pair();
        (&a.stream).write_all(&[0xFF; HEADER_LEN]).unwrap();
        assert!(matches!(b.receive::<i32>(soon()), Err(StreamError::NotUnderstood(_))));
        let (a, b) = pair();
        a.send(&"a text", soon()).unwrap();
        assert!(matches!(b.receive::<i32>(soon()), Err(StreamError::NotUnderstood(_))));
        let (a, b) = pair();
        drop(a);
        assert!(matches!(b.send(&1, soon()), Err(StreamError::Gone)));
    }
}
