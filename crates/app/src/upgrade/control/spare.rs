//! The file descriptor that is kept for operators: they can ask when all others are taken.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lastcall_core::SpareDescriptor;
use tokio::net::UnixStream;
use tracing::warn;

/// `None` where there was none left at the start. Clones are the same one.
#[derive(Clone)]
pub(super) struct Spare(Arc<Mutex<Option<SpareDescriptor>>>);

impl Spare {
    pub(super) fn reserve() -> Self {
        Self(Arc::new(Mutex::new(SpareDescriptor::reserve().ok())))
    }

    /// Has the next accept(2) succeed after this error.
    pub(super) fn release(&self, error: &io::Error) {
        if let Some(spare) = self.lock().as_mut() {
            if spare.begins() {
                warn!(%error, "no file descriptors left: the control socket uses the one that is kept for it");
            }
            spare.release();
        }
    }

    /// Notes that accept(2) succeeded without it.
    pub(super) fn accepted(&self) {
        if let Some(spare) = self.lock().as_mut() {
            // That a shortage has ended needs no line of its own: the HTTP server says so.
            let _ = spare.succeeded();
        }
    }

    fn restore(&self) {
        if let Some(spare) = self.lock().as_mut() {
            spare.restore();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<SpareDescriptor>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection. Its descriptor becomes the spare one, if that was used, at the moment at which it is closed: the
/// HTTP server would take it otherwise.
pub(super) struct Connection {
    /// Received only when it is closed.
    stream: Option<UnixStream>,
    spare: Spare,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, spare: Spare) -> Self {
        Self { stream: Some(stream), spare }
    }

    /// The stream.
    ///
    /// # Errors
    /// Never before the connection is dropped.
    pub(super) fn stream(&mut self) -> io::Result<&mut UnixStream> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        drop(self.stream.take());
        self.spare.restore();
    }
}
