//! `GET /events`: server-sent events (HTML Standard, section 9.2), after which the socket belongs to the
//! connection manager.

use std::sync::Arc;

use axum::{
    Extension,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{
        HeaderName, HeaderValue, Method, StatusCode, Version,
        header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use lastcall_websockets::{ChannelRequest, Form};

use super::channel_query;
use crate::{
    error::{ApiError, ErrorCode},
    fields::LAST_EVENT_ID,
    request::{ListensOnLoopback, RequestHost},
    server::{AcceptedConnection, HandoffSlot},
    state::AppState,
};

/// Tells nginx to pass each event on at once (ngx_http_proxy_module, `proxy_buffering`).
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(crate) async fn events(
    State(state): State<Arc<AppState>>,
    Extension(slot): Extension<HandoffSlot>,
    Extension(listens_on_loopback): Extension<ListensOnLoopback>,
    host: RequestHost,
    request: Request,
) -> Response {
    match channels_of(&state, listens_on_loopback, &host, &request) {
        Err(error) => error.into_response(),
        Ok(_) if request.method() == Method::HEAD => head_of_stream(),
        Ok(channels) => match state.manager.admit() {
            Ok(permit) => {
                slot.fill(AcceptedConnection { permit, form: Form::EventStream, channels });
                // Replaced by 200: only with a 101 does hyper give the socket back.
                stream_head(StatusCode::SWITCHING_PROTOCOLS, Body::empty())
            }
            Err(error) => come_back_later(error.into()),
        },
    }
}

/// Returns the channels that a request asks for.
///
/// # Errors
/// When it is no request for events, or may not have them.
fn channels_of(
    state: &AppState,
    listens_on_loopback: ListensOnLoopback,
    host: &RequestHost,
    request: &Request,
) -> Result<Vec<ChannelRequest>, ApiError> {
    let bad_request = |message| Err(ApiError::new(ErrorCode::BadRequest, message));
    if request.version() < Version::HTTP_11 {
        return bad_request("Events need HTTP/1.1; for nginx, set `proxy_http_version 1.1`.");
    }
    if !request.body().is_end_stream() {
        return bad_request("A request for events has no body.");
    }
    let headers = request.headers();
    state.access_rules.check_events(listens_on_loopback, headers, host)?;
    let query = request.uri().query().unwrap_or_default();
    let last_event_id = headers.get(LAST_EVENT_ID).map(HeaderValue::as_bytes);
    channel_query::parse_for_events(query, last_event_id)
}

/// Returns the head of a response that has events.
fn stream_head(status: StatusCode, body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
        (CONNECTION, HeaderValue::from_static("close")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    (status, headers, body).into_response()
}

/// Returns the response to `HEAD`.
fn head_of_stream() -> Response {
    // An empty body has a length, 0, which that of `GET` has not; one whose frames are mapped has none
    // beforehand.
    stream_head(StatusCode::OK, Body::new(Body::empty().map_frame(|frame| frame)))
}

/// Returns the response to a client that is not admitted now, and is told when to come back.
fn come_back_later(error: ApiError) -> Response {
    let mut response = stream_head(StatusCode::OK, Body::from(error.event()));
    // It is counted as a refusal all the same.
    response.extensions_mut().insert(error);
    response
}
