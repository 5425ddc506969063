//! The replays under way: what they keep in memory that the history has dropped is bounded, and so is their time.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::{codec::CloseReason, connection_key::ConnectionKey};

/// Bytes that a client must take within `pong_timeout` while a replay is under way, whether it is sent pings or not.
const LEAST_TAKEN: u32 = 16 << 10;

/// Time between two looks at the replays.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A replay that began less than this ago is not compared with others: its client may not have got anything yet.
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
pub(super) struct Replays(Vec<Watched>);

impl EventLoop {
    /// Has a connection watched while a replay of it is under way.
    pub(super) fn watch_replay(&mut self, slot: usize) {
        let Some(key) = self.connections.key(slot) else { return };
        let Some(entry) = self.connections.get_mut(slot) else { return };
        if entry.replay_watched || !entry.connection.has_replay() {
            return;
        }
        let Some(acknowledged) = entry.connection.acknowledged() else { return };
        entry.replay_watched = true;
        let now = self.timers.clock().now();
        self.replays.0.push(Watched { key, since: now, acknowledged });
        self.timers.check_replays_at(now + CHECK_INTERVAL);
    }

    /// Closes the clients that take too little of their replays, and forgets the replays that have come to their end.
    pub(super) fn check_replays(&mut self) {
        let now = self.timers.clock().now();
        let timeout = self.config.replay_timeout;
        let mut watched = std::mem::take(&mut self.replays.0);
        watched.retain_mut(|replay| {
            let Some(slot) = self.connections.slot(replay.key) else { return false };
            let Some(entry) = self.connections.get_mut(slot) else { return false };
            if !entry.connection.is_open() || !entry.connection.has_replay() {
                entry.replay_watched = false;
                return false;
            }
            if now < replay.since + timeout {
                return true;
            }
            // A socket that has failed is reported by the poll.
            let acknowledged = entry.connection.acknowledged().unwrap_or(replay.acknowledged);
            if acknowledged.wrapping_sub(replay.acknowledged) < LEAST_TAKEN {
                self.close(slot, CloseReason::SlowConsumer);
                return false;
            }
            (replay.since, replay.acknowledged) = (now, acknowledged);
            true
        });
        watched.shrink_to(2 * watched.len());
        if !watched.is_empty() {
            self.timers.check_replays_at(now + CHECK_INTERVAL);
        }
        self.replays.0 = watched;
    }

    /// Closes the clients with the slowest replays, until what replays keep that the history has dropped is within its bound.
    pub(super) fn bound_pinned_history(&mut self) {
        if self.replays.0.is_empty() || !self.channels.broker.pins_too_much() {
            return;
        }
        let now = self.timers.clock().now();
        let mut by_speed: Vec<_> = self
            .replays
            .0
            .iter()
            .filter_map(|Watched { key, since, acknowledged }| {
                let slot = self.connections.slot(*key)?;
                let connection = &self.connections.get(slot)?.connection;
                if !connection.is_open() || !connection.pins_history() {
                    return None;
                }
                let taken = connection.acknowledged()?.wrapping_sub(*acknowledged);
                let time = now.saturating_duration_since(*since);
                let speed = if time < GRACE { f64::INFINITY } else { f64::from(taken) / time.as_secs_f64() };
                Some((speed, slot))
            })
            .collect();
        by_speed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        for (_, slot) in by_speed {
            if !self.channels.broker.pins_too_much() {
                break;
            }
            self.close(slot, CloseReason::SlowConsumer);
        }
    }
}
