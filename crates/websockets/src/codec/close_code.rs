//! Why a connection ends: the close codes of RFC 6455 §7.4 and the IANA registry that this server sends.

use serde::{Deserialize, Serialize};

/// A close code and its reason, in plain words, as they go to the client.
///
/// What a client should make of each stands in `docs/protocol.md`, "Close codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// 1002: the client broke the protocol. How, another process does not learn: the client has been told.
    ProtocolError(#[serde(skip)] &'static str),
    /// 1003: binary where text is expected.
    UnsupportedData,
    /// 1007: a text that is not UTF-8.
    InvalidUtf8,
    /// 1008: more waits for the client than `max_queue` allows.
    SlowConsumer,
    /// 1008: no pong in time.
    Idle,
    /// 1009: a message over `max_message_size`.
    MessageTooBig,
    /// 1012: the server is shutting down.
    ServiceRestart,
}

impl CloseReason {
    /// The status code of the close frame.
    pub fn code(self) -> u16 {
        match self {
            Self::ProtocolError(_) => 1002,
            Self::UnsupportedData => 1003,
            Self::InvalidUtf8 => 1007,
            Self::SlowConsumer | Self::Idle => 1008,
            Self::MessageTooBig => 1009,
            Self::ServiceRestart => 1012,
        }
    }

    /// A name for programs, such as a label of a metric.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProtocolError(_) => "protocol_error",
            Self::UnsupportedData => "unsupported_data",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::SlowConsumer => "slow_consumer",
            Self::Idle => "idle",
            Self::MessageTooBig => "message_too_big",
            Self::ServiceRestart => "service_restart",
        }
    }

    /// The reason in the close frame: words for people, at most 123 bytes (RFC 6455 §5.5).
    pub fn reason(self) -> &'static str {
        match self {
            Self::ProtocolError(what) => what,
            Self::UnsupportedData => "only text is accepted",
            Self::InvalidUtf8 => "text that is not UTF-8",
            Self::SlowConsumer => "slow consumer",
            Self::Idle => "idle",
            Self::MessageTooBig => "message too big",
            Self::ServiceRestart => "service restart",
        }
    }

    /// Whether what the client sends from here on can no longer be understood.
    pub(crate) fn breaks_the_stream(self) -> bool {
        match self {
            Self::ProtocolError(_) | Self::UnsupportedData | Self::InvalidUtf8 | Self::MessageTooBig => true,
            Self::SlowConsumer | Self::Idle | Self::ServiceRestart => false,
        }
    }
}

/// Whether an endpoint may put `code` into a close frame (RFC 6455 §7.4 and the codes registered since).
pub(crate) fn is_valid_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
