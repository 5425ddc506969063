//! The states of a connection.

use serde::{Deserialize, Serialize};

use crate::admission::Disconnect;

/// The state of a connection (RFC 6455 §7.1). Its serialized names are part of the handover and stay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Messages go both ways.
    #[default]
    Open,
    /// The server has sent a close frame and waits for the client's.
    CloseSent,
    /// The client has sent a close frame; ours is queued, and the connection ends once it is written.
    #[serde(rename = "answering")]
    CloseReceived,
    /// The server has sent a close frame after input that it cannot decode. Later input is discarded until the client
    /// closes the TCP connection, so that the close frame is not lost to a reset (RFC 6455 §7.1.1).
    #[serde(rename = "deaf")]
    Lingering,
}

impl State {
    /// Returns who has ended a connection whose TCP connection fails or ends in this state, or must be treated so.
    pub(super) fn disconnect(self) -> Disconnect {
        match self {
            Self::Open | Self::CloseReceived => Disconnect::ByClient,
            Self::CloseSent | Self::Lingering => Disconnect::ByServer,
        }
    }
}
