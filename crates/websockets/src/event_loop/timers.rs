//! All timers of one event loop: pings and their checks, close timeouts, scheduled closes, and the ends of
//! throttling.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    clock::Clock,
    heartbeat::{Heartbeat, HeartbeatEvent},
};
use crate::{
    close_schedule::CloseSchedule, codec::CloseReason, connection_key::ConnectionKey,
    excess_capacity::release_excess_capacity,
};

/// A timer that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Ping the connections of a bucket, or check their answers.
    Heartbeat(HeartbeatEvent),
    /// Look at the replays under way.
    CheckReplays,
    /// Start the closing handshake of a connection.
    Close(ConnectionKey, CloseReason),
    /// End a connection whose closing handshake takes longer than `close_timeout`.
    CloseTimeout(ConnectionKey),
    /// Read from a connection again.
    EndThrottling(ConnectionKey),
}

/// The timers of one event loop.
///
/// The time that the loop gives its clients is measured by its [`Clock`], which stands still while the
/// process is stopped. Scheduled closes are not: clients know the end of the drain as a moment of the
/// system's clock.
#[derive(Debug)]
pub(super) struct Timers {
    clock: Clock,
    heartbeat: Option<Heartbeat>,
    /// The moments at which closing connections are ended, in order.
    close_timeouts: VecDeque<(Instant, ConnectionKey)>,
    close_schedule: Option<(CloseSchedule, CloseReason)>,
    /// The moment at which the replays under way are looked at next.
    replay_check: Option<Instant>,
    /// The moments at which throttled connections are read again, by the system's clock.
    throttled: BinaryHeap<Reverse<(Instant, ConnectionKey)>>,
}

impl Timers {
    pub(super) fn new(clock: Clock, heartbeat: Option<Heartbeat>) -> Self {
        Self {
            clock,
            heartbeat,
            close_timeouts: VecDeque::new(),
            close_schedule: None,
            replay_check: None,
            throttled: BinaryHeap::new(),
        }
    }

    /// Returns the loop's clock. It is to be read at each step of the loop.
    pub(super) fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// Starts the close timeout of a connection.
    pub(super) fn start_close_timeout(&mut self, key: ConnectionKey, timeout: Duration, now: Instant) {
        let deadline = self.clock.read(now) + timeout;
        // Nearly always the last one: only connections of another process may have less time than the others.
        let at = self.close_timeouts.partition_point(|(other, _)| *other <= deadline);
        self.close_timeouts.insert(at, (deadline, key));
    }

    /// Returns the closing connections, some of which may have ended, and how much of their close timeouts is
    /// left.
    pub(super) fn close_timeouts(&mut self, now: Instant) -> impl Iterator<Item = (ConnectionKey, Duration)> {
        let now = self.clock.read(now);
        self.close_timeouts.iter().map(move |(deadline, key)| (*key, deadline.saturating_duration_since(now)))
    }

    /// Closes connections at the moments of `schedule`. It replaces the schedule before, if any.
    pub(super) fn schedule_closes(&mut self, schedule: CloseSchedule, reason: CloseReason) {
        self.close_schedule = Some((schedule, reason));
    }

    /// Sets the moment at which replays are looked at, by the loop's clock, unless it is set.
    pub(super) fn check_replays_at(&mut self, at: Instant) {
        self.replay_check.get_or_insert(at);
    }

    /// Sets the moment at which a throttled connection is read again.
    pub(super) fn end_throttling_at(&mut self, key: ConnectionKey, at: Instant) {
        self.throttled.push(Reverse((at, key)));
    }

    /// Returns the time from the last reading of the clock until something is due.
    pub(super) fn next(&self) -> Option<Duration> {
        let heartbeat = self.heartbeat.as_ref().map(Heartbeat::next);
        let close_timeout = self.close_timeouts.front().map(|(deadline, _)| *deadline);
        let by_clock = [heartbeat, close_timeout, self.replay_check].into_iter().flatten().min();
        let by_clock = by_clock.map(|next| next.saturating_duration_since(self.clock.now()));
        let close = self.close_schedule.as_ref().and_then(|(schedule, _)| schedule.next());
        let throttled = self.throttled.peek().map(|Reverse((at, _))| *at);
        let by_system = [close, throttled].into_iter().flatten().min();
        let by_system = by_system.map(|next| next.saturating_duration_since(self.clock.system()));
        [by_clock, by_system].into_iter().flatten().min()
    }

    /// Returns one thing that is due at this moment of the system's clock, if any.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let clock = self.clock.read(now);
        if let Some(&(deadline, key)) = self.close_timeouts.front()
            && deadline <= clock
        {
            self.close_timeouts.pop_front();
            release_excess_capacity(&mut self.close_timeouts);
            return Some(Due::CloseTimeout(key));
        }
        if self.replay_check.is_some_and(|at| at <= clock) {
            self.replay_check = None;
            return Some(Due::CheckReplays);
        }
        if let Some(&Reverse((at, key))) = self.throttled.peek()
            && at <= now
        {
            self.throttled.pop();
            if self.throttled.is_empty() {
                self.throttled.shrink_to_fit();
            }
            return Some(Due::EndThrottling(key));
        }
        if let Some((schedule, reason)) = &mut self.close_schedule {
            match schedule.due(now) {
                Some(key) => return Some(Due::Close(key, *reason)),
                None if schedule.next().is_none() => self.close_schedule = None,
                None => {}
            }
        }
        self.heartbeat.as_mut().and_then(|heartbeat| heartbeat.due(clock)).map(Due::Heartbeat)
    }
}
