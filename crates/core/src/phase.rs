//! The life of the process: `Starting → Serving → Withdrawing → Draining → Closing → Stopped`.

use std::time::{Duration, Instant};

/// The stage of the process's life. It only goes forward; a phase may be skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Startup hooks are running.
    #[default]
    Starting,
    /// All connections are admitted.
    Serving,
    /// As `Serving`, but the process reports that it is not ready, so that load balancers send new clients to
    /// another server.
    Withdrawing,
    /// No connections are admitted. The clients have the shutdown notice and are served until they leave.
    Draining,
    /// The remaining connections are being closed. Nothing is published any more.
    Closing,
    /// All connections are closed, and so is the listening socket. Also: another process has taken over.
    Stopped,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Self; 6] =
        [Self::Starting, Self::Serving, Self::Withdrawing, Self::Draining, Self::Closing, Self::Stopped];

    /// Returns the name in logs, metrics and HTTP responses.
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

    /// Returns true if a load balancer should send new clients to this process.
    pub fn is_ready(self) -> bool {
        self == Self::Serving
    }

    /// Returns true if new connections are admitted.
    pub fn admits_connections(self) -> bool {
        self < Self::Draining
    }

    /// Returns true if publications are still delivered.
    pub fn delivers_publications(self) -> bool {
        self < Self::Closing
    }
}

/// The state of the process. All of it belongs to the same moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PhaseState {
    /// The stage of the process's life.
    pub phase: Phase,
    /// From `Withdrawing` on: when the remaining connections are closed.
    pub deadline: Option<Instant>,
    /// From `Draining` on: how many connections there were when that phase began.
    pub drain_connections: Option<usize>,
}

impl PhaseState {
    /// Returns the time until the remaining connections are closed, once the process was asked to end.
    pub fn time_left(&self) -> Option<Duration> {
        Some(self.deadline?.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_order_and_have_names_of_their_own() {
        assert!(Phase::ALL.is_sorted_by(|a, b| a < b));
        let mut names = Phase::ALL.map(Phase::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    }

    #[test]
    fn admission_ends_with_the_drain_and_delivery_with_the_closing() {
        let which = |test: fn(Phase) -> bool| Phase::ALL.into_iter().filter(|phase| test(*phase)).collect();
        let (ready, admits, delivers): (Vec<_>, Vec<_>, Vec<_>) =
            (which(Phase::is_ready), which(Phase::admits_connections), which(Phase::delivers_publications));
        assert_eq!(ready, [Phase::Serving]);
        assert_eq!(admits, Phase::ALL[..3]);
        assert_eq!(delivers, Phase::ALL[..4]);
    }

    #[test]
    fn the_time_left_ends_at_zero() {
        assert_eq!(PhaseState::default().time_left(), None);
        let past = PhaseState { deadline: Some(Instant::now()), ..PhaseState::default() };
        assert_eq!(past.time_left(), Some(Duration::ZERO));
    }
}
