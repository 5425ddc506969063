//! The HTTP server: accepts, and speaks HTTP/1.1 until a connection ends or becomes a WebSocket.

mod no_descriptors;

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router, body::Body};
use bytes::Bytes;
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use lastcall_core::memory;
use lastcall_websockets::{ConnectionManager, Handshake, Place};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinHandle, JoinSet, spawn_blocking, unconstrained, yield_now},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use self::no_descriptors::NoDescriptors;
use crate::{own_hosts::OnLoopback, socket::Socket};

/// How long the head of a request may take to arrive, and a kept-alive connection may be idle: a client
/// that dribbles costs one file descriptor for so long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a request's head; 431 beyond.
const MAX_HEAD: usize = 16 << 10;

/// Connections accepted before others have their turn, at the latest: as many as usually fit in the backlog.
const MOST_IN_A_ROW: usize = 4096;

/// So many connections at once leave enough free memory behind to be worth giving back.
const CROWD: usize = 500;

/// How long the event loops may take to take a crowd in.
const SETTLING: Duration = Duration::from_secs(10);

/// Who is calling.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What an HTTP server has while it does not run: another one can go on with it, in another process too.
#[derive(Debug)]
pub struct Entrance {
    /// Where clients connect.
    pub listener: TcpListener,
    /// Those who have connected but said nothing yet.
    pub silent: Vec<TcpStream>,
}

impl From<TcpListener> for Entrance {
    fn from(listener: TcpListener) -> Self {
        Self { listener, silent: Vec::new() }
    }
}

/// How long a server that stops waits, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For those who have only half asked.
    pub half_asked: Duration,
    /// For those who have not had their whole answer, after that.
    pub in_flight: Duration,
}

/// How urgently a server is to stop.
#[derive(Debug, Default)]
struct Stopping {
    /// Nobody new; idle connections are closed.
    asked: CancellationToken,
    /// Those who have only half asked are not waited for.
    soon: CancellationToken,
    /// Nobody is waited for.
    now: CancellationToken,
}

/// A running HTTP server.
#[derive(Debug)]
pub struct HttpServer {
    stopping: Arc<Stopping>,
    accepting: JoinHandle<Entrance>,
}

impl HttpServer {
    /// Starts to answer those who come. Those who become WebSockets go to `manager`.
    pub fn start(entrance: Entrance, router: Router, manager: ConnectionManager) -> Self {
        let stopping = Arc::new(Stopping::default());
        let router = router.layer(Extension(OnLoopback::of(&entrance.listener)));
        // Unconstrained: it takes all who wait before it lets others have their turn. Shaking hands takes
        // longer than dialling, and the backlog would overflow meanwhile.
        let accepting = accept(entrance, NoDescriptors::new(), router, manager, Arc::clone(&stopping));
        let accepting = tokio::spawn(unconstrained(accepting));
        Self { stopping, accepting }
    }

    /// Accepts nobody any more, closes the idle connections and waits for the requests in flight. Returns
    /// what another server can go on with; dropping that closes the port.
    ///
    /// # Errors
    /// When the server had failed.
    pub async fn stop(mut self, patience: Patience) -> Result<Entrance, JoinError> {
        self.stopping.asked.cancel();
        if let Ok(ended) = timeout(patience.half_asked, &mut self.accepting).await {
            return ended;
        }
        self.stopping.soon.cancel();
        if let Ok(ended) = timeout(patience.in_flight, &mut self.accepting).await {
            return ended;
        }
        warn!("some HTTP requests took too long and are cut off");
        self.stopping.now.cancel();
        self.accepting.await
    }
}

async fn accept(
    entrance: Entrance,
    mut no_descriptors: NoDescriptors,
    router: Router,
    manager: ConnectionManager,
    stopping: Arc<Stopping>,
) -> Entrance {
    let Entrance { listener, silent } = entrance;
    let mut connections = JoinSet::new();
    let connection =
        |stream, peer| serve(stream, peer, router.clone(), manager.clone(), Arc::clone(&stopping));
    for stream in silent {
        match stream.peer_addr() {
            Ok(peer) => drop(connections.spawn(connection(stream, peer))),
            Err(error) => debug!(%error, "a client went before it said anything"),
        }
    }
    let mut accepted_so_far = 0_usize;
    let mut most_at_once = 0;
    loop {
        tokio::select! {
            () = stopping.asked.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    no_descriptors.accepted();
                    accepted_so_far = accepted_so_far.wrapping_add(1);
                    if accepted_so_far.is_multiple_of(MOST_IN_A_ROW) {
                        yield_now().await;
                    }
                    connections.spawn(connection(stream, peer));
                }
                Err(error) => no_descriptors.handle(&listener, &error).await,
            },
            Some(ended) = connections.join_next() => {
                // Nobody is silent for longer than it may be before the server stops.
                let _ = joined(ended);
                most_at_once = most_at_once.max(connections.len());
                if connections.is_empty() && std::mem::take(&mut most_at_once) >= CROWD {
                    tokio::spawn(give_memory_back(manager.clone()));
                }
            }
        }
    }
    let mut silent = Vec::new();
    loop {
        tokio::select! {
            ended = connections.join_next() => match ended {
                Some(ended) => silent.extend(joined(ended)),
                None => break,
            },
            () = stopping.now.cancelled() => {
                connections.shutdown().await;
                break;
            }
        }
    }
    Entrance { listener, silent }
}

/// Gives back the memory that a crowd needed while it came in.
async fn give_memory_back(manager: ConnectionManager) {
    // When the event loops answer, they have taken in all of it, and freed what it brought along. Otherwise a
    // little more is kept.
    let _ = timeout(SETTLING, manager.figures()).await;
    // Nobody waits for it, and it cannot fail.
    drop(spawn_blocking(memory::give_back));
}

/// The socket of a client that had said nothing when the server was to stop.
fn joined(ended: Result<Option<TcpStream>, JoinError>) -> Option<TcpStream> {
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "an HTTP connection failed");
        None
    })
}

/// Waits for a client to say something, and answers it. If the server is to stop before it has said anything,
/// its socket is left over.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    manager: ConnectionManager,
    stopping: Arc<Stopping>,
) -> Option<TcpStream> {
    let mut first_byte = [0];
    // hyper takes its buffers at once. When thousands dial, only those that have said something get any.
    tokio::select! {
        said = timeout(HEAD_TIMEOUT, stream.peek(&mut first_byte)) => match said {
            Ok(Ok(_)) => Box::pin(speak_http(stream, peer, router, manager, stopping)).await,
            Ok(Err(error)) => debug!(%peer, %error, "a client went before it said anything"),
            Err(_) => debug!(%peer, "a client said nothing"),
        },
        () = stopping.asked.cancelled() => return Some(stream),
    }
    None
}

async fn speak_http(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    manager: ConnectionManager,
    stopping: Arc<Stopping>,
) {
    let in_flight = AtomicBool::new(false);
    let upgrade = Upgrade::default();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(upgrade.clone());
        in_flight.store(true, Ordering::Relaxed);
        let answer = router.clone().oneshot(request);
        // hyper only gives the socket back where this may be moved.
        Box::pin(async {
            let answer = answer.await;
            in_flight.store(false, Ordering::Relaxed);
            answer
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Socket::new(stream, upgrade.clone())), service);
    // Ends when there is nothing more to say in HTTP; the socket is still open then.
    let ended = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
        () = stopping.asked.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            let mut finishing = poll_fn(|context| connection.poll_without_shutdown(context));
            tokio::select! {
                ended = &mut finishing => ended,
                () = stopping.soon.cancelled() => {
                    // Half a request, or an answer that is on its way out, has had its time.
                    if in_flight.load(Ordering::Relaxed) { finishing.await } else { Ok(()) }
                }
            }
        }
    };
    if let Err(error) = ended {
        return debug!(%peer, %error, "an HTTP connection ended");
    }
    let Some(place) = upgrade.take() else { return };
    let Parts { io, read_buf, .. } = connection.into_parts();
    let (stream, answer) = io.into_inner().into_parts();
    // An empty rest would keep hyper's whole buffer alive.
    let already_read = if read_buf.is_empty() { Bytes::new() } else { read_buf };
    if let Err(error) = manager.connect(place, stream, Handshake { answer, already_read }) {
        warn!(%peer, %error, "a socket could not be handed to its event loop");
    }
}

/// Where a handler leaves the [`Place`] of a WebSocket whose handshake it answers. When the answer is written,
/// the socket goes to the connection manager with it; if that never happens, the place is free again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Upgrade(Arc<Mutex<Option<Place>>>);

impl Upgrade {
    pub(crate) fn confirm(&self, place: Place) {
        *self.lock() = Some(place);
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        self.lock().is_some()
    }

    fn take(&self) -> Option<Place> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Place>> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
