//! The server put together, from what is prepared to the exit code.
//!
//! - [`preparation`] finds and opens what the settings name, before anything is built.
//! - [`parts`] builds the parts, and says in which order they start and stop.
//! - [`saved_history`] reads the history before the server serves, and writes it at the end.

mod parts;
mod preparation;
mod saved_history;

use std::{env, os::fd::OwnedFd, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use lastcall_core::{
    process,
    settings::{Loaded, SettingError},
};
use lastcall_handover::{
    ServerAddress,
    failpoint::{self, Step},
};
use lastcall_lifecycle::{
    ExitReason, Lifecycle, NewProcess, ServiceManager, Signal, Signals, is_in_foreground,
};
use lastcall_websockets::{NotifierState, Phases, VitalTasks};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use self::{
    parts::Parts,
    preparation::{ListenerSource, Prepared, prepare},
    saved_history::NotWritten,
};
use crate::{
    config, exposure,
    failure::Failure,
    ingress::SuspendedIngress,
    listener,
    upgrade::{
        ControlServer, IncomingHandover, Orphans, OutgoingHandover, Program, Role, SERVING_REPORT_TIMEOUT,
        Supervised, UpgradeRequests, Upgrader, supervise,
    },
    variables, version,
};

/// The exit code for an end in order, but for the history, which could not be written.
const HISTORY_LOST: u8 = 3;

/// Descriptors that this process has from the one that started it.
pub(crate) struct Inherited {
    /// The socket to the old process, if this one is to take over from it.
    pub(crate) handover: Option<OwnedFd>,
    pub(crate) role: Role,
}

/// The end of the process.
pub(crate) struct Exit {
    pub(crate) code: ExitCode,
    /// Nothing is to be waited for.
    pub(crate) at_once: bool,
}

impl Exit {
    /// Logs the end of a process that has not served.
    fn before_serving(signal: Signal) -> Self {
        info!(signal = signal.name(), pid = std::process::id(), "stopped before it served");
        Self { code: ExitCode::SUCCESS, at_once: false }
    }
}

/// Serves until the process is to end, or takes over from an old process first. What is `unusable` among the
/// settings is reported together with what is found to be so here.
///
/// # Errors
/// [`Failure::Settings`] if a setting cannot be used on this machine; another one if the system does not
/// allow it.
pub(crate) async fn run(
    loaded: &Loaded,
    inherited: Inherited,
    unusable: Vec<SettingError>,
) -> Result<Exit, Failure> {
    let Loaded { settings, files, .. } = loaded;
    let Inherited { handover, mut role } = inherited;
    let program = Program::current().inspect_err(|error| warn!("there will be no upgrades: {error:#}"));
    let in_foreground = match env::var_os(variables::FOREGROUND) {
        Some(said) => said == "1",
        None => is_in_foreground(),
    };
    let vital_tasks = VitalTasks::with_failpoint(failpoint::hit_task);
    let signals = Signals::listen(in_foreground, &vital_tasks).context("cannot handle signals")?;
    let orphans = Orphans::new().context("cannot handle signals")?;
    let service_manager = ServiceManager::from_environment();
    let preparing = async {
        let handover = match handover {
            Some(descriptor) => Some(IncomingHandover::connect(descriptor, files).await?),
            None => None,
        };
        prepare(loaded, handover, unusable).await
    };
    let Prepared { page, listener } = tokio::select! {
        biased;
        // A name, or a file, may be where nothing answers.
        signal = signals.nth(1) => return Ok(Exit::before_serving(signal)),
        prepared = preparing => prepared?,
    };
    let phases = Phases::default();
    let parts = Parts::build(settings, page, &phases, &vital_tasks)?;

    let from_systemd;
    let (suspended, inherited_control, served_before) = match listener {
        ListenerSource::Handover(handover) => {
            let received = handover.receive(&parts.manager, &parts.broker, settings).await?;
            parts.upgrade_stats.set(received.upgrade_stats);
            from_systemd = received.from_systemd;
            parts.refusals.add(&received.refused);
            if let Some(file) = parts.history_file.clone() {
                spawn_blocking(move || file.set_aside_superseded()).await?;
            }
            (received.ingress, received.control, Some((received.frozen, received.old_process)))
        }
        ListenerSource::Bound(bound) => {
            if let Some(file) = parts.history_file.clone()
                && let Some(signal) = saved_history::read(file, parts.broker.clone(), &signals).await?
            {
                parts.manager.stop();
                return Ok(Exit::before_serving(signal));
            }
            from_systemd = bound.from_systemd;
            let (http, notifier) = (bound.listener.into(), NotifierState::default());
            (SuspendedIngress { http, notifier }, None, None)
        }
    };
    let address = suspended.http.listener.local_addr().context("cannot tell which port was bound")?;

    let hooks = parts.hooks(suspended, settings, &vital_tasks);
    let takes_over = served_before.is_some();
    let life = Lifecycle::start(hooks, phases, signals.clone(), service_manager.clone(), takes_over).await?;
    if let Role::Supervised(link) = &mut role {
        link.serve(signals.clone(), &vital_tasks).context("cannot use the link to the supervisor")?;
        failpoint::hit(Step::Reported);
    }
    if let Some((frozen, old_process)) = served_before {
        let pause = frozen.elapsed();
        // The old process ends when it receives this. If it is stopped, it may not take it: signals do not
        // wait for that.
        spawn_blocking(move || {
            if let Err(error) = old_process.report_serving(SERVING_REPORT_TIMEOUT) {
                warn!("the old process could not be told that this one serves: {error:#}");
            }
        });
        parts.upgrade_stats.set_last_pause(pause);
        if !from_systemd {
            tokio::spawn(listener::warn_if_moved(address, settings.host.to_string(), settings.port));
        }
    }
    if !takes_over {
        // Not at each upgrade: an alert on warnings would fire at each deploy.
        exposure::warn_if_open(address, loaded);
    }
    if settings.api_keys.is_empty() {
        exposure::log_api_is_local(address, takes_over);
    }
    let served_at = ServerAddress { address, activated: from_systemd };
    let control =
        ControlServer::start(&settings.runtime_dir, served_at, inherited_control, &vital_tasks).await;
    let mut upgrader = Upgrader {
        requests: UpgradeRequests {
            signals: signals.all(),
            listening: signals.clone(),
            control: Some(control),
        },
        handover: OutgoingHandover {
            program,
            files: files.iter().filter(|file| file.has_settings).cloned().collect(),
            role,
            service_manager: service_manager.clone(),
            from_systemd,
            signals: signals.clone(),
            ingress: Arc::clone(&parts.ingress),
            manager: parts.manager.clone(),
            broker: parts.broker.clone(),
            timeout: settings.upgrade_timeout,
            upgrade_stats: parts.upgrade_stats.clone(),
            supervised: None,
        },
        orphans,
    };
    info!(
        version = version::VERSION,
        commit = version::COMMIT,
        pid = std::process::id(),
        max_connections = settings.max_connections,
        "listening on http://{address}"
    );
    let mut reason = life.run(parts.manager, config::shutdown(settings), &mut upgrader).await;
    let mut graceful = ExitCode::SUCCESS;
    match (reason, parts.history_file) {
        (ExitReason::Graceful, Some(file)) => {
            let writing = saved_history::write(file, parts.broker, &signals);
            let writing = service_manager.extending(saved_history::WRITE_HISTORY_TIMEOUT, writing);
            match service_manager.telling(writing).await {
                Ok(()) => {}
                Err(NotWritten::Failed(error)) => {
                    warn!("the history could not be written, and the next start has none: {error:#}");
                    graceful = ExitCode::from(HISTORY_LOST);
                }
                Err(NotWritten::Signal(signal)) => {
                    warn!(signal = signal.name(), "third signal: exiting at once");
                    reason = ExitReason::Immediate(signal);
                }
            }
        }
        // Something may still publish, and an offset would be given a second time.
        (ExitReason::Failed, Some(_)) => {
            warn!("the history is not written, as not everything has stopped in order");
        }
        // This process may stay as a supervisor, which needs no history.
        (ExitReason::HandedOver(_), _) => parts.broker.clear(),
        _ => {}
    }
    Ok(exit(reason, graceful, upgrader.handover.supervised, &service_manager).await?)
}

/// Returns how the process ends: with the code `graceful`, if it ends in order. If it has become the
/// supervisor of another one, it is that first.
async fn exit(
    reason: ExitReason,
    graceful: ExitCode,
    supervised: Option<Supervised>,
    service_manager: &ServiceManager,
) -> anyhow::Result<Exit> {
    let pid = std::process::id();
    let is_followed = matches!(reason, ExitReason::HandedOver(NewProcess { is_main: true, .. }));
    let supervised = supervised.filter(|_| !is_followed);
    match (reason, &supervised) {
        (ExitReason::HandedOver(_), Some(_)) => {}
        (ExitReason::HandedOver(NewProcess { pid: new_pid, .. }), None) => {
            info!(pid, new_pid, "handed over to process {new_pid}: this process ends");
        }
        _ => info!(pid, "stopped"),
    }
    let code = match (reason, supervised) {
        (ExitReason::HandedOver(_), Some(supervised)) => {
            process::trim_heap();
            service_manager.telling(supervise(supervised, service_manager)).await?
        }
        (ExitReason::Graceful, _) => graceful,
        (ExitReason::HandedOver(_), _) => ExitCode::SUCCESS,
        (ExitReason::Failed, _) => ExitCode::FAILURE,
        (ExitReason::Immediate(signal), _) => ExitCode::from(128 + signal.number()),
    };
    Ok(Exit { code, at_once: matches!(reason, ExitReason::Immediate(_)) })
}
