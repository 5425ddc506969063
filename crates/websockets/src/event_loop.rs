//! One thread that owns its share of the sockets: no task, no lock and no buffer per client.
//!
//! A turn: ask the kernel what happened, read from those who sent something, go on with what is to be
//! written to everyone, then the timers. Each part stops after [`SLICE`] and goes on in the next turn, so
//! neither a flood from one client nor a broadcast to ten thousand keeps anybody waiting for long.

use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use tokio::sync::mpsc;
use tracing::{debug, trace};

use crate::{
    bus::{Bus, Command, Newcomer, Origin},
    client_id::ClientId,
    clock::Clock,
    close::CloseReason,
    connection::{Connection, Outcome, Readable, Rules},
    figures::Figures,
    frame::Frame,
    freeze::FrozenLoop,
    handshake::Handshake,
    heartbeat::{BUCKETS, Beat, Heartbeat},
    message::{BROADCAST, Server, ServerMessage},
    notice::Notice,
    occupancy::{Departure, Place},
    pace::Pace,
    state::ConnectionState,
};
use lastcall_core::settings::ClientMessages;

const WAKE: Token = Token(usize::MAX);

/// How long one part of a turn may take before the others have their turn.
const SLICE: Duration = Duration::from_millis(4);

/// Clients between two looks at the clock, which costs about as much as a hundredth of a write.
const CLOCK_EVERY: usize = 32;

/// Reads between two looks at the clock. A read that fills the buffer takes much longer than one of a message.
const READS_PER_LOOK: usize = 8;

/// One read: enough for many messages, and small enough that one client does not fill a slice.
const READ_BUFFER: usize = 64 << 10;

/// Asked of the kernel at once.
const EVENTS: usize = 1024;

/// What is being written to everyone; a broadcast to many takes several turns.
struct Fanout {
    kind: FanoutKind,
    /// Slot of the next client.
    next: usize,
}

enum FanoutKind {
    /// Publications as one run of bytes, and how many these are.
    Frames(Bytes, usize),
    /// The first notice, which every client gets.
    Notice(Notice),
    /// The same again, for those that have nothing waiting.
    Reminder(Notice),
    Close(CloseReason),
}

/// What a loop needs to know from the start.
pub(crate) struct Setup {
    /// Which of the bus's inboxes is its own.
    pub(crate) index: usize,
    pub(crate) poll: Poll,
    pub(crate) rules: Rules,
    pub(crate) close_timeout: Duration,
    /// Time between pings and time to answer one; `None`: no pings.
    pub(crate) heartbeat: Option<(Duration, Duration)>,
}

pub(crate) struct EventLoop {
    setup: Setup,
    bus: Arc<Bus>,
    clock: Clock,
    clients: Slab<Connection>,
    /// Clients to read from, each once. They take turns, one read each.
    readers: VecDeque<usize>,
    /// Clients that are closing, and when by the loop's clock they are cut off. All have the same time, so this is in order.
    closing: VecDeque<(Instant, usize, ClientId)>,
    heartbeat: Option<Heartbeat>,
    /// Who is closed when, and why, once those inside are being closed one by one.
    pace: Option<(Pace, CloseReason)>,
    fanout: Option<Fanout>,
    /// The command that comes after the fan-out.
    then: Option<Command>,
    /// Whether the inbox holds more.
    more: bool,
    /// What newcomers are told, once a drain started.
    notice: Option<Notice>,
    /// Why newcomers are closed, once all are being closed.
    close_reason: Option<CloseReason>,
    /// Whether nothing is to be read.
    hushed: bool,
    stopped: bool,
    figures: Figures,
    /// What one client said at once; empty between reads.
    said: Vec<Frame>,
    buffer: Vec<u8>,
}

impl EventLoop {
    /// A poll and what wakes it.
    pub(crate) fn poll() -> io::Result<(Poll, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        Ok((poll, waker))
    }

    pub(crate) fn new(setup: Setup, bus: Arc<Bus>) -> Self {
        let clock = Clock::start(Instant::now());
        let heartbeat = setup
            .heartbeat
            .filter(|_| !setup.rules.is_echo())
            .map(|(interval, timeout)| Heartbeat::new(interval, timeout, clock.now()));
        Self {
            setup,
            bus,
            clock,
            clients: Slab::new(),
            readers: VecDeque::new(),
            closing: VecDeque::new(),
            heartbeat,
            pace: None,
            fanout: None,
            then: None,
            more: false,
            notice: None,
            close_reason: None,
            hushed: false,
            stopped: false,
            figures: Figures::default(),
            said: Vec::new(),
            buffer: vec![0; READ_BUFFER],
        }
    }

    /// Serves until [`Command::Stop`]; then every client that is left is cut off.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopped {
            let patience = self.patience();
            let polled = self.setup.poll.poll(&mut events, patience);
            let woken = Instant::now();
            self.clock.after_wait(woken, patience);
            match polled {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "an event loop cannot go on: its clients are cut off");
                    break;
                }
            }
            for event in &events {
                if event.token() == WAKE {
                    self.more = true;
                    continue;
                }
                let slot = event.token().0;
                if event.is_writable() {
                    self.flush(slot);
                }
                if event.is_read_closed()
                    && let Some(connection) = self.clients.get_mut(slot)
                {
                    connection.half_closed = true;
                }
                if event.is_readable() || event.is_read_closed() {
                    self.wants_to_be_read(slot);
                }
            }
            self.read();
            self.work();
            self.beat();
            self.close_those_due();
            self.cut_off_late_ones();
            self.bus.crowd(self.setup.index, self.clients.len());
            let end = Instant::now();
            self.clock.read(end);
            self.figures.turns.count(end.saturating_duration_since(woken));
        }
        for connection in self.clients.drain() {
            connection.depart(Departure::Cut);
        }
    }

    /// How long the kernel may let the loop sleep.
    fn patience(&self) -> Option<Duration> {
        let reads = !self.readers.is_empty() && self.may_read();
        if reads || self.more || self.fanout.is_some() || self.then.is_some() {
            return Some(Duration::ZERO);
        }
        let beat = self.heartbeat.as_ref().filter(|_| !self.clients.is_empty()).map(Heartbeat::next);
        let cut = self.closing.front().map(|(deadline, ..)| *deadline);
        let close = self.pace.as_ref().and_then(|(pace, _)| pace.next());
        let running = [beat, cut].into_iter().flatten().min();
        let running = running.map(|next| next.saturating_duration_since(self.clock.now()));
        // Clients know when the drain ends: that is a moment of the system's clock.
        let close = close.map(|next| next.saturating_duration_since(self.clock.system()));
        // mio rounds it up to milliseconds, as epoll counts in these: waking early would mean spinning.
        [running, close].into_iter().flatten().min()
    }

    /// Whether what clients send can be passed on now.
    fn may_read(&self) -> bool {
        !self.hushed && (self.setup.rules.client_messages != ClientMessages::Broadcast || self.bus.has_room())
    }

    fn wants_to_be_read(&mut self, slot: usize) {
        if let Some(connection) = self.clients.get_mut(slot)
            && !connection.waits_to_be_read
        {
            connection.waits_to_be_read = true;
            self.readers.push_back(slot);
        }
    }

    fn read(&mut self) {
        let started = Instant::now();
        let mut reads = 0_usize;
        while self.may_read()
            && let Some(slot) = self.readers.pop_front()
        {
            let Some(connection) = self.clients.get_mut(slot) else { continue };
            let said = &mut self.said;
            let (outcome, readable) =
                connection.read(&mut self.buffer, &self.setup.rules, &mut self.figures, |id, text| {
                    said.push(message(id, text));
                });
            if !self.said.is_empty() {
                self.bus.publish(&mut self.said);
            }
            match readable {
                Readable::Maybe => self.readers.push_back(slot),
                Readable::No => connection.waits_to_be_read = false,
            }
            self.settle(slot, outcome);
            reads += 1;
            if reads.is_multiple_of(READS_PER_LOOK) && started.elapsed() > SLICE {
                break;
            }
        }
    }

    fn flush(&mut self, slot: usize) {
        let Some(connection) = self.clients.get_mut(slot) else { return };
        if !connection.has_output() {
            return;
        }
        let outcome = connection.flush();
        let read_on = !connection.has_output();
        self.settle(slot, outcome);
        if read_on {
            // It may have been held back because of its output.
            self.wants_to_be_read(slot);
        }
    }

    /// Does what an outcome asks for.
    fn settle(&mut self, slot: usize, outcome: Outcome) {
        self.watch_output(slot);
        match outcome {
            Outcome::Unchanged => {}
            Outcome::TooSlow => self.close(slot, CloseReason::SlowConsumer),
            Outcome::CloseStarted => {
                if let Some(connection) = self.clients.get(slot) {
                    let deadline = self.clock.read(Instant::now()) + self.setup.close_timeout;
                    self.closing.push_back((deadline, slot, connection.id));
                }
            }
            Outcome::Over(departure) => self.end(slot, departure),
        }
    }

    /// Closes a client; during a drain, it is told once more when to come back.
    fn close(&mut self, slot: usize, reason: CloseReason) {
        let Some(connection) = self.clients.get_mut(slot) else { return };
        let notice = self.notice.filter(|_| connection.is_open() && !self.setup.rules.is_echo());
        let notice = notice.map(|notice| notice.frame(connection.id));
        let outcome = connection.close(reason, notice.as_ref());
        self.settle(slot, outcome);
    }

    /// Has the kernel tell when a client takes output again.
    fn watch_output(&mut self, slot: usize) {
        let Some(connection) = self.clients.get_mut(slot) else { return };
        if connection.output_is_watched || !connection.has_output() {
            return;
        }
        connection.output_is_watched = true;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) =
            self.setup.poll.registry().reregister(&mut connection.stream, Token(slot), interest)
        {
            // Without it the output would wait for ever.
            debug!(client = %connection.id, %error, "a socket could not be watched");
            self.end(slot, Departure::Cut);
        }
    }

    fn end(&mut self, slot: usize, departure: Departure) {
        if let Some(connection) = self.clients.try_remove(slot) {
            // Closing the socket takes it off the poll.
            debug!(
                client = %connection.id,
                peer = connection.stream.peer_addr().ok().map(display),
                seconds = connection.id.age().as_secs_f64(),
                how = ?departure,
                reason = connection.close_reason().map(CloseReason::reason),
                "connection ended"
            );
            self.figures.count_end(departure, connection.close_reason());
            connection.depart(departure);
        }
    }

    /// Goes on with the fan-out, then takes what gathered in the inbox meanwhile.
    fn work(&mut self) {
        let started = Instant::now();
        // A newcomer does not wait for the end of a fan-out. It comes into it if there is a slot for it further on;
        // its greeting goes first either way. Only the notice it has with the greeting, and must not have twice.
        let notice = |fanout: &Fanout| matches!(fanout.kind, FanoutKind::Notice(_) | FanoutKind::Reminder(_));
        if self.more && self.fanout.as_ref().is_some_and(|fanout| !notice(fanout)) {
            for newcomer in self.bus.take_newcomers(self.setup.index) {
                self.welcome(newcomer);
            }
        }
        loop {
            if self.fanout.is_some() {
                if !self.fan_out(started) {
                    return;
                }
            } else if let Some(command) = self.then.take() {
                self.start(command);
            } else if self.more && started.elapsed() < SLICE {
                let (taken, more) = self.bus.take(self.setup.index);
                self.more = more;
                for newcomer in taken.newcomers {
                    self.welcome(newcomer);
                }
                self.then = taken.command;
                if !taken.frames.is_empty() && !self.setup.rules.is_echo() {
                    self.fanout =
                        Some(Fanout { kind: FanoutKind::Frames(taken.frames, taken.messages), next: 0 });
                }
            } else {
                return;
            }
        }
    }

    /// Starts what a command asks for.
    fn start(&mut self, command: Command) {
        let kind = match command {
            Command::Publish(frame) => FanoutKind::Frames(frame.bytes().clone(), 1),
            Command::Notice(notice) => {
                let first = self.notice.replace(notice).is_none();
                if self.setup.rules.is_echo() {
                    return;
                }
                if first { FanoutKind::Notice(notice) } else { FanoutKind::Reminder(notice) }
            }
            Command::CloseUntil(reason, until) => {
                let open = self.clients.iter().filter(|(_, connection)| connection.is_open());
                let open = open.map(|(slot, connection)| (slot, connection.id));
                self.pace = Some((Pace::new(open, Instant::now(), until), reason));
                return;
            }
            Command::CloseAll(reason) => {
                self.close_reason = Some(reason);
                if let Some(notice) = &mut self.notice {
                    // A drain that is cut short ends now.
                    notice.deadline = notice.deadline.min(Instant::now());
                }
                FanoutKind::Close(reason)
            }
            Command::Disconnect(id, reason) => {
                let found = self.clients.iter().find(|(_, connection)| connection.id == id);
                if let Some((slot, _)) = found {
                    self.close(slot, reason);
                }
                return;
            }
            Command::Measure(reply) => {
                // Whoever asked may have gone.
                let _ = reply.try_send(self.measure());
                return;
            }
            Command::Hush(reply) => {
                self.hushed = true;
                let _ = reply.try_send(());
                return;
            }
            Command::Listen => {
                self.hushed = false;
                return;
            }
            Command::Freeze(reply) => return self.freeze(&reply),
            Command::Stop => {
                self.stopped = true;
                return;
            }
        };
        self.fanout = Some(Fanout { kind, next: 0 });
    }

    fn measure(&self) -> Figures {
        let mut figures = self.figures.clone();
        for (_, connection) in self.clients.iter().filter(|(_, connection)| connection.has_output()) {
            figures.queued_clients += 1;
            figures.queued_bytes += connection.queued() as u64;
        }
        figures
    }

    /// Lets go of the clients, and stands still until they come back. If they do not, they are another
    /// process's, and this loop has nothing more to do.
    fn freeze(&mut self, reply: &mpsc::Sender<FrozenLoop>) {
        let clients = std::mem::take(&mut self.clients);
        let now = self.clock.read(Instant::now());
        let closing = self.closing.iter().filter(|(_, slot, id)| {
            clients.get(*slot).is_some_and(|connection: &Connection| connection.id == *id)
        });
        let left =
            closing.map(|(deadline, slot, _)| (*slot, deadline.saturating_duration_since(now))).collect();
        let (frozen, returned) = FrozenLoop::new(clients, left, self.figures.clone());
        // If nobody waits for it any more, it is dropped here, and comes back at once.
        drop(reply.try_send(frozen));
        match returned.recv() {
            Ok(clients) => self.clients = clients,
            Err(_) => self.stopped = true,
        }
        self.clock.skip(Instant::now());
    }

    /// Goes on from client to client until the slice is over; whether all have had it.
    fn fan_out(&mut self, started: Instant) -> bool {
        let Some(mut fanout) = self.fanout.take() else { return true };
        while fanout.next < self.clients.capacity() {
            let slot = fanout.next;
            fanout.next += 1;
            self.reach(slot, &fanout.kind);
            if fanout.next.is_multiple_of(CLOCK_EVERY) && started.elapsed() > SLICE {
                self.fanout = Some(fanout);
                return false;
            }
        }
        true
    }

    /// Gives one client its part of a fan-out.
    fn reach(&mut self, slot: usize, kind: &FanoutKind) {
        let Some(connection) = self.clients.get_mut(slot) else { return };
        let outcome = match kind {
            FanoutKind::Frames(frames, messages) => {
                if connection.is_open() {
                    self.figures.messages_sent += *messages as u64;
                    self.figures.bytes_sent += frames.len() as u64;
                }
                connection.send(frames, &self.setup.rules)
            }
            FanoutKind::Reminder(_) if connection.has_output() => return,
            FanoutKind::Notice(notice) | FanoutKind::Reminder(notice) => {
                connection.send_however_full(notice.frame(connection.id).bytes())
            }
            FanoutKind::Close(reason) => return self.close(slot, *reason),
        };
        self.settle(slot, outcome);
    }

    /// Takes in a client.
    fn welcome(&mut self, newcomer: Newcomer) {
        let Newcomer { stream, place, from } = newcomer;
        let (id, Handshake { answer, already_read }) = match from {
            Origin::Handshake(id, handshake) => (id, handshake),
            Origin::Handover(state) => return self.adopt(stream, *state, place),
        };
        let mut stream = mio::net::TcpStream::from_std(stream);
        let entry = self.clients.vacant_entry();
        let slot = entry.key();
        // Nearly all clients always take what they are sent: whether they do is only watched once one did not.
        if let Err(error) = self.setup.poll.registry().register(&mut stream, Token(slot), Interest::READABLE)
        {
            debug!(client = %id, %error, "a new socket could not be registered");
            return place.leave(Departure::Cut);
        }
        let connection = entry.insert(Connection::new(stream, id, place));
        self.figures.opened += 1;
        trace!(client = %id, peer = connection.stream.peer_addr().ok().map(display), "connected");

        let rules = &self.setup.rules;
        let mut outcome;
        if rules.is_echo() {
            outcome = connection.greet(answer, &Bytes::new());
        } else {
            let welcome = ServerMessage::Welcome { client: id, server: Server };
            outcome = connection.greet(answer, welcome.frame().bytes());
            if let Some(notice) = &self.notice {
                outcome = outcome.max(connection.send_however_full(notice.frame(id).bytes()));
            }
        }
        if let Some(reason) = self.close_reason {
            outcome = outcome.max(connection.close(reason, None));
        }
        if !already_read.is_empty() && !matches!(outcome, Outcome::Over(_)) {
            let said = &mut self.said;
            let mut input = Vec::from(already_read);
            let figures = &mut self.figures;
            let received =
                connection.receive(&mut input, rules, figures, |id, text| said.push(message(id, text)));
            outcome = outcome.max(received);
            self.bus.publish(said);
        }
        self.settle(slot, outcome);
    }

    /// Goes on with a client that another process served until now.
    fn adopt(&mut self, stream: TcpStream, state: ConnectionState, place: Place) {
        let (id, cut_off_in_ms) = (state.id, state.cut_off_in_ms);
        let mut stream = mio::net::TcpStream::from_std(stream);
        let interest = if state.outbox.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let entry = self.clients.vacant_entry();
        let slot = entry.key();
        // The kernel tells at once what there is to be read, and whether the socket takes output.
        if let Err(error) = self.setup.poll.registry().register(&mut stream, Token(slot), interest) {
            debug!(client = %id, %error, "a socket that was handed over could not be registered");
            return place.leave(Departure::Cut);
        }
        let mut connection = Connection::restore(stream, state, place);
        connection.output_is_watched = connection.has_output();
        entry.insert(connection);
        if let Some(left) = cut_off_in_ms {
            // Another process may have had a longer timeout, or have written down nonsense.
            let left = Duration::from_millis(left).min(self.setup.close_timeout);
            self.closing.push_back((self.clock.read(Instant::now()) + left, slot, id));
            self.closing.make_contiguous().sort_unstable();
        }
    }

    /// Pings and checks what is due: one bucket a turn, the next turn follows at once.
    fn beat(&mut self) {
        let now = self.clock.read(Instant::now());
        let Some(beat) = self.heartbeat.as_mut().and_then(|heartbeat| heartbeat.due(now)) else { return };
        let (Beat::Ping(bucket) | Beat::Check(bucket)) = beat;
        let frame = Frame::ping();
        for slot in (bucket..self.clients.capacity()).step_by(BUCKETS) {
            let Some(connection) = self.clients.get_mut(slot).filter(|connection| connection.is_open())
            else {
                continue;
            };
            let outcome = match beat {
                Beat::Ping(_) if connection.ping.is_needed() => {
                    let outcome = connection.send(frame.bytes(), &self.setup.rules);
                    connection.ping.sent(connection.has_output());
                    outcome
                }
                Beat::Check(_) if connection.ping.is_overdue() => {
                    // An answer may have come that is not read yet: after a pause there is much to read.
                    if connection.has_input() {
                        self.wants_to_be_read(slot);
                        continue;
                    }
                    self.close(slot, CloseReason::Idle);
                    continue;
                }
                Beat::Ping(_) | Beat::Check(_) => continue,
            };
            self.settle(slot, outcome);
        }
    }

    /// Closes those whose moment has come; each hears once more when to come back.
    fn close_those_due(&mut self) {
        let Some((mut pace, reason)) = self.pace.take() else { return };
        let started = Instant::now();
        while started.elapsed() < SLICE
            && let Some((slot, id)) = pace.due(started)
        {
            // The slot may have been given to another client since.
            if self.clients.get(slot).is_some_and(|connection| connection.id == id) {
                self.close(slot, reason);
            }
        }
        self.pace = Some((pace, reason));
    }

    fn cut_off_late_ones(&mut self) {
        let now = self.clock.now();
        while let Some(&(deadline, slot, id)) = self.closing.front()
            && deadline <= now
        {
            self.closing.pop_front();
            // The slot may have been given to somebody else since.
            if self.clients.get(slot).is_some_and(|connection| connection.id == id) {
                self.end(slot, Departure::Cut);
            }
        }
    }
}

/// What a client said, as everyone hears it.
fn message(from: ClientId, text: &str) -> Frame {
    ServerMessage::Message { channel: BROADCAST, time: Timestamp::now(), from, data: text }.frame()
}
