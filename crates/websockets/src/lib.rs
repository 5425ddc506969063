//! Connections, their manager, the notifier and the graceful shutdown.
//!
//! Knows no HTTP framework: whoever answers the handshake asks [`ConnectionManager::admit`] first and
//! then gives the socket to [`ConnectionManager::connect`].

mod bus;
mod client_id;
mod close;
mod connection;
mod decoder;
mod event_loop;
mod frame;
mod heartbeat;
mod manager;
mod message;
mod notice;
mod notifier;
mod occupancy;
mod outbox;
mod shutdown;

pub use client_id::ClientId;
pub use close::CloseReason;
pub use frame::Frame;
pub use manager::{ConnectionManager, ManagerConfig};
pub use message::{BROADCAST, Reconnect, Server, ServerMessage};
pub use notice::Notice;
pub use notifier::notify_periodically;
pub use occupancy::{Gate, Occupancy, Place, Refusal};
pub use shutdown::{DrainEnd, GracefulShutdown, Summary};
