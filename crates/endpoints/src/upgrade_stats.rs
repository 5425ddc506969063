//! Counts of upgrades.

use std::time::Duration;

/// Counts upgrades, of this process and of all before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpgradeStats {
    /// Upgrades after which a new process served.
    pub succeeded: u64,
    /// Upgrades after which the old process went on.
    pub failed: u64,
    /// Whether an upgrade is under way.
    pub in_progress: bool,
    /// Clients that the last handover moved.
    pub last_clients: u64,
    /// Time during which neither process served them.
    pub last_pause: Duration,
}
