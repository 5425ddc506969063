//! One thread that owns its share of the sockets: no task, no lock and no buffer per client.
//!
//! A turn: ask the kernel what happened, read from those who sent something, go on with what is to be
//! written to everyone, then the timers. Each part stops after [`SLICE`] and goes on in the next turn, so
//! neither a flood from one client nor a broadcast to ten thousand keeps anybody waiting for long.

mod clock;
mod fanout;
mod heartbeat;
mod reading;
mod registration;
mod timers;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use tracing::debug;

use crate::{
    admission::Disconnect,
    budget::Budget,
    client_id::ClientId,
    close_schedule::CloseSchedule,
    codec::{CloseReason, Frame},
    connection::{Connection, ConnectionConfig, Outcome},
    mailbox::{LoopCommand, Mailboxes},
    notice::ShutdownNotice,
    stats::Stats,
};
use clock::Clock;
use fanout::Fanout;
use heartbeat::Heartbeat;

const WAKE: Token = Token(usize::MAX);

/// How long one part of a turn may take before the others have their turn.
const SLICE: Duration = Duration::from_millis(4);

/// One read: enough for many messages, and small enough that one client does not fill a slice.
const READ_BUFFER: usize = 64 << 10;

/// Asked of the kernel at once.
const EVENTS: usize = 1024;

/// What a loop needs to know from the start.
pub(crate) struct LoopConfig {
    /// Which of the bus's inboxes is its own.
    pub(crate) index: usize,
    pub(crate) poll: Poll,
    pub(crate) rules: ConnectionConfig,
    /// For the texts of all loops' clients.
    pub(crate) budget: Arc<Budget>,
    pub(crate) close_timeout: Duration,
    /// Time between pings and time to answer one; `None`: no pings.
    pub(crate) heartbeat: Option<(Duration, Duration)>,
}

pub(crate) struct EventLoop {
    config: LoopConfig,
    mailboxes: Arc<Mailboxes>,
    clock: Clock,
    connections: Slab<Connection>,
    /// Clients to read from, each once. They take turns, one read each.
    read_queue: VecDeque<usize>,
    /// Clients that are not read from for a while, and until when by the system's clock. Some may have gone, or have
    /// been let go since.
    throttled: BinaryHeap<Reverse<(Instant, usize, ClientId)>>,
    /// Clients that are closing, and when by the loop's clock they are cut off. All have the same time, so this is in order.
    closing: VecDeque<(Instant, usize, ClientId)>,
    heartbeat: Option<Heartbeat>,
    /// Who is closed when, and why, once those inside are being closed one by one.
    close_schedule: Option<(CloseSchedule, CloseReason)>,
    fanout: Option<Fanout>,
    /// The command that comes after the fan-out.
    then: Option<LoopCommand>,
    /// Whether the inbox holds more.
    more: bool,
    /// What new connections are told, once a drain started.
    notice: Option<ShutdownNotice>,
    /// Why new connections are closed, once all are being closed.
    close_reason: Option<CloseReason>,
    /// Whether nothing is to be read.
    reads_paused: bool,
    stopped: bool,
    stats: Stats,
    /// What one client said at once; empty between reads.
    received_texts: Vec<Frame>,
    buffer: Vec<u8>,
}

impl EventLoop {
    /// A poll and what wakes it.
    pub(crate) fn poll() -> io::Result<(Poll, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        Ok((poll, waker))
    }

    pub(crate) fn new(config: LoopConfig, mailboxes: Arc<Mailboxes>) -> Self {
        let clock = Clock::start(Instant::now());
        let heartbeat = config
            .heartbeat
            .filter(|_| !config.rules.is_echo())
            .map(|(interval, timeout)| Heartbeat::new(interval, timeout, clock.now()));
        Self {
            config,
            mailboxes,
            clock,
            connections: Slab::new(),
            read_queue: VecDeque::new(),
            throttled: BinaryHeap::new(),
            closing: VecDeque::new(),
            heartbeat,
            close_schedule: None,
            fanout: None,
            then: None,
            more: false,
            notice: None,
            close_reason: None,
            reads_paused: false,
            stopped: false,
            stats: Stats::default(),
            received_texts: Vec::new(),
            buffer: vec![0; READ_BUFFER],
        }
    }

    /// Serves until [`LoopCommand::Stop`]; then every client that is left is cut off.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.stopped {
            let timeout = self.poll_timeout();
            let polled = self.config.poll.poll(&mut events, timeout);
            let woke_at = Instant::now();
            self.clock.after_wait(woke_at, timeout);
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
                    && let Some(connection) = self.connections.get_mut(slot)
                {
                    connection.peer_closed = true;
                }
                if event.is_readable() || event.is_read_closed() {
                    self.queue_read(slot);
                }
                if event.is_error() || event.is_write_closed() {
                    self.end_if_throttled(slot);
                }
            }
            self.read();
            self.process_mailbox();
            self.run_heartbeat();
            self.run_scheduled_closes();
            self.enforce_close_timeouts();
            self.mailboxes.report_load(self.config.index, self.connections.len());
            let end = Instant::now();
            self.clock.read(end);
            self.stats.loop_iterations.observe(end.saturating_duration_since(woke_at));
        }
        for connection in self.connections.drain() {
            connection.finish(Disconnect::Forced);
        }
    }

    /// How long the kernel may let the loop sleep.
    fn poll_timeout(&self) -> Option<Duration> {
        let reads = !self.read_queue.is_empty() && self.may_read();
        if reads || self.more || self.fanout.is_some() || self.then.is_some() {
            return Some(Duration::ZERO);
        }
        let beat = self.heartbeat.as_ref().filter(|_| !self.connections.is_empty()).map(Heartbeat::next);
        let cut = self.closing.front().map(|(deadline, ..)| *deadline);
        let close = self.close_schedule.as_ref().and_then(|(close_schedule, _)| close_schedule.next());
        let running = [beat, cut].into_iter().flatten().min();
        let running = running.map(|next| next.saturating_duration_since(self.clock.now()));
        // Clients know when the drain ends: that is a moment of the system's clock. So are the others here.
        let read = self.next_read();
        let system = [close, read].into_iter().flatten().min();
        let system = system.map(|next| next.saturating_duration_since(self.clock.system()));
        // mio rounds it up to milliseconds, as epoll counts in these: waking early would mean spinning.
        [running, system].into_iter().flatten().min()
    }

    /// Does what an outcome asks for.
    fn apply_outcome(&mut self, slot: usize, outcome: Outcome) {
        self.watch_output(slot);
        match outcome {
            Outcome::Unchanged => {}
            Outcome::TooSlow => self.close(slot, CloseReason::SlowConsumer),
            Outcome::CloseStarted => {
                if let Some(connection) = self.connections.get(slot) {
                    let deadline = self.clock.read(Instant::now()) + self.config.close_timeout;
                    self.closing.push_back((deadline, slot, connection.id));
                    // Its answer is waited for, and nothing that it says is passed on any more.
                    self.let_go(slot);
                }
            }
            Outcome::Ended(disconnect) => self.remove(slot, disconnect),
        }
    }

    /// Closes a client; during a drain, it is told once more when to come back.
    fn close(&mut self, slot: usize, reason: CloseReason) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let notice = self.notice.filter(|_| connection.is_open() && !self.config.rules.is_echo());
        let notice = notice.map(|notice| notice.frame(connection.id));
        let outcome = connection.close(reason, notice.as_ref());
        self.apply_outcome(slot, outcome);
    }

    /// Has the kernel tell when a client takes output again.
    fn watch_output(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.write_interest || !connection.has_output() {
            return;
        }
        connection.write_interest = true;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) =
            self.config.poll.registry().reregister(&mut connection.stream, Token(slot), interest)
        {
            // Without it the output would wait for ever.
            debug!(client = %connection.id, %error, "a socket could not be watched");
            self.remove(slot, Disconnect::Forced);
        }
    }

    fn remove(&mut self, slot: usize, disconnect: Disconnect) {
        if let Some(connection) = self.connections.try_remove(slot) {
            if connection.is_throttled {
                self.config.budget.remove_throttled();
            }
            // Closing the socket takes it off the poll.
            debug!(
                client = %connection.id,
                peer = connection.stream.peer_addr().ok().map(display),
                age_seconds = connection.id.age().as_secs_f64(),
                disconnect = ?disconnect,
                reason = connection.close_reason().map(CloseReason::reason),
                "connection ended"
            );
            self.stats.record_disconnect(disconnect, connection.close_reason());
            connection.finish(disconnect);
        }
    }
}
