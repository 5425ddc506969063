//! The settings of the connection manager.

use std::{thread, time::Duration};

use lastcall_core::ClientMessages;

use crate::{
    budget::Rates, connection::ConnectionConfig, event_loop::HeartbeatConfig,
    placement::CONNECTIONS_PER_LOOP, protocol::Form,
};

/// The settings of the connection manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagerConfig {
    /// Number of event loops; each is a thread. At least 1, at most [`MAX_RECEIVERS`](lastcall_broker::MAX_RECEIVERS).
    pub event_loops: usize,
    /// A loop gets this many connections before the next loop is used.
    pub connections_per_loop: usize,
    /// Most connections at once.
    pub max_connections: usize,
    /// Time that a client has to answer a close frame, before its TCP socket is closed.
    pub close_timeout: Duration,
    /// `None`: no pings.
    pub heartbeat: Option<HeartbeatConfig>,
    /// Time in which a client must take at least 16 KiB while it is sent what it has missed.
    pub replay_timeout: Duration,
    /// The use that the server makes of the texts of clients.
    pub client_messages: ClientMessages,
    /// Most bytes of a client's message.
    pub max_message_size: usize,
    /// Most bytes that wait for one client, before it counts as too slow.
    pub max_queue: usize,
    /// Most bytes a second that one client's texts bring to each client; `None`: no limit.
    pub max_client_rate: Option<u64>,
    /// Most bytes a second that all clients' texts bring to each client; `None`: no limit.
    pub max_total_rate: Option<u64>,
}

impl Default for ManagerConfig {
    /// Returns a loop per core and no limits that a few clients reach.
    fn default() -> Self {
        Self {
            event_loops: thread::available_parallelism().map_or(1, usize::from),
            connections_per_loop: CONNECTIONS_PER_LOOP,
            max_connections: 10_000,
            close_timeout: Duration::from_secs(5),
            heartbeat: None,
            replay_timeout: Duration::from_secs(10),
            client_messages: ClientMessages::Broadcast,
            max_message_size: 64 << 10,
            max_queue: 1 << 20,
            max_client_rate: None,
            max_total_rate: None,
        }
    }
}

impl ManagerConfig {
    pub(super) fn rates(&self) -> Rates {
        Rates {
            client: self.max_client_rate,
            total: self.max_total_rate,
            // The queue of a client that reads nothing for a moment must have room for a burst and what
            // follows it.
            burst: self.max_queue / 4,
        }
    }

    pub(super) fn connection(&self) -> ConnectionConfig {
        let publishes_texts = self.client_messages == ClientMessages::Broadcast;
        ConnectionConfig {
            websockets: match self.client_messages {
                ClientMessages::Broadcast | ClientMessages::Ignore => Form::WebSocket,
                ClientMessages::Echo => Form::Echo,
            },
            publishes_texts,
            max_message_size: self.max_message_size,
            max_queue: self.max_queue,
            limits_texts: publishes_texts && self.rates().are_bounded(),
        }
    }
}
