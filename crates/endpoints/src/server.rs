//! The HTTP server: accepts, and speaks HTTP/1.1 until a connection ends or becomes a WebSocket.

mod accept;
mod body;
mod connection;
mod deferred_handshake;
mod descriptor_shortage;
mod exchange;
mod lingering_close;
mod listener;
mod pending_websocket;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use bytes::Bytes;
use lastcall_websockets::ConnectionManager;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinHandle, unconstrained},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::descriptor_shortage::DescriptorShortage;
pub use self::listener::{BindError, bind};
pub(crate) use self::pending_websocket::PendingWebSocket;
use crate::{auth::own_hosts::OnLoopback, refusals::Refusals};

/// How long clients have to take the answers to requests that took too long when the server stops.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// The address of the client, or of a proxy if there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddr(pub(crate) SocketAddr);

/// What an HTTP server has while it does not run: another one can go on with it, in another process too.
#[derive(Debug)]
pub struct ListenerState {
    /// Where clients connect.
    pub listener: TcpListener,
    /// Connections that wait for a request.
    pub idle: Vec<IdleConnection>,
}

/// A connection on which no request is being answered: the client has not sent any yet, or all of them were
/// answered.
#[derive(Debug)]
pub struct IdleConnection {
    /// Its socket.
    pub stream: TcpStream,
    /// The beginning of a request, if one was read.
    pub read: Bytes,
}

impl From<TcpListener> for ListenerState {
    fn from(listener: TcpListener) -> Self {
        Self { listener, idle: Vec::new() }
    }
}

/// How long a server that stops waits for connections that are not idle.
#[derive(Debug, Clone, Copy)]
pub struct StopTimeouts {
    /// For clients that have been told that their connection is closed, and have not closed it yet.
    pub closing: Duration,
    /// For requests that are not answered yet, after that; then they get 503.
    pub in_flight: Duration,
}

/// How urgently a server is to stop.
#[derive(Debug, Default)]
struct Stopping {
    /// Nothing is accepted, and idle connections are given back.
    asked: CancellationToken,
    /// Connections that are being closed are not waited for.
    soon: CancellationToken,
    /// Requests that are not answered yet get 503.
    late: CancellationToken,
    /// Nothing is waited for.
    now: CancellationToken,
}

/// What all connections of a server share.
struct Shared {
    router: Router,
    manager: ConnectionManager,
    keep_alive_timeout: Duration,
    refusals: Refusals,
    stopping: Stopping,
}

/// A running HTTP server.
pub struct HttpServer {
    shared: Arc<Shared>,
    accepting: JoinHandle<ListenerState>,
}

impl HttpServer {
    /// Starts to answer requests. Connections that become WebSockets go to `manager`; those that wait for a
    /// request for longer than `keep_alive_timeout` are closed. What is refused is noted in `refusals`.
    pub fn start(
        state: ListenerState,
        router: Router,
        manager: ConnectionManager,
        keep_alive_timeout: Duration,
        refusals: Refusals,
    ) -> Self {
        let stopping = Stopping::default();
        let router = router.layer(Extension(OnLoopback::of(&state.listener)));
        let shared = Arc::new(Shared { router, manager, keep_alive_timeout, refusals, stopping });
        // Unconstrained: it takes all connections that wait before it lets others have their turn. Shaking hands
        // takes longer than dialling, and the backlog would overflow meanwhile.
        // Now: a server that says that it listens has all the descriptors that it keeps.
        let shortage = DescriptorShortage::new(shared.refusals.clone());
        let accepting = accept::accept(state, shortage, Arc::clone(&shared));
        let accepting = tokio::spawn(unconstrained(accepting));
        Self { shared, accepting }
    }

    /// Accepts nothing any more and waits for the requests in flight. Returns what another server can go on
    /// with: the listening socket, which still queues new connections, and all idle connections, those whose
    /// requests were in flight included. Dropping it closes the port and the connections.
    ///
    /// # Errors
    /// When the server had failed.
    pub async fn stop(self, patience: StopTimeouts) -> Result<ListenerState, JoinError> {
        let refusals = self.shared.refusals.clone();
        let state = self.stop_accepting(patience).await;
        refusals.flush();
        state
    }

    async fn stop_accepting(mut self, patience: StopTimeouts) -> Result<ListenerState, JoinError> {
        let stopping = &self.shared.stopping;
        stopping.asked.cancel();
        if let Ok(ended) = timeout(patience.closing, &mut self.accepting).await {
            return ended;
        }
        stopping.soon.cancel();
        if let Ok(ended) = timeout(patience.in_flight, &mut self.accepting).await {
            return ended;
        }
        info!("requests that are not answered yet get 503: the server is replaced, or ends");
        stopping.late.cancel();
        if let Ok(ended) = timeout(LAST_ANSWERS, &mut self.accepting).await {
            return ended;
        }
        info!("HTTP clients that do not take their answers are cut off: the server is replaced, or ends");
        stopping.now.cancel();
        self.accepting.await
    }
}
