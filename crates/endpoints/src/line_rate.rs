//! The bound on lines of the log about one kind of event.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket: some lines at once, as one tries a thing again after each change of a setting, and then
/// one a minute.
#[derive(Debug)]
pub(crate) struct LineRate {
    lines: u32,
    /// The moment from which on lines come back; `None` before the first one was taken.
    since: Option<Instant>,
}

impl Default for LineRate {
    fn default() -> Self {
        Self { lines: Self::BURST, since: None }
    }
}

impl LineRate {
    /// Most lines at once.
    pub(crate) const BURST: u32 = 5;

    /// Time after which there may be one more.
    pub(crate) const REFILL: Duration = Duration::from_secs(60);

    /// Takes one line.
    ///
    /// # Errors
    /// When there may be none now: then with the moment of the next one.
    pub(crate) fn try_acquire(&mut self, now: Instant) -> Result<(), Instant> {
        let mut since = self.since.unwrap_or(now);
        while self.lines < Self::BURST && now.saturating_duration_since(since) >= Self::REFILL {
            self.lines += 1;
            since += Self::REFILL;
        }
        if self.lines == Self::BURST {
            since = now;
        }
        self.since = Some(since);
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Ok(())
            }
            None => Err(since + Self::REFILL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_lines_come_at_once_and_then_one_a_minute() {
        let mut rate = LineRate::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..LineRate::BURST {
            assert_eq!(rate.try_acquire(at(0)), Ok(()));
        }
        assert_eq!(rate.try_acquire(at(1)), Err(at(60)));
        assert_eq!(rate.try_acquire(at(59)), Err(at(60)));
        assert_eq!(rate.try_acquire(at(61)), Ok(()));
        assert_eq!(rate.try_acquire(at(62)), Err(at(120)));
        let day = 24 * 60 * 60;
        let lines = (0..LineRate::BURST + 1).filter(|_| rate.try_acquire(at(day)).is_ok()).count();
        assert_eq!(lines, LineRate::BURST as usize, "a long silence brings no more than that");
    }
}
