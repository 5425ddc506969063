//! What the handler of a WebSocket handshake or of server-sent events tells its connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lastcall_websockets::{ChannelRequest, Form, Permit};

/// A connection that the connection manager is to get, once its response is written.
#[derive(Debug)]
pub(crate) struct Confirmed {
    pub(crate) permit: Permit,
    /// How the client gets its messages.
    pub(crate) form: Form,
    /// The channels that the client named.
    pub(crate) channels: Vec<ChannelRequest>,
}

/// Where a handler leaves the [`Permit`] of a client that it lets in. When the response is written, the socket goes to the connection manager with it; if that never happens, the permit is released.
#[derive(Debug, Clone, Default)]
pub(crate) struct PendingConnection(Arc<Mutex<Option<Confirmed>>>);

impl PendingConnection {
    pub(crate) fn confirm(&self, confirmed: Confirmed) {
        *self.lock() = Some(confirmed);
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.lock().is_some()
    }

    pub(super) fn take(&self) -> Option<Confirmed> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Confirmed>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
