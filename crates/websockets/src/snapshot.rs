//! What a handover needs of the connections: the event loops stopped, and each connection's state as plain data.

mod freeze;
mod state;

pub use freeze::Frozen;
pub(crate) use freeze::{FrozenLoop, ReadsPaused};
pub use state::{ConnectionState, ManagerState};
