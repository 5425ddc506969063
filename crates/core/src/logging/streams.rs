//! The standard streams. Each may be a terminal or a pipe that takes nothing for as long as it likes, may be
//! shared with other processes, and its other end may be gone.

use std::{
    env,
    io::{self, IsTerminal, Write},
    os::fd::BorrowedFd,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, write},
    stdio::{stderr, stdout},
};

/// Most bytes that a pipe with room takes in one piece (pipe(7); 4096 on Linux).
const PIPE_BUF: usize = 4096;

/// The time that stderr has to take a line.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes to stdout as it is: no buffer, and no lock that another thread could wait for.
pub(super) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match write(stdout(), bytes) {
                // Another process has set O_NONBLOCK, which all that share the stream see.
                Err(Errno::AGAIN) => wait_for_room(stdout(), None)?,
                taken => return Ok(taken?),
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns true if stdout is a terminal that understands escape sequences.
pub fn stdout_takes_escapes() -> bool {
    io::stdout().is_terminal() && env::var_os("TERM").is_none_or(|kind| kind != "dumb")
}

/// Returns true if lines on stdout may have colours: not if NO_COLOR is set and not empty (no-color.org).
pub(super) fn stdout_takes_colors() -> bool {
    stdout_takes_escapes() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes a line to stderr. Waits at most a second for room there; a line that it does not take is lost, as
/// there is nowhere else to say so.
pub fn stderr_line(line: &str) {
    let line = format!("{line}\n");
    for piece in line.as_bytes().chunks(PIPE_BUF) {
        let room = wait_for_room(stderr(), Some(STDERR_TIMEOUT));
        if !room.unwrap_or(false) || write(stderr(), piece).is_err() {
            return;
        }
    }
}

/// Waits until a write does not block, or fails, for `max_wait` at most. Returns false if it would still
/// block then.
fn wait_for_room(stream: BorrowedFd<'_>, max_wait: Option<Duration>) -> rustix::io::Result<bool> {
    let timeout = max_wait.and_then(|wait| Timespec::try_from(wait).ok());
    let mut streams = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
    loop {
        match poll(&mut streams, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready.map(|ready| ready > 0),
        }
    }
}
