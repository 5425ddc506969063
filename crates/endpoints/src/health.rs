//! Whether the process works, and whether it wants newcomers.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{metrics::Handovers, routes::Context};

/// What the process says of itself. Whoever owns its phases implements this.
pub trait Health: Send + Sync + 'static {
    /// The state of things now.
    fn report(&self) -> HealthReport;

    /// The upgrades so far.
    fn handovers(&self) -> Handovers;
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
    /// Once draining: how many clients there were when that started.
    pub drain_clients: Option<usize>,
}

#[derive(Serialize)]
struct Body {
    phase: &'static str,
    clients: usize,
    seconds_left: Option<f64>,
    drain_clients: Option<usize>,
}

pub(crate) async fn live() -> &'static str {
    "OK\n"
}

pub(crate) async fn ready(State(context): State<Arc<Context>>) -> Response {
    let HealthReport { phase, ready, seconds_left, drain_clients } = context.health.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let clients = context.manager.count();
    (status, Json(Body { phase, clients, seconds_left, drain_clients })).into_response()
}
