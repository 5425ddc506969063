//! Mailboxes: how work reaches the event loops. Each loop has one, with what is for it in one order. All are filled under
//! one lock, so that every loop has the commands, and the publications of a channel, in the same order.

use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
    time::Instant,
};

use lastcall_broker::{Delivery, ReceiverSet, Subscribed};
use lastcall_core::{ChannelName, Epoch, Publication};
use mio::Waker;
use tokio::sync::{Notify, mpsc};

use crate::{
    admission::Permit,
    client_id::ClientId,
    codec::CloseReason,
    encoded::EncodedPublication,
    event_loop::connections::ConnectionKey,
    excess_capacity::release_excess_capacity,
    handshake::Handshake,
    notice::ShutdownNotice,
    placement::Placement,
    snapshot::{connection::ConnectionSnapshot, frozen_loop::FrozenLoop},
    stats::Stats,
};

/// Bytes of publications in the fullest mailbox from which on publishers wait. A few batches: a loop does not run out of work
/// while publishers wake up, and memory is bounded.
const HIGH_WATER_MARK: usize = 1 << 20;

/// Publishers continue when every mailbox has at most this many bytes of publications.
const LOW_WATER_MARK: usize = HIGH_WATER_MARK / 2;

/// Most new connections that a loop takes at once; none while [`MAX_ATTACH_BATCH`] subscriptions wait in its mailbox. So a
/// burst needs little temporary memory, which would lie between lasting allocations and could not be returned to the system
/// (`just bench-channels`, memory).
const MAX_NEW_CONNECTIONS: usize = 32;

/// Most subscriptions that a loop takes at once.
const MAX_ATTACH_BATCH: usize = 128;

/// Runs of other channels among which a loop looks for one that a publication continues.
const MAX_OPEN_RUNS: usize = 16;

/// Most bytes that a loop takes, and writes to each client, in one go. Far below any sensible `max_queue`, so that a
/// backlog in the server never makes a client look slow.
const MAX_WRITE_BATCH: usize = 128 << 10;

/// A connection on its way to its event loop.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: TcpStream,
    pub(crate) permit: Permit,
    pub(crate) source: ConnectionSource,
}

/// Where a connection comes from.
#[derive(Debug)]
pub(crate) enum ConnectionSource {
    /// It made its handshake here.
    Handshake(ClientId, Handshake),
    /// The old process served it until now.
    Handover(Box<ConnectionSnapshot>),
}

/// What a loop does with all of its connections. Commands and frames are handled in the order in which they were sent.
#[derive(Debug, Clone)]
pub(crate) enum LoopCommand {
    /// Send the shutdown notice to all clients, also to clients that connect later.
    BeginDrain(ShutdownNotice),
    /// Send the notice again to all clients that have no output waiting.
    Remind,
    /// Close all connections, also connections that are registered later.
    CloseAll(CloseReason),
    /// Close the open connections one by one until this moment, each after one more notice.
    CloseGradually(CloseReason, Instant),
    /// Return the loop's statistics.
    CollectStats(mpsc::Sender<Stats>),
    /// Acknowledge.
    Acknowledge(mpsc::Sender<()>),
    /// Stop reading from clients and acknowledge. Once all loops have, no client's text is published any more.
    PauseReads(mpsc::Sender<()>),
    /// Read from clients again.
    ResumeReads,
    /// Hand over all connections and wait until they come back.
    Freeze(mpsc::Sender<FrozenLoop>),
    /// Drop all connections and end.
    Stop,
    /// Panic, as a bug does.
    #[cfg(test)]
    Panic,
}

/// A subscription that begins: everything of its channel that comes later in the mailbox is also for this connection.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) connection: ConnectionKey,
    pub(crate) channel: ChannelName,
    pub(crate) subscribed: Subscribed,
    /// Whether the client is told: it named the channel.
    pub(crate) announced: bool,
    /// Whether the client asked for a position.
    pub(crate) asked: bool,
}

/// Publications of one channel that a loop writes together, in their order.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) channel: ChannelName,
    pub(crate) publications: Vec<Arc<EncodedPublication>>,
}

/// What a loop takes from its mailbox at once.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// To be registered first.
    pub(crate) new_connections: Vec<NewConnection>,
    /// To be done in this order.
    pub(crate) items: Vec<BatchItem>,
    /// Whether the mailbox holds more.
    pub(crate) more: bool,
}

#[derive(Debug)]
pub(crate) enum BatchItem {
    Run(Run),
    Attach(Box<Attachment>),
    /// Always the last item.
    Command(LoopCommand),
}

impl Batch {
    /// Adds a publication to the run of its channel. `runs_from`: the first item that it may go to.
    fn push(&mut self, channel: ChannelName, publication: Arc<EncodedPublication>, runs_from: usize) {
        let open = self.items[runs_from..].iter_mut().rev().take(MAX_OPEN_RUNS);
        let mut runs = open.filter_map(|item| match item {
            BatchItem::Run(run) => Some(run),
            _ => None,
        });
        match runs.find(|run| run.channel == channel) {
            Some(run) => run.publications.push(publication),
            None => self.items.push(BatchItem::Run(Run { channel, publications: vec![publication] })),
        }
    }
}

#[derive(Debug)]
enum Entry {
    Publication(ChannelName, Arc<EncodedPublication>),
    /// Boxed: entries are as large as the largest one, and nearly all are publications.
    Attach(Box<Attachment>),
    /// The number is that of the connections assigned before it, which the loop registers first.
    Command(LoopCommand, u64),
}

#[derive(Debug, Default)]
struct Mailbox {
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
    /// Whether the loop has been woken and has not emptied its mailbox since: it need not be woken again.
    wake_pending: bool,
}

impl Mailbox {
    fn is_empty(&self) -> bool {
        self.new_connections.is_empty() && self.entries.is_empty()
    }

    fn push_command(&mut self, command: LoopCommand) {
        self.entries.push_back(Entry::Command(command, self.assigned));
    }

    fn take_new_connections(&mut self) -> Vec<NewConnection> {
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

    fn wake(&mut self, waker: &Waker) {
        if self.wake_pending {
            return;
        }
        match waker.wake() {
            Ok(()) => self.wake_pending = true,
            // The next sender tries again.
            Err(error) => report_failed_wake(&error),
        }
    }
}

#[cold]
fn report_failed_wake(error: &io::Error) {
    tracing::error!(%error, "an event loop could not be woken");
}

#[derive(Debug)]
struct State {
    mailboxes: Vec<Mailbox>,
    /// The thread whose publications wake no loop until its [`DeferredWake`] is dropped.
    deferring: Option<ThreadId>,
}

/// The mailboxes of all event loops.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    state: Mutex<State>,
    wakers: Vec<Waker>,
    placement: Placement,
    /// Whether a mailbox has reached [`HIGH_WATER_MARK`], and not all have come down to [`LOW_WATER_MARK`] since.
    full: AtomicBool,
    capacity_returned: Notify,
}

impl Mailboxes {
    /// Makes a mailbox for each waker of an event loop.
    pub(crate) fn new(wakers: Vec<Waker>, connections_per_loop: usize) -> Self {
        let mailboxes = wakers.iter().map(|_| Mailbox::default()).collect();
        Self {
            state: Mutex::new(State { mailboxes, deferring: None }),
            placement: Placement::new(wakers.len(), connections_per_loop),
            wakers,
            full: AtomicBool::new(false),
            capacity_returned: Notify::new(),
        }
    }

    /// Returns how many event loops there are.
    pub(crate) fn loops(&self) -> usize {
        self.wakers.len()
    }

    /// Sends a command to every loop.
    pub(crate) fn send(&self, command: &LoopCommand) {
        let mut state = self.lock();
        for (mailbox, waker) in state.mailboxes.iter_mut().zip(&self.wakers) {
            mailbox.push_command(command.clone());
            mailbox.wake(waker);
        }
    }

    /// Sends a command to one loop.
    pub(crate) fn send_to(&self, index: usize, command: LoopCommand) {
        let mut state = self.lock();
        let mailbox = &mut state.mailboxes[index];
        mailbox.push_command(command);
        mailbox.wake(&self.wakers[index]);
    }

    /// Sends a subscription that begins to the loop of its connection.
    pub(crate) fn attach(&self, index: usize, attachment: Attachment) {
        let mut state = self.lock();
        let mailbox = &mut state.mailboxes[index];
        mailbox.entries.push_back(Entry::Attach(Box::new(attachment)));
        mailbox.attachments += 1;
        mailbox.wake(&self.wakers[index]);
    }

    /// Sends publications of a channel to these loops. Each loop takes them together.
    pub(crate) fn publish(
        &self,
        channel: &ChannelName,
        publications: &[Arc<EncodedPublication>],
        receivers: ReceiverSet,
    ) {
        let bytes: usize = publications.iter().map(|publication| publication.size(channel)).sum();
        let mut state = self.lock();
        let State { mailboxes, deferring } = &mut *state;
        let is_deferred = deferring.is_some_and(|thread| thread == thread::current().id());
        for (index, (mailbox, waker)) in mailboxes.iter_mut().zip(&self.wakers).enumerate() {
            if !receivers.contains(index) {
                continue;
            }
            mailbox.bytes += bytes;
            if mailbox.bytes >= HIGH_WATER_MARK {
                self.full.store(true, Ordering::Relaxed);
            }
            let entries = publications.iter().cloned();
            mailbox.entries.extend(entries.map(|entry| Entry::Publication(channel.clone(), entry)));
            if !is_deferred {
                mailbox.wake(waker);
            }
        }
    }

    /// Gives a connection to one of the loops without waking it. Returns what wakes the loop when it is dropped; `None`: a
    /// wake is deferred already, and it is for this connection, too.
    pub(crate) fn assign(self: &Arc<Self>, connection: NewConnection) -> Option<DeferredWake> {
        let mut state = self.lock();
        let mailboxes = &mut state.mailboxes;
        let index = self.placement.choose(|index| mailboxes[index].new_connections.len());
        mailboxes[index].new_connections.push_back(connection);
        mailboxes[index].assigned += 1;
        self.defer(&mut state)
    }

    /// Defers the wakes for what this thread publishes until the returned value is dropped. Returns `None` if wakes are deferred
    /// already.
    pub(crate) fn defer_wake(self: &Arc<Self>) -> Option<DeferredWake> {
        self.defer(&mut self.lock())
    }

    fn defer(self: &Arc<Self>, state: &mut State) -> Option<DeferredWake> {
        if state.deferring.is_some() {
            return None;
        }
        state.deferring = Some(thread::current().id());
        Some(DeferredWake(Arc::clone(self)))
    }

    /// Notes how many connections a loop has.
    pub(crate) fn report_load(&self, index: usize, connections: usize) {
        self.placement.report_load(index, connections);
    }

    /// Returns true if publishers may continue. They ask before they publish, so several can exceed [`HIGH_WATER_MARK`] by
    /// what each publishes at once.
    pub(crate) fn has_capacity(&self) -> bool {
        !self.full.load(Ordering::Relaxed)
    }

    /// Waits until publishers may continue. Has no timeout of its own.
    pub(crate) async fn wait_for_capacity(&self) {
        while !self.has_capacity() {
            let notified = self.capacity_returned.notified();
            if self.has_capacity() {
                break;
            }
            notified.await;
        }
    }

    /// Takes what waits for loop `index`: at most [`MAX_NEW_CONNECTIONS`]; then publications, at most [`MAX_WRITE_BATCH`] bytes,
    /// with the subscriptions between them; then the next command, unless a connection assigned before it still waits.
    pub(crate) fn take(&self, index: usize) -> Batch {
        let mut state = self.lock();
        let mailboxes = &mut state.mailboxes;
        let mailbox = &mut mailboxes[index];
        let mut batch = Batch { new_connections: mailbox.take_new_connections(), ..Batch::default() };
        let (mut bytes, mut attached, mut runs_from) = (0, 0, 0);
        while let Some(entry) = mailbox.entries.pop_front() {
            match entry {
                Entry::Publication(channel, publication) => {
                    let size = publication.size(&channel);
                    // One that is larger than a batch is one of its own.
                    if bytes > 0 && bytes + size > MAX_WRITE_BATCH {
                        mailbox.entries.push_front(Entry::Publication(channel, publication));
                        break;
                    }
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
                Entry::Command(command, assigned) if assigned > mailbox.taken => {
                    mailbox.entries.push_front(Entry::Command(command, assigned));
                    break;
                }
                Entry::Command(command, _) => {
                    batch.items.push(BatchItem::Command(command));
                    break;
                }
            }
        }
        mailbox.bytes -= bytes;
        mailbox.attachments -= attached;
        release_excess_capacity(&mut mailbox.entries);
        batch.more = !mailbox.is_empty();
        mailbox.wake_pending = batch.more;
        if !self.has_capacity() && mailboxes.iter().all(|mailbox| mailbox.bytes <= LOW_WATER_MARK) {
            self.full.store(false, Ordering::Relaxed);
            self.capacity_returned.notify_waiters();
            // Loops stop reading from clients while a mailbox is full.
            for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
                mailbox.wake(waker);
            }
        }
        batch
    }

    /// Takes only new connections of loop `index`, at most [`MAX_NEW_CONNECTIONS`]. The loop calls [`Mailboxes::take`] later,
    /// for the rest.
    pub(crate) fn take_new_connections(&self, index: usize) -> Vec<NewConnection> {
        self.lock().mailboxes[index].take_new_connections()
    }

    /// Wakes the loops that have something in their mailbox.
    fn end_deferring(&self) {
        let mut state = self.lock();
        state.deferring = None;
        for (mailbox, waker) in state.mailboxes.iter_mut().zip(&self.wakers) {
            if !mailbox.is_empty() {
                mailbox.wake(waker);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the loops that have something to do when it is dropped. Waking a loop costs more than registering a connection or
/// delivering to one, so the wake is deferred until everything that arrives together is in the mailboxes.
#[must_use = "it wakes the loops when it is dropped"]
#[derive(Debug)]
pub(crate) struct DeferredWake(Arc<Mailboxes>);

impl Drop for DeferredWake {
    fn drop(&mut self) {
        self.0.end_deferring();
    }
}

/// Passes the publications of a broker on to the mailboxes.
#[derive(Debug)]
pub(crate) struct MailboxDelivery(pub(crate) Arc<Mailboxes>);

impl Delivery for MailboxDelivery {
    fn deliver(
        &self,
        channel: &ChannelName,
        epoch: Epoch,
        publications: &[Arc<Publication>],
        receivers: ReceiverSet,
    ) {
        let encoded: Vec<_> = publications
            .iter()
            .map(|publication| Arc::new(EncodedPublication::new(epoch, Arc::clone(publication))))
            .collect();
        self.0.publish(channel, &encoded, receivers);
    }
}

#[cfg(test)]
mod tests;
