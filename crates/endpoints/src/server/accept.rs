//! Accepting connections until the server stops, and collecting those that are idle then.

use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use lastcall_core::process::{Shortage, trim_heap};
use lastcall_websockets::ConnectionManager;
use tokio::{
    net::TcpStream,
    task::{JoinError, JoinSet, spawn_blocking, yield_now},
    time::timeout,
};
use tracing::{debug, error};

use super::{
    accept_errors::AcceptErrors,
    connection::{Returned, Shared, serve_connection},
    http_connections::NoRoom,
    http_stream::IdleConnection,
    listener::Listener,
    refused_connections::RefusedConnections,
    stop::StopLevel,
};

/// Connections that are accepted before other tasks run, at most: as many as usually fit in the backlog.
const MAX_ACCEPTS_PER_YIELD: usize = 4096;

/// Bursts of at least this many connections leave so much of the heap free that trimming it pays off.
const TRIM_THRESHOLD: usize = 500;

/// The time that the event loops have to register the connections of a burst before the heap is trimmed.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);

/// The listening socket accepts nothing, and never will.
#[derive(Debug, thiserror::Error)]
#[error("the listening socket does not listen any more: something else has shut it down")]
pub struct ListenerClosed(#[source] io::Error);

/// The state of a stopped HTTP server. Another [`HttpServer`](crate::HttpServer), possibly in another
/// process, can resume from it. Dropping it closes the port and the connections.
#[derive(Debug)]
pub struct ListenerState {
    /// The socket to which clients connect. The kernel continues to queue new connections.
    pub listener: Listener,
    /// Connections that wait for a request.
    pub idle: Vec<IdleConnection>,
}

impl From<Listener> for ListenerState {
    fn from(listener: Listener) -> Self {
        Self { listener, idle: Vec::new() }
    }
}

/// Accepts connections until the server is to stop, and then waits until each has ended or is idle.
///
/// # Errors
/// When the socket can never accept a connection again. All connections have been dropped then.
pub(super) async fn accept(
    state: ListenerState,
    shared: Arc<Shared>,
) -> Result<ListenerState, ListenerClosed> {
    let ListenerState { listener, idle } = state;
    let mut connections =
        Connections { tasks: JoinSet::new(), refused: RefusedConnections::default(), shared };
    for connection in idle {
        connections.restore(connection);
    }
    let mut errors = AcceptErrors::default();
    let mut idle = Vec::new();
    let mut attempts = 0_usize;
    let mut peak = 0;
    let shared = Arc::clone(&connections.shared);
    let mut stopped = pin!(shared.stop.reached(StopLevel::ReturnIdle));
    loop {
        tokio::select! {
            () = &mut stopped => break,
            accepted = next(&listener, &errors) => {
                attempts = attempts.wrapping_add(1);
                if attempts.is_multiple_of(MAX_ACCEPTS_PER_YIELD) {
                    yield_now().await;
                }
                match accepted {
                    Ok((stream, peer)) => {
                        errors.accepted();
                        connections.add(stream, peer).await;
                    }
                    Err(error) if !listener.can_accept() => {
                        error!(
                            %error,
                            "the listening socket does not listen any more: something else has shut it down"
                        );
                        shared.manager.vital_tasks().fail("the accept loop");
                        return Err(ListenerClosed(error));
                    }
                    Err(error) => {
                        if Shortage::of(&error) == Some(Shortage::Descriptors) {
                            shared.connections.no_descriptor_left();
                        }
                        errors.note(&error);
                    }
                }
            }
            Some(ended) = connections.tasks.join_next() => {
                // Once the server is to stop, an idle connection may be here before this loop knows of it.
                idle.extend(returned(ended));
                peak = peak.max(connections.tasks.len());
                if connections.tasks.is_empty() && std::mem::take(&mut peak) >= TRIM_THRESHOLD {
                    tokio::spawn(trim_memory(shared.manager.clone()));
                }
            }
        }
    }
    // Each ends by itself, at the latest when nothing is waited for any more.
    while let Some(ended) = connections.tasks.join_next().await {
        idle.extend(returned(ended));
    }
    // The next server makes those leave first that have been idle longest.
    idle.sort_unstable_by_key(|returned| returned.order);
    Ok(ListenerState { listener, idle: idle.into_iter().map(|returned| returned.connection).collect() })
}

/// Accepts the next connection, after the pause that an error has brought.
async fn next(listener: &Listener, errors: &AcceptErrors) -> io::Result<(TcpStream, SocketAddr)> {
    errors.pause().await;
    listener.accept().await
}

/// The connections of one server.
struct Connections {
    tasks: JoinSet<Option<Returned>>,
    refused: RefusedConnections,
    shared: Arc<Shared>,
}

impl Connections {
    /// Adds a connection that another server had.
    fn restore(&mut self, connection: IdleConnection) {
        let http_permit = self.shared.connections.restore();
        match connection.stream.peer_addr() {
            Ok(peer) => {
                self.tasks.spawn(serve_connection(connection, peer, Arc::clone(&self.shared), http_permit));
            }
            Err(error) => debug!(%error, "an idle connection has ended"),
        }
    }

    /// Adds a new connection, or answers it 503 if there is no room.
    async fn add(&mut self, stream: TcpStream, peer: SocketAddr) {
        let shared = Arc::clone(&self.shared);
        match shared.connections.admit().await {
            Ok(http_permit) => {
                self.tasks.spawn(serve_connection(IdleConnection::from(stream), peer, shared, http_permit));
            }
            Err(NoRoom) => {
                if let Some(refusal) = self.refused.refuse(stream, peer, shared) {
                    self.tasks.spawn(nothing_returned(refusal));
                }
            }
        }
    }
}

async fn nothing_returned(refusal: impl Future<Output = ()>) -> Option<Returned> {
    refusal.await;
    None
}

/// Returns to the system the memory that the handshakes of a burst have used.
async fn trim_memory(manager: ConnectionManager) {
    // Once the event loops answer, they have registered all of these connections and freed their handshake
    // buffers. Otherwise a little more is kept.
    let _ = timeout(TRIM_TIMEOUT, manager.stats()).await;
    // Nothing waits for it, and it cannot fail.
    drop(spawn_blocking(trim_heap));
}

/// Returns the connection that a task has left, if it was idle when the server was to stop.
fn returned(ended: Result<Option<Returned>, JoinError>) -> Option<Returned> {
    ended.unwrap_or_else(|error| {
        error!(%error, "an HTTP connection failed");
        None
    })
}
