//! Whether the process works, and whether it wants newcomers.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{metrics::UpgradeStats, routes::AppState};

/// What the process says of itself. Whoever owns its phases implements this.
pub trait Health: Send + Sync + 'static {
    /// The state of things now.
    fn report(&self) -> HealthReport;

    /// The upgrades so far.
    fn upgrade_stats(&self) -> UpgradeStats;

    /// Which process it is.
    fn process(&self) -> ProcessReport;
}

/// The process that serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessReport {
    /// The version of the program.
    pub version: &'static str,
    /// The commit that it was built from, if that is known.
    pub commit: Option<&'static str>,
    /// The number of the process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub start_time: f64,
    /// For how long it has run.
    pub uptime: Duration,
}

/// The state of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealthReport {
    /// The phase's name, such as `serving`.
    pub phase: &'static str,
    /// Whether newcomers are welcome.
    pub ready: bool,
    /// Once the process was asked to end: seconds until the clients that remain are closed.
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
    max_connections: usize,
    version: &'static str,
    commit: Option<&'static str>,
    pid: u32,
    uptime_seconds: f64,
    upgrades: u64,
}

pub(crate) async fn live() -> &'static str {
    "OK\n"
}

pub(crate) async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let HealthReport { phase, ready, seconds_left, drain_clients } = state.health.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ProcessReport { version, commit, pid, uptime, .. } = state.health.process();
    let body = Body {
        phase,
        clients: state.manager.count(),
        seconds_left,
        drain_clients,
        max_connections: state.limits.max_connections,
        version,
        commit,
        pid,
        uptime_seconds: (uptime.as_secs_f64() * 1e3).round() / 1e3,
        upgrades: state.health.upgrade_stats().succeeded,
    };
    (status, Json(body)).into_response()
}
