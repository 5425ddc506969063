//! Forms: how a connection's messages are encoded, and what becomes of those of its client.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Outgoing, chunk, event_stream, plain};
use crate::codec::{self, CloseReason, Frame};

/// The encoding of a connection's messages. The serialized names are part of the handover and stay.
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
    /// A WebSocket on which the client gets back what it sends, and nothing else. Another process decides
    /// anew, by its settings.
    #[serde(rename = "web_socket", skip_deserializing)]
    Echo,
}

/// The use that is made of the messages of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Texts are published, if the settings say so. Nothing else is accepted.
    Texts,
    /// The client gets them back.
    Echoed,
    /// There are none: what arrives is discarded.
    Discarded,
}

impl Form {
    /// Encodes a message.
    pub(crate) fn encode(self, message: &Outgoing<'_>) -> Bytes {
        self.encode_among(message, ["", ""])
    }

    /// Encodes a message for a client with several channels, whose events have ids of several positions:
    /// these come before and after that of the message.
    pub(crate) fn encode_among(self, message: &Outgoing<'_>, positions: [&str; 2]) -> Bytes {
        match self {
            Self::WebSocket => plain::frame(message).bytes().clone(),
            Self::EventStream | Self::UnchunkedEventStream => {
                self.of_chunk(event_stream::encode(message, positions))
            }
            Self::Echo => Bytes::new(),
        }
    }

    /// Returns what asks a client whether it is still there, and shows it that the connection still works.
    /// `None`: it is not asked.
    pub(crate) fn ping(self) -> Option<Bytes> {
        match self {
            Self::WebSocket => Some(Frame::ping().bytes().clone()),
            Self::EventStream | Self::UnchunkedEventStream => Some(self.of_chunk(event_stream::COMMENT)),
            Self::Echo => None,
        }
    }

    /// Returns the last bytes of a connection that the server closes.
    pub(crate) fn close(self, reason: CloseReason) -> Bytes {
        match self {
            Self::WebSocket | Self::Echo => {
                Frame::close(Some((reason.code(), reason.reason()))).bytes().clone()
            }
            Self::EventStream => chunk::LAST_CHUNK,
            // The end of the response is the close.
            Self::UnchunkedEventStream => Bytes::new(),
        }
    }

    /// Returns what becomes of the messages of a client.
    pub(crate) fn input(self) -> Input {
        match self {
            Self::WebSocket => Input::Texts,
            Self::EventStream | Self::UnchunkedEventStream => Input::Discarded,
            Self::Echo => Input::Echoed,
        }
    }

    /// Returns true if the client gets what is published.
    pub(crate) fn receives_publications(self) -> bool {
        self != Self::Echo
    }

    /// Returns true for server-sent events: they have ids, and a client answers by reading alone.
    pub(crate) fn is_event_stream(self) -> bool {
        matches!(self, Self::EventStream | Self::UnchunkedEventStream)
    }

    /// Returns a chunk as it is, or only its content where there are no chunks.
    pub(crate) fn of_chunk(self, chunk: Bytes) -> Bytes {
        match self {
            Self::UnchunkedEventStream => chunk::content(&chunk),
            Self::WebSocket | Self::EventStream | Self::Echo => chunk,
        }
    }

    /// Returns the start of the first whole message (or chunk of them) at or after byte `at` of messages that
    /// begin with a whole one. If there is none, or the bytes are no such messages, returns their end.
    pub(crate) fn next_boundary(self, messages: &[u8], at: usize) -> usize {
        match self {
            Self::WebSocket | Self::Echo => codec::next_boundary(messages, at),
            Self::EventStream => chunk::next_boundary(messages, at),
            Self::UnchunkedEventStream => event_stream::next_boundary(messages, at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_its_name_in_another_process_which_decides_about_echo_by_its_own_settings() {
        for (form, name, expected) in [
            (Form::WebSocket, "web_socket", Form::WebSocket),
            (Form::EventStream, "chunked_event_stream", Form::EventStream),
            (Form::UnchunkedEventStream, "event_stream", Form::UnchunkedEventStream),
            (Form::Echo, "web_socket", Form::WebSocket),
        ] {
            let bytes = rmp_serde::to_vec_named(&form).unwrap();
            assert_eq!(bytes, rmp_serde::to_vec_named(name).unwrap());
            assert_eq!(rmp_serde::from_slice::<Form>(&bytes).unwrap(), expected);
        }
    }
}
