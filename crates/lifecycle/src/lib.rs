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
//!
//! ```no_run
//! use std::{future::{Future, pending}, time::Duration};
//!
//! use lastcall_lifecycle::{
//!     Hooks, Lifecycle, NewProcess, ServiceManager, Signals, Upgrade, UpgradeFailed, is_in_foreground,
//! };
//! use lastcall_websockets::{ConnectionManager, Phases, ShutdownConfig, VitalTasks};
//!
//! /// A server that is restarted in place of being upgraded.
//! struct NoUpgrades;
//!
//! impl Upgrade for NoUpgrades {
//!     type Request = ();
//!
//!     async fn next_request(&mut self) {
//!         pending().await
//!     }
//!
//!     async fn upgrade(&mut self, (): (), _: impl Future) -> Result<NewProcess, UpgradeFailed> {
//!         Err(UpgradeFailed)
//!     }
//!
//!     async fn refuse(&mut self, (): (), _: &str) {}
//! }
//!
//! # async fn serve(manager: ConnectionManager, phases: Phases) -> Result<(), Box<dyn std::error::Error>> {
//! let signals = Signals::listen(is_in_foreground(), &VitalTasks::default())?;
//! let hooks = Hooks::default().add("HTTP", Duration::from_secs(5), async {
//!     println!("starting");
//!     Ok(async {
//!         println!("stopping");
//!         Ok(())
//!     })
//! });
//! let service_manager = ServiceManager::from_environment();
//! let life = Lifecycle::start(hooks, phases, signals, service_manager, false).await?;
//! let reason = life.run(manager, ShutdownConfig::default(), &mut NoUpgrades).await;
//! println!("the server has ended: {reason:?}");
//! # Ok(())
//! # }
//! ```

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
