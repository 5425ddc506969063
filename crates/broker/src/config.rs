//! The settings of a broker.

use std::time::Duration;

/// How much of a channel is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most publications; 0: none, so a client that has missed one cannot recover.
    pub size: usize,
    /// How long a publication is kept, and the position of a channel without subscribers.
    pub ttl: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { size: 100, ttl: Duration::from_secs(300) }
    }
}

/// What is kept of the channels `NAME:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceRule {
    /// What stands before the colon.
    pub name: String,
    /// What is kept.
    pub retention: Retention,
}

/// The settings of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What is kept of channels without a rule of their own.
    pub retention: Retention,
    /// Rules for namespaces.
    pub namespaces: Vec<NamespaceRule>,
    /// Most bytes that are kept of all channels. The oldest publications go first.
    pub max_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { retention: Retention::default(), namespaces: Vec::new(), max_bytes: 64 << 20 }
    }
}
