//! A clock that counts only the time in which an event loop ran.
//!
//! A process may be stopped (SIGSTOP, a frozen cgroup, a paused virtual machine, swapping). Meanwhile, its
//! clients' answers gather in the sockets, and clients on the same machine may be stopped, too. So a loop
//! measures the timeouts of its clients by this clock, which stands still meanwhile.

use std::time::{Duration, Instant};

/// The time by which a step of a loop may take longer than planned and still count in full. Far more than a
/// part of an iteration takes, and far less than any sensible timeout.
pub(crate) const ALLOWANCE: Duration = Duration::from_millis(50);

/// The clock of one loop. Its moments may only be compared with each other.
#[derive(Debug)]
pub(crate) struct Clock {
    now: Instant,
    /// The system's time at the last reading.
    system: Instant,
}

impl Clock {
    /// Starts a clock at this moment of the system's clock.
    pub(crate) fn start(system: Instant) -> Self {
        Self { now: system, system }
    }

    /// Returns the moment of the last reading.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Returns the moment of the last reading by the system's clock.
    pub(crate) fn system(&self) -> Instant {
        self.system
    }

    /// Reads the clock after a step of work, which is short.
    pub(crate) fn read(&mut self, system: Instant) -> Instant {
        self.after_wait(system, Some(Duration::ZERO))
    }

    /// Reads the clock after a wait for at most `planned`; `None`: for any time.
    pub(crate) fn after_wait(&mut self, system: Instant, planned: Option<Duration>) -> Instant {
        let elapsed = system.saturating_duration_since(self.system);
        let max = planned.map_or(elapsed, |planned| planned.saturating_add(ALLOWANCE));
        self.now += elapsed.min(max);
        // An earlier moment than the last one must not make the time between them count twice.
        self.system = self.system.max(system);
        self.now
    }

    /// Leaves out the time since the last reading, in which the loop was frozen.
    pub(crate) fn skip(&mut self, system: Instant) {
        self.system = system;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_clock_goes_with_the_system_as_long_as_steps_take_what_was_planned() {
        let start = Instant::now();
        let mut clock = Clock::start(start);
        assert_eq!(clock.read(start + 20 * MS), start + 20 * MS);
        assert_eq!(clock.after_wait(start + 520 * MS, Some(500 * MS)), start + 520 * MS);
        assert_eq!(clock.after_wait(start + 1050 * MS, Some(500 * MS)), start + 1050 * MS, "a little late");
        assert_eq!(clock.after_wait(start + 9000 * MS, None), start + 9000 * MS, "a wait without an end");
    }

    #[test]
    fn the_clock_counts_no_time_twice_when_it_is_read_with_an_earlier_moment() {
        let start = Instant::now();
        let mut clock = Clock::start(start);
        for _ in 0..10 {
            assert_eq!(clock.read(start + 4 * MS), start + 4 * MS);
            assert_eq!(clock.read(start), start + 4 * MS);
        }
    }

    #[test]
    fn the_clock_stands_still_while_the_process_does() {
        let start = Instant::now();
        let hour = Duration::from_secs(3600);
        let mut clock = Clock::start(start);
        assert_eq!(clock.after_wait(start + hour, Some(100 * MS)), start + 100 * MS + ALLOWANCE);
        assert_eq!(clock.read(start + 2 * hour), start + 100 * MS + 2 * ALLOWANCE);
        clock.skip(start + 3 * hour);
        assert_eq!(clock.read(start + 3 * hour), start + 100 * MS + 2 * ALLOWANCE);
    }
}
