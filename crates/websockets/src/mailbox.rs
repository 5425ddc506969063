//! The mailbox of one event loop: new connections, and a queue of publications, subscriptions and commands in
//! order.

mod loop_command;

use std::{collections::VecDeque, io, net::TcpStream, sync::Arc};

use lastcall_broker::{BrokerError, Subscribed};
use lastcall_core::{ChannelName, Position};
use mio::Waker;

pub(crate) use self::loop_command::{LoopCommand, UnreadConnection, UnreadRound};
use crate::{
    admission::Permit,
    client_id::ClientId,
    connection::{outbox::Round, snapshot::ConnectionSnapshot},
    connection_key::ConnectionKey,
    encoded::{EncodedPublication, PublicationRun},
    excess_capacity::release_excess_capacity,
    handshake::Handshake,
};

/// Most new connections that a loop takes at once; none while [`MAX_SUBSCRIPTION_STARTS`] subscriptions wait
/// in its mailbox. So a burst needs little temporary memory, which would lie between lasting allocations and
/// could not be returned to the system (`just bench-channels`, memory).
pub(crate) const MAX_NEW_CONNECTIONS: usize = 32;

/// Most subscriptions that a loop takes at once.
pub(crate) const MAX_SUBSCRIPTION_STARTS: usize = 128;

/// Most bytes that a loop takes, and writes to each client, in one go. Far below any sensible `max_queue`, so
/// that a backlog in the server never makes a client look slow.
pub(crate) const MAX_WRITE_BATCH: usize = 128 << 10;

/// Runs of other channels among which a loop looks for one that a publication continues.
pub(crate) const MAX_OPEN_RUNS: usize = 16;

/// A connection on its way to its event loop.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: TcpStream,
    pub(crate) permit: Permit,
    pub(crate) source: ConnectionSource,
}

/// The origin of a connection.
#[derive(Debug)]
pub(crate) enum ConnectionSource {
    /// It made its handshake here.
    Handshake(ClientId, Handshake),
    /// The old process served it until now.
    Handover(Box<ConnectionSnapshot>),
}

/// The answer of the broker to a subscription. If it begins, everything of its channel that comes later in
/// the mailbox is also for this connection.
#[derive(Debug)]
pub(crate) struct SubscriptionStart {
    pub(crate) connection: ConnectionKey,
    pub(crate) channel: ChannelName,
    pub(crate) subscribed: Result<Subscribed, BrokerError>,
}

/// A channel of which connections may have missed publications: they get those after `top`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelReset {
    pub(crate) channel: ChannelName,
    pub(crate) top: Position,
}

#[derive(Debug)]
enum Entry {
    /// The number is that of the turn in which it was published.
    Publication(ChannelName, Arc<EncodedPublication>, u32),
    /// Boxed: entries are as large as the largest one, and nearly all are publications.
    SubscriptionStart(Box<SubscriptionStart>),
    /// Boxed as well.
    Reset(Box<ChannelReset>),
    /// The number is that of the connections assigned before it, which the loop registers first.
    Command(LoopCommand, u64),
}

/// Everything that waits for one event loop.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// In no order with the publications and subscriptions in `entries`.
    new_connections: VecDeque<NewConnection>,
    /// The number of subscriptions in `entries`.
    subscription_starts: usize,
    /// Connections assigned so far.
    assigned: u64,
    /// Connections that the loop has taken so far.
    taken: u64,
    entries: VecDeque<Entry>,
    /// Bytes of the publications in `entries`.
    bytes: usize,
    /// The round that the loop takes, the entries that are left of it, and the turn of the last publication
    /// of it.
    round: Round,
    round_left: usize,
    round_turn: u32,
    /// True if the loop has been woken and has not emptied its mailbox since: it need not be woken again.
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

    /// Takes nothing in from now on, as the loop has ended. Returns what was in the mailbox, to be dropped:
    /// whoever waits for an answer to it waits no longer.
    pub(crate) fn close(&mut self) -> Self {
        std::mem::replace(self, Self { closed: true, ..Self::default() })
    }

    /// Returns true if the loop has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Adds a connection. The mailbox must not be closed: a connection that is dropped locks more than the
    /// mailboxes.
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

    pub(crate) fn push_subscription_start(&mut self, start: SubscriptionStart) {
        if self.closed {
            return;
        }
        self.entries.push_back(Entry::SubscriptionStart(Box::new(start)));
        self.subscription_starts += 1;
    }

    pub(crate) fn push_reset(&mut self, reset: ChannelReset) {
        if !self.closed {
            self.entries.push_back(Entry::Reset(Box::new(reset)));
        }
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
        // A command at the front waits for these connections. The subscriptions are behind it: to wait for
        // them would never end.
        let is_awaited =
            matches!(self.entries.front(), Some(Entry::Command(_, assigned)) if *assigned > self.taken);
        if self.subscription_starts >= MAX_SUBSCRIPTION_STARTS && !is_awaited {
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

    /// Takes what is next: at most [`MAX_NEW_CONNECTIONS`]; then publications, at most [`MAX_WRITE_BATCH`]
    /// bytes, with the subscriptions between them; then the next command, unless a connection assigned before
    /// it still waits. All of it is of one round.
    pub(crate) fn take(&mut self) -> MailboxBatch {
        let mut batch =
            MailboxBatch { new_connections: self.take_new_connections(), ..MailboxBatch::default() };
        self.begin_round();
        let (mut bytes, mut started, mut runs_from) = (0, 0, 0);
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
                Entry::SubscriptionStart(start) => {
                    batch.items.push(MailboxItem::SubscriptionStart(start));
                    // A run is not continued across it: what comes later is for one more connection.
                    runs_from = batch.items.len();
                    started += 1;
                    if started == MAX_SUBSCRIPTION_STARTS {
                        break;
                    }
                }
                Entry::Reset(reset) => {
                    batch.items.push(MailboxItem::Reset(reset));
                    // Nor across it: what comes later is of another epoch.
                    runs_from = batch.items.len();
                }
                Entry::Command(command, assigned) if assigned > self.taken => {
                    self.entries.push_front(Entry::Command(command, assigned));
                    self.round_left += 1;
                    break;
                }
                Entry::Command(command, _) => {
                    batch.items.push(MailboxItem::Command(command));
                    break;
                }
            }
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.subscription_starts = self.subscription_starts.saturating_sub(started);
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
            Entry::SubscriptionStart(_) | Entry::Reset(_) | Entry::Command(..) => false,
        };
        self.round_left == 0 && !self.entries.front().is_some_and(continues)
    }
}

/// Everything that a loop takes from its mailbox at once.
#[derive(Debug, Default)]
pub(crate) struct MailboxBatch {
    /// To be registered first.
    pub(crate) new_connections: Vec<NewConnection>,
    /// The round that the items belong to.
    pub(crate) round: Round,
    /// To be done in this order.
    pub(crate) items: Vec<MailboxItem>,
    /// True if the mailbox holds more.
    pub(crate) more: bool,
}

#[derive(Debug)]
pub(crate) enum MailboxItem {
    Run(PublicationRun),
    SubscriptionStart(Box<SubscriptionStart>),
    Reset(Box<ChannelReset>),
    /// Always the last item.
    Command(LoopCommand),
}

impl MailboxBatch {
    /// Adds a publication to the run of its channel. `runs_from`: the first item that it may go to.
    fn push(&mut self, channel: ChannelName, publication: Arc<EncodedPublication>, runs_from: usize) {
        let open = self.items[runs_from..].iter_mut().rev().take(MAX_OPEN_RUNS);
        let mut runs = open.filter_map(|item| match item {
            MailboxItem::Run(run) => Some(run),
            _ => None,
        });
        match runs.find(|run| run.channel == channel) {
            Some(run) => run.publications.push(publication),
            None => {
                self.items.push(MailboxItem::Run(PublicationRun { channel, publications: vec![publication] }))
            }
        }
    }
}

#[cold]
fn report_failed_wake(error: &io::Error) {
    tracing::error!(%error, "an event loop could not be woken");
}
