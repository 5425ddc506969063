//! One event loop that stands still, and its channels by number.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

use lastcall_broker::Broker;
use lastcall_core::ChannelName;
use serde::{Deserialize, Serialize};

use crate::{
    admission::Disconnect,
    codec::CloseReason,
    connection::{
        Outcome,
        snapshot::{ConnectionSnapshot, PendingSnapshot, SubscriptionNumbers},
        unread::{QueueSnapshot, UnreadBuffers},
    },
    connection_key::ConnectionKey,
    connections::{Connections, Texts, subscription_list::Subscription},
    stats::Stats,
};

/// A channel of an event loop: its number there, its name (`None`: the number has no channel any more), and
/// how many subscriptions it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberedChannel(pub(crate) u32, pub(crate) Option<ChannelName>, pub(crate) u32);

/// Channels of an event loop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NumberedChannels {
    pub(crate) event_loop: usize,
    /// The number of event loops of the old process.
    pub(crate) event_loops: usize,
    pub(crate) channels: Vec<NumberedChannel>,
}

/// The connections of an event loop that stands still. Dropping it returns them to the loop, which then
/// continues.
#[derive(Debug)]
pub(crate) struct FrozenLoop {
    pub(crate) index: usize,
    pub(crate) connections: Connections,
    /// The time that closing connections have left of their close timeouts, by slot. The time of the handover
    /// does not count.
    close_timeouts: BTreeMap<usize, Duration>,
    /// The time that a connection has which is closed here.
    close_timeout: Duration,
    /// The channels that have changed since they were listed; all of them, if they were not.
    pub(crate) channels: Vec<NumberedChannel>,
    /// The subscriptions that wait for the broker, by slot.
    pending: HashMap<usize, Vec<PendingSnapshot>>,
    /// The queues of clients, by slot.
    queues: HashMap<usize, QueueSnapshot>,
    pub(crate) stats: Stats,
    /// The parts that go back to the loop.
    returned: Returned,
    /// Returns the connections to the loop.
    return_tx: Option<SyncSender<Returned>>,
}

/// The parts that an event loop gets back when it continues.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    pub(crate) connections: Connections,
    /// Connections that were closed meanwhile.
    pub(crate) closed: Vec<ConnectionKey>,
    /// The ends of connections meanwhile.
    pub(crate) ended: Vec<(Disconnect, Option<CloseReason>)>,
}

impl FrozenLoop {
    /// Returns the frozen loop, and where the event loop waits for its connections. If it gets none, another
    /// process has them.
    pub(crate) fn new(
        index: usize,
        connections: Connections,
        close_timeouts: BTreeMap<usize, Duration>,
        close_timeout: Duration,
        channels: Vec<NumberedChannel>,
        pending: HashMap<usize, Vec<PendingSnapshot>>,
        stats: Stats,
    ) -> (Self, Receiver<Returned>) {
        let (return_tx, returned) = sync_channel(1);
        let frozen = Self {
            index,
            connections,
            close_timeouts,
            close_timeout,
            channels,
            pending,
            queues: HashMap::new(),
            stats,
            returned: Returned::default(),
            return_tx: Some(return_tx),
        };
        (frozen, returned)
    }

    /// Returns the slots of the connections that have unread bytes, with about how many.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (usize, usize)> {
        self.connections
            .iter()
            .map(|(slot, entry)| (entry.connection.unread_size().0, slot))
            .filter(|(size, _)| *size > 0)
    }

    /// Adds what a client has not read to what goes over. If it does not fit, the client is closed as a slow
    /// consumer; if what must be written before the close does not fit, it is cut off.
    pub(crate) fn add_unread(&mut self, slot: usize, buffers: &mut UnreadBuffers, broker: &dyn Broker) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let connection = &mut entry.connection;
        if let Ok(queue) = connection.add_unread(buffers, broker) {
            self.queues.insert(slot, queue);
            return;
        }
        if connection.is_open() {
            let key = ConnectionKey { slot, id: connection.id };
            match connection.close(CloseReason::SlowConsumer, None) {
                Outcome::Ended(disconnect) => return self.end(slot, disconnect),
                _ => {
                    self.close_timeouts.insert(slot, self.close_timeout);
                    self.returned.closed.push(key);
                }
            }
            if let Ok(queue) = connection.add_unread(buffers, broker) {
                self.queues.insert(slot, queue);
                return;
            }
        }
        self.end(slot, Disconnect::Forced);
    }

    fn end(&mut self, slot: usize, disconnect: Disconnect) {
        let Some(entry) = self.connections.remove(slot) else { return };
        let reason = entry.connection.close_reason();
        self.stats.record_disconnect(disconnect, reason);
        self.returned.ended.push((disconnect, reason));
        entry.connection.finish(disconnect);
    }

    /// Disconnects all clients.
    pub(crate) fn disconnect(&mut self) {
        for entry in self.connections.drain() {
            let reason = entry.connection.close_reason();
            self.returned.ended.push((Disconnect::Forced, reason));
            entry.connection.finish(Disconnect::Forced);
        }
    }

    /// Returns the socket and the snapshot of each connection.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = (BorrowedFd<'_>, ConnectionSnapshot)> {
        self.connections.iter().map(|(slot, entry)| {
            let left = self.close_timeouts.get(&slot).copied();
            // A client that is being closed may have none any more: its subscription has failed.
            let is_open = entry.connection.is_open();
            let pending = self.pending.get(&slot).filter(|_| is_open).cloned().unwrap_or_default();
            let begun = |subscription: &&Subscription| is_open || !subscription.is_pending();
            let numbers = entry.subscriptions.iter().filter(begun);
            let numbers: Vec<_> = numbers.map(|subscription| subscription.channel.0).collect();
            let snapshot = ConnectionSnapshot {
                queue: self.queues.get(&slot).cloned().unwrap_or_default(),
                subscriptions: SubscriptionNumbers::new(self.index, numbers.into_iter()),
                pending,
                texts_unanswered: is_open && entry.texts == Texts::Publishing,
                stream_positions: entry.subscriptions.position_bytes(),
                age_s: Some(entry.age_s()),
                ..entry.connection.snapshot(left)
            };
            (entry.connection.stream.as_fd(), snapshot)
        })
    }

    /// Keeps the connections from the loop, which ends when this is dropped.
    pub(crate) fn release(&mut self) {
        self.return_tx = None;
    }
}

impl Drop for FrozenLoop {
    fn drop(&mut self) {
        if let Some(return_tx) = self.return_tx.take() {
            let connections = mem::take(&mut self.connections);
            // Fails only if the loop has ended; its connections are dropped with this value.
            let _ = return_tx.send(Returned { connections, ..mem::take(&mut self.returned) });
        }
    }
}
