//! The HTTP server: accepts, and speaks HTTP/1.1 until a connection ends or becomes a WebSocket.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

/// How long the head of a request may take to arrive, and a kept-alive connection may be idle: a client
/// that dribbles costs one file descriptor for so long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a request's head; 431 beyond.
const MAX_HEAD: usize = 16 << 10;

/// How long those have who are turned away for want of file descriptors, or who have only half asked when
/// the server stops.
const FAREWELL: Duration = Duration::from_millis(50);

/// Who is calling.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// A running HTTP server.
#[derive(Debug)]
pub struct HttpServer {
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl HttpServer {
    /// Starts to answer those who connect to `listener`.
    pub fn start(listener: TcpListener, router: Router) -> Self {
        let stop = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, router, stop.clone()));
        Self { stop, accepting }
    }

    /// Closes the port and the idle connections, and waits for the requests in flight: at most `patience`.
    pub async fn stop(mut self, patience: Duration) {
        self.stop.cancel();
        match timeout(patience, &mut self.accepting).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the HTTP server had failed"),
            Err(_) => {
                warn!("some HTTP requests took too long and are cut off");
                self.accepting.abort();
            }
        }
    }
}

async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut reserve = Reserve::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve(stream, peer, router.clone(), stop.clone()));
                }
                Err(error) => reserve.turn_away(&listener, &error).await,
            },
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "an HTTP connection failed");
            },
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "an HTTP connection failed");
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    // Small messages must not wait for each other (RFC 896).
    if let Err(error) = stream.set_nodelay(true) {
        return debug!(%peer, %error, "a client went before it said anything");
    }
    let in_flight = AtomicBool::new(false);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        in_flight.store(true, Ordering::Relaxed);
        let answer = router.clone().oneshot(request);
        async {
            let answer = answer.await;
            in_flight.store(false, Ordering::Relaxed);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            if in_flight.load(Ordering::Relaxed) {
                connection.await
            } else {
                // Half a request, or an answer that is on its way out: it has a moment, no more.
                timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
            }
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "an HTTP connection ended");
    }
}

/// One file descriptor kept for the time when there is no other: with it, newcomers can be told, instead
/// of being left in the backlog while the server spins.
struct Reserve {
    file: Option<File>,
    told: bool,
}

impl Reserve {
    fn new() -> Self {
        Self { file: File::open("/dev/null").ok(), told: false }
    }

    /// Handles an error of accept(2).
    async fn turn_away(&mut self, listener: &TcpListener, error: &io::Error) {
        if !is_out_of_descriptors(error) {
            // The client went while it waited: the next one is next.
            return debug!(%error, "a connection could not be accepted");
        }
        if !std::mem::replace(&mut self.told, true) {
            warn!(%error, "no file descriptors left: newcomers get 503 until some are free (said once)");
        }
        drop(self.file.take());
        match timeout(FAREWELL, listener.accept()).await {
            Ok(Ok((stream, _))) => say_full(stream).await,
            // Somebody else took the descriptor. There is no event for one becoming free.
            Ok(Err(_)) => sleep(FAREWELL).await,
            Err(_) => {}
        }
        self.file = File::open("/dev/null").ok();
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    // EMFILE 24, ENFILE 23, ENOBUFS 105 and ENOMEM 12 on Linux: errno(3), accept(2).
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

async fn say_full(stream: TcpStream) {
    const BODY: &str =
        r#"{"error":{"code":"full","message":"The server has no file descriptors left; try again later."}}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{BODY}",
        crate::error::RETRY_AFTER_SECONDS,
        BODY.len(),
    );
    // The request is read first, or the kernel answers the close with a reset that takes the answer with it.
    let mut request = [0; 4096];
    let _ = timeout(FAREWELL, async {
        if stream.readable().await.is_ok() {
            let _ = stream.try_read(&mut request);
            let _ = stream.try_write(answer.as_bytes());
        }
    })
    .await;
}
