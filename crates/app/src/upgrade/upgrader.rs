//! Carries out upgrades: takes a request, runs the handover, and reports how it went.

use std::{future::Future, pin::pin};

use lastcall_handover::UpgradeProgress;
use lastcall_lifecycle::{NewProcess, Upgrade, UpgradeFailed};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    Orphans,
    attempt::FailedHandover,
    old_process::{HandoverSummary, OutgoingHandover},
    requests::{Request, UpgradeRequests, WaitingCommands},
};

/// Carries out upgrades.
pub(crate) struct Upgrader {
    pub(crate) requests: UpgradeRequests,
    pub(crate) handover: OutgoingHandover,
    pub(crate) orphans: Orphans,
}

impl Upgrade for Upgrader {
    type Request = Request;

    async fn next_request(&mut self) -> Request {
        // While an upgrade is under way, this is not polled.
        tokio::select! {
            request = self.requests.next() => request,
            never = self.orphans.reap() => match never {},
        }
    }

    async fn refuse(&mut self, request: Request, reason: &str) {
        warn!(requested_by = request.name(), "no upgrade: {reason}");
        request.fail(reason).await;
    }

    async fn upgrade(
        &mut self,
        request: Request,
        interrupted: impl Future,
    ) -> Result<NewProcess, UpgradeFailed> {
        info!(requested_by = request.name(), "an upgrade was requested");
        let _in_progress = self.handover.upgrade_stats.begin_upgrade();
        let mut commands = WaitingCommands::default();
        commands.add(request).await;
        match self.hand_over(&mut commands, interrupted).await {
            Ok(HandoverSummary { new_process, progress }) => {
                commands.add_late(self.requests.leave_to_new_process().await);
                commands.report(progress).await;
                Ok(new_process)
            }
            Err(FailedHandover { reason: error, has_clients }) => {
                let reason = if self.handover.manager.vital_tasks().has_failed() {
                    let reason = format!("the server ends, as a part of it has failed: {error:#}");
                    error!("the upgrade failed; {reason}");
                    reason
                } else if !has_clients {
                    let reason = format!("the server continues without its clients: {error:#}");
                    error!("the upgrade failed; {reason}");
                    reason
                } else {
                    let reason = format!("the server continues as before: {error:#}");
                    warn!("the upgrade failed; {reason}");
                    reason
                };
                self.handover.upgrade_stats.count_failure();
                commands.report(UpgradeProgress::Failed { reason }).await;
                Err(UpgradeFailed)
            }
        }
    }
}

impl Upgrader {
    /// Hands everything over. Requests that come meanwhile are for the same upgrade.
    async fn hand_over(
        &mut self,
        commands: &mut WaitingCommands,
        interrupted: impl Future,
    ) -> Result<HandoverSummary, FailedHandover> {
        let Self { requests, handover, orphans: _ } = self;
        let control = requests.control_socket();
        let (started, mut has_started) = oneshot::channel();
        let mut handing_over = pin!(handover.run(control, started, interrupted));
        let mut is_started = false;
        loop {
            tokio::select! {
                biased;
                Ok(progress) = &mut has_started, if !is_started => {
                    is_started = true;
                    commands.report(progress).await;
                }
                result = &mut handing_over => return result,
                request = requests.next() => commands.add(request).await,
            }
        }
    }
}
