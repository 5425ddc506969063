//! One HTTP connection.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    mem::MaybeUninit,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderValue,
        header::{CONNECTION, DATE, EXPECT},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use lastcall_core::AllowedOrigins;
use lastcall_websockets::{ConnectionManager, Form, Handshake, MAX_CHANNELS};
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use tower::ServiceExt;
use tracing::{debug, warn};

use super::{
    date::date,
    deferred_handshake::{AcceptedConnection, DeferredHandshake, HandoffSlot, event_stream_response},
    exchange::{Exchange, ResponseBody},
    http_connections::{HttpConnections, HttpPermit},
    http_stream::{HttpStream, IdleConnection},
    in_flight::RequestsInFlight,
    lingering_close::close_in_stages,
    listener::canonical,
    request_body::RequestBody,
    stop::{Stop, StopLevel},
};
use crate::{
    error::{ApiError, ErrorCode},
    refusals::{Refusal, Refusals, RequestSummary},
    request::{FromThisMachine, MAX_QUERY},
};

/// The time that the head of a request may take to arrive, from its first byte. A slow client can hold one
/// file descriptor for at most this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a request's head. A larger one is answered 431. It has room for the largest query, and for
/// the positions of all channels once more in `Last-Event-ID`, which an `EventSource` adds to the URL with
/// which it began.
const MAX_HEAD: usize = 24 << 10;
const _: () = assert!(MAX_HEAD >= MAX_QUERY + MAX_CHANNELS * 38 + 2048);

/// Everything that the connections of an HTTP server share.
pub(super) struct Shared {
    pub(super) router: Router,
    /// Gets the connections that become WebSockets.
    pub(super) manager: ConnectionManager,
    pub(super) connections: HttpConnections,
    /// The time for which a connection may be idle.
    pub(super) keep_alive_timeout: Duration,
    pub(super) refusals: Refusals,
    /// The origins that may read responses which no route makes.
    pub(super) allowed_origins: AllowedOrigins,
    pub(super) in_flight: RequestsInFlight,
    pub(super) stop: Stop,
}

/// A connection that was idle when the server was to stop.
pub(super) struct Returned {
    pub(super) connection: IdleConnection,
    /// Its place in the order in which connections became idle.
    pub(super) order: u64,
}

/// Answers the requests of a client. Returns the connection if it is idle when the server is to stop.
pub(super) async fn serve_connection(
    mut connection: IdleConnection,
    peer: SocketAddr,
    shared: Arc<Shared>,
    http_permit: HttpPermit,
) -> Option<Returned> {
    // An IPv6 socket has IPv4 clients, too.
    let peer = canonical(peer);
    let local = connection.stream.local_addr().ok().map(|address| address.ip());
    let caller = Caller { peer, from_this_machine: FromThisMachine::of(peer.ip(), local) };
    let mut had_request = false;
    loop {
        let idle = http_permit.idle(had_request);
        let order = idle.number();
        if shared.stop.has_reached(StopLevel::ReturnIdle) {
            return Some(Returned { connection, order });
        }
        // hyper takes its buffers at once. Only connections that have something to read get any.
        if connection.read.is_empty() {
            let mut first_byte = [0];
            tokio::select! {
                () = shared.stop.reached(StopLevel::ReturnIdle) => return Some(Returned { connection, order }),
                () = idle.must_leave() => {
                    // Of a request that has just come, this task may not know yet.
                    if !has_input(&connection.stream) {
                        debug!(%peer, "a connection was idle longest, and makes room for another one");
                        return None;
                    }
                }
                said = timeout(shared.keep_alive_timeout, connection.stream.peek(&mut first_byte)) => match said {
                    Ok(Ok(1..)) => {}
                    Ok(Ok(0)) => return None,
                    Ok(Err(error)) => {
                        debug!(%peer, %error, "an idle connection has failed");
                        return None;
                    }
                    Err(_) => {
                        debug!(%peer, "a connection was idle for too long");
                        return None;
                    }
                },
            }
        }
        drop(idle);
        had_request = true;
        connection = Box::pin(serve_http(connection, caller, &shared, &http_permit)).await?;
    }
}

/// Returns true if a byte can be read from a socket.
fn has_input(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    SockRef::from(stream).peek(&mut byte).is_ok_and(|read| read > 0)
}

/// The origin of the requests of a connection.
#[derive(Debug, Clone, Copy)]
struct Caller {
    peer: SocketAddr,
    from_this_machine: FromThisMachine,
}

/// The end of hyper's part.
enum Ended {
    /// No request is being answered: the connection is idle.
    Idle,
    /// HTTP has ended. The socket is still open.
    Closed(Result<(), hyper::Error>),
}

/// Answers requests until there is none, then returns the connection. Returns `None` if it has ended, or has
/// become a WebSocket.
async fn serve_http(
    connection: IdleConnection,
    caller: Caller,
    shared: &Shared,
    http_permit: &HttpPermit,
) -> Option<IdleConnection> {
    let peer = caller.peer;
    let (exchange, slot) = (Exchange::default(), HandoffSlot::default());
    let service = service_fn(|request: hyper::Request<Incoming>| {
        exchange.on_request(shared.in_flight.add());
        // hyper only gives the socket back where this may be moved.
        Box::pin(respond(request, caller, shared, exchange.clone(), slot.clone()))
    });
    let socket = HttpStream::new(connection, exchange.clone());
    let socket = DeferredHandshake::new(socket, slot.clone());
    let mut http = http1::Builder::new()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD)
        // A client may close its side and wait for the response.
        .half_close(true)
        .serve_connection(TokioIo::new(socket), service);
    let stop = &shared.stop;
    let ended = loop {
        let is_stopping = stop.has_reached(StopLevel::ReturnIdle);
        let poll = poll_fn(|context| match Pin::new(&mut http).poll(context) {
            Poll::Ready(ended) => Poll::Ready(Ended::Closed(ended)),
            Poll::Pending if exchange.has_ended() || is_stopping && exchange.is_waiting() => {
                Poll::Ready(Ended::Idle)
            }
            Poll::Pending => Poll::Pending,
        });
        tokio::select! {
            ended = poll => break ended,
            () = stop.reached(StopLevel::ReturnIdle), if !is_stopping => {}
            () = stop.reached(StopLevel::AbortAll) => {
                debug!(%peer, "an HTTP request took too long");
                return None;
            }
        }
    };
    let Parts { io, read_buf, .. } = http.into_parts();
    // An empty rest would keep hyper's whole buffer alive.
    let read = if read_buf.is_empty() { Bytes::new() } else { read_buf };
    let (socket, response) = io.into_inner().into_parts();
    match ended {
        Ended::Idle => return Some(socket.into_idle(read)),
        Ended::Closed(Ok(())) => {}
        Ended::Closed(Err(error)) => {
            debug!(%peer, %error, "an HTTP connection ended");
            if let Some(refusal) = refused_without_body(&error, peer) {
                shared.refusals.note(refusal);
            }
        }
    }
    if socket.has_stalled() {
        // Closed at once, with what the client did not take.
        return None;
    }
    let Some(AcceptedConnection { permit, form, channels }) = slot.take() else {
        // Nothing is left to be answered.
        let idle = http_permit.idle(true);
        close_in_stages(socket.into_stream(), stop, idle.must_leave()).await;
        return None;
    };
    let response = if form == Form::WebSocket { response } else { event_stream_response(&response) };
    let handshake = Handshake { response, early_input: read, form, channels };
    if let Err(error) = shared.manager.connect(permit, socket.into_websocket(), handshake) {
        warn!(%peer, %error, "a socket could not be handed to its event loop");
    }
    None
}

/// Returns the refusal if hyper has ended the connection because of a request that it refused by itself.
fn refused_without_body(error: &hyper::Error, peer: SocketAddr) -> Option<Refusal> {
    let (code, message) = if error.is_parse_too_large() {
        ("head_too_large", "The head of the request is over 24 KiB, or has more than 100 fields.")
    } else if error.is_parse() {
        ("malformed_request", "What came is no HTTP/1.1, or is TLS, which is up to a proxy.")
    } else if error.is_timeout() {
        (ErrorCode::RequestTimeout.name(), "The head of the request did not arrive in time.")
    } else {
        return None;
    };
    Some(Refusal { code, message: message.into(), request: RequestSummary::of_peer(peer) })
}

/// Returns the response to a request that is not answered in time when the server stops. The request had no
/// effect.
fn took_too_long() -> Response {
    let why = "The server is being replaced or ends, and this request took too long; try again.";
    ApiError::new(ErrorCode::Overloaded, why).into_response()
}

/// Answers one request by the routes.
async fn respond(
    request: hyper::Request<Incoming>,
    Caller { peer, from_this_machine }: Caller,
    shared: &Shared,
    exchange: Exchange,
    slot: HandoffSlot,
) -> Result<hyper::Response<ResponseBody>, Infallible> {
    let expects_continue = request.headers().contains_key(EXPECT);
    let (mut head, body) = request.into_parts();
    let summary = RequestSummary::new(peer, &head);
    let (body, unread) = RequestBody::new(body);
    head.extensions.insert(from_this_machine);
    head.extensions.insert(slot);
    let request = hyper::Request::from_parts(head, Body::new(body));
    let (mut response, body_has_ended) = tokio::select! {
        response = async {
            let response = shared.router.clone().oneshot(request).await?;
            Ok::<_, Infallible>((response, unread.drain(expects_continue).await))
        } => response?,
        () = shared.stop.reached(StopLevel::RefusePending) => (took_too_long(), false),
    };
    response.headers_mut().insert(DATE, date());
    if let Some(refusal) = Refusal::of(&response, summary) {
        shared.refusals.note(refusal);
    }
    if !body_has_ended {
        // What comes next would be taken for a request.
        exchange.mark_last();
        response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| ResponseBody::new(body, exchange)))
}
