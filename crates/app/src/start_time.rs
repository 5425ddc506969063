//! The time at which the process started.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

static STARTED: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (SystemTime::now(), Instant::now()));

/// Records the time of the start. To be called first.
pub(crate) fn record() {
    LazyLock::force(&STARTED);
}

/// Returns when the process started, in seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    // 0 if the clock is set to a time before that.
    STARTED.0.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Returns how long the process has run.
pub(crate) fn uptime() -> Duration {
    STARTED.1.elapsed()
}
