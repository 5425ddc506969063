//! The part of an event loop in a handover, while it runs: in the old process for what is to fit, in the new one for what is
//! about to come.

use std::sync::PoisonError;

use super::EventLoop;
use crate::{
    admission::Disconnect,
    codec::CloseReason,
    connection::snapshot::{PendingSnapshot, SubscriptionNumbers},
    connection_key::ConnectionKey,
    connections::subscription_list::{LocalChannelId, Subscription},
    frozen_loop::NumberedChannel,
    mailbox::{UnreadConnection, UnreadRound},
};

/// The channels of the loop of the old process whose connections this one continues, by their numbers there, with how many
/// subscriptions the broker has got ahead for this number.
pub(super) type OldChannels = Vec<Option<(LocalChannelId, u32)>>;

impl EventLoop {
    /// Returns the connections that have unread bytes.
    pub(super) fn measure_unread(&self) -> Vec<UnreadConnection> {
        let connections = self.connections.iter().map(|(slot, entry)| {
            let (size, has_replays) = entry.connection.unread_size();
            let key = ConnectionKey { slot, id: entry.connection.id };
            UnreadConnection { size, has_replays, event_loop: self.config.index, key }
        });
        connections.filter(|connection| connection.size > 0).collect()
    }

    /// Closes the connections of a round whose unread bytes do not fit.
    pub(super) fn fit_unread(&mut self, round: &UnreadRound) {
        for connection in &round.connections {
            if connection.event_loop != self.config.index {
                continue;
            }
            let Some(slot) = self.connections.slot(connection.key) else { continue };
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let mut buffers = round.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            if entry.connection.add_unread(&mut buffers, &*self.broker).is_some() {
                continue;
            }
            let is_open = entry.connection.is_open();
            drop(buffers);
            if is_open {
                self.close(slot, CloseReason::SlowConsumer);
            } else {
                self.remove(slot, Disconnect::Forced);
            }
        }
    }

    /// Subscribes to channels, for connections that are about to come from another process.
    pub(super) fn add_channels(&mut self, channels: &[NumberedChannel]) {
        for NumberedChannel(number, name, subscriptions) in channels {
            let index = *number as usize;
            if index >= self.old_channels.len() {
                self.old_channels.resize(index + 1, None);
            }
            self.old_channels[index] = name.as_ref().map(|name| {
                // It may have come before, with another number of subscriptions. What is too much is taken back at the end.
                let before = self.old_channels[index].filter(|(channel, _)| {
                    self.subscriptions.get(*channel).is_some_and(|channel| channel.name == *name)
                });
                let before = before.map_or(0, |(_, subscriptions)| subscriptions);
                let more = subscriptions.saturating_sub(before);
                self.broker.resume(name, self.config.index, more as usize);
                (self.subscriptions.add_ahead(name, more), before + more)
            });
        }
    }

    /// Subscribes a connection of another process to the channels that have these numbers there.
    pub(super) fn subscribe_by_numbers(
        &mut self,
        connection: ConnectionKey,
        numbers: &SubscriptionNumbers,
        pending: &[PendingSnapshot],
    ) {
        for (index, number) in numbers.iter().enumerate() {
            // It was checked before the commit that each has its channel.
            let Some((channel, _)) = self.old_channels.get(number as usize).copied().flatten() else {
                continue;
            };
            if let Some(pending) = pending.iter().find(|pending| pending.index as usize == index) {
                if let Some(name) = self.subscriptions.get(channel).map(|local| local.name.clone()) {
                    self.subscribe(connection, &name, pending.since, pending.announced);
                }
                continue;
            }
            let Some((member, is_ahead)) = self.subscriptions.attach_restored(channel, connection.slot)
            else {
                continue;
            };
            if !is_ahead && let Some(local) = self.subscriptions.get(channel) {
                self.broker.resume(&local.name, self.config.index, 1);
            }
            if let Some(entry) = self.connections.get_mut(connection.slot) {
                entry.subscriptions.push(Subscription { channel, member });
            }
        }
    }

    /// Ends the subscriptions of connections that did not come.
    pub(super) fn end_restoring(&mut self) {
        for (channel, name, subscriptions) in self.subscriptions.take_ahead() {
            let is_last = self.subscriptions.remove_if_unused(channel);
            for left in (0..subscriptions).rev() {
                self.broker.unsubscribe(&name, self.config.index, is_last && left == 0);
            }
        }
        // Those that only a subscription had which has not begun in the old process, and whose connection did not come.
        for (channel, _) in std::mem::take(&mut self.old_channels).into_iter().flatten() {
            self.subscriptions.remove_if_unused(channel);
        }
    }
}
