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
use lastcall_endpoints::{Entrance, Handovers, IdleConnection};
use lastcall_handover::{Channel, Take};
use lastcall_websockets::{ConnectionManager, ConnectionState, ManagerState, NotifierState};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_blocking,
};
use tracing::info;

use crate::front::Paused;

/// How long the old process has to answer. Longer than it gives the whole transfer: it decides, so this one
/// must not be the first to give up.
const HELLO: Duration = Duration::from_secs(10);

/// What is handed over once. Other builds read it too: fields that they do not know are ignored, those that
/// are missing have their defaults.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ServerState {
    pub(crate) manager: ManagerState,
    pub(crate) notifier: NotifierState,
    /// Upgrades before this one.
    pub(crate) upgrades_done: u64,
    pub(crate) upgrades_failed: u64,
    /// Since when nobody is served, in microseconds since 1970.
    pub(crate) frozen_at_us: u64,
    /// What was read of the next request of each idle HTTP connection, in the order of their descriptors.
    pub(crate) idle_read: Vec<Bytes>,
}

/// A take-over that has begun: the old process knows that this one is there.
pub(crate) struct Heir {
    take: Take,
}

/// What was inherited, and is served from here on.
pub(crate) struct Inherited {
    pub(crate) front: Paused,
    pub(crate) handovers: Handovers,
    /// Since when nobody is served.
    pub(crate) frozen_at: SystemTime,
    /// When this is dropped, the old process knows that this one serves.
    pub(crate) channel: Channel,
}

impl Heir {
    /// Says hello to the process whose socket this is.
    pub(crate) async fn begin(socket: PathBuf) -> anyhow::Result<Self> {
        let take = spawn_blocking(move || Take::begin(&socket, env!("CARGO_PKG_VERSION"), HELLO)).await??;
        Ok(Self { take })
    }

    /// Says that everything is ready, and takes over. Before the old process has handed over everything,
    /// nothing of it is touched.
    pub(crate) async fn inherit(
        self,
        manager: &ConnectionManager,
        settings: &Settings,
    ) -> anyhow::Result<Inherited> {
        let room = settings.max_connections;
        // The old process has so long, too.
        let timeout = settings.upgrade_timeout + HELLO;
        let old = self.take.old().clone();
        let ((state, clients, channel), entrance) = spawn_blocking(move || {
            let mut taken = self.take.receive::<ServerState, ConnectionState>(room, timeout)?;
            // Whatever can fail must fail before the commit.
            let (state, descriptors) = &mut taken.server;
            let entrance = entrance(std::mem::take(descriptors), std::mem::take(&mut state.idle_read))
                .context("the listening socket could not be used")?;
            let ((state, _), clients, channel) = taken.commit(HELLO)?;
            anyhow::Ok(((state, clients, channel), entrance))
        })
        .await??;
        let count = clients.len();
        manager.adopt(state.manager, clients);
        info!(clients = count, "took over from process {}, version {}", old.pid, old.version);
        Ok(Inherited {
            front: Paused { entrance, notifier: state.notifier },
            handovers: Handovers {
                done: state.upgrades_done + 1,
                failed: state.upgrades_failed,
                clients: count as u64,
                paused: 0.0,
            },
            frozen_at: UNIX_EPOCH + Duration::from_micros(state.frozen_at_us),
            channel,
        })
    }
}

/// The listening socket comes first, then the idle HTTP connections.
fn entrance(descriptors: Vec<OwnedFd>, read: Vec<Bytes>) -> io::Result<Entrance> {
    let mut descriptors = descriptors.into_iter();
    let listener = descriptors.next().ok_or_else(|| io::Error::other("it did not come"))?;
    let listener = TcpListener::from_std(std::net::TcpListener::from(listener))?;
    // Builds that hand over only connections of which nothing was read do not say what was read.
    let read = read.into_iter().chain(iter::repeat(Bytes::new()));
    let idle = descriptors.zip(read).map(|(socket, read)| {
        let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
        Ok(IdleConnection { stream, read })
    });
    Ok(Entrance { listener, idle: idle.collect::<io::Result<_>>()? })
}
