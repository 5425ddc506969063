//! Reading: clients take turns, and their texts go to the broker.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use lastcall_broker::{BrokerError, BrokerFuture, Published};
use lastcall_core::{Publication, Publisher};
use serde_json::value::to_raw_value;
use tracing::{debug, trace};

use super::{channels::Channels, timers::Timers};
use crate::{
    budget::Budget,
    client_id::ClientId,
    connection::{ConnectionConfig, Outcome, Readable},
    connection_key::ConnectionKey,
    connections::{Connections, Slot, Texts},
    excess_capacity::release_excess_capacity,
    mailbox::LoopCommand,
    mailboxes::OwnMailbox,
    protocol::Outgoing,
    stats::Stats,
};

/// Bytes of one read: enough for many messages, and small enough that one client does not fill a slice.
const BUFFER: usize = 64 << 10;

/// The connections of one event loop that are to be read from, and what becomes of their texts.
pub(super) struct Reader {
    config: ConnectionConfig,
    mailbox: OwnMailbox,
    pub(super) budget: Arc<Budget>,
    /// Connections to read from, each once. They take turns, one read each.
    pub(super) queue: VecDeque<ConnectionKey>,
    /// True if reads are paused for all connections.
    is_paused: bool,
    /// The texts that the broker has not answered yet, by the connections that sent them.
    pub(super) unanswered: HashMap<ConnectionKey, BrokerFuture<Published>>,
    /// Texts of one read, to be published together; empty between reads.
    texts: Vec<Publication>,
    buffer: Vec<u8>,
}

impl Reader {
    /// Returns a reader that has nothing to read. `budget`: that of published texts, which all loops share.
    pub(super) fn new(config: ConnectionConfig, mailbox: OwnMailbox, budget: Arc<Budget>) -> Self {
        Self {
            config,
            mailbox,
            budget,
            queue: VecDeque::new(),
            is_paused: false,
            unanswered: HashMap::new(),
            texts: Vec::new(),
            buffer: vec![0; BUFFER],
        }
    }

    /// Pauses the reads of all connections, or resumes them.
    pub(super) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Returns true if a connection is queued that may be read from.
    pub(super) fn has_work(&self, now: Instant) -> bool {
        !self.queue.is_empty() && self.may_read(now)
    }

    /// Returns true if clients may be read from: what they send can be published now.
    pub(super) fn may_read(&self, now: Instant) -> bool {
        if self.is_paused {
            return false;
        }
        if !self.config.publishes_texts {
            return true;
        }
        self.mailbox.has_capacity() && self.budget.wait(now).is_none()
    }

    /// Returns the time until the budget of all clients allows reads again, if any are queued.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        if self.is_paused || self.queue.is_empty() {
            return None;
        }
        self.budget.wait(now)
    }

    /// Has a connection read, unless it is queued already.
    pub(super) fn queue(&mut self, key: ConnectionKey, entry: &mut Slot) {
        if !entry.read_queued {
            entry.read_queued = true;
            self.queue.push_back(key);
        }
    }

    /// Reads from the next connection. Returns its slot with the outcome; `None`: none is queued.
    pub(super) fn read_next(
        &mut self,
        connections: &mut Connections,
        channels: &Channels,
        timers: &mut Timers,
        stats: &mut Stats,
    ) -> Option<(usize, Outcome)> {
        while let Some(key) = self.queue.pop_front() {
            // A connection that is paused is queued again when its pause is over.
            if let Some(entry) = connections.get_by_key(key).filter(|entry| !entry.is_paused()) {
                return Some((key.slot, self.read(key, entry, channels, timers, stats)));
            }
        }
        release_excess_capacity(&mut self.queue);
        None
    }

    fn read(
        &mut self,
        key: ConnectionKey,
        entry: &mut Slot,
        channels: &Channels,
        timers: &mut Timers,
        stats: &mut Stats,
    ) -> Outcome {
        let texts = &mut self.texts;
        let (mut outcome, readable) =
            entry.connection.read(&mut self.buffer, &self.config, stats, |from, text| {
                texts.push(text_publication(from, text));
            });
        let mut wait = None;
        if !texts.is_empty() {
            if let Some((bytes, publishing)) = channels.publish(&entry.subscriptions, texts) {
                wait = self.budget.charge(&mut entry.budget, Instant::now(), bytes);
                outcome = outcome.max(self.publish(key, entry, publishing));
            }
            self.texts.clear();
        }
        match (wait, readable) {
            (Some(wait), _) => self.throttle(key, entry, wait, timers),
            (None, Readable::Maybe) => self.queue.push_back(key),
            (None, Readable::No) => entry.read_queued = false,
        }
        outcome
    }

    /// Publishes what a client has sent. Nothing more is read from it before the broker has answered.
    fn publish(
        &mut self,
        key: ConnectionKey,
        entry: &mut Slot,
        mut publishing: BrokerFuture<Published>,
    ) -> Outcome {
        match publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(_)) => Outcome::Unchanged,
            Poll::Ready(Err(error)) => refuse_texts(entry, &error),
            Poll::Pending => {
                entry.texts = Texts::Publishing;
                self.unanswered.insert(key, publishing);
                self.answer(key, entry).unwrap_or(Outcome::Unchanged)
            }
        }
    }

    /// Asks the broker again what has become of the texts of a connection. Returns its slot with the outcome.
    pub(super) fn continue_texts(
        &mut self,
        key: ConnectionKey,
        connections: &mut Connections,
    ) -> Option<(usize, Outcome)> {
        let Some(entry) = connections.get_by_key(key) else {
            // It has ended while it was away from the loop.
            self.unanswered.remove(&key);
            return None;
        };
        let outcome = self.answer(key, entry)?;
        self.resume(key, entry);
        Some((key.slot, outcome))
    }

    /// Takes the broker's answer for the texts of a connection; `None`: there is none yet, and the loop is
    /// told of it.
    fn answer(&mut self, key: ConnectionKey, entry: &mut Slot) -> Option<Outcome> {
        let publishing = self.unanswered.get_mut(&key)?;
        let waker = Waker::from(Arc::new(TextsWaker { mailbox: self.mailbox.clone(), key }));
        let Poll::Ready(result) = publishing.as_mut().poll(&mut Context::from_waker(&waker)) else {
            return None;
        };
        self.unanswered.remove(&key);
        entry.texts = Texts::Published;
        Some(result.map_or_else(|error| refuse_texts(entry, &error), |_| Outcome::Unchanged))
    }

    /// Notes that a client has got all that was queued for it: reads may have been paused for that.
    pub(super) fn on_drained(&mut self, key: ConnectionKey, entry: &mut Slot) {
        if entry.texts == Texts::Refused {
            entry.texts = Texts::Published;
            self.resume(key, entry);
        }
        self.queue(key, entry);
    }

    /// Notes that a connection is being closed. The client's close frame is to be read; nothing that it sends
    /// is published any more.
    pub(super) fn on_close(&mut self, key: ConnectionKey, entry: &mut Slot) {
        self.end_throttling(key, entry);
        self.unanswered.remove(&key);
        if entry.texts != Texts::Published {
            entry.texts = Texts::Published;
            self.resume(key, entry);
        }
    }

    /// Forgets a connection that has ended.
    pub(super) fn forget(&mut self, key: ConnectionKey, entry: &Slot) {
        if entry.throttled {
            self.budget.remove_throttled();
        }
        if entry.texts == Texts::Publishing {
            self.unanswered.remove(&key);
        }
    }

    /// Notes that throttled connections have ended while they were away from the loop.
    pub(super) fn forget_throttled(&self, connections: usize) {
        (0..connections).for_each(|_| self.budget.remove_throttled());
    }

    /// Resumes the reads of one connection that were paused for its texts.
    fn resume(&mut self, key: ConnectionKey, entry: &mut Slot) {
        if !entry.is_paused() {
            entry.read_queued = false;
            self.queue(key, entry);
        }
    }

    /// Pauses the reads of one connection. It counts as queued meanwhile.
    fn throttle(&self, key: ConnectionKey, entry: &mut Slot, wait: Duration, timers: &mut Timers) {
        trace!(client = %key.id, wait_ms = wait.as_millis(), "a client that sends too fast is not read from");
        entry.throttled = true;
        self.budget.add_throttled();
        timers.end_throttling_at(key, Instant::now() + wait);
    }

    /// Resumes the reads of one connection, if it is throttled.
    pub(super) fn end_throttling(&mut self, key: ConnectionKey, entry: &mut Slot) {
        if std::mem::take(&mut entry.throttled) {
            entry.read_queued = false;
            self.budget.remove_throttled();
            self.queue(key, entry);
        }
    }
}

/// Tells a client that what it sent was not published, or may not have been. It is read from again once it
/// has got that.
pub(super) fn refuse_texts(entry: &mut Slot, error: &BrokerError) -> Outcome {
    let (code, message) = match error {
        BrokerError::Unavailable(_) => {
            ("unavailable", "What you sent last was not published. Send it again later.")
        }
        BrokerError::OutcomeUnknown(_) => {
            ("outcome_unknown", "It is not known whether what you sent last was published.")
        }
    };
    let connection = &mut entry.connection;
    debug!(client = %connection.id, %error, "a client's text was not published");
    let outcome = connection.send_unbounded(&connection.form.encode(&Outgoing::Error { code, message }));
    entry.texts = if connection.has_output() { Texts::Refused } else { Texts::Published };
    outcome
}

/// Has the event loop of a connection ask what has become of its texts.
struct TextsWaker {
    mailbox: OwnMailbox,
    key: ConnectionKey,
}

impl Wake for TextsWaker {
    fn wake(self: Arc<Self>) {
        self.mailbox.send(LoopCommand::ContinueTexts(self.key));
    }
}

/// Returns a client's text as a publication.
fn text_publication(from: ClientId, text: &str) -> Publication {
    let data = to_raw_value(text).expect("a text is always valid JSON");
    Publication::new(Publisher::Client(from.into()), data)
}
