//! Everything that publishes: the HTTP server and the notifier. They are suspended and resumed together, in
//! this process or in the next one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use lastcall_endpoints::{HttpConfig, HttpServer, ListenerState, Refusals, RequestsInFlight, StopTimeouts};
use lastcall_websockets::{Notifier, NotifierState};

/// The HTTP server and the notifier. Suspended at first.
pub(crate) struct Ingress {
    http: HttpConfig,
    notification_interval: Option<Duration>,
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
    pub(crate) fn new(http: HttpConfig, notification_interval: Option<Duration>) -> Self {
        Self { http, notification_interval, running: Mutex::default() }
    }

    /// Returns the refusals that the HTTP server has noted.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.http.refusals
    }

    /// Starts, or resumes.
    pub(crate) fn resume(&self, suspended: SuspendedIngress) {
        let SuspendedIngress { http, notifier } = suspended;
        let manager = || self.http.manager.clone();
        let notifier = self.notification_interval.map(|every| Notifier::start(manager(), every, notifier));
        *self.running() = Some(Running { http: self.start_http(http), notifier });
    }

    /// Returns the requests in flight. `None`: it is suspended.
    pub(crate) fn requests_in_flight(&self) -> Option<RequestsInFlight> {
        self.running().as_ref().map(|running| running.http.requests_in_flight())
    }

    /// Stops accepting, finishes the requests in flight and stops the notifier: nothing is published after
    /// this. Returns `None` if it was suspended already.
    ///
    /// # Errors
    /// When the accept loop or the notifier has failed, which ends the process
    /// ([`VitalTasks`](lastcall_websockets::VitalTasks)). Until then, the HTTP server continues if it can.
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
        HttpServer::start(state, self.http.clone())
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        // Nothing that holds it can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
