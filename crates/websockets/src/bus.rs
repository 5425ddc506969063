//! How work reaches the event loops: one inbox each, filled under one lock, so that every loop gets
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
    client_id::ClientId,
    codec::{CloseReason, Frame},
    handshake::Handshake,
    notice::Notice,
    occupancy::Place,
    snapshot::{ConnectionState, FrozenLoop},
    stats::Figures,
};

/// When this much waits for the slowest loop, publishers have to wait: it is a few turns' worth, so
/// loops never run dry, and memory is bounded.
const FULL: usize = 1 << 20;

/// Most bytes that a loop takes, and writes to each client, in one go. Far below any sensible
/// `max_queue`: a client must not count as slow because the server was.
const BATCH: usize = 128 << 10;

/// So many clients are served by one loop: waking another one for each message costs more than it saves, as
/// writing to all of these takes about a millisecond.
const FEW: usize = 256;

/// A client that comes to a loop.
#[derive(Debug)]
pub(crate) struct Newcomer {
    pub(crate) stream: TcpStream,
    pub(crate) place: Place,
    pub(crate) from: Origin,
}

/// Where a client comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It made its handshake here.
    Handshake(ClientId, Handshake),
    /// Another process served it until now.
    Handover(Box<ConnectionState>),
}

/// What a loop does for all of its clients, in order.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Publish(Frame),
    /// The last call; who comes in later hears it too.
    Notice(Notice),
    /// Start closing everyone, and whoever still comes in.
    CloseAll(CloseReason),
    /// Close those inside one by one until this moment, each reminded of the notice before.
    CloseUntil(CloseReason, Instant),
    Disconnect(ClientId, CloseReason),
    /// Tell what was counted.
    Measure(mpsc::Sender<Figures>),
    /// Do not read any more, and say so: nothing more is published because a client said it.
    Hush(mpsc::Sender<()>),
    /// Read again.
    Listen,
    /// Let go of the clients until they come back.
    Freeze(mpsc::Sender<FrozenLoop>),
    /// Drop everyone and end.
    Stop,
    /// Panic, as a bug does.
    #[cfg(test)]
    Panic,
}

/// What a loop took from its inbox.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) newcomers: Vec<Newcomer>,
    /// Publications one after the other, as one run of bytes.
    pub(crate) frames: Bytes,
    /// How many these are.
    pub(crate) messages: usize,
    /// To be done after `frames`.
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Default)]
struct Inbox {
    newcomers: Vec<Newcomer>,
    commands: VecDeque<Command>,
    /// Bytes of the frames in `commands`.
    bytes: usize,
    /// Whether its loop knows that there is something, and need not be woken.
    awake: bool,
}

#[derive(Debug)]
pub(crate) struct Bus {
    inboxes: Mutex<Vec<Inbox>>,
    wakers: Vec<Waker>,
    full: AtomicBool,
    room: Notify,
    /// Clients of each loop, as it last said.
    crowds: Vec<AtomicUsize>,
    /// Whether somebody is going to call [`Bus::wake`]; changed under the lock only.
    wake_is_due: AtomicBool,
}

impl Bus {
    pub(crate) fn new(wakers: Vec<Waker>) -> Self {
        let inboxes = wakers.iter().map(|_| Inbox::default()).collect();
        let crowds = wakers.iter().map(|_| AtomicUsize::new(0)).collect();
        Self {
            inboxes: Mutex::new(inboxes),
            wakers,
            full: AtomicBool::new(false),
            room: Notify::new(),
            crowds,
            wake_is_due: AtomicBool::new(false),
        }
    }

    /// How many loops there are.
    pub(crate) fn loops(&self) -> usize {
        self.wakers.len()
    }

    /// Sends a command to every loop.
    pub(crate) fn send(&self, command: &Command) {
        let mut inboxes = self.lock();
        for (inbox, waker) in inboxes.iter_mut().zip(&self.wakers) {
            if let Command::Publish(frame) = command {
                inbox.bytes += frame.bytes().len();
                if inbox.bytes >= FULL {
                    self.full.store(true, Ordering::Relaxed);
                }
            }
            inbox.commands.push_back(command.clone());
            wake(inbox, waker);
        }
    }

    /// Sends publications to every loop, which takes them together: none is woken for the first one only.
    pub(crate) fn publish(&self, frames: &mut Vec<Frame>) {
        let bytes: usize = frames.iter().map(|frame| frame.bytes().len()).sum();
        let mut inboxes = self.lock();
        for (inbox, waker) in inboxes.iter_mut().zip(&self.wakers) {
            inbox.bytes += bytes;
            if inbox.bytes >= FULL {
                self.full.store(true, Ordering::Relaxed);
            }
            inbox.commands.extend(frames.iter().cloned().map(Command::Publish));
            wake(inbox, waker);
        }
        frames.clear();
    }

    /// Gives a client to one of the loops without waking it: [`Bus::wake`] does that for many at once. Whether
    /// that is to be called: nobody has said so yet.
    ///
    /// The first loop that has only a [`FEW`] gets it, or else the one that has the fewest.
    #[must_use]
    pub(crate) fn hand_over(&self, newcomer: Newcomer) -> bool {
        let mut inboxes = self.lock();
        let crowd =
            |(inbox, crowd): (&Inbox, &AtomicUsize)| inbox.newcomers.len() + crowd.load(Ordering::Relaxed);
        let crowds = inboxes.iter().zip(&self.crowds).map(crowd).enumerate();
        let index = match crowds.clone().find(|(_, crowd)| *crowd < FEW) {
            Some((index, _)) => index,
            None => crowds.min_by_key(|(_, crowd)| *crowd).map_or(0, |(index, _)| index),
        };
        inboxes[index].newcomers.push(newcomer);
        !self.wake_is_due.swap(true, Ordering::Relaxed)
    }

    /// Notes how many clients a loop has.
    pub(crate) fn crowd(&self, index: usize, clients: usize) {
        self.crowds[index].store(clients, Ordering::Relaxed);
    }

    /// Wakes the loops that have newcomers.
    pub(crate) fn wake(&self) {
        let mut inboxes = self.lock();
        self.wake_is_due.store(false, Ordering::Relaxed);
        for (inbox, waker) in inboxes.iter_mut().zip(&self.wakers) {
            if !inbox.newcomers.is_empty() {
                wake(inbox, waker);
            }
        }
    }

    /// Whether publishers may go on. They ask before they publish; a little more than [`FULL`] is harmless.
    pub(crate) fn has_room(&self) -> bool {
        !self.full.load(Ordering::Relaxed)
    }

    /// Waits until publishers may go on.
    pub(crate) async fn room(&self) {
        while !self.has_room() {
            let notified = self.room.notified();
            if self.has_room() {
                break;
            }
            notified.await;
        }
    }

    /// What waits for loop `index`: newcomers first, then at most [`BATCH`] bytes of publications and the
    /// first other command. Whether more waits.
    pub(crate) fn take(&self, index: usize) -> (Taken, bool) {
        let mut inboxes = self.lock();
        let inbox = &mut inboxes[index];
        let mut taken = Taken { newcomers: std::mem::take(&mut inbox.newcomers), ..Taken::default() };
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        while let Some(command) = inbox.commands.pop_front() {
            match command {
                Command::Publish(frame) if bytes == 0 || bytes + frame.bytes().len() <= BATCH => {
                    bytes += frame.bytes().len();
                    frames.push(frame);
                }
                Command::Publish(_) => {
                    inbox.commands.push_front(command);
                    break;
                }
                command => {
                    taken.command = Some(command);
                    break;
                }
            }
        }
        inbox.bytes -= bytes;
        let more = !inbox.commands.is_empty();
        inbox.awake = more;
        if self.full.load(Ordering::Relaxed) && inboxes.iter().all(|inbox| inbox.bytes <= FULL / 2) {
            self.full.store(false, Ordering::Relaxed);
            self.room.notify_waiters();
            // Loops stop reading from clients when there is no room.
            for (inbox, waker) in inboxes.iter_mut().zip(&self.wakers) {
                wake(inbox, waker);
            }
        }
        drop(inboxes);
        taken.messages = frames.len();
        taken.frames = join(frames, bytes);
        (taken, more)
    }

    /// The newcomers that wait for loop `index`. It is to call [`Bus::take`] soon, for the rest.
    pub(crate) fn take_newcomers(&self, index: usize) -> Vec<Newcomer> {
        std::mem::take(&mut self.lock()[index].newcomers)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Inbox>> {
        // Nothing in here can panic half-way; and a server must not die of a lock.
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(inbox: &mut Inbox, waker: &Waker) {
    if inbox.awake {
        return;
    }
    match waker.wake() {
        Ok(()) => inbox.awake = true,
        // Not awake then: the next one who sends tries again.
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
    use crate::occupancy::Door;

    fn newcomer() -> Newcomer {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let place = Door::new(1).admit().unwrap();
        let from = Origin::Handshake(ClientId::generate(), Handshake::default());
        Newcomer { stream, place, from }
    }

    fn bus(loops: usize) -> (Bus, Vec<Poll>) {
        let polls: Vec<_> = (0..loops).map(|_| Poll::new().unwrap()).collect();
        let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), Token(0)).unwrap());
        (Bus::new(wakers.collect()), polls)
    }

    #[test]
    fn every_newcomer_has_somebody_who_wakes_its_loop() {
        let (bus, _polls) = bus(2);
        assert!(bus.hand_over(newcomer()), "the first one sees to it");
        assert!(!bus.hand_over(newcomer()), "and is waited for");
        bus.wake();
        // Nothing has been taken yet: what comes now has not been woken for.
        assert!(bus.hand_over(newcomer()));
    }

    #[test]
    fn a_few_stay_together_and_many_are_spread() {
        let (bus, _polls) = bus(2);
        let taken = |index: usize| bus.take(index).0.newcomers.len();
        for _ in 0..FEW {
            let _ = bus.hand_over(newcomer());
        }
        assert_eq!((taken(0), taken(1)), (FEW, 0));
        bus.crowd(0, FEW);
        for _ in 0..FEW {
            let _ = bus.hand_over(newcomer());
        }
        assert_eq!((taken(0), taken(1)), (0, FEW));
        bus.crowd(1, FEW);
        for _ in 0..100 {
            let _ = bus.hand_over(newcomer());
        }
        assert_eq!((taken(0), taken(1)), (50, 50));
        // Those who leave make room.
        bus.crowd(0, 10);
        bus.crowd(1, FEW + 50);
        let _ = bus.hand_over(newcomer());
        assert_eq!((taken(0), taken(1)), (1, 0));
    }

    #[test]
    fn publications_are_taken_together_in_order_up_to_a_batch() {
        let (bus, _polls) = bus(1);
        let frame = Frame::text(&"x".repeat(60_000));
        for _ in 0..3 {
            bus.send(&Command::Publish(frame.clone()));
        }
        bus.send(&Command::Stop);
        let (taken, more) = bus.take(0);
        assert_eq!((taken.frames.len(), more), (2 * frame.bytes().len(), true));
        assert!(taken.command.is_none());
        let (taken, more) = bus.take(0);
        assert_eq!((taken.frames.len(), more), (frame.bytes().len(), false));
        assert!(matches!(taken.command, Some(Command::Stop)));
    }

    #[test]
    fn one_larger_than_a_batch_is_taken_alone() {
        let (bus, _polls) = bus(1);
        let frame = Frame::text(&"x".repeat(2 * BATCH));
        bus.send(&Command::Publish(frame.clone()));
        assert_eq!(bus.take(0).0.frames.len(), frame.bytes().len());
    }

    #[tokio::test]
    async fn publishers_wait_while_a_loop_is_behind() {
        let (bus, _polls) = bus(2);
        let frame = Frame::text(&"x".repeat(60_000));
        while bus.has_room() {
            bus.send(&Command::Publish(frame.clone()));
        }
        let mut waiting = Box::pin(bus.room());
        assert!(tokio::time::timeout(std::time::Duration::ZERO, &mut waiting).await.is_err());
        while bus.take(0).1 {}
        assert!(!bus.has_room(), "the other loop is still behind");
        while bus.take(1).1 {}
        waiting.await;
    }
}
