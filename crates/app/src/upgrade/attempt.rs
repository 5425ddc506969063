//! A handover that is under way, with all that has to be undone if it fails.

use std::{
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use lastcall_handover::{HandoverSender, OutgoingClient, OutgoingServer, SendError, StreamError};
use lastcall_websockets::Frozen;
use tokio::{
    process::Child,
    task::{JoinError, spawn_blocking},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    parts::{OutgoingParts, SendPartError},
    state::{ServerDescriptors, ServerState},
    timeouts::{EXIT_TIMEOUT, KILL_TIMEOUT},
};
use crate::{
    broker::ServerBroker,
    failure::WRONG_SETTINGS,
    ingress::{Ingress, SuspendedIngress},
};

/// A step of a handover has failed.
#[derive(Debug)]
pub(super) enum FailedStep {
    /// The new process has closed its side: it ends, or has ended.
    Gone(anyhow::Error),
    /// It failed for another reason.
    Other(anyhow::Error),
}

impl FailedStep {
    /// Returns the same, with what was to be done.
    pub(super) fn within(self, step: &'static str) -> Self {
        match self {
            Self::Gone(reason) => Self::Gone(reason.context(step)),
            Self::Other(reason) => Self::Other(reason.context(step)),
        }
    }
}

impl From<anyhow::Error> for FailedStep {
    fn from(reason: anyhow::Error) -> Self {
        Self::Other(reason)
    }
}

impl From<JoinError> for FailedStep {
    fn from(error: JoinError) -> Self {
        Self::Other(error.into())
    }
}

impl From<SendError> for FailedStep {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Stream(StreamError::Gone) => Self::Gone(error.into()),
            _ => Self::Other(error.into()),
        }
    }
}

impl From<SendPartError> for FailedStep {
    fn from(error: SendPartError) -> Self {
        match error {
            SendPartError::Send(error) => error.into(),
            SendPartError::Encode(_) | SendPartError::LoopEnded(_) => Self::Other(error.into()),
        }
    }
}

/// A handover that failed. This process continues.
#[derive(Debug)]
pub(super) struct FailedHandover {
    pub(super) reason: anyhow::Error,
    /// False if the new process failed after the commit: this one continues without the clients, which are
    /// disconnected.
    pub(super) has_clients: bool,
}

impl From<anyhow::Error> for FailedHandover {
    /// Returns that of a handover that has changed nothing.
    fn from(reason: anyhow::Error) -> Self {
        Self { reason, has_clients: true }
    }
}

/// The changes that a handover has made so far. If it fails, [`Attempt::roll_back`] undoes all of it.
pub(super) struct Attempt {
    pub(super) child: Child,
    pub(super) pid: u32,
    /// The file that the new process runs.
    pub(super) program: PathBuf,
    /// Once HTTP and the notifier have stopped: what they resume from.
    pub(super) suspended: Option<SuspendedIngress>,
    /// Once the event loops have stopped: their connections.
    pub(super) frozen: Option<Frozen>,
    /// Once everything is sent: what it takes a while to drop.
    parts: Option<OutgoingParts>,
    /// After the commit: how many clients the new process has.
    pub(super) committed: Option<usize>,
}

impl Attempt {
    /// # Errors
    /// When the new process has ended already.
    pub(super) fn new(child: Child, program: PathBuf) -> anyhow::Result<Self> {
        let pid = child.id().context("the new process ended at once")?;
        Ok(Self { child, pid, program, suspended: None, frozen: None, parts: None, committed: None })
    }

    /// Ends the new process, which is not needed: nothing was handed over yet, and nobody waits for it.
    pub(super) fn end_early(&mut self) {
        if let Err(error) = self.child.start_kill() {
            debug!(%error, new_pid = self.pid, "a process that was started too late could not be ended");
        }
    }

    /// Sends everything that has stopped, and what was added to the history since it was sent, and commits.
    ///
    /// # Errors
    /// When the new process did not take all of it within `timeout`. Then nothing is handed over.
    pub(super) async fn send(
        &mut self,
        sender: HandoverSender,
        mut parts: OutgoingParts,
        state: ServerState,
        control: Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<HandoverSender, FailedStep> {
        let deadline = Instant::now() + timeout;
        let stopped = self.suspended.take().zip(self.frozen.take());
        let (suspended, frozen) = stopped.context("not everything has stopped")?;
        let sending = spawn_blocking(move || {
            // A panic must not drop them here: the event loops would continue while the new process has their
            // sockets.
            let sent = catch_unwind(AssertUnwindSafe(|| {
                parts.send_rest(&frozen, &sender, deadline)?;
                Ok::<_, SendPartError>(send_all(
                    &sender,
                    &state,
                    &suspended,
                    control.as_ref(),
                    &frozen,
                    deadline,
                )?)
            }));
            (sender, suspended, frozen, parts, sent)
        });
        let (sender, suspended, frozen, parts, sent) = sending.await?;
        (self.suspended, self.frozen, self.parts) = (Some(suspended), Some(frozen), Some(parts));
        let sent = sent.map_err(|_| anyhow!("sending panicked, which is a bug"))?;
        self.committed = Some(sent?);
        Ok(sender)
    }

    /// Ends the part of this process once the new one serves. Returns the new process.
    pub(super) fn complete(self) -> Child {
        // Closing thousands of descriptors takes a while, which the new process can use better: after its
        // start.
        if let Some(frozen) = self.frozen {
            frozen.release();
        }
        drop(self.suspended);
        self.child
    }

    /// Undoes what was done: ends the new process, then has the event loops continue, then HTTP and the
    /// notifier. Returns why it failed, with what became of the new process.
    pub(super) async fn roll_back(
        mut self,
        ingress: &Ingress,
        broker: &ServerBroker,
        failed: FailedStep,
    ) -> FailedHandover {
        // First, and waited for: no connection may be served here while another process has it, too.
        let mut reason = kill(&mut self.child, failed).await;
        if let Some(clients) = self.committed {
            // What the new process has published by then is not known: no offset may be given a second time.
            broker.renew_all_epochs();
            // Nor what it has read and written: the connections cannot continue here.
            if let Some(frozen) = self.frozen.take() {
                frozen.disconnect();
            }
            if let Some(suspended) = &mut self.suspended {
                suspended.http.idle.clear();
            }
            reason = reason.context(format!(
                "the new process had taken over, and its connections are closed now: {clients}"
            ));
        }
        drop(self.frozen);
        if let Some(suspended) = self.suspended {
            ingress.resume(suspended);
        }
        FailedHandover { reason, has_clients: self.committed.is_none() }
    }
}

fn send_all(
    sender: &HandoverSender,
    state: &ServerState,
    suspended: &SuspendedIngress,
    control: Option<&OwnedFd>,
    frozen: &Frozen,
    deadline: Instant,
) -> Result<usize, SendError> {
    let descriptors = ServerDescriptors {
        listener: suspended.http.listener.as_fd(),
        control: control.map(AsFd::as_fd),
        idle: suspended.http.idle.iter().map(|connection| connection.stream.as_fd()).collect(),
    };
    let server = OutgoingServer { state, descriptors: &descriptors.into_order() };
    let clients = frozen.connections().map(|(socket, state)| {
        let size = state.size();
        OutgoingClient { socket, state, size }
    });
    sender.send_all(server, clients, deadline)
}

/// Ends the new process. Returns why it failed, with the exit status if it had ended by itself.
async fn kill(child: &mut Child, failed: FailedStep) -> anyhow::Error {
    let (error, gone) = match failed {
        FailedStep::Gone(error) => (error, true),
        FailedStep::Other(error) => (error, false),
    };
    // A process that ends closes its sockets a moment before its exit code is known.
    let time = if gone { EXIT_TIMEOUT } else { Duration::ZERO };
    if let Ok(Ok(status)) = timeout(time, child.wait()).await {
        let settings =
            if status.code() == Some(i32::from(WRONG_SETTINGS)) { ", as its settings are wrong" } else { "" };
        let ended = format!("it ended by itself ({status}){settings}; its own output says why");
        // That it is gone says no more.
        return if gone { anyhow!(ended) } else { error.context(ended) };
    }
    // Killed, and waited for: whatever it has of this process's is closed then.
    match timeout(KILL_TIMEOUT, child.kill()).await {
        Ok(Ok(())) => error,
        Ok(Err(failed)) => error.context(format!("and it could not be ended: {failed}")),
        Err(_) => {
            // None of its code runs any more, so the connections can continue here all the same.
            let pid = child.id().unwrap_or_default();
            warn!(pid, "the new process was killed and has not ended: a debugger or a system call holds it");
            error.context(format!("and the system has not ended it yet (pid {pid})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::*;

    fn attempt(script: &str) -> Attempt {
        let child = Command::new("sh").args(["-c", script]).kill_on_drop(true).spawn().unwrap();
        Attempt::new(child, "sh".into()).unwrap()
    }

    fn gone() -> FailedStep {
        FailedStep::from(SendError::Stream(StreamError::Gone)).within("it did not serve")
    }

    #[tokio::test]
    async fn a_new_process_that_ended_by_itself_is_the_reason() {
        for (script, code, reason) in [
            ("exit 3", 3, "it ended by itself (exit status: 3); its own output says why"),
            (
                "exit 2",
                2,
                "it ended by itself (exit status: 2), as its settings are wrong; its own output says why",
            ),
        ] {
            let mut attempt = attempt(script);
            assert_eq!(attempt.child.wait().await.unwrap().code(), Some(code));
            assert_eq!(kill(&mut attempt.child, gone()).await.to_string(), reason);
            let other = kill(&mut attempt.child, FailedStep::Other(anyhow!("no room"))).await;
            assert_eq!(format!("{other:#}"), format!("{reason}: no room"));
        }
    }

    #[tokio::test]
    async fn a_new_process_that_runs_is_ended_for_the_reason_that_is_known() {
        let mut attempt = attempt("exec sleep 600");
        let reason = kill(&mut attempt.child, FailedStep::Other(anyhow!("no room"))).await;
        assert_eq!(format!("{reason:#}"), "no room");
        assert!(attempt.child.try_wait().unwrap().is_some(), "it was waited for");
    }

    #[tokio::test]
    async fn a_process_that_was_started_too_late_is_ended() {
        let mut attempt = attempt("exec sleep 600");
        attempt.end_early();
        assert!(!attempt.child.wait().await.unwrap().success());
    }
}
