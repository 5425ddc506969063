//! Requests for upgrades: signals, and `lastcall upgrade` at the control socket.

use lastcall_handover::UpgradeProgress;
use lastcall_lifecycle::{AllSignals, Signal, Signals};

use super::control::{ControlServer, SharedSocket, WaitingCommand};

/// Most commands that wait for the result of one upgrade: each has a descriptor.
const MAX_COMMANDS: usize = 16;

/// Where requests for upgrades come from.
pub(crate) struct UpgradeRequests {
    pub(crate) signals: AllSignals,
    pub(crate) listening: Signals,
    /// `None` once it is the new process's.
    pub(crate) control: Option<ControlServer>,
}

/// A request for an upgrade.
pub(crate) enum Request {
    Signal(Signal),
    /// `lastcall upgrade` waits for the result.
    Command(WaitingCommand),
}

impl UpgradeRequests {
    /// Waits for a request. May be dropped at any time without losing one.
    pub(super) async fn next(&mut self) -> Request {
        loop {
            let signal = match &mut self.control {
                Some(control) => tokio::select! {
                    signal = self.signals.next() => signal,
                    command = control.next() => return Request::Command(command),
                },
                None => self.signals.next().await,
            };
            if self.listening.asks_for_upgrade(signal) {
                return Request::Signal(signal);
            }
        }
    }

    /// Returns the control socket, to be shared with a new process.
    pub(super) fn control_socket(&self) -> Option<SharedSocket> {
        self.control.as_ref().map(ControlServer::socket)
    }

    /// Leaves the control socket to the new process. Returns the commands that came meanwhile.
    pub(super) async fn leave_to_new_process(&mut self) -> Vec<WaitingCommand> {
        match self.control.take() {
            Some(control) => control.leave_to_new_process().await,
            None => Vec::new(),
        }
    }
}

impl Request {
    /// Returns where it came from, for the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Signal(signal) => signal.name(),
            Self::Command(_) => "lastcall upgrade",
        }
    }

    /// Answers a request that is not carried out.
    pub(super) async fn fail(self, reason: &str) {
        if let Self::Command(mut command) = self {
            command.report(&UpgradeProgress::Failed { reason: reason.to_owned() }).await;
        }
    }
}

/// The commands that wait for the result of one upgrade.
#[derive(Default)]
pub(super) struct WaitingCommands {
    waiting: Vec<WaitingCommand>,
    /// The reports so far, for those that come later.
    reported: Option<UpgradeProgress>,
}

impl WaitingCommands {
    /// Reports how the upgrade goes to the sender of a request, if it waits for that.
    pub(super) async fn add(&mut self, request: Request) {
        if self.waiting.len() >= MAX_COMMANDS {
            return request.fail("too many commands wait for this upgrade already").await;
        }
        let Request::Command(mut command) = request else { return };
        if let Some(progress) = &self.reported {
            command.report(progress).await;
        }
        self.waiting.push(command);
    }

    /// Adds commands that receive the next report only.
    pub(super) fn add_late(&mut self, commands: Vec<WaitingCommand>) {
        self.waiting.extend(commands);
    }

    pub(super) async fn report(&mut self, progress: UpgradeProgress) {
        for command in &mut self.waiting {
            command.report(&progress).await;
        }
        self.reported = Some(progress);
    }
}
