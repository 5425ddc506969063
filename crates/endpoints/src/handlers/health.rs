//! `GET /health/live` and `GET /health/ready`: whether the process works, and whether it accepts connections.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    health::{HealthReport, ProcessReport},
    state::AppState,
};

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
    let HealthReport { phase, seconds_left, drain_clients } = state.health.report();
    let status = if phase.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ProcessReport { version, commit, pid, uptime, .. } = state.health.process();
    let upgrade_stats = state.health.upgrade_stats();
    let body = Body {
        phase: phase.name(),
        clients: state.manager.count(),
        seconds_left,
        drain_clients,
        max_connections: state.limits.max_connections,
        version,
        commit,
        pid,
        uptime_seconds: (uptime.as_secs_f64() * 1e3).round() / 1e3,
        upgrades: upgrade_stats.succeeded,
        upgrading: upgrade_stats.in_progress,
    };
    (status, Json(body)).into_response()
}
