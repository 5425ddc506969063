//! Pings, spread evenly over the interval, from one timer for all clients of a loop.
//!
//! Clients are dealt into buckets by their slot. Every `interval / BUCKETS` one bucket is pinged; after
//! `timeout` it is checked for clients that sent nothing since. A bucket is never pinged between its ping and its
//! check, so a check only looks at answers to the ping that it belongs to. All moments are those of the loop's
//! [`Clock`](crate::event_loop::clock::Clock).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// So many that a bucket of 10,000 clients holds 40: a beat takes well under a millisecond.
pub(crate) const BUCKETS: usize = 256;

/// What is due for one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Ping its clients.
    Ping(usize),
    /// Close those of its clients that sent nothing since their ping.
    Check(usize),
}

#[derive(Debug)]
pub(crate) struct Heartbeat {
    step: Duration,
    timeout: Duration,
    next_ping: Instant,
    bucket: usize,
    /// Buckets that were pinged, and when they are checked; ordered, each at most once.
    checks: VecDeque<(Instant, usize)>,
}

impl Heartbeat {
    /// Pings each bucket once in `interval` and checks it `timeout` later. When `timeout` is the longer one, it is
    /// the interval, too.
    pub(crate) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        let step = interval / BUCKETS as u32;
        Self { step, timeout, next_ping: now + step, bucket: 0, checks: VecDeque::new() }
    }

    /// When [`Heartbeat::due`] has something next.
    pub(crate) fn next(&self) -> Instant {
        match self.checks.front() {
            Some((check, _)) if self.must_check_first() => *check,
            Some((check, _)) => self.next_ping.min(*check),
            None => self.next_ping,
        }
    }

    /// Whether the bucket that is to be pinged next still waits for its check: all do, and it is the first one.
    fn must_check_first(&self) -> bool {
        self.checks.len() == BUCKETS
    }

    /// One thing that is due, if any. A check never comes sooner than `timeout` after the ping was really made.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Beat> {
        if let Some(&(check, bucket)) = self.checks.front()
            && check <= now
        {
            self.checks.pop_front();
            return Some(Beat::Check(bucket));
        }
        if self.must_check_first() || self.next_ping > now {
            return None;
        }
        let bucket = self.bucket;
        self.bucket = (bucket + 1) % BUCKETS;
        // Late beats are made up for, but those of a whole missed round are not.
        let missed_round = now - self.next_ping > self.step * BUCKETS as u32;
        self.next_ping = if missed_round { now } else { self.next_ping } + self.step;
        self.checks.push_back((now + self.timeout, bucket));
        Some(Beat::Ping(bucket))
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
        let mut heartbeat = Heartbeat::new(interval, timeout, start);
        let mut pinged = vec![Vec::new(); BUCKETS];
        let mut checked = vec![Vec::new(); BUCKETS];
        for _ in 0..BUCKETS * 4 {
            let now = heartbeat.next();
            match heartbeat.due(now).unwrap() {
                Beat::Ping(bucket) => pinged[bucket].push(now - start),
                Beat::Check(bucket) => checked[bucket].push(now - start),
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
        let mut heartbeat = Heartbeat::new(Duration::from_secs(25), timeout, start);
        let late = start + Duration::from_secs(3600);
        assert_eq!(heartbeat.due(late), Some(Beat::Ping(0)));
        assert_eq!(heartbeat.due(late), None);
        assert_eq!(heartbeat.checks.front(), Some(&(late + timeout, 0)));
    }

    #[test]
    fn a_bucket_is_checked_between_its_pings_whatever_the_settings() {
        let start = Instant::now();
        let interval = Duration::from_secs(10);
        for (timeout, lateness) in [(10_000, 0), (10_000, 1), (9_999, 7), (25_000, 3), (10, 0)] {
            let mut heartbeat = Heartbeat::new(interval, Duration::from_millis(timeout), start);
            let mut waits = [false; BUCKETS];
            for _ in 0..BUCKETS * 10 {
                let now = heartbeat.next() + Duration::from_millis(lateness);
                match heartbeat.due(now).expect("something is due when it says so") {
                    Beat::Ping(bucket) => assert!(!std::mem::replace(&mut waits[bucket], true)),
                    Beat::Check(bucket) => assert!(std::mem::take(&mut waits[bucket])),
                }
            }
        }
    }
}

#[cfg(test)]
mod simulation;
