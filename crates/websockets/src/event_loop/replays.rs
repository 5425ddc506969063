//! The replays under way: what they keep in memory that the history has dropped is bounded, and so is their
//! time.

use std::time::{Duration, Instant};

use super::timers::Timers;
use crate::{
    connection_key::ConnectionKey,
    connections::{Connections, Slot},
};

/// Bytes that a client must take within `pong_timeout` while it gets what it has missed, whether it is sent
/// pings or not.
const MIN_TAKEN: u32 = 16 << 10;

/// Time between two looks at the replays.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A replay that began less than this ago is not compared with others: its client may not have got anything
/// yet.
const GRACE: Duration = Duration::from_secs(1);

/// A connection with a replay under way.
#[derive(Debug)]
struct Watched {
    key: ConnectionKey,
    /// Since when is counted what the client takes.
    since: Instant,
    /// The bytes that the client had acknowledged then.
    acknowledged: u32,
}

/// The connections of a loop that have a replay under way, each once.
#[derive(Debug, Default)]
pub(super) struct Replays {
    watched: Vec<Watched>,
}

impl Replays {
    pub(super) fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Has a connection watched while a replay of it is under way.
    pub(super) fn watch(&mut self, key: ConnectionKey, entry: &mut Slot, timers: &mut Timers) {
        if entry.replay_watched || !entry.connection.has_replay() {
            return;
        }
        let Ok(acknowledged) = entry.connection.acknowledged() else { return };
        entry.replay_watched = true;
        let now = timers.clock().now();
        self.watched.push(Watched { key, since: now, acknowledged });
        timers.check_replays_at(now + CHECK_INTERVAL);
    }

    /// Forgets the replays that have come to their end. Returns the connections that have taken too little of
    /// theirs within `timeout`: they are to be closed.
    pub(super) fn check(
        &mut self,
        timeout: Duration,
        connections: &mut Connections,
        timers: &mut Timers,
    ) -> Vec<ConnectionKey> {
        let now = timers.clock().now();
        let mut too_slow = Vec::new();
        self.watched.retain_mut(|replay| {
            let Some(entry) = connections.get_by_key(replay.key) else { return false };
            if !entry.connection.is_open() || !entry.connection.has_replay() {
                entry.replay_watched = false;
                return false;
            }
            if now < replay.since + timeout {
                return true;
            }
            // A socket that has failed is reported by the poll.
            let acknowledged = entry.connection.acknowledged().unwrap_or(replay.acknowledged);
            // What was published since the client has subscribed is bounded by `max_queue`.
            if acknowledged.wrapping_sub(replay.acknowledged) < MIN_TAKEN && entry.connection.has_missed() {
                too_slow.push(replay.key);
                return false;
            }
            (replay.since, replay.acknowledged) = (now, acknowledged);
            true
        });
        self.watched.shrink_to(2 * self.watched.len());
        if !self.watched.is_empty() {
            timers.check_replays_at(now + CHECK_INTERVAL);
        }
        too_slow
    }

    /// Returns the connections whose replays keep what the history has dropped, the slowest first.
    pub(super) fn pinning(&self, connections: &Connections, now: Instant) -> Vec<ConnectionKey> {
        let mut by_speed: Vec<_> = self
            .watched
            .iter()
            .filter_map(|Watched { key, since, acknowledged }| {
                let connection = &connections.get(connections.slot(*key)?)?.connection;
                if !connection.is_open() || !connection.pins_history() {
                    return None;
                }
                let taken = connection.acknowledged().ok()?.wrapping_sub(*acknowledged);
                let time = now.saturating_duration_since(*since);
                let speed = if time < GRACE { f64::INFINITY } else { f64::from(taken) / time.as_secs_f64() };
                Some((speed, *key))
            })
            .collect();
        by_speed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        by_speed.into_iter().map(|(_, key)| key).collect()
    }
}
