//! What a handover needs of the connections: the event loops stopped, and their connections as plain data.

mod connection;
mod frozen;
mod frozen_loop;
mod manager;

pub use self::{connection::ConnectionSnapshot, frozen::Frozen, manager::ManagerSnapshot};
pub(crate) use self::{frozen::ReadsPaused, frozen_loop::FrozenLoop};
