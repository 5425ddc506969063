//! Upgrades: this process hands everything to a new one, or takes it over from an old one.
//!
//! - [`upgrader`] takes a request, has it carried out, and reports how it went; [`requests`] come from
//!   signals and from [`control`], the server at the control socket, where `lastcall upgrade` asks.
//! - [`old_process`] starts the new process and hands the sockets over. What has to be undone if that fails
//!   is in [`attempt`].
//! - [`new_process`] takes the sockets over, before it serves.
//! - [`state`] is what goes from one to the other beside the connections and what goes in [`parts`];
//!   [`timeouts`] bound each step.
//! - [`program`] finds the file that the new process runs, and how this process was started.
//! - [`stats`] is what `/health/ready` and `/metrics` tell of upgrades.
//! - [`supervisor`] keeps the process that was started alive while later ones serve.

mod attempt;
mod control;
mod descriptor;
mod new_process;
mod old_process;
mod parts;
mod program;
mod requests;
mod state;
mod stats;
mod supervisor;
mod timeouts;
mod upgrader;

pub(crate) use control::ControlServer;
pub(crate) use descriptor::inherited_descriptor;
pub(crate) use new_process::IncomingHandover;
pub(crate) use old_process::OutgoingHandover;
pub(crate) use program::{Program, working_dir};
pub(crate) use requests::UpgradeRequests;
pub(crate) use stats::SharedUpgradeStats;
pub(crate) use supervisor::{Orphans, Role, Supervised, supervise};
pub(crate) use timeouts::{AFTER_READY_TIMEOUT, COMMAND_REPLY_TIMEOUT, SERVING_REPORT_TIMEOUT};
pub(crate) use upgrader::Upgrader;
