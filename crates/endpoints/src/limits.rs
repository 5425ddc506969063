//! Limits of the server, as the endpoints apply and report them.

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
    /// Limits for tests.
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
