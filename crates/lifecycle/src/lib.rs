//! Startup and shutdown hooks, signals and phases. Knows no routes.

mod hooks;
mod phase;
mod run;
mod signals;
mod supervisor;
mod upgrade;

pub use hooks::{BoxError, HookError, Hooks};
pub use phase::{Phase, Phases, Status};
pub use run::{Ending, Lifecycle};
pub use signals::{Signal, Signals, upgrade_signal};
pub use upgrade::Upgrade;
