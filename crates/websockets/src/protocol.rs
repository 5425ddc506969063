//! The messages between server and clients, as types.

pub(crate) mod event_stream;
mod plain;

use lastcall_core::{ChannelName, Epoch, Publication};
use serde_json::value::{RawValue, to_raw_value};

pub(crate) use plain::{Reconnect, ServerInfo, ServerMessage};

/// Returns a publication as clients get it: JSON.
pub fn message_of(channel: &ChannelName, epoch: Epoch, publication: &Publication) -> Box<RawValue> {
    let message = ServerMessage::publication(channel, epoch, publication);
    to_raw_value(&message).expect("a server message is always valid JSON")
}
