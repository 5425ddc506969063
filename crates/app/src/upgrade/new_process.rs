//! Taking over from the process that runs: the new process's side of an upgrade.

use std::{
    io, iter,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use bytes::Bytes;
use lastcall_core::settings::Settings;
use lastcall_endpoints::{Entrance, Handovers, IdleConnection, RefusalCounts};
use lastcall_handover::{Committed, ControlSocket, FileIdentity, FramedStream, HandoverReceiver, Serving};
use lastcall_websockets::{ConnectionManager, ConnectionState, ManagerState, NotifierState};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
};
use tracing::info;

use crate::{front::Paused, version};

/// How long the old process has to answer. Longer than it gives the whole transfer: it decides, so this one
/// must not be the first to give up.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What is handed over once. Other builds read it too: fields that they do not know are ignored, those that
/// are missing have their defaults.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ServerState {
    pub(crate) manager: ManagerState,
    pub(crate) notifier: NotifierState,
    /// The control socket, if its descriptor comes second.
    pub(crate) control: Option<FileIdentity>,
    /// Whether a service manager chose the listening socket, for the first of these processes.
    pub(crate) activated: bool,
    /// Upgrades before this one.
    pub(crate) upgrades_done: u64,
    pub(crate) upgrades_failed: u64,
    /// Requests that were refused.
    pub(crate) refused: RefusalCounts,
    /// Since when nobody is served, in microseconds since 1970.
    pub(crate) frozen_at_us: u64,
    /// What was read of the next request of each idle HTTP connection, in the order of their descriptors.
    pub(crate) idle_read: Vec<Bytes>,
}

/// A take-over that has begun: the old process knows that this one is there.
pub(crate) struct IncomingHandover {
    receiver: HandoverReceiver,
}

/// What was inherited, and is served from here on.
pub(crate) struct ReceivedServer {
    pub(crate) front: Paused,
    pub(crate) control: Option<ControlSocket>,
    pub(crate) activated: bool,
    pub(crate) handovers: Handovers,
    pub(crate) refused: RefusalCounts,
    /// Since when the clients are not served.
    pub(crate) frozen_at: SystemTime,
    /// Tells the old process that this one serves.
    pub(crate) serving: Serving,
}

impl IncomingHandover {
    /// Says hello to the old process, which is at the other end of this descriptor. `files` are the settings files
    /// that were read.
    pub(crate) async fn connect(descriptor: OwnedFd, files: Vec<PathBuf>) -> anyhow::Result<Self> {
        let stream = FramedStream::new(descriptor.into()).context("what was inherited is no socket")?;
        let hello = move || HandoverReceiver::begin(stream, version::full(), files, HELLO_TIMEOUT);
        Ok(Self { receiver: spawn_blocking(hello).await?? })
    }

    /// Says that everything is ready, and takes over. Before the old process has handed over everything, nothing of
    /// it is touched.
    pub(crate) async fn receive(
        self,
        manager: &ConnectionManager,
        settings: &Settings,
    ) -> anyhow::Result<ReceivedServer> {
        let room = settings.max_connections;
        // The old process has so long, too.
        let timeout = settings.upgrade_timeout + HELLO_TIMEOUT;
        let old = self.receiver.old().clone();
        let received =
            spawn_blocking(move || self.receiver.receive::<ServerState, ConnectionState>(room, timeout));
        let mut received = received.await??;
        // Whatever can fail must fail before the commit.
        let (state, descriptors) = &mut received.server;
        let (front, control) = descriptors_of(state, std::mem::take(descriptors))?;
        let Committed { server: state, clients, serving } =
            spawn_blocking(move || received.commit(HELLO_TIMEOUT)).await??;
        let count = clients.len();
        manager.restore(state.manager, clients);
        info!(
            clients = count,
            old_pid = old.pid,
            old_version = old.version,
            new_version = version::full(),
            "took over from process {}: version {} in place of {}",
            old.pid,
            version::full(),
            old.version
        );
        Ok(ReceivedServer {
            front,
            control,
            activated: state.activated,
            handovers: Handovers {
                done: state.upgrades_done + 1,
                failed: state.upgrades_failed,
                clients: count as u64,
                paused: 0.0,
            },
            refused: state.refused,
            frozen_at: UNIX_EPOCH + Duration::from_micros(state.frozen_at_us),
            serving,
        })
    }
}

/// The listening socket comes first, then the control socket if there is one, then the connections on which no
/// request is under way.
fn descriptors_of(
    state: &mut ServerState,
    descriptors: Vec<OwnedFd>,
) -> anyhow::Result<(Paused, Option<ControlSocket>)> {
    let mut descriptors = descriptors.into_iter();
    let listener = descriptors.next().context("the listening socket did not come")?;
    let control = match &state.control {
        Some(identity) => {
            let listener = descriptors.next().context("the control socket did not come")?;
            Some(ControlSocket::from_listener(listener, identity.clone()).context("the control socket")?)
        }
        None => None,
    };
    let (idle_read, notifier) = (std::mem::take(&mut state.idle_read), state.notifier);
    let front = || {
        let listener = TcpListener::from_std(std::net::TcpListener::from(listener))?;
        let read = idle_read.into_iter().chain(iter::repeat(Bytes::new()));
        let idle = descriptors.zip(read).map(|(socket, read)| {
            let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
            Ok(IdleConnection { stream, read })
        });
        let entrance = Entrance { listener, idle: idle.collect::<io::Result<_>>()? };
        io::Result::Ok(Paused { entrance, notifier })
    };
    Ok((front().context("the listening socket could not be used")?, control))
}
