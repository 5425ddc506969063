//! Close codes (RFC 6455 §7.4 and the IANA registry): those that this server sends, and those that a client
//! may send.

use serde::{Deserialize, Serialize};

/// The reason for which the server closes a connection: a close code, and a text for people.
///
/// What a client should do after each is in `docs/protocol.md`, "Close codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CloseReason {
    /// 1002: the client violated the protocol. The text is not handed over to a new process; the client has
    /// received it already.
    ProtocolError(#[serde(skip)] &'static str),
    /// 1003: a binary message where text is expected.
    UnsupportedData,
    /// 1007: a text that is not UTF-8.
    InvalidUtf8,
    /// 1008: more bytes would be queued for the client than `max_queue` allows.
    SlowConsumer,
    /// 1008: no answer to a ping within `pong_timeout`.
    Idle,
    /// 1009: a message over `max_message_size`.
    MessageTooBig,
    /// 1012: the server is shutting down.
    ServiceRestart,
    /// 1013: the broker cannot work now.
    Unavailable,
}

impl CloseReason {
    /// Returns the status code of the close frame.
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::ProtocolError(_) => 1002,
            Self::UnsupportedData => 1003,
            Self::InvalidUtf8 => 1007,
            Self::SlowConsumer | Self::Idle => 1008,
            Self::MessageTooBig => 1009,
            Self::ServiceRestart => 1012,
            Self::Unavailable => 1013,
        }
    }

    /// Returns a stable name for programs, such as the label of a metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ProtocolError(_) => "protocol_error",
            Self::UnsupportedData => "unsupported_data",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::SlowConsumer => "slow_consumer",
            Self::Idle => "idle",
            Self::MessageTooBig => "message_too_big",
            Self::ServiceRestart => "service_restart",
            Self::Unavailable => "unavailable",
        }
    }

    /// Returns the reason in the close frame: text for people, at most 123 bytes (RFC 6455 §5.5).
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ProtocolError(what) => what,
            Self::UnsupportedData => "only text is accepted",
            Self::InvalidUtf8 => "text that is not UTF-8",
            Self::SlowConsumer => "slow consumer",
            Self::Idle => "idle",
            Self::MessageTooBig => "message too big",
            Self::ServiceRestart => "service restart",
            Self::Unavailable => "try again later",
        }
    }

    /// Returns true if the stream is out of sync afterwards, so that later input must be discarded.
    pub(crate) fn discards_input(self) -> bool {
        match self {
            Self::ProtocolError(_) | Self::UnsupportedData | Self::InvalidUtf8 | Self::MessageTooBig => true,
            Self::SlowConsumer | Self::Idle | Self::ServiceRestart | Self::Unavailable => false,
        }
    }
}

/// Returns true if an endpoint may put `code` into a close frame (RFC 6455 §7.4 and the codes registered
/// since).
pub(crate) fn is_valid_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_may_send_codes_that_are_registered_or_private() {
        for code in [1000, 1003, 1007, 1011, 1012, 1014, 3000, 4999] {
            assert!(is_valid_code(code), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert!(!is_valid_code(code), "{code}");
        }
    }
}
