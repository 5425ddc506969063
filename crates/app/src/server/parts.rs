//! The parts of the server that serves: how they are built, started and stopped.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use lastcall_core::{logging::FLUSH_TIMEOUT, settings::Settings};
use lastcall_endpoints::{
    AppState, HttpConfig, HttpConnections, Page, Process, Refusals, StopTimeouts, router,
};
use lastcall_lifecycle::Hooks;
use lastcall_websockets::{CLOSE_GRACE, ConnectionManager, Phases, VitalTasks};
use tokio::task::spawn_blocking;

use crate::{
    broker::ServerBroker,
    config,
    history::HistoryFile,
    ingress::{Ingress, SuspendedIngress},
    start_time,
    upgrade::SharedUpgradeStats,
    version,
};

/// The time that a part may take to stop, on top of what the settings give it.
const HOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// The parts of the server, each of which may take [`HOOK_TIMEOUT`] to stop.
const HOOKS: u32 = 3;

/// The time that the end of the server may take beyond `shutdown_delay`, `shutdown_timeout`, twice
/// `close_timeout` (for clients, and then for requests in flight) and the history. README.md, the
/// documentation and what is in `deploy/` count with it.
const STOP_MARGIN: Duration = Duration::from_secs(30);

const _: () = {
    let parts = HOOK_TIMEOUT.as_secs() * HOOKS as u64;
    assert!(CLOSE_GRACE.as_secs() + parts + FLUSH_TIMEOUT.as_secs() <= STOP_MARGIN.as_secs());
};

/// The time that clients have to close connections whose last answer was sent, when the server ends.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(50);

/// The time that clients have to take the 503 that answers requests which took too long, when the server
/// ends.
const REFUSED_TIMEOUT: Duration = Duration::from_millis(250);

/// The parts of the server.
pub(super) struct Parts {
    pub(super) manager: ConnectionManager,
    pub(super) broker: ServerBroker,
    pub(super) ingress: Arc<Ingress>,
    pub(super) refusals: Refusals,
    pub(super) upgrade_stats: SharedUpgradeStats,
    /// `None` if the history ends with the process.
    pub(super) history_file: Option<HistoryFile>,
}

impl Parts {
    /// Builds all parts. The event loops run already, without connections.
    ///
    /// # Errors
    /// When the event loops cannot be started.
    pub(super) fn build(
        settings: &Settings,
        page: Page,
        phases: &Phases,
        vital_tasks: &VitalTasks,
    ) -> anyhow::Result<Self> {
        let new_broker = |delivery| ServerBroker::new(config::broker(settings), delivery);
        let manager_config = config::manager(settings)?;
        let started =
            ConnectionManager::start(manager_config, phases.clone(), vital_tasks.clone(), new_broker);
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
        Ok(Self { manager, broker, ingress, refusals, upgrade_stats, history_file })
    }

    /// Returns the hooks that start the parts, with what HTTP and the notifier resume from, and stop them.
    pub(super) fn hooks(
        &self,
        suspended: SuspendedIngress,
        settings: &Settings,
        vital_tasks: &VitalTasks,
    ) -> Hooks {
        Hooks::default()
            .add("history", HOOK_TIMEOUT, {
                let expiry = self.broker.clone().expire();
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
                let manager = self.manager.clone();
                async { Ok(async { Ok(spawn_blocking(move || manager.stop()).await?) }) }
            })
            .add("HTTP and notifier", HOOK_TIMEOUT + settings.close_timeout, {
                let (ingress, in_flight) = (Arc::clone(&self.ingress), settings.close_timeout);
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
            })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use lastcall_core::settings::Sources;
    use lastcall_endpoints::Listener;
    use lastcall_websockets::NotifierState;

    use super::*;

    const TIMEOUTS: StopTimeouts =
        StopTimeouts { closing: CLOSING_TIMEOUT, in_flight: HOOK_TIMEOUT, refused: REFUSED_TIMEOUT };

    #[tokio::test]
    async fn the_ingress_resumes_where_it_was_suspended() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { working_dir: folder.path().to_owned(), ..Sources::default() };
        let settings = Settings::load(&sources).unwrap().settings;
        let page = Page::load(None, settings.max_message_size).unwrap();
        let parts = Parts::build(&settings, page, &Phases::default(), &VitalTasks::default()).unwrap();
        let ingress = &parts.ingress;
        assert!(ingress.requests_in_flight().is_none(), "suspended at first");
        assert!(ingress.suspend(TIMEOUTS).await.unwrap().is_none(), "nothing to be suspended");

        let listener = Listener::bind("127.0.0.1", 0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut suspended = SuspendedIngress { http: listener.into(), notifier: NotifierState::default() };
        for _ in 0..2 {
            ingress.resume(suspended);
            assert!(ingress.requests_in_flight().is_some());
            let client = TcpStream::connect(address).unwrap();
            suspended = ingress.suspend(TIMEOUTS).await.unwrap().unwrap();
            assert_eq!(suspended.http.listener.local_addr().unwrap(), address);
            assert!(ingress.requests_in_flight().is_none());
            drop(client);
        }
        parts.manager.stop();
    }
}
