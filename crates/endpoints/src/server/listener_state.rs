//! What is left of an HTTP server that was stopped.

use super::{idle_connection::IdleConnection, listener::Listener};

/// The state of a stopped HTTP server. Another [`HttpServer`](crate::HttpServer), possibly in another process, can
/// resume from it. Dropping it closes the port and the connections.
#[derive(Debug)]
pub struct ListenerState {
    /// Where clients connect. The kernel continues to queue new connections.
    pub listener: Listener,
    /// Connections that wait for a request.
    pub idle: Vec<IdleConnection>,
}

impl From<Listener> for ListenerState {
    fn from(listener: Listener) -> Self {
        Self { listener, idle: Vec::new() }
    }
}
