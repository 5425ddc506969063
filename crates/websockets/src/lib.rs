//! Live connections, WebSockets and server-sent events: which are admitted, what they are sent, how they are
//! closed, and how a new process takes them over. Knows no HTTP framework: an HTTP server answers the
//! handshake and gives the socket to this crate.
//!
//! # From outside
//!
//! - [`ConnectionManager`] (`manager`) is the handle to everything. [`ConnectionManager::admit`] returns a
//!   [`Permit`] before the handshake is answered, [`ConnectionManager::connect`] takes the socket after it,
//!   and [`ConnectionManager::publish_all`] publishes in channels, by a broker (`lastcall-broker`).
//! - [`Notifier`] (`notifier`) sends the periodic notification.
//! - [`GracefulShutdown`] (`shutdown`) is the whole drain: delay, notice, reminders, spread closes, deadline.
//!   It uses `notice` (what clients are told) and `close_schedule` (in which order and when a loop closes its
//!   connections).
//! - [`Phases`] (`phases`) publishes the phase of the process. The drain moves it, and admission reads it.
//! - [`VitalTasks`] (`vital_tasks`) watches the tasks and threads that must not end by themselves, here and
//!   in the crates above.
//!
//! # Between the manager and the event loops
//!
//! - `admission` counts connections, and refuses new ones when there are too many or during a drain. A permit
//!   is the right to one connection; dropping it gives it back.
//! - `mailboxes` has one `mailbox` for each event loop: commands, subscriptions that begin, and publications
//!   of the channels that the loop receives. All loops have the publications of a channel in the same order.
//!   Publishers wait while a mailbox is too full. `excess_capacity` returns the memory of queues after a
//!   burst.
//! - `encoded` is a publication on its way: encoded once in each form that a client needs.
//! - `placement` chooses the event loop of a new connection.
//! - `handover` is what a handover needs: the event loops stopped at once, each a `frozen_loop`, which the
//!   loops get back when it is dropped; and what came from another process ([`Restoration`]).
//! - `budget` limits how fast clients' texts are published, so that one client cannot fill the queues of all
//!   others.
//!
//! # In the event loops
//!
//! - `event_loop` is a thread that owns its sockets. An iteration polls the kernel, writes, reads, runs the
//!   jobs from the mailbox, and then the timers; each part stops after a slice of time, so none delays the
//!   others for long. It has `jobs` (one queue: deliveries, commands, the next look at the mailbox) and
//!   `clients`, where all is that acts on connections and what follows from it. Those are made of: `sockets`
//!   (the poll), `channels` (subscriptions begin and end; which connections have which channel), `reader`
//!   (and what becomes of texts), `writer`, `replays`, `drain` (what clients are told of one), `timers` (all
//!   of them, with one `next` and one `due`), and `heartbeat` and `clock` (when clients are pinged, by a
//!   clock that stands still while the process does). A `delivery` is what many connections get, in one write
//!   for each.
//! - `connections` are the connections of one loop in their slots, with the subscriptions of each
//!   (`subscription_list`) and, for server-sent events, its positions (`stream_positions`). A
//!   `connection_key` survives the reuse of a slot.
//! - `connection` is the state machine of one connection, over any stream that can be read and written: what
//!   to do with input, output, a close and a lost peer. A write to its socket is prepared and completed
//!   (`output`). Its `outbox` keeps what the socket has not taken, shared with other connections, and each
//!   `replay` of what the client has missed; its `ping` keeps what became of the last ping. An idle
//!   connection has no buffer. Its `snapshot` is plain data that other builds can read, with what its client
//!   has not read (`unread`).
//! - `codec` is RFC 6455: frames, a decoder that enforces every limit as soon as a header shows it, and close
//!   codes. It knows neither sockets nor JSON.
//! - `protocol` has the messages to clients (`Outgoing`), and how a connection gets them: its [`Form`].
//!   `plain` has them as in `docs/protocol.md`, `event_stream` as server-sent events, in chunks (`chunk`);
//!   and `client_id` the ids of connections in them. `handshake` is what the HTTP server leaves to the event
//!   loop: the response that is not sent yet, and early input.
//! - [`Stats`] (`stats`) is what each loop counts.
//!
//! # Example
//!
//! The life of a server without HTTP: notifications at an interval, and then a drain. How clients connect and
//! how something is published is in the example of [`ConnectionManager`].
//!
//! ```
//! use std::{future::pending, sync::Arc, time::Duration};
//!
//! use lastcall_broker::{Broker, MemoryBroker};
//! use lastcall_core::phase::Phase;
//! use lastcall_websockets::{
//!     ConnectionManager, GracefulShutdown, ManagerConfig, Notifier, NotifierState, Phases, ShutdownConfig,
//!     VitalTasks,
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let phases = Phases::default();
//! let (manager, _broker) = ConnectionManager::start(
//!     ManagerConfig::default(),
//!     phases.clone(),
//!     VitalTasks::default(),
//!     |delivery| -> Arc<dyn Broker> {
//!         Arc::new(MemoryBroker::new(lastcall_broker::Config::default(), delivery))
//!     },
//! )?;
//! let notifier = Notifier::start(manager.clone(), Duration::from_secs(5), NotifierState::default());
//! phases.enter(Phase::Serving);
//!
//! // Nobody is connected, so the drain ends at once.
//! let shutdown = GracefulShutdown::new(manager.clone(), ShutdownConfig::default());
//! shutdown.run("SIGTERM", pending::<()>()).await;
//! assert_eq!(phases.now(), Phase::Draining);
//! notifier.stop().await?;
//! manager.stop();
//! # Ok(())
//! # }
//! ```

mod admission;
mod budget;
mod client_id;
mod close_schedule;
mod codec;
mod connection;
mod connection_key;
mod connections;
mod encoded;
mod event_loop;
mod excess_capacity;
mod frozen_loop;
mod handover;
mod handshake;
mod mailbox;
mod mailboxes;
mod manager;
mod notice;
mod notifier;
mod phases;
mod placement;
mod protocol;
mod shutdown;
mod stats;
mod vital_tasks;

pub use admission::{AdmitError, ConnectionCounts, Permit};
pub use client_id::ClientId;
pub use connection::snapshot::ConnectionSnapshot;
pub use event_loop::HeartbeatConfig;
pub use handover::{ConnectionsPart, Frozen, ManagerSnapshot, PartContradiction, Restoration};
pub use handshake::{ChannelRequest, Handshake, MAX_CHANNELS};
pub use lastcall_broker::{
    BrokerError, ChannelInfo, HistoryPage, IdempotencyKey, PageLimit, Published, Since, Usage,
};
pub use manager::{
    ChannelListing, ConnectionManager, LoopEnded, ManagerConfig, PublishError, PublishRequest,
};
pub use notifier::{Notifier, NotifierState};
pub use phases::Phases;
pub use protocol::{Form, message_size, write_message};
pub use shutdown::{CLOSE_GRACE, GracefulShutdown, ShutdownConfig};
pub use stats::{Histogram, Stats};
pub use vital_tasks::VitalTasks;

/// The decoder, for the fuzzer only: it is not part of the interface.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use std::ops::ControlFlow;

    use crate::codec::{Decoder, DecoderLimits};

    /// Decodes these pieces, and returns the events and the error as text.
    pub fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for piece in pieces {
            let limits = DecoderLimits { max_message_size: 4096, accept_binary: true };
            let result = decoder.decode(&mut piece.to_vec(), limits, |event| {
                events.push(format!("{event:?}"));
                ControlFlow::Continue(())
            });
            if let Err(error) = result {
                events.push(format!("{error:?}"));
                break;
            }
        }
        events
    }
}
