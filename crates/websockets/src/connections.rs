//! The connections of one event loop, in slots.

pub(crate) mod stream_positions;
pub(crate) mod subscription_list;

use std::time::Duration;

use lastcall_core::clock;
use mio::net::TcpStream;
use slab::Slab;

use self::subscription_list::SubscriptionList;
use crate::{
    budget::ClientBudget, connection::Connection, connection_key::ConnectionKey,
    excess_capacity::TrimThreshold,
};

/// The state of the texts of a client that were read last. Nothing more is read from it before they are
/// published, or it has got the error: so what it sends is bounded, whatever the broker does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Texts {
    /// They are published, or there were none.
    #[default]
    Published,
    /// The broker has not answered.
    Publishing,
    /// The error waits in the client's queue.
    Refused,
}

/// A connection and what its event loop knows of it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) connection: Connection<TcpStream>,
    /// The channels of the client.
    pub(crate) subscriptions: SubscriptionList,
    /// The client's part of the budget for published texts.
    pub(crate) budget: ClientBudget,
    /// True if the connection is in the read queue, or will be when it is no longer throttled.
    pub(crate) read_queued: bool,
    /// True if the connection is in the write queue.
    pub(crate) write_queued: bool,
    /// True if the connection is among those whose replays are watched.
    pub(crate) replay_watched: bool,
    /// True if reads are paused because the client sent too much.
    pub(crate) throttled: bool,
    /// The state of the texts that were read last.
    pub(crate) texts: Texts,
    /// True if the poll reports when the socket can be written.
    pub(crate) write_interest: bool,
    /// The moment at which the connection began, in seconds since the machine was started.
    began_s: u32,
}

// Memory of an idle connection, apart from the kernel's. Debug builds of mio add a field to each socket.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Slot>() <= 136);

impl Slot {
    pub(crate) fn new(connection: Connection<TcpStream>, write_interest: bool) -> Self {
        Self {
            connection,
            subscriptions: SubscriptionList::default(),
            budget: ClientBudget::default(),
            read_queued: false,
            write_queued: false,
            replay_watched: false,
            throttled: false,
            texts: Texts::default(),
            write_interest,
            began_s: seconds(clock::since_boot()),
        }
    }

    /// Returns true if the connection is not read from for now.
    pub(crate) fn is_paused(&self) -> bool {
        self.throttled || self.texts != Texts::Published
    }

    /// Returns true if no read will show that the client is gone: reads are paused, or have come to their
    /// end.
    pub(crate) fn is_not_read(&self) -> bool {
        self.is_paused() || self.connection.input_ended()
    }

    /// Returns the key of the connection, which is in this slot.
    pub(crate) fn key(&self, slot: usize) -> ConnectionKey {
        ConnectionKey { slot, id: self.connection.id }
    }

    /// Returns how long ago the connection began, in seconds.
    pub(crate) fn age_s(&self) -> u32 {
        seconds(clock::since_boot()).saturating_sub(self.began_s)
    }

    /// Sets the age of a connection that comes from another process. A build before protocol 4 has told none.
    pub(crate) fn set_age(&mut self, age_s: Option<u32>) {
        let age_s = age_s.unwrap_or_else(|| seconds(self.connection.id.age_by_time_of_day()));
        self.began_s = seconds(clock::since_boot()).saturating_sub(age_s);
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// The connections of one event loop. The number of a slot is also the token of its socket.
#[derive(Debug, Default)]
pub(crate) struct Connections(Slab<Slot>, TrimThreshold);

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the end of the range of slots that may be in use.
    pub(crate) fn slots(&self) -> usize {
        self.0.capacity()
    }

    /// Returns the slot that the next inserted connection gets.
    pub(crate) fn next_slot(&self) -> usize {
        self.0.vacant_key()
    }

    /// Adds a connection, and returns its slot.
    pub(crate) fn insert(&mut self, slot: Slot) -> usize {
        let slot = self.0.insert(slot);
        self.1.grew(self.0.len());
        slot
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<Slot> {
        let removed = self.0.try_remove(slot);
        if removed.is_some() && self.1.is_reached(self.0.len()) {
            self.0.shrink_to_fit();
        }
        removed
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&Slot> {
        self.0.get(slot)
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        self.0.get_mut(slot)
    }

    /// Returns a connection, or `None` if it has ended since.
    pub(crate) fn get_by_key(&mut self, key: ConnectionKey) -> Option<&mut Slot> {
        self.0.get_mut(key.slot).filter(|entry| entry.connection.id == key.id)
    }

    /// Returns the slot of a connection, or `None` if the connection has ended since.
    pub(crate) fn slot(&self, key: ConnectionKey) -> Option<usize> {
        self.0.get(key.slot).filter(|entry| entry.connection.id == key.id).map(|_| key.slot)
    }

    /// Returns all connections with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.0.iter()
    }

    /// Returns how many clients are not read from because they sent too much.
    pub(crate) fn count_throttled(&self) -> usize {
        self.iter().filter(|(_, entry)| entry.throttled).count()
    }

    /// Removes all connections.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Slot> {
        self.0.drain()
    }
}
