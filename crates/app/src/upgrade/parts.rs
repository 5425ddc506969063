//! The parts that go to the new process: the channels with their history, and what connections refer to. Most
//! of it goes while the old process serves, so that the pause does not grow with it; what has changed since
//! goes when everything has stopped.

use std::time::{Duration, Instant};

use lastcall_broker::BrokerPart;
use lastcall_handover::{HandoverSender, OLDEST_PROTOCOL, PartError, SendError};
use lastcall_websockets::{ChannelListing, ConnectionsPart, Frozen, LoopEnded, Restoration};
use serde::{Deserialize, Serialize};

use crate::broker::{BrokerExport, ServerBroker};

/// A part. Version 3 of the handover has the broker's alone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Broker(BrokerPart),
    Connections(ConnectionsPart),
}

/// A part was not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendPartError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("a part of it cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error(transparent)]
    LoopEnded(#[from] LoopEnded),
}

/// The parts of the old process.
#[derive(Debug)]
pub(super) struct OutgoingParts {
    pub(super) history: BrokerExport,
    pub(super) channels: ChannelListing,
}

impl OutgoingParts {
    /// Sends everything that can be sent while it is used.
    ///
    /// # Errors
    /// When the new process does not read it by `deadline`, or an event loop has ended.
    pub(super) fn send_early(
        &mut self,
        sender: &HandoverSender,
        deadline: Instant,
    ) -> Result<(), SendPartError> {
        self.send_history(sender, deadline)?;
        while let Some(part) = self.channels.next_part()? {
            send(Part::Connections(part), sender, deadline)?;
        }
        Ok(())
    }

    /// Sends the rest, once everything has stopped.
    ///
    /// # Errors
    /// When the new process does not read it by `deadline`.
    pub(super) fn send_rest(
        &mut self,
        frozen: &Frozen,
        sender: &HandoverSender,
        deadline: Instant,
    ) -> Result<(), SendPartError> {
        self.send_history(sender, deadline)?;
        frozen.parts().try_for_each(|part| send(Part::Connections(part), sender, deadline))
    }

    fn send_history(&mut self, sender: &HandoverSender, deadline: Instant) -> Result<(), SendPartError> {
        self.history.pass().try_for_each(|part| send(Part::Broker(part), sender, deadline))
    }
}

fn send(part: Part, sender: &HandoverSender, deadline: Instant) -> Result<(), SendPartError> {
    Ok(sender.send_part(rmp_serde::to_vec_named(&part)?, deadline)?)
}

/// Takes over a part that the old process has sent, which hands over by this version.
///
/// # Errors
/// When it cannot be used.
pub(super) fn receive(
    part: &[u8],
    protocol: u32,
    broker: &ServerBroker,
    restoration: &mut Restoration,
) -> Result<(), PartError> {
    let part = match protocol {
        OLDEST_PROTOCOL => Part::Broker(rmp_serde::from_slice(part)?),
        _ => rmp_serde::from_slice(part)?,
    };
    match part {
        // As old as it is when it is written: it is read right then.
        Part::Broker(part) => broker.import(part, Duration::ZERO)?,
        Part::Connections(part) => restoration.take(part)?,
    }
    Ok(())
}
