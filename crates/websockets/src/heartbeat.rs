//! Pings, spread evenly over the interval, from one timer for all clients of a loop.
//!
//! Clients are dealt into buckets by their slot. Every `interval / BUCKETS` one bucket is pinged; after
//! `timeout` it is looked through for those that were not heard since.

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
    /// Close those of its clients that were not heard since their ping.
    Check(usize),
}

#[derive(Debug)]
pub(crate) struct Heartbeat {
    step: Duration,
    timeout: Duration,
    next_ping: Instant,
    bucket: usize,
    /// Buckets that were pinged, and when they are checked; ordered, at most all of them.
    checks: VecDeque<(Instant, usize)>,
}

impl Heartbeat {
    pub(crate) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        let step = interval / BUCKETS as u32;
        Self { step, timeout, next_ping: now + step, bucket: 0, checks: VecDeque::new() }
    }

    /// When [`Heartbeat::due`] has something next.
    pub(crate) fn next(&self) -> Instant {
        self.checks.front().map_or(self.next_ping, |(check, _)| self.next_ping.min(*check))
    }

    /// One thing that is due, if any. A check never comes sooner than `timeout` after the ping was really
    /// made, so a process that was suspended does not take its own absence for its clients'.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Beat> {
        if let Some(&(check, bucket)) = self.checks.front()
            && check <= now
        {
            self.checks.pop_front();
            return Some(Beat::Check(bucket));
        }
        if self.next_ping > now {
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
    fn after_a_suspension_clients_get_their_whole_timeout() {
        let start = Instant::now();
        let timeout = Duration::from_secs(10);
        let mut heartbeat = Heartbeat::new(Duration::from_secs(25), timeout, start);
        let late = start + Duration::from_secs(3600);
        assert_eq!(heartbeat.due(late), Some(Beat::Ping(0)));
        assert_eq!(heartbeat.due(late), None, "the missed hour is not made up for");
        assert_eq!(heartbeat.checks.front(), Some(&(late + timeout, 0)));
    }
}
