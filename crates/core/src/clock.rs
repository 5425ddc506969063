//! The two clocks: one is measured with, the other is shown.
//!
//! The clock on the wall is set, by hand or by a time server, forwards and backwards. So no time that passes
//! is measured with it, but for the time in which the machine may have been off.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Returns how long the machine has run, also while it slept. No one sets this clock, and it begins anew with
/// the machine.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is ever negative.
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Returns [`since_boot`] in milliseconds.
pub fn since_boot_ms() -> i64 {
    i64::try_from(since_boot().as_millis()).unwrap_or(i64::MAX)
}

/// Returns the time of day as the time since 1970: none if it is set to a time before that, and the end of
/// the year 9999 if it is set to a later one. No date that is made of it is impossible.
pub fn since_1970() -> Duration {
    within_years(SystemTime::now())
}

/// Returns the time of day in milliseconds since 1970.
pub fn since_1970_ms() -> i64 {
    i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX)
}

/// Returns the time of day as a timestamp.
pub fn timestamp() -> Timestamp {
    timestamp_of(since_1970())
}

fn within_years(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().min(last_moment())
}

fn timestamp_of(since_1970: Duration) -> Timestamp {
    Timestamp::UNIX_EPOCH.saturating_add(since_1970).unwrap_or(Timestamp::MAX)
}

/// Returns the last moment that every library can write as a date, also a day later.
fn last_moment() -> Duration {
    const DAY: u64 = 24 * 60 * 60;
    Duration::from_secs(Timestamp::MAX.as_second().cast_unsigned() - DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_since_boot_goes_on_and_is_that_of_the_system() {
        let first = since_boot();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let last = since_boot();
        assert!(first <= last);
        assert!(first.as_secs_f64() < uptime + 1.0 && uptime < last.as_secs_f64() + 1.0, "{uptime}");
    }

    #[test]
    fn no_time_of_day_is_impossible() {
        let second = Duration::from_secs(1);
        let end_of_9999 = Duration::from_secs(253_402_300_799);
        for (time, year) in [
            (UNIX_EPOCH - second, 1970),
            (UNIX_EPOCH, 1970),
            (UNIX_EPOCH + Duration::from_secs(1_790_000_000), 2026),
            (UNIX_EPOCH + end_of_9999, 9999),
            (UNIX_EPOCH + end_of_9999 * 2, 9999),
        ] {
            let shown = timestamp_of(within_years(time)).to_string();
            assert!(shown.starts_with(&format!("{year}-")), "{time:?}: {shown}");
        }
    }
}
