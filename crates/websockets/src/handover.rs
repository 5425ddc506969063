//! Parts of a handover of all connections: all event loops standing still, and what is left to do before they
//! move on in another process.

mod frozen;
mod restoration;

pub(crate) use self::{
    frozen::{BrokerPaused, ReadsPaused},
    restoration::CHANNELS_PER_PART,
};
pub use self::{
    frozen::{Frozen, ManagerSnapshot},
    restoration::{ConnectionsPart, PartContradiction, Restoration},
};
