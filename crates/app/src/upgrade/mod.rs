//! Upgrades: this process hands everything to a new one, or takes it over from an old one.
//!
//! - [`control`] answers operators at the control socket: `lastcall upgrade` asks there.
//! - [`old_process`] starts the new process and hands the sockets over, or goes on when that fails.
//! - [`new_process`] takes them over, before it serves.
//! - [`state`] is what goes from one to the other beside the connections; [`timeouts`] bound each step.
//! - [`program`] finds the file that the new process runs, and how this process was started.
//! - [`supervisor`] keeps the process that was started alive while later ones serve.

mod control;
mod descriptor;
mod new_process;
mod old_process;
mod program;
mod state;
mod supervisor;
mod timeouts;

pub(crate) use control::ControlServer;
pub(crate) use descriptor::inherited_descriptor;
pub(crate) use new_process::IncomingHandover;
pub(crate) use old_process::{Handover, UpgradeRequests, Upgrader};
pub(crate) use program::{Program, working_dir};
pub(crate) use supervisor::{Role, supervise};
pub(crate) use timeouts::{SERVING_REPORT_TIMEOUT, UPGRADE_TIMEOUT};
