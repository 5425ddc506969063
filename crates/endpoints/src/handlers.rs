//! The handlers of requests, a file for each path.

pub(crate) mod api_body;
pub(crate) mod channel_query;
pub(crate) mod channels;
pub(crate) mod events;
pub(crate) mod health;
mod history_body;
pub(crate) mod metrics;
pub(crate) mod publish;
pub(crate) mod publish_batch;
pub(crate) mod websocket;
