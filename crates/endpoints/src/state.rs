//! What the handlers share.

use lastcall_core::settings::{ApiKey, Settings};
use lastcall_websockets::ConnectionManager;

use crate::{
    auth::{origin::Allowed, own_hosts::OwnHosts},
    handlers::page::Page,
    health::Health,
    limits::Limits,
    refusals::Refusals,
};

/// What the handlers share.
pub struct AppState {
    /// All connections.
    pub manager: ConnectionManager,
    /// What the process says of itself.
    pub health: Box<dyn Health>,
    pub(crate) page: Page,
    pub(crate) allowed_origins: Allowed,
    pub(crate) own_hosts: OwnHosts,
    pub(crate) api_keys: Vec<ApiKey>,
    pub(crate) max_message_size: usize,
    pub(crate) limits: Limits,
    pub(crate) refusals: Refusals,
}

impl AppState {
    /// Collects it from the settings. `refusals` are those of the HTTP server that has the routes.
    pub fn new(
        settings: &Settings,
        manager: ConnectionManager,
        health: Box<dyn Health>,
        page: Page,
        refusals: Refusals,
    ) -> Self {
        let allowed_origins = Allowed::from(&settings.allowed_origins);
        Self {
            manager,
            health,
            page,
            own_hosts: OwnHosts::new(&settings.host, &allowed_origins),
            allowed_origins,
            api_keys: settings.api_keys.clone(),
            max_message_size: settings.max_message_size,
            limits: Limits::from(settings),
            refusals,
        }
    }
}
