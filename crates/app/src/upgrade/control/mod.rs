//! Answers operators at the control socket.

mod acceptor;
mod spare;
mod watch;

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lastcall_handover::{ControlSocket, FileIdentity, UpgradeProgress, encode};
use tokio::{io::AsyncWriteExt, sync::mpsc, task::JoinHandle, time::timeout};
use tracing::{debug, warn};

use acceptor::{Acceptor, MAX_CONNECTIONS};
use spare::Connection;

use super::timeouts::{LATE_COMMAND_TIMEOUT, REPORT_TIMEOUT};

/// An operator who asked for an upgrade, and waits to hear how it goes.
pub(crate) struct Requester(Connection);

impl Requester {
    /// Tells the operator how it goes. The operator may have gone: then nothing happens.
    pub(crate) async fn report(&mut self, progress: &UpgradeProgress) {
        let told = async {
            let message = encode(progress)?;
            timeout(REPORT_TIMEOUT, self.0.stream()?.write_all(&message)).await??;
            anyhow::Ok(())
        };
        if let Err(error) = told.await {
            debug!("an operator could not be told how the upgrade went: {error:#}");
        }
    }
}

/// The control socket while this process serves. Its file is removed when this is dropped, unless
/// [`ControlServer::leave_to_new_process`] was called.
pub(crate) struct ControlServer {
    socket: SharedSocket,
    requests: mpsc::Receiver<Requester>,
    accepting: JoinHandle<()>,
}

/// Shares the socket with a new process.
#[derive(Clone)]
pub(crate) struct SharedSocket(Arc<Mutex<Option<ControlSocket>>>);

impl SharedSocket {
    /// The listening descriptor, and the file that it has. `None`: there is no socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn share(&self) -> io::Result<Option<(OwnedFd, FileIdentity)>> {
        let socket = lock(&self.0);
        let Some(socket) = socket.as_ref() else { return Ok(None) };
        Ok(Some((socket.listener().try_clone()?.into(), socket.identity().clone())))
    }
}

impl ControlServer {
    /// Accepts connections at `path`: goes on with the socket of the old process if it is there, or makes one, now
    /// or when that becomes possible, and again when it is removed. `is_default`: its folder was not set.
    pub(crate) fn start(path: PathBuf, is_default: bool, inherited: Option<ControlSocket>) -> Self {
        // Another one is for another address, or in another folder: it is removed.
        let inherited = inherited.filter(|socket| socket.path() == path);
        let socket = Arc::new(Mutex::new(inherited));
        let (sender, requests) = mpsc::channel(MAX_CONNECTIONS);
        let acceptor = Acceptor { path, is_default, socket: Arc::clone(&socket), requests: sender };
        let waiting = acceptor.prepare();
        let accepting = tokio::spawn(acceptor.run(waiting));
        Self { socket: SharedSocket(socket), requests, accepting }
    }

    /// The next operator who asks for an upgrade. May be dropped at any time without losing one.
    pub(crate) async fn next(&mut self) -> Requester {
        match self.requests.recv().await {
            Some(operator) => operator,
            // The accepting task is gone, with the runtime: none will come.
            None => std::future::pending().await,
        }
    }

    /// For sharing the socket with a new process.
    pub(crate) fn socket(&self) -> SharedSocket {
        self.socket.clone()
    }

    /// Leaves the socket to the new process. Returns the operators who had asked meanwhile.
    pub(crate) async fn leave_to_new_process(mut self) -> Vec<Requester> {
        if let Some(socket) = lock(&self.socket.0).as_mut() {
            socket.keep_file();
        }
        // Connections that were accepted are served by tasks of their own, which go on.
        self.accepting.abort();
        if let Err(error) = (&mut self.accepting).await
            && !error.is_cancelled()
        {
            warn!(%error, "the control socket had failed");
        }
        let mut late = Vec::new();
        let all = async {
            while let Some(operator) = self.requests.recv().await {
                late.push(operator);
            }
        };
        // At the timeout, those that have said nothing are left alone.
        let _ = timeout(LATE_COMMAND_TIMEOUT, all).await;
        late
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(socket: &Mutex<Option<ControlSocket>>) -> MutexGuard<'_, Option<ControlSocket>> {
    // Nothing that holds it can panic.
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}
