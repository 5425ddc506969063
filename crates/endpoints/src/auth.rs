//! Which callers and web pages may do what.

pub(crate) mod api_caller;
pub(crate) mod cors;
mod forwarded;
pub(crate) mod origin;
pub(crate) mod trusted_hosts;
