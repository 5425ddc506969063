//! The HTTP server: accepts, and speaks HTTP/1.1 until a connection ends or becomes a WebSocket.

mod accept;
mod accept_errors;
mod connection;
mod date;
mod deferred_handshake;
mod exchange;
mod http_connections;
mod http_stream;
mod in_flight;
mod lingering_close;
mod listener;
mod refused_connections;
mod request_body;
mod stop;

use std::{sync::Arc, time::Duration};

use axum::{Extension, Router};
use lastcall_core::AllowedOrigins;
use lastcall_websockets::ConnectionManager;
use tokio::{
    task::{JoinError, JoinHandle, unconstrained},
    time::timeout,
};
use tracing::info;

pub(crate) use self::deferred_handshake::{AcceptedConnection, HandoffSlot};
pub use self::{
    accept::{ListenerClosed, ListenerState},
    http_connections::HttpConnections,
    http_stream::IdleConnection,
    in_flight::RequestsInFlight,
    listener::{BindError, Listener, SystemdSocketError},
};
use self::{
    connection::Shared,
    stop::{Stop, StopLevel},
};
use crate::{refusals::Refusals, request::ListensOnLoopback};

/// The time for which a server that stops waits for connections that are not idle.
#[derive(Debug, Clone, Copy)]
pub struct StopTimeouts {
    /// The time for clients that have been told that their connection is closed, and have not closed it yet.
    pub closing: Duration,
    /// The time after that for requests that are not answered yet; then they get 503.
    pub in_flight: Duration,
    /// The time after that for clients to take that 503; then they are cut off.
    pub refused: Duration,
}

/// The configuration of an HTTP server. Clones share what they refer to.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The routes.
    pub router: Router,
    /// The manager of the connections that become WebSockets or streams of events.
    pub manager: ConnectionManager,
    /// The HTTP connections of the process; each counts among them until it becomes one of those.
    pub connections: HttpConnections,
    /// The time after which a connection is closed that waits for a request.
    pub keep_alive_timeout: Duration,
    /// The refusals that are noted.
    pub refusals: Refusals,
    /// Web pages that may read why they have no events.
    pub allowed_origins: AllowedOrigins,
}

/// A running HTTP server.
pub struct HttpServer {
    shared: Arc<Shared>,
    accepting: JoinHandle<Result<ListenerState, ListenerClosed>>,
}

/// The HTTP server has ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum HttpServerError {
    /// No connection can be accepted any more.
    #[error(transparent)]
    ListenerClosed(#[from] ListenerClosed),
    /// It has panicked.
    #[error("the HTTP server had panicked")]
    Panicked(#[from] JoinError),
}

impl HttpServer {
    /// Starts to answer requests.
    pub fn start(state: ListenerState, config: HttpConfig) -> Self {
        let HttpConfig { router, manager, connections, keep_alive_timeout, refusals, allowed_origins } =
            config;
        // If the system does not say, the stricter of the two.
        let on_loopback =
            state.listener.local_addr().map_or(true, |address| address.ip().to_canonical().is_loopback());
        let router = router.layer(Extension(ListensOnLoopback(on_loopback)));
        let shared = Arc::new(Shared {
            router,
            manager,
            connections,
            keep_alive_timeout,
            refusals,
            allowed_origins,
            in_flight: RequestsInFlight::default(),
            stop: Stop::default(),
        });
        // Unconstrained: it takes all connections that wait before other tasks run. A handshake takes longer
        // than to connect does, and the backlog would overflow meanwhile.
        let vital_tasks = shared.manager.vital_tasks().clone();
        let accepting = accept::accept(state, Arc::clone(&shared));
        let accepting = vital_tasks.spawn("the accept loop", unconstrained(accepting));
        Self { shared, accepting }
    }

    /// Returns the requests in flight.
    pub fn requests_in_flight(&self) -> RequestsInFlight {
        self.shared.in_flight.clone()
    }

    /// Accepts nothing any more and waits for the requests in flight. Returns the listening socket, which
    /// still queues new connections, and all idle connections, including those whose requests were in flight.
    ///
    /// # Errors
    /// When the server had failed.
    pub async fn stop(mut self, timeouts: StopTimeouts) -> Result<ListenerState, HttpServerError> {
        let state = self.stop_accepting(timeouts).await;
        self.shared.refusals.flush();
        state
    }

    async fn stop_accepting(&mut self, timeouts: StopTimeouts) -> Result<ListenerState, HttpServerError> {
        let stop = &self.shared.stop;
        stop.raise_to(StopLevel::ReturnIdle);
        if let Ok(ended) = timeout(timeouts.closing, &mut self.accepting).await {
            return Ok(ended??);
        }
        stop.raise_to(StopLevel::AbortClosing);
        if let Ok(ended) = timeout(timeouts.in_flight, &mut self.accepting).await {
            return Ok(ended??);
        }
        info!("requests that are not answered yet get 503: the server is replaced, or ends");
        stop.raise_to(StopLevel::RefusePending);
        if let Ok(ended) = timeout(timeouts.refused, &mut self.accepting).await {
            return Ok(ended??);
        }
        info!("HTTP clients that do not take their responses are cut off: the server is replaced, or ends");
        stop.raise_to(StopLevel::AbortAll);
        Ok((&mut self.accepting).await??)
    }
}
