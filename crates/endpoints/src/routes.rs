//! Which request goes where.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn, map_request},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use lastcall_core::settings::{ApiKey, Settings};
use lastcall_websockets::ConnectionManager;

use crate::{
    cors,
    error::{ApiError, ErrorCode},
    fields,
    health::{self, Health},
    metrics::{self, Limits},
    origin::Allowed,
    own_hosts::OwnHosts,
    page::Page,
    publish,
    refusals::Refusals,
    websocket,
};

/// What the routes work with.
pub struct AppState {
    /// All connections.
    pub manager: ConnectionManager,
    /// What the process says of itself.
    pub health: Box<dyn Health>,
    page: Page,
    pub(crate) allowed_origins: Allowed,
    pub(crate) own_hosts: OwnHosts,
    pub(crate) api_keys: Vec<ApiKey>,
    pub(crate) max_message_size: usize,
    pub(crate) limits: Limits,
    pub(crate) refusals: Refusals,
}

impl AppState {
    /// Collects it from the settings. `refusals` are those of the HTTP server that has the routes.
    pub fn new(
        settings: &Settings,
        manager: ConnectionManager,
        health: Box<dyn Health>,
        page: Page,
        refusals: Refusals,
    ) -> Self {
        let allowed_origins = Allowed::from(&settings.allowed_origins);
        Self {
            manager,
            health,
            page,
            own_hosts: OwnHosts::new(&settings.host, &allowed_origins),
            allowed_origins,
            api_keys: settings.api_keys.clone(),
            max_message_size: settings.max_message_size,
            limits: Limits::from(settings),
            refusals,
        }
    }
}

/// What the methods of a route are called in `Allow`.
const READ: &str = "GET,HEAD,OPTIONS";
const PUBLISH: &str = "POST,OPTIONS";
const ALL: &str = "GET,HEAD,POST,OPTIONS";

/// All routes of the server.
pub fn router(state: AppState) -> Router {
    let read = async || allow(READ);
    let mut publish = post(publish::publish).options(async || allow(PUBLISH));
    if let Some(cors) = cors::layer(&state.allowed_origins) {
        publish = publish.layer(cors).layer(from_fn(allow_after_cors));
    }
    Router::new()
        .route("/", get(index).options(read))
        .route("/ws", get(websocket::upgrade).options(read))
        .route("/health/live", get(health::live).options(read))
        .route("/health/ready", get(health::ready).options(read))
        .route("/metrics", get(metrics::metrics).options(read))
        .route("/api/publish", publish)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_request(fields::check))
        .with_state(Arc::new(state))
}

async fn index(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    state.page.response()
}

/// The answer to `OPTIONS` (RFC 9110 section 9.3.7), which some load balancers check the health with.
fn allow(methods: &'static str) -> Response {
    (StatusCode::NO_CONTENT, [(header::ALLOW, methods)]).into_response()
}

/// The CORS layer answers every `OPTIONS`, also what is no browser's question, and without `Allow`.
async fn allow_after_cors(request: Request, next: Next) -> Response {
    let is_options = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    if is_options && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(PUBLISH));
    }
    response
}

async fn not_found(method: Method, uri: Uri) -> Response {
    if method == Method::OPTIONS && uri.path() == "*" {
        return allow(ALL);
    }
    ApiError::new(
        ErrorCode::NotFound,
        "There is nothing here; the test page is at `/`, the WebSocket at `/ws`.",
    )
    .into_response()
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, "This method is not allowed here; `Allow` says which are.")
}
