//! How many files this process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Kept for what is not a client: log files, the listening socket, requests in flight.
pub(super) const RESERVE: usize = 64;

/// Raises the soft limit of open files (RLIMIT_NOFILE, getrlimit(2)) to the hard one. The low soft limit
/// that is customary protects programs that use select(2), which this is not.
pub fn raise_fd_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused: then the limit stays what it was, and `max_connections` follows it.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Most clients that the soft limit leaves room for, and the limit.
pub(super) fn most_connections() -> (usize, usize) {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    (limit.saturating_sub(RESERVE).max(1), limit)
}
