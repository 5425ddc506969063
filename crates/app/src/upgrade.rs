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
use lastcall_core::settings::{FOREGROUND, SUPERVISOR, SettingsFile, TAKE_OVER};
use lastcall_endpoints::{Handovers, Patience};
use lastcall_handover::{Channel, ChannelError, Give, GiveError, Progress};
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

use crate::{
    control::{Control, ControlShare, Operator},
    front::{Front, Paused},
    inherit::ServerState,
    operate::UPGRADE_TIMEOUT,
    program::Program,
    supervisor::{Inheritable, Role, Supervised},
    version,
};

/// How long requests have to be finished before their connections, or what they ask for, can move. Every WebSocket
/// is served meanwhile.
const PATIENCE: Patience = Patience { closing: Duration::from_secs(1), in_flight: Duration::from_secs(2) };

/// How long the event loops have to come to a stop: each writes what was published before.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long handing over may take, while no connection is served. 10,000 connections take a tenth of a second.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the new process has to serve, once everything is its own.
const SERVING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process has to end that has closed its side of the handover.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Most commands that wait for the result of one upgrade: each has a descriptor.
const MAX_WAITING: usize = 64;

/// Carries out upgrades.
pub(crate) struct Upgrader {
    pub(crate) requests: Requests,
    pub(crate) handover: Handover,
}

/// Where requests for upgrades come from.
pub(crate) struct Requests {
    pub(crate) signals: AllSignals,
    pub(crate) listening: Signals,
    /// `None`: it was left to the new process.
    pub(crate) control: Option<Control>,
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
    pub(crate) front: Arc<Front>,
    pub(crate) manager: ConnectionManager,
    pub(crate) timeout: Duration,
    pub(crate) handovers: Arc<Mutex<Handovers>>,
    /// Once everything is handed over: what is left to be supervised.
    pub(crate) supervised: Option<Supervised>,
}

/// A request for an upgrade.
pub(crate) enum Request {
    Signal(Signal),
    /// An operator waits to hear how it goes.
    Operator(Operator),
}

/// The new process failed after the commit.
#[derive(Debug, thiserror::Error)]
#[error("it had taken over, and its connections are closed now: {clients}")]
struct Disconnected {
    clients: usize,
}

/// A handover that was carried out.
struct Done {
    new: NewProcess,
    progress: Progress,
}

impl Requests {
    async fn next(&mut self) -> Request {
        loop {
            let signal = match &mut self.control {
                Some(control) => tokio::select! {
                    signal = self.signals.next() => signal,
                    operator = control.next() => return Request::Operator(operator),
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
        if let Request::Operator(mut operator) = request {
            operator.tell(&Progress::Failed { reason: reason.to_owned() }).await;
        }
    }

    async fn carry_out(&mut self, request: Request, interrupted: impl Future) -> Option<NewProcess> {
        let Self { requests, handover } = self;
        let handovers = Arc::clone(&handover.handovers);
        let mut waiting = Vec::new();
        info!(requested_by = request.name(), "an upgrade was requested");
        waiting.extend(request.operator());
        let control = requests.control.as_ref().map(Control::to_share);
        let (started, mut has_started) = oneshot::channel();
        let mut first = None;
        let result = {
            let mut handing_over = pin!(handover.hand_over(control, started, interrupted));
            loop {
                tokio::select! {
                    biased;
                    Ok(progress) = &mut has_started, if first.is_none() => {
                        tell_all(&mut waiting, &progress).await;
                        first = Some(progress);
                    }
                    result = &mut handing_over => break result,
                    // Requests that come meanwhile are for the same.
                    request = requests.next() => if let Some(mut operator) = request.operator() {
                        if waiting.len() >= MAX_WAITING {
                            let reason = "too many commands wait for this upgrade already".to_owned();
                            operator.tell(&Progress::Failed { reason }).await;
                            continue;
                        }
                        if let Some(progress) = &first {
                            operator.tell(progress).await;
                        }
                        waiting.push(operator);
                    }
                }
            }
        };
        match result {
            Ok(Done { new, progress }) => {
                if let Some(control) = requests.control.take() {
                    waiting.extend(control.leave().await);
                }
                tell_all(&mut waiting, &progress).await;
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
                handovers.lock().unwrap_or_else(PoisonError::into_inner).failed += 1;
                tell_all(&mut waiting, &Progress::Failed { reason }).await;
                None
            }
        }
    }
}

/// Sends the signals that came during the handover to the new process, once more.
fn pass_on(signals: &[Signal], pid: u32) {
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

async fn tell_all(operators: &mut [Operator], progress: &Progress) {
    for operator in operators {
        operator.tell(progress).await;
    }
}

impl Handover {
    async fn hand_over(
        &mut self,
        control: Option<ControlShare>,
        started: oneshot::Sender<Progress>,
        interrupted: impl Future,
    ) -> anyhow::Result<Done> {
        let mut interrupted = pin!(interrupted);
        let (mut child, channel, program) = self.start()?;
        let pid = child.id().context("the new process ended at once")?;
        info!(new_pid = pid, program = %program.display(), "upgrade: process {pid} gets ready to take over");
        // The receiver is there as long as this is polled.
        let most_seconds = (self.timeout + UPGRADE_TIMEOUT).as_secs();
        let _ = started.send(Progress::Started { pid, program: program.clone(), most_seconds });
        let deadline = Instant::now() + self.timeout;
        let ready = spawn_blocking(move || Give::begin(channel, version::full(), deadline));
        let prepared = tokio::select! {
            prepared = timeout(self.timeout, ready) => match prepared {
                Ok(Ok(prepared)) => prepared.map_err(anyhow::Error::from),
                Ok(Err(panicked)) => Err(panicked.into()),
                Err(_) => Err(anyhow!("it was not ready within {}", format_duration(self.timeout))),
            },
            _ = child.wait() => Err(anyhow!("it never said that it was ready")),
            _ = &mut interrupted => Err(anyhow!("this process was asked to end meanwhile")),
        };
        let unread = |give: &Give| {
            let read = &give.new_process().files;
            self.files.iter().find(|file| !read.contains(&file.path)).map(|file| file.path.clone())
        };
        let prepared = prepared.and_then(|give| match unread(&give) {
            Some(file) => Err(anyhow!(
                "it could not read the settings file {}, which this process has read",
                file.display()
            )),
            None => Ok(give),
        });
        let handed_over = match prepared {
            Ok(give) => self.transfer(give, control, &mut child, program).await,
            Err(error) => Err(end(&mut child, error).await),
        };
        let done = handed_over.with_context(|| format!("process {pid} did not take over"))?;
        self.role.handed_over().await;
        // No signal can come in between: there is no await from here on.
        let (signals, pending) = (self.signals.all(), self.signals.asked_to_end());
        match std::mem::replace(&mut self.role, Role::Followed) {
            Role::Started(Some(supervision)) => {
                self.supervised = Some(Supervised { supervision, child, signals, pending });
            }
            _ => pass_on(&pending, pid),
        }
        Ok(done)
    }

    /// Starts the new process. It has the same standard streams, so its log goes on where this one's ends. Returns
    /// it, the channel to it, and the file that it runs.
    fn start(&mut self) -> anyhow::Result<(Child, Channel, PathBuf)> {
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
        let (channel, inherited) = Channel::pair().context("there are no sockets left to speak by")?;
        let inheritable = Inheritable::new(&inherited).context("a socket cannot be inherited")?;
        command.env(TAKE_OVER, inheritable.number()).env_remove(SUPERVISOR);
        command.env(FOREGROUND, if self.signals.are_of_a_foreground() { "1" } else { "0" });
        let link = self.role.link().context("this process cannot become a supervisor")?;
        let link = link.map(Inheritable::new).transpose().context("a socket cannot be inherited")?;
        if let Some(link) = &link {
            command.env(SUPERVISOR, link.number());
        }
        let child = process::Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        Ok((child, channel, path))
    }

    /// From here on it is not interrupted: every step has its bound.
    async fn transfer(
        &self,
        give: Give,
        control: Option<ControlShare>,
        child: &mut Child,
        program: PathBuf,
    ) -> anyhow::Result<Done> {
        let pid = child.id().context("the new process ended")?;
        if let Err(error) = give.check_room(self.manager.count()) {
            return Err(end(child, error.into()).await);
        }
        let paused = match self.front.pause(PATIENCE).await {
            Ok(Some(paused)) => paused,
            Ok(None) => return Err(end(child, anyhow!("this process does not serve")).await),
            Err(error) => return Err(end(child, error).await),
        };
        let frozen_at = Instant::now();
        let frozen = match timeout(FREEZE_TIMEOUT, self.manager.freeze()).await {
            Ok(Some(frozen)) => frozen,
            _ => {
                let error = anyhow!("the event loops did not stop within {FREEZE_TIMEOUT:?}");
                let error = end(child, error).await;
                self.front.start(paused);
                return Err(error);
            }
        };
        // Now, as it may have been made again meanwhile.
        let control = control.map(|control| control.share()).transpose();
        let (control, identity) = match control {
            Ok(control) => control.flatten().unzip(),
            Err(error) => {
                let error = anyhow::Error::from(error).context("the control socket cannot be shared");
                let error = end(child, error).await;
                drop(frozen);
                self.front.start(paused);
                return Err(error);
            }
        };
        let state = ServerState {
            manager: frozen.manager_state(),
            notifier: paused.notifier,
            control: identity,
            activated: self.activated,
            upgrades_done: self.handovers().done,
            upgrades_failed: self.handovers().failed,
            refused: self.front.refusals.counts(),
            frozen_at_us: micros_since_1970(),
            idle_read: paused.entrance.idle.iter().map(|connection| connection.read.clone()).collect(),
        };
        let held = Arc::new(Mutex::new(Some((give, paused, frozen))));
        let most = TRANSFER_TIMEOUT.min(self.timeout);
        let sent = spawn_blocking({
            let held = Arc::clone(&held);
            move || {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((give, paused, frozen)) = held.as_mut() else { return Err(GiveError::Unexpected) };
                send(give, &state, paused, control.as_ref(), frozen, most)
            }
        });
        let sent = sent.await.map_err(anyhow::Error::from).and_then(|sent| Ok(sent?));
        let held = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((give, mut paused, frozen)) = held else { bail!("what was to be handed over is lost") };
        let clients = match sent {
            Ok(clients) => clients,
            Err(error) => {
                // It must be gone before any connection is served here again.
                let error = end(child, error).await;
                drop(frozen);
                self.front.start(paused);
                return Err(error);
            }
        };
        let hello = give.new_process().clone();
        let deadline = Instant::now() + SERVING_TIMEOUT;
        let serving = spawn_blocking(move || give.wait_until_serving(deadline)).await;
        if let Err(error) = serving.map_err(anyhow::Error::from).and_then(|serving| Ok(serving?)) {
            // What it has read and written by then is not known: the connections cannot go on here.
            let error = end(child, error.context("it did not serve")).await;
            frozen.disconnect();
            paused.entrance.idle.clear();
            self.front.start(paused);
            return Err(error.context(Disconnected { clients }));
        }
        let paused_for = frozen_at.elapsed();
        // Closing thousands of descriptors takes a while, which the new process can use better.
        frozen.give_away();
        drop(paused);
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
        Ok(Done {
            new: NewProcess { pid, is_main: matches!(self.role, Role::Followed) },
            progress: Progress::Done {
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

    fn handovers(&self) -> Handovers {
        *self.handovers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(
    give: &Give,
    state: &ServerState,
    paused: &Paused,
    control: Option<&std::os::fd::OwnedFd>,
    frozen: &Frozen,
    most: Duration,
) -> Result<usize, GiveError> {
    let mut descriptors = vec![paused.entrance.listener.as_fd()];
    descriptors.extend(control.map(AsFd::as_fd));
    descriptors.extend(paused.entrance.idle.iter().map(|connection| connection.stream.as_fd()));
    let clients = frozen.states().map(|(socket, state)| {
        let size = state.size();
        (socket, state, size)
    });
    give.hand_over((state, &descriptors), clients, most)
}

/// Ends the new process; if it ended by itself, that is why nothing came of it.
async fn end(child: &mut Child, error: anyhow::Error) -> anyhow::Error {
    // A process that ends closes its sockets a moment before its exit code is known.
    let gone = matches!(error.downcast_ref(), Some(GiveError::Channel(ChannelError::Gone)));
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
            Self::Operator(_) => "lastcall upgrade",
        }
    }

    fn operator(self) -> Option<Operator> {
        match self {
            Self::Signal(_) => None,
            Self::Operator(operator) => Some(operator),
        }
    }
}
