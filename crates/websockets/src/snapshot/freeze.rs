//! All event loops standing still: their clients can be written down, given away, or taken back.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use slab::Slab;

use super::state::{ConnectionState, ManagerState};
use crate::{
    admission::ConnectionCounts,
    connection::Connection,
    mailbox::{LoopCommand, Mailboxes},
    stats::Stats,
};

/// One loop's clients while it stands still. They go back to it when this is dropped.
#[derive(Debug)]
pub(crate) struct FrozenLoop {
    clients: Slab<Connection>,
    /// How long those who are being closed still have: by their slots, ordered. The time of the handover does
    /// not count.
    left: Vec<(usize, Duration)>,
    stats: Stats,
    back: Option<SyncSender<Slab<Connection>>>,
}

impl FrozenLoop {
    /// A loop's clients, and where it gets them back from. If it gets nothing back, they are another
    /// process's.
    pub(crate) fn new(
        clients: Slab<Connection>,
        mut left: Vec<(usize, Duration)>,
        stats: Stats,
    ) -> (Self, Receiver<Slab<Connection>>) {
        left.sort_unstable();
        let (back, returned) = sync_channel(1);
        (Self { clients, left, stats, back: Some(back) }, returned)
    }

    fn states(&self) -> impl Iterator<Item = (BorrowedFd<'_>, ConnectionState)> {
        self.clients.iter().map(|(slot, connection)| {
            let found = self.left.binary_search_by_key(&slot, |(slot, _)| *slot);
            let left = found.ok().and_then(|index| self.left.get(index)).map(|(_, left)| *left);
            (connection.stream.as_fd(), connection.state(left))
        })
    }
}

impl Drop for FrozenLoop {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Fails only if the loop is gone, which then cuts nobody off that it still had.
            let _ = back.send(std::mem::take(&mut self.clients));
        }
    }
}

/// Has the loops read again when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadsPaused(pub(crate) Arc<Mailboxes>);

impl Drop for ReadsPaused {
    fn drop(&mut self) {
        self.0.send(&LoopCommand::ResumeReads);
    }
}

/// Everything the event loops have, while they stand still. Dropping it lets them go on as if nothing had
/// happened.
#[derive(Debug)]
pub struct Frozen {
    // Dropped in this order: first the loops have their clients back, then they read again.
    pub(crate) loops: Vec<FrozenLoop>,
    pub(crate) previous_stats: Stats,
    pub(crate) counts: ConnectionCounts,
    pub(crate) _quiet: ReadsPaused,
}

impl Frozen {
    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.loops.iter().map(|one| one.clients.len()).sum()
    }

    /// Each client's socket and state.
    pub fn states(&self) -> impl Iterator<Item = (BorrowedFd<'_>, ConnectionState)> {
        self.loops.iter().flat_map(FrozenLoop::states)
    }

    /// What there is beside the clients.
    pub fn manager_state(&self) -> ManagerState {
        let mut stats = self.previous_stats.clone();
        for one in &self.loops {
            stats.add(&one.stats);
        }
        let ConnectionCounts { by_client: left, by_server: closed, forced: cut, .. } = self.counts;
        ManagerState { stats, left, closed, cut }
    }

    /// Disconnects the clients, and lets the loops go on without them.
    pub fn disconnect(mut self) {
        for one in &mut self.loops {
            one.clients.clear();
        }
    }

    /// Leaves the clients to another process, which has their sockets: this one's descriptors are closed, and
    /// its loops end.
    pub fn release(mut self) {
        for one in &mut self.loops {
            one.back = None;
        }
    }
}
