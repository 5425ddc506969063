//! The channels and their history in a handover. Most of it goes while the old process serves, so that the pause does not
//! grow with it; what was added since goes when everything has stopped.

use std::time::{Duration, Instant};

use lastcall_broker::{MemoryBroker, MemoryExport};
use lastcall_handover::{HandoverSender, PartError};

use crate::history::{decode, encode};

/// Sends what has changed since the last time; at first, everything.
///
/// # Errors
/// When the new process does not read it by `deadline`.
pub(super) fn send(
    history: &mut MemoryExport,
    sender: &HandoverSender,
    deadline: Instant,
) -> anyhow::Result<()> {
    for part in history.pass() {
        sender.send_part(encode(&part)?, deadline)?;
    }
    Ok(())
}

/// Takes over a part that the old process has sent.
///
/// # Errors
/// When it cannot be used.
pub(super) fn receive(broker: &MemoryBroker, part: &[u8]) -> Result<(), PartError> {
    // As old as it is when it is written: it is read right then.
    Ok(broker.import(decode(part)?, Duration::ZERO)?)
}
