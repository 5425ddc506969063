//! What the event loop must finish of a WebSocket handshake that the HTTP server has accepted.

use bytes::Bytes;

/// The rest of a handshake (RFC 6455 §4.2).
#[derive(Debug, Default)]
pub struct Handshake {
    /// The HTTP response 101 as bytes, if it is not sent yet: it is written together with the first message.
    pub response: Vec<u8>,
    /// What the client sent right after its request: frames that arrived before the response.
    pub early_input: Bytes,
}
