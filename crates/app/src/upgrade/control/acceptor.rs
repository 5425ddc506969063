//! Accepts connections at the control socket, reads commands, and makes the socket again when it is removed.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use lastcall_core::SpareDescriptor;
use lastcall_handover::{
    ControlCommand, ControlSocket, FirstMessage, HEADER_LEN, PROTOCOL, body_len, decode, encode, refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    connection::ControlConnection, requester::Requester, shared_socket::SharedSocket, spare::Spare,
    watch::FolderWatch,
};
use crate::upgrade::timeouts::COMMAND_TIMEOUT;

/// Longest command, in bytes.
const MAX_COMMAND: usize = 64 << 10;

/// Most connections whose command is waited for at once. Only this user's processes, and root's, can be there.
pub(super) const MAX_CONNECTIONS: usize = 8;

/// How long until the next attempt to accept a connection when not even the spare descriptor is left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the socket is checked where the system reports no changes of its folder, and how often a socket that
/// could not be made is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

pub(super) struct Acceptor {
    pub(super) path: PathBuf,
    /// Whether its folder was not set. Then it is no fault if there can be no socket, as in a container whose files
    /// are read-only.
    pub(super) is_default: bool,
    pub(super) socket: SharedSocket,
    pub(super) requests: mpsc::Sender<Requester>,
}

/// What the acceptor waits for.
pub(super) struct Waiting {
    /// `None` while there is no socket.
    listener: Option<UnixListener>,
    watch: FolderWatch,
    /// Whether it was logged that the socket cannot be made.
    reported: bool,
    spare: Spare,
}

impl Acceptor {
    /// Makes the socket, if it can be made now.
    pub(super) fn prepare(&self) -> Waiting {
        let spare = Spare::reserve();
        let mut waiting = Waiting { listener: None, watch: FolderWatch::none(), reported: false, spare };
        self.check(&mut waiting);
        waiting
    }

    pub(super) async fn run(self, mut waiting: Waiting) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let spare = waiting.spare.clone();
        loop {
            // Never closed: this holds it.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                _ = checks.tick() => {
                    self.check(&mut waiting);
                    continue;
                }
                () = waiting.watch.removed() => {
                    self.check(&mut waiting);
                    continue;
                }
                accepted = accept(waiting.listener.as_ref()) => accepted,
            };
            let accepted = match accepted {
                Err(error) if SpareDescriptor::is_shortage(&error) => {
                    spare.release(&error);
                    // At once, before anything else takes the descriptor.
                    timeout(Duration::ZERO, accept(waiting.listener.as_ref())).await.unwrap_or(Err(error))
                }
                accepted => {
                    spare.accepted();
                    accepted
                }
            };
            match accepted {
                Ok(stream) => {
                    let connection = ControlConnection::new(stream, spare.clone());
                    let (socket, requests) = (self.socket.clone(), self.requests.clone());
                    tokio::spawn(async move {
                        let _permit = permit;
                        match timeout(COMMAND_TIMEOUT, receive(connection, &socket)).await {
                            // Dropped when this process ends: the command sees that.
                            Ok(Ok(requester)) => drop(requests.send(requester).await),
                            Ok(Err(error)) => warn!("a command at the control socket was refused: {error:#}"),
                            Err(_) => debug!("a process connected to the control socket and sent nothing"),
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "a connection to the control socket could not be accepted");
                    // There is no event for a descriptor becoming free.
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Makes the socket if it is not there, and has it waited for.
    fn check(&self, waiting: &mut Waiting) {
        let mut socket = self.socket.lock();
        let is_there = socket.as_ref().is_some_and(|socket| socket.identity().exists());
        if is_there && waiting.listener.is_some() {
            return;
        }
        if !is_there {
            match ControlSocket::bind(&self.path) {
                Ok(made) => *socket = Some(made),
                Err(error) => {
                    if !std::mem::replace(&mut waiting.reported, true) {
                        let error = anyhow::Error::from(error);
                        let why = format!("so `lastcall upgrade` cannot reach this server: {error:#}");
                        match self.is_default {
                            true => info!("there is no control socket, {why}"),
                            false => warn!("there is no control socket, {why}"),
                        }
                    }
                    return;
                }
            }
        }
        let Some(socket) = socket.as_ref() else { return };
        match socket.listener().try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => {
                info!(path = %self.path.display(), "control socket");
                waiting.listener = Some(listener);
                waiting.watch = FolderWatch::new(&self.path);
                waiting.reported = false;
            }
            Err(error) => debug!(%error, "the control socket cannot be waited at"),
        }
    }
}

async fn accept(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Reads a command.
///
/// # Errors
/// When the connection is not this user's, or sends no command that is understood.
async fn receive(mut connection: ControlConnection, socket: &SharedSocket) -> anyhow::Result<Requester> {
    let stream = connection.stream()?;
    match socket.lock().as_ref() {
        Some(socket) => socket.check_peer(stream)?,
        None => bail!("there is no control socket any more"),
    }
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await.context("no command was received")?;
    let mut body = vec![0; body_len(header, MAX_COMMAND)?];
    stream.read_exact(&mut body).await.context("the command is incomplete")?;
    match decode(&body)? {
        FirstMessage::Command(ControlCommand::Upgrade) => Ok(Requester::new(connection)),
        FirstMessage::Hello(hello) => {
            let reason = format!(
                "the new process, version {}, speaks version {} of the handover, this one {PROTOCOL}",
                hello.version, hello.protocol
            );
            stream.write_all(&encode(&refusal(&reason))?).await?;
            bail!(reason)
        }
    }
}
