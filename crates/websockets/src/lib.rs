//! Connections, their manager, the notifier and the graceful shutdown.
//!
//! Knows no HTTP framework: whoever answers the handshake asks [`ConnectionManager::admit`] first and
//! then gives the socket to [`ConnectionManager::connect`].

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
mod protocol;
mod shutdown;
mod snapshot;
mod stats;

pub use admission::{AdmissionState, AdmitError, ConnectionCounts, Permit};
pub use client_id::ClientId;
pub use codec::{CloseReason, Frame};
pub use event_loop::HeartbeatConfig;
pub use handshake::Handshake;
pub use manager::{ConnectionManager, ManagerConfig};
pub use notice::ShutdownNotice;
pub use notifier::{Notifier, NotifierState};
pub use protocol::{BROADCAST, NotificationSource, ServerMessage};
pub use shutdown::{DrainEnd, GracefulShutdown, Summary};
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
