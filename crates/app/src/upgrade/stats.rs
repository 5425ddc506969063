//! The stats of upgrades, for `/health/ready` and `/metrics`.

use std::time::Duration;

use lastcall_endpoints::UpgradeStats;
use tokio::sync::watch;

/// The upgrades so far. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedUpgradeStats(watch::Sender<UpgradeStats>);

/// An upgrade is under way until this is dropped.
#[must_use]
pub(super) struct UpgradeInProgress(SharedUpgradeStats);

impl SharedUpgradeStats {
    /// Returns what has the stats of each moment.
    pub(crate) fn subscribe(&self) -> watch::Receiver<UpgradeStats> {
        self.0.subscribe()
    }

    /// Returns the stats at this moment.
    pub(crate) fn get(&self) -> UpgradeStats {
        *self.0.borrow()
    }

    /// Goes on from the stats of the process before this one.
    pub(crate) fn set(&self, stats: UpgradeStats) {
        self.0.send_replace(stats);
    }

    /// Sets how long no client was served in the upgrade that brought this process.
    pub(crate) fn set_last_pause(&self, pause: Duration) {
        self.0.send_modify(|stats| stats.last_pause = pause);
    }

    pub(super) fn begin_upgrade(&self) -> UpgradeInProgress {
        self.0.send_modify(|stats| stats.in_progress = true);
        UpgradeInProgress(self.clone())
    }

    pub(super) fn count_failure(&self) {
        self.0.send_modify(|stats| stats.failed += 1);
    }
}

impl Drop for UpgradeInProgress {
    fn drop(&mut self) {
        self.0.0.send_modify(|stats| stats.in_progress = false);
    }
}
