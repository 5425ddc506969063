//! The beginning and the end of subscriptions.

use std::{collections::HashMap, sync::Arc};

use lastcall_broker::{Since, Subscribed};
use lastcall_core::{ChannelName, Position};
use tracing::debug;

use super::{EventLoop, subscriptions::PendingSubscription};
use crate::{
    codec::CloseReason,
    connection::{
        replay::{Replay, ReplayForm},
        snapshot::PendingSnapshot,
    },
    connection_key::ConnectionKey,
    connections::{
        Slot,
        subscription_list::{LocalChannelId, PENDING, Subscription},
    },
    mailbox::Attachment,
    protocol::Outgoing,
};

impl EventLoop {
    /// Asks the broker for a subscription of a connection. It begins with [`EventLoop::attach`]. `announced`: the client
    /// is told.
    pub(super) fn subscribe(
        &mut self,
        connection: ConnectionKey,
        channel: &ChannelName,
        since: Since,
        announced: bool,
    ) {
        let Some(entry) = self.connections.get_mut(connection.slot) else { return };
        let pending = PendingSubscription { since, announced };
        let (subscription, channel) = self.subscriptions.add_pending(connection, channel, pending);
        entry.subscriptions.push(subscription);
        let (mailboxes, index, name) = (Arc::clone(&self.mailboxes), self.config.index, channel.clone());
        let attach = move |subscribed| {
            mailboxes.attach(index, Attachment { connection, channel: name, subscribed });
        };
        self.broker.subscribe(&channel, since, index, Box::new(attach));
    }

    /// Begins a subscription: everything that is delivered in its channel from now on is for this connection, too. A client
    /// whose subscription has failed is closed, and asks again when it comes back.
    pub(super) fn attach(&mut self, attachment: Attachment) {
        let Attachment { connection, channel, subscribed } = attachment;
        // The channel has a pending subscription, so it is still there.
        let Some(id) = self.subscriptions.find(&channel) else { return };
        let Some(pending) = self.subscriptions.end_pending(connection, id) else { return };
        let slot = self.connections.slot(connection);
        let subscribed = match subscribed {
            Ok(subscribed) => subscribed,
            Err(error) => {
                debug!(client = %connection.id, %channel, %error, "a client could not be subscribed");
                self.subscriptions.remove_if_unused(id);
                if let Some(slot) = slot {
                    self.close(slot, CloseReason::Unavailable);
                }
                return;
            }
        };
        let Some(slot) = slot else {
            self.end_subscription(id, &channel);
            return;
        };
        let PendingSubscription { since, announced } = pending;
        let asked = since != Since::Now;
        let Subscribed { top, recovered, missed } = subscribed;
        if asked {
            self.stats.recovered += u64::from(recovered);
            self.stats.not_recovered += u64::from(!recovered);
        }
        let member = self.subscriptions.attach(id, slot);
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let Slot { connection, subscriptions, .. } = entry;
        if let Some(member) = member {
            subscriptions.set_member(id, member);
        }
        if !announced || !connection.is_open() {
            return;
        }
        // The client's position now: if it disconnects before it has everything that it missed, it recovers from here.
        let start = Position { offset: top.offset.saturating_sub(missed.len() as u64), ..top };
        let (mut before, mut after) = (String::new(), String::new());
        if let Some((positions, index)) = subscriptions.positions(id) {
            let around = positions.around(index);
            (before, after) = (around.0.to_owned(), around.1.to_owned());
            positions.set(index, &top.to_string());
        }
        let message = Outgoing::Subscribed { channel: &channel, start, recovered, wants_recovery: asked };
        let message = connection.form.encode_among(&message, [&before, &after]);
        let mut outcome = connection.send_unbounded(&message);
        if !missed.is_empty() {
            let form = ReplayForm::new(connection.form, before, after);
            let replay = Replay::new(channel, top.epoch, missed, form);
            outcome = outcome.max(connection.replay(replay));
        }
        self.apply_outcome(slot, outcome);
        self.watch_replay(slot);
    }

    /// Returns the subscriptions that wait for the broker, by the slots of their connections.
    pub(super) fn pending_subscriptions(&self) -> HashMap<usize, Vec<PendingSnapshot>> {
        let mut by_slot: HashMap<usize, Vec<PendingSnapshot>> = HashMap::new();
        for (connection, channel, PendingSubscription { since, announced }) in self.subscriptions.pending() {
            let Some(slot) = self.connections.slot(connection) else { continue };
            let Some(entry) = self.connections.get(slot) else { continue };
            let Some(index) = entry.subscriptions.index_of(channel) else { continue };
            by_slot.entry(slot).or_default().push(PendingSnapshot { index: index as u32, since, announced });
        }
        by_slot
    }

    /// Ends the subscriptions of a connection.
    pub(super) fn end_subscriptions(&mut self, subscriptions: &[Subscription]) {
        for subscription in subscriptions {
            // One that waits for the broker ends when the broker answers.
            if subscription.member == PENDING {
                continue;
            }
            self.subscriptions.detach(*subscription);
            if let Some(channel) = self.subscriptions.get(subscription.channel) {
                let name = channel.name.clone();
                self.end_subscription(subscription.channel, &name);
            }
        }
    }

    /// Ends the subscriptions of connections that were disconnected while they were away from the loop.
    pub(super) fn end_lost_subscriptions(&mut self) {
        let lost: Vec<_> = self
            .subscriptions
            .iter()
            .flat_map(|(channel, local)| {
                local.members.iter().map(move |(member, slot)| (channel, member, slot))
            })
            .filter(|(.., slot)| self.connections.get(*slot).is_none())
            .map(|(channel, member, _)| Subscription { channel, member })
            .collect();
        self.end_subscriptions(&lost);
    }

    /// Ends all subscriptions: the loop ends.
    pub(super) fn end_all_subscriptions(&mut self) {
        let all: Vec<_> =
            self.connections.iter().flat_map(|(_, entry)| entry.subscriptions.to_vec()).collect();
        self.end_subscriptions(&all);
    }

    fn end_subscription(&mut self, id: LocalChannelId, name: &ChannelName) {
        let is_last = self.subscriptions.remove_if_unused(id);
        self.broker.unsubscribe(name, self.config.index, is_last);
    }
}
