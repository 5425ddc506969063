//! What a handover needs of the connections: the event loops stopped, and their connections as plain data.

pub(crate) mod connection;
mod frozen;
pub(crate) mod frozen_loop;
mod manager;
mod restoration;
pub(crate) mod subscriptions;
pub(crate) mod unread;

pub use self::{
    connection::ConnectionSnapshot,
    frozen::Frozen,
    manager::ManagerSnapshot,
    restoration::{ConnectionsPart, PartContradiction, Restoration},
};
pub(crate) use self::{frozen::ReadsPaused, restoration::CHANNELS_PER_PART};
