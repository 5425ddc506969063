//! What is due at a time: pings and their checks, closes that are spread, and closes that were not answered.

use std::time::Instant;

use super::{
    EventLoop, SLICE,
    heartbeat::{BUCKETS, Beat},
};
use crate::{
    admission::Disconnect,
    codec::{CloseReason, Frame},
};

impl EventLoop {
    /// Pings and checks what is due: one bucket a turn, the next turn follows at once.
    pub(super) fn run_heartbeat(&mut self) {
        let now = self.clock.read(Instant::now());
        let Some(beat) = self.heartbeat.as_mut().and_then(|heartbeat| heartbeat.due(now)) else { return };
        let (Beat::Ping(bucket) | Beat::Check(bucket)) = beat;
        let frame = Frame::ping();
        for slot in (bucket..self.connections.capacity()).step_by(BUCKETS) {
            let Some(connection) = self.connections.get_mut(slot).filter(|connection| connection.is_open())
            else {
                continue;
            };
            let outcome = match beat {
                Beat::Ping(_) if connection.ping.is_needed() => {
                    let outcome = connection.send(frame.bytes(), &self.config.rules);
                    connection.ping.sent(connection.has_output());
                    outcome
                }
                Beat::Check(_) if connection.ping.is_overdue() => {
                    // An answer may have come that is not read yet: after a pause there is much to read.
                    if connection.has_input() {
                        self.queue_read(slot);
                        continue;
                    }
                    self.close(slot, CloseReason::Idle);
                    continue;
                }
                Beat::Ping(_) | Beat::Check(_) => continue,
            };
            self.apply_outcome(slot, outcome);
        }
    }

    /// Closes those whose moment has come; each hears once more when to come back.
    pub(super) fn run_scheduled_closes(&mut self) {
        let Some((mut close_schedule, reason)) = self.close_schedule.take() else { return };
        let started = Instant::now();
        while started.elapsed() < SLICE
            && let Some((slot, id)) = close_schedule.due(started)
        {
            // The slot may have been given to another client since.
            if self.connections.get(slot).is_some_and(|connection| connection.id == id) {
                self.close(slot, reason);
            }
        }
        self.close_schedule = Some((close_schedule, reason));
    }

    pub(super) fn enforce_close_timeouts(&mut self) {
        let now = self.clock.now();
        while let Some(&(deadline, slot, id)) = self.closing.front()
            && deadline <= now
        {
            self.closing.pop_front();
            // The slot may have been given to somebody else since.
            if self.connections.get(slot).is_some_and(|connection| connection.id == id) {
                self.remove(slot, Disconnect::Forced);
            }
        }
    }
}
