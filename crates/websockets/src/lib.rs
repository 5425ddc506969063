//! Connections, their manager, the notifier and the graceful shutdown.
//!
//! Knows no HTTP framework: whoever answers the handshake asks [`ConnectionManager::admit`] first and
//! then gives the socket to [`ConnectionManager::connect`].

mod budget;
mod bus;
mod client_id;
mod clock;
mod close;
mod connection;
mod decoder;
mod event_loop;
mod figures;
mod frame;
mod freeze;
mod handshake;
mod heartbeat;
mod manager;
mod message;
mod notice;
mod notifier;
mod occupancy;
mod outbox;
mod pace;
mod ping;
mod shutdown;
mod state;

pub use client_id::ClientId;
pub use close::CloseReason;
pub use figures::{Durations, Figures};
pub use frame::Frame;
pub use freeze::Frozen;
pub use handshake::Handshake;
pub use manager::{ConnectionManager, ManagerConfig};
pub use message::{BROADCAST, Reconnect, Server, ServerMessage, Source};
pub use notice::Notice;
pub use notifier::{Notifier, NotifierState};
pub use occupancy::{Gate, Occupancy, Place, Refusal};
pub use shutdown::{DrainEnd, GracefulShutdown, Summary};
pub use state::{ConnectionState, ManagerState};

/// The decoder, for the fuzzer only: it is no part of the interface.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use std::ops::ControlFlow;

    use crate::decoder::{Accept, Decoder};

    /// What comes of these pieces, as text.
    pub fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        for piece in pieces {
            let accept = Accept { max_message_size: 4096, binary: true };
            let result = decoder.decode(&mut piece.to_vec(), accept, |event| {
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
