//! Mailboxes: how work reaches the event loops. Each loop has one. All are filled under one lock, so every loop gets
//! everything in the same order.

use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use mio::Waker;
use tokio::sync::{Notify, mpsc};

use crate::{
    admission::Permit,
    client_id::ClientId,
    codec::{CloseReason, Frame},
    handshake::Handshake,
    notice::ShutdownNotice,
    placement::Placement,
    snapshot::{connection::ConnectionSnapshot, frozen_loop::FrozenLoop},
    stats::Stats,
};

/// Bytes of frames in the fullest mailbox from which on publishers wait. A few batches: a loop does not run out of work
/// while publishers wake up, and memory is bounded.
const HIGH_WATER_MARK: usize = 1 << 20;

/// Publishers continue when every mailbox has at most this many bytes of frames.
const LOW_WATER_MARK: usize = HIGH_WATER_MARK / 2;

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

/// What a loop takes from its mailbox at once. It handles the fields in their order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) new_connections: Vec<NewConnection>,
    /// Frames for all clients, as one run of bytes.
    pub(crate) frames: Bytes,
    /// How many frames these are.
    pub(crate) messages: usize,
    pub(crate) command: Option<LoopCommand>,
    /// Whether the mailbox holds more.
    pub(crate) more: bool,
}

#[derive(Debug)]
enum Entry {
    Frame(Frame),
    Command(LoopCommand),
}

#[derive(Debug, Default)]
struct Mailbox {
    /// In no order with `entries`: the loop registers them first.
    new_connections: Vec<NewConnection>,
    entries: VecDeque<Entry>,
    /// Bytes of the frames in `entries`.
    bytes: usize,
    /// Whether the loop has been woken and has not emptied its mailbox since: it need not be woken again.
    wake_pending: bool,
}

impl Mailbox {
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
    /// Whether there is a [`DeferredWake`].
    wake_deferred: bool,
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
            state: Mutex::new(State { mailboxes, wake_deferred: false }),
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
            mailbox.entries.push_back(Entry::Command(command.clone()));
            mailbox.wake(waker);
        }
    }

    /// Sends frames to every loop and leaves `frames` empty. Each loop takes them together.
    pub(crate) fn publish(&self, frames: &mut Vec<Frame>) {
        self.push(&mut self.lock(), frames);
        frames.clear();
    }

    /// Sends a frame to every loop if `is_allowed` returns true, and returns whether it did. No command gets between the
    /// answer and the frame.
    pub(crate) fn publish_if(&self, frame: Frame, is_allowed: impl FnOnce() -> bool) -> bool {
        let mut state = self.lock();
        let allowed = is_allowed();
        if allowed {
            self.push(&mut state, &[frame]);
        }
        allowed
    }

    fn push(&self, state: &mut State, frames: &[Frame]) {
        let bytes: usize = frames.iter().map(|frame| frame.bytes().len()).sum();
        for (mailbox, waker) in state.mailboxes.iter_mut().zip(&self.wakers) {
            mailbox.bytes += bytes;
            if mailbox.bytes >= HIGH_WATER_MARK {
                self.full.store(true, Ordering::Relaxed);
            }
            mailbox.entries.extend(frames.iter().cloned().map(Entry::Frame));
            mailbox.wake(waker);
        }
    }

    /// Gives a connection to one of the loops without waking it. For the first of several connections, returns what
    /// wakes the loops of all of them.
    pub(crate) fn assign(self: &Arc<Self>, connection: NewConnection) -> Option<DeferredWake> {
        let mut state = self.lock();
        let mailboxes = &mut state.mailboxes;
        let index = self.placement.choose(|index| mailboxes[index].new_connections.len());
        mailboxes[index].new_connections.push(connection);
        let is_first = !std::mem::replace(&mut state.wake_deferred, true);
        is_first.then(|| DeferredWake(Arc::clone(self)))
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

    /// Takes what waits for loop `index`: all new connections, then at most [`MAX_WRITE_BATCH`] bytes of frames and the
    /// command that follows them, if one does.
    pub(crate) fn take(&self, index: usize) -> Batch {
        let mut state = self.lock();
        let mailboxes = &mut state.mailboxes;
        let mailbox = &mut mailboxes[index];
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        let mut command = None;
        while let Some(entry) = mailbox.entries.pop_front() {
            match entry {
                // A frame that is larger than a batch is one of its own.
                Entry::Frame(frame) if bytes == 0 || bytes + frame.bytes().len() <= MAX_WRITE_BATCH => {
                    bytes += frame.bytes().len();
                    frames.push(frame);
                }
                Entry::Frame(frame) => {
                    mailbox.entries.push_front(Entry::Frame(frame));
                    break;
                }
                Entry::Command(next) => {
                    command = Some(next);
                    break;
                }
            }
        }
        mailbox.bytes -= bytes;
        let more = !mailbox.entries.is_empty();
        mailbox.wake_pending = more;
        let new_connections = std::mem::take(&mut mailbox.new_connections);
        if !self.has_capacity() && mailboxes.iter().all(|mailbox| mailbox.bytes <= LOW_WATER_MARK) {
            self.full.store(false, Ordering::Relaxed);
            self.capacity_returned.notify_waiters();
            // Loops stop reading from clients while a mailbox is full.
            for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
                mailbox.wake(waker);
            }
        }
        drop(state);
        Batch { new_connections, messages: frames.len(), frames: join(frames, bytes), command, more }
    }

    /// Takes only the connections that wait for loop `index`. The loop calls [`Mailboxes::take`] later, for the rest.
    pub(crate) fn take_new_connections(&self, index: usize) -> Vec<NewConnection> {
        std::mem::take(&mut self.lock().mailboxes[index].new_connections)
    }

    fn wake_for_new_connections(&self) {
        let mut state = self.lock();
        state.wake_deferred = false;
        for (mailbox, waker) in state.mailboxes.iter_mut().zip(&self.wakers) {
            if !mailbox.new_connections.is_empty() {
                mailbox.wake(waker);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the loops that have new connections, when it is dropped: waking a loop costs more than registering a
/// connection, so it is kept until all connections that come together have been assigned.
#[must_use = "it wakes the loops when it is dropped"]
#[derive(Debug)]
pub(crate) struct DeferredWake(Arc<Mailboxes>);

impl Drop for DeferredWake {
    fn drop(&mut self) {
        self.0.wake_for_new_connections();
    }
}

/// Returns the bytes of all frames, without a copy if there is only one.
fn join(frames: Vec<Frame>, bytes: usize) -> Bytes {
    match <[Frame; 1]>::try_from(frames) {
        Ok([frame]) => frame.bytes().clone(),
        Err(frames) => {
            let mut joined = Vec::with_capacity(bytes);
            for frame in frames {
                joined.extend_from_slice(frame.bytes());
            }
            joined.into()
        }
    }
}

#[cfg(test)]
mod tests;
