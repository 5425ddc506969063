//! Notifications to the service manager (sd_notify(3)). Without one, they do nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// How often the service manager is asked for more time.
pub(crate) const EXTEND_INTERVAL: Duration = Duration::from_secs(10);

/// This process serves.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// This process is about to hand over to a new process.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now, NotifyState::Status("upgrading")]),
        Err(error) => debug!(%error, "the clock could not be read for the service manager"),
    }
}

/// The process `pid` serves, and is the service's main process from now on.
pub(crate) fn handed_over_to(pid: u32) {
    notify(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status("serving")]);
}

/// This process is stopping and needs at most this much time.
pub(crate) fn stopping(at_most: Duration) {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    extend(at_most);
}

/// This process waits for this many clients to leave.
pub(crate) fn draining(clients: usize) {
    notify(&[NotifyState::Status(&format!("waiting for {clients} clients to leave"))]);
}

/// This process is still stopping and needs at most this much more time.
///
/// It asks for it in small steps, so that a process that hangs does not get all of it.
pub(crate) fn extend(at_most: Duration) {
    let time = at_most.min(3 * EXTEND_INTERVAL) + EXTEND_INTERVAL;
    let us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(us)]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager could not be told");
    }
}
