//! The `lastcall` binary: settings, logging, start, run, exit code.
//!
//! - `cli` is the command line, `commands` what `lastcall upgrade` and `lastcall status` do.
//! - `config` makes each library's configuration from the settings.
//! - `server` composes the parts of the server, and starts and stops them in order.
//! - `history` is the history of the channels as bytes, the file to which a shutdown writes it, and its
//!   expiry.
//! - `failure` is what the process says, and its exit code, when it could not do what it was to do.
//! - `listener` opens the listening socket as the settings say, `exposure` logs what other machines can do.
//! - `ingress` is all that can publish: HTTP and the notifier, which an upgrade suspends.
//! - `upgrade` is both sides of a handover, the control socket, and the supervisor.
//! - `threads` starts the threads of the runtime, `version` knows the version and the commit, `start_time`
//!   when the process started.

mod broker;
mod cli;
mod commands;
mod config;
mod exposure;
mod failure;
mod history;
mod ingress;
mod listener;
mod server;
mod start_time;
mod threads;
mod upgrade;
mod variables;
mod version;

use std::{
    io::{self, ErrorKind, Write},
    panic,
    process::ExitCode,
    thread,
};

use anyhow::Context;
use lastcall_core::{
    logging::{self, LoggingError},
    process::{OpenFileLimit, preallocate_descriptor_table},
    settings::{Loaded, Settings},
};
use tokio::runtime::Builder;
use tracing::{error, warn};

use crate::{
    cli::{Action, Invocation},
    failure::Failure,
    server::Inherited,
    upgrade::Role,
};

fn main() -> ExitCode {
    lastcall_lifecycle::reset_inherited();
    start_time::record();
    let invocation = cli::parse();
    run(invocation).unwrap_or_else(Failure::report)
}

fn run(invocation: Invocation) -> Result<ExitCode, Failure> {
    OpenFileLimit::raise()?;
    let loaded = Settings::load(&invocation.sources).map_err(Failure::settings)?;
    match invocation.action {
        Action::ShowConfig => Ok(show_config(&loaded)?),
        Action::Serve => serve(&loaded),
        Action::Upgrade => Ok(commands::upgrade(&loaded.settings)?),
        Action::Status => Ok(status(&loaded.settings)?),
    }
}

fn serve(loaded: &Loaded) -> Result<ExitCode, Failure> {
    let settings = &loaded.settings;
    let handover = upgrade::inherited_descriptor(variables::HANDOVER)?;
    let role = Role::detect(handover.is_some())?;
    let inherited = Inherited { handover, role };
    // Before the log: that may have a thread.
    let connections = settings.max_connections.saturating_add(settings.max_http_connections);
    let preallocated = preallocate_descriptor_table(connections);
    // Dropped last: what is logged on the way down is written, too.
    let (mut log, unusable) = match logging::init(settings) {
        Ok(log) => (Some(log), Vec::new()),
        Err(LoggingError::Dir { source, .. }) => {
            let reason = format_args!("cannot write log files there: {source}");
            (None, vec![loaded.unusable_error("log_dir", &reason)])
        }
        Err(error) => return Err(error.into()),
    };
    log_panics();
    for warning in &loaded.warnings {
        warn!("settings: {warning}");
    }
    if let Err(error) = preallocated {
        warn!(%error, "cannot enlarge the descriptor table: new clients may have to wait while it grows");
    }
    let runtime = threads::runtime()?;
    let exit = runtime.block_on(server::run(loaded, inherited, unusable));
    // A task that is stuck must not keep the process: whatever had to end in order has ended.
    runtime.shutdown_background();
    let exit = exit?;
    if let Some(log) = &mut log
        && exit.at_once
    {
        log.flush_fast();
    }
    Ok(exit.code)
}

/// Has panics logged like everything else: stderr may be closed, or take nothing.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        error!(thread = thread.name(), "a part of the server panicked, which is a bug: {panic}");
    }));
}

fn status(settings: &Settings) -> anyhow::Result<ExitCode> {
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(commands::status(settings))
}

fn show_config(loaded: &Loaded) -> anyhow::Result<ExitCode> {
    for warning in &loaded.warnings {
        // That stderr is closed does not matter to the reader of stdout.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    match io::stdout().write_all(cli::show_config(loaded).as_bytes()) {
        // The reader, such as `head`, needs no more.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
