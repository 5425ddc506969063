//! One thread that owns its share of the sockets: no task, no lock and no buffer per client.
//!
//! An iteration: poll the kernel, write what clients can take now, read from those that sent something, run
//! the jobs from the mailbox, then the timers. Each part stops after [`SLICE`] and continues in the next
//! iteration, so neither a flood from one client nor a broadcast to ten thousand delays the others for long.
//!
//! [`EventLoop`] has the jobs and the commands; what acts on connections is in [`Clients`], which is made of
//! types that own what they need: [`channels`], [`reader`], [`writer`] and others.

mod channels;
mod clients;
mod clock;
mod delivery;
mod drain;
mod heartbeat;
mod jobs;
mod reader;
mod replays;
mod sockets;
#[cfg(test)]
mod tests;
mod timers;
mod writer;

use std::{
    io, mem,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use lastcall_broker::Broker;
use mio::Events;
use tokio::sync::mpsc;

pub use self::heartbeat::HeartbeatConfig;
pub(crate) use self::sockets::Sockets;
use self::{
    clients::Clients,
    delivery::{Content, Delivery, RunDelivery},
    jobs::{Job, Jobs},
    sockets::WAKE,
};
use crate::{
    admission::Disconnect,
    budget::Budget,
    close_schedule::CloseSchedule,
    codec::CloseReason,
    connection::ConnectionConfig,
    frozen_loop::{FrozenLoop, Returned},
    handover::CHANNELS_PER_PART,
    mailbox::{LoopCommand, MailboxItem, UnreadConnection, UnreadRound},
    mailboxes::OwnMailbox,
    stats::Stats,
    vital_tasks::VitalTasks,
};

/// The name of each loop among the vital tasks.
pub(crate) const VITAL_NAME: &str = "an event loop";

/// Time after which a part of an iteration lets the others run.
const SLICE: Duration = Duration::from_millis(4);

/// Most events that one poll returns.
const EVENTS: usize = 1024;

/// The settings of a loop, and what it shares with others.
#[derive(Debug)]
pub(crate) struct LoopConfig {
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
    clients: Clients,
    mailbox: OwnMailbox,
    jobs: Jobs,
    /// [`SLICE`], but in tests.
    slice: Duration,
    is_stopped: bool,
    vital_tasks: VitalTasks,
}

impl EventLoop {
    pub(crate) fn new(
        config: LoopConfig,
        sockets: Sockets,
        mailbox: OwnMailbox,
        broker: Arc<dyn Broker>,
    ) -> Self {
        Self {
            clients: Clients::new(&config, sockets, &mailbox, broker),
            mailbox,
            jobs: Jobs::default(),
            slice: SLICE,
            is_stopped: false,
            vital_tasks: config.vital_tasks,
        }
    }

    /// Serves until [`LoopCommand::Stop`], and then ends the connections that are left.
    ///
    /// # Errors
    /// When the sockets cannot be polled any more.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut served = Ok(());
        while served.is_ok() && !self.is_stopped {
            served = self.iterate(&mut events);
        }
        self.clients.end_all();
        served
    }

    /// Runs one iteration. Blocks until there is something to do.
    fn iterate(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.poll_timeout();
        let polled = self.clients.sockets.poll(events, timeout);
        let woke_at = Instant::now();
        self.clients.timers.clock().after_wait(woke_at, timeout);
        if self.vital_tasks.failpoint(VITAL_NAME) {
            return Err(io::Error::other("a test has it fail"));
        }
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in &*events {
            match event.token() {
                WAKE => self.jobs.queue_mailbox_job(),
                _ => self.clients.on_event(event),
            }
        }
        self.clients.write(self.slice);
        self.clients.read(self.slice);
        self.run_jobs();
        self.clients.run_timers(self.slice);
        self.clients.bound_pinned_history();
        self.mailbox.report_load(self.clients.connections.len());
        let end = Instant::now();
        self.clients.timers.clock().read(end);
        self.clients.stats.loop_iterations.observe(end.saturating_duration_since(woke_at));
        Ok(())
    }

    /// Returns how long the poll may wait; `None`: until an event.
    fn poll_timeout(&self) -> Option<Duration> {
        let Clients { connections, reader, writer, timers, .. } = &self.clients;
        // One moment for both questions: if the budget allowed reads again between them, neither would see
        // it.
        let now = Instant::now();
        if !self.jobs.is_empty() || !writer.is_empty() || reader.has_work(now) {
            return Some(Duration::ZERO);
        }
        // All timers concern connections. mio rounds up to milliseconds, the unit of epoll: to wake early
        // would mean to spin.
        let timer = timers.next().filter(|_| !connections.is_empty());
        [timer, reader.pause(now)].into_iter().flatten().min()
    }

    /// Runs jobs until none is left or the slice is over.
    fn run_jobs(&mut self) {
        let started = Instant::now();
        self.register_during_delivery();
        while let Some(job) = self.jobs.next() {
            match job {
                Job::Deliver(mut delivery) => {
                    if !self.clients.deliver(&mut delivery, started, self.slice) {
                        self.jobs.push_next(delivery);
                        return;
                    }
                }
                Job::StartSubscription(start) => self.clients.start_subscription(*start),
                Job::Command(command) => self.handle_command(command),
                Job::TakeFromMailbox => self.take_batch(),
            }
            if started.elapsed() > self.slice {
                return;
            }
        }
    }

    /// Registers new connections between two slices of a delivery, so that they need not wait for its end.
    /// Their subscriptions begin after it, as they are later in the mailbox. During the delivery of a
    /// shutdown notice, new connections wait: their welcome contains it already.
    fn register_during_delivery(&mut self) {
        let is_under_way = self.jobs.next_delivery().is_some_and(|delivery| !delivery.is_notice());
        if is_under_way && self.jobs.has_mailbox_job() {
            for new in self.mailbox.take_new_connections() {
                self.clients.register(new);
            }
        }
    }

    /// Takes a batch from the mailbox: registers its connections, and turns the rest into jobs, in their
    /// order.
    fn take_batch(&mut self) {
        let batch = self.mailbox.take();
        for new in batch.new_connections {
            self.clients.register(new);
        }
        for item in batch.items {
            self.jobs.push(match item {
                MailboxItem::Run(run) => {
                    let publications = RunDelivery::new(run, batch.round);
                    Job::Deliver(Delivery::new(Content::Publications(publications)))
                }
                MailboxItem::Reset(reset) => Job::Deliver(Delivery::new(Content::Reset(reset))),
                MailboxItem::SubscriptionStart(start) => Job::StartSubscription(start),
                MailboxItem::Command(command) => Job::Command(command),
            });
        }
        if batch.more {
            self.jobs.queue_mailbox_job();
        }
    }

    fn handle_command(&mut self, command: LoopCommand) {
        let clients = &mut self.clients;
        match command {
            LoopCommand::BeginDrain(notice) => {
                clients.drain.begin(notice);
                self.jobs.push_next(Delivery::new(Content::Notice(notice)));
            }
            LoopCommand::Remind => {
                if let Some(notice) = clients.drain.notice() {
                    self.jobs.push_next(Delivery::new(Content::Reminder(notice)));
                }
            }
            LoopCommand::CloseGradually(reason, until) => {
                let open = clients.connections.iter().filter(|(_, entry)| entry.connection.is_open());
                let open = open.map(|(slot, entry)| entry.key(slot));
                let schedule = CloseSchedule::new(open, Instant::now(), until);
                clients.timers.schedule_closes(schedule, reason);
            }
            LoopCommand::CloseAll(reason) => {
                clients.drain.close_all(reason);
                self.jobs.push_next(Delivery::new(Content::Close(reason)));
            }
            LoopCommand::ContinueTexts(key) => clients.continue_texts(key),
            LoopCommand::CollectStats(reply) => answer(&reply, self.collect_stats()),
            LoopCommand::ListChannels(from, reply) => {
                answer(&reply, clients.channels.subscriptions.list(from, CHANNELS_PER_PART));
            }
            LoopCommand::EndListing => clients.channels.subscriptions.end_listing(),
            LoopCommand::MeasureUnread(reply) => answer(&reply, self.measure_unread()),
            LoopCommand::FitUnread(round, reply) => {
                self.fit_unread(&round);
                answer(&reply, ());
            }
            LoopCommand::AddChannels(channels, reply) => {
                clients.channels.add_ahead(&channels);
                answer(&reply, ());
            }
            LoopCommand::EndRestoring(reply) => {
                clients.channels.end_restoring();
                answer(&reply, ());
            }
            LoopCommand::PauseReads(reply) => {
                clients.reader.set_paused(true);
                // Who stops waiting resumes the reads.
                answer(&reply, ());
            }
            LoopCommand::ResumeReads => clients.reader.set_paused(false),
            LoopCommand::Freeze(reply) => self.freeze(reply),
            LoopCommand::Stop => self.is_stopped = true,
            #[cfg(test)]
            LoopCommand::Panic => panic!("as a test wants it"),
        }
    }

    fn collect_stats(&self) -> Stats {
        let mut stats = self.clients.stats.clone();
        for (_, entry) in self.clients.connections.iter() {
            let queued = entry.connection.queued();
            stats.queued_clients += u64::from(queued > 0);
            stats.queued_bytes += queued as u64;
            stats.throttled_clients += u64::from(entry.throttled);
        }
        stats
    }

    /// Returns the connections that have unread bytes.
    fn measure_unread(&self) -> Vec<UnreadConnection> {
        let connections = self.clients.connections.iter().map(|(slot, entry)| {
            let (size, has_replays) = entry.connection.unread_size();
            UnreadConnection { size, has_replays, event_loop: self.mailbox.index(), key: entry.key(slot) }
        });
        connections.filter(|connection| connection.size > 0).collect()
    }

    /// Closes the connections of a round whose unread bytes do not fit.
    fn fit_unread(&mut self, round: &UnreadRound) {
        let own = round.connections.iter().filter(|one| one.event_loop == self.mailbox.index());
        for UnreadConnection { key, .. } in own {
            let clients = &mut self.clients;
            let Some(entry) = clients.connections.get_by_key(*key) else { continue };
            let mut buffers = round.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            if entry.connection.add_unread(&mut buffers, &*clients.channels.broker).is_ok() {
                continue;
            }
            drop(buffers);
            if entry.connection.is_open() {
                clients.close(key.slot, CloseReason::SlowConsumer);
            } else {
                clients.remove(key.slot, Disconnect::Forced);
            }
        }
    }

    /// Gives the connections away, and waits until they come back. If they do not, another process has them,
    /// and this loop ends. Nothing waits for the broker: a subscription that it has not answered is asked for
    /// anew by the other process.
    fn freeze(&mut self, reply: mpsc::Sender<FrozenLoop>) {
        let Clients { connections, channels, reader, timers, stats, close_timeout, .. } = &mut self.clients;
        let timeouts = timers.close_timeouts(Instant::now());
        let timeouts = timeouts.filter_map(|(key, left)| Some((connections.slot(key)?, left))).collect();
        let changes = channels.subscriptions.take_changes();
        let pending = channels.pending(connections);
        let (total, throttled) = (connections.len(), connections.count_throttled());
        let (frozen, returned) = FrozenLoop::new(
            self.mailbox.index(),
            mem::take(connections),
            timeouts,
            *close_timeout,
            changes,
            pending,
            stats.clone(),
        );
        // If the caller has stopped waiting, the frozen loop is dropped here, which returns the connections.
        drop(reply.try_send(frozen));
        match returned.recv() {
            Ok(Returned { connections: returned, closed, ended }) => {
                for (disconnect, reason) in ended {
                    stats.record_disconnect(disconnect, reason);
                }
                for key in closed {
                    timers.start_close_timeout(key, *close_timeout, Instant::now());
                }
                *connections = returned;
                reader.forget_throttled(throttled.saturating_sub(connections.count_throttled()));
                if connections.len() < total {
                    channels.end_lost(connections);
                }
            }
            Err(_) => self.is_stopped = true,
        }
        timers.clock().skip(Instant::now());
    }
}

/// Answers a command. That fails only if the caller has stopped waiting.
fn answer<T>(reply: &mpsc::Sender<T>, answer: T) {
    let _ = reply.try_send(answer);
}
