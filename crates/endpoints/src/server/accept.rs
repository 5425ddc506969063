//! Accepting connections until the server stops, and collecting those that are idle then.

use std::{pin::pin, sync::Arc, time::Duration};

use lastcall_core::process::trim_heap;
use lastcall_websockets::ConnectionManager;
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking, yield_now},
    time::timeout,
};
use tracing::{debug, error};

use super::{
    connection::serve_connection, descriptor_shortage::DescriptorShortage, idle_connection::IdleConnection,
    listener_state::ListenerState, shared::Shared, stop::StopLevel,
};

/// Connections that are accepted before other tasks run, at most: as many as usually fit in the backlog.
const MAX_ACCEPTS_PER_YIELD: usize = 4096;

/// Bursts of at least this many connections leave so much of the heap free that trimming it pays off.
const TRIM_THRESHOLD: usize = 500;

/// How long the event loops have to register the connections of a burst before the heap is trimmed.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections until the server is to stop, and then waits until each has ended or is idle.
pub(super) async fn accept(
    state: ListenerState,
    mut shortage: DescriptorShortage,
    shared: Arc<Shared>,
) -> ListenerState {
    let ListenerState { listener, idle } = state;
    let mut connections = JoinSet::new();
    for connection in idle {
        match connection.stream.peer_addr() {
            Ok(peer) => drop(connections.spawn(serve_connection(connection, peer, Arc::clone(&shared)))),
            Err(error) => debug!(%error, "an idle connection has ended"),
        }
    }
    let mut idle = Vec::new();
    let mut accepted_so_far = 0_usize;
    let mut most_at_once = 0;
    let mut stopped = pin!(shared.stop.reached(StopLevel::ReturnIdle));
    loop {
        tokio::select! {
            () = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    shortage.accepted();
                    accepted_so_far = accepted_so_far.wrapping_add(1);
                    if accepted_so_far.is_multiple_of(MAX_ACCEPTS_PER_YIELD) {
                        yield_now().await;
                    }
                    let connection = IdleConnection::from(stream);
                    connections.spawn(serve_connection(connection, peer, Arc::clone(&shared)));
                }
                Err(error) => shortage.accept_failed(&listener, &error).await,
            },
            Some(ended) = connections.join_next() => {
                // Once the server is to stop, an idle connection may be here before this loop knows of it.
                idle.extend(idle_connection(ended));
                most_at_once = most_at_once.max(connections.len());
                if connections.is_empty() && std::mem::take(&mut most_at_once) >= TRIM_THRESHOLD {
                    tokio::spawn(trim_memory(shared.manager.clone()));
                }
            }
        }
    }
    // Each ends by itself, at the latest when nothing is waited for any more.
    while let Some(ended) = connections.join_next().await {
        idle.extend(idle_connection(ended));
    }
    ListenerState { listener, idle }
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
fn idle_connection(ended: Result<Option<IdleConnection>, JoinError>) -> Option<IdleConnection> {
    ended.unwrap_or_else(|error| {
        error!(%error, "an HTTP connection failed");
        None
    })
}
