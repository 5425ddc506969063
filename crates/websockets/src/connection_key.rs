//! Keys of connections that survive the reuse of a slot.

use crate::client_id::ClientId;

/// Identifies a connection of a loop, and never another one: a slot is reused, but a connection's id is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionKey {
    pub(crate) slot: usize,
    pub(crate) id: ClientId,
}
