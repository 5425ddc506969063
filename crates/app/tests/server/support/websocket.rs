//! Handshakes and frames of a client, byte for byte (RFC 6455), for what no WebSocket library sends.

use std::fmt::Display;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{Server, soon};

/// The key and its answer of RFC 6455 section 1.3.
pub(crate) const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub(crate) const VERSION: &str = "Sec-WebSocket-Version: 13";

/// The header lines of a handshake, without `Host`.
pub(crate) const HANDSHAKE: [&str; 4] = ["Connection: Upgrade", "Upgrade: websocket", VERSION, KEY];

/// A close frame with code 1000, masked.
pub(crate) const CLOSE: &[u8] = b"\x88\x82\0\0\0\0\x03\xE8";

/// Returns a handshake for this host.
pub(crate) fn handshake(host: impl Display) -> String {
    handshake_with(host, &[])
}

/// Returns a handshake with these header lines too.
pub(crate) fn handshake_with(host: impl Display, lines: &[&str]) -> String {
    let lines = [lines, &HANDSHAKE].concat().join("\r\n");
    format!("GET /ws HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n\r\n")
}

/// Returns a masked frame of a payload below 126 bytes. The mask is zeros, which change nothing.
pub(crate) fn masked_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[first_byte, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

/// Returns a masked text frame.
pub(crate) fn text_frame(text: impl AsRef<[u8]>) -> Vec<u8> {
    masked_frame(0x81, text.as_ref())
}

/// The length of the server's frame that `bytes` begin with, and of its head. `None` if its head is not
/// complete.
pub(crate) fn frame_length(bytes: &[u8]) -> Option<(usize, usize)> {
    Some(match bytes.get(1)? {
        126 => (4 + usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => (10 + u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize, 10),
        length => (2 + usize::from(*length), 2),
    })
}

/// Reads one frame of the server: its first byte and its payload.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut frame = Vec::new();
    let (length, head) = loop {
        frame.push(soon("a frame", stream.read_u8()).await.unwrap());
        if let Some(lengths) = frame_length(&frame) {
            break lengths;
        }
    };
    let mut payload = vec![0; length - head];
    soon("a payload", stream.read_exact(&mut payload)).await.unwrap();
    (frame[0], payload)
}

/// Reads until what came ends with `close`, the end of a close frame.
pub(crate) async fn read_to_close(stream: &mut TcpStream, close: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(close) {
        let read = soon("a close frame", stream.read_buf(&mut got)).await.unwrap();
        assert_ne!(read, 0, "the end came before the close: {:?}", &got[got.len().saturating_sub(40)..]);
    }
    got
}

impl Server {
    /// A client that has completed its handshake and then is just a TCP connection, with a small receive
    /// buffer.
    pub(crate) async fn raw_client(&self) -> TcpStream {
        self.raw_client_with_buffer(4096).await
    }

    /// The same, with a receive buffer of this size in bytes.
    pub(crate) async fn raw_client_with_buffer(&self, receive_buffer: u32) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(receive_buffer).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        stream.write_all(handshake(self.address).as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the answer to a handshake", stream.read_u8()).await.unwrap());
        }
        assert!(String::from_utf8_lossy(&head).contains(ACCEPT));
        stream
    }
}
