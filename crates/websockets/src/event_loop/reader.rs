//! Reading: clients take turns, and their texts go to the broker.

use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use lastcall_broker::{BrokerError, BrokerFuture, Published};
use lastcall_core::{Publication, Publisher};
use serde_json::value::to_raw_value;
use tracing::{debug, trace};

use super::EventLoop;
use crate::{
    client_id::ClientId,
    connection::Readable,
    connection_key::ConnectionKey,
    connections::{Slot, Texts},
    excess_capacity::release_excess_capacity,
    mailbox::LoopCommand,
    mailboxes::OwnMailbox,
    protocol::Outgoing,
};

/// Reads between two readings of the clock. A read that fills the buffer takes much longer than one of a message.
const READS_PER_CLOCK_READ: usize = 8;

impl EventLoop {
    /// Returns true if clients may be read from: what they send can be published now.
    pub(super) fn may_read(&self, now: Instant) -> bool {
        if self.reads_paused {
            return false;
        }
        if !self.config.connection.publishes_texts {
            return true;
        }
        self.mailbox.has_capacity() && self.config.budget.wait(now).is_none()
    }

    /// Returns the time until the budget of all clients allows reads again, if any are queued.
    pub(super) fn read_pause(&self, now: Instant) -> Option<Duration> {
        if self.reads_paused || self.read_queue.is_empty() {
            return None;
        }
        self.config.budget.wait(now)
    }

    /// Has a connection read, unless it is queued already.
    pub(super) fn queue_read(&mut self, slot: usize) {
        let Some(key) = self.connections.key(slot) else { return };
        if let Some(entry) = self.connections.get_mut(slot)
            && !entry.read_queued
        {
            entry.read_queued = true;
            self.read_queue.push_back(key);
        }
    }

    /// Reads from the queued connections, until none is left or the slice is over.
    pub(super) fn read(&mut self) {
        let started = Instant::now();
        let mut reads = 0_usize;
        while self.may_read(Instant::now())
            && let Some(key) = self.read_queue.pop_front()
        {
            self.read_once(key);
            reads += 1;
            if reads.is_multiple_of(READS_PER_CLOCK_READ) && started.elapsed() > self.slice {
                break;
            }
        }
        release_excess_capacity(&mut self.read_queue);
    }

    fn read_once(&mut self, key: ConnectionKey) {
        let Some(slot) = self.connections.slot(key) else { return };
        // A connection that is paused is queued again when its pause is over.
        let Some(entry) = self.connections.get_mut(slot).filter(|entry| !entry.is_paused()) else { return };
        let texts = &mut self.received_texts;
        let (outcome, readable) = entry.connection.read(
            &mut self.read_buffer,
            &self.config.connection,
            &mut self.stats,
            |from, text| texts.push(text_publication(from, text)),
        );
        let mut wait = None;
        if !texts.is_empty() {
            if let Some((bytes, publishing)) = self.channels.publish(&entry.subscriptions, texts) {
                wait = self.config.budget.charge(&mut entry.used, Instant::now(), bytes);
                self.publish_texts(key, publishing);
            }
            self.received_texts.clear();
        }
        match (wait, readable) {
            (Some(wait), _) => self.throttle(slot, wait),
            (None, Readable::Maybe) => self.read_queue.push_back(key),
            (None, Readable::No) => {
                if let Some(entry) = self.connections.get_mut(slot) {
                    entry.read_queued = false;
                }
            }
        }
        self.apply_outcome(slot, outcome);
    }

    /// Publishes what a client has sent. Nothing more is read from it before the broker has answered.
    fn publish_texts(&mut self, key: ConnectionKey, mut publishing: BrokerFuture<Published>) {
        let mut context = Context::from_waker(Waker::noop());
        match publishing.as_mut().poll(&mut context) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => self.refuse_texts(key.slot, &error),
            Poll::Pending => {
                if let Some(entry) = self.connections.get_mut(key.slot) {
                    entry.texts = Texts::Publishing;
                    self.unanswered_texts.insert(key, publishing);
                    self.continue_texts(key);
                }
            }
        }
    }

    /// Asks the broker again what has become of the texts of a connection.
    pub(super) fn continue_texts(&mut self, key: ConnectionKey) {
        let Some(publishing) = self.unanswered_texts.get_mut(&key) else { return };
        let waker = TextsWaker { mailbox: self.mailbox.clone(), key };
        let waker = Waker::from(Arc::new(waker));
        let Poll::Ready(result) = publishing.as_mut().poll(&mut Context::from_waker(&waker)) else { return };
        self.unanswered_texts.remove(&key);
        match result {
            Ok(_) => self.resume_after(key.slot, Texts::Publishing),
            Err(error) => self.refuse_texts(key.slot, &error),
        }
    }

    /// Tells a client that what it sent was not published, or may not have been. It is read from again once it has got that.
    pub(super) fn refuse_texts(&mut self, slot: usize, error: &BrokerError) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        let (code, message) = match error {
            BrokerError::Unavailable(_) => {
                ("unavailable", "What you sent last was not published. Send it again later.")
            }
            BrokerError::OutcomeUnknown(_) => {
                ("outcome_unknown", "It is not known whether what you sent last was published.")
            }
        };
        debug!(client = %entry.connection.id, %error, "a client's text was not published");
        let message = entry.connection.form.encode(&Outgoing::Error { code, message });
        let outcome = entry.connection.send_unbounded(&message);
        entry.texts = Texts::Refused;
        if !entry.connection.has_output() {
            self.resume_after(slot, Texts::Refused);
        }
        self.apply_outcome(slot, outcome);
    }

    /// Resumes the reads of a connection that were paused for what its texts were.
    pub(super) fn resume_after(&mut self, slot: usize, texts: Texts) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        if entry.texts != texts {
            return;
        }
        entry.texts = Texts::Published;
        if !entry.throttled {
            entry.read_queued = false;
            self.queue_read(slot);
        }
    }

    /// Waits for the broker no longer: the connection is being closed.
    pub(super) fn forget_texts(&mut self, key: ConnectionKey) {
        self.unanswered_texts.remove(&key);
        self.resume_after(key.slot, Texts::Publishing);
        self.resume_after(key.slot, Texts::Refused);
    }

    /// Pauses the reads of one connection. It counts as queued meanwhile.
    fn throttle(&mut self, slot: usize, wait: Duration) {
        let Some(key) = self.connections.key(slot) else { return };
        let Some(entry) = self.connections.get_mut(slot) else { return };
        trace!(client = %key.id, wait_ms = wait.as_millis(), "a client that sends too fast is not read from");
        entry.throttled = true;
        self.config.budget.add_throttled();
        self.timers.end_throttling_at(key, Instant::now() + wait);
    }

    /// Resumes the reads of one connection, if it is throttled.
    pub(super) fn end_throttling(&mut self, slot: usize) {
        if let Some(entry) = self.connections.get_mut(slot)
            && std::mem::take(&mut entry.throttled)
        {
            entry.read_queued = false;
            self.config.budget.remove_throttled();
            self.queue_read(slot);
        }
    }

    /// Ends a connection whose client is gone, if no read will show that: reads are paused, or have come to their end. Otherwise it
    /// would keep its permit.
    pub(super) fn end_if_not_read(&mut self, slot: usize) {
        let is_not_read = |entry: &&Slot| entry.is_paused() || entry.connection.input_ended();
        let outcome =
            self.connections.get(slot).filter(is_not_read).map(|entry| entry.connection.disconnected());
        if let Some(outcome) = outcome {
            self.apply_outcome(slot, outcome);
        }
    }
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
