//! The jobs of an event loop, in the order of its mailbox. A long job runs in slices, and keeps its place meanwhile.

use std::{collections::VecDeque, time::Instant};

use super::{
    EventLoop,
    fanout::{Fanout, Payload},
};
use crate::mailbox::LoopCommand;

#[derive(Debug)]
pub(super) enum Job {
    /// Write to all connections.
    Deliver(Fanout),
    Command(LoopCommand),
    /// Take the next batch from the mailbox, which adds jobs. Always the last one, as what it adds comes after all
    /// that was taken before.
    TakeFromMailbox,
}

#[derive(Debug, Default)]
pub(super) struct Jobs(VecDeque<Job>);

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has the mailbox looked at after all other jobs.
    pub(super) fn take_from_mailbox(&mut self) {
        if !self.takes_from_mailbox() {
            self.0.push_back(Job::TakeFromMailbox);
        }
    }

    fn takes_from_mailbox(&self) -> bool {
        matches!(self.0.back(), Some(Job::TakeFromMailbox))
    }

    /// Adds a fan-out that is to run before all other jobs.
    pub(super) fn deliver_next(&mut self, payload: Payload) {
        self.0.push_front(Job::Deliver(Fanout::new(payload)));
    }
}

impl EventLoop {
    /// Runs jobs until none is left or the slice is over.
    pub(super) fn run_jobs(&mut self) {
        let started = Instant::now();
        self.register_during_fanout();
        while let Some(job) = self.jobs.0.pop_front() {
            match job {
                Job::Deliver(mut fanout) => {
                    if !self.deliver(&mut fanout, started) {
                        self.jobs.0.push_front(Job::Deliver(fanout));
                        return;
                    }
                }
                Job::Command(command) => self.handle_command(command),
                Job::TakeFromMailbox => self.take_batch(),
            }
            if started.elapsed() > self.slice {
                return;
            }
        }
    }

    /// Registers new connections between two slices of a fan-out, so that they need not wait for its end. The fan-out
    /// reaches those in slots that it has not visited yet, after their welcome. During a fan-out of a shutdown notice,
    /// new connections wait: their welcome contains it already.
    fn register_during_fanout(&mut self) {
        if let Some(Job::Deliver(fanout)) = self.jobs.0.front()
            && !fanout.is_notice()
            && self.jobs.takes_from_mailbox()
        {
            for new in self.mailboxes.take_new_connections(self.config.index) {
                self.register(new);
            }
        }
    }

    /// Takes a batch from the mailbox: registers its connections, and turns the rest into jobs.
    fn take_batch(&mut self) {
        let batch = self.mailboxes.take(self.config.index);
        for new in batch.new_connections {
            self.register(new);
        }
        if !batch.frames.is_empty() && !self.config.connection.is_echo() {
            let payload = Payload::Messages { frames: batch.frames, count: batch.messages };
            self.jobs.0.push_back(Job::Deliver(Fanout::new(payload)));
        }
        self.jobs.0.extend(batch.command.map(Job::Command));
        if batch.more {
            self.jobs.take_from_mailbox();
        }
    }
}
