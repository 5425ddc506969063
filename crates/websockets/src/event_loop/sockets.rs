//! The poll of one event loop, which says what its sockets are ready for.

use std::{io, time::Duration};

use mio::{Events, Interest, Poll, Token, Waker, net::TcpStream};
use socket2::SockRef;
use tracing::debug;

use crate::{connection::Connection, connections::Slot};

/// About how many bytes the kernel takes for a client before they can be sent (TCP_NOTSENT_LOWAT, tcp(7)).
/// What is sent and not acknowledged does not count, so a distant client is not slowed down.
const MAX_UNSENT: u32 = 128 << 10;

/// The token of the waker. That of a socket is its slot.
pub(super) const WAKE: Token = Token(usize::MAX);

/// The poll of one event loop.
#[derive(Debug)]
pub(crate) struct Sockets {
    poll: Poll,
}

impl Sockets {
    /// Creates a poll, and what wakes it.
    ///
    /// # Errors
    /// When the system provides no epoll instance or no eventfd.
    pub(crate) fn new() -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        Ok((Self { poll }, waker))
    }

    /// Waits until a socket is ready for something, the loop is woken, or the time is over.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub(super) fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        self.poll.poll(events, timeout)
    }

    /// Adds the socket of a connection that gets this slot. The poll reports at once what there is to be
    /// read. Returns true if it reports when the socket can be written.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn add(&self, connection: &mut Connection<TcpStream>, slot: usize) -> io::Result<bool> {
        // Most clients always take what they are sent: writability is only watched while output is queued.
        let write_interest = connection.has_output();
        let interest =
            if write_interest { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.poll.registry().register(&mut connection.stream, Token(slot), interest)?;
        // Otherwise a client that does not read makes the kernel keep megabytes of what cannot be sent.
        if let Err(error) = SockRef::from(&connection.stream).set_tcp_notsent_lowat(MAX_UNSENT) {
            debug!(client = %connection.id, %error, "the limit of unsent bytes of a connection stays what it was");
        }
        Ok(write_interest)
    }

    /// Has the poll report when the socket can be written again, if output is queued.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn watch_output(&self, slot: usize, entry: &mut Slot) -> io::Result<()> {
        if entry.write_interest || !entry.connection.has_output() {
            return Ok(());
        }
        entry.write_interest = true;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().reregister(&mut entry.connection.stream, Token(slot), interest)
    }
}
