//! Accepting connections until the server stops, and collecting those that are idle then.

use std::{sync::Arc, time::Duration};

use lastcall_core::memory;
use lastcall_websockets::ConnectionManager;
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking, yield_now},
    time::timeout,
};
use tracing::{debug, error};

use super::{IdleConnection, ListenerState, Shared, connection, no_descriptors::NoDescriptors};

/// Connections accepted before others have their turn, at the latest: as many as usually fit in the backlog.
const MOST_IN_A_ROW: usize = 4096;

/// So many connections at once leave enough free memory behind to be worth giving back.
const CROWD: usize = 500;

/// How long the event loops may take to take a crowd in.
const SETTLING: Duration = Duration::from_secs(10);

pub(super) async fn accept(
    state: ListenerState,
    mut no_descriptors: NoDescriptors,
    shared: Arc<Shared>,
) -> ListenerState {
    let ListenerState { listener, idle } = state;
    let mut connections = JoinSet::new();
    for connection in idle {
        match connection.stream.peer_addr() {
            Ok(peer) => drop(connections.spawn(connection::serve(connection, peer, Arc::clone(&shared)))),
            Err(error) => debug!(%error, "an idle connection has ended"),
        }
    }
    let mut idle = Vec::new();
    let mut accepted_so_far = 0_usize;
    let mut most_at_once = 0;
    loop {
        tokio::select! {
            () = shared.stopping.asked.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    no_descriptors.accepted();
                    accepted_so_far = accepted_so_far.wrapping_add(1);
                    if accepted_so_far.is_multiple_of(MOST_IN_A_ROW) {
                        yield_now().await;
                    }
                    let connection = IdleConnection::from(stream);
                    connections.spawn(connection::serve(connection, peer, Arc::clone(&shared)));
                }
                Err(error) => no_descriptors.handle(&listener, &error).await,
            },
            Some(ended) = connections.join_next() => {
                // Once the server is to stop, an idle connection may be here before this loop knows of it.
                idle.extend(joined(ended));
                most_at_once = most_at_once.max(connections.len());
                if connections.is_empty() && std::mem::take(&mut most_at_once) >= CROWD {
                    tokio::spawn(give_memory_back(shared.manager.clone()));
                }
            }
        }
    }
    // Each ends by itself, at the latest when nothing is waited for any more.
    while let Some(ended) = connections.join_next().await {
        idle.extend(joined(ended));
    }
    ListenerState { listener, idle }
}

/// Gives back the memory that a crowd needed while it came in.
async fn give_memory_back(manager: ConnectionManager) {
    // When the event loops answer, they have taken in all of it, and freed what it brought along. Otherwise a
    // little more is kept.
    let _ = timeout(SETTLING, manager.stats()).await;
    // Nothing waits for it, and it cannot fail.
    drop(spawn_blocking(memory::give_back));
}

/// The connection, if it was idle when the server was to stop.
fn joined(ended: Result<Option<IdleConnection>, JoinError>) -> Option<IdleConnection> {
    ended.unwrap_or_else(|error| {
        error!(%error, "an HTTP connection failed");
        None
    })
}
