//! What the HTTP server leaves to the event loop.

use bytes::Bytes;

/// What is left of a client's handshake.
#[derive(Debug, Default)]
pub struct Handshake {
    /// The HTTP response, if it is not sent yet: it goes out in one write with the first message.
    pub response: Vec<u8>,
    /// What the client sent right behind its request.
    pub early_input: Bytes,
}
