//! What the endpoints have to be told.

use lastcall_core::settings::{AllowedOrigins, ApiKey};

use crate::limits::Limits;

/// The configuration of the routes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name or the address that the server was asked to listen on. A name is one of the server's own, by which
    /// this machine may call without a key.
    pub host: String,
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
            host: "127.0.0.1".to_owned(),
            allowed_origins: AllowedOrigins::SameHost,
            api_keys: Vec::new(),
            limits: Limits::default(),
        }
    }
}
