//! The file descriptor that is kept for the control socket: operators can reach it when all others are taken.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::net::UnixStream;

/// A descriptor that is released when accept(2) has none: `None` then, or if there was none left. Clones are handles to the
/// same one.
#[derive(Clone)]
pub(super) struct Spare(Arc<Mutex<Option<OwnedFd>>>);

impl Spare {
    /// Opens the descriptor.
    pub(super) fn reserve() -> Self {
        Self(Arc::new(Mutex::new(open())))
    }

    /// Has the next accept(2) succeed.
    pub(super) fn release(&self) {
        *self.lock() = None;
    }

    /// Opens the descriptor again, if it was released.
    pub(super) fn restore(&self) {
        let mut spare = self.lock();
        if spare.is_none() {
            *spare = open();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a descriptor that needs no file. Returns `None` if there is none left.
fn open() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

/// A connection to the control socket. When it is closed, its descriptor becomes the spare one if that was used, in one
/// step: another connection would take it otherwise.
pub(super) struct ControlConnection {
    /// `None` when it is closed.
    stream: Option<UnixStream>,
    spare: Spare,
}

impl ControlConnection {
    pub(super) fn new(stream: UnixStream, spare: Spare) -> Self {
        Self { stream: Some(stream), spare }
    }

    /// Returns the stream.
    ///
    /// # Errors
    /// Never before the connection is dropped.
    pub(super) fn stream(&mut self) -> io::Result<&mut UnixStream> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for ControlConnection {
    fn drop(&mut self) {
        drop(self.stream.take());
        self.spare.restore();
    }
}
