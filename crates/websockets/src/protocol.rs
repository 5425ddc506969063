//! The messages between server and clients, as types.

pub(crate) mod chunk;
pub(crate) mod event_stream;
mod form;
mod plain;

use lastcall_core::{ChannelName, Epoch, Publication};

pub use form::Form;
pub(crate) use plain::{Reconnect, ServerInfo, ServerMessage};

/// Appends a publication as clients get it: JSON.
pub fn write_message(bytes: &mut Vec<u8>, channel: &ChannelName, epoch: Epoch, publication: &Publication) {
    ServerMessage::publication(channel, epoch, publication).write_json(bytes);
}

/// Returns how many bytes [`write_message`] appends.
pub fn message_size(channel: &ChannelName, epoch: Epoch, publication: &Publication) -> usize {
    ServerMessage::publication(channel, epoch, publication).json_size()
}
