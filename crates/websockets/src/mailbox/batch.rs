//! What an event loop takes from its mailbox at once.

use std::sync::Arc;

use lastcall_core::ChannelName;

use super::{Attachment, LoopCommand, NewConnection};
use crate::{connection::outbox::Round, encoded::EncodedPublication};

/// Runs of other channels among which a loop looks for one that a publication continues.
pub(crate) const MAX_OPEN_RUNS: usize = 16;

/// Publications of one channel that a loop writes together, in their order.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) channel: ChannelName,
    pub(crate) publications: Vec<Arc<EncodedPublication>>,
}

/// What a loop takes from its mailbox at once.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// To be registered first.
    pub(crate) new_connections: Vec<NewConnection>,
    /// The round that the items belong to.
    pub(crate) round: Round,
    /// To be done in this order.
    pub(crate) items: Vec<BatchItem>,
    /// Whether the mailbox holds more.
    pub(crate) more: bool,
}

#[derive(Debug)]
pub(crate) enum BatchItem {
    Run(Run),
    Attach(Box<Attachment>),
    /// Always the last item.
    Command(LoopCommand),
}

impl Batch {
    /// Adds a publication to the run of its channel. `runs_from`: the first item that it may go to.
    pub(super) fn push(
        &mut self,
        channel: ChannelName,
        publication: Arc<EncodedPublication>,
        runs_from: usize,
    ) {
        let open = self.items[runs_from..].iter_mut().rev().take(MAX_OPEN_RUNS);
        let mut runs = open.filter_map(|item| match item {
            BatchItem::Run(run) => Some(run),
            _ => None,
        });
        match runs.find(|run| run.channel == channel) {
            Some(run) => run.publications.push(publication),
            None => self.items.push(BatchItem::Run(Run { channel, publications: vec![publication] })),
        }
    }
}
