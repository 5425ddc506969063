//! The control socket, shared by the task that accepts and by a handover.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lastcall_handover::{ControlSocket, FileIdentity};

/// The control socket: `None` while it cannot be made. Clones share it.
#[derive(Clone)]
pub(in crate::upgrade) struct SharedSocket(Arc<Mutex<Option<ControlSocket>>>);

/// A descriptor of the control socket for a new process.
pub(in crate::upgrade) struct SocketCopy {
    pub(in crate::upgrade) listener: OwnedFd,
    pub(in crate::upgrade) file: FileIdentity,
}

impl SharedSocket {
    pub(super) fn new(socket: Option<ControlSocket>) -> Self {
        Self(Arc::new(Mutex::new(socket)))
    }

    /// Returns a copy for a new process, or `None` if there is no socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(in crate::upgrade) fn copy(&self) -> io::Result<Option<SocketCopy>> {
        let socket = self.lock();
        let Some(socket) = socket.as_ref() else { return Ok(None) };
        let listener = socket.listener().try_clone()?.into();
        Ok(Some(SocketCopy { listener, file: socket.identity().clone() }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<ControlSocket>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
