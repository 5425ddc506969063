//! The channels and buffers that connections of another process refer to, while they arrive.

use std::sync::Arc;

use bytes::Bytes;
use lastcall_broker::Broker;
use lastcall_core::ChannelName;
use serde::{Deserialize, Serialize};

use tokio::sync::mpsc;

use crate::{
    connection::{
        snapshot::{ConnectionSnapshot, SubscriptionNumbers},
        unread::{Histories, InvalidQueue, PinnedPublication, ReceivedUnread},
    },
    frozen_loop::NumberedChannels,
    mailbox::LoopCommand,
    mailboxes::Mailboxes,
};

/// Most channels in one part.
pub(crate) const CHANNELS_PER_PART: usize = 4096;

/// More numbers than this no event loop has: each has a subscription.
const MAX_NUMBER: u32 = 1 << 28;

/// A part of what connections refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionsPart {
    /// Channels, and their numbers.
    #[allow(private_interfaces, reason = "other crates only pass parts on")]
    Channels(NumberedChannels),
    /// Buffers that clients have not read. The first one has the number 0.
    Buffers(Vec<Bytes>),
    /// Publications that clients have not read, and no history has.
    #[allow(private_interfaces, reason = "other crates only pass parts on")]
    Publications(Vec<PinnedPublication>),
}

/// A contradiction in what came from another process. The handover fails then, and the old process continues.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartContradiction {
    /// A number is too high.
    #[error("{0} is no number of a channel or an event loop")]
    Number(usize),
    /// A client has a channel that did not come.
    #[error("a client has channel {0}, which did not come")]
    Channel(u32),
    /// Something that a client waits for did not come.
    #[error(transparent)]
    #[allow(private_interfaces, reason = "other crates only show it")]
    Queue(#[from] InvalidQueue),
    /// An event loop has ended.
    #[error("an event loop has ended, which is a bug")]
    Ended,
}

/// The channels and buffers that connections of another process refer to. They come before them; a large part
/// of it while they are served there.
#[derive(Debug)]
pub struct Restoration {
    mailboxes: Arc<Mailboxes>,
    /// The names of the channels of each event loop of the old process, by number.
    channels: Vec<Vec<Option<ChannelName>>>,
    /// True if the old process has as many event loops as this one.
    has_same_loops: bool,
    unread: ReceivedUnread,
}

impl Restoration {
    pub(crate) fn new(mailboxes: Arc<Mailboxes>) -> Self {
        Self { mailboxes, channels: Vec::new(), has_same_loops: true, unread: ReceivedUnread::default() }
    }

    /// Takes a part. Subscribes to its channels ahead, so that it takes no time when the connections come.
    /// Blocks until the event loops have done that.
    ///
    /// # Errors
    /// When the part contradicts itself.
    pub fn take(&mut self, part: ConnectionsPart) -> Result<(), PartContradiction> {
        match part {
            ConnectionsPart::Channels(channels) => self.take_channels(channels)?,
            ConnectionsPart::Buffers(buffers) => self.unread.buffers.extend(buffers),
            ConnectionsPart::Publications(publications) => self.unread.add_publications(publications),
        }
        Ok(())
    }

    fn take_channels(&mut self, part: NumberedChannels) -> Result<(), PartContradiction> {
        let NumberedChannels { event_loop, event_loops, channels } = part;
        if event_loop >= event_loops || event_loops > lastcall_broker::MAX_RECEIVERS {
            return Err(PartContradiction::Number(event_loop));
        }
        self.has_same_loops = event_loops == self.mailboxes.loops();
        self.channels.resize(event_loops.max(self.channels.len()), Vec::new());
        let known = &mut self.channels[event_loop];
        for channel in &channels {
            let index = channel.0 as usize;
            if channel.0 > MAX_NUMBER {
                return Err(PartContradiction::Number(index));
            }
            if index >= known.len() {
                known.resize(index + 1, None);
            }
            known[index] = channel.1.clone();
        }
        if self.has_same_loops {
            let (ack, mut acks) = mpsc::channel(1);
            self.mailboxes.send_to(event_loop, LoopCommand::AddChannels(Arc::new(channels), ack));
            acks.blocking_recv().ok_or(PartContradiction::Ended)?;
        }
        Ok(())
    }

    /// Checks that everything has come that a connection refers to.
    ///
    /// # Errors
    /// When it has not.
    pub fn check(&self, snapshot: &ConnectionSnapshot) -> Result<(), PartContradiction> {
        self.unread.check(&snapshot.queue)?;
        let subscriptions = &snapshot.subscriptions;
        let channels = self.channels.get(subscriptions.event_loop).map(Vec::as_slice).unwrap_or_default();
        let is_there = |number: &u32| matches!(channels.get(*number as usize), Some(Some(_)));
        match subscriptions.iter().find(|number| !is_there(number)) {
            Some(number) => Err(PartContradiction::Channel(number)),
            None => Ok(()),
        }
    }

    /// Returns the event loop of a connection; `None`: any. Then it has its channels by their names.
    pub(crate) fn place(&self, snapshot: &mut ConnectionSnapshot) -> Option<usize> {
        let subscriptions = &snapshot.subscriptions;
        if subscriptions.len() == 0 {
            return None;
        }
        if self.has_same_loops {
            return Some(subscriptions.event_loop);
        }
        let channels = self.channels.get(subscriptions.event_loop).map(Vec::as_slice).unwrap_or_default();
        let names = subscriptions.iter().filter_map(|number| channels.get(number as usize)?.clone());
        snapshot.channels = names.collect();
        snapshot.subscriptions = SubscriptionNumbers::default();
        None
    }

    /// Restores the queue of a connection.
    pub(crate) async fn restore_queue(
        &self,
        snapshot: &mut ConnectionSnapshot,
        histories: &mut Histories<'_>,
    ) {
        let queue = std::mem::take(&mut snapshot.queue);
        if queue.is_empty() {
            return;
        }
        let (outbox, is_complete) = self.unread.restore(queue, histories).await;
        snapshot.outbox = outbox;
        snapshot.is_incomplete = !is_complete;
    }

    pub(crate) fn histories<'a>(broker: &'a dyn Broker) -> Histories<'a> {
        Histories::new(broker)
    }
}
