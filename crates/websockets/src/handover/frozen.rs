//! All event loops standing still.

use std::{os::fd::BorrowedFd, sync::Arc};

use bytes::Bytes;
use lastcall_broker::Broker;

use serde::{Deserialize, Serialize};

use super::restoration::{CHANNELS_PER_PART, ConnectionsPart};
use crate::{
    admission::ConnectionCounts,
    connection::{
        snapshot::ConnectionSnapshot,
        unread::{PinnedPublication, UnreadBuffers},
    },
    frozen_loop::{FrozenLoop, NumberedChannels},
    mailbox::LoopCommand,
    mailboxes::Mailboxes,
    stats::Stats,
};

/// About how many bytes a part has.
const PART: usize = 512 << 10;

/// The bytes that an item takes up beside its own.
const PER_ITEM: usize = 8;

/// Has the loops read again when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadsPaused(pub(crate) Arc<Mailboxes>);

impl Drop for ReadsPaused {
    fn drop(&mut self) {
        self.0.send(&LoopCommand::ResumeReads);
    }
}

/// Has the broker work again when it is dropped.
#[derive(Debug)]
pub(crate) struct BrokerPaused(Arc<dyn Broker>);

impl BrokerPaused {
    pub(crate) fn new(broker: Arc<dyn Broker>) -> Self {
        broker.set_paused(true);
        Self(broker)
    }
}

impl Drop for BrokerPaused {
    fn drop(&mut self) {
        self.0.set_paused(false);
    }
}

/// All connections, while their event loops stand still. Dropping it lets the loops continue as if nothing
/// had happened.
#[derive(Debug)]
pub struct Frozen {
    // Dropped in this order: first the loops have their connections back, then the broker works, and they
    // read again.
    pub(crate) loops: Vec<FrozenLoop>,
    /// The buffers and publications that clients have not read, and refer to.
    pub(crate) unread: (Vec<Bytes>, Vec<PinnedPublication>),
    pub(crate) previous_stats: Stats,
    pub(crate) counts: ConnectionCounts,
    pub(crate) _broker_paused: BrokerPaused,
    pub(crate) _reads_paused: ReadsPaused,
}

impl Frozen {
    /// Closes the clients whose unread bytes do not fit into the budget, the largest first.
    pub(crate) fn fit_unread(&mut self, budget: usize, broker: &dyn Broker) {
        let mut sizes: Vec<_> = self
            .loops
            .iter()
            .enumerate()
            .flat_map(|(index, frozen)| frozen.unread().map(move |(size, slot)| (size, index, slot)))
            .collect();
        sizes.sort_unstable();
        let mut buffers = UnreadBuffers::new(budget);
        for (_, index, slot) in sizes {
            self.loops[index].add_unread(slot, &mut buffers, broker);
        }
        self.unread = buffers.into_parts();
    }

    /// Returns what the connections refer to, in parts of a size that is easily sent: their channels, as far
    /// as they were not listed before, and what clients have not read.
    pub fn parts(&self) -> impl Iterator<Item = ConnectionsPart> {
        let event_loops = self.loops.len();
        let channels = self.loops.iter().flat_map(move |frozen| {
            frozen.channels.chunks(CHANNELS_PER_PART).map(move |channels| {
                let channels = channels.to_vec();
                ConnectionsPart::Channels(NumberedChannels {
                    event_loop: frozen.index,
                    event_loops,
                    channels,
                })
            })
        });
        let (buffers, publications) = &self.unread;
        let buffers = pages(buffers, Bytes::len).map(ConnectionsPart::Buffers);
        let publications = pages(publications, PinnedPublication::size).map(ConnectionsPart::Publications);
        channels.chain(buffers).chain(publications)
    }

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
            frozen.disconnect();
        }
    }

    /// Leaves the connections to another process, which has their sockets. Closes this process's descriptors
    /// and ends the loops.
    pub fn release(mut self) {
        for frozen in &mut self.loops {
            frozen.release();
        }
    }
}

/// Everything that a new process needs of the manager, apart from the connections. Other builds read it as
/// they read a [`ConnectionSnapshot`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerSnapshot {
    #[serde(rename = "figures")]
    pub(crate) stats: Stats,
    /// Connections that clients ended.
    #[serde(rename = "left")]
    pub(crate) by_client: u64,
    /// Connections that the server closed.
    #[serde(rename = "closed")]
    pub(crate) by_server: u64,
    /// Connections that the server ended without a closing handshake.
    #[serde(rename = "cut")]
    pub(crate) forced: u64,
}

/// Divides items into parts of about [`PART`] bytes.
fn pages<T: Clone>(items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut fits = |item: &T| {
            let fits = bytes < PART;
            bytes += size(item) + PER_ITEM;
            fits
        };
        let (page, more) = rest.split_at(rest.iter().take_while(|item| fits(item)).count());
        rest = more;
        (!page.is_empty()).then(|| page.to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_an_earlier_build_recorded_can_be_read() {
        let mut stats = Stats { opened: 7, messages_sent: 1 << 40, ..Stats::default() };
        stats.disconnects.insert("slow_consumer".into(), 3);
        stats.loop_iterations.counts[2] = 5;
        let manager = ManagerSnapshot { stats, by_client: 1, by_server: 2, forced: 3 };
        let recorded = include_bytes!("../../tests/states/manager-0.1.0.msgpack");
        assert_eq!(rmp_serde::from_slice::<ManagerSnapshot>(recorded).unwrap(), manager);
        let empty: ManagerSnapshot = rmp_serde::from_slice(&[0x80]).unwrap();
        assert_eq!(empty, ManagerSnapshot::default());
    }
}
