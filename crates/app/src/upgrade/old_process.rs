//! Handing everything over to a new process: the old process's side of an upgrade.
//!
//! Until the old process has committed, nothing is lost: whatever fails, the new process is ended, and the
//! old one continues as if nothing had happened.

use std::{
    fs,
    future::Future,
    io::ErrorKind,
    os::fd::OwnedFd,
    path::PathBuf,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use humantime::format_duration;
use lastcall_core::{clock, settings::SettingsFile};
use lastcall_endpoints::IdleConnection;
use lastcall_handover::{
    FileIdentity, FramedStream, HandoverSender, Hello, SendError, StreamError, UpgradeProgress,
    failpoint::{self, Step},
};
use lastcall_lifecycle::{NewProcess, ServiceManager, Signals};
use lastcall_websockets::{ConnectionManager, Frozen};
use tokio::{
    process,
    sync::oneshot,
    task::spawn_blocking,
    time::{timeout, timeout_at},
};
use tracing::info;

use super::{
    attempt::{Attempt, FailedHandover, FailedStep},
    control::{SharedSocket, SocketCopy},
    descriptor::Inheritable,
    parts::{OutgoingParts, SendPartError},
    program::Program,
    state::ServerState,
    stats::SharedUpgradeStats,
    supervisor::{Role, Supervised, forward_signals},
    timeouts::{
        AFTER_READY_TIMEOUT, FIT_TIMEOUT, FREEZE_TIMEOUT, SERVING_TIMEOUT, SETTLE_TIMEOUT, STOP_TIMEOUTS,
        TRANSFER_TIMEOUT,
    },
};
use crate::{
    broker::ServerBroker,
    ingress::{Ingress, SuspendedIngress},
    variables, version,
};

/// Most bytes of requests that have not arrived whole.
const MAX_IDLE_READ: usize = 8 << 20;

/// The reason where a signal to end has come first.
const INTERRUPTED: &str = "this process was asked to end meanwhile";

/// All that a handover needs.
pub(crate) struct OutgoingHandover {
    /// Or why no new process can be started.
    pub(crate) program: anyhow::Result<Program>,
    /// The files from which this process has settings.
    pub(crate) files: Vec<SettingsFile>,
    pub(crate) role: Role,
    pub(crate) service_manager: ServiceManager,
    /// True if systemd has passed the listening socket, to this process or to one before it.
    pub(crate) from_systemd: bool,
    pub(crate) signals: Signals,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) manager: ConnectionManager,
    pub(crate) broker: ServerBroker,
    /// The setting `upgrade_timeout`: how long the new process has to get ready, and to take over the
    /// history.
    pub(crate) timeout: Duration,
    pub(crate) upgrade_stats: SharedUpgradeStats,
    /// Once everything is handed over: what is left to be supervised.
    pub(crate) supervised: Option<Supervised>,
}

/// A handover that was carried out.
pub(super) struct HandoverSummary {
    pub(super) new_process: NewProcess,
    /// The last report to the commands that wait.
    pub(super) progress: UpgradeProgress,
}

/// All that the new process has taken over.
struct Transferred {
    new_process: Hello,
    clients: usize,
    /// The time for which no client was served.
    pause: Duration,
}

impl OutgoingHandover {
    /// Starts a new process and hands everything over to it. `started` is sent once it runs. Given up when
    /// `interrupted` is ready, until this process stops serving.
    ///
    /// # Errors
    /// Why the new process did not take over. Then this one continues.
    pub(super) async fn run(
        &mut self,
        control: Option<SharedSocket>,
        started: oneshot::Sender<UpgradeProgress>,
        interrupted: impl Future,
    ) -> Result<HandoverSummary, FailedHandover> {
        let mut interrupted = pin!(interrupted);
        self.role.stay_in_doubt(&self.service_manager).await;
        let begun = self.start(interrupted.as_mut()).await;
        let (mut attempt, stream) = begun.inspect_err(|_| self.role.roll_back())?;
        let (pid, program) = (attempt.pid, attempt.program.clone());
        info!(new_pid = pid, program = %program.display(), "upgrade: process {pid} gets ready to take over");
        let most_seconds = (self.timeout + AFTER_READY_TIMEOUT).as_secs();
        // The receiver is there as long as this is polled.
        let _ = started.send(UpgradeProgress::Started { pid, program: program.clone(), most_seconds });
        match self.hand_over(&mut attempt, stream, control, interrupted).await {
            Ok(transferred) => Ok(self.complete(attempt, transferred).await),
            Err(failed) => {
                let mut failed = attempt.roll_back(&self.ingress, &self.broker, failed).await;
                self.role.roll_back();
                failed.reason = failed.reason.context(format!("process {pid} did not take over"));
                Err(failed)
            }
        }
    }
}

impl OutgoingHandover {
    /// Starts the new process. Returns it with the stream to it.
    async fn start(&mut self, interrupted: Pin<&mut impl Future>) -> anyhow::Result<(Attempt, FramedStream)> {
        let program = self.program.as_ref().map_err(|error| anyhow!("{error:#}"))?.clone();
        if let Some(once) = self.files.iter().find(|file| !file.stays) {
            bail!(
                "this process has settings from {}, which can be read only once: write them into a file, and restart \
                 the server with that",
                once.path.display()
            );
        }
        let link = self.role.link().context("this process cannot become a supervisor")?;
        let launch = Launch {
            program,
            files: self.files.iter().map(|file| file.path.clone()).collect(),
            in_foreground: self.signals.started_in_foreground(),
            link: link.map(OwnedFd::try_clone).transpose().context("a socket cannot be inherited")?,
        };
        let (launched, mut launching) = oneshot::channel();
        // Files may be where nothing answers, and that must not keep this process from anything.
        spawn_blocking(move || {
            // If nobody waits any longer, the new process is ended.
            if let Err(Ok((mut attempt, _))) = launched.send(launch.run()) {
                attempt.end_early();
            }
        });
        let error = tokio::select! {
            begun = timeout(self.timeout, &mut launching) => match begun {
                Ok(begun) => return begun.context("starting it panicked, which is a bug")?,
                Err(_) => anyhow!("the program could not be started within {}", format_duration(self.timeout)),
            },
            _ = interrupted => anyhow!(INTERRUPTED),
        };
        launching.close();
        if let Ok(Ok((mut attempt, _))) = launching.try_recv() {
            attempt.end_early();
        }
        Err(error)
    }

    async fn hand_over(
        &self,
        attempt: &mut Attempt,
        stream: FramedStream,
        control: Option<SharedSocket>,
        mut interrupted: Pin<&mut impl Future>,
    ) -> Result<Transferred, FailedStep> {
        let deadline = Instant::now() + self.timeout;
        let sender = self.wait_until_ready(attempt, stream, deadline, interrupted.as_mut()).await?;
        let (sender, parts) = self.send_early(attempt, sender, deadline, interrupted.as_mut()).await?;
        if let Some(requests) = self.ingress.requests_in_flight() {
            tokio::select! {
                () = requests.settle(SETTLE_TIMEOUT) => {}
                _ = interrupted => return Err(anyhow!(INTERRUPTED).into()),
            }
        }
        self.transfer(attempt, sender, parts, control).await
    }

    /// Waits until the new process has loaded and built everything.
    async fn wait_until_ready(
        &self,
        attempt: &mut Attempt,
        stream: FramedStream,
        deadline: Instant,
        interrupted: Pin<&mut impl Future>,
    ) -> Result<HandoverSender, FailedStep> {
        let too_late = || anyhow!("it was not ready within {}", format_duration(self.timeout));
        let ready = spawn_blocking(move || HandoverSender::begin(stream, version::full(), deadline));
        let sender = tokio::select! {
            // A timeout here, too: the thread may not have been free to begin.
            ready = timeout_at(deadline.into(), ready) => match ready.map_err(|_| too_late())?? {
                Err(SendError::Stream(StreamError::TimedOut)) => return Err(too_late().into()),
                sender => sender?,
            },
            _ = attempt.child.wait() => return Err(SendError::Stream(StreamError::Gone).into()),
            _ = interrupted => return Err(anyhow!(INTERRUPTED).into()),
        };
        let Hello { files, empty_files, .. } = sender.new_process();
        if let Some(unread) = self.files.iter().find(|file| !files.contains(&file.path)) {
            let path = unread.path.display();
            return Err(
                anyhow!("it could not read the settings file {path}, which this process has read").into()
            );
        }
        if let Some(empty) = self.files.iter().find(|file| empty_files.contains(&file.path)) {
            let path = empty.path.display();
            return Err(anyhow!(
                "it found no setting in {path}, where this process had found some: bring them back, or restart the \
                 server without them"
            )
            .into());
        }
        Ok(sender)
    }

    /// Sends the channels, their history and their subscriptions, while they are used. Returns what is to
    /// send what changes until everything has stopped.
    async fn send_early(
        &self,
        attempt: &mut Attempt,
        sender: HandoverSender,
        deadline: Instant,
        interrupted: Pin<&mut impl Future>,
    ) -> Result<(HandoverSender, OutgoingParts), FailedStep> {
        let too_late =
            || anyhow!("it had not taken over the history within {}", format_duration(self.timeout));
        let (history, channels) = (self.broker.export(), self.manager.list_channels());
        let mut parts = OutgoingParts { history, channels };
        let sending = spawn_blocking(move || parts.send_early(&sender, deadline).map(|()| (sender, parts)));
        tokio::select! {
            sent = timeout_at(deadline.into(), sending) => match sent.map_err(|_| too_late())?? {
                Err(SendPartError::Send(SendError::Stream(StreamError::TimedOut))) => Err(too_late().into()),
                sent => Ok(sent?),
            },
            _ = attempt.child.wait() => Err(SendError::Stream(StreamError::Gone).into()),
            _ = interrupted => Err(anyhow!(INTERRUPTED).into()),
        }
    }

    /// Stops everything, and sends it. From here on the handover is not interrupted: every step has its
    /// bound.
    async fn transfer(
        &self,
        attempt: &mut Attempt,
        sender: HandoverSender,
        parts: OutgoingParts,
        control: Option<SharedSocket>,
    ) -> Result<Transferred, FailedStep> {
        sender.check_capacity(self.manager.count()).context(
            "its `max_connections` is less than the clients that are connected: raise it, or wait until there are fewer",
        )?;
        let suspended = self.ingress.suspend(STOP_TIMEOUTS).await?.context("this process does not serve")?;
        let suspended = attempt.suspended.insert(suspended);
        drop_long_requests(&mut suspended.http.idle);
        // What is not closed within that time is closed when the loops stand still, or goes over.
        let _ = timeout(FIT_TIMEOUT, self.manager.fit_unread()).await;
        let frozen_at = Instant::now();
        let frozen = timeout(FREEZE_TIMEOUT, self.manager.freeze()).await;
        let frozen =
            frozen.with_context(|| format!("the event loops did not stop within {FREEZE_TIMEOUT:?}"))?;
        let frozen = frozen.map_err(anyhow::Error::from)?;
        let frozen = attempt.frozen.insert(frozen);
        // Now, as it may have been made again meanwhile.
        let control = control.map(|control| control.copy()).transpose();
        let control = control.context("the control socket cannot be shared")?.flatten();
        let (control, file) = control.map(|SocketCopy { listener, file }| (listener, file)).unzip();
        let state = self.state(suspended, frozen, file);
        let sender = attempt.send(sender, parts, state, control, TRANSFER_TIMEOUT.min(self.timeout)).await?;

        let new_process = sender.new_process().clone();
        let deadline = Instant::now() + SERVING_TIMEOUT;
        let serving = spawn_blocking(move || sender.wait_until_serving(deadline)).await?;
        serving.map_err(|error| FailedStep::from(error).within("it did not serve"))?;
        let clients = attempt.committed.unwrap_or_default();
        Ok(Transferred { new_process, clients, pause: frozen_at.elapsed() })
    }

    fn state(
        &self,
        suspended: &SuspendedIngress,
        frozen: &Frozen,
        control: Option<FileIdentity>,
    ) -> ServerState {
        let stats = self.upgrade_stats.get();
        ServerState {
            manager: frozen.manager(),
            notifier: suspended.notifier,
            control,
            activated: self.from_systemd,
            upgrades_done: stats.succeeded,
            upgrades_failed: stats.failed,
            refused: self.ingress.refusals().counts(),
            frozen_at_boot_us: u64::try_from(clock::since_boot().as_micros()).unwrap_or(u64::MAX),
            frozen_at_us: 0,
            idle_read: suspended.http.idle.iter().map(|connection| connection.read.clone()).collect(),
        }
    }

    /// Leaves the rest to the new process, which serves.
    async fn complete(&mut self, attempt: Attempt, transferred: Transferred) -> HandoverSummary {
        let Transferred { new_process, clients, pause } = transferred;
        let (pid, program) = (attempt.pid, attempt.program.clone());
        let child = attempt.complete();
        let paused_ms = pause.as_secs_f64() * 1e3;
        info!(
            new_pid = pid,
            clients,
            paused_ms,
            old_version = version::full(),
            new_version = new_process.version,
            "process {pid} has taken over: version {} in place of {}",
            new_process.version,
            version::full()
        );
        let is_main = matches!(self.role, Role::FollowedByManager);
        self.role.stop_receiving_signals().await;
        // No signal can come in between: there is no await from here on.
        let (signals, pending) = (self.signals.all(), self.signals.ending_signals());
        match std::mem::replace(&mut self.role, Role::FollowedByManager) {
            Role::Root(Some(links)) => {
                self.supervised = Some(Supervised { links: Some(links), child, signals, pending });
            }
            Role::FollowedByManager => {
                forward_signals(&pending, pid);
                // In case that the service manager cannot be told.
                self.supervised = Some(Supervised { links: None, child, signals, pending: Vec::new() });
            }
            _ => forward_signals(&pending, pid),
        }
        HandoverSummary {
            new_process: NewProcess { pid, is_main },
            progress: UpgradeProgress::Done {
                pid,
                program,
                version: new_process.version,
                old_version: Some(version::full().to_owned()),
                files: new_process.files,
                clients,
                paused_ms,
            },
        }
    }
}

/// The start of a new process.
struct Launch {
    program: Program,
    /// The settings files that must be there.
    files: Vec<PathBuf>,
    in_foreground: bool,
    /// The new process's end of the link to the supervisor.
    link: Option<OwnedFd>,
}

impl Launch {
    /// Starts the new process. It has the same standard streams, so its log continues where this one's ends.
    /// Blocks while the files do not answer.
    fn run(self) -> anyhow::Result<(Attempt, FramedStream)> {
        failpoint::hit(Step::Starting);
        for file in &self.files {
            let problem = match fs::metadata(file) {
                Ok(metadata) if metadata.is_file() => continue,
                // The new process would wait for the writer of a FIFO.
                Ok(_) => "is no regular file any more".to_owned(),
                Err(error) if error.kind() == ErrorKind::NotFound => "is gone".to_owned(),
                Err(error) => format!("cannot be found any more ({error})"),
            };
            bail!(
                "the settings file {} was read at the start and {problem}: bring it back, or restart the server \
                 without it",
                file.display()
            );
        }
        let path = self.program.path()?;
        let mut command = self.program.command(&path)?;
        let (stream, inherited) = FramedStream::pair().context("cannot create a socket pair")?;
        let inheritable = Inheritable::new(&inherited).context("a socket cannot be inherited")?;
        command.env(variables::HANDOVER, inheritable.number()).env_remove(variables::SUPERVISOR);
        command.env(variables::FOREGROUND, if self.in_foreground { "1" } else { "0" });
        let link = self.link.as_ref().map(Inheritable::new).transpose();
        let link = link.context("a socket cannot be inherited")?;
        if let Some(link) = &link {
            command.env(variables::SUPERVISOR, link.number());
        }
        let child = process::Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        Ok((Attempt::new(child, path)?, stream))
    }
}

/// Closes connections that wait for the rest of a request, the longest requests first, as far as all that was
/// read of them does not fit into [`MAX_IDLE_READ`].
fn drop_long_requests(idle: &mut Vec<IdleConnection>) {
    let fit = those_that_fit(idle.iter().map(|connection| connection.read.len()), MAX_IDLE_READ);
    let mut fit = fit.into_iter();
    idle.retain(|_| fit.next() == Some(true));
}

/// Returns for each of these sizes if it fits, beside all that are smaller.
fn those_that_fit(sizes: impl Iterator<Item = usize>, max: usize) -> Vec<bool> {
    let mut smallest_first: Vec<_> = sizes.enumerate().collect();
    smallest_first.sort_unstable_by_key(|(_, size)| *size);
    let (mut all, mut fit) = (0, vec![false; smallest_first.len()]);
    for (index, size) in smallest_first {
        all += size;
        fit[index] = all <= max;
    }
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_requests_are_closed_until_the_rest_fits() {
        let fit = |sizes: &[usize]| those_that_fit(sizes.iter().copied(), 100);
        assert_eq!(fit(&[]), Vec::<bool>::new());
        assert_eq!(fit(&[0, 60, 40, 0]), [true; 4]);
        assert_eq!(fit(&[50, 60, 0, 40]), [true, false, true, true]);
        let equal = fit(&[30; 10]);
        assert_eq!(
            equal.iter().filter(|fits| **fits).count(),
            3,
            "of those that are equally long, some stay"
        );
    }
}
