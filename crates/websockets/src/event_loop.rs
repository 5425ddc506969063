//! One thread that owns its share of the sockets: no task, no lock and no buffer per client.
//!
//! An iteration: poll the kernel, write what clients can take now, read from those that sent something, run the jobs from the
//! mailbox, then the timers. Each part stops after [`SLICE`] and continues in the next iteration, so neither a flood from one client nor
//! a broadcast to ten thousand delays the others for long.

mod channels;
mod clock;
mod commands;
mod fanout;
mod handing_over;
mod heartbeat;
mod jobs;
mod reading;
mod registration;
mod replays;
mod run_fanout;
#[cfg(test)]
mod tests;
mod timers;
mod writing;

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lastcall_broker::{Broker, BrokerFuture, Published};
use lastcall_core::Publication;
use mio::{Events, Interest, Poll, Token, Waker};
use tracing::debug;

pub use self::heartbeat::HeartbeatConfig;
use self::{
    channels::Channels,
    clock::Clock,
    heartbeat::{BUCKETS, Heartbeat, HeartbeatEvent},
    jobs::{Fanout, FanoutContent, Job, Jobs},
    replays::Replays,
    run_fanout::RunFanout,
    timers::{Due, Timers},
};
use crate::{
    admission::Disconnect,
    budget::Budget,
    codec::CloseReason,
    connection::{ConnectionConfig, Outcome},
    connection_key::ConnectionKey,
    connections::{Connections, Texts},
    mailbox::{BatchItem, SubscriptionStart},
    mailboxes::OwnMailbox,
    notice::ShutdownNotice,
    stats::Stats,
    vital_tasks::VitalTasks,
};

/// The name of each loop among the vital tasks.
pub(crate) const VITAL_NAME: &str = "an event loop";

const WAKE: Token = Token(usize::MAX);

/// Time after which a part of an iteration lets the others run.
const SLICE: Duration = Duration::from_millis(4);

/// Bytes of one read: enough for many messages, and small enough that one client does not fill a slice.
const READ_BUFFER: usize = 64 << 10;

/// Most events that one poll returns.
const EVENTS: usize = 1024;

/// What a loop needs to know from the start.
pub(crate) struct LoopConfig {
    pub(crate) poll: Poll,
    pub(crate) connection: ConnectionConfig,
    /// The budget for published texts, which all loops share.
    pub(crate) budget: Arc<Budget>,
    /// Most time from the start of a close to the end of the connection.
    pub(crate) close_timeout: Duration,
    /// `None`: no pings.
    pub(crate) heartbeat: Option<HeartbeatConfig>,
    /// The time in which a client must take a part of its replay.
    pub(crate) replay_timeout: Duration,
    /// For its failpoint.
    pub(crate) vital_tasks: VitalTasks,
}

pub(crate) struct EventLoop {
    config: LoopConfig,
    /// [`SLICE`], but in tests.
    slice: Duration,
    mailbox: OwnMailbox,
    connections: Connections,
    channels: Channels,
    jobs: Jobs,
    replays: Replays,
    timers: Timers,
    /// Connections to read from, each once. They take turns, one read each.
    read_queue: VecDeque<ConnectionKey>,
    /// Connections to write to, each once. They take turns, one flush each.
    write_queue: VecDeque<ConnectionKey>,
    /// Whether reads are paused for all connections.
    reads_paused: bool,
    /// What new connections are told once a drain has started.
    notice: Option<ShutdownNotice>,
    /// Why new connections are closed once all are being closed.
    close_reason: Option<CloseReason>,
    stopped: bool,
    stats: Stats,
    /// The texts that the broker has not answered yet, by the connections that sent them.
    unanswered_texts: HashMap<ConnectionKey, BrokerFuture<Published>>,
    /// Texts of one read, to be published together; empty between reads.
    received_texts: Vec<Publication>,
    read_buffer: Vec<u8>,
}

impl EventLoop {
    /// Creates a poll, and what wakes it.
    ///
    /// # Errors
    /// When the system provides no epoll instance or no eventfd.
    pub(crate) fn poll() -> io::Result<(Poll, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        Ok((poll, waker))
    }

    pub(crate) fn new(config: LoopConfig, mailbox: OwnMailbox, broker: Arc<dyn Broker>) -> Self {
        let clock = Clock::start(Instant::now());
        let heartbeat = config.heartbeat.map(|heartbeat| Heartbeat::new(heartbeat, clock.now()));
        Self {
            config,
            slice: SLICE,
            channels: Channels::new(broker, mailbox.clone()),
            mailbox,
            connections: Connections::default(),
            jobs: Jobs::default(),
            replays: Replays::default(),
            timers: Timers::new(clock, heartbeat),
            read_queue: VecDeque::new(),
            write_queue: VecDeque::new(),
            reads_paused: false,
            notice: None,
            close_reason: None,
            stopped: false,
            stats: Stats::default(),
            unanswered_texts: HashMap::new(),
            received_texts: Vec::new(),
            read_buffer: vec![0; READ_BUFFER],
        }
    }

    /// Serves until [`LoopCommand::Stop`](crate::mailbox::LoopCommand::Stop), and then ends the connections that are
    /// left.
    ///
    /// # Errors
    /// When the sockets cannot be polled any more.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut served = Ok(());
        while served.is_ok() && !self.stopped {
            served = self.iterate(&mut events);
        }
        for slot in self.connections.drain() {
            self.channels.end(&slot.subscriptions);
            slot.connection.finish(Disconnect::Forced);
        }
        served
    }

    /// Runs one iteration. Blocks until there is something to do.
    fn iterate(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.poll_timeout();
        let polled = self.config.poll.poll(events, timeout);
        let woke_at = Instant::now();
        self.timers.clock().after_wait(woke_at, timeout);
        if self.config.vital_tasks.failpoint(VITAL_NAME) {
            return Err(io::Error::other("a test has it fail"));
        }
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in &*events {
            if event.token() == WAKE {
                self.jobs.queue_mailbox_job();
                continue;
            }
            let slot = event.token().0;
            if event.is_writable() {
                self.queue_write(slot);
            }
            if event.is_read_closed()
                && let Some(entry) = self.connections.get_mut(slot)
            {
                entry.connection.peer_closed = true;
            }
            if event.is_readable() || event.is_read_closed() {
                self.queue_read(slot);
            }
            if event.is_error() || event.is_write_closed() {
                self.end_if_not_read(slot);
            }
        }
        self.write();
        self.read();
        self.run_jobs();
        self.run_timers();
        self.bound_pinned_history();
        self.mailbox.report_load(self.connections.len());
        let end = Instant::now();
        self.timers.clock().read(end);
        self.stats.loop_iterations.observe(end.saturating_duration_since(woke_at));
        Ok(())
    }

    /// Returns how long the poll may wait; `None`: until an event.
    fn poll_timeout(&self) -> Option<Duration> {
        // One moment for both questions: if the budget allowed reads again between them, neither would see it.
        let now = Instant::now();
        if !self.jobs.is_empty()
            || !self.write_queue.is_empty()
            || (!self.read_queue.is_empty() && self.may_read(now))
        {
            return Some(Duration::ZERO);
        }
        // All timers concern connections. mio rounds up to milliseconds, the unit of epoll: to wake early would mean
        // to spin.
        let timer = self.timers.next().filter(|_| !self.connections.is_empty());
        [timer, self.read_pause(now)].into_iter().flatten().min()
    }

    /// Runs jobs until none is left or the slice is over.
    fn run_jobs(&mut self) {
        let started = Instant::now();
        self.register_during_fanout();
        while let Some(job) = self.jobs.next() {
            match job {
                Job::Deliver(mut fanout) => {
                    if !self.deliver(&mut fanout, started) {
                        self.jobs.push_next(fanout);
                        return;
                    }
                }
                Job::StartSubscription(start) => self.start_subscription(*start),
                Job::Command(command) => self.handle_command(command),
                Job::TakeFromMailbox => self.take_batch(),
            }
            if started.elapsed() > self.slice {
                return;
            }
        }
    }

    /// Registers new connections between two slices of a fan-out, so that they need not wait for its end. Their subscriptions
    /// begin after it, as they are later in the mailbox. During a fan-out of a shutdown notice,
    /// new connections wait: their welcome contains it already.
    fn register_during_fanout(&mut self) {
        if self.jobs.next_fanout().is_some_and(|fanout| !fanout.is_notice()) && self.jobs.has_mailbox_job() {
            for new in self.mailbox.take_new_connections() {
                self.register(new);
            }
        }
    }

    /// Takes a batch from the mailbox: registers its connections, and turns the rest into jobs, in their order.
    fn take_batch(&mut self) {
        let batch = self.mailbox.take();
        for new in batch.new_connections {
            self.register(new);
        }
        for item in batch.items {
            match item {
                BatchItem::Run(run) => {
                    let content = FanoutContent::Publications(RunFanout::new(run, batch.round));
                    self.jobs.push(Job::Deliver(Fanout::new(content)));
                }
                BatchItem::Reset(reset) => {
                    self.jobs.push(Job::Deliver(Fanout::new(FanoutContent::Reset(reset))));
                }
                BatchItem::SubscriptionStart(start) => self.jobs.push(Job::StartSubscription(start)),
                BatchItem::Command(command) => self.jobs.push(Job::Command(command)),
            }
        }
        if batch.more {
            self.jobs.queue_mailbox_job();
        }
    }

    fn start_subscription(&mut self, start: SubscriptionStart) {
        match self.channels.start(start, &mut self.connections, &mut self.stats) {
            Some((slot, Ok(outcome))) => {
                self.apply_outcome(slot, outcome);
                self.watch_replay(slot);
            }
            Some((slot, Err(reason))) => self.close(slot, reason),
            None => {}
        }
    }

    /// Does what is due, until nothing is left or the slice is over.
    fn run_timers(&mut self) {
        let started = Instant::now();
        while let Some(due) = self.timers.due(started) {
            match due {
                Due::Heartbeat(HeartbeatEvent::Ping(bucket)) => self.ping(bucket),
                Due::Heartbeat(HeartbeatEvent::Check(bucket)) => self.check_pings(bucket),
                Due::CheckReplays => self.check_replays(),
                Due::Close(key, reason) => {
                    if let Some(slot) = self.connections.slot(key) {
                        self.close(slot, reason);
                    }
                }
                Due::CloseTimeout(key) => {
                    if let Some(slot) = self.connections.slot(key) {
                        self.remove(slot, Disconnect::Forced);
                    }
                }
                Due::EndThrottling(key) => {
                    if let Some(slot) = self.connections.slot(key) {
                        self.end_throttling(slot);
                    }
                }
            }
            if started.elapsed() > self.slice {
                break;
            }
        }
    }

    /// Pings the clients of a bucket.
    fn ping(&mut self, bucket: usize) {
        for slot in (bucket..self.connections.slots()).step_by(BUCKETS) {
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let connection = &mut entry.connection;
            if connection.is_open() && connection.ping.is_needed() {
                let outcome = connection.send_ping();
                self.apply_outcome(slot, outcome);
            }
        }
    }

    /// Closes the connections of a bucket whose clients have not answered their ping.
    fn check_pings(&mut self, bucket: usize) {
        for slot in (bucket..self.connections.slots()).step_by(BUCKETS) {
            let Some(entry) = self.connections.get_mut(slot) else { continue };
            let connection = &mut entry.connection;
            if !connection.is_open() || !connection.is_overdue() {
                continue;
            }
            // The answer may have arrived and not be read yet: after a pause there is much to read.
            if connection.has_input() {
                self.queue_read(slot);
            } else {
                self.close(slot, CloseReason::Idle);
            }
        }
    }

    /// Does what an outcome asks for.
    fn apply_outcome(&mut self, slot: usize, outcome: Outcome) {
        if let Some(entry) = self.connections.get_mut(slot) {
            let sent = entry.connection.take_sent();
            self.stats.bytes_sent += u64::from(sent.bytes);
            self.stats.messages_sent += u64::from(sent.replayed_messages);
        }
        self.watch_output(slot);
        match outcome {
            Outcome::Unchanged => {}
            Outcome::TooSlow => self.close(slot, CloseReason::SlowConsumer),
            Outcome::CloseStarted => {
                if let Some(key) = self.connections.key(slot) {
                    self.timers.start_close_timeout(key, self.config.close_timeout, Instant::now());
                    // The client's close frame is to be read; nothing that it sends is published any more.
                    self.end_throttling(slot);
                    self.forget_texts(key);
                }
            }
            Outcome::Ended(disconnect) => self.remove(slot, disconnect),
        }
    }

    /// Closes a connection. During a drain, its client is told once more when to reconnect.
    fn close(&mut self, slot: usize, reason: CloseReason) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let connection = &mut entry.connection;
        let notice = self.notice.filter(|_| connection.is_open());
        let notice = notice.map(|notice| connection.form.encode(&notice.message(connection.id, true)));
        let outcome = connection.close(reason, notice);
        self.apply_outcome(slot, outcome);
    }

    /// Has the poll report when the socket can be written again, if output is queued.
    fn watch_output(&mut self, slot: usize) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        if entry.connection.awaits_turn() {
            self.queue_write(slot);
        }
        let Some(entry) = self.connections.get_mut(slot) else { return };
        if entry.write_interest || !entry.connection.has_output() {
            return;
        }
        entry.write_interest = true;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let connection = &mut entry.connection;
        let registry = self.config.poll.registry();
        if let Err(error) = registry.reregister(&mut connection.stream, Token(slot), interest) {
            // Without the event, the output would never be written.
            debug!(client = %connection.id, %error, "a socket could not be watched");
            self.remove(slot, Disconnect::Forced);
        }
    }

    /// Removes a connection that has ended, and closes its socket, which takes it off the poll.
    fn remove(&mut self, slot: usize, disconnect: Disconnect) {
        let Some(entry) = self.connections.remove(slot) else { return };
        if entry.throttled {
            self.config.budget.remove_throttled();
        }
        if entry.texts == Texts::Publishing {
            self.unanswered_texts.remove(&ConnectionKey { slot, id: entry.connection.id });
        }
        self.channels.end(&entry.subscriptions);
        let (age_s, connection) = (entry.age_s(), entry.connection);
        debug!(
            client = %connection.id,
            peer = peer_of(&connection.stream).map(display),
            age_seconds = age_s,
            disconnect = ?disconnect,
            reason = connection.close_reason().map(CloseReason::reason),
            "connection ended"
        );
        self.stats.record_disconnect(disconnect, connection.close_reason());
        connection.finish(disconnect);
    }
}

/// Returns the address of a client, for the log: that of IPv4 for its clients at a socket of IPv6.
fn peer_of(stream: &mio::net::TcpStream) -> Option<SocketAddr> {
    let address = stream.peer_addr().ok()?;
    let ip = address.ip().to_canonical();
    Some(if ip.is_ipv4() { SocketAddr::new(ip, address.port()) } else { address })
}
