//! `GET /health/live` and `GET /health/ready`: 200 if the process works, or if it accepts connections.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::state::AppState;

#[derive(Serialize)]
struct Body {
    phase: &'static str,
    clients: usize,
    seconds_left: Option<f64>,
    drain_clients: Option<usize>,
    max_connections: usize,
    version: &'static str,
    commit: Option<&'static str>,
    pid: u32,
    uptime_seconds: f64,
    upgrades: u64,
    upgrading: bool,
}

pub(crate) async fn live() -> &'static str {
    "OK\n"
}

pub(crate) async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let process = &state.process;
    let (phase, upgrades) = (process.phase(), process.upgrade_stats());
    let status = if phase.phase.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Body {
        phase: phase.phase.name(),
        clients: state.manager.count(),
        seconds_left: phase.time_left().map(seconds),
        drain_clients: phase.drain_connections,
        max_connections: state.limits.max_connections,
        version: process.version,
        commit: process.commit,
        pid: process.pid,
        uptime_seconds: seconds(process.uptime()),
        upgrades: upgrades.succeeded,
        upgrading: upgrades.in_progress,
    };
    (status, Json(body)).into_response()
}

/// Returns a time in seconds, to the millisecond.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}
