//! Settings, logging and memory: what every other crate may ask for. Knows no network.

pub mod logging;
pub mod memory;
pub mod settings;
