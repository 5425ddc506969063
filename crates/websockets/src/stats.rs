//! What an event loop counts of its work. A loop counts for itself alone and is asked now and then: counting
//! costs no atomic operation and shares no cache line.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{admission::Disconnect, codec::CloseReason};

/// Counts since the start, of this process and of those it took over from.
///
/// Plain data: it can be written down and read by another process, of another version too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Clients that came.
    pub opened: u64,
    /// Clients that went, by reason: `left`, or why the server closed them.
    pub closed: BTreeMap<Cow<'static, str>, u64>,
    /// Of those, the ones whose TCP socket had to be cut.
    pub cut: u64,
    /// Whole messages that clients sent.
    pub messages_received: u64,
    /// Bytes that clients sent, with all framing.
    pub bytes_received: u64,
    /// Messages that went to clients, once for each: written, or queued to be.
    pub messages_sent: u64,
    /// Their bytes, with all framing.
    pub bytes_sent: u64,
    /// Turns of the loops, by how long they took.
    pub turns: Durations,
    /// Bytes that wait for slow clients now.
    #[serde(skip)]
    pub queued_bytes: u64,
    /// Clients that have something waiting now.
    #[serde(skip)]
    pub queued_clients: u64,
    /// Clients that are not read from for a while, as they send texts faster than they may.
    #[serde(skip)]
    pub throttled_clients: u64,
}

impl Figures {
    /// Adds what another one counted, which may be another process: sums stop at the largest number.
    pub fn add(&mut self, other: &Self) {
        self.opened = self.opened.saturating_add(other.opened);
        for (reason, count) in &other.closed {
            let sum = self.closed.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.cut = self.cut.saturating_add(other.cut);
        self.messages_received = self.messages_received.saturating_add(other.messages_received);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
        self.messages_sent = self.messages_sent.saturating_add(other.messages_sent);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.turns.add(&other.turns);
        self.queued_bytes = self.queued_bytes.saturating_add(other.queued_bytes);
        self.queued_clients = self.queued_clients.saturating_add(other.queued_clients);
        self.throttled_clients = self.throttled_clients.saturating_add(other.throttled_clients);
    }

    /// Counts a client that went.
    pub(crate) fn count_end(&mut self, disconnect: Disconnect, reason: Option<CloseReason>) {
        let reason = match (disconnect, reason) {
            (Disconnect::ByClient, _) => "left",
            (_, Some(reason)) => reason.name(),
            // Cut without having been closed: its socket could not be served.
            (_, None) => "failed",
        };
        *self.closed.entry(Cow::Borrowed(reason)).or_default() += 1;
        self.cut += u64::from(disconnect == Disconnect::Forced);
    }
}

/// How long something took, each time: a histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How many took at most as long as each of [`Durations::LIMITS`], and more than the one before; the last
    /// is for those that took longer than all.
    pub counts: [u64; Durations::LIMITS.len() + 1],
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// The limits, in microseconds. A slice of a turn is 4 ms, and 50 ms is what nobody should wait.
    pub const LIMITS: [u64; 11] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000];

    pub(crate) fn count(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = Self::LIMITS.iter().position(|limit| us <= *limit).unwrap_or(Self::LIMITS.len());
        // Always there: there is one more of them than limits.
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(us);
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up() {
        let mut one = Figures { opened: 2, ..Figures::default() };
        one.count_end(Disconnect::ByClient, None);
        one.count_end(Disconnect::Forced, Some(CloseReason::SlowConsumer));
        one.turns.count(Duration::from_micros(50));
        one.turns.count(Duration::from_secs(1));
        let mut both = one.clone();
        both.add(&one);
        assert_eq!((both.opened, both.cut), (4, 2));
        assert_eq!(both.closed, BTreeMap::from([("left".into(), 2), ("slow_consumer".into(), 2)]));
        assert_eq!((both.turns.counts[0], both.turns.counts[11], both.turns.sum_us), (2, 2, 2_000_100));
    }
}
