//! Which program this is, and since when it runs.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The version of the package.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, if it was built in a git repository (`build.rs`).
pub(crate) const COMMIT: Option<&str> = option_env!("COMMIT");

static STARTED: LazyLock<(SystemTime, Instant)> = LazyLock::new(|| (SystemTime::now(), Instant::now()));

/// The version, with the commit if it is known: `0.1.0 (0123456789ab)`.
pub(crate) fn full() -> &'static str {
    static FULL: LazyLock<String> = LazyLock::new(|| match COMMIT {
        Some(commit) => format!("{VERSION} ({commit})"),
        None => VERSION.to_owned(),
    });
    &FULL
}

/// Notes that the process starts. To be called first.
pub(crate) fn note_start() {
    LazyLock::force(&STARTED);
}

/// When the process started, in seconds since 1970.
pub(crate) fn start_time() -> f64 {
    // 0 if the clock is set to a time before that.
    STARTED.0.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// For how long it has run.
pub(crate) fn uptime() -> Duration {
    STARTED.1.elapsed()
}
