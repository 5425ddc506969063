//! The messages between server and clients, as types.

mod plain;

pub(crate) use plain::{Reconnect, ServerInfo, ServerMessage};
