//! The beginning of a subscription.

use lastcall_broker::Subscribed;
use lastcall_core::ChannelName;

use crate::connection_key::ConnectionKey;

/// A subscription that begins: everything of its channel that comes later in the mailbox is also for this connection.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) connection: ConnectionKey,
    pub(crate) channel: ChannelName,
    pub(crate) subscribed: Subscribed,
    /// Whether the client is told: it named the channel.
    pub(crate) announced: bool,
    /// Whether the client asked for a position.
    pub(crate) asked: bool,
}
