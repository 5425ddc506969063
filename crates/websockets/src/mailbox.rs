//! How work reaches the event loops: one mailbox each, filled under one lock, so that every loop gets
//! everything in the same order.

use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
    snapshot::{ConnectionSnapshot, FrozenLoop},
    stats::Stats,
};

/// When this much waits for the slowest loop, publishers have to wait: it is a few turns' worth, so
/// loops never run dry, and memory is bounded.
const HIGH_WATER_MARK: usize = 1 << 20;

/// Most bytes that a loop takes, and writes to each client, in one go. Far below any sensible
/// `max_queue`: a client must not count as slow because the server was.
const MAX_WRITE_BATCH: usize = 128 << 10;

/// So many clients are served by one loop: waking another one for each message costs more than it saves, as
/// writing to all of these takes about a millisecond.
const MIN_CONNECTIONS_PER_LOOP: usize = 256;

/// A client that comes to a loop.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: TcpStream,
    pub(crate) permit: Permit,
    pub(crate) source: ConnectionSource,
}

/// Where a client comes from.
#[derive(Debug)]
pub(crate) enum ConnectionSource {
    /// It made its handshake here.
    Handshake(ClientId, Handshake),
    /// Another process served it until now.
    Handover(Box<ConnectionSnapshot>),
}

/// What a loop does for all of its clients, in order.
#[derive(Debug, Clone)]
pub(crate) enum LoopCommand {
    Publish(Frame),
    /// The last call; who comes in later hears it too.
    BeginDrain(ShutdownNotice),
    /// Start closing everyone, and whoever still comes in.
    CloseAll(CloseReason),
    /// Close those inside one by one until this moment, each reminded of the notice before.
    CloseGradually(CloseReason, Instant),
    Disconnect(ClientId, CloseReason),
    /// Tell what was counted.
    CollectStats(mpsc::Sender<Stats>),
    /// Do not read any more, and say so: nothing more is published because a client said it.
    PauseReads(mpsc::Sender<()>),
    /// Read again.
    ResumeReads,
    /// Let go of the clients until they come back.
    Freeze(mpsc::Sender<FrozenLoop>),
    /// Drop everyone and end.
    Stop,
    /// Panic, as a bug does.
    #[cfg(test)]
    Panic,
}

/// What a loop took from its mailbox.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) new_connections: Vec<NewConnection>,
    /// Publications one after the other, as one run of bytes.
    pub(crate) frames: Bytes,
    /// How many these are.
    pub(crate) messages: usize,
    /// To be done after `frames`.
    pub(crate) command: Option<LoopCommand>,
}

#[derive(Debug, Default)]
struct Mailbox {
    new_connections: Vec<NewConnection>,
    commands: VecDeque<LoopCommand>,
    /// Bytes of the frames in `commands`.
    bytes: usize,
    /// Whether its loop knows that there is something, and need not be woken.
    wake_pending: bool,
}

#[derive(Debug)]
pub(crate) struct Mailboxes {
    mailboxes: Mutex<Vec<Mailbox>>,
    wakers: Vec<Waker>,
    full: AtomicBool,
    capacity: Notify,
    /// Clients of each loop, as it last said.
    loads: Vec<AtomicUsize>,
    /// Whether somebody is going to call [`Mailboxes::wake`]; changed under the lock only.
    wake_is_due: AtomicBool,
}

impl Mailboxes {
    pub(crate) fn new(wakers: Vec<Waker>) -> Self {
        let mailboxes = wakers.iter().map(|_| Mailbox::default()).collect();
        let loads = wakers.iter().map(|_| AtomicUsize::new(0)).collect();
        Self {
            mailboxes: Mutex::new(mailboxes),
            wakers,
            full: AtomicBool::new(false),
            capacity: Notify::new(),
            loads,
            wake_is_due: AtomicBool::new(false),
        }
    }

    /// How many loops there are.
    pub(crate) fn loops(&self) -> usize {
        self.wakers.len()
    }

    /// Sends a command to every loop.
    pub(crate) fn send(&self, command: &LoopCommand) {
        let mut mailboxes = self.lock();
        for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
            if let LoopCommand::Publish(frame) = command {
                mailbox.bytes += frame.bytes().len();
                if mailbox.bytes >= HIGH_WATER_MARK {
                    self.full.store(true, Ordering::Relaxed);
                }
            }
            mailbox.commands.push_back(command.clone());
            wake(mailbox, waker);
        }
    }

    /// Sends publications to every loop, which takes them together: none is woken for the first one only.
    pub(crate) fn publish(&self, frames: &mut Vec<Frame>) {
        let bytes: usize = frames.iter().map(|frame| frame.bytes().len()).sum();
        let mut mailboxes = self.lock();
        for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
            mailbox.bytes += bytes;
            if mailbox.bytes >= HIGH_WATER_MARK {
                self.full.store(true, Ordering::Relaxed);
            }
            mailbox.commands.extend(frames.iter().cloned().map(LoopCommand::Publish));
            wake(mailbox, waker);
        }
        frames.clear();
    }

    /// Gives a client to one of the loops without waking it: [`Mailboxes::wake`] does that for many at once. Whether
    /// that is to be called: nobody has said so yet.
    ///
    /// The first loop that has only a [`MIN_CONNECTIONS_PER_LOOP`] gets it, or else the one that has the fewest.
    #[must_use]
    pub(crate) fn assign(&self, connection: NewConnection) -> bool {
        let mut mailboxes = self.lock();
        let report_load = |(mailbox, report_load): (&Mailbox, &AtomicUsize)| {
            mailbox.new_connections.len() + report_load.load(Ordering::Relaxed)
        };
        let loads = mailboxes.iter().zip(&self.loads).map(report_load).enumerate();
        let index = match loads.clone().find(|(_, report_load)| *report_load < MIN_CONNECTIONS_PER_LOOP) {
            Some((index, _)) => index,
            None => loads.min_by_key(|(_, report_load)| *report_load).map_or(0, |(index, _)| index),
        };
        mailboxes[index].new_connections.push(connection);
        !self.wake_is_due.swap(true, Ordering::Relaxed)
    }

    /// Notes how many clients a loop has.
    pub(crate) fn report_load(&self, index: usize, clients: usize) {
        self.loads[index].store(clients, Ordering::Relaxed);
    }

    /// Wakes the loops that have new connections.
    pub(crate) fn wake(&self) {
        let mut mailboxes = self.lock();
        self.wake_is_due.store(false, Ordering::Relaxed);
        for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
            if !mailbox.new_connections.is_empty() {
                wake(mailbox, waker);
            }
        }
    }

    /// Whether publishers may go on. They ask before they publish; a little more than [`HIGH_WATER_MARK`] is harmless.
    pub(crate) fn has_capacity(&self) -> bool {
        !self.full.load(Ordering::Relaxed)
    }

    /// Waits until publishers may go on.
    pub(crate) async fn wait_for_capacity(&self) {
        while !self.has_capacity() {
            let notified = self.capacity.notified();
            if self.has_capacity() {
                break;
            }
            notified.await;
        }
    }

    /// What waits for loop `index`: new connections first, then at most [`MAX_WRITE_BATCH`] bytes of publications and the
    /// first other command. Whether more waits.
    pub(crate) fn take(&self, index: usize) -> (Batch, bool) {
        let mut mailboxes = self.lock();
        let mailbox = &mut mailboxes[index];
        let mut taken =
            Batch { new_connections: std::mem::take(&mut mailbox.new_connections), ..Batch::default() };
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        while let Some(command) = mailbox.commands.pop_front() {
            match command {
                LoopCommand::Publish(frame)
                    if bytes == 0 || bytes + frame.bytes().len() <= MAX_WRITE_BATCH =>
                {
                    bytes += frame.bytes().len();
                    frames.push(frame);
                }
                LoopCommand::Publish(_) => {
                    mailbox.commands.push_front(command);
                    break;
                }
                command => {
                    taken.command = Some(command);
                    break;
                }
            }
        }
        mailbox.bytes -= bytes;
        let more = !mailbox.commands.is_empty();
        mailbox.wake_pending = more;
        if self.full.load(Ordering::Relaxed)
            && mailboxes.iter().all(|mailbox| mailbox.bytes <= HIGH_WATER_MARK / 2)
        {
            self.full.store(false, Ordering::Relaxed);
            self.capacity.notify_waiters();
            // Loops stop reading from clients when there is no room.
            for (mailbox, waker) in mailboxes.iter_mut().zip(&self.wakers) {
                wake(mailbox, waker);
            }
        }
        drop(mailboxes);
        taken.messages = frames.len();
        taken.frames = join(frames, bytes);
        (taken, more)
    }

    /// The new connections that wait for loop `index`. It is to call [`Mailboxes::take`] soon, for the rest.
    pub(crate) fn take_new_connections(&self, index: usize) -> Vec<NewConnection> {
        std::mem::take(&mut self.lock()[index].new_connections)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mailbox>> {
        // Nothing in here can panic half-way; and a server must not die of a lock.
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(mailbox: &mut Mailbox, waker: &Waker) {
    if mailbox.wake_pending {
        return;
    }
    match waker.wake() {
        Ok(()) => mailbox.wake_pending = true,
        // Not wake_pending then: the next one who sends tries again.
        Err(error) => report_wake(&error),
    }
}

#[cold]
fn report_wake(error: &io::Error) {
    tracing::error!(%error, "an event loop could not be woken");
}

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
mod tests {
    use mio::{Poll, Token};

    use super::*;
    use crate::admission::Admission;

    fn connection() -> NewConnection {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let permit = Admission::new(1).admit().unwrap();
        let source = ConnectionSource::Handshake(ClientId::generate(), Handshake::default());
        NewConnection { stream, permit, source }
    }

    fn mailboxes(loops: usize) -> (Mailboxes, Vec<Poll>) {
        let polls: Vec<_> = (0..loops).map(|_| Poll::new().unwrap()).collect();
        let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), Token(0)).unwrap());
        (Mailboxes::new(wakers.collect()), polls)
    }

    #[test]
    fn every_newcomer_has_somebody_who_wakes_its_loop() {
        let (mailboxes, _polls) = mailboxes(2);
        assert!(mailboxes.assign(connection()), "the first one sees to it");
        assert!(!mailboxes.assign(connection()), "and is waited for");
        mailboxes.wake();
        // Nothing has been taken yet: what comes now has not been woken for.
        assert!(mailboxes.assign(connection()));
    }

    #[test]
    fn a_few_stay_together_and_many_are_spread() {
        let (mailboxes, _polls) = mailboxes(2);
        let taken = |index: usize| mailboxes.take(index).0.new_connections.len();
        for _ in 0..MIN_CONNECTIONS_PER_LOOP {
            let _ = mailboxes.assign(connection());
        }
        assert_eq!((taken(0), taken(1)), (MIN_CONNECTIONS_PER_LOOP, 0));
        mailboxes.report_load(0, MIN_CONNECTIONS_PER_LOOP);
        for _ in 0..MIN_CONNECTIONS_PER_LOOP {
            let _ = mailboxes.assign(connection());
        }
        assert_eq!((taken(0), taken(1)), (0, MIN_CONNECTIONS_PER_LOOP));
        mailboxes.report_load(1, MIN_CONNECTIONS_PER_LOOP);
        for _ in 0..100 {
            let _ = mailboxes.assign(connection());
        }
        assert_eq!((taken(0), taken(1)), (50, 50));
        // Those who leave make room.
        mailboxes.report_load(0, 10);
        mailboxes.report_load(1, MIN_CONNECTIONS_PER_LOOP + 50);
        let _ = mailboxes.assign(connection());
        assert_eq!((taken(0), taken(1)), (1, 0));
    }

    #[test]
    fn publications_are_taken_together_in_order_up_to_a_batch() {
        let (mailboxes, _polls) = mailboxes(1);
        let frame = Frame::text(&"x".repeat(60_000));
        for _ in 0..3 {
            mailboxes.send(&LoopCommand::Publish(frame.clone()));
        }
        mailboxes.send(&LoopCommand::Stop);
        let (taken, more) = mailboxes.take(0);
        assert_eq!((taken.frames.len(), more), (2 * frame.bytes().len(), true));
        assert!(taken.command.is_none());
        let (taken, more) = mailboxes.take(0);
        assert_eq!((taken.frames.len(), more), (frame.bytes().len(), false));
        assert!(matches!(taken.command, Some(LoopCommand::Stop)));
    }

    #[test]
    fn one_larger_than_a_batch_is_taken_alone() {
        let (mailboxes, _polls) = mailboxes(1);
        let frame = Frame::text(&"x".repeat(2 * MAX_WRITE_BATCH));
        mailboxes.send(&LoopCommand::Publish(frame.clone()));
        assert_eq!(mailboxes.take(0).0.frames.len(), frame.bytes().len());
    }

    #[tokio::test]
    async fn publishers_wait_while_a_loop_is_behind() {
        let (mailboxes, _polls) = mailboxes(2);
        let frame = Frame::text(&"x".repeat(60_000));
        while mailboxes.has_capacity() {
            mailboxes.send(&LoopCommand::Publish(frame.clone()));
        }
        let mut waiting = Box::pin(mailboxes.wait_for_capacity());
        assert!(tokio::time::timeout(std::time::Duration::ZERO, &mut waiting).await.is_err());
        while mailboxes.take(0).1 {}
        assert!(!mailboxes.has_capacity(), "the other loop is still behind");
        while mailboxes.take(1).1 {}
        waiting.await;
    }
}
