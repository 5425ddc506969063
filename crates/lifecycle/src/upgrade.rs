//! The lifecycle's view of an upgrade: if it succeeds, a new process serves and this one ends.

use std::future::Future;

/// The new process, once it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewProcess {
    /// Its process id.
    pub pid: u32,
    /// True if it is the service's main process from now on. Otherwise the process that was started first
    /// stays, as its supervisor.
    pub is_main: bool,
}

/// An upgrade failed, and this process serves on. Whoever carries it out has reported why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the upgrade failed")]
pub struct UpgradeFailed;

/// Carries out upgrades.
pub trait Upgrade {
    /// A request for an upgrade.
    type Request;

    /// Waits for the next request. May be dropped at any time without losing one.
    fn next_request(&mut self) -> impl Future<Output = Self::Request>;

    /// Carries out an upgrade, and returns the new process. When `interrupted` is ready, the upgrade fails,
    /// unless the new process has everything already.
    ///
    /// # Errors
    /// When no new process serves. This one does.
    fn upgrade(
        &mut self,
        request: Self::Request,
        interrupted: impl Future,
    ) -> impl Future<Output = Result<NewProcess, UpgradeFailed>>;

    /// Refuses a request, for this reason.
    fn refuse(&mut self, request: Self::Request, reason: &str) -> impl Future<Output = ()>;
}
