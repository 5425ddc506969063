//! What the service manager is told: sd_notify(3). Without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// How often a service manager is asked for more time.
pub(crate) const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// It serves.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// It is about to hand over to a new process.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("upgrading")]),
        Err(error) => debug!(%error, "the clock could not be read for the service manager"),
    }
}

/// Another process is the service from now on; it serves.
pub(crate) fn handed_over_to(pid: u32) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status("serving")]);
}

/// It is stopping, and needs this much time at most.
pub(crate) fn stopping(at_most: Duration) {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    extend(at_most);
}

/// It waits for so many clients to leave.
pub(crate) fn draining(clients: usize) {
    tell(&[NotifyState::Status(&format!("waiting for {clients} clients to leave"))]);
}

/// It still stops, and needs this much time more at most.
///
/// Asked for in small steps: a process that hangs does not get all of it.
pub(crate) fn extend(at_most: Duration) {
    let time = at_most.min(3 * EXTEND_EVERY) + EXTEND_EVERY;
    let us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(us)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager could not be told");
    }
}
