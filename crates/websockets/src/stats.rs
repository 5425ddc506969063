//! Counters of the event loops. Each loop has its own and is asked for them by a command, so counting needs
//! no atomic operation and shares no cache line.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{admission::Disconnect, codec::CloseReason};

/// Counters since the start of this process, and of the processes before it that handed their connections
/// over.
///
/// Plain data: it is serialized for the new process, which may be another build. The serialized names stay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Connections that were registered.
    pub opened: u64,
    /// Connections that ended, by reason: `left` if the client ended it, else why the server closed it.
    #[serde(rename = "closed")]
    pub disconnects: BTreeMap<Cow<'static, str>, u64>,
    /// Of these, the ones that the server ended without a closing handshake.
    #[serde(rename = "cut")]
    pub forced_disconnects: u64,
    /// Messages received from clients, all fragments of one counted as one.
    pub messages_received: u64,
    /// Bytes received from clients, with all framing.
    pub bytes_received: u64,
    /// Publications sent, once for each client: written or queued. Those of a replay count when they are
    /// about to be written.
    pub messages_sent: u64,
    /// Bytes that the sockets of clients have taken, with all framing, but for the responses to handshakes.
    pub bytes_sent: u64,
    /// Subscriptions from a position that got everything after it.
    pub recovered: u64,
    /// Subscriptions from a position that is not kept any more, or was none.
    pub not_recovered: u64,
    /// Iterations of the loops, by how long they took.
    #[serde(rename = "turns")]
    pub loop_iterations: Histogram,
    /// Bytes that are queued for slow clients now.
    #[serde(skip)]
    pub queued_bytes: u64,
    /// Clients that have bytes queued now.
    #[serde(skip)]
    pub queued_clients: u64,
    /// Clients whose reads are paused now, because they send texts faster than they may.
    #[serde(skip)]
    pub throttled_clients: u64,
}

impl Stats {
    /// Adds the counters of another loop or process. Sums saturate.
    pub fn add(&mut self, other: &Self) {
        self.opened = self.opened.saturating_add(other.opened);
        for (reason, count) in &other.disconnects {
            let sum = self.disconnects.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.forced_disconnects = self.forced_disconnects.saturating_add(other.forced_disconnects);
        self.messages_received = self.messages_received.saturating_add(other.messages_received);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
        self.messages_sent = self.messages_sent.saturating_add(other.messages_sent);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.recovered = self.recovered.saturating_add(other.recovered);
        self.not_recovered = self.not_recovered.saturating_add(other.not_recovered);
        self.loop_iterations.add(&other.loop_iterations);
        self.queued_bytes = self.queued_bytes.saturating_add(other.queued_bytes);
        self.queued_clients = self.queued_clients.saturating_add(other.queued_clients);
        self.throttled_clients = self.throttled_clients.saturating_add(other.throttled_clients);
    }

    /// Counts a connection that ended.
    pub(crate) fn record_disconnect(&mut self, disconnect: Disconnect, reason: Option<CloseReason>) {
        let reason = match (disconnect, reason) {
            (Disconnect::ByClient, _) => "left",
            (_, Some(reason)) => reason.name(),
            // Ended by the server without a close: its socket could not be watched.
            (_, None) => "failed",
        };
        *self.disconnects.entry(Cow::Borrowed(reason)).or_default() += 1;
        self.forced_disconnects += u64::from(disconnect == Disconnect::Forced);
    }
}

/// A histogram of durations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// The numbers of durations that were at most each of [`Histogram::BOUNDS_US`] and above the one before.
    /// The last is for durations above all bounds.
    pub counts: [u64; Histogram::BOUNDS_US.len() + 1],
    /// Sum of all durations, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Upper bounds of the buckets, in microseconds. One part of a loop iteration may take 4 ms; beyond 50
    /// ms, clients notice.
    pub const BOUNDS_US: [u64; 11] =
        [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000];

    pub(crate) fn observe(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = Self::BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(Self::BOUNDS_US.len());
        // Always there: there is one more count than bounds.
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
    fn stats_of_two_loops_add_up() {
        let mut one = Stats { opened: 2, ..Stats::default() };
        one.record_disconnect(Disconnect::ByClient, None);
        one.record_disconnect(Disconnect::Forced, Some(CloseReason::SlowConsumer));
        one.loop_iterations.observe(Duration::from_micros(50));
        one.loop_iterations.observe(Duration::from_secs(1));
        let mut both = one.clone();
        both.add(&one);
        assert_eq!((both.opened, both.forced_disconnects), (4, 2));
        assert_eq!(both.disconnects, BTreeMap::from([("left".into(), 2), ("slow_consumer".into(), 2)]));
        let Histogram { counts, sum_us } = both.loop_iterations;
        assert_eq!((counts[0], counts[11], sum_us), (2, 2, 2_000_100));
    }
}
