//! The mailboxes of all event loops: how work reaches them. All are filled under one lock, so that every loop
//! has the commands, and the publications of a channel, in the same order.
//!
//! It is the last lock of all: a broker fills the mailboxes under its own, while the phase may be held. So
//! nothing is called, or dropped, under this lock that takes another one. The whole order is in `manager`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
};

use lastcall_broker::{Delivery, ReceiverSet};
use lastcall_core::{ChannelName, Epoch, Position, Publication};
use mio::Waker;
use tokio::sync::Notify;

use crate::{
    encoded::EncodedPublication,
    mailbox::{ChannelReset, LoopCommand, Mailbox, MailboxBatch, NewConnection, SubscriptionStart},
    placement::Placement,
};

/// Bytes of publications in the fullest mailbox from which on publishers wait. A few batches: a loop does not
/// run out of work while publishers wake up, and memory is bounded.
const HIGH_WATER_MARK: usize = 1 << 20;

/// Publishers continue when every mailbox has at most this many bytes of publications.
const LOW_WATER_MARK: usize = HIGH_WATER_MARK / 2;

#[derive(Debug)]
struct State {
    mailboxes: Vec<Mailbox>,
    /// The thread whose publications wake no loop until its [`DeferredWake`] is dropped.
    deferring: Option<ThreadId>,
    /// The number of the turn: what one call publishes, and all that is published while wakes are deferred,
    /// is of one turn.
    turn: u32,
}

/// The mailboxes of all event loops.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    state: Mutex<State>,
    wakers: Vec<Waker>,
    placement: Placement,
    /// True if a mailbox has reached [`HIGH_WATER_MARK`], and not all have come down to [`LOW_WATER_MARK`]
    /// since.
    full: AtomicBool,
    capacity_returned: Notify,
}

impl Mailboxes {
    /// Makes a mailbox for each waker of an event loop.
    pub(crate) fn new(wakers: Vec<Waker>, connections_per_loop: usize) -> Self {
        let mailboxes = wakers.iter().map(|_| Mailbox::default()).collect();
        Self {
            state: Mutex::new(State { mailboxes, deferring: None, turn: 0 }),
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
    pub(crate) fn start_subscription(&self, index: usize, start: SubscriptionStart) {
        let mut state = self.lock();
        let mailbox = &mut state.mailboxes[index];
        mailbox.push_subscription_start(start);
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
        let State { mailboxes, deferring, turn } = &mut *state;
        let is_deferred = deferring.is_some_and(|thread| thread == thread::current().id());
        if !is_deferred {
            *turn = turn.wrapping_add(1);
        }
        for (index, (mailbox, waker)) in mailboxes.iter_mut().zip(&self.wakers).enumerate() {
            if !receivers.contains(index) {
                continue;
            }
            mailbox.push_publications(channel, publications, bytes, *turn);
            if mailbox.bytes() >= HIGH_WATER_MARK {
                self.full.store(true, Ordering::Relaxed);
            }
            if !is_deferred {
                mailbox.wake(waker);
            }
        }
    }

    /// Tells these loops that their connections may have missed publications of a channel.
    pub(crate) fn reset(&self, reset: &ChannelReset, receivers: ReceiverSet) {
        let mut state = self.lock();
        for (index, (mailbox, waker)) in state.mailboxes.iter_mut().zip(&self.wakers).enumerate() {
            if receivers.contains(index) {
                mailbox.push_reset(reset.clone());
                mailbox.wake(waker);
            }
        }
    }

    /// Gives a connection to one of the loops without waking it; drops it if all loops have ended. Returns
    /// what wakes the loop when it is dropped; `None`: a wake is deferred already, and it is for this
    /// connection, too.
    pub(crate) fn assign(self: &Arc<Self>, connection: NewConnection) -> Option<DeferredWake> {
        let mut state = self.lock();
        let mailboxes = &mut state.mailboxes;
        let waiting = |index: usize| match mailboxes[index].is_closed() {
            true => usize::MAX,
            false => mailboxes[index].new_connections(),
        };
        let index = self.placement.choose(waiting);
        if mailboxes[index].is_closed() {
            // Not under the lock: its permit has one of its own.
            drop(state);
            drop(connection);
            return None;
        }
        mailboxes[index].push_connection(connection);
        self.defer(&mut state)
    }

    /// Gives a connection to this loop without waking it, as [`Mailboxes::assign`] does.
    pub(crate) fn assign_to(
        self: &Arc<Self>,
        index: usize,
        connection: NewConnection,
    ) -> Option<DeferredWake> {
        let mut state = self.lock();
        if state.mailboxes[index].is_closed() {
            // Not under the lock: its permit has one of its own.
            drop(state);
            drop(connection);
            return None;
        }
        state.mailboxes[index].push_connection(connection);
        self.defer(&mut state)
    }

    /// Defers the wakes for what this thread publishes until the returned value is dropped. Returns `None` if
    /// wakes are deferred already.
    pub(crate) fn defer_wake(self: &Arc<Self>) -> Option<DeferredWake> {
        self.defer(&mut self.lock())
    }

    fn defer(self: &Arc<Self>, state: &mut State) -> Option<DeferredWake> {
        if state.deferring.is_some() {
            return None;
        }
        state.deferring = Some(thread::current().id());
        state.turn = state.turn.wrapping_add(1);
        Some(DeferredWake(Arc::clone(self)))
    }

    /// Notes how many connections a loop has.
    pub(crate) fn report_load(&self, index: usize, connections: usize) {
        self.placement.report_load(index, connections);
    }

    /// Returns true if publishers may continue. They ask before they publish, so several can exceed
    /// [`HIGH_WATER_MARK`] by what each publishes at once.
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

    /// Takes what is next for loop `index`: see [`Mailbox::take`].
    pub(crate) fn take(&self, index: usize) -> MailboxBatch {
        let mut state = self.lock();
        let mailboxes = &mut state.mailboxes;
        let batch = mailboxes[index].take();
        self.return_capacity(mailboxes);
        batch
    }

    /// Closes the mailbox of a loop that has ended: nothing is taken in for it, nobody waits for it, and what
    /// was in it is dropped.
    pub(crate) fn close(&self, index: usize) {
        let mut state = self.lock();
        let left = state.mailboxes[index].close();
        self.return_capacity(&mut state.mailboxes);
        // Not under the lock: permits have one of their own.
        drop(state);
        drop(left);
    }

    /// Has publishers continue if all mailboxes have room again.
    fn return_capacity(&self, mailboxes: &mut [Mailbox]) {
        if !self.has_capacity() && mailboxes.iter().all(|mailbox| mailbox.bytes() <= LOW_WATER_MARK) {
            self.full.store(false, Ordering::Relaxed);
            self.capacity_returned.notify_waiters();
            // Loops stop reading from clients while a mailbox is full.
            for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
                mailbox.wake(waker);
            }
        }
    }

    /// Takes only new connections of loop `index`: see [`Mailbox::take_new_connections`]. The loop calls
    /// [`Mailboxes::take`] later, for the rest.
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

/// Wakes the loops that have something to do when it is dropped. Waking a loop costs more than registering a
/// connection or delivering to one, so the wake is deferred until everything that arrives together is in the
/// mailboxes.
#[must_use = "it wakes the loops when it is dropped"]
#[derive(Debug)]
pub(crate) struct DeferredWake(Arc<Mailboxes>);

impl Drop for DeferredWake {
    fn drop(&mut self) {
        self.0.end_deferring();
    }
}

/// The mailbox of one event loop, as this loop uses it.
#[derive(Debug, Clone)]
pub(crate) struct OwnMailbox {
    mailboxes: Arc<Mailboxes>,
    index: usize,
}

impl OwnMailbox {
    pub(crate) fn new(mailboxes: Arc<Mailboxes>, index: usize) -> Self {
        Self { mailboxes, index }
    }

    /// Returns the number of the event loop.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Takes what is next: see [`Mailboxes::take`].
    pub(crate) fn take(&self) -> MailboxBatch {
        self.mailboxes.take(self.index)
    }

    /// Takes only new connections: see [`Mailboxes::take_new_connections`].
    pub(crate) fn take_new_connections(&self) -> Vec<NewConnection> {
        self.mailboxes.take_new_connections(self.index)
    }

    /// Has the loop do something after all that it has been sent.
    pub(crate) fn send(&self, command: LoopCommand) {
        self.mailboxes.send_to(self.index, command);
    }

    /// Has the loop begin a subscription of one of its connections.
    pub(crate) fn start_subscription(&self, start: SubscriptionStart) {
        self.mailboxes.start_subscription(self.index, start);
    }

    /// Returns true if publishers may continue: see [`Mailboxes::has_capacity`].
    pub(crate) fn has_capacity(&self) -> bool {
        self.mailboxes.has_capacity()
    }

    /// Notes how many connections the loop has.
    pub(crate) fn report_load(&self, connections: usize) {
        self.mailboxes.report_load(self.index, connections);
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

    fn reset(&self, channel: &ChannelName, top: Position, receivers: ReceiverSet) {
        self.0.reset(&ChannelReset { channel: channel.clone(), top }, receivers);
    }
}

#[cfg(test)]
mod tests;
