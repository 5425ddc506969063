//! Which request goes where.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::IntoResponse,
    routing::{get, post},
};
use lastcall_core::settings::{AllowedOrigins, ApiKey, Settings};
use lastcall_websockets::ConnectionManager;

use crate::{
    error::{ApiError, ErrorCode},
    health::{self, Health},
    metrics,
    page::Page,
    publish, websocket,
};

/// What the routes work with.
pub struct Context {
    /// All connections.
    pub manager: ConnectionManager,
    /// What the process says of itself.
    pub health: Box<dyn Health>,
    page: Page,
    pub(crate) allowed_origins: AllowedOrigins,
    pub(crate) api_keys: Vec<ApiKey>,
    pub(crate) max_message_size: usize,
}

impl Context {
    /// Collects it from the settings.
    pub fn new(settings: &Settings, manager: ConnectionManager, health: Box<dyn Health>, page: Page) -> Self {
        Self {
            manager,
            health,
            page,
            allowed_origins: settings.allowed_origins.clone(),
            api_keys: settings.api_keys.clone(),
            max_message_size: settings.max_message_size,
        }
    }
}

/// All routes of the server.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/ws", get(websocket::upgrade))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/api/publish", post(publish::publish))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(context))
}

async fn index(State(context): State<Arc<Context>>) -> impl IntoResponse {
    context.page.response()
}

async fn not_found() -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        "There is nothing here; the test page is at `/`, the WebSocket at `/ws`.",
    )
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, "This method is not allowed here; `Allow` says which are.")
}
