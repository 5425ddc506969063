//! Accepts connections at the control socket, reads commands, and makes the socket again when it is removed.

use std::{collections::VecDeque, io, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use lastcall_core::process::Shortage;
use lastcall_handover::{
    ControlCommand, ControlSocket, FirstMessage, HEADER_LEN, PROTOCOL, ServerAddress, SocketError, body_len,
    decode, encode, refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::{JoinError, JoinHandle, spawn_blocking, yield_now},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    control_listener::{ControlListener, can_accept},
    requester::Requester,
    shared_socket::SharedSocket,
    spare::{ControlConnection, Spare},
    watch::FolderWatch,
};
use crate::upgrade::timeouts::COMMAND_TIMEOUT;

/// Longest command, in bytes.
const MAX_COMMAND: usize = 64 << 10;

/// Most connections whose command is waited for at once. For another one, the one that has waited longest is closed. Only
/// this user's processes, and root's, can be there.
pub(super) const MAX_WAITING: usize = 8;

/// The time until the next attempt to accept a connection after an error: there is no event for its end.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the socket is checked where the system reports no changes of its folder, and how often a socket that
/// could not be made is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// How long a start waits for the first look at the folder. The socket is made all the same if it takes longer.
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Acceptor {
    pub(super) path: PathBuf,
    /// Where the server listens.
    pub(super) address: ServerAddress,
    /// Whether its folder was not set. Then it is no fault if there can be no socket, as in a container whose files
    /// are read-only.
    pub(super) is_default: bool,
    pub(super) socket: SharedSocket,
    pub(super) requests: mpsc::Sender<Requester>,
}

/// What the acceptor waits for.
pub(super) struct Waiting {
    /// `None` while there is no socket.
    listener: Option<ControlListener>,
    watch: FolderWatch,
    /// Whether it was logged that the socket cannot be made.
    reported: bool,
    spare: Spare,
    /// True if connections cannot be accepted now, and that was logged.
    failing: bool,
    /// Connections whose command is waited for, the longest first: how to tell each that it must make room. Closed once its
    /// command is there.
    connections: VecDeque<oneshot::Sender<()>>,
    /// The look at the folder that is under way.
    looking: Option<JoinHandle<Found>>,
}

/// The result of a look at the folder.
struct Found {
    /// `None`: the file was there.
    made: Option<Result<ControlSocket, SocketError>>,
    /// `None`: the folder is watched already, or there is no socket.
    watch: Option<FolderWatch>,
}

impl Acceptor {
    /// Makes the socket, if it can be made now.
    pub(super) async fn prepare(&self) -> Waiting {
        let mut waiting = Waiting {
            listener: None,
            watch: FolderWatch::none(),
            reported: false,
            spare: Spare::reserve(),
            failing: false,
            connections: VecDeque::new(),
            looking: None,
        };
        self.check(&mut waiting);
        match timeout(FIRST_LOOK_TIMEOUT, found(&mut waiting.looking)).await {
            Ok(Ok(found)) => self.use_socket(&mut waiting, found),
            Ok(Err(error)) => warn!(%error, "the control socket could not be made"),
            Err(_) => warn!(path = %self.path.display(), "the folder of the control socket does not answer"),
        }
        waiting
    }

    pub(super) async fn run(self, mut waiting: Waiting) {
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                found = found(&mut waiting.looking) => {
                    match found {
                        Ok(found) => self.use_socket(&mut waiting, found),
                        Err(error) => warn!(%error, "the control socket could not be looked for"),
                    }
                    continue;
                }
                // What is removed during a look is reported after it.
                _ = checks.tick(), if waiting.looking.is_none() => {
                    self.check(&mut waiting);
                    continue;
                }
                () = waiting.watch.removed(), if waiting.looking.is_none() => {
                    self.check(&mut waiting);
                    continue;
                }
                accepted = accept(waiting.listener.as_ref()) => accepted,
            };
            let accepted = match accepted {
                Ok(stream) => {
                    waiting.failing = false;
                    Ok(stream)
                }
                Err(error) => {
                    waiting.report(&error);
                    waiting.accept_with_spare(error).await
                }
            };
            match accepted {
                Ok(stream) => {
                    self.add(&mut waiting, stream);
                    // A command that is there already is read before the next connection needs room.
                    yield_now().await;
                }
                Err(_) => {
                    waiting.spare.restore();
                    sleep(ACCEPT_RETRY).await;
                    self.check(&mut waiting);
                }
            }
        }
    }

    /// Waits for the command of a connection.
    fn add(&self, waiting: &mut Waiting, stream: UnixStream) {
        let connections = &mut waiting.connections;
        connections.retain(|connection| !connection.is_closed());
        if connections.len() >= MAX_WAITING
            && let Some(longest) = connections.pop_front()
        {
            // An error would mean that its command has come.
            let _ = longest.send(());
        }
        let (must_leave, mut told) = oneshot::channel();
        connections.push_back(must_leave);
        let connection = ControlConnection::new(stream, waiting.spare.clone());
        let (socket, requests, address) = (self.socket.clone(), self.requests.clone(), self.address);
        tokio::spawn(async move {
            let received = tokio::select! {
                biased;
                received = timeout(COMMAND_TIMEOUT, receive(connection, &socket, address)) => received,
                // An error would mean that the acceptor is gone: the command may come all the same.
                Ok(()) = &mut told => {
                    return debug!("a connection to the control socket sent nothing, and makes room for another one");
                }
            };
            drop(told);
            match received {
                // Dropped when this process ends: the command sees that.
                Ok(Ok(Some(requester))) => drop(requests.send(requester).await),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!("a command at the control socket was refused: {error:#}"),
                Err(_) => debug!("a process connected to the control socket and sent nothing"),
            }
        });
    }

    /// Begins to look for the file of the socket, and to make the socket if it is not there or accepts nothing any more,
    /// unless that is under way. A file system that does not answer holds one of the threads for such work, not this one.
    fn check(&self, waiting: &mut Waiting) {
        if waiting.looking.is_some() {
            return;
        }
        let mut socket = self.socket.lock();
        let broken = socket.take_if(|socket| !can_accept(socket.listener()));
        if broken.is_some() {
            warn!(
                "the control socket accepts nothing any more, as something else has shut it down: it is made again"
            );
            waiting.listener = None;
        }
        let file = socket.as_ref().map(|socket| socket.identity().clone());
        let (path, is_watched) = (self.path.clone(), waiting.listener.is_some());
        waiting.looking = Some(spawn_blocking(move || {
            // Its file is removed with it.
            drop(broken);
            let made = match file {
                Some(file) if file.exists() => None,
                _ => Some(ControlSocket::bind(&path)),
            };
            let watch = match made {
                Some(Err(_)) => None,
                None if is_watched => None,
                _ => Some(FolderWatch::new(&path)),
            };
            Found { made, watch }
        }));
    }

    /// Has the socket waited for, as it was found or made.
    fn use_socket(&self, waiting: &mut Waiting, found: Found) {
        let mut socket = self.socket.lock();
        match found.made {
            None => {}
            Some(Ok(made)) => {
                waiting.listener = None;
                let old = socket.replace(made);
                // It looks for its file, to remove it.
                spawn_blocking(move || drop(old));
            }
            Some(Err(error)) => {
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
        if waiting.listener.is_some() {
            return;
        }
        let Some(socket) = socket.as_ref() else { return };
        match ControlListener::new(socket.listener()) {
            Ok(listener) => {
                info!(path = %self.path.display(), "control socket");
                waiting.listener = Some(listener);
                waiting.watch = found.watch.unwrap_or(FolderWatch::none());
                waiting.reported = false;
            }
            Err(error) => debug!(%error, "the control socket cannot be waited at"),
        }
    }
}

/// Waits for the end of a look at the folder, if there is one. May be dropped at any time.
async fn found(looking: &mut Option<JoinHandle<Found>>) -> Result<Found, JoinError> {
    let found = match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    };
    *looking = None;
    found
}

impl Waiting {
    /// Logs why no connection could be accepted, unless it was logged since the last one that could.
    fn report(&mut self, error: &io::Error) {
        if std::mem::replace(&mut self.failing, true) {
            return;
        }
        match Shortage::of(error) {
            Some(Shortage::Descriptors) => {
                warn!(%error, "no file descriptors left: the control socket uses the one that is kept for it");
            }
            Some(Shortage::Memory) => {
                warn!(%error, "no memory left for sockets: commands wait until there is some")
            }
            None => warn!(%error, "no command can be accepted at the control socket: it is tried again"),
        }
    }

    /// Accepts a connection with the spare descriptor after an error, if that was for want of one.
    ///
    /// # Errors
    /// The same if it was not, or if there is no memory either.
    async fn accept_with_spare(&self, error: io::Error) -> io::Result<UnixStream> {
        if Shortage::of(&error).is_none() {
            return Err(error);
        }
        self.spare.release();
        // At once, before anything else takes the descriptor.
        timeout(Duration::ZERO, accept(self.listener.as_ref())).await.unwrap_or(Err(error))
    }
}

async fn accept(listener: Option<&ControlListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Reads a command. Returns one that asks for an upgrade; another one is answered.
///
/// # Errors
/// When the connection is not this user's, or sends no command that is understood.
async fn receive(
    mut connection: ControlConnection,
    socket: &SharedSocket,
    address: ServerAddress,
) -> anyhow::Result<Option<Requester>> {
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
        FirstMessage::Command(ControlCommand::Upgrade) => Ok(Some(Requester::new(connection))),
        FirstMessage::Command(ControlCommand::Address) => {
            stream.write_all(&encode(&address)?).await.context("the answer could not be sent")?;
            Ok(None)
        }
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
