//! The address that a connection came from.

use std::net::SocketAddr;

/// The address of the client, or of a proxy if there is one. Each request has it as an extension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddr(pub(crate) SocketAddr);
