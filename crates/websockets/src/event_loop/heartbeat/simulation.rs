//! The schedule of pings as a loop keeps it, with clients, and with times in which the process is stopped:
//! all of it a simulation, so that hours take milliseconds.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{BUCKETS, Heartbeat, HeartbeatConfig, HeartbeatEvent};
use crate::{
    connection::Ping,
    event_loop::clock::{ALLOWANCE, Clock},
};

/// A time in which the process is stopped.
#[derive(Debug, Clone, Copy)]
struct Stop {
    /// From the start of the simulation, counting only what ran.
    after: Duration,
    duration: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Client {
    /// Answers this long after a ping, whether the server runs or not.
    Elsewhere(Duration),
    /// The same, but it is stopped whenever the server is.
    StoppedToo(Duration),
    Dead,
}

#[derive(Debug, Clone)]
struct Run {
    interval: Duration,
    timeout: Duration,
    stops: Vec<Stop>,
    /// The time by which the loop wakes later than planned.
    lateness: Vec<Duration>,
    bucket: usize,
}

/// The time that an iteration takes which waits for nothing.
const ITERATION: Duration = Duration::from_micros(50);

/// Intervals in milliseconds. Each is longer than a loop may wake late: otherwise it would miss a whole round
/// each time.
const INTERVALS: std::ops::Range<u64> = 50..5_000;

/// The milliseconds by which a loop may wake late.
const LATENESS: std::ops::Range<u64> = 0..40;

/// The system's time, and how much of it the process ran.
#[derive(Debug, Clone, Copy)]
struct Time {
    system: Duration,
    ran: Duration,
}

impl Run {
    /// Serves one client until the simulation is over, or the client is closed: when that was.
    fn close_of(&self, client: Client) -> Option<Time> {
        let start = Instant::now();
        let rounds = 3 * (self.interval + self.timeout);
        let mut time = Time { system: Duration::ZERO, ran: Duration::ZERO };
        let mut stops = self.stops.iter().copied().peekable();
        let mut clock = Clock::start(start);
        let mut heartbeat =
            Heartbeat::new(HeartbeatConfig { interval: self.interval, timeout: self.timeout }, clock.now());
        let (mut ping, mut answer_at) = (Ping::default(), None);
        let mut lateness = self.lateness.iter().cycle();
        while time.ran < rounds {
            let planned = heartbeat.next().saturating_duration_since(clock.now());
            let mut rest = if planned.is_zero() { ITERATION } else { planned + *lateness.next()? };
            // The process may be stopped at any time; what it waits for goes by meanwhile.
            while let Some(stop) = stops.next_if(|stop| stop.after <= time.ran + rest) {
                let before = stop.after.saturating_sub(time.ran);
                time.ran += before;
                time.system += before + stop.duration;
                rest = rest.saturating_sub(before + stop.duration);
            }
            time.ran += rest;
            time.system += rest;
            clock.after_wait(start + time.system, Some(planned));
            let has_answered = answer_at.is_some_and(|at| match client {
                Client::Elsewhere(_) => at <= time.system,
                Client::StoppedToo(_) => at <= time.ran,
                Client::Dead => false,
            });
            if has_answered {
                answer_at = None;
                ping.answered(false);
            }
            match heartbeat.due(clock.read(start + time.system)) {
                Some(HeartbeatEvent::Ping(bucket)) if bucket == self.bucket && ping.is_needed() => {
                    ping.sent();
                    answer_at = match client {
                        Client::Elsewhere(latency) => Some(time.system + latency),
                        Client::StoppedToo(latency) => Some(time.ran + latency),
                        Client::Dead => None,
                    };
                }
                Some(HeartbeatEvent::Check(bucket)) if bucket == self.bucket && ping.is_overdue() => {
                    return Some(time);
                }
                _ => {}
            }
        }
        None
    }

    /// Returns how much more than what the process really ran its clock may show, within one ping and its
    /// check.
    fn clock_error(&self) -> Duration {
        (ALLOWANCE + self.interval / BUCKETS as u32 + Duration::from_millis(1)) * self.stops.len() as u32
    }
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

/// Any schedule with such an interval, in milliseconds, and a timeout that is such a multiple of it.
fn runs(interval: std::ops::Range<u64>, timeout: impl Strategy<Value = f64>) -> impl Strategy<Value = Run> {
    let stop = (millis(0..60_000), millis(1..100_000)).prop_map(|(after, duration)| Stop { after, duration });
    let lateness = prop::collection::vec(millis(LATENESS), 1..8);
    (millis(interval), timeout, prop::collection::vec(stop, 0..6), lateness, 0..BUCKETS).prop_map(
        |(interval, share, mut stops, lateness, bucket)| {
            stops.sort_by_key(|stop| stop.after);
            Run { interval, timeout: interval.mul_f64(share), stops, lateness, bucket }
        },
    )
}

/// As the settings allow it, exactly the interval, and longer, as they do not allow it.
fn timeouts() -> impl Strategy<Value = f64> {
    prop_oneof![0.1..1.0, Just(1.0), 1.0..3.0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_client_that_answers_each_ping_in_time_is_never_closed(run in runs(INTERVALS, timeouts()), share in 0.0..1.0) {
        let latency = run.timeout.mul_f64(share);
        prop_assert!(run.close_of(Client::Elsewhere(latency)).is_none());
    }

    #[test]
    fn a_client_that_is_stopped_with_the_server_has_its_whole_time(run in runs(10_000..60_000, 0.3..=1.0), share in 0.0..1.0) {
        let latency = run.timeout.saturating_sub(run.clock_error()).mul_f64(share);
        prop_assert!(run.close_of(Client::StoppedToo(latency)).is_none());
    }

    #[test]
    fn a_client_that_never_answers_is_closed_within_a_bound(run in runs(INTERVALS, timeouts())) {
        let closed = run.close_of(Client::Dead);
        prop_assert!(closed.is_some());
        // Its bucket's turn comes within the interval; what is late is made up for.
        let bound = run.interval + run.timeout + Duration::from_millis(500);
        prop_assert!(closed.is_some_and(|time| time.ran <= bound), "{:?}, not within {:?}", closed, bound);
    }
}
