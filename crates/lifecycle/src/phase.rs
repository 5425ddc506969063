//! The life of the process: `Starting → Serving → Withdrawing → Draining → Closing → Stopped`.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::info;

/// Where the process is in its life. It only ever goes forward; a phase may be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Startup hooks are running.
    Starting,
    /// All are welcome.
    Serving,
    /// All are still served, but load balancers are asked to send nobody new.
    Withdrawing,
    /// Nobody new; those inside have notice and are served until they leave.
    Draining,
    /// Those inside are being closed.
    Closing,
    /// Nobody is left; the port is closed.
    Stopped,
}

impl Phase {
    /// The name in logs and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Withdrawing => "withdrawing",
            Self::Draining => "draining",
            Self::Closing => "closing",
            Self::Stopped => "stopped",
        }
    }
}

/// What is published of the process: all of it belongs to the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// Where the process is in its life.
    pub phase: Phase,
    /// Once it drains: how many clients there were when that started.
    pub drain_clients: Option<usize>,
    deadline: Option<Instant>,
}

impl Status {
    /// While there is a deadline for clients to leave: the time until then.
    pub fn time_left(&self) -> Option<Duration> {
        Some(self.deadline?.saturating_duration_since(Instant::now()))
    }
}

/// Publishes the phase. Clones publish the same one.
#[derive(Debug, Clone)]
pub struct Phases(watch::Sender<Status>);

impl Default for Phases {
    fn default() -> Self {
        Self(watch::Sender::new(Status { phase: Phase::Starting, drain_clients: None, deadline: None }))
    }
}

impl Phases {
    /// The phase now.
    pub fn now(&self) -> Phase {
        self.0.borrow().phase
    }

    /// The status now.
    pub fn status(&self) -> Status {
        *self.0.borrow()
    }

    /// Waits until the process is in `phase` or beyond it.
    pub async fn reached(&self, phase: Phase) {
        // Fails only when the sender is gone, and this holds it.
        let _ = self.0.subscribe().wait_for(|status| status.phase >= phase).await;
    }

    /// Goes on to `phase`, and says so. Going back is not possible: it is ignored.
    pub(crate) fn enter(&self, phase: Phase) {
        self.enter_with(phase, |_| {});
    }

    fn enter_with(&self, phase: Phase, change: impl FnOnce(&mut Status)) {
        let mut from = phase;
        let moved = self.0.send_if_modified(|status| {
            from = status.phase;
            let forward = phase > status.phase;
            if forward {
                status.phase = phase;
                change(status);
            }
            forward
        });
        if moved {
            let (from, to) = (from.name(), phase.name());
            info!(pid = std::process::id(), from, to, "phase changed from {from} to {to}");
        }
    }

    /// Ends this process's part: another one serves. The log of both is one, and says there what that one does.
    pub(crate) fn hand_over(&self) {
        self.0.send_modify(|status| status.phase = Phase::Stopped);
    }

    /// Goes on to withdrawing. The drain that follows ends at `deadline` if nothing cuts it short.
    pub(crate) fn enter_withdrawing(&self, deadline: Instant) {
        self.enter_with(Phase::Withdrawing, |status| status.deadline = Some(deadline));
    }

    /// Goes on to draining, until `deadline`.
    pub(crate) fn enter_draining(&self, deadline: Instant, clients: usize) {
        self.enter_with(Phase::Draining, |status| {
            status.deadline = Some(deadline);
            status.drain_clients = Some(clients);
        });
    }

    /// Goes on to closing: the deadline is now, if it has not passed.
    pub(crate) fn enter_closing(&self) {
        let now = Instant::now();
        self.enter_with(Phase::Closing, |status| {
            status.deadline = status.deadline.map(|deadline| deadline.min(now));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_go_forward() {
        let phases = Phases::default();
        assert_eq!(phases.now(), Phase::Starting);
        phases.enter(Phase::Draining);
        phases.enter(Phase::Serving);
        assert_eq!(phases.now(), Phase::Draining);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_phase_is_told() {
        let phases = Phases::default();
        let waiting = tokio::spawn({
            let phases = phases.clone();
            async move { phases.reached(Phase::Draining).await }
        });
        phases.enter(Phase::Serving);
        phases.enter_draining(Instant::now() + Duration::from_secs(60), 7);
        waiting.await.unwrap();
        let status = phases.status();
        assert_eq!((status.phase, status.drain_clients), (Phase::Draining, Some(7)));
        assert!(status.time_left().unwrap() > Duration::from_secs(50));
        phases.enter_closing();
        assert_eq!(phases.status().time_left(), Some(Duration::ZERO));
    }
}
