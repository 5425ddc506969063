//! What clients and the server say to each other, as types.

mod plain;

pub use plain::{BROADCAST, NotificationSource, ServerMessage};
pub(crate) use plain::{Reconnect, ServerInfo};
