//! `GET /ws`: the handshake, after which the socket belongs to the connection manager.

use std::sync::Arc;

use axum::{
    Extension,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Version,
        header::{CONNECTION, SEC_WEBSOCKET_VERSION, UPGRADE},
    },
    response::{IntoResponse, Response},
};
use lastcall_websockets::Form;
use tungstenite::{Error, error::ProtocolError, handshake::server::create_response_with_body};

use crate::{
    error::{ApiError, ErrorCode},
    fields,
    handlers::channel_query,
    request::{ListensOnLoopback, RequestHost},
    server::{AcceptedConnection, HandoffSlot},
    state::AppState,
};

pub(crate) async fn handshake(
    State(state): State<Arc<AppState>>,
    Extension(slot): Extension<HandoffSlot>,
    Extension(listens_on_loopback): Extension<ListensOnLoopback>,
    host: RequestHost,
    mut request: Request,
) -> Response {
    if request.version() < Version::HTTP_11 {
        // nginx speaks HTTP/1.0 unless it is told otherwise.
        return upgrade_required("A WebSocket needs HTTP/1.1; for nginx, set `proxy_http_version 1.1`.");
    }
    simplify(request.headers_mut());
    let response = match create_response_with_body(&request, Body::empty) {
        Ok(response) => response,
        Err(error) => return refuse_handshake(&error),
    };
    if !request.body().is_end_stream() {
        // Otherwise its bytes would be taken for frames.
        return ApiError::new(
            ErrorCode::BadHandshake,
            "A WebSocket handshake has no body: leave `Content-Length` and `Transfer-Encoding` out.",
        )
        .into_response();
    }
    if let Err(refused) = state.access_rules.check_websocket(listens_on_loopback, request.headers(), &host) {
        return refused.into_response();
    }
    let channels = match channel_query::parse(request.uri().query().unwrap_or_default()) {
        Ok(channels) => channels,
        Err(error) => return error.into_response(),
    };
    let permit = match state.manager.admit() {
        Ok(permit) => permit,
        Err(error) => return ApiError::from(error).into_response(),
    };
    slot.fill(AcceptedConnection { permit, form: Form::WebSocket, channels });
    response
}

/// Leaves of the lists in a handshake only what is asked of this server: tungstenite reads them less exactly.
fn simplify(headers: &mut HeaderMap) {
    const WANTED: [(HeaderName, &str); 2] = [(CONNECTION, "upgrade"), (UPGRADE, "websocket")];
    for (name, member) in WANTED {
        if fields::has_member(headers, &name, member) {
            headers.insert(name, HeaderValue::from_static(member));
        } else {
            headers.remove(name);
        }
    }
}

fn refuse_handshake(error: &Error) -> Response {
    match error {
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            upgrade_required("Only version 13 of the WebSocket protocol (RFC 6455) is spoken here.")
        }
        Error::Protocol(ProtocolError::MissingSecWebSocketKey | ProtocolError::InvalidSecWebSocketKey) => {
            let message =
                "`Sec-WebSocket-Key` must be there, and be 16 random bytes in base64 (RFC 6455 section 4.1).";
            ApiError::new(ErrorCode::BadHandshake, message).into_response()
        }
        _ => upgrade_required(
            "This is a WebSocket endpoint: connect with a WebSocket client, such as `new WebSocket(url)` in a browser.",
        ),
    }
}

fn upgrade_required(message: &'static str) -> Response {
    let mut response = ApiError::new(ErrorCode::UpgradeRequired, message).into_response();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}
