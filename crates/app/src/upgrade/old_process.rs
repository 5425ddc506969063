//! Handing everything over to a new process: the old process's side of an upgrade.
//!
//! Until the old process has committed, nothing is lost: whatever fails, the new process is ended, and the old one
//! goes on as if nothing had happened.

use std::{
    future::Future,
    os::fd::AsFd,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, bail};
use humantime::format_duration;
use lastcall_core::settings::{FOREGROUND_VARIABLE, HANDOVER_VARIABLE, SUPERVISOR_VARIABLE, SettingsFile};
use lastcall_endpoints::UpgradeStats;
use lastcall_handover::{FramedStream, HandoverSender, SendError, StreamError, UpgradeProgress};
use lastcall_lifecycle::{AllSignals, NewProcess, Signal, Signals, Upgrade};
use lastcall_websockets::{ConnectionManager, Frozen};
use rustix::process::{Pid, kill_process};
use tokio::{
    process::{self, Child},
    sync::oneshot,
    task::spawn_blocking,
    time::timeout,
};
use tracing::{error, info, warn};

use super::{
    control::{ControlServer, SharedSocket, UpgradeClient},
    descriptor::Inheritable,
    program::Program,
    state::{ServerDescriptors, ServerState},
    supervisor::{Role, Supervised},
    timeouts::{
        EXIT_TIMEOUT, FREEZE_TIMEOUT, SERVING_TIMEOUT, STOP_TIMEOUTS, TRANSFER_TIMEOUT, UPGRADE_TIMEOUT,
    },
};
use crate::{
    ingress::{Ingress, SuspendedIngress},
    version,
};

/// Most commands that wait for the result of one upgrade: each has a descriptor.
const MAX_CLIENTS: usize = 64;

/// Carries out upgrades.
pub(crate) struct Upgrader {
    pub(crate) requests: UpgradeRequests,
    pub(crate) handover: Handover,
}

/// Where requests for upgrades come from.
pub(crate) struct UpgradeRequests {
    pub(crate) signals: AllSignals,
    pub(crate) listening: Signals,
    /// `None`: it was left to the new process.
    pub(crate) control: Option<ControlServer>,
}

/// What a handover needs.
pub(crate) struct Handover {
    /// Or why no new process can be started.
    pub(crate) program: anyhow::Result<Program>,
    /// The settings files that this process has read.
    pub(crate) files: Vec<SettingsFile>,
    pub(crate) role: Role,
    /// Whether a service manager chose the listening socket.
    pub(crate) activated: bool,
    pub(crate) signals: Signals,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) manager: ConnectionManager,
    pub(crate) timeout: Duration,
    pub(crate) upgrade_stats: Arc<Mutex<UpgradeStats>>,
    /// Once everything is handed over: what is left to be supervised.
    pub(crate) supervised: Option<Supervised>,
}

/// A request for an upgrade.
pub(crate) enum Request {
    Signal(Signal),
    /// An operator waits to hear how it goes.
    Client(UpgradeClient),
}

/// The new process failed after the commit.
#[derive(Debug, thiserror::Error)]
#[error("it had taken over, and its connections are closed now: {clients}")]
struct Disconnected {
    clients: usize,
}

/// A handover that was carried out.
struct HandoverSummary {
    new: NewProcess,
    progress: UpgradeProgress,
}

impl UpgradeRequests {
    async fn next(&mut self) -> Request {
        loop {
            let signal = match &mut self.control {
                Some(control) => tokio::select! {
                    signal = self.signals.next() => signal,
                    client = control.next() => return Request::Client(client),
                },
                None => self.signals.next().await,
            };
            if self.listening.asks_for_upgrade(signal) {
                return Request::Signal(signal);
            }
        }
    }
}

impl Upgrade for Upgrader {
    type Request = Request;

    async fn requested(&mut self) -> Request {
        self.requests.next().await
    }

    async fn refuse(&mut self, request: Request, reason: &str) {
        warn!(requested_by = request.name(), "no upgrade: {reason}");
        if let Request::Client(mut client) = request {
            client.report(&UpgradeProgress::Failed { reason: reason.to_owned() }).await;
        }
    }

    async fn carry_out(&mut self, request: Request, interrupted: impl Future) -> Option<NewProcess> {
        let Self { requests, handover } = self;
        let upgrade_stats = Arc::clone(&handover.upgrade_stats);
        let mut waiting = Vec::new();
        info!(requested_by = request.name(), "an upgrade was requested");
        waiting.extend(request.client());
        let control = requests.control.as_ref().map(ControlServer::socket);
        let (started, mut has_started) = oneshot::channel();
        let mut first = None;
        let result = {
            let mut handing_over = pin!(handover.run(control, started, interrupted));
            loop {
                tokio::select! {
                    biased;
                    Ok(progress) = &mut has_started, if first.is_none() => {
                        report_to_all(&mut waiting, &progress).await;
                        first = Some(progress);
                    }
                    result = &mut handing_over => break result,
                    // UpgradeRequests that come meanwhile are for the same.
                    request = requests.next() => if let Some(mut client) = request.client() {
                        if waiting.len() >= MAX_CLIENTS {
                            let reason = "too many commands wait for this upgrade already".to_owned();
                            client.report(&UpgradeProgress::Failed { reason }).await;
                            continue;
                        }
                        if let Some(progress) = &first {
                            client.report(progress).await;
                        }
                        waiting.push(client);
                    }
                }
            }
        };
        match result {
            Ok(HandoverSummary { new, progress }) => {
                if let Some(control) = requests.control.take() {
                    waiting.extend(control.leave_to_new_process().await);
                }
                report_to_all(&mut waiting, &progress).await;
                Some(new)
            }
            Err(error) => {
                handover.role.reset();
                let reason = if error.is::<Disconnected>() {
                    handover.role.report();
                    let reason = format!("the server goes on without its clients: {error:#}");
                    error!("the upgrade failed; {reason}");
                    reason
                } else {
                    let reason = format!("the server goes on as before: {error:#}");
                    warn!("the upgrade failed; {reason}");
                    reason
                };
                upgrade_stats.lock().unwrap_or_else(PoisonError::into_inner).failed += 1;
                report_to_all(&mut waiting, &UpgradeProgress::Failed { reason }).await;
                None
            }
        }
    }
}

/// Sends the signals that came during the handover to the new process, once more.
fn forward_signals(signals: &[Signal], pid: u32) {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    for signal in signals {
        info!(new_pid = pid, signal = signal.name(), "passing a signal on to the new process");
        if let Some(number) = rustix::process::Signal::from_named_raw(i32::from(signal.number()))
            && let Err(error) = kill_process(process, number)
        {
            warn!(%error, new_pid = pid, signal = signal.name(), "a signal could not be passed on");
        }
    }
}

async fn report_to_all(clients: &mut [UpgradeClient], progress: &UpgradeProgress) {
    for client in clients {
        client.report(progress).await;
    }
}

impl Handover {
    async fn run(
        &mut self,
        control: Option<SharedSocket>,
        started: oneshot::Sender<UpgradeProgress>,
        interrupted: impl Future,
    ) -> anyhow::Result<HandoverSummary> {
        let mut interrupted = pin!(interrupted);
        let (mut child, stream, program) = self.start()?;
        let pid = child.id().context("the new process ended at once")?;
        info!(new_pid = pid, program = %program.display(), "upgrade: process {pid} gets ready to take over");
        // The receiver is there as long as this is polled.
        let most_seconds = (self.timeout + UPGRADE_TIMEOUT).as_secs();
        let _ = started.send(UpgradeProgress::Started { pid, program: program.clone(), most_seconds });
        let deadline = Instant::now() + self.timeout;
        let ready = spawn_blocking(move || HandoverSender::begin(stream, version::full(), deadline));
        let prepared = tokio::select! {
            prepared = timeout(self.timeout, ready) => match prepared {
                Ok(Ok(prepared)) => prepared.map_err(anyhow::Error::from),
                Ok(Err(panicked)) => Err(panicked.into()),
                Err(_) => Err(anyhow!("it was not ready within {}", format_duration(self.timeout))),
            },
            _ = child.wait() => Err(anyhow!("it never said that it was ready")),
            _ = &mut interrupted => Err(anyhow!("this process was asked to end meanwhile")),
        };
        let unread = |sender: &HandoverSender| {
            let read = &sender.new_process().files;
            self.files.iter().find(|file| !read.contains(&file.path)).map(|file| file.path.clone())
        };
        let prepared = prepared.and_then(|sender| match unread(&sender) {
            Some(file) => Err(anyhow!(
                "it could not read the settings file {}, which this process has read",
                file.display()
            )),
            None => Ok(sender),
        });
        let handed_over = match prepared {
            Ok(sender) => self.transfer(sender, control, &mut child, program).await,
            Err(error) => Err(kill(&mut child, error).await),
        };
        let done = handed_over.with_context(|| format!("process {pid} did not take over"))?;
        self.role.stop_receiving_signals().await;
        // No signal can come in between: there is no await from here on.
        let (signals, pending) = (self.signals.all(), self.signals.asked_to_end());
        match std::mem::replace(&mut self.role, Role::Followed) {
            Role::Started(Some(links)) => {
                self.supervised = Some(Supervised { links, child, signals, pending });
            }
            _ => forward_signals(&pending, pid),
        }
        Ok(done)
    }

    /// Starts the new process. It has the same standard streams, so its log goes on where this one's ends. Returns
    /// it, the stream to it, and the file that it runs.
    fn start(&mut self) -> anyhow::Result<(Child, FramedStream, PathBuf)> {
        let program = self.program.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        if let Some(gone) = self.files.iter().map(|file| &file.path).find(|path| !path.exists()) {
            bail!(
                "the settings file {} was read at the start and is gone: bring it back, or restart the server \
                 without it",
                gone.display()
            );
        }
        let path = program.path()?;
        let mut command = program.command(&path)?;
        let (stream, inherited) = FramedStream::pair().context("there are no sockets left to speak by")?;
        let inheritable = Inheritable::new(&inherited).context("a socket cannot be inherited")?;
        command.env(HANDOVER_VARIABLE, inheritable.number()).env_remove(SUPERVISOR_VARIABLE);
        command.env(FOREGROUND_VARIABLE, if self.signals.are_of_a_foreground() { "1" } else { "0" });
        let link = self.role.link().context("this process cannot become a supervisor")?;
        let link = link.map(Inheritable::new).transpose().context("a socket cannot be inherited")?;
        if let Some(link) = &link {
            command.env(SUPERVISOR_VARIABLE, link.number());
        }
        let child = process::Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        Ok((child, stream, path))
    }

    /// From here on it is not interrupted: every step has its bound.
    async fn transfer(
        &self,
        sender: HandoverSender,
        control: Option<SharedSocket>,
        child: &mut Child,
        program: PathBuf,
    ) -> anyhow::Result<HandoverSummary> {
        let pid = child.id().context("the new process ended")?;
        if let Err(error) = sender.check_capacity(self.manager.count()) {
            return Err(kill(child, error.into()).await);
        }
        let suspended = match self.ingress.suspend(STOP_TIMEOUTS).await {
            Ok(Some(suspended)) => suspended,
            Ok(None) => return Err(kill(child, anyhow!("this process does not serve")).await),
            Err(error) => return Err(kill(child, error).await),
        };
        let frozen_at = Instant::now();
        let frozen = match timeout(FREEZE_TIMEOUT, self.manager.freeze()).await {
            Ok(Some(frozen)) => frozen,
            _ => {
                let error = anyhow!("the event loops did not stop within {FREEZE_TIMEOUT:?}");
                let error = kill(child, error).await;
                self.ingress.resume(suspended);
                return Err(error);
            }
        };
        // Now, as it may have been made again meanwhile.
        let control = control.map(|control| control.share()).transpose();
        let (control, identity) = match control {
            Ok(control) => control.flatten().unzip(),
            Err(error) => {
                let error = anyhow::Error::from(error).context("the control socket cannot be shared");
                let error = kill(child, error).await;
                drop(frozen);
                self.ingress.resume(suspended);
                return Err(error);
            }
        };
        let state = ServerState {
            manager: frozen.manager(),
            notifier: suspended.notifier,
            control: identity,
            activated: self.activated,
            upgrades_done: self.upgrade_stats().succeeded,
            upgrades_failed: self.upgrade_stats().failed,
            refused: self.ingress.refusals.counts(),
            frozen_at_us: micros_since_1970(),
            idle_read: suspended.http.idle.iter().map(|connection| connection.read.clone()).collect(),
        };
        let held = Arc::new(Mutex::new(Some((sender, suspended, frozen))));
        let most = TRANSFER_TIMEOUT.min(self.timeout);
        let sent = spawn_blocking({
            let held = Arc::clone(&held);
            move || {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((sender, suspended, frozen)) = held.as_mut() else {
                    return Err(SendError::Unexpected);
                };
                send(sender, &state, suspended, control.as_ref(), frozen, most)
            }
        });
        let sent = sent.await.map_err(anyhow::Error::from).and_then(|sent| Ok(sent?));
        let held = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((sender, mut suspended, frozen)) = held else { bail!("what was to be handed over is lost") };
        let clients = match sent {
            Ok(clients) => clients,
            Err(error) => {
                // It must be gone before any connection is served here again.
                let error = kill(child, error).await;
                drop(frozen);
                self.ingress.resume(suspended);
                return Err(error);
            }
        };
        let hello = sender.new_process().clone();
        let deadline = Instant::now() + SERVING_TIMEOUT;
        let serving = spawn_blocking(move || sender.wait_until_serving(deadline)).await;
        if let Err(error) = serving.map_err(anyhow::Error::from).and_then(|serving| Ok(serving?)) {
            // What it has read and written by then is not known: the connections cannot go on here.
            let error = kill(child, error.context("it did not serve")).await;
            frozen.disconnect();
            suspended.http.idle.clear();
            self.ingress.resume(suspended);
            return Err(error.context(Disconnected { clients }));
        }
        let paused_for = frozen_at.elapsed();
        // Closing thousands of descriptors takes a while, which the new process can use better.
        frozen.release();
        drop(suspended);
        let paused_ms = paused_for.as_secs_f64() * 1e3;
        info!(
            new_pid = pid,
            clients,
            paused_ms,
            old_version = version::full(),
            new_version = hello.version,
            "process {pid} has taken over: version {} in place of {}",
            hello.version,
            version::full()
        );
        Ok(HandoverSummary {
            new: NewProcess { pid, is_main: matches!(self.role, Role::Followed) },
            progress: UpgradeProgress::Done {
                pid,
                program,
                version: hello.version,
                old_version: Some(version::full().to_owned()),
                files: hello.files,
                clients,
                paused_ms,
            },
        })
    }

    fn upgrade_stats(&self) -> UpgradeStats {
        *self.upgrade_stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(
    sender: &HandoverSender,
    state: &ServerState,
    suspended: &SuspendedIngress,
    control: Option<&std::os::fd::OwnedFd>,
    frozen: &Frozen,
    most: Duration,
) -> Result<usize, SendError> {
    let descriptors = ServerDescriptors {
        listener: suspended.http.listener.as_fd(),
        control: control.map(AsFd::as_fd),
        idle: suspended.http.idle.iter().map(|connection| connection.stream.as_fd()).collect(),
    };
    let descriptors = descriptors.into_order();
    let clients = frozen.connections().map(|(socket, state)| {
        let size = state.size();
        (socket, state, size)
    });
    sender.send_all((state, &descriptors), clients, most)
}

/// Ends the new process; if it ended by itself, that is why nothing came of it.
async fn kill(child: &mut Child, error: anyhow::Error) -> anyhow::Error {
    // A process that ends closes its sockets a moment before its exit code is known.
    let gone = matches!(error.downcast_ref(), Some(SendError::Stream(StreamError::Gone)));
    let time = if gone { EXIT_TIMEOUT } else { Duration::ZERO };
    if let Ok(Ok(status)) = timeout(time, child.wait()).await {
        let ended = anyhow!("it ended by itself ({status}); its own output says why");
        return if gone { ended } else { error.context(ended) };
    }
    // Killed, and waited for: whatever it has of this process's is closed then.
    match child.kill().await {
        Ok(()) => error,
        Err(failed) => error.context(format!("and it could not be ended: {failed}")),
    }
}

fn micros_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl Request {
    /// Where it came from.
    fn name(&self) -> &'static str {
        match self {
            Self::Signal(signal) => signal.name(),
            Self::Client(_) => "lastcall upgrade",
        }
    }

    fn client(self) -> Option<UpgradeClient> {
        match self {
            Self::Signal(_) => None,
            Self::Client(client) => Some(client),
        }
    }
}
