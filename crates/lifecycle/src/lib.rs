//! The life of the process: startup, serving, upgrades, shutdown. Knows no routes and no sockets.
//!
//! - `run` is the life itself: [`Lifecycle::start`] runs the startup hooks, and [`Lifecycle::run`] serves
//!   until a signal or an upgrade ends it. It drives the graceful shutdown of `lastcall-websockets`, which is
//!   the whole drain policy, and enters the phases that are not the drain's: `Serving` and `Stopped`.
//! - `hooks`: the parts of the server, each with a startup, and a shutdown with a timeout ([`Hooks`]).
//! - `signals`: which signals ask the process to end and which ask for an upgrade ([`Signals`]). It also
//!   handles the signals that a supervisor forwards.
//! - `service_manager`: what systemd is told of all this, with sd_notify(3).
//! - `upgrade`: the trait [`Upgrade`], by which the binary carries out upgrades.

mod hooks;
mod run;
mod service_manager;
mod signals;
mod upgrade;

pub use hooks::{BoxError, HookError, Hooks};
pub use run::{ExitReason, Lifecycle};
pub use service_manager::ServiceManager;
pub use signals::{AllSignals, Signal, Signals, is_in_foreground, reset_inherited};
pub use upgrade::{NewProcess, Upgrade, UpgradeFailed};
