//! The table of paths and methods.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn, map_request},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use tower_http::cors::CorsLayer;

use crate::{
    auth::cors,
    error::{ApiError, ErrorCode},
    handlers::{channels, events, health, metrics, publish, publish_batch, websocket},
    request,
    state::AppState,
};

/// The methods of a route, as `Allow` has them.
const READ: &str = "GET,HEAD,OPTIONS";
const PUBLISH: &str = "POST,OPTIONS";
const ALL: &str = "GET,HEAD,POST,OPTIONS";

/// Returns all routes of the server.
pub fn router(state: AppState) -> Router {
    let read = async || allow(READ);
    let publish = post(publish::publish).options(async || allow(PUBLISH));
    let batch = post(publish_batch::publish_batch).options(async || allow(PUBLISH));
    let events = get(events::events).options(read);
    let for_publishing = cors::publish(state.access_rules.allowed_origins());
    let publish = with_cors(publish, for_publishing.clone(), PUBLISH);
    let batch = with_cors(batch, for_publishing, PUBLISH);
    let events = with_cors(events, cors::events(state.access_rules.allowed_origins()), READ);
    Router::new()
        .route("/", get(index).options(read))
        .route("/ws", get(websocket::handshake).options(read))
        .route("/events", events)
        .route("/health/live", get(health::live).options(read))
        .route("/health/ready", get(health::ready).options(read))
        .route("/metrics", get(metrics::metrics).options(read))
        .route("/api/publish", publish)
        .route("/api/publish/batch", batch)
        .route("/api/channels", get(channels::list).options(read))
        .route("/api/channels/{name}", get(channels::show).options(read))
        .route("/api/channels/{name}/history", get(channels::history).options(read))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_request(request::check))
        .with_state(Arc::new(state))
}

async fn index(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    state.page.response()
}

/// Returns the response to `OPTIONS` (RFC 9110 section 9.3.7), which some load balancers check the health
/// with.
fn allow(methods: &'static str) -> Response {
    (StatusCode::NO_CONTENT, [(header::ALLOW, methods)]).into_response()
}

/// Adds CORS to a route that has these methods.
fn with_cors(
    route: MethodRouter<Arc<AppState>>,
    cors: Option<CorsLayer>,
    methods: &'static str,
) -> MethodRouter<Arc<AppState>> {
    let Some(cors) = cors else { return route };
    // The layer answers every `OPTIONS`, also what is no browser's question, and without `Allow`.
    let allow_after_cors = move |request: Request, next: Next| async move {
        let is_options = request.method() == Method::OPTIONS;
        let mut response = next.run(request).await;
        if is_options && response.status() == StatusCode::OK {
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        response
    };
    // Added here, the answer to other methods is for the page, too.
    route.fallback(method_not_allowed).layer(cors).layer(from_fn(allow_after_cors))
}

async fn not_found(method: Method, uri: Uri) -> Response {
    if method == Method::OPTIONS && uri.path() == "*" {
        return allow(ALL);
    }
    let message = if uri.path().starts_with("/api/channels/") {
        "There is nothing here. In the path, a `/` of a channel's name is `%2F`: `/api/channels/a%2Fb/history`."
    } else {
        "There is nothing here; the test page is at `/`, the WebSocket at `/ws`, events at `/events`."
    };
    ApiError::new(ErrorCode::NotFound, message).into_response()
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, "This method is not allowed here; `Allow` says which are.")
}

#[cfg(test)]
mod tests;
