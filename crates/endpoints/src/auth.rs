//! Which callers and web pages may do what.

pub(crate) mod api_key;
pub(crate) mod cors;
mod forwarded;
pub(crate) mod origin;
pub(crate) mod own_hosts;
