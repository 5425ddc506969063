//! The subscriptions of one loop: the connections of each channel. They are its own: no lock.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
};

use hashbrown::{HashTable, hash_table::Entry};
use lastcall_broker::Since;
use lastcall_core::ChannelName;
use slab::Slab;

use super::members::Members;
use crate::{
    connection::snapshot::PendingSnapshot,
    connection_key::ConnectionKey,
    connections::subscription_list::{LocalChannelId, PENDING, Subscription},
    excess_capacity::{KEPT_CAPACITY, TrimThreshold},
    frozen_loop::NumberedChannel,
};

/// A channel with subscriptions in this loop.
#[derive(Debug)]
pub(crate) struct LocalChannel {
    pub(crate) name: ChannelName,
    pub(crate) members: Members,
    /// Subscriptions that wait for the broker.
    pending: u32,
    /// Subscriptions that the broker has already, of connections that are about to come from another process.
    ahead: u32,
}

/// A subscription that a connection has asked for, and the broker has not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingSubscription {
    pub(crate) since: Since,
    /// True if the client is told: it named the channel.
    pub(crate) announce: bool,
}

impl From<&PendingSnapshot> for PendingSubscription {
    fn from(&PendingSnapshot { since, announce, .. }: &PendingSnapshot) -> Self {
        Self { since, announce }
    }
}

/// The subscriptions of one loop.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    channels: Slab<LocalChannel>,
    by_name: HashTable<LocalChannelId>,
    hasher: RandomState,
    trim: TrimThreshold,
    /// The subscriptions that wait for the broker.
    pending: HashMap<(ConnectionKey, LocalChannelId), PendingSubscription>,
    /// Subscriptions of all channels that the broker has already.
    ahead: usize,
    /// The numbers of channels that have changed since the channels were listed for a new process.
    changed: Option<HashSet<u32>>,
}

impl Subscriptions {
    /// Returns the subscriptions that wait for the broker, with their connections.
    pub(crate) fn pending(
        &self,
    ) -> impl Iterator<Item = (ConnectionKey, LocalChannelId, PendingSubscription)> {
        self.pending.iter().map(|((connection, channel), pending)| (*connection, *channel, *pending))
    }

    /// Returns the channel of this name.
    pub(crate) fn find(&self, name: &ChannelName) -> Option<LocalChannelId> {
        let hash = self.hasher.hash_one(name);
        self.by_name.find(hash, |id| self.channels[id.0 as usize].name == *name).copied()
    }

    pub(crate) fn get(&self, id: LocalChannelId) -> Option<&LocalChannel> {
        self.channels.get(id.0 as usize)
    }

    /// Adds a pending subscription: the broker has not answered yet. Returns it, and the name of its channel
    /// as it is kept.
    pub(crate) fn add_pending(
        &mut self,
        connection: ConnectionKey,
        name: &ChannelName,
        pending: PendingSubscription,
    ) -> (Subscription, ChannelName) {
        let channel = self.find_or_add(name, ChannelName::unshared);
        self.note_change(channel);
        self.pending.insert((connection, channel), pending);
        let local = &mut self.channels[channel.0 as usize];
        local.pending += 1;
        (Subscription { channel, member: PENDING }, local.name.clone())
    }

    fn find_or_add(&mut self, name: &ChannelName, keep: fn(&ChannelName) -> ChannelName) -> LocalChannelId {
        let Self { channels, by_name, hasher, .. } = self;
        let hash = hasher.hash_one(name);
        let entry = by_name.entry(
            hash,
            |id| channels[id.0 as usize].name == *name,
            |id| hasher.hash_one(&channels[id.0 as usize].name),
        );
        match entry {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let id = LocalChannelId(channels.vacant_key() as u32);
                entry.insert(id);
                channels.insert(LocalChannel {
                    name: keep(name),
                    members: Members::default(),
                    pending: 0,
                    ahead: 0,
                });
                id
            }
        }
    }

    /// Notes that the broker has so many subscriptions of connections that are about to come from another
    /// process.
    pub(crate) fn add_ahead(&mut self, name: &ChannelName, subscriptions: u32) -> LocalChannelId {
        let id = self.find_or_add(name, ChannelName::clone);
        self.channels[id.0 as usize].ahead += subscriptions;
        self.ahead += subscriptions as usize;
        id
    }

    /// Adds the connection in this slot, which has come from another process. Returns its index, and whether
    /// the broker has the subscription already; `None`: there is no such channel.
    pub(crate) fn add_restored(&mut self, id: LocalChannelId, slot: usize) -> Option<(u32, bool)> {
        let channel = self.channels.get_mut(id.0 as usize)?;
        let is_ahead = channel.ahead > 0;
        if is_ahead {
            channel.ahead -= 1;
            self.ahead -= 1;
        }
        Some((channel.members.insert(slot), is_ahead))
    }

    /// Takes back the subscriptions of connections that did not come: the channels, and how many there are of
    /// each.
    pub(crate) fn take_ahead(&mut self) -> Vec<(LocalChannelId, ChannelName, u32)> {
        if std::mem::take(&mut self.ahead) == 0 {
            return Vec::new();
        }
        let left = self.channels.iter_mut().filter(|(_, channel)| channel.ahead > 0);
        left.map(|(index, channel)| {
            (LocalChannelId(index as u32), channel.name.clone(), std::mem::take(&mut channel.ahead))
        })
        .collect()
    }

    /// Lists channels for a new process: at most `limit` from this number on, and the number to go on with;
    /// `None`: there are no more. With the first ones, it begins to note which channels change.
    pub(crate) fn list(&mut self, from: u32, limit: usize) -> (Vec<NumberedChannel>, Option<u32>) {
        if from == 0 {
            self.changed = Some(HashSet::new());
        }
        let end = self.channels.capacity().min(from as usize + limit);
        let listed = (from as usize..end).filter_map(|index| {
            let channel = self.channels.get(index)?;
            Some(NumberedChannel(index as u32, Some(channel.name.clone()), channel.members.len()))
        });
        (listed.collect(), (end < self.channels.capacity()).then_some(end as u32))
    }

    /// Returns the channels that have changed since they were listed; all, if they were not listed.
    pub(crate) fn take_changes(&mut self) -> Vec<NumberedChannel> {
        let Some(changed) = self.changed.take() else { return self.list_all() };
        let of = |number: u32| self.channels.get(number as usize);
        let channel = |number| {
            let channel = of(number);
            let members = channel.map_or(0, |channel| channel.members.len());
            NumberedChannel(number, channel.map(|channel| channel.name.clone()), members)
        };
        changed.into_iter().map(channel).collect()
    }

    fn list_all(&self) -> Vec<NumberedChannel> {
        let channels = self.channels.iter();
        channels
            .map(|(index, channel)| {
                NumberedChannel(index as u32, Some(channel.name.clone()), channel.members.len())
            })
            .collect()
    }

    /// Ends what [`Self::list`] has begun.
    pub(crate) fn end_listing(&mut self) {
        self.changed = None;
    }

    fn note_change(&mut self, id: LocalChannelId) {
        if let Some(changed) = &mut self.changed {
            changed.insert(id.0);
        }
    }

    /// Adds the connection in this slot, whose subscription waits no longer. Returns its index.
    pub(crate) fn add_member(&mut self, id: LocalChannelId, slot: usize) -> Option<u32> {
        self.note_change(id);
        Some(self.channels.get_mut(id.0 as usize)?.members.insert(slot))
    }

    /// Removes a connection from a channel.
    pub(crate) fn remove_member(&mut self, subscription: Subscription) {
        self.note_change(subscription.channel);
        if let Some(channel) = self.channels.get_mut(subscription.channel.0 as usize) {
            channel.members.remove(subscription.member);
        }
    }

    /// Removes a channel if it has no subscription any more. Returns true if it was removed.
    pub(crate) fn remove_if_unused(&mut self, id: LocalChannelId) -> bool {
        let index = id.0 as usize;
        let Some(channel) = self.channels.get(index) else { return false };
        if channel.pending > 0 || channel.ahead > 0 || !channel.members.is_empty() {
            return false;
        }
        let hash = self.hasher.hash_one(&channel.name);
        self.note_change(id);
        if let Ok(entry) = self.by_name.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
        self.channels.remove(index);
        if self.trim.is_reached(self.channels.len()) {
            self.channels.shrink_to_fit();
            let Self { channels, by_name, hasher, .. } = self;
            by_name.shrink_to(channels.len(), |id| hasher.hash_one(&channels[id.0 as usize].name));
        }
        true
    }

    /// Returns all channels.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LocalChannelId, &LocalChannel)> {
        self.channels.iter().map(|(index, channel)| (LocalChannelId(index as u32), channel))
    }

    /// Notes that the broker has answered. Returns what the connection has asked for.
    pub(crate) fn end_pending(
        &mut self,
        connection: ConnectionKey,
        id: LocalChannelId,
    ) -> Option<PendingSubscription> {
        let pending = self.pending.remove(&(connection, id))?;
        if self.pending.is_empty() {
            self.pending.shrink_to(KEPT_CAPACITY);
        }
        if let Some(channel) = self.channels.get_mut(id.0 as usize) {
            channel.pending = channel.pending.saturating_sub(1);
        }
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_id::ClientId;

    fn name(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    const ASKED: PendingSubscription = PendingSubscription { since: Since::Now, announce: false };

    fn key(slot: usize) -> ConnectionKey {
        ConnectionKey { slot, id: ClientId::generate() }
    }

    #[test]
    fn a_channel_is_there_as_long_as_it_has_a_subscription_or_one_that_waits() {
        let mut subscriptions = Subscriptions::default();
        let (one, two) = (key(7), key(8));
        let (first, _) = subscriptions.add_pending(one, &name("a"), ASKED);
        let (second, _) = subscriptions.add_pending(two, &name("a"), ASKED);
        assert_eq!(first.channel, second.channel);
        assert_eq!(subscriptions.pending().count(), 2);
        assert_eq!(subscriptions.end_pending(one, first.channel), Some(ASKED));
        assert_eq!(subscriptions.end_pending(one, first.channel), None);
        let member = subscriptions.add_member(first.channel, 7).unwrap();
        subscriptions.remove_member(Subscription { member, ..first });
        assert!(!subscriptions.remove_if_unused(first.channel), "the second one waits");
        assert_eq!(subscriptions.end_pending(two, second.channel), Some(ASKED));
        assert_eq!(subscriptions.pending().count(), 0);
        assert!(subscriptions.remove_if_unused(first.channel));
        assert_eq!(subscriptions.find(&name("a")), None);
        assert!(!subscriptions.remove_if_unused(first.channel));
    }

    #[test]
    fn channels_are_found_by_name() {
        let mut subscriptions = Subscriptions::default();
        let mut add = |n| subscriptions.add_pending(key(n), &name(&format!("c{n}")), ASKED).0.channel;
        let ids: Vec<_> = (0..1000).map(&mut add).collect();
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(subscriptions.find(&name(&format!("c{n}"))), Some(*id));
        }
        assert_eq!(subscriptions.find(&name("c1000")), None);
        assert_eq!(subscriptions.iter().count(), 1000);
    }
}
