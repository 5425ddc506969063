//! What is reported of the process, at `/health/ready` and `/metrics`.

use std::time::Duration;

use lastcall_core::phase::Phase;

use crate::upgrade_stats::UpgradeStats;

/// Tells what is reported of the process. The owner of the lifecycle implements it.
pub trait Health: Send + Sync + 'static {
    /// Returns the state of things now.
    fn report(&self) -> HealthReport;

    /// Returns the upgrades so far.
    fn upgrade_stats(&self) -> UpgradeStats;

    /// Returns which process it is.
    fn process(&self) -> ProcessReport;
}

/// The process that serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessReport {
    /// The version of the program.
    pub version: &'static str,
    /// The commit that it was built from, if that is known.
    pub commit: Option<&'static str>,
    /// The number of the process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub start_time: f64,
    /// For how long it has run.
    pub uptime: Duration,
}

/// The state of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealthReport {
    /// Where the process is in its life.
    pub phase: Phase,
    /// Once the process was asked to end: seconds until the clients that remain are closed.
    pub seconds_left: Option<f64>,
    /// Once draining: how many clients there were when that started.
    pub drain_clients: Option<usize>,
}
