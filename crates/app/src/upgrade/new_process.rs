//! Taking over from the old process: the new process's side of an upgrade.

use std::{io, iter, os::fd::OwnedFd, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use lastcall_core::{
    clock,
    settings::{Settings, SettingsFile},
};
use lastcall_endpoints::{IdleConnection, Listener, ListenerState, RefusalCounts, UpgradeStats};
use lastcall_handover::{Committed, ControlSocket, FramedStream, HandoverReceiver, Hello, OldProcess};
use lastcall_websockets::{ConnectionManager, ConnectionSnapshot};
use tokio::{net::TcpStream, task::spawn_blocking};
use tracing::info;

use super::{
    parts,
    state::{ServerDescriptors, ServerState},
    timeouts::{COMMIT_TIMEOUT, HELLO_TIMEOUT, RECEIVE_TIMEOUT},
};
use crate::{broker::ServerBroker, ingress::SuspendedIngress, version};

/// A handover to this process that has begun: the old process knows that this one is there.
pub(crate) struct IncomingHandover {
    receiver: HandoverReceiver,
}

/// All that this process has taken over, beside the clients.
pub(crate) struct TakenOver {
    pub(crate) ingress: SuspendedIngress,
    pub(crate) control: Option<ControlSocket>,
    /// True if systemd has passed the listening socket, to a process before this one.
    pub(crate) from_systemd: bool,
    pub(crate) upgrade_stats: UpgradeStats,
    pub(crate) refused: RefusalCounts,
    /// Since when the clients are not served.
    pub(crate) frozen: FrozenAt,
    /// Waits for the report that this process serves.
    pub(crate) old_process: OldProcess,
}

/// The moment from which on the clients were not served.
pub(crate) enum FrozenAt {
    SinceBoot(Duration),
    /// By the time of day, as builds before protocol 4 told it.
    Since1970(Duration),
}

impl FrozenAt {
    fn of(state: &ServerState) -> Self {
        match state.frozen_at_boot_us {
            0 => Self::Since1970(Duration::from_micros(state.frozen_at_us)),
            time => Self::SinceBoot(Duration::from_micros(time)),
        }
    }

    /// Returns how long ago that was; 0 if the clock was set back meanwhile.
    pub(crate) fn elapsed(&self) -> Duration {
        match self {
            Self::SinceBoot(time) => clock::since_boot().saturating_sub(*time),
            Self::Since1970(time) => clock::since_1970().saturating_sub(*time),
        }
    }
}

impl IncomingHandover {
    /// Says hello to the old process, which is at the other end of this descriptor. `files` are the settings
    /// files that this process has read.
    ///
    /// # Errors
    /// When the old process is gone, or refuses.
    pub(crate) async fn connect(descriptor: OwnedFd, files: &[SettingsFile]) -> anyhow::Result<Self> {
        let stream = FramedStream::new(descriptor.into()).context("what was inherited is no socket")?;
        let hello = Hello {
            version: version::full().to_owned(),
            files: files.iter().map(|file| file.path.clone()).collect(),
            empty_files: files
                .iter()
                .filter(|file| !file.has_settings)
                .map(|file| file.path.clone())
                .collect(),
            ..Hello::default()
        };
        let begin = move || HandoverReceiver::begin(stream, hello, HELLO_TIMEOUT);
        Ok(Self { receiver: spawn_blocking(begin).await?? })
    }

    /// Says that this process is ready, and takes over: the channels go to `broker`, the clients to
    /// `manager`. Nothing of the old process is touched before it has committed.
    ///
    /// # Errors
    /// When the old process did not hand everything over. It continues then, and this process must end.
    pub(crate) async fn receive(
        self,
        manager: &ConnectionManager,
        broker: &ServerBroker,
        settings: &Settings,
    ) -> anyhow::Result<TakenOver> {
        let max_clients = settings.max_connections;
        let old = self.receiver.old_process().clone();
        let history = broker.clone();
        let mut restoration = manager.begin_restoring();
        let protocol = old.protocol;
        let received = spawn_blocking(move || {
            let take_part = |part: Vec<u8>| parts::receive(&part, protocol, &history, &mut restoration);
            let received = self.receiver.receive::<ServerState, ConnectionSnapshot>(
                max_clients,
                RECEIVE_TIMEOUT,
                take_part,
            )?;
            received.clients.iter().try_for_each(|client| restoration.check(&client.state))?;
            anyhow::Ok((received, restoration))
        });
        let (mut received, restoration) = received.await??;
        // Whatever can fail must fail before the commit.
        let descriptors = std::mem::take(&mut received.server.descriptors);
        let (ingress, control) = sockets_of(&mut received.server.state, descriptors)?;
        let Committed { server, clients, old_process } =
            spawn_blocking(move || received.commit(COMMIT_TIMEOUT)).await??;
        let state = server.state;
        let frozen = FrozenAt::of(&state);
        let count = clients.len();
        let clients = clients.into_iter().map(|client| (client.socket, client.state)).collect();
        manager.restore(state.manager, restoration, clients).await?;
        broker.finish_import();
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
        Ok(TakenOver {
            ingress,
            control,
            from_systemd: state.activated,
            upgrade_stats: UpgradeStats {
                succeeded: state.upgrades_done + 1,
                failed: state.upgrades_failed,
                last_clients: count as u64,
                // Not known before this process serves.
                last_pause: Duration::ZERO,
                in_progress: false,
            },
            refused: state.refused,
            frozen,
            old_process,
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
