//! What `/health/ready` and `/metrics` tell of upgrades.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lastcall_endpoints::UpgradeStats;

/// The upgrades so far, and whether one is under way. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedUpgradeStats(Arc<Mutex<UpgradeStats>>);

/// An upgrade is under way until this is dropped.
#[must_use]
pub(super) struct UpgradeInProgress(SharedUpgradeStats);

impl SharedUpgradeStats {
    /// Returns the stats at this moment.
    pub(crate) fn get(&self) -> UpgradeStats {
        *self.lock()
    }

    /// Goes on from the stats of the process before this one.
    pub(crate) fn set(&self, stats: UpgradeStats) {
        *self.lock() = stats;
    }

    /// Sets how long no client was served in the upgrade that brought this process.
    pub(crate) fn set_last_pause(&self, pause: Duration) {
        self.lock().last_pause = pause;
    }

    pub(super) fn begin_upgrade(&self) -> UpgradeInProgress {
        self.lock().in_progress = true;
        UpgradeInProgress(self.clone())
    }

    pub(super) fn count_failure(&self) {
        self.lock().failed += 1;
    }

    fn lock(&self) -> MutexGuard<'_, UpgradeStats> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UpgradeInProgress {
    fn drop(&mut self) {
        self.0.lock().in_progress = false;
    }
}
