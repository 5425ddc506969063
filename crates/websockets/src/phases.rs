//! The phase of the process, published on a watch channel. Admission, the drain and whatever asks how the
//! process is doing read this one value.

use std::time::Instant;

use lastcall_core::phase::{Phase, PhaseState};
use tokio::sync::watch;
use tracing::info;

/// Publishes the phase of the process, and lets it only go forward. Clones publish the same one.
#[derive(Debug, Clone)]
pub struct Phases(watch::Sender<PhaseState>);

impl Default for Phases {
    fn default() -> Self {
        Self(watch::Sender::new(PhaseState::default()))
    }
}

impl Phases {
    /// Returns the phase now.
    pub fn now(&self) -> Phase {
        self.0.borrow().phase
    }

    /// Returns the phase now and what belongs to it.
    pub fn state(&self) -> PhaseState {
        *self.0.borrow()
    }

    /// Returns the state of each moment, for those that only read it.
    pub fn subscribe(&self) -> watch::Receiver<PhaseState> {
        self.0.subscribe()
    }

    /// Waits until the process is in `phase` or a later one, and returns the state at that moment.
    pub async fn reached(&self, phase: Phase) -> PhaseState {
        let mut changes = self.0.subscribe();
        // An error means that the sender is gone, and `self` holds it.
        changes.wait_for(|state| state.phase >= phase).await.map_or_else(|_| self.state(), |state| *state)
    }

    /// Enters `phase` and logs it. An earlier phase is ignored.
    pub fn enter(&self, phase: Phase) {
        self.advance(phase, |_| {});
    }

    /// Enters `Stopped` without a log line: another process serves, and its log, which is the same one, says
    /// so.
    pub fn stop_after_handover(&self) {
        self.0.send_modify(|state| state.phase = Phase::Stopped);
    }

    /// Enters `Withdrawing`. The drain that follows ends at `deadline` unless something ends it earlier.
    pub(crate) fn enter_withdrawing(&self, deadline: Instant) {
        self.advance(Phase::Withdrawing, |state| state.deadline = Some(deadline));
    }

    /// Enters `Draining` until `deadline`, with the connections that `count` returns. `count` runs while this
    /// holds the lock of the phase.
    pub(crate) fn enter_draining(&self, deadline: Instant, count: impl FnOnce() -> usize) {
        self.advance(Phase::Draining, |state| {
            state.deadline = Some(deadline);
            state.drain_connections = Some(count());
        });
    }

    /// Enters `Closing`: the deadline is now, unless it has passed.
    pub(crate) fn enter_closing(&self) {
        let now = Instant::now();
        self.advance(Phase::Closing, |state| {
            state.deadline = state.deadline.map(|deadline| deadline.min(now));
        });
    }

    /// Calls `read` with the phase, which does not change before `read` returns.
    pub(crate) fn hold<T>(&self, read: impl FnOnce(Phase) -> T) -> T {
        let state = self.0.borrow();
        read(state.phase)
    }

    fn advance(&self, phase: Phase, change: impl FnOnce(&mut PhaseState)) {
        let mut from = phase;
        let entered = self.0.send_if_modified(|state| {
            from = state.phase;
            let is_later = phase > state.phase;
            if is_later {
                state.phase = phase;
                change(state);
            }
            is_later
        });
        if entered {
            let (from, to) = (from.name(), phase.name());
            info!(pid = std::process::id(), from, to, "phase changed from {from} to {to}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_phase_only_goes_forward() {
        let phases = Phases::default();
        assert_eq!(phases.now(), Phase::Starting);
        phases.enter(Phase::Draining);
        phases.enter(Phase::Serving);
        phases.enter_withdrawing(Instant::now());
        assert_eq!(phases.state(), PhaseState { phase: Phase::Draining, ..PhaseState::default() });
    }

    #[tokio::test]
    async fn a_task_that_waits_for_a_phase_is_woken() {
        let phases = Phases::default();
        let waiting = tokio::spawn({
            let phases = phases.clone();
            async move { phases.reached(Phase::Draining).await }
        });
        phases.enter(Phase::Serving);
        phases.enter_draining(Instant::now() + Duration::from_secs(60), || 7);
        let state = waiting.await.unwrap();
        assert_eq!((state.phase, state.drain_connections), (Phase::Draining, Some(7)));
        assert!(state.time_left().unwrap() > Duration::from_secs(50));
        phases.enter_closing();
        assert_eq!(phases.state().time_left(), Some(Duration::ZERO));
    }
}
