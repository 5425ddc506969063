//! The order in which channels lose something: there is no room, or it is too old.

use std::collections::BTreeSet;

use lastcall_core::ChannelName;

/// The kinds of what a channel keeps. Where there is no room, channels of the first kind lose something
/// first.
///
/// Clients invent names at no cost, and each is a channel that keeps its position for a while: these must not
/// displace what was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Keeps {
    /// A position before the first publication, without subscribers.
    Start,
    /// A position after publications that are gone, without subscribers.
    Position,
    /// Publications.
    Publications,
}

impl Keeps {
    pub(crate) const ALL: [Self; 3] = [Self::Start, Self::Position, Self::Publications];
}

/// The key of a channel in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueKey {
    pub(crate) keeps: Keeps,
    /// The time of what is oldest.
    pub(crate) since_ms: i64,
}

/// A lazy priority queue of the channels of one rule that keep the same, oldest first: within one rule, what
/// is older expires earlier. Each channel is in at most one queue. Keys may be stale (too old), as a channel
/// whose oldest publication is gone is not moved: take the first channel, and put it back if it is younger
/// than its key.
#[derive(Debug, Default)]
pub(crate) struct AgeQueue(BTreeSet<(i64, ChannelName)>);

impl AgeQueue {
    /// Adds a channel.
    pub(crate) fn insert(&mut self, since_ms: i64, channel: ChannelName) {
        self.0.insert((since_ms, channel));
    }

    /// Removes a channel, which is in the queue at this age.
    pub(crate) fn remove(&mut self, since_ms: i64, channel: &ChannelName) {
        self.0.remove(&(since_ms, channel.clone()));
    }

    /// Returns the time of the first channel. No other one has anything older.
    pub(crate) fn first(&self) -> Option<i64> {
        self.0.first().map(|(since_ms, _)| *since_ms)
    }

    /// Removes the first channel.
    pub(crate) fn pop(&mut self) -> Option<ChannelName> {
        self.0.pop_first().map(|(_, channel)| channel)
    }

    /// Returns all channels, by the ages at which they are.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &ChannelName)> {
        self.0.iter().map(|(since_ms, channel)| (*since_ms, channel))
    }
}

/// The queues of all channels.
#[derive(Debug)]
pub(crate) struct AgeQueues(Vec<[AgeQueue; Keeps::ALL.len()]>);

impl AgeQueues {
    /// Returns empty queues for so many rules.
    pub(crate) fn new(rules: usize) -> Self {
        Self((0..rules).map(|_| Default::default()).collect())
    }

    /// Returns the queue of a rule.
    pub(crate) fn of(&mut self, rule: usize, keeps: Keeps) -> &mut AgeQueue {
        &mut self.0[rule][keeps as usize]
    }

    /// Returns the time of what is oldest of a rule.
    pub(crate) fn oldest(&self, rule: usize) -> Option<i64> {
        self.0[rule].iter().filter_map(AgeQueue::first).min()
    }

    /// Returns the rule of the channel that loses something first where there is no room, and its key.
    pub(crate) fn first(&self) -> Option<(usize, QueueKey)> {
        Keeps::ALL.into_iter().find_map(|keeps| {
            let firsts = self.0.iter().enumerate();
            let firsts = firsts.filter_map(|(rule, queues)| Some((queues[keeps as usize].first()?, rule)));
            firsts.min().map(|(since_ms, rule)| (rule, QueueKey { keeps, since_ms }))
        })
    }

    /// Returns all queues.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, Keeps, &AgeQueue)> {
        let all = self.0.iter().enumerate();
        all.flat_map(|(rule, queues)| Keeps::ALL.map(|keeps| (rule, keeps, &queues[keeps as usize])))
    }
}
