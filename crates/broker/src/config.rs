//! The settings of a broker.

use lastcall_core::{Namespace, Retention};

/// The settings of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The rule for channels without one of their own.
    pub retention: Retention,
    /// Rules for namespaces.
    pub namespaces: Vec<Namespace>,
    /// Most bytes that are kept of all channels. The oldest publications go first.
    pub max_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { retention: Retention::default(), namespaces: Vec::new(), max_bytes: 64 << 20 }
    }
}
