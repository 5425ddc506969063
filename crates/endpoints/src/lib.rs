//! The HTTP side of lastcall: turns requests into calls on `lastcall-websockets`. Knows no signals and no
//! settings files.
//!
//! A request passes these parts, each a module:
//!
//! - `server` owns the listening socket ([`Listener`]: bound, passed by systemd, or inherited), accepts
//!   connections and speaks HTTP/1.1 on each ([`HttpServer`]). It stops in levels, and gives back what
//!   another server can resume from ([`ListenerState`]). A connection that becomes a WebSocket or a stream of
//!   events moves to the connection manager.
//! - `routes` is the table of paths and methods ([`router`]). Before any of them, `request` refuses requests
//!   whose header fields contradict each other, and finds the host that a request is for.
//! - `auth` decides which callers and web pages may do what: API keys, calls from this machine, origins,
//!   CORS. A handler that takes an `ApiCaller` is called for nobody else.
//! - `handlers` has a file for each path: the WebSocket handshake, server-sent events, publishing, channels
//!   and their history, health, metrics. They share an [`AppState`], made from a [`Config`]. The calls of the
//!   API are functions in `service`, which knows no HTTP. `page` is the test page.
//! - `process` has what is told of the [`Process`]: the owner of the lifecycle changes its phase.
//! - `error` is the form of each error and the status of each code; `refusals` counts and logs what was
//!   refused, at a bounded rate (`line_rate`).
//!
//! # Example
//!
//! A server on a port of its own, with a broker in memory:
//!
//! ```
//! use std::{io::prelude::*, net::TcpStream, sync::Arc, time::Duration};
//!
//! use lastcall_broker::{Broker, MemoryBroker};
//! use lastcall_core::{AllowedOrigins, phase::Phase};
//! use lastcall_endpoints::{
//!     AppState, Config, HttpConfig, HttpConnections, HttpServer, Listener, Page, Process, Refusals,
//!     StopTimeouts, UpgradeStats, router,
//! };
//! use lastcall_websockets::{ConnectionManager, ManagerConfig, Phases, VitalTasks};
//! use tokio::{sync::watch, task::spawn_blocking};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let phases = Phases::default();
//! let broker = |delivery| -> Arc<dyn Broker> {
//!     Arc::new(MemoryBroker::new(lastcall_broker::Config::default(), delivery))
//! };
//! let (manager, _) = ConnectionManager::start(
//!     ManagerConfig::default(),
//!     phases.clone(),
//!     VitalTasks::default(),
//!     broker,
//! )?;
//! let (_upgrades, upgrades) = watch::channel(UpgradeStats::default());
//! let process = Process {
//!     version: "1.0.0",
//!     commit: None,
//!     pid: std::process::id(),
//!     start_time: 0.0,
//!     started: Duration::ZERO,
//!     phase: phases.subscribe(),
//!     upgrades,
//! };
//! let (refusals, connections) = (Refusals::default(), HttpConnections::new(1000));
//! let page = Page::load(None, 65_536)?;
//! let state = AppState::new(
//!     Config::default(),
//!     manager.clone(),
//!     process,
//!     page,
//!     refusals.clone(),
//!     connections.clone(),
//! );
//!
//! let listener = Listener::bind("127.0.0.1", 0).await?;
//! let address = listener.local_addr()?;
//! let config = HttpConfig {
//!     router: router(state),
//!     manager,
//!     connections,
//!     keep_alive_timeout: Duration::from_secs(75),
//!     refusals,
//!     allowed_origins: AllowedOrigins::SameHost,
//! };
//! let server = HttpServer::start(listener.into(), config);
//! phases.enter(Phase::Serving);
//!
//! let answer = spawn_blocking(move || {
//!     let mut client = TcpStream::connect(address)?;
//!     client.write_all(b"GET /health/ready HTTP/1.0\r\n\r\n")?;
//!     let mut answer = String::new();
//!     client.read_to_string(&mut answer).map(|_| answer)
//! });
//! assert!(answer.await??.starts_with("HTTP/1.0 200 OK\r\n"));
//!
//! // What is left could be given to another server.
//! let second = Duration::from_secs(1);
//! let timeouts = StopTimeouts { closing: second, in_flight: second, refused: second };
//! let left = server.stop(timeouts).await?;
//! assert!(left.idle.is_empty());
//! # Ok(())
//! # }
//! ```

mod auth;
mod body_budget;
mod error;
mod fields;
mod handlers;
mod line_rate;
mod page;
mod process;
mod refusals;
mod request;
mod routes;
mod server;
mod service;
mod state;

pub use axum::Router;
pub use page::{Page, PageError};
pub use process::{Process, UpgradeStats};
pub use refusals::{RefusalCounts, Refusals};
pub use routes::router;
pub use server::{
    BindError, HttpConfig, HttpConnections, HttpServer, HttpServerError, IdleConnection, Listener,
    ListenerClosed, ListenerState, RequestsInFlight, StopTimeouts, SystemdSocketError,
};
pub use state::{AppState, Config, Limits};

/// The parser of queries, for the fuzzer only: it is not part of the interface.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Parses a query as `/ws` and `/events` do, the latter with this header field `Last-Event-ID`. Panics if
    /// that is not what `docs/protocol.md` says.
    pub fn check_query(query: &str, last_event_id: Option<&[u8]>) {
        crate::handlers::channel_query::contract::check(query, last_event_id);
    }
}
