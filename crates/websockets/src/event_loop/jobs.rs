//! The jobs of an event loop, in the order of its mailbox. A long job runs in slices, and keeps its place
//! meanwhile.

use std::collections::VecDeque;

use super::delivery::Delivery;
use crate::{
    excess_capacity::release_excess_capacity,
    mailbox::{LoopCommand, SubscriptionStart},
};

#[derive(Debug)]
pub(super) enum Job {
    /// Write to many connections.
    Deliver(Delivery),
    /// Begin a subscription, or close a connection that has got none.
    StartSubscription(Box<SubscriptionStart>),
    Command(LoopCommand),
    /// Take the next batch from the mailbox, which adds jobs. Always the last one, as what it adds comes
    /// after all that was taken before.
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

    /// Returns the delivery that runs next, if the next job is one.
    pub(super) fn next_delivery(&self) -> Option<&Delivery> {
        match self.0.front() {
            Some(Job::Deliver(delivery)) => Some(delivery),
            _ => None,
        }
    }

    /// Adds a job behind all others.
    pub(super) fn push(&mut self, job: Job) {
        debug_assert!(!self.has_mailbox_job(), "what is taken later comes after it");
        self.0.push_back(job);
    }

    /// Adds a delivery before all other jobs.
    pub(super) fn push_next(&mut self, delivery: Delivery) {
        self.0.push_front(Job::Deliver(delivery));
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
