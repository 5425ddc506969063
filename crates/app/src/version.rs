//! The version of the program, and the time at which the process started.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The version of the package.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the program was built from, if it was built in a git repository (`build.rs`).
pub(crate) const COMMIT: Option<&str> = option_env!("COMMIT");

static STARTED: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (SystemTime::now(), Instant::now()));

/// Returns the version, with the commit if it is known: `0.1.0 (0123456789ab)`.
pub(crate) fn full() -> &'static str {
    static FULL: LazyLock<String> = LazyLock::new(|| match COMMIT {
        Some(commit) => format!("{VERSION} ({commit})"),
        None => VERSION.to_owned(),
    });
    &FULL
}

/// Records the time of the start. To be called first.
pub(crate) fn note_start() {
    LazyLock::force(&STARTED);
}

/// Returns when the process started, in seconds since 1970.
pub(crate) fn start_time() -> f64 {
    // 0 if the clock is set to a time before that.
    STARTED.0.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Returns how long the process has run.
pub(crate) fn uptime() -> Duration {
    STARTED.1.elapsed()
}
