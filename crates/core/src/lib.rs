//! Settings and logging: what every other crate may ask for. Knows no network.

pub mod logging;
pub mod settings;
