//! A socket under hyper that keeps back the answer to a WebSocket handshake.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::server::Upgrade;

/// How the answer to a handshake begins (RFC 6455 section 4.2.2).
const SWITCHING: &[u8] = b"HTTP/1.1 101 ";

/// Passes everything on except the answer to a handshake: that goes out in one write with the first message, by
/// the client's event loop. On a loopback or a fast network, a write costs as much as all the rest of a handshake.
pub(crate) struct Socket {
    stream: TcpStream,
    upgrade: Upgrade,
    kept: Vec<u8>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, upgrade: Upgrade) -> Self {
        Self { stream, upgrade, kept: Vec::new() }
    }

    /// The socket, and what was kept back.
    pub(crate) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.kept)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // It begins the bytes unless an earlier answer is still before it: then it goes out with that one.
        if self.upgrade.is_confirmed() && (!self.kept.is_empty() || bytes.starts_with(SWITCHING)) {
            self.kept.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
