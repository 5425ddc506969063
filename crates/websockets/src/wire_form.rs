//! How a connection gets its messages.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, Frame},
    protocol::{ServerMessage, event_stream},
};

/// How a connection gets its messages. The serialized names are part of the handover and stay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireForm {
    /// As text messages of a WebSocket (RFC 6455).
    #[default]
    WebSocket,
    /// As server-sent events (HTML Standard, section 9.2): the client sends nothing.
    EventStream,
}

impl WireForm {
    /// Encodes a message without an id.
    pub(crate) fn encode(self, message: &ServerMessage<'_>) -> Bytes {
        match self {
            Self::WebSocket => message.frame().bytes().clone(),
            Self::EventStream => event_stream::encode(message, None, None),
        }
    }

    /// Returns what shows a client that the connection still works.
    pub(crate) fn ping(self) -> Bytes {
        match self {
            Self::WebSocket => Frame::ping().bytes().clone(),
            Self::EventStream => event_stream::COMMENT,
        }
    }

    /// Returns the start of the first whole message at or after byte `at` of messages that begin with a whole one. If
    /// there is none, or the bytes are no such messages, returns their end.
    pub(crate) fn next_boundary(self, messages: &[u8], at: usize) -> usize {
        match self {
            Self::WebSocket => codec::next_boundary(messages, at),
            Self::EventStream => event_stream::next_boundary(messages, at),
        }
    }
}
