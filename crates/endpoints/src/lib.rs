//! The HTTP side of lastcall: turns requests into calls on `lastcall-websockets`. Knows no signals and no settings
//! files.
//!
//! A request passes these parts, each a module:
//!
//! - `server` owns the listening socket ([`Listener`]: bound, passed by systemd, or inherited), accepts connections
//!   and speaks HTTP/1.1 on each ([`HttpServer`]). It stops in levels, and gives back what another server can resume
//!   from ([`ListenerState`]). A connection that becomes a WebSocket or a stream of events moves to the connection manager.
//! - `routes` is the table of paths and methods ([`router`]). Before any of them, `request` refuses requests whose
//!   header fields contradict each other, and finds the host that a request is for.
//! - `auth` decides which callers and web pages may do what: API keys, calls from this machine, origins, CORS.
//! - `handlers` has a file for each path: the WebSocket handshake, server-sent events, publishing, channels and their history, health, metrics, the test page. They
//!   share an [`AppState`], made from a [`Config`].
//! - `process` has what is told of the [`Process`]: the owner of the lifecycle changes its phase.
//! - `error` is the form of each error and the status of each code; `refusals` counts and logs what was refused,
//!   at a bounded rate.

mod auth;
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
mod state;

pub use axum::Router;
pub use page::{Page, PageError};
pub use process::{Process, UpgradeStats};
pub use refusals::{RefusalCounts, Refusals};
pub use routes::router;
pub use server::{
    BindError, HttpConnections, HttpServer, HttpServerError, IdleConnection, Listener, ListenerClosed,
    ListenerState, RequestsInFlight, StopTimeouts, SystemdSocketError,
};
pub use state::{AppState, Config, Limits};

/// The parser of queries, for the fuzzer only: it is not part of the interface.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Parses a query as `/ws` and `/events` do, the latter with this header field `Last-Event-ID`. Panics if that is not
    /// what `docs/protocol.md` says.
    pub fn check_query(query: &str, last_event_id: Option<&[u8]>) {
        crate::handlers::channel_query::contract::check(query, last_event_id);
    }
}
