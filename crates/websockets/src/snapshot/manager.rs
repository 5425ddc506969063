//! The manager as plain data.

use serde::{Deserialize, Serialize};

use crate::stats::Stats;

/// What a new process needs of the manager, apart from the connections. Other builds read it as they read a
/// [`ConnectionSnapshot`](super::ConnectionSnapshot).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerSnapshot {
    #[serde(rename = "figures")]
    pub(crate) stats: Stats,
    /// Connections that clients ended.
    #[serde(rename = "left")]
    pub(crate) by_client: u64,
    /// Connections that the server closed.
    #[serde(rename = "closed")]
    pub(crate) by_server: u64,
    /// Connections that the server ended without a closing handshake.
    #[serde(rename = "cut")]
    pub(crate) forced: u64,
}
