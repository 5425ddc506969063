//! Everything that publishes: the HTTP server and the notifier. They are suspended and resumed together, in this
//! process or in the next one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use lastcall_core::AllowedOrigins;
use lastcall_endpoints::{
    HttpConnections, HttpServer, ListenerState, Refusals, RequestsInFlight, Router, StopTimeouts,
};
use lastcall_websockets::{ConnectionManager, Notifier, NotifierState};

/// The HTTP server and the notifier. Suspended at first.
pub(crate) struct Ingress {
    manager: ConnectionManager,
    router: Router,
    notification_interval: Option<Duration>,
    http_connections: HttpConnections,
    keep_alive_timeout: Duration,
    pub(crate) refusals: Refusals,
    allowed_origins: AllowedOrigins,
    running: Mutex<Option<Running>>,
}

struct Running {
    http: HttpServer,
    notifier: Option<Notifier>,
}

/// The state that a suspended ingress resumes from.
#[derive(Debug)]
pub(crate) struct SuspendedIngress {
    pub(crate) http: ListenerState,
    pub(crate) notifier: NotifierState,
}

impl Ingress {
    pub(crate) fn new(
        manager: ConnectionManager,
        router: Router,
        notification_interval: Option<Duration>,
        http_connections: HttpConnections,
        keep_alive_timeout: Duration,
        refusals: Refusals,
        allowed_origins: AllowedOrigins,
    ) -> Self {
        let running = Mutex::default();
        Self {
            manager,
            router,
            notification_interval,
            http_connections,
            keep_alive_timeout,
            refusals,
            allowed_origins,
            running,
        }
    }

    /// Starts, or resumes.
    pub(crate) fn resume(&self, suspended: SuspendedIngress) {
        let SuspendedIngress { http, notifier } = suspended;
        let manager = || self.manager.clone();
        let notifier = self.notification_interval.map(|every| Notifier::start(manager(), every, notifier));
        *self.running() = Some(Running { http: self.start_http(http), notifier });
    }

    /// Returns the requests in flight. `None`: it is suspended.
    pub(crate) fn requests_in_flight(&self) -> Option<RequestsInFlight> {
        self.running().as_ref().map(|running| running.http.requests_in_flight())
    }

    /// Stops accepting, finishes the requests in flight and stops the notifier: nothing is published after this.
    /// Returns `None` if it was suspended already.
    ///
    /// # Errors
    /// When the accept loop or the notifier has failed, which ends the process ([`VitalTasks`](lastcall_websockets::VitalTasks)).
    /// Until then, the HTTP server continues if it can.
    pub(crate) async fn suspend(&self, timeouts: StopTimeouts) -> anyhow::Result<Option<SuspendedIngress>> {
        let Some(Running { http, notifier }) = self.running().take() else { return Ok(None) };
        // The listening socket is lost with it.
        let http = http.stop(timeouts).await.context("the accept loop has failed")?;
        let stopped = match notifier {
            Some(notifier) => notifier.stop().await,
            None => Ok(NotifierState::default()),
        };
        match stopped {
            Ok(notifier) => Ok(Some(SuspendedIngress { http, notifier })),
            Err(error) => {
                *self.running() = Some(Running { http: self.start_http(http), notifier: None });
                Err(error).context("the notifier has failed")
            }
        }
    }

    fn start_http(&self, state: ListenerState) -> HttpServer {
        let (router, manager, refusals) = (self.router.clone(), self.manager.clone(), self.refusals.clone());
        HttpServer::start(
            state,
            router,
            manager,
            self.http_connections.clone(),
            self.keep_alive_timeout,
            refusals,
            self.allowed_origins.clone(),
        )
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        // Nothing that holds it can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
