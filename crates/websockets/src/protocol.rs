//! The messages between server and clients, as types.

mod plain;

pub use plain::{BROADCAST, NotificationSource, ServerMessage};
pub(crate) use plain::{Reconnect, ServerInfo};
