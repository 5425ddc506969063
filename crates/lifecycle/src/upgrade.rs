//! An upgrade as the life of the process sees it: it may end here, because another process goes on.

use std::future::Future;

/// Whoever carries out upgrades.
pub trait Upgrade {
    /// What was asked for.
    type Request;

    /// Waits until somebody asks for an upgrade. May be dropped at any time without losing a request.
    fn requested(&mut self) -> impl Future<Output = Self::Request>;

    /// Carries it out: the number of the process that goes on in this one's place, or `None` if this one goes
    /// on as if nothing had happened. It is given up when `interrupted` is ready, unless it is too late.
    fn carry_out(
        &mut self,
        request: Self::Request,
        interrupted: impl Future,
    ) -> impl Future<Output = Option<u32>>;
}
