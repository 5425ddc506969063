//! The file descriptor that is kept for the control socket: operators can reach it when all others are taken.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lastcall_core::SpareDescriptor;
use tracing::warn;

/// `None` where there was none left at the start. Clones are the same one.
#[derive(Clone)]
pub(super) struct Spare(Arc<Mutex<Option<SpareDescriptor>>>);

impl Spare {
    /// Opens the descriptor.
    pub(super) fn reserve() -> Self {
        Self(Arc::new(Mutex::new(SpareDescriptor::reserve().ok())))
    }

    /// Has the next accept(2) succeed after this error.
    pub(super) fn release(&self, error: &io::Error) {
        if let Some(spare) = self.lock().as_mut() {
            if spare.note_shortage() {
                warn!(%error, "no file descriptors left: the control socket uses the one that is kept for it");
            }
            spare.release();
        }
    }

    /// Notes that accept(2) succeeded without it.
    pub(super) fn accepted(&self) {
        if let Some(spare) = self.lock().as_mut() {
            // That a shortage has ended needs no line of its own: the HTTP server says so.
            let _ = spare.note_success();
        }
    }

    /// Keeps a descriptor again, if it was used.
    pub(super) fn restore(&self) {
        if let Some(spare) = self.lock().as_mut() {
            spare.restore();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<SpareDescriptor>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
