//! All event loops standing still.

use std::{os::fd::BorrowedFd, sync::Arc};

use super::{connection::ConnectionSnapshot, frozen_loop::FrozenLoop, manager::ManagerSnapshot};
use crate::{
    admission::{ConnectionCounts, Disconnect},
    mailbox::LoopCommand,
    mailboxes::Mailboxes,
    stats::Stats,
};

/// Has the loops read again when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadsPaused(pub(crate) Arc<Mailboxes>);

impl Drop for ReadsPaused {
    fn drop(&mut self) {
        self.0.send(&LoopCommand::ResumeReads);
    }
}

/// All connections, while their event loops stand still. Dropping it lets the loops continue as if nothing had
/// happened.
#[derive(Debug)]
pub struct Frozen {
    // Dropped in this order: first the loops have their connections back, then they read again.
    pub(crate) loops: Vec<FrozenLoop>,
    pub(crate) previous_stats: Stats,
    pub(crate) counts: ConnectionCounts,
    pub(crate) _reads_paused: ReadsPaused,
}

impl Frozen {
    /// Returns the socket and the snapshot of each connection.
    pub fn connections(&self) -> impl Iterator<Item = (BorrowedFd<'_>, ConnectionSnapshot)> {
        self.loops.iter().flat_map(FrozenLoop::snapshots)
    }

    /// Returns the snapshot of the manager.
    pub fn manager(&self) -> ManagerSnapshot {
        let mut stats = self.previous_stats.clone();
        for frozen in &self.loops {
            stats.add(&frozen.stats);
        }
        let ConnectionCounts { by_client, by_server, forced, .. } = self.counts;
        ManagerSnapshot { stats, by_client, by_server, forced }
    }

    /// Disconnects all clients, and lets the loops continue without them.
    pub fn disconnect(mut self) {
        for frozen in &mut self.loops {
            for slot in frozen.connections.drain() {
                slot.connection.finish(Disconnect::Forced);
            }
        }
    }

    /// Leaves the connections to another process, which has their sockets. Closes this process's descriptors and ends
    /// the loops.
    pub fn release(mut self) {
        for frozen in &mut self.loops {
            frozen.release();
        }
    }
}
