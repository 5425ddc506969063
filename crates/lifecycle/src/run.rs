//! From the first startup hook to the last shutdown hook.

use humantime::format_duration;
use lastcall_core::settings::Settings;
use lastcall_websockets::{ConnectionManager, DrainEnd, GracefulShutdown};
use tracing::{info, warn};

use crate::{
    hooks::{HookError, Hooks, Started},
    phase::{Phase, Phases},
    signals::{Signal, Signals},
};

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should.
    Graceful,
    /// A shutdown hook failed; the log says which.
    HookFailed,
    /// The third signal: nothing was waited for.
    AtOnce(Signal),
}

/// A server's life, started by [`Lifecycle::start`].
pub struct Lifecycle {
    started: Started,
    phases: Phases,
    signals: Signals,
}

impl Lifecycle {
    /// Runs the startup hooks; the process is serving then.
    ///
    /// # Errors
    /// The hook that failed; those before it have been stopped.
    pub async fn start(hooks: Hooks, phases: Phases, signals: Signals) -> Result<Self, HookError> {
        let started = hooks.start().await?;
        phases.enter(Phase::Serving);
        Ok(Self { started, phases, signals })
    }

    /// Serves until a signal comes, then drains, closes and stops. The third signal ends it at once.
    pub async fn run(self, manager: ConnectionManager, settings: &Settings) -> Ending {
        let signals = self.signals.clone();
        tokio::select! {
            biased;
            signal = signals.nth(3) => {
                warn!(signal = signal.name(), "third signal: exiting at once");
                Ending::AtOnce(signal)
            }
            ending = self.until_stopped(manager, settings) => ending,
        }
    }

    async fn until_stopped(self, manager: ConnectionManager, settings: &Settings) -> Ending {
        let first = self.signals.nth(1).await;
        let shutdown = GracefulShutdown::begin(manager, settings);
        self.phases.enter_draining(shutdown.deadline());
        match shutdown.clients() {
            0 => info!(signal = first.name(), "nobody is connected: stopping"),
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
            self.phases.enter(Phase::Closing);
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

        let well = self.started.stop().await;
        self.phases.enter(Phase::Stopped);
        if well { Ending::Graceful } else { Ending::HookFailed }
    }
}

fn count(clients: usize) -> String {
    match clients {
        1 => "1 client".to_owned(),
        n => format!("{n} clients"),
    }
}
