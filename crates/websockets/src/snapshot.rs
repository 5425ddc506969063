//! What a handover needs of the connections: the event loops stopped, and their connections as plain data.

pub(crate) mod connection;
mod frozen;
pub(crate) mod frozen_loop;
mod manager;

pub(crate) use self::frozen::ReadsPaused;
pub use self::{connection::ConnectionSnapshot, frozen::Frozen, manager::ManagerSnapshot};
