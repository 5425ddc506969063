//! Live WebSocket connections: which are admitted, what they are sent, how they are closed, and how a new
//! process takes them over. Knows no HTTP framework: an HTTP server answers the handshake and gives the socket to this crate.
//!
//! # From outside
//!
//! - [`ConnectionManager`] (`manager`) is the handle to everything. [`ConnectionManager::admit`] returns a [`Permit`]
//!   before the handshake is answered, [`ConnectionManager::connect`] takes the socket after it, and
//!   [`ConnectionManager::broadcast`] sends a message to all clients.
//! - [`Notifier`] (`notifier`) sends the periodic notification.
//! - [`GracefulShutdown`] (`shutdown`) is the whole drain: delay, notice, reminders, spread closes, deadline. It uses
//!   `notice` (what clients are told) and `close_schedule` (in which order and when a loop closes its connections).
//! - [`Phases`] (`phases`) publishes the phase of the process. The drain moves it, and admission reads it.
//!
//! # Between the manager and the event loops
//!
//! - `admission` counts connections and refuses those that are too many or too late. A permit is the right to one
//!   connection; dropping it gives it back.
//! - `mailbox` has one mailbox for each event loop: commands and frames, in one order for all loops. Publishers wait while
//!   one is too full.
//! - `placement` chooses the event loop of a new connection.
//! - `budget` limits how fast clients' texts are published, so that one client cannot fill the queues of all others.
//!
//! # In the event loops
//!
//! - `event_loop` is a thread that owns its sockets: it reads, handles its mailbox, writes to all its connections, and has
//!   the timers.
//! - `connection` is the state machine of one connection, with its outbox and its ping.
//! - `codec` has frames, the decoder and the close codes of RFC 6455; `protocol` has the JSON messages of
//!   `docs/protocol.md`.
//! - `snapshot` has the event loops stopped at once, and the state of each connection as another process can read it.
//! - [`Stats`] (`stats`) is what the loops count.

mod admission;
mod budget;
mod client_id;
mod close_schedule;
mod codec;
mod connection;
mod event_loop;
mod handshake;
mod mailbox;
mod manager;
mod notice;
mod notifier;
mod phases;
mod placement;
mod protocol;
mod shutdown;
mod snapshot;
mod stats;

pub use admission::{AdmitError, ConnectionCounts, Permit};
pub use client_id::ClientId;
pub use codec::{CloseReason, Frame};
pub use event_loop::HeartbeatConfig;
pub use handshake::Handshake;
pub use manager::{ConnectionManager, ManagerConfig, PublishError};
pub use notifier::{Notifier, NotifierState};
pub use phases::Phases;
pub use protocol::{BROADCAST, NotificationSource, ServerMessage};
pub use shutdown::{GracefulShutdown, ShutdownConfig};
pub use snapshot::{ConnectionSnapshot, Frozen, ManagerSnapshot};
pub use stats::{Histogram, Stats};

/// The decoder, for the fuzzer only: it is no part of the interface.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use std::ops::ControlFlow;

    use crate::codec::{Decoder, DecoderLimits};

    /// What comes of these pieces, as text.
    pub fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        for piece in pieces {
            let limits = DecoderLimits { max_message_size: 4096, accept_binary: true };
            let result = decoder.decode(&mut piece.to_vec(), limits, |event| {
                heard.push(format!("{event:?}"));
                ControlFlow::Continue(())
            });
            if let Err(fault) = result {
                heard.push(format!("{fault:?}"));
                break;
            }
        }
        heard
    }
}
