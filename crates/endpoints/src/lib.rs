//! HTTP and WebSocket routes: turns requests into calls on `lastcall-websockets`. Knows no signals.

mod auth;
mod authority;
mod error;
mod fields;
mod handlers;
mod health;
mod limits;
mod refusals;
mod routes;
mod server;
mod state;
mod upgrade_stats;

pub use axum::Router;
pub use error::ErrorCode;
pub use handlers::page::{Page, PageError};
pub use health::{Health, HealthReport, ProcessReport};
pub use refusals::{RefusalCounts, Refusals};
pub use routes::router;
pub use server::{BindError, HttpServer, IdleConnection, ListenerState, StopTimeouts, bind};
pub use state::AppState;
pub use upgrade_stats::UpgradeStats;
