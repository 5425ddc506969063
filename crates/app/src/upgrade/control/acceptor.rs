//! Accepts connections at the control socket, and makes the socket again when it is removed.

use std::{collections::VecDeque, io, path::PathBuf, time::Duration};

use lastcall_core::process::Shortage;
use lastcall_handover::{ControlSocket, ServerAddress, SocketError};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::{JoinError, JoinHandle, spawn_blocking, yield_now},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    SharedSocket,
    command::{WaitingCommand, receive},
    control_listener::{ControlListener, can_accept},
};
use crate::upgrade::timeouts::COMMAND_TIMEOUT;

/// Most connections whose command is waited for at once. For another one, the one that has waited longest is
/// closed. Only this user's processes, and root's, can be there.
pub(super) const MAX_WAITING: usize = 8;

/// The time until the next attempt to accept a connection after an error: there is no event for its end.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The interval at which the file of the socket is looked for, and a socket that could not be made is tried
/// again.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The time for which a start waits for the first look at the folder. The socket is made all the same if it
/// takes longer.
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Acceptor {
    pub(super) path: PathBuf,
    /// Where the server listens.
    pub(super) address: ServerAddress,
    /// True if its folder was not set. Then it is no fault if there can be no socket, as in a container whose
    /// files are read-only.
    pub(super) is_default: bool,
    pub(super) socket: SharedSocket,
    pub(super) requests: mpsc::Sender<WaitingCommand>,
}

/// An event that the acceptor waits for.
pub(super) struct AcceptState {
    /// `None` while there is no socket.
    listener: Option<ControlListener>,
    /// True if it was logged that the socket cannot be made.
    reported: bool,
    /// True if connections cannot be accepted now, and that was logged.
    failing: bool,
    /// Connections whose command is waited for, the longest first: how to tell each that it must make room.
    /// Closed once its command is there.
    connections: VecDeque<oneshot::Sender<()>>,
    /// The look at the folder that is under way.
    looking: Option<JoinHandle<Found>>,
}

/// The result of a look at the folder: the socket that was made, or why it could not be; `None` if the file
/// was there.
type Found = Option<Result<ControlSocket, SocketError>>;

impl Acceptor {
    /// Makes the socket, if it can be made now.
    pub(super) async fn prepare(&self) -> AcceptState {
        let mut state = AcceptState {
            listener: None,
            reported: false,
            failing: false,
            connections: VecDeque::new(),
            looking: None,
        };
        self.check(&mut state);
        match timeout(FIRST_LOOK_TIMEOUT, found(&mut state.looking)).await {
            Ok(Ok(found)) => self.use_socket(&mut state, found),
            Ok(Err(error)) => warn!(%error, "the control socket could not be made"),
            Err(_) => warn!(path = %self.path.display(), "the folder of the control socket does not answer"),
        }
        state
    }

    pub(super) async fn run(self, mut state: AcceptState) {
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                found = found(&mut state.looking) => {
                    match found {
                        Ok(found) => self.use_socket(&mut state, found),
                        Err(error) => warn!(%error, "the control socket could not be looked for"),
                    }
                    continue;
                }
                _ = checks.tick() => {
                    self.check(&mut state);
                    continue;
                }
                accepted = accept(state.listener.as_ref()) => accepted,
            };
            match accepted {
                Ok(stream) => {
                    state.failing = false;
                    self.add(&mut state, stream);
                    // A command that is there already is read before the next connection needs room.
                    yield_now().await;
                }
                Err(error) => {
                    state.report(&error);
                    sleep(ACCEPT_RETRY).await;
                    self.check(&mut state);
                }
            }
        }
    }

    /// Waits for the command of a connection.
    fn add(&self, state: &mut AcceptState, stream: UnixStream) {
        let connections = &mut state.connections;
        connections.retain(|connection| !connection.is_closed());
        if connections.len() >= MAX_WAITING
            && let Some(longest) = connections.pop_front()
        {
            // An error would mean that its command has come.
            let _ = longest.send(());
        }
        let (must_leave, mut told) = oneshot::channel();
        connections.push_back(must_leave);
        let (socket, requests, address) = (self.socket.clone(), self.requests.clone(), self.address);
        tokio::spawn(async move {
            let received = tokio::select! {
                biased;
                received = timeout(COMMAND_TIMEOUT, receive(stream, &socket, address)) => received,
                // An error would mean that the acceptor is gone: the command may come all the same.
                Ok(()) = &mut told => {
                    return debug!("a connection to the control socket sent nothing, and makes room for another one");
                }
            };
            drop(told);
            match received {
                // Dropped when this process ends: the command sees that.
                Ok(Ok(Some(command))) => drop(requests.send(command).await),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!("a command at the control socket was refused: {error:#}"),
                Err(_) => debug!("a process connected to the control socket and sent nothing"),
            }
        });
    }

    /// Begins to look for the file of the socket, and to make the socket if it is not there or accepts
    /// nothing any more, unless that is under way. A file system that does not answer holds one of the
    /// threads for such work, not this one.
    fn check(&self, state: &mut AcceptState) {
        if state.looking.is_some() {
            return;
        }
        let mut socket = self.socket.lock();
        let broken = socket.take_if(|socket| !can_accept(socket.listener()));
        if broken.is_some() {
            warn!(
                "the control socket accepts nothing any more, as something else has shut it down: it is made again"
            );
            state.listener = None;
        }
        let file = socket.as_ref().map(|socket| socket.identity().clone());
        let path = self.path.clone();
        state.looking = Some(spawn_blocking(move || {
            // Its file is removed with it.
            drop(broken);
            match file {
                Some(file) if file.exists() => None,
                _ => Some(ControlSocket::bind(&path)),
            }
        }));
    }

    /// Has the socket waited for, as it was found or made.
    fn use_socket(&self, state: &mut AcceptState, found: Found) {
        let mut socket = self.socket.lock();
        match found {
            None => {}
            Some(Ok(made)) => {
                state.listener = None;
                let old = socket.replace(made);
                // It looks for its file, to remove it.
                spawn_blocking(move || drop(old));
            }
            Some(Err(error)) => {
                if !std::mem::replace(&mut state.reported, true) {
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
        if state.listener.is_some() {
            return;
        }
        let Some(socket) = socket.as_ref() else { return };
        match ControlListener::new(socket.listener()) {
            Ok(listener) => {
                info!(path = %self.path.display(), "control socket");
                state.listener = Some(listener);
                state.reported = false;
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

impl AcceptState {
    /// Logs why no connection could be accepted, unless it was logged since the last one that could.
    fn report(&mut self, error: &io::Error) {
        if std::mem::replace(&mut self.failing, true) {
            return;
        }
        match Shortage::of(error) {
            Some(Shortage::Descriptors) => {
                warn!(%error, "no file descriptors left: commands wait until there is one");
            }
            Some(Shortage::Memory) => {
                warn!(%error, "no memory left for sockets: commands wait until there is some")
            }
            None => warn!(%error, "no command can be accepted at the control socket: it is tried again"),
        }
    }
}

async fn accept(listener: Option<&ControlListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
