//! The time at which the process started.

use std::{sync::LazyLock, time::Duration};

use lastcall_core::clock;

/// The time of day, and the time since the machine was started.
static STARTED: LazyLock<(Duration, Duration)> = LazyLock::new(|| (clock::since_1970(), clock::since_boot()));

/// Records the time of the start. To be called first.
pub(crate) fn record() {
    LazyLock::force(&STARTED);
}

/// Returns when the process started, in seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    STARTED.0.as_secs_f64()
}

/// Returns when the process started, as the time since the machine was started.
pub(crate) fn since_boot() -> Duration {
    STARTED.1
}
