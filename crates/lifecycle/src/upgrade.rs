//! An upgrade as the life of the process sees it: it may end here, because another process goes on.

use std::future::Future;

/// The process that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewProcess {
    /// Its number.
    pub pid: u32,
    /// Whether it is the service's main process from now on. Otherwise the process that was started stays, and
    /// supervises it.
    pub is_main: bool,
}

/// Carries out upgrades.
pub trait Upgrade {
    /// What was asked for.
    type Request;

    /// Waits for a request for an upgrade. May be dropped at any time without losing one.
    fn requested(&mut self) -> impl Future<Output = Self::Request>;

    /// Carries it out. Returns the process that goes on, or `None` if this one goes on as before. It is given up
    /// when `interrupted` is ready, unless it is too late.
    fn carry_out(
        &mut self,
        request: Self::Request,
        interrupted: impl Future,
    ) -> impl Future<Output = Option<NewProcess>>;

    /// Answers a request that cannot be carried out, for this reason.
    fn refuse(&mut self, request: Self::Request, reason: &str) -> impl Future<Output = ()>;
}
