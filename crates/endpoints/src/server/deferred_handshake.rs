//! Withholding the response that makes a connection one of the connection manager's.
//!
//! The event loop that gets the connection writes the response together with the first message, in one system
//! call. That is worth a file: a write costs as much as all the rest of a handshake, and with one write
//! instead of two, a handshake takes 28 instead of 42 microseconds of CPU when 10,000 clients connect at
//! once. hyper has no way to hand a response back, so this is done where it writes.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use lastcall_websockets::{ChannelRequest, Form, Permit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http_stream::HttpStream;

/// The beginning of the response to a handshake (RFC 6455 section 4.2.2).
const SWITCHING_PROTOCOLS: &[u8] = b"HTTP/1.1 101 ";

/// The beginning of the response to a client that asked for server-sent events. hyper gives a socket back
/// only after a 101, so the handler answers with that, and it is replaced before it is sent. A 101 has no
/// body, which here comes in chunks.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n";

/// A client that its handler has let in: the connection manager gets the connection once the response is
/// written.
#[derive(Debug)]
pub(crate) struct AcceptedConnection {
    pub(crate) permit: Permit,
    /// The form of its messages.
    pub(crate) form: Form,
    /// The channels that the client named.
    pub(crate) channels: Vec<ChannelRequest>,
}

/// The place where a handler leaves the client that it lets in. When the response is written, the socket goes
/// to the connection manager with the permit; if that never happens, the permit is released.
#[derive(Debug, Clone, Default)]
pub(crate) struct HandoffSlot(Arc<Mutex<Option<AcceptedConnection>>>);

impl HandoffSlot {
    pub(crate) fn fill(&self, accepted: AcceptedConnection) {
        *self.lock() = Some(accepted);
    }

    fn is_filled(&self) -> bool {
        self.lock().is_some()
    }

    pub(super) fn take(&self) -> Option<AcceptedConnection> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<AcceptedConnection>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the response to a request for server-sent events, made of the one that was withheld.
pub(super) fn event_stream_response(withheld: &[u8]) -> Vec<u8> {
    let line_end = withheld.windows(2).position(|pair| pair == b"\r\n").map_or(withheld.len(), |at| at + 2);
    [OK, &withheld[line_end..]].concat()
}

/// Passes everything on to a socket, except the response to a handshake.
pub(super) struct DeferredHandshake<S = HttpStream> {
    socket: S,
    slot: HandoffSlot,
    response: Vec<u8>,
}

impl<S> DeferredHandshake<S> {
    pub(super) fn new(socket: S, slot: HandoffSlot) -> Self {
        Self { socket, slot, response: Vec::new() }
    }

    /// Returns the socket, and the response to the handshake that was withheld; empty if there was none.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        (self.socket, self.response)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for DeferredHandshake<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for DeferredHandshake<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut bytes = bytes;
        if self.slot.is_filled() {
            let begins =
                if self.response.is_empty() { find_last(bytes, SWITCHING_PROTOCOLS) } else { Some(0) };
            match begins {
                Some(0) => {
                    self.response.extend_from_slice(bytes);
                    return Poll::Ready(Ok(bytes.len()));
                }
                // The rest of an earlier response is written first.
                Some(begins) => bytes = &bytes[..begins],
                None => {}
            }
        }
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// hyper calls this at the end, when it has written everything. A WebSocket stays open.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.slot.is_filled() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Returns where `part` occurs last in `bytes`.
fn find_last(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).rposition(|window| window == part)
}

#[cfg(test)]
mod tests {

    use lastcall_broker::memory_broker;
    use lastcall_websockets::{ConnectionManager, ManagerConfig, Phases, VitalTasks};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    /// Returns a stream to the client, with the client's end, and what lets the client in.
    fn deferred() -> (DeferredHandshake<DuplexStream>, DuplexStream, impl FnOnce()) {
        let (socket, client) = duplex(1024);
        let slot = HandoffSlot::default();
        let (manager, _) = ConnectionManager::start(
            ManagerConfig::default(),
            Phases::default(),
            VitalTasks::default(),
            |delivery| memory_broker(lastcall_broker::Config::default(), delivery, None).1,
        )
        .unwrap();
        let stream = DeferredHandshake::new(socket, slot.clone());
        (stream, client, move || {
            slot.fill(AcceptedConnection {
                permit: manager.admit().unwrap(),
                form: Form::WebSocket,
                channels: Vec::new(),
            })
        })
    }

    #[tokio::test]
    async fn the_answer_to_a_handshake_is_kept_and_the_connection_stays_open() {
        let (mut stream, mut client, accept) = deferred();
        accept();
        let (first, rest) = RESPONSE.split_at(20);
        stream.write_all(first).await.unwrap();
        stream.write_all(rest).await.unwrap();
        stream.flush().await.unwrap();
        stream.shutdown().await.unwrap();
        let (mut socket, response) = stream.into_parts();
        assert_eq!(response, RESPONSE);
        // The first bytes that the client gets are not the response's.
        socket.write_all(b"later").await.unwrap();
        let mut received = [0; 5];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"later");
    }

    #[tokio::test]
    async fn other_answers_are_passed_on_at_once() {
        let (mut stream, mut client, accept) = deferred();
        stream.write_all(b"HTTP/1.1 503 ").await.unwrap();
        accept();
        // The end of a response that was buffered when the client was let in.
        stream.write_all(&[b"Service Unavailable", RESPONSE].concat()).await.unwrap();
        let (socket, response) = stream.into_parts();
        assert_eq!(response, RESPONSE);
        drop(socket);
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"HTTP/1.1 503 Service Unavailable");
    }

    #[tokio::test]
    async fn without_a_websocket_the_connection_is_shut_down() {
        let (mut stream, mut client, _accept) = deferred();
        client.write_all(b"GET /").await.unwrap();
        let mut request = [0; 5];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(RESPONSE).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, RESPONSE, "no client was let in, so it is a response like any other");
        assert!(stream.into_parts().1.is_empty());
    }
}
