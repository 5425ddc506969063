//! `GET /ws`: the handshake, after which the socket belongs to the connection manager.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{CONNECTION, SEC_WEBSOCKET_VERSION, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::TokioIo;
use lastcall_websockets::{ConnectionManager, Place, Refusal};
use tokio::{net::TcpStream, time::timeout};
use tracing::{debug, warn};
use tungstenite::{Error, error::ProtocolError, handshake::server::create_response_with_body};

use crate::{
    error::{ApiError, ErrorCode},
    origin,
    routes::Context,
};

/// How long the answer to a handshake may take to leave.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn upgrade(State(context): State<Arc<Context>>, mut request: Request) -> Response {
    let answer = match create_response_with_body(&request, Body::empty) {
        Ok(answer) => answer,
        Err(error) => return refuse_handshake(&error),
    };
    if let Err(refused) = origin::check(&context.allowed_origins, request.headers()) {
        return refused.into_response();
    }
    let place = match context.manager.admit() {
        Ok(place) => place,
        Err(refusal) => return refuse(refusal),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let manager = context.manager.clone();
    // Runs on when this request is answered; the place is counted all the while.
    tokio::spawn(async move { hand_over(manager, place, upgraded).await });
    answer
}

/// Takes the TCP socket back from hyper once the answer is out.
async fn hand_over(manager: ConnectionManager, place: Place, upgraded: OnUpgrade) {
    let upgraded = match timeout(UPGRADE_TIMEOUT, upgraded).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return debug!(%error, "a client went during its handshake"),
        Err(_) => return debug!("a client did not take the answer to its handshake in time"),
    };
    let parts: Parts<TokioIo<TcpStream>> = match upgraded.downcast() {
        Ok(parts) => parts,
        // A bug of ours: the server hands hyper nothing else.
        Err(_) => return tracing::error!("an upgraded connection is not over the server's own TCP socket"),
    };
    let connected = match parts.io.into_inner().into_std() {
        Ok(stream) => manager.connect(place, stream, parts.read_buf),
        Err(error) => Err(error),
    };
    if let Err(error) = connected {
        warn!(%error, "a socket could not be handed to its event loop");
    }
}

fn refuse(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Draining => ApiError::new(
            ErrorCode::Draining,
            "The server is shutting down and takes no new clients; try again soon.",
        ),
        Refusal::Full => {
            ApiError::new(ErrorCode::Full, "The server has as many clients as it may; try again later.")
        }
    }
    .into_response()
}

fn refuse_handshake(error: &Error) -> Response {
    let (code, message) = match error {
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => (
            ErrorCode::UpgradeRequired,
            "Only version 13 of the WebSocket protocol (RFC 6455) is spoken here.",
        ),
        Error::Protocol(ProtocolError::MissingSecWebSocketKey | ProtocolError::InvalidSecWebSocketKey) => (
            ErrorCode::BadHandshake,
            "`Sec-WebSocket-Key` must be there, and be 16 random bytes in base64 (RFC 6455 section 4.1).",
        ),
        _ => (
            ErrorCode::UpgradeRequired,
            "This is a WebSocket endpoint: connect with a WebSocket client, such as `new WebSocket(url)` in a browser.",
        ),
    };
    let mut response = ApiError::new(code, message).into_response();
    if code == ErrorCode::UpgradeRequired {
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}
