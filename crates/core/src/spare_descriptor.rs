//! A file descriptor kept for the time when the process has no other.

use std::{fs::File, io, os::fd::OwnedFd};

use rustix::io::{DupFlags, Errno, dup3, fcntl_dupfd_cloexec};

/// After this many successful calls in a row a shortage has ended. One is not enough: at the limit, each client
/// that leaves makes room for one more, and the shortage would begin, and be logged, each time.
const SUCCESSES_TO_END_SHORTAGE: u32 = 16;

/// One file descriptor kept for the time when the process has no other, for a service that must answer even
/// then. With it, accept(2) succeeds once more:
///
/// 1. accept(2) fails with an error that [`is_shortage`](Self::is_shortage) recognises. Log it if
///    [`note_shortage`](Self::note_shortage) says so, and [`release`](Self::release) the spare descriptor.
/// 2. Call accept(2) again at once, and answer the connection.
/// 3. Give the answered connection to [`keep`](Self::keep), which closes it and keeps its descriptor as the next
///    spare one; if there was none, call [`restore`](Self::restore).
///
/// After each accept(2) that succeeds without the spare descriptor, call [`note_success`](Self::note_success).
#[derive(Debug)]
pub struct SpareDescriptor {
    /// What the spare descriptor is a copy of. Always open: the spare one can be made from it without a moment
    /// at which another thread could take the number.
    null: File,
    spare: Option<OwnedFd>,
    /// Successful calls that are still needed until the shortage has ended; 0: there is none.
    until_ended: u32,
}

impl SpareDescriptor {
    /// Takes two descriptors: the spare one, and one to make the next from.
    ///
    /// # Errors
    /// When there are not two left.
    pub fn reserve() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let spare = fcntl_dupfd_cloexec(&null, 0)?;
        Ok(Self { null, spare: Some(spare), until_ended: 0 })
    }

    /// Returns true if a system call failed because the process, or the system, has no file descriptors left, or no
    /// memory for another one (EMFILE, ENFILE, ENOBUFS and ENOMEM in accept(2)).
    pub fn is_shortage(error: &io::Error) -> bool {
        let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        error.raw_os_error().is_some_and(|code| shortages.iter().any(|errno| errno.raw_os_error() == code))
    }

    /// Notes a shortage. Returns true if it begins, and should be logged.
    pub fn note_shortage(&mut self) -> bool {
        std::mem::replace(&mut self.until_ended, SUCCESSES_TO_END_SHORTAGE) == 0
    }

    /// Notes a call that succeeded without the spare descriptor. Returns true if that ends a shortage.
    pub fn note_success(&mut self) -> bool {
        let before = self.until_ended;
        self.until_ended = before.saturating_sub(1);
        before == 1
    }

    /// Closes the spare descriptor, so that the next call that needs one succeeds.
    pub fn release(&mut self) {
        self.spare = None;
    }

    /// Closes `done`, a connection that was answered, and keeps its number as the spare descriptor. In between,
    /// no other thread can take it.
    pub fn keep(&mut self, mut done: OwnedFd) {
        match dup3(&self.null, &mut done, DupFlags::CLOEXEC) {
            Ok(()) => self.spare = Some(done),
            // EBUSY, when an open(2) of the same number is under way (dup2(2)).
            Err(_) => {
                drop(done);
                self.restore();
            }
        }
    }

    /// Opens the spare descriptor again if it is released. When there is none left, it stays released until the
    /// next call.
    pub fn restore(&mut self) {
        if self.spare.is_none() {
            self.spare = fcntl_dupfd_cloexec(&self.null, 0).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_descriptor_that_was_used_becomes_the_spare_one_again() {
        let mut spare = SpareDescriptor::reserve().unwrap();
        spare.release();
        assert!(spare.spare.is_none());
        let (mut read, write) = io::pipe().unwrap();
        let number = write.as_raw_fd();
        spare.keep(OwnedFd::from(write));
        assert_eq!(spare.spare.as_ref().unwrap().as_raw_fd(), number);
        // The last descriptor of the pipe's writing end is closed: its reader sees the end.
        assert_eq!(io::Read::read(&mut read, &mut [0]).unwrap(), 0);
        spare.release();
        spare.restore();
        assert!(spare.spare.is_some());
    }

    #[test]
    fn a_shortage_begins_once_and_ends_after_enough_successes() {
        let mut spare = SpareDescriptor::reserve().unwrap();
        assert!(!spare.note_success(), "there was none");
        assert!(spare.note_shortage());
        for _ in 0..3 {
            assert!(!spare.note_shortage(), "it continues");
            // One connection ended, and made room for one.
            assert!(!spare.note_success());
        }
        let ends = (1..=SUCCESSES_TO_END_SHORTAGE).filter(|_| spare.note_success()).count();
        assert_eq!(ends, 1);
        assert!(spare.note_shortage(), "a new one");
    }

    #[test]
    fn other_errors_are_no_shortage() {
        for code in [12, 23, 24, 105] {
            assert!(SpareDescriptor::is_shortage(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for error in [io::Error::from_raw_os_error(103), io::Error::other("EMFILE")] {
            assert!(!SpareDescriptor::is_shortage(&error), "{error}");
        }
    }
}
