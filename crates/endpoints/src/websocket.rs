//! `GET /ws`: the handshake, after which the socket belongs to the connection manager.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderValue,
        header::{CONNECTION, SEC_WEBSOCKET_VERSION, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use lastcall_websockets::Refusal;
use tungstenite::{Error, error::ProtocolError, handshake::server::create_response_with_body};

use crate::{
    error::{ApiError, ErrorCode},
    origin,
    routes::Context,
    server::Upgrade,
};

pub(crate) async fn upgrade(
    State(context): State<Arc<Context>>,
    Extension(upgrade): Extension<Upgrade>,
    request: Request,
) -> Response {
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
    upgrade.confirm(place);
    answer
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
