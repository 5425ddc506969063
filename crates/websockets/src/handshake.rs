//! What the HTTP server leaves to the event loop.

use bytes::Bytes;

/// What is left of a client's handshake.
#[derive(Debug, Default)]
pub struct Handshake {
    /// The HTTP answer, if it is not sent yet: it goes out in one write with the first message.
    pub answer: Vec<u8>,
    /// What the client sent right behind its request.
    pub already_read: Bytes,
}
