//! A connection that goes to an event loop.

use std::net::TcpStream;

use crate::{
    admission::Permit, client_id::ClientId, connection::snapshot::ConnectionSnapshot, handshake::Handshake,
};

/// A connection on its way to its event loop.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: TcpStream,
    pub(crate) permit: Permit,
    pub(crate) source: ConnectionSource,
}

/// Where a connection comes from.
#[derive(Debug)]
pub(crate) enum ConnectionSource {
    /// It made its handshake here.
    Handshake(ClientId, Handshake),
    /// The old process served it until now.
    Handover(Box<ConnectionSnapshot>),
}
