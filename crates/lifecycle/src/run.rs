//! From the first startup hook to the last shutdown hook.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use humantime::format_duration;
use lastcall_core::settings::Settings;
use lastcall_websockets::{ConnectionManager, DrainEnd, GracefulShutdown};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::{
    hooks::{HookError, Hooks, Started},
    phase::{Phase, Phases},
    service_manager,
    signals::{Signal, Signals},
    upgrade::{NewProcess, Upgrade},
};

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Graceful,
    /// A shutdown hook failed, or an event loop; the log says which.
    Failed,
    /// The third signal: nothing was waited for.
    AtOnce(Signal),
    /// Another process serves the clients now.
    HandedOver(NewProcess),
}

/// A server's life, started by [`Lifecycle::start`].
pub struct Lifecycle {
    started: Started,
    phases: Phases,
    signals: Signals,
}

impl Lifecycle {
    /// Runs the startup hooks; the process is serving then. The service manager is told, unless the process
    /// `takes_over`: then the old process tells it.
    ///
    /// # Errors
    /// The hook that failed; those before it have been stopped.
    pub async fn start(
        hooks: Hooks,
        phases: Phases,
        signals: Signals,
        takes_over: bool,
    ) -> Result<Self, HookError> {
        let started = hooks.start().await?;
        phases.enter(Phase::Serving);
        if !takes_over {
            service_manager::ready();
        }
        Ok(Self { started, phases, signals })
    }

    /// Serves until a signal comes, then drains, closes and stops; or until another process has taken over.
    /// The third signal ends it at once.
    pub async fn run(
        self,
        manager: ConnectionManager,
        settings: &Settings,
        upgrade: &mut impl Upgrade,
    ) -> Ending {
        let signals = self.signals.clone();
        tokio::select! {
            biased;
            signal = signals.nth(3) => {
                warn!(signal = signal.name(), "third signal: exiting at once");
                Ending::AtOnce(signal)
            }
            never = end_after_failure(&manager, &signals) => match never {},
            ending = self.until_stopped(manager.clone(), settings, upgrade) => match ending {
                Ending::Graceful if manager.has_failed() => Ending::Failed,
                ending => ending,
            },
        }
    }

    async fn until_stopped(
        self,
        manager: ConnectionManager,
        settings: &Settings,
        upgrade: &mut impl Upgrade,
    ) -> Ending {
        let first = loop {
            let request = tokio::select! {
                biased;
                signal = self.signals.nth(1) => break signal,
                request = upgrade.requested() => request,
            };
            service_manager::reloading();
            match upgrade.carry_out(request, self.signals.nth(1)).await {
                Some(new) => {
                    // By this process, which the service manager listens to: the new one is not the main one yet.
                    match new.is_main {
                        true => service_manager::handed_over_to(new.pid),
                        false => service_manager::ready(),
                    }
                    self.phases.hand_over();
                    return if self.started.stop().await { Ending::HandedOver(new) } else { Ending::Failed };
                }
                None => service_manager::ready(),
            }
        };
        let at_most = settings.shutdown_delay + settings.shutdown_timeout + settings.close_timeout;
        service_manager::stopping(at_most);
        tokio::select! {
            () = self.drain(first, manager, settings) => {}
            never = keep_extending(at_most) => match never {},
            never = refuse_upgrades(upgrade) => match never {},
        }
        let well = tokio::select! {
            well = self.started.stop() => well,
            never = refuse_upgrades(upgrade) => match never {},
        };
        self.phases.enter(Phase::Stopped);
        if well { Ending::Graceful } else { Ending::Failed }
    }

    /// Waits for the clients to leave, and closes those who do not.
    async fn drain(&self, first: Signal, manager: ConnectionManager, settings: &Settings) {
        if !settings.shutdown_delay.is_zero() {
            let closing = settings.shutdown_delay + settings.shutdown_timeout;
            self.phases.enter_withdrawing(Instant::now() + closing);
            info!(
                signal = first.name(),
                "no longer ready; serving newcomers for {} more, while load balancers notice",
                format_duration(settings.shutdown_delay)
            );
            tokio::select! {
                () = sleep(settings.shutdown_delay) => {}
                _ = self.signals.nth(2) => {}
            }
        }
        let shutdown = GracefulShutdown::begin(manager, settings);
        // The same number everywhere: clients may leave at any moment.
        let clients = shutdown.clients_at_start();
        self.phases.enter_draining(shutdown.deadline(), clients);
        service_manager::draining(clients);
        shutdown.give_notice();
        match clients {
            0 => info!(signal = first.name(), "no client is connected: stopping"),
            clients => info!(
                signal = first.name(),
                "waiting up to {} for {} to leave; press Ctrl+C again (or send SIGTERM) to close {} now",
                format_duration(settings.shutdown_timeout),
                count(clients),
                count(clients)
            ),
        }

        let end = shutdown.drain(self.signals.nth(2)).await;
        if end != DrainEnd::Empty {
            self.phases.enter_closing();
            match end {
                DrainEnd::CutShort => info!("second signal: not waiting any longer"),
                _ => info!("the shutdown timeout has passed"),
            }
            info!(
                "closing {}, within {}; press Ctrl+C {}(or send SIGTERM) to exit at once",
                count(shutdown.clients()),
                format_duration(settings.close_timeout),
                if end == DrainEnd::CutShort { "again " } else { "twice " }
            );
            shutdown.close().await;
        }
        shutdown.finish();
    }
}

/// Asks the service manager for more time, as long as there is any.
async fn keep_extending(at_most: Duration) -> Infallible {
    let until = Instant::now() + at_most;
    loop {
        sleep(service_manager::EXTEND_EVERY).await;
        service_manager::extend(until.saturating_duration_since(Instant::now()));
    }
}

/// Has the process end when an event loop has failed: it would serve some clients, and not others.
async fn end_after_failure(manager: &ConnectionManager, signals: &Signals) -> Infallible {
    manager.failed().await;
    error!("an event loop failed: closing all connections, and ending");
    signals.close_now();
    std::future::pending().await
}

/// Answers at once: an operator would wait for the end of the drain.
async fn refuse_upgrades(upgrade: &mut impl Upgrade) -> Infallible {
    loop {
        let request = upgrade.requested().await;
        upgrade.refuse(request, "the server is shutting down: start it again instead").await;
    }
}

fn count(clients: usize) -> String {
    match clients {
        1 => "1 client".to_owned(),
        n => format!("{n} clients"),
    }
}
