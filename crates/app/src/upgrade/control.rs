//! The server at the control socket: answers operators.

mod acceptor;
mod command;
mod control_listener;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lastcall_core::settings::RuntimeDir;
use lastcall_handover::{ControlSocket, FileIdentity, ServerAddress, SocketName};
use lastcall_websockets::VitalTasks;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tracing::warn;

use self::acceptor::{Acceptor, MAX_WAITING};
pub(super) use self::command::WaitingCommand;
use super::timeouts::LATE_COMMAND_TIMEOUT;

/// The control socket while this process serves. Its file is removed when this is dropped, unless
/// [`ControlServer::leave_to_new_process`] was called.
pub(crate) struct ControlServer {
    socket: SharedSocket,
    requests: mpsc::Receiver<WaitingCommand>,
    accepting: JoinHandle<()>,
}

impl ControlServer {
    /// Accepts connections in `runtime_dir`: at the socket of the old process if there is one, or at a new
    /// one, which is made now or when that becomes possible, and again when it is removed. `address` is what
    /// it tells of the server. What accepts is among the `vital_tasks`.
    pub(crate) async fn start(
        runtime_dir: &RuntimeDir,
        address: ServerAddress,
        inherited: Option<ControlSocket>,
        vital_tasks: &VitalTasks,
    ) -> Self {
        let is_default = matches!(runtime_dir, RuntimeDir::Default(_));
        let name = match runtime_dir {
            RuntimeDir::Service(_) => SocketName::OwnFolder,
            _ => SocketName::Address(address.address),
        };
        let path = name.path(runtime_dir.path());
        let inherited = inherited.map(|mut socket| {
            socket.own_file();
            socket
        });
        // Another one is for another address, or in another folder: it is removed.
        let inherited = inherited.filter(|socket| socket.path() == path);
        let socket = SharedSocket::new(inherited);
        let (sender, requests) = mpsc::channel(MAX_WAITING);
        let acceptor = Acceptor { path, address, is_default, socket: socket.clone(), requests: sender };
        let waiting = acceptor.prepare().await;
        let accepting = vital_tasks.spawn("the control socket", acceptor.run(waiting));
        Self { socket, requests, accepting }
    }

    /// Waits for the next command that asks for an upgrade. May be dropped at any time without losing one.
    pub(super) async fn next(&mut self) -> WaitingCommand {
        match self.requests.recv().await {
            Some(command) => command,
            // The accepting task is gone, with the runtime: none will come.
            None => std::future::pending().await,
        }
    }

    /// Returns the socket, to be shared with a new process.
    pub(super) fn socket(&self) -> SharedSocket {
        self.socket.clone()
    }

    /// Leaves the socket to the new process. Returns the commands that came meanwhile.
    pub(super) async fn leave_to_new_process(mut self) -> Vec<WaitingCommand> {
        if let Some(socket) = self.socket.lock().as_mut() {
            socket.keep_file();
        }
        // Connections that were accepted are served by tasks of their own, which continue.
        self.accepting.abort();
        if let Err(error) = (&mut self.accepting).await
            && !error.is_cancelled()
        {
            warn!(%error, "the control socket had failed");
        }
        let mut late = Vec::new();
        let all = async {
            while let Some(command) = self.requests.recv().await {
                late.push(command);
            }
        };
        // At the timeout, connections without a command are left alone.
        let _ = timeout(LATE_COMMAND_TIMEOUT, all).await;
        late
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The control socket, shared by the task that accepts and by a handover: `None` while it cannot be made.
/// Clones share it.
#[derive(Clone)]
pub(super) struct SharedSocket(Arc<Mutex<Option<ControlSocket>>>);

/// A descriptor of the control socket for a new process.
pub(super) struct SocketCopy {
    pub(super) listener: OwnedFd,
    pub(super) file: FileIdentity,
}

impl SharedSocket {
    fn new(socket: Option<ControlSocket>) -> Self {
        Self(Arc::new(Mutex::new(socket)))
    }

    /// Returns a copy for a new process, or `None` if there is no socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn copy(&self) -> io::Result<Option<SocketCopy>> {
        let socket = self.lock();
        let Some(socket) = socket.as_ref() else { return Ok(None) };
        let listener = socket.listener().try_clone()?.into();
        Ok(Some(SocketCopy { listener, file: socket.identity().clone() }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<ControlSocket>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
