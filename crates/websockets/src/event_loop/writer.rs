//! Writing what is queued: clients take turns.

use std::time::Instant;

use super::EventLoop;
use crate::{connections::Texts, excess_capacity::release_excess_capacity};

/// Flushes between two readings of the clock. Most of them write little: their socket takes no more.
const FLUSHES_PER_CLOCK_READ: usize = 8;

impl EventLoop {
    /// Has what is queued for a connection written when its turn comes, unless it waits for that already.
    pub(super) fn queue_write(&mut self, slot: usize) {
        let Some(key) = self.connections.key(slot) else { return };
        if let Some(entry) = self.connections.get_mut(slot)
            && entry.connection.has_output()
            && !entry.write_queued
        {
            entry.write_queued = true;
            self.write_queue.push_back(key);
        }
    }

    /// Writes to the queued connections, until none is left or the slice is over.
    pub(super) fn write(&mut self) {
        let started = Instant::now();
        let mut flushes = 0_usize;
        while let Some(key) = self.write_queue.pop_front() {
            if let Some(slot) = self.connections.slot(key) {
                self.flush(slot);
            }
            flushes += 1;
            if flushes.is_multiple_of(FLUSHES_PER_CLOCK_READ) && started.elapsed() > self.slice {
                break;
            }
        }
        release_excess_capacity(&mut self.write_queue);
    }

    /// Gives a connection its turn.
    fn flush(&mut self, slot: usize) {
        let Some(entry) = self.connections.get_mut(slot) else { return };
        entry.write_queued = false;
        let connection = &mut entry.connection;
        if !connection.has_output() {
            return;
        }
        let outcome = connection.flush();
        let resumes_reads = !connection.has_output();
        self.apply_outcome(slot, outcome);
        if resumes_reads {
            // Reads may have been paused because output was queued.
            self.resume_after(slot, Texts::Refused);
            self.queue_read(slot);
        }
    }
}
