//! Children that this process did not start: all orphans of a container if it is process 1 there, and what a
//! shell that became this process had started before.

use std::{convert::Infallible, io};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits for them, so that none stays a zombie.
pub(crate) struct Orphans {
    child_ended: Signal,
}

impl Orphans {
    /// # Errors
    /// When the system does not allow a handler.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { child_ended: signal(SignalKind::child())? })
    }

    /// Waits for each child that has ended. Not to be polled while this process has a child of its own: that
    /// one's exit code would be lost. May be dropped at any time.
    pub(in crate::upgrade) async fn reap(&mut self) -> Infallible {
        loop {
            reap();
            // `None` never comes while there is a runtime.
            self.child_ended.recv().await;
        }
    }
}

/// Returns all children that have ended.
pub(super) fn reap() -> Vec<(Pid, WaitStatus)> {
    std::iter::from_fn(|| wait(WaitOptions::NOHANG).ok().flatten()).collect()
}
