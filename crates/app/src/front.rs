//! What faces the outside: the HTTP server and the notifier. Both can be paused, and go on later, here or in
//! another process.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use lastcall_endpoints::{Entrance, HttpServer, Patience, Refusals, Router};
use lastcall_websockets::{ConnectionManager, Notifier, NotifierState};

/// The front of the house. It is paused at first.
pub(crate) struct Front {
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

/// What it goes on with.
#[derive(Debug)]
pub(crate) struct Paused {
    pub(crate) entrance: Entrance,
    pub(crate) notifier: NotifierState,
}

impl Front {
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

    /// Starts, or goes on.
    pub(crate) fn start(&self, paused: Paused) {
        let Paused { entrance, notifier } = paused;
        let manager = || self.manager.clone();
        let notifier = self.notification_interval.map(|every| Notifier::start(manager(), every, notifier));
        let (router, refusals) = (self.router.clone(), self.refusals.clone());
        let http = HttpServer::start(entrance, router, manager(), self.keep_alive_timeout, refusals);
        *self.running() = Some(Running { http, notifier });
    }

    /// Accepts nobody any more, finishes the requests in flight and stops notifying: nothing is published
    /// after this. `None` if it does not run.
    pub(crate) async fn pause(&self, patience: Patience) -> anyhow::Result<Option<Paused>> {
        let Some(Running { http, notifier }) = self.running().take() else { return Ok(None) };
        let entrance = http.stop(patience).await.context("the HTTP server had failed")?;
        let notifier = match notifier {
            Some(notifier) => notifier.stop().await.context("the notifier had failed")?,
            None => NotifierState::default(),
        };
        Ok(Some(Paused { entrance, notifier }))
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        // Nothing that holds it can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
