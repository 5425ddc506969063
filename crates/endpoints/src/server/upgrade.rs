//! What a handler of a WebSocket handshake tells its connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lastcall_websockets::Place;

/// Where a handler leaves the [`Place`] of a WebSocket whose handshake it answers. When the answer is written,
/// the socket goes to the connection manager with it; if that never happens, the place is free again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upgrade(Arc<Mutex<Option<Place>>>);

impl Upgrade {
    pub(crate) fn confirm(&self, place: Place) {
        *self.lock() = Some(place);
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.lock().is_some()
    }

    pub(super) fn take(&self) -> Option<Place> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Place>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
