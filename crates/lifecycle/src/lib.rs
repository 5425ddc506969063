//! Startup and shutdown hooks, signals and phases. Knows no routes.

mod hooks;
mod phase;
mod run;
mod service_manager;
mod signals;
mod upgrade;

pub use hooks::{BoxError, HookError, Hooks};
pub use phase::{Phase, Phases, Status};
pub use run::{Ending, Lifecycle};
pub use signals::{AllSignals, Signal, Signals, is_in_foreground};
pub use upgrade::{NewProcess, Upgrade};
