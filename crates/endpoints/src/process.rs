//! The process that serves, as `/health/ready` and `/metrics` tell of it.

use std::time::Duration;

use lastcall_core::{clock, phase::PhaseState};
use tokio::sync::watch;

/// The process that serves.
#[derive(Debug, Clone)]
pub struct Process {
    /// The version of the program.
    pub version: &'static str,
    /// The commit that it was built from, if that is known.
    pub commit: Option<&'static str>,
    /// The number of the process.
    pub pid: u32,
    /// The moment of its start, in seconds since 1970.
    pub start_time: f64,
    /// The moment of its start, as the time since the machine was started.
    pub started: Duration,
    /// Its phase, which the owner of the lifecycle changes.
    pub phase: watch::Receiver<PhaseState>,
    /// The upgrades so far.
    pub upgrades: watch::Receiver<UpgradeStats>,
}

/// Counts of upgrades, of this process and of all before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpgradeStats {
    /// Upgrades after which a new process served.
    pub succeeded: u64,
    /// Upgrades after which the old process went on.
    pub failed: u64,
    /// True while an upgrade is under way.
    pub in_progress: bool,
    /// Clients that the last handover moved.
    pub last_clients: u64,
    /// Time during which neither process served them.
    pub last_pause: Duration,
}

impl Process {
    /// Returns how long the process has run.
    pub(crate) fn uptime(&self) -> Duration {
        clock::since_boot().saturating_sub(self.started)
    }

    /// Returns the phase now and what belongs to it.
    pub(crate) fn phase(&self) -> PhaseState {
        *self.phase.borrow()
    }

    /// Returns the upgrades until now.
    pub(crate) fn upgrade_stats(&self) -> UpgradeStats {
        *self.upgrades.borrow()
    }
}
