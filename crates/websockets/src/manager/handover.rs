//! Handing all connections to another process, and taking them over.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use tokio::sync::mpsc;

use super::{ConnectionManager, LoopEnded};
use crate::{
    admission::ConnectionCounts,
    connection::{
        snapshot::ConnectionSnapshot,
        unread::{UNREAD_BUDGET, UnreadBuffers},
    },
    frozen_loop::NumberedChannels,
    handover::{BrokerPaused, ConnectionsPart, Frozen, ManagerSnapshot, ReadsPaused, Restoration},
    mailbox::{ConnectionSource, LoopCommand, NewConnection, UnreadRound},
    mailboxes::Mailboxes,
};

/// The budget before the pause. The rest is for what comes until then.
const EARLY_UNREAD_BUDGET: usize = UNREAD_BUDGET / 4 * 3;

/// The number of connections that the event loops fit into the budget at once, before they do something else.
const UNREAD_ROUND: usize = 64;

/// The channels of all event loops, part by part, while they are used. As long as it lives, the loops note
/// which channels change.
#[derive(Debug)]
pub struct ChannelListing {
    mailboxes: Arc<Mailboxes>,
    event_loop: usize,
    /// The number to go on with.
    from: u32,
}

impl ChannelListing {
    /// Returns the next part; `None`: there are no more. Blocks until the event loop has made it.
    ///
    /// # Errors
    /// When the event loop has ended.
    pub fn next_part(&mut self) -> Result<Option<ConnectionsPart>, LoopEnded> {
        let event_loops = self.mailboxes.loops();
        let event_loop = self.event_loop;
        if event_loop == event_loops {
            return Ok(None);
        }
        let (reply, mut page) = mpsc::channel(1);
        self.mailboxes.send_to(event_loop, LoopCommand::ListChannels(self.from, reply));
        let (channels, next) = page.blocking_recv().ok_or(LoopEnded)?;
        match next {
            Some(next) => self.from = next,
            None => (self.event_loop, self.from) = (event_loop + 1, 0),
        }
        Ok(Some(ConnectionsPart::Channels(NumberedChannels { event_loop, event_loops, channels })))
    }
}

impl Drop for ChannelListing {
    fn drop(&mut self) {
        self.mailboxes.send(&LoopCommand::EndListing);
    }
}

impl ConnectionManager {
    /// Lists the channels of all event loops for a new process. What changes until
    /// [`ConnectionManager::freeze`] is in [`Frozen::parts`], if the listing still lives.
    pub fn list_channels(&self) -> ChannelListing {
        ChannelListing { mailboxes: Arc::clone(&self.inner.mailboxes), event_loop: 0, from: 0 }
    }

    /// Closes the clients whose unread bytes would not fit into a handover, the largest first: a pause must
    /// not grow with what clients leave unread.
    ///
    /// Has no timeout of its own; the caller needs one.
    ///
    /// # Errors
    /// When a loop has ended.
    pub async fn fit_unread(&self) -> Result<(), LoopEnded> {
        let loops = self.inner.mailboxes.loops();
        let (reply, mut replies) = mpsc::channel(loops);
        self.inner.mailboxes.send(&LoopCommand::MeasureUnread(reply));
        let mut unread = Vec::new();
        for _ in 0..loops {
            unread.extend(replies.recv().await.ok_or(LoopEnded)?);
        }
        let all = unread.iter().fold(0_usize, |all, one| all.saturating_add(one.size));
        if all <= EARLY_UNREAD_BUDGET && !unread.iter().any(|one| one.has_replays) {
            return Ok(());
        }
        unread.sort_unstable();
        let buffers = Arc::new(Mutex::new(UnreadBuffers::new(EARLY_UNREAD_BUDGET)));
        for round in unread.chunks(UNREAD_ROUND) {
            let round = UnreadRound { connections: round.to_vec(), buffers: Arc::clone(&buffers) };
            let round = Arc::new(round);
            self.acknowledged(|ack| LoopCommand::FitUnread(round, ack)).await?;
        }
        Ok(())
    }

    /// Stops all event loops once each has written, or queued, everything that was published. The caller has
    /// stopped everything else that publishes. Dropping the future, or what it returns, lets the loops
    /// continue.
    ///
    /// Has no timeout of its own; the caller needs one.
    ///
    /// # Errors
    /// When a loop has ended. The others continue.
    pub async fn freeze(&self) -> Result<Frozen, LoopEnded> {
        let loops = self.inner.mailboxes.loops();
        // Two steps: what one loop reads, the others have to write. So first all stop reading.
        let reads_paused = ReadsPaused(Arc::clone(&self.inner.mailboxes));
        self.acknowledged(LoopCommand::PauseReads).await?;
        let broker_paused = BrokerPaused::new(Arc::clone(&self.inner.broker));
        let (reply, mut replies) = mpsc::channel(loops);
        self.inner.mailboxes.send(&LoopCommand::Freeze(reply));
        let mut frozen = Vec::new();
        for _ in 0..loops {
            frozen.push(replies.recv().await.ok_or(LoopEnded)?);
        }
        let mut frozen = Frozen {
            loops: frozen,
            unread: (Vec::new(), Vec::new()),
            previous_stats: self.inner.previous_stats.get().cloned().unwrap_or_default(),
            counts: ConnectionCounts::default(),
            _broker_paused: broker_paused,
            _reads_paused: reads_paused,
        };
        frozen.fit_unread(UNREAD_BUDGET, &*self.inner.broker);
        // Some may have been cut off.
        frozen.counts = self.counts();
        Ok(frozen)
    }

    /// Begins to take over connections from another process.
    pub fn begin_restoring(&self) -> Restoration {
        Restoration::new(Arc::clone(&self.inner.mailboxes))
    }

    /// Continues with the connections of the old process, and waits until each is subscribed to its channels:
    /// what is published after this is for them. To be called once, before any connection is admitted, with
    /// connections that [`Restoration::check`] has found to be right.
    ///
    /// # Errors
    /// When an event loop has ended, with its part of the connections.
    pub async fn restore(
        &self,
        state: ManagerSnapshot,
        restoration: Restoration,
        connections: Vec<(OwnedFd, ConnectionSnapshot)>,
    ) -> Result<(), LoopEnded> {
        let ManagerSnapshot { stats, by_client, by_server, forced } = state;
        // An error means that this is not the first call.
        let _ = self.inner.previous_stats.set(stats);
        let totals = ConnectionCounts { connections: 0, by_client, by_server, forced };
        let permits = self.inner.admission.restore(totals, connections.len());
        // What a client says is published once all connections are subscribed.
        let reads_paused = ReadsPaused(Arc::clone(&self.inner.mailboxes));
        self.acknowledged(LoopCommand::PauseReads).await?;
        let mut histories = Restoration::histories(&*self.inner.broker);
        let mailboxes = &self.inner.mailboxes;
        // Dropped at the end, which wakes the loops once for all connections.
        let mut wake = None;
        for ((socket, mut state), permit) in connections.into_iter().zip(permits) {
            restoration.restore_queue(&mut state, &mut histories).await;
            let event_loop = restoration.place(&mut state);
            let source = ConnectionSource::Handover(Box::new(state));
            let new = NewConnection { stream: socket.into(), permit, source };
            let first = match event_loop {
                Some(index) => mailboxes.assign_to(index, new),
                None => mailboxes.assign(new),
            };
            wake = wake.or(first);
        }
        drop(wake);
        // A loop registers new connections before it does anything that came after them.
        self.acknowledged(LoopCommand::EndRestoring).await?;
        drop(reads_paused);
        Ok(())
    }
}
