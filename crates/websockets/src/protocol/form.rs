//! How a connection gets its messages.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ServerMessage, chunk, event_stream};
use crate::codec::{self, Frame};

/// How a connection gets its messages. The serialized names are part of the handover and stay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// As text messages of a WebSocket (RFC 6455).
    #[default]
    #[serde(rename = "web_socket")]
    WebSocket,
    /// As server-sent events (HTML Standard, section 9.2), in chunks: the client sends nothing.
    #[serde(rename = "chunked_event_stream")]
    EventStream,
    /// The same without chunks. A response that began so in a process of an older build goes on so.
    #[serde(rename = "event_stream")]
    UnchunkedEventStream,
}

impl Form {
    /// Returns true for server-sent events.
    pub(crate) fn is_event_stream(self) -> bool {
        self != Self::WebSocket
    }

    /// Encodes a message without an id.
    pub(crate) fn encode(self, message: &ServerMessage<'_>) -> Bytes {
        match self {
            Self::WebSocket => message.frame().bytes().clone(),
            Self::EventStream | Self::UnchunkedEventStream => {
                self.of_chunk(event_stream::encode(message, None))
            }
        }
    }

    /// Returns a chunk as it is, or only its content where there are no chunks.
    pub(crate) fn of_chunk(self, chunk: Bytes) -> Bytes {
        match self {
            Self::UnchunkedEventStream => chunk::content(&chunk),
            Self::WebSocket | Self::EventStream => chunk,
        }
    }

    /// Returns what shows a client that the connection still works.
    pub(crate) fn ping(self) -> Bytes {
        match self {
            Self::WebSocket => Frame::ping().bytes().clone(),
            Self::EventStream | Self::UnchunkedEventStream => self.of_chunk(event_stream::COMMENT),
        }
    }

    /// Returns the start of the first whole message (or chunk of them) at or after byte `at` of messages that begin with a
    /// whole one. If there is none, or the bytes are no such messages, returns their end.
    pub(crate) fn next_boundary(self, messages: &[u8], at: usize) -> usize {
        match self {
            Self::WebSocket => codec::next_boundary(messages, at),
            Self::EventStream => chunk::next_boundary(messages, at),
            Self::UnchunkedEventStream => event_stream::next_boundary(messages, at),
        }
    }
}
