//! The state that the handlers share, and the configuration that it is made from.

use std::{net::Ipv4Addr, sync::Arc};

use axum::extract::FromRef;
use lastcall_core::{AllowedOrigins, ApiKey, Host};
use lastcall_websockets::ConnectionManager;

use crate::{
    auth::access_rules::AccessRules, body_budget::BodyBudget, page::Page, process::Process,
    refusals::Refusals, server::HttpConnections,
};

/// The configuration of the routes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name or the address that the server was asked to listen on. A name is one of the server's own, by
    /// which this machine may call without a key.
    pub host: Host,
    /// Web pages that may connect and publish.
    pub allowed_origins: AllowedOrigins,
    /// Keys for `/api/`; without any, only this machine may call.
    pub api_keys: Vec<ApiKey>,
    /// Limits that the routes apply or report.
    pub limits: Limits,
}

impl Default for Config {
    /// Returns a configuration for tests: pages of the same host, no keys.
    fn default() -> Self {
        Self {
            host: Host::Address(Ipv4Addr::LOCALHOST.into()),
            allowed_origins: AllowedOrigins::SameHost,
            api_keys: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Limits of the server. Sizes are in bytes, rates in bytes a second.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at once.
    pub max_connections: usize,
    /// Most bytes that may be queued for one connection.
    pub max_queue: usize,
    /// Largest message of a client, and largest body to publish.
    pub max_message_size: usize,
    /// Most bytes that the texts of one client bring to each client; `None`: no bound.
    pub max_client_rate: Option<u64>,
    /// Most bytes that the texts of all clients together bring to each client; `None`: no bound.
    pub max_total_rate: Option<u64>,
}

impl Default for Limits {
    /// Returns limits for tests.
    fn default() -> Self {
        Self {
            max_connections: 1000,
            max_queue: 1 << 20,
            max_message_size: 64 << 10,
            max_client_rate: None,
            max_total_rate: None,
        }
    }
}

impl Limits {
    /// Returns the most bytes that the body of a batch may have: 1 MiB, if one publication may not have more.
    pub(crate) fn max_batch_body(&self) -> usize {
        self.max_message_size.max(1 << 20)
    }
}

/// The state that the handlers share.
pub struct AppState {
    pub(crate) manager: ConnectionManager,
    pub(crate) process: Process,
    pub(crate) page: Page,
    pub(crate) access_rules: AccessRules,
    pub(crate) limits: Limits,
    pub(crate) refusals: Refusals,
    pub(crate) http_connections: HttpConnections,
    pub(crate) body_budget: BodyBudget,
}

impl AppState {
    /// Puts the state together. `manager` has the connections, `process` is the one that serves, and
    /// `refusals` and `http_connections` are those of the HTTP server that has the routes.
    pub fn new(
        config: Config,
        manager: ConnectionManager,
        process: Process,
        page: Page,
        refusals: Refusals,
        http_connections: HttpConnections,
    ) -> Self {
        let Config { host, allowed_origins, api_keys, limits } = config;
        let access_rules = AccessRules::new(&host, allowed_origins, api_keys);
        let body_budget = BodyBudget::new(limits.max_batch_body());
        Self { manager, process, page, access_rules, limits, refusals, http_connections, body_budget }
    }
}

impl FromRef<Arc<AppState>> for AccessRules {
    fn from_ref(state: &Arc<AppState>) -> Self {
        state.access_rules.clone()
    }
}
