//! What is known of a client, written down: enough for another process to go on with its socket to the byte.

use serde::{Deserialize, Serialize};

use crate::{
    client_id::ClientId, close::CloseReason, connection::Life, decoder::Decoder, figures::Figures,
    outbox::Outbox,
};

/// The state of one client. Other builds read it too: fields that they do not know are ignored, those that
/// are missing have their defaults. What cannot be left out without harm needs another handover protocol.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionState {
    pub(crate) id: ClientId,
    pub(crate) life: Life,
    /// Why the server closed it, if it did.
    pub(crate) close_reason: Option<CloseReason>,
    /// Once it is being closed: milliseconds until it is cut off.
    pub(crate) cut_off_in_ms: Option<u64>,
    /// Whether anything came since the last ping.
    pub(crate) heard: bool,
    /// Input that is not whole yet: half a header, half a frame, fragments.
    pub(crate) decoder: Decoder,
    /// Output that its socket did not take yet.
    pub(crate) outbox: Outbox,
}

impl ConnectionState {
    /// About how many bytes it takes up, written down.
    pub fn size(&self) -> usize {
        200 + self.outbox.len() + self.decoder.len()
    }
}

/// What the manager knows beside its clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerState {
    pub(crate) figures: Figures,
    pub(crate) left: u64,
    pub(crate) closed: u64,
    pub(crate) cut: u64,
}
