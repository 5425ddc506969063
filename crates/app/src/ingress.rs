//! Everything that publishes: the HTTP server and the notifier. They are suspended and resumed together, in this
//! process or in the next one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use lastcall_endpoints::{HttpServer, ListenerState, Refusals, Router, StopTimeouts};
use lastcall_websockets::{ConnectionManager, Notifier, NotifierState};

/// The HTTP server and the notifier. Suspended at first.
pub(crate) struct Ingress {
    manager: ConnectionManager,
    router: Router,
    notification_interval: Option<Duration>,
    keep_alive_timeout: Duration,
    pub(crate) refusals: Refusals,
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
        keep_alive_timeout: Duration,
        refusals: Refusals,
    ) -> Self {
        let running = Mutex::default();
        Self { manager, router, notification_interval, keep_alive_timeout, refusals, running }
    }

    /// Starts, or resumes.
    pub(crate) fn resume(&self, suspended: SuspendedIngress) {
        let SuspendedIngress { http, notifier } = suspended;
        let manager = || self.manager.clone();
        let notifier = self.notification_interval.map(|every| Notifier::start(manager(), every, notifier));
        let (router, refusals) = (self.router.clone(), self.refusals.clone());
        let http = HttpServer::start(http, router, manager(), self.keep_alive_timeout, refusals);
        *self.running() = Some(Running { http, notifier });
    }

    /// Stops accepting, finishes the requests in flight and stops the notifier: nothing is published after this.
    /// Returns `None` if it was suspended already.
    pub(crate) async fn suspend(&self, timeouts: StopTimeouts) -> anyhow::Result<Option<SuspendedIngress>> {
        let Some(Running { http, notifier }) = self.running().take() else { return Ok(None) };
        let http = http.stop(timeouts).await.context("the HTTP server had failed")?;
        let notifier = match notifier {
            Some(notifier) => notifier.stop().await.context("the notifier had failed")?,
            None => NotifierState::default(),
        };
        Ok(Some(SuspendedIngress { http, notifier }))
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        // Nothing that holds it can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
