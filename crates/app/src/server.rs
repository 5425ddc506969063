//! The server put together: which parts it has, and in which order they start and stop.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use lastcall_core::settings::Settings;
use lastcall_endpoints::{Context, Health, HealthReport, HttpServer, Page, bind, router};
use lastcall_lifecycle::{Ending, Hooks, Lifecycle, Phase, Phases, Signals};
use lastcall_websockets::{ConnectionManager, ManagerConfig, notify_periodically};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

/// How long a part may take to start or to stop, on top of what the settings give it.
const HOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the process is to end.
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot handle signals")?;
    let page = Page::load(settings.templates_dir.as_deref())?;
    let listener = bind(&settings.host, settings.port).await?;
    let address = listener.local_addr().context("cannot tell which port was bound")?;
    let manager =
        ConnectionManager::start(ManagerConfig::from(settings)).context("cannot start the event loops")?;
    let phases = Phases::default();
    let health = Box::new(PhaseHealth(phases.clone()));
    let router = router(Context::new(settings, manager.clone(), health, page));

    let hooks = Hooks::default()
        .add("event loops", HOOK_TIMEOUT, {
            let manager = manager.clone();
            async { Ok(async { Ok(spawn_blocking(move || manager.stop()).await?) }) }
        })
        .add("notifier", HOOK_TIMEOUT, {
            let (manager, interval) = (manager.clone(), settings.notification_interval);
            async move {
                let notifier = interval.map(|interval| tokio::spawn(notify_periodically(manager, interval)));
                Ok(async {
                    notifier.inspect(tokio::task::JoinHandle::abort);
                    Ok(())
                })
            }
        })
        .add("HTTP", HOOK_TIMEOUT + settings.close_timeout, {
            let (manager, patience) = (manager.clone(), settings.close_timeout);
            async move {
                let server = HttpServer::start(listener, router, manager);
                Ok(async move {
                    server.stop(patience).await;
                    Ok(())
                })
            }
        });
    let life = Lifecycle::start(hooks, phases, signals).await?;
    if settings.api_keys.is_empty() {
        warn!("no api_keys are set: only this machine may call /api/");
    }
    info!(max_connections = settings.max_connections, "listening on http://{address}");
    let ending = life.run(manager, settings).await;
    info!("stopped");
    Ok(match ending {
        Ending::Graceful => ExitCode::SUCCESS,
        Ending::HookFailed => ExitCode::FAILURE,
        Ending::AtOnce(signal) => ExitCode::from(128 + signal.number()),
    })
}

/// Tells the health routes the phase.
struct PhaseHealth(Phases);

impl Health for PhaseHealth {
    fn report(&self) -> HealthReport {
        let phase = self.0.now();
        let seconds_left = self.0.time_left().map(|left| (left.as_secs_f64() * 1000.0).round() / 1000.0);
        HealthReport { phase: phase.name(), ready: phase == Phase::Serving, seconds_left }
    }
}
