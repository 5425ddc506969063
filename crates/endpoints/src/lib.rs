//! HTTP and WebSocket routes: turns requests into calls on `lastcall-websockets`. Knows no signals.

mod accept;
mod access;
mod authority;
mod cors;
mod error;
mod fields;
mod health;
mod listener;
mod metrics;
mod origin;
mod own_hosts;
mod page;
mod publish;
mod refusals;
mod routes;
mod server;
mod websocket;

pub use axum::Router;
pub use error::ErrorCode;
pub use health::{Health, HealthReport, ProcessReport};
pub use listener::{BindError, bind};
pub use metrics::UpgradeStats;
pub use page::{Page, PageError};
pub use refusals::{RefusalCounts, Refusals};
pub use routes::{AppState, router};
pub use server::{HttpServer, IdleConnection, ListenerState, StopTimeouts};
