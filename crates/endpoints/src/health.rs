//! Whether the process works, and whether it wants newcomers.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::routes::Context;

/// What the process says of itself. Whoever owns its phases implements this.
pub trait Health: Send + Sync + 'static {
    /// The state of things now.
    fn report(&self) -> HealthReport;
}

/// The state of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealthReport {
    /// The phase's name, such as `serving`.
    pub phase: &'static str,
    /// Whether newcomers are welcome.
    pub ready: bool,
    /// While draining: seconds until those who stay are closed.
    pub seconds_left: Option<f64>,
}

#[derive(Serialize)]
struct Body {
    phase: &'static str,
    clients: usize,
    seconds_left: Option<f64>,
}

pub(crate) async fn live() -> &'static str {
    "OK\n"
}

pub(crate) async fn ready(State(context): State<Arc<Context>>) -> Response {
    let HealthReport { phase, ready, seconds_left } = context.health.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Body { phase, clients: context.manager.count(), seconds_left })).into_response()
}
