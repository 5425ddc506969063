//! The server put together: which parts it has, and in which order they start and stop.

use std::{
    env,
    net::{Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use lastcall_core::{
    logging::FLUSH_TIMEOUT,
    process,
    settings::{Loaded, RuntimeDir, SettingError, SettingsErrors},
};
use lastcall_endpoints::{
    AppState, HttpConfig, HttpConnections, Page, Process, Refusals, StopTimeouts, router,
};
use lastcall_handover::{
    ControlSocket, ServerAddress, SocketName,
    failpoint::{self, Step},
};
use lastcall_lifecycle::{
    ExitReason, Hooks, Lifecycle, NewProcess, ServiceManager, Signal, Signals, is_in_foreground,
};
use lastcall_websockets::{CLOSE_GRACE, ConnectionManager, NotifierState, Phases, VitalTasks};
use tokio::{task::spawn_blocking, time::timeout};
use tracing::{info, warn};

use crate::{
    broker::ServerBroker,
    config, exposure,
    history::{self, HistoryFile, MayTake},
    ingress::{Ingress, SuspendedIngress},
    listener::{self, BoundListener},
    start_time,
    upgrade::{
        ControlServer, IncomingHandover, Orphans, OutgoingHandover, Program, Role, SERVING_REPORT_TIMEOUT,
        SharedUpgradeStats, Supervised, UpgradeRequests, Upgrader, supervise,
    },
    variables, version,
};

/// How long a part may take to stop, on top of what the settings give it.
const HOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// The exit code for an end in order, but for the history, which could not be written.
const HISTORY_LOST: u8 = 3;

/// How long the history may take to be written, when the server ends.
const WRITE_HISTORY_TIMEOUT: Duration = Duration::from_secs(30);

/// The parts of the server, each of which may take [`HOOK_TIMEOUT`] to stop.
const HOOKS: u32 = 3;

/// The time that the end of the server may take beyond `shutdown_delay`, `shutdown_timeout`, twice `close_timeout` (for clients, and then
/// for requests in flight) and the history. README.md, the documentation and what is in `deploy/` count with it.
const STOP_MARGIN: Duration = Duration::from_secs(30);

const _: () = {
    let parts = HOOK_TIMEOUT.as_secs() * HOOKS as u64;
    assert!(CLOSE_GRACE.as_secs() + parts + FLUSH_TIMEOUT.as_secs() <= STOP_MARGIN.as_secs());
};

/// The address with the longest name: a control socket with that name fits for every other one.
const LONGEST_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(!0, !0, !0, !0, !0, !0, !0, !0)), u16::MAX);

/// How long clients have to close connections whose last answer was sent, when the server ends.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(50);

/// How long clients have to take the 503 that answers requests which took too long, when the server ends.
const REFUSED_TIMEOUT: Duration = Duration::from_millis(250);

/// Descriptors that this process has from the one that started it.
pub(crate) struct Inherited {
    /// The socket to the old process, if this one is to take over from it.
    pub(crate) handover: Option<OwnedFd>,
    pub(crate) role: Role,
}

/// How the process ends.
pub(crate) struct Exit {
    pub(crate) code: ExitCode,
    /// Nothing is to be waited for.
    pub(crate) at_once: bool,
}

/// Serves until the process is to end, or takes over from an old process first. What is `unusable` among the settings
/// is reported together with what is found to be so here.
///
/// # Errors
/// [`SettingsErrors`] if a setting cannot be used on this machine; other errors if the system does not allow it.
pub(crate) async fn run(
    loaded: &Loaded,
    inherited: Inherited,
    unusable: Vec<SettingError>,
) -> anyhow::Result<Exit> {
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
        signal = signals.nth(1) => {
            info!(signal = signal.name(), pid = std::process::id(), "stopped before it served");
            return Ok(Exit { code: ExitCode::SUCCESS, at_once: false });
        }
        prepared = preparing => prepared?,
    };
    let phases = Phases::default();
    let new_broker = |delivery| ServerBroker::new(config::broker(settings), delivery);
    let manager_config = config::manager(settings)?;
    let started = ConnectionManager::start(manager_config, phases.clone(), vital_tasks.clone(), new_broker);
    let (manager, broker) = started.context("cannot start the event loops")?;
    let path = settings.history_file.clone();
    let history_file = path.map(|path| HistoryFile::new(path, settings.history_bytes));
    let upgrade_stats = SharedUpgradeStats::default();
    let process = Process {
        version: version::VERSION,
        commit: version::COMMIT,
        pid: std::process::id(),
        start_time: start_time::unix_seconds(),
        started: start_time::since_boot(),
        phase: phases.subscribe(),
        upgrades: upgrade_stats.subscribe(),
    };
    let refusals = Refusals::default();
    let http_connections = HttpConnections::new(settings.max_http_connections);
    let router = router(AppState::new(
        config::endpoints(settings),
        manager.clone(),
        process,
        page,
        refusals.clone(),
        http_connections.clone(),
    ));
    let http = HttpConfig {
        router,
        manager: manager.clone(),
        connections: http_connections,
        keep_alive_timeout: settings.keep_alive_timeout,
        refusals: refusals.clone(),
        allowed_origins: settings.allowed_origins.clone(),
    };
    let ingress = Arc::new(Ingress::new(http, settings.notification_interval));

    let from_systemd;
    let (suspended, inherited_control, served_before) = match listener {
        ListenerSource::Handover(handover) => {
            let received = handover.receive(&manager, &broker, settings).await?;
            upgrade_stats.set(received.upgrade_stats);
            from_systemd = received.from_systemd;
            refusals.add(&received.refused);
            if let Some(file) = history_file.clone() {
                spawn_blocking(move || file.set_aside_superseded()).await?;
            }
            (received.ingress, received.control, Some((received.frozen, received.old_process)))
        }
        ListenerSource::Bound(bound) => {
            if let Some(file) = history_file.clone() {
                let (broker, may_take) = (broker.clone(), Arc::new(MayTake::default()));
                let may_reader_take = Arc::clone(&may_take);
                let stopped = async {
                    let signal = signals.nth(1).await;
                    // It is being marked already: that is over soon, and a drain writes it anew.
                    if may_take.forbid() { signal } else { signals.nth(3).await }
                };
                tokio::select! {
                    biased;
                    signal = stopped => {
                        info!(signal = signal.name(), pid = std::process::id(), "stopped before it served");
                        manager.stop();
                        return Ok(Exit { code: ExitCode::SUCCESS, at_once: false });
                    }
                    read = spawn_blocking(move || file.read(&broker, &may_reader_take)) => read?,
                }
            }
            from_systemd = bound.from_systemd;
            let (http, notifier) = (bound.listener.into(), NotifierState::default());
            (SuspendedIngress { http, notifier }, None, None)
        }
    };
    let address = suspended.http.listener.local_addr().context("cannot tell which port was bound")?;

    let hooks = Hooks::default()
        .add("history", HOOK_TIMEOUT, {
            let expiry = broker.clone().expire();
            let vital_tasks = vital_tasks.clone();
            async move {
                let expiry = vital_tasks.spawn("the expiry of the history", expiry);
                Ok(async move {
                    expiry.abort();
                    Ok(())
                })
            }
        })
        .add("event loops", HOOK_TIMEOUT, {
            let manager = manager.clone();
            async { Ok(async { Ok(spawn_blocking(move || manager.stop()).await?) }) }
        })
        .add("HTTP and notifier", HOOK_TIMEOUT + settings.close_timeout, {
            let (ingress, in_flight) = (Arc::clone(&ingress), settings.close_timeout);
            async move {
                ingress.resume(suspended);
                Ok(async move {
                    ingress
                        .suspend(StopTimeouts {
                            closing: CLOSING_TIMEOUT,
                            in_flight,
                            refused: REFUSED_TIMEOUT,
                        })
                        .await?;
                    Ok(())
                })
            }
        });
    let takes_over = served_before.is_some();
    let life = Lifecycle::start(hooks, phases, signals.clone(), service_manager.clone(), takes_over).await?;
    if let Role::Supervised(link) = &mut role {
        link.serve(signals.clone(), &vital_tasks).context("cannot use the link to the supervisor")?;
        failpoint::hit(Step::Reported);
    }
    if let Some((frozen, old_process)) = served_before {
        let pause = frozen.elapsed();
        // The old process ends when it receives this. If it is stopped, it may not take it: signals do not wait for that.
        spawn_blocking(move || {
            if let Err(error) = old_process.report_serving(SERVING_REPORT_TIMEOUT) {
                warn!("the old process could not be told that this one serves: {error:#}");
            }
        });
        upgrade_stats.set_last_pause(pause);
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
            ingress,
            manager: manager.clone(),
            broker: broker.clone(),
            timeout: settings.upgrade_timeout,
            upgrade_stats,
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
    let mut reason = life.run(manager, config::shutdown(settings), &mut upgrader).await;
    let mut graceful = ExitCode::SUCCESS;
    match (reason, history_file) {
        (ExitReason::Graceful, Some(file)) => {
            let writing = write_history(file, broker, &signals);
            let writing = service_manager.extending(WRITE_HISTORY_TIMEOUT, writing);
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
        (ExitReason::HandedOver(_), _) => broker.clear(),
        _ => {}
    }
    exit(reason, graceful, upgrader.handover.supervised, &service_manager).await
}

/// Why the history is not there for the next start.
enum NotWritten {
    Failed(anyhow::Error),
    /// The third signal has come meanwhile: nothing is waited for.
    Signal(Signal),
}

/// Writes the history, for the next start.
async fn write_history(file: HistoryFile, broker: ServerBroker, signals: &Signals) -> Result<(), NotWritten> {
    let writing = spawn_blocking(move || {
        failpoint::hit(Step::WritingHistory);
        file.write(&broker)
    });
    tokio::select! {
        biased;
        written = timeout(WRITE_HISTORY_TIMEOUT, writing) => {
            let written = written.with_context(|| format!("it took more than {WRITE_HISTORY_TIMEOUT:?}"));
            // The log says why it panicked.
            let written = written.and_then(|written| written.context("that panicked"));
            written.and_then(|written| Ok(written?)).map_err(NotWritten::Failed)
        }
        signal = signals.nth(3) => Err(NotWritten::Signal(signal)),
    }
}

/// Returns how the process ends: with the code `graceful`, if it ends in order. If it has become the supervisor of another
/// one, it is that first.
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

/// What is there before the server is built. Nothing of it can fail any more once this process has taken over.
struct Prepared {
    page: Page,
    listener: ListenerSource,
}

/// Where the listening socket comes from.
enum ListenerSource {
    /// The old process, with its clients.
    Handover(IncomingHandover),
    /// The service manager, or the settings.
    Bound(BoundListener),
}

/// Loads and opens what the settings name. What cannot be used is reported together with what is `unusable` already.
///
/// # Errors
/// [`SettingsErrors`] if a setting cannot be used on this machine; other errors if the system does not allow it.
async fn prepare(
    loaded: &Loaded,
    handover: Option<IncomingHandover>,
    mut unusable: Vec<SettingError>,
) -> anyhow::Result<Prepared> {
    let checking = spawn_blocking({
        let loaded = loaded.clone();
        move || check_files(&loaded)
    });
    let (page, also_unusable) = checking.await?;
    unusable.extend(also_unusable);
    let listener = match handover {
        Some(handover) => Some(ListenerSource::Handover(handover)),
        None => listener::open(loaded, &mut unusable).await?.map(ListenerSource::Bound),
    };
    match (page, listener) {
        (Some(page), Some(listener)) if unusable.is_empty() => Ok(Prepared { page, listener }),
        _ => Err(SettingsErrors(unusable).into()),
    }
}

/// Loads the page, and looks at the other files and folders that the settings name. Returns what cannot be used, too.
fn check_files(loaded: &Loaded) -> (Option<Page>, Vec<SettingError>) {
    let settings = &loaded.settings;
    let mut unusable = Vec::new();
    if !matches!(settings.runtime_dir, RuntimeDir::Default(_))
        && let Err(error) =
            ControlSocket::check_folder(settings.runtime_dir.path(), SocketName::Address(LONGEST_ADDRESS))
    {
        let reason = format_args!("there can be no control socket: {:#}", anyhow::Error::from(error));
        unusable.push(loaded.unusable_error("runtime_dir", &reason));
    }
    if let Some(path) = &settings.history_file
        && let Err(error) = history::check(path)
    {
        unusable.push(loaded.unusable_error("history_file", &error));
    }
    failpoint::hit(Step::Preparing);
    let page = Page::load(settings.templates_dir.as_deref(), settings.max_message_size)
        .map_err(|error| {
            let reason = format_args!("{:#}", anyhow::Error::from(error));
            unusable.push(loaded.unusable_error("templates_dir", &reason));
        })
        .ok();
    (page, unusable)
}
