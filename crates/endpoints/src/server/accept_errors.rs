//! Errors of accept(2): the pause after one, and its log line.

use std::{io, mem, time::Duration};

use lastcall_core::process::Shortage;
use rustix::io::Errno;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::line_rate::LineRate;

/// The time between two attempts: there is no event for an error that ends, and other tasks must run, such as
/// the one that waits for signals.
const PAUSE: Duration = Duration::from_millis(100);

/// Errors of single connections that may follow each other without a pause.
const MAX_WITHOUT_PAUSE: u32 = 64;

/// The number of connections in a row after which the errors have ended. One is not enough: at the limit of
/// descriptors, each client that leaves makes room for one more, and the shortage would begin, and be logged,
/// each time.
const SUCCESSES_TO_END: u32 = 16;

/// Errors that are of the connection, and not of the listening socket (accept(2)).
const OF_A_CONNECTION: [Errno; 9] = [
    Errno::CONNABORTED,
    Errno::INTR,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
    Errno::NONET,
];

/// The errors of one listening socket, which may begin and end again and again.
#[derive(Debug, Default)]
pub(super) struct AcceptErrors {
    /// The moment of the next attempt; `None`: at once.
    resume_at: Option<Instant>,
    /// Errors of single connections in a row.
    of_connections: u32,
    /// Connections that are still needed until the errors have ended; 0: there are none.
    until_ended: u32,
    /// True if these errors were logged, and their end is to be.
    is_logged: bool,
    /// Clients can use up all descriptors as often as they like.
    lines: LineRate,
}

impl AcceptErrors {
    /// Waits until the next attempt may be made. Cancel safe.
    pub(super) async fn pause(&self) {
        if let Some(at) = self.resume_at {
            sleep_until(at).await;
        }
    }

    /// Notes that a connection was accepted.
    pub(super) fn accepted(&mut self) {
        self.resume_at = None;
        self.of_connections = 0;
        let before = self.until_ended;
        self.until_ended = before.saturating_sub(1);
        if before == 1 && mem::take(&mut self.is_logged) {
            info!("new connections are accepted again");
        }
    }

    /// Notes an error of a socket that still listens.
    pub(super) fn note(&mut self, error: &io::Error) {
        let is_of_connection =
            OF_A_CONNECTION.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if is_of_connection && self.of_connections < MAX_WITHOUT_PAUSE {
            self.of_connections += 1;
            return debug!(%error, "a connection could not be accepted");
        }
        let now = Instant::now();
        self.resume_at = Some(now + PAUSE);
        let begins = mem::replace(&mut self.until_ended, SUCCESSES_TO_END) == 0;
        if !begins || self.is_logged || self.lines.try_acquire(now).is_err() {
            return;
        }
        self.is_logged = true;
        match Shortage::of(error) {
            Some(Shortage::Descriptors) => {
                warn!(%error, "no file descriptors left: new connections wait until there are some");
            }
            Some(Shortage::Memory) => {
                warn!(%error, "no memory left for sockets: new connections wait until there is some");
            }
            None => warn!(%error, "no connection can be accepted: new ones wait until that has passed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Error {
        errno.into()
    }

    #[tokio::test(start_paused = true)]
    async fn every_error_of_the_socket_has_a_pause_and_those_of_connections_when_there_are_many() {
        let is_paused = async |errors: &AcceptErrors| {
            let started = Instant::now();
            errors.pause().await;
            started.elapsed() == PAUSE
        };
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::ACCESS,
            Errno::PERM,
            Errno::INVAL,
        ] {
            let mut errors = AcceptErrors::default();
            errors.note(&error(errno));
            assert!(is_paused(&errors).await, "{errno}");
            errors.accepted();
            assert!(!is_paused(&errors).await, "{errno}");
        }
        let mut errors = AcceptErrors::default();
        for _ in 0..MAX_WITHOUT_PAUSE {
            errors.note(&error(Errno::CONNABORTED));
            assert!(!is_paused(&errors).await);
        }
        errors.note(&error(Errno::CONNABORTED));
        assert!(is_paused(&errors).await);
    }

    #[tokio::test]
    async fn a_shortage_begins_once_and_ends_after_enough_connections() {
        let mut errors = AcceptErrors::default();
        for _ in 0..3 {
            errors.note(&error(Errno::MFILE));
            assert!(errors.is_logged);
            // One connection ended, and made room for one.
            errors.accepted();
            assert!(errors.is_logged, "it continues");
        }
        for _ in 0..SUCCESSES_TO_END {
            errors.accepted();
        }
        assert!(!errors.is_logged);
        errors.note(&error(Errno::MFILE));
        assert!(errors.is_logged, "a new one");
    }
}
