//! The subscriptions of one connection.

use std::ops::Deref;

use super::stream_positions::StreamPositions;

/// A channel's number in its loop, while the channel has subscriptions there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LocalChannelId(pub(crate) u32);

/// A subscription of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) channel: LocalChannelId,
    /// Its index among the members of the channel; [`PENDING`] until it has begun.
    pub(crate) member: u32,
}

impl Subscription {
    /// Returns true if the broker has not answered, or has failed.
    pub(crate) fn is_pending(self) -> bool {
        self.member == PENDING
    }
}

/// No index: the broker has not answered yet.
pub(crate) const PENDING: u32 = u32::MAX;

/// The subscriptions of a connection, in the order of its URL. A single one, as most connections have, is
/// stored inline.
#[derive(Debug, Default)]
pub(crate) enum SubscriptionList {
    #[default]
    None,
    One(Subscription),
    Several(Box<SeveralSubscriptions>),
}

/// The subscriptions of a connection with several channels.
#[derive(Debug)]
pub(crate) struct SeveralSubscriptions {
    subscriptions: Vec<Subscription>,
    /// The positions that are the id of the client's events, if it gets server-sent events.
    positions: Option<StreamPositions>,
}

impl SubscriptionList {
    /// Reserves room for this many subscriptions in total.
    pub(crate) fn reserve(&mut self, subscriptions: usize) {
        if subscriptions > 1 {
            self.several().subscriptions.reserve_exact(subscriptions);
        }
    }

    /// Adds a subscription that waits for the broker.
    pub(crate) fn push(&mut self, subscription: Subscription) {
        match self {
            Self::None => *self = Self::One(subscription),
            Self::One(_) | Self::Several(_) => self.several().subscriptions.push(subscription),
        }
    }

    /// Records that a pending subscription has begun. `member`: its index among the members of its channel.
    pub(crate) fn set_member(&mut self, channel: LocalChannelId, member: u32) {
        let waits = |one: &&mut Subscription| one.channel == channel && one.member == PENDING;
        if let Some(subscription) = self.as_mut_slice().iter_mut().find(waits) {
            subscription.member = member;
        }
    }

    /// Returns the index of the subscription to this channel.
    pub(crate) fn index_of(&self, channel: LocalChannelId) -> Option<usize> {
        self.iter().position(|one| one.channel == channel)
    }

    /// Sets the positions that are the id of the client's events.
    pub(crate) fn set_positions(&mut self, positions: StreamPositions) {
        self.several().positions = Some(positions);
    }

    /// Returns the positions that form the id of the client's events, and the index of this channel among
    /// them. `None`: the client gets no server-sent events, or has only one channel, whose position is the
    /// id.
    pub(crate) fn positions(&mut self, channel: LocalChannelId) -> Option<(&mut StreamPositions, usize)> {
        let Self::Several(several) = self else { return None };
        let index = several.subscriptions.iter().position(|one| one.channel == channel);
        several.positions.as_mut().zip(index)
    }

    /// Returns the positions that are part of the id of the client's events as bytes, for another process.
    pub(crate) fn position_bytes(&self) -> Vec<u8> {
        let Self::Several(several) = self else { return Vec::new() };
        several.positions.as_ref().map(StreamPositions::to_bytes).unwrap_or_default()
    }

    /// Turns the list into one of several subscriptions, and returns it.
    fn several(&mut self) -> &mut SeveralSubscriptions {
        if !matches!(self, Self::Several(_)) {
            let subscriptions = self.to_vec();
            *self = Self::Several(Box::new(SeveralSubscriptions { subscriptions, positions: None }));
        }
        match self {
            Self::Several(several) => several,
            Self::None | Self::One(_) => unreachable!("the list was made `Several` above"),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Subscription] {
        match self {
            Self::None => &mut [],
            Self::One(subscription) => std::slice::from_mut(subscription),
            Self::Several(several) => &mut several.subscriptions,
        }
    }
}

impl Deref for SubscriptionList {
    type Target = [Subscription];

    fn deref(&self) -> &[Subscription] {
        match self {
            Self::None => &[],
            Self::One(subscription) => std::slice::from_ref(subscription),
            Self::Several(several) => &several.subscriptions,
        }
    }
}
