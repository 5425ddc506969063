//! What a handler of a WebSocket handshake tells its connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lastcall_websockets::{ChannelRequest, Permit};

/// A WebSocket whose handshake was answered.
#[derive(Debug)]
pub(crate) struct Confirmed {
    pub(crate) permit: Permit,
    /// The channels that the client named.
    pub(crate) channels: Vec<ChannelRequest>,
}

/// Where a handler leaves the [`Permit`] of a WebSocket whose handshake it answers. When the response is written,
/// the socket goes to the connection manager with it; if that never happens, the permit is released.
#[derive(Debug, Clone, Default)]
pub(crate) struct PendingWebSocket(Arc<Mutex<Option<Confirmed>>>);

impl PendingWebSocket {
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
