//! The socket of an HTTP connection, which does not wait for ever for a client to read.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tracing::debug;

use super::exchange::Exchange;

/// The time for which a client may take nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of bytes, about, that the kernel takes for a client before they can be sent (TCP_NOTSENT_LOWAT,
/// tcp(7)). A bound on the whole send buffer would switch off the kernel's own adjustment of it for good, and
/// slow down the WebSocket that the connection may become.
const MAX_UNSENT: u32 = 32 << 10;

/// The value of that option that stands for none.
const UNLIMITED: u32 = 0;

/// A connection on which no request is being answered: the client has not sent any yet, or all of them were
/// answered.
#[derive(Debug)]
pub struct IdleConnection {
    /// Its socket.
    pub stream: TcpStream,
    /// The beginning of a request, if one was read.
    pub read: Bytes,
}

impl From<TcpStream> for IdleConnection {
    fn from(stream: TcpStream) -> Self {
        Self { stream, read: Bytes::new() }
    }
}

/// A socket that hyper reads and writes.
pub(super) struct HttpStream {
    stream: TcpStream,
    /// Bytes that were read before hyper had the socket.
    read: Bytes,
    exchange: Exchange,
    /// True once the unsent bytes are limited. Most connections become WebSockets, and never need it.
    limited: bool,
    /// Fires when the client has taken nothing for too long; `None` while it takes all that there is.
    write_timeout: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

impl HttpStream {
    pub(super) fn new(connection: IdleConnection, exchange: Exchange) -> Self {
        let IdleConnection { stream, read } = connection;
        Self { stream, read, exchange, limited: false, write_timeout: None, stalled: false }
    }

    /// Returns the connection. `read` is what hyper has read of its next request.
    pub(super) fn into_idle(self, read: Bytes) -> IdleConnection {
        let read = match (read.is_empty(), self.read.is_empty()) {
            (_, true) => read,
            (true, false) => self.read,
            // hyper had no room for the rest.
            (false, false) => [read, self.read].concat().into(),
        };
        IdleConnection { stream: self.stream, read }
    }

    /// Returns the socket, on which HTTP has ended.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Returns the socket, for the WebSocket protocol.
    pub(super) fn into_websocket(self) -> TcpStream {
        limit_unsent(&self.stream, UNLIMITED);
        self.stream
    }

    /// Returns true if the client did not take its response. If so, closing the socket discards the rest of
    /// it.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled
    }

    /// Waits for a client that takes nothing, until the timeout.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let write_timeout = self.write_timeout.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        if write_timeout.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.stalled = true;
        // Otherwise the kernel keeps what is in its buffer, and tries for minutes to send it.
        if let Err(error) = self.stream.set_zero_linger() {
            debug!(%error, "what a client did not read cannot be discarded");
        }
        let taken_nothing = format!("the client took nothing of its response for {WRITE_TIMEOUT:?}");
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, taken_nothing)))
    }
}

fn limit_unsent(stream: &TcpStream, bytes: u32) {
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(bytes) {
        debug!(%error, "the limit of unsent bytes of a connection stays what it was");
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let some = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..some]);
        self.read.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !std::mem::replace(&mut self.limited, true) {
            limit_unsent(&self.stream, MAX_UNSENT);
        }
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.poll_stalled(context),
            written => {
                self.write_timeout = None;
                written
            }
        }
    }

    /// hyper calls this when it has written everything.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.exchange.on_flush();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
