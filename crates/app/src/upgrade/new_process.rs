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
use lastcall_endpoints::{IdleConnection, Listener, ListenerState, RefusalCounts, UpgradeStats};
use lastcall_handover::{Committed, ControlSocket, FramedStream, HandoverReceiver, Serving};
use lastcall_websockets::{ConnectionManager, ConnectionSnapshot};
use tokio::{net::TcpStream, task::spawn_blocking};
use tracing::info;

use super::{
    state::{ServerDescriptors, ServerState},
    timeouts::{COMMIT_TIMEOUT, HELLO_TIMEOUT, RECEIVE_TIMEOUT},
};
use crate::{ingress::SuspendedIngress, version};

/// A handover to this process that has begun: the old process knows that this one is there.
pub(crate) struct IncomingHandover {
    receiver: HandoverReceiver,
}

/// What was inherited, and is served from here on.
pub(crate) struct ReceivedServer {
    pub(crate) ingress: SuspendedIngress,
    pub(crate) control: Option<ControlSocket>,
    pub(crate) activated: bool,
    pub(crate) upgrade_stats: UpgradeStats,
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
        let old = self.receiver.old().clone();
        let received = spawn_blocking(move || {
            self.receiver.receive::<ServerState, ConnectionSnapshot>(room, RECEIVE_TIMEOUT)
        });
        let mut received = received.await??;
        // Whatever can fail must fail before the commit.
        let (state, descriptors) = &mut received.server;
        let (ingress, control) = sockets_of(state, std::mem::take(descriptors))?;
        let Committed { server: state, clients, serving } =
            spawn_blocking(move || received.commit(COMMIT_TIMEOUT)).await??;
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
            ingress,
            control,
            activated: state.activated,
            upgrade_stats: UpgradeStats {
                succeeded: state.upgrades_done + 1,
                failed: state.upgrades_failed,
                last_clients: count as u64,
                // Not known before this process serves.
                last_pause: Duration::ZERO,
                in_progress: false,
            },
            refused: state.refused,
            frozen_at: UNIX_EPOCH + Duration::from_micros(state.frozen_at_us),
            serving,
        })
    }
}

/// Makes sockets of the descriptors that came with `state`.
fn sockets_of(
    state: &mut ServerState,
    descriptors: Vec<OwnedFd>,
) -> anyhow::Result<(SuspendedIngress, Option<ControlSocket>)> {
    let ServerDescriptors { listener, control, idle } = ServerDescriptors::from_order(state, descriptors)?;
    let control = control.zip(state.control.clone());
    let control = control.map(|(listener, file)| ControlSocket::from_listener(listener, file));
    let control = control.transpose().context("the control socket could not be used")?;
    let read = std::mem::take(&mut state.idle_read).into_iter().chain(iter::repeat(Bytes::new()));
    let http = || {
        let listener = Listener::from_fd(listener)?;
        let idle = idle.into_iter().zip(read).map(|(socket, read)| {
            let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
            Ok(IdleConnection { stream, read })
        });
        io::Result::Ok(ListenerState { listener, idle: idle.collect::<io::Result<_>>()? })
    };
    let http = http().context("the sockets of the HTTP server could not be used")?;
    Ok((SuspendedIngress { http, notifier: state.notifier }, control))
}
