//! How many lines the log gets about one kind of event.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket: some lines at once, as one tries a thing again after each change of a setting, and then one a
/// minute.
#[derive(Debug)]
pub(crate) struct LineRate {
    lines: u32,
    /// Since when the lines are counted that come back.
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

    /// Takes one line. Returns `None` if there may be one now, else when there may be the next.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Instant> {
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
                None
            }
            None => Some(since + Self::REFILL),
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
            assert_eq!(rate.take(at(0)), None);
        }
        assert_eq!(rate.take(at(1)), Some(at(60)));
        assert_eq!(rate.take(at(59)), Some(at(60)));
        assert_eq!(rate.take(at(61)), None);
        assert_eq!(rate.take(at(62)), Some(at(120)));
        let day = 24 * 60 * 60;
        let lines = (0..LineRate::BURST + 1).filter(|_| rate.take(at(day)).is_none()).count();
        assert_eq!(lines, LineRate::BURST as usize, "a long silence brings no more than that");
    }
}
