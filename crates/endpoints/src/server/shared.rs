//! What all connections of an HTTP server share.

use std::time::Duration;

use axum::Router;
use lastcall_websockets::ConnectionManager;

use super::{http_connections::HttpConnections, stop::Stop};
use crate::refusals::Refusals;

/// What all connections of an HTTP server share.
pub(super) struct Shared {
    pub(super) router: Router,
    /// Gets the connections that become WebSockets.
    pub(super) manager: ConnectionManager,
    pub(super) connections: HttpConnections,
    /// How long a connection may be idle.
    pub(super) keep_alive_timeout: Duration,
    pub(super) refusals: Refusals,
    pub(super) stop: Stop,
}
