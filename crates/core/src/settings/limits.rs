//! How many files this process may have open.

use std::{fs::File, io};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, getrlimit, setrlimit},
};

/// Kept for what is not a client: log files, the listening socket, requests in flight.
pub(super) const RESERVE: usize = 64;

/// With fewer, not even the runtime starts.
const LEAST: usize = 16;

/// The limit of open files is too low for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of {limit} open files is too low: the server keeps {RESERVE} for itself, and needs one for each client; \
     raise it (ulimit -n, or LimitNOFILE= of systemd)"
)]
pub struct TooFewDescriptors {
    limit: usize,
}

impl TooFewDescriptors {
    /// With the limit that is in force: for when a descriptor could not be had.
    pub fn now() -> Self {
        Self { limit: most_connections().1 }
    }
}

/// Raises the soft limit of open files (RLIMIT_NOFILE, getrlimit(2)) to the hard one. The low soft limit
/// that is customary protects programs that use select(2), which this is not.
///
/// # Errors
/// When the limit is too low for anything.
pub fn raise_fd_limit() -> Result<(), TooFewDescriptors> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused: then the limit stays what it was, and `max_connections` follows it.
    let _ = setrlimit(Resource::Nofile, limit);
    let now = TooFewDescriptors::now();
    if now.limit < LEAST { Err(now) } else { Ok(()) }
}

/// Most descriptors that the kernel's table is made for beforehand: half a mebibyte of its memory.
const MOST_AT_ONCE: usize = 1 << 16;

/// Makes the kernel's table of this process's descriptors large enough for `max_connections` clients. To be
/// called before there is a second thread.
///
/// Otherwise the table doubles whenever it is full, and with threads, the one that needs the descriptor then
/// waits until no processor reads the old table any more: 10 to 40 ms, measured, at each of 256, 512, 1,024 …
/// descriptors. That is long enough for a crowd that dials to overflow the backlog.
///
/// # Errors
/// When a descriptor cannot be opened. Nothing is lost then but time.
pub fn make_room_for_descriptors(max_connections: usize) -> io::Result<()> {
    let highest =
        max_connections.saturating_add(RESERVE).min(most_connections().1).min(MOST_AT_ONCE).saturating_sub(1);
    let lowest = File::open("/dev/null")?;
    // The table never shrinks: this one may be closed at once.
    drop(fcntl_dupfd_cloexec(&lowest, i32::try_from(highest).unwrap_or(i32::MAX))?);
    Ok(())
}

/// What to tell an operator if the soft limit leaves room for fewer clients than the server keeps for itself.
pub(super) fn few_connections() -> Option<String> {
    let (most, limit) = most_connections();
    (most < RESERVE).then(|| {
        format!(
            "the limit of {limit} open files leaves room for {most} client{}, as {RESERVE} are kept for the server \
             itself; raise it (ulimit -n, or LimitNOFILE= of systemd)",
            if most == 1 { "" } else { "s" },
        )
    })
}

/// Most clients that the soft limit leaves room for, and the limit.
pub(super) fn most_connections() -> (usize, usize) {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    (limit.saturating_sub(RESERVE).max(1), limit)
}
