//! What the handlers share.

use lastcall_core::{AllowedOrigins, ApiKey};
use lastcall_websockets::ConnectionManager;

use crate::{
    auth::trusted_hosts::TrustedHosts, config::Config, health::Health, limits::Limits, page::Page,
    refusals::Refusals, server::HttpConnections,
};

/// What the handlers share.
pub struct AppState {
    pub(crate) manager: ConnectionManager,
    pub(crate) health: Box<dyn Health>,
    pub(crate) page: Page,
    pub(crate) allowed_origins: AllowedOrigins,
    pub(crate) trusted_hosts: TrustedHosts,
    pub(crate) api_keys: Vec<ApiKey>,
    pub(crate) limits: Limits,
    pub(crate) refusals: Refusals,
    pub(crate) http_connections: HttpConnections,
}

impl AppState {
    /// Puts the state together. `manager` has the connections, `health` tells the state of the process, and `refusals`
    /// and
    /// `http_connections` are those of the HTTP server that has the routes.
    pub fn new(
        config: Config,
        manager: ConnectionManager,
        health: Box<dyn Health>,
        page: Page,
        refusals: Refusals,
        http_connections: HttpConnections,
    ) -> Self {
        let Config { host, allowed_origins, api_keys, limits } = config;
        let trusted_hosts = TrustedHosts::new(&host, &allowed_origins);
        Self {
            manager,
            health,
            page,
            allowed_origins,
            trusted_hosts,
            api_keys,
            limits,
            refusals,
            http_connections,
        }
    }
}
