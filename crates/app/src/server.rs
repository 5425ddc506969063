//! The server put together: which parts it has, and in which order they start and stop.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use lastcall_core::settings::{RuntimeDir, Settings};
use lastcall_endpoints::{Context, Handovers, Health, HealthReport, Page, Patience, router};
use lastcall_handover::Socket;
use lastcall_lifecycle::{Ending, Hooks, Lifecycle, Phase, Phases, Signals, upgrade_signal};
use lastcall_websockets::{ConnectionManager, ManagerConfig, NotifierState};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::{
    desk::Desk,
    entrance,
    front::{Front, Paused},
    inherit::Heir,
    upgrade::{Program, Upgrader},
};

/// How long a part may take to start or to stop, on top of what the settings give it.
const HOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long clients have to close connections whose last answer was sent, when the server ends.
const FAREWELL: Duration = Duration::from_millis(50);

/// Serves until the process is to end. With the socket of a process that runs, it takes over from that one.
pub(crate) async fn run(settings: &Settings, take_over: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    if let RuntimeDir::Chosen(folder) = &settings.runtime_dir {
        // Now, as nothing may fail any more once this process has taken over.
        lastcall_handover::check(folder)
            .context("there could be no socket for upgrades; change `runtime_dir`")?;
    }
    let program = Program::this().context("cannot tell which program this is")?;
    let signals = Signals::listen().context("cannot handle signals")?;
    let upgrade_signal = upgrade_signal().context("cannot handle signals")?;
    let heir = match take_over {
        Some(socket) => Some(Heir::begin(socket).await?),
        None => None,
    };
    let page = Page::load(settings.templates_dir.as_deref())?;
    let manager =
        ConnectionManager::start(ManagerConfig::from(settings)).context("cannot start the event loops")?;
    let phases = Phases::default();
    let handovers = Arc::new(Mutex::new(Handovers::default()));
    let health = Box::new(ProcessHealth { phases: phases.clone(), handovers: Arc::clone(&handovers) });
    let router = router(Context::new(settings, manager.clone(), health, page));
    let front = Arc::new(Front::new(
        manager.clone(),
        router,
        settings.notification_interval,
        settings.keep_alive_timeout,
    ));

    let (paused, served_before) = match heir {
        Some(heir) => {
            let inherited = heir.inherit(&manager, settings).await?;
            *handovers.lock().unwrap_or_else(PoisonError::into_inner) = inherited.handovers;
            (inherited.front, Some((inherited.frozen_at, inherited.channel)))
        }
        None => {
            let entrance = entrance::open(settings).await?;
            (Paused { entrance, notifier: NotifierState::default() }, None)
        }
    };
    let address = paused.entrance.listener.local_addr().context("cannot tell which port was bound")?;

    let hooks = Hooks::default()
        .add("event loops", HOOK_TIMEOUT, {
            let manager = manager.clone();
            async { Ok(async { Ok(spawn_blocking(move || manager.stop()).await?) }) }
        })
        .add("HTTP and notifier", HOOK_TIMEOUT + settings.close_timeout, {
            let (front, in_flight) = (Arc::clone(&front), settings.close_timeout);
            async move {
                front.start(paused);
                Ok(async move {
                    front.pause(Patience { closing: FAREWELL, in_flight }).await?;
                    Ok(())
                })
            }
        });
    let life = Lifecycle::start(hooks, phases, signals).await?;
    if let Some((frozen_at, channel)) = served_before {
        // The old process ends when it sees this.
        drop(channel);
        // 0 if the clock was set back meanwhile.
        let paused = frozen_at.elapsed().unwrap_or_default();
        handovers.lock().unwrap_or_else(PoisonError::into_inner).paused = paused.as_secs_f64();
        tokio::spawn(entrance::compare(address, settings.host.clone(), settings.port));
    }
    if settings.api_keys.is_empty() {
        warn!("no api_keys are set: only this machine may call /api/");
    }
    let upgrader = Upgrader {
        program,
        signal: upgrade_signal,
        desk: desk(settings, address.port()),
        front,
        manager: manager.clone(),
        timeout: settings.upgrade_timeout,
        handovers,
    };
    info!(
        max_connections = settings.max_connections,
        pid = std::process::id(),
        "listening on http://{address}"
    );
    let ending = life.run(manager, settings, upgrader).await;
    info!("stopped");
    Ok(match ending {
        Ending::Graceful | Ending::HandedOver => ExitCode::SUCCESS,
        Ending::HookFailed => ExitCode::FAILURE,
        Ending::AtOnce(signal) => ExitCode::from(128 + signal.number()),
    })
}

/// The socket for upgrades. That it cannot be made only means that there are none: it would be worse not to
/// serve.
fn desk(settings: &Settings, port: u16) -> Option<Desk> {
    let path = lastcall_handover::path(settings.runtime_dir.path(), port);
    let desk = Socket::listen(&path)
        .map_err(anyhow::Error::from)
        .and_then(|socket| Desk::open(socket).context("cannot wait for connections"));
    desk.inspect_err(|error| {
        warn!("there will be no upgrades without a socket for them; set `runtime_dir`: {error:#}");
    })
    .ok()
}

/// Tells the health routes the state of the process.
struct ProcessHealth {
    phases: Phases,
    handovers: Arc<Mutex<Handovers>>,
}

impl Health for ProcessHealth {
    fn report(&self) -> HealthReport {
        let status = self.phases.status();
        let seconds = |left: Duration| (left.as_secs_f64() * 1000.0).round() / 1000.0;
        HealthReport {
            phase: status.phase.name(),
            ready: status.phase == Phase::Serving,
            seconds_left: status.time_left().map(seconds),
            drain_clients: status.drain_clients,
        }
    }

    fn handovers(&self) -> Handovers {
        *self.handovers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
