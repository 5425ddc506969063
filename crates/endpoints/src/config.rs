//! What the endpoints have to be told.

use std::net::Ipv4Addr;

use lastcall_core::{AllowedOrigins, ApiKey, Host};

use crate::limits::Limits;

/// The configuration of the routes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name or the address that the server was asked to listen on. A name is one of the server's own, by which
    /// this machine may call without a key.
    pub host: Host,
    /// Web pages that may connect and publish.
    pub allowed_origins: AllowedOrigins,
    /// Keys for `/api/`; without any, only this machine may call.
    pub api_keys: Vec<ApiKey>,
    /// Limits that the routes apply or report.
    pub limits: Limits,
}

impl Default for Config {
    /// For tests: pages of the same host, no keys.
    fn default() -> Self {
        Self {
            host: Host::Address(Ipv4Addr::LOCALHOST.into()),
            allowed_origins: AllowedOrigins::SameHost,
            api_keys: Vec::new(),
            limits: Limits::default(),
        }
    }
}
