//! The mailbox of one event loop: new connections, and a queue of publications, subscriptions and commands in order.

mod attachment;
mod batch;
mod loop_command;
mod new_connection;

use std::{collections::VecDeque, io, sync::Arc};

use lastcall_core::ChannelName;
use mio::Waker;

#[cfg(test)]
pub(crate) use self::batch::MAX_OPEN_RUNS;
pub(crate) use self::{
    attachment::Attachment,
    batch::{Batch, BatchItem, Run},
    loop_command::{LoopCommand, UnreadConnection, UnreadRound},
    new_connection::{ConnectionSource, NewConnection},
};
use crate::{
    connection::outbox::Round, encoded::EncodedPublication, excess_capacity::release_excess_capacity,
};

/// Most new connections that a loop takes at once; none while [`MAX_ATTACH_BATCH`] subscriptions wait in its mailbox. So a
/// burst needs little temporary memory, which would lie between lasting allocations and could not be returned to the system
/// (`just bench-channels`, memory).
pub(crate) const MAX_NEW_CONNECTIONS: usize = 32;

/// Most subscriptions that a loop takes at once.
pub(crate) const MAX_ATTACH_BATCH: usize = 128;

/// Most bytes that a loop takes, and writes to each client, in one go. Far below any sensible `max_queue`, so that a
/// backlog in the server never makes a client look slow.
pub(crate) const MAX_WRITE_BATCH: usize = 128 << 10;

#[derive(Debug)]
enum Entry {
    /// The number is that of the turn in which it was published.
    Publication(ChannelName, Arc<EncodedPublication>, u32),
    /// Boxed: entries are as large as the largest one, and nearly all are publications.
    Attach(Box<Attachment>),
    /// The number is that of the connections assigned before it, which the loop registers first.
    Command(LoopCommand, u64),
}

/// What waits for one event loop.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// In no order with the publications and subscriptions in `entries`.
    new_connections: VecDeque<NewConnection>,
    /// How many subscriptions are in `entries`.
    attachments: usize,
    /// Connections assigned so far.
    assigned: u64,
    /// Connections that the loop has taken so far.
    taken: u64,
    entries: VecDeque<Entry>,
    /// Bytes of the publications in `entries`.
    bytes: usize,
    /// The round that the loop takes, the entries that are left of it, and the turn of the last publication of it.
    round: Round,
    round_left: usize,
    round_turn: u32,
    /// Whether the loop has been woken and has not emptied its mailbox since: it need not be woken again.
    wake_pending: bool,
    /// True if the loop has ended: nothing is taken in.
    closed: bool,
}

impl Mailbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.new_connections.is_empty() && self.entries.is_empty()
    }

    /// Returns how many bytes of publications wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns how many new connections wait.
    pub(crate) fn new_connections(&self) -> usize {
        self.new_connections.len()
    }

    /// Takes nothing in from now on, as the loop has ended. Returns what was in the mailbox, to be dropped: whoever waits for
    /// an answer to it waits no longer.
    pub(crate) fn close(&mut self) -> Self {
        std::mem::replace(self, Self { closed: true, ..Self::default() })
    }

    /// Returns true if the loop has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Adds a connection. The mailbox must not be closed: a connection that is dropped locks more than the mailboxes.
    pub(crate) fn push_connection(&mut self, connection: NewConnection) {
        debug_assert!(!self.closed);
        self.new_connections.push_back(connection);
        self.assigned += 1;
    }

    pub(crate) fn push_command(&mut self, command: LoopCommand) {
        if self.closed {
            return;
        }
        self.entries.push_back(Entry::Command(command, self.assigned));
    }

    pub(crate) fn push_attachment(&mut self, attachment: Attachment) {
        if self.closed {
            return;
        }
        self.entries.push_back(Entry::Attach(Box::new(attachment)));
        self.attachments += 1;
    }

    /// Adds publications of a channel, which have so many `bytes`, and were published in this turn.
    pub(crate) fn push_publications(
        &mut self,
        channel: &ChannelName,
        publications: &[Arc<EncodedPublication>],
        bytes: usize,
        turn: u32,
    ) {
        if self.closed {
            return;
        }
        let entries = publications.iter().cloned();
        self.entries.extend(entries.map(|entry| Entry::Publication(channel.clone(), entry, turn)));
        self.bytes += bytes;
    }

    /// Takes only new connections, at most [`MAX_NEW_CONNECTIONS`].
    pub(crate) fn take_new_connections(&mut self) -> Vec<NewConnection> {
        // A command at the front waits for these connections. The subscriptions are behind it: to wait for them would never end.
        let is_awaited =
            matches!(self.entries.front(), Some(Entry::Command(_, assigned)) if *assigned > self.taken);
        if self.attachments >= MAX_ATTACH_BATCH && !is_awaited {
            return Vec::new();
        }
        let count = self.new_connections.len().min(MAX_NEW_CONNECTIONS);
        self.taken += count as u64;
        let taken = self.new_connections.drain(..count).collect();
        release_excess_capacity(&mut self.new_connections);
        taken
    }

    /// Wakes the loop, unless it has been woken since it emptied the mailbox.
    pub(crate) fn wake(&mut self, waker: &Waker) {
        if self.wake_pending || self.closed {
            return;
        }
        match waker.wake() {
            Ok(()) => self.wake_pending = true,
            // The next sender tries again.
            Err(error) => report_failed_wake(&error),
        }
    }

    /// Takes what is next: at most [`MAX_NEW_CONNECTIONS`]; then publications, at most [`MAX_WRITE_BATCH`] bytes, with the
    /// subscriptions between them; then the next command, unless a connection assigned before it still waits. All of it is of
    /// one round.
    pub(crate) fn take(&mut self) -> Batch {
        let mut batch = Batch { new_connections: self.take_new_connections(), ..Batch::default() };
        self.begin_round();
        let (mut bytes, mut attached, mut runs_from) = (0, 0, 0);
        while !self.is_round_over()
            && let Some(entry) = self.entries.pop_front()
        {
            self.round_left = self.round_left.saturating_sub(1);
            match entry {
                Entry::Publication(channel, publication, turn) => {
                    let size = publication.size(&channel);
                    // One that is larger than a batch is one of its own.
                    if bytes > 0 && bytes + size > MAX_WRITE_BATCH {
                        self.entries.push_front(Entry::Publication(channel, publication, turn));
                        self.round_left += 1;
                        break;
                    }
                    self.round_turn = turn;
                    bytes += size;
                    batch.push(channel, publication, runs_from);
                }
                Entry::Attach(attachment) => {
                    batch.items.push(BatchItem::Attach(attachment));
                    // A run is not continued across it: what comes later is for one more connection.
                    runs_from = batch.items.len();
                    attached += 1;
                    if attached == MAX_ATTACH_BATCH {
                        break;
                    }
                }
                Entry::Command(command, assigned) if assigned > self.taken => {
                    self.entries.push_front(Entry::Command(command, assigned));
                    self.round_left += 1;
                    break;
                }
                Entry::Command(command, _) => {
                    batch.items.push(BatchItem::Command(command));
                    break;
                }
            }
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.attachments = self.attachments.saturating_sub(attached);
        release_excess_capacity(&mut self.entries);
        batch.round = self.round;
        batch.more = !self.is_empty();
        self.wake_pending = batch.more;
        batch
    }

    /// Begins a round if the last one is over: all that waits now.
    fn begin_round(&mut self) {
        if self.is_round_over() {
            self.round = self.round.next();
            self.round_left = self.entries.len();
        }
    }

    /// Returns true if nothing of the round is left, and nothing that was published in the same turn.
    fn is_round_over(&self) -> bool {
        let continues = |entry: &Entry| match entry {
            Entry::Publication(.., turn) => *turn == self.round_turn,
            Entry::Attach(_) | Entry::Command(..) => false,
        };
        self.round_left == 0 && !self.entries.front().is_some_and(continues)
    }
}

#[cold]
fn report_failed_wake(error: &io::Error) {
    tracing::error!(%error, "an event loop could not be woken");
}
