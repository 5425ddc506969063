//! One event loop that stands still.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

use lastcall_core::ChannelName;

use super::connection::ConnectionSnapshot;
use crate::{event_loop::connections::Connections, stats::Stats};

/// The connections of an event loop that stands still. Dropping it returns them to the loop, which then continues.
#[derive(Debug)]
pub(crate) struct FrozenLoop {
    pub(super) connections: Connections,
    /// How much time of their close timeouts closing connections have left, by slot. The time of the handover does not
    /// count.
    close_timeouts: BTreeMap<usize, Duration>,
    /// The channels of each connection, by slot.
    channels: HashMap<usize, Vec<ChannelName>>,
    pub(super) stats: Stats,
    /// Returns the connections to the loop.
    return_tx: Option<SyncSender<Connections>>,
}

impl FrozenLoop {
    /// Returns the frozen loop, and where the event loop waits for its connections. If it gets none, another process
    /// has them.
    pub(crate) fn new(
        connections: Connections,
        close_timeouts: BTreeMap<usize, Duration>,
        channels: HashMap<usize, Vec<ChannelName>>,
        stats: Stats,
    ) -> (Self, Receiver<Connections>) {
        let (return_tx, returned) = sync_channel(1);
        (Self { connections, close_timeouts, channels, stats, return_tx: Some(return_tx) }, returned)
    }

    /// Returns the socket and the snapshot of each connection.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = (BorrowedFd<'_>, ConnectionSnapshot)> {
        self.connections.iter().map(|(slot, entry)| {
            let left = self.close_timeouts.get(&slot).copied();
            let channels = self.channels.get(&slot).cloned().unwrap_or_default();
            let positions = entry.subscriptions.position_texts();
            let age_s = Some(entry.age_s());
            let snapshot =
                ConnectionSnapshot { age_s, channels, positions, ..entry.connection.snapshot(left) };
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
            // Fails only if the loop has ended; its connections are dropped with this value.
            let _ = return_tx.send(std::mem::take(&mut self.connections));
        }
    }
}
