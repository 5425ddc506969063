//! The life of the process, from the first startup hook to the last shutdown hook.

use std::convert::Infallible;

use lastcall_core::phase::Phase;
use lastcall_websockets::{ConnectionManager, GracefulShutdown, Phases, ShutdownConfig, VitalTasks};
use tracing::{error, warn};

use crate::{
    hooks::{HookError, Hooks, Started},
    service_manager::ServiceManager,
    signals::{Signal, Signals},
    upgrade::{NewProcess, Upgrade},
};

/// Why the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to end, and everything has stopped in order.
    Graceful,
    /// A shutdown hook has failed, or a vital task; the log says which.
    Failed,
    /// The third signal: nothing is waited for.
    Immediate(Signal),
    /// A new process serves now. It is the main process only if the service manager has been told.
    HandedOver(NewProcess),
}

/// The life of a server, begun by [`Lifecycle::start`].
pub struct Lifecycle {
    started: Started,
    phases: Phases,
    signals: Signals,
    service_manager: ServiceManager,
}

impl Lifecycle {
    /// Runs the startup hooks and enters the phase `Serving`. Tells the service manager, unless this process
    /// `takes_over` from another one: then the old process does.
    ///
    /// # Errors
    /// The error of the hook that failed; the hooks before it have been stopped.
    pub async fn start(
        hooks: Hooks,
        phases: Phases,
        signals: Signals,
        service_manager: ServiceManager,
        takes_over: bool,
    ) -> Result<Self, HookError> {
        let started = hooks.start().await?;
        phases.enter(Phase::Serving);
        if !takes_over {
            service_manager.ready();
        }
        Ok(Self { started, phases, signals, service_manager })
    }

    /// Serves until a signal asks the process to end, then shuts down; or until a new process has taken over.
    /// The third signal ends it at once.
    pub async fn run(
        self,
        manager: ConnectionManager,
        shutdown: ShutdownConfig,
        upgrade: &mut impl Upgrade,
    ) -> ExitReason {
        let (signals, service_manager) = (self.signals.clone(), self.service_manager.clone());
        let life = async {
            tokio::select! {
                biased;
                signal = signals.nth(3) => {
                    warn!(signal = signal.name(), "third signal: exiting at once");
                    ExitReason::Immediate(signal)
                }
                never = end_after_failure(manager.vital_tasks(), &signals) => match never {},
                reason = self.run_to_completion(manager.clone(), shutdown, upgrade) => match reason {
                    ExitReason::Graceful if manager.vital_tasks().has_failed() => ExitReason::Failed,
                    reason => reason,
                },
            }
        };
        service_manager.telling(life).await
    }

    async fn run_to_completion(
        self,
        manager: ConnectionManager,
        shutdown: ShutdownConfig,
        upgrade: &mut impl Upgrade,
    ) -> ExitReason {
        let service_manager = self.service_manager;
        let max_stop = self.started.max_stop();
        let signal = loop {
            let request = tokio::select! {
                biased;
                signal = self.signals.nth(1) => break signal,
                request = upgrade.next_request() => request,
            };
            service_manager.reloading();
            let Ok(mut new_process) = upgrade.upgrade(request, self.signals.nth(1)).await else {
                service_manager.ready();
                continue;
            };
            // Sent by this process, to which the service manager listens: the new one is not the main process
            // yet.
            match new_process.is_main {
                true => service_manager.handed_over_to(new_process.pid),
                false => service_manager.ready(),
            }
            self.phases.stop_after_handover();
            // The log says what did not stop: the service continues.
            self.started.stop().await;
            new_process.is_main = new_process.is_main && service_manager.is_told().await;
            return ExitReason::HandedOver(new_process);
        };
        service_manager.stopping();
        let max_duration = shutdown.max_duration();
        let shutdown = GracefulShutdown::new(manager, shutdown);
        let draining = async {
            tokio::select! {
                () = shutdown.run(signal.name(), self.signals.nth(2)) => {}
                never = report_drain(&self.phases, &service_manager) => match never {},
                never = refuse_upgrades(upgrade) => match never {},
            }
        };
        service_manager.extending(max_duration, draining).await;
        let stopping = async {
            tokio::select! {
                all_stopped = self.started.stop() => all_stopped,
                never = refuse_upgrades(upgrade) => match never {},
            }
        };
        let all_stopped = service_manager.extending(max_stop, stopping).await;
        self.phases.enter(Phase::Stopped);
        if all_stopped { ExitReason::Graceful } else { ExitReason::Failed }
    }
}

/// Tells the service manager when the drain begins.
async fn report_drain(phases: &Phases, service_manager: &ServiceManager) -> Infallible {
    let connections = phases.reached(Phase::Draining).await.drain_connections;
    service_manager.draining(connections.unwrap_or_default());
    std::future::pending().await
}

/// Has the process end when a vital task has failed: it would serve some clients and not others, or none, and
/// seem well.
async fn end_after_failure(vital_tasks: &VitalTasks, signals: &Signals) -> Infallible {
    let name = vital_tasks.failed().await;
    error!("{name} failed: closing all connections, and ending");
    signals.close_now();
    std::future::pending().await
}

/// Refuses each request at once: otherwise an operator would wait until the drain ends.
async fn refuse_upgrades(upgrade: &mut impl Upgrade) -> Infallible {
    loop {
        let request = upgrade.next_request().await;
        upgrade.refuse(request, "the server is shutting down: start it again instead").await;
    }
}

#[cfg(test)]
mod tests;
