//! The jobs of an event loop, in the order of its mailbox. A long job runs in slices, and keeps its place meanwhile.

use std::collections::VecDeque;

use super::run_fanout::RunFanout;
use crate::{
    codec::CloseReason,
    excess_capacity::release_excess_capacity,
    mailbox::{ChannelReset, LoopCommand, SubscriptionStart},
    notice::ShutdownNotice,
};

#[derive(Debug)]
pub(super) enum Job {
    /// Write to many connections.
    Deliver(Fanout),
    /// Begin a subscription, or close a connection that has got none.
    StartSubscription(Box<SubscriptionStart>),
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

    pub(super) fn next(&mut self) -> Option<Job> {
        let next = self.0.pop_front();
        release_excess_capacity(&mut self.0);
        next
    }

    /// Returns the fan-out that runs next, if the next job is one.
    pub(super) fn next_fanout(&self) -> Option<&Fanout> {
        match self.0.front() {
            Some(Job::Deliver(fanout)) => Some(fanout),
            _ => None,
        }
    }

    /// Adds a job behind all others.
    pub(super) fn push(&mut self, job: Job) {
        debug_assert!(!self.has_mailbox_job(), "what is taken later comes after it");
        self.0.push_back(job);
    }

    /// Adds a fan-out before all other jobs.
    pub(super) fn push_next(&mut self, fanout: Fanout) {
        self.0.push_front(Job::Deliver(fanout));
    }

    /// Has the mailbox looked at after all other jobs.
    pub(super) fn queue_mailbox_job(&mut self) {
        if !self.has_mailbox_job() {
            self.0.push_back(Job::TakeFromMailbox);
        }
    }

    pub(super) fn has_mailbox_job(&self) -> bool {
        matches!(self.0.back(), Some(Job::TakeFromMailbox))
    }
}

/// Something that many connections get, and how many have got it.
#[derive(Debug)]
pub(super) struct Fanout {
    pub(super) content: FanoutContent,
    /// The next slot or, for publications, the next member of their channel.
    pub(super) next: usize,
}

#[derive(Debug)]
pub(super) enum FanoutContent {
    /// Publications, for the members of their channel.
    Publications(RunFanout),
    /// A loss, for the members of its channel.
    Reset(Box<ChannelReset>),
    /// The first shutdown notice, which all clients get.
    Notice(ShutdownNotice),
    /// A later shutdown notice, for clients that have no output queued.
    Reminder(ShutdownNotice),
    /// The start of the closing handshake.
    Close(CloseReason),
}

impl Fanout {
    pub(super) fn new(content: FanoutContent) -> Self {
        Self { content, next: 0 }
    }

    pub(super) fn is_notice(&self) -> bool {
        matches!(self.content, FanoutContent::Notice(_) | FanoutContent::Reminder(_))
    }
}
