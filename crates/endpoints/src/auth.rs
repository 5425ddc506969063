//! Access: what callers and web pages may do.

pub(crate) mod access_rules;
pub(crate) mod api_caller;
pub(crate) mod cors;
mod origin;
mod trusted_hosts;
