//! Limits that the settings set, as `/metrics` and `/health/ready` report them.

use lastcall_core::settings::Settings;

/// What the settings of these names allow, in bytes where they are sizes; 0 where there is no bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_connections: usize,
    pub(crate) max_queue: usize,
    pub(crate) max_message_size: usize,
    pub(crate) max_client_rate: u64,
    pub(crate) max_total_rate: u64,
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self {
            max_connections: settings.max_connections,
            max_queue: settings.max_queue,
            max_message_size: settings.max_message_size,
            max_client_rate: settings.max_client_rate.unwrap_or(0),
            max_total_rate: settings.max_total_rate.unwrap_or(0),
        }
    }
}
