//! The channels of one event loop: subscriptions begin and end, and the broker knows of them.

mod members;
mod subscriptions;

use std::{collections::HashMap, sync::Arc};

use lastcall_broker::{Broker, BrokerFuture, Published, Since, Subscribed};
use lastcall_core::{ChannelName, Epoch, Position, Publication};
use tracing::debug;

use self::subscriptions::{PendingSubscription, Subscriptions};
use crate::{
    codec::CloseReason,
    connection::{
        Outcome,
        replay::{Replay, ReplayForm},
        snapshot::{PendingSnapshot, SubscriptionNumbers},
    },
    connection_key::ConnectionKey,
    connections::{
        Connections, Slot,
        stream_positions::StreamPositions,
        subscription_list::{LocalChannelId, Subscription},
    },
    encoded::estimated_size,
    frozen_loop::NumberedChannel,
    handshake::ChannelRequest,
    mailbox::SubscriptionStart,
    mailboxes::OwnMailbox,
    protocol::Outgoing,
    stats::Stats,
};

/// A position that no channel has: epochs are random. The ids of events have it in place of one that the
/// client sent and that is malformed, until the client is told: if it comes back before that, it must still
/// be told.
const NEVER_GIVEN: Position = Position { epoch: Epoch(0), offset: 0 };

/// The channels of one event loop.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) broker: Arc<dyn Broker>,
    mailbox: OwnMailbox,
    pub(super) subscriptions: Subscriptions,
    /// The channel of clients that name none.
    broadcast: ChannelName,
    /// While connections come from another process: the channels of the loop there whose connections this one
    /// continues, by their numbers there, with how many subscriptions the broker has got ahead for this
    /// number.
    old: Vec<Option<(LocalChannelId, u32)>>,
}

impl Channels {
    pub(super) fn new(broker: Arc<dyn Broker>, mailbox: OwnMailbox) -> Self {
        let (subscriptions, broadcast) = (Subscriptions::default(), ChannelName::broadcast());
        Self { broker, mailbox, subscriptions, broadcast, old: Vec::new() }
    }

    /// Returns the channel of this name.
    pub(super) fn find(&self, name: &ChannelName) -> Option<LocalChannelId> {
        self.subscriptions.find(name)
    }

    /// Returns the slot of the first member of a channel from this index on, and its index; `None`: there is
    /// none.
    pub(super) fn next_member(&self, channel: LocalChannelId, from: usize) -> Option<(usize, usize)> {
        let members = &self.subscriptions.get(channel)?.members;
        (from..members.end()).find_map(|index| Some((index, members.get(index)?)))
    }

    /// Publishes what a client has sent in the first of its channels. Returns about how many bytes each
    /// client of the channel gets.
    pub(super) fn publish(
        &self,
        subscriptions: &[Subscription],
        texts: &mut Vec<Publication>,
    ) -> Option<(usize, BrokerFuture<Published>)> {
        let channel = &self.subscriptions.get(subscriptions.first()?.channel)?.name;
        let bytes = texts.iter().map(|text| estimated_size(channel, text)).sum();
        Some((bytes, self.broker.publish(channel, std::mem::take(texts), None)))
    }

    /// Subscribes a new connection to the channels that its client has named.
    pub(super) fn subscribe_new(
        &mut self,
        key: ConnectionKey,
        entry: &mut Slot,
        channels: Vec<ChannelRequest>,
    ) {
        if channels.is_empty() {
            return self.subscribe_again(key, entry, &[], &[]);
        }
        entry.subscriptions.reserve(channels.len());
        if entry.connection.form.is_event_stream() && channels.len() > 1 {
            let positions = channels.iter().map(|channel| match channel.since {
                Since::Position(position) => Some(position),
                Since::Invalid => Some(NEVER_GIVEN),
                Since::Now => None,
            });
            entry.subscriptions.set_positions(StreamPositions::new(positions));
        }
        for ChannelRequest { name, since } in channels {
            self.subscribe(key, entry, &name, PendingSubscription { since, announce: true });
        }
    }

    /// Subscribes a connection to channels that its client knows of already: those that it had in the other
    /// process. An empty list means that its client named none: it gets `broadcast`.
    pub(super) fn subscribe_again(
        &mut self,
        key: ConnectionKey,
        entry: &mut Slot,
        channels: &[ChannelName],
        pending: &[PendingSnapshot],
    ) {
        let begun = PendingSubscription { since: Since::Now, announce: false };
        if channels.is_empty() {
            let broadcast = self.broadcast.clone();
            self.subscribe(key, entry, &broadcast, begun);
        }
        entry.subscriptions.reserve(channels.len());
        for (index, channel) in channels.iter().enumerate() {
            let pending = pending.iter().find(|pending| pending.index as usize == index);
            self.subscribe(key, entry, channel, pending.map_or(begun, PendingSubscription::from));
        }
    }

    /// Asks the broker for a subscription. It begins with [`Channels::start`].
    fn subscribe(
        &mut self,
        key: ConnectionKey,
        entry: &mut Slot,
        channel: &ChannelName,
        pending: PendingSubscription,
    ) {
        let (subscription, channel) = self.subscriptions.add_pending(key, channel, pending);
        entry.subscriptions.push(subscription);
        let (mailbox, name) = (self.mailbox.clone(), channel.clone());
        let start = move |subscribed| {
            mailbox.start_subscription(SubscriptionStart { connection: key, channel: name, subscribed });
        };
        self.broker.subscribe(&channel, pending.since, self.mailbox.index(), Box::new(start));
    }

    /// Begins a subscription: everything that is delivered in its channel from now on is for this connection,
    /// too. Returns the slot of the connection with the outcome of what it is sent.
    ///
    /// # Errors
    /// The reason for which the connection is to be closed: its subscription has failed. The client asks
    /// again when it comes back.
    pub(super) fn start(
        &mut self,
        start: SubscriptionStart,
        connections: &mut Connections,
        stats: &mut Stats,
    ) -> Option<(usize, Result<Outcome, CloseReason>)> {
        let SubscriptionStart { connection: key, channel, subscribed } = start;
        // The channel has a pending subscription, so it is still there.
        let id = self.subscriptions.find(&channel)?;
        let PendingSubscription { since, announce } = self.subscriptions.end_pending(key, id)?;
        let slot = connections.slot(key);
        let Subscribed { top, recovered, missed } = match subscribed {
            Ok(subscribed) => subscribed,
            Err(error) => {
                debug!(client = %key.id, %channel, %error, "a client could not be subscribed");
                self.subscriptions.remove_if_unused(id);
                return Some((slot?, Err(CloseReason::Unavailable)));
            }
        };
        let Some((slot, entry)) = slot.and_then(|slot| Some((slot, connections.get_mut(slot)?))) else {
            self.end_one(id, &channel);
            return None;
        };
        let wants_recovery = since != Since::Now;
        if wants_recovery {
            stats.recovered += u64::from(recovered);
            stats.not_recovered += u64::from(!recovered);
        }
        let Slot { connection, subscriptions, .. } = entry;
        if let Some(member) = self.subscriptions.add_member(id, slot) {
            subscriptions.set_member(id, member);
        }
        if !announce || !connection.is_open() {
            return None;
        }
        // The client's position now: if it disconnects before it has everything that it missed, it recovers
        // from here.
        let start = Position { offset: top.offset.saturating_sub(missed.len() as u64), ..top };
        let (mut before, mut after) = (String::new(), String::new());
        if let Some((positions, index)) = subscriptions.positions(id) {
            let around = positions.around(index);
            (before, after) = (around.0.to_owned(), around.1.to_owned());
            positions.set(index, &top.to_string());
        }
        let message = Outgoing::Subscribed { channel: &channel, start, recovered, wants_recovery };
        let message = connection.form.encode_among(&message, [&before, &after]);
        let mut outcome = connection.send_unbounded(&message);
        if !missed.is_empty() {
            let form = ReplayForm::new(connection.form, before, after);
            let replay = Replay::new(channel, top.epoch, missed, form);
            outcome = outcome.max(connection.replay(replay));
        }
        Some((slot, Ok(outcome)))
    }

    /// Ends the subscriptions of a connection.
    pub(super) fn end(&mut self, subscriptions: &[Subscription]) {
        // One that waits for the broker ends when the broker answers.
        for subscription in subscriptions.iter().filter(|one| !one.is_pending()) {
            self.subscriptions.remove_member(*subscription);
            if let Some(channel) = self.subscriptions.get(subscription.channel) {
                let name = channel.name.clone();
                self.end_one(subscription.channel, &name);
            }
        }
    }

    fn end_one(&mut self, id: LocalChannelId, name: &ChannelName) {
        let is_last = self.subscriptions.remove_if_unused(id);
        self.broker.unsubscribe(name, self.mailbox.index(), is_last);
    }

    /// Ends the subscriptions of connections that were disconnected while they were away from the loop.
    pub(super) fn end_lost(&mut self, connections: &Connections) {
        let lost: Vec<_> = self
            .subscriptions
            .iter()
            .flat_map(|(channel, local)| {
                local.members.iter().map(move |(member, slot)| (channel, member, slot))
            })
            .filter(|(.., slot)| connections.get(*slot).is_none())
            .map(|(channel, member, _)| Subscription { channel, member })
            .collect();
        self.end(&lost);
    }

    /// Returns the subscriptions that wait for the broker, by the slots of their connections.
    pub(super) fn pending(&self, connections: &Connections) -> HashMap<usize, Vec<PendingSnapshot>> {
        let mut by_slot: HashMap<usize, Vec<PendingSnapshot>> = HashMap::new();
        for (connection, channel, PendingSubscription { since, announce }) in self.subscriptions.pending() {
            let Some(slot) = connections.slot(connection) else { continue };
            let Some(entry) = connections.get(slot) else { continue };
            let Some(index) = entry.subscriptions.index_of(channel) else { continue };
            let pending = PendingSnapshot { index: index as u32, since, announce };
            by_slot.entry(slot).or_default().push(pending);
        }
        by_slot
    }

    /// Subscribes to channels, for connections that are about to come from another process.
    pub(super) fn add_ahead(&mut self, channels: &[NumberedChannel]) {
        for NumberedChannel(number, name, subscriptions) in channels {
            let index = *number as usize;
            if index >= self.old.len() {
                self.old.resize(index + 1, None);
            }
            self.old[index] = name.as_ref().map(|name| {
                // It may have come before, with another number of subscriptions. What is too much is taken
                // back at the end.
                let before = self.old[index].filter(|(channel, _)| {
                    self.subscriptions.get(*channel).is_some_and(|channel| channel.name == *name)
                });
                let before = before.map_or(0, |(_, subscriptions)| subscriptions);
                let more = subscriptions.saturating_sub(before);
                self.broker.resume(name, self.mailbox.index(), more as usize);
                (self.subscriptions.add_ahead(name, more), before + more)
            });
        }
    }

    /// Subscribes a connection of another process to the channels that have these numbers there.
    pub(super) fn subscribe_by_numbers(
        &mut self,
        key: ConnectionKey,
        entry: &mut Slot,
        numbers: &SubscriptionNumbers,
        pending: &[PendingSnapshot],
    ) {
        entry.subscriptions.reserve(numbers.len());
        for (index, number) in numbers.iter().enumerate() {
            // It was checked before the commit that each has its channel.
            let Some((channel, _)) = self.old.get(number as usize).copied().flatten() else { continue };
            if let Some(pending) = pending.iter().find(|pending| pending.index as usize == index) {
                if let Some(name) = self.subscriptions.get(channel).map(|local| local.name.clone()) {
                    self.subscribe(key, entry, &name, pending.into());
                }
                continue;
            }
            let Some((member, is_ahead)) = self.subscriptions.add_restored(channel, key.slot) else {
                continue;
            };
            if !is_ahead && let Some(local) = self.subscriptions.get(channel) {
                self.broker.resume(&local.name, self.mailbox.index(), 1);
            }
            entry.subscriptions.push(Subscription { channel, member });
        }
    }

    /// Ends the subscriptions of connections that did not come from the other process.
    pub(super) fn end_restoring(&mut self) {
        for (channel, name, subscriptions) in self.subscriptions.take_ahead() {
            let is_last = self.subscriptions.remove_if_unused(channel);
            for left in (0..subscriptions).rev() {
                self.broker.unsubscribe(&name, self.mailbox.index(), is_last && left == 0);
            }
        }
        // Those that only a subscription had which has not begun in the old process, and whose connection did
        // not come.
        for (channel, _) in std::mem::take(&mut self.old).into_iter().flatten() {
            self.subscriptions.remove_if_unused(channel);
        }
    }
}
