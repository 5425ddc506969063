//! Upgrades: this process hands everything to a new one, or takes it over from an old one.
//!
//! - [`control`] answers operators at the control socket: `lastcall upgrade` asks there.
//! - [`old_process`] starts the new process and hands the sockets over, or goes on when that fails.
//! - [`new_process`] takes them over, before it serves.
//! - [`program`] finds the file that the new process runs, and how this process was started.
//! - [`supervisor`] keeps the process that was started alive while later ones serve.

mod control;
mod new_process;
mod old_process;
mod program;
mod supervisor;

pub(crate) use control::ControlServer;
pub(crate) use new_process::IncomingHandover;
pub(crate) use old_process::{Handover, UpgradeRequests, Upgrader};
pub(crate) use program::{Program, working_dir};
pub(crate) use supervisor::{Role, inherited_descriptor, supervise};
