//! The messages from the server to its clients, and the forms in which clients get them.

pub(crate) mod chunk;
pub(crate) mod event_stream;
mod form;
pub(crate) mod plain;

use std::time::Duration;

use jiff::Timestamp;
use lastcall_core::{ChannelName, Epoch, Position, Publication};

pub use form::Form;
pub(crate) use form::Input;

use crate::client_id::ClientId;

/// A message to a client. Each form has its own bytes for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outgoing<'a> {
    /// The first message on every connection.
    Welcome {
        /// The id of this connection.
        client: ClientId,
    },
    /// The start of a subscription that the client named.
    Subscribed {
        /// The channel.
        channel: &'a ChannelName,
        /// The position from which on the client gets everything.
        start: Position,
        /// True if that is the position that the client asked for.
        recovered: bool,
        /// True if the client asked for a position.
        wants_recovery: bool,
    },
    /// A publication in a channel of the client.
    Publication {
        /// The channel.
        channel: &'a ChannelName,
        /// The epoch of its position there.
        epoch: Epoch,
        /// The publication.
        publication: &'a Publication,
    },
    /// The client's position in a channel is worth nothing any more.
    Reset {
        /// The channel.
        channel: &'a ChannelName,
        /// Its position now.
        position: Position,
    },
    /// The server is going to close this connection.
    Shutdown {
        /// The time at which this message was sent.
        time: Timestamp,
        /// The reason, for people.
        reason: &'static str,
        /// The time at which the connections that are still open are closed.
        deadline: Timestamp,
        /// The time from `time` to `deadline`.
        left: Duration,
        /// The time from the close until the client should reconnect.
        reconnect_after: Duration,
        /// True if the close follows.
        is_last: bool,
    },
    /// The client's last message was not accepted.
    Error {
        /// For programs: snake_case, stable.
        code: &'static str,
        /// For people.
        message: &'static str,
    },
}

/// Appends a publication as clients get it: JSON.
pub fn write_message(bytes: &mut Vec<u8>, channel: &ChannelName, epoch: Epoch, publication: &Publication) {
    plain::write_json(bytes, &Outgoing::Publication { channel, epoch, publication });
}

/// Returns how many bytes [`write_message`] appends.
pub fn message_size(channel: &ChannelName, epoch: Epoch, publication: &Publication) -> usize {
    plain::json_size(&Outgoing::Publication { channel, epoch, publication })
}
