//! Which connections of one loop are subscribed to which channels. Its own: no lock.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use hashbrown::{HashTable, hash_table::Entry};
use lastcall_core::ChannelName;
use slab::Slab;

use super::members::Members;
use crate::{
    connections::subscription_list::{LocalChannelId, PENDING, Subscription},
    excess_capacity::TrimThreshold,
    frozen_loop::NumberedChannel,
};

/// A channel with subscriptions in this loop.
#[derive(Debug)]
pub(super) struct LocalChannel {
    pub(super) name: ChannelName,
    pub(super) members: Members,
    /// Subscriptions that wait for the broker.
    pending: u32,
    /// Subscriptions that the broker has already, of connections that are about to come from another process.
    ahead: u32,
}

/// The subscriptions of one loop.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: Slab<LocalChannel>,
    by_name: HashTable<LocalChannelId>,
    hasher: RandomState,
    trim: TrimThreshold,
    /// Subscriptions of all channels that wait for the broker.
    pending: usize,
    /// Subscriptions of all channels that the broker has already.
    ahead: usize,
    /// The numbers of channels that have changed since the channels were listed for a new process.
    changed: Option<HashSet<u32>>,
}

impl Subscriptions {
    /// Returns true if a subscription waits for the broker.
    pub(super) fn has_pending(&self) -> bool {
        self.pending > 0
    }

    /// Returns the channel of this name.
    pub(super) fn find(&self, name: &ChannelName) -> Option<LocalChannelId> {
        let hash = self.hasher.hash_one(name);
        self.by_name.find(hash, |id| self.channels[id.0 as usize].name == *name).copied()
    }

    pub(super) fn get(&self, id: LocalChannelId) -> Option<&LocalChannel> {
        self.channels.get(id.0 as usize)
    }

    /// Adds a pending subscription: the broker has not answered yet. Returns it, and the name of its channel as it is kept.
    pub(super) fn add_pending(&mut self, name: &ChannelName) -> (Subscription, ChannelName) {
        let channel = self.find_or_add(name, ChannelName::unshared);
        self.pending += 1;
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

    /// Notes that the broker has so many subscriptions of connections that are about to come from another process.
    pub(super) fn add_ahead(&mut self, name: &ChannelName, subscriptions: u32) -> LocalChannelId {
        let id = self.find_or_add(name, ChannelName::clone);
        self.channels[id.0 as usize].ahead += subscriptions;
        self.ahead += subscriptions as usize;
        id
    }

    /// Attaches the connection in this slot, which has come from another process. Returns its index, and whether the broker has
    /// the subscription already; `None`: there is no such channel.
    pub(super) fn attach_restored(&mut self, id: LocalChannelId, slot: usize) -> Option<(u32, bool)> {
        let channel = self.channels.get_mut(id.0 as usize)?;
        let is_ahead = channel.ahead > 0;
        if is_ahead {
            channel.ahead -= 1;
            self.ahead -= 1;
        }
        Some((channel.members.insert(slot), is_ahead))
    }

    /// Takes back the subscriptions of connections that did not come: the channels, and how many there are of each.
    pub(super) fn take_ahead(&mut self) -> Vec<(LocalChannelId, ChannelName, u32)> {
        if std::mem::take(&mut self.ahead) == 0 {
            return Vec::new();
        }
        let left = self.channels.iter_mut().filter(|(_, channel)| channel.ahead > 0);
        left.map(|(index, channel)| {
            (LocalChannelId(index as u32), channel.name.clone(), std::mem::take(&mut channel.ahead))
        })
        .collect()
    }

    /// Lists channels for a new process: at most `limit` from this number on, and the number to go on with; `None`: there are no
    /// more. With the first ones, it begins to note which channels change.
    pub(super) fn list(&mut self, from: u32, limit: usize) -> (Vec<NumberedChannel>, Option<u32>) {
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
    pub(super) fn take_changes(&mut self) -> Vec<NumberedChannel> {
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
    pub(super) fn end_listing(&mut self) {
        self.changed = None;
    }

    fn note_change(&mut self, id: LocalChannelId) {
        if let Some(changed) = &mut self.changed {
            changed.insert(id.0);
        }
    }

    /// Attaches the connection in this slot, whose subscription has waited for the broker. Returns its index.
    pub(super) fn attach(&mut self, id: LocalChannelId, slot: usize) -> Option<u32> {
        self.end_pending(id);
        self.note_change(id);
        let channel = self.channels.get_mut(id.0 as usize)?;
        Some(channel.members.insert(slot))
    }

    /// Notes that a connection ended while its subscription waited for the broker.
    pub(super) fn abandon(&mut self, id: LocalChannelId) {
        self.end_pending(id);
    }

    /// Removes a connection from a channel.
    pub(super) fn detach(&mut self, subscription: Subscription) {
        self.note_change(subscription.channel);
        if let Some(channel) = self.channels.get_mut(subscription.channel.0 as usize) {
            channel.members.remove(subscription.member);
        }
    }

    /// Removes a channel if it has no subscription any more. Returns true if it was removed.
    pub(super) fn remove_if_unused(&mut self, id: LocalChannelId) -> bool {
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
    pub(super) fn iter(&self) -> impl Iterator<Item = (LocalChannelId, &LocalChannel)> {
        self.channels.iter().map(|(index, channel)| (LocalChannelId(index as u32), channel))
    }

    fn end_pending(&mut self, id: LocalChannelId) {
        self.pending = self.pending.saturating_sub(1);
        if let Some(channel) = self.channels.get_mut(id.0 as usize) {
            channel.pending = channel.pending.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    #[test]
    fn a_channel_is_there_as_long_as_it_has_a_subscription_or_one_that_waits() {
        let mut subscriptions = Subscriptions::default();
        let (first, _) = subscriptions.add_pending(&name("a"));
        let (second, _) = subscriptions.add_pending(&name("a"));
        assert_eq!(first.channel, second.channel);
        assert!(subscriptions.has_pending());
        let member = subscriptions.attach(first.channel, 7).unwrap();
        subscriptions.detach(Subscription { member, ..first });
        assert!(!subscriptions.remove_if_unused(first.channel), "the second one waits");
        subscriptions.abandon(second.channel);
        assert!(!subscriptions.has_pending());
        assert!(subscriptions.remove_if_unused(first.channel));
        assert_eq!(subscriptions.find(&name("a")), None);
        assert!(!subscriptions.remove_if_unused(first.channel));
    }

    #[test]
    fn channels_are_found_by_name() {
        let mut subscriptions = Subscriptions::default();
        let ids: Vec<_> =
            (0..1000).map(|n| subscriptions.add_pending(&name(&format!("c{n}"))).0.channel).collect();
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(subscriptions.find(&name(&format!("c{n}"))), Some(*id));
        }
        assert_eq!(subscriptions.find(&name("c1000")), None);
        assert_eq!(subscriptions.iter().count(), 1000);
    }
}
