//! The rest of a handshake that the HTTP server has accepted, which the event loop must finish.

use bytes::Bytes;
use lastcall_broker::Since;
use lastcall_core::ChannelName;

use crate::protocol::Form;

/// The most channels of one connection.
pub const MAX_CHANNELS: usize = 128;

/// The rest of a handshake (RFC 6455 §4.2).
#[derive(Debug, Default)]
pub struct Handshake {
    /// The HTTP response as bytes, if it is not sent yet: it is written together with the first message.
    pub response: Vec<u8>,
    /// Frames that the client sent right after its request, and that arrived before the response.
    pub early_input: Bytes,
    /// The form in which the client gets its messages.
    pub form: Form,
    /// The channels that the client named, each once, at most [`MAX_CHANNELS`]. None: `broadcast`, without a
    /// message that says so; not for [`Form::EventStream`], whose clients come back with the id of an event.
    pub channels: Vec<ChannelRequest>,
}

/// A channel that a client names when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRequest {
    /// Its name.
    pub name: ChannelName,
    /// From where on the client wants its publications.
    pub since: Since,
}
