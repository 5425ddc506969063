//! The schedule of pings, spread evenly over the interval, with one timer for all connections of a loop.
//!
//! Connections are put into buckets by their slot. Every `interval / BUCKETS`, one bucket is pinged; after
//! `timeout`, it is checked for clients that sent nothing since. A bucket is never pinged between its ping
//! and its check, so a check only looks at answers to the ping that it belongs to. All moments are those of
//! the loop's [`Clock`](super::clock::Clock).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Number of buckets: with 10,000 connections, one has 40, and pinging it takes well under a millisecond.
pub(crate) const BUCKETS: usize = 256;

/// The times at which clients are pinged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatConfig {
    /// Time between two pings to a client.
    pub interval: Duration,
    /// Time for the answer. If it is longer than `interval`, pings are sent less often.
    pub timeout: Duration,
}

/// An action that is due for one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeartbeatEvent {
    /// Ping its clients.
    Ping(usize),
    /// Close the connections whose clients sent nothing since their ping.
    Check(usize),
}

#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// Time between the pings of two buckets.
    step: Duration,
    timeout: Duration,
    next_ping: Instant,
    /// The bucket that is pinged next.
    bucket: usize,
    /// The moments at which pinged buckets are checked, in order; each bucket at most once.
    checks: VecDeque<(Instant, usize)>,
}

impl Heartbeat {
    pub(crate) fn new(config: HeartbeatConfig, now: Instant) -> Self {
        let step = config.interval / BUCKETS as u32;
        Self { step, timeout: config.timeout, next_ping: now + step, bucket: 0, checks: VecDeque::new() }
    }

    /// Returns when something is due next.
    pub(crate) fn next(&self) -> Instant {
        match self.checks.front() {
            Some((check, _)) if self.must_check_first() => *check,
            Some((check, _)) => self.next_ping.min(*check),
            None => self.next_ping,
        }
    }

    /// Returns true if all buckets, and so the one to be pinged next, still wait for their checks.
    fn must_check_first(&self) -> bool {
        self.checks.len() == BUCKETS
    }

    /// Returns one thing that is due, if any. A check is due no earlier than `timeout` after the ping was
    /// returned.
    pub(crate) fn due(&mut self, now: Instant) -> Option<HeartbeatEvent> {
        if let Some(&(check, bucket)) = self.checks.front()
            && check <= now
        {
            self.checks.pop_front();
            return Some(HeartbeatEvent::Check(bucket));
        }
        if self.must_check_first() || self.next_ping > now {
            return None;
        }
        let bucket = self.bucket;
        self.bucket = (bucket + 1) % BUCKETS;
        // Late pings are made up for, unless they are late by a whole round.
        let missed_round = now - self.next_ping > self.step * BUCKETS as u32;
        self.next_ping = if missed_round { now } else { self.next_ping } + self.step;
        self.checks.push_back((now + self.timeout, bucket));
        Some(HeartbeatEvent::Ping(bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_is_pinged_once_a_round_and_checked_after_the_timeout() {
        let start = Instant::now();
        let interval = Duration::from_millis(2560);
        let timeout = Duration::from_millis(1000);
        let mut heartbeat = Heartbeat::new(HeartbeatConfig { interval, timeout }, start);
        let mut pinged = vec![Vec::new(); BUCKETS];
        let mut checked = vec![Vec::new(); BUCKETS];
        for _ in 0..BUCKETS * 4 {
            let now = heartbeat.next();
            match heartbeat.due(now).unwrap() {
                HeartbeatEvent::Ping(bucket) => pinged[bucket].push(now - start),
                HeartbeatEvent::Check(bucket) => checked[bucket].push(now - start),
            }
        }
        for bucket in 0..BUCKETS {
            assert_eq!(pinged[bucket][1] - pinged[bucket][0], interval);
            assert_eq!(checked[bucket][0], pinged[bucket][0] + timeout);
        }
    }

    #[test]
    fn a_missed_round_is_not_made_up_for() {
        let start = Instant::now();
        let timeout = Duration::from_secs(10);
        let mut heartbeat =
            Heartbeat::new(HeartbeatConfig { interval: Duration::from_secs(25), timeout }, start);
        let late = start + Duration::from_secs(3600);
        assert_eq!(heartbeat.due(late), Some(HeartbeatEvent::Ping(0)));
        assert_eq!(heartbeat.due(late), None);
        assert_eq!(heartbeat.checks.front(), Some(&(late + timeout, 0)));
    }

    #[test]
    fn a_bucket_is_checked_between_its_pings_whatever_the_settings() {
        let start = Instant::now();
        let interval = Duration::from_secs(10);
        for (timeout, lateness) in [(10_000, 0), (10_000, 1), (9_999, 7), (25_000, 3), (10, 0)] {
            let mut heartbeat =
                Heartbeat::new(HeartbeatConfig { interval, timeout: Duration::from_millis(timeout) }, start);
            let mut waits = [false; BUCKETS];
            for _ in 0..BUCKETS * 10 {
                let now = heartbeat.next() + Duration::from_millis(lateness);
                match heartbeat.due(now).expect("something is due when it says so") {
                    HeartbeatEvent::Ping(bucket) => assert!(!std::mem::replace(&mut waits[bucket], true)),
                    HeartbeatEvent::Check(bucket) => assert!(std::mem::take(&mut waits[bucket])),
                }
            }
        }
    }
}

#[cfg(test)]
mod simulation;
