//! What is done with a request, a file for each path.

pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod publish;
pub(crate) mod websocket;
