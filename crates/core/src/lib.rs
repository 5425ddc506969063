//! Settings, logging, memory and a spare file descriptor: what every other crate may ask for. Knows no network.

pub mod logging;
pub mod memory;
pub mod settings;
mod spare_descriptor;

pub use spare_descriptor::SpareDescriptor;
